//! The list of maps, declared once: the kernel side expands it to statics, the agent to typed handles, the tests to a
//! golden layout table.
//!
//! Changing a map, a record or a fixed capacity changes [`SCHEMA_HASH`], which the agent keeps beside the pinned maps and
//! compares before it adopts them.

use crate::abi::{cache, capture, config, event, flow, tally};

/// Raised with every change of meaning that the layout alone does not show.
pub const SCHEMA_VERSION: u32 = 6;

/// Configuration banks: the live one is `generation % BANKS`.
pub const BANKS: u32 = 2;
/// Service slots.
pub const MAX_SERVICES: u32 = 1024;
/// Back-end slots.
pub const MAX_BACKENDS: u32 = 4096;
/// Distinct decisions: a [`config::DecisionCell`] has sixteen bits for the number of one.
pub const MAX_DECISIONS: u32 = 1 << 16;
/// Slots of a Maglev table: a prime, as the method wants (Eisenbud et al., NSDI 2016).
pub const MAGLEV_SLOTS: u32 = 16_381;
/// Words of one holder of limits in `LIMITERS`, more than it has limiters: a cache line, so that tenants on different CPUs
/// do not share one.
pub const LIMITERS_PER_HOLDER: u32 = 8;
/// Limit groups beside those that tenants are: of services, and of tenants on services. Group 0 is none.
pub const MAX_LIMIT_GROUPS: u32 = 16_384;
const _: () = assert!(
    MAX_LIMIT_GROUPS <= 1 << 16,
    "a flow has sixteen bits for the number of one"
);
/// Interfaces whose MTU is known to the programs.
pub const MAX_LINKS: u32 = 1024;
/// Bytes of the ring buffer: a power of two and a multiple of the page size.
pub const EVENT_BYTES: u32 = 4 << 20;
/// The same of the ring buffer of captured packets.
pub const CAPTURED_BYTES: u32 = 1 << 20;

/// Tenant slots, slot 0 being nobody, unless the agent's configuration says otherwise.
pub const DEFAULT_TENANTS: u32 = 1024;
/// Trie nodes of one bank, likewise.
pub const DEFAULT_TRIE_NODES: u32 = 8192;
/// Decision blocks of one bank, likewise.
pub const DEFAULT_BLOCKS: u32 = 16_384;
/// Eligible sets of one bank, likewise.
pub const DEFAULT_SETS: u32 = 256;
/// Flows, likewise.
pub const DEFAULT_FLOWS: u32 = 262_144;

/// Index of a record of one bank. The banks are interleaved, so that no program has to know how many records a bank
/// holds: that is up to who makes the map.
#[inline(always)]
pub const fn banked(bank: u32, index: u32) -> u32 {
    index.wrapping_mul(BANKS).wrapping_add(bank)
}

/// Index in `CONNECTIONS_OPENED` and `CONNECTIONS_CLOSED` of a back end: these come first, since there is a fixed number
/// of them.
#[inline(always)]
pub const fn backend_connections(backend: u32) -> u32 {
    backend
}

/// Index in `CONNECTIONS_OPENED` and `CONNECTIONS_CLOSED` of a holder of limits: see [`tenant_holder`].
#[inline(always)]
pub const fn holder_connections(holder: u32) -> u32 {
    MAX_BACKENDS + holder
}

/// Index in `CONNECTIONS_OPENED` and `CONNECTIONS_CLOSED` of a tenant.
#[inline(always)]
pub const fn tenant_connections(tenant: u32) -> u32 {
    holder_connections(tenant_holder(tenant))
}

/// The number under which a tenant holds limits, their state and its count of connections. Limit groups hold theirs under
/// their own numbers, which come first, since there is a fixed number of them.
#[inline(always)]
pub const fn tenant_holder(tenant: u32) -> u32 {
    MAX_LIMIT_GROUPS + tenant
}

/// Connections that are open, from `CONNECTIONS_OPENED` and `CONNECTIONS_CLOSED` of one index.
///
/// Both counts wrap, since each is also counted down. A connection that has ended counts as closed with those who had it
/// then; if it is used again by others before the next sweep, its old owner has for a moment more closed than opened: that
/// is none.
#[inline(always)]
pub const fn open_connections(opened: u64, closed: u64) -> u64 {
    let open = opened.wrapping_sub(closed);
    if open > u64::MAX / 2 { 0 } else { open }
}

