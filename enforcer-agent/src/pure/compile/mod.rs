//! A resolved policy and the state of the world to the tables of one configuration bank.
//!
//! A pure function: the same policy, slots, host facts, back-end states and closed rules give the same tables, byte for byte, on every
//! host. Constraints are applied here, before a Maglev table is filled, so that the data path has no table in which
//! a forbidden back end stands.
//!
//! | Part | Module |
//! | --- | --- |
//! | names to small integers that stay the same from one compile to the next | [`slots`] |
//! | addresses to tenants and services | [`trie`] |
//! | what holds limits beside tenants | [`groups`] |
//! | (tenant, service) to decision, eligible set and Maglev table | [`pairs`] |
//! | what the host has to have | [`requirements`] |
//! | slots and rules back to names | [`directory`] |

pub mod directory;
mod eligible;
mod groups;
pub mod pairs;
mod records;
mod requirements;
mod shared;
pub mod slots;
pub mod trie;
mod vlan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use enforcer_common::abi::address::{self, Address};
use enforcer_common::abi::config::HostRecord;
use enforcer_common::schema::MAX_LIMIT_GROUPS;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::capacity::Capacity;
use super::policy::limits::Unit;
use super::policy::resolved::{Backend, Forward, Pool, ResolvedPolicy, Service};
use super::policy::selection::Selection;
use super::tables::Tables;
pub use directory::Directory;
use groups::Groups;
pub use slots::Slots;
pub use vlan::VlanTag;

/// Everything that the tables depend on.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What is to be enforced.
    pub policy: &'a ResolvedPolicy,
    /// The slots of the previous compile; empty at the first.
    pub slots: &'a Slots,
    /// What is particular to this host.
    pub host: &'a HostFacts,
    /// By name. A back end that is not in it counts as [`BackendStatus::unknown`].
    pub backends: &'a BTreeMap<String, BackendStatus>,
    /// Names of pools that count as failed: they take new flows only if no other pool can.
    pub failed_pools: &'a BTreeSet<String>,
    /// Names of tenants that an operator has suspended.
    pub suspended: &'a BTreeSet<String>,
    /// Indices of the rules whose schedules are closed at the time that the tables are for; see
    /// [`super::policy::schedule::closed_rules`].
    pub closed_rules: &'a Selection,
    /// Tenants that have used up a quota, by name.
    pub exhausted: &'a BTreeMap<String, Exhausted>,
    /// Names of the classes whose new flows each pool, by name, refuses.
    pub shed: &'a BTreeMap<String, BTreeSet<String>>,
    /// New connections per second that tenants, by name, are held to since a pool is contended.
    pub fair_rates: &'a BTreeMap<String, u64>,
}

/// What a tenant may no longer do, since it has used up a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Exhausted {
    /// Open connections.
    NewFlows,
    /// Send or receive anything.
    Everything,
}

/// What is particular to this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// What `Nat` puts in place of IPv4 clients.
    pub nat_v4: Option<Ipv4Addr>,
    /// What `Nat` puts in place of IPv6 clients.
    pub nat_v6: Option<Ipv6Addr>,
    /// First port that `Nat` may use.
    pub nat_port_first: u16,
    /// Number of ports that `Nat` may use.
    pub nat_port_count: u16,
    /// Sources of packets that are sent around others (`Ipip`, `Gue`): the host part varies by flow.
    pub outer_v4: Option<Ipv4Net>,
    /// The same for IPv6.
    pub outer_v6: Option<Ipv6Net>,
    /// Refused packets of one tenant, and of all strangers together, that are answered per second.
    pub answers_per_second: u32,
    /// The host's own addresses: packets to them are none of our business.
    pub local_addresses: Vec<IpAddr>,
    /// Audit events that one (tenant, reason, CPU) may send in each window before they are only counted.
    pub events_per_window: u64,
    /// Entries of the flow table that one tenant may have; zero: as many as there are.
    pub flows_per_tenant: u64,
    /// MTUs in bytes of the interfaces on which programs run, by their index, as far as they are known.
    pub links: BTreeMap<u32, u32>,
    /// How much fits into its maps.
    pub capacity: Capacity,
}

/// What is known of a back end at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// Its health checks succeed.
    pub healthy: bool,
    /// It keeps its flows and takes no new ones.
    pub draining: bool,
    /// Its share of new flows, in thousandths of a unit of capacity; 0 takes no new flows.
    pub weight: u32,
    /// How to reach it, once that is known.
    pub next_hop: Option<NextHop>,
}

