//! Policy files to the texts of a policy.
//!
//! Only regular files are read, and only after their sizes have been added up: a pipe or a device could have no end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::pure::policy::PolicySource;
use crate::pure::policy::bounds::{MAX_SOURCES, MAX_TEXT_BYTES};

/// The path that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// Why policy files cannot be read.
#[derive(Debug, Error)]
pub enum PolicyFilesError {
    /// The system refuses.
    #[error("cannot read the policy {}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pipe, a socket or a device.
    #[error(
        "the policy {} is no regular file: give a file or a directory, or `-` to read standard input",
        path.display()
    )]
    NotRegular {
        /// What it is called.
        path: PathBuf,
    },
    /// Nothing in the directory is a policy.
    #[error("no file in {} ends in `.yaml` or `.yml`", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// Too much to be a policy.
    #[error(
        "the policy has {bytes} bytes up to {}; at most {MAX_TEXT_BYTES} are read: put sources that belong together \
         into larger prefixes",
        path.display()
    )]
    TooLarge {
        /// The file with which it became too much.
        path: PathBuf,
        /// The bytes of all files up to that one.
        bytes: u64,
    },
    /// Too many files.
    #[error(
        "the policy has more than {MAX_SOURCES} files: put what belongs together into one; it can have several documents"
    )]
    TooMany,
    /// The same file again.
    #[error("the policy file {} is given twice: name it once", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the policy that some paths name: files, directories with files that end in `.yaml` or `.yml`, or `-`. In a
/// directory, files that begin with a dot and directories are passed over. The texts are in the order of their names,
/// however the paths were given.
///
/// # Errors
/// When something cannot be read as a policy; then none of it is.
pub fn read(paths: &[PathBuf]) -> Result<Vec<PolicySource>, PolicyFilesError> {
    let mut files = Vec::new();
    for path in paths {
        let is_directory = path.as_os_str() != STANDARD_INPUT && metadata(path)?.is_dir();
        if is_directory {
            files.extend(files_in(path)?);
        } else {
            files.push(path.clone());
        }
        if files.len() > MAX_SOURCES {
            return Err(PolicyFilesError::TooMany);
        }
    }
    files.sort_unstable();
    if let Some(pair) = files.windows(2).find(|pair| pair[0] == pair[1]) {
        let path = pair[0].clone();
        return Err(PolicyFilesError::Twice { path });
    }
    check_sizes(&files)?;
    let mut left_bytes = MAX_TEXT_BYTES as u64;
    files
        .into_iter()
        .map(|path| read_one(path, &mut left_bytes))
        .collect()
}

