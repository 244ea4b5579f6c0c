//! The demo's world: three tenants and a stranger, one balancer with the agent, three GPU servers.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_agent::api::reply::{BackendListReply, BackendRow, StatusReply, TenantListReply, TenantRow};
use enforcer_agent::pure::audit::{AuditRecord, Direction};

use crate::client::{LoadPlan, Mode, Summary, Target, run};
use crate::harness::{
    Agent, AgentSettings, HarnessError, ServerSettings, Stream, eventually, start_simulator,
};
use crate::lab::topology::{self, Leaf, Routed};
use crate::lab::{Host, Lab, Process};

/// The policy, as it is applied first.
const POLICY: &str = include_str!("policy.yaml");
/// The service that `Nat` serves.
pub(super) const CHAT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), 8000);
/// The service that `Dnat` serves.
pub(super) const BATCH: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20)),
    8000,
);
/// Where the agent serves metrics, inside the balancer.
pub(super) const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
/// Where a simulator is reached from its own host.
pub(super) const OWN_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
/// Longest wait for something that follows within a second or two, on a busy machine too.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

const CLIENTS: [&str; 4] = ["acme", "globex", "initech", "stranger"];
const GPUS: [&str; 3] = ["gpu-1", "gpu-2", "gpu-3"];
/// Most records that one `audit tail` answers.
const AUDIT_PAGE: usize = 5000;

/// All of it. Dropping it removes everything.
#[derive(Debug)]
pub(super) struct World {
    // Dropped in this order: processes before the namespaces that they run in.
    pub(super) agent: Agent,
    pub(super) simulators: BTreeMap<&'static str, Process>,
    pub(super) routed: Routed,
    pub(super) lab: Lab,
    /// Long streams, by tenant and service, that steps open for later ones.
    pub(super) streams: BTreeMap<&'static str, Stream>,
    /// Frames that the balancer's devices had received before the programs were attached.
    pub(super) frames_before: u64,
    /// The same right after.
    pub(super) frames_after_attach: u64,
    /// Shares of acme's connections before any server was saturated, by back end.
    pub(super) shares: BTreeMap<String, f64>,
}

// === impl World ===

impl World {
    /// Makes the network and the servers. The agent does not run yet.
    pub(super) fn build() -> Result<Self, HarnessError> {
        let mut lab = Lab::new()?;
        let routed = topology::routed(&mut lab, &CLIENTS, &GPUS)?;
        let settings = AgentSettings {
            metrics: Some(METRICS),
            ..AgentSettings::new(CLIENTS.iter().chain(&GPUS).copied())
        };
        let agent = Agent::prepare(&lab, &routed.balancer, &settings)?;
        let path = lab.directory().join("policy.yaml");
        fs::write(&path, POLICY).map_err(HarnessError::io("write", path))?;
        let mut world = Self {
            agent,
            simulators: BTreeMap::new(),
            routed,
            lab,
            streams: BTreeMap::new(),
            frames_before: 0,
            frames_after_attach: 0,
            shares: BTreeMap::new(),
        };
        for gpu in GPUS {
            world.start_gpu(gpu)?;
        }
        Ok(world)
    }

