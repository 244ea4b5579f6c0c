//! Documents to a [`ResolvedPolicy`].
//!
//! Two passes. The first one gives every scalar its type and every name its index, and reports all that is wrong; what
//! cannot be read is left out, so that one slip does not cause a dozen more errors. The second one, [`checks`], looks at
//! how the parts fit together, and needs all of them to be right.

mod checks;
mod network;
mod pools;
mod rules;
mod scalar;
mod schedule;
mod services;
mod tenants;

use super::Outcome;
use super::bounds;
use super::diagnostic::{Code, Place, Reporter};
use super::model;
use super::resolved::{Constraint, Pool, ResolvedPolicy, Rule, Service, Tenant};
use super::suggest::quoted;

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
    Tenant, "tenant";
    Service, "service";
    Pool, "pool";
    Rule, "rule";
    Constraint, "constraint";
}

/// Resolves and checks a policy. `text` is what the documents were parsed from, and `file` its name, for diagnostics.
#[must_use]
pub fn resolve(file: &str, text: &str, documents: &[model::Document]) -> Outcome {
    let mut reporter = Reporter::new(file, text);
    let name = header(&mut reporter, documents);
    if !within_bounds(&mut reporter, documents) {
        return Outcome {
            policy: None,
            diagnostics: reporter.finish(),
        };
    }
    let tenants = tenants::resolve(&mut reporter, &parts(documents, |spec| &spec.tenants));
    let pools = pools::resolve(&mut reporter, &parts(documents, |spec| &spec.pools));
    let services = services::resolve(&mut reporter, &parts(documents, |spec| &spec.services), &pools);
    let subjects = rules::Subjects::new(&tenants, &services);
    let rules = rules::resolve_rules(&mut reporter, &parts(documents, |spec| &spec.rules), &subjects);
    let constraints = rules::resolve_constraints(
        &mut reporter,
        &parts(documents, |spec| &spec.constraints),
        &subjects,
    );
    let protected_networks =
        network::protected_networks(&mut reporter, &parts(documents, |spec| &spec.protected_networks));
    let places = checks::Places {
        services: places(&services),
        pools: places(&pools),
        rules: places(&rules),
        constraints: places(&constraints),
    };
    let policy = ResolvedPolicy {
        name,
        tenants: values(tenants),
        services: values(services),
        pools: values(pools),
        rules: values(rules),
        protected_networks,
        constraints: values(constraints),
    };
    if !reporter.has_errors() {
        checks::check(&mut reporter, &policy, &places);
    }
    let usable = !reporter.has_errors();
    Outcome {
        policy: usable.then_some(policy),
        diagnostics: reporter.finish(),
    }
}

/// One list of all documents, in order.
fn parts<'a, T>(
    documents: &'a [model::Document],
    list: impl Fn(&'a model::Spec) -> &'a Vec<T>,
) -> Vec<&'a T> {
    documents
        .iter()
        .flat_map(|document| list(&document.spec))
        .collect()
}

fn values<T>(parts: Vec<Placed<T>>) -> Vec<T> {
    parts.into_iter().map(|part| part.value).collect()
}

fn places<T>(parts: &[Placed<T>]) -> Vec<Place> {
    parts.iter().map(|part| part.place).collect()
}

/// Checks the frame of every document, and returns the policy's name.
fn header(reporter: &mut Reporter<'_>, documents: &[model::Document]) -> String {
    let mut first_name: Option<&model::Text> = None;
    for document in documents {
        let model::Document {
            api_version,
            kind,
            metadata,
            spec,
        } = document;
        if api_version.value != "enforcer.dev/v1" {
            let message = format!("the version {} is not known", quoted(&api_version.value));
            reporter.error(
                Code::Unsupported,
                api_version,
                message,
                "This version reads `enforcer.dev/v1`.",
            );
        }
        if kind.value != "GovernancePolicy" {
            let message = format!("the kind {} is not known", quoted(&kind.value));
            reporter.error(
                Code::Unsupported,
                kind,
                message,
                "A policy is of kind `GovernancePolicy`.",
            );
        }
        let _ = scalar::name(reporter, &metadata.name);
        let first = *first_name.get_or_insert(&metadata.name);
        if first.value != metadata.name.value {
            let message = format!("the policy is already named {}", quoted(&first.value));
            let help = format!(
                "The documents of one policy carry one name; the first one stands at {}.",
                Place::from(first).describe()
            );
            reporter.error(Code::Conflict, &metadata.name, message, help);
        }
        if let Some(action) = spec
            .defaults
            .as_ref()
            .and_then(|defaults| defaults.action.as_ref())
        {
            default_action(reporter, action);
        }
    }
    first_name.map(|name| name.value.clone()).unwrap_or_default()
}

fn default_action(reporter: &mut Reporter<'_>, action: &model::Text) {
    match action.value.as_str() {
        "Deny" => {}
        "Allow" => reporter.error(
            Code::Unsupported,
            action,
            "unknown sources are always refused in this version",
            "Set it to `Deny`, and give the sources that may pass to a tenant: `0.0.0.0/0` and `::/0` are everyone.",
        ),
        other => reporter.error(
            Code::InvalidValue,
            action,
            format!("{} is no action", quoted(other)),
            "The default action is `Deny`.",
        ),
    }
}

/// Counts what there is before any work is done whose cost is a product of the counts.
fn within_bounds(reporter: &mut Reporter<'_>, documents: &[model::Document]) -> bool {
    let specs = || documents.iter().map(|document| &document.spec);
    let pools = || specs().flat_map(|spec| &spec.pools);
    let tenants = || specs().flat_map(|spec| &spec.tenants);
    let prefixes = specs().map(|spec| spec.protected_networks.len()).sum::<usize>()
        + tenants().map(|tenant| tenant.sources.len()).sum::<usize>();
    let counts = [
        ("tenants", tenants().count(), bounds::MAX_TENANTS),
        (
            "services",
            specs().map(|spec| spec.services.len()).sum(),
            bounds::MAX_SERVICES,
        ),
        ("pools", pools().count(), bounds::MAX_POOLS),
        (
            "back ends",
            pools().map(|pool| pool.backends.len()).sum(),
            bounds::MAX_BACKENDS,
        ),
        (
            "rules",
            specs().map(|spec| spec.rules.len()).sum(),
            bounds::MAX_RULES,
        ),
        (
            "constraints",
            specs().map(|spec| spec.constraints.len()).sum(),
            bounds::MAX_CONSTRAINTS,
        ),
        ("prefixes", prefixes, bounds::MAX_PREFIXES),
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

/// Sorts by name, and reports names that are given twice.
fn sort_by_name<T: Named>(reporter: &mut Reporter<'_>, parts: &mut [Placed<T>]) {
    // Stable: among equal names, the first one of the text comes first.
    parts.sort_by(|left, right| left.value.name().cmp(right.value.name()));
    for pair in parts.windows(2) {
        report_repetition(reporter, &pair[0], &pair[1]);
    }
}

fn report_repetition<T: Named>(reporter: &mut Reporter<'_>, first: &Placed<T>, second: &Placed<T>) {
    let name = first.value.name();
    if name != second.value.name() {
        return;
    }
    let message = format!("there is already a {} named {}", T::KIND, quoted(name));
    let help = format!(
        "Rename one of the two; the first one stands at {}.",
        first.place.describe()
    );
    reporter.error(Code::Duplicate, second.place, message, help);
}
