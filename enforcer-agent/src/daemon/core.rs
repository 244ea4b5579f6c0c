//! What is enforced, and how a change of anything gets into the kernel.
//!
//! Every change takes the same way: change the inputs, compile, write the state file, install, record. If a step fails,
//! the inputs are put back, the state file is written back, and what was enforced before still is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use enforcer_common::abi::config::LeaseRecord;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::{backend_connections, tenant_holder};
use tokio::sync::watch;
use tracing::{info, warn};

use super::captures::Captures;
use super::counters::Unrecorded;
use super::history::{self, History, HistoryEntry};
use super::hours::Hours;
use super::persist::{AppliedPolicy, State, StateError};
use super::quotas::Quotas;
use super::shares::Shares;
use super::{Event, records};
use crate::adapters::dataplane::{Attachment, DataplaneError, Swept};
use crate::adapters::neighbours::{NextHop, NextHopError};
use crate::api::{ApiError, ErrorCode};
use crate::config::Config;
use crate::install::{InstallError, Installed, Installer};
use crate::ports::{AuditSink, Clock, Dataplane, HistoryStore, StateStore, Watcher};
use crate::pure::audit::{Change, Kind};
use crate::pure::compile::{self, CompileError, Compiled, Directory, HostFacts, Inputs, Slots};
use crate::pure::fleet::Fleet;
use crate::pure::policy::selection::Selection;
use crate::pure::policy::{self, Diagnostic, Outcome, ResolvedPolicy};
use crate::pure::tables::Tables;
use crate::pure::telemetry::GpuSample;
use crate::pure::weights::Reading;

/// The warning of a daemon that enforces nothing yet.
pub(super) const NO_POLICY: &str = "no policy is in force: apply one with `enforcer-agent policy apply FILE`";
/// Key of the warning that what is wanted could not be put into force: the next fold tries again.
const INSTALL: &str = "install";
/// Key of the warning that the policy in force is not in the history: the next fold tries again.
pub(super) const HISTORY: &str = "policy history";
/// Records that are written in one step of bringing the two banks in line: a millisecond's worth.
const CATCH_UP_RECORDS: usize = 1024;
/// Generations whose policy digest is remembered.
const MAX_DIGESTS: usize = 1024;

/// The policy in force.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) policy: Arc<ResolvedPolicy>,
    pub(super) digest: String,
    pub(super) applied: AppliedPolicy,
    pub(super) warnings: Vec<Diagnostic>,
    /// The generation whose policy it brought back.
    pub(super) rollback_of: Option<u64>,
}

/// Why a change was not put into force.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Install(#[from] InstallError<DataplaneError>),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

/// The world outside, as far as the loop touches it.
pub(super) struct Outside {
    pub(super) dataplane: Box<dyn Dataplane>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) audit: Box<dyn AuditSink>,
    pub(super) store: Box<dyn StateStore>,
    pub(super) history: Box<dyn HistoryStore>,
    pub(super) watcher: Box<dyn Watcher>,
}

/// The daemon's state.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) dataplane: Box<dyn Dataplane>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) store: Box<dyn StateStore>,
    /// Whether the state file may hold something else than `state`.
    pub(super) unsaved: bool,
    pub(super) history: History,
    /// The generation that was live when that could last be read.
    pub(super) live: u64,
    pub(super) installer: Installer,
    /// What the last policy, and the last compile, left for the next.
    pub(super) loader: policy::Loader,
    pub(super) digester: policy::Digester,
    pub(super) cache: compile::Cache,
    /// Whether the bank that is not live may differ from the live one.
    pub(super) behind: bool,
    pub(super) fleet: Fleet,
    pub(super) host: HostFacts,
    pub(super) state: State,
    pub(super) active: Option<Active>,
    /// The policy that was in force before, until the next fold.
    pub(super) retired: Option<Active>,
    /// Of the policy in force.
    pub(super) hours: Hours,
    /// What was last written to the map `LEASE`.
    pub(super) lease: Option<LeaseRecord>,
    pub(super) quotas: Quotas,
    pub(super) shares: Shares,
    pub(super) directory: Directory,
    /// Digests of the policies of the last generations: flows and events outlive the one that they were judged under.
    pub(super) digests: BTreeMap<u64, String>,
    pub(super) audit: Box<dyn AuditSink>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) started_ns: u64,
    pub(super) open_flows: u64,
    /// `Err`: why there is none.
    pub(super) nvml: Result<u32, String>,
    /// The last error of each background task.
    pub(super) failing: BTreeMap<&'static str, String>,
    pub(super) warnings: Vec<String>,
    pub(super) unrecorded: Unrecorded,
    pub(super) captures: Captures,
    pub(super) watcher: Box<dyn Watcher>,
    /// Whether a peer had everything taken away: nothing is left to look after.
    pub(super) detached: bool,
    pub(super) destinations: watch::Sender<Vec<(String, IpAddr)>>,
}

