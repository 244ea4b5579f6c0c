//! The world outside, in memory: two banks, limiters, counters, a ring buffer, links, the state file and the audit log.
//! Every operation that can fail is numbered, over all ports, and one or some of them are made to fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::Discriminant;
use std::sync::Arc;

use enforcer_common::abi::address::{Address, FlowKey};
use enforcer_common::abi::capture::{CaptureRecord, CapturedRecord};
use enforcer_common::abi::config::{
    BackendRecord, DecisionBlock, DecisionCell, DecisionRecord, HostRecord, LeaseRecord, LimitRecord,
    LimitsRecord, NO_BACKEND, RowRecord, SET_WORDS, ServiceRecord, SetRecord, TenantRecord, TrieNode,
};
use enforcer_common::abi::event::EventRecord;
use enforcer_common::decide::{Facts, Flow, Reply};
use enforcer_common::schema::{BANKS, holder_connections};

use super::random::Random;
use crate::adapters::dataplane::{Captures, Tally};
use crate::daemon::history::HistoryEntry;
use crate::daemon::persist::State;
use crate::pure::audit::Entry;
use crate::pure::quota::Book;
use crate::pure::snapshot::Lease;
use crate::pure::tables::{EMPTY_MAGLEV, Table, Tables, Write};

/// Packets may be in the bank that was left this long ago, in nanoseconds.
const GRACE_NS: u64 = 10_000_000;

/// Which operations fail.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Never,
    /// The operation of this number from now on, counting from 1.
    Nth(u64),
    /// All of this name.
    Named(&'static str),
    /// Each with this chance, out of a thousand.
    Chance(Random, u64),
}

/// How an operation that failed ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Failed,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now_ns: u64,
    /// What the time of day is ahead of `now_ns`, in seconds: it can be set.
    pub(super) wall_ahead_seconds: i64,
    pub(super) fault: Fault,
    /// Operations since the fault was set.
    pub(super) operations: u64,
    /// What failed since then.
    pub(super) failed: Vec<&'static str>,
    /// The kind of the last operations on a bank, and how many there were in a row.
    run: Option<(&'static str, Discriminant<Write>, u32)>,
    pub(super) kernel: Kernel,
    pub(super) stored: State,
    /// Policies that were applied, by number.
    pub(super) history: BTreeMap<u64, Arc<HistoryEntry>>,
    /// Whether the next store that fails leaves the new state all the same: its last step was the failure.
    pub(super) fails_late: bool,
    pub(super) audit: Vec<Entry>,
    /// Of these, how many were on disk before their caller went on.
    pub(super) synced: usize,
    pub(super) audit_lost: u64,
    pub(super) usage: Book,
    /// How often everything was taken away.
    pub(super) detached: u32,
    pub(super) watched: BTreeSet<String>,
}

/// What is gone after a detach.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    pub(super) exists: bool,
    pub(super) generation: u64,
    pub(super) banks: [Tables; BANKS as usize],
    left_ns: Option<u64>,
    pub(super) host: Option<HostRecord>,
    pub(super) links: BTreeMap<u32, u32>,
    pub(super) lease: Lease,
    pub(super) attached: BTreeSet<String>,
    pub(super) limiters: BTreeMap<u32, u64>,
    pub(super) open: BTreeMap<u32, u64>,
    pub(super) opened: BTreeMap<u32, u64>,
    pub(super) tallies: BTreeMap<(u32, u32, u32), Tally>,
    pub(super) events: VecDeque<EventRecord>,
    pub(super) capture: Option<CaptureRecord>,
    pub(super) captured: VecDeque<CapturedRecord>,
    pub(super) captures: Captures,
}

// === impl World ===

impl World {
    pub(super) fn new() -> Self {
        Self {
            now_ns: 1_000_000_000_000,
            wall_ahead_seconds: 0,
            fault: Fault::Never,
            operations: 0,
            failed: Vec::new(),
            run: None,
            kernel: Kernel::default(),
            stored: State::default(),
            history: BTreeMap::new(),
            fails_late: false,
            audit: Vec::new(),
            synced: 0,
            audit_lost: 0,
            usage: Book::default(),
            detached: 0,
            watched: BTreeSet::new(),
        }
    }

