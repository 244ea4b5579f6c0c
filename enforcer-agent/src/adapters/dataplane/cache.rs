//! The programs' cache of flows: what it has counted and the flow table has not, and how it is made to forget.

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use aya::util::nr_cpus;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::cache::{
    CachedFlow, cache_hash, entry_index, epoch_index, set_index, sets_per_cpu, tag, way_of,
};
use enforcer_common::abi::flow::FlowRecord;

use super::maps::{records, words};
use super::{DataplaneError, open_map};
use crate::api::reply::MapEntry;

/// The cache and the words that make it void.
pub(super) struct FlowCache {
    entries: Array<MapData, CachedFlow>,
    tags: Array<MapData, u64>,
    epochs: Array<MapData, u64>,
    cpus: u32,
    /// Sets of each CPU.
    sets: u32,
}

/// By this much a removal changes an epoch: not by one, as the programs do, so that a change of theirs that gets lost between
/// the agent's reading and writing is no way back; and by an odd number, so that no few removals are one either.
const REMOVAL_STEP: u64 = 0x101;

/// Sets of each CPU in a cache of so many entries.
pub(super) fn sets_of_each_cpu(entries: u32) -> Result<u32, DataplaneError> {
    Ok(sets_per_cpu(entries, cpus()?))
}

fn cpus() -> Result<u32, DataplaneError> {
    match nr_cpus() {
        Ok(cpus) => Ok(cpus as u32),
        Err((_, source)) => Err(DataplaneError::Cpus { source }),
    }
}

// === impl FlowCache ===

impl FlowCache {
    /// Opens the pinned maps.
    pub(super) fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let entries: Array<MapData, CachedFlow> = open_map(directory, "FLOW_CACHE", Map::Array)?;
        let cpus = cpus()?;
        Ok(Self {
            sets: sets_per_cpu(entries.len(), cpus),
            entries,
            tags: open_map(directory, "FLOW_TAGS", Map::Array)?,
            epochs: open_map(directory, "FLOW_EPOCHS", Map::Array)?,
            cpus,
        })
    }

    /// Entries of one of the maps that are not all zero, in words.
    pub(super) fn dump(&self, name: &str, limit: usize) -> Result<Vec<MapEntry>, MapError> {
        match name {
            "FLOW_TAGS" => words(&self.tags, limit),
            "FLOW_EPOCHS" => words(&self.epochs, limit),
            _ => records(&self.entries, limit),
        }
    }

    /// The record of a flow with what the cache has counted of it since it was written.
    pub(super) fn counted(&self, key: &FlowKey, record: &FlowRecord) -> Result<FlowRecord, DataplaneError> {
        let mut record = *record;
        for (_, entry) in self.remembered(key)? {
            record.packets += u64::from(entry.packets);
            record.bytes += u64::from(entry.bytes);
        }
        Ok(record)
    }

    /// Has all CPUs forget a flow that was removed; answers its last record with what they had counted of it.
    pub(super) fn forget(
        &mut self,
        key: &FlowKey,
        record: &FlowRecord,
    ) -> Result<FlowRecord, DataplaneError> {
        let last = self.counted(key, record)?;
        for (index, _) in self.remembered(key)? {
            self.entries
                .set(index, CachedFlow::ZERO, 0)
                .map_err(|source| DataplaneError::Map {
                    name: "FLOW_CACHE",
                    source,
                })?;
        }
        self.forget_bindings(key)?;
        Ok(last)
    }

    /// A CPU that looked the flow up before it was removed may remember it only now: so the epoch is changed, after the
    /// removal.
    fn forget_bindings(&mut self, key: &FlowKey) -> Result<(), DataplaneError> {
        let wrong = |source| DataplaneError::Map {
            name: "FLOW_EPOCHS",
            source,
        };
        let index = epoch_index(cache_hash(key));
        let epoch = self.epochs.get(&index, 0).map_err(wrong)?;
        self.epochs
            .set(index, epoch.wrapping_add(REMOVAL_STEP), 0)
            .map_err(wrong)
    }

    /// Entries of a flow, with their indexes.
    fn remembered(&self, key: &FlowKey) -> Result<Vec<(u32, CachedFlow)>, DataplaneError> {
        let mut found = Vec::new();
        if self.sets == 0 {
            return Ok(found);
        }
        let wrong = |name| move |source| DataplaneError::Map { name, source };
        let hash = cache_hash(key);
        for cpu in 0..self.cpus {
            let set = set_index(cpu, self.sets, hash);
            let tags = self.tags.get(&set, 0).map_err(wrong("FLOW_TAGS"))?;
            let Some(way) = way_of(tags, tag(hash)) else {
                continue;
            };
            let index = entry_index(set, way);
            let entry = self.entries.get(&index, 0).map_err(wrong("FLOW_CACHE"))?;
            if entry.differs(key) == 0 && entry.generation != 0 {
                found.push((index, entry));
            }
        }
        Ok(found)
    }
}
