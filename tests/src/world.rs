//! A policy and everything else that the tables depend on: back ends' states, suspensions, and the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enforcer_agent::pure::capacity::Capacity;
use enforcer_agent::pure::compile::{
    BackendStatus, CompileError, Compiled, Directory, Exhausted, HostFacts, Inputs, NextHop, Slots, compile,
};
use enforcer_agent::pure::policy::resolved::Backend;
use enforcer_agent::pure::policy::selection::Selection;
use enforcer_agent::pure::policy::{Diagnostic, ResolvedPolicy, load};
use enforcer_common::hash::{flow_hash, scale};

use crate::packet::{Mac, Segment};

/// The interface by which a test run's frames come in: the loopback device.
pub const INGRESS_IFINDEX: u32 = 1;
/// The interface that leads to the back ends, unless a test says otherwise.
pub const BACKEND_IFINDEX: u32 = 7;
/// Link-layer address of that interface.
pub const BACKEND_SIDE_MAC: Mac = [0x02, 0, 0, 0, 0x1b, 0x02];
/// What that interface takes: room for a packet of 3000 bytes behind TCP and IPv6, and for one over IPv4 in a tunnel of
/// twenty bytes, but of no more.
pub const MTU_BYTES: u32 = 3060;
/// Refused packets that are answered, of each tenant.
pub const ANSWERS_PER_SECOND: u32 = 10;
/// Sources of what is put around packets to IPv4 back ends.
pub const OUTER_V4: &str = "10.254.0.0/16";
/// The same for IPv6 back ends.
pub const OUTER_V6: &str = "2001:db8:fe::/64";
/// What `Nat` puts in place of IPv4 clients.
pub const NAT_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 250);
/// What `Nat` puts in place of IPv6 clients.
pub const NAT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x250);
/// An address of the balancer itself, in the back ends' network.
pub const LOCAL_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 254);

/// Why a world cannot be turned into tables.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The policy is refused.
    #[error("the policy is refused: {0:?}")]
    Policy(Vec<Diagnostic>),
    /// The policy does not fit the host.
    #[error("the policy cannot be compiled: {0}")]
    Compile(#[from] CompileError),
}

/// A policy and its surroundings.
#[derive(Clone, Debug)]
pub struct World {
    /// What is enforced.
    pub policy: ResolvedPolicy,
    /// The host that enforces it.
    pub host: HostFacts,
    /// States of all back ends, by name.
    pub backends: BTreeMap<String, BackendStatus>,
    /// Pools that have failed.
    pub failed_pools: BTreeSet<String>,
    /// Tenants that are suspended.
    pub suspended: BTreeSet<String>,
    /// Rules that are closed at the time.
    pub closed_rules: Selection,
    /// Tenants that have used up a quota.
    pub exhausted: BTreeMap<String, Exhausted>,
    /// Classes whose new flows each pool refuses.
    pub shed: BTreeMap<String, BTreeSet<String>>,
    /// New connections per second that tenants are held to.
    pub fair_rates: BTreeMap<String, u64>,
    /// Slots of the last compile.
    pub slots: Slots,
    /// Names of the last compile.
    pub directory: Directory,
}

/// How a test's back end is reached: its link-layer address ends with its IP address's last two bytes.
#[must_use]
pub fn next_hop(address: IpAddr) -> NextHop {
    NextHop {
        ifindex: BACKEND_IFINDEX,
        own_mac: BACKEND_SIDE_MAC,
        next_hop_mac: mac_of(address),
        mtu_bytes: MTU_BYTES,
        vlan: None,
    }
}

/// The link-layer address of a test's back end.
#[must_use]
pub fn mac_of(address: IpAddr) -> Mac {
    let (high, low) = match address {
        IpAddr::V4(v4) => (v4.octets()[2], v4.octets()[3]),
        IpAddr::V6(v6) => (v6.octets()[14], v6.octets()[15]),
    };
    [0x02, 0, 0, 0xbe, high, low]
}

// === impl World ===

