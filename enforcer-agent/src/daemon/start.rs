//! How the daemon comes up: load or adopt, put the policy into force, attach; and how a start that failed is undone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use enforcer_common::abi::capture::CaptureRecord;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::captures::Captures;
use super::counters::{self, Unrecorded};
use super::history::{BOUNDS, History, HistoryDirectory};
use super::hours::Hours;
use super::monitor::Monitor;
use super::persist::{AppliedPolicy, State, StateFile};
use super::quotas::Quotas;
use super::shares::Shares;
use super::{Event, RunError};
use crate::adapters::audit_file::AuditHandle;
use crate::adapters::clock::SystemClock;
use crate::adapters::dataplane::{
    AttachMode, Attachment, Dataplane, DataplaneError, EventsReady, Mode, Settings,
};
use crate::adapters::neighbours::{HostNetwork, XdpHook};
use crate::adapters::policy_files;
use crate::config::{self, Config};
use crate::install::Installer;
use crate::ports::StateStore as _;
use crate::pure::audit::{Change, Kind};
use crate::pure::compile::{self, Directory, HostFacts, NextHop};
use crate::pure::fleet::Fleet;
use crate::pure::policy::{self};

use super::core::{Core, NO_POLICY, Outside, link_of};

impl Core {
    /// Loads or adopts the data plane, puts the policy into force and attaches the programs, in this order: no packet
    /// is ever judged by tables that are not there.
    pub(super) async fn start(
        config: Config,
        audit: AuditHandle,
        network: &HostNetwork,
        events: mpsc::Sender<Event>,
    ) -> Result<(Self, EventsReady), RunError> {
        for interface in &config.interfaces {
            if network.interface(interface).await?.is_none() {
                return Err(DataplaneError::NoInterface {
                    interface: interface.clone(),
                }
                .into());
            }
        }
        let store = StateFile::new(config.state_directory.clone());
        let state = store.load()?;
        let dataplane = Dataplane::open(&Settings {
            pin_directory: config.pin_directory(),
            capacity: config.capacity,
            test_clock: false,
        })?;
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        let mebibytes = dataplane.capacity.memory_bytes(cpus) >> 20;
        info!(mebibytes, "kernel memory of the maps, without flows");
        let kernel = dataplane.maps.events_ready().map_err(RunError::Watch)?;
        let local = network.local_addresses().await?;
        let watcher = Monitor::new(config.telemetry, events);
        let history = HistoryDirectory::new(&config.state_directory);
        let outside = Outside {
            dataplane: Box::new(dataplane),
            clock: Arc::new(SystemClock),
            audit: Box::new(audit),
            store: Box::new(store),
            history: Box::new(history),
            watcher: Box::new(watcher),
        };
        let local_addresses = local.into_iter().map(|local| local.address).collect();
        let mut core = Self::new(config, outside, state, local_addresses);
        let fresh = !core.dataplane.adopted();
        match core.begin(network).await {
            Ok(()) => Ok((core, kernel)),
            Err(error) => {
                core.undo_attachments(fresh);
                Err(error)
            }
        }
    }

    /// A daemon that enforces nothing yet, over what is there.
    pub(super) fn new(config: Config, outside: Outside, state: State, local_addresses: Vec<IpAddr>) -> Self {
        let Outside {
            dataplane,
            clock,
            audit,
            store,
            history,
            watcher,
        } = outside;
        let host = HostFacts {
            nat_v4: config.nat.ipv4,
            nat_v6: config.nat.ipv6,
            nat_port_first: config.nat.port_first,
            nat_port_count: config.nat.port_count,
            answers_per_second: config.answers_per_second,
            outer_v4: config.encapsulation.ipv4,
            outer_v6: config.encapsulation.ipv6,
            local_addresses,
            events_per_window: config.audit.events_per_window,
            flows_per_tenant: config.flow_table.entries_per_tenant(dataplane.capacity().flows),
            links: BTreeMap::new(),
            capacity: dataplane.capacity(),
        };
        let has = dataplane.capacity();
        let differing = config.capacity.differences(&has);
        let warnings = differing
            .map(|(field, wanted, has)| {
                format!(
                    "the maps that run were made for `{field}: {has}`, not {wanted}: it takes effect after `detach`"
                )
            })
            .collect();
        Self {
            dataplane,
            installer: Installer::new(Arc::clone(&clock)),
            started_ns: clock.monotonic_ns(),
            clock,
            store,
            unsaved: false,
            history: History::new(history, BOUNDS),
            loader: policy::Loader::default(),
            digester: policy::Digester::default(),
            cache: compile::Cache::default(),
            behind: false,
            live: 0,
            fleet: Fleet::default(),
            host,
            state,
            active: None,
            retired: None,
            hours: Hours::default(),
            lease: None,
            quotas: Quotas::default(),
            shares: Shares::default(),
            directory: Directory::default(),
            digests: BTreeMap::new(),
            audit,
            attachments: Vec::new(),
            open_flows: 0,
            nvml: Err("not looked for yet".to_owned()),
            failing: BTreeMap::new(),
            warnings,
            unrecorded: Unrecorded::default(),
            captures: Captures::default(),
            watcher,
            detached: false,
            destinations: watch::Sender::new(Vec::new()),
            config,
        }
    }