/// The way to a back end, on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NextHop {
    /// The interface that leads to it.
    pub ifindex: u32,
    /// Link-layer address of that interface.
    pub own_mac: [u8; 6],
    /// Link-layer address of the back end, or of the router in front of it.
    pub next_hop_mac: [u8; 6],
    /// The largest packet that the link takes.
    pub mtu_bytes: u32,
    /// The VLAN that it is in; `None`: frames have no tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanTag>,
}

/// How much time's worth of answers to refused packets may come at once.
const ANSWERS_BURST_NS: u64 = 1_000_000_000;

/// A compiled policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// What one bank has to hold.
    pub tables: Tables,
    /// For the next compile.
    pub slots: Slots,
    /// What the numbers in records, events and counters mean.
    pub directory: Directory,
}

/// Why a policy cannot be enforced on this host. Nothing is changed then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CompileError {
    /// A service is forwarded by `Nat`, and this host has no address for that.
    #[error(
        "service `{service}` is forwarded by Nat over {family}, but the agent's configuration has no {family} address \
         under `nat`: add one that back ends can route to"
    )]
    NoNatAddress {
        /// The service's name.
        service: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// A service is forwarded in packets to back ends of a family of which this host has no source for them.
    #[error(
        "service `{service}` is forwarded by {forward:?} to {family} back ends, but the agent's configuration has no \
         {family} prefix under `encapsulation`: add one whose addresses back ends accept packets from"
    )]
    NoOuterSource {
        /// The service's name.
        service: String,
        /// How it is forwarded.
        forward: Forward,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// A table of the data path is too small.
    #[error(
        "the policy needs more {what} than the data path has room for ({capacity}): {}{advice}",
        raise(*field)
    )]
    Capacity {
        /// What there is too much of.
        what: &'static str,
        /// How much there can be.
        capacity: u32,
        /// The field of the agent's configuration that says how much; `None` if that cannot be chosen.
        field: Option<&'static str>,
        /// What else to do.
        advice: &'static str,
    },
}

fn raise(field: Option<&'static str>) -> String {
    field.map_or_else(String::new, |field| {
        format!("raise `{field}` in the agent's configuration, which takes effect after `detach`, or ")
    })
}

// === impl BackendStatus ===

impl BackendStatus {
    /// What is assumed of a back end before anything is known: healthy, with its whole capacity as weight, since an
    /// agent that starts would otherwise refuse all traffic until the first probes are back.
    #[must_use]
    pub const fn unknown(backend: &Backend) -> Self {
        // The capacity is at most 10^6: `resolve` sees to it.
        Self {
            healthy: true,
            draining: false,
            weight: backend.capacity.saturating_mul(1000),
            next_hop: None,
        }
    }

    /// Whether it takes new flows.
    #[must_use]
    pub const fn takes_new_flows(&self) -> bool {
        self.healthy && !self.draining && self.weight > 0
    }
}

// === impl HostFacts ===

impl HostFacts {
    /// The record for the map `HOST`.
    #[must_use]
    pub fn record(&self) -> HostRecord {
        let (outer_v4, outer_v6) = (self.outer_v4, self.outer_v6);
        let answers_per_second = Some(u64::from(self.answers_per_second)).filter(|rate| *rate > 0);
        HostRecord {
            answers: records::limit_record(answers_per_second, ANSWERS_BURST_NS, Unit::Events),
            outer_v4: outer_v4.map_or(0, |net| u32::from(net.network()).to_be()),
            outer_v4_spread: outer_v4.map_or(0, |net| u32::from(net.hostmask()).to_be()),
            outer_v6: outer_v6.map_or([0; 4], |net| address_of(IpAddr::V6(net.network()))),
            // The last word varies at most: more flows than that are not told apart anyway.
            outer_v6_spread: outer_v6.map_or(0, |net| (u128::from(net.hostmask()) as u32).to_be()),
            nat_v4: self.nat_v4.map_or(0, |address| u32::from(address).to_be()),
            nat_port_first: self.nat_port_first,
            nat_port_count: self.nat_port_count,
            nat_v6: self
                .nat_v6
                .map_or([0; 4], |address| address_of(IpAddr::V6(address))),
            events_per_window: self.events_per_window,
            flows_per_tenant: self.flows_per_tenant,
            smallest_mtu_bytes: self.links.values().copied().min().unwrap_or(0),
            ..HostRecord::ZERO
        }
    }

    const fn has_outer_source(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.outer_v4.is_some(),
            Family::V6 => self.outer_v6.is_some(),
        }
    }

    const fn has_nat_address(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.nat_v4.is_some(),
            Family::V6 => self.nat_v6.is_some(),
        }
    }
}

