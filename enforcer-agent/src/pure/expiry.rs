//! When a flow has ended and when it expires.
//!
//! The agent's sweeper asks this over the kernel's maps, the replay over its own tables: same rules, same flows.

use std::time::Duration;

use enforcer_common::abi::address::{Address, FlowKey, from_v4};
use enforcer_common::abi::config::{FORWARD_NAT, HostRecord, answers_directly};
use enforcer_common::abi::flow::{
    FLOW_ESTABLISHED, FLOW_FIN, FLOW_RST, FlowRecord, ReplyRecord, SEEN_LAG_NS,
};
use enforcer_common::decide::{TCP, is_v4, reply_key};
use enforcer_common::schema::{backend_connections, holder_connections, tenant_holder};

/// A reply entry is made before its flow: one younger than this may be about to get it.
pub const ORPHAN_AGE: Duration = Duration::from_secs(1);

/// How long a flow may be idle in each state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before both sides have answered.
    pub tcp_opening: Duration,
    /// TCP with traffic both ways.
    pub tcp_established: Duration,
    /// TCP after a reset, or after both sides have finished.
    pub tcp_closing: Duration,
    /// UDP.
    pub udp: Duration,
}

/// With whom a flow is counted as open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    backend: u32,
    /// The tenant, and the limit groups that it is counted in; zero is none.
    holders: [u32; 3],
}

// === impl Counted ===

impl Counted {
    /// As the flow's record says.
    #[must_use]
    pub const fn of(flow: &FlowRecord) -> Self {
        Self {
            backend: flow.backend,
            holders: [
                tenant_holder(flow.tenant),
                flow.pair_group as u32,
                flow.service_group as u32,
            ],
        }
    }

    /// Indexes of the counts.
    pub fn indexes(self) -> impl Iterator<Item = u32> {
        let holders = self.holders.into_iter().filter(|holder| *holder != 0);
        holders
            .map(holder_connections)
            .chain([backend_connections(self.backend)])
    }
}

/// A flow and what was seen of its other direction. `reply` is the flow's own entry, or `None` where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The client's 5-tuple.
    pub key: &'a FlowKey,
    /// The client's direction.
    pub flow: &'a FlowRecord,
    /// The back end's direction.
    pub reply: Option<&'a ReplyRecord>,
}

// === impl Seen ===

impl Seen<'_> {
    /// Whether a TCP connection was reset, or both sides have finished.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let (here, back) = (self.flow.state, self.state_back());
        self.key.protocol == TCP && ((here | back) & FLOW_RST != 0 || here & back & FLOW_FIN != 0)
    }

    /// Whether the flow has been idle for as long as its state allows.
    #[must_use]
    pub fn is_expired(&self, timeouts: &Timeouts, now_ns: u64) -> bool {
        u128::from(now_ns.saturating_sub(self.seen_ns())) >= self.timeout(timeouts).as_nanos()
    }

    /// When the flow will have expired if nothing more is seen of it.
    #[must_use]
    pub fn expires_ns(&self, timeouts: &Timeouts) -> u64 {
        let timeout_ns = u64::try_from(self.timeout(timeouts).as_nanos()).unwrap_or(u64::MAX);
        self.seen_ns().saturating_add(timeout_ns)
    }

    /// The last packet of either direction.
    fn seen_ns(&self) -> u64 {
        self.flow.seen_ns.max(self.reply.map_or(0, |reply| reply.seen_ns))
    }

    /// Where back ends answer directly, the client's direction is all there is to see.
    fn state_back(&self) -> u32 {
        if answers_directly(self.flow.forward) {
            self.flow.state
        } else {
            self.reply.map_or(0, |reply| reply.state)
        }
    }

    /// What is in steady use may have been seen later than its record says.
    fn timeout(&self, timeouts: &Timeouts) -> Duration {
        let timeout = self.timeout_of_state(timeouts);
        if self.flow.state == FLOW_ESTABLISHED && !self.has_ended() {
            timeout + Duration::from_nanos(SEEN_LAG_NS)
        } else {
            timeout
        }
    }

    fn timeout_of_state(&self, timeouts: &Timeouts) -> Duration {
        if self.key.protocol != TCP {
            return timeouts.udp;
        }
        let (here, back) = (self.flow.state, self.state_back());
        if self.has_ended() {
            timeouts.tcp_closing
        } else if here & back & FLOW_ESTABLISHED != 0 || (here | back) & FLOW_FIN != 0 {
            timeouts.tcp_established
        } else {
            timeouts.tcp_opening
        }
    }
}

/// The key of a flow's reply entry; `None` where the back end answers the client directly.
#[must_use]
pub fn reply_key_of(host: &HostRecord, key: &FlowKey, flow: &FlowRecord) -> Option<FlowKey> {
    if answers_directly(flow.forward) {
        return None;
    }
    let nat = (flow.forward == FORWARD_NAT).then(|| (nat_address(host, key), flow.translated_port_be));
    Some(reply_key(key, flow.backend_address, flow.backend_port_be, nat))
}

/// What `Nat` puts in place of the client of a flow.
#[must_use]
pub fn nat_address(host: &HostRecord, key: &FlowKey) -> Address {
    if is_v4(key) {
        from_v4(host.nat_v4)
    } else {
        host.nat_v6
    }
}

/// Whether a reply entry that belongs to no flow is old enough to go.
#[must_use]
pub fn is_old_orphan(reply: &ReplyRecord, now_ns: u64) -> bool {
    u128::from(now_ns.saturating_sub(reply.seen_ns)) >= ORPHAN_AGE.as_nanos()
}
