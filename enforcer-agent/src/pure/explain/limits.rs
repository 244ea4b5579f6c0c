//! What the limiters of a tenant say.

use enforcer_common::Reason;
use enforcer_common::abi::config::{LimitRecord, TENANT_FAIR_SHARE, TenantRecord};
use enforcer_common::decide::limiter::Limiter;

use super::{Subject, Tale};

impl Tale<'_> {
    pub(super) fn limits(&mut self, tenant: usize, record: &TenantRecord) {
        let policy = &self.known.inputs.policy.tenants[tenant];
        let limits = &policy.limits;
        let share = self.known.inputs.fair_rates.get(&policy.name).copied();
        let share = share.filter(|_| record.flags & TENANT_FAIR_SHARE != 0);
        if let Some(share) = share {
            let finding = format!(
                "A pool that the tenant uses is contended: its share is {share} new connections per second, below its limit."
            );
            self.say(Subject::Limit, finding);
        }
        let rates = [
            (
                Limiter::Connections,
                "new connections",
                share.or(limits.new_connections_per_second),
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
            let finding = self.limiter(limiter, what, rate, limit);
            self.say(Subject::Limit, finding);
        }
        if let Some(limit) = limits.concurrent_connections {
            any = true;
            let open = self
                .known
                .snapshot
                .open_connections
                .get(&self.decision.tenant)
                .copied()
                .unwrap_or(0);
            self.say(Subject::Limit, format!("{open} of {limit} connections are open."));
        }
        if !any {
            self.say(Subject::Limit, "The tenant has no limits.");
        }
        let over = match self.decision.reason {
            Reason::FairShare => return self.say(Subject::Limit, "It is over its share.".to_owned()),
            Reason::ConnectionRate => "new connections",
            Reason::PacketRate => "packets",
            Reason::ByteRate => "bytes",
            Reason::Concurrency => "open connections",
            _ => return,
        };
        self.say(Subject::Limit, format!("It is over its limit of {over}."));
    }

    fn limiter(&self, limiter: Limiter, what: &str, rate: u64, limit: &LimitRecord) -> String {
        let paid_ns = self
            .known
            .snapshot
            .limiters
            .get(&limiter.index(self.decision.tenant))
            .copied()
            .unwrap_or(0);
        let debt_ns = paid_ns.saturating_sub(self.moment.kernel_ns);
        let used = debt_ns
            .saturating_mul(100)
            .checked_div(limit.burst_ns)
            .unwrap_or(0)
            .min(100);
        format!(
            "{rate} {what} per second: {used}% of the burst of {} ms is used up.",
            limit.burst_ns / 1_000_000
        )
    }
}
