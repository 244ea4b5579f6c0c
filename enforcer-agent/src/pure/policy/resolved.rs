//! The resolved policy: everything typed, checked and in a fixed order, with names turned into indices.
//!
//! The order of tenants, services, pools, back ends, constraints, labels, addresses and prefixes in the text does not
//! matter, so that here they are sorted; the order of rules and of a service's pools does matter, and is kept. Two texts
//! that resolve to the same value enforce the same, and have the same [`super::Digest`].

mod requirement;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, Zone};
use super::selection::Selection;
pub use requirement::{LabelExpression, Operator, Requirement};

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// A policy without errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedPolicy {
    /// Its name.
    pub name: String,
    /// What holds for the policy as a whole.
    pub defaults: Defaults,
    /// Sorted by name.
    pub classes: Vec<Class>,
    /// Sorted by name. (Shared with the policies before and after: most edits leave most of them as they are.)
    pub tenants: Vec<Arc<Tenant>>,
    /// Sorted by name.
    pub services: Vec<Service>,
    /// Sorted by name.
    pub pools: Vec<Pool>,
    /// In the order of judgement: the first enforced rule that matches decides. That is highest priority first, then
    /// `Deny` before `Allow`, then the order of the text.
    pub rules: Vec<Arc<Rule>>,
    /// Sorted, without repetition.
    pub protected_networks: Vec<IpNet>,
    /// Sorted by name.
    pub constraints: Vec<Constraint>,
}

/// What holds for the policy as a whole. (Sources that no tenant claims are refused in any case.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Defaults {
    /// What happens when the agent has not renewed its lease.
    pub on_lease_expiry: LeaseExpiry,
    /// How long the lease lasts, in seconds.
    pub lease_seconds: u32,
}

/// What happens when the agent has not renewed its lease: it may have died, and the policy may be out of date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseExpiry {
    /// The last policy stays in force.
    Hold,
    /// New flows are refused, open ones go on.
    RefuseNew,
    /// Everything is refused.
    RefuseAll,
}

/// A service class: how tenants stand to one another when there is not enough for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Class {
    /// Unique among classes.
    pub name: String,
    /// Share of what is left over, relative to the other classes, from 1.
    pub weight: u32,
    /// New connections of the class are refused while a pool is used to more than this, in percent.
    pub shed_above_percent: Option<u8>,
}

/// Someone who sends traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Unique among tenants.
    pub name: String,
    /// Sorted. No prefix belongs to two tenants; the longest one that holds an address decides.
    pub sources: Vec<IpNet>,
    /// For selectors. Tenants that have the same share them.
    pub labels: Arc<Labels>,
    /// Index into [`ResolvedPolicy::classes`].
    pub class: Option<usize>,
    /// What it may use at most.
    pub limits: Limits,
    /// What it gets in any case.
    pub guaranteed: Guaranteed,
    /// What it may use at most in a period of the calendar; sorted, at most one for each metric and period.
    pub quotas: Vec<Quota>,
}

/// What a tenant gets even if others want more than there is; `None` is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guaranteed {
    /// New connections; never more than the tenant's limit.
    pub new_connections_per_second: Option<u64>,
}

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum QuotaMetric {
    /// New connections (for UDP: new flows).
    Connections,
    /// Bytes of IP packets towards services.
    RequestBytes,
    /// Bytes of IP packets back to the tenant.
    ResponseBytes,
}

/// A period of the calendar, in the quota's time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum QuotaPeriod {
    /// So many hours, counted from midnight; a divisor of 24.
    Hours(u8),
    /// So many days, counted from Monday, 5 January 1970, so that seven of them are a week from Monday to Sunday.
    Days(u16),
    /// A month of the calendar.
    Month,
}

/// What a tenant may use at most in a period of the calendar.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// What is counted.
    pub metric: QuotaMetric,
    /// How long it is counted until it starts from zero again.
    pub per: QuotaPeriod,
    /// How much, from 1: connections or bytes.
    pub limit: u64,
    /// By whose clocks.
    pub time_zone: Zone,
}

