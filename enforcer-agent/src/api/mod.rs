//! The control API: what a peer may ask the daemon, and what it answers.
//!
//! Frames of JSON with a length of four bytes before each, over a Unix socket. Every frame carries the protocol's
//! version, and both sides refuse another one. Reading and writing are apart: see [`Role`].
//!
//! It owns the shape of requests and replies. It never acts on one: the daemon's loop does, and the command line turns
//! replies into tables; both `--output table` and `--output json` come from the structs in [`reply`].

pub mod client;
pub mod reply;
pub mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

pub use enforcer_common::abi::capture::CAPTURE_BYTES;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use crate::pure::audit::{Actor, Direction};
pub use crate::pure::policy::PolicySource;
use crate::pure::policy::bounds::{MAX_SOURCES, MAX_TEXT_BYTES};
pub use crate::pure::policy::resolved::Protocol;
pub use reply::Reply;

/// Raised with every change of a request or a reply that an older peer would misread.
pub const PROTOCOL_VERSION: u32 = 2;
/// Largest frame that a client reads, and that the server reads of a peer that may write: the largest policy fits, with
/// the names of its texts, also where JSON has to write six bytes for each.
pub const MAX_FRAME_BYTES: usize = 6 * (MAX_TEXT_BYTES + MAX_SOURCES * MAX_PATH_BYTES) + (64 << 10);
/// Longest name of a text: the longest path that Linux takes.
const MAX_PATH_BYTES: usize = 4096;
/// Largest frame that the server reads of a peer that may only read.
pub const MAX_READER_FRAME_BYTES: usize = 64 << 10;
/// Most rows in one reply of `FlowsList`, `MapsDump` and `AuditTail`; a larger limit counts as this.
pub const MAX_ROWS: u32 = 10_000;

/// Most packets of one capture.
pub const MAX_CAPTURE_PACKETS: u32 = 100_000;
/// Longest time of one capture.
pub const MAX_CAPTURE_SECONDS: u32 = 3600;
/// The least that is copied of a packet: its link-layer header.
pub const MIN_SNAP_BYTES: u32 = 14;

/// What a peer asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "do",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Request {
    /// How the daemon and the data plane are.
    Status,
    /// Make this the policy, if it has no errors.
    PolicyApply {
        /// The policy itself, in the order of the names of its texts.
        sources: Vec<PolicySource>,
        /// Check and compile as if it were to be applied, and then do not.
        dry_run: bool,
    },
    /// The policy in force, or an earlier one.
    PolicyShow {
        /// The generation as which it was applied; `None`: the one in force.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
    },
    /// Policies that were applied.
    PolicyHistory,
    /// Apply the text of an earlier policy again.
    PolicyRollback {
        /// The generation as which it was applied; `None`: the last one that differs from the one in force.
        generation: Option<u64>,
    },
    /// What a packet would get, and why.
    PolicyExplain {
        /// Where it comes from; port 0 stands for any.
        from: SocketAddr,
        /// Where it goes.
        to: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// For which time the schedules are asked; all else, such as health and limits, is as it is now. Now if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Timestamp>,
    },
    /// All tenants.
    TenantList,
    /// Refuse everything of a tenant until it is resumed; also over restarts and policy changes.
    TenantSuspend {
        /// The tenant.
        name: String,
    },
    /// Lift a suspension.
    TenantResume {
        /// The tenant.
        name: String,
    },
    /// All back ends.
    BackendList,
    /// Give a back end no new flows until it is undrained; those it has stay.
    BackendDrain {
        /// The back end.
        name: String,
    },
    /// Lift a drain.
    BackendUndrain {
        /// The back end.
        name: String,
    },
    /// All services.
    ServiceList,
    /// Open flows.
    FlowsList {
        /// Most rows to return, at most [`MAX_ROWS`].
        limit: u32,
        /// Only these.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// All maps.
    MapsList,
    /// Entries of a map that are not all zero.
    MapsDump {
        /// The map, as the schema names it.
        name: String,
        /// Most rows to return, at most [`MAX_ROWS`].
        limit: u32,
    },
    /// Records of the audit log.
    AuditTail {
        /// The first sequence number to return; `None` returns the last `limit` records.
        from: Option<u64>,
        /// Most records to return, at most [`MAX_ROWS`].
        limit: u32,
    },
    /// Begin to capture packets; one capture at a time.
    CaptureBegin(CaptureOrder),
    /// Packets that were captured since the last time.
    CaptureRead {
        /// The capture, as its begin named it.
        serial: u32,
    },
    /// End a capture before its time.
    CaptureEnd {
        /// The capture, as its begin named it.
        serial: u32,
    },
    /// The metrics, as the HTTP endpoint gives them.
    Metrics,
    /// Take the programs off the interfaces, remove everything that is pinned, and end the daemon.
    Detach,
}

