//! Which tenants open connections to which pool.

use std::collections::{BTreeMap, BTreeSet};

use super::judgement::{Bindings, ConstraintSet, Judgements, compliant_backends};
use super::resolved::ResolvedPolicy;
use super::selection::Selection;

/// Tenants by pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Every pool that was asked for; indices into [`ResolvedPolicy::tenants`], in order.
    pub of_pool: BTreeMap<String, Vec<usize>>,
}

/// The tenants whose new connections go to these pools: by a service that a rule allows them, whose first pool that has
/// not failed and has a compliant back end it is.
#[must_use]
pub fn users(
    policy: &ResolvedPolicy,
    closed_rules: &Selection,
    failed_pools: &BTreeSet<String>,
    pools: &[String],
) -> Users {
    let mut users = Users {
        of_pool: pools.iter().map(|pool| (pool.clone(), Vec::new())).collect(),
    };
    if pools.is_empty() {
        return users;
    }
    let judgements = Judgements::of(policy, closed_rules);
    let bindings = Bindings::of(policy);
    let mut pool_of: BTreeMap<(usize, ConstraintSet), Option<usize>> = BTreeMap::new();
    for tenant in 0..policy.tenants.len() {
        let mut used = BTreeSet::new();
        for service in 0..policy.services.len() {
            if !judgements.get(tenant, service).is_allowed(policy) {
                continue;
            }
            let constraints = bindings.get(tenant, service);
            let pool = pool_of
                .entry((service, constraints))
                .or_insert_with(|| first_pool(policy, failed_pools, service, constraints));
            used.extend(pool.iter().copied());
        }
        for pool in used {
            if let Some(tenants) = users.of_pool.get_mut(&policy.pools[pool].name) {
                tenants.push(tenant);
            }
        }
    }
    users
}

fn first_pool(
    policy: &ResolvedPolicy,
    failed_pools: &BTreeSet<String>,
    service: usize,
    constraints: ConstraintSet,
) -> Option<usize> {
    let compliant = compliant_backends(policy, &policy.services[service], constraints);
    let mut pools = compliant.map(|(pool, _)| pool);
    pools.find(|pool| !failed_pools.contains(&policy.pools[*pool].name))
}
