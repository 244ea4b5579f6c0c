//! Typed handles of the maps.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::{Ebpf, Pod};
use enforcer_common::Fields;
use enforcer_common::Reason;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::capture::{CaptureRecord, CaptureTally, CapturedRecord};
use enforcer_common::abi::config::{
    BackendRecord, DecisionBlock, DecisionCell, DecisionRecord, HostRecord, LeaseRecord, LimitsRecord,
    LinkRecord, MaglevTable, RowRecord, ServiceRecord, SetRecord, TenantRecord, TrieNode,
};
use enforcer_common::abi::event::EventRecord;
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::REASON_SLOTS;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTIONS, TallyBlock, TallyRecord, tally_index};
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::{MAGLEV_SLOTS, SCHEMA_HASH, banked, open_connections};

use super::DataplaneError;
use super::cache::FlowCache;
use super::events::EventsReady;
use crate::api::reply::{MapEntry, MapField};
use crate::ports::Banks;
use crate::pure::audit::flow_tuple;
use crate::pure::tables::Write;

/// Typed handles of every map.
pub struct Maps {
    generation: Array<MapData, u64>,
    host: Array<MapData, HostRecord>,
    lease: Array<MapData, LeaseRecord>,
    links: HashMap<MapData, u32, LinkRecord>,
    trie: Array<MapData, TrieNode>,
    tenants: Array<MapData, TenantRecord>,
    services: Array<MapData, ServiceRecord>,
    rows: Array<MapData, RowRecord>,
    blocks: Array<MapData, DecisionBlock>,
    decisions: Array<MapData, DecisionRecord>,
    limits: Array<MapData, LimitsRecord>,
    sets: Array<MapData, SetRecord>,
    maglev: Array<MapData, MaglevTable>,
    backends: Array<MapData, BackendRecord>,
    flows: HashMap<MapData, FlowKey, FlowRecord>,
    replies: HashMap<MapData, FlowKey, ReplyRecord>,
    cache: FlowCache,
    limiters: Array<MapData, u64>,
    connections_opened: Array<MapData, u64>,
    connections_closed: Array<MapData, u64>,
    tallies: PerCpuArray<MapData, TallyBlock>,
    events: RingBuf<MapData>,
    capture: Array<MapData, CaptureRecord>,
    captured: RingBuf<MapData>,
    capture_tallies: PerCpuArray<MapData, CaptureTally>,
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

/// A [`CaptureTally`] summed over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captures {
    /// Packets that went into the ring buffer.
    pub captured: u64,
    /// Packets that were left out, since there were too many at once.
    pub sampled_out: u64,
    /// Packets that found the ring buffer full.
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
    pub(super) fn take(ebpf: &mut Ebpf, directory: &Path) -> Result<Self, DataplaneError> {
        Ok(Self {
            generation: take(ebpf, "GENERATION")?,
            host: take(ebpf, "HOST")?,
            lease: take(ebpf, "LEASE")?,
            links: take(ebpf, "LINKS")?,
            trie: take(ebpf, "TRIE")?,
            tenants: take(ebpf, "TENANTS")?,
            services: take(ebpf, "SERVICES")?,
            rows: take(ebpf, "ROWS")?,
            blocks: take(ebpf, "BLOCKS")?,
            decisions: take(ebpf, "DECISIONS")?,
            limits: take(ebpf, "LIMITS")?,
            sets: take(ebpf, "SETS")?,
            maglev: take(ebpf, "MAGLEV")?,
            backends: take(ebpf, "BACKENDS")?,
            flows: take(ebpf, "FLOWS")?,
            replies: take(ebpf, "REPLIES")?,
            cache: FlowCache::open(directory)?,
            limiters: take(ebpf, "LIMITERS")?,
            connections_opened: take(ebpf, "CONNECTIONS_OPENED")?,
            connections_closed: take(ebpf, "CONNECTIONS_CLOSED")?,
            tallies: take(ebpf, "TALLIES")?,
            events: take(ebpf, "EVENTS")?,
            capture: take(ebpf, "CAPTURE")?,
            captured: take(ebpf, "CAPTURED")?,
            capture_tallies: take(ebpf, "CAPTURE_TALLIES")?,
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

    /// Until when the programs may act without the agent.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn lease(&self) -> Result<LeaseRecord, DataplaneError> {
        read(&self.lease, "LEASE", 0)
    }

    /// Writes the lease.
    ///
    /// # Errors
    /// If the kernel refuses the update; the old one then holds.
    pub fn set_lease(&mut self, lease: &LeaseRecord) -> Result<(), DataplaneError> {
        put(&mut self.lease, "LEASE", 0, lease)
    }

    /// Writes the MTUs of links in bytes, by index of the interface, and removes all others.
    ///
    /// # Errors
    /// If the kernel refuses one; some are written then.
    pub fn set_links(&mut self, links: &BTreeMap<u32, u32>) -> Result<(), DataplaneError> {
        let known: Vec<u32> = self
            .links
            .keys()
            .collect::<Result<_, _>>()
            .map_err(named("LINKS"))?;
        for gone in known.iter().filter(|ifindex| !links.contains_key(ifindex)) {
            self.links.remove(gone).map_err(named("LINKS"))?;
        }
        for (ifindex, mtu_bytes) in links {
            let record = LinkRecord {
                mtu_bytes: *mtu_bytes,
                ..LinkRecord::ZERO
            };
            self.links.insert(ifindex, record, 0).map_err(named("LINKS"))?;
        }
        Ok(())
    }

    /// A limiter's theoretical arrival time, kernel monotonic nanoseconds.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn limiter(&self, holder: u32, limiter: Limiter) -> Result<u64, DataplaneError> {
        read(&self.limiters, "LIMITERS", limiter.index(holder))
    }

    /// Sets a limiter: what holds limits is cleared before another gets its number.
    ///
    /// # Errors
    /// If the kernel refuses the update.
    pub fn set_limiter(&mut self, holder: u32, limiter: Limiter, due_ns: u64) -> Result<(), DataplaneError> {
        put(&mut self.limiters, "LIMITERS", limiter.index(holder), &due_ns)
    }

    /// Open connections by an index of [`enforcer_common::schema::tenant_connections`] or
    /// [`enforcer_common::schema::backend_connections`].
    ///
    /// # Errors
    /// If the kernel refuses a look-up.
    pub fn open_connections(&self, index: u32) -> Result<u64, DataplaneError> {
        let closed = read(&self.connections_closed, "CONNECTIONS_CLOSED", index)?;
        let opened = read(&self.connections_opened, "CONNECTIONS_OPENED", index)?;
        Ok(open_connections(opened, closed))
    }

    /// Connections that were ever opened, by the same index; one that goes over to another tenant is taken off.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn connections_opened(&self, index: u32) -> Result<u64, DataplaneError> {
        read(&self.connections_opened, "CONNECTIONS_OPENED", index)
    }

