//! Everything that is known of the back ends: health, telemetry, weight, next hop, and which pools have failed.
//!
//! It owns how probe results and samples become the [`BackendStatus`] that the compiler works on. It never decides
//! who may use a back end; the policy's rules and constraints do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::compile::{BackendStatus, NextHop};
use super::health::{
    FailoverThresholds, Health, HealthChange, HealthStatus, HealthThresholds, PoolChange, PoolHealth,
    PoolLook,
};
use super::heat::Heat;
use super::policy::resolved::ResolvedPolicy;
use super::telemetry::{EngineSample, GpuSample};
use super::weights::{
    BackendState, PoolMember, Reading, Signals, Tuning, WeightCause, fold, limit_drains, weight_of,
};

/// How long a pool must have been fit again before traffic returns to it.
const RECOVERY_HOLD_NS: u64 = 5_000_000_000;

/// All back ends and pools of the policy in force.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    members: BTreeMap<String, Member>,
    pools: BTreeMap<String, PoolHealth>,
    /// By pool, then by class: for every class that can be shed.
    sheds: BTreeMap<String, BTreeMap<String, Heat>>,
    tuning: Tuning,
}

/// One back end.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its pool.
    pub pool: String,
    /// Its capacity.
    pub capacity: u32,
    /// Its health.
    pub health: Health,
    /// What telemetry has made of it so far.
    pub state: BackendState,
    /// Its weight, after what its pool allows.
    pub weight: u32,
    /// Why the weight is what it is: the causes of its last change.
    pub causes: Vec<WeightCause>,
    /// The way to it.
    pub next_hop: Option<NextHop>,
    /// Whether an operator drains it.
    pub draining: bool,
    thresholds: HealthThresholds,
    engine: Reading<EngineSample>,
    gpu: Reading<GpuSample>,
}

/// A weight that changed, for the audit log.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightChange {
    /// The back end.
    pub backend: String,
    /// Before.
    pub from: u32,
    /// Now.
    pub to: u32,
    /// Which signals caused it.
    pub causes: Vec<WeightCause>,
    /// Whether the pool refused to have it drained, since half of the pool is out already.
    pub drain_refused: bool,
}

/// A pool that begins or ceases to shed a class, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShedChange {
    /// The pool.
    pub pool: String,
    /// The class.
    pub class: String,
    /// Whether its new flows are refused now.
    pub sheds: bool,
    /// How much of the pool is used; `None` if that is not known any more, and the policy has changed.
    pub utilization_per_mille: Option<u16>,
    /// Above which the class is shed.
    pub above_percent: u8,
}

impl Fleet {
    /// Takes over the back ends of a policy. One that stays keeps what is known of it; one whose address changed is
    /// another back end.
    pub fn follow(
        &mut self,
        old: Option<&ResolvedPolicy>,
        policy: &ResolvedPolicy,
        draining: &BTreeSet<String>,
    ) {
        let mut known = std::mem::take(&mut self.members);
        let old = old.into_iter().flat_map(|old| &old.pools);
        let old = old.flat_map(|pool| &pool.backends);
        let before: BTreeSet<(&str, IpAddr, u16)> = old
            .map(|backend| (backend.name.as_str(), backend.address, backend.port))
            .collect();
        for pool in &policy.pools {
            let check = &pool.health_check;
            // `resolve` has refused thresholds of zero.
            let thresholds =
                HealthThresholds::new(check.unhealthy_after, check.healthy_after).unwrap_or_default();
            for backend in &pool.backends {
                let same = before.contains(&(backend.name.as_str(), backend.address, backend.port));
                let mut member = known
                    .remove(&backend.name)
                    .filter(|_| same)
                    .unwrap_or_else(|| Member {
                        pool: pool.name.clone(),
                        capacity: backend.capacity,
                        health: Health::default(),
                        state: BackendState::default(),
                        weight: BackendStatus::unknown(backend).weight,
                        causes: Vec::new(),
                        next_hop: None,
                        draining: false,
                        thresholds,
                        engine: Reading::NotConfigured,
                        gpu: Reading::NotConfigured,
                    });
                if member.capacity != backend.capacity {
                    member.capacity = backend.capacity;
                    member.weight = weight_of(backend.capacity, member.state.share_per_mille());
                }
                member.pool.clone_from(&pool.name);
                member.thresholds = thresholds;
                member.draining = draining.contains(&backend.name);
                member.engine = configured(member.engine, backend.engine_url.is_some());
                member.gpu = configured(member.gpu, backend.dcgm_url.is_some());
                self.members.insert(backend.name.clone(), member);
            }
        }
        self.pools
            .retain(|name, _| policy.pools.iter().any(|pool| pool.name == *name));
        for pool in &policy.pools {
            self.pools.entry(pool.name.clone()).or_default();
        }
    }

    /// A back end.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    /// The constants of the fold.
    #[must_use]
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Drains or undrains a back end; `false` if there is none of that name.
    pub fn drain(&mut self, name: &str, draining: bool) -> bool {
        let Some(member) = self.members.get_mut(name) else {
            return false;
        };
        if !draining {
            member.state.acknowledge_fault();
        }
        member.draining = draining;
        true
    }