/// IPv4 or IPv6. A service with addresses of both is two services to the data path, each with the back ends of its
/// family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

// === impl Family ===

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A service as the data path knows it: one family of one service of the policy.
#[derive(Debug, Clone, Copy)]
struct SlottedService<'a> {
    slot: u32,
    /// Index in the policy.
    index: usize,
    service: &'a Service,
    family: Family,
}

/// A back end and its pool.
#[derive(Debug, Clone, Copy)]
struct SlottedBackend<'a> {
    slot: u32,
    pool: &'a Pool,
    backend: &'a Backend,
    status: BackendStatus,
}

/// Names and slots of everything in the policy: what the other modules work on.
struct Layout<'a> {
    inputs: Inputs<'a>,
    /// By index in the policy.
    tenant_slots: Arc<Vec<u32>>,
    /// In the order of the policy's rules.
    rule_numbers: Arc<Vec<u32>>,
    groups: Arc<Groups>,
    names: directory::Names,
    /// Whether policy, slots and host are those of the last compile with the same cache.
    same_policy: bool,
    /// By slot.
    services: Vec<SlottedService<'a>>,
    /// By pool index, then by index in the pool.
    backends: Vec<Vec<SlottedBackend<'a>>>,
}

/// What one compile leaves for the next, so that a change costs what depends on it. It changes no output: tables are
/// the same as without it, byte for byte.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    numbered: Option<Numbered>,
    trie: trie::Kept,
    pairs: pairs::Kept,
}

/// A policy with its slots and numbers.
#[derive(Debug, Clone)]
struct Numbered {
    policy: Arc<ResolvedPolicy>,
    host: HostFacts,
    slots: Slots,
    tenant_slots: Arc<Vec<u32>>,
    rule_numbers: Arc<Vec<u32>>,
    groups: Arc<Groups>,
    names: directory::Names,
}

// === impl Numbered ===

impl Numbered {
    fn of(policy: &Arc<ResolvedPolicy>, inputs: &Inputs<'_>) -> Result<Self, CompileError> {
        let slots = inputs.slots.next(
            inputs.host.capacity.tenants,
            policy.tenants.iter().map(|tenant| tenant.name.clone()),
            halves(policy)
                .iter()
                .map(|(_, service, family)| slots::service_key(&service.name, *family)),
            policy
                .pools
                .iter()
                .flat_map(|pool| pool.backends.iter().map(|backend| backend.name.clone())),
            policy.rules.iter().map(|rule| rule.name.clone()),
            groups::keys(policy, MAX_LIMIT_GROUPS as usize - 1),
        )?;
        let tenants = policy.tenants.iter();
        let tenant_slots: Vec<u32> = tenants.map(|tenant| slots.tenants.slot(&tenant.name)).collect();
        let rules = policy.rules.iter();
        let rule_numbers: Vec<u32> = rules.map(|rule| slots.rules.slot(&rule.name)).collect();
        Ok(Self {
            policy: Arc::clone(policy),
            host: inputs.host.clone(),
            names: directory::Names::of(policy, &tenant_slots, &rule_numbers),
            groups: Arc::new(Groups::of(policy, &slots.limits)),
            slots,
            tenant_slots: Arc::new(tenant_slots),
            rule_numbers: Arc::new(rule_numbers),
        })
    }

    /// The same policy with the slots that it was given, on the same host, gets the same slots again.
    fn still_holds(&self, policy: &Arc<ResolvedPolicy>, inputs: &Inputs<'_>) -> bool {
        Arc::ptr_eq(&self.policy, policy) && self.slots == *inputs.slots && self.host == *inputs.host
    }
}

// === impl Cache ===

