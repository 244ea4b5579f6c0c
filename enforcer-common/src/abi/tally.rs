//! Counters: per CPU, written only by the programs.

use crate::abi::reason::REASON_SLOTS;
use crate::pod::record;

/// Packets judged by XDP.
pub const DIRECTION_INGRESS: u32 = 0;
/// Packets judged by the TC egress program.
pub const DIRECTION_EGRESS: u32 = 1;
/// Directions.
pub const DIRECTIONS: u32 = 2;

record! {
    /// What one (direction, tenant, reason) has seen on one CPU.
    ///
    /// Completeness: of the decisions that call for an audit record (a flow opened or moved, a packet refused), each
    /// adds one to exactly one of `recorded`, `aggregated` and `lost`.
    pub struct TallyRecord, 56 bytes {
        /// Packets.
        pub packets: u64,
        /// Bytes from the IP header on.
        pub bytes: u64,
        /// Decisions that went out as an event.
        pub recorded: u64,
        /// Decisions that were only counted, since the window's share of events was used up.
        pub aggregated: u64,
        /// Decisions whose event found the ring buffer full.
        pub lost: u64,
        /// Number of the current window.
        pub window: u64,
        /// Events sent in it.
        pub window_events: u64,
    }
}

record! {
    /// The tallies of one (tenant, direction) on one CPU: one record, so that one look-up reads all reasons.
    pub struct TallyBlock, 2240 bytes {
        /// By [`crate::Reason`] number.
        pub reasons: [TallyRecord; REASON_SLOTS as usize],
    }
}

/// Index in `TALLIES`; beyond the map for a tenant slot that is out of range. By tenant first, so that it does not depend
/// on how many there are room for.
#[inline(always)]
pub const fn tally_index(direction: u32, tenant: u32) -> u32 {
    tenant * DIRECTIONS + direction
}
