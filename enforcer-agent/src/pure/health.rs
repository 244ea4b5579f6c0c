//! Health of back ends and pools: two state machines without clock or sockets.
//!
//! It owns when probe results become a verdict about a back end, and when a pool counts as failed, by health or by
//! utilization, so that traffic moves to the next pool of the service. It never decides *where* a tenant's traffic may go; constraints do that.

use serde::Serialize;
use thiserror::Error;

use super::heat::Heat;

/// How many probes in a row make a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthThresholds {
    unhealthy_after: u32,
    healthy_after: u32,
}

/// A threshold of zero, which no probe can meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("`{field}` must be at least 1")]
pub struct ZeroThreshold {
    /// The field of the policy.
    pub field: &'static str,
}

impl HealthThresholds {
    /// Failures in a row that make a back end unhealthy, and successes in a row that make it healthy again.
    ///
    /// # Errors
    /// [`ZeroThreshold`] names the one that is zero.
    pub fn new(unhealthy_after: u32, healthy_after: u32) -> Result<Self, ZeroThreshold> {
        if unhealthy_after == 0 {
            return Err(ZeroThreshold {
                field: "unhealthyAfter",
            });
        }
        if healthy_after == 0 {
            return Err(ZeroThreshold {
                field: "healthyAfter",
            });
        }
        Ok(Self {
            unhealthy_after,
            healthy_after,
        })
    }
}

impl Default for HealthThresholds {
    fn default() -> Self {
        Self {
            unhealthy_after: 3,
            healthy_after: 2,
        }
    }
}

/// The verdict about a back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthStatus {
    /// Not probed often enough yet. Counts as healthy: an agent that restarts over a running data plane must not take
    /// every back end out until probes have answered, and a new back end that is dead costs only the connections of
    /// its first `unhealthyAfter` probes.
    #[default]
    Unknown,
    /// Answers its probes.
    Healthy,
    /// Does not.
    Unhealthy,
}

impl HealthStatus {
    /// Whether new connections may go there.
    #[must_use]
    pub fn takes_traffic(self) -> bool {
        self != Self::Unhealthy
    }
}

/// A change of the verdict, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthChange {
    /// The verdict before.
    pub from: HealthStatus,
    /// The verdict now.
    pub to: HealthStatus,
    /// The probes in a row that made it.
    pub probes: u32,
}

/// Health of one back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    status: HealthStatus,
    /// Probes in a row with the same result as the last one, up to now.
    streak: u32,
    last_passed: bool,
}

impl Health {
    /// The verdict as it stands.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        self.status
    }

    /// Takes one probe's result, and returns the change of the verdict, if there is one. The first success of a back
    /// end that was never judged suffices, since it was taken for healthy before.
    pub fn observe(&mut self, passed: bool, thresholds: &HealthThresholds) -> Option<HealthChange> {
        self.streak = if passed == self.last_passed {
            self.streak.saturating_add(1)
        } else {
            1
        };
        self.last_passed = passed;
        let to = match (self.status, passed) {
            (HealthStatus::Unknown, true) => HealthStatus::Healthy,
            (HealthStatus::Unhealthy, true) if self.streak >= thresholds.healthy_after => {
                HealthStatus::Healthy
            }
            (HealthStatus::Unknown | HealthStatus::Healthy, false)
                if self.streak >= thresholds.unhealthy_after =>
            {
                HealthStatus::Unhealthy
            }
            _ => return None,
        };
        let change = HealthChange {
            from: self.status,
            to,
            probes: self.streak,
        };
        self.status = to;
        Some(change)
    }
}

/// When a pool counts as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailoverThresholds {
    healthy_below_percent: u8,
    utilization_above_percent: Option<u8>,
    recovery_hold_ns: u64,
}

/// What is known of a pool at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolLook {
    /// Back ends that may take traffic.
    pub healthy: u32,
    /// All of its back ends.
    pub total: u32,
    /// How much of it is used; `None` if nothing is known.
    pub utilization_per_mille: Option<u16>,
}

/// A share above 100 percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("`healthyBelow` is {percent}%, and no pool is ever healthier than 100%")]
pub struct PercentTooLarge {
    /// What was asked for.
    pub percent: u8,
}

impl FailoverThresholds {
    /// A pool fails when less than `healthy_below_percent` of its back ends are healthy, and returns when it has been at
    /// or above that for `recovery_hold_ns`.
    ///
    /// The hysteresis is in time and not in a second, higher threshold: of two back ends one may be gone for good, and
    /// a pool that failed once would then never return.
    ///
    /// # Errors
    /// [`PercentTooLarge`] above 100.
    pub fn new(healthy_below_percent: u8, recovery_hold_ns: u64) -> Result<Self, PercentTooLarge> {
        if healthy_below_percent > 100 {
            return Err(PercentTooLarge {
                percent: healthy_below_percent,
            });
        }
        Ok(Self {
            healthy_below_percent,
            utilization_above_percent: None,
            recovery_hold_ns,
        })
    }

