//! What holds traffic up or turns it away although the rules allow it: the lease, pools that have failed, classes that
//! are shed.

use tracing::{info, warn};

use super::core::Core;
use crate::pure::audit::{Change, Kind};
use crate::pure::fleet::ShedChange;
use crate::pure::health::PoolChange;
use crate::pure::heat::percent;
use crate::pure::lease;

/// Key of the warning that the lease could not be renewed.
const LEASE: &str = "lease";

impl Core {
    /// Puts the deadline off by which the programs want to hear of the agent. A failure is tried again with the next
    /// renewal; until then the deadline stands, which is what it is for.
    pub(super) fn renew_lease(&mut self) {
        let Some(active) = &self.active else { return };
        let lease = lease::record(&active.policy.defaults, self.clock.monotonic_ns());
        if self.lease == Some(lease) {
            return;
        }
        match self.dataplane.set_lease(&lease) {
            Ok(()) => {
                self.lease = Some(lease);
                self.failing.remove(LEASE);
            }
            Err(error) => {
                if self.failing.insert(LEASE, error.to_string()).is_none() {
                    warn!(%error, "the lease was not renewed");
                }
            }
        }
    }

    /// Whether any pool failed or returned.
    pub(super) fn judge_pools(&mut self) -> bool {
        let Some(active) = &self.active else { return false };
        let changes = self.fleet.judge_pools(&active.policy, self.clock.monotonic_ns());
        let changed = !changes.is_empty();
        for (pool, change) in changes {
            let causes = pool_causes(&change);
            info!(pool, failed = change.failed, ?causes, "pool");
            let to = if change.failed { "failed" } else { "recovered" };
            let change = Change {
                what: "pool".to_owned(),
                to: Some(to.to_owned()),
                causes,
                ..Change::default()
            };
            self.note(Kind::PoolState, Some(pool), change);
        }
        changed
    }

    /// Whether any pool began or ceased to shed a class.
    pub(super) fn judge_shedding(&mut self) -> bool {
        let Some(active) = &self.active else { return false };
        let changes = self
            .fleet
            .judge_shedding(&active.policy, self.clock.monotonic_ns());
        let changed = !changes.is_empty();
        for ShedChange {
            pool,
            class,
            sheds,
            utilization_per_mille,
            above_percent,
        } in changes
        {
            let to = if sheds { "begins" } else { "ends" };
            let used = utilization_per_mille.map_or_else(|| "unknown".to_owned(), percent);
            info!(pool, class, to, used, "shedding");
            let change = Change {
                what: "shedding".to_owned(),
                to: Some(to.to_owned()),
                causes: vec![
                    format!("class {class}"),
                    format!("the pool is used to {used}; the class is shed above {above_percent}%"),
                ],
                ..Change::default()
            };
            self.note(Kind::Shedding, Some(pool), change);
        }
        changed
    }
}

/// What began or ended comes first.
fn pool_causes(change: &PoolChange) -> Vec<String> {
    let look = change.look;
    let health = format!("{} of {} back ends are healthy", look.healthy, look.total);
    if !change.by_utilization && !change.hot {
        return vec![health];
    }
    let used = look
        .utilization_per_mille
        .map_or_else(|| "unknown".to_owned(), percent);
    let state = if change.hot { ", which is too much" } else { "" };
    let utilization = format!("its utilization is {used}{state}");
    if change.by_utilization {
        vec![utilization, health]
    } else {
        vec![health, utilization]
    }
}
