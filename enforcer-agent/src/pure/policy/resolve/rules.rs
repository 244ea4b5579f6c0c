//! Rules and constraints.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::diagnostic::{Code, Reporter};
use super::super::model;
use super::super::resolved::{Action, Constraint, Mode, Rule};
use super::super::source::Place;
use super::super::suggest::quoted;
use super::selectors::{self, Subjects};
use super::{
    Placed, names, report_repetition, report_same_but_for_case, scalar, schedule, sort_by_name, tenants,
};

/// The rules in the order of judgement.
pub(super) fn resolve_rules(
    reporter: &mut Reporter<'_>,
    rules: &[&model::Rule],
    subjects: &Subjects<'_>,
) -> Vec<Placed<Rule>> {
    let mut resolved: Vec<_> = rules
        .iter()
        .map(|rule| resolve_rule(reporter, rule, subjects))
        .collect();
    report_repeated_names(reporter, &resolved);
    report_same_but_for_case(reporter, "rule", &names(&resolved));
    // Stable: what is equal stays in the order of the text.
    resolved.sort_by_key(|rule| (Reverse(rule.value.priority), rule.value.action == Action::Allow));
    resolved
}

fn resolve_rule(reporter: &mut Reporter<'_>, rule: &model::Rule, subjects: &Subjects<'_>) -> Placed<Rule> {
    let model::Rule {
        name,
        action,
        mode,
        priority,
        tenants,
        services,
        schedule,
        limits,
    } = rule;
    let _ = scalar::name(reporter, name);
    let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
    let priority = priority
        .as_ref()
        .and_then(|text| scalar::number(reporter, text, range, "priority"));
    let mode = mode.as_ref().and_then(|text| scalar::choice(reporter, text));
    let place = Place::from(name);
    let action = scalar::choice(reporter, action).unwrap_or(Action::Deny);
    let mode = mode.unwrap_or(Mode::Enforce);
    if let Some(limits) = limits
        && (action == Action::Deny || mode == Mode::Shadow)
    {
        let message = format!(
            "rule {} lets nothing pass that it could limit",
            quoted(&name.value)
        );
        let help = "Limits belong to a rule with `action: Allow` that is enforced; leave them out here.";
        reporter.error(Code::NoEffect, limits, message, help);
    }
    let value = Rule {
        name: name.value.clone(),
        action,
        mode,
        priority: priority
            .and_then(|priority| i32::try_from(priority).ok())
            .unwrap_or(0),
        tenants: subjects.tenants.select(reporter, tenants.as_ref()),
        services: subjects.services.select(reporter, services.as_ref()),
        schedule: schedule
            .as_ref()
            .and_then(|schedule| schedule::resolve(reporter, schedule)),
        limits: limits
            .as_ref()
            .map(|limits| tenants::resolve_limits(reporter, &limits.value)),
        line: place.line(),
        file: reporter.file(place).map(Arc::from),
    };
    Placed { value, place }
}

fn report_repeated_names(reporter: &mut Reporter<'_>, rules: &[Placed<Rule>]) {
    let mut first: BTreeMap<&str, &Placed<Rule>> = BTreeMap::new();
    for rule in rules {
        match first.get(rule.value.name.as_str()) {
            Some(earlier) => report_repetition(reporter, earlier, rule),
            None => {
                first.insert(&rule.value.name, rule);
            }
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
            let model::LabelSelector {
                match_labels,
                match_expressions,
            } = &require_backend.value;
            let require = selectors::requirement(reporter, match_labels.as_ref(), match_expressions.as_ref());
            let is_bare = match_labels
                .as_ref()
                .is_none_or(|labels| labels.entries.is_empty())
                && match_expressions
                    .as_ref()
                    .is_none_or(|list| list.value.is_empty());
            if is_bare {
                let message = format!("constraint {} requires nothing", quoted(&name.value));
                reporter.error(
                    Code::NoEffect,
                    require_backend,
                    message,
                    "List at least one label under `matchLabels`, or a condition under `matchExpressions`.",
                );
            }
            let value = Constraint {
                name: name.value.clone(),
                tenants: subjects.tenants.select(reporter, tenants.as_ref()),
                services: subjects.services.select(reporter, services.as_ref()),
                require,
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
