//! What a policy compiles to: the records of one configuration bank, and single writes into one.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use enforcer_common::abi::config::{
    BLOCK_CELLS, BackendRecord, DecisionBlock, DecisionCell, DecisionRecord, LimitsRecord, MAGLEV_ROOM,
    MaglevTable, NO_BACKEND, RowRecord, ServiceRecord, SetRecord, TenantRecord, TrieNode,
};
use serde::{Deserialize, Serialize};

/// A table without a back end. Zero is a back-end slot, so that an empty table is not all zeroes.
pub const EMPTY_MAGLEV: MaglevTable = MaglevTable {
    slots: [NO_BACKEND; MAGLEV_ROOM],
};

/// The records of one map, by index. It is shared, not copied: two compiles that agree on a table hold the same one, and
/// comparing them costs nothing.
pub struct Table<T>(Arc<Vec<T>>);

/// The whole content of one bank. Same input, same tables, on every host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Trie nodes; the first four are the roots.
    pub trie: Table<TrieNode>,
    /// By tenant slot; slot 0 is nobody. A record for every slot that there is room for, as with services and back ends.
    pub tenants: Table<TenantRecord>,
    /// By service slot.
    pub services: Table<ServiceRecord>,
    /// What the rules say about each kind of tenant.
    pub rows: Table<RowRecord>,
    /// What the rows consist of.
    pub blocks: Table<DecisionBlock>,
    /// What the cells of the blocks name.
    pub decisions: Table<DecisionRecord>,
    /// By limit group; group 0 is none.
    pub limits: Table<LimitsRecord>,
    /// By eligible set.
    pub sets: Table<SetRecord>,
    /// By eligible set.
    pub maglev: Table<Arc<MaglevTable>>,
    /// By back-end slot.
    pub backends: Table<BackendRecord>,
}

impl Tables {
    /// How large each table is.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, TableSize)> {
        [
            ("trieNodes", TableSize::of::<TrieNode>(self.trie.len())),
            (
                "tenants",
                TableSize::of::<TenantRecord>(used(&self.tenants, &TenantRecord::ZERO)),
            ),
            (
                "services",
                TableSize::of::<ServiceRecord>(used(&self.services, &ServiceRecord::ZERO)),
            ),
            ("rows", TableSize::of::<RowRecord>(self.rows.len())),
            (
                "decisionBlocks",
                TableSize::of::<DecisionBlock>(self.blocks.len()),
            ),
            ("decisions", TableSize::of::<DecisionRecord>(self.decisions.len())),
            ("limitGroups", TableSize::of::<LimitsRecord>(self.limits.len())),
            ("eligibleSets", TableSize::of::<SetRecord>(self.sets.len())),
            ("maglevTables", TableSize::of::<MaglevTable>(self.maglev.len())),
            (
                "backends",
                TableSize::of::<BackendRecord>(used(&self.backends, &BackendRecord::ZERO)),
            ),
        ]
        .into_iter()
    }
}

/// Records up to the last that is not zero: behind it is room only.
fn used<T: PartialEq>(table: &[T], zero: &T) -> usize {
    table
        .iter()
        .rposition(|record| record != zero)
        .map_or(0, |last| last + 1)
}

/// How large a table is. Slots without an owner count as records, slot 0 of the tenants among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSize {
    /// Records in one bank.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

// === impl TableSize ===

impl TableSize {
    const fn of<T>(records: usize) -> Self {
        let records = records as u64;
        Self {
            records,
            bytes: records * size_of::<T>() as u64,
        }
    }
}

/// A write of one record into a bank. Indexes are relative to the bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// `TRIE`.
    Trie(u32, Box<TrieNode>),
    /// `TENANTS`.
    Tenant(u32, TenantRecord),
    /// `SERVICES`.
    Service(u32, ServiceRecord),
    /// `ROWS`.
    Row(u32, RowRecord),
    /// `BLOCKS`.
    Block(u32, Box<DecisionBlock>),
    /// `DECISIONS`.
    Decision(u32, DecisionRecord),
    /// `LIMITS`.
    Limits(u32, LimitsRecord),
    /// `SETS`.
    Set(u32, Box<SetRecord>),
    /// `MAGLEV`.
    Maglev(u32, Arc<MaglevTable>),
    /// `BACKENDS`.
    Backend(u32, BackendRecord),
}

// === impl Table ===

impl<T> Table<T> {
    /// Whether both are one and the same, not only equal.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The records, copied if another table shares them.
    pub fn make_mut(&mut self) -> &mut Vec<T>
    where
        T: Clone,
    {
        Arc::make_mut(&mut self.0)
    }
}

impl<T> From<Vec<T>> for Table<T> {
    fn from(records: Vec<T>) -> Self {
        Self(Arc::new(records))
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T: PartialEq> PartialEq for Table<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0 == other.0
    }
}

impl<T: Eq> Eq for Table<T> {}

impl<T: fmt::Debug> fmt::Debug for Table<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

// === impl Tables ===

impl Tables {
    /// What a row says about a service, if there are such a row and block.
    #[must_use]
    pub fn cell(&self, row: u32, service: u32) -> Option<DecisionCell> {
        let row = self.rows.get(row as usize)?;
        let block = *row.blocks.get((service / BLOCK_CELLS) as usize)?;
        let block = self.blocks.get(block as usize)?;
        Some(block.cells[(service % BLOCK_CELLS) as usize])
    }
}

// === impl Write ===

impl Write {
    /// The map that it writes to, and the index relative to the bank.
    #[must_use]
    pub const fn place(&self) -> (&'static str, u32) {
        match self {
            Self::Trie(index, _) => ("TRIE", *index),
            Self::Tenant(index, _) => ("TENANTS", *index),
            Self::Service(index, _) => ("SERVICES", *index),
            Self::Row(index, _) => ("ROWS", *index),
            Self::Block(index, _) => ("BLOCKS", *index),
            Self::Decision(index, _) => ("DECISIONS", *index),
            Self::Limits(index, _) => ("LIMITS", *index),
            Self::Set(index, _) => ("SETS", *index),
            Self::Maglev(index, _) => ("MAGLEV", *index),
            Self::Backend(index, _) => ("BACKENDS", *index),
        }
    }
}
