//! What a simulation found: the same for people and for programs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What would change if the policy after took the place of the policy before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The policy that is compared with.
    pub before: PolicyRef,
    /// The candidate.
    pub after: PolicyRef,
    /// What was replayed.
    pub traffic: Traffic,
    /// What became of it.
    pub totals: Totals,
    /// Decisions that differ, most packets first, verdicts that change before all others.
    pub changes: Vec<ChangeRow>,
    /// What did not fit into `changes`.
    pub omitted: Omitted,
    /// New connections by back end, sorted by name; back ends that got none under both policies are left out.
    pub backends: Vec<BackendRow>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: String,
}

/// What kind of traffic was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TrafficKind {
    /// Packets of a pcap or pcapng file: each is judged with the flows and limits that those before it left.
    Capture,
    /// Decisions of an audit log: each is judged as a new connection, limits aside.
    AuditLog,
}

/// What was replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Packets or records.
    pub kind: TrafficKind,
    /// Time of the first one that was judged.
    pub first: Option<Timestamp>,
    /// Time of the last one.
    pub last: Option<Timestamp>,
    /// Why the traffic ended before its end, if it did: what was read until then is in the report.
    pub ended: Option<String>,
    /// What else is to be known of it, a sentence each.
    pub notes: Vec<String>,
}

/// What became of all packets, or of all records. `read` is the sum of all others but the last two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Packets or records that were read.
    pub read: u64,
    /// Both policies say the same, for the same reason.
    pub unchanged: u64,
    /// The verdict changes: forwarded, refused or passed.
    pub changed: u64,
    /// The same verdict for another tenant, service, reason or rule.
    pub same_verdict_otherwise: u64,
    /// Both policies admit it, and limits decide that a sampled log cannot tell. Audit logs only.
    pub unknown: u64,
    /// Answers on a connection that does not exist, or is not answered through this host, under one of the policies.
    pub without_connection: u64,
    /// Too little of the packet was captured to judge it.
    pub cut_short: u64,
    /// Packets of a kind of link that is not read; records that are no decision on a new connection.
    pub skipped: u64,
    /// Decisions that the log holds only as counts.
    pub only_counted: u64,
    /// New connections that both policies admit, to different back ends.
    pub other_backend: u64,
}

/// Decisions that differ in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeRow {
    /// Under the policy before.
    pub before: Finding,
    /// Under the policy after.
    pub after: Finding,
    /// Packets, or decisions of the log.
    pub packets: u64,
    /// Distinct 5-tuples among them, seen from the client.
    pub connections: u64,
    /// The side that admits has limits, and whether these would have refused is not known. Audit logs only.
    pub limits_unknown: bool,
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Whose packet it is.
    pub tenant: Option<String>,
    /// Where it goes.
    pub service: Option<String>,
    /// `forwarded`, `passed` or `refused`.
    pub verdict: String,
    /// `Reason::name`.
    pub reason: String,
    /// The rule that decides.
    pub rule: Option<String>,
}

/// What is not in the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Omitted {
    /// Rows; more than this, if there were too many to count.
    pub rows: u64,
    /// Their packets.
    pub packets: u64,
}

/// A back end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Its name.
    pub name: String,
    /// New connections under the policy before.
    pub before: u64,
    /// New connections under the policy after.
    pub after: u64,
}
