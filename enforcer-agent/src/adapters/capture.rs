//! Writes packets that the agent was shown (`write`), and reads traffic that was: packet captures (pcap, pcapng) and audit logs. Files are streamed, never read whole; a record
//! that is damaged, or longer than any record is, ends the reading with a sentence, and what came before counts.

mod pcap;
#[cfg(test)]
mod tests;
mod write;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use write::CaptureWriter;

use super::audit_file::AuditError;
use super::audit_file::segment::{MAX_LINE_BYTES, segments};
use crate::pure::audit::{Line, read_line};
use crate::pure::simulate::Simulation;
use crate::pure::simulate::report::TrafficKind;

/// Why traffic cannot be read at all.
#[derive(Debug, Error)]
pub enum TrafficError {
    /// The system refuses.
    #[error("cannot read the traffic {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A device, a pipe or the like: it might never end.
    #[error(
        "{} is neither a file nor a directory; write the capture to a file first", path.display()
    )]
    NoFile {
        /// What it is not.
        path: PathBuf,
    },
    /// It is no traffic.
    #[error("{} is no traffic that can be replayed: {reason}", path.display())]
    Unknown {
        /// The file or directory.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// The audit log's directory cannot be read.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// How the reading went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What it was.
    pub kind: TrafficKind,
    /// Why it ended before its end, if it did.
    pub ended: Option<String>,
    /// What else is to be known, a sentence each.
    pub notes: Vec<String>,
}

/// Replays a capture, a segment of an audit log, or a directory of segments.
///
/// # Errors
/// [`TrafficError`], if nothing of it can be read.
pub fn replay(path: &Path, simulation: &mut Simulation) -> Result<Reading, TrafficError> {
    let fail = |source| TrafficError::Io {
        path: path.to_owned(),
        source,
    };
    let unknown = |reason: &str| TrafficError::Unknown {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    // Asked before it is opened: opening a pipe waits for whoever writes into it.
    let metadata = fs::metadata(path).map_err(fail)?;
    if metadata.is_dir() {
        let segments = segments(path)?;
        if segments.is_empty() {
            return Err(unknown(
                "it is a directory without segments of an audit log (`audit-*.jsonl`)",
            ));
        }
        return replay_segments(segments.into_iter().map(|(_, path)| path), simulation);
    }
    if !metadata.is_file() {
        return Err(TrafficError::NoFile {
            path: path.to_owned(),
        });
    }
    let mut file = File::open(path).map_err(fail)?;
    let mut start = Vec::new();
    file.by_ref().take(4).read_to_end(&mut start).map_err(fail)?;
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    match start[..] {
        [] => Err(unknown("it is empty")),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] => Err(unknown("it is compressed; decompress it first")),
        [b'{', ..] => replay_segments([path.to_owned()], simulation),
        _ => pcap::read(file, simulation).map_err(|reason| unknown(&reason)),
    }
}

fn replay_segments(
    segments: impl IntoIterator<Item = PathBuf>,
    simulation: &mut Simulation,
) -> Result<Reading, TrafficError> {
    let mut ended = None;
    for path in segments {
        let fail = |source| TrafficError::Io {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(fail)?;
        ended = read_lines(BufReader::new(file), simulation)
            .map_err(fail)?
            .map(|(line, reason)| format!("{}, line {line}: {reason}", path.display()));
        if ended.is_some() {
            break;
        }
    }
    Ok(Reading {
        kind: TrafficKind::AuditLog,
        ended,
        notes: Vec::new(),
    })
}

/// Reads the records of a segment. `Some`: the line where it cannot go on, from 1, and why.
fn read_lines(mut segment: impl BufRead, simulation: &mut Simulation) -> io::Result<Option<(u64, String)>> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        // Behind the longest line there is at least its line break.
        segment
            .by_ref()
            .take(MAX_LINE_BYTES as u64 + 1)
            .read_until(b'\n', &mut line)?;
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        if line.is_empty() && !is_whole {
            break;
        }
        if !is_whole {
            let reason = if line.len() > MAX_LINE_BYTES {
                "it is longer than any record".to_owned()
            } else {
                "it is cut off: the agent may be writing it, or was stopped in the middle".to_owned()
            };
            return Ok(Some((number, reason)));
        }
        let Ok(text) = std::str::from_utf8(&line) else {
            return Ok(Some((number, "it is no UTF-8".to_owned())));
        };
        match read_line(text) {
            Ok(Line::Header(_)) => {}
            Ok(Line::Record(record)) => simulation.record(&record.entry),
            Err(fault) => return Ok(Some((number, fault.to_string()))),
        }
    }
    Ok(None)
}
