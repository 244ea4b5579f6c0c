//! The shape of the YAML: what fields there are, and nothing about what they mean.
//!
//! Scalars are [`Text`]: the characters that were written, with their position. [`super::resolve`] gives them their
//! types. No field may be null (`bytesPerSecond:` with nothing behind it): left out means the default, and null could
//! be read either way.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

/// A scalar as it was written, and where.
pub type Text = Spanned<String>;

/// Labels, as they were written.
pub type LabelTexts = BTreeMap<String, Text>;

/// One YAML document.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Document {
    /// Always `enforcer.dev/v1`.
    pub api_version: Text,
    /// Always `GovernancePolicy`.
    pub kind: Text,
    /// The policy's name.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

/// The name of a policy. Several documents of one policy carry the same name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// For people, audit records and metrics.
    pub name: Text,
}

/// The body of a document. The lists of several documents are joined in the order of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// What happens to a source that no tenant claims.
    #[serde(default, deserialize_with = "not_null")]
    pub defaults: Option<Defaults>,
    /// Who may send.
    #[serde(default)]
    pub tenants: Vec<Tenant>,
    /// What may be reached.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Groups of back ends that can stand in for one another.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// Which tenant may use which service.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Networks that can be reached through a service only.
    #[serde(default)]
    pub protected_networks: Vec<Text>,
    /// What back ends must be like, failover included.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
}

/// Defaults of the policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Defaults {
    /// `Deny`.
    #[serde(default, deserialize_with = "not_null")]
    pub action: Option<Text>,
}

/// Someone who sends traffic.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Tenant {
    /// Unique among tenants.
    pub name: Text,
    /// CIDR prefixes; the longest one that holds a source address decides.
    pub sources: Vec<Text>,
    /// For selectors.
    #[serde(default)]
    pub labels: LabelTexts,
    /// What it may use at most.
    #[serde(default, deserialize_with = "not_null")]
    pub limits: Option<Limits>,
}

/// Limits of a tenant; what is left out is unlimited.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// New connections (for UDP: new flows).
    #[serde(default, deserialize_with = "not_null")]
    pub new_connections_per_second: Option<Text>,
    /// Packets towards services.
    #[serde(default, deserialize_with = "not_null")]
    pub packets_per_second: Option<Text>,
    /// Bytes towards services.
    #[serde(default, deserialize_with = "not_null")]
    pub bytes_per_second: Option<Text>,
    /// Bytes back to the tenant.
    #[serde(default, deserialize_with = "not_null")]
    pub response_bytes_per_second: Option<Text>,
    /// Connections open at the same time.
    #[serde(default, deserialize_with = "not_null")]
    pub concurrent_connections: Option<Text>,
    /// How much time's worth of every rate may come at once.
    #[serde(default, deserialize_with = "not_null")]
    pub burst: Option<Text>,
}

/// Something that tenants reach: virtual addresses and a port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// Unique among services.
    pub name: Text,
    /// The virtual addresses (VIPs).
    pub addresses: Vec<Text>,
    /// The port.
    pub port: Text,
    /// `TCP` or `UDP`.
    pub protocol: Text,
    /// For selectors.
    #[serde(default)]
    pub labels: LabelTexts,
    /// Names of pools in order of preference; all but the first are failover.
    pub pools: Vec<Text>,
    /// `Nat`, `Dnat` or `L2Dsr`.
    pub forward: Text,
}

/// A group of back ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pool {
    /// Unique among pools.
    pub name: Text,
    /// Labels that all of its back ends have, unless they say otherwise.
    #[serde(default)]
    pub labels: LabelTexts,
    /// The back ends.
    pub backends: Vec<Backend>,
    /// How their health is found out.
    #[serde(default, deserialize_with = "not_null")]
    pub health_check: Option<Spanned<HealthCheck>>,
    /// When the pool as a whole counts as failed.
    #[serde(default, deserialize_with = "not_null")]
    pub failover: Option<Failover>,
}

