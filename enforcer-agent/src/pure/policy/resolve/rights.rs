//! Who may use what in the end: rules and constraints without effect, and tenants that are left without a service, a
//! back end or a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::diagnostic::{Code, Reporter};
use super::super::judgement::{Bindings, ConstraintSet, Reach, compliant_backends, is_compliant};
use super::super::resolved::{Action, Mode, ResolvedPolicy, Rule, Service};
use super::super::selection::Selection;
use super::super::source::Place;
use super::super::suggest::quoted;
use super::checks::{Places, backends_of, family_name, family_representatives};

/// Names of tenants that a message lists before it counts the rest.
const MAX_LISTED: usize = 3;

/// Most pairs of rules that are looked at for contradictions: a second's work is enough for advice.
const MAX_COMPARISONS: usize = 1_000_000;

/// Checks what the rules and constraints come to.
pub(super) fn check(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let reach = Reach::of(policy);
    rules_without_effect(reporter, policy, &reach, places);
    contradicting_rules(reporter, policy, &reach, places);
    constraints_without_effect(reporter, policy, places);
    tenants_without_rule(reporter, policy, places);
    let users = Users::of(policy, &reach);
    services_without_user(reporter, policy, &users, places);
    report_reach(reporter, policy, &users, places);
}

fn rules_without_effect(
    reporter: &mut Reporter<'_>,
    policy: &ResolvedPolicy,
    reach: &Reach,
    places: &Places,
) {
    for (index, rule) in policy.rules.iter().enumerate() {
        // A selector that chooses nothing has been reported already.
        if reach.is_effective(index) || rule.tenants.is_empty() || rule.services.is_empty() {
            continue;
        }
        let verb = if rule.mode == Mode::Shadow {
            "would never decide"
        } else {
            "never decides"
        };
        let message = format!("rule {} {verb} anything", quoted(&rule.name));
        let help = match hiding_rule(policy, index) {
            Some(hiding) => format!(
                "For all that it matches another rule comes first, such as {} at {}. Rules go by priority, then \
                 `Deny` before `Allow`, then their order.",
                quoted(&policy.rules[hiding].name),
                reporter.describe(places.rules[hiding])
            ),
            None => "Another rule with the same action comes first for all that it matches.".to_owned(),
        };
        reporter.warning(Code::NoEffect, places.rules[index], message, help);
    }
}

/// The enforced rule that always decides in a rule's place, for the first pair that it matches.
fn hiding_rule(policy: &ResolvedPolicy, rule: usize) -> Option<usize> {
    let hidden = &policy.rules[rule];
    let (tenant, service) = (hidden.tenants.first()?, hidden.services.first()?);
    policy.rules[..rule].iter().position(|earlier| {
        earlier.mode == Mode::Enforce
            && earlier.is_always_open()
            && earlier.tenants.contains(tenant)
            && earlier.services.contains(service)
    })
}

/// An `Allow` rule that yields to a `Deny` rule of its own priority: it may be an exception, or a contradiction.
fn contradicting_rules(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, reach: &Reach, places: &Places) {
    let mut comparisons = 0;
    // The rules are in the order of judgement: those of one priority stand together, `Deny` first.
    let mut denying: Vec<Denying<'_>> = Vec::new();
    for (index, rule) in policy.rules.iter().enumerate() {
        if denying
            .last()
            .is_some_and(|last| last.rule.priority != rule.priority)
        {
            denying.clear();
        }
        if rule.mode == Mode::Enforce && rule.action == Action::Deny {
            denying.push(Denying::of(index, rule));
        }
        // One that never decides has been reported.
        let can_tie = rule.action == Action::Allow && rule.mode == Mode::Enforce && reach.is_effective(index);
        if !can_tie || !reporter.has_room_for_warnings() || comparisons > MAX_COMPARISONS {
            continue;
        }
        let services = folded(&rule.services);
        let winner = denying
            .iter()
            .inspect(|_| comparisons += 1)
            .find(|other| other.services & services != 0 && other.contradicts(rule));
        if let Some(Denying {
            index: winner,
            rule: denies,
            ..
        }) = winner
        {
            let message = format!(
                "rules {} and {} have the same priority and contradict each other",
                quoted(&rule.name),
                quoted(&denies.name)
            );
            let help = format!(
                "`Deny` wins for what both match; {} stands at {}. Give it a higher priority to say that it is meant.",
                quoted(&denies.name),
                reporter.describe(places.rules[*winner])
            );
            reporter.warning(Code::Overlap, places.rules[index], message, help);
        }
    }
}

