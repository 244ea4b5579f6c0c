//! Reading the log while it is written: whole lines only, and without reading a segment from its start.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::AuditError;
use super::segment::{MAX_LINE_BYTES, segments};
use crate::pure::audit::{AuditRecord, Line, line_sequence, read_line};

/// Most text that one call returns, so that the reply fits a frame.
const MAX_RETURNED_BYTES: usize = 8 << 20;
/// Below this distance lines are read one by one rather than searched.
const SCAN_BYTES: u64 = 64 << 10;

/// Up to `limit` records from sequence number `from` on.
pub(super) fn read_from(directory: &Path, from: u64, limit: usize) -> Result<Vec<AuditRecord>, AuditError> {
    let segments = segments(directory)?;
    let skip = segments
        .iter()
        .rposition(|(first, _)| *first <= from)
        .unwrap_or(0);
    let mut selection = Selection {
        from,
        limit,
        bytes_left: MAX_RETURNED_BYTES,
        records: Vec::new(),
    };
    for (_, path) in &segments[skip..] {
        if selection.is_full() {
            break;
        }
        selection.read_segment(path)?;
    }
    Ok(selection.records)
}

struct Selection {
    from: u64,
    limit: usize,
    bytes_left: usize,
    records: Vec<AuditRecord>,
}

// === impl Selection ===

impl Selection {
    fn is_full(&self) -> bool {
        self.records.len() >= self.limit || self.bytes_left == 0
    }

    fn read_segment(&mut self, path: &Path) -> Result<(), AuditError> {
        let fail = |source| AuditError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let mut file = BufReader::new(File::open(path).map_err(fail)?);
        let start = find_offset(&mut file, self.from).map_err(fail)?;
        file.seek(SeekFrom::Start(start)).map_err(fail)?;
        let mut line = Vec::new();
        while !self.is_full() && read_whole_line(&mut file, &mut line).map_err(fail)? {
            match line_sequence(&line) {
                Some(sequence) if sequence >= self.from => self.take(&line, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8], path: &Path) -> Result<(), AuditError> {
        let corrupt = |reason| AuditError::Corrupt {
            path: path.to_owned(),
            reason,
        };
        let text = std::str::from_utf8(line).map_err(|error| corrupt(format!("is no UTF-8: {error}")))?;
        match read_line(text) {
            Ok(Line::Record(record)) => self.records.push(*record),
            Ok(Line::Header(_)) => {}
            Err(fault) => return Err(corrupt(format!("has a bad line: {fault}"))),
        }
        self.bytes_left = self.bytes_left.saturating_sub(line.len());
        Ok(())
    }
}

/// An offset at or before the start of the first line with sequence number `from` or above, by bisection: sequence
/// numbers ascend within a segment.
fn find_offset<File: BufRead + Seek>(file: &mut File, from: u64) -> io::Result<u64> {
    let (mut low, mut high) = (0, file.seek(SeekFrom::End(0))?);
    let mut line = Vec::new();
    while high - low > SCAN_BYTES {
        let middle = low + (high - low) / 2;
        file.seek(SeekFrom::Start(middle))?;
        // The first line from here on is most likely cut.
        if !read_whole_line(file, &mut line)? {
            high = middle;
            continue;
        }
        let start = file.stream_position()?;
        if start < high
            && read_whole_line(file, &mut line)?
            && line_sequence(&line).is_some_and(|found| found < from)
        {
            low = start;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Reads a line without its line break; `false` at the end, and for a line that is not whole yet.
fn read_whole_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    // Behind the longest line there is at least its line break.
    file.by_ref()
        .take(MAX_LINE_BYTES as u64 + 1)
        .read_until(b'\n', line)?;
    Ok(line.pop_if(|last| *last == b'\n').is_some())
}