    async fn begin(&mut self, network: &HostNetwork) -> Result<(), RunError> {
        self.first_policy()?;
        let wanted = self.destinations.borrow().clone();
        let addresses: Vec<IpAddr> = wanted.iter().map(|(_, address)| *address).collect();
        let hops = network.next_hops(&addresses).await?;
        self.host.links = self.links_of(&network.interfaces().await?);
        let known = wanted.iter().zip(hops);
        self.take_over(known.filter_map(|((name, _), hop)| Some((name.as_str(), link_of(&hop.ok()?)))))
            .await?;
        // Last, since until then a failed start tells by the mode what it must not take away.
        self.name_adopted_modes(network).await
    }

    /// Puts the first policy into force and attaches. `hops` are those that the kernel knows already, so that an agent
    /// that starts over does not refuse traffic meanwhile.
    pub(super) async fn take_over(
        &mut self,
        hops: impl Iterator<Item = (&str, NextHop)>,
    ) -> Result<(), RunError> {
        for (name, hop) in hops {
            self.fleet.routed(name, Some(hop));
        }
        self.begin_quotas()?;
        self.reinstall()
            .map_err(|error| RunError::FirstPolicy(error.to_string()))?;
        self.dataplane.set_links(&self.host.links)?;
        self.dataplane.set_host(&self.host.record())?;
        // That of an earlier agent has nobody left to read it.
        self.dataplane.set_capture(&CaptureRecord::ZERO)?;
        self.attach_all()?;
        self.keep_in_history();
        self.unrecorded
            .begin(&counters::all(&*self.dataplane, &self.directory)?);
        let what = if self.dataplane.adopted() {
            "adopted"
        } else {
            "loaded"
        };
        let mut started = self.entry(Kind::Started);
        started.change = Some(Change {
            what: what.to_owned(),
            to: Some(self.config.interfaces.join(", ")),
            ..Change::default()
        });
        self.audit.record_synced(started).await?;
        Ok(())
    }

    /// Attaches the programs to every interface of the configuration and to no other.
    pub(super) fn attach_all(&mut self) -> Result<(), DataplaneError> {
        let mode = match self.config.attach_mode {
            config::AttachMode::Auto => AttachMode::Auto,
            config::AttachMode::Native => AttachMode::Native,
            config::AttachMode::Generic => AttachMode::Generic,
            config::AttachMode::Tc => AttachMode::Tc,
        };
        for interface in self.config.interfaces.clone() {
            let attachment = self.dataplane.attach(&interface, mode)?;
            match &attachment.mode {
                Mode::Generic { why } => warn!(
                    interface,
                    why, "XDP runs in the generic hook, at a fraction of its speed"
                ),
                Mode::Tc { why } => warn!(
                    interface,
                    why, "packets are judged in TC, at a fraction of the speed of XDP"
                ),
                Mode::Native | Mode::Adopted => {}
            }
            let known = self
                .attachments
                .iter_mut()
                .find(|known| known.interface == interface);
            match known {
                // What is known of its mode still holds.
                Some(known) if attachment.mode == Mode::Adopted => known.ifindex = attachment.ifindex,
                Some(known) => *known = attachment,
                None => self.attachments.push(attachment),
            }
        }
        for dropped in self.dataplane.keep_only(&self.config.interfaces)? {
            info!(link = dropped, "detached: no longer in the configuration");
        }
        self.dataplane.settle()
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
    pub(super) fn first_policy(&mut self) -> Result<(), RunError> {
        let applied = match (&self.state.policy, &self.config.policy) {
            (Some(applied), _) => applied.clone(),
            (None, Some(path)) => {
                let sources = policy_files::read(std::slice::from_ref(path))
                    .map_err(|error| RunError::FirstPolicy(error.to_string()))?;
                AppliedPolicy {
                    sources,
                    applied_at: self.clock.wall(),
                    applied_by: None,
                }
            }
            (None, None) => {
                self.warnings.push(NO_POLICY.to_owned());
                return Ok(());
            }
        };
        let active = self.activate(applied).map_err(|diagnostics| {
            RunError::FirstPolicy(format!(
                "the policy has errors, what the kernel enforced before goes on:\n{}",
                policy::diagnostic::render_all(&diagnostics, false)
            ))
        })?;
        self.fleet.follow(None, &active.policy, &self.state.draining);
        self.unsaved = self.state.policy.as_ref() != Some(&active.applied);
        self.state.policy = Some(active.applied.clone());
        self.active = Some(active);
        self.watch_destinations();
        Ok(())
    }

    /// A start that failed leaves no program where none was.
    pub(super) fn undo_attachments(&mut self, fresh: bool) {
        let undone = if fresh {
            self.dataplane.detach()
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
}
