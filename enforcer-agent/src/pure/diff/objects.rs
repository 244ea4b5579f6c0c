//! What is declared: added, removed, and which fields differ.
//!
//! Fields are compared as they are written to the digest, so that none can differ unnoticed: what changes the digest
//! makes a row here. A selection is compared by what it chooses of that which exists before and after, since all else is
//! listed as added or removed. The order of judgement of the rules counts as a field of the policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{FieldChange, Happened, ObjectChange, ObjectKind, Room, join};
use crate::pure::policy::ResolvedPolicy;
use crate::pure::policy::resolved::{Backend, Constraint, Pool, Rule, Service};
use crate::pure::policy::selection::Selection;

/// Fields whose order means something.
const ORDERED_FIELDS: [&str; 1] = ["pools"];

/// What differs in one field; equal ones of several things are one row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// Other values, as JSON.
    Value { field: String, from: String, to: String },
    Members {
        field: String,
        added: Vec<String>,
        removed: Vec<String>,
    },
}

/// Everything that differs in what is declared.
pub(super) fn compare(from: &ResolvedPolicy, to: &ResolvedPolicy, room: &mut Room) -> Vec<ObjectChange> {
    // Fields that are added to a policy have to be compared somewhere.
    let ResolvedPolicy {
        name: _,
        defaults: _,
        classes: _,
        tenants: _,
        services: _,
        pools: _,
        rules: _,
        protected_networks: _,
        constraints: _,
    } = from;
    let mut rows = Rows {
        room,
        rows: Vec::new(),
    };
    rows.policy(from, to);
    rows.things(from, to);
    rows.selectors(from, to);
    let Rows { room, rows } = rows;
    room.rows(rows)
}

/// The rows so far.
struct Rows<'a> {
    room: &'a mut Room,
    rows: Vec<ObjectChange>,
}

// === impl Rows ===

impl Rows<'_> {
    fn add(&mut self, kind: ObjectKind, happened: Happened, names: &[&str], differences: Vec<Difference>) {
        let which = self.room.names(names.iter().copied());
        let fields = differences
            .into_iter()
            .map(|difference| difference.into_change(self.room))
            .collect();
        self.rows.push(ObjectChange {
            kind,
            happened,
            which,
            fields,
        });
    }

    /// Compares all of a kind; both lists are sorted by name.
    fn kind<'a, T>(
        &mut self,
        kind: ObjectKind,
        from: &'a [T],
        to: &'a [T],
        name: impl Fn(&'a T) -> &'a str,
        differences: impl Fn(&'a T, &'a T) -> Vec<Difference>,
    ) {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        let mut changed: BTreeMap<Vec<Difference>, Vec<&str>> = BTreeMap::new();
        for (name, old, new) in join(from, to, name) {
            match (old, new) {
                (Some(old), Some(new)) => {
                    let differences = differences(&from[old], &to[new]);
                    if !differences.is_empty() {
                        changed.entry(differences).or_default().push(name);
                    }
                }
                (Some(_), None) => removed.push(name),
                _ => added.push(name),
            }
        }
        for (happened, names) in [(Happened::Removed, removed), (Happened::Added, added)] {
            if !names.is_empty() {
                self.add(kind, happened, &names, Vec::new());
            }
        }
        let mut changed: Vec<(Vec<Difference>, Vec<&str>)> = changed.into_iter().collect();
        changed.sort_by(|one, other| one.1.cmp(&other.1));
        for (differences, names) in changed {
            self.add(kind, Happened::Changed, &names, differences);
        }
    }

    /// Compares what may send, be reached and be sent to.
    fn things(&mut self, from: &ResolvedPolicy, to: &ResolvedPolicy) {
        let pair = (&from.classes, &to.classes);
        self.kind(
            ObjectKind::Class,
            pair.0,
            pair.1,
            |class| &class.name,
            |old, new| fields(&object(old, &["name"]), &object(new, &["name"])),
        );
        let pair = (&from.tenants, &to.tenants);
        self.kind(
            ObjectKind::Tenant,
            pair.0,
            pair.1,
            |tenant| &tenant.name,
            |old, new| {
                if old == new {
                    return Vec::new();
                }
                fields(&object(old, &["name"]), &object(new, &["name"]))
            },
        );
        let pair = (&from.services, &to.services);
        self.kind(
            ObjectKind::Service,
            pair.0,
            pair.1,
            |service| &service.name,
            |old, new| fields(&service_object(from, old), &service_object(to, new)),
        );
        let pair = (&from.pools, &to.pools);
        self.kind(
            ObjectKind::Pool,
            pair.0,
            pair.1,
            |pool| &pool.name,
            |old, new| {
                let without = ["name", "backends"];
                fields(&object(old, &without), &object(new, &without))
            },
        );
        let pair = (backends(from), backends(to));
        self.kind(
            ObjectKind::Backend,
            &pair.0,
            &pair.1,
            |(_, backend)| &backend.name,
            |old, new| {
                if old == new {
                    return Vec::new();
                }
                fields(&backend_object(old), &backend_object(new))
            },
        );
    }

    /// Compares what chooses tenants and services.
    fn selectors(&mut self, from: &ResolvedPolicy, to: &ResolvedPolicy) {
        let shared = Shared::of(from, to);
        let pair = (by_name(&from.rules), by_name(&to.rules));
        self.kind(
            ObjectKind::Rule,
            &pair.0,
            &pair.1,
            |rule| &rule.name,
            |old, new| {
                let mut differences = fields(&rule_object(old), &rule_object(new));
                shared.selections(
                    (&old.tenants, &old.services),
                    (&new.tenants, &new.services),
                    &mut differences,
                );
                differences
            },
        );
        let pair = (&from.constraints, &to.constraints);
        self.kind(
            ObjectKind::Constraint,
            pair.0,
            pair.1,
            |each| &each.name,
            |old, new| {
                let mut differences = fields(&constraint_object(old), &constraint_object(new));
                shared.selections(
                    (&old.tenants, &old.services),
                    (&new.tenants, &new.services),
                    &mut differences,
                );
                differences
            },
        );
    }

    /// Compares what belongs to the policy as a whole.
    fn policy(&mut self, from: &ResolvedPolicy, to: &ResolvedPolicy) {
        let whole = |policy: &ResolvedPolicy| {
            let networks = policy
                .protected_networks
                .iter()
                .map(|net| Value::from(net.to_string()));
            Value::Object(Map::from_iter([
                ("metadata.name".to_owned(), Value::from(policy.name.clone())),
                ("defaults".to_owned(), object(&policy.defaults, &[])),
                ("protectedNetworks".to_owned(), networks.collect()),
            ]))
        };
        let mut differences = fields(&whole(from), &whole(to));
        differences.extend(order_of_rules(&from.rules, &to.rules));
        if !differences.is_empty() {
            self.add(ObjectKind::Policy, Happened::Changed, &[&to.name], differences);
        }
    }
}

