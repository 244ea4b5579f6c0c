//! Quotas: how much each tenant has used in the current window of the calendar.
//!
//! The kernel counts for ever; a [`Book`] remembers what its counters stood at and what was used since each window began,
//! so that usage survives restarts of the agent, reboots and other policies. It owns when a quota is used up and when it
//! begins anew. It never reads a counter or a clock itself.
//!
//! | What happens | What is counted |
//! | --- | --- |
//! | a look within a window | the growth of the counters since the last look |
//! | the first look in a new window | of that growth, the part that by time falls into the new window |
//! | the counters began anew (reboot, detach) | all that they show |
//! | a tenant gets another slot, whose counters were another's | from then on: see [`Book::open`] |
//! | the clock is set back | goes on in the earlier window: nothing is given back |

pub mod window;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::compile::Exhausted;
use super::policy::ResolvedPolicy;
use super::policy::resolved::{Quota, QuotaMetric, QuotaPeriod};
use window::window;

/// Tenants that are no longer in the policy and whose usage is kept until their windows end, in case they come back.
const MAX_FORMER_TENANTS: usize = 16_384;

/// What the kernel has counted of a tenant slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Counters {
    /// Flows opened.
    pub connections: u64,
    /// Bytes towards services that were admitted.
    pub request_bytes: u64,
    /// Bytes of replies that were admitted.
    pub response_bytes: u64,
}

/// Usage of all tenants: what has to survive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Book {
    /// Names the counters: others begin at zero.
    counters: String,
    /// When it was last looked.
    looked_at: Option<Timestamp>,
    tenants: BTreeMap<String, Account>,
}

/// Usage of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Account {
    /// Whose counters `seen` are of.
    slot: Option<u32>,
    seen: Counters,
    windows: Vec<Usage>,
}

/// Usage of one quota in one window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Usage {
    /// What is counted.
    pub metric: QuotaMetric,
    /// The length of the window.
    pub per: QuotaPeriod,
    /// By whose clocks.
    pub time_zone: String,
    /// When the window began.
    pub from: Timestamp,
    /// When it ends.
    pub to: Timestamp,
    /// Connections or bytes.
    pub used: u64,
    /// Whether it was last found used up.
    pub exhausted: bool,
}

/// A quota that was used up, or that there is something left of again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaChange {
    /// The tenant.
    pub tenant: String,
    /// The usage now.
    pub usage: Usage,
    /// The limit now.
    pub limit: u64,
    /// Whether a new window has begun.
    pub renewed: bool,
}

/// A quota and how much of it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaStatus<'a> {
    /// The quota.
    pub quota: &'a Quota,
    /// Of its current window.
    pub usage: &'a Usage,
}

// === impl Counters ===

impl Counters {
    const fn of(self, metric: QuotaMetric) -> u64 {
        match metric {
            QuotaMetric::Connections => self.connections,
            QuotaMetric::RequestBytes => self.request_bytes,
            QuotaMetric::ResponseBytes => self.response_bytes,
        }
    }

    /// How much they have grown. The count of connections goes down where a policy gives open ones to another tenant:
    /// that is no growth, and gives nothing back.
    fn growth_since(self, before: Self) -> Self {
        let grown = |now: u64, before: u64| {
            let grown = now.wrapping_sub(before);
            if grown > u64::MAX / 2 { 0 } else { grown }
        };
        Self {
            connections: grown(self.connections, before.connections),
            request_bytes: grown(self.request_bytes, before.request_bytes),
            response_bytes: grown(self.response_bytes, before.response_bytes),
        }
    }
}

// === impl Usage ===

impl Usage {
    fn is_of(&self, quota: &Quota) -> bool {
        (self.metric, self.per, self.time_zone.as_str()) == (quota.metric, quota.per, quota.time_zone.name())
    }

    fn begin(quota: &Quota, at: Timestamp) -> Self {
        let window = window(quota.per, quota.time_zone.time_zone(), at);
        Self {
            metric: quota.metric,
            per: quota.per,
            time_zone: quota.time_zone.name().to_owned(),
            from: window.from,
            to: window.to,
            used: 0,
            exhausted: false,
        }
    }

    /// Takes what was counted up to `at`; whether a new window has begun.
    fn take(&mut self, quota: &Quota, growth: u64, looked_at: Option<Timestamp>, at: Timestamp) -> bool {
        let now = Self::begin(quota, at);
        let renewed = now.from > self.from;
        if renewed {
            self.used = share(growth, now.from, looked_at.unwrap_or(at), at);
        } else {
            self.used = self.used.saturating_add(growth);
        }
        (self.from, self.to) = (now.from, now.to);
        renewed
    }
}

/// The part of a growth between two looks that falls after `from`, taken to be even.
fn share(growth: u64, from: Timestamp, looked_at: Timestamp, at: Timestamp) -> u64 {
    let (whole_ns, part_ns) = (
        at.duration_since(looked_at).as_nanos(),
        at.duration_since(from).as_nanos(),
    );
    if whole_ns <= part_ns {
        return growth;
    }
    // Not negative, since `from` is not after `at`; the quotient is at most the growth.
    u64::try_from(i128::from(growth) * part_ns.max(0) / whole_ns).unwrap_or(growth)
}

// === impl Book ===

