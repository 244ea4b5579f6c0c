//! Policies that were applied before.

use serde::{Deserialize, Serialize};

use super::{PolicyApplyReply, PolicyStatus};

/// Policies that were applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyHistoryReply {
    /// Newest first.
    pub entries: Vec<HistoryRow>,
}

/// A policy that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryRow {
    /// The generation that was live when it had been applied. Several entries have the same if nothing that is enforced
    /// differed.
    pub generation: u64,
    /// Whether it is the one in force.
    pub in_force: bool,
    /// Which policy it is, when it was applied and by whom.
    #[serde(flatten)]
    pub policy: PolicyStatus,
    /// Of a rollback: the generation whose policy it brought back.
    pub rollback_of: Option<u64>,
}

/// What became of a rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRollbackReply {
    /// The generation whose policy was applied again.
    pub restored: u64,
    /// What became of that.
    #[serde(flatten)]
    pub applied: PolicyApplyReply,
}