/// One inference server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Backend {
    /// Unique among all back ends of the policy.
    pub name: Text,
    /// Where it is.
    pub address: Text,
    /// The port on which it listens.
    pub port: Text,
    /// Its share of new connections relative to the others.
    #[serde(default, deserialize_with = "not_null")]
    pub capacity: Option<Text>,
    /// For constraints; they win over the pool's.
    #[serde(default)]
    pub labels: LabelTexts,
    /// Where to ask how loaded it is.
    #[serde(default, deserialize_with = "not_null")]
    pub telemetry: Option<Telemetry>,
}

/// Where a back end's load can be read, in Prometheus text format.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Telemetry {
    /// dcgm-exporter.
    #[serde(default, deserialize_with = "not_null")]
    pub dcgm: Option<Text>,
    /// The inference engine's own metrics.
    #[serde(default, deserialize_with = "not_null")]
    pub engine: Option<Text>,
}

/// How a pool's back ends are probed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HealthCheck {
    /// `true`: a TCP connection that opens is enough.
    #[serde(default, deserialize_with = "not_null")]
    pub tcp: Option<Text>,
    /// A path that answers 2xx.
    #[serde(default, deserialize_with = "not_null")]
    pub http: Option<Text>,
    /// Time between two probes.
    #[serde(default, deserialize_with = "not_null")]
    pub interval: Option<Text>,
    /// Time after which a probe has failed.
    #[serde(default, deserialize_with = "not_null")]
    pub timeout: Option<Text>,
    /// Failed probes in a row that make a back end unhealthy.
    #[serde(default, deserialize_with = "not_null")]
    pub unhealthy_after: Option<Text>,
    /// Good probes in a row that make it healthy again.
    #[serde(default, deserialize_with = "not_null")]
    pub healthy_after: Option<Text>,
}

/// When a pool as a whole counts as failed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Failover {
    /// Share of healthy back ends under which the next pool is taken.
    pub healthy_below: Text,
}

/// Which tenants may, or may not, use which services.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// Unique among rules.
    pub name: Text,
    /// `Allow` or `Deny`.
    pub action: Text,
    /// `Enforce` (the default) or `Shadow`.
    #[serde(default, deserialize_with = "not_null")]
    pub mode: Option<Text>,
    /// The highest is asked first; 0 when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub priority: Option<Text>,
    /// All tenants when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub tenants: Option<Spanned<Selector>>,
    /// All services when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub services: Option<Spanned<Selector>>,
    /// When the rule exists; always when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub schedule: Option<Spanned<Schedule>>,
}

/// When a rule exists: a window that comes back on some days of every week.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Schedule {
    /// The days on which the window begins, `Mon` to `Sun`; all when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub days: Option<Vec<Text>>,
    /// When it begins, `HH:MM`; `00:00` when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub from: Option<Text>,
    /// When it ends, `HH:MM`, on the next day if that is not after the beginning; `24:00` when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub to: Option<Text>,
    /// By whose clocks: a name of the IANA time zone database; `UTC` when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub time_zone: Option<Text>,
}

/// What the back ends of some traffic must be like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Constraint {
    /// Unique among constraints.
    pub name: Text,
    /// All tenants when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub tenants: Option<Spanned<Selector>>,
    /// All services when left out.
    #[serde(default, deserialize_with = "not_null")]
    pub services: Option<Spanned<Selector>>,
    /// What a back end must have to be eligible.
    pub require_backend: Spanned<BackendRequirement>,
}

/// Labels that a back end must have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackendRequirement {
    /// All of them.
    pub match_labels: LabelTexts,
}

/// Chooses by name, by label, or by both (then both must hold).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    /// One of these names.
    #[serde(default, deserialize_with = "not_null")]
    pub match_names: Option<Vec<Text>>,
    /// All of these labels.
    #[serde(default, deserialize_with = "not_null")]
    pub match_labels: Option<LabelTexts>,
}

/// A field that may be left out, but not be null.
fn not_null<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}
