//! Policies as plain values, for the generator and the oracle: nothing here is shared with the product's own model of a
//! policy but the text that comes out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Who sends.
    pub tenants: Vec<Tenant>,
    /// What is reached.
    pub services: Vec<Service>,
    /// Groups of back ends.
    pub pools: Vec<Pool>,
    /// Names of the service classes; all of them can be shed.
    #[serde(default)]
    pub classes: Vec<String>,
    /// In the order of the text.
    pub rules: Vec<Rule>,
    /// Reachable through services only.
    pub protected: Vec<IpNet>,
    /// What back ends must be like.
    pub constraints: Vec<Constraint>,
    /// Whether what nothing decides is allowed.
    #[serde(default)]
    pub allow: bool,
}

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its prefixes.
    pub sources: Vec<IpNet>,
    /// For selectors.
    pub labels: Labels,
    /// Its service class.
    #[serde(default)]
    pub class: Option<String>,
    /// What it may use.
    pub limits: Limits,
}

/// What a tenant may use; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// New connections per second.
    pub connections: Option<u64>,
    /// Packets per second.
    pub packets: Option<u64>,
    /// Bytes per second.
    pub bytes: Option<u64>,
    /// Response bytes per second.
    pub responses: Option<u64>,
    /// Connections at the same time.
    pub concurrent: Option<u64>,
    /// Burst in milliseconds.
    pub burst_ms: u64,
}

/// How packets are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forward {
    /// Source and destination are rewritten.
    Nat,
    /// The destination is rewritten.
    Dnat,
    /// Nothing but the link layer.
    L2Dsr,
    /// The packet goes out inside an IP packet.
    Ipip,
    /// The packet goes out inside a UDP packet.
    Gue,
    /// The packet stays on the host.
    Local,
}

// === impl Forward ===

impl Forward {
    /// Whether answers do not come by the balancer.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::L2Dsr | Self::Ipip | Self::Gue)
    }

    /// Whether the packet goes out inside another one.
    #[must_use]
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }

    /// Bytes that this puts before a packet to a back end.
    #[must_use]
    pub const fn overhead_bytes(self, backend: IpAddr) -> u64 {
        let ip = if backend.is_ipv4() { 20 } else { 40 };
        match self {
            Self::Ipip => ip,
            Self::Gue => ip + 8,
            Self::Nat | Self::Dnat | Self::L2Dsr | Self::Local => 0,
        }
    }
}

/// What is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
    /// UDP instead of TCP.
    pub udp: bool,
    /// For selectors.
    pub labels: Labels,
    /// Names of pools in order of preference.
    pub pools: Vec<String>,
    /// How packets are forwarded.
    pub forward: Forward,
    /// What the senders of refused packets are answered.
    #[serde(default)]
    pub on_refusal: Refusal,
    /// What all tenants together may use.
    #[serde(default)]
    pub limits: Option<Limits>,
    /// Whether packets go on where there is no room for their flow.
    #[serde(default)]
    pub stateless: bool,
    /// Whether a connection is reset whose back end is no longer eligible.
    #[serde(default)]
    pub resets: bool,
    /// Whether echo requests to its addresses are answered.
    #[serde(default)]
    pub echo: bool,
}

/// What the sender of a refused packet is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Nothing.
    #[default]
    Drop,
    /// A reset, if it is TCP.
    Reset,
    /// ICMP.
    Prohibited,
}

/// A group of back ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What its back ends have, unless they say otherwise.
    pub labels: Labels,
    /// The back ends.
    pub backends: Vec<Backend>,
}

/// A back end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its share.
    pub capacity: u32,
    /// Its own labels.
    pub labels: Labels,
}

/// Chooses tenants or services; what is `None` chooses all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// One of these names.
    pub names: Option<Vec<String>>,
    /// All of these labels.
    pub labels: Option<Labels>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Deny instead of Allow.
    pub deny: bool,
    /// Shadow instead of Enforce.
    pub shadow: bool,
    /// Higher ones first.
    pub priority: i32,
    /// Of these tenants.
    pub tenants: Selector,
    /// On these services.
    pub services: Selector,
    /// When it exists; always, if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<Hours>,
    /// What each tenant may use of each service.
    #[serde(default)]
    pub limits: Option<Limits>,
}

/// When a rule exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    /// `Mon` to `Sun`.
    pub days: Vec<String>,
    /// The first minute, as on a clock.
    pub from: String,
    /// The minute after the last, as on a clock.
    pub to: String,
    /// Whose clocks.
    pub zone: String,
}

/// What back ends must be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// Its name.
    pub name: String,
    /// For these tenants.
    pub tenants: Selector,
    /// On these services.
    pub services: Selector,
    /// Labels that a back end must have.
    pub require: Labels,
}

// === impl Selector ===

