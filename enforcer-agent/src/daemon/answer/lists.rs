//! Lists of tenants, back ends, services, flows and maps.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use enforcer_common::abi::address::{self, Address, FlowKey};
use enforcer_common::abi::config::FORWARD_NAT;
use enforcer_common::abi::flow::{FLOW_ESTABLISHED, FLOW_FIN, FLOW_RST, FlowRecord, ReplyRecord};
use enforcer_common::decide::{UDP, reply_key};
use enforcer_common::schema::{MAPS, backend_connections, tenant_connections};

use crate::adapters::dataplane::DataplaneError;
use crate::api::reply::{
    BackendHealth, BackendListReply, BackendRow, FlowRow, FlowState, FlowsListReply, MapRow, MapsDumpReply,
    MapsListReply, NextHopRow, PoolState, ServiceListReply, ServicePoolRow, ServiceRow, TelemetryRow,
    TenantListReply, TenantRow,
};
use crate::api::{ApiError, FlowFilter, MAX_ROWS, Protocol};
use crate::daemon::core::Core;
use crate::daemon::counters;
use crate::pure::audit::{self, flow_tuple};
use crate::pure::compile::Directory;
use crate::pure::health::HealthStatus;
use crate::pure::policy::{self};
use crate::pure::weights::weight_of;

use super::{internal, not_found};

impl Core {
    pub(super) fn tenants(&self) -> Result<TenantListReply, ApiError> {
        let Some(active) = &self.active else {
            return Ok(TenantListReply { tenants: Vec::new() });
        };
        let shares = self.shares.fairness.rates();
        let mut rows = Vec::new();
        for tenant in &active.policy.tenants {
            let Some(slot) = self.state.slots.tenants.get(&tenant.name) else {
                continue;
            };
            let counted = counters::of_tenant(&*self.dataplane, slot).map_err(internal)?;
            rows.push(TenantRow {
                name: tenant.name.clone(),
                sources: tenant.sources.iter().map(ToString::to_string).collect(),
                suspended: self.state.suspended.contains(&tenant.name),
                connections: self
                    .dataplane
                    .open_connections(tenant_connections(slot))
                    .map_err(internal)?,
                limits: tenant.limits.clone(),
                quotas: self.quota_rows(tenant),
                share: shares.get(&tenant.name).copied(),
                packets: counters::by_reason(&counted),
            });
        }
        Ok(TenantListReply { tenants: rows })
    }

    pub(super) fn backends(&self) -> Result<BackendListReply, ApiError> {
        let mut rows = Vec::new();
        for (slot, entry) in &self.directory.backends {
            let Some(member) = self.fleet.member(&entry.name) else {
                continue;
            };
            let connections = self
                .dataplane
                .open_connections(backend_connections(*slot))
                .map_err(internal)?;
            let tuning = self.fleet.tuning();
            let (engine, gpu) = (member.state.engine(tuning), member.state.gpu(tuning));
            let count = |value: Option<f64>| value.map(|value| value as u64);
            rows.push(BackendRow {
                name: entry.name.clone(),
                pool: entry.pool.clone(),
                address: SocketAddr::new(entry.address, entry.port),
                health: match member.health.status() {
                    HealthStatus::Unknown => BackendHealth::Unknown,
                    HealthStatus::Healthy => BackendHealth::Healthy,
                    HealthStatus::Unhealthy => BackendHealth::Unhealthy,
                },
                draining: member.draining,
                weight: member.weight,
                full_weight: weight_of(member.capacity, 1000),
                connections,
                next_hop: member.next_hop.map(|hop| NextHopRow {
                    interface: interface_name(hop.ifindex),
                    mac: crate::adapters::neighbours::MacAddress(hop.next_hop_mac).to_string(),
                    mtu_bytes: hop.mtu_bytes,
                }),
                telemetry: (engine.is_some() || gpu.is_some()).then(|| TelemetryRow {
                    running: count(engine.and_then(|engine| engine.running)),
                    waiting: count(engine.and_then(|engine| engine.waiting)),
                    kv_cache_usage: engine.and_then(|engine| engine.kv_cache_ratio),
                    gpu_utilization: gpu.and_then(|gpu| gpu.utilization_ratio),
                    age_ms: None,
                    error: None,
                }),
                causes: member.causes.iter().map(ToString::to_string).collect(),
            });
        }
        rows.sort_by(|one, other| (&one.pool, &one.name).cmp(&(&other.pool, &other.name)));
        Ok(BackendListReply { backends: rows })
    }

    pub(super) fn services(&self) -> ServiceListReply {
        let Some(active) = &self.active else {
            return ServiceListReply { services: Vec::new() };
        };
        let failed = self.fleet.failed_pools();
        let row = |service: &policy::resolved::Service| ServiceRow {
            name: service.name.clone(),
            addresses: service.addresses.clone(),
            ports: service.ports,
            protocol: service.protocol,
            forward: service.forward,
            pools: service
                .pools
                .iter()
                .map(|pool| self.pool_row(service, &active.policy.pools[*pool], &failed))
                .collect(),
        };
        ServiceListReply {
            services: active.policy.services.iter().map(row).collect(),
        }
    }

    pub(super) fn pool_row(
        &self,
        service: &policy::resolved::Service,
        pool: &policy::resolved::Pool,
        failed: &BTreeSet<String>,
    ) -> ServicePoolRow {
        let members = pool
            .backends
            .iter()
            .filter_map(|backend| self.fleet.member(&backend.name));
        let healthy = members
            .filter(|member| member.health.status().takes_traffic())
            .count();
        let entries = self
            .directory
            .services
            .values()
            .filter(|entry| entry.name == service.name);
        let active = entries
            .into_iter()
            .any(|entry| entry.active_pool.as_deref() == Some(&pool.name));
        ServicePoolRow {
            name: pool.name.clone(),
            state: match (active, failed.contains(&pool.name)) {
                (true, _) => PoolState::Active,
                (false, true) => PoolState::Failed,
                (false, false) => PoolState::Standby,
            },
            healthy: healthy as u32,
            backends: pool.backends.len() as u32,
        }
    }

