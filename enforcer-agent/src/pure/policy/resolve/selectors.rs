//! Selectors: which tenants and services a rule or constraint speaks of.
//!
//! Thousands of rules choose among thousands of tenants by label, so that labels are indexed once.

use std::collections::BTreeMap;

use super::super::diagnostic::{Code, Reporter};
use super::super::model::{self, List, Scalar, Spanned};
use super::super::resolved::{LabelExpression, Labels, Operator, Requirement, Service, Tenant};
use super::super::selection::Selection;
use super::super::suggest::quoted;
use super::{Placed, default_action, scalar, unknown_name};

/// What selectors choose from: the names and labels of one kind of part.
pub(super) struct Choices<'a> {
    kind: &'static str,
    /// Sorted.
    names: Vec<&'a str>,
    labels: BTreeMap<&'a str, BTreeMap<&'a str, Selection>>,
    /// All of them; shared by every rule that has no selector.
    all: Selection,
}

/// What selectors choose from.
pub(super) struct Subjects<'a> {
    pub(super) tenants: Choices<'a>,
    pub(super) services: Choices<'a>,
}

// === impl Subjects ===

impl<'a> Subjects<'a> {
    /// Tenants and services, both sorted by name.
    pub(super) fn new(tenants: &'a [Placed<Tenant>], services: &'a [Placed<Service>]) -> Self {
        let tenants = tenants.iter().map(|tenant| &tenant.value);
        let services = services.iter().map(|service| &service.value);
        Self {
            tenants: Choices::new(
                "tenant",
                tenants.map(|tenant| (tenant.name.as_str(), &*tenant.labels)),
            ),
            services: Choices::new(
                "service",
                services.map(|service| (service.name.as_str(), &service.labels)),
            ),
        }
    }
}

// === impl Choices ===

