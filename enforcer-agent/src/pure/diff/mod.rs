//! What changes for whom from one policy to another.
//!
//! Two policies are compared by what they mean: names that exist in both are the same thing, and the order and form of
//! the text are nothing. Both are judged at one moment, with every back end healthy, so that what is told apart is the
//! policies and not the state of the world.
//!
//! | Part | Module |
//! | --- | --- |
//! | tenants, services, pools, back ends, rules and constraints: added, removed, which fields have other values | [`objects`] |
//! | which (tenant, service) gains, loses or changes its decision and its eligible back ends | [`pairs`] |
//!
//! Equal changes are one row, however many they happen to. Rows and names are bounded; counts are always those of all.

mod objects;
mod pairs;

use std::fmt;

use enforcer_common::Reason;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::policy::ResolvedPolicy;

/// Most rows in each list of a [`Diff`].
pub const MAX_ROWS: usize = 10_000;
/// Most names in a [`Diff`], over all rows.
pub const MAX_NAMES: usize = 200_000;

/// Everything that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// The policy before.
    pub from: PolicyId,
    /// The policy after.
    pub to: PolicyId,
    /// What is declared.
    pub objects: Vec<ObjectChange>,
    /// What pairs of tenant and service are answered.
    pub decisions: Vec<DecisionChange>,
    /// Where pairs of tenant and service may be sent.
    pub backends: Vec<BackendChange>,
    /// Pairs in all.
    pub pairs: PairCounts,
    /// Whether rows or names had to be left out.
    pub truncated: bool,
}

/// Which policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyId {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: String,
}

/// Pairs of tenant and service by what happens to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairCounts {
    /// May use the service only after.
    pub gained: u64,
    /// May use the service only before.
    pub lost: u64,
    /// Something else about them differs.
    pub changed: u64,
}

/// Some names, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Names {
    /// How many there are.
    pub count: u64,
    /// All of them, or the first ones if there was no room for more.
    pub names: Vec<String>,
}

/// What sort of thing is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ObjectKind {
    /// The policy as a whole.
    Policy,
    /// A service class.
    Class,
    /// A tenant.
    Tenant,
    /// A service.
    Service,
    /// A pool.
    Pool,
    /// A back end.
    Backend,
    /// A rule.
    Rule,
    /// A constraint.
    Constraint,
}

/// What happened to something declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Happened {
    /// It is there only before.
    Removed,
    /// It is there only after.
    Added,
    /// It is there before and after, and differs.
    Changed,
}

/// One change of one or more things of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectChange {
    /// What they are.
    pub kind: ObjectKind,
    /// What happened to them.
    pub happened: Happened,
    /// Which ones.
    pub which: Names,
    /// What differs, if they changed.
    pub fields: Vec<FieldChange>,
}

/// What differs in a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FieldChange {
    /// It has another value.
    Value {
        /// Its path, as in the policy: `limits.packetsPerSecond`.
        field: String,
        /// Before; null: there was none.
        from: Value,
        /// After; null: there is none.
        to: Value,
    },
    /// It has other members.
    Members {
        /// Its path.
        field: String,
        /// Only after.
        added: Names,
        /// Only before.
        removed: Names,
    },
}

/// Tenants and services: every tenant with every service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// The tenants.
    pub tenants: Names,
    /// The services.
    pub services: Names,
}

/// Whether a pair may do more or less than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// It was allowed and is not any more.
    Loses,
    /// It was not allowed and is now.
    Gains,
    /// It is allowed before and after, or neither.
    Changes,
}

/// What a pair is answered when all back ends are healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Name of the [`Reason`].
    pub reason: String,
    /// The rule that decides.
    pub rule: Option<String>,
    /// The shadow rule that would have decided otherwise.
    pub shadow_rule: Option<String>,
    /// Name of the reason that the shadow rule would have given.
    pub shadow_reason: Option<String>,
}

/// One change of the decision of one or more pairs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionChange {
    /// What it means for them.
    pub effect: Effect,
    /// How many.
    pub count: u64,
    /// Which ones.
    pub pairs: Vec<Block>,
    /// Before; `None`: there was no such pair.
    pub from: Option<Decision>,
    /// After; `None`: there is no such pair.
    pub to: Option<Decision>,
}

