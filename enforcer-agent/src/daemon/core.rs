//! What is enforced, and how a change of anything gets into the kernel.
//!
//! Every change takes the same way: change the inputs, compile, write the state file, install, record. If a step fails,
//! the inputs are put back and what was enforced before still is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::backend_connections;
use tokio::sync::watch;
use tracing::{info, warn};

use super::counters::Unrecorded;
use super::monitor::Monitor;
use super::persist::{self, AppliedPolicy, State};
use super::{Event, records};
use crate::adapters::audit_file::AuditHandle;
use crate::adapters::dataplane::{Attachment, Dataplane, DataplaneError, EventsReady, Swept};
use crate::adapters::neighbours::{NextHop, NextHopError};
use crate::api::{ApiError, ErrorCode};
use crate::config::Config;
use crate::install::{Banks as _, InstallError, Installed, Installer};
use crate::pure::audit::{self, Actor, Change, Kind};
use crate::pure::compile::{self, CompileError, Compiled, Directory, HostFacts, Inputs};
use crate::pure::fleet::Fleet;
use crate::pure::policy::{self, Diagnostic, ResolvedPolicy};
use crate::pure::telemetry::GpuSample;
use crate::pure::weights::Reading;

/// The warning of a daemon that enforces nothing yet.
pub(super) const NO_POLICY: &str = "no policy is in force: apply one with `enforcer-agent policy apply FILE`";
/// Generations whose policy digest is remembered.
const MAX_DIGESTS: usize = 1024;

/// The policy in force.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) policy: ResolvedPolicy,
    pub(super) digest: String,
    pub(super) applied: AppliedPolicy,
    pub(super) warnings: Vec<Diagnostic>,
}

/// Why a change was not put into force.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    State(#[from] persist::StateError),
    #[error(transparent)]
    Install(#[from] InstallError<DataplaneError>),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

/// The daemon's state.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) dataplane: Dataplane,
    pub(super) installer: Installer,
    pub(super) fleet: Fleet,
    pub(super) host: HostFacts,
    pub(super) state: State,
    pub(super) active: Option<Active>,
    pub(super) directory: Directory,
    /// Digests of the policies of the last generations: flows and events outlive the one that they were judged under.
    pub(super) digests: BTreeMap<u64, String>,
    pub(super) audit: AuditHandle,
    pub(super) attachments: Vec<Attachment>,
    pub(super) started: Instant,
    pub(super) open_flows: u64,
    /// `Err`: why there is none.
    pub(super) nvml: Result<u32, String>,
    /// The last error of each background task.
    pub(super) failing: BTreeMap<&'static str, String>,
    pub(super) warnings: Vec<String>,
    pub(super) unrecorded: Unrecorded,
    pub(super) monitor: Monitor,
    pub(super) destinations: watch::Sender<Vec<(String, IpAddr)>>,
}

impl Core {
    /// The live generation; zero if even that cannot be read.
    pub(super) fn generation(&self) -> u64 {
        self.dataplane.maps.generation().unwrap_or(0)
    }

    pub(super) fn digest(&self) -> Option<String> {
        self.active.as_ref().map(|active| active.digest.clone())
    }

