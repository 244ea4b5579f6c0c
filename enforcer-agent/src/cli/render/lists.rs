//! The lists: tenants, back ends, services, flows, maps.

use enforcer_common::Reason;
use enforcer_common::abi::reason::Effect;

use super::{ABSENT, Render, bytes, milliseconds, or_absent, table};
use crate::api::reply::{
    BackendHealth, BackendListReply, BackendRow, FlowRow, FlowState, FlowsListReply, MapsListReply,
    PoolState, ReasonCount, ServiceListReply, ServiceRow, TelemetryRow, TenantListReply, TenantRow,
};
use crate::api::{Direction, Protocol};
use crate::pure::policy::resolved::{Forward, Limits, QuotaMetric};

pub(super) const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

const fn forward(forward: Forward) -> &'static str {
    match forward {
        Forward::Nat => "Nat",
        Forward::Dnat => "Dnat",
        Forward::L2Dsr => "L2Dsr",
        Forward::Ipip => "Ipip",
        Forward::Gue => "Gue",
        Forward::Local => "Local",
    }
}

impl Render for TenantListReply {
    fn render(&self) -> String {
        let titles = [
            "TENANT",
            "STATE",
            "#OPEN",
            "#ALLOWED",
            "#REFUSED",
            "#SENT",
            "#RECEIVED",
            "LIMITS",
            "SOURCES",
        ];
        let mut text = table(&titles, self.tenants.iter().map(tenant_row));
        let quotas: Vec<Vec<String>> = self.tenants.iter().flat_map(quota_rows).collect();
        if !quotas.is_empty() {
            text.push('\n');
            text += &table(
                &["TENANT", "QUOTA", "#USED", "#LIMIT", "STATE", "WINDOW ENDS"],
                quotas,
            );
        }
        let refusals: Vec<Vec<String>> = self.tenants.iter().flat_map(refusal_rows).collect();
        if !refusals.is_empty() {
            text.push('\n');
            text += &table(
                &["TENANT", "DIRECTION", "REFUSED AS", "#PACKETS", "#BYTES"],
                refusals,
            );
        }
        text
    }
}

fn has_effect(count: &ReasonCount, effect: Effect) -> bool {
    let reason = Reason::ALL.iter().find(|reason| reason.name() == count.reason);
    reason.is_some_and(|reason| reason.effect() == effect)
}

fn quota_rows(tenant: &TenantRow) -> impl Iterator<Item = Vec<String>> {
    tenant.quotas.iter().map(|quota| {
        let amount = |count: u64| match quota.metric {
            QuotaMetric::Connections => count.to_string(),
            QuotaMetric::RequestBytes | QuotaMetric::ResponseBytes => bytes(count),
        };
        vec![
            tenant.name.clone(),
            format!("{} per {}", quota.metric.name(), quota.per),
            amount(quota.used),
            amount(quota.limit),
            if quota.exhausted { "used up" } else { "open" }.to_owned(),
            format!("{} ({})", quota.window_ends, quota.time_zone),
        ]
    })
}

fn refusal_rows(tenant: &TenantRow) -> impl Iterator<Item = Vec<String>> {
    let refused = tenant
        .packets
        .iter()
        .filter(|count| has_effect(count, Effect::Refused));
    refused.map(|count| {
        vec![
            tenant.name.clone(),
            count.direction.name().to_owned(),
            count.reason.clone(),
            count.packets.to_string(),
            bytes(count.bytes),
        ]
    })
}

fn tenant_row(tenant: &TenantRow) -> Vec<String> {
    // A reply that XDP sends on is counted as `Reply`, one that comes through the stack in the egress direction.
    let back =
        |count: &&ReasonCount| count.reason == Reason::Reply.name() || count.direction == Direction::Egress;
    let forwarded = || {
        tenant
            .packets
            .iter()
            .filter(|count| has_effect(count, Effect::Forwarded))
    };
    let refused = tenant
        .packets
        .iter()
        .filter(|count| has_effect(count, Effect::Refused));
    let allowed: u64 = forwarded().map(|count| count.packets).sum();
    let sent: u64 = forwarded()
        .filter(|count| !back(count))
        .map(|count| count.bytes)
        .sum();
    let received: u64 = forwarded().filter(back).map(|count| count.bytes).sum();
    vec![
        tenant.name.clone(),
        if tenant.suspended { "suspended" } else { "active" }.to_owned(),
        tenant.connections.to_string(),
        allowed.to_string(),
        refused.map(|count| count.packets).sum::<u64>().to_string(),
        bytes(sent),
        bytes(received),
        match (tenant.share, limits(&tenant.limits)) {
            (None, limits) => limits,
            (Some(share), limits) => format!("share {share} conn/s; {limits}"),
        },
        tenant.sources.join(", "),
    ]
}

fn limits(limits: &Limits) -> String {
    let Limits {
        new_connections_per_second,
        packets_per_second,
        bytes_per_second,
        response_bytes_per_second,
        concurrent_connections,
        burst_ns: _,
    } = limits;
    joined([
        new_connections_per_second.map(|rate| format!("{rate} conn/s")),
        packets_per_second.map(|rate| format!("{rate} pkt/s")),
        bytes_per_second.map(|rate| format!("{}/s", bytes(rate))),
        response_bytes_per_second.map(|rate| format!("{}/s back", bytes(rate))),
        concurrent_connections.map(|most| format!("{most} open")),
    ])
}

