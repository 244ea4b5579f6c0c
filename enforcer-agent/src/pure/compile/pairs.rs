//! (tenant, service) to decision, eligible set and Maglev table.

use std::collections::BTreeMap;

use enforcer_common::Reason;
use enforcer_common::abi::config::{PairRecord, SET_WORDS, SetRecord};
use enforcer_common::schema::{MAGLEV_SLOTS, MAX_ROWS, MAX_SERVICES, MAX_SETS};

use super::{CompileError, Family, Layout, SlottedBackend, SlottedService, TOO_MANY_ROWS, TOO_MANY_SETS};
use crate::pure::maglev::{self, Entry};
use crate::pure::policy::judgement::{Bindings, ConstraintSet, Judgements, compliant_backends};
use crate::pure::policy::resolved::Action;

/// What stands for a service slot that is not in use: flows that outlive their service are refused there.
const UNUSED: PairRecord = PairRecord {
    reason: Reason::NoRule as u32,
    ..PairRecord::ZERO
};

/// All decisions.
pub(super) struct Decisions {
    /// By index in the policy.
    pub(super) row_of_tenant: Vec<u32>,
    /// Every row has all service slots, so that no record is left that reads as `Allowed` since it is zero.
    pub(super) rows: Vec<Vec<PairRecord>>,
    pub(super) sets: Vec<SetRecord>,
    pub(super) maglev: Vec<Vec<u16>>,
}

/// The back ends that a (service, constraints) may use at the moment.
struct Eligible<'a> {
    /// Compliant, whatever their state.
    compliant: usize,
    /// May keep flows.
    members: Vec<&'a SlottedBackend<'a>>,
    /// Take new flows.
    takers: Vec<&'a SlottedBackend<'a>>,
}

/// Decides every pair. Rows, sets and Maglev tables are numbered in the order in which the tenants, by name, first need
/// them, so that a change of weights changes no number.
pub(super) fn decide(layout: &Layout<'_>) -> Result<Decisions, CompileError> {
    let policy = layout.inputs.policy;
    let judgements = Judgements::of(policy, layout.inputs.closed_rules);
    let bindings = Bindings::of(policy);
    let mut sets = Sets::default();
    let mut rows: Vec<Vec<PairRecord>> = Vec::new();
    let mut row_numbers: BTreeMap<Vec<[u32; 5]>, u32> = BTreeMap::new();
    let mut row_of_tenant = Vec::with_capacity(policy.tenants.len());
    for tenant in 0..policy.tenants.len() {
        let mut row = vec![UNUSED; MAX_SERVICES as usize];
        for service in &layout.services {
            let judgement = judgements.get(tenant, service.index);
            // What a rule answers: the eligible set is made only where a rule that decides, or would, allows.
            let mut answer = |rule: Option<usize>| match rule.map(|rule| policy.rules[rule].action) {
                None => Ok((Reason::NoRule, 0)),
                Some(Action::Deny) => Ok((Reason::RuleDeny, 0)),
                Some(Action::Allow) => sets.of(layout, service, bindings.get(tenant, service.index)),
            };
            let (reason, set) = match judgement.closed {
                Some(_) => (Reason::OutsideSchedule, 0),
                None => answer(judgement.decided_by)?,
            };
            let (shadow_reason, _) = match judgement.shadowed_by {
                Some(rule) => answer(Some(rule))?,
                None => (Reason::Allowed, 0),
            };
            row[service.slot as usize] = PairRecord {
                reason: reason as u32,
                rule: number(layout, judgement.decided_by.or(judgement.closed)),
                set,
                shadow_rule: number(layout, judgement.shadowed_by),
                shadow_reason: shadow_reason as u32,
            };
        }
        let fresh = u32::try_from(rows.len()).ok().filter(|fresh| *fresh < MAX_ROWS);
        let key = row.iter().map(|pair| {
            [
                pair.reason,
                pair.rule,
                pair.set,
                pair.shadow_rule,
                pair.shadow_reason,
            ]
        });
        let index = match row_numbers.entry(key.collect()) {
            std::collections::btree_map::Entry::Occupied(known) => *known.get(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                rows.push(row);
                *vacant.insert(fresh.ok_or(TOO_MANY_ROWS)?)
            }
        };
        row_of_tenant.push(index);
    }
    Ok(Decisions {
        row_of_tenant,
        rows,
        sets: sets.records,
        maglev: sets.maglev,
    })
}

