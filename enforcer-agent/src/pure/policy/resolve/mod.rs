//! Documents to a [`ResolvedPolicy`].
//!
//! Two passes. The first one gives every scalar its type and every name its index, and reports all that is wrong; what
//! cannot be read is left out, so that one slip does not cause a dozen more errors. The second one, [`checks`], looks at
//! how the parts fit together, and needs all of them to be right.

mod checks;
mod classes;
mod default_action;
mod header;
mod network;
mod pools;
mod rights;
mod rules;
mod scalar;
mod schedule;
mod selectors;
mod services;
mod tenants;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) use tenants::{Allowance, resolve_allowance};

use super::bounds;
use super::diagnostic::{Code, Reporter};
use super::kinds::{Name, Prefix};
use super::model::{self, List, Text};
use super::resolved::{Class, Constraint, Pool, ResolvedPolicy, Rule, Service, Tenant};
use super::source::Place;
use super::suggest::{nearest, quoted};

/// A part of the policy, and where its name stands.
struct Placed<T> {
    value: T,
    place: Place,
}

/// Parts of a policy that have a name.
trait Named {
    /// What people call this kind of part.
    const KIND: &'static str;
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($part:ty, $kind:literal;)+) => {
        $(impl Named for $part {
            const KIND: &'static str = $kind;
            fn name(&self) -> &str {
                &self.name
            }
        })+
    };
}
named! {
    Class, "class";
    Tenant, "tenant";
    Service, "service";
    Pool, "pool";
    Rule, "rule";
    Constraint, "constraint";
}

/// Resolves and checks a policy. `None` if it has errors.
pub(super) fn resolve(reporter: &mut Reporter<'_>, documents: &[model::Document]) -> Option<ResolvedPolicy> {
    let name = header::name(reporter, documents);
    let (defaults, allow_by_default) = header::defaults(reporter, documents);
    if !within_bounds(reporter, documents, allow_by_default.is_some()) {
        return None;
    }
    let classes = classes::resolve(reporter, &parts(documents, |spec| spec.classes.as_ref()));
    let mut tenants = tenants::resolve(
        reporter,
        &parts(documents, |spec| spec.tenants.as_ref()),
        &classes,
    );
    if let Some(action) = allow_by_default {
        default_action::add_tenant(action, &mut tenants);
    }
    let pools = pools::resolve(reporter, &parts(documents, |spec| spec.pools.as_ref()));
    let services = services::resolve(reporter, &parts(documents, |spec| spec.services.as_ref()), &pools);
    let subjects = selectors::Subjects::new(&tenants, &services);
    let rules = parts(documents, |spec| spec.rules.as_ref());
    let mut rules = rules::resolve_rules(reporter, &rules, &subjects);
    if let Some(action) = allow_by_default {
        default_action::add_rule(reporter, action, (tenants.len(), services.len()), &mut rules);
    }
    let constraints = parts(documents, |spec| spec.constraints.as_ref());
    let constraints = rules::resolve_constraints(reporter, &constraints, &subjects);
    let protected = parts(documents, |spec| spec.protected_networks.as_ref());
    let protected_networks = network::protected_networks(reporter, &protected);
    let places = checks::Places {
        classes: places(&classes),
        tenants: places(&tenants),
        services: places(&services),
        pools: places(&pools),
        rules: places(&rules),
        constraints: places(&constraints),
    };
    let policy = ResolvedPolicy {
        name,
        defaults,
        classes: values(classes),
        tenants: shared(tenants),
        services: values(services),
        pools: values(pools),
        rules: shared(rules),
        protected_networks,
        constraints: values(constraints),
    };
    if !reporter.has_errors() {
        checks::check(reporter, &policy, &places);
    }
    (!reporter.has_errors()).then_some(policy)
}

/// One list of all documents, in order.
fn parts<'a, T>(
    documents: &'a [model::Document],
    list: impl Fn(&'a model::Spec) -> Option<&'a List<T>>,
) -> Vec<&'a T> {
    documents
        .iter()
        .filter_map(|document| list(&document.spec))
        .flat_map(|list| &list.value)
        .collect()
}

fn values<T>(parts: Vec<Placed<T>>) -> Vec<T> {
    parts.into_iter().map(|part| part.value).collect()
}

fn shared<T>(parts: Vec<Placed<T>>) -> Vec<Arc<T>> {
    parts.into_iter().map(|part| Arc::new(part.value)).collect()
}

fn places<T>(parts: &[Placed<T>]) -> Vec<Place> {
    parts.iter().map(|part| part.place).collect()
}

