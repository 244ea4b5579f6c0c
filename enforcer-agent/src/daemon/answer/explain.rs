//! `policy explain` over the live state.

use enforcer_common::decide::Flow;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::{holder_connections, tenant_holder};
use jiff::Timestamp;

use crate::api::reply::PolicyExplainReply;
use crate::api::{ApiError, ErrorCode};
use crate::daemon::core::Core;
use crate::pure::compile::{self, Inputs};
use crate::pure::explain::{self, Known, Moment, Question};
use crate::pure::policy::schedule::closed_rules;
use crate::pure::snapshot::{Lease, Snapshot};

use super::internal;

impl Core {
    /// Explains a packet; with `at`, by the schedules as they will be, or were, at that time.
    pub(super) fn explain(
        &self,
        question: &Question,
        at: Option<Timestamp>,
    ) -> Result<PolicyExplainReply, ApiError> {
        let Some(active) = &self.active else {
            return Err(ApiError::new(
                ErrorCode::Refused,
                "no policy is in force, so there is nothing to explain",
            ));
        };
        let (statuses, failed) = (self.fleet.statuses(), self.fleet.failed_pools());
        let mut snapshot = self.snapshot(question)?;
        let other = at.map(|at| closed_rules(&active.policy, at));
        let inputs = Inputs {
            policy: &active.policy,
            slots: &self.state.slots,
            host: &self.host,
            backends: &statuses,
            failed_pools: &failed,
            suspended: &self.state.suspended,
            closed_rules: other.as_ref().unwrap_or(self.hours.closed()),
            exhausted: &self.exhausted(),
            shed: &self.fleet.shed(),
            fair_rates: &self.shares.fairness.rates(),
        };
        if at.is_some() {
            // The slots are those of the policy in force, so that flows and limiters keep their names.
            snapshot.tables = compile::compile(&inputs).map_err(internal)?.tables;
        }
        let known = Known {
            inputs: &inputs,
            directory: &self.directory,
            snapshot: &snapshot,
        };
        let moment = Moment {
            kernel_ns: self.clock.monotonic_ns(),
            wall: at.unwrap_or_else(|| self.clock.wall()),
        };
        Ok(PolicyExplainReply {
            at,
            ..PolicyExplainReply::of(question, explain::explain(&known, question, moment))
        })
    }

    /// The live state, as far as this question needs it.
    pub(super) fn snapshot(&self, question: &Question) -> Result<Snapshot, ApiError> {
        let maps = &*self.dataplane;
        let generation = maps.generation().map_err(internal)?;
        let Some(tables) = self.installer.live(generation) else {
            let message = "a change in place failed midway and is being repaired: ask again in a second";
            return Err(ApiError::new(ErrorCode::Refused, message));
        };
        let mut snapshot = Snapshot {
            generation,
            tables: tables.clone(),
            lease: self.lease.map_or_else(Lease::default, Lease),
            flows_per_tenant: self.host.flows_per_tenant,
            ..Snapshot::default()
        };
        let tenants = self.directory.tenants.keys().map(|slot| tenant_holder(*slot));
        let groups = self.state.slots.limits.iter().map(|(_, group)| group);
        for holder in tenants.chain(groups) {
            for limiter in Limiter::ALL {
                let word = maps.limiter(holder, limiter).map_err(internal)?;
                snapshot.limiters.insert(limiter.index(holder), word);
            }
            let open = maps
                .open_connections(holder_connections(holder))
                .map_err(internal)?;
            snapshot.open_connections.insert(holder, open);
        }
        let key = question.key();
        if let Some(record) = maps.flow(&key).map_err(internal)? {
            snapshot.flows.insert(
                key,
                Flow {
                    generation: record.generation,
                    tenant: record.tenant,
                    service: record.service,
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