impl World {
    /// A world in which every back end is healthy and can be reached.
    ///
    /// # Errors
    /// If the policy is refused.
    pub fn new(text: &str) -> Result<Self, WorldError> {
        let host = HostFacts {
            nat_v4: Some(NAT_V4),
            nat_v6: Some(NAT_V6),
            nat_port_first: 20_000,
            nat_port_count: 20_000,
            answers_per_second: ANSWERS_PER_SECOND,
            outer_v4: OUTER_V4.parse().ok(),
            outer_v6: OUTER_V6.parse().ok(),
            local_addresses: vec![LOCAL_V4.into(), NAT_V4.into()],
            events_per_window: 1_000_000,
            flows_per_tenant: 0,
            links: BTreeMap::new(),
            capacity: Capacity::default(),
        };
        let mut world = Self {
            policy: parse(text)?,
            host,
            backends: BTreeMap::new(),
            failed_pools: BTreeSet::new(),
            suspended: BTreeSet::new(),
            closed_rules: Selection::default(),
            exhausted: BTreeMap::new(),
            shed: BTreeMap::new(),
            fair_rates: BTreeMap::new(),
            slots: Slots::default(),
            directory: Directory::default(),
        };
        world.know_backends();
        Ok(world)
    }

    /// Puts another policy in place; what is known of back ends that it shares with the old one stays known.
    ///
    /// # Errors
    /// If the policy is refused.
    pub fn set_policy(&mut self, text: &str) -> Result<(), WorldError> {
        self.policy = parse(text)?;
        self.know_backends();
        Ok(())
    }

    fn know_backends(&mut self) {
        for backend in self.policy.pools.iter().flat_map(|pool| &pool.backends) {
            self.backends
                .entry(backend.name.clone())
                .or_insert_with(|| reachable(backend));
        }
    }

    /// Changes what is known of a back end.
    ///
    /// # Panics
    /// If there is no such back end.
    pub fn set_backend(&mut self, name: &str, change: impl FnOnce(&mut BackendStatus)) {
        change(self.backends.get_mut(name).expect("a back end of the policy"));
    }

    /// The tables. Slots and names are remembered.
    ///
    /// # Errors
    /// If the policy does not fit the host.
    pub fn compile(&mut self) -> Result<Compiled, WorldError> {
        let compiled = compile(&Inputs {
            policy: &self.policy,
            slots: &self.slots,
            host: &self.host,
            backends: &self.backends,
            failed_pools: &self.failed_pools,
            suspended: &self.suspended,
            closed_rules: &self.closed_rules,
            exhausted: &self.exhausted,
            shed: &self.shed,
            fair_rates: &self.fair_rates,
        })?;
        self.slots = compiled.slots.clone();
        self.directory = compiled.directory.clone();
        Ok(compiled)
    }

    /// A tenant's slot; 0 for the empty name.
    ///
    /// # Panics
    /// If there is no such tenant.
    #[must_use]
    pub fn tenant(&self, name: &str) -> u32 {
        let found = self.directory.tenants.iter().find(|(_, known)| *known == name);
        match found {
            Some((slot, _)) => *slot,
            None if name.is_empty() => 0,
            None => panic!("there is no tenant {name:?}"),
        }
    }

    /// A back end's slot.
    ///
    /// # Panics
    /// If there is no such back end.
    #[must_use]
    pub fn backend(&self, name: &str) -> u32 {
        let found = self
            .directory
            .backends
            .iter()
            .find(|(_, known)| known.name == name);
        *found.expect("a back end of the policy").0
    }

    /// The port that `Nat` tries first for a client's packet.
    #[must_use]
    pub fn first_nat_port(&self, segment: &Segment) -> u16 {
        let offset = scale(flow_hash(&segment.key()), u32::from(self.host.nat_port_count));
        self.host.nat_port_first + offset as u16
    }
}

fn parse(text: &str) -> Result<ResolvedPolicy, WorldError> {
    load("test.yaml", text).into_result().map_err(WorldError::Policy)
}

fn reachable(backend: &Backend) -> BackendStatus {
    BackendStatus {
        next_hop: Some(next_hop(backend.address)),
        ..BackendStatus::unknown(backend)
    }
}
