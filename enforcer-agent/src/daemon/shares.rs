//! Fairness: what the kernel counts of tenants' new connections while a pool is contended, and what they are held to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use enforcer_common::Reason;
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_common::schema::{backend_connections, tenant_connections};
use tracing::{info, warn};

use super::core::Core;
use crate::adapters::dataplane::DataplaneError;
use crate::pure::audit::{Change, Kind};
use crate::pure::fairness::{Attempts, Fairness, Look, ShareChange, is_shared};
use crate::pure::heat::percent;
use crate::pure::policy::ResolvedPolicy;
use crate::pure::policy::selection::Selection;
use crate::pure::policy::users::{Users, users};

/// The shares, and who uses the contended pools, which is worked out anew only when something it follows from changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares {
    pub(super) fairness: Fairness,
    users: Option<(UsersOf, Users)>,
}

/// What the users of pools follow from.
#[derive(Debug, Clone)]
struct UsersOf {
    policy: Arc<ResolvedPolicy>,
    closed: Selection,
    failed: BTreeSet<String>,
    pools: Vec<String>,
}

// === impl Shares ===

impl Shares {
    fn users(&mut self, of: UsersOf) -> Users {
        let still = |(known, _): &&(UsersOf, Users)| {
            Arc::ptr_eq(&known.policy, &of.policy)
                && known.closed == of.closed
                && known.failed == of.failed
                && known.pools == of.pools
        };
        if let Some((_, known)) = self.users.as_ref().filter(still) {
            return known.clone();
        }
        let found = users(&of.policy, &of.closed, &of.failed, &of.pools);
        self.users = Some((of, found.clone()));
        found
    }
}

impl Core {
    /// Takes a look at the pools and at what is asked of those that are contended; whether somebody is held to another
    /// rate than before. A look that fails changes nothing.
    pub(super) fn share_out(&mut self) -> bool {
        let Some(active) = self.active.clone() else {
            return false;
        };
        let before = self.shares.fairness.rates();
        if before.is_empty() && !is_shared(&active.policy) {
            self.shares = Shares::default();
            return false;
        }
        let taken = match self.taken_by_pools() {
            Ok(taken) => taken,
            Err(error) => {
                warn!(%error, "shares of pools");
                return false;
            }
        };
        let utilizations = self.fleet.utilizations();
        let look = Look {
            policy: &active.policy,
            utilizations: &utilizations,
            taken: &taken,
            now_ns: self.clock.monotonic_ns(),
        };
        let pools = self.shares.fairness.look_at_pools(&look);
        let users = self.shares.users(UsersOf {
            policy: Arc::clone(&active.policy),
            closed: self.hours.closed().clone(),
            failed: self.fleet.failed_pools(),
            pools,
        });
        let attempts = match self.attempts(&active.policy, &users) {
            Ok(attempts) => attempts,
            Err(error) => {
                warn!(%error, "shares of tenants");
                return false;
            }
        };
        for change in self.shares.fairness.share(&look, &users, &attempts) {
            self.note_share(change);
        }
        self.shares.fairness.rates() != before
    }

    /// Connections that each pool's back ends were given since the maps were made.
    fn taken_by_pools(&self) -> Result<BTreeMap<String, u64>, DataplaneError> {
        let mut taken: BTreeMap<String, u64> = BTreeMap::new();
        for (slot, backend) in &self.directory.backends {
            let opened = self.dataplane.connections_opened(backend_connections(*slot))?;
            let sum = taken.entry(backend.pool.clone()).or_default();
            *sum = sum.wrapping_add(opened);
        }
        Ok(taken)
    }

    fn attempts(
        &self,
        policy: &ResolvedPolicy,
        users: &Users,
    ) -> Result<BTreeMap<String, Attempts>, DataplaneError> {
        let indices: BTreeSet<usize> = users.of_pool.values().flatten().copied().collect();
        let mut attempts = BTreeMap::new();
        for index in indices {
            let name = &policy.tenants[index].name;
            let Some(slot) = self.state.slots.tenants.get(name) else {
                continue;
            };
            let tallies = self.dataplane.tallies(DIRECTION_INGRESS, slot)?;
            let refused = |reason: Reason| tallies[reason as usize].packets;
            let counted = Attempts {
                opened: self.dataplane.connections_opened(tenant_connections(slot))?,
                refused: refused(Reason::ConnectionRate).wrapping_add(refused(Reason::FairShare)),
            };
            attempts.insert(name.clone(), counted);
        }
        Ok(attempts)
    }

    fn note_share(&self, change: ShareChange) {
        let ShareChange {
            tenant,
            pool,
            from,
            to,
            demand,
            weight,
            utilization_per_mille,
        } = change;
        let rate = |rate: Option<u64>| rate.map(|rate| format!("{rate} new connections per second"));
        let used = utilization_per_mille.map_or_else(|| "unknown".to_owned(), percent);
        info!(tenant, pool, ?from, ?to, demand, used, "share");
        let mut entry = self.entry(Kind::FairShare);
        entry.tenant = Some(tenant);
        entry.change = Some(Change {
            what: "share".to_owned(),
            from: rate(from),
            to: rate(to),
            causes: vec![
                format!("pool {pool} is used to {used}"),
                format!("about {demand} new connections per second are asked for"),
                format!("the tenant weighs {weight}"),
            ],
        });
        self.audit.record(entry);
    }
}