// === impl Difference ===

impl Difference {
    fn into_change(self, room: &mut Room) -> FieldChange {
        let value = |json: &str| serde_json::from_str(json).unwrap_or(Value::Null);
        match self {
            Self::Value { field, from, to } => FieldChange::Value {
                field,
                from: value(&from),
                to: value(&to),
            },
            Self::Members {
                field,
                added,
                removed,
            } => FieldChange::Members {
                field,
                added: room.names(added.iter().map(String::as_str)),
                removed: room.names(removed.iter().map(String::as_str)),
            },
        }
    }
}

/// Which index, before, is which one after.
struct Shared<'a> {
    tenants: Correspondence<'a>,
    services: Correspondence<'a>,
}

struct Correspondence<'a> {
    /// By index before: name, and the index after.
    old: Vec<Option<usize>>,
    /// By index after: whether it is there before.
    new: Vec<bool>,
    names: Vec<&'a str>,
}

// === impl Shared ===

impl<'a> Shared<'a> {
    fn of(from: &'a ResolvedPolicy, to: &'a ResolvedPolicy) -> Self {
        Self {
            tenants: Correspondence::of(&from.tenants, &to.tenants, |tenant| &tenant.name),
            services: Correspondence::of(&from.services, &to.services, |service| &service.name),
        }
    }

    /// What is chosen: tenants and services before, tenants and services after.
    fn selections(
        &self,
        old: (&Selection, &Selection),
        new: (&Selection, &Selection),
        differences: &mut Vec<Difference>,
    ) {
        differences.extend(self.tenants.members("tenants", old.0, new.0));
        differences.extend(self.services.members("services", old.1, new.1));
    }
}

// === impl Correspondence ===

