//! How much fits into the maps of a host: chosen when they are made, and kept as long as they exist.

use enforcer_common::abi::cache::{CachedFlow, EPOCHS, WAYS};
use enforcer_common::abi::config::{
    BackendRecord, DecisionBlock, DecisionRecord, LimitsRecord, MaglevTable, RowRecord, ServiceRecord,
    SetRecord, TenantRecord, TrieNode,
};
use enforcer_common::abi::tally::{DIRECTIONS, TallyBlock};
use enforcer_common::schema::{
    BANKS, DEFAULT_BLOCKS, DEFAULT_FLOWS, DEFAULT_SETS, DEFAULT_TENANTS, DEFAULT_TRIE_NODES,
    LIMITERS_PER_HOLDER, MAX_BACKENDS, MAX_DECISIONS, MAX_LIMIT_GROUPS, MAX_SERVICES, tenant_connections,
    tenant_holder,
};

/// How much fits into the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tenants; the slot of nobody comes on top.
    pub tenants: u32,
    /// Nodes of the classification trie.
    pub trie_nodes: u32,
    /// Distinct sets of eligible back ends.
    pub eligible_sets: u32,
    /// Distinct blocks of decisions: what a kind of tenants may do with 32 services.
    pub decision_blocks: u32,
    /// Flows.
    pub flows: u32,
}

/// Most tenants.
pub const MAX_TENANTS: u32 = 16_383;
/// Most trie nodes of one bank: 512 MiB in both.
pub const MAX_TRIE_NODES: u32 = 1 << 18;
/// Most eligible sets of one bank: 260 MiB in both.
pub const MAX_SETS: u32 = 4096;
/// Most decision blocks of one bank: as many as [`MAX_TENANTS`] could need with every service, 128 MiB in both.
pub const MAX_BLOCKS: u32 = 1 << 19;
/// Most flows.
pub const MAX_FLOWS: u32 = 1 << 24;
/// Most flows that are remembered: 16 MiB.
pub const MAX_CACHED_FLOWS: u32 = 1 << 18;

/// The maps whose capacity can be chosen, and one that tells what was chosen.
const SIZED: [Sized; 14] = [
    Sized::new("TENANTS", |capacity| BANKS * capacity.tenant_slots()),
    Sized::new("ROWS", |capacity| BANKS * capacity.tenant_slots()),
    Sized::new("LIMITERS", |capacity| {
        LIMITERS_PER_HOLDER * tenant_holder(capacity.tenant_slots())
    }),
    Sized::new("CONNECTIONS_OPENED", |capacity| {
        tenant_connections(capacity.tenant_slots())
    }),
    Sized::new("CONNECTIONS_CLOSED", |capacity| {
        tenant_connections(capacity.tenant_slots())
    }),
    Sized::new("TALLIES", |capacity| DIRECTIONS * capacity.tenant_slots()),
    Sized::new("TRIE", |capacity| BANKS * capacity.trie_nodes),
    Sized::new("SETS", |capacity| BANKS * capacity.eligible_sets),
    Sized::new("MAGLEV", |capacity| BANKS * capacity.eligible_sets),
    Sized::new("BLOCKS", |capacity| BANKS * capacity.decision_blocks),
    Sized::new("FLOWS", |capacity| capacity.flows),
    Sized::new("REPLIES", |capacity| capacity.flows),
    Sized::new("FLOW_CACHE", Capacity::cached_flows),
    Sized::new("FLOW_TAGS", |capacity| capacity.cached_flows().div_ceil(WAYS)),
];

struct Sized {
    name: &'static str,
    entries: fn(&Capacity) -> u32,
}

// === impl Sized ===

impl Sized {
    const fn new(name: &'static str, entries: fn(&Capacity) -> u32) -> Self {
        Self { name, entries }
    }
}

// === impl Capacity ===

impl Capacity {
    /// The most that can be chosen: what a policy needs more than this of fits no host.
    pub const LARGEST: Self = Self {
        tenants: MAX_TENANTS,
        trie_nodes: MAX_TRIE_NODES,
        eligible_sets: MAX_SETS,
        decision_blocks: MAX_BLOCKS,
        flows: MAX_FLOWS,
    };

    /// Tenant slots, that of nobody included.
    #[must_use]
    pub const fn tenant_slots(&self) -> u32 {
        self.tenants + 1
    }

    /// Flows that all CPUs together can remember: a packet of any of them comes in by one CPU at a time. More than fit the
    /// processor's own caches are not worth remembering.
    #[must_use]
    pub const fn cached_flows(&self) -> u32 {
        let flows = self.flows.next_power_of_two();
        if flows > MAX_CACHED_FLOWS {
            MAX_CACHED_FLOWS
        } else {
            flows
        }
    }

