//! What the daemon answers: one struct per request, in the terms of people, with names rather than slots.

mod capture;
mod explain;
mod history;
mod maps;
mod tenants;

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Actor, Direction, Protocol};
use crate::pure::audit::AuditRecord;
use crate::pure::policy::Diagnostic;
use crate::pure::policy::PolicySource;
use crate::pure::policy::resolved::{Forward, PortRange};
pub use capture::{CaptureBeginReply, CaptureEndReply, CaptureReadReply, CapturedPacket, FrameBytes};
pub use history::{HistoryRow, PolicyHistoryReply, PolicyRollbackReply};
pub use maps::{MapEntry, MapField, MapRow, MapsDumpReply, MapsListReply};
pub use tenants::{QuotaRow, TenantListReply, TenantRow};

/// The answer to a [`super::Request`], under the same name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "camelCase")]
pub enum Reply {
    /// To `Status`.
    Status(Box<StatusReply>),
    /// To `PolicyApply`.
    PolicyApply(PolicyApplyReply),
    /// To `PolicyShow`.
    PolicyShow(PolicyShowReply),
    /// To `PolicyHistory`.
    PolicyHistory(PolicyHistoryReply),
    /// To `PolicyRollback`.
    PolicyRollback(PolicyRollbackReply),
    /// To `PolicyExplain`.
    PolicyExplain(Box<PolicyExplainReply>),
    /// To `TenantList`.
    TenantList(TenantListReply),
    /// To `TenantSuspend`.
    TenantSuspend(ChangeReply),
    /// To `TenantResume`.
    TenantResume(ChangeReply),
    /// To `BackendList`.
    BackendList(BackendListReply),
    /// To `BackendDrain`.
    BackendDrain(ChangeReply),
    /// To `BackendUndrain`.
    BackendUndrain(ChangeReply),
    /// To `ServiceList`.
    ServiceList(ServiceListReply),
    /// To `FlowsList`.
    FlowsList(FlowsListReply),
    /// To `MapsList`.
    MapsList(MapsListReply),
    /// To `MapsDump`.
    MapsDump(MapsDumpReply),
    /// To `AuditTail`.
    AuditTail(AuditTailReply),
    /// To `CaptureBegin`.
    CaptureBegin(CaptureBeginReply),
    /// To `CaptureRead`.
    CaptureRead(CaptureReadReply),
    /// To `CaptureEnd`.
    CaptureEnd(CaptureEndReply),
    /// To `Metrics`.
    Metrics(MetricsReply),
    /// To `Detach`.
    Detach(DetachReply),
}

/// How the daemon and the data plane are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReply {
    /// The agent's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// The host's name.
    pub host: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The instance, as configured.
    pub instance: String,
    /// Seconds since this daemon started.
    pub uptime_seconds: u64,
    /// The live generation; 0 before the first policy.
    pub generation: u64,
    /// The policy in force, if one is.
    pub policy: Option<PolicyStatus>,
    /// The rules with schedules, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedules: Option<ScheduleStatus>,
    /// The map schema that programs and agent share.
    pub schema: SchemaStatus,
    /// Interfaces whose traffic is judged.
    pub interfaces: Vec<InterfaceStatus>,
    /// What packets got, summed over tenants, since the maps were made; reasons never seen are left out.
    pub packets: Vec<ReasonCount>,
    /// The flow table.
    pub flows: FlowUsage,
    /// The audit log.
    pub audit: AuditStatus,
    /// The local GPUs' management library.
    pub nvml: NvmlStatus,
    /// What the operator should look at, a sentence each.
    pub warnings: Vec<String>,
}

/// Which policy is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// SHA-256 of the resolved policy, in hexadecimal.
    pub digest: String,
    /// The file as whoever applied it called it; the first one and a count if there were several.
    pub file: String,
    /// When it was applied.
    pub applied_at: Timestamp,
    /// Who did; `None` if the agent itself did at its first start.
    pub applied_by: Option<Actor>,
}

/// How the rules with schedules are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// How many rules have a schedule.
    pub scheduled_rules: u64,
    /// How many of them are closed.
    pub closed_rules: u64,
    /// When the next one opens or closes; `None` if all of them are always open.
    pub next_change: Option<Timestamp>,
}