    pub(super) fn set_fault(&mut self, fault: Fault) {
        self.fault = fault;
        self.operations = 0;
        self.failed.clear();
        self.run = None;
    }

    /// Counts an operation; whether it fails.
    pub(super) fn operate(&mut self, what: &'static str) -> Outcome {
        self.operations += 1;
        let fails = match &mut self.fault {
            Fault::Never => false,
            Fault::Nth(nth) => self.operations == *nth,
            Fault::Named(name) => what == *name,
            Fault::Chance(random, per_mille) => random.below(1000) < *per_mille,
        };
        if fails {
            self.failed.push(what);
            Outcome::Failed
        } else {
            Outcome::Done
        }
    }

    /// Counts an operation on a bank; whether its place in the run of such operations is a power of eight.
    pub(super) fn is_next_of_run(&mut self, what: &'static str, write: &Write) -> bool {
        let kind = std::mem::discriminant(write);
        let before = match self.run {
            Some((name, same, count)) if name == what && same == kind => count,
            _ => 0,
        };
        let place = before + 1;
        self.run = Some((what, kind, place));
        place.is_power_of_two() && place.trailing_zeros().is_multiple_of(3)
    }

    pub(super) fn live(&self) -> &Tables {
        &self.kernel.banks[(self.kernel.generation & 1) as usize]
    }
}

// === impl Kernel ===

impl Kernel {
    pub(super) fn set_generation(&mut self, generation: u64, now_ns: u64) {
        assert_eq!(generation, self.generation + 1, "generations are counted");
        self.generation = generation;
        self.left_ns = Some(now_ns);
    }

    /// Writes a record, as far as a running packet cannot be hurt by it.
    pub(super) fn write(&mut self, bank: u32, write: &Write, now_ns: u64) {
        let live = self.generation != 0 && bank == (self.generation & 1) as u32;
        if live {
            self.assert_harmless(bank, write);
        } else if let Some(left_ns) = self.left_ns {
            assert!(
                now_ns >= left_ns + GRACE_NS,
                "bank {bank} was written while a packet may still have been reading it"
            );
        }
        let tables = &mut self.banks[bank as usize];
        match write {
            Write::Trie(index, node) => put(&mut tables.trie, *index, **node, TrieNode::ZERO),
            Write::Tenant(index, record) => put(&mut tables.tenants, *index, *record, TenantRecord::ZERO),
            Write::Service(index, record) => put(&mut tables.services, *index, *record, ServiceRecord::ZERO),
            Write::Row(index, row) => put(&mut tables.rows, *index, *row, RowRecord::ZERO),
            Write::Block(index, block) => put(&mut tables.blocks, *index, **block, DecisionBlock::ZERO),
            Write::Decision(index, record) => {
                put(&mut tables.decisions, *index, *record, DecisionRecord::ZERO);
            }
            Write::Limits(index, record) => put(&mut tables.limits, *index, *record, LimitsRecord::ZERO),
            Write::Set(index, set) => put(&mut tables.sets, *index, **set, SetRecord::ZERO),
            Write::Maglev(index, table) => {
                put(
                    &mut tables.maglev,
                    *index,
                    Arc::clone(table),
                    Arc::new(EMPTY_MAGLEV),
                );
            }
            Write::Backend(index, record) => put(&mut tables.backends, *index, *record, BackendRecord::ZERO),
        }
    }

