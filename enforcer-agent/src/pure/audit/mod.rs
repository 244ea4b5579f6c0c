//! Audit records: what is written down of a decision or a change, and the chain that holds the records together.
//!
//! It owns the form of a record and of its line, and how lines are chained and checked. It never opens a file: that is
//! `adapters::audit_file`.

mod chain;
mod decode;

use std::fmt;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::policy::resolved::Protocol;

pub use chain::{
    Chain, ChainError, ChainFault, ChainHash, ChainSummary, FORMAT, Identity, Line, SealError, SegmentHeader,
    line_sequence, read_line, verify_chain,
};
pub use decode::{DecodeError, Names, decision, flow_tuple, name_or_number, named};

/// One record as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// Counts from 1 without gaps, over restarts and segments.
    pub sequence: u64,
    /// The host that wrote it.
    pub host: String,
    /// The kernel's boot id: kernel times of different boots cannot be compared.
    pub boot_id: String,
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
    /// SHA-256 of the previous line's hash and this line without its hash.
    pub hash: ChainHash,
}

/// What a record says, before it has its place in the log. Absent fields do not apply or are not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Wall-clock time.
    pub time: Timestamp,
    /// Kernel monotonic time in nanoseconds.
    pub kernel_time_ns: u64,
    /// The generation that decided, or that was live.
    pub generation: u64,
    /// Digest of the policy of that generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_digest: Option<String>,
    /// What kind of record it is.
    pub kind: Kind,
    /// Which way the packet went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// `Reason::name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The back end, or the back end or pool that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The 5-tuple.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowTuple>,
    /// Packets: of the flow, or of what was aggregated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Bytes from the IP header on: of the packet, the flow, or what was aggregated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// `Aggregated` and `Lost`: how many decisions or records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The rule in shadow mode that would have decided otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// What changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// Kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A flow was admitted.
    FlowOpened,
    /// A flow was given another back end.
    FlowMoved,
    /// A flow ended or timed out.
    FlowClosed,
    /// A packet was refused.
    Refused,
    /// Decisions that the kernel only counted, since their share of records was used up.
    Aggregated,
    /// Decisions or records that are missing: `change.what` says where.
    Lost,
    /// Somebody asked for a change.
    Control,
    /// A back end's health changed.
    BackendHealth,
    /// A pool failed or recovered.
    PoolState,
    /// A back end's published weight changed.
    WeightChange,
    /// A rule's schedule opened or closed it.
    Schedule,
    /// A pool begins or ceases to refuse new flows of a service class.
    Shedding,
    /// A tenant is held to a share of what a contended pool can take, to another one, or no longer.
    FairShare,
    /// A tenant has used up a quota, or its window began anew.
    Quota,
    /// The agent started, or adopted a running data plane.
    Started,
    /// The agent stopped.
    Stopped,
    /// The log itself was repaired, such as by cutting off a half-written line.
    Repaired,
}

/// A 5-tuple as the packet had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTuple {
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// TCP or UDP; absent for other protocols.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The port in place of the client's, where the flow is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translated_port: Option<u16>,
}

/// What a rule in shadow mode would have done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// The rule.
    pub rule: String,
    /// `Reason::name`.
    pub reason: String,
}

/// What changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The request or the thing: `policyApply`, `tenantSuspend`, `weight`, `health`.
    pub what: String,
    /// What it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why: the signals that caused it, or why it was refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Judged by XDP.
    Ingress,
    /// Judged by the TC egress program.
    Egress,
}

/// Who asked: the peer of the control socket, as the kernel vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    /// Effective user at the time of `connect`.
    pub uid: u32,
    /// Process at the time of `connect`; absent if it lies outside the daemon's pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

// === impl Entry ===

impl Entry {
    /// An entry of a kind, with everything else absent.
    #[must_use]
    pub const fn new(kind: Kind, time: Timestamp, kernel_time_ns: u64, generation: u64) -> Self {
        Self {
            time,
            kernel_time_ns,
            generation,
            policy_digest: None,
            kind,
            direction: None,
            reason: None,
            tenant: None,
            service: None,
            rule: None,
            backend: None,
            flow: None,
            packets: None,
            bytes: None,
            count: None,
            shadow: None,
            actor: None,
            change: None,
        }
    }
}

// === impl Kind ===

impl Kind {
    /// Its name as it stands in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowOpened => "FlowOpened",
            Self::FlowMoved => "FlowMoved",
            Self::FlowClosed => "FlowClosed",
            Self::Refused => "Refused",
            Self::Aggregated => "Aggregated",
            Self::Lost => "Lost",
            Self::Control => "Control",
            Self::BackendHealth => "BackendHealth",
            Self::PoolState => "PoolState",
            Self::WeightChange => "WeightChange",
            Self::Schedule => "Schedule",
            Self::Shedding => "Shedding",
            Self::FairShare => "FairShare",
            Self::Quota => "Quota",
            Self::Started => "Started",
            Self::Stopped => "Stopped",
            Self::Repaired => "Repaired",
        }
    }
}

// === impl Direction ===

impl Direction {
    /// Its name as it stands in metrics, records and replies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

// === impl Actor ===

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(formatter, "uid {} (pid {pid})", self.uid),
            None => write!(formatter, "uid {}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests;
