//! What the limiters say: those of the tenant, of the tenant on the service, and of the service.

use enforcer_common::Reason;
use enforcer_common::abi::config::{LimitRecord, LimitsRecord, TENANT_FAIR_SHARE, TenantRecord};
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::tenant_holder;

use super::{Subject, Tale};
use crate::pure::policy::resolved::Limits;

/// Someone who holds limits.
struct Holder<'a> {
    /// What to say in front: empty for the tenant itself.
    whose: &'static str,
    number: u32,
    limits: &'a Limits,
    record: &'a LimitsRecord,
    /// New connections per second that count instead of the limit.
    share: Option<u64>,
}

impl Tale<'_> {
    pub(super) fn limits(&mut self, tenant: usize, record: &TenantRecord) {
        let policy = &self.known.inputs.policy.tenants[tenant];
        let share = self.known.inputs.fair_rates.get(&policy.name).copied();
        let share = share.filter(|_| record.flags & TENANT_FAIR_SHARE != 0);
        if let Some(share) = share {
            let finding = format!(
                "A pool that the tenant uses is contended: its share is {share} new connections per second, below its limit."
            );
            self.say(Subject::Limit, finding);
        }
        let any = self.holder(&Holder {
            whose: "",
            number: tenant_holder(self.decision.tenant),
            limits: &policy.limits,
            record: &record.limits,
            share,
        });
        if !any {
            self.say(Subject::Limit, "The tenant has no limits.");
        }
        self.groups();
        let over = match self.decision.reason {
            Reason::FairShare => return self.say(Subject::Limit, "It is over its share.".to_owned()),
            Reason::ServiceConnections | Reason::ServiceRate => {
                let finding = "The service is over one of its own limits, which bind all tenants together.";
                return self.say(Subject::Limit, finding);
            }
            Reason::TableFull => {
                let finding = "It has its share of the flow table (`flowTable.tenantShare`): there is no room for another flow.";
                return self.say(Subject::Limit, finding);
            }
            Reason::Stateless => {
                let finding =
                    "It has its share of the flow table, and the service forwards without an entry.";
                return self.say(Subject::Limit, finding);
            }
            Reason::ConnectionRate => "new connections",
            Reason::PacketRate => "packets",
            Reason::ByteRate => "bytes",
            Reason::Concurrency => "open connections",
            _ => return,
        };
        self.say(Subject::Limit, format!("It is over its limit of {over}."));
    }

    /// The limits of the tenant on the service, and of the service.
    fn groups(&mut self) {
        let (policy, tables) = (self.known.inputs.policy, &self.known.snapshot.tables);
        let rule = self.known.directory.rule(self.decision.rule);
        let of_rule = rule.and_then(|entry| policy.rules.iter().find(|rule| rule.name == entry.name));
        let service = self.known.directory.service(self.decision.service);
        let of_service = service.and_then(|entry| {
            let index = policy
                .services
                .binary_search_by(|service| service.name.cmp(&entry.name));
            Some(&policy.services[index.ok()?])
        });
        let groups = [
            (
                "On this service: ",
                self.decision.pair_group,
                of_rule.and_then(|rule| rule.limits.as_ref()),
            ),
            (
                "All tenants on this service together: ",
                self.decision.service_group,
                of_service.and_then(|service| service.limits.as_ref()),
            ),
        ];
        for (whose, number, limits) in groups {
            if number != 0
                && let (Some(limits), Some(record)) = (limits, tables.limits.get(number as usize))
            {
                self.holder(&Holder {
                    whose,
                    number,
                    limits,
                    record,
                    share: None,
                });
            }
        }
    }

    /// Says what a holder's limiters say; whether it has any.
    fn holder(&mut self, holder: &Holder<'_>) -> bool {
        let Holder { limits, record, .. } = holder;
        let rates = [
            (
                Limiter::Connections,
                "new connections",
                holder.share.or(limits.new_connections_per_second),
                &record.connections,
            ),
            (
                Limiter::Packets,
                "packets",
                limits.packets_per_second,
                &record.packets,
            ),
            (Limiter::Bytes, "bytes", limits.bytes_per_second, &record.bytes),
            (
                Limiter::ResponseBytes,
                "response bytes",
                limits.response_bytes_per_second,
                &record.response_bytes,
            ),
        ];
        let mut any = false;
        for (limiter, what, rate, limit) in rates {
            let Some(rate) = rate else { continue };
            any = true;
            let finding = self.limiter(holder, limiter, (what, rate), limit);
            self.say(Subject::Limit, finding);
        }
        if let Some(limit) = limits.concurrent_connections {
            any = true;
            let open = self.known.snapshot.open_connections.get(&holder.number);
            let open = open.copied().unwrap_or(0);
            let finding = format!("{}{open} of {limit} connections are open.", holder.whose);
            self.say(Subject::Limit, finding);
        }
        any
    }

    fn limiter(
        &self,
        holder: &Holder<'_>,
        limiter: Limiter,
        (what, rate): (&str, u64),
        limit: &LimitRecord,
    ) -> String {
        let paid_ns = self
            .known
            .snapshot
            .limiters
            .get(&limiter.index(holder.number))
            .copied()
            .unwrap_or(0);
        let debt_ns = paid_ns.saturating_sub(self.moment.kernel_ns);
        let used = debt_ns
            .saturating_mul(100)
            .checked_div(limit.burst_ns)
            .unwrap_or(0)
            .min(100);
        format!(
            "{}{rate} {what} per second: {used}% of the burst of {} ms is used up.",
            holder.whose,
            limit.burst_ns / 1_000_000
        )
    }
}