    /// In the live bank only weights and next hops may change.
    fn assert_harmless(&self, bank: u32, write: &Write) {
        let tables = &self.banks[bank as usize];
        match write {
            Write::Maglev(index, table) => {
                let set = &tables.sets[*index as usize];
                let is_member = |slot: &u16| set.members[usize::from(slot / 64)] >> (slot % 64) & 1 == 1;
                let mut slots = table.slots.iter().filter(|slot| **slot != NO_BACKEND);
                assert!(
                    slots.all(is_member),
                    "a slot of the live bank got a back end beyond its set"
                );
            }
            Write::Backend(index, record) => {
                let old = tables.backends[*index as usize];
                assert_eq!((old.address, old.port_be), (record.address, record.port_be));
            }
            other => panic!("the live bank was changed: {other:?}"),
        }
    }

    pub(super) fn holds(&self, bank: u32, write: &Write) -> bool {
        let tables = &self.banks[bank as usize];
        match write {
            Write::Trie(index, node) => tables.trie.get(*index as usize) == Some(&**node),
            Write::Tenant(index, record) => tables.tenants.get(*index as usize) == Some(record),
            Write::Service(index, record) => tables.services.get(*index as usize) == Some(record),
            Write::Row(index, row) => tables.rows.get(*index as usize) == Some(row),
            Write::Block(index, block) => tables.blocks.get(*index as usize) == Some(&**block),
            Write::Decision(index, record) => tables.decisions.get(*index as usize) == Some(record),
            Write::Limits(index, record) => tables.limits.get(*index as usize) == Some(record),
            Write::Set(index, set) => tables.sets.get(*index as usize) == Some(&**set),
            Write::Maglev(index, table) => tables.maglev.get(*index as usize) == Some(table),
            Write::Backend(index, record) => tables.backends.get(*index as usize) == Some(record),
        }
    }
}

fn put<T: Clone>(table: &mut Table<T>, index: u32, record: T, zero: T) {
    let records = table.make_mut();
    if records.len() <= index as usize {
        records.resize(index as usize + 1, zero);
    }
    records[index as usize] = record;
}

/// Where a bank differs from tables that it should hold, record by record. Beyond these, what flows and replies can name
/// (tenants, services, back ends) must be empty; the rest is reached from nowhere. Without weights, Maglev tables and next hops do not count.
pub(super) fn difference(bank: &Tables, wanted: &Tables, with_weights: bool) -> Option<String> {
    let differs = |what: &str, at: Option<usize>| at.map(|at| format!("{what} {at}"));
    let hop = |record: &BackendRecord| {
        let mut record = *record;
        if !with_weights {
            let BackendRecord { address, port_be, .. } = record;
            record = BackendRecord {
                address,
                port_be,
                ..BackendRecord::ZERO
            };
        }
        record
    };
    let backends = |tables: &Tables| tables.backends.iter().map(hop).collect::<Vec<_>>();
    let reached = |what: &str, at: Option<usize>, wanted: usize| differs(what, at.filter(|at| *at < wanted));
    let node = first(&bank.trie, &wanted.trie, &TrieNode::ZERO);
    let tenant = first(&bank.tenants, &wanted.tenants, &TenantRecord::ZERO);
    let service = first(&bank.services, &wanted.services, &ServiceRecord::ZERO);
    let row = first(&bank.rows, &wanted.rows, &RowRecord::ZERO);
    let block = first(&bank.blocks, &wanted.blocks, &DecisionBlock::ZERO);
    let decision = first(&bank.decisions, &wanted.decisions, &DecisionRecord::ZERO);
    let set = first(&bank.sets, &wanted.sets, &SetRecord::ZERO);
    let backend = first(&backends(bank), &backends(wanted), &BackendRecord::ZERO);
    let empty = Arc::new(EMPTY_MAGLEV);
    let weights = || first(&bank.maglev, &wanted.maglev, &empty);
    reached("trie node", node, wanted.trie.len())
        .or_else(|| differs("tenant", tenant))
        .or_else(|| differs("service", service))
        .or_else(|| reached("row", row, wanted.rows.len()))
        .or_else(|| reached("block", block, wanted.blocks.len()))
        .or_else(|| reached("decision", decision, wanted.decisions.len()))
        .or_else(|| reached("set", set, wanted.sets.len()))
        .or_else(|| differs("back end", backend))
        .or_else(|| {
            reached(
                "Maglev table",
                with_weights.then(weights).flatten(),
                wanted.maglev.len(),
            )
        })
}