/// A rule as records hold it: its number plus one, or zero.
fn number(layout: &Layout<'_>, rule: Option<usize>) -> u32 {
    rule.map_or(0, |rule| layout.rule_numbers[rule] + 1)
}

/// The sets that have been needed so far.
#[derive(Default)]
struct Sets {
    records: Vec<SetRecord>,
    maglev: Vec<Vec<u16>>,
    /// Equal sets of different services or constraints are one.
    numbers: BTreeMap<([u64; SET_WORDS], Vec<Entry>), u32>,
    /// What has been worked out already, by service slot.
    known: BTreeMap<(u32, ConstraintSet), (Reason, u32)>,
}

// === impl Sets ===

impl Sets {
    /// The reason and the set for a service under constraints.
    fn of(
        &mut self,
        layout: &Layout<'_>,
        service: &SlottedService<'_>,
        constraints: ConstraintSet,
    ) -> Result<(Reason, u32), CompileError> {
        if let Some(known) = self.known.get(&(service.slot, constraints)) {
            return Ok(*known);
        }
        let eligible = eligible(layout, service, constraints);
        let answer = if eligible.compliant == 0 {
            (Reason::NoCompliantBackend, 0)
        } else if eligible.members.is_empty() {
            (Reason::NoHealthyBackend, 0)
        } else {
            (Reason::Allowed, self.number_of(&eligible)?)
        };
        self.known.insert((service.slot, constraints), answer);
        Ok(answer)
    }

    fn number_of(&mut self, eligible: &Eligible<'_>) -> Result<u32, CompileError> {
        let mut members = [0u64; SET_WORDS];
        for backend in &eligible.members {
            members[(backend.slot / 64) as usize] |= 1 << (backend.slot % 64);
        }
        let mut entries: Vec<Entry> = eligible
            .takers
            .iter()
            .map(|taker| Entry {
                key: maglev::key_of(&taker.backend.name),
                backend: u16::try_from(taker.slot).expect("back-end slots fit 16 bits"),
                weight: taker.status.weight,
            })
            .collect();
        entries.sort_unstable();
        let fresh = u32::try_from(self.records.len())
            .ok()
            .filter(|fresh| *fresh < MAX_SETS);
        match self.numbers.entry((members, entries)) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(*known.get()),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let fresh = fresh.ok_or(TOO_MANY_SETS)?;
                self.records.push(SetRecord { members });
                self.maglev.push(maglev::table(&vacant.key().1, MAGLEV_SLOTS));
                Ok(*vacant.insert(fresh))
            }
        }
    }
}

/// New flows go to the first pool in order of preference that has not failed and has a back end that takes them; if
/// there is none, a failed pool with such a back end is better than nothing.
fn eligible<'a>(
    layout: &'a Layout<'a>,
    service: &SlottedService<'_>,
    constraints: ConstraintSet,
) -> Eligible<'a> {
    let compliant: Vec<(usize, &SlottedBackend<'_>)> =
        compliant_backends(layout.inputs.policy, service.service, constraints)
            .map(|(pool, backend)| (pool, &layout.backends[pool][backend]))
            .filter(|(_, backend)| Family::of(backend.backend.address) == service.family)
            .collect();
    let able = |pool: usize| {
        let of_pool = compliant.iter().filter(move |(of, _)| *of == pool);
        of_pool
            .map(|(_, backend)| *backend)
            .filter(|backend| backend.status.takes_new_flows())
            .collect::<Vec<_>>()
    };
    let has_failed = |pool: &usize| {
        layout
            .inputs
            .failed_pools
            .contains(&layout.inputs.policy.pools[*pool].name)
    };
    let (failed, good): (Vec<usize>, Vec<usize>) =
        service.service.pools.iter().partition(|pool| has_failed(pool));
    let takers = good
        .into_iter()
        .chain(failed)
        .map(able)
        .find(|takers| !takers.is_empty())
        .unwrap_or_default();
    Eligible {
        compliant: compliant.len(),
        members: compliant
            .iter()
            .map(|(_, backend)| *backend)
            .filter(|backend| backend.status.healthy)
            .collect(),
        takers,
    }
}

/// Which of a service's pools, by index in the policy, takes the new flows of a tenant; `None` if none can.
///
/// For reports: the tables hold only the outcome.
pub(super) fn active_pool(
    layout: &Layout<'_>,
    service: &SlottedService<'_>,
    constraints: ConstraintSet,
) -> Option<String> {
    eligible(layout, service, constraints)
        .takers
        .first()
        .map(|backend| backend.pool.name.clone())
}