impl<'a> Correspondence<'a> {
    fn of<T>(from: &'a [T], to: &'a [T], name: impl Fn(&'a T) -> &'a str) -> Self {
        let mut found = Self {
            old: vec![None; from.len()],
            new: vec![false; to.len()],
            names: to.iter().map(&name).collect(),
        };
        for (_, old, new) in join(from, to, name) {
            if let (Some(old), Some(new)) = (old, new) {
                found.old[old] = Some(new);
                found.new[new] = true;
            }
        }
        found
    }

    /// How two selections differ among what is there before and after.
    fn members(&self, field: &str, old: &Selection, new: &Selection) -> Option<Difference> {
        // Names are sorted on both sides, so that indices of the shared ones ascend together.
        let mut before = old.iter().filter_map(|index| self.old[index]).peekable();
        let mut after = new.iter().filter(|index| self.new[*index]).peekable();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        let name = |index: usize| self.names[index].to_owned();
        loop {
            match (before.peek().copied(), after.peek().copied()) {
                (None, None) => break,
                (Some(one), Some(other)) if one == other => {
                    before.next();
                    after.next();
                }
                (Some(one), other) if other.is_none_or(|other| one < other) => {
                    removed.push(name(one));
                    before.next();
                }
                (_, Some(other)) => {
                    added.push(name(other));
                    after.next();
                }
                (Some(_), None) => break,
            }
        }
        let differs = !added.is_empty() || !removed.is_empty();
        differs.then(|| Difference::Members {
            field: field.to_owned(),
            added,
            removed,
        })
    }
}

fn backends(policy: &ResolvedPolicy) -> Vec<(&str, &Backend)> {
    let of = |pool: &'_ Pool| pool.backends.len();
    let mut all = Vec::with_capacity(policy.pools.iter().map(of).sum());
    for pool in &policy.pools {
        all.extend(pool.backends.iter().map(|backend| (pool.name.as_str(), backend)));
    }
    all.sort_unstable_by(|one, other| one.1.name.cmp(&other.1.name));
    all
}

fn by_name(rules: &[Arc<Rule>]) -> Vec<&Arc<Rule>> {
    let mut sorted: Vec<&Arc<Rule>> = rules.iter().collect();
    sorted.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    sorted
}

/// The rules that are there before and after, if they are judged in another order; without those at both ends that are
/// in the same place.
fn order_of_rules(from: &[Arc<Rule>], to: &[Arc<Rule>]) -> Option<Difference> {
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (
        from.iter().map(|rule| rule.name.as_str()).collect(),
        to.iter().map(|rule| rule.name.as_str()).collect(),
    );
    let order = |rules: &'_ [Arc<Rule>], others: &BTreeSet<&str>| -> Vec<String> {
        rules
            .iter()
            .map(|rule| &rule.name)
            .filter(|name| others.contains(name.as_str()))
            .cloned()
            .collect()
    };
    let (before, after) = (order(from, &new), order(to, &old));
    let differs = |(one, other): (&String, &String)| one != other;
    let first = before.iter().zip(&after).position(differs)?;
    let last = before.len() - before.iter().rev().zip(after.iter().rev()).position(differs)?;
    Some(Difference::Value {
        field: "order of rules".to_owned(),
        from: Value::from(before[first..last].to_vec()).to_string(),
        to: Value::from(after[first..last].to_vec()).to_string(),
    })
}

/// A thing as the digest sees it, without some of its fields.
fn object(thing: &impl Serialize, without: &[&str]) -> Value {
    let mut value = serde_json::to_value(thing).unwrap_or(Value::Null);
    if let Value::Object(fields) = &mut value {
        fields.retain(|name, _| !without.contains(&name.as_str()));
    }
    value
}

fn service_object(policy: &ResolvedPolicy, service: &Service) -> Value {
    let mut value = object(service, &["name"]);
    value["pools"] = service
        .pools
        .iter()
        .map(|pool| Value::from(policy.pools[*pool].name.clone()))
        .collect();
    value
}

fn backend_object((pool, backend): &(&str, &Backend)) -> Value {
    let mut value = object(backend, &["name"]);
    value["pool"] = Value::from(*pool);
    value
}

/// Without what it chooses, which may be a lot and is compared by name.
fn rule_object(rule: &Rule) -> Value {
    let head = Rule {
        name: String::new(),
        tenants: Selection::default(),
        services: Selection::default(),
        schedule: rule.schedule.clone(),
        limits: rule.limits.clone(),
        file: None,
        ..*rule
    };
    object(&head, &["name", "tenants", "services"])
}

fn constraint_object(constraint: &Constraint) -> Value {
    let head = Constraint {
        name: String::new(),
        tenants: Selection::default(),
        services: Selection::default(),
        require: constraint.require.clone(),
    };
    object(&head, &["name", "tenants", "services"])
}

/// What differs between two things.
fn fields(old: &Value, new: &Value) -> Vec<Difference> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten("", old, &mut before);
    flatten("", new, &mut after);
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let null = Value::Null;
    let mut differences = Vec::new();
    for path in paths {
        let (from, to) = (
            before.get(path).unwrap_or(&null),
            after.get(path).unwrap_or(&null),
        );
        if from == to {
            continue;
        }
        differences.push(match (from, to) {
            (Value::Array(from), Value::Array(to)) if !ORDERED_FIELDS.contains(&path.as_str()) => {
                let texts = |values: &[Value]| values.iter().map(plain).collect::<BTreeSet<String>>();
                let (from, to) = (texts(from), texts(to));
                Difference::Members {
                    field: path.clone(),
                    added: to.difference(&from).cloned().collect(),
                    removed: from.difference(&to).cloned().collect(),
                }
            }
            _ => Difference::Value {
                field: path.clone(),
                from: from.to_string(),
                to: to.to_string(),
            },
        });
    }
    differences
}

/// The leaves of a value by path. Lists are leaves; durations get their units.
fn flatten(path: &str, value: &Value, leaves: &mut BTreeMap<String, Value>) {
    let Value::Object(fields) = value else {
        let (path, value) = match (path.strip_suffix("Ns"), value.as_u64()) {
            (Some(path), Some(ns)) => {
                let duration = humantime::format_duration(std::time::Duration::from_nanos(ns));
                (path, Value::from(duration.to_string()))
            }
            _ => (path, value.clone()),
        };
        leaves.insert(path.to_owned(), value);
        return;
    };
    for (name, value) in fields {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        flatten(&path, value, leaves);
    }
}

/// A value without the quotes of JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