    pub(super) fn reply_of(
        &self,
        key: &FlowKey,
        flow: &FlowRecord,
    ) -> Result<Option<ReplyRecord>, DataplaneError> {
        let host = self.host.record();
        let nat_address: Address = if address::is_v4(&key.destination) {
            address::from_v4(host.nat_v4)
        } else {
            host.nat_v6
        };
        let nat = (flow.forward == FORWARD_NAT).then_some((nat_address, flow.translated_port_be));
        let reply = self
            .dataplane
            .reply(&reply_key(key, flow.backend_address, flow.backend_port_be, nat))?;
        Ok(reply.filter(|reply| reply.forward == *key))
    }

    pub(super) fn flows(&self, limit: u32, filter: &FlowFilter) -> Result<FlowsListReply, ApiError> {
        let capacity = self.dataplane.capacity().flows as usize;
        let (mut rows, mut matching) = (Vec::new(), 0);
        let now_ns = self.clock.monotonic_ns();
        for (key, flow) in self.dataplane.flows(capacity).map_err(internal)? {
            if !matches(filter, &self.directory, &flow) {
                continue;
            }
            matching += 1;
            if rows.len() < limit.min(MAX_ROWS) as usize {
                let reply = self.reply_of(&key, &flow).map_err(internal)?;
                rows.push(flow_row(&self.directory, &key, &flow, reply.as_ref(), now_ns));
            }
        }
        rows.sort_by_key(|row: &FlowRow| (row.from, row.to));
        Ok(FlowsListReply {
            flows: rows,
            matching,
        })
    }

    pub(super) fn map_list(&self) -> Result<MapsListReply, ApiError> {
        let mut maps = Vec::new();
        for spec in MAPS {
            let info = self.dataplane.map_info(spec.name).map_err(internal)?;
            let entries = match spec.name {
                "FLOWS" => Some(self.open_flows),
                _ => None,
            };
            maps.push(MapRow {
                name: spec.name.to_owned(),
                kind: spec.kind.to_owned(),
                id: info.id,
                key_bytes: spec.key_bytes,
                value_bytes: spec.value_bytes,
                capacity: info.capacity,
                entries,
            });
        }
        Ok(MapsListReply { maps })
    }

    pub(super) fn map_dump(&self, name: &str, limit: u32) -> Result<MapsDumpReply, ApiError> {
        let limit = limit.min(MAX_ROWS) as usize;
        let Some(mut entries) = self.dataplane.dump(name, limit + 1).map_err(internal)? else {
            return Err(not_found("map that can be dumped called", name, "maps list"));
        };
        let truncated = entries.len() > limit;
        entries.truncate(limit);
        Ok(MapsDumpReply {
            name: name.to_owned(),
            entries,
            truncated,
        })
    }
}

fn interface_name(ifindex: u32) -> String {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    );
    socket
        .and_then(|socket| rustix::net::netdevice::index_to_name(socket, ifindex))
        .unwrap_or_else(|_| format!("#{ifindex}"))
}

fn matches(filter: &FlowFilter, directory: &Directory, flow: &FlowRecord) -> bool {
    let wants = |wanted: &Option<String>, name: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| name == Some(wanted))
    };
    wants(&filter.tenant, audit::Names::tenant(directory, flow.tenant))
        && wants(&filter.service, audit::Names::service(directory, flow.service))
        && wants(&filter.backend, audit::Names::backend(directory, flow.backend))
}

fn flow_row(
    directory: &Directory,
    key: &FlowKey,
    flow: &FlowRecord,
    reply: Option<&ReplyRecord>,
    now_ns: u64,
) -> FlowRow {
    let tuple = flow_tuple(key, flow.translated_port_be);
    let seen_ns = flow.seen_ns.max(reply.map_or(0, |reply| reply.seen_ns));
    let bits = flow.state | reply.map_or(0, |reply| reply.state);
    let named = |name: Option<&str>, slot: u32| name.map_or_else(|| format!("#{slot}"), str::to_owned);
    let milliseconds = |since_ns: u64| now_ns.saturating_sub(since_ns) / 1_000_000;
    FlowRow {
        from: tuple.from,
        to: tuple.to,
        protocol: if key.protocol == UDP {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        state: if bits & (FLOW_FIN | FLOW_RST) != 0 {
            FlowState::Closing
        } else if bits & FLOW_ESTABLISHED != 0 {
            FlowState::Established
        } else {
            FlowState::Opening
        },
        tenant: named(audit::Names::tenant(directory, flow.tenant), flow.tenant),
        service: named(audit::Names::service(directory, flow.service), flow.service),
        rule: flow
            .rule
            .checked_sub(1)
            .and_then(|index| audit::Names::rule(directory, index))
            .map(str::to_owned),
        backend: named(audit::Names::backend(directory, flow.backend), flow.backend),
        translated_port: (flow.forward == FORWARD_NAT).then_some(u16::from_be(flow.translated_port_be)),
        generation: flow.generation,
        age_ms: milliseconds(flow.created_ns),
        idle_ms: milliseconds(seen_ns),
        packets: flow.packets,
        bytes: flow.bytes,
        reply_packets: reply.map(|reply| reply.packets),
        reply_bytes: reply.map(|reply| reply.bytes),
    }
}
