//! What a constraint asks of labels.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Labels;

/// What labels must be like. All of it must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// Labels that must be there.
    pub match_labels: Labels,
    /// Sorted, without repetition.
    pub match_expressions: Vec<LabelExpression>,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelExpression {
    /// The label's key.
    pub key: String,
    /// What must hold.
    pub operator: Operator,
    /// Sorted, without repetition; empty for `Exists` and `DoesNotExist`.
    pub values: Vec<String>,
}

/// What must hold of a label, as Kubernetes defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Operator {
    /// It is there and has one of the values.
    In,
    /// It is not there, or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

// === impl Requirement ===

impl Requirement {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether labels are as required; `label` gives the value of a key.
    pub fn holds<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let has = |(key, value): (&String, &String)| label(key) == Some(value.as_str());
        self.match_labels.iter().all(has)
            && self
                .match_expressions
                .iter()
                .all(|expression| expression.holds(label(&expression.key)))
    }

    /// What does not hold, each as it is written in a policy.
    pub fn lacking<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
        let labels = self.match_labels.iter();
        let missing = labels.filter(|(key, value)| label(key) != Some(value.as_str()));
        let expressions = self.match_expressions.iter();
        let broken = expressions.filter(|expression| !expression.holds(label(&expression.key)));
        missing
            .map(|(key, value)| format!("{key}: {value}"))
            .chain(broken.map(ToString::to_string))
            .collect()
    }
}

// === impl LabelExpression ===

impl LabelExpression {
    /// Whether it holds of the value of its key.
    #[must_use]
    pub fn holds(&self, value: Option<&str>) -> bool {
        let is_listed = value.is_some_and(|value| self.values.iter().any(|listed| listed == value));
        match self.operator {
            Operator::In => is_listed,
            Operator::NotIn => !is_listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// `region In (eu, us)`, `certified Exists`.
impl fmt::Display for LabelExpression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {:?}", self.key, self.operator)?;
        if !self.values.is_empty() {
            write!(formatter, " ({})", self.values.join(", "))?;
        }
        Ok(())
    }
}

/// `region: eu and certified Exists`.
impl fmt::Display for Requirement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self
            .match_labels
            .iter()
            .map(|(key, value)| format!("{key}: {value}"));
        let expressions = self.match_expressions.iter().map(ToString::to_string);
        let all: Vec<String> = labels.chain(expressions).collect();
        formatter.write_str(&all.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kubernetes' own definition, also where the key is absent.
    #[test]
    fn operators_hold_as_kubernetes_defines_them() {
        let holds = |operator, value| {
            let expression = LabelExpression {
                key: "region".into(),
                operator,
                values: vec!["eu".into(), "uk".into()],
            };
            expression.holds(value)
        };
        for (operator, eu, us, absent) in [
            (Operator::In, true, false, false),
            (Operator::NotIn, false, true, true),
            (Operator::Exists, true, true, false),
            (Operator::DoesNotExist, false, false, true),
        ] {
            assert_eq!(
                (
                    holds(operator, Some("eu")),
                    holds(operator, Some("us")),
                    holds(operator, None)
                ),
                (eu, us, absent),
                "{operator:?}"
            );
        }
    }

    #[test]
    fn what_is_lacking_is_named() {
        let requirement = Requirement {
            match_labels: Labels::from([("region".into(), "eu".into()), ("gpu".into(), "h100".into())]),
            match_expressions: vec![LabelExpression {
                key: "certified".into(),
                operator: Operator::Exists,
                values: Vec::new(),
            }],
        };
        let labels = Labels::from([("region".to_owned(), "eu".to_owned())]);
        let label = |key: &str| labels.get(key).map(String::as_str);
        assert!(!requirement.holds(label));
        assert_eq!(requirement.lacking(label), ["gpu: h100", "certified Exists"]);
        assert_eq!(
            requirement.to_string(),
            "gpu: h100 and region: eu and certified Exists"
        );
    }
}
