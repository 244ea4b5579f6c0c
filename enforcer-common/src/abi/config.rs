//! Configuration records: written by the agent's loop, only read by the programs.
//!
//! All but [`HostRecord`] exist in two banks; the bank that is live is the lowest bit of the generation.

use crate::abi::address::Address;
use crate::pod::record;

record! {
    /// One rate limit of the generic cell rate algorithm (ITU-T I.371). All zero means no limit.
    pub struct LimitRecord, 16 bytes {
        /// Nanoseconds that one unit costs, in units of 2^-20 ns. Zero: no limit.
        pub step_fp: u64,
        /// Debt that is tolerated: how far the theoretical arrival time may lie ahead of now, in nanoseconds.
        pub burst_ns: u64,
    }
}

/// Binary digits after the point in [`LimitRecord::step_fp`].
pub const STEP_SHIFT: u32 = 20;

/// The most units that one packet is charged: larger frames (GRO, GSO) are charged this much.
pub const MAX_UNITS: u64 = 65_535;

/// The largest `step_fp` for which `MAX_UNITS * step_fp` fits 64 bits.
pub const MAX_STEP_FP: u64 = u64::MAX / MAX_UNITS;

record! {
    /// What some traffic may use at most: that of a tenant, that of a tenant on one service, or that of a service.
    pub struct LimitsRecord, 72 bytes {
        /// New connections.
        pub connections: LimitRecord,
        /// Packets from clients.
        pub packets: LimitRecord,
        /// Bytes from clients, counted as they stand in the frame from the IP header on.
        pub bytes: LimitRecord,
        /// Bytes to clients, counted alike.
        pub response_bytes: LimitRecord,
        /// Most connections open at once; zero is no limit.
        pub concurrent_limit: u64,
    }
}

record! {
    /// One tenant. Its index is the tenant's slot; slot 0 is nobody.
    pub struct TenantRecord, 88 bytes {
        /// Its row in `ROWS`; tenants that the rules treat alike share one.
        pub row: u32,
        /// `TENANT_*` flags.
        pub flags: u32,
        /// What it may use over all services together.
        pub limits: LimitsRecord,
        /// The bit of its service class in [`SetRecord::shed_classes`]; zero if its class is never shed.
        pub shed_class: u64,
    }
}

/// The slot is in use.
pub const TENANT_PRESENT: u32 = 1;
/// An operator has suspended the tenant: everything is refused.
pub const TENANT_SUSPENDED: u32 = 2;
/// A quota of bytes is used up: everything is refused, so that a long stream stops in the middle.
pub const TENANT_QUOTA: u32 = 4;
/// A quota of connections is used up: what would open a flow is refused.
pub const TENANT_QUOTA_NEW: u32 = 8;
/// The limit of new connections is the tenant's share of what a contended pool can take, below its own limit.
pub const TENANT_FAIR_SHARE: u32 = 16;

record! {
    /// One service. Its index is the service's slot.
    pub struct ServiceRecord, 16 bytes {
        /// A `FORWARD_*` code.
        pub forward: u32,
        /// `SERVICE_*` flags.
        pub flags: u32,
        /// The limit group of all tenants together; zero is none.
        pub limits: u32,
        /// Zero: brings the size to a multiple of eight.
        pub reserved: u32,
    }
}

/// The slot is in use.
pub const SERVICE_PRESENT: u32 = 1;
/// A refused TCP segment is answered with a reset, anything else as with [`SERVICE_PROHIBITS`].
pub const SERVICE_RESETS: u32 = 2;
/// A refused packet is answered with ICMP: administratively prohibited.
pub const SERVICE_PROHIBITS: u32 = 4;
/// Where there is no room for a flow's entry, packets go by the Maglev table alone.
pub const SERVICE_STATELESS: u32 = 8;
/// A TCP connection whose back end is no longer eligible is reset, not given another.
pub const SERVICE_RESETS_INELIGIBLE: u32 = 16;
/// Rewrite source and destination: the back end sees the balancer.
pub const FORWARD_NAT: u32 = 1;
/// Rewrite the destination only: the back end sees the client and routes its answers through the balancer.
pub const FORWARD_DNAT: u32 = 2;
/// Rewrite nothing but the link-layer addresses: the back end owns the VIP and answers the client directly.
pub const FORWARD_L2DSR: u32 = 3;
/// Put the packet into another IP packet to the back end, which owns the VIP and answers the client directly (RFC 2003,
/// RFC 2473).
pub const FORWARD_IPIP: u32 = 4;
/// Put the packet into a UDP datagram to the back end, which owns the VIP and answers the client directly (Generic UDP
/// Encapsulation, variant 1: draft-ietf-intarea-gue-09).
pub const FORWARD_GUE: u32 = 5;
/// Change nothing and leave the packet to the host's stack: a proxy on this host has the VIP.
pub const FORWARD_LOCAL: u32 = 6;