/// Limits of a tenant, of a tenant on a service, or of a service; `None` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// New connections (for UDP: new flows) towards services.
    pub new_connections_per_second: Option<u64>,
    /// Packets towards services.
    pub packets_per_second: Option<u64>,
    /// Bytes of IP packets towards services.
    pub bytes_per_second: Option<u64>,
    /// Bytes of IP packets back to clients.
    pub response_bytes_per_second: Option<u64>,
    /// Connections open at the same time.
    pub concurrent_connections: Option<u32>,
    /// How much time's worth of every rate may come at once, in nanoseconds.
    pub burst_ns: u64,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

/// How a packet gets to the back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forward {
    /// Source and destination are rewritten: nothing to configure at the back end.
    Nat,
    /// Only the destination is rewritten: the back end sees the client, and routes its answers through the balancer.
    Dnat,
    /// Only the frame's addresses are rewritten: the back end has the virtual address itself, and answers directly.
    L2Dsr,
    /// The packet is put into an IP packet to the back end, which answers directly.
    Ipip,
    /// The packet is put into a UDP packet to the back end (Generic UDP Encapsulation), which answers directly.
    Gue,
    /// The packet stays on this host, for a proxy.
    Local,
}

// === impl Forward ===

impl Forward {
    /// Whether back ends answer clients without passing here.
    #[must_use]
    pub const fn answers_directly(self) -> bool {
        matches!(self, Self::L2Dsr | Self::Ipip | Self::Gue)
    }

    /// Whether packets go out inside others, so that the families of inside and outside may differ.
    #[must_use]
    pub const fn encapsulates(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }

    /// Whether packets keep their destination: whoever gets them has the virtual address and listens on the service's
    /// own port.
    #[must_use]
    pub const fn keeps_destination(self) -> bool {
        matches!(self, Self::L2Dsr | Self::Ipip | Self::Gue | Self::Local)
    }

    /// Whether packets to a virtual address can be forwarded to a back end: nothing translates between IPv4 and IPv6.
    #[must_use]
    pub const fn reaches(self, virtual_address: IpAddr, backend: IpAddr) -> bool {
        self.encapsulates() || virtual_address.is_ipv4() == backend.is_ipv4()
    }
}

/// What the sender of a refused packet is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Refusal {
    /// Nothing: it finds out by waiting.
    #[default]
    Drop,
    /// A TCP reset; UDP as with `Prohibited`.
    Reset,
    /// ICMP: administratively prohibited.
    Prohibited,
}

/// What becomes of a new connection for which the flow table has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TableFull {
    /// It is refused.
    #[default]
    Refuse,
    /// Its packets go by the Maglev table alone, each judged like one that opens a connection.
    Forward,
}

/// What becomes of an open TCP connection whose back end is no longer eligible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Ineligible {
    /// Its packets go to another back end.
    #[default]
    Move,
    /// The client is told by a reset.
    Reset,
}

/// The ports of a service: one, or several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The first one, never 0.
    pub first: u16,
    /// The last one, not below the first.
    pub last: u16,
}

/// Something that tenants reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Unique among services.
    pub name: String,
    /// The virtual addresses, sorted. No (address, port, protocol) belongs to two services.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: PortRange,
    /// The protocol.
    pub protocol: Protocol,
    /// For selectors.
    pub labels: Labels,
    /// Indices into [`ResolvedPolicy::pools`], in order of preference; never empty, without repetition.
    pub pools: Vec<usize>,
    /// How packets get to its back ends.
    pub forward: Forward,
    /// What the sender of a refused packet is answered.
    pub on_refusal: Refusal,
    /// What becomes of a new connection for which the flow table has no room.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_table_full: TableFull,
    /// What becomes of an open TCP connection whose back end is no longer eligible.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_ineligible: Ineligible,
    /// Whether ICMP echo requests to its addresses are answered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub answer_echo: bool,
    /// What all tenants together may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// A group of back ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Unique among pools.
    pub name: String,
    /// What all of its back ends have, unless they say otherwise.
    pub labels: Labels,
    /// Sorted by name; never empty.
    pub backends: Vec<Backend>,
    /// How their health is found out.
    pub health_check: HealthCheck,
    /// The pool counts as failed when fewer than this share of its back ends, in percent, is healthy, and in any case
    /// when none is. 0 to 100.
    pub healthy_below_percent: u8,
    /// The pool counts as failed while it is used to more than this, in percent.
    pub utilization_above_percent: Option<u8>,
}

