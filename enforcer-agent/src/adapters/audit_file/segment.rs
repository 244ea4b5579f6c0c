//! Segments: how they are named, continued after a restart, written and ended.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{AuditError, Settings};
use crate::pure::audit::{Chain, Change, Entry, Identity, Line, read_line};

/// Longest line of a segment; a record that would need more is shortened.
pub(in crate::adapters) const MAX_LINE_BYTES: usize = 256 << 10;
/// How far back the end of a segment is searched for a line that is whole: power loss can leave more than one that is
/// not.
const RECOVERY_BYTES: u64 = 4 << 20;
const MAX_LABEL_CHARS: usize = 64;
const LOCK_FILE: &str = "lock";
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// What was cut off the end of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repair {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// The end of the log, where records are appended.
#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    segment_bytes: u64,
    identity: Identity,
    chain: Chain,
    current: Option<Current>,
    /// Held for as long as this writes; the kernel gives it back if the process dies.
    _lock: File,
}

/// The segment that is written.
#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    /// Bytes that are whole lines; 0 before the header.
    bytes: u64,
    /// There may be part of a line behind them, since a write failed.
    torn: bool,
    /// Its entry in the directory is not synced yet.
    new: bool,
}

/// The segments of a directory by the sequence number of their first record, ascending.
pub(in crate::adapters) fn segments(directory: &Path) -> Result<Vec<(u64, PathBuf)>, AuditError> {
    let fail = |source| AuditError::Io {
        action: "list",
        path: directory.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for item in fs::read_dir(directory).map_err(fail)? {
        let path = item.map_err(fail)?.path();
        let digits = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl"))
            .filter(|digits| digits.len() == 20 && digits.bytes().all(|digit| digit.is_ascii_digit()));
        if let Some(first) = digits.and_then(|digits| digits.parse().ok()) {
            found.push((first, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn segment_path(directory: &Path, first_sequence: u64) -> PathBuf {
    directory.join(format!("audit-{first_sequence:020}.jsonl"))
}

// === impl Writer ===

impl Writer {
    /// Finds the end of the log, and cuts off what is not whole there.
    pub(super) fn resume(settings: &Settings) -> Result<(Self, Option<Repair>), AuditError> {
        let Settings {
            directory,
            segment_bytes,
            identity,
            queue_records: _,
        } = settings;
        let lock = lock(directory)?;
        let mut writer = Self {
            directory: directory.clone(),
            segment_bytes: *segment_bytes,
            identity: identity.clone(),
            chain: Chain::default(),
            current: None,
            _lock: lock,
        };
        let mut segments = segments(directory)?;
        let Some((first, path)) = segments.pop() else {
            return Ok((writer, None));
        };
        let fail = |source| AuditError::Io {
            action: "open",
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(&path)
            .map_err(fail)?;
        let end = find_end(&mut file, &path)?;
        writer.chain = match (end.chain, segments.pop()) {
            (Some(chain), _) => chain,
            // Not even its header was written: the log ends with the segment before.
            (None, Some((_, previous))) => end_of_whole_segment(&previous)?,
            (None, None) => Chain::default(),
        };
        if (end.bytes == 0 && first != writer.chain.sequence + 1) || first > writer.chain.sequence + 1 {
            let reason = format!("does not follow record {}", writer.chain.sequence);
            return Err(AuditError::Corrupt { path, reason });
        }
        let repair = (end.torn_bytes > 0).then(|| Repair {
            path: path.clone(),
            bytes: end.torn_bytes,
        });
        writer.current = Some(Current {
            file,
            path,
            bytes: end.bytes,
            torn: repair.is_some(),
            new: end.bytes == 0,
        });
        Ok((writer, repair))
    }

    /// Number of the last record.
    pub(super) const fn sequence(&self) -> u64 {
        self.chain.sequence
    }

    /// The segment that is written.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.current.as_ref().map(|current| current.path.clone())
    }

    /// Appends records: all of them or none.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), AuditError> {
        self.ready_segment()?;
        let Some(current) = self.current.as_mut() else {
            return Err(AuditError::Closed);
        };
        let mut chain = self.chain;
        let mut lines = Vec::new();
        let refused = |error: &dyn std::fmt::Display| AuditError::NotWritten {
            reason: error.to_string(),
        };
        if current.bytes == 0 {
            chain
                .seal_header(&self.identity, Timestamp::now(), &mut lines)
                .map_err(|error| refused(&error))?;
        }
        for entry in entries {
            let (before, start) = (chain, lines.len());
            chain
                .seal(&self.identity, entry, &mut lines)
                .map_err(|error| refused(&error))?;
            if lines.len() - start > MAX_LINE_BYTES {
                lines.truncate(start);
                chain = before;
                chain
                    .seal(&self.identity, &shortened(entry), &mut lines)
                    .map_err(|error| refused(&error))?;
            }
        }
        current.append(&lines)?;
        self.chain = chain;
        Ok(())
    }

    /// Syncs what was appended to disk.
    pub(super) fn sync(&mut self) -> Result<(), AuditError> {
        self.current
            .as_mut()
            .map_or(Ok(()), |current| current.sync(&self.directory))
    }

    /// Begins a new segment if there is none or the one there is has its size.
    fn ready_segment(&mut self) -> Result<(), AuditError> {
        if let Some(current) = &mut self.current {
            if current.bytes < self.segment_bytes {
                return Ok(());
            }
            current.sync(&self.directory)?;
        }
        let path = segment_path(&self.directory, self.chain.sequence + 1);
        let made = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path);
        let file = made.map_err(|source| AuditError::Io {
            action: "make",
            path: path.clone(),
            source,
        })?;
        self.current = Some(Current {
            file,
            path,
            bytes: 0,
            torn: false,
            new: true,
        });
        Ok(())
    }
}

// === impl Current ===

impl Current {
    fn append(&mut self, lines: &[u8]) -> Result<(), AuditError> {
        let fail = |source| AuditError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        };
        if self.torn {
            self.file.set_len(self.bytes).map_err(fail)?;
            self.torn = false;
        }
        let written = self.file.write_all(lines);
        if let Err(source) = written {
            // Cut off now, for readers; if that fails it is tried again before the next write.
            self.torn = self.file.set_len(self.bytes).is_err();
            return Err(AuditError::Io {
                action: "write",
                path: self.path.clone(),
                source,
            });
        }
        self.bytes += lines.len() as u64;
        Ok(())
    }

    fn sync(&mut self, directory: &Path) -> Result<(), AuditError> {
        let fail = |source| AuditError::Io {
            action: "sync",
            path: self.path.clone(),
            source,
        };
        self.file.sync_data().map_err(fail)?;
        if self.new {
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(fail)?;
            self.new = false;
        }
        Ok(())
    }
}

/// The entry without the texts of what changed, which are its only parts without a bound of their own.
fn shortened(entry: &Entry) -> Entry {
    let change = entry.change.as_ref().map(|change| Change {
        what: change.what.chars().take(MAX_LABEL_CHARS).collect(),
        causes: vec![format!(
            "the rest would make this record longer than {MAX_LINE_BYTES} bytes"
        )],
        ..Change::default()
    });
    Entry {
        change,
        ..entry.clone()
    }
}

fn lock(directory: &Path) -> Result<File, AuditError> {
    let fail = |action| {
        move |source| AuditError::Io {
            action,
            path: directory.to_owned(),
            source,
        }
    };
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(fail("make"))?;
    let path = directory.join(LOCK_FILE);
    let open = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path);
    let file = open.map_err(fail("open the lock in"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditError::InUse {
            path: directory.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(fail("lock")(source)),
    }
}

/// Where the whole lines of a segment end.
struct End {
    /// The last one's place in the chain; `None` if there is none.
    chain: Option<Chain>,
    /// Bytes of whole lines.
    bytes: u64,
    /// Bytes behind them.
    torn_bytes: u64,
}

/// Searches backwards for the last line that ends and can be read.
fn find_end(file: &mut File, path: &Path) -> Result<End, AuditError> {
    let fail = |source: io::Error| AuditError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let length = file.seek(SeekFrom::End(0)).map_err(fail)?;
    let start = length.saturating_sub(RECOVERY_BYTES);
    file.seek(SeekFrom::Start(start)).map_err(fail)?;
    let mut tail = Vec::new();
    file.take(RECOVERY_BYTES).read_to_end(&mut tail).map_err(fail)?;
    let mut end = tail
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    while end > 0 {
        let line_start = tail[..end - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        if let Some(chain) = link_of(&tail[line_start..end - 1]) {
            let bytes = start + end as u64;
            return Ok(End {
                chain: Some(chain),
                bytes,
                torn_bytes: length - bytes,
            });
        }
        end = line_start;
    }
    if start > 0 {
        let reason = format!("has no record in its last {RECOVERY_BYTES} bytes");
        return Err(AuditError::Corrupt {
            path: path.to_owned(),
            reason,
        });
    }
    Ok(End {
        chain: None,
        bytes: 0,
        torn_bytes: length,
    })
}

/// What a line leaves the chain at, if it is one.
fn link_of(line: &[u8]) -> Option<Chain> {
    match read_line(std::str::from_utf8(line).ok()?).ok()? {
        Line::Header(header) => Some(Chain {
            sequence: header.first_sequence.checked_sub(1)?,
            hash: header.hash,
        }),
        Line::Record(record) => Some(Chain {
            sequence: record.sequence,
            hash: record.hash,
        }),
    }
}

/// Where a segment that is not the last one leaves the chain: it was synced before the next was begun, so that nothing
/// of it may be torn.
fn end_of_whole_segment(path: &Path) -> Result<Chain, AuditError> {
    let fail = |source| AuditError::Io {
        action: "open",
        path: path.to_owned(),
        source,
    };
    let end = find_end(&mut File::open(path).map_err(fail)?, path)?;
    match end {
        End {
            chain: Some(chain),
            torn_bytes: 0,
            ..
        } => Ok(chain),
        _ => Err(AuditError::Corrupt {
            path: path.to_owned(),
            reason: "does not end with a record".to_owned(),
        }),
    }
}
