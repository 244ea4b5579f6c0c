//! Which rule decides for a (tenant, service), and which back ends the constraints leave it.
//!
//! This is the meaning of a policy, apart from health and time. The compiler and the checks of `resolve` both ask here.

use std::net::IpAddr;

use super::resolved::{Action, Backend, Constraint, Mode, Pool, ResolvedPolicy, Service};

/// What the rules say about one (tenant, service). Indices are into [`ResolvedPolicy::rules`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The rule that decides; none means that no rule allows it, so that it is refused.
    pub decided_by: Option<usize>,
    /// The first shadow rule that would have decided before that.
    pub shadowed_by: Option<usize>,
}

/// The judgement of every (tenant, service).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgements {
    services: usize,
    cells: Vec<Judgement>,
    /// For every rule: whether it decides, or as a shadow is recorded for, any (tenant, service).
    effective: Vec<bool>,
}

// === impl Judgements ===

impl Judgements {
    /// Judges all pairs. The rules are in the order of judgement, so that the first one that matches is the one.
    #[must_use]
    pub fn of(policy: &ResolvedPolicy) -> Self {
        let services = policy.services.len();
        let mut cells = vec![Judgement::default(); policy.tenants.len() * services];
        let mut effective = vec![false; policy.rules.len()];
        for (index, rule) in policy.rules.iter().enumerate() {
            for tenant in &rule.tenants {
                let row = &mut cells[tenant * services..(tenant + 1) * services];
                for service in &rule.services {
                    let cell = &mut row[*service];
                    let slot = match rule.mode {
                        Mode::Enforce => &mut cell.decided_by,
                        // A shadow rule that comes after the deciding one would have changed nothing.
                        Mode::Shadow if cell.decided_by.is_some() => continue,
                        Mode::Shadow => &mut cell.shadowed_by,
                    };
                    effective[index] |= slot.is_none();
                    slot.get_or_insert(index);
                }
            }
        }
        Self { services, cells, effective }
    }

    /// The judgement of one pair.
    ///
    /// # Panics
    /// If an index is not one of the policy that was judged.
    #[must_use]
    pub fn get(&self, tenant: usize, service: usize) -> Judgement {
        assert!(service < self.services, "service {service} of {}", self.services);
        self.cells[tenant * self.services + service]
    }

    /// Whether a rule has any effect on any pair.
    ///
    /// # Panics
    /// If the index is not one of the policy that was judged.
    #[must_use]
    pub fn is_effective(&self, rule: usize) -> bool {
        self.effective[rule]
    }
}

impl Judgement {
    /// Whether the tenant may use the service.
    #[must_use]
    pub fn is_allowed(self, policy: &ResolvedPolicy) -> bool {
        self.decided_by.is_some_and(|rule| policy.rules[rule].action == Action::Allow)
    }
}

/// Indices of the constraints that bind a (tenant, service), ascending.
#[must_use]
pub fn binding_constraints(policy: &ResolvedPolicy, tenant: usize, service: usize) -> Vec<usize> {
    let binds = |constraint: &Constraint| {
        constraint.tenants.binary_search(&tenant).is_ok() && constraint.services.binary_search(&service).is_ok()
    };
    (0..policy.constraints.len()).filter(|index| binds(&policy.constraints[*index])).collect()
}

/// Whether a back end has what a constraint requires.
#[must_use]
pub fn is_compliant(constraint: &Constraint, pool: &Pool, backend: &Backend) -> bool {
    constraint
        .require_labels
        .iter()
        .all(|(key, value)| ResolvedPolicy::backend_label(pool, backend, key) == Some(value.as_str()))
}

/// A service's back ends that all of the given constraints allow, as (pool index, index within the pool), in the
/// service's order of pools.
pub fn compliant_backends<'a>(
    policy: &'a ResolvedPolicy,
    service: &'a Service,
    constraints: &'a [usize],
) -> impl Iterator<Item = (usize, usize)> + 'a {
    service.pools.iter().flat_map(move |pool_index| {
        let pool = &policy.pools[*pool_index];
        pool.backends.iter().enumerate().filter_map(move |(backend_index, backend)| {
            constraints
                .iter()
                .all(|constraint| is_compliant(&policy.constraints[*constraint], pool, backend))
                .then_some((*pool_index, backend_index))
        })
    })
}