    /// Takes the result of a probe; the change of the verdict, if there is one.
    pub fn probed(&mut self, name: &str, passed: bool) -> Option<HealthChange> {
        let member = self.members.get_mut(name)?;
        let thresholds = member.thresholds;
        member.health.observe(passed, &thresholds)
    }

    /// Takes what an engine said.
    pub fn engine_said(&mut self, name: &str, reading: Reading<EngineSample>) {
        if let Some(member) = self.members.get_mut(name) {
            member.engine = reading;
        }
    }

    /// Takes what a GPU exporter or NVML said.
    pub fn gpu_said(&mut self, name: &str, reading: Reading<GpuSample>) {
        if let Some(member) = self.members.get_mut(name) {
            member.gpu = reading;
        }
    }

    /// Takes the way to a back end; whether it changed. A way that is lost for a moment is kept: a neighbour entry that
    /// expires does not mean that frames no longer arrive.
    pub fn routed(&mut self, name: &str, next_hop: Option<NextHop>) -> bool {
        let Some(member) = self.members.get_mut(name) else {
            return false;
        };
        if next_hop.is_none() || member.next_hop == next_hop {
            return false;
        }
        member.next_hop = next_hop;
        true
    }

    /// Folds what came in since the last call into weights. `connections` counts those in flight, by name.
    pub fn fold(&mut self, now_ns: u64, connections: &BTreeMap<String, u64>) -> Vec<WeightChange> {
        let mut weights = BTreeMap::new();
        for (name, member) in &mut self.members {
            let (engine, gpu) = (member.engine, member.gpu);
            (member.engine, member.gpu) = (quiet(&engine), quiet(&gpu));
            let signals = Signals {
                engine,
                gpu,
                connections_in_flight: connections.get(name).copied(),
                serving: member.health.status().takes_traffic() && !member.draining,
            };
            let folded = fold(&member.state, &signals, member.capacity, now_ns, &self.tuning);
            member.state = folded.state;
            weights.insert(name.clone(), (folded.weight, folded.causes, false));
        }
        self.spare_half_of_each_pool(&mut weights);
        let mut changes = Vec::new();
        for (name, (to, causes, drain_refused)) in weights {
            let Some(member) = self.members.get_mut(&name) else {
                continue;
            };
            let from = std::mem::replace(&mut member.weight, to);
            if !causes.is_empty() {
                member.causes.clone_from(&causes);
            }
            if from != to || !causes.is_empty() {
                changes.push(WeightChange {
                    backend: name,
                    from,
                    to,
                    causes,
                    drain_refused,
                });
            }
        }
        changes
    }

    fn spare_half_of_each_pool(&self, weights: &mut BTreeMap<String, (u32, Vec<WeightCause>, bool)>) {
        for pool in self.pools.keys() {
            let names: Vec<&String> = self
                .members
                .iter()
                .filter(|(_, member)| member.pool == *pool)
                .map(|(name, _)| name)
                .collect();
            let mut members: Vec<PoolMember> = names
                .iter()
                .filter_map(|name| {
                    let member = self.members.get(*name)?;
                    Some(PoolMember {
                        capacity: member.capacity,
                        weight: weights.get(*name)?.0,
                        serving: member.health.status().takes_traffic() && !member.draining,
                        fault_since_ns: member.state.fault_since_ns(),
                    })
                })
                .collect();
            let refused = limit_drains(&mut members, &self.tuning);
            for (position, (name, member)) in names.iter().zip(&members).enumerate() {
                if let Some(entry) = weights.get_mut(*name) {
                    entry.0 = member.weight;
                    entry.2 = refused.contains(&position);
                }
            }
        }
    }

    /// Judges the pools; those that failed or returned.
    pub fn judge_pools(&mut self, policy: &ResolvedPolicy, now_ns: u64) -> Vec<(String, PoolChange)> {
        let mut changes = Vec::new();
        let utilizations = self.utilizations();
        for pool in &policy.pools {
            // `resolve` has refused shares above 100.
            let thresholds = FailoverThresholds::new(pool.healthy_below_percent, RECOVERY_HOLD_NS)
                .unwrap_or_default()
                .utilization_above(pool.utilization_above_percent);
            let utilization_per_mille = utilizations.get(&pool.name).copied();
            let healthy = pool
                .backends
                .iter()
                .filter_map(|backend| self.members.get(&backend.name))
                .filter(|member| member.health.status().takes_traffic())
                .count();
            let health = self.pools.entry(pool.name.clone()).or_default();
            let total = u32::try_from(pool.backends.len()).unwrap_or(u32::MAX);
            let look = PoolLook {
                healthy: u32::try_from(healthy).unwrap_or(u32::MAX),
                total,
                utilization_per_mille,
            };
            let seen = health.observe(look, now_ns, &thresholds);
            changes.extend(seen.into_iter().map(|change| (pool.name.clone(), change)));
        }
        changes
    }

