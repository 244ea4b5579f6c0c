//! Requests of the control socket to replies.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use enforcer_common::Reason;
use enforcer_common::abi::address::{self, Address, FlowKey};
use enforcer_common::abi::config::FORWARD_NAT;
use enforcer_common::abi::flow::{FLOW_ESTABLISHED, FLOW_FIN, FLOW_RST, FlowRecord, ReplyRecord};
use enforcer_common::abi::reason;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::decide::{Flow, UDP, reply_key};
use enforcer_common::schema::{MAPS, SCHEMA_HASH, SCHEMA_VERSION, backend_connections, tenant_connections};
use jiff::Timestamp;

use super::core::Core;
use super::persist::AppliedPolicy;
use super::{counters, records};
use crate::adapters::dataplane::{self, DataplaneError, Mode};
use crate::api::reply::{
    AuditStatus, AuditTailReply, BackendHealth, BackendListReply, BackendRow, ChangeReply, DetachReply,
    Effect, ExplainStep, FlowRow, FlowState, FlowUsage, FlowsListReply, InterfaceStatus, MapRow,
    MapsDumpReply, MapsListReply, MetricsReply, NextHopRow, NvmlStatus, PolicyApplyReply, PolicyExplainReply,
    PolicyShowReply, PolicyStatus, PoolState, RuleRef, SchemaStatus, ServiceListReply, ServicePoolRow,
    ServiceRow, ShadowRef, StatusReply, TelemetryRow, TenantListReply, TenantRow, XdpMode,
};
use crate::api::{Actor, ApiError, ErrorCode, FlowFilter, MAX_ROWS, Protocol, Reply, Request};
use crate::install::Banks as _;
use crate::pure::audit::{self, Change, flow_tuple};
use crate::pure::compile::{Directory, Inputs};
use crate::pure::explain::{self, Known, Question};
use crate::pure::health::HealthStatus;
use crate::pure::metrics;
use crate::pure::policy::{self, Diagnostic};
use crate::pure::snapshot::Snapshot;
use crate::pure::weights::weight_of;

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

fn not_found(what: &str, name: &str, command: &str) -> ApiError {
    let message = format!("there is no {what} `{name}`; `enforcer-agent {command}` lists them");
    ApiError::new(ErrorCode::NotFound, message)
}

impl Core {
    /// Answers one request.
    pub(super) async fn answer(&mut self, request: Request, actor: Actor) -> Result<Reply, ApiError> {
        match request {
            Request::Status => self.status().map(|status| Reply::Status(Box::new(status))),
            Request::PolicyApply {
                file,
                text,
                dry_run: true,
            } => self.try_policy(&file, &text).map(Reply::PolicyApply),
            Request::PolicyApply {
                file,
                text,
                dry_run: false,
            } => self.apply_policy(file, text, actor).await.map(Reply::PolicyApply),
            Request::PolicyShow => self.show_policy().map(Reply::PolicyShow),
            Request::PolicyExplain { from, to, protocol } => self
                .explain(from, to, protocol)
                .map(|reply| Reply::PolicyExplain(Box::new(reply))),
            Request::TenantList => self.tenants().map(Reply::TenantList),
            Request::TenantSuspend { name } => {
                self.suspend(name, true, actor).await.map(Reply::TenantSuspend)
            }
            Request::TenantResume { name } => self.suspend(name, false, actor).await.map(Reply::TenantResume),
            Request::BackendList => self.backends().map(Reply::BackendList),
            Request::BackendDrain { name } => self.drain(name, true, actor).await.map(Reply::BackendDrain),
            Request::BackendUndrain { name } => {
                self.drain(name, false, actor).await.map(Reply::BackendUndrain)
            }
            Request::ServiceList => Ok(Reply::ServiceList(self.services())),
            Request::FlowsList { limit, filter } => self.flows(limit, &filter).map(Reply::FlowsList),
            Request::MapsList => self.map_list().map(Reply::MapsList),
            Request::MapsDump { name, limit } => self.map_dump(&name, limit).map(Reply::MapsDump),
            Request::AuditTail { from, limit } => {
                let (records, next) = self
                    .audit
                    .tail(from, limit.min(MAX_ROWS) as usize)
                    .await
                    .map_err(internal)?;
                Ok(Reply::AuditTail(AuditTailReply { records, next }))
            }
            Request::Metrics => {
                let snapshot = self.metrics_snapshot().map_err(internal)?;
                Ok(Reply::Metrics(MetricsReply {
                    text: metrics::render(&snapshot),
                }))
            }
            Request::Detach => self.detach(actor).await.map(Reply::Detach),
        }
    }

