//! Rules, constraints and the selectors of both.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_saphyr::Spanned;

use super::super::diagnostic::{Code, Place, Reporter};
use super::super::model::{self, LabelTexts, Text};
use super::super::resolved::{Action, Constraint, Labels, Mode, Rule, Service, Tenant};
use super::super::selection::Selection;
use super::super::suggest::quoted;
use super::services::unknown_name;
use super::{Placed, report_repetition, scalar, schedule, sort_by_name};

const ACTIONS: &[(&str, Action)] = &[("Allow", Action::Allow), ("Deny", Action::Deny)];
const MODES: &[(&str, Mode)] = &[("Enforce", Mode::Enforce), ("Shadow", Mode::Shadow)];

/// What selectors choose from: the names and labels of one kind of part, sorted by name.
struct Choices<'a> {
    kind: &'static str,
    members: Vec<(&'a str, &'a Labels)>,
    /// All of them; shared by every rule that has no selector.
    all: Selection,
}

/// What selectors choose from.
pub(super) struct Subjects<'a> {
    tenants: Choices<'a>,
    services: Choices<'a>,
}

// === impl Choices ===

impl<'a> Choices<'a> {
    fn new(kind: &'static str, members: Vec<(&'a str, &'a Labels)>) -> Self {
        Self {
            kind,
            all: Selection::all(members.len()),
            members,
        }
    }
}

// === impl Subjects ===

impl<'a> Subjects<'a> {
    pub(super) fn new(tenants: &'a [Placed<Tenant>], services: &'a [Placed<Service>]) -> Self {
        let tenants = tenants
            .iter()
            .map(|tenant| (tenant.value.name.as_str(), &tenant.value.labels))
            .collect();
        let services = services
            .iter()
            .map(|service| (service.value.name.as_str(), &service.value.labels))
            .collect();
        Self {
            tenants: Choices::new("tenant", tenants),
            services: Choices::new("service", services),
        }
    }
}

/// The rules in the order of judgement.
pub(super) fn resolve_rules(
    reporter: &mut Reporter<'_>,
    rules: &[&model::Rule],
    subjects: &Subjects<'_>,
) -> Vec<Placed<Rule>> {
    let mut resolved: Vec<_> = rules
        .iter()
        .map(|rule| {
            let model::Rule {
                name,
                action,
                mode,
                priority,
                tenants,
                services,
                schedule,
            } = rule;
            let _ = scalar::name(reporter, name);
            let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
            let priority = priority
                .as_ref()
                .and_then(|text| scalar::number(reporter, text, range, "priority"));
            let mode = mode
                .as_ref()
                .and_then(|text| scalar::choice(reporter, text, MODES, "mode"));
            let place = Place::from(name);
            let value = Rule {
                name: name.value.clone(),
                action: scalar::choice(reporter, action, ACTIONS, "action").unwrap_or(Action::Deny),
                mode: mode.unwrap_or(Mode::Enforce),
                priority: priority
                    .and_then(|priority| i32::try_from(priority).ok())
                    .unwrap_or(0),
                tenants: select(reporter, tenants.as_ref(), &subjects.tenants),
                services: select(reporter, services.as_ref(), &subjects.services),
                schedule: schedule
                    .as_ref()
                    .and_then(|schedule| schedule::resolve(reporter, schedule)),
                line: place.line(),
            };
            Placed { value, place }
        })
        .collect();
    report_repeated_names(reporter, &resolved);
    // Stable: what is equal stays in the order of the text.
    resolved.sort_by_key(|rule| (Reverse(rule.value.priority), rule.value.action == Action::Allow));
    resolved
}

fn report_repeated_names(reporter: &mut Reporter<'_>, rules: &[Placed<Rule>]) {
    let mut first: BTreeMap<&str, &Placed<Rule>> = BTreeMap::new();
    for rule in rules {
        report_repetition_of(reporter, &mut first, rule);
    }
}