/// Which flows to list; an absent field takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowFilter {
    /// Flows of this tenant.
    pub tenant: Option<String>,
    /// Flows to this service.
    pub service: Option<String>,
    /// Flows on this back end.
    pub backend: Option<String>,
}

/// Which packets to capture, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureOrder {
    /// Names of reasons: those for which a packet is refused, or left to the host.
    pub reasons: BTreeSet<String>,
    /// Only those of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Only those to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// After so many packets it ends: 1 to [`MAX_CAPTURE_PACKETS`].
    pub count: u32,
    /// After so many seconds it ends: 1 to [`MAX_CAPTURE_SECONDS`].
    pub seconds: u32,
    /// Bytes that are copied of a packet at most: [`MIN_SNAP_BYTES`] to [`CAPTURE_BYTES`].
    pub snap_bytes: u32,
}

/// What a peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Ask, but change nothing.
    Read,
    /// Everything.
    Write,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// What else is known, by name: the limit, the diagnostics, the nearest name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, serde_json::Value>,
}

/// Kinds of [`ApiError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    /// Peer and daemon speak different versions of the protocol.
    Version,
    /// The frame is no request.
    Malformed,
    /// The peer may not do this.
    Forbidden,
    /// There is no tenant, back end, map of this name.
    NotFound,
    /// The policy has errors: `details.diagnostics` holds them.
    PolicyInvalid,
    /// What was asked cannot be done in the state that things are in.
    Refused,
    /// Too many connections or requests at once: try again.
    Busy,
    /// The daemon is about to end.
    ShuttingDown,
    /// The daemon failed at it. What was enforced before still is.
    Internal,
}

/// A request on its way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFrame {
    version: u32,
    request: Request,
}

/// A reply on its way.
#[derive(Debug, Serialize, Deserialize)]
struct ReplyFrame {
    version: u32,
    outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    Ok(Reply),
    Error(ApiError),
}

/// The one field that frames of all versions share.
#[derive(Debug, Deserialize)]
struct VersionOnly {
    version: u32,
}

// === impl Request ===

impl Request {
    /// What a peer must be allowed to do to ask this.
    #[must_use]
    pub const fn role(&self) -> Role {
        match self {
            Self::Status
            | Self::PolicyShow { .. }
            | Self::PolicyHistory
            | Self::PolicyExplain { .. }
            | Self::PolicyApply { dry_run: true, .. }
            | Self::TenantList
            | Self::BackendList
            | Self::ServiceList
            | Self::FlowsList { .. }
            | Self::MapsList
            | Self::MapsDump { .. }
            | Self::AuditTail { .. }
            | Self::Metrics => Role::Read,
            Self::PolicyApply { dry_run: false, .. }
            | Self::PolicyRollback { .. }
            | Self::TenantSuspend { .. }
            | Self::TenantResume { .. }
            | Self::BackendDrain { .. }
            | Self::BackendUndrain { .. }
            // Packets hold what tenants send.
            | Self::CaptureBegin(_)
            | Self::CaptureRead { .. }
            | Self::CaptureEnd { .. }
            | Self::Detach => Role::Write,
        }
    }

    /// Its name, for logs and audit records.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::PolicyApply { .. } => "policyApply",
            Self::PolicyShow { .. } => "policyShow",
            Self::PolicyHistory => "policyHistory",
            Self::PolicyRollback { .. } => "policyRollback",
            Self::PolicyExplain { .. } => "policyExplain",
            Self::TenantList => "tenantList",
            Self::TenantSuspend { .. } => "tenantSuspend",
            Self::TenantResume { .. } => "tenantResume",
            Self::BackendList => "backendList",
            Self::BackendDrain { .. } => "backendDrain",
            Self::BackendUndrain { .. } => "backendUndrain",
            Self::ServiceList => "serviceList",
            Self::FlowsList { .. } => "flowsList",
            Self::MapsList => "mapsList",
            Self::MapsDump { .. } => "mapsDump",
            Self::AuditTail { .. } => "auditTail",
            Self::CaptureBegin(_) => "captureBegin",
            Self::CaptureRead { .. } => "captureRead",
            Self::CaptureEnd { .. } => "captureEnd",
            Self::Metrics => "metrics",
            Self::Detach => "detach",
        }
    }
}

// === impl ApiError ===

impl ApiError {
    /// An error without details.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: BTreeMap::new(),
        }
    }

    /// The same error with one more detail. What cannot be put into JSON is left out.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.details.insert(name.to_owned(), value);
        }
        self
    }
}

#[cfg(test)]
mod tests;