fn first<T: PartialEq>(bank: &[T], wanted: &[T], zero: &T) -> Option<usize> {
    (0..bank.len().max(wanted.len()))
        .find(|index| bank.get(*index).unwrap_or(zero) != wanted.get(*index).unwrap_or(zero))
}

impl Facts for World {
    fn generation(&self) -> u64 {
        self.kernel.generation
    }

    fn trie_entry(&self, bank: u32, node: u32, byte: u8) -> u32 {
        let node = self.kernel.banks[bank as usize].trie.get(node as usize);
        node.map_or(0, |node| node.entries[usize::from(byte)])
    }

    fn tenant(&self, bank: u32, slot: u32) -> Option<&TenantRecord> {
        self.kernel.banks[bank as usize].tenants.get(slot as usize)
    }

    fn service(&self, bank: u32, slot: u32) -> Option<&ServiceRecord> {
        self.kernel.banks[bank as usize].services.get(slot as usize)
    }

    fn cell(&self, bank: u32, row: u32, service: u32) -> Option<DecisionCell> {
        self.kernel.banks[bank as usize].cell(row, service)
    }

    fn decision(&self, bank: u32, number: u16) -> Option<&DecisionRecord> {
        let decisions = &self.kernel.banks[bank as usize].decisions;
        decisions.get(usize::from(number))
    }

    fn limits(&self, bank: u32, group: u32) -> Option<&LimitsRecord> {
        self.kernel.banks[bank as usize].limits.get(group as usize)
    }

    fn flows_per_tenant(&self) -> u64 {
        0
    }

    /// Nothing that is refused here is answered.
    fn answers(&self) -> LimitRecord {
        LimitRecord::ZERO
    }

    fn route_mtu_bytes(&self, _backend: &Address, _bytes: u32) -> Option<u32> {
        None
    }

    fn smallest_mtu_bytes(&self) -> u32 {
        self.kernel.host.map_or(0, |host| host.smallest_mtu_bytes)
    }

    fn link_mtu_bytes(&self, ifindex: u32) -> Option<u32> {
        self.kernel.links.get(&ifindex).copied()
    }

    /// Packets of the simulation come long after any lease; what the lease is, it looks at by itself.
    fn lease(&self) -> LeaseRecord {
        LeaseRecord::ZERO
    }

    fn shed_classes(&self, bank: u32, set: u32) -> u64 {
        let set = self.kernel.banks[bank as usize].sets.get(set as usize);
        set.map_or(0, |set| set.shed_classes)
    }

    fn set_members(&self, bank: u32, set: u32) -> Option<&[u64; SET_WORDS]> {
        let set = self.kernel.banks[bank as usize].sets.get(set as usize);
        set.map(|set| &set.members)
    }

    fn maglev(&self, bank: u32, set: u32, slot: u32) -> u16 {
        let table = self.kernel.banks[bank as usize].maglev.get(set as usize);
        let slot = table.and_then(|table| table.slots.get(slot as usize));
        slot.copied().unwrap_or(NO_BACKEND)
    }

    fn backend(&self, bank: u32, slot: u32) -> Option<&BackendRecord> {
        self.kernel.banks[bank as usize].backends.get(slot as usize)
    }

    fn flow(&self, _key: &FlowKey) -> Option<Flow> {
        None
    }

    fn reply(&self, _key: &FlowKey) -> Option<Reply> {
        None
    }

    fn limiter(&self, index: u32) -> u64 {
        self.kernel.limiters.get(&index).copied().unwrap_or(0)
    }

    fn open_connections(&self, holder: u32) -> u64 {
        self.kernel
            .open
            .get(&holder_connections(holder))
            .copied()
            .unwrap_or(0)
    }
}
