//! Which rule decides for a (tenant, service), and which back ends the constraints leave it.
//!
//! This is the meaning of a policy, apart from health and time. The compiler and the checks of `resolve` both ask here.

use std::net::IpAddr;

use super::bounds::MAX_CONSTRAINTS;
use super::resolved::{Action, Backend, Constraint, Mode, Pool, ResolvedPolicy, Service};

/// What the rules say about one (tenant, service). Indices are into [`ResolvedPolicy::rules`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The rule that decides; none means that no rule allows it, so that it is refused.
    pub decided_by: Option<usize>,
    /// The first shadow rule that would have decided before that, and otherwise.
    pub shadowed_by: Option<usize>,
}

/// The first rules of each kind that match a pair, up to the one that decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cell {
    enforced: Option<u16>,
    shadow_allow: Option<u16>,
    shadow_deny: Option<u16>,
}

/// The judgement of every (tenant, service).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgements {
    services: usize,
    /// Whether the rule that decides a pair allows it: by rule.
    allows: Vec<bool>,
    cells: Vec<Cell>,
    /// For every rule: whether it decides, or as a shadow would decide, any (tenant, service).
    effective: Vec<bool>,
}

// === impl Judgements ===

impl Judgements {
    /// Judges all pairs. The rules are in the order of judgement, so that the first one that matches is the one.
    ///
    /// # Panics
    /// If there are more rules than [`super::bounds::MAX_RULES`], which `resolve` refuses.
    #[must_use]
    pub fn of(policy: &ResolvedPolicy) -> Self {
        let services = policy.services.len();
        let mut cells = vec![Cell::default(); policy.tenants.len() * services];
        let mut effective = vec![false; policy.rules.len()];
        for (index, rule) in policy.rules.iter().enumerate() {
            let number = u16::try_from(index).expect("the number of rules is bounded");
            for tenant in &rule.tenants {
                let row = &mut cells[tenant * services..(tenant + 1) * services];
                for service in &rule.services {
                    let cell = &mut row[*service];
                    // A rule that comes after the deciding one changes nothing, whether it is a shadow or not.
                    if cell.enforced.is_some() {
                        continue;
                    }
                    let first = match (rule.mode, rule.action) {
                        (Mode::Enforce, _) => &mut cell.enforced,
                        (Mode::Shadow, Action::Allow) => &mut cell.shadow_allow,
                        (Mode::Shadow, Action::Deny) => &mut cell.shadow_deny,
                    };
                    effective[index] |= first.is_none();
                    first.get_or_insert(number);
                }
            }
        }
        let allows = policy
            .rules
            .iter()
            .map(|rule| rule.action == Action::Allow)
            .collect();
        Self {
            services,
            allows,
            cells,
            effective,
        }
    }

    /// The judgement of one pair.
    ///
    /// # Panics
    /// If an index is not one of the policy that was judged.
    #[must_use]
    pub fn get(&self, tenant: usize, service: usize) -> Judgement {
        assert!(service < self.services, "service {service} of {}", self.services);
        let cell = self.cells[tenant * self.services + service];
        let decided_by = cell.enforced.map(usize::from);
        let allowed = decided_by.is_some_and(|rule| self.allows[rule]);
        let shadow = if allowed {
            cell.shadow_deny
        } else {
            cell.shadow_allow
        };
        Judgement {
            decided_by,
            shadowed_by: shadow.map(usize::from),
        }
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

// === impl Judgement ===

impl Judgement {
    /// Whether the tenant may use the service.
    #[must_use]
    pub fn is_allowed(self, policy: &ResolvedPolicy) -> bool {
        self.decided_by
            .is_some_and(|rule| policy.rules[rule].action == Action::Allow)
    }
}

/// A set of constraints, by index into [`ResolvedPolicy::constraints`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConstraintSet([u64; MAX_CONSTRAINTS.div_ceil(64)]);

// === impl ConstraintSet ===

impl ConstraintSet {
    fn insert(&mut self, constraint: usize) {
        self.0[constraint / 64] |= 1 << (constraint % 64);
    }

    fn intersection(mut self, other: Self) -> Self {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(word, with)| *word &= with);
        self
    }

    /// Its members, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_CONSTRAINTS).filter(move |constraint| self.0[constraint / 64] >> (constraint % 64) & 1 == 1)
    }
}

/// Which constraints bind which (tenant, service).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    tenants: Vec<ConstraintSet>,
    services: Vec<ConstraintSet>,
}

// === impl Bindings ===

