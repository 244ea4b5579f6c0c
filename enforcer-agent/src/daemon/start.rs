//! How the daemon comes up: load or adopt, put the policy into force, attach; and how a start that failed is undone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::counters::{self, Unrecorded};
use super::monitor::Monitor;
use super::persist::{self, AppliedPolicy};
use super::{Event, RunError, records};
use crate::adapters::audit_file::AuditHandle;
use crate::adapters::dataplane::{self, AttachMode, Attachment, Dataplane, DataplaneError, Mode, Settings};
use crate::adapters::neighbours::{HostNetwork, XdpHook};
use crate::config::{self, Config};
use crate::install::Installer;
use crate::pure::audit::{Change, Kind};
use crate::pure::compile::{Directory, HostFacts};
use crate::pure::fleet::Fleet;
use crate::pure::policy::{self};

use super::core::{Core, NO_POLICY, activate, link_of};

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
            digests: BTreeMap::new(),
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
        let (has, wanted) = (core.dataplane.flow_capacity, core.config.flow_table.entries);
        if has != wanted {
            core.warnings.push(format!(
                "the flow table that runs holds {has} flows, not {wanted}: `flowTable.entries` takes effect after `detach`"
            ));
        }
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
                self.warnings.push(NO_POLICY.to_owned());
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
}
