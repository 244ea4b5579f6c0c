//! Fairness among tenants: while a pool is contended, the rate of new connections that it can take is shared out by the
//! weights of their classes, between what is guaranteed to them and what they may use at most.
//!
//! Nobody says how many new connections a pool can take; that depends on how long they last. So the budget is found by
//! trying: it begins with what the pool has just taken, is lowered by a share while the pool stays too hot and raised by
//! a step while it is not (additive increase, multiplicative decrease: Chiu, Jain, *Computer Networks and ISDN
//! Systems* 17, 1989), and given up once it covers all that is asked for. What is asked for the kernel counts:
//! connections opened, and those refused for their rate. A client repeats its SYN, so that what is refused counts more than
//! once; that makes no difference to who gets what, since who is refused wants more than its share anyway.
//!
//! It shares out only where the policy says how: by a class whose weight is not 1, or a guarantee.

mod share;

use std::collections::BTreeMap;

use super::heat::Heat;
use super::policy::ResolvedPolicy;
use super::policy::resolved::Tenant;
use super::policy::users::Users;
pub use share::{Wish, shares};

/// A pool is contended above this utilization.
pub const CONTENDED_ABOVE_PERCENT: u8 = 90;
/// What is left of the budget after a second in which the pool stayed too hot.
const DECREASE: f64 = 0.9;
/// What is added to it in another second, as a share of what it began with.
const INCREASE: f64 = 0.05;
/// How much of the newest second goes into the demand.
const NEWEST: f64 = 0.5;
/// How much more than it asked for last a tenant may ask for next.
const HEADROOM: f64 = 1.25;
/// Changes of a rate below this, in percent, are not made.
const DEAD_BAND_PERCENT: u64 = 5;
/// Changes of a rate from this on, in percent, are told.
const TOLD_PERCENT: u64 = 20;

/// What the kernel has counted of a tenant's new connections since the maps were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    /// Opened.
    pub opened: u64,
    /// Packets refused for the rate of new connections, its own or its share.
    pub refused: u64,
}

/// What is known at one look.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The policy in force.
    pub policy: &'a ResolvedPolicy,
    /// How much of each pool is used, in per mille; unknown ones are not in it.
    pub utilizations: &'a BTreeMap<String, u16>,
    /// Connections that each pool's back ends were given since the maps were made.
    pub taken: &'a BTreeMap<String, u64>,
    /// Kernel monotonic time.
    pub now_ns: u64,
}

/// A tenant's rate that was set, changed or lifted.
#[derive(Debug, Clone, PartialEq)]
pub struct ShareChange {
    /// Its name.
    pub tenant: String,
    /// The pool whose share it is.
    pub pool: String,
    /// New connections per second before; `None`: only its own limit held.
    pub from: Option<u64>,
    /// Now.
    pub to: Option<u64>,
    /// What it asked for, per second.
    pub demand: u64,
    /// What it weighs.
    pub weight: u32,
    /// How much of the pool is used, in per mille, where that is known.
    pub utilization_per_mille: Option<u16>,
}

/// What is known of the tenants' demand, and what is shared out.
#[derive(Debug, Clone, Default)]
pub struct Fairness {
    pools: BTreeMap<String, Contention>,
    /// By tenant.
    demands: BTreeMap<String, Demand>,
    /// By tenant: new connections per second, and of which pool.
    rates: BTreeMap<String, (u64, String)>,
    /// What was last told of.
    told: BTreeMap<String, u64>,
}

/// One pool.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Contention {
    heat: Heat,
    /// Connections taken at the last look, and when that was.
    last: Option<(u64, u64)>,
    /// New connections per second that it takes, smoothed.
    served: f64,
    /// What is shared out, and what that began with.
    budget: Option<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Demand {
    last: Option<(Attempts, u64)>,
    per_second: Option<f64>,
}

/// Whether a policy says how to share.
#[must_use]
pub fn is_shared(policy: &ResolvedPolicy) -> bool {
    policy.classes.iter().any(|class| class.weight != 1)
        || policy.tenants.iter().any(|tenant| guarantee(tenant) > 0)
}

fn guarantee(tenant: &Tenant) -> u64 {
    tenant.guaranteed.new_connections_per_second.unwrap_or(0)
}

fn weight(policy: &ResolvedPolicy, tenant: &Tenant) -> u32 {
    tenant.class.map_or(1, |class| policy.classes[class].weight)
}