    /// A file of the run.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.lab.directory().join(name)
    }

    pub(super) fn client(&self, name: &str) -> &Leaf {
        leaf(&self.routed.clients, name)
    }

    pub(super) fn gpu(&self, name: &str) -> &Leaf {
        leaf(&self.routed.back_ends, name)
    }

    pub(super) fn balancer(&self) -> &Host {
        &self.routed.balancer
    }

    pub(super) fn start_gpu(&mut self, name: &'static str) -> Result<(), HarnessError> {
        let process = start_simulator(&self.gpu(name).host, &ServerSettings::default())?;
        self.simulators.insert(name, process);
        Ok(())
    }

    /// Kills a server as a crash would.
    pub(super) fn kill_gpu(&mut self, name: &str) -> Result<(), HarnessError> {
        match self.simulators.remove(name) {
            Some(mut process) => Ok(process.kill().map(drop)?),
            None => Ok(()),
        }
    }

    /// Writes a changed policy: one line of it, which has to be there, becomes another.
    pub(super) fn edit_policy(&self, file: &str, from: &str, to: &str) -> Result<PathBuf, HarnessError> {
        assert_eq!(
            POLICY.matches(from).count(),
            1,
            "the demo's policy has no single {from:?}"
        );
        let path = self.file(file);
        fs::write(&path, POLICY.replacen(from, to, 1)).map_err(HarnessError::io("write", &path))?;
        Ok(path)
    }

    /// Opens a long stream of a tenant.
    pub(super) fn open_stream(
        &mut self,
        tenant: &'static str,
        service: SocketAddr,
    ) -> Result<(), HarnessError> {
        let leaf = self.client(tenant);
        let stream = Stream::open(&leaf.host, Some(leaf.address(service.is_ipv6())), service)?;
        self.streams.insert(tenant, stream);
        Ok(())
    }

    /// A tenant's stream, which an earlier step has opened.
    pub(super) fn stream(&self, tenant: &str) -> Result<&Stream, HarnessError> {
        self.streams.get(tenant).ok_or_else(|| HarnessError::Http {
            url: tenant.into(),
            what: "it has no open stream".into(),
        })
    }

    /// A plan for one tenant's load on a service: short requests, each on a connection of its own, whose first SYN
    /// alone counts.
    pub(super) fn plan(&self, tenant: &str, service: SocketAddr, rate: f64, seconds: f64) -> LoadPlan {
        LoadPlan {
            bind: Some(self.client(tenant).address(service.is_ipv6())),
            requests_per_second: Some(rate),
            duration: Duration::from_secs_f64(seconds),
            concurrency: 512,
            max_tokens: 2,
            mode: Mode::Stream,
            connect_timeout: Duration::from_millis(900),
            idle_timeout: Duration::from_secs(3),
            ..LoadPlan::new(Target::chat(service))
        }
    }

    /// Carries out one plan from a tenant's host.
    pub(super) fn load(&self, tenant: &str, plan: LoadPlan) -> Result<Summary, HarnessError> {
        let host = &self.client(tenant).host;
        Ok(host.block_on(|| run(plan, std::future::pending(), |_| ()))??)
    }

    /// Carries out plans of several tenants at the same time.
    pub(super) fn load_all<const N: usize>(
        &self,
        plans: [(&str, LoadPlan); N],
    ) -> Result<[Summary; N], HarnessError> {
        let summaries = std::thread::scope(|scope| {
            let running = plans.map(|(tenant, plan)| scope.spawn(move || self.load(tenant, plan)));
            running.map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        });
        let mut found = Vec::with_capacity(N);
        for summary in summaries {
            found.push(summary?);
        }
        Ok(found
            .try_into()
            .unwrap_or_else(|_| unreachable!("as many summaries as plans")))
    }

    pub(super) fn status(&self) -> Result<StatusReply, HarnessError> {
        self.agent.ask(&["status"])
    }

    pub(super) fn back_ends(&self) -> Result<BTreeMap<String, BackendRow>, HarnessError> {
        let reply: BackendListReply = self.agent.ask(&["backend", "list"])?;
        let rows = reply.backends.into_iter().map(|row| (row.name.clone(), row));
        Ok(rows.collect())
    }

    /// Waits until a back end is as wanted.
    pub(super) fn wait_for_back_end(
        &self,
        name: &str,
        awaited: &str,
        wanted: impl Fn(&BackendRow) -> bool,
    ) -> Result<BackendRow, HarnessError> {
        eventually(&format!("{name}: {awaited}"), LIMIT, || {
            Ok(match self.back_ends()?.remove(name) {
                Some(row) if wanted(&row) => Ok(row),
                other => Err(format!("{other:?}")),
            })
        })
    }

    pub(super) fn tenants(&self) -> Result<BTreeMap<String, TenantRow>, HarnessError> {
        let reply: TenantListReply = self.agent.ask(&["tenant", "list"])?;
        let rows = reply.tenants.into_iter().map(|row| (row.name.clone(), row));
        Ok(rows.collect())
    }

    /// Packets of all tenants, and of nobody, that got a reason.
    pub(super) fn packets(&self, direction: Direction, reason: &str) -> Result<u64, HarnessError> {
        Ok(packets_of(&self.status()?, direction, reason))
    }

    /// Packets of one tenant that came in and got a reason.
    pub(super) fn tenant_packets(&self, tenant: &str, reason: &str) -> Result<u64, HarnessError> {
        let tenants = self.tenants()?;
        let rows = tenants
            .get(tenant)
            .map(|row| row.packets.as_slice())
            .unwrap_or_default();
        let of_reason = rows
            .iter()
            .filter(|row| row.direction == Direction::Ingress && row.reason == reason);
        Ok(of_reason.map(|row| row.packets).sum())
    }

    /// Every record of the audit log from a sequence number on.
    pub(super) fn audit_from(&self, first: u64) -> Result<Vec<AuditRecord>, HarnessError> {
        let mut records: Vec<AuditRecord> = Vec::new();
        loop {
            let next = records.last().map_or(first, |last| last.sequence + 1).to_string();
            let limit = AUDIT_PAGE.to_string();
            let page = self
                .agent
                .ask_lines(&["audit", "tail", "--from", &next, "--lines", &limit])?;
            let is_last = page.len() < AUDIT_PAGE;
            records.extend(page);
            if is_last {
                return Ok(records);
            }
        }
    }

    /// Waits for a record of the audit log; decisions reach it within a second.
    pub(super) fn wait_for_record(
        &self,
        from: u64,
        awaited: &str,
        wanted: impl Fn(&AuditRecord) -> bool,
    ) -> Result<AuditRecord, HarnessError> {
        eventually(&format!("an audit record: {awaited}"), LIMIT, || {
            let records = self.audit_from(from)?;
            let count = records.len();
            let found = records.into_iter().find(&wanted);
            Ok(found.ok_or_else(|| format!("{count} other records from number {from} on")))
        })
    }

    /// The sequence number that the next audit record gets.
    pub(super) fn next_record(&self) -> Result<u64, HarnessError> {
        Ok(self.status()?.audit.sequence + 1)
    }

    /// Frames that the balancer's devices have received, as the devices count them.
    pub(super) fn frames_received(&self) -> Result<u64, HarnessError> {
        let names: Vec<&str> = CLIENTS.iter().chain(&GPUS).copied().collect();
        let text = self
            .balancer()
            .enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?
            .map_err(HarnessError::io("read", "/proc/thread-self/net/dev"))?;
        Ok(frames_in(&text, &names))
    }
}

