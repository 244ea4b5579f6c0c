//! Typed handles of the maps.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::{Ebpf, Pod};
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::{
    BackendRecord, HostRecord, MaglevBlock, PairRecord, ServiceRecord, SetRecord, TenantRecord, TrieNode,
};
use enforcer_common::abi::event::EventRecord;
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::tally::{TallyRecord, tally_index};
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::{
    MAGLEV_BLOCKS, MAX_BACKENDS, MAX_ROWS, MAX_SERVICES, MAX_SETS, MAX_TENANTS, MAX_TRIE_NODES, SCHEMA_HASH,
};

use super::DataplaneError;
use crate::install::Banks;
use crate::pure::tables::Write;

/// Typed handles of every map.
pub struct Maps {
    generation: Array<MapData, u64>,
    host: Array<MapData, HostRecord>,
    trie: Array<MapData, TrieNode>,
    tenants: Array<MapData, TenantRecord>,
    services: Array<MapData, ServiceRecord>,
    pairs: Array<MapData, PairRecord>,
    sets: Array<MapData, SetRecord>,
    maglev: Array<MapData, MaglevBlock>,
    backends: Array<MapData, BackendRecord>,
    flows: HashMap<MapData, FlowKey, FlowRecord>,
    replies: HashMap<MapData, FlowKey, ReplyRecord>,
    limiters: Array<MapData, u64>,
    connections_opened: Array<MapData, u64>,
    connections_closed: Array<MapData, u64>,
    tallies: PerCpuArray<MapData, TallyRecord>,
    events: RingBuf<MapData>,
    meta: Array<MapData, u64>,
}

/// A [`TallyRecord`] summed over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// Decisions that went out as an event.
    pub recorded: u64,
    /// Decisions that were only counted.
    pub aggregated: u64,
    /// Decisions whose event found the ring buffer full.
    pub lost: u64,
}