impl Core {
    /// The live generation; the last one known if it cannot be read.
    pub(super) fn generation(&self) -> u64 {
        self.dataplane.generation().unwrap_or(self.live)
    }

    pub(super) fn digest(&self) -> Option<String> {
        self.active.as_ref().map(|active| active.digest.clone())
    }

    /// The digest of the policy of a generation; `None` if that is too long ago, or was before this agent's time.
    pub(super) fn digest_of(&self, generation: u64) -> Option<String> {
        self.digests.get(&generation).cloned()
    }

    fn remember_digest(&mut self, generation: u64) {
        if let Some(active) = &self.active {
            self.digests.insert(generation, active.digest.clone());
        }
        while self.digests.len() > MAX_DIGESTS {
            self.digests.pop_first();
        }
    }

    pub(super) fn destinations(&self) -> watch::Receiver<Vec<(String, IpAddr)>> {
        self.destinations.subscribe()
    }

    pub(super) fn nvml_present(&mut self) {
        self.nvml = Ok(0);
    }

    pub(super) fn nvml_absent(&mut self, reason: String) {
        info!(reason, "no local GPUs are watched");
        self.nvml = Err(reason);
    }

    pub(super) fn watch_destinations(&mut self) {
        let destinations = self.active.iter().flat_map(|active| {
            let backends = active.policy.pools.iter().flat_map(|pool| &pool.backends);
            // A proxy on this host has no next hop.
            backends.filter(|backend| !active.policy.stays_here(backend.address))
        });
        let destinations = destinations
            .map(|backend| (backend.name.clone(), backend.address))
            .collect();
        self.destinations.send_replace(destinations);
        if let Some(active) = &self.active {
            self.watcher.follow(&active.policy);
        }
    }

    /// Compiles what is wanted now and puts it into force, if anything differs from what is.
    pub(super) fn reinstall(&mut self) -> Result<Option<Installed>, ChangeError> {
        let Some(active) = &self.active else {
            self.save_if_needed()?;
            self.failing.remove(INSTALL);
            return Ok(None);
        };
        let hours = Hours::of(&active.policy, self.clock.wall());
        let compiled = self.cache.compile(
            &active.policy,
            &Inputs {
                policy: &active.policy,
                slots: &self.state.slots,
                host: &self.host,
                backends: &self.fleet.statuses(),
                failed_pools: &self.fleet.failed_pools(),
                suspended: &self.state.suspended,
                closed_rules: hours.closed(),
                exhausted: &self.exhausted(),
                shed: &self.fleet.shed(),
                fair_rates: &self.shares.fairness.rates(),
            },
        )?;
        self.live = self.dataplane.generation()?;
        let slots = std::mem::replace(&mut self.state.slots, compiled.slots);
        self.unsaved |= slots != self.state.slots;
        let outcome = self
            .open_accounts()
            .map_err(ChangeError::from)
            .and_then(|()| self.put_into_force(compiled.tables, &slots));
        if outcome.is_ok() {
            self.directory = compiled.directory;
            self.failing.remove(INSTALL);
            self.begin_hours(hours);
            self.quotas_in_force();
            self.renew_lease();
        } else {
            self.unsaved |= slots != self.state.slots;
            self.state.slots = slots;
        }
        outcome
    }