fn metadata(path: &Path) -> Result<fs::Metadata, PolicyFilesError> {
    fs::metadata(path).map_err(|source| PolicyFilesError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The policy files of a directory, in no order.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, PolicyFilesError> {
    let fail = |source| PolicyFilesError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_hidden || !is_yaml || metadata(&path)?.is_dir() {
            continue;
        }
        files.push(path);
        if files.len() > MAX_SOURCES {
            return Err(PolicyFilesError::TooMany);
        }
    }
    if files.is_empty() {
        return Err(PolicyFilesError::Empty {
            path: directory.to_owned(),
        });
    }
    Ok(files)
}

/// Adds up the sizes before anything is opened.
fn check_sizes(files: &[PathBuf]) -> Result<(), PolicyFilesError> {
    let mut bytes = 0_u64;
    for path in files.iter().filter(|path| path.as_os_str() != STANDARD_INPUT) {
        let metadata = metadata(path)?;
        if !metadata.is_file() {
            return Err(PolicyFilesError::NotRegular { path: path.clone() });
        }
        bytes = bytes.saturating_add(metadata.len());
        if bytes > MAX_TEXT_BYTES as u64 {
            return Err(PolicyFilesError::TooLarge {
                path: path.clone(),
                bytes,
            });
        }
    }
    Ok(())
}

/// Reads a file to its end. It may have grown, or have become another one, since its size was looked at.
fn read_one(path: PathBuf, left_bytes: &mut u64) -> Result<PolicySource, PolicyFilesError> {
    let fail = |source| PolicyFilesError::Read {
        path: path.clone(),
        source,
    };
    let mut text = String::new();
    let limit = *left_bytes + 1;
    if path.as_os_str() == STANDARD_INPUT {
        io::stdin().take(limit).read_to_string(&mut text).map_err(fail)?;
    } else {
        let file = open(&path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(PolicyFilesError::NotRegular { path });
        }
        file.take(limit).read_to_string(&mut text).map_err(fail)?;
    }
    let Some(left) = left_bytes.checked_sub(text.len() as u64) else {
        let bytes = MAX_TEXT_BYTES as u64 - *left_bytes + text.len() as u64;
        return Err(PolicyFilesError::TooLarge { path, bytes });
    };
    *left_bytes = left;
    Ok(PolicySource::new(path.display().to_string(), text))
}

/// Opens a file without waiting for it, in case it has become a pipe.
fn open(path: &Path) -> io::Result<File> {
    let without_waiting = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    OpenOptions::new()
        .read(true)
        .custom_flags(without_waiting)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sources: &[PolicySource]) -> Vec<&str> {
        let name = |source: &'_ PolicySource| source.file.rfind('/').map_or(0, |slash| slash + 1);
        sources
            .iter()
            .map(|source| &source.file[name(source)..])
            .collect()
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_names_without_what_is_hidden() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "notes.txt", "c.yaml~"] {
            fs::write(at(name), name).unwrap();
        }
        fs::create_dir(at("d.yaml")).unwrap();
        std::os::unix::fs::symlink(at("b.yaml"), at("linked.yaml")).unwrap();
        let found = read(&[directory.path().to_owned()]).unwrap();
        assert_eq!(names(&found), ["a.yml", "b.yaml", "linked.yaml"]);
        assert_eq!(&*found[2].text, "b.yaml");
        // Files that are named are read whatever they are called, in the same order.
        let found = read(&[at("notes.txt"), at("b.yaml")]).unwrap();
        assert_eq!(names(&found), ["b.yaml", "notes.txt"]);
        assert!(matches!(
            read(&[at("b.yaml"), directory.path().to_owned()]),
            Err(PolicyFilesError::Twice { path }) if path == at("b.yaml")
        ));
        assert!(matches!(
            read(&[at("d.yaml")]),
            Err(PolicyFilesError::Empty { .. })
        ));
        assert!(matches!(read(&[at("none")]), Err(PolicyFilesError::Read { .. })));
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("huge.yaml");
        // A hole: one GiB that takes no room, and would take long to read.
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let error = read(std::slice::from_ref(&path)).unwrap_err();
        assert!(matches!(error, PolicyFilesError::TooLarge { bytes, .. } if bytes == 1 << 30));
        // Together they are too large as well.
        File::create(&path).unwrap().set_len(9 << 20).unwrap();
        let other = directory.path().join("other.yaml");
        File::create(other).unwrap().set_len(9 << 20).unwrap();
        let error = read(&[directory.path().to_owned()]).unwrap_err();
        assert!(matches!(error, PolicyFilesError::TooLarge { bytes, .. } if bytes == 18 << 20));
    }

    #[test]
    fn pipes_and_devices_are_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe.yaml");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        // To open the pipe would wait for a writer for ever.
        for path in [pipe, directory.path().to_owned(), PathBuf::from("/dev/zero")] {
            assert!(matches!(read(&[path]), Err(PolicyFilesError::NotRegular { .. })));
        }
    }

    #[test]
    fn too_many_files_and_other_bytes_than_text_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("latin.yaml");
        fs::write(&path, b"name: \xe9\n").unwrap();
        assert!(matches!(read(&[path]), Err(PolicyFilesError::Read { .. })));
        for number in 0..=MAX_SOURCES {
            fs::write(directory.path().join(format!("{number}.yaml")), "").unwrap();
        }
        assert!(matches!(
            read(&[directory.path().to_owned()]),
            Err(PolicyFilesError::TooMany)
        ));
    }
}