    /// The tallies of a tenant, by number of the reason, each summed over all CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn tallies(
        &self,
        direction: u32,
        tenant: u32,
    ) -> Result<[Tally; REASON_SLOTS as usize], DataplaneError> {
        let index = tally_index(direction, tenant);
        let values = self.tallies.get(&index, 0).map_err(named("TALLIES"))?;
        let mut sums = [Tally::default(); REASON_SLOTS as usize];
        for block in values.iter() {
            for (sum, value) in sums.iter_mut().zip(&block.reasons) {
                sum.packets += value.packets;
                sum.bytes += value.bytes;
                sum.recorded += value.recorded;
                sum.aggregated += value.aggregated;
                sum.lost += value.lost;
            }
        }
        Ok(sums)
    }

    /// One flow.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataplaneError> {
        let record = found(self.flows.get(key, 0)).map_err(named("FLOWS"))?;
        record.map(|record| self.cache.counted(key, &record)).transpose()
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
        let flows = self.flows.iter().take(limit);
        flows
            .map(|flow| {
                let (key, record) = flow.map_err(named("FLOWS"))?;
                Ok((key, self.cache.counted(&key, &record)?))
            })
            .collect()
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

    /// Readiness of the ring buffer.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub fn events_ready(&self) -> std::io::Result<EventsReady> {
        EventsReady::watch(&self.events)
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<EventRecord> {
        while let Some(item) = self.events.next() {
            if let Some(event) = EventRecord::from_bytes(&item) {
                return Some(event);
            }
        }
        None
    }

    /// Says which packets to capture; all zero: none.
    ///
    /// # Errors
    /// If the kernel refuses the update.
    pub fn set_capture(&mut self, capture: &CaptureRecord) -> Result<(), DataplaneError> {
        put(&mut self.capture, "CAPTURE", 0, capture)
    }

    /// The next captured packet, if there is one.
    pub fn next_captured(&mut self) -> Option<CapturedRecord> {
        while let Some(item) = self.captured.next() {
            if let Some(captured) = CapturedRecord::from_bytes(&item) {
                return Some(captured);
            }
        }
        None
    }

    /// What became of packets that were asked for, ever, summed over all CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn captures(&self) -> Result<Captures, DataplaneError> {
        let values = self
            .capture_tallies
            .get(&0, 0)
            .map_err(named("CAPTURE_TALLIES"))?;
        let mut sum = Captures::default();
        for value in values.iter() {
            sum.captured += value.captured;
            sum.sampled_out += value.sampled_out;
            sum.lost += value.lost;
        }
        Ok(sum)
    }

    /// Entries of a map that are not all zero, in words; `None` for a map that cannot be dumped.
    ///
    /// # Errors
    /// If the kernel refuses a look-up.
    pub fn dump(&self, name: &str, limit: usize) -> Result<Option<Vec<MapEntry>>, DataplaneError> {
        let rows = match name {
            "GENERATION" => words(&self.generation, limit),
            "HOST" => records(&self.host, limit),
            "LEASE" => records(&self.lease, limit),
            "LINKS" => self.dump_links(limit),
            "TRIE" => self.dump_trie(limit),
            "TENANTS" => records(&self.tenants, limit),
            "SERVICES" => records(&self.services, limit),
            "ROWS" => records(&self.rows, limit),
            "BLOCKS" => self.dump_blocks(limit),
            "DECISIONS" => records(&self.decisions, limit),
            "LIMITS" => records(&self.limits, limit),
            "SETS" => records(&self.sets, limit),
            "MAGLEV" => self.dump_maglev(limit),
            "BACKENDS" => records(&self.backends, limit),
            "FLOW_CACHE" | "FLOW_TAGS" | "FLOW_EPOCHS" => self.cache.dump(name, limit),
            "LIMITERS" => words(&self.limiters, limit),
            "CONNECTIONS_OPENED" => words(&self.connections_opened, limit),
            "CONNECTIONS_CLOSED" => words(&self.connections_closed, limit),
            "CAPTURE" => records(&self.capture, limit),
            "META" => words(&self.meta, limit),
            "FLOWS" => Ok(self
                .flows(limit)?
                .iter()
                .map(|(key, value)| entry(tuple(key), value))
                .collect()),
            "REPLIES" => Ok(self
                .replies(limit)?
                .iter()
                .map(|(key, value)| entry(tuple(key), value))
                .collect()),
            "TALLIES" => self.dump_tallies(limit),
            _ => return Ok(None),
        };
        rows.map(Some).map_err(named("a map that is dumped"))
    }

    fn dump_links(&self, limit: usize) -> Result<Vec<MapEntry>, MapError> {
        let links = self.links.iter().take(limit);
        links
            .map(|link| link.map(|(ifindex, record)| entry(ifindex.to_string(), &record)))
            .collect()
    }

    /// Only the entries that are set: a node is mostly zeroes.
    fn dump_trie(&self, limit: usize) -> Result<Vec<MapEntry>, MapError> {
        let mut rows = Vec::new();
        for (index, node) in self.trie.iter().enumerate() {
            for (byte, value) in node?.entries.iter().enumerate().filter(|(_, value)| **value != 0) {
                if rows.len() >= limit {
                    return Ok(rows);
                }
                rows.push(single(format!("{index}[{byte}]"), format!("{value:#010x}")));
            }
        }
        Ok(rows)
    }

    /// Only the cells that are set.
    fn dump_blocks(&self, limit: usize) -> Result<Vec<MapEntry>, MapError> {
        let mut rows = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let block = block?;
            let set = block.cells.iter().enumerate();
            for (cell, value) in set.filter(|(_, value)| **value != DecisionCell::ZERO) {
                if rows.len() >= limit {
                    return Ok(rows);
                }
                rows.push(entry(format!("{index}[{cell}]"), value));
            }
        }
        Ok(rows)
    }

    /// How many slots of each table every back end has: the slots themselves would be pages of numbers.
    fn dump_maglev(&self, limit: usize) -> Result<Vec<MapEntry>, MapError> {
        let mut rows = Vec::new();
        for (index, table) in self.maglev.iter().enumerate() {
            let mut shares: BTreeMap<u16, u32> = BTreeMap::new();
            for backend in table?.slots.iter().take(MAGLEV_SLOTS as usize) {
                *shares.entry(*backend).or_default() += 1;
            }
            // A table that was never written has nothing but zeroes, which is a back end's slot.
            if shares.keys().eq([&0]) {
                continue;
            }
            for (backend, slots) in shares {
                if rows.len() >= limit {
                    return Ok(rows);
                }
                rows.push(single(
                    format!("{index} back end {backend}"),
                    format!("{slots} slots"),
                ));
            }
        }
        Ok(rows)
    }

    fn dump_tallies(&self, limit: usize) -> Result<Vec<MapEntry>, MapError> {
        let mut rows = Vec::new();
        for (index, values) in self.tallies.iter().enumerate() {
            let tenant = index as u32 / DIRECTIONS;
            let direction = if index as u32 % DIRECTIONS == DIRECTION_EGRESS {
                "egress"
            } else {
                "ingress"
            };
            for (cpu, block) in values?.iter().enumerate() {
                for (reason, value) in block.reasons.iter().enumerate() {
                    if *value == TallyRecord::ZERO {
                        continue;
                    }
                    if rows.len() >= limit {
                        return Ok(rows);
                    }
                    let reason = Reason::from_code(reason as u32).map_or("unknown", Reason::name);
                    rows.push(entry(
                        format!("tenant {tenant} {direction} {reason} on CPU {cpu}"),
                        value,
                    ));
                }
            }
        }
        Ok(rows)
    }
}