    /// What a policy would compile to now, at a time at which some of its rules are closed.
    pub(super) fn compile(
        &self,
        policy: &ResolvedPolicy,
        closed_rules: &Selection,
    ) -> Result<Compiled, CompileError> {
        compile::compile(&Inputs {
            policy,
            slots: &self.state.slots,
            host: &self.host,
            backends: &self.fleet.statuses(),
            failed_pools: &self.fleet.failed_pools(),
            suspended: &self.state.suspended,
            closed_rules,
            exhausted: &self.exhausted(),
            shed: &self.fleet.shed(),
            fair_rates: &self.shares.fairness.rates(),
        })
    }

    /// The state file goes first: slots that the kernel uses and nobody remembers would be given to others.
    fn put_into_force(
        &mut self,
        tables: Tables,
        old_slots: &Slots,
    ) -> Result<Option<Installed>, ChangeError> {
        if self.live != 0 && self.installer.live(self.live) == Some(&tables) {
            self.save_if_needed()?;
            return Ok(None);
        }
        // A slot may have belonged to another tenant, whose debt is not the new one's. Before the state file, since an
        // agent that starts over would not know from it that these slots are new.
        let Slots { tenants, limits, .. } = &self.state.slots;
        let tenants = tenants
            .iter()
            .filter(|(name, _)| old_slots.tenants.get(name).is_none());
        let groups = limits
            .iter()
            .filter(|(key, _)| old_slots.limits.get(key).is_none());
        let new_holders = tenants
            .map(|(_, tenant)| tenant_holder(tenant))
            .chain(groups.map(|(_, group)| group));
        for holder in new_holders {
            for limiter in Limiter::ALL {
                self.dataplane.set_limiter(holder, limiter, 0)?;
            }
        }
        self.save_if_needed()?;
        let installed = self.installer.install(&mut *self.dataplane, tables)?;
        self.live = installed.generation;
        self.behind = true;
        self.remember_digest(installed.generation);
        Ok(Some(installed))
    }

    /// A step towards two banks that hold the same, so that the next change writes its own difference only. If it fails,
    /// that change writes the bank whole.
    pub(super) fn catch_up(&mut self) {
        let step = self.installer.catch_up(&mut *self.dataplane, CATCH_UP_RECORDS);
        self.behind = step.unwrap_or_else(|error| {
            warn!(%error, "the bank that is not live");
            false
        });
    }

    fn save_if_needed(&mut self) -> Result<(), StateError> {
        if self.unsaved {
            self.store.store(&self.state)?;
            self.unsaved = false;
        }
        Ok(())
    }

    /// Puts another policy, or an edited state, into force, or takes the change back. `Ok(None)`: nothing that is
    /// enforced differs.
    fn change(
        &mut self,
        policy: Option<Active>,
        edit: impl FnOnce(&mut State, &mut Fleet),
    ) -> Result<Option<Installed>, ChangeError> {
        // The back ends too: following a policy forgets those that it lacks, and an undrain acknowledges a fault.
        let before = (self.state.clone(), self.fleet.clone(), self.unsaved);
        edit(&mut self.state, &mut self.fleet);
        let replaced = policy.map(|active| {
            let old = self.active.as_ref().map(|active| &*active.policy);
            self.fleet.follow(old, &active.policy, &self.state.draining);
            self.state.policy = Some(active.applied.clone());
            self.active.replace(active)
        });
        self.unsaved = true;
        match self.reinstall() {
            Ok(installed) => {
                // To give back the memory of a large policy takes longer than its caller should wait.
                self.retired = replaced.flatten();
                Ok(installed)
            }
            Err(error) => {
                (self.state, self.fleet, self.unsaved) = before;
                if let Some(active) = replaced {
                    self.active = active;
                }
                // Nothing was written before it had compiled.
                if !matches!(error, ChangeError::Compile(_)) {
                    self.take_back();
                }
                Err(error)
            }
        }
    }

    /// The state file may hold what was taken back, and a change in place may have been made by half.
    fn take_back(&mut self) {
        self.unsaved = true;
        self.refresh("a change was taken back");
    }

    /// Reads a policy that is to be put into force.
    pub(super) fn activate(&mut self, applied: AppliedPolicy) -> Result<Active, Vec<Diagnostic>> {
        let Outcome { policy, diagnostics } = self.loader.load_all(&applied.sources);
        let Some(policy) = policy.map(Arc::new) else {
            return Err(diagnostics);
        };
        Ok(Active {
            digest: self.digester.digest(&policy).to_string(),
            policy,
            applied,
            warnings: diagnostics,
            rollback_of: None,
        })
    }

