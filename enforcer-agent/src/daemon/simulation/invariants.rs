//! What must hold, whatever happens and whatever fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use enforcer_common::Reason;
use enforcer_common::abi::address::Address;
use enforcer_common::abi::config::LeaseRecord;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::decide::{Packet, Shape, TCP_SYN, judge};
use enforcer_common::schema::tenant_holder;

use super::script::{Step, policy};
use super::world::{World, difference};
use super::{ACTOR, INTERFACES, Simulation};
use crate::api::{ApiError, Protocol, Reply, Request, Role};
use crate::daemon::history::{BOUNDS, HistoryEntry};
use crate::daemon::persist::State;
use crate::pure::audit::Kind;
use crate::pure::compile::{self, BackendStatus, Exhausted, Inputs, Slots};
use crate::pure::explain::Question;
use crate::pure::policy::load_all;
use crate::pure::policy::resolved::LeaseExpiry;
use crate::pure::policy::schedule::closed_rules;
use crate::pure::policy::selection::Selection;
use crate::pure::tables::Tables;

/// After every limiter's debt, so that only the policy speaks.
const LATER_NS: u64 = 1 << 60;
/// The network of a tenant, or of nobody.
const SOURCES: [(Option<&str>, u8); 5] = [
    (Some("acme"), 1),
    (Some("globex"), 2),
    (Some("initech"), 3),
    (Some("hooli"), 4),
    (None, 9),
];
const SERVICE: [u8; 4] = [192, 0, 2, 10];
const DESTINATIONS: [[u8; 4]; 3] = [SERVICE, [10, 9, 1, 10], [198, 51, 100, 1]];

/// A probe packet's reason, and the address of the back end that it goes to.
type Verdict = (Reason, Option<Address>);

/// Everything that tables are compiled from.
type Compiled = (
    State,
    BTreeMap<String, BackendStatus>,
    BTreeSet<String>,
    Vec<IpAddr>,
    Selection,
    Governed,
);

/// Who has used up a quota, which pools shed which classes, and who is held to a share.
type Governed = (
    BTreeMap<String, Exhausted>,
    BTreeMap<String, BTreeSet<String>>,
    BTreeMap<String, u64>,
);

/// What was last seen to be right.
#[derive(Clone, Default)]
pub(super) struct Known {
    generation: u64,
    live: Tables,
    slots: Slots,
    history: BTreeMap<u64, Arc<HistoryEntry>>,
    /// Spares a compile where nothing changed.
    compiled: Option<(Compiled, Tables)>,
}

/// How things are before a request.
pub(super) struct Before {
    verdicts: Vec<Verdict>,
    state: State,
    statuses: BTreeMap<String, BackendStatus>,
    synced: usize,
    /// Whatever comes next may put into force what could not be until now.
    repairing: bool,
}

fn verdict(world: &World, source: u8, destination: [u8; 4], port: u16) -> Verdict {
    let question = Question {
        from: SocketAddr::new(IpAddr::from([10, 1, source, 1]), port),
        to: SocketAddr::new(IpAddr::from(destination), 8000),
        protocol: Protocol::Tcp,
    };
    let packet = Packet {
        key: question.key(),
        shape: Shape::Transport,
        tcp_flags: TCP_SYN,
        hop_limit: 64,
        bytes: 60,
        segment_bytes: 60,
    };
    let decision = judge(world, &packet, LATER_NS);
    let slot = decision.backend.checked_sub(1);
    let backend = slot.and_then(|slot| world.live().backends.get(slot as usize));
    (decision.reason, backend.map(|backend| backend.address))
}

/// The reason, apart from whether there is a back end at the moment.
fn right(reason: Reason) -> Reason {
    match reason {
        Reason::NoHealthyBackend => Reason::Allowed,
        other => other,
    }
}

/// What a tenant gets that opens a connection to the service.
pub(super) fn reason_of(simulation: &Simulation, tenant: &str) -> Reason {
    let source = SOURCES.iter().find(|(name, _)| *name == Some(tenant));
    let (_, source) = source.expect("every tenant has a network");
    verdict(&simulation.world(), *source, SERVICE, 4000).0
}