    /// The pool also fails while it is used to more than this, in percent: see [`super::heat`].
    #[must_use]
    pub const fn utilization_above(mut self, percent: Option<u8>) -> Self {
        self.utilization_above_percent = percent;
        self
    }

    /// Whether a pool with so many healthy back ends is fit to serve. One without any never is.
    fn suffices(&self, healthy: u32, total: u32) -> bool {
        healthy > 0 && u64::from(healthy) * 100 >= u64::from(total) * u64::from(self.healthy_below_percent)
    }
}

impl Default for FailoverThresholds {
    /// Half of the back ends, and ten seconds.
    fn default() -> Self {
        Self {
            healthy_below_percent: 50,
            utilization_above_percent: None,
            recovery_hold_ns: 10_000_000_000,
        }
    }
}

/// A pool that failed or returned, or now fails for another reason too, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolChange {
    /// Whether it counts as failed now.
    pub failed: bool,
    /// Whether too few of its back ends are healthy.
    pub unfit: bool,
    /// Whether it runs hot.
    pub hot: bool,
    /// Whether running hot is what began or ended.
    pub by_utilization: bool,
    /// What was seen.
    pub look: PoolLook,
}

/// Failover state of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolHealth {
    unfit: bool,
    heat: Heat,
    /// Since when a failed pool has had enough healthy back ends again.
    sufficient_since_ns: Option<u64>,
}