fn single(key: String, value: String) -> MapEntry {
    MapEntry {
        key,
        fields: vec![MapField {
            name: "value".to_owned(),
            value,
        }],
    }
}

pub(super) fn words(map: &Array<MapData, u64>, limit: usize) -> Result<Vec<MapEntry>, MapError> {
    let mut rows = Vec::new();
    for (index, value) in map.iter().enumerate() {
        let value = value?;
        if value != 0 && rows.len() < limit {
            rows.push(single(index.to_string(), value.to_string()));
        }
    }
    Ok(rows)
}

pub(super) fn records<V: Pod + Fields + PartialEq>(
    map: &Array<MapData, V>,
    limit: usize,
) -> Result<Vec<MapEntry>, MapError> {
    let mut rows = Vec::new();
    for (index, value) in map.iter().enumerate() {
        let value = value?;
        if value != V::ZERO {
            if rows.len() >= limit {
                break;
            }
            rows.push(entry(index.to_string(), &value));
        }
    }
    Ok(rows)
}

fn entry<V: Fields>(key: String, value: &V) -> MapEntry {
    let mut fields = Vec::new();
    value.each_field(&mut |name, value| {
        fields.push(MapField {
            name: name.to_owned(),
            value: format!("{value:?}"),
        });
    });
    MapEntry { key, fields }
}