/// One change of where one or more pairs may be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendChange {
    /// How many.
    pub count: u64,
    /// Which ones.
    pub pairs: Vec<Block>,
    /// Back ends that are eligible only after.
    pub added: Names,
    /// Back ends that are eligible only before.
    pub removed: Names,
    /// Back ends that are eligible before and after, in another pool.
    pub moved: Names,
    /// The pool that takes new flows, if it is another one.
    pub primary: Option<FromTo<Option<String>>>,
    /// The pools that take them when those before them have failed, in order, if they are others.
    pub failover: Option<FromTo<Vec<String>>>,
}

/// Before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FromTo<T> {
    /// Before.
    pub from: T,
    /// After.
    pub to: T,
}

/// Compares two policies.
#[must_use]
pub fn diff(from: &ResolvedPolicy, to: &ResolvedPolicy) -> Diff {
    let mut room = Room::new();
    let objects = objects::compare(from, to, &mut room);
    let pairs = pairs::compare(from, to, &mut room);
    Diff {
        from: PolicyId::of(from),
        to: PolicyId::of(to),
        objects,
        decisions: pairs.decisions,
        backends: pairs.backends,
        pairs: pairs.counts,
        truncated: room.truncated,
    }
}

// === impl Diff ===

impl Diff {
    /// Whether the two policies mean the same. They have the same digest then.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.decisions.is_empty() && self.backends.is_empty()
    }
}

// === impl PolicyId ===

impl PolicyId {
    fn of(policy: &ResolvedPolicy) -> Self {
        Self {
            name: policy.name.clone(),
            digest: policy.digest().to_string(),
        }
    }
}

// === impl ObjectKind ===

impl ObjectKind {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Class => "class",
            Self::Tenant => "tenant",
            Self::Service => "service",
            Self::Pool => "pool",
            Self::Backend => "back end",
            Self::Rule => "rule",
            Self::Constraint => "constraint",
        }
    }
}

// === impl Decision ===

impl fmt::Display for Decision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)?;
        if let Some(rule) = &self.rule {
            write!(formatter, " by {rule}")?;
        }
        match (&self.shadow_rule, &self.shadow_reason) {
            (Some(rule), Some(reason)) => write!(formatter, " (shadow {rule}: {reason})"),
            _ => Ok(()),
        }
    }
}

/// How much more may be written down.
struct Room {
    names: usize,
    truncated: bool,
}

// === impl Room ===

impl Room {
    const fn new() -> Self {
        Self {
            names: MAX_NAMES,
            truncated: false,
        }
    }

    /// As many of the names as there is room for.
    fn names<'a, N: ExactSizeIterator<Item = &'a str>>(&mut self, names: N) -> Names {
        let count = names.len();
        let taken = count.min(self.names);
        self.names -= taken;
        self.truncated |= taken < count;
        Names {
            count: count as u64,
            names: names.take(taken).map(str::to_owned).collect(),
        }
    }

    /// The first [`MAX_ROWS`] of the rows.
    fn rows<T>(&mut self, mut rows: Vec<T>) -> Vec<T> {
        self.truncated |= rows.len() > MAX_ROWS;
        rows.truncate(MAX_ROWS);
        rows
    }
}

/// Two lists sorted by name, joined: each name with its index in the first and in the second.
fn join<'a, T>(
    from: &'a [T],
    to: &'a [T],
    name: impl Fn(&'a T) -> &'a str,
) -> Vec<(&'a str, Option<usize>, Option<usize>)> {
    let mut joined = Vec::with_capacity(from.len().max(to.len()));
    let (mut old, mut new) = (0, 0);
    loop {
        let order = match (from.get(old), to.get(new)) {
            (None, None) => return joined,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(one), Some(other)) => name(one).cmp(name(other)),
        };
        match order {
            std::cmp::Ordering::Less => {
                joined.push((name(&from[old]), Some(old), None));
                old += 1;
            }
            std::cmp::Ordering::Greater => {
                joined.push((name(&to[new]), None, Some(new)));
                new += 1;
            }
            std::cmp::Ordering::Equal => {
                joined.push((name(&from[old]), Some(old), Some(new)));
                (old, new) = (old + 1, new + 1);
            }
        }
    }
}

fn reason_name(code: u32) -> String {
    Reason::from_code(code)
        .unwrap_or(Reason::Internal)
        .name()
        .to_owned()
}

#[cfg(test)]
mod tests;
