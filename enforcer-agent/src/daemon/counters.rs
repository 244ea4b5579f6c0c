//! Counters of the programs, by name: for replies, metrics and the records of what was only counted.

use std::collections::BTreeMap;

use enforcer_common::Reason;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::schema::{backend_connections, tenant_connections};

use crate::adapters::dataplane::{DataplaneError, Tally};
use crate::api::reply::ReasonCount;
use crate::ports::Dataplane;
use crate::pure::audit::Direction;
use crate::pure::compile::Directory;
use crate::pure::metrics;

/// Tenants that are looked through for aggregated and lost decisions in one second: with more, each gets its turn.
const TENANTS_PER_LOOK: usize = 64;

/// A tally and what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) direction: Direction,
    pub(super) tenant: u32,
    pub(super) reason: Reason,
    pub(super) tally: Tally,
}

const DIRECTIONS: [(u32, Direction); 2] = [
    (DIRECTION_INGRESS, Direction::Ingress),
    (DIRECTION_EGRESS, Direction::Egress),
];

/// Every tally of a tenant slot that is not zero.
pub(super) fn of_tenant(maps: &dyn Dataplane, tenant: u32) -> Result<Vec<Counted>, DataplaneError> {
    let mut counted = Vec::new();
    for (code, direction) in DIRECTIONS {
        let tallies = maps.tallies(code, tenant)?;
        for reason in Reason::ALL {
            let tally = tallies[*reason as usize];
            if tally != Tally::default() {
                counted.push(Counted {
                    direction,
                    tenant,
                    reason: *reason,
                    tally,
                });
            }
        }
    }
    Ok(counted)
}

/// Every tally that is not zero: of nobody and of every tenant that has a slot.
pub(super) fn all(maps: &dyn Dataplane, directory: &Directory) -> Result<Vec<Counted>, DataplaneError> {
    let mut counted = of_tenant(maps, 0)?;
    for tenant in directory.tenants.keys() {
        counted.extend(of_tenant(maps, *tenant)?);
    }
    Ok(counted)
}

/// Sums over tenants.
pub(super) fn by_reason(counted: &[Counted]) -> Vec<ReasonCount> {
    let mut sums: BTreeMap<(Direction, Reason), (u64, u64)> = BTreeMap::new();
    for each in counted {
        let sum = sums.entry((each.direction, each.reason)).or_default();
        sum.0 += each.tally.packets;
        sum.1 += each.tally.bytes;
    }
    let row = |((direction, reason), (packets, bytes)): ((Direction, Reason), _)| ReasonCount {
        direction,
        reason: reason.name().to_owned(),
        packets,
        bytes,
    };
    sums.into_iter().map(row).collect()
}

/// Decisions that were only counted or lost since the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct Unrecorded {
    seen: BTreeMap<(Direction, u32, Reason), (u64, u64)>,
    next: usize,
}

/// What is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) direction: Direction,
    pub(super) tenant: u32,
    pub(super) reason: Reason,
    pub(super) aggregated: u64,
    pub(super) lost: u64,
}

impl Unrecorded {
    /// Takes what the counters hold as known: an agent that starts over a running data plane has not missed it.
    pub(super) fn begin(&mut self, counted: &[Counted]) {
        for each in counted {
            let key = (each.direction, each.tenant, each.reason);
            self.seen.insert(key, (each.tally.aggregated, each.tally.lost));
        }
    }

    /// Looks through some of the tenants, and nobody's counters.
    pub(super) fn look(
        &mut self,
        maps: &dyn Dataplane,
        directory: &Directory,
    ) -> Result<Vec<News>, DataplaneError> {
        let tenants: Vec<u32> = directory.tenants.keys().copied().collect();
        let first = if self.next < tenants.len() { self.next } else { 0 };
        let turn = tenants.iter().skip(first).take(TENANTS_PER_LOOK);
        // All of it is read before any of it counts as seen: what a failed look had found would be recorded nowhere.
        let mut counted = Vec::new();
        for tenant in std::iter::once(&0).chain(turn) {
            counted.extend(of_tenant(maps, *tenant)?);
        }
        self.next = first + TENANTS_PER_LOOK;
        Ok(counted.iter().filter_map(|each| self.compare(each)).collect())
    }

