//! What the programs tell the agent through the ring buffer.

use crate::abi::address::FlowKey;
use crate::pod::record;

/// A new flow was admitted.
pub const EVENT_FLOW_OPENED: u32 = 1;
/// A flow was given another back end, since its own is no longer eligible.
pub const EVENT_FLOW_MOVED: u32 = 2;
/// A packet was refused.
pub const EVENT_REFUSED: u32 = 3;

/// Length of an aggregation window: within one, each (direction, tenant, reason, CPU) sends at most
/// `HostRecord::events_per_window` events. A power of two, so that no division is needed: 2^30 ns, about 1.07 s.
pub const EVENT_WINDOW_SHIFT: u32 = 30;

record! {
    /// One decision.
    pub struct EventRecord, 104 bytes {
        /// Kernel monotonic time of the decision.
        pub now_ns: u64,
        /// Generation it was made under.
        pub generation: u64,
        /// The packet's 5-tuple as it arrived.
        pub key: FlowKey,
        /// Where a translated flow goes: port in place of the client's; zero otherwise. Network byte order.
        pub translated_port_be: u16,
        /// Zero.
        pub reserved: u16,
        /// An `EVENT_*` code.
        pub kind: u32,
        /// A [`crate::Reason`] number.
        pub reason: u32,
        /// Tenant slot, or zero.
        pub tenant: u32,
        /// Service slot plus one, or zero.
        pub service: u32,
        /// Deciding rule plus one, or zero.
        pub rule: u32,
        /// Back-end slot plus one, or zero.
        pub backend: u32,
        /// Shadow rule that would have decided otherwise, plus one, or zero.
        pub shadow_rule: u32,
        /// What that rule would have answered.
        pub shadow_reason: u32,
        /// Bytes of the packet from the IP header on.
        pub bytes: u32,
        /// `tally::DIRECTION_*`.
        pub direction: u32,
        /// The CPU that decided.
        pub cpu: u32,
    }
}