/// One inference server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Unique among all back ends of the policy.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// The port on which it listens, never 0.
    pub port: u16,
    /// Its share of new connections relative to the others, from 1.
    pub capacity: u32,
    /// Its own labels; see [`ResolvedPolicy::backend_label`].
    pub labels: Labels,
    /// dcgm-exporter's metrics, an `http` URL.
    pub dcgm_url: Option<String>,
    /// The inference engine's metrics, an `http` URL.
    pub engine_url: Option<String>,
}

/// What a health probe does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// Opens a TCP connection.
    Tcp,
    /// Asks for this path, which starts with `/`, and wants an answer 2xx.
    Http(String),
}

/// How a pool's back ends are probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// What is done.
    pub probe: Probe,
    /// Time between two probes, in nanoseconds.
    pub interval_ns: u64,
    /// Time after which a probe has failed, in nanoseconds; at most `interval_ns`.
    pub timeout_ns: u64,
    /// Failed probes in a row that make a back end unhealthy, from 1.
    pub unhealthy_after: u32,
    /// Good probes in a row that make it healthy again, from 1.
    pub healthy_after: u32,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The tenant may use the service.
    Allow,
    /// It may not.
    Deny,
}

/// Whether a rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It decides.
    Enforce,
    /// It is recorded that it would have decided.
    Shadow,
}

/// Which tenants may, or may not, use which services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Unique among rules.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Whether it decides.
    pub mode: Mode,
    /// The highest is asked first.
    pub priority: i32,
    /// Indices into [`ResolvedPolicy::tenants`].
    pub tenants: Selection,
    /// Indices into [`ResolvedPolicy::services`].
    pub services: Selection,
    /// When it exists; always, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// What each of the tenants may use at most of each of the services, where it decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// The line of the text where the rule begins, to point at it; no part of what is enforced, nor of the digest.
    #[serde(skip)]
    pub line: u32,
    /// The name of the text that this is a line of, if the policy has several.
    #[serde(skip)]
    pub file: Option<Arc<str>>,
}

/// What the back ends of some traffic must be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Constraint {
    /// Unique among constraints.
    pub name: String,
    /// Indices into [`ResolvedPolicy::tenants`].
    pub tenants: Selection,
    /// Indices into [`ResolvedPolicy::services`].
    pub services: Selection,
    /// What a back end's labels must be like for it to be eligible; never empty.
    pub require: Requirement,
}

/// What is as it is by default stands in no digest: it was so before there was a choice.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

// === impl ResolvedPolicy ===

impl ResolvedPolicy {
    /// Whether packets to this address stay on the host, for a proxy: it is that of a `Local` service.
    #[must_use]
    pub fn stays_here(&self, address: IpAddr) -> bool {
        let mut services = self.services.iter();
        services.any(|service| service.forward == Forward::Local && service.addresses.contains(&address))
    }

    /// The value of a back end's label: its own, or else its pool's.
    #[must_use]
    pub fn backend_label<'a>(pool: &'a Pool, backend: &'a Backend, key: &str) -> Option<&'a str> {
        backend
            .labels
            .get(key)
            .or_else(|| pool.labels.get(key))
            .map(String::as_str)
    }
}

// === impl Rule ===

impl Rule {
    /// Whether no schedule ever closes it.
    #[must_use]
    pub fn is_always_open(&self) -> bool {
        self.schedule.as_ref().is_none_or(Schedule::is_always_open)
    }
}

// === impl QuotaMetric ===

impl QuotaMetric {
    /// Its name as a policy has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::RequestBytes => "requestBytes",
            Self::ResponseBytes => "responseBytes",
        }
    }
}

/// As a policy has it: `1h`, `7d`, `month`.
impl fmt::Display for QuotaPeriod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hours(hours) => write!(formatter, "{hours}h"),
            Self::Days(days) => write!(formatter, "{days}d"),
            Self::Month => formatter.write_str("month"),
        }
    }
}

// === impl PortRange ===

impl PortRange {
    /// Whether a port is one of them.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Whether a port is in both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether there is more than one port.
    #[must_use]
    pub const fn is_several(self) -> bool {
        self.first != self.last
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

/// `8000` or `8000-8010`, as it is written in a policy.
impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.first)?;
        if self.is_several() {
            write!(formatter, "-{}", self.last)?;
        }
        Ok(())
    }
}