    fn compare(&mut self, counted: &Counted) -> Option<News> {
        let Counted {
            direction,
            tenant,
            reason,
            tally,
        } = *counted;
        let seen = self.seen.entry((direction, tenant, reason)).or_default();
        let (aggregated, lost) = (
            tally.aggregated.saturating_sub(seen.0),
            tally.lost.saturating_sub(seen.1),
        );
        *seen = (tally.aggregated, tally.lost);
        (aggregated + lost > 0).then_some(News {
            direction,
            tenant,
            reason,
            aggregated,
            lost,
        })
    }
}

impl super::core::Core {
    /// What the metrics are rendered from.
    pub(super) fn metrics_snapshot(&self) -> Result<metrics::Snapshot, DataplaneError> {
        let maps = &*self.dataplane;
        let log = self.audit.status();
        let counted = all(maps, &self.directory)?;
        let (fairness, shares) = (&self.shares.fairness, self.shares.fairness.rates());
        let mut tenants = Vec::new();
        for (slot, name) in &*self.directory.tenants {
            let connections = maps.open_connections(tenant_connections(*slot))?;
            let suspended = self.state.suspended.contains(name);
            tenants.push(metrics::Tenant {
                name: name.clone(),
                connections,
                suspended,
                share: shares.get(name).copied(),
                demand: fairness.demand(name).map(|demand| demand.round() as u64),
            });
        }
        let mut backends = Vec::new();
        for (slot, entry) in &self.directory.backends {
            let Some(member) = self.fleet.member(&entry.name) else {
                continue;
            };
            backends.push(metrics::Backend {
                name: entry.name.clone(),
                pool: entry.pool.clone(),
                weight: member.weight.into(),
                healthy: member.health.status().takes_traffic(),
                draining: member.draining,
                connections: maps.open_connections(backend_connections(*slot))?,
            });
        }
        let tenant = |slot| self.directory.tenants.get(&slot).cloned().unwrap_or_default();
        let packets = |each: &Counted| metrics::Packets {
            direction: each.direction.name(),
            tenant: tenant(each.tenant),
            reason: each.reason.name(),
            packets: each.tally.packets,
            bytes: each.tally.bytes,
            recorded: each.tally.recorded,
            aggregated: each.tally.aggregated,
            lost: each.tally.lost,
        };
        Ok(metrics::Snapshot {
            generation: self.generation(),
            policy: self
                .active
                .as_ref()
                .map(|active| (active.policy.name.clone(), active.digest.clone())),
            packets: counted.iter().map(packets).collect(),
            tenants,
            backends,
            pools: self.pool_metrics(),
            sheds: self
                .fleet
                .sheddable()
                .map(|(pool, class, sheds)| (pool.to_owned(), class.to_owned(), sheds))
                .collect(),
            quotas: self.quota_metrics(),
            flows: (self.open_flows, self.dataplane.capacity().flows.into()),
            audit_sequence: log.sequence,
            audit_lost: log.lost,
            audit_writable: log.error.is_none(),
        })
    }

    fn pool_metrics(&self) -> Vec<metrics::Pool> {
        let failed = self.fleet.failed_pools();
        let pools = self.active.iter().flat_map(|active| &active.policy.pools);
        pools
            .map(|pool| metrics::Pool {
                name: pool.name.clone(),
                failed: failed.contains(&pool.name),
                utilization_per_mille: self.fleet.utilization_per_mille(&pool.name),
            })
            .collect()
    }

    fn quota_metrics(&self) -> Vec<metrics::Quota> {
        let tenants = self.active.iter().flat_map(|active| &active.policy.tenants);
        let rows = tenants.flat_map(|tenant| {
            let rows = self.quota_rows(tenant).into_iter();
            rows.map(|row| (tenant.name.clone(), row))
        });
        rows.map(|(tenant, row)| metrics::Quota {
            tenant,
            metric: row.metric.name(),
            per: row.per,
            used: row.used,
            limit: row.limit,
        })
        .collect()
    }
}