fn tuple(key: &FlowKey) -> String {
    let tuple = flow_tuple(key, 0);
    format!("{} > {} protocol {}", tuple.from, tuple.to, key.protocol)
}

fn found<V>(looked_up: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
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
        let (name, index) = write.place();
        let index = banked(bank, index);
        match write {
            Write::Trie(_, node) => put(&mut self.trie, name, index, &**node),
            Write::Tenant(_, record) => put(&mut self.tenants, name, index, record),
            Write::Service(_, record) => put(&mut self.services, name, index, record),
            Write::Row(_, row) => put(&mut self.rows, name, index, row),
            Write::Block(_, block) => put(&mut self.blocks, name, index, &**block),
            Write::Decision(_, record) => put(&mut self.decisions, name, index, record),
            Write::Limits(_, record) => put(&mut self.limits, name, index, record),
            Write::Set(_, set) => put(&mut self.sets, name, index, &**set),
            Write::Maglev(_, table) => put(&mut self.maglev, name, index, &**table),
            Write::Backend(_, record) => put(&mut self.backends, name, index, record),
        }
    }

    fn holds(&self, bank: u32, write: &Write) -> Result<bool, DataplaneError> {
        let (name, index) = write.place();
        let index = banked(bank, index);
        Ok(match write {
            Write::Trie(_, node) => read(&self.trie, name, index)? == **node,
            Write::Tenant(_, record) => read(&self.tenants, name, index)? == *record,
            Write::Service(_, record) => read(&self.services, name, index)? == *record,
            Write::Row(_, row) => read(&self.rows, name, index)? == *row,
            Write::Block(_, block) => read(&self.blocks, name, index)? == **block,
            Write::Decision(_, record) => read(&self.decisions, name, index)? == *record,
            Write::Limits(_, record) => read(&self.limits, name, index)? == *record,
            Write::Set(_, set) => read(&self.sets, name, index)? == **set,
            Write::Maglev(_, table) => read(&self.maglev, name, index)? == **table,
            Write::Backend(_, record) => read(&self.backends, name, index)? == *record,
        })
    }
}