/// Calls `$expand!` with every map: `NAME: Kind<types>, max capacity;`, or `sized capacity` where that is only the
/// default and whoever makes the map may choose another.
///
/// | map | written by | holds |
/// | --- | --- | --- |
/// | `GENERATION` | agent | the live generation: one word, flipped last |
/// | `HOST` | agent | what is particular to this host |
/// | `LEASE` | agent | until when the programs may act without the agent |
/// | `LINKS` | agent | MTUs of the interfaces on which programs run |
/// | `TRIE` .. `BACKENDS` | agent | configuration, two banks each, interleaved: see [`banked`] |
/// | `FLOWS`, `REPLIES` | programs; the agent removes | flow state |
/// | `FLOW_CACHE` | programs; the agent clears | what each CPU remembers of flows; an array that begins on a page |
/// | `FLOW_TAGS` | programs | a byte for each entry of it: in which of its set's a flow lies, if any |
/// | `FLOW_EPOCHS` | programs; the agent when it removes a flow | words that change with the bindings of flows |
/// | `LIMITERS` | programs | theoretical arrival times, one word each, by limit group and by tenant; survives a change of generation |
/// | `CONNECTIONS_OPENED` | programs | flows made, by back end, by limit group and by tenant |
/// | `CONNECTIONS_CLOSED` | agent | flows removed; opened minus closed is what is open |
/// | `TALLIES` | programs | counters by tenant, direction and reason |
/// | `EVENTS` | programs | decisions on their way to the audit log |
/// | `CAPTURE` | agent | which packets to capture |
/// | `CAPTURED` | programs | captured packets |
/// | `CAPTURE_TALLIES` | programs | counters of captured packets |
/// | `META` | agent | the schema hash |
#[macro_export]
macro_rules! with_maps {
    ($expand:ident) => {
        $expand! {
            GENERATION: Array<u64>, max 1;
            HOST: Array<$crate::abi::config::HostRecord>, max 1;
            LEASE: Array<$crate::abi::config::LeaseRecord>, max 1;
            LINKS: HashMap<u32, $crate::abi::config::LinkRecord>, max $crate::schema::MAX_LINKS;
            TRIE: Array<$crate::abi::config::TrieNode>,
                sized $crate::schema::BANKS * $crate::schema::DEFAULT_TRIE_NODES;
            TENANTS: Array<$crate::abi::config::TenantRecord>,
                sized $crate::schema::BANKS * $crate::schema::DEFAULT_TENANTS;
            SERVICES: Array<$crate::abi::config::ServiceRecord>, max $crate::schema::BANKS * $crate::schema::MAX_SERVICES;
            ROWS: Array<$crate::abi::config::RowRecord>, sized $crate::schema::BANKS * $crate::schema::DEFAULT_TENANTS;
            BLOCKS: Array<$crate::abi::config::DecisionBlock>,
                sized $crate::schema::BANKS * $crate::schema::DEFAULT_BLOCKS;
            DECISIONS: Array<$crate::abi::config::DecisionRecord>,
                max $crate::schema::BANKS * $crate::schema::MAX_DECISIONS;
            LIMITS: Array<$crate::abi::config::LimitsRecord>, max $crate::schema::BANKS * $crate::schema::MAX_LIMIT_GROUPS;
            SETS: Array<$crate::abi::config::SetRecord>, sized $crate::schema::BANKS * $crate::schema::DEFAULT_SETS;
            MAGLEV: Array<$crate::abi::config::MaglevTable>, sized $crate::schema::BANKS * $crate::schema::DEFAULT_SETS;
            BACKENDS: Array<$crate::abi::config::BackendRecord>, max $crate::schema::BANKS * $crate::schema::MAX_BACKENDS;
            FLOWS: HashMap<$crate::abi::address::FlowKey, $crate::abi::flow::FlowRecord>,
                sized $crate::schema::DEFAULT_FLOWS;
            REPLIES: HashMap<$crate::abi::address::FlowKey, $crate::abi::flow::ReplyRecord>,
                sized $crate::schema::DEFAULT_FLOWS;
            FLOW_CACHE: PageArray<$crate::abi::cache::CachedFlow>, sized $crate::schema::DEFAULT_FLOWS;
            FLOW_TAGS: PageArray<u64>, sized $crate::schema::DEFAULT_FLOWS / $crate::abi::cache::WAYS;
            FLOW_EPOCHS: Array<u64>, max $crate::abi::cache::EPOCHS;
            LIMITERS: Array<u64>,
                sized $crate::schema::tenant_holder($crate::schema::DEFAULT_TENANTS) * $crate::schema::LIMITERS_PER_HOLDER;
            CONNECTIONS_OPENED: Array<u64>,
                sized $crate::schema::holder_connections($crate::schema::tenant_holder($crate::schema::DEFAULT_TENANTS));
            CONNECTIONS_CLOSED: Array<u64>,
                sized $crate::schema::holder_connections($crate::schema::tenant_holder($crate::schema::DEFAULT_TENANTS));
            TALLIES: PerCpuArray<$crate::abi::tally::TallyBlock>,
                sized $crate::schema::DEFAULT_TENANTS * $crate::abi::tally::DIRECTIONS;
            EVENTS: RingBuf<$crate::abi::event::EventRecord>, max $crate::schema::EVENT_BYTES;
            CAPTURE: Array<$crate::abi::capture::CaptureRecord>, max 1;
            CAPTURED: RingBuf<$crate::abi::capture::CapturedRecord>, max $crate::schema::CAPTURED_BYTES;
            CAPTURE_TALLIES: PerCpuArray<$crate::abi::capture::CaptureTally>, max 1;
            META: Array<u64>, max 1;
        }
    };
}

