//! Requests of the control socket to replies.

mod change;
mod explain;
mod history;
mod lists;

use enforcer_common::schema::{SCHEMA_HASH, SCHEMA_VERSION};

use super::core::Core;
use super::persist::AppliedPolicy;
use super::{counters, records};
use crate::adapters::dataplane::{self, Mode};
use crate::api::reply::{
    AuditStatus, AuditTailReply, FlowUsage, IngressMode, InterfaceStatus, MetricsReply, NvmlStatus,
    PolicyShowReply, PolicyStatus, SchemaStatus, StatusReply,
};
use crate::api::{Actor, ApiError, ErrorCode, MAX_ROWS, Reply, Request};
use crate::pure::explain::Question;
use crate::pure::metrics;
use crate::pure::policy::name_of;

pub(super) fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

pub(super) fn not_found(what: &str, name: &str, command: &str) -> ApiError {
    let message = format!("there is no {what} `{name}`; `enforcer-agent {command}` lists them");
    ApiError::new(ErrorCode::NotFound, message)
}

impl Core {
    /// Answers one request.
    pub(super) async fn answer(&mut self, request: Request, actor: Actor) -> Result<Reply, ApiError> {
        match request {
            Request::Status => self.status().map(|status| Reply::Status(Box::new(status))),
            Request::PolicyApply {
                sources,
                dry_run: true,
            } => self.try_policy(&sources).map(Reply::PolicyApply),
            Request::PolicyApply {
                sources,
                dry_run: false,
            } => {
                let applied = AppliedPolicy {
                    sources,
                    applied_at: self.clock.wall(),
                    applied_by: Some(actor),
                };
                self.apply_policy(applied, None, actor)
                    .await
                    .map(Reply::PolicyApply)
            }
            Request::PolicyShow { generation: None } => self.show_policy().map(Reply::PolicyShow),
            Request::PolicyShow {
                generation: Some(generation),
            } => self.show_old_policy(generation).map(Reply::PolicyShow),
            Request::PolicyHistory => Ok(Reply::PolicyHistory(self.policy_history())),
            Request::PolicyRollback { generation } => {
                self.rollback(generation, actor).await.map(Reply::PolicyRollback)
            }
            Request::PolicyExplain {
                from,
                to,
                protocol,
                at,
            } => self
                .explain(&Question { from, to, protocol }, at)
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
            Request::CaptureBegin(order) => self.begin_capture(&order, actor).await.map(Reply::CaptureBegin),
            Request::CaptureRead { serial } => self.read_capture(serial).await.map(Reply::CaptureRead),
            Request::CaptureEnd { serial } => self.end_capture(serial).await.map(Reply::CaptureEnd),
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
        let counted = counters::all(&*self.dataplane, &self.directory).map_err(internal)?;
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
            uptime_seconds: self.clock.monotonic_ns().saturating_sub(self.started_ns) / 1_000_000_000,
            generation: self.generation(),
            policy: self.policy_status(),
            schedules: self.schedule_status(),
            schema: SchemaStatus {
                version: SCHEMA_VERSION,
                hash: format!("{SCHEMA_HASH:016x}"),
            },
            interfaces: self.attachments.iter().map(interface_row).collect(),
            packets: counters::by_reason(&counted),
            flows: FlowUsage {
                open: self.open_flows,
                capacity: self.dataplane.capacity().flows.into(),
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
            warnings: self
                .warnings
                .iter()
                .chain(self.history.damaged())
                .cloned()
                .chain(failing)
                .collect(),
        })
    }

    fn policy_status(&self) -> Option<PolicyStatus> {
        self.active.as_ref().map(|active| PolicyStatus {
            name: active.policy.name.clone(),
            digest: active.digest.clone(),
            file: name_of(&active.applied.sources),
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
            sources: active.applied.sources.clone(),
        })
    }
}

fn interface_row(attachment: &dataplane::Attachment) -> InterfaceStatus {
    let (mode, why_not_native) = match &attachment.mode {
        Mode::Native | Mode::Adopted => (IngressMode::Native, None),
        Mode::Generic { why } => (IngressMode::Generic, Some(why.clone())),
        Mode::Tc { why } => (IngressMode::Tc, Some(why.clone())),
    };
    InterfaceStatus {
        name: attachment.interface.clone(),
        ifindex: attachment.ifindex,
        mode,
        why_not_native,
    }
}