fn report_repetition_of<'a>(
    reporter: &mut Reporter<'_>,
    first: &mut BTreeMap<&'a str, &'a Placed<Rule>>,
    rule: &'a Placed<Rule>,
) {
    match first.get(rule.value.name.as_str()) {
        Some(earlier) => report_repetition(reporter, earlier, rule),
        None => {
            first.insert(&rule.value.name, rule);
        }
    }
}

/// The constraints, sorted by name: all that bind must hold, so that their order means nothing.
pub(super) fn resolve_constraints(
    reporter: &mut Reporter<'_>,
    constraints: &[&model::Constraint],
    subjects: &Subjects<'_>,
) -> Vec<Placed<Constraint>> {
    let mut resolved: Vec<_> = constraints
        .iter()
        .map(|constraint| {
            let model::Constraint {
                name,
                tenants,
                services,
                require_backend,
            } = constraint;
            let _ = scalar::name(reporter, name);
            if require_backend.value.match_labels.is_empty() {
                let message = format!("constraint {} requires nothing", quoted(&name.value));
                reporter.error(
                    Code::NoEffect,
                    require_backend,
                    message,
                    "List at least one label under `matchLabels`.",
                );
            }
            let value = Constraint {
                name: name.value.clone(),
                tenants: select(reporter, tenants.as_ref(), &subjects.tenants),
                services: select(reporter, services.as_ref(), &subjects.services),
                require_labels: scalar::labels(reporter, &require_backend.value.match_labels),
            };
            Placed {
                value,
                place: name.into(),
            }
        })
        .collect();
    sort_by_name(reporter, &mut resolved);
    resolved
}

/// What a selector chooses. No selector chooses all; an empty one is refused, since it could be
/// meant as all or as nothing.
fn select(
    reporter: &mut Reporter<'_>,
    selector: Option<&Spanned<model::Selector>>,
    choices: &Choices<'_>,
) -> Selection {
    let Some(selector) = selector else {
        return choices.all.clone();
    };
    let model::Selector {
        match_names,
        match_labels,
    } = &selector.value;
    let empty = match (match_names, match_labels) {
        (None, None) => true,
        (names, labels) => {
            names.as_ref().is_some_and(Vec::is_empty) || labels.as_ref().is_some_and(LabelTexts::is_empty)
        }
    };
    if empty {
        let message = format!("this selector of {}s is empty", choices.kind);
        let help = format!("Leave `{}s` out to choose all of them.", choices.kind);
        reporter.error(Code::NoEffect, selector, message, help);
        return Selection::default();
    }
    let named = match_names
        .as_ref()
        .map(|names| indices_of(reporter, names, choices));
    let wanted = match_labels
        .as_ref()
        .map(|labels| scalar::labels(reporter, labels))
        .unwrap_or_default();
    let has_labels = |labels: &Labels| wanted.iter().all(|(key, value)| labels.get(key) == Some(value));
    let chosen: Selection = choices
        .members
        .iter()
        .enumerate()
        .filter(|(index, (_, labels))| {
            named
                .as_ref()
                .is_none_or(|named| named.binary_search(index).is_ok())
                && has_labels(labels)
        })
        .map(|(index, _)| index)
        .collect();
    if chosen.is_empty() && match_labels.is_some() {
        let message = format!("this selector chooses no {}", choices.kind);
        let help = format!("Compare its labels with those of the {}s.", choices.kind);
        reporter.warning(Code::NoEffect, selector, message, help);
    }
    chosen
}

/// Sorted indices of the names that are defined; the others are reported.
fn indices_of(reporter: &mut Reporter<'_>, names: &[Text], choices: &Choices<'_>) -> Vec<usize> {
    let mut indices = Vec::with_capacity(names.len().min(choices.members.len()));
    for name in names {
        match choices
            .members
            .binary_search_by(|(member, _)| (*member).cmp(&name.value))
        {
            Ok(index) => indices.push(index),
            Err(_) => {
                let members: Vec<&str> = choices.members.iter().map(|(member, _)| *member).collect();
                unknown_name(reporter, name, choices.kind, &members);
            }
        }
    }
    indices.sort_unstable();
    indices.dedup();
    indices
}