impl Book {
    /// `identity` names the counters that are looked at from now on. If they are not those of the last look, they began at
    /// zero since, and all that they show was used.
    pub fn begin(&mut self, identity: &str) {
        if self.counters != identity {
            for account in self.tenants.values_mut() {
                account.seen = Counters::default();
            }
            identity.clone_into(&mut self.counters);
        }
    }

    /// Takes a look: `counters` are those of the tenants' slots by name. Returns what was used up or is there again.
    pub fn look(
        &mut self,
        policy: &ResolvedPolicy,
        counters: &BTreeMap<&str, (u32, Counters)>,
        at: Timestamp,
    ) -> Vec<QuotaChange> {
        let looked_at = self.looked_at;
        let mut changes = Vec::new();
        for tenant in policy.tenants.iter().filter(|tenant| !tenant.quotas.is_empty()) {
            let account = self.tenants.entry(tenant.name.clone()).or_default();
            let growth = account.read(counters.get(tenant.name.as_str()).copied());
            for quota in &tenant.quotas {
                let (usage, renewed) = account.take(quota, growth.of(quota.metric), looked_at, at);
                let exhausted = usage.used >= quota.limit;
                if std::mem::replace(&mut usage.exhausted, exhausted) != exhausted {
                    changes.push(QuotaChange {
                        tenant: tenant.name.clone(),
                        usage: usage.clone(),
                        limit: quota.limit,
                        renewed,
                    });
                }
            }
        }
        self.forget(policy, at);
        self.looked_at = Some(at);
        changes
    }

    /// Begins to count for a tenant whose slot is another than at the last look, from what the counters show now.
    pub fn open(&mut self, tenant: &str, slot: u32, counters: Counters) {
        let account = self.tenants.entry(tenant.to_owned()).or_default();
        (account.slot, account.seen) = (Some(slot), counters);
    }

    /// Whether this book says anything else than another: the time of the last look does not count.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        self.counters != other.counters || self.tenants != other.tenants
    }

    /// Whether usage is counted for a tenant in this slot.
    #[must_use]
    pub fn is_open(&self, tenant: &str, slot: u32) -> bool {
        self.tenants
            .get(tenant)
            .is_some_and(|account| account.slot == Some(slot))
    }

    /// Drops what no quota asks for and whose window is over. What a policy drops and the next one brings back is not
    /// free of charge in between.
    fn forget(&mut self, policy: &ResolvedPolicy, at: Timestamp) {
        let mut former = 0;
        self.tenants.retain(|name, account| {
            let index = policy.tenants.binary_search_by(|tenant| tenant.name.cmp(name));
            let quotas: &[Quota] = index.map_or(&[], |index| &policy.tenants[index].quotas);
            account
                .windows
                .retain(|usage| usage.to > at || quotas.iter().any(|quota| usage.is_of(quota)));
            if quotas.is_empty() {
                // Its slot, if it still has one, is no longer looked at.
                account.slot = None;
                former += 1;
                return !account.windows.is_empty() && former <= MAX_FORMER_TENANTS;
            }
            true
        });
    }

    /// Quotas of a tenant with their usage; empty before the first look.
    pub fn statuses<'a>(
        &'a self,
        tenant: &str,
        quotas: &'a [Quota],
    ) -> impl Iterator<Item = QuotaStatus<'a>> {
        let account = self.tenants.get(tenant);
        quotas.iter().filter_map(move |quota| {
            let usage = account?.windows.iter().find(|usage| usage.is_of(quota))?;
            Some(QuotaStatus { quota, usage })
        })
    }

    /// What tenants may no longer do, by the limits of this policy.
    #[must_use]
    pub fn exhausted(&self, policy: &ResolvedPolicy) -> BTreeMap<String, Exhausted> {
        let of_tenant = |name: &str, quotas| {
            self.statuses(name, quotas)
                .filter(|status| status.usage.used >= status.quota.limit)
                .map(|status| match status.quota.metric {
                    QuotaMetric::Connections => Exhausted::NewFlows,
                    QuotaMetric::RequestBytes | QuotaMetric::ResponseBytes => Exhausted::Everything,
                })
                .max()
        };
        let tenants = policy.tenants.iter().filter(|tenant| !tenant.quotas.is_empty());
        tenants
            .filter_map(|tenant| Some((tenant.name.clone(), of_tenant(&tenant.name, &tenant.quotas)?)))
            .collect()
    }
}

// === impl Account ===

impl Account {
    /// Takes over the counters, and says how much they have grown for this tenant.
    fn read(&mut self, counters: Option<(u32, Counters)>) -> Counters {
        let Some((slot, counters)) = counters else {
            return Counters::default();
        };
        let before = std::mem::replace(&mut self.seen, counters);
        if self.slot.replace(slot) == Some(slot) {
            counters.growth_since(before)
        } else {
            Counters::default()
        }
    }

    fn take(
        &mut self,
        quota: &Quota,
        growth: u64,
        looked_at: Option<Timestamp>,
        at: Timestamp,
    ) -> (&mut Usage, bool) {
        let known = self.windows.iter().position(|usage| usage.is_of(quota));
        let index = known.unwrap_or_else(|| {
            self.windows.push(Usage::begin(quota, at));
            self.windows.len() - 1
        });
        let usage = &mut self.windows[index];
        let renewed = usage.take(quota, growth, looked_at, at);
        (usage, renewed)
    }
}

#[cfg(test)]
mod tests;