/// Whether a `FORWARD_*` code is one.
#[inline(always)]
pub const fn is_forward(forward: u32) -> bool {
    matches!(forward, FORWARD_NAT..=FORWARD_LOCAL)
}

/// Whether the balancer is a router on the way, which takes one from the TTL or hop limit.
#[inline(always)]
pub const fn takes_hop(forward: u32) -> bool {
    !matches!(forward, FORWARD_L2DSR | FORWARD_LOCAL)
}

/// Whether the packet goes out inside another one.
#[inline(always)]
pub const fn encapsulates(forward: u32) -> bool {
    matches!(forward, FORWARD_IPIP | FORWARD_GUE)
}

/// Whether back ends answer the client themselves, so that there is no reply entry: answers do not come by here.
#[inline(always)]
pub const fn answers_directly(forward: u32) -> bool {
    matches!(forward, FORWARD_L2DSR | FORWARD_IPIP | FORWARD_GUE)
}

/// Service slots that one [`DecisionBlock`] holds: two cache lines.
pub const BLOCK_CELLS: u32 = 32;
/// Blocks that a row consists of.
pub const ROW_BLOCKS: u32 = crate::schema::MAX_SERVICES / BLOCK_CELLS;

record! {
    /// What the rules say about one kind of tenant: for each 32 service slots, which [`DecisionBlock`] holds the cells.
    ///
    /// Block 0 is the one in which no service is allowed, so what was never written allows nothing.
    pub struct RowRecord, 128 bytes {
        /// Number of the block of service slot `32 * index` and the 31 that follow.
        pub blocks: [u32; ROW_BLOCKS as usize],
    }
}

record! {
    /// What a row says about one service slot.
    pub struct DecisionCell, 4 bytes {
        /// Number of the [`DecisionRecord`]. Number 0 is that of a slot that no service uses: `NoRule`.
        pub decision: u16,
        /// The eligible set, if the decision is `Allowed`.
        pub set: u16,
    }
}

record! {
    /// 32 cells of a row, shared by all rows that agree on these service slots.
    pub struct DecisionBlock, 128 bytes {
        /// By service slot modulo 32.
        pub cells: [DecisionCell; BLOCK_CELLS as usize],
    }
}

record! {
    /// A distinct outcome of the rules. Very many cells share one.
    pub struct DecisionRecord, 24 bytes {
        /// A [`crate::Reason`] number plus one: `Allowed`, or why not. Zero is a record that was never written; it refuses
        /// as `Internal`, so that no hole in the tables can read as `Allowed`.
        pub reason: u32,
        /// The rule that decided, plus one; zero is no rule.
        pub rule: u32,
        /// The first shadow rule that would have decided otherwise, plus one; zero is none.
        pub shadow_rule: u32,
        /// What that rule would have answered: a [`crate::Reason`] number.
        pub shadow_reason: u32,
        /// The limit group of the tenant on the service; zero is none.
        pub limits: u32,
        /// Zero: brings the size to a multiple of eight.
        pub reserved: u32,
    }
}

/// Words in a [`SetRecord`].
pub const SET_WORDS: usize = (crate::schema::MAX_BACKENDS / 64) as usize;

record! {
    /// One eligible set: which back ends a flow that is already open may keep (compliant, healthy or draining).
    pub struct SetRecord, 520 bytes {
        /// Bit `n % 64` of word `n / 64` stands for the back end in slot `n`.
        pub members: [u64; SET_WORDS],
        /// Service classes whose new flows are refused, since the pool that would take them runs hot: a bit for each.
        pub shed_classes: u64,
    }
}

