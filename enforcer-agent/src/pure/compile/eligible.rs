//! Which back ends a service under constraints may use at the moment.

use enforcer_common::abi::config::SET_WORDS;

use super::{Family, Layout, SlottedBackend, SlottedService};
use crate::pure::maglev::{self, Entry};
use crate::pure::policy::judgement::{ConstraintSet, compliant_backends};

/// The back ends that a (service, constraints) may use at the moment.
pub(super) struct Eligible<'a> {
    /// Compliant, whatever their state.
    pub(super) compliant: usize,
    /// May keep flows.
    pub(super) members: Vec<&'a SlottedBackend<'a>>,
    /// Take new flows.
    takers: Vec<&'a SlottedBackend<'a>>,
    /// Classes that the takers' pool sheds. It follows from the takers, who are all of one pool.
    pub(super) shed_classes: u64,
}

// === impl Eligible ===

impl Eligible<'_> {
    /// Who may keep flows, by slot, and who takes new ones, by key.
    pub(super) fn content(&self) -> ([u64; SET_WORDS], Vec<Entry>) {
        let mut members = [0u64; SET_WORDS];
        for backend in &self.members {
            members[(backend.slot / 64) as usize] |= 1 << (backend.slot % 64);
        }
        let entry = |taker: &&SlottedBackend<'_>| Entry {
            key: maglev::key_of(&taker.backend.name),
            backend: u16::try_from(taker.slot).expect("back-end slots fit 16 bits"),
            weight: taker.status.weight,
        };
        let mut entries: Vec<Entry> = self.takers.iter().map(entry).collect();
        entries.sort_unstable();
        (members, entries)
    }
}

/// New flows go to the first pool in order of preference that has not failed and has a back end that takes them; if
/// there is none, a failed pool with such a back end is better than nothing.
pub(super) fn eligible<'a>(
    layout: &'a Layout<'a>,
    service: &SlottedService<'_>,
    constraints: ConstraintSet,
) -> Eligible<'a> {
    let compliant: Vec<(usize, &SlottedBackend<'_>)> =
        compliant_backends(layout.inputs.policy, service.service, constraints)
            .map(|(pool, backend)| (pool, &layout.backends[pool][backend]))
            .filter(|(_, backend)| {
                service.service.forward.encapsulates()
                    || Family::of(backend.backend.address) == service.family
            })
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
    let shed_classes = takers.first().map_or(0, |taker| layout.shed_classes(taker.pool));
    Eligible {
        shed_classes,
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
