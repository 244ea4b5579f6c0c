//! Tenants, and what they have used of their quotas.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ReasonCount;
use crate::pure::policy::resolved::{Limits, QuotaMetric};

/// All tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantListReply {
    /// Sorted by name.
    pub tenants: Vec<TenantRow>,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantRow {
    /// Its name.
    pub name: String,
    /// Where it sends from.
    pub sources: Vec<String>,
    /// Whether an operator has suspended it.
    pub suspended: bool,
    /// Connections that it has open.
    pub connections: u64,
    /// What it may use at most.
    pub limits: Limits,
    /// What it has used of its quotas; empty until the first look, a second after it got them.
    #[serde(default)]
    pub quotas: Vec<QuotaRow>,
    /// New connections per second that it is held to while a pool that it uses is contended.
    #[serde(default)]
    pub share: Option<u64>,
    /// What its packets got; reasons never seen are left out.
    pub packets: Vec<ReasonCount>,
}

/// A quota of a tenant in its current window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaRow {
    /// What is counted.
    pub metric: QuotaMetric,
    /// The length of the window: `1h`, `7d`, `month`.
    pub per: String,
    /// By whose clocks windows begin.
    pub time_zone: String,
    /// Connections or bytes used.
    pub used: u64,
    /// Connections or bytes that may be used.
    pub limit: u64,
    /// When it begins anew.
    pub window_ends: Timestamp,
    /// Whether it is used up.
    pub exhausted: bool,
}