    /// How much of a pool is used, in per mille: the mean of its back ends' saturation, by capacity, over those that take
    /// new flows. A back end of which nothing at all is known does not count, so that silence is never taken for ease;
    /// one whose telemetry is silent counts with its connections over its capacity, or as half used. `None` if nothing
    /// is known of any.
    #[must_use]
    pub fn utilization_per_mille(&self, pool: &str) -> Option<u16> {
        let mut load = Load::default();
        self.members
            .values()
            .filter(|member| member.pool == pool)
            .for_each(|member| load.add(member));
        load.per_mille()
    }

    /// The same for every pool.
    #[must_use]
    pub fn utilizations(&self) -> BTreeMap<String, u16> {
        let mut loads: BTreeMap<&str, Load> = BTreeMap::new();
        for member in self.members.values() {
            loads.entry(&member.pool).or_default().add(member);
        }
        let known = loads.into_iter();
        known
            .filter_map(|(pool, load)| Some((pool.to_owned(), load.per_mille()?)))
            .collect()
    }

    /// Judges which pools shed which classes; what changed.
    pub fn judge_shedding(&mut self, policy: &ResolvedPolicy, now_ns: u64) -> Vec<ShedChange> {
        let mut changes = Vec::new();
        let utilizations = self.utilizations();
        let mut before = std::mem::take(&mut self.sheds);
        for pool in &policy.pools {
            let utilization_per_mille = utilizations.get(&pool.name).copied();
            let mut known = before.remove(&pool.name).unwrap_or_default();
            let mut classes = BTreeMap::new();
            for class in &policy.classes {
                let Some(above_percent) = class.shed_above_percent else {
                    continue;
                };
                let mut heat = known.remove(&class.name).unwrap_or_default();
                if heat.observe(utilization_per_mille, above_percent, now_ns) {
                    changes.push(ShedChange {
                        pool: pool.name.clone(),
                        class: class.name.clone(),
                        sheds: heat.is_hot(),
                        utilization_per_mille,
                        above_percent,
                    });
                }
                classes.insert(class.name.clone(), heat);
            }
            self.sheds.insert(pool.name.clone(), classes);
        }
        changes
    }

    /// Every pool with every class that it can shed, and whether it does.
    pub fn sheddable(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.sheds.iter().flat_map(|(pool, classes)| {
            let of_pool = classes.iter();
            of_pool.map(move |(class, heat)| (pool.as_str(), class.as_str(), heat.is_hot()))
        })
    }

    /// Classes whose new flows each pool refuses; pools that refuse none are not in it.
    #[must_use]
    pub fn shed(&self) -> BTreeMap<String, BTreeSet<String>> {
        let hot = |classes: &BTreeMap<String, Heat>| -> BTreeSet<String> {
            let hot = classes.iter().filter(|(_, heat)| heat.is_hot());
            hot.map(|(class, _)| class.clone()).collect()
        };
        self.sheds
            .iter()
            .map(|(pool, classes)| (pool.clone(), hot(classes)))
            .filter(|(_, classes)| !classes.is_empty())
            .collect()
    }

    /// Pools that count as failed.
    #[must_use]
    pub fn failed_pools(&self) -> BTreeSet<String> {
        self.pools
            .iter()
            .filter(|(_, health)| health.has_failed())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What the compiler needs to know.
    #[must_use]
    pub fn statuses(&self) -> BTreeMap<String, BackendStatus> {
        let status = |member: &Member| BackendStatus {
            healthy: member.health.status() != HealthStatus::Unhealthy,
            draining: member.draining,
            weight: member.weight,
            next_hop: member.next_hop,
        };
        self.members
            .iter()
            .map(|(name, member)| (name.clone(), status(member)))
            .collect()
    }
}

/// The saturation of back ends, each as much as its capacity.
#[derive(Default)]
struct Load {
    used: f64,
    whole: f64,
}

impl Load {
    fn add(&mut self, member: &Member) {
        let serves = member.health.status().takes_traffic() && !member.draining && member.weight > 0;
        if let Some(saturation) = member.state.saturation().filter(|_| serves) {
            let capacity = f64::from(member.capacity.max(1));
            self.used += capacity * saturation;
            self.whole += capacity;
        }
    }

    fn per_mille(&self) -> Option<u16> {
        // A share of one, so that it fits; rounded, since the averages only approach their limits.
        (self.whole > 0.0).then(|| (self.used / self.whole * 1000.0).round().clamp(0.0, 1000.0) as u16)
    }
}

const fn configured<T: Copy>(reading: Reading<T>, is_configured: bool) -> Reading<T> {
    match reading {
        _ if !is_configured => Reading::NotConfigured,
        Reading::NotConfigured => Reading::Unchanged,
        reading => reading,
    }
}

const fn quiet<T>(reading: &Reading<T>) -> Reading<T> {
    match reading {
        Reading::NotConfigured => Reading::NotConfigured,
        Reading::Unchanged | Reading::Missed | Reading::Fresh(_) => Reading::Unchanged,
    }
}

#[cfg(test)]
mod tests;