/// Room in a [`MaglevTable`]: the slots of a table, brought up to a power of two.
pub const MAGLEV_ROOM: usize = crate::schema::MAGLEV_SLOTS.next_power_of_two() as usize;
/// A Maglev slot without a back end.
pub const NO_BACKEND: u16 = u16::MAX;

record! {
    /// The Maglev table of an eligible set: the back ends that take new flows (compliant, healthy, not draining).
    ///
    /// One record, since a record is what one system call writes. A packet that looks while it is written sees the old or
    /// the new back end of its slot: slots are aligned, and the kernel copies whole words.
    pub struct MaglevTable, 32768 bytes {
        /// Back-end slots, or [`NO_BACKEND`]. Those beyond `MAGLEV_SLOTS` are never asked for.
        pub slots: [u16; MAGLEV_ROOM],
    }
}

record! {
    /// One back end. Its index is the back end's slot.
    pub struct BackendRecord, 48 bytes {
        /// Where it listens.
        pub address: Address,
        /// The port it listens on.
        pub port_be: u16,
        /// `BACKEND_*` flags.
        pub flags: u16,
        /// The interface that leads to it.
        pub ifindex: u32,
        /// Link-layer address of the next hop towards it.
        pub next_hop_mac: [u8; 6],
        /// Link-layer address of that interface.
        pub own_mac: [u8; 6],
        /// The largest packet that the link takes, from the outermost IP header on.
        pub mtu_bytes: u32,
        /// The VLAN tags with which frames leave: see [`crate::parse::Tags`].
        pub tags: [u16; 4],
    }
}

/// The slot is in use.
pub const BACKEND_PRESENT: u16 = 1;
/// `ifindex`, `next_hop_mac`, `own_mac`, `mtu_bytes` and `tags` are known.
pub const BACKEND_REACHABLE: u16 = 2;

/// Entries in one trie node: one for each value of a byte.
pub const TRIE_FANOUT: usize = 256;

record! {
    /// A node of the classification trie: see [`crate::decide::trie`].
    pub struct TrieNode, 1024 bytes {
        /// Indexed by the next byte of the key.
        pub entries: [u32; TRIE_FANOUT],
    }
}

record! {
    /// How long the programs may act without a sign of the agent, in kernel monotonic nanoseconds. The agent puts it off
    /// again and again while it lives.
    ///
    /// Each word says all about one thing, so that a packet that reads while both are written does no harm.
    pub struct LeaseRecord, 16 bytes {
        /// After this, what would open a flow is refused. Zero: never.
        pub new_flows_until_ns: u64,
        /// After this, every packet to a service and every reply is refused. Zero: never.
        pub everything_until_ns: u64,
    }
}

record! {
    /// One interface on which programs run; the key is its index.
    pub struct LinkRecord, 8 bytes {
        /// The largest packet that it takes, from the IP header on.
        pub mtu_bytes: u32,
        /// Zero: brings the size to a multiple of eight.
        pub reserved: u32,
    }
}

record! {
    /// What is particular to this host, not to the policy.
    pub struct HostRecord, 96 bytes {
        /// The address that `Nat` puts in place of the client's, IPv4; all zero: none.
        pub nat_v4: u32,
        /// First port of the range that `Nat` may use.
        pub nat_port_first: u16,
        /// Number of ports in the range.
        pub nat_port_count: u16,
        /// The same for IPv6.
        pub nat_v6: Address,
        /// Audit events that one (tenant, reason, CPU) may send in each window before they are only counted.
        pub events_per_window: u64,
        /// Entries of the flow table that one tenant may have. Zero: as many as there are.
        pub flows_per_tenant: u64,
        /// Refused packets of one tenant, and of all strangers together, that are answered. All zero: none.
        pub answers: LimitRecord,
        /// Source of encapsulated packets, IPv4: the fixed bits.
        pub outer_v4: u32,
        /// The bits that vary by flow.
        pub outer_v4_spread: u32,
        /// The same for IPv6.
        pub outer_v6: Address,
        /// The bits of its last word that vary by flow.
        pub outer_v6_spread: u32,
        /// The smallest MTU in `LINKS`; zero: there is no link in it. What is no larger fits everywhere.
        pub smallest_mtu_bytes: u32,
        /// The clock of a program that was loaded for tests with `TEST_CLOCK`; unread otherwise.
        pub test_now_ns: u64,
    }
}
