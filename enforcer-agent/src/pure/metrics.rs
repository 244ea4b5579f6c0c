//! Metrics in OpenMetrics text, from a snapshot of numbers. Names, units and reasons are those of everything else.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Everything that is exported, as it stands at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The live generation.
    pub generation: u64,
    /// Name and digest of the policy in force.
    pub policy: Option<(String, String)>,
    /// Judged packets.
    pub packets: Vec<Packets>,
    /// Tenants.
    pub tenants: Vec<Tenant>,
    /// Back ends.
    pub backends: Vec<Backend>,
    /// Pools.
    pub pools: Vec<Pool>,
    /// Pools, each with a class that can be shed, and whether it is.
    pub sheds: Vec<(String, String, bool)>,
    /// Quotas.
    pub quotas: Vec<Quota>,
    /// Flows in the table, and how many fit.
    pub flows: (u64, u64),
    /// Audit records written.
    pub audit_sequence: u64,
    /// Records lost in the agent.
    pub audit_lost: u64,
    /// Whether the audit log can be written.
    pub audit_writable: bool,
}

/// Judged packets with one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packets {
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// The tenant; empty for nobody's.
    pub tenant: String,
    /// `Reason::name`.
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// Decisions that went out as an event.
    pub recorded: u64,
    /// Decisions that were only counted.
    pub aggregated: u64,
    /// Decisions whose event found the ring buffer full.
    pub lost: u64,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Open connections.
    pub connections: u64,
    /// Whether it is suspended.
    pub suspended: bool,
    /// New connections per second that it is held to; none while no pool that it uses is contended.
    pub share: Option<u64>,
    /// New connections per second that it asks for, where that is measured.
    pub demand: Option<u64>,
}

/// A back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Published weight.
    pub weight: u64,
    /// Whether its probes pass.
    pub healthy: bool,
    /// Whether an operator drains it.
    pub draining: bool,
    /// Open connections.
    pub connections: u64,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Whether it counts as failed.
    pub failed: bool,
    /// How much of it is used; `None` if nothing is known, and then nothing is exported.
    pub utilization_per_mille: Option<u16>,
}