impl<'a> Choices<'a> {
    fn new(kind: &'static str, members: impl Iterator<Item = (&'a str, &'a Labels)>) -> Self {
        let mut names = Vec::new();
        let mut index: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
        for (number, (name, labels)) in members.enumerate() {
            names.push(name);
            for (key, value) in labels {
                let values = index.entry(key).or_default();
                values.entry(value).or_default().push(number);
            }
        }
        let chosen = |(value, members): (&'a str, Vec<usize>)| (value, members.into_iter().collect());
        let labels = index
            .into_iter()
            .map(|(key, values)| (key, values.into_iter().map(chosen).collect()));
        Self {
            kind,
            all: Selection::all(names.len()),
            names,
            labels: labels.collect(),
        }
    }

    /// What a selector chooses. No selector chooses all; an empty one is refused, since it could be meant as all or as
    /// nothing.
    pub(super) fn select(
        &self,
        reporter: &mut Reporter<'_>,
        selector: Option<&Spanned<model::Selector>>,
    ) -> Selection {
        let Some(selector) = selector else {
            return self.all.clone();
        };
        let model::Selector {
            match_names,
            match_labels,
            match_expressions,
        } = &selector.value;
        let is_empty = match_names.as_ref().is_none_or(|names| names.value.is_empty())
            && match_labels
                .as_ref()
                .is_none_or(|labels| labels.entries.is_empty())
            && match_expressions
                .as_ref()
                .is_none_or(|list| list.value.is_empty());
        let has_empty_part = match_names.as_ref().is_some_and(|names| names.value.is_empty())
            || match_labels
                .as_ref()
                .is_some_and(|labels| labels.entries.is_empty())
            || match_expressions
                .as_ref()
                .is_some_and(|list| list.value.is_empty());
        if is_empty || has_empty_part {
            let message = format!("this selector of {}s is empty", self.kind);
            let help = format!("Leave `{}s` out to choose all of them.", self.kind);
            reporter.error(Code::NoEffect, selector, message, help);
            return Selection::default();
        }
        let mut chosen = match match_names {
            Some(names) => self.named(reporter, names),
            None => self.all.clone(),
        };
        let requirement = requirement(reporter, match_labels.as_ref(), match_expressions.as_ref());
        for (key, value) in &requirement.match_labels {
            let with_value = self.with_value(key, value);
            // Most rules choose by one label: they share what the index has.
            chosen = if chosen == self.all {
                with_value
            } else {
                chosen.intersection(&with_value)
            };
        }
        for expression in &requirement.match_expressions {
            chosen = self.apply(expression, &chosen);
        }
        if chosen.is_empty() && !requirement.is_empty() {
            let message = format!("this selector chooses no {}", self.kind);
            let help = format!("Compare its labels with those of the {}s.", self.kind);
            reporter.warning(Code::NoEffect, selector, message, help);
        }
        chosen
    }

    /// The names that are defined; the others are reported.
    fn named(&self, reporter: &mut Reporter<'_>, names: &List<Scalar<super::Name>>) -> Selection {
        let mut indices = Vec::with_capacity(names.value.len().min(self.names.len()));
        for name in &names.value {
            match self.names.binary_search(&name.value.as_str()) {
                Ok(index) if !default_action::is_reserved(name.value.as_str()) => indices.push(index),
                _ => {
                    let names = self.names.iter().copied();
                    let mut given = names.filter(|name| !default_action::is_reserved(name));
                    unknown_name(reporter, name, self.kind, &mut given);
                }
            }
        }
        indices.into_iter().collect()
    }

    fn with_value(&self, key: &str, value: &str) -> Selection {
        let members = self.labels.get(key).and_then(|values| values.get(value));
        members.cloned().unwrap_or_default()
    }

    fn with_key(&self, key: &str) -> Selection {
        let members = self.labels.get(key).into_iter().flat_map(BTreeMap::values);
        members.flat_map(Selection::iter).collect()
    }

    fn with_any_value(&self, key: &str, wanted: &[String]) -> Selection {
        let values = self.labels.get(key);
        let members = wanted.iter().filter_map(|value| values?.get(value.as_str()));
        members.flat_map(Selection::iter).collect()
    }

    /// Those of the chosen ones for which a condition holds.
    fn apply(&self, expression: &LabelExpression, chosen: &Selection) -> Selection {
        let LabelExpression {
            key,
            operator,
            values,
        } = expression;
        match operator {
            Operator::In => chosen.intersection(&self.with_any_value(key, values)),
            Operator::NotIn => chosen.difference(&self.with_any_value(key, values)),
            Operator::Exists => chosen.intersection(&self.with_key(key)),
            Operator::DoesNotExist => chosen.difference(&self.with_key(key)),
        }
    }
}

/// What labels must be like. Conditions that are wrong are reported and left out.
pub(super) fn requirement(
    reporter: &mut Reporter<'_>,
    labels: Option<&model::LabelTexts>,
    expressions: Option<&List<model::Expression>>,
) -> Requirement {
    let expressions = expressions.map(|list| list.value.as_slice()).unwrap_or_default();
    let mut match_expressions: Vec<LabelExpression> = expressions
        .iter()
        .filter_map(|expression| resolve_expression(reporter, expression))
        .collect();
    match_expressions.sort_unstable();
    match_expressions.dedup();
    Requirement {
        match_labels: scalar::labels(reporter, labels),
        match_expressions,
    }
}

fn resolve_expression(
    reporter: &mut Reporter<'_>,
    expression: &model::Expression,
) -> Option<LabelExpression> {
    let model::Expression {
        key,
        operator,
        values,
    } = expression;
    let key = scalar::name(reporter, key);
    let resolved = scalar::choice(reporter, operator);
    let texts = values
        .as_ref()
        .map(|list| list.value.as_slice())
        .unwrap_or_default();
    let mut values: Vec<String> = texts
        .iter()
        .filter_map(|text| scalar::label_value(reporter, text))
        .collect();
    values.sort_unstable();
    values.dedup();
    match resolved? {
        Operator::In | Operator::NotIn if texts.is_empty() => {
            let message = format!("{} needs values to compare with", quoted(&operator.value));
            reporter.error(
                Code::MissingField,
                operator,
                message,
                "List at least one under `values`.",
            );
            None
        }
        Operator::Exists | Operator::DoesNotExist if !texts.is_empty() => {
            let message = format!(
                "{} looks at the key alone, and compares with no values",
                quoted(&operator.value)
            );
            reporter.error(
                Code::Conflict,
                operator,
                message,
                "Remove `values`, or write `In` or `NotIn`.",
            );
            None
        }
        operator => Some(LabelExpression {
            key: key?,
            operator,
            values,
        }),
    }
}
