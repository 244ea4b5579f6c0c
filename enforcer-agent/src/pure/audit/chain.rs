//! The chain: every line of a segment, its header included, carries
//! `SHA-256(hash of the line before || this line without its hash field)`.
//!
//! The hash is always the last field, so that the text without it is found by cutting, not by writing JSON again. The
//! first line of all follows 32 zero bytes.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{AuditRecord, Entry};

/// The form of a segment, as its header names it.
pub const FORMAT: &str = "enforcer-audit/1";

/// `,"hash":"` + 64 digits + `"}`.
const HASH_FIELD_BYTES: usize = 9 + 64 + 2;

/// A link of the chain.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ChainHash(pub [u8; 32]);

/// Who writes a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The host's name.
    pub host: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SegmentHeader {
    /// [`FORMAT`].
    pub segment: String,
    /// Sequence number of the first record.
    pub first_sequence: u64,
    /// Hash of the last line of the segment before; zero in the first segment.
    pub previous_hash: ChainHash,
    /// The host that began it.
    pub host: String,
    /// The kernel's boot id at that time.
    pub boot_id: String,
    /// When it was begun.
    pub time: Timestamp,
    /// The header's own link.
    pub hash: ChainHash,
}

/// A line of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The first one.
    Header(SegmentHeader),
    /// All others.
    Record(Box<AuditRecord>),
}

/// The end of a chain: what the next line is tied to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chain {
    /// Sequence number of the last record; 0 before the first.
    pub sequence: u64,
    /// Hash of the last line.
    pub hash: ChainHash,
}

/// A line that cannot be written.
#[derive(Debug, Error)]
#[error("the record cannot be written as JSON: {source}")]
pub struct SealError {
    /// What the writer of JSON says.
    #[from]
    source: serde_json::Error,
}

/// What a chain holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainSummary {
    /// Sequence number of the first record; 0 if there is none.
    pub first_sequence: u64,
    /// Records seen.
    pub records: u64,
    /// Where the chain ends.
    pub end: Chain,
}

/// A chain that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {fault}")]
pub struct ChainError {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub fault: ChainFault,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChainFault {
    /// It is no line of a segment.
    #[error("it is neither a header nor a record: {reason}")]
    Unreadable {
        /// What the reader of JSON says.
        reason: String,
    },
    /// Records without a header before them.
    #[error("the first line is no segment header")]
    NoHeader,
    /// Its hash is not that of its text and the line before.
    #[error("its hash does not follow from the line before and its own text: one of them was changed")]
    Hash,
    /// A header that names another line before it.
    #[error("the header ties it to {found}, but the line before has {expected}: a segment is missing")]
    Previous {
        /// What the header says.
        found: ChainHash,
        /// What the line before has.
        expected: ChainHash,
    },
    /// Its number does not follow.
    #[error("its sequence number is {found} where {expected} follows: records are missing")]
    Sequence {
        /// The number it has.
        found: u64,
        /// The number that follows.
        expected: u64,
    },
}

/// A record before it has its hash.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unsealed<'a> {
    sequence: u64,
    host: &'a str,
    boot_id: &'a str,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// A header before it has its hash.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UnsealedHeader<'a> {
    segment: &'a str,
    first_sequence: u64,
    previous_hash: ChainHash,
    host: &'a str,
    boot_id: &'a str,
    time: Timestamp,
}

// === impl Chain ===

impl Chain {
    /// Appends the line of the next record, with its line break, to `out`. Nothing is changed when it fails.
    ///
    /// # Errors
    /// [`SealError`], which only a failing serialiser of a field could cause.
    pub fn seal(&mut self, identity: &Identity, entry: &Entry, out: &mut Vec<u8>) -> Result<(), SealError> {
        let sequence = self.sequence + 1;
        let Identity { host, boot_id } = identity;
        self.append(
            &Unsealed {
                sequence,
                host,
                boot_id,
                entry,
            },
            out,
        )?;
        self.sequence = sequence;
        Ok(())
    }

    /// Appends the header of a new segment, with its line break, to `out`.
    ///
    /// # Errors
    /// As [`Chain::seal`].
    pub fn seal_header(
        &mut self,
        identity: &Identity,
        time: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        let header = UnsealedHeader {
            segment: FORMAT,
            first_sequence: self.sequence + 1,
            previous_hash: self.hash,
            host: &identity.host,
            boot_id: &identity.boot_id,
            time,
        };
        self.append(&header, out)
    }