/// What is known, with commas between.
fn joined(parts: impl IntoIterator<Item = Option<String>>) -> String {
    let known: Vec<String> = parts.into_iter().flatten().collect();
    if known.is_empty() {
        ABSENT.to_owned()
    } else {
        known.join(", ")
    }
}

impl Render for BackendListReply {
    fn render(&self) -> String {
        let titles = [
            "BACK END",
            "POOL",
            "ADDRESS",
            "HEALTH",
            "STATE",
            "#WEIGHT",
            "#OPEN",
            "NEXT HOP",
            "TELEMETRY",
            "WHY",
        ];
        table(&titles, self.backends.iter().map(backend_row))
    }
}

fn backend_row(backend: &BackendRow) -> Vec<String> {
    let health = match backend.health {
        BackendHealth::Unknown => "unknown",
        BackendHealth::Healthy => "healthy",
        BackendHealth::Unhealthy => "unhealthy",
    };
    // Whole percent of the full weight, rounded down.
    let share = (u64::from(backend.weight) * 100)
        .checked_div(backend.full_weight.into())
        .unwrap_or(0);
    let next_hop = backend
        .next_hop
        .as_ref()
        .map(|hop| format!("{} {}", hop.interface, hop.mac));
    vec![
        backend.name.clone(),
        backend.pool.clone(),
        backend.address.to_string(),
        health.to_owned(),
        if backend.draining { "draining" } else { "active" }.to_owned(),
        format!("{share}%"),
        backend.connections.to_string(),
        or_absent(next_hop),
        backend
            .telemetry
            .as_ref()
            .map_or_else(|| ABSENT.to_owned(), telemetry),
        if backend.causes.is_empty() {
            ABSENT.to_owned()
        } else {
            backend.causes.join("; ")
        },
    ]
}

fn telemetry(row: &TelemetryRow) -> String {
    let percent = |share: f64| format!("{:.0}%", share * 100.0);
    joined([
        row.running.map(|count| format!("{count} running")),
        row.waiting.map(|count| format!("{count} waiting")),
        row.kv_cache_usage.map(|share| format!("kv {}", percent(share))),
        row.gpu_utilization.map(|share| format!("gpu {}", percent(share))),
        row.age_ms.map(|age_ms| format!("{} ago", milliseconds(age_ms))),
        row.error.as_ref().map(|error| format!("failing: {error}")),
    ])
}

impl Render for ServiceListReply {
    fn render(&self) -> String {
        let titles = [
            "SERVICE",
            "ADDRESSES",
            "PORT",
            "FORWARD",
            "POOLS IN ORDER OF PREFERENCE",
        ];
        table(&titles, self.services.iter().map(service_row))
    }
}

fn service_row(service: &ServiceRow) -> Vec<String> {
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    let pools = service.pools.iter().map(|pool| {
        let state = match pool.state {
            PoolState::Active => "active",
            PoolState::Standby => "standby",
            PoolState::Failed => "failed",
        };
        Some(format!(
            "{} ({state}, {}/{} healthy)",
            pool.name, pool.healthy, pool.backends
        ))
    });
    vec![
        service.name.clone(),
        addresses.join(", "),
        format!("{}/{}", service.ports, protocol(service.protocol)),
        forward(service.forward).to_owned(),
        joined(pools),
    ]
}

impl Render for FlowsListReply {
    fn render(&self) -> String {
        let titles = [
            "PROTO",
            "FROM",
            "TO",
            "STATE",
            "TENANT",
            "SERVICE",
            "BACK END",
            "#AS PORT",
            "RULE",
            "#AGE",
            "#IDLE",
            "#SENT",
            "#RECEIVED",
            "#GENERATION",
        ];
        let mut text = table(&titles, self.flows.iter().map(flow_row));
        let shown = self.flows.len() as u64;
        if shown < self.matching {
            text += &format!("{shown} of {} flows: raise --limit to see more\n", self.matching);
        }
        text
    }
}

fn flow_row(flow: &FlowRow) -> Vec<String> {
    let state = match flow.state {
        FlowState::Opening => "opening",
        FlowState::Established => "established",
        FlowState::Closing => "closing",
    };
    vec![
        protocol(flow.protocol).to_owned(),
        flow.from.to_string(),
        flow.to.to_string(),
        state.to_owned(),
        flow.tenant.clone(),
        flow.service.clone(),
        flow.backend.clone(),
        or_absent(flow.translated_port),
        or_absent(flow.rule.as_ref()),
        milliseconds(flow.age_ms),
        milliseconds(flow.idle_ms),
        bytes(flow.bytes),
        or_absent(flow.reply_bytes.map(bytes)),
        flow.generation.to_string(),
    ]
}

impl Render for MapsListReply {
    fn render(&self) -> String {
        let rows = self.maps.iter().map(|map| {
            vec![
                map.name.clone(),
                map.kind.clone(),
                map.id.to_string(),
                map.key_bytes.to_string(),
                map.value_bytes.to_string(),
                map.capacity.to_string(),
                or_absent(map.entries),
            ]
        });
        let titles = [
            "MAP",
            "KIND",
            "#ID",
            "#KEY BYTES",
            "#VALUE BYTES",
            "#CAPACITY",
            "#ENTRIES",
        ];
        table(&titles, rows)
    }
}
