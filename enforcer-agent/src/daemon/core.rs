//! What is enforced, and how a change of anything gets into the kernel.
//!
//! Every change takes the same way: change the inputs, compile, write the state file, install, record. If a step fails,
//! the inputs are put back and what was enforced before still is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::backend_connections;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::counters::{self, Unrecorded};
use super::monitor::Monitor;
use super::persist::{self, AppliedPolicy, State};
use super::{Event, RunError, records};
use crate::adapters::audit_file::AuditHandle;
use crate::adapters::dataplane::{
    self, AttachMode, Attachment, Dataplane, DataplaneError, EventsReady, Mode, Settings, Swept,
};
use crate::adapters::neighbours::{HostNetwork, NextHop, NextHopError, XdpHook};
use crate::api::{ApiError, ErrorCode};
use crate::config::{self, Config};
use crate::install::{Banks as _, InstallError, Installed, Installer};
use crate::pure::audit::{self, Actor, Change, Kind};
use crate::pure::compile::{self, CompileError, Compiled, Directory, HostFacts, Inputs};
use crate::pure::fleet::Fleet;
use crate::pure::policy::{self, Diagnostic, ResolvedPolicy};
use crate::pure::telemetry::GpuSample;
use crate::pure::weights::Reading;

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
    pub(super) audit: AuditHandle,
    pub(super) attachments: Vec<Attachment>,
    pub(super) started: Instant,
    pub(super) open_flows: u64,
    /// `Err`: why there is none.
    pub(super) nvml: Result<u32, String>,
    /// The last error of each background task.
    pub(super) failing: BTreeMap<&'static str, String>,
    pub(super) warnings: Vec<String>,
    unrecorded: Unrecorded,
    monitor: Monitor,
    destinations: watch::Sender<Vec<(String, IpAddr)>>,
}