    fn append(&mut self, line: &impl Serialize, out: &mut Vec<u8>) -> Result<(), SealError> {
        let text = serde_json::to_vec(line)?;
        let hash = link(&self.hash, &text);
        let without_brace = text.strip_suffix(b"}").unwrap_or(&text);
        out.extend_from_slice(without_brace);
        out.extend_from_slice(format!(",\"hash\":\"{hash}\"}}\n").as_bytes());
        self.hash = hash;
        Ok(())
    }
}

fn link(previous: &ChainHash, text: &[u8]) -> ChainHash {
    let mut hash = Sha256::new();
    hash.update(previous.0);
    hash.update(text);
    ChainHash(hash.finalize().into())
}

/// The line's text without its hash field, or `None` if that is not its last field.
fn without_hash(line: &str) -> Option<String> {
    let cut = line.len().checked_sub(HASH_FIELD_BYTES)?;
    let (text, field) = (line.get(..cut)?, line.get(cut..)?);
    (field.starts_with(",\"hash\":\"") && field.ends_with("\"}")).then(|| format!("{text}}}"))
}

/// Reads one line, without its line break, and without checking its hash.
///
/// # Errors
/// [`ChainFault::Unreadable`].
pub fn read_line(line: &str) -> Result<Line, ChainFault> {
    let unreadable = |error: serde_json::Error| ChainFault::Unreadable {
        reason: error.to_string(),
    };
    if line.starts_with("{\"segment\":") {
        serde_json::from_str(line).map(Line::Header).map_err(unreadable)
    } else {
        serde_json::from_str(line).map(Line::Record).map_err(unreadable)
    }
}

/// The sequence number of a record's line without reading the rest; `None` for a header and for what is no record.
#[must_use]
pub fn line_sequence(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"sequence\":")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// Checks the lines of one or more segments, in order.
///
/// `start` is where the chain stood before the first line; `None` takes the first header's word for it, as when older
/// segments were moved elsewhere.
///
/// # Errors
/// The first line that does not hold.
pub fn verify_chain<Text: AsRef<str>>(
    lines: impl IntoIterator<Item = Text>,
    start: Option<Chain>,
) -> Result<ChainSummary, ChainError> {
    let mut end = start;
    let (mut first_sequence, mut records) = (0, 0);
    for (index, line) in lines.into_iter().enumerate() {
        let line = line.as_ref();
        let fail = |fault| ChainError {
            line: index as u64 + 1,
            fault,
        };
        let parsed = read_line(line).map_err(fail)?;
        let before = match (&parsed, end) {
            (_, Some(before)) => before,
            (Line::Header(header), None) => Chain {
                sequence: header.first_sequence.saturating_sub(1),
                hash: header.previous_hash,
            },
            (Line::Record(_), None) => return Err(fail(ChainFault::NoHeader)),
        };
        let after = follow(&before, line, &parsed).map_err(fail)?;
        if after.sequence != before.sequence {
            records += 1;
            first_sequence = if records == 1 {
                after.sequence
            } else {
                first_sequence
            };
        }
        end = Some(after);
    }
    Ok(ChainSummary {
        first_sequence,
        records,
        end: end.unwrap_or_default(),
    })
}

/// The end of the chain after one more line.
fn follow(before: &Chain, text: &str, line: &Line) -> Result<Chain, ChainFault> {
    let (sequence, expected, hash) = match line {
        Line::Header(header) if header.previous_hash != before.hash => {
            return Err(ChainFault::Previous {
                found: header.previous_hash,
                expected: before.hash,
            });
        }
        Line::Header(header) => (header.first_sequence, before.sequence + 1, header.hash),
        Line::Record(record) => (record.sequence, before.sequence + 1, record.hash),
    };
    if sequence != expected {
        return Err(ChainFault::Sequence {
            found: sequence,
            expected,
        });
    }
    let covered = without_hash(text).ok_or(ChainFault::Hash)?;
    if link(&before.hash, covered.as_bytes()) != hash {
        return Err(ChainFault::Hash);
    }
    let last = match line {
        Line::Header(_) => before.sequence,
        Line::Record(_) => sequence,
    };
    Ok(Chain { sequence: last, hash })
}

// === impl ChainHash ===

impl fmt::Display for ChainHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ChainHash({self})")
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.as_bytes();
        if digits.len() != 64
            || !digits
                .iter()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(de::Error::custom(
                "a hash has 64 hexadecimal digits in lower case",
            ));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| {
                if digit <= b'9' {
                    digit - b'0'
                } else {
                    digit - b'a' + 10
                }
            };
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Ok(Self(bytes))
    }
}