    /// Names and entries of the maps whose capacity this decides.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u32)> {
        SIZED.iter().map(|map| (map.name, (map.entries)(self)))
    }

    /// The capacity of maps that are there, from the entries of one by name; `None` if these do not go together.
    pub fn of_maps<E>(mut entries: impl FnMut(&'static str) -> Result<u32, E>) -> Result<Option<Self>, E> {
        let capacity = Self {
            tenants: (entries("TENANTS")? / BANKS).saturating_sub(1),
            trie_nodes: entries("TRIE")? / BANKS,
            eligible_sets: entries("SETS")? / BANKS,
            decision_blocks: entries("BLOCKS")? / BANKS,
            flows: entries("FLOWS")?,
        };
        for (name, expected) in capacity.entries() {
            if entries(name)? != expected {
                return Ok(None);
            }
        }
        Ok(Some(capacity))
    }

    /// The fields of the agent's configuration that choose these, with their values.
    fn fields(&self) -> [(&'static str, u32); 5] {
        let Self {
            tenants,
            trie_nodes,
            eligible_sets,
            decision_blocks,
            flows,
        } = *self;
        [
            ("capacity.tenants", tenants),
            ("capacity.trieNodes", trie_nodes),
            ("capacity.eligibleSets", eligible_sets),
            ("capacity.decisionBlocks", decision_blocks),
            ("flowTable.entries", flows),
        ]
    }

    /// The fields of the configuration by which this differs from another: their name, value here, and value there.
    pub fn differences(&self, other: &Self) -> impl Iterator<Item = (&'static str, u32, u32)> {
        let pairs = self.fields().into_iter().zip(other.fields());
        pairs
            .map(|((field, here), (_, there))| (field, here, there))
            .filter(|(_, here, there)| here != there)
    }

    /// Kernel memory that the maps take on a host with so many CPUs, in bytes, but for the flow tables, whose entries the
    /// kernel allocates with overheads of its own, and the ring buffer.
    #[must_use]
    pub const fn memory_bytes(&self, cpus: u32) -> u64 {
        let banked = self.tenant_slots() as u64 * (size_of::<TenantRecord>() + size_of::<RowRecord>()) as u64
            + self.trie_nodes as u64 * size_of::<TrieNode>() as u64
            + self.eligible_sets as u64 * (size_of::<SetRecord>() + size_of::<MaglevTable>()) as u64
            + self.decision_blocks as u64 * size_of::<DecisionBlock>() as u64
            + MAX_SERVICES as u64 * size_of::<ServiceRecord>() as u64
            + MAX_DECISIONS as u64 * size_of::<DecisionRecord>() as u64
            + MAX_LIMIT_GROUPS as u64 * size_of::<LimitsRecord>() as u64
            // The kernel rounds a record up to eight bytes.
            + MAX_BACKENDS as u64 * size_of::<BackendRecord>().next_multiple_of(8) as u64;
        let words = tenant_holder(self.tenant_slots()) as u64 * LIMITERS_PER_HOLDER as u64
            + 2 * tenant_connections(self.tenant_slots()) as u64;
        let tallies = self.tenant_slots() as u64 * DIRECTIONS as u64 * size_of::<TallyBlock>() as u64;
        let cached = self.cached_flows() as u64 * (size_of::<CachedFlow>() + size_of::<u8>()) as u64;
        banked * BANKS as u64 + (words + EPOCHS as u64) * 8 + tallies * cpus as u64 + cached
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            tenants: DEFAULT_TENANTS - 1,
            trie_nodes: DEFAULT_TRIE_NODES,
            eligible_sets: DEFAULT_SETS,
            decision_blocks: DEFAULT_BLOCKS,
            flows: DEFAULT_FLOWS,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use enforcer_common::schema::MAPS;

    use super::*;

    #[test]
    fn the_sized_maps_are_those_of_the_schema_and_the_defaults_too() {
        let chosen: BTreeMap<_, _> = Capacity::default().entries().collect();
        let sized = MAPS.iter().filter(|map| map.sized);
        assert_eq!(chosen, sized.map(|map| (map.name, map.capacity)).collect());
    }

    #[test]
    fn a_capacity_is_read_back_from_its_maps() {
        let capacity = Capacity {
            tenants: 16_383,
            trie_nodes: 300,
            eligible_sets: 17,
            decision_blocks: 64,
            flows: 1024,
        };
        let mut entries: BTreeMap<_, _> = capacity.entries().collect();
        let read =
            |entries: &BTreeMap<&str, u32>| Capacity::of_maps(|name| entries.get(name).copied().ok_or(name));
        assert_eq!(read(&entries), Ok(Some(capacity)));
        entries.insert("LIMITERS", LIMITERS_PER_HOLDER);
        assert_eq!(read(&entries), Ok(None), "limiters for one tenant");
        entries.remove("SETS");
        assert_eq!(read(&entries), Err("SETS"));
    }

    /// The figures of `docs/operations.md`.
    #[test]
    fn memory_is_as_documented() {
        let mebibytes = |capacity: Capacity, cpus| capacity.memory_bytes(cpus) >> 20;
        assert_eq!(mebibytes(Capacity::default(), 2), 68);
        let large = Capacity {
            tenants: 16_383,
            trie_nodes: 32_768,
            eligible_sets: 1024,
            decision_blocks: 65_536,
            ..Capacity::default()
        };
        assert_eq!(mebibytes(large, 2), 316);
    }
}