fn verdicts(world: &World) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (_, source) in SOURCES {
        for destination in DESTINATIONS {
            verdicts.extend((0..8).map(|port| verdict(world, source, destination, 4000 + port * 131)));
        }
    }
    verdicts
}

impl Simulation {
    pub(super) fn before(&self) -> Before {
        let world = self.world();
        Before {
            verdicts: verdicts(&world),
            state: self.core.state.clone(),
            statuses: self.core.fleet.statuses(),
            synced: world.synced,
            repairing: self.is_repairing(),
        }
    }

    /// What a tenant's first packet to the service would get.
    pub(super) fn verdict(&self, tenant: &str) -> Reason {
        let source = SOURCES.iter().find(|(name, _)| *name == Some(tenant));
        verdict(&self.world(), source.map_or(0, |(_, net)| *net), SERVICE, 4000).0
    }

    /// Whether something could not be put into force, which the next fold tries again.
    fn is_repairing(&self) -> bool {
        self.core.failing.contains_key("install")
    }

    pub(super) fn check_answer(&self, request: &Request, before: &Before, outcome: &Result<Reply, ApiError>) {
        let changes = request.role() == Role::Write;
        let world = self.world();
        let in_force = match outcome {
            Ok(_) => changes,
            Err(error) => error.message.starts_with("the change is in force, but"),
        };
        if in_force {
            self.check_changed(request);
        } else {
            assert_eq!(
                self.core.state, before.state,
                "{request:?} was not carried out: {outcome:?}"
            );
            assert_eq!(
                self.core.fleet.statuses(),
                before.statuses,
                "{request:?}: {outcome:?}"
            );
            let (now, was) = (verdicts(&world), &before.verdicts);
            if self.is_repairing() {
                // Between a change in place that failed and its repair, new flows go by old weights or new ones, and a
                // weight may be the last one of a set. Who may use what is as before.
                let rights =
                    |all: &[Verdict]| all.iter().map(|(reason, _)| right(*reason)).collect::<Vec<_>>();
                assert!(
                    before.repairing || rights(&now) == rights(was),
                    "{request:?}: {outcome:?}"
                );
            } else {
                assert!(before.repairing || now == *was, "{request:?}: {outcome:?}");
            }
        }
        if changes && outcome.is_ok() {
            let record = &world.audit[world.synced - 1];
            let of_request =
                record.change.as_ref().map(|change| change.what.as_str()) == Some(request.name());
            assert!(
                world.synced > before.synced && record.kind == Kind::Control && of_request,
                "{request:?} was answered before it was recorded: {record:?}"
            );
            assert_eq!(record.actor, Some(ACTOR));
        }
        if let (Request::Detach, Err(_)) = (request, outcome) {
            let all = INTERFACES
                .iter()
                .all(|each| world.kernel.attached.contains(*each));
            assert!(
                in_force || all || self.core.failing.contains_key("detach"),
                "a detach failed midway and nothing says so"
            );
        }
        if let (Request::PolicyApply { sources, .. }, Ok(_)) = (request, outcome) {
            let is_right = |number| policy(number).1 && *policy(number).0 == *sources[0].text;
            assert!(
                (0..super::script::POLICIES).any(is_right),
                "a wrong policy was accepted"
            );
        }
    }

    fn check_changed(&self, request: &Request) {
        let (state, done) = (
            &self.core.state,
            match request {
                Request::PolicyApply { sources, .. } => self
                    .core
                    .state
                    .policy
                    .as_ref()
                    .is_some_and(|applied| applied.sources == *sources),
                Request::PolicyRollback { generation } => self.core.active.as_ref().is_some_and(|active| {
                    active
                        .rollback_of
                        .is_some_and(|of| generation.is_none_or(|generation| of == generation))
                }),
                Request::TenantSuspend { name } => self.core.state.suspended.contains(name),
                Request::TenantResume { name } => !self.core.state.suspended.contains(name),
                Request::BackendDrain { name } => self.core.state.draining.contains(name),
                Request::BackendUndrain { name } => !self.core.state.draining.contains(name),
                Request::Detach => self.core.detached,
                // What the programs were told is looked at in the tests of captures.
                Request::CaptureBegin(_) | Request::CaptureEnd { .. } => true,
                _ => false,
            },
        );
        assert!(done, "{request:?} is said to be in force: {state:?}");
    }