/// A map as [`MAPS`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Its name: at most 15 bytes survive in the kernel's own listing, the pin carries it whole.
    pub name: &'static str,
    /// `Array`, `PageArray`, `PerCpuArray`, `HashMap` or `RingBuf`.
    pub kind: &'static str,
    /// Bytes of a key; zero for a ring buffer.
    pub key_bytes: u32,
    /// Bytes of a value; for a ring buffer, of one event.
    pub value_bytes: u32,
    /// Entries; for a ring buffer, bytes.
    pub capacity: u32,
    /// Whether `capacity` is only the default: whoever makes the map may choose another.
    pub sized: bool,
}

const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

macro_rules! key_bytes {
    (HashMap<$key:ty, $value:ty>) => {
        size::<$key>()
    };
    (RingBuf<$value:ty>) => {
        0
    };
    ($kind:ident<$value:ty>) => {
        4
    };
}

macro_rules! value_bytes {
    (HashMap<$key:ty, $value:ty>) => {
        size::<$value>()
    };
    ($kind:ident<$value:ty>) => {
        size::<$value>()
    };
}

macro_rules! is_sized {
    (max) => {
        false
    };
    (sized) => {
        true
    };
}

macro_rules! specify {
    ($($name:ident: $kind:ident<$($ty:ty),+>, $sizing:ident $capacity:expr;)+) => {
        /// Every map.
        pub const MAPS: &[MapSpec] = &[$(MapSpec {
            name: stringify!($name),
            kind: stringify!($kind),
            key_bytes: key_bytes!($kind<$($ty),+>),
            value_bytes: value_bytes!($kind<$($ty),+>),
            capacity: $capacity,
            sized: is_sized!($sizing),
        },)+];
    };
}
with_maps!(specify);

/// A record's name and its fields: name, offset and size in bytes.
pub type RecordLayout = (&'static str, &'static [(&'static str, usize, usize)]);

/// The layout of every record, for the golden table and the schema hash.
pub const RECORDS: &[RecordLayout] = &[
    ("FlowKey", crate::abi::address::FlowKey::LAYOUT),
    ("LimitRecord", config::LimitRecord::LAYOUT),
    ("LimitsRecord", config::LimitsRecord::LAYOUT),
    ("TenantRecord", config::TenantRecord::LAYOUT),
    ("ServiceRecord", config::ServiceRecord::LAYOUT),
    ("RowRecord", config::RowRecord::LAYOUT),
    ("DecisionCell", config::DecisionCell::LAYOUT),
    ("DecisionBlock", config::DecisionBlock::LAYOUT),
    ("DecisionRecord", config::DecisionRecord::LAYOUT),
    ("SetRecord", config::SetRecord::LAYOUT),
    ("MaglevTable", config::MaglevTable::LAYOUT),
    ("BackendRecord", config::BackendRecord::LAYOUT),
    ("TrieNode", config::TrieNode::LAYOUT),
    ("HostRecord", config::HostRecord::LAYOUT),
    ("LeaseRecord", config::LeaseRecord::LAYOUT),
    ("LinkRecord", config::LinkRecord::LAYOUT),
    ("FlowRecord", flow::FlowRecord::LAYOUT),
    ("CachedFlow", cache::CachedFlow::LAYOUT),
    ("ReplyRecord", flow::ReplyRecord::LAYOUT),
    ("EventRecord", event::EventRecord::LAYOUT),
    ("TallyRecord", tally::TallyRecord::LAYOUT),
    ("TallyBlock", tally::TallyBlock::LAYOUT),
    ("CaptureRecord", capture::CaptureRecord::LAYOUT),
    ("CapturedRecord", capture::CapturedRecord::LAYOUT),
    ("CaptureTally", capture::CaptureTally::LAYOUT),
];

const fn fold_number(mut hash: u64, number: u64) -> u64 {
    let bytes = number.to_le_bytes();
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x100_0000_01b3);
        index += 1;
    }
    hash
}

const fn fold_text(mut hash: u64, text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x100_0000_01b3);
        index += 1;
    }
    fold_number(hash, bytes.len() as u64)
}

const fn schema_hash() -> u64 {
    let mut hash = fold_number(0xcbf2_9ce4_8422_2325, SCHEMA_VERSION as u64);
    let mut index = 0;
    while index < MAPS.len() {
        let map = &MAPS[index];
        hash = fold_text(fold_text(hash, map.name), map.kind);
        hash = fold_number(hash, map.key_bytes as u64);
        hash = fold_number(hash, map.value_bytes as u64);
        // A capacity that may be chosen does not decide whether two builds can share the map.
        hash = fold_number(hash, if map.sized { 0 } else { map.capacity as u64 });
        index += 1;
    }
    index = 0;
    while index < RECORDS.len() {
        let (name, fields) = RECORDS[index];
        hash = fold_text(hash, name);
        let mut field = 0;
        while field < fields.len() {
            hash = fold_text(hash, fields[field].0);
            hash = fold_number(fold_number(hash, fields[field].1 as u64), fields[field].2 as u64);
            field += 1;
        }
        index += 1;
    }
    hash
}

/// FNV-1a over every map and record: what two builds must share to use the same pinned maps.
pub const SCHEMA_HASH: u64 = schema_hash();
