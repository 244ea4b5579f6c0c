//! Limit groups: what holds limits beside tenants. A service's limits bind all tenants together, those of a rule bind each
//! tenant on each service where the rule decides.
//!
//! A group goes by the names of the service, or of the tenant and the service, not by the rule: what was used up stays so
//! when another rule takes over.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::abi::config::LimitsRecord;

use super::slots::SlotMap;
use super::{Layout, records};
use crate::pure::policy::judgement::Judgement;
use crate::pure::policy::resolved::ResolvedPolicy;

/// The numbers of a policy's groups. Zero is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Groups {
    /// By index of the service.
    of_service: Vec<u32>,
    /// By indices of tenant and service: of every pair that some rule with limits speaks of.
    of_pair: BTreeMap<(usize, usize), u32>,
}

/// What the group of a service goes by. No name has a slash.
fn service_key(service: &str) -> String {
    format!("/{service}")
}

/// What the group of a tenant on a service goes by.
fn pair_key(tenant: &str, service: &str) -> String {
    format!("{tenant}/{service}")
}

/// Tenant and service of every pair that some rule with limits speaks of.
fn limited_pairs(policy: &ResolvedPolicy) -> BTreeSet<(usize, usize)> {
    let limiting = policy.rules.iter().filter(|rule| rule.limits.is_some());
    limiting
        .flat_map(|rule| {
            let tenants = rule.tenants.iter();
            tenants.flat_map(|tenant| rule.services.iter().map(move |service| (tenant, service)))
        })
        .collect()
}

/// The keys of all groups; `None` if there are more than `most`.
pub(super) fn keys(policy: &ResolvedPolicy, most: usize) -> Option<Vec<String>> {
    let limiting = policy.rules.iter().filter(|rule| rule.limits.is_some());
    let pairs: usize = limiting
        .map(|rule| rule.tenants.iter().count() * rule.services.iter().count())
        .sum();
    // Rules may speak of the same pairs, but not of very many times as many as there can be.
    if pairs > 4 * most {
        return None;
    }
    let services = policy.services.iter().filter(|service| service.limits.is_some());
    let mut keys: Vec<String> = services.map(|service| service_key(&service.name)).collect();
    keys.extend(
        limited_pairs(policy)
            .into_iter()
            .map(|(tenant, service)| pair_key(&policy.tenants[tenant].name, &policy.services[service].name)),
    );
    (keys.len() <= most).then_some(keys)
}

// === impl Groups ===

impl Groups {
    pub(super) fn of(policy: &ResolvedPolicy, slots: &SlotMap) -> Self {
        let of_service = policy
            .services
            .iter()
            .map(|service| {
                let limits = service.limits.as_ref();
                limits.map_or(0, |_| slots.slot(&service_key(&service.name)))
            })
            .collect();
        let number = |(tenant, service): (usize, usize)| {
            let key = pair_key(&policy.tenants[tenant].name, &policy.services[service].name);
            ((tenant, service), slots.slot(&key))
        };
        Self {
            of_service,
            of_pair: limited_pairs(policy).into_iter().map(number).collect(),
        }
    }

    /// The group of a service, or zero.
    pub(super) fn of_service(&self, service: usize) -> u32 {
        self.of_service[service]
    }

    /// The group of a tenant on a service, if the rule that decides has limits, or zero.
    pub(super) fn of_pair(
        &self,
        policy: &ResolvedPolicy,
        judgement: Judgement,
        (tenant, service): (usize, usize),
    ) -> u32 {
        let limits = judgement
            .decided_by
            .and_then(|rule| policy.rules[rule].limits.as_ref());
        limits.map_or(0, |_| {
            self.of_pair.get(&(tenant, service)).copied().unwrap_or_default()
        })
    }

    /// What [`Self::of_pair`] says of every pair that some rule with limits speaks of, with the pair.
    pub(super) fn each_pair(
        &self,
        policy: &ResolvedPolicy,
        judgement: impl Fn(usize, usize) -> Judgement,
    ) -> Vec<(usize, usize, u32)> {
        self.of_pair
            .keys()
            .map(|(tenant, service)| {
                let group = self.of_pair(policy, judgement(*tenant, *service), (*tenant, *service));
                (*tenant, *service, group)
            })
            .collect()
    }

    /// The records of the groups. `judgement` is that of a tenant on a service.
    pub(super) fn records(
        &self,
        layout: &Layout<'_>,
        judgement: impl Fn(usize, usize) -> Judgement,
    ) -> Vec<LimitsRecord> {
        let policy = layout.inputs.policy;
        let mut records = vec![LimitsRecord::ZERO];
        let mut put = |group: u32, record: LimitsRecord| {
            let group = group as usize;
            if records.len() <= group {
                records.resize(group + 1, LimitsRecord::ZERO);
            }
            records[group] = record;
        };
        for (service, group) in policy.services.iter().zip(&self.of_service) {
            if let Some(limits) = &service.limits {
                put(*group, records::limits_record(limits, None));
            }
        }
        for ((tenant, service), group) in &self.of_pair {
            let decides = judgement(*tenant, *service).decided_by;
            if let Some(limits) = decides.and_then(|rule| policy.rules[rule].limits.as_ref()) {
                put(*group, records::limits_record(limits, None));
            }
        }
        records
    }
}