impl Bindings {
    /// All bindings of a policy.
    ///
    /// # Panics
    /// If there are more constraints than [`MAX_CONSTRAINTS`], which `resolve` refuses.
    #[must_use]
    pub fn of(policy: &ResolvedPolicy) -> Self {
        let mut tenants = vec![ConstraintSet::default(); policy.tenants.len()];
        let mut services = vec![ConstraintSet::default(); policy.services.len()];
        for (index, constraint) in policy.constraints.iter().enumerate() {
            constraint
                .tenants
                .iter()
                .for_each(|tenant| tenants[*tenant].insert(index));
            constraint
                .services
                .iter()
                .for_each(|service| services[*service].insert(index));
        }
        Self { tenants, services }
    }

    /// The constraints that bind a tenant on some service.
    ///
    /// # Panics
    /// If the index is not one of the policy.
    #[must_use]
    pub fn of_tenant(&self, tenant: usize) -> ConstraintSet {
        self.tenants[tenant]
    }

    /// The constraints that bind a pair.
    ///
    /// # Panics
    /// If an index is not one of the policy.
    #[must_use]
    pub fn get(&self, tenant: usize, service: usize) -> ConstraintSet {
        self.tenants[tenant].intersection(self.services[service])
    }
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
    constraints: ConstraintSet,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let all_allow = move |pool: &Pool, backend: &Backend| {
        constraints
            .iter()
            .all(|constraint| is_compliant(&policy.constraints[constraint], pool, backend))
    };
    service.pools.iter().flat_map(move |pool_index| {
        let pool = &policy.pools[*pool_index];
        let backends = pool.backends.iter().enumerate();
        backends
            .filter(move |(_, backend)| all_allow(pool, backend))
            .map(move |(index, _)| (*pool_index, index))
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
        load("p.yaml", &text)
            .into_result()
            .expect("the policy is correct")
    }

    /// The names of the deciding and of the shadow rule for (a, s).
    #[track_caller]
    fn check(rules: &str, decided_by: Option<&str>, shadowed_by: Option<&str>) {
        let policy = policy(rules);
        let judgement = Judgements::of(&policy).get(0, 0);
        let name = |index: Option<usize>| index.map(|index| policy.rules[index].name.as_str());
        assert_eq!(
            (name(judgement.decided_by), name(judgement.shadowed_by)),
            (decided_by, shadowed_by),
            "{rules}"
        );
    }

    #[test]
    fn the_first_rule_in_the_order_of_judgement_decides() {
        check("", None, None);
        check("{name: x, action: Allow}", Some("x"), None);
        check(
            "{name: x, action: Allow}, {name: y, action: Allow}",
            Some("x"),
            None,
        );
        check(
            "{name: x, action: Allow}, {name: y, action: Deny}",
            Some("y"),
            None,
        );
        check(
            "{name: x, action: Allow, priority: 1}, {name: y, action: Deny}",
            Some("x"),
            None,
        );
        check(
            "{name: x, action: Deny}, {name: y, action: Allow, priority: 1}",
            Some("y"),
            None,
        );
        check(
            "{name: x, action: Deny, priority: -1}, {name: y, action: Allow}",
            Some("y"),
            None,
        );
        check(
            "{name: x, action: Deny, tenants: {matchNames: [b]}}, {name: y, action: Allow}",
            Some("y"),
            None,
        );
        check("{name: x, action: Deny, services: {matchNames: [t]}}", None, None);
    }

    #[test]
    fn a_shadow_rule_never_decides_and_is_remembered_if_it_would_have_decided_otherwise() {
        check("{name: x, action: Allow, mode: Shadow}", None, Some("x"));
        check("{name: x, action: Deny, mode: Shadow}", None, None);
        check(
            "{name: x, action: Deny, mode: Shadow}, {name: y, action: Allow}",
            Some("y"),
            Some("x"),
        );
        check(
            "{name: y, action: Deny, priority: 9}, {name: x, action: Allow, mode: Shadow}",
            Some("y"),
            None,
        );
        check(
            "{name: x, action: Allow, mode: Shadow, priority: 1}, {name: z, action: Deny, mode: Shadow},
             {name: w, action: Deny, mode: Shadow}, {name: y, action: Allow}",
            Some("y"),
            Some("z"),
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
        assert_eq!(
            [allowed(0, 0), allowed(0, 1), allowed(1, 0), allowed(1, 1)],
            [false, false, false, true]
        );
        assert!(judgements.is_effective(0) && judgements.is_effective(1));
    }
}