fn named(name: &'static str) -> impl FnOnce(MapError) -> DataplaneError {
    move |source| DataplaneError::Map { name, source }
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DataplaneError> {
    let map = ebpf.take_map(name).ok_or_else(|| DataplaneError::Map {
        name,
        source: MapError::InvalidName {
            name: name.to_owned(),
        },
    })?;
    T::try_from(map).map_err(named(name))
}

fn read<V: Pod>(map: &Array<MapData, V>, name: &'static str, index: u32) -> Result<V, DataplaneError> {
    map.get(&index, 0).map_err(named(name))
}

fn put<V: Pod>(
    map: &mut Array<MapData, V>,
    name: &'static str,
    index: u32,
    value: &V,
) -> Result<(), DataplaneError> {
    map.set(index, value, 0).map_err(named(name))
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            generation: take(ebpf, "GENERATION")?,
            host: take(ebpf, "HOST")?,
            trie: take(ebpf, "TRIE")?,
            tenants: take(ebpf, "TENANTS")?,
            services: take(ebpf, "SERVICES")?,
            pairs: take(ebpf, "PAIRS")?,
            sets: take(ebpf, "SETS")?,
            maglev: take(ebpf, "MAGLEV")?,
            backends: take(ebpf, "BACKENDS")?,
            flows: take(ebpf, "FLOWS")?,
            replies: take(ebpf, "REPLIES")?,
            limiters: take(ebpf, "LIMITERS")?,
            connections_opened: take(ebpf, "CONNECTIONS_OPENED")?,
            connections_closed: take(ebpf, "CONNECTIONS_CLOSED")?,
            tallies: take(ebpf, "TALLIES")?,
            events: take(ebpf, "EVENTS")?,
            meta: take(ebpf, "META")?,
        })
    }

    pub(super) fn mark_schema(&mut self) -> Result<(), DataplaneError> {
        put(&mut self.meta, "META", 0, &SCHEMA_HASH)
    }

    /// What is particular to this host.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn host(&self) -> Result<HostRecord, DataplaneError> {
        read(&self.host, "HOST", 0)
    }

    /// Writes what is particular to this host.
    ///
    /// # Errors
    /// If the kernel refuses the update.
    pub fn set_host(&mut self, host: &HostRecord) -> Result<(), DataplaneError> {
        put(&mut self.host, "HOST", 0, host)
    }

    /// A limiter's theoretical arrival time, kernel monotonic nanoseconds.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn limiter(&self, tenant: u32, limiter: Limiter) -> Result<u64, DataplaneError> {
        read(&self.limiters, "LIMITERS", limiter.index(tenant))
    }

    /// Sets a limiter: a tenant's slot is cleared before another tenant gets it.
    ///
    /// # Errors
    /// If the kernel refuses the update.
    pub fn set_limiter(&mut self, tenant: u32, limiter: Limiter, due_ns: u64) -> Result<(), DataplaneError> {
        put(&mut self.limiters, "LIMITERS", limiter.index(tenant), &due_ns)
    }

    /// Open connections by an index of [`enforcer_common::schema::tenant_connections`] or
    /// [`enforcer_common::schema::backend_connections`].
    ///
    /// # Errors
    /// If the kernel refuses a look-up.
    pub fn open_connections(&self, index: u32) -> Result<u64, DataplaneError> {
        let closed = read(&self.connections_closed, "CONNECTIONS_CLOSED", index)?;
        Ok(read(&self.connections_opened, "CONNECTIONS_OPENED", index)?.wrapping_sub(closed))
    }

    /// A tally, summed over all CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn tally(&self, direction: u32, tenant: u32, reason: u32) -> Result<Tally, DataplaneError> {
        let index = tally_index(direction, tenant, reason);
        let values = self.tallies.get(&index, 0).map_err(named("TALLIES"))?;
        let mut sum = Tally::default();
        for value in values.iter() {
            sum.packets += value.packets;
            sum.bytes += value.bytes;
            sum.recorded += value.recorded;
            sum.aggregated += value.aggregated;
            sum.lost += value.lost;
        }
        Ok(sum)
    }

    /// One flow.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataplaneError> {
        found(self.flows.get(key, 0)).map_err(named("FLOWS"))
    }

    /// One reply entry.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn reply(&self, key: &FlowKey) -> Result<Option<ReplyRecord>, DataplaneError> {
        found(self.replies.get(key, 0)).map_err(named("REPLIES"))
    }

    /// Up to `limit` flows, in no order.
    ///
    /// # Errors
    /// If the kernel refuses a look-up.
    pub fn flows(&self, limit: usize) -> Result<Vec<(FlowKey, FlowRecord)>, DataplaneError> {
        self.flows
            .iter()
            .take(limit)
            .collect::<Result<_, _>>()
            .map_err(named("FLOWS"))
    }

    /// Up to `limit` reply entries, in no order.
    ///
    /// # Errors
    /// If the kernel refuses a look-up.
    pub fn replies(&self, limit: usize) -> Result<Vec<(FlowKey, ReplyRecord)>, DataplaneError> {
        self.replies
            .iter()
            .take(limit)
            .collect::<Result<_, _>>()
            .map_err(named("REPLIES"))
    }

    /// The descriptor that becomes readable when there are events.
    #[must_use]
    pub fn events_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<EventRecord> {
        while let Some(item) = self.events.next() {
            if let Some(event) = decode_event(&item) {
                return Some(event);
            }
        }
        None
    }

    /// A record of the live configuration, by map name, as debug text; for `maps dump`.
    ///
    /// # Errors
    /// If the kernel refuses a look-up.
    pub fn dump(&self, name: &str, limit: usize) -> Result<Option<Vec<(String, String)>>, DataplaneError> {
        fn rows<V: Pod + std::fmt::Debug + PartialEq>(
            map: &Array<MapData, V>,
            zero: &V,
            limit: usize,
        ) -> Result<Vec<(String, String)>, MapError> {
            let mut rows = Vec::new();
            for (index, value) in map.iter().enumerate() {
                let value = value?;
                if value != *zero {
                    rows.push((index.to_string(), format!("{value:?}")));
                }
                if rows.len() >= limit {
                    break;
                }
            }
            Ok(rows)
        }
        let rows = match name {
            "GENERATION" => rows(&self.generation, &0, limit),
            "HOST" => rows(&self.host, &HostRecord::ZERO, limit),
            "TRIE" => self.dump_trie(limit),
            "TENANTS" => rows(&self.tenants, &TenantRecord::ZERO, limit),
            "SERVICES" => rows(&self.services, &ServiceRecord::ZERO, limit),
            "PAIRS" => rows(&self.pairs, &PairRecord::ZERO, limit),
            "SETS" => rows(&self.sets, &SetRecord::ZERO, limit),
            "MAGLEV" => rows(&self.maglev, &MaglevBlock::ZERO, limit),
            "BACKENDS" => rows(&self.backends, &BackendRecord::ZERO, limit),
            "LIMITERS" => rows(&self.limiters, &0, limit),
            "CONNECTIONS_OPENED" => rows(&self.connections_opened, &0, limit),
            "CONNECTIONS_CLOSED" => rows(&self.connections_closed, &0, limit),
            "META" => rows(&self.meta, &0, limit),
            "FLOWS" => Ok(debug_rows(self.flows(limit)?)),
            "REPLIES" => Ok(debug_rows(self.replies(limit)?)),
            "TALLIES" => self.dump_tallies(limit),
            _ => return Ok(None),
        };
        rows.map(Some).map_err(|source| DataplaneError::Map {
            name: "(dump)",
            source,
        })
    }

    /// Only the entries that are set: a node is mostly zeroes.
    fn dump_trie(&self, limit: usize) -> Result<Vec<(String, String)>, MapError> {
        let mut rows = Vec::new();
        for (index, node) in self.trie.iter().enumerate() {
            for (byte, entry) in node?.entries.iter().enumerate().filter(|(_, entry)| **entry != 0) {
                if rows.len() >= limit {
                    return Ok(rows);
                }
                rows.push((format!("{index}[{byte}]"), format!("{entry:#010x}")));
            }
        }
        Ok(rows)
    }

    fn dump_tallies(&self, limit: usize) -> Result<Vec<(String, String)>, MapError> {
        let mut rows = Vec::new();
        for (index, values) in self.tallies.iter().enumerate() {
            let values = values?;
            if rows.len() < limit && values.iter().any(|value| *value != TallyRecord::ZERO) {
                rows.push((index.to_string(), format!("{:?}", &values[..])));
            }
        }
        Ok(rows)
    }
}