fn per_second(before: u64, now: u64, elapsed_ns: u64) -> f64 {
    // Counters that began anew say nothing of the time before.
    now.saturating_sub(before) as f64 * 1e9 / elapsed_ns.max(1) as f64
}

// === impl Fairness ===

impl Fairness {
    /// Takes a look at the pools; those whose budget is shared out now.
    pub fn look_at_pools(&mut self, look: &Look<'_>) -> Vec<String> {
        let mut before = std::mem::take(&mut self.pools);
        if !is_shared(look.policy) {
            self.demands.clear();
            return Vec::new();
        }
        for pool in &look.policy.pools {
            let mut contention = before.remove(&pool.name).unwrap_or_default();
            contention.look(
                look.utilizations.get(&pool.name).copied(),
                look.taken.get(&pool.name).copied().unwrap_or(0),
                look.now_ns,
            );
            self.pools.insert(pool.name.clone(), contention);
        }
        let contended: Vec<String> = self
            .pools
            .iter()
            .filter(|(_, contention)| contention.budget.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        if contended.is_empty() {
            self.demands.clear();
        }
        contended
    }

    /// Shares out what the contended pools can take. `users` says who uses which of them, `attempts` what the kernel has
    /// counted of them; a tenant that is not in it is not held to a share.
    pub fn share(
        &mut self,
        look: &Look<'_>,
        users: &Users,
        attempts: &BTreeMap<String, Attempts>,
    ) -> Vec<ShareChange> {
        self.demands.retain(|tenant, _| attempts.contains_key(tenant));
        for (tenant, counted) in attempts {
            let demand = self.demands.entry(tenant.clone()).or_default();
            demand.look(*counted, look.now_ns);
        }
        let mut rates: BTreeMap<String, (u64, String)> = BTreeMap::new();
        for (pool, tenants) in &users.of_pool {
            for (tenant, rate) in self.share_of_pool(look.policy, pool, tenants) {
                // Who uses several contended pools is held to the least of its shares: its limiter is one for all.
                let known = rates.get(&tenant);
                if known.is_none_or(|(other, _)| rate < *other) {
                    rates.insert(tenant, (rate, pool.clone()));
                }
            }
        }
        for (tenant, (rate, _)) in &mut rates {
            let before = self.rates.get(tenant).map(|(before, _)| *before);
            if let Some(before) = before.filter(|before| !differs(*before, *rate, DEAD_BAND_PERCENT)) {
                *rate = before;
            }
        }
        let old = std::mem::replace(&mut self.rates, rates);
        self.changes(look, &old)
    }

    /// New connections per second that tenants are held to, by name.
    #[must_use]
    pub fn rates(&self) -> BTreeMap<String, u64> {
        let rates = self.rates.iter();
        rates.map(|(tenant, (rate, _))| (tenant.clone(), *rate)).collect()
    }

    /// What a tenant asks for, in new connections per second, while a pool that it uses is contended.
    #[must_use]
    pub fn demand(&self, tenant: &str) -> Option<f64> {
        self.demands.get(tenant)?.per_second
    }

    /// The rates of one contended pool; moves its budget on.
    fn share_of_pool(
        &mut self,
        policy: &ResolvedPolicy,
        pool: &str,
        tenants: &[usize],
    ) -> Vec<(String, u64)> {
        let known: Vec<(&Tenant, f64)> = tenants
            .iter()
            .map(|index| &policy.tenants[*index])
            .filter_map(|tenant| Some((&**tenant, self.demand(&tenant.name)?)))
            .collect();
        let wish = |(tenant, demand): &(&Tenant, f64)| {
            let limit = tenant
                .limits
                .new_connections_per_second
                .map_or(f64::INFINITY, |limit| limit as f64);
            let most = (demand * HEADROOM + 1.0).min(limit);
            Wish {
                weight: f64::from(weight(policy, tenant)),
                floor: (guarantee(tenant) as f64).min(most),
                most,
            }
        };
        let wishes: Vec<Wish> = known.iter().map(wish).collect();
        let asked: f64 = wishes.iter().map(|wish| wish.most).sum();
        let floors: f64 = wishes.iter().map(|wish| wish.floor).sum();
        let Some(budget) = self.pools.get_mut(pool).and_then(|pool| pool.step(asked, floors)) else {
            return Vec::new();
        };
        let given = shares(budget, &wishes);
        let held = known.iter().zip(&wishes).zip(&given);
        held.filter(|((_, wish), share)| **share < wish.most)
            .map(|(((tenant, _), _), share)| {
                // A guarantee is a whole number and stays one; nobody is held to nothing.
                let rate = (*share as u64).max(guarantee(tenant)).max(1);
                (tenant.name.clone(), rate)
            })
            .collect()
    }

    fn changes(&mut self, look: &Look<'_>, old: &BTreeMap<String, (u64, String)>) -> Vec<ShareChange> {
        let names: std::collections::BTreeSet<&String> = old.keys().chain(self.rates.keys()).collect();
        let mut changes = Vec::new();
        for name in names {
            let (from, to) = (self.told.get(name).copied(), self.rates.get(name));
            let is_news = match (from, to) {
                (Some(from), Some((to, _))) => differs(from, *to, TOLD_PERCENT),
                (None, None) => false,
                _ => true,
            };
            let pool = to.or_else(|| old.get(name)).map(|(_, pool)| pool.clone());
            let tenant = look.policy.tenants.iter().find(|tenant| tenant.name == *name);
            if !is_news {
                continue;
            }
            let pool = pool.unwrap_or_default();
            changes.push(ShareChange {
                tenant: name.clone(),
                from,
                to: to.map(|(rate, _)| *rate),
                demand: self.demand(name).unwrap_or(0.0).round() as u64,
                weight: tenant.map_or(1, |tenant| weight(look.policy, tenant)),
                utilization_per_mille: look.utilizations.get(&pool).copied(),
                pool,
            });
        }
        for change in &changes {
            match change.to {
                Some(rate) => self.told.insert(change.tenant.clone(), rate),
                None => self.told.remove(&change.tenant),
            };
        }
        changes
    }
}

/// Whether two rates differ by more than so many percent of the first.
fn differs(before: u64, now: u64, percent: u64) -> bool {
    before.abs_diff(now).saturating_mul(100) > before.saturating_mul(percent)
}

// === impl Demand ===

impl Demand {
    fn look(&mut self, counted: Attempts, now_ns: u64) {
        if let Some((before, then_ns)) = self.last
            && now_ns > then_ns
        {
            let elapsed_ns = now_ns - then_ns;
            let newest = per_second(before.opened, counted.opened, elapsed_ns)
                + per_second(before.refused, counted.refused, elapsed_ns);
            let smoothed = self
                .per_second
                .map_or(newest, |known| known + NEWEST * (newest - known));
            self.per_second = Some(smoothed);
        }
        self.last = Some((counted, now_ns));
    }
}

// === impl Contention ===

impl Contention {
    fn look(&mut self, utilization_per_mille: Option<u16>, taken: u64, now_ns: u64) {
        if let Some((before, then_ns)) = self.last
            && now_ns > then_ns
        {
            let newest = per_second(before, taken, now_ns - then_ns);
            self.served += NEWEST * (newest - self.served);
        }
        self.last = Some((taken, now_ns));
        self.heat
            .observe(utilization_per_mille, CONTENDED_ABOVE_PERCENT, now_ns);
        let is_hot = utilization_per_mille.is_some_and(|used| used > u16::from(CONTENDED_ABOVE_PERCENT) * 10);
        self.budget = match self.budget {
            None if self.heat.is_hot() => Some((self.served.max(1.0), self.served.max(1.0))),
            None => None,
            // What is not known any more is neither load nor ease.
            Some(budget) if utilization_per_mille.is_none() => Some(budget),
            Some((budget, begun)) if is_hot => Some(((budget * DECREASE).max(1.0), begun)),
            Some((budget, begun)) => Some((budget + (begun * INCREASE).max(1.0), begun)),
        };
    }

    /// The budget, at least what is guaranteed; none, and given up, if the pool has cooled down and it covers all that is
    /// asked for.
    fn step(&mut self, asked: f64, floors: f64) -> Option<f64> {
        let (budget, begun) = self.budget?;
        if !self.heat.is_hot() && budget >= asked {
            self.budget = None;
            return None;
        }
        let budget = budget.max(floors);
        self.budget = Some((budget, begun));
        Some(budget)
    }
}

#[cfg(test)]
mod tests;
