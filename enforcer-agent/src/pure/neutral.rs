//! A host that is none in particular: every back end healthy and reachable, nothing suspended, nothing failed.
//!
//! What a policy compiles to there depends on the policy alone. So two people who compile one policy on two machines see
//! the same tables, and a packet can be explained under a policy that no agent has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::capacity::Capacity;
use super::compile::{BackendStatus, Exhausted, HostFacts, Inputs, NextHop, Slots};
use jiff::Timestamp;

use super::policy::ResolvedPolicy;
use super::policy::schedule::closed_rules;
use super::policy::selection::Selection;

/// What `Nat` puts in place of IPv4 clients: the dummy address of RFC 7600, which no host has.
const NAT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// What `Nat` puts in place of IPv6 clients: of the dummy prefix of RFC 9780.
const NAT_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 1);
/// The ports from the first that needs no privilege.
const NAT_PORT_FIRST: u16 = 1024;

/// A way that exists and leads nowhere: without one, a packet would be refused for that.
const NEXT_HOP: NextHop = NextHop {
    ifindex: 1,
    own_mac: [0; 6],
    next_hop_mac: [0; 6],
    mtu_bytes: u32::MAX,
    vlan: None,
};

/// Everything that a compile takes besides the policy.
#[derive(Debug, Clone)]
pub struct Neutral {
    slots: Slots,
    host: HostFacts,
    backends: BTreeMap<String, BackendStatus>,
    failed_pools: BTreeSet<String>,
    suspended: BTreeSet<String>,
    exhausted: BTreeMap<String, Exhausted>,
    shed: BTreeMap<String, BTreeSet<String>>,
    fair_rates: BTreeMap<String, u64>,
    closed_rules: Selection,
}

// === impl Neutral ===

impl Neutral {
    /// The neutral host, with the back ends of a policy, at a time; `None`: at a time at which every rule is open.
    #[must_use]
    pub fn of(policy: &ResolvedPolicy, at: Option<Timestamp>) -> Self {
        let backends = policy.pools.iter().flat_map(|pool| &pool.backends);
        Self {
            slots: Slots::default(),
            host: HostFacts {
                nat_v4: Some(NAT_V4),
                nat_v6: Some(NAT_V6),
                nat_port_first: NAT_PORT_FIRST,
                nat_port_count: u16::MAX - NAT_PORT_FIRST,
                answers_per_second: 0,
                outer_v4: Some(Ipv4Net::from(NAT_V4)),
                outer_v6: Some(Ipv6Net::from(NAT_V6)),
                local_addresses: Vec::new(),
                events_per_window: 0,
                flows_per_tenant: 0,
                links: BTreeMap::new(),
                capacity: Capacity::LARGEST,
            },
            backends: backends
                .map(|backend| {
                    let status = BackendStatus {
                        next_hop: Some(NEXT_HOP),
                        ..BackendStatus::unknown(backend)
                    };
                    (backend.name.clone(), status)
                })
                .collect(),
            failed_pools: BTreeSet::new(),
            suspended: BTreeSet::new(),
            exhausted: BTreeMap::new(),
            shed: BTreeMap::new(),
            fair_rates: BTreeMap::new(),
            closed_rules: at.map(|at| closed_rules(policy, at)).unwrap_or_default(),
        }
    }

    /// The same on another host; if that has no address for `Nat` or around packets, it keeps the neutral one.
    #[must_use]
    pub fn on(mut self, host: &HostFacts) -> Self {
        self.host = HostFacts {
            nat_v4: host.nat_v4.or(self.host.nat_v4),
            nat_v6: host.nat_v6.or(self.host.nat_v6),
            outer_v4: host.outer_v4.or(self.host.outer_v4),
            outer_v6: host.outer_v6.or(self.host.outer_v6),
            ..host.clone()
        };
        self
    }

    /// What is particular to the host.
    #[must_use]
    pub const fn host(&self) -> &HostFacts {
        &self.host
    }

    /// Which rules are closed.
    #[must_use]
    pub const fn closed_rules(&self) -> &Selection {
        &self.closed_rules
    }

    /// Goes on from a compile, with other rules closed.
    pub fn follow(&mut self, slots: Slots, closed_rules: Selection) {
        (self.slots, self.closed_rules) = (slots, closed_rules);
    }

    /// What to compile: the policy on this host.
    #[must_use]
    pub const fn inputs<'a>(&'a self, policy: &'a ResolvedPolicy) -> Inputs<'a> {
        Inputs {
            policy,
            slots: &self.slots,
            host: &self.host,
            backends: &self.backends,
            failed_pools: &self.failed_pools,
            suspended: &self.suspended,
            closed_rules: &self.closed_rules,
            exhausted: &self.exhausted,
            shed: &self.shed,
            fair_rates: &self.fair_rates,
        }
    }
}
