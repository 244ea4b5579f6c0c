//! Captured packets.

use std::fmt;

use jiff::Timestamp;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pure::audit::Direction;

/// A capture has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureBeginReply {
    /// Names it in further requests.
    pub serial: u32,
    /// When it ends at the latest.
    pub until: Timestamp,
}

/// What was captured since the last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureReadReply {
    /// In the order in which they came.
    pub packets: Vec<CapturedPacket>,
    /// How the capture was, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<CaptureEndReply>,
}

/// How a capture was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureEndReply {
    /// Packets that were captured and read.
    pub packets: u64,
    /// Packets that were asked for and left out, since too many came at once.
    pub sampled_out: u64,
    /// Packets for which there was no room.
    pub lost: u64,
}

/// A packet as it came, and what it got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CapturedPacket {
    /// When it was judged.
    pub time: Timestamp,
    /// Which way it went.
    pub direction: Direction,
    /// The interface that it came in by, or was to go out by.
    pub interface: String,
    /// `Reason::name`.
    pub reason: String,
    /// Whose it is, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The generation that decided.
    pub generation: u64,
    /// Bytes of the frame.
    pub frame_bytes: u32,
    /// The first of them, from the link-layer header on.
    pub frame: FrameBytes,
}

/// Bytes of a frame; hexadecimal in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct FrameBytes(pub Vec<u8>);

// === impl FrameBytes ===

impl fmt::Display for FrameBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for FrameBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for FrameBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FrameBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Hexadecimal)
    }
}

struct Hexadecimal;

impl Visitor<'_> for Hexadecimal {
    type Value = FrameBytes;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("pairs of hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<FrameBytes, E> {
        let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
        let digits: Vec<u8> = text
            .chars()
            .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        let (pairs, []) = digits.as_chunks::<2>() else {
            return Err(wrong());
        };
        Ok(FrameBytes(
            pairs.iter().map(|[high, low]| high << 4 | low).collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_hexadecimal_digits() {
        let bytes = FrameBytes(vec![0, 0x0f, 0xa5, 0xff]);
        let json = serde_json::to_string(&bytes).unwrap();
        assert_eq!(json, "\"000fa5ff\"");
        assert_eq!(serde_json::from_str::<FrameBytes>(&json).unwrap(), bytes);
        for wrong in ["\"0\"", "\"0g\"", "\"ab c\"", "7"] {
            assert!(serde_json::from_str::<FrameBytes>(wrong).is_err(), "{wrong}");
        }
    }
}