/// Packets that got a reason, in a status.
pub(super) fn packets_of(status: &StatusReply, direction: Direction, reason: &str) -> u64 {
    let rows = status.packets.iter();
    rows.filter(|row| row.direction == direction && row.reason == reason)
        .map(|row| row.packets)
        .sum()
}

/// What caused a change, as its record says.
pub(super) fn causes(record: &AuditRecord) -> String {
    let change = record.entry.change.as_ref();
    change.map(|change| change.causes.join("; ")).unwrap_or_default()
}

fn leaf<'world>(leaves: &'world [Leaf], name: &str) -> &'world Leaf {
    let found = leaves.iter().find(|leaf| leaf.host.name() == name);
    found.expect("the names of hosts are constants of this module")
}

/// Received packets of some devices in the form of `/proc/net/dev`.
fn frames_in(text: &str, devices: &[&str]) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(device, _)| devices.contains(&device.trim()))
        .filter_map(|(_, figures)| figures.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// A path as it can be given to a command line.
pub(super) fn text(path: &Path) -> &str {
    // The lab's directories have ASCII names.
    path.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_summed_over_the_devices_that_are_named() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes packets\n    \
                    lo:     840      10    0    0    0     0          0         0      840      10\n  \
                    acme:    100       7    0    0    0     0          0         0      1 2\n gpu-1:  9 5 0 0\n";
        assert_eq!(frames_in(text, &["acme", "gpu-1"]), 12);
    }
}