impl Cache {
    /// Compiles a policy. `policy` is that of the inputs; it is kept, to be compared with the next one.
    ///
    /// # Errors
    /// As [`compile`].
    ///
    /// # Panics
    /// If `policy` is not the policy of the inputs.
    pub fn compile(
        &mut self,
        policy: &Arc<ResolvedPolicy>,
        inputs: &Inputs<'_>,
    ) -> Result<Compiled, CompileError> {
        assert!(
            std::ptr::eq(inputs.policy, &raw const **policy),
            "two policies at once"
        );
        // What is kept has to be compared with all of them: a further input stops this from compiling until it is.
        let Inputs {
            policy: _,
            slots: _,
            host: _,
            backends: _,
            failed_pools: _,
            suspended: _,
            closed_rules: _,
            exhausted: _,
            shed: _,
            fair_rates: _,
        } = inputs;
        let kept = self
            .numbered
            .take()
            .filter(|kept| kept.still_holds(policy, inputs));
        let same_policy = kept.is_some();
        let numbered = match kept {
            Some(kept) => kept,
            None => Numbered::of(policy, inputs)?,
        };
        let layout = lay_out(inputs, &numbered, same_policy);
        requirements::check(&layout)?;
        let capacity = inputs.host.capacity.trie_nodes;
        let full = |trie::Full| CompileError::Capacity {
            what: "trie nodes",
            capacity,
            field: Some("capacity.trieNodes"),
            advice: "join tenants' sources into fewer or shorter prefixes, preferably of 8, 16, 24 or 32 bits",
        };
        let trie = self.trie.build(&layout, capacity).map_err(full)?;
        let decisions = self.pairs.decide(&layout, policy)?;
        let tables = Tables {
            trie,
            tenants: records::tenant_records(&layout, &decisions.row_of_tenant).into(),
            services: records::service_records(&layout).into(),
            rows: decisions.rows,
            blocks: decisions.blocks,
            decisions: decisions.decisions,
            limits: decisions.limits,
            sets: decisions.sets,
            maglev: decisions.maglev,
            backends: records::backend_records(&layout).into(),
        };
        let directory = Directory::of(&layout);
        let slots = numbered.slots.clone();
        self.numbered = Some(numbered);
        Ok(Compiled {
            tables,
            slots,
            directory,
        })
    }
}

// === impl Layout ===

impl Layout<'_> {
    /// Classes whose new flows a pool refuses, a bit for each.
    fn shed_classes(&self, pool: &Pool) -> u64 {
        let classes = self.inputs.policy.classes.iter().enumerate();
        self.inputs.shed.get(&pool.name).map_or(0, |shed| {
            classes
                .filter(|(_, class)| shed.contains(&class.name))
                .fold(0, |bits, (index, _)| bits | class_bit(index))
        })
    }
}

/// The bit of a class. The language allows no more classes than there are bits.
const fn class_bit(index: usize) -> u64 {
    1 << (index % 64)
}

/// Compiles a policy from nothing.
///
/// # Errors
/// When this host cannot enforce it: no address for `Nat`, or a table that is too small.
pub fn compile(inputs: &Inputs<'_>) -> Result<Compiled, CompileError> {
    let policy = Arc::new(inputs.policy.clone());
    let inputs = Inputs {
        policy: &policy,
        ..*inputs
    };
    Cache::default().compile(&policy, &inputs)
}

/// The families of every service, each with the service's index in the policy.
fn halves(policy: &ResolvedPolicy) -> Vec<(usize, &Service, Family)> {
    let has = |service: &Service, family| {
        service
            .addresses
            .iter()
            .any(|address| Family::of(*address) == family)
    };
    let mut halves = Vec::new();
    for (index, service) in policy.services.iter().enumerate() {
        let families = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| has(service, *family));
        halves.extend(families.map(|family| (index, service, family)));
    }
    halves
}

fn lay_out<'a>(inputs: &Inputs<'a>, numbered: &Numbered, same_policy: bool) -> Layout<'a> {
    let policy = inputs.policy;
    let slots = &numbered.slots;
    let mut services: Vec<SlottedService<'a>> = halves(policy)
        .into_iter()
        .map(|(index, service, family)| {
            let slot = slots.services.slot(&slots::service_key(&service.name, family));
            SlottedService {
                slot,
                index,
                service,
                family,
            }
        })
        .collect();
    services.sort_by_key(|service| service.slot);
    let slotted = |pool: &'a Pool, backend: &'a Backend| SlottedBackend {
        slot: slots.backends.slot(&backend.name),
        pool,
        backend,
        status: inputs
            .backends
            .get(&backend.name)
            .copied()
            .unwrap_or(BackendStatus::unknown(backend)),
    };
    Layout {
        inputs: *inputs,
        tenant_slots: Arc::clone(&numbered.tenant_slots),
        rule_numbers: Arc::clone(&numbered.rule_numbers),
        groups: Arc::clone(&numbered.groups),
        names: numbered.names.clone(),
        same_policy,
        services,
        backends: policy
            .pools
            .iter()
            .map(|pool| {
                pool.backends
                    .iter()
                    .map(|backend| slotted(pool, backend))
                    .collect()
            })
            .collect(),
    }
}

/// An address as the records hold it.
#[must_use]
pub fn address_of(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => address::from_v4(u32::from(v4).to_be()),
        IpAddr::V6(v6) => address::from_octets(v6.octets()),
    }
}

#[cfg(test)]
mod tests;
