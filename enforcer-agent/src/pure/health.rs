//! Health of back ends and pools: two state machines without clock or sockets.
//!
//! It owns when probe results become a verdict about a back end, and when a pool counts as failed, so that traffic
//! moves to the next pool of the service. It never decides *where* a tenant's traffic may go; constraints do that.

use serde::Serialize;
use thiserror::Error;

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
    recovery_hold_ns: u64,
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
            recovery_hold_ns,
        })
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
            recovery_hold_ns: 10_000_000_000,
        }
    }
}

/// A pool that failed or returned, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolChange {
    /// Whether it failed (or else returned).
    pub failed: bool,
    /// Back ends that may take traffic.
    pub healthy: u32,
    /// All of its back ends.
    pub total: u32,
}

/// Failover state of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolHealth {
    failed: bool,
    /// Since when a failed pool has had enough healthy back ends again.
    sufficient_since_ns: Option<u64>,
}

impl PoolHealth {
    /// Whether the pool counts as failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Takes a count of back ends, and returns the change, if there is one. Failing is immediate (the back ends' own
    /// thresholds have already damped it), returning takes the hold.
    pub fn observe(
        &mut self,
        healthy: u32,
        total: u32,
        now_ns: u64,
        thresholds: &FailoverThresholds,
    ) -> Option<PoolChange> {
        if !thresholds.suffices(healthy, total) {
            self.sufficient_since_ns = None;
            let newly_failed = !std::mem::replace(&mut self.failed, true);
            return newly_failed.then_some(PoolChange {
                failed: true,
                healthy,
                total,
            });
        }
        if !self.failed {
            return None;
        }
        let since_ns = *self.sufficient_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) < thresholds.recovery_hold_ns {
            return None;
        }
        *self = Self::default();
        Some(PoolChange {
            failed: false,
            healthy,
            total,
        })
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

    #[test]
    fn a_pool_fails_at_once_and_returns_after_the_hold() {
        let thresholds = FailoverThresholds::new(50, 10).unwrap();
        let mut pool = PoolHealth::default();
        assert_eq!(pool.observe(2, 4, 0, &thresholds), None);
        assert_eq!(
            pool.observe(1, 4, 1, &thresholds),
            Some(PoolChange {
                failed: true,
                healthy: 1,
                total: 4
            })
        );
        assert_eq!(pool.observe(0, 4, 2, &thresholds), None);
        assert_eq!(pool.observe(2, 4, 3, &thresholds), None);
        assert_eq!(
            pool.observe(1, 4, 12, &thresholds),
            None,
            "a relapse starts the hold over"
        );
        assert_eq!(pool.observe(2, 4, 13, &thresholds), None);
        assert_eq!(pool.observe(3, 4, 22, &thresholds), None);
        assert_eq!(
            pool.observe(3, 4, 23, &thresholds),
            Some(PoolChange {
                failed: false,
                healthy: 3,
                total: 4
            })
        );
        assert!(!pool.has_failed());
    }

    #[test]
    fn a_pool_without_healthy_back_ends_has_failed_whatever_the_threshold() {
        let thresholds = FailoverThresholds::new(0, 0).unwrap();
        for total in [0, 1, 5] {
            assert!(
                PoolHealth::default()
                    .observe(0, total, 0, &thresholds)
                    .is_some_and(|change| change.failed)
            );
        }
        assert_eq!(PoolHealth::default().observe(1, 5, 0, &thresholds), None);
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