    /// Every decision that was only counted is recorded, unless the log lost the record, and counted that.
    pub(super) fn check_fold(&mut self, audited_before: usize) {
        let (told, failed) = {
            let world = self.world();
            let new = world.audit[audited_before..].iter();
            let aggregated = new.filter(|entry| entry.kind == Kind::Aggregated);
            (
                aggregated.filter_map(|entry| entry.count).sum::<u64>(),
                world.failed.clone(),
            )
        };
        if failed.contains(&"tally") {
            // That may have been a look for quotas.
            assert!(
                told == 0 || told == self.unrecorded,
                "a look that failed says nothing"
            );
            self.unrecorded -= told;
        } else {
            assert!(failed.contains(&"record") || told == self.unrecorded);
            self.unrecorded = 0;
        }
    }

    /// After every step.
    pub(super) fn check(&mut self, step: &Step) {
        let repairing = self.is_repairing();
        let failed = self.world().failed.clone();
        let context = format!("after {step:?}, in which {failed:?} failed");
        assert!(
            !self.core.unsaved || repairing,
            "nobody saves the state {context}"
        );
        if !self.core.unsaved {
            assert_eq!(self.world().stored, self.core.state, "{context}");
        }
        self.check_history(&context);
        self.check_lease(&context);
        let wanted = self.wanted();
        let (generation, live) = {
            let world = self.world();
            (world.kernel.generation, world.live().clone())
        };
        assert!(generation >= self.known.generation, "{context}");
        let Some(wanted) = wanted.filter(|_| generation != 0) else {
            assert!(
                generation == 0 && (repairing || self.core.active.is_none()),
                "{context}"
            );
            return;
        };
        if let Some(what) = difference(&live, &wanted, true) {
            assert!(repairing, "{what} is not what it should be {context}");
            let known = &self.known.live;
            // A change in place that failed leaves some weights old and some new; nothing else may be.
            let is_whole = self.core.installer.live(generation).is_some();
            assert_eq!(
                difference(&live, known, is_whole),
                None,
                "neither the old nor the new {context}"
            );
            self.check_suspended(&context);
            return;
        }
        self.check_slots(&context);
        self.check_suspended(&context);
        self.check_links(&context);
        (self.known.generation, self.known.live) = (generation, live);
    }

    /// The deadline is as the policy in force says, unless something says that it could not be put off.
    fn check_lease(&self, context: &str) {
        let Some(active) = &self.core.active else { return };
        if self.core.failing.contains_key("lease") || self.is_repairing() {
            return;
        }
        let world = self.world();
        let lease = world.kernel.lease.0;
        if active.policy.defaults.on_lease_expiry == LeaseExpiry::Hold {
            assert_eq!(lease, LeaseRecord::ZERO, "{context}");
        } else {
            // No step takes longer than this.
            let at_least_ns = world.now_ns + 3_000_000_000;
            assert!(
                lease.everything_until_ns >= at_least_ns,
                "{lease:?} at {} {context}",
                world.now_ns
            );
        }
    }

    /// The policy in force is the newest one of the history, unless something says that it could not be kept; and no
    /// entry ever changes.
    fn check_history(&mut self, context: &str) {
        let history = self.world().history.clone();
        let newest = history.values().next_back();
        if !self.core.failing.contains_key("policy history") {
            let kept = newest.map(|entry| &entry.policy);
            assert_eq!(kept, self.core.state.policy.as_ref(), "{context}");
            let digest = newest.map(|entry| entry.digest.clone());
            assert_eq!(digest, self.core.digest(), "{context}");
        }
        for (number, entry) in &self.known.history {
            let now = history.get(number);
            assert!(
                now.is_none_or(|now| Arc::ptr_eq(now, entry) || now == entry),
                "entry {number} is another one {context}"
            );
        }
        let surplus = self.core.history.surplus();
        // One that was written although the writer was told that it failed is found by the next one.
        assert!(history.len() <= BOUNDS.entries + surplus + 1, "{context}");
        self.known.history = history;
    }