impl PoolHealth {
    /// Whether the pool counts as failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.unfit || self.heat.is_hot()
    }

    /// Takes a look at the pool, and returns the changes: by health, by utilization, or both.
    pub fn observe(
        &mut self,
        look: PoolLook,
        now_ns: u64,
        thresholds: &FailoverThresholds,
    ) -> Vec<PoolChange> {
        let by_health = self.observe_health(look, now_ns, thresholds);
        let by_utilization = match thresholds.utilization_above_percent {
            Some(above_percent) => self
                .heat
                .observe(look.utilization_per_mille, above_percent, now_ns),
            // The policy asks no longer.
            None => std::mem::take(&mut self.heat).is_hot(),
        };
        [(by_health, false), (by_utilization, true)]
            .into_iter()
            .filter(|(changed, _)| *changed)
            .map(|(_, by_utilization)| PoolChange {
                failed: self.has_failed(),
                unfit: self.unfit,
                hot: self.heat.is_hot(),
                by_utilization,
                look,
            })
            .collect()
    }

    /// Failing is immediate (the back ends' own thresholds have already damped it), returning takes the hold.
    fn observe_health(&mut self, look: PoolLook, now_ns: u64, thresholds: &FailoverThresholds) -> bool {
        if !thresholds.suffices(look.healthy, look.total) {
            self.sufficient_since_ns = None;
            return !std::mem::replace(&mut self.unfit, true);
        }
        if !self.unfit {
            return false;
        }
        let since_ns = *self.sufficient_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) < thresholds.recovery_hold_ns {
            return false;
        }
        (self.unfit, self.sufficient_since_ns) = (false, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthStatus::{Healthy, Unhealthy, Unknown};
    use proptest::prelude::*;

    /// Feeds results (`+` passed, `-` failed) and compares the verdict after each.
    #[track_caller]
    fn check(results: &str, expected: &[HealthStatus]) {
        let thresholds = HealthThresholds::new(3, 2).unwrap();
        let mut health = Health::default();
        let seen: Vec<_> = results
            .chars()
            .map(|result| {
                let before = health.status();
                let change = health.observe(result == '+', &thresholds);
                assert_eq!(change.map(|change| change.to).unwrap_or(before), health.status());
                health.status()
            })
            .collect();
        assert_eq!(seen, expected, "{results}");
    }

    #[test]
    fn verdicts_need_results_in_a_row() {
        check("+---", &[Healthy, Healthy, Healthy, Unhealthy]);
        check("+--+--", &[Healthy; 6]);
        check(
            "---+-++",
            &[
                Unknown, Unknown, Unhealthy, Unhealthy, Unhealthy, Unhealthy, Healthy,
            ],
        );
        check("--+", &[Unknown, Unknown, Healthy]);
    }

    #[test]
    fn unknown_takes_traffic_until_it_has_failed_often_enough() {
        assert!(Unknown.takes_traffic() && Healthy.takes_traffic() && !Unhealthy.takes_traffic());
    }

    #[test]
    fn a_change_tells_how_many_probes_made_it() {
        let thresholds = HealthThresholds::new(2, 1).unwrap();
        let mut health = Health::default();
        assert_eq!(health.observe(false, &thresholds), None);
        let change = HealthChange {
            from: Unknown,
            to: Unhealthy,
            probes: 2,
        };
        assert_eq!(health.observe(false, &thresholds), Some(change));
    }

    #[test]
    fn thresholds_that_nothing_can_meet_are_refused() {
        assert_eq!(
            HealthThresholds::new(0, 1),
            Err(ZeroThreshold {
                field: "unhealthyAfter"
            })
        );
        assert_eq!(
            HealthThresholds::new(1, 0),
            Err(ZeroThreshold {
                field: "healthyAfter"
            })
        );
        assert_eq!(
            FailoverThresholds::new(101, 0),
            Err(PercentTooLarge { percent: 101 })
        );
    }

    /// Whether a look at a pool's back ends changes whether it counts as failed, and to what.
    fn observe(
        pool: &mut PoolHealth,
        healthy: u32,
        total: u32,
        now_ns: u64,
        thresholds: &FailoverThresholds,
    ) -> Option<bool> {
        let look = PoolLook {
            healthy,
            total,
            utilization_per_mille: None,
        };
        let changes = pool.observe(look, now_ns, thresholds);
        assert!(
            changes
                .iter()
                .all(|change| change.look == look && !change.by_utilization)
        );
        assert!(changes.len() < 2);
        changes.first().map(|change| change.failed)
    }

    #[test]
    fn a_pool_fails_at_once_and_returns_after_the_hold() {
        let thresholds = FailoverThresholds::new(50, 10).unwrap();
        let mut pool = PoolHealth::default();
        let mut observe = |healthy, now_ns| observe(&mut pool, healthy, 4, now_ns, &thresholds);
        assert_eq!(observe(2, 0), None);
        assert_eq!(observe(1, 1), Some(true));
        assert_eq!(observe(0, 2), None);
        assert_eq!(observe(2, 3), None);
        assert_eq!(observe(1, 12), None, "a relapse starts the hold over");
        assert_eq!(observe(2, 13), None);
        assert_eq!(observe(3, 22), None);
        assert_eq!(observe(3, 23), Some(false));
        assert!(!pool.has_failed());
    }

    #[test]
    fn a_pool_without_healthy_back_ends_has_failed_whatever_the_threshold() {
        let thresholds = FailoverThresholds::new(0, 0).unwrap();
        for total in [0, 1, 5] {
            let mut pool = PoolHealth::default();
            assert_eq!(observe(&mut pool, 0, total, 0, &thresholds), Some(true));
        }
        assert_eq!(observe(&mut PoolHealth::default(), 1, 5, 0, &thresholds), None);
    }

    #[test]
    fn a_pool_fails_by_utilization_and_by_health_independently() {
        let thresholds = FailoverThresholds::new(50, 0)
            .unwrap()
            .utilization_above(Some(95));
        let mut pool = PoolHealth::default();
        let mut observe = |second: u64, healthy, used, thresholds: &FailoverThresholds| {
            let look = PoolLook {
                healthy,
                total: 2,
                utilization_per_mille: used,
            };
            let changes = pool.observe(look, second * 1_000_000_000, thresholds);
            let seen: Vec<_> = changes
                .iter()
                .map(|change| (change.by_utilization, change.failed, change.unfit, change.hot))
                .collect();
            seen
        };
        assert_eq!(observe(0, 2, Some(950), &thresholds), []);
        assert_eq!(observe(1, 2, Some(951), &thresholds), [(true, true, false, true)]);
        assert_eq!(observe(2, 0, Some(951), &thresholds), [(false, true, true, true)]);
        // Its health is back, and it is as hot as before.
        assert_eq!(
            observe(3, 2, Some(951), &thresholds),
            [(false, true, false, true)]
        );
        assert_eq!(observe(4, 2, None, &thresholds), []);
        assert_eq!(observe(5, 2, Some(900), &thresholds), []);
        assert_eq!(observe(9, 2, Some(900), &thresholds), []);
        assert_eq!(
            observe(10, 2, Some(900), &thresholds),
            [(true, false, false, false)]
        );
        assert_eq!(
            observe(11, 2, Some(960), &thresholds),
            [(true, true, false, true)]
        );
        // Another policy, which does not ask.
        let without = FailoverThresholds::new(50, 0).unwrap();
        assert_eq!(observe(12, 2, Some(960), &without), [(true, false, false, false)]);
        assert_eq!(observe(13, 2, Some(960), &without), []);
    }

    proptest! {
        #[test]
        fn no_verdict_changes_twice_within_a_threshold(results in proptest::collection::vec(any::<bool>(), 0..60)) {
            let thresholds = HealthThresholds::new(3, 2).unwrap();
            let mut health = Health::default();
            let mut last_change = None;
            for (step, passed) in results.into_iter().enumerate() {
                if let Some(change) = health.observe(passed, &thresholds) {
                    prop_assert_ne!(change.from, change.to);
                    prop_assert_eq!(change.to.takes_traffic(), passed);
                    if let Some(last) = last_change {
                        prop_assert!(step - last >= 2);
                    }
                    last_change = Some(step);
                }
            }
        }
    }
}