    /// Makes a text the policy; of a rollback, the generation that had it. `Ok(None)`: nothing that is enforced differs.
    pub(super) fn apply(
        &mut self,
        applied: AppliedPolicy,
        rollback_of: Option<u64>,
    ) -> Result<Option<Installed>, ApiError> {
        let mut active = self
            .activate(applied)
            .map_err(|diagnostics| invalid(&diagnostics))?;
        active.rollback_of = rollback_of;
        let installed = self
            .change(Some(active), |_, _| {})
            .map_err(|error| ApiError::new(ErrorCode::Refused, error.to_string()))?;
        self.warnings.retain(|warning| warning != NO_POLICY);
        self.watch_destinations();
        self.keep_in_history();
        Ok(installed)
    }

    /// Keeps the policy in force in the history, unless it is there. It stays in force if that fails.
    pub(super) fn keep_in_history(&mut self) {
        let Some(active) = &self.active else { return };
        let is_kept = |entry: &history::Summary| entry.is_of(&active.applied, &active.digest);
        let kept = if self.history.entries().last().is_some_and(is_kept) {
            Ok(())
        } else {
            self.history.keep(HistoryEntry::new(
                self.live,
                active.policy.name.clone(),
                active.digest.clone(),
                active.rollback_of,
                active.applied.clone(),
            ))
        };
        match kept {
            Ok(()) => {
                self.failing.remove(HISTORY);
            }
            Err(error) => {
                if self.failing.insert(HISTORY, error.to_string()).is_none() {
                    warn!(%error, "the policy is in force but not in the history");
                }
            }
        }
    }