    /// The digest of the policy of a generation; `None` if that is too long ago, or was before this agent's time.
    fn digest_of(&self, generation: u64) -> Option<String> {
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

    pub(super) fn events_ready(&self) -> std::io::Result<EventsReady> {
        self.dataplane.maps.events_ready()
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
        let destinations = self
            .active
            .iter()
            .flat_map(|active| &active.policy.pools)
            .flat_map(|pool| &pool.backends);
        let destinations = destinations
            .map(|backend| (backend.name.clone(), backend.address))
            .collect();
        self.destinations.send_replace(destinations);
        if let Some(active) = &self.active {
            self.monitor.follow(&active.policy);
        }
    }

    /// Compiles what is wanted now and puts it into force, if anything differs from what is.
    pub(super) fn reinstall(&mut self) -> Result<Option<Installed>, ChangeError> {
        let Some(active) = &self.active else {
            return Ok(None);
        };
        let compiled = self.compile(&active.policy)?;
        let live = self.dataplane.maps.generation()?;
        if live != 0 && self.installer.live(live) == Some(&compiled.tables) {
            return Ok(None);
        }
        self.put_into_force(compiled).map(Some)
    }

    pub(super) fn compile(&self, policy: &ResolvedPolicy) -> Result<Compiled, CompileError> {
        compile::compile(&Inputs {
            policy,
            slots: &self.state.slots,
            host: &self.host,
            backends: &self.fleet.statuses(),
            failed_pools: &self.fleet.failed_pools(),
            suspended: &self.state.suspended,
        })
    }

    /// The state file goes first: slots that the kernel uses and nobody remembers would be given to others.
    fn put_into_force(&mut self, compiled: Compiled) -> Result<Installed, ChangeError> {
        let Compiled {
            tables,
            slots,
            directory,
        } = compiled;
        let new_tenants: Vec<u32> = slots
            .tenants
            .iter()
            .filter(|(name, _)| self.state.slots.tenants.get(name).is_none())
            .map(|(_, slot)| slot)
            .collect();
        let mut state = self.state.clone();
        state.slots = slots;
        persist::store(&self.config.state_directory, &state)?;
        // A slot may have belonged to another tenant, whose debt is not the new one's.
        for tenant in new_tenants {
            for limiter in Limiter::ALL {
                self.dataplane.maps.set_limiter(tenant, limiter, 0)?;
            }
        }
        let installed = self.installer.install(&mut self.dataplane.maps, tables)?;
        self.state = state;
        self.directory = directory;
        self.remember_digest(installed.generation);
        Ok(installed)
    }

    /// Makes a text the policy. `Ok(None)`: nothing that is enforced differs.
    pub(super) fn apply(&mut self, applied: AppliedPolicy) -> Result<Option<Installed>, ApiError> {
        let active = activate(applied).map_err(|diagnostics| invalid(&diagnostics))?;
        let before = (self.active.take(), self.state.clone());
        let old = before.0.as_ref().map(|active| &active.policy);
        self.fleet.follow(old, &active.policy, &self.state.draining);
        self.state.policy = Some(active.applied.clone());
        self.active = Some(active);
        match self.reinstall() {
            Ok(installed) => {
                self.warnings.retain(|warning| warning != NO_POLICY);
                self.watch_destinations();
                // Also where only the text differs: `policy show` is what was applied last.
                if let (None, Err(error)) = (
                    &installed,
                    persist::store(&self.config.state_directory, &self.state),
                ) {
                    warn!(%error, "the policy is in force but its text was not stored");
                }
                Ok(installed)
            }
            Err(error) => {
                let refused = self.active.take();
                (self.active, self.state) = before;
                if let Some(active) = &self.active {
                    self.fleet.follow(
                        refused.as_ref().map(|active| &active.policy),
                        &active.policy,
                        &self.state.draining,
                    );
                }
                Err(ApiError::new(ErrorCode::Refused, error.to_string()))
            }
        }
    }

    /// Puts a changed state into force, or takes the change back.
    pub(super) fn change_state(&mut self, change: impl FnOnce(&mut State)) -> Result<(), ApiError> {
        let before = self.state.clone();
        change(&mut self.state);
        let done = self.reinstall().and_then(|installed| match installed {
            Some(_) => Ok(()),
            None => persist::store(&self.config.state_directory, &self.state).map_err(ChangeError::from),
        });
        done.map_err(|error| {
            self.state = before;
            ApiError::new(ErrorCode::Internal, error.to_string())
        })
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
            Event::Network {
                hops,
                local_addresses,
            } => self.routes(hops, local_addresses),
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

    fn routes(&mut self, hops: Vec<(String, Result<NextHop, NextHopError>)>, local_addresses: Vec<IpAddr>) {
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
            None => {
                self.failing.remove("next hops");
            }
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
            self.audit
                .record(records::flow_closed(closed, &self.directory, digest));
        }
    }

    /// Folds telemetry into weights, once a second, and looks after everything else that is due then.
    pub(super) fn fold(&mut self) {
        let now_ns = records::kernel_now_ns();
        let slots = self.directory.backends.iter();
        let connections = slots
            .filter_map(|(slot, backend)| {
                let open = self
                    .dataplane
                    .maps
                    .open_connections(backend_connections(*slot))
                    .ok()?;
                Some((backend.name.clone(), open))
            })
            .collect();
        let mut moved = false;
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
        if self.judge_pools() | moved | self.failing.contains_key("install") {
            self.refresh("weights");
        }
        self.record_unrecorded();
    }

    /// Whether any failed or returned.
    fn judge_pools(&mut self) -> bool {
        let Some(active) = &self.active else { return false };
        let mut changed = false;
        for (pool, change) in self.fleet.judge_pools(&active.policy, records::kernel_now_ns()) {
            info!(
                pool,
                failed = change.failed,
                healthy = change.healthy,
                total = change.total,
                "pool"
            );
            let to = if change.failed { "failed" } else { "recovered" };
            let causes = vec![format!(
                "{} of {} back ends are healthy",
                change.healthy, change.total
            )];
            let change = Change {
                what: "pool".to_owned(),
                to: Some(to.to_owned()),
                causes,
                ..Change::default()
            };
            self.note(Kind::PoolState, Some(pool), change);
            changed = true;
        }
        changed
    }

    /// Puts into force what followed from something that nobody asked for; a failure is tried again with the next fold.
    fn refresh(&mut self, why: &'static str) {
        match self.reinstall() {
            Ok(Some(installed)) if !installed.in_place => {
                info!(
                    generation = installed.generation,
                    writes = installed.writes,
                    why,
                    "new generation"
                );
                self.failing.remove("install");
            }
            Ok(_) => {
                self.failing.remove("install");
            }
            Err(error) => {
                if self.failing.insert("install", error.to_string()).is_none() {
                    warn!(%error, why, "what was enforced before still is");
                }
            }
        }
    }

    fn note(&mut self, kind: Kind, backend: Option<String>, change: Change) {
        let mut entry = records::entry(kind, self.generation(), self.digest());
        entry.backend = backend;
        entry.change = Some(change);
        self.audit.record(entry);
    }

    /// What the kernel only counted, or could not hand over.
    fn record_unrecorded(&mut self) {
        let news = match self.unrecorded.look(&self.dataplane.maps, &self.directory) {
            Ok(news) => news,
            Err(error) => {
                warn!(%error, "counters");
                return;
            }
        };
        for news in news {
            for (kind, count, what) in [
                (Kind::Aggregated, news.aggregated, "kernelWindow"),
                (Kind::Lost, news.lost, "kernelRingBuffer"),
            ] {
                if count == 0 {
                    continue;
                }
                let mut entry = records::entry(kind, self.generation(), self.digest());
                entry.direction = Some(news.direction);
                entry.reason = Some(news.reason.name().to_owned());
                entry.tenant = audit::Names::tenant(&self.directory, news.tenant).map(str::to_owned);
                entry.count = Some(count);
                entry.change = Some(Change {
                    what: what.to_owned(),
                    ..Change::default()
                });
                self.audit.record(entry);
            }
        }
    }

    /// Takes up to `limit` events of the programs; how many there were.
    pub(super) fn take_kernel_events(&mut self, limit: usize) -> usize {
        let offset_ns = records::wall_offset_ns();
        for taken in 0..limit {
            let Some(event) = self.dataplane.maps.next_event() else {
                return taken;
            };
            let digest = self.digest_of(event.generation);
            match audit::decision(&event, &self.directory, digest, offset_ns) {
                Ok(entry) => self.audit.record(entry),
                Err(error) => {
                    self.failing.insert("kernel events", error.to_string());
                }
            }
        }
        limit
    }

    /// Writes down that a peer changed something, and waits until that is on the disk.
    pub(super) async fn record_control(&mut self, actor: Actor, change: Change) -> Result<(), ApiError> {
        let entry = records::control(self.generation(), self.digest(), Some(actor), change);
        self.audit
            .record_synced(entry)
            .await
            .map(|_| ())
            .map_err(|error| {
                let message =
                    format!("the change is in force, but the audit log could not be written: {error}");
                ApiError::new(ErrorCode::Internal, message)
            })
    }

    /// The end of the daemon. Everything that is pinned stays.
    pub(super) async fn stop(mut self) {
        let entry = records::entry(Kind::Stopped, self.generation(), self.digest());
        self.take_kernel_events(usize::MAX >> 1);
        if let Err(error) = self.audit.record_synced(entry).await {
            warn!(%error, "the last audit record was not written");
        }
    }
}

pub(super) fn activate(applied: AppliedPolicy) -> Result<Active, Vec<Diagnostic>> {
    let outcome = policy::load(&applied.file, &applied.text);
    let warnings = outcome.diagnostics.clone();
    let policy = outcome.into_result()?;
    let digest = policy.digest().to_string();
    Ok(Active {
        policy,
        digest,
        applied,
        warnings,
    })
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
    }
}
