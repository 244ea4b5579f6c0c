//! Quotas: reads the kernel's counters once a second, keeps the book of usage, and says who has used up what.
//!
//! What is written down is stored at most every few seconds and at the end. Nothing is lost by that while the kernel's
//! counters live on, since what they stood at is written down with it.

use std::collections::BTreeMap;

use enforcer_common::Reason;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::schema::tenant_connections;
use tracing::{info, warn};

use super::RunError;
use super::core::Core;
use crate::adapters::dataplane::DataplaneError;
use crate::api::reply::QuotaRow;
use crate::ports::Dataplane;
use crate::pure::audit::{Change, Kind};
use crate::pure::compile::Exhausted;
use crate::pure::policy::resolved::Tenant;
use crate::pure::quota::{Book, Counters, QuotaChange};

/// Key of the warning that usage could not be stored.
const USAGE: &str = "usage";
/// Between two times that usage is stored.
const STORE_INTERVAL_NS: u64 = 5_000_000_000;

/// The book, and how much of it is stored.
#[derive(Debug, Clone, Default)]
pub(super) struct Quotas {
    book: Book,
    stored: Book,
    stored_ns: u64,
    /// What the kernel was last told.
    in_force: BTreeMap<String, Exhausted>,
}

/// What the kernel has counted of a tenant slot.
fn counters_of(dataplane: &dyn Dataplane, slot: u32) -> Result<Counters, DataplaneError> {
    let ingress = dataplane.tallies(DIRECTION_INGRESS, slot)?;
    let egress = dataplane.tallies(DIRECTION_EGRESS, slot)?;
    let replies = Reason::Reply as usize;
    Ok(Counters {
        connections: dataplane.connections_opened(tenant_connections(slot))?,
        request_bytes: ingress[Reason::Allowed as usize].bytes,
        // Replies that XDP sends on are counted on their way in, those that the stack routes on their way out.
        response_bytes: ingress[replies].bytes.wrapping_add(egress[replies].bytes),
    })
}

impl Core {
    /// What was used is what was written down and what passed since.
    pub(super) fn begin_quotas(&mut self) -> Result<(), RunError> {
        let mut book = self.store.load_usage()?;
        let stored = book.clone();
        book.begin(&self.dataplane.counters_identity()?);
        self.quotas = Quotas {
            stored,
            book,
            stored_ns: self.clock.monotonic_ns(),
            in_force: BTreeMap::new(),
        };
        self.look_at_quotas();
        Ok(())
    }

    /// Tenants with quotas and their slots.
    fn metered(&self) -> Vec<(&Tenant, u32)> {
        let active = self.active.as_ref();
        let tenants = active.map_or(&[][..], |active| &active.policy.tenants);
        let metered = tenants.iter().filter(|tenant| !tenant.quotas.is_empty());
        metered
            .filter_map(|tenant| Some((&**tenant, self.state.slots.tenants.get(&tenant.name)?)))
            .collect()
    }

    /// Takes a look at the counters; whether somebody may do less or more than the kernel was last told. A look that
    /// fails says nothing: the next one sees what it would have seen.
    pub(super) fn look_at_quotas(&mut self) -> bool {
        let Some(active) = self.active.clone() else {
            return false;
        };
        let mut counters = BTreeMap::new();
        for (tenant, slot) in self.metered() {
            match counters_of(&*self.dataplane, slot) {
                Ok(counted) => {
                    counters.insert(tenant.name.clone(), (slot, counted));
                }
                Err(error) => {
                    warn!(%error, "quotas");
                    return false;
                }
            }
        }
        let named = counters.iter().map(|(name, counted)| (name.as_str(), *counted));
        let at = self.clock.wall();
        let changes = self.quotas.book.look(&active.policy, &named.collect(), at);
        for change in &changes {
            self.note_quota(change);
        }
        if !changes.is_empty() {
            // Or another agent would record it a second time.
            self.store_usage(true);
        }
        self.exhausted() != self.quotas.in_force
    }

    /// What was compiled is in force.
    pub(super) fn quotas_in_force(&mut self) {
        self.quotas.in_force = self.exhausted();
    }

    /// Before what was compiled is put into force: counts from now on for tenants that came to a slot that was another's.
    /// That is written down at once, since nothing else tells what had passed before.
    pub(super) fn open_accounts(&mut self) -> Result<(), DataplaneError> {
        let fresh: Vec<(String, u32)> = self
            .metered()
            .into_iter()
            .filter(|(tenant, slot)| !self.quotas.book.is_open(&tenant.name, *slot))
            .map(|(tenant, slot)| (tenant.name.clone(), slot))
            .collect();
        let mut opened = false;
        for (tenant, slot) in fresh {
            let counters = counters_of(&*self.dataplane, slot)?;
            self.quotas.book.open(&tenant, slot, counters);
            opened = true;
        }
        if opened {
            self.store_usage(true);
        }
        Ok(())
    }

    fn note_quota(&self, change: &QuotaChange) {
        let QuotaChange {
            tenant,
            usage,
            limit,
            renewed,
        } = change;
        let to = match (usage.exhausted, renewed) {
            (true, _) => "exhausted",
            (false, true) => "renewed",
            (false, false) => "raised",
        };
        let name = format!("{} per {}", usage.metric.name(), usage.per);
        info!(tenant, quota = name, to, used = usage.used, limit, "quota");
        let mut entry = self.entry(Kind::Quota);
        entry.tenant = Some(tenant.clone());
        entry.count = Some(usage.used);
        entry.change = Some(Change {
            what: name,
            to: Some(to.to_owned()),
            causes: vec![
                format!("{} of {limit} used", usage.used),
                format!("window from {} to {}, {}", usage.from, usage.to, usage.time_zone),
            ],
            ..Change::default()
        });
        self.audit.record(entry);
    }

    /// What tenants may no longer do.
    pub(super) fn exhausted(&self) -> BTreeMap<String, Exhausted> {
        let active = self.active.as_ref();
        active.map_or_else(BTreeMap::new, |active| self.quotas.book.exhausted(&active.policy))
    }

    /// A tenant's quotas, for lists.
    pub(super) fn quota_rows(&self, tenant: &Tenant) -> Vec<QuotaRow> {
        let statuses = self.quotas.book.statuses(&tenant.name, &tenant.quotas);
        statuses
            .map(|status| QuotaRow {
                metric: status.quota.metric,
                per: status.quota.per.to_string(),
                time_zone: status.quota.time_zone.name().to_owned(),
                used: status.usage.used,
                limit: status.quota.limit,
                window_ends: status.usage.to,
                exhausted: status.usage.used >= status.quota.limit,
            })
            .collect()
    }

    /// Stores usage, if there is anything new and it is time.
    pub(super) fn store_usage(&mut self, at_once: bool) {
        let now_ns = self.clock.monotonic_ns();
        let is_due = at_once || now_ns.saturating_sub(self.quotas.stored_ns) >= STORE_INTERVAL_NS;
        if !is_due || !self.quotas.book.differs(&self.quotas.stored) {
            return;
        }
        // Also if it fails: a disk that is full is not asked every second.
        self.quotas.stored_ns = now_ns;
        match self.store.store_usage(&self.quotas.book) {
            Ok(()) => {
                self.quotas.stored = self.quotas.book.clone();
                self.failing.remove(USAGE);
            }
            Err(error) => {
                if self.failing.insert(USAGE, error.to_string()).is_none() {
                    warn!(%error, "usage of quotas is not stored");
                }
            }
        }
    }
}