    /// What another agent would compile from the state file, with what is known of the back ends now.
    fn wanted(&mut self) -> Option<Tables> {
        let core = &self.core;
        let state = if core.unsaved {
            core.state.clone()
        } else {
            self.world().stored.clone()
        };
        // What could not be put into force is wanted by the clock, and not by when it was last tried.
        let now = core.clock.wall();
        let closed = closed_rules(&core.active.as_ref()?.policy, now);
        let (statuses, failed_pools) = (core.fleet.statuses(), core.fleet.failed_pools());
        let governed = (core.exhausted(), core.fleet.shed(), core.shares.fairness.rates());
        let addresses = core.host.local_addresses.clone();
        let inputs: Compiled = (state, statuses, failed_pools, addresses, closed, governed);
        if let Some((same, tables)) = &self.known.compiled
            && *same == inputs
        {
            return Some(tables.clone());
        }
        let (state, statuses, failed_pools, _, closed, (exhausted, shed, fair_rates)) = &inputs;
        let applied = state.policy.as_ref()?;
        let policy = load_all(&applied.sources)
            .into_result()
            .expect("what is stored is right");
        let compiled = compile::compile(&Inputs {
            policy: &policy,
            slots: &state.slots,
            host: &core.host,
            backends: statuses,
            failed_pools,
            suspended: &state.suspended,
            closed_rules: closed,
            exhausted,
            shed,
            fair_rates,
        })
        .expect("what is stored compiles");
        assert!(
            statuses
                .iter()
                .all(|(name, status)| status.draining == state.draining.contains(name))
        );
        self.known.compiled = Some((inputs, compiled.tables.clone()));
        Some(compiled.tables)
    }

    /// A slot of the kernel is not given to another name by the change that freed it, and a new tenant owes nothing.
    fn check_slots(&mut self, context: &str) {
        let (old, new) = (&self.known.slots, &self.core.state.slots);
        for (old, new) in [
            (&old.tenants, &new.tenants),
            (&old.services, &new.services),
            (&old.backends, &new.backends),
            (&old.rules, &new.rules),
        ] {
            let owners: BTreeMap<u32, &str> = old.iter().map(|(name, slot)| (slot, name)).collect();
            for (name, slot) in new.iter() {
                let owner = owners.get(&slot);
                assert!(
                    owner.is_none_or(|owner| *owner == name),
                    "slot {slot} of {owner:?} went to {name} {context}"
                );
            }
        }
        let world = self.world();
        for (name, slot) in new.tenants.iter() {
            let is_new = old.tenants.get(name).is_none() && self.known.generation != 0;
            let owes = |limiter: Limiter| {
                let word = world.kernel.limiters.get(&limiter.index(tenant_holder(slot)));
                word.is_some_and(|due_ns| *due_ns != 0)
            };
            assert!(
                !is_new || !Limiter::ALL.into_iter().any(owes),
                "{name} owes what another spent {context}"
            );
        }
        drop(world);
        self.known.slots = self.core.state.slots.clone();
    }

    /// The kernel knows the links as the agent does, unless that could not be written and is tried again.
    fn check_links(&self, context: &str) {
        let (world, core) = (self.world(), &self.core);
        if core.detached || core.failing.contains_key("MTUs of links") {
            return;
        }
        assert_eq!(world.kernel.links, core.host.links, "links {context}");
        let smallest_bytes = world.kernel.host.map(|host| host.smallest_mtu_bytes);
        assert_eq!(
            smallest_bytes,
            Some(core.host.links.values().copied().min().unwrap_or(0)),
            "the smallest link {context}"
        );
    }

    fn check_suspended(&self, context: &str) {
        let world = self.world();
        let policy = self.core.active.as_ref().map(|active| &active.policy);
        let tenants = policy.iter().flat_map(|policy| &policy.tenants);
        for tenant in tenants.filter(|tenant| self.core.state.suspended.contains(&tenant.name)) {
            let source = SOURCES.iter().find(|(name, _)| *name == Some(&tenant.name));
            let (_, source) = source.expect("every tenant has a network");
            let (reason, _) = verdict(&world, *source, SERVICE, 4000);
            assert_eq!(
                reason,
                Reason::Suspended,
                "{} is suspended {context}",
                tenant.name
            );
        }
    }
}
