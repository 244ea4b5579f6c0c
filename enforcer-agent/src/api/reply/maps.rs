//! Kernel maps.

use serde::{Deserialize, Serialize};

/// All maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapsListReply {
    /// In the order of the schema.
    pub maps: Vec<MapRow>,
}

/// A map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapRow {
    /// Its name.
    pub name: String,
    /// `Array`, `PerCpuArray`, `HashMap` or `RingBuf`.
    pub kind: String,
    /// The kernel's id.
    pub id: u32,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Entries that fit; bytes for a ring buffer.
    pub capacity: u32,
    /// Entries in use; `None` where every entry always exists.
    pub entries: Option<u64>,
}

/// Entries of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapsDumpReply {
    /// The map.
    pub name: String,
    /// Entries that are not all zero, up to the limit.
    pub entries: Vec<MapEntry>,
    /// Whether there are more.
    pub truncated: bool,
}

/// An entry of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapEntry {
    /// The index or the key, in words.
    pub key: String,
    /// The value, field by field.
    pub fields: Vec<MapField>,
}

/// A field of a record in a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapField {
    /// Its name in the record.
    pub name: String,
    /// Its value, in words.
    pub value: String,
}