    /// Puts what an operator set into force, or takes the change back.
    pub(super) fn change_state(&mut self, edit: impl FnOnce(&mut State, &mut Fleet)) -> Result<(), ApiError> {
        self.change(None, edit)
            .map(|_| ())
            .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))
    }

    /// Takes one event of the background tasks.
    pub(super) async fn happened(&mut self, event: Event) {
        match event {
            Event::Probed { backend, result } => {
                if let Some(change) = self.fleet.probed(&backend, result.passed()) {
                    let cause = format!("{} probes in a row; the last one {result}", change.probes);
                    info!(backend, from = ?change.from, to = ?change.to, "health");
                    let change = Change {
                        what: "health".to_owned(),
                        from: Some(format!("{:?}", change.from)),
                        to: Some(format!("{:?}", change.to)),
                        causes: vec![cause],
                    };
                    self.note(Kind::BackendHealth, Some(backend), change);
                    self.judge_pools();
                    self.refresh("health");
                }
            }
            Event::Engine { backend, reading } => self.fleet.engine_said(&backend, reading),
            Event::Gpu { backend, reading } => self.fleet.gpu_said(&backend, reading),
            Event::LocalGpu(sample) => self.local_gpu(sample),
            Event::Network(seen) => self.network_seen(seen),
            Event::Swept(swept) => self.swept(&swept),
            Event::Failing { what, error } => {
                if self.failing.insert(what, error.clone()).as_ref() != Some(&error) {
                    warn!(what, error, "failing");
                }
            }
        }
    }

    /// The GPUs of this very host count for the back ends that the configuration names.
    fn local_gpu(&mut self, sample: GpuSample) {
        self.nvml = Ok(sample.devices);
        for backend in &self.config.local_gpu_backends {
            self.fleet.gpu_said(backend, Reading::Fresh(sample));
        }
    }

    pub(super) fn routes(
        &mut self,
        hops: Vec<(String, Result<NextHop, NextHopError>)>,
        local_addresses: Vec<IpAddr>,
    ) {
        self.failing.remove("routes and neighbours");
        let mut changed = self.host.local_addresses != local_addresses;
        self.host.local_addresses = local_addresses;
        let mut missing = None;
        for (name, hop) in hops {
            match hop {
                Ok(hop) => changed |= self.fleet.routed(&name, Some(link_of(&hop))),
                Err(NextHopError::Unresolved { .. }) => {}
                Err(error) => missing = missing.or(Some(format!("{name}: {error}"))),
            }
        }
        match missing {
            Some(error) => {
                if self.failing.insert("next hops", error.clone()).is_none() {
                    warn!(error, "next hops");
                }
            }
            None => drop(self.failing.remove("next hops")),
        }
        if changed {
            self.refresh("next hops");
        }
    }

    fn swept(&mut self, swept: &Swept) {
        self.failing.remove("flow sweeper");
        self.open_flows = swept.open;
        for closed in &swept.closed {
            let digest = self.digest_of(closed.flow.generation);
            self.audit.record(records::flow_closed(
                closed,
                &self.directory,
                digest,
                &*self.clock,
            ));
        }
    }

    /// Folds telemetry into weights, once a second, and looks after everything else that is due then.
    pub(super) fn fold(&mut self) {
        self.retired = None;
        self.renew_lease();
        let now_ns = self.clock.monotonic_ns();
        let slots = self.directory.backends.iter();
        let connections = slots
            .filter_map(|(slot, backend)| {
                let open = self.dataplane.open_connections(backend_connections(*slot)).ok()?;
                Some((backend.name.clone(), open))
            })
            .collect();
        let mut moved = self.is_hour_over();
        for change in self.fleet.fold(now_ns, &connections) {
            moved |= change.from != change.to;
            let mut causes: Vec<String> = change.causes.iter().map(ToString::to_string).collect();
            if change.drain_refused {
                causes.push("half of the pool is out already, so it keeps a small share".to_owned());
            }
            let (from, to) = (Some(change.from.to_string()), Some(change.to.to_string()));
            let change_record = Change {
                what: "weight".to_owned(),
                from,
                to,
                causes,
            };
            self.note(Kind::WeightChange, Some(change.backend), change_record);
        }
        if self.judge_pools()
            | self.judge_shedding()
            | self.look_at_quotas()
            | self.share_out()
            | moved
            | self.is_install_failing()
        {
            self.refresh("weights");
        }
        self.store_usage(false);
        if self.failing.contains_key(HISTORY) {
            self.keep_in_history();
        }
        self.record_unrecorded();
        self.look_at_capture();
        self.behind = true;
        self.catch_up();
    }

    /// Puts into force what followed from something that nobody asked for; a failure is tried again with the next fold.
    pub(super) fn refresh(&mut self, why: &'static str) {
        match self.reinstall() {
            Ok(Some(installed)) if !installed.in_place => {
                info!(
                    generation = installed.generation,
                    writes = installed.writes,
                    why,
                    "new generation"
                );
            }
            Ok(_) => {}
            Err(error) => {
                if self.failing.insert(INSTALL, error.to_string()).is_none() {
                    warn!(%error, why, "what was enforced before still is");
                }
            }
        }
    }

    /// Whether what is wanted could not be put into force.
    pub(super) fn is_install_failing(&self) -> bool {
        self.failing.contains_key(INSTALL)
    }

    /// The end of the daemon. Everything that is pinned stays.
    pub(super) async fn stop(mut self) {
        // The whole term for whoever starts the next agent.
        self.renew_lease();
        if !self.detached {
            self.look_at_quotas();
        }
        self.store_usage(true);
        self.abandon_capture("the agent ends");
        let entry = self.entry(Kind::Stopped);
        self.take_kernel_events(usize::MAX >> 1);
        if let Err(error) = self.audit.record_synced(entry).await {
            warn!(%error, "the last audit record was not written");
        }
    }
}

fn invalid(diagnostics: &[Diagnostic]) -> ApiError {
    let message = format!(
        "the policy was not applied, what was enforced before still is:\n{}",
        policy::diagnostic::render_all(diagnostics, false)
    );
    ApiError::new(ErrorCode::PolicyInvalid, message).with("diagnostics", diagnostics)
}

pub(super) fn link_of(hop: &NextHop) -> compile::NextHop {
    compile::NextHop {
        ifindex: hop.ifindex,
        own_mac: hop.source_mac.0,
        next_hop_mac: hop.next_hop_mac.0,
        mtu_bytes: hop.mtu_bytes,
        vlan: hop.vlan,
    }
}