impl Selector {
    /// Whether it chooses something of this name, with these labels.
    #[must_use]
    pub fn chooses(&self, name: &str, labels: &Labels) -> bool {
        let named = self
            .names
            .as_ref()
            .is_none_or(|names| names.iter().any(|one| one == name));
        let labelled = self.labels.as_ref().is_none_or(|wanted| has(labels, wanted));
        named && labelled
    }

    /// The field of a rule; nothing where all are chosen.
    fn field(&self) -> Option<Value> {
        let mut field = serde_json::Map::new();
        if let Some(names) = &self.names {
            field.insert("matchNames".to_owned(), json!(names));
        }
        if let Some(labels) = &self.labels {
            field.insert("matchLabels".to_owned(), json!(labels));
        }
        (!field.is_empty()).then_some(Value::Object(field))
    }
}

/// Whether something has all of these labels.
#[must_use]
pub fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

// === impl Policy ===

impl Policy {
    /// The text, in YAML's flow style.
    #[must_use]
    pub fn text(&self) -> String {
        let document = json!({
            "apiVersion": "enforcer.dev/v1",
            "kind": "GovernancePolicy",
            "metadata": {"name": "generated"},
            "spec": {
                "defaults": {"action": if self.allow { "Allow" } else { "Deny" }},
                "classes": self.classes.iter().map(class_value).collect::<Vec<_>>(),
                "tenants": self.tenants.iter().map(tenant_value).collect::<Vec<_>>(),
                "services": self.services.iter().map(service_value).collect::<Vec<_>>(),
                "pools": self.pools.iter().map(pool_value).collect::<Vec<_>>(),
                "rules": self.rules.iter().map(rule_value).collect::<Vec<_>>(),
                "protectedNetworks": self.protected,
                "constraints": self.constraints.iter().map(constraint_value).collect::<Vec<_>>(),
            },
        });
        document.to_string()
    }

    /// All back ends.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.pools.iter().flat_map(|pool| &pool.backends)
    }
}

fn limits_value(limits: &Limits) -> Value {
    let mut value = json!({"burst": format!("{}ms", limits.burst_ms)});
    for (field, limit) in [
        ("newConnectionsPerSecond", limits.connections),
        ("packetsPerSecond", limits.packets),
        ("bytesPerSecond", limits.bytes),
        ("responseBytesPerSecond", limits.responses),
        ("concurrentConnections", limits.concurrent),
    ] {
        if let Some(limit) = limit {
            value[field] = json!(limit);
        }
    }
    value
}

fn tenant_value(tenant: &Tenant) -> Value {
    let limits = limits_value(&tenant.limits);
    let mut value =
        json!({"name": tenant.name, "sources": tenant.sources, "labels": tenant.labels, "limits": limits});
    if let Some(class) = &tenant.class {
        value["class"] = json!(class);
    }
    value
}

fn class_value(name: &String) -> Value {
    json!({"name": name, "shedAbove": "80%"})
}

fn service_value(service: &Service) -> Value {
    let mut value = json!({
        "name": service.name,
        "addresses": service.addresses,
        "port": service.port,
        "protocol": if service.udp { "UDP" } else { "TCP" },
        "labels": service.labels,
        "pools": service.pools,
        "forward": service.forward,
        "onRefusal": service.on_refusal,
    });
    if let Some(limits) = &service.limits {
        value["limits"] = limits_value(limits);
    }
    if service.stateless {
        value["onTableFull"] = json!("Forward");
    }
    if service.resets {
        value["onIneligible"] = json!("Reset");
    }
    if service.echo {
        value["answerEcho"] = json!(true);
    }
    value
}

fn pool_value(pool: &Pool) -> Value {
    json!({"name": pool.name, "labels": pool.labels, "backends": pool.backends})
}

fn rule_value(rule: &Rule) -> Value {
    let mut value = json!({
        "name": rule.name,
        "action": if rule.deny { "Deny" } else { "Allow" },
        "mode": if rule.shadow { "Shadow" } else { "Enforce" },
        "priority": rule.priority,
    });
    select(&mut value, &rule.tenants, &rule.services);
    if let Some(hours) = &rule.hours {
        value["schedule"] = json!({
            "days": hours.days,
            "from": hours.from,
            "to": hours.to,
            "timeZone": hours.zone,
        });
    }
    if let Some(limits) = &rule.limits {
        value["limits"] = limits_value(limits);
    }
    value
}

fn constraint_value(constraint: &Constraint) -> Value {
    let mut value = json!({
        "name": constraint.name,
        "requireBackend": {"matchLabels": constraint.require},
    });
    select(&mut value, &constraint.tenants, &constraint.services);
    value
}

fn select(value: &mut Value, tenants: &Selector, services: &Selector) {
    if let Some(field) = tenants.field() {
        value["tenants"] = field;
    }
    if let Some(field) = services.field() {
        value["services"] = field;
    }
}
