//! One of the two policies that are compared: compiled, with its own flows and limiters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;

use enforcer_common::abi::address::FlowKey;
use enforcer_common::decide::Decision;
use enforcer_common::parse::Frame;
use jiff::Timestamp;

use super::{SWEEP_INTERVAL_NS, Surroundings};
use crate::pure::compile::{
    BackendStatus, CompileError, Compiled, Directory, HostFacts, Inputs, Slots, compile,
};
use crate::pure::neutral::{NAT_V4, NAT_V6, NEXT_HOP};
use crate::pure::policy::ResolvedPolicy;
use crate::pure::policy::resolved::{Backend, Limits};
use crate::pure::policy::schedule::{closed_rules, next_change};
use crate::pure::policy::selection::Selection;
use crate::pure::replay::Replay;

/// Where packets come in.
const INGRESS_IFINDEX: u32 = 2;

/// A policy and the state that it would have left.
#[derive(Debug)]
pub(super) struct Side {
    policy: ResolvedPolicy,
    host: HostFacts,
    slots: Slots,
    /// One more whenever a rule opens or closes.
    generation: u64,
    /// The times, in nanoseconds since 1970, for which the tables hold: until a rule opens or closes.
    holds: Range<u64>,
    /// Why the tables could not follow a schedule.
    pub(super) stuck: Option<CompileError>,
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) directory: Directory,
    pub(super) replay: Replay,
    /// By tenant slot; tenants without any limit are left out.
    limits: BTreeMap<u32, Limits>,
    /// Where back ends listen.
    servers: BTreeSet<SocketAddr>,
    /// Whole intervals since the first packet after which this side was swept.
    swept: u64,
}

// === impl Side ===

impl Side {
    pub(super) fn new(policy: &ResolvedPolicy, surroundings: &Surroundings) -> Result<Self, CompileError> {
        let host = HostFacts {
            nat_v4: surroundings.host.nat_v4.or(Some(NAT_V4)),
            nat_v6: surroundings.host.nat_v6.or(Some(NAT_V6)),
            ..surroundings.host.clone()
        };
        // With every rule open, until the first packet tells the time.
        let Compiled {
            tables,
            directory,
            slots,
        } = compile_for(policy, &host, &Slots::default(), &Selection::default())?;
        let mut replay = Replay::new(surroundings.flow_entries, surroundings.timeouts);
        let generation = 1;
        replay.install(tables, generation, host.record());
        let has_schedules = policy.rules.iter().any(|rule| rule.schedule.is_some());
        let limits = directory.tenants.iter().filter_map(|(slot, name)| {
            // Sorted by name.
            let at = policy
                .tenants
                .binary_search_by(|tenant| tenant.name.cmp(name))
                .ok()?;
            let limits = &policy.tenants[at].limits;
            has_limits(limits).then(|| (*slot, limits.clone()))
        });
        Ok(Self {
            policy: policy.clone(),
            host,
            slots,
            generation,
            holds: if has_schedules { 0..0 } else { 0..u64::MAX },
            stuck: None,
            name: policy.name.clone(),
            digest: policy.digest().to_string(),
            limits: limits.collect(),
            servers: directory
                .backends
                .values()
                .map(|backend| SocketAddr::new(backend.address, backend.port))
                .collect(),
            directory,
            replay,
            swept: 0,
        })
    }

    /// Opens and closes rules by a time, in nanoseconds since 1970. It may go back.
    pub(super) fn set_time(&mut self, now_ns: u64) {
        if self.holds.contains(&now_ns) {
            return;
        }
        let Ok(now) = Timestamp::from_nanosecond(now_ns.into()) else {
            return;
        };
        let until_ns =
            next_change(&self.policy, now).and_then(|until| u64::try_from(until.as_nanosecond()).ok());
        self.holds = now_ns..until_ns.unwrap_or(u64::MAX);
        let closed = closed_rules(&self.policy, now);
        match compile_for(&self.policy, &self.host, &self.slots, &closed) {
            Ok(compiled) => {
                self.generation += 1;
                self.slots = compiled.slots;
                self.directory = compiled.directory;
                self.replay
                    .install(compiled.tables, self.generation, self.host.record());
            }
            Err(error) => self.stuck = Some(error),
        }
    }

    /// Judges a packet, and does to flows and limiters what the data path would.
    pub(super) fn judge(&mut self, direction: u32, frame: &Frame, now_ns: u64) -> Decision {
        self.set_time(now_ns);
        self.replay
            .judge(direction, frame, INGRESS_IFINDEX, now_ns)
            .decision
    }

    /// Sweeps as often as the agent does. Between two packets nothing is seen of the sweeps but the last.
    pub(super) fn sweep_until(&mut self, since_first_ns: u64, first_ns: u64) {
        let intervals = since_first_ns / SWEEP_INTERVAL_NS;
        if intervals > self.swept {
            self.swept = intervals;
            self.replay.sweep(first_ns + intervals * SWEEP_INTERVAL_NS);
        }
    }

    /// The client's 5-tuple of the flow that a packet with this one answers.
    pub(super) fn client_of_answer(&self, key: &FlowKey) -> Option<FlowKey> {
        self.replay.replies().get(key).map(|reply| reply.forward)
    }

    /// The limits of a tenant's slot; `None` if it has none.
    pub(super) fn limits_of(&self, tenant: u32) -> Option<&Limits> {
        self.limits.get(&tenant)
    }

    pub(super) fn is_server(&self, address: &SocketAddr) -> bool {
        self.servers.contains(address)
    }
}

/// All back ends healthy and reachable, nobody suspended or over a quota, nothing shed.
fn compile_for(
    policy: &ResolvedPolicy,
    host: &HostFacts,
    slots: &Slots,
    closed_rules: &Selection,
) -> Result<Compiled, CompileError> {
    let reachable = |backend: &Backend| BackendStatus {
        next_hop: Some(NEXT_HOP),
        ..BackendStatus::unknown(backend)
    };
    let backends = policy.pools.iter().flat_map(|pool| &pool.backends);
    compile(&Inputs {
        policy,
        slots,
        host,
        backends: &backends
            .map(|backend| (backend.name.clone(), reachable(backend)))
            .collect(),
        failed_pools: &BTreeSet::new(),
        suspended: &BTreeSet::new(),
        closed_rules,
        exhausted: &BTreeMap::new(),
        shed: &BTreeMap::new(),
    })
}

fn has_limits(limits: &Limits) -> bool {
    let Limits {
        new_connections_per_second,
        packets_per_second,
        bytes_per_second,
        response_bytes_per_second,
        concurrent_connections,
        burst_ns: _,
    } = limits;
    [
        new_connections_per_second,
        packets_per_second,
        bytes_per_second,
        response_bytes_per_second,
    ]
    .into_iter()
    .any(Option::is_some)
        || concurrent_connections.is_some()
}
