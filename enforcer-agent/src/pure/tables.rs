//! What a policy compiles to: the records of one configuration bank, and single writes into one.

use enforcer_common::abi::config::{
    BackendRecord, MAGLEV_BLOCK_SLOTS, MaglevBlock, NO_BACKEND, PairRecord, ServiceRecord, SetRecord,
    TenantRecord, TrieNode,
};
use enforcer_common::schema::{MAGLEV_BLOCKS, MAX_SERVICES};
use serde::{Deserialize, Serialize};

/// The whole content of one bank. Same input, same tables, on every host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Trie nodes; the first four are the roots.
    pub trie: Vec<TrieNode>,
    /// By tenant slot; slot 0 is nobody.
    pub tenants: Vec<TenantRecord>,
    /// By service slot.
    pub services: Vec<ServiceRecord>,
    /// By row, then by service slot.
    pub rows: Vec<Vec<PairRecord>>,
    /// By eligible set.
    pub sets: Vec<SetRecord>,
    /// By eligible set: back-end slots, `MAGLEV_SLOTS` of them.
    pub maglev: Vec<Vec<u16>>,
    /// By back-end slot.
    pub backends: Vec<BackendRecord>,
}

impl Tables {
    /// Cache line `block` of a set's Maglev table; slots beyond the table are empty.
    #[must_use]
    pub fn maglev_block(&self, set: usize, block: u32) -> MaglevBlock {
        let mut slots = [NO_BACKEND; MAGLEV_BLOCK_SLOTS as usize];
        if let Some(table) = self.maglev.get(set) {
            let first = (block * MAGLEV_BLOCK_SLOTS) as usize;
            for (slot, backend) in slots.iter_mut().zip(table.iter().skip(first)) {
                *slot = *backend;
            }
        }
        MaglevBlock { slots }
    }

    /// How large each table is.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, TableSize)> {
        let rows = self.rows.iter().map(Vec::len).sum();
        let slots = self.maglev.iter().map(Vec::len).sum();
        [
            ("trieNodes", TableSize::of::<TrieNode>(self.trie.len())),
            ("tenants", TableSize::of::<TenantRecord>(self.tenants.len())),
            ("services", TableSize::of::<ServiceRecord>(self.services.len())),
            ("decisions", TableSize::of::<PairRecord>(rows)),
            ("eligibleSets", TableSize::of::<SetRecord>(self.sets.len())),
            ("maglevSlots", TableSize::of::<u16>(slots)),
            ("backends", TableSize::of::<BackendRecord>(self.backends.len())),
        ]
        .into_iter()
    }
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
    /// `PAIRS`.
    Pair(u32, PairRecord),
    /// `SETS`.
    Set(u32, SetRecord),
    /// `MAGLEV`.
    Maglev(u32, MaglevBlock),
    /// `BACKENDS`.
    Backend(u32, BackendRecord),
}

/// Index in `PAIRS`, relative to the bank.
#[must_use]
pub const fn pair_index(row: u32, service: u32) -> u32 {
    row * MAX_SERVICES + service
}

/// Index in `MAGLEV`, relative to the bank.
#[must_use]
pub const fn maglev_index(set: u32, block: u32) -> u32 {
    set * MAGLEV_BLOCKS + block
}
