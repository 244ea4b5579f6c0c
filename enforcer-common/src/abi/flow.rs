//! Flow state: written by the programs, expired by the agent.

use crate::abi::address::{Address, FlowKey};
use crate::abi::cache::{TICK_NS, TICK_SHIFT};
use crate::pod::record;

/// A packet with FIN was seen in this direction.
pub const FLOW_FIN: u32 = 1;
/// A packet with RST was seen in this direction.
pub const FLOW_RST: u32 = 2;
/// TCP: a packet other than the opening SYN was seen in this direction.
pub const FLOW_ESTABLISHED: u32 = 4;

/// How long at most a flow in steady use goes on without its record saying when: see [`seen_ns`]. The two clocks by which
/// that is judged come to no more than this.
pub const SEEN_LAG_NS: u64 = 5_000_000_000;
const _: () = assert!(2 * TICK_NS < SEEN_LAG_NS);

/// What a flow's record says after a packet at `now_ns` of when it was seen, if it said `before_ns`.
///
/// A flow in steady use is noted once in [`TICK_NS`]: its packets are counted in the cache meanwhile, without its record being
/// looked up (see [`crate::abi::cache`]). `state` is that after the packet.
#[inline(always)]
pub const fn seen_ns(before_ns: u64, now_ns: u64, state: u32) -> u64 {
    if state == FLOW_ESTABLISHED && before_ns >> TICK_SHIFT == now_ns >> TICK_SHIFT {
        before_ns
    } else {
        now_ns
    }
}

record! {
    /// The state of one flow from client to VIP; the key is the client's 5-tuple.
    ///
    /// What each packet reads and writes comes first: behind the end of the key it fills the kernel's second cache line of the
    /// entry (48 bytes of its own, then the key). With the size that is stated, entries begin on a cache line, so that a packet of
    /// an open flow touches two of them.
    pub struct FlowRecord, 104 bytes {
        /// The generation under which the flow was judged last.
        pub generation: u64,
        /// When its last packet was admitted, or up to [`SEEN_LAG_NS`] before.
        pub seen_ns: u64,
        /// Packets admitted from the client.
        pub packets: u64,
        /// Bytes admitted from the client.
        pub bytes: u64,
        /// Back-end slot.
        pub backend: u32,
        /// `FLOW_*` bits of the client's direction.
        pub state: u32,
        /// When it was made, kernel monotonic time.
        pub created_ns: u64,
        /// The `FORWARD_*` code that it was set up for.
        pub forward: u32,
        /// Tenant slot.
        pub tenant: u32,
        /// Service slot.
        pub service: u32,
        /// Deciding rule plus one, or zero.
        pub rule: u32,
        /// The limit group of the tenant on the service that it is counted in; zero is none.
        pub pair_group: u16,
        /// The limit group of the service that it is counted in; zero is none.
        pub service_group: u16,
        /// Port of the back end.
        pub backend_port_be: u16,
        /// `Nat`: the port in place of the client's. Otherwise the client's port.
        pub translated_port_be: u16,
        /// Address of the back end: the slot alone could since have been given to another.
        pub backend_address: Address,
        /// Zero: brings the kernel's entries to whole cache lines.
        pub reserved: [u32; 4],
    }
}

record! {
    /// The other direction of a `Nat` or `Dnat` flow; the key is the 5-tuple of the back end's packets.
    pub struct ReplyRecord, 104 bytes {
        /// The client's 5-tuple: the key of the [`FlowRecord`], and what replies are rewritten to (reversed).
        pub forward: FlowKey,
        /// When the last reply was sent on.
        pub seen_ns: u64,
        /// Replies sent on.
        pub packets: u64,
        /// Bytes sent on.
        pub bytes: u64,
        /// Tenant slot.
        pub tenant: u32,
        /// Service slot.
        pub service: u32,
        /// Back-end slot.
        pub backend: u32,
        /// The interface that the client's packets come in by.
        pub client_ifindex: u32,
        /// Link-layer source of the client's packets: where replies go.
        pub client_mac: [u8; 6],
        /// Link-layer destination of the client's packets: where replies come from.
        pub own_mac: [u8; 6],
        /// `FLOW_*` bits of the back end's direction.
        pub state: u32,
        /// The VLAN tags with which the client's packets come, and replies leave: see [`crate::parse::Tags`].
        pub tags: [u16; 4],
    }
}
