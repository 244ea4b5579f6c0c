//! `Facts` over memory: compiled tables and a copy of the flow and limiter state.
//!
//! `policy explain` and the differential tests ask the shared decision function through this, the kernel programs
//! through the maps: same function, same answers.

use std::collections::BTreeMap;

use enforcer_common::abi::address::{Address, FlowKey};
use enforcer_common::abi::config::{
    BackendRecord, DecisionCell, DecisionRecord, LeaseRecord, LimitRecord, LimitsRecord, NO_BACKEND,
    SET_WORDS, ServiceRecord, TenantRecord,
};
use enforcer_common::decide::{Facts, Flow, Reply};

use super::tables::Tables;

/// A state of the enforcer, held in memory.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The live generation. Its bank is not asked for: the tables are those of the live bank.
    pub generation: u64,
    /// The live bank.
    pub tables: Tables,
    /// Flows by the client's 5-tuple.
    pub flows: BTreeMap<FlowKey, Flow>,
    /// Reply entries by the back end's 5-tuple.
    pub replies: BTreeMap<FlowKey, Reply>,
    /// Theoretical arrival times in kernel monotonic nanoseconds; absent is zero.
    pub limiters: BTreeMap<u32, u64>,
    /// Open connections by holder of limits (see `enforcer_common::schema::tenant_holder`); absent is zero.
    pub open_connections: BTreeMap<u32, u64>,
    /// The agent's lease.
    pub lease: Lease,
    /// How many refused packets are answered.
    pub answers: Answers,
    /// Entries of the flow table that one tenant may have; zero: as many as there are.
    pub flows_per_tenant: u64,
    /// The smallest MTU of the links below; zero: there are none.
    pub smallest_mtu_bytes: u32,
    /// MTUs in bytes, by index of the interface.
    pub links: BTreeMap<u32, u32>,
}

/// A lease; by default one that nobody gave, which never lapses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(pub LeaseRecord);

impl Default for Lease {
    fn default() -> Self {
        Self(LeaseRecord::ZERO)
    }
}

/// How many refused packets of a tenant are answered; none by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers(pub LimitRecord);

impl Default for Answers {
    fn default() -> Self {
        Self(LimitRecord::ZERO)
    }
}

impl Facts for Snapshot {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn trie_entry(&self, _bank: u32, node: u32, byte: u8) -> u32 {
        self.tables
            .trie
            .get(node as usize)
            .map_or(0, |node| node.entries[usize::from(byte)])
    }

    fn tenant(&self, _bank: u32, slot: u32) -> Option<&TenantRecord> {
        self.tables.tenants.get(slot as usize)
    }

    fn service(&self, _bank: u32, slot: u32) -> Option<&ServiceRecord> {
        self.tables.services.get(slot as usize)
    }

    fn cell(&self, _bank: u32, row: u32, service: u32) -> Option<DecisionCell> {
        self.tables.cell(row, service)
    }

    fn decision(&self, _bank: u32, number: u16) -> Option<&DecisionRecord> {
        self.tables.decisions.get(usize::from(number))
    }

    fn limits(&self, _bank: u32, group: u32) -> Option<&LimitsRecord> {
        self.tables.limits.get(group as usize)
    }

    fn lease(&self) -> LeaseRecord {
        self.lease.0
    }

    fn shed_classes(&self, _bank: u32, set: u32) -> u64 {
        self.tables
            .sets
            .get(set as usize)
            .map_or(0, |set| set.shed_classes)
    }

    fn set_members(&self, _bank: u32, set: u32) -> Option<&[u64; SET_WORDS]> {
        self.tables.sets.get(set as usize).map(|set| &set.members)
    }

    fn maglev(&self, _bank: u32, set: u32, slot: u32) -> u16 {
        let table = self.tables.maglev.get(set as usize);
        table
            .and_then(|table| table.slots.get(slot as usize))
            .copied()
            .unwrap_or(NO_BACKEND)
    }

    fn backend(&self, _bank: u32, slot: u32) -> Option<&BackendRecord> {
        self.tables.backends.get(slot as usize)
    }

    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key).copied()
    }

    fn reply(&self, key: &FlowKey) -> Option<Reply> {
        self.replies.get(key).copied()
    }

    fn limiter(&self, index: u32) -> u64 {
        self.limiters.get(&index).copied().unwrap_or(0)
    }

    fn open_connections(&self, holder: u32) -> u64 {
        self.open_connections.get(&holder).copied().unwrap_or(0)
    }

    fn flows_per_tenant(&self) -> u64 {
        self.flows_per_tenant
    }

    fn answers(&self) -> LimitRecord {
        self.answers.0
    }

    /// Only the kernel can be asked.
    fn route_mtu_bytes(&self, _backend: &Address, _bytes: u32) -> Option<u32> {
        None
    }

    fn smallest_mtu_bytes(&self) -> u32 {
        self.smallest_mtu_bytes
    }

    fn link_mtu_bytes(&self, ifindex: u32) -> Option<u32> {
        self.links.get(&ifindex).copied()
    }
}