/// Counts what there is before any work is done whose cost is a product of the counts.
fn within_bounds(reporter: &mut Reporter<'_>, documents: &[model::Document], allow_by_default: bool) -> bool {
    let by_default = usize::from(allow_by_default);
    let tenants = parts(documents, |spec| spec.tenants.as_ref());
    let pools = parts(documents, |spec| spec.pools.as_ref());
    let protected = parts(documents, |spec| spec.protected_networks.as_ref()).len();
    let prefixes = tenants
        .iter()
        .map(|tenant| tenant.sources.value.len())
        .sum::<usize>();
    let counts = [
        (
            "classes",
            parts(documents, |spec| spec.classes.as_ref()).len(),
            bounds::MAX_CLASSES,
        ),
        ("tenants", tenants.len() + by_default, bounds::MAX_TENANTS),
        (
            "services",
            parts(documents, |spec| spec.services.as_ref()).len(),
            bounds::MAX_SERVICES,
        ),
        ("pools", pools.len(), bounds::MAX_POOLS),
        (
            "back ends",
            pools.iter().map(|pool| pool.backends.value.len()).sum(),
            bounds::MAX_BACKENDS,
        ),
        (
            "rules",
            parts(documents, |spec| spec.rules.as_ref()).len() + by_default,
            bounds::MAX_RULES,
        ),
        (
            "constraints",
            parts(documents, |spec| spec.constraints.as_ref()).len(),
            bounds::MAX_CONSTRAINTS,
        ),
        ("prefixes", protected + prefixes, bounds::MAX_PREFIXES),
    ];
    let mut fits = true;
    for (what, count, most) in counts {
        if count > most {
            fits = false;
            let message = format!("the policy has {count} {what}; there can be {most}");
            reporter.error(
                Code::TooLarge,
                Place::WHOLE,
                message,
                "Join what is treated alike.",
            );
        }
    }
    fits
}

/// Sorts by name, and reports names that are given twice, or that differ only in case.
fn sort_by_name<T: Named>(reporter: &mut Reporter<'_>, parts: &mut [Placed<T>]) {
    // Stable: among equal names, the first one of the text comes first.
    parts.sort_by(|left, right| left.value.name().cmp(right.value.name()));
    for pair in parts.windows(2) {
        report_repetition(reporter, &pair[0], &pair[1]);
    }
    report_same_but_for_case(reporter, T::KIND, &names(parts));
}

fn report_repetition<T: Named>(reporter: &mut Reporter<'_>, first: &Placed<T>, second: &Placed<T>) {
    let name = first.value.name();
    if name != second.value.name() {
        return;
    }
    let message = format!("there is already a {} named {}", T::KIND, quoted(name));
    let help = format!(
        "Rename one of the two; the first one stands at {}.",
        reporter.describe(first.place)
    );
    reporter.error(Code::Duplicate, second.place, message, help);
}

/// To programs, `acme` and `Acme` are two; to the people who type them they are one.
fn report_same_but_for_case(reporter: &mut Reporter<'_>, kind: &str, names: &[(&str, Place)]) {
    let is_lower = |(name, _): &(&str, Place)| {
        name.bytes()
            .all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
    };
    if names.iter().all(is_lower) {
        return;
    }
    let mut seen: BTreeMap<String, (&str, Place)> = BTreeMap::new();
    let mut in_order = names.to_vec();
    in_order.sort_by_key(|(_, place)| place.order());
    for (name, place) in in_order {
        let (first, first_place) = *seen.entry(name.to_lowercase()).or_insert((name, place));
        if first == name {
            continue;
        }
        let message = format!(
            "{kind}s {} and {} differ only in upper and lower case",
            quoted(first),
            quoted(name)
        );
        let help = format!(
            "Give one of them another name; the other one stands at {}.",
            reporter.describe(first_place)
        );
        reporter.warning(Code::Duplicate, place, message, help);
    }
}

/// The names of some parts, and where they stand.
fn names<T: Named>(parts: &[Placed<T>]) -> Vec<(&str, Place)> {
    parts.iter().map(|part| (part.value.name(), part.place)).collect()
}

/// Reports a name that is not defined.
fn unknown_name(reporter: &mut Reporter<'_>, name: &Text, kind: &str, names: &mut dyn Iterator<Item = &str>) {
    if !reporter.has_room() {
        // Nobody will read it, and to find the nearest of thousands of names costs something.
        return reporter.error(Code::UnknownName, name, "", "");
    }
    let plural = if kind == "class" {
        "classes".to_owned()
    } else {
        format!("{kind}s")
    };
    let help = match nearest(&name.value, names) {
        Some(near) => format!("Did you mean `{near}`?"),
        None => format!("Define it under `{plural}`, or take it out here."),
    };
    let message = format!("there is no {kind} named {}", quoted(&name.value));
    reporter.error(Code::UnknownName, name, message, help);
}