/// A rule that says no.
struct Denying<'a> {
    index: usize,
    rule: &'a Rule,
    /// Its services, [`folded`].
    services: u64,
}

// === impl Denying ===

impl<'a> Denying<'a> {
    fn of(index: usize, rule: &'a Rule) -> Self {
        Self {
            index,
            rule,
            services: folded(&rule.services),
        }
    }

    /// Whether a rule speaks of something that this one speaks of. There are fewer services than tenants.
    fn contradicts(&self, rule: &Rule) -> bool {
        self.rule.services.intersects(&rule.services) && self.rule.tenants.intersects(&rule.tenants)
    }
}

/// All words of a set in one: where two of these have nothing in common, neither have their sets.
fn folded(selection: &Selection) -> u64 {
    selection.words().iter().fold(0, |all, word| all | word)
}

fn constraints_without_effect(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    for (index, constraint) in policy.constraints.iter().enumerate() {
        // What chooses nothing has been reported where it stands; here it is about a policy without tenants or services.
        let satisfiable = policy.pools.iter().any(|pool| {
            pool.backends
                .iter()
                .any(|backend| is_compliant(constraint, pool, backend))
        });
        if !satisfiable {
            let message = format!(
                "no back end of the policy has {}, which constraint {} requires",
                quoted(&constraint.require.to_string()),
                quoted(&constraint.name)
            );
            let help = "Label the back ends, or their pools, that comply.";
            reporter.warning(Code::NoEffect, places.constraints[index], message, help);
        }
    }
}

/// A tenant that no rule speaks of is refused everything, which may not be what its author thinks.
fn tenants_without_rule(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let mut silent = Selection::all(policy.tenants.len());
    for rule in &policy.rules {
        silent = silent.difference(&rule.tenants);
    }
    for tenant in silent.iter() {
        let (tenant, place) = (&policy.tenants[tenant], places.tenants[tenant]);
        let message = format!(
            "no rule speaks of tenant {}: it may use nothing",
            quoted(&tenant.name)
        );
        let help = "Write a rule with `action: Allow` that chooses it, or one with `Deny` to say so.";
        reporter.warning(Code::NoEffect, place, message, help);
    }
}

fn services_without_user(
    reporter: &mut Reporter<'_>,
    policy: &ResolvedPolicy,
    users: &Users,
    places: &Places,
) {
    let used: BTreeSet<usize> = users.0.keys().map(|(service, _)| *service).collect();
    for (index, service) in policy.services.iter().enumerate() {
        if !used.contains(&index) {
            let message = format!("no tenant may use service {}", quoted(&service.name));
            let help = "Write a rule with `action: Allow` that chooses it.";
            reporter.warning(Code::NoEffect, places.services[index], message, help);
        }
    }
}

/// Tenants that may use a service under the same constraints: what they can reach depends on nothing else.
struct Users(BTreeMap<(usize, ConstraintSet), Vec<usize>>);

// === impl Users ===

impl Users {
    fn of(policy: &ResolvedPolicy, reach: &Reach) -> Self {
        let bindings = Bindings::of(policy);
        let mut alike: BTreeMap<ConstraintSet, Vec<usize>> = BTreeMap::new();
        for tenant in 0..policy.tenants.len() {
            let bound = alike.entry(bindings.of_tenant(tenant)).or_default();
            bound.push(tenant);
        }
        let mut users: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        let mut of_service = vec![Vec::new(); policy.services.len()];
        for tenants in alike.values() {
            for tenant in tenants {
                let allowed = reach.allowed(*tenant).iter();
                allowed.for_each(|service| of_service[service].push(*tenant));
            }
            for (service, found) in of_service.iter_mut().enumerate() {
                // What binds one of them binds them all.
                if let Some(tenant) = found.first() {
                    let key = (service, bindings.get(*tenant, service));
                    users.entry(key).or_default().append(found);
                }
            }
        }
        users.values_mut().for_each(|tenants| tenants.sort_unstable());
        Self(users)
    }
}