/// The map schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SchemaStatus {
    /// `SCHEMA_VERSION`.
    pub version: u32,
    /// `SCHEMA_HASH` in hexadecimal.
    pub hash: String,
}

/// How the programs hang on an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Where the program hangs that sees what comes in.
    pub mode: IngressMode,
    /// Why it is not in the driver, if it is not.
    pub why_not_native: Option<String>,
}

/// Where the program hangs that sees what comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IngressMode {
    /// In the driver: XDP.
    Native,
    /// Behind the driver, in the generic hook of XDP.
    Generic,
    /// In TC.
    Tc,
}

/// Packets with one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonCount {
    /// Which way.
    pub direction: Direction,
    /// `Reason::name`.
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// Their bytes from the IP header on.
    pub bytes: u64,
}

/// How full the flow table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowUsage {
    /// Flows in it.
    pub open: u64,
    /// Flows that fit.
    pub capacity: u64,
}

/// How the audit log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditStatus {
    /// Sequence number of the last record; 0 before the first.
    pub sequence: u64,
    /// Decisions that the kernel sent as events.
    pub recorded: u64,
    /// Decisions that the kernel only counted.
    pub aggregated: u64,
    /// Decisions and records that were lost, in the kernel and in the agent.
    pub lost: u64,
    /// The file that is written.
    pub segment: String,
    /// Why nothing can be written at the moment, if that is so.
    pub error: Option<String>,
}

/// Whether local GPUs can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum NvmlStatus {
    /// The library is not there or does not start: normal on a host without GPUs.
    Absent {
        /// What it said.
        reason: String,
    },
    /// It answers.
    Present {
        /// Driver version.
        driver: String,
        /// GPUs.
        gpus: u32,
    },
}

/// What became of a policy that was to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyApplyReply {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: String,
    /// The live generation after it.
    pub generation: u64,
    /// Whether anything that is enforced changed; `false` too for a dry run.
    pub changed: bool,
    /// Writes to configuration maps that it took, or would take.
    pub map_writes: u64,
    /// Of a dry run: the generation that it would be; the live one if nothing that is enforced would differ, or nothing
    /// but weights.
    #[serde(default)]
    pub would_be: Option<u64>,
    /// Warnings; there are no errors among them.
    pub diagnostics: Vec<Diagnostic>,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyShowReply {
    /// Which it is.
    pub policy: PolicyStatus,
    /// The live generation.
    pub generation: u64,
    /// The texts as they were applied.
    pub sources: Vec<PolicySource>,
}

/// What a packet would get, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyExplainReply {
    /// The packet's source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The generation that decides.
    pub generation: u64,
    /// The time for which the schedules were asked, if another than now was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// `Reason::name`.
    pub reason: String,
    /// `Reason::sentence`.
    pub sentence: String,
    /// What it gets.
    pub effect: Effect,
    /// Whose it is.
    pub tenant: Option<String>,
    /// Where it goes.
    pub service: Option<String>,
    /// The rule that decides.
    pub rule: Option<RuleRef>,
    /// The back end that it is sent to.
    pub backend: Option<String>,
    /// The rule in shadow mode that would have decided otherwise, and how.
    pub shadow: Option<ShadowRef>,
    /// What was found on the way, in the order of judgement.
    pub steps: Vec<ExplainStep>,
}

/// What a packet gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Sent on.
    Forwarded,
    /// Left to the host's network stack.
    Passed,
    /// Dropped.
    Refused,
}

/// A rule of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleRef {
    /// Its name.
    pub name: String,
    /// Its line in the policy's text; 0 if that is not known.
    pub line: u32,
    /// The text that this is a line of, if the policy has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// What a rule in shadow mode would have done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShadowRef {
    /// The rule.
    pub rule: RuleRef,
    /// What it would have answered: `Reason::name`.
    pub reason: String,
}

/// One step of a judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainStep {
    /// What is looked at: `destination`, `flow`, `tenant`, `rule`, `limit`, `back end`.
    pub step: String,
    /// What was found.
    pub finding: String,
}

/// All back ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendListReply {
    /// Sorted by pool and name.
    pub backends: Vec<BackendRow>,
}

