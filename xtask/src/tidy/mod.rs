//! `cargo xtask tidy`: the house rules that no compiler knows.
//!
//! The workspace is read once into memory; every rule is a pure function from its files to findings (`rules`), on top
//! of a small reader of Rust text (`source`). A rule knows names and text only: what the compiler or clippy can check is
//! left to them.

mod promises;
mod rules;
mod source;

use std::{collections::BTreeMap, fmt, fs, path::Path};

use crate::{
    error::{Error, Result},
    exec,
};

/// Folders that hold no sources of ours.
const SKIPPED_FOLDERS: [&str; 3] = [".git", "out", "target"];
/// Endings of the files that rules read. Anything else (packet captures, images) is data.
const READ_ENDINGS: [&str; 8] = ["json", "lock", "md", "rs", "sh", "toml", "yaml", "yml"];
/// Text files without an ending.
const READ_NAMES: [&str; 2] = [".ci/run", ".gitignore"];

/// Every text file of the workspace, by its path from the root.
#[derive(Debug, Default)]
struct Files(BTreeMap<String, String>);

/// A rule that is broken, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from 1; 0 stands for the file as a whole.
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.path, self.message),
            line => write!(formatter, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Checks all rules and prints every finding.
pub(crate) fn run() -> Result<()> {
    let mut files = Files::default();
    read_folder(exec::workspace_root(), "", &mut files)?;
    let mut findings: Vec<Finding> = rules::ALL.iter().flat_map(|rule| rule(&files)).collect();
    if findings.is_empty() {
        eprintln!(
            "tidy: {} files, {} rules, nothing to say",
            files.0.len(),
            rules::ALL.len()
        );
        return Ok(());
    }
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    eprintln!(
        "tidy: {} findings; docs/development.md gives the reason for each rule",
        findings.len()
    );
    Err(Error::Reported)
}

fn read_folder(root: &Path, relative: &str, files: &mut Files) -> Result<()> {
    let folder = root.join(relative);
    let cannot_read = |path: &Path, source| Error::CannotRead {
        path: path.to_path_buf(),
        source,
    };
    for entry in fs::read_dir(&folder).map_err(|source| cannot_read(&folder, source))? {
        let entry = entry.map_err(|source| cannot_read(&folder, source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if relative.is_empty() {
            name.clone()
        } else {
            format!("{relative}/{name}")
        };
        let kind = entry
            .file_type()
            .map_err(|source| cannot_read(&entry.path(), source))?;
        if kind.is_dir() && !SKIPPED_FOLDERS.contains(&name.as_str()) {
            read_folder(root, &path, files)?;
        } else if kind.is_file() && is_read(&path) {
            let text =
                fs::read_to_string(entry.path()).map_err(|source| cannot_read(&entry.path(), source))?;
            files.0.insert(path, text);
        }
    }
    Ok(())
}

fn is_read(path: &str) -> bool {
    let ending = path.rsplit_once('.').map(|(_, ending)| ending);
    READ_NAMES.contains(&path) || ending.is_some_and(|ending| READ_ENDINGS.contains(&ending))
}