/// Where the constraints leave users of a service: without any back end, with failover only, or without a pool that is
/// there for nobody else.
fn report_reach(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, users: &Users, places: &Places) {
    let mut reached: BTreeSet<usize> = BTreeSet::new();
    let mut offered: BTreeSet<usize> = BTreeSet::new();
    for ((service_index, constraints), tenants) in &users.0 {
        let service = &policy.services[*service_index];
        offered.extend(&service.pools);
        reached.extend(compliant_backends(policy, service, *constraints).map(|(pool, _)| pool));
        let place = constraints
            .iter()
            .next()
            .map_or(Place::WHOLE, |first| places.constraints[first]);
        for address in family_representatives(service) {
            let who = Who {
                policy,
                service,
                tenants,
                constraints: *constraints,
            };
            report_pair(reporter, &who, address, place);
        }
    }
    for pool in offered.difference(&reached) {
        let message = format!(
            "no tenant can be served by pool {}: constraints forbid it to all that may use its services",
            quoted(&policy.pools[*pool].name)
        );
        let help = "Label its back ends so that they comply, or take it out of the services' `pools`.";
        reporter.warning(Code::NoEffect, places.pools[*pool], message, help);
    }
}

/// Users of a service under some constraints.
struct Who<'a> {
    policy: &'a ResolvedPolicy,
    service: &'a Service,
    tenants: &'a [usize],
    constraints: ConstraintSet,
}

fn report_pair(reporter: &mut Reporter<'_>, who: &Who<'_>, address: IpAddr, place: Place) {
    let (policy, service) = (who.policy, who.service);
    let in_family = |pool: usize, backend: usize| {
        service
            .forward
            .reaches(address, policy.pools[pool].backends[backend].address)
    };
    // A family without any back end is an error of its own.
    let exists =
        backends_of(policy, service).any(|(_, backend)| service.forward.reaches(address, backend.address));
    if !exists {
        return;
    }
    let family = family_name(address);
    let first = compliant_backends(policy, service, who.constraints)
        .find(|(pool, backend)| in_family(*pool, *backend));
    let Some((pool, _)) = first else {
        let message = format!(
            "{} may use service {}, but no {family} back end complies with {}",
            who.names(),
            quoted(&service.name),
            who.constraint_names()
        );
        let help = "It will be refused (NoCompliantBackend). Add a compliant back end to one of the service's pools, or \
                    a rule that says `Deny`.";
        return reporter.warning(Code::NoCompliantBackend, place, message, help);
    };
    let preferred = service.pools.iter().copied().find(|pool| {
        let backends = policy.pools[*pool].backends.iter();
        backends
            .map(|backend| backend.address)
            .any(|backend| service.forward.reaches(address, backend))
    });
    if let Some(preferred) = preferred.filter(|preferred| *preferred != pool) {
        let message = format!(
            "{} may use service {}, but only failover has an {family} back end that complies with {}",
            who.names(),
            quoted(&service.name),
            who.constraint_names()
        );
        let help = format!(
            "New connections go to pool {} at once, and less is left if that fails. Add a compliant back end to pool {}, \
             or a service of its own.",
            quoted(&policy.pools[pool].name),
            quoted(&policy.pools[preferred].name)
        );
        reporter.warning(Code::NoCompliantBackend, place, message, help);
    }
}

// === impl Who ===

impl Who<'_> {
    fn names(&self) -> String {
        let names: Vec<String> = self
            .tenants
            .iter()
            .take(MAX_LISTED)
            .map(|tenant| quoted(&self.policy.tenants[*tenant].name))
            .collect();
        let kind = if self.tenants.len() == 1 {
            "tenant"
        } else {
            "tenants"
        };
        match self.tenants.len().saturating_sub(MAX_LISTED) {
            0 => format!("{kind} {}", names.join(", ")),
            more => format!("{kind} {} and {more} more", names.join(", ")),
        }
    }

    fn constraint_names(&self) -> String {
        let names: Vec<String> = self
            .constraints
            .iter()
            .map(|constraint| quoted(&self.policy.constraints[constraint].name))
            .collect();
        names.join(" and ")
    }
}