/// Whether packets to a virtual address can be forwarded to a back end: no forward mode translates between IPv4 and
/// IPv6.
#[must_use]
pub const fn same_family(virtual_address: IpAddr, backend: IpAddr) -> bool {
    virtual_address.is_ipv4() == backend.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::*;

    /// Two tenants (a, b), two services (s, t), and the given rules.
    fn policy(rules: &str) -> ResolvedPolicy {
        let text = format!(
            "{{apiVersion: enforcer.dev/v1, kind: GovernancePolicy, metadata: {{name: p}}, spec: {{
               tenants: [{{name: a, sources: [10.0.0.0/24]}}, {{name: b, sources: [10.0.1.0/24]}}],
               services: [
                 {{name: s, addresses: [192.0.2.1], port: 80, protocol: TCP, pools: [p], forward: Nat}},
                 {{name: t, addresses: [192.0.2.2], port: 80, protocol: TCP, pools: [p], forward: Nat}}],
               pools: [{{name: p, backends: [{{name: g, address: 10.9.0.1, port: 80}}]}}],
               rules: [{rules}]}}}}"
        );
        load("p.yaml", &text).into_result().expect("the policy is correct")
    }

    /// The names of the deciding and of the shadow rule for (a, s).
    #[track_caller]
    fn check(rules: &str, decided_by: Option<&str>, shadowed_by: Option<&str>) {
        let policy = policy(rules);
        let judgement = Judgements::of(&policy).get(0, 0);
        let name = |index: Option<usize>| index.map(|index| policy.rules[index].name.as_str());
        assert_eq!((name(judgement.decided_by), name(judgement.shadowed_by)), (decided_by, shadowed_by), "{rules}");
    }

    #[test]
    fn the_first_rule_in_the_order_of_judgement_decides() {
        check("", None, None);
        check("{name: x, action: Allow}", Some("x"), None);
        check("{name: x, action: Allow}, {name: y, action: Allow}", Some("x"), None);
        check("{name: x, action: Allow}, {name: y, action: Deny}", Some("y"), None);
        check("{name: x, action: Allow, priority: 1}, {name: y, action: Deny}", Some("x"), None);
        check("{name: x, action: Deny}, {name: y, action: Allow, priority: 1}", Some("y"), None);
        check("{name: x, action: Deny, priority: -1}, {name: y, action: Allow}", Some("y"), None);
        check("{name: x, action: Deny, tenants: {matchNames: [b]}}, {name: y, action: Allow}", Some("y"), None);
        check("{name: x, action: Deny, services: {matchNames: [t]}}", None, None);
    }

    #[test]
    fn a_shadow_rule_never_decides_and_is_remembered_only_before_the_one_that_does() {
        check("{name: x, action: Deny, mode: Shadow}", None, Some("x"));
        check("{name: x, action: Deny, mode: Shadow}, {name: y, action: Allow}", Some("y"), Some("x"));
        check("{name: y, action: Deny, priority: 9}, {name: x, action: Allow, mode: Shadow}", Some("y"), None);
        check(
            "{name: x, action: Allow, mode: Shadow}, {name: z, action: Allow, mode: Shadow}, {name: y, action: Allow}",
            Some("y"),
            Some("x"),
        );
    }

    #[test]
    fn pairs_are_kept_apart() {
        let policy = policy(
            "{name: x, action: Allow, tenants: {matchNames: [b]}, services: {matchNames: [t]}},
             {name: y, action: Deny, tenants: {matchNames: [a]}, services: {matchNames: [t]}}",
        );
        let judgements = Judgements::of(&policy);
        let allowed = |tenant, service| judgements.get(tenant, service).is_allowed(&policy);
        assert_eq!([allowed(0, 0), allowed(0, 1), allowed(1, 0), allowed(1, 1)], [false, false, false, true]);
        assert!(judgements.is_effective(0) && judgements.is_effective(1));
    }
}