    fn status(&self) -> Result<StatusReply, ApiError> {
        let counted = counters::all(&self.dataplane.maps, &self.directory).map_err(internal)?;
        let identity = records::identity();
        let log = self.audit.status();
        let sum = |of: fn(&dataplane::Tally) -> u64| counted.iter().map(|each| of(&each.tally)).sum::<u64>();
        let failing = self
            .failing
            .iter()
            .map(|(what, error)| format!("{what}: {error}"));
        Ok(StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            host: identity.host,
            boot_id: identity.boot_id,
            instance: self.config.instance.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            generation: self.generation(),
            policy: self.policy_status(),
            schema: SchemaStatus {
                version: SCHEMA_VERSION,
                hash: format!("{SCHEMA_HASH:016x}"),
            },
            interfaces: self.attachments.iter().map(interface_row).collect(),
            packets: counters::by_reason(&counted),
            flows: FlowUsage {
                open: self.open_flows,
                capacity: self.config.flow_table.entries.into(),
            },
            audit: AuditStatus {
                sequence: log.sequence,
                recorded: sum(|tally| tally.recorded),
                aggregated: sum(|tally| tally.aggregated),
                lost: sum(|tally| tally.lost) + log.lost,
                segment: log
                    .segment
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
                error: log.error,
            },
            nvml: match &self.nvml {
                Ok(gpus) => NvmlStatus::Present {
                    driver: String::new(),
                    gpus: *gpus,
                },
                Err(reason) => NvmlStatus::Absent {
                    reason: reason.clone(),
                },
            },
            warnings: self.warnings.iter().cloned().chain(failing).collect(),
        })
    }

    fn policy_status(&self) -> Option<PolicyStatus> {
        self.active.as_ref().map(|active| PolicyStatus {
            name: active.policy.name.clone(),
            digest: active.digest.clone(),
            file: active.applied.file.clone(),
            applied_at: active.applied.applied_at,
            applied_by: active.applied.applied_by,
        })
    }

    fn show_policy(&self) -> Result<PolicyShowReply, ApiError> {
        let (Some(policy), Some(active)) = (self.policy_status(), &self.active) else {
            let message = "no policy is in force; apply one with `enforcer-agent policy apply FILE`";
            return Err(ApiError::new(ErrorCode::NotFound, message));
        };
        Ok(PolicyShowReply {
            policy,
            generation: self.generation(),
            text: active.applied.text.clone(),
        })
    }

    fn try_policy(&self, file: &str, text: &str) -> Result<PolicyApplyReply, ApiError> {
        let outcome = policy::load(file, text);
        let diagnostics = outcome.diagnostics.clone();
        let policy = outcome.into_result().map_err(|all| {
            ApiError::new(
                ErrorCode::PolicyInvalid,
                policy::diagnostic::render_all(&all, false),
            )
            .with("diagnostics", all)
        })?;
        let compiled = self
            .compile(&policy)
            .map_err(|error| ApiError::new(ErrorCode::Refused, error.to_string()))?;
        let live = self.generation();
        let writes = crate::pure::plan::plan(self.installer.live(live), &compiled.tables).len();
        Ok(PolicyApplyReply {
            name: policy.name.clone(),
            digest: policy.digest().to_string(),
            generation: live,
            changed: false,
            map_writes: writes as u64,
            diagnostics,
        })
    }

    async fn apply_policy(
        &mut self,
        file: String,
        text: String,
        actor: Actor,
    ) -> Result<PolicyApplyReply, ApiError> {
        let before = self.digest();
        let applied = AppliedPolicy {
            file,
            text,
            applied_at: Timestamp::now(),
            applied_by: Some(actor),
        };
        let outcome = self.apply(applied);
        let (to, causes) = match &outcome {
            Ok(_) => (self.digest(), Vec::new()),
            Err(error) => (
                None,
                vec![error.message.lines().next().unwrap_or_default().to_owned()],
            ),
        };
        let change = Change {
            what: "policyApply".to_owned(),
            from: before,
            to,
            causes,
        };
        self.record_control(actor, change).await?;
        let installed = outcome?;
        let active = self
            .active
            .as_ref()
            .ok_or_else(|| internal("the policy is gone"))?;
        let warnings: Vec<Diagnostic> = active.warnings.clone();
        Ok(PolicyApplyReply {
            name: active.policy.name.clone(),
            digest: active.digest.clone(),
            generation: self.generation(),
            changed: installed.is_some(),
            map_writes: installed.map_or(0, |installed| installed.writes as u64),
            diagnostics: warnings,
        })
    }

    async fn suspend(&mut self, name: String, suspend: bool, actor: Actor) -> Result<ChangeReply, ApiError> {
        let known = |core: &Self| {
            let tenants = core.active.iter().flat_map(|active| &active.policy.tenants);
            tenants.into_iter().any(|tenant| tenant.name == name)
        };
        if !known(self) && !self.state.suspended.contains(&name) {
            return Err(not_found("tenant", &name, "tenant list"));
        }
        let changed = self.state.suspended.contains(&name) != suspend;
        if changed {
            self.change_state(|state| toggle(&mut state.suspended, &name, suspend))?;
        }
        let what = if suspend { "tenantSuspend" } else { "tenantResume" };
        self.changed(what, name, changed, actor).await
    }

    async fn drain(&mut self, name: String, drain: bool, actor: Actor) -> Result<ChangeReply, ApiError> {
        if self.fleet.member(&name).is_none() {
            return Err(not_found("back end", &name, "backend list"));
        }
        let changed = self.state.draining.contains(&name) != drain;
        self.fleet.drain(&name, drain);
        if changed && let Err(error) = self.change_state(|state| toggle(&mut state.draining, &name, drain)) {
            self.fleet.drain(&name, !drain);
            return Err(error);
        }
        let what = if drain { "backendDrain" } else { "backendUndrain" };
        self.changed(what, name, changed, actor).await
    }

    async fn changed(
        &mut self,
        what: &str,
        name: String,
        changed: bool,
        actor: Actor,
    ) -> Result<ChangeReply, ApiError> {
        let change = Change {
            what: what.to_owned(),
            to: Some(name.clone()),
            ..Change::default()
        };
        self.record_control(actor, change).await?;
        Ok(ChangeReply {
            name,
            changed,
            generation: self.generation(),
        })
    }

    async fn detach(&mut self, actor: Actor) -> Result<DetachReply, ApiError> {
        let interfaces = self
            .attachments
            .iter()
            .map(|attachment| attachment.interface.clone())
            .collect();
        let pins = self.config.pin_directory();
        let change = Change {
            what: "detach".to_owned(),
            from: Some(pins.display().to_string()),
            ..Change::default()
        };
        dataplane::detach(&pins).map_err(internal)?;
        self.record_control(actor, change).await?;
        Ok(DetachReply {
            interfaces,
            pins: vec![pins.display().to_string()],
        })
    }

    fn tenants(&self) -> Result<TenantListReply, ApiError> {
        let Some(active) = &self.active else {
            return Ok(TenantListReply { tenants: Vec::new() });
        };
        let mut rows = Vec::new();
        for tenant in &active.policy.tenants {
            let Some(slot) = self.state.slots.tenants.get(&tenant.name) else {
                continue;
            };
            let counted = counters::of_tenant(&self.dataplane.maps, slot).map_err(internal)?;
            rows.push(TenantRow {
                name: tenant.name.clone(),
                sources: tenant.sources.iter().map(ToString::to_string).collect(),
                suspended: self.state.suspended.contains(&tenant.name),
                connections: self
                    .dataplane
                    .maps
                    .open_connections(tenant_connections(slot))
                    .map_err(internal)?,
                limits: tenant.limits.clone(),
                packets: counters::by_reason(&counted),
            });
        }
        Ok(TenantListReply { tenants: rows })
    }

    fn backends(&self) -> Result<BackendListReply, ApiError> {
        let mut rows = Vec::new();
        for (slot, entry) in &self.directory.backends {
            let Some(member) = self.fleet.member(&entry.name) else {
                continue;
            };
            let connections = self
                .dataplane
                .maps
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

    fn services(&self) -> ServiceListReply {
        let Some(active) = &self.active else {
            return ServiceListReply { services: Vec::new() };
        };
        let failed = self.fleet.failed_pools();
        let row = |service: &policy::resolved::Service| ServiceRow {
            name: service.name.clone(),
            addresses: service.addresses.clone(),
            port: service.port,
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

    fn pool_row(
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

    fn reply_of(&self, key: &FlowKey, flow: &FlowRecord) -> Result<Option<ReplyRecord>, DataplaneError> {
        let host = self.host.record();
        let nat_address: Address = if address::is_v4(&key.destination) {
            address::from_v4(host.nat_v4)
        } else {
            host.nat_v6
        };
        let nat = (flow.forward == FORWARD_NAT).then_some((nat_address, flow.translated_port_be));
        let reply =
            self.dataplane
                .maps
                .reply(&reply_key(key, flow.backend_address, flow.backend_port_be, nat))?;
        Ok(reply.filter(|reply| reply.forward == *key))
    }

    fn flows(&self, limit: u32, filter: &FlowFilter) -> Result<FlowsListReply, ApiError> {
        let capacity = self.config.flow_table.entries as usize;
        let (mut rows, mut matching) = (Vec::new(), 0);
        let now_ns = records::kernel_now_ns();
        for (key, flow) in self.dataplane.maps.flows(capacity).map_err(internal)? {
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

    fn map_list(&self) -> Result<MapsListReply, ApiError> {
        let directory = dataplane::map_directory(&self.config.pin_directory());
        let mut maps = Vec::new();
        for spec in MAPS {
            let info = dataplane::map_info(&directory, spec.name).map_err(internal)?;
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

    fn map_dump(&self, name: &str, limit: u32) -> Result<MapsDumpReply, ApiError> {
        let limit = limit.min(MAX_ROWS) as usize;
        let Some(mut entries) = self.dataplane.maps.dump(name, limit + 1).map_err(internal)? else {
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

    fn explain(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<PolicyExplainReply, ApiError> {
        let Some(active) = &self.active else {
            return Err(ApiError::new(
                ErrorCode::Refused,
                "no policy is in force, so there is nothing to explain",
            ));
        };
        let (statuses, failed) = (self.fleet.statuses(), self.fleet.failed_pools());
        let inputs = Inputs {
            policy: &active.policy,
            slots: &self.state.slots,
            host: &self.host,
            backends: &statuses,
            failed_pools: &failed,
            suspended: &self.state.suspended,
        };
        let question = Question { from, to, protocol };
        let snapshot = self.snapshot(&question).map_err(internal)?;
        let known = Known {
            inputs: &inputs,
            directory: &self.directory,
            snapshot: &snapshot,
        };
        Ok(explained(
            &question,
            explain::explain(&known, &question, records::kernel_now_ns()),
        ))
    }

    /// The live state, as far as this question needs it.
    fn snapshot(&self, question: &Question) -> Result<Snapshot, DataplaneError> {
        let maps = &self.dataplane.maps;
        let generation = maps.generation()?;
        let mut snapshot = Snapshot {
            generation,
            tables: self.installer.live(generation).cloned().unwrap_or_default(),
            ..Snapshot::default()
        };
        for slot in self.directory.tenants.keys() {
            for limiter in Limiter::ALL {
                snapshot
                    .limiters
                    .insert(limiter.index(*slot), maps.limiter(*slot, limiter)?);
            }
            snapshot
                .open_connections
                .insert(*slot, maps.open_connections(tenant_connections(*slot))?);
        }
        let key = question.key();
        if let Some(record) = maps.flow(&key)? {
            snapshot.flows.insert(
                key,
                Flow {
                    generation: record.generation,
                    tenant: record.tenant,
                    rule: record.rule,
                    backend: record.backend,
                    backend_address: record.backend_address,
                    backend_port_be: record.backend_port_be,
                    state: record.state,
                    forward: record.forward,
                },
            );
        }
        Ok(snapshot)
    }
}

fn toggle(names: &mut BTreeSet<String>, name: &str, present: bool) {
    if present {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}

fn interface_row(attachment: &dataplane::Attachment) -> InterfaceStatus {
    let (mode, why_not_native) = match &attachment.mode {
        Mode::Native | Mode::Adopted => (XdpMode::Native, None),
        Mode::Generic { why } => (XdpMode::Generic, Some(why.clone())),
    };
    InterfaceStatus {
        name: attachment.interface.clone(),
        ifindex: attachment.ifindex,
        mode,
        why_not_native,
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

fn explained(question: &Question, explanation: explain::Explanation) -> PolicyExplainReply {
    let reason = explanation.reason().unwrap_or(Reason::Internal);
    let rule = |rule: crate::pure::compile::directory::RuleEntry| RuleRef {
        name: rule.name,
        line: rule.line,
    };
    PolicyExplainReply {
        from: question.from,
        to: question.to,
        protocol: question.protocol,
        generation: explanation.generation,
        reason: reason.name().to_owned(),
        sentence: reason.sentence().to_owned(),
        effect: match reason.effect() {
            reason::Effect::Forwarded => Effect::Forwarded,
            reason::Effect::Passed => Effect::Passed,
            reason::Effect::Refused => Effect::Refused,
        },
        tenant: explanation.tenant,
        service: explanation.service,
        rule: explanation.rule.map(rule),
        backend: explanation.backend,
        shadow: explanation.shadow.map(|(entry, code)| ShadowRef {
            rule: rule(entry),
            reason: Reason::from_code(code)
                .unwrap_or(Reason::Internal)
                .name()
                .to_owned(),
        }),
        steps: explanation
            .steps
            .into_iter()
            .map(|step| ExplainStep {
                step: step.subject.name().to_owned(),
                finding: step.finding,
            })
            .collect(),
    }
}