impl Core {
    /// Loads or adopts the data plane, puts the policy into force and attaches the programs, in this order: no packet
    /// is ever judged by tables that are not there.
    pub(super) async fn start(
        config: Config,
        audit: AuditHandle,
        network: &HostNetwork,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, RunError> {
        for interface in &config.interfaces {
            if network.interface(interface).await?.is_none() {
                return Err(DataplaneError::NoInterface {
                    interface: interface.clone(),
                }
                .into());
            }
        }
        let state = persist::load(&config.state_directory)?;
        let dataplane = Dataplane::open(&Settings {
            pin_directory: config.pin_directory(),
            flow_entries: config.flow_table.entries,
            test_clock: false,
        })?;
        let local = network.local_addresses().await?;
        let host = HostFacts {
            nat_v4: config.nat.ipv4,
            nat_v6: config.nat.ipv6,
            nat_port_first: config.nat.port_first,
            nat_port_count: config.nat.port_count,
            local_addresses: local.into_iter().map(|local| local.address).collect(),
            events_per_window: config.audit.events_per_window,
        };
        let monitor = Monitor::new(config.telemetry, events);
        let mut core = Self {
            dataplane,
            installer: Installer::default(),
            fleet: Fleet::default(),
            host,
            state,
            active: None,
            directory: Directory::default(),
            audit,
            attachments: Vec::new(),
            started: Instant::now(),
            open_flows: 0,
            nvml: Err("not looked for yet".to_owned()),
            failing: BTreeMap::new(),
            warnings: Vec::new(),
            unrecorded: Unrecorded::default(),
            monitor,
            destinations: watch::Sender::new(Vec::new()),
            config,
        };
        let fresh = !core.dataplane.adopted;
        match core.begin(network).await {
            Ok(()) => Ok(core),
            Err(error) => {
                core.undo_attachments(fresh);
                Err(error)
            }
        }
    }

    async fn begin(&mut self, network: &HostNetwork) -> Result<(), RunError> {
        self.dataplane.maps.set_host(&self.host.record())?;
        self.first_policy()?;
        self.route_once(network).await?;
        self.reinstall()
            .map_err(|error| RunError::FirstPolicy(error.to_string()))?;
        let mode = match self.config.attach_mode {
            config::AttachMode::Auto => AttachMode::Auto,
            config::AttachMode::Native => AttachMode::Native,
            config::AttachMode::Generic => AttachMode::Generic,
        };
        for interface in self.config.interfaces.clone() {
            let attachment = self.dataplane.attach(&interface, mode)?;
            if let Mode::Generic { why } = &attachment.mode {
                warn!(
                    interface,
                    why, "XDP runs in the generic hook, at a fraction of its speed"
                );
            }
            self.attachments.push(attachment);
        }
        for dropped in self.dataplane.keep_only(&self.config.interfaces)? {
            info!(link = dropped, "detached: no longer in the configuration");
        }
        self.dataplane.settle()?;
        self.unrecorded
            .begin(&counters::all(&self.dataplane.maps, &self.directory)?);
        let what = if self.dataplane.adopted {
            "adopted"
        } else {
            "loaded"
        };
        let change = Change {
            what: what.to_owned(),
            to: Some(self.config.interfaces.join(", ")),
            ..Change::default()
        };
        let mut started = records::entry(Kind::Started, self.generation(), self.digest());
        started.change = Some(change);
        self.audit.record_synced(started).await?;
        // Last, since until then a failed start tells by the mode what it must not take away.
        self.name_adopted_modes(network).await
    }

    /// What an earlier agent attached says nothing of its mode; the interface does.
    async fn name_adopted_modes(&mut self, network: &HostNetwork) -> Result<(), RunError> {
        let interfaces = network.interfaces().await?;
        for attachment in self
            .attachments
            .iter_mut()
            .filter(|attachment| attachment.mode == Mode::Adopted)
        {
            let found = interfaces
                .iter()
                .find(|interface| interface.ifindex == attachment.ifindex);
            attachment.mode = match found.map(|interface| interface.xdp) {
                Some(XdpHook::Generic) => Mode::Generic {
                    why: "an earlier agent attached it so".to_owned(),
                },
                _ => Mode::Native,
            };
        }
        Ok(())
    }

    /// The policy of the state file, or at the very first start that of the configuration.
    fn first_policy(&mut self) -> Result<(), RunError> {
        let applied = match (&self.state.policy, &self.config.policy) {
            (Some(applied), _) => applied.clone(),
            (None, Some(path)) => {
                let unreadable = |error| {
                    RunError::FirstPolicy(format!("the policy {} cannot be read: {error}", path.display()))
                };
                let text = std::fs::read_to_string(path).map_err(unreadable)?;
                let file = path.display().to_string();
                AppliedPolicy {
                    file,
                    text,
                    applied_at: Timestamp::now(),
                    applied_by: None,
                }
            }
            (None, None) => {
                self.warnings
                    .push("no policy is in force: apply one with `enforcer-agent policy apply`".to_owned());
                return Ok(());
            }
        };
        let active = activate(applied).map_err(|diagnostics| {
            RunError::FirstPolicy(format!(
                "the policy has errors, what the kernel enforced before goes on:\n{}",
                policy::diagnostic::render_all(&diagnostics, false)
            ))
        })?;
        self.fleet.follow(None, &active.policy, &self.state.draining);
        self.state.policy = Some(active.applied.clone());
        self.active = Some(active);
        Ok(())
    }

    /// Next hops that the kernel knows already, so that an agent that starts over does not refuse traffic meanwhile.
    async fn route_once(&mut self, network: &HostNetwork) -> Result<(), RunError> {
        self.watch_destinations();
        let wanted = self.destinations.borrow().clone();
        let addresses: Vec<IpAddr> = wanted.iter().map(|(_, address)| *address).collect();
        for ((name, _), hop) in wanted.iter().zip(network.next_hops(&addresses).await?) {
            if let Ok(hop) = hop {
                self.fleet.routed(name, Some(link_of(&hop)));
            }
        }
        Ok(())
    }

    /// A start that failed leaves no program where none was.
    fn undo_attachments(&mut self, fresh: bool) {
        let undone = if fresh {
            dataplane::detach(&self.config.pin_directory())
        } else {
            let before = |attachment: &&Attachment| attachment.mode == Mode::Adopted;
            let kept: Vec<String> = self
                .attachments
                .iter()
                .filter(before)
                .map(|attachment| attachment.interface.clone())
                .collect();
            if self.attachments.iter().all(|attachment| before(&attachment)) {
                return;
            }
            self.dataplane.keep_only(&kept).map(|_| ())
        };
        if let Err(error) = undone {
            warn!(%error, "what was attached could not be taken back");
        }
    }

    /// The live generation; zero if even that cannot be read.
    pub(super) fn generation(&self) -> u64 {
        self.dataplane.maps.generation().unwrap_or(0)
    }

    pub(super) fn digest(&self) -> Option<String> {
        self.active.as_ref().map(|active| active.digest.clone())
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

    fn watch_destinations(&mut self) {
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
                self.warnings.clear();
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

    /// The GPUs of this very host count for back ends on it that have no exporter of their own.
    fn local_gpu(&mut self, sample: GpuSample) {
        self.nvml = Ok(sample.devices);
        let Some(active) = &self.active else { return };
        let local = active.policy.pools.iter().flat_map(|pool| &pool.backends);
        for backend in local.filter(|backend| backend.dcgm_url.is_none()) {
            if self.host.local_addresses.contains(&backend.address) {
                self.fleet.gpu_said(&backend.name, Reading::Fresh(sample));
            }
        }
    }

    fn routes(&mut self, hops: Vec<(String, Result<NextHop, NextHopError>)>, local_addresses: Vec<IpAddr>) {
        self.failing.remove("routes and neighbours");
        let mut changed = self.host.local_addresses != local_addresses;
        self.host.local_addresses = local_addresses;
        for (name, hop) in hops {
            match hop {
                Ok(hop) => changed |= self.fleet.routed(&name, Some(link_of(&hop))),
                Err(NextHopError::Unresolved { .. }) => {}
                Err(error) => {
                    if self.failing.insert("next hops", error.to_string()).is_none() {
                        warn!(backend = name, %error, "next hop");
                    }
                }
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
            self.audit
                .record(records::flow_closed(closed, &self.directory, self.digest()));
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
        let (offset_ns, digest) = (records::wall_offset_ns(), self.digest());
        for taken in 0..limit {
            let Some(event) = self.dataplane.maps.next_event() else {
                return taken;
            };
            match audit::decision(&event, &self.directory, digest.clone(), offset_ns) {
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

fn activate(applied: AppliedPolicy) -> Result<Active, Vec<Diagnostic>> {
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

fn link_of(hop: &NextHop) -> compile::NextHop {
    compile::NextHop {
        ifindex: hop.ifindex,
        own_mac: hop.source_mac.0,
        next_hop_mac: hop.next_hop_mac.0,
    }
}