/// A quota in its current window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// The tenant.
    pub tenant: String,
    /// What is counted.
    pub metric: &'static str,
    /// The length of the window.
    pub per: String,
    /// Connections or bytes used.
    pub used: u64,
    /// Connections or bytes that may be used.
    pub limit: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    direction: &'static str,
    reason: &'static str,
    tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    direction: &'static str,
    reason: &'static str,
    tenant: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabels {
    tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    backend: String,
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShedLabels {
    pool: String,
    class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QuotaLabels {
    tenant: String,
    metric: &'static str,
    per: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabels {
    policy: String,
    digest: String,
}

type Counts<L> = Family<L, Counter>;
type Levels<L> = Family<L, Gauge<u64, AtomicU64>>;

/// The text of the metrics endpoint.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let mut registry = Registry::with_prefix("enforcer");
    packets(&mut registry, &snapshot.packets);
    tenants(&mut registry, &snapshot.tenants);
    backends(&mut registry, &snapshot.backends);
    pools(&mut registry, &snapshot.pools, &snapshot.sheds);
    quotas(&mut registry, &snapshot.quotas);
    let mut level = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    level(
        "generation",
        "Live generation of the configuration tables",
        snapshot.generation,
    );
    level("flows", "Flows in the flow table", snapshot.flows.0);
    level(
        "flows_capacity",
        "Flows that fit into the flow table",
        snapshot.flows.1,
    );
    level(
        "audit_sequence",
        "Sequence number of the last audit record",
        snapshot.audit_sequence,
    );
    level(
        "audit_writable",
        "Whether the audit log can be written",
        snapshot.audit_writable.into(),
    );
    let lost = Counter::<u64>::default();
    lost.inc_by(snapshot.audit_lost);
    registry.register(
        "audit_lost",
        "Audit records lost in the agent since it started",
        lost,
    );
    if let Some((policy, digest)) = &snapshot.policy {
        let info = Levels::<PolicyLabels>::default();
        info.get_or_create(&PolicyLabels {
            policy: policy.clone(),
            digest: digest.clone(),
        })
        .set(1);
        registry.register(
            "policy_in_force",
            "The policy in force and its SHA-256 digest",
            info,
        );
    }
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = text::encode(&mut text, &registry);
    text
}

fn packets(registry: &mut Registry, rows: &[Packets]) {
    let (packets, bytes) = (
        Counts::<PacketLabels>::default(),
        Counts::<PacketLabels>::default(),
    );
    let decisions = Counts::<DecisionLabels>::default();
    for row in rows {
        let labels = PacketLabels {
            direction: row.direction,
            reason: row.reason,
            tenant: row.tenant.clone(),
        };
        packets.get_or_create(&labels).inc_by(row.packets);
        bytes.get_or_create(&labels).inc_by(row.bytes);
        for (outcome, count) in [
            ("recorded", row.recorded),
            ("aggregated", row.aggregated),
            ("lost", row.lost),
        ] {
            if count > 0 {
                let PacketLabels {
                    direction,
                    reason,
                    tenant,
                } = labels.clone();
                decisions
                    .get_or_create(&DecisionLabels {
                        direction,
                        reason,
                        tenant,
                        outcome,
                    })
                    .inc_by(count);
            }
        }
    }
    registry.register("packets", "Packets judged, by reason", packets);
    registry.register(
        "bytes",
        "Bytes of judged packets from the IP header on, by reason",
        bytes,
    );
    registry.register(
        "audit_decisions",
        "Decisions that call for an audit record, by what became of it",
        decisions,
    );
}

fn tenants(registry: &mut Registry, rows: &[Tenant]) {
    let (connections, suspended) = (
        Levels::<TenantLabels>::default(),
        Levels::<TenantLabels>::default(),
    );
    let (share, demand) = (
        Levels::<TenantLabels>::default(),
        Levels::<TenantLabels>::default(),
    );
    for row in rows {
        let labels = TenantLabels {
            tenant: row.name.clone(),
        };
        connections.get_or_create(&labels).set(row.connections);
        suspended.get_or_create(&labels).set(row.suspended.into());
        for (level, value) in [(&share, row.share), (&demand, row.demand)] {
            if let Some(value) = value {
                level.get_or_create(&labels).set(value);
            }
        }
    }
    registry.register("tenant_connections", "Open connections of a tenant", connections);
    registry.register(
        "tenant_suspended",
        "Whether an operator has suspended a tenant",
        suspended,
    );
    registry.register(
        "tenant_share",
        "New connections per second that a tenant is held to while a pool that it uses is contended",
        share,
    );
    registry.register(
        "tenant_demand",
        "New connections per second that a tenant asks for while a pool that it uses is contended",
        demand,
    );
}

fn backends(registry: &mut Registry, rows: &[Backend]) {
    let (weight, healthy) = (
        Levels::<BackendLabels>::default(),
        Levels::<BackendLabels>::default(),
    );
    let (draining, connections) = (
        Levels::<BackendLabels>::default(),
        Levels::<BackendLabels>::default(),
    );
    for row in rows {
        let labels = BackendLabels {
            backend: row.name.clone(),
            pool: row.pool.clone(),
        };
        weight.get_or_create(&labels).set(row.weight);
        healthy.get_or_create(&labels).set(row.healthy.into());
        draining.get_or_create(&labels).set(row.draining.into());
        connections.get_or_create(&labels).set(row.connections);
    }
    registry.register(
        "backend_weight",
        "Published weight: capacity times a share of 0 to 1000",
        weight,
    );
    registry.register("backend_healthy", "Whether a back end passes its probes", healthy);
    registry.register(
        "backend_draining",
        "Whether an operator drains a back end",
        draining,
    );
    registry.register(
        "backend_connections",
        "Open connections to a back end",
        connections,
    );
}

fn pools(registry: &mut Registry, rows: &[Pool], sheds: &[(String, String, bool)]) {
    let (failed, used) = (
        Levels::<PoolLabels>::default(),
        Family::<PoolLabels, Gauge<f64, AtomicU64>>::default(),
    );
    for row in rows {
        let labels = PoolLabels {
            pool: row.name.clone(),
        };
        failed.get_or_create(&labels).set(row.failed.into());
        if let Some(per_mille) = row.utilization_per_mille {
            used.get_or_create(&labels).set(f64::from(per_mille) / 1000.0);
        }
    }
    let shed = Levels::<ShedLabels>::default();
    for (pool, class, sheds) in sheds {
        let labels = ShedLabels {
            pool: pool.clone(),
            class: class.clone(),
        };
        shed.get_or_create(&labels).set((*sheds).into());
    }
    registry.register(
        "pool_failed",
        "Whether a pool counts as failed, by health or by utilization",
        failed,
    );
    registry.register(
        "pool_utilization_ratio",
        "Saturation of the back ends that take new flows, by capacity",
        used,
    );
    registry.register("pool_sheds", "Whether a pool refuses new flows of a class", shed);
}

fn quotas(registry: &mut Registry, rows: &[Quota]) {
    let (used, limit) = (Levels::<QuotaLabels>::default(), Levels::<QuotaLabels>::default());
    for row in rows {
        let labels = QuotaLabels {
            tenant: row.tenant.clone(),
            metric: row.metric,
            per: row.per.clone(),
        };
        used.get_or_create(&labels).set(row.used);
        limit.get_or_create(&labels).set(row.limit);
    }
    registry.register(
        "quota_used",
        "Connections or bytes used in the current window",
        used,
    );
    registry.register(
        "quota_limit",
        "Connections or bytes that may be used in a window",
        limit,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_parser_reads_the_same_numbers() {
        let snapshot = Snapshot {
            generation: 7,
            policy: Some(("prod \"x\"\\".to_owned(), "ab".repeat(32))),
            packets: vec![Packets {
                direction: "ingress",
                tenant: "acme".to_owned(),
                reason: "ByteRate",
                packets: 3,
                bytes: 4_000_000_000_000,
                recorded: 1,
                aggregated: 2,
                lost: 0,
            }],
            tenants: vec![Tenant {
                name: "acme".to_owned(),
                connections: 5,
                suspended: true,
                share: Some(30),
                demand: None,
            }],
            backends: vec![Backend {
                name: "gpu-1".to_owned(),
                pool: "eu".to_owned(),
                weight: 100_000,
                healthy: true,
                draining: false,
                connections: 5,
            }],
            pools: vec![Pool {
                name: "eu".to_owned(),
                failed: true,
                utilization_per_mille: Some(913),
            }],
            sheds: vec![("eu".to_owned(), "bronze".to_owned(), true)],
            quotas: vec![Quota {
                tenant: "acme".to_owned(),
                metric: "responseBytes",
                per: "1d".to_owned(),
                used: 3_000_000_000_000,
                limit: 4_000_000_000_000,
            }],
            flows: (5, 10),
            audit_sequence: 9,
            audit_lost: 0,
            audit_writable: true,
        };
        let text = render(&snapshot);
        let scrape = prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let value = |metric: &str, label: Option<(&str, &str)>| {
            let found = scrape.samples.iter().find(|sample| {
                sample.metric == metric
                    && label.is_none_or(|(key, value)| sample.labels.get(key) == Some(value))
            });
            match found.map(|sample| &sample.value) {
                Some(
                    prometheus_parse::Value::Counter(value)
                    | prometheus_parse::Value::Gauge(value)
                    | prometheus_parse::Value::Untyped(value),
                ) => *value,
                other => panic!("{metric}: {other:?} in\n{text}"),
            }
        };
        assert_eq!(value("enforcer_packets_total", Some(("reason", "ByteRate"))), 3.0);
        assert_eq!(value("enforcer_bytes_total", Some(("tenant", "acme"))), 4e12);
        assert_eq!(
            value("enforcer_audit_decisions_total", Some(("outcome", "aggregated"))),
            2.0
        );
        assert_eq!(value("enforcer_generation", None), 7.0);
        assert_eq!(value("enforcer_tenant_suspended", Some(("tenant", "acme"))), 1.0);
        assert_eq!(value("enforcer_backend_weight", Some(("pool", "eu"))), 100_000.0);
        assert_eq!(
            value("enforcer_pool_utilization_ratio", Some(("pool", "eu"))),
            0.913
        );
        assert_eq!(value("enforcer_pool_failed", Some(("pool", "eu"))), 1.0);
        assert_eq!(value("enforcer_pool_sheds", Some(("class", "bronze"))), 1.0);
        assert_eq!(
            value("enforcer_quota_used", Some(("metric", "responseBytes"))),
            3e12
        );
        assert_eq!(value("enforcer_quota_limit", Some(("per", "1d"))), 4e12);
        assert!(text.ends_with("# EOF\n"));
    }
}