/// A back end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it answers its probes.
    pub health: BackendHealth,
    /// Whether an operator drains it.
    pub draining: bool,
    /// The published weight: capacity times a share of 0 to 1000 per mille.
    pub weight: u32,
    /// The weight at its full share.
    pub full_weight: u32,
    /// Connections that it has open through this host.
    pub connections: u64,
    /// The interface and link-layer address that lead to it; `None` if they are not known.
    pub next_hop: Option<NextHopRow>,
    /// What its telemetry says; `None` without telemetry.
    pub telemetry: Option<TelemetryRow>,
    /// What made the weight what it is, a sentence each.
    pub causes: Vec<String>,
}

/// The verdict of the health probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendHealth {
    /// Not probed often enough yet; counts as healthy.
    Unknown,
    /// Answers.
    Healthy,
    /// Does not.
    Unhealthy,
}

/// How a back end is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NextHopRow {
    /// The interface.
    pub interface: String,
    /// The next hop's link-layer address, as in `02:00:00:00:00:01`.
    pub mac: String,
    /// The largest packet that its link takes, in bytes.
    pub mtu_bytes: u32,
}

/// What a back end's telemetry says. Absent is unknown, never zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryRow {
    /// Requests that the engine runs.
    pub running: Option<u64>,
    /// Requests that wait in the engine.
    pub waiting: Option<u64>,
    /// Use of the key-value cache, 0 to 1.
    pub kv_cache_usage: Option<f64>,
    /// GPU utilization, 0 to 1.
    pub gpu_utilization: Option<f64>,
    /// Milliseconds since the last sample.
    pub age_ms: Option<u64>,
    /// Why the last fetch failed, if it did.
    pub error: Option<String>,
}

/// What an operator's change did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeReply {
    /// The tenant or back end.
    pub name: String,
    /// Whether it changed anything: `false` if it already was so.
    pub changed: bool,
    /// The live generation after it.
    pub generation: u64,
}

/// All services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceListReply {
    /// Sorted by name.
    pub services: Vec<ServiceRow>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Its name.
    pub name: String,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its port, or several in a row.
    pub ports: PortRange,
    /// Its protocol.
    pub protocol: Protocol,
    /// How packets get to its back ends.
    pub forward: Forward,
    /// Its pools, in order of preference.
    pub pools: Vec<ServicePoolRow>,
}

/// A pool of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePoolRow {
    /// Its name.
    pub name: String,
    /// What part it plays now.
    pub state: PoolState,
    /// Back ends that are healthy.
    pub healthy: u32,
    /// Back ends.
    pub backends: u32,
}

/// What part a pool plays for a service. Constraints can still send a tenant elsewhere; `policy explain` says where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolState {
    /// Takes new flows.
    Active,
    /// Would take them if those before it failed.
    Standby,
    /// Too few of its back ends are healthy.
    Failed,
}

/// Open flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowsListReply {
    /// Those that match, up to the limit.
    pub flows: Vec<FlowRow>,
    /// How many match in all.
    pub matching: u64,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// The client.
    pub from: SocketAddr,
    /// The virtual address.
    pub to: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// `opening`, `established`, `closing`.
    pub state: FlowState,
    /// Whose it is.
    pub tenant: String,
    /// Where it goes.
    pub service: String,
    /// The rule that allowed it.
    pub rule: Option<String>,
    /// Its back end.
    pub backend: String,
    /// `Nat`: the port in place of the client's.
    pub translated_port: Option<u16>,
    /// The generation under which it was last judged.
    pub generation: u64,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
    /// Milliseconds since its last packet, either way.
    pub idle_ms: u64,
    /// Packets from the client.
    pub packets: u64,
    /// Bytes from the client.
    pub bytes: u64,
    /// Packets to the client; `None` where answers do not come through this host.
    pub reply_packets: Option<u64>,
    /// Bytes to the client.
    pub reply_bytes: Option<u64>,
}

/// Where in its life a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowState {
    /// Only opening packets were seen.
    Opening,
    /// In use.
    Established,
    /// A FIN or RST was seen.
    Closing,
}

/// Records of the audit log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditTailReply {
    /// In the order of their sequence.
    pub records: Vec<AuditRecord>,
    /// What to ask for next: one more than the last record's sequence number.
    pub next: u64,
}

/// The metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricsReply {
    /// OpenMetrics text.
    pub text: String,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DetachReply {
    /// Interfaces that no longer carry a program.
    pub interfaces: Vec<String>,
    /// Pins that were removed.
    pub pins: Vec<String>,
}