fn debug_rows<K: std::fmt::Debug, V: std::fmt::Debug>(rows: Vec<(K, V)>) -> Vec<(String, String)> {
    rows.into_iter()
        .map(|(key, value)| (format!("{key:?}"), format!("{value:?}")))
        .collect()
}

fn found<V>(looked_up: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An event from its bytes; `None` if the length is not that of an [`EventRecord`].
fn decode_event(bytes: &[u8]) -> Option<EventRecord> {
    EventRecord::from_bytes(bytes)
}

impl Banks for Maps {
    type Error = DataplaneError;

    fn generation(&self) -> Result<u64, DataplaneError> {
        read(&self.generation, "GENERATION", 0)
    }

    fn set_generation(&mut self, generation: u64) -> Result<(), DataplaneError> {
        put(&mut self.generation, "GENERATION", 0, &generation)
    }

    fn write(&mut self, bank: u32, write: &Write) -> Result<(), DataplaneError> {
        match write {
            Write::Trie(index, node) => put(&mut self.trie, "TRIE", bank * MAX_TRIE_NODES + index, &**node),
            Write::Tenant(index, record) => {
                put(&mut self.tenants, "TENANTS", bank * MAX_TENANTS + index, record)
            }
            Write::Service(index, record) => put(
                &mut self.services,
                "SERVICES",
                bank * MAX_SERVICES + index,
                record,
            ),
            Write::Pair(index, record) => put(
                &mut self.pairs,
                "PAIRS",
                bank * MAX_ROWS * MAX_SERVICES + index,
                record,
            ),
            Write::Set(index, record) => put(&mut self.sets, "SETS", bank * MAX_SETS + index, record),
            Write::Maglev(index, block) => put(
                &mut self.maglev,
                "MAGLEV",
                bank * MAX_SETS * MAGLEV_BLOCKS + index,
                block,
            ),
            Write::Backend(index, record) => put(
                &mut self.backends,
                "BACKENDS",
                bank * MAX_BACKENDS + index,
                record,
            ),
        }
    }

    fn holds(&self, bank: u32, write: &Write) -> Result<bool, DataplaneError> {
        Ok(match write {
            Write::Trie(index, node) => read(&self.trie, "TRIE", bank * MAX_TRIE_NODES + index)? == **node,
            Write::Tenant(index, record) => {
                read(&self.tenants, "TENANTS", bank * MAX_TENANTS + index)? == *record
            }
            Write::Service(index, record) => {
                read(&self.services, "SERVICES", bank * MAX_SERVICES + index)? == *record
            }
            Write::Pair(index, record) => {
                read(&self.pairs, "PAIRS", bank * MAX_ROWS * MAX_SERVICES + index)? == *record
            }
            Write::Set(index, record) => read(&self.sets, "SETS", bank * MAX_SETS + index)? == *record,
            Write::Maglev(index, block) => {
                read(&self.maglev, "MAGLEV", bank * MAX_SETS * MAGLEV_BLOCKS + index)? == *block
            }
            Write::Backend(index, record) => {
                read(&self.backends, "BACKENDS", bank * MAX_BACKENDS + index)? == *record
            }
        })
    }
}
