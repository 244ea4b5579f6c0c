//! What a policy compiles to, and what differs between two.

use serde_json::Value;

use super::Render;
use super::{ABSENT, bytes, clean, counted, or_absent, short_digest, table, time};
use crate::api::reply::{HistoryRow, PolicyApplyReply, PolicyHistoryReply, PolicyRollbackReply};
use crate::cli::policy::Sizes;
use crate::pure::diff::{
    BackendChange, Block, DecisionChange, Diff, Effect, FieldChange, FromTo, Happened, Names, ObjectChange,
    PolicyId,
};
use crate::pure::policy::diagnostic::render_all;

/// Rows of each table; JSON has more.
const MAX_ROWS: usize = 40;
/// Rows for one change, if it happens to several blocks of tenants and services.
const MAX_BLOCKS: usize = 4;
/// Names in a cell before they are counted only.
const MAX_NAMES: usize = 4;

/// What `policy compile` says.
pub(in crate::cli) fn sizes(sizes: &Sizes) -> String {
    let mut text = render_all(&sizes.diagnostics, false);
    let rows = sizes
        .tables
        .iter()
        .map(|(name, size)| vec![(*name).to_owned(), size.records.to_string(), bytes(size.bytes)]);
    text += &format!("policy {}\ndigest {}\n\n", clean(&sizes.name), sizes.digest);
    text += &table(&["TABLE", "#RECORDS", "#SIZE"], rows);
    text += &format!("\n{} in each of the two banks\n", bytes(sizes.bytes));
    text
}

/// What `policy diff` says.
#[must_use]
pub fn diff(diff: &Diff) -> String {
    let id = |policy: &PolicyId| format!("{}, digest {}", clean(&policy.name), short_digest(&policy.digest));
    let mut text = format!("from  {}\nto    {}\n", id(&diff.from), id(&diff.to));
    if diff.is_empty() {
        return text + "\nno differences: both mean the same\n";
    }
    let objects = diff.objects.iter().map(|change| vec![object(change)]);
    text += &section(&["WHAT", "NAME", "CHANGE"], objects);
    let decisions = diff.decisions.iter().map(decision);
    text += &section(
        &["EFFECT", "TENANTS", "SERVICES", "#PAIRS", "BEFORE", "AFTER"],
        decisions,
    );
    let backends = diff.backends.iter().map(backend);
    text += &section(
        &[
            "TENANTS",
            "SERVICES",
            "#PAIRS",
            "BACK ENDS",
            "PRIMARY POOL",
            "FAILOVER",
        ],
        backends,
    );
    if diff.truncated {
        text += "\nmore differs than is listed: the counts are of all of it\n";
    }
    let pairs = diff.pairs;
    text += &format!(
        "\npairs of tenant and service, with all back ends healthy: {} gained, {} lost, {} changed otherwise\n",
        pairs.gained, pairs.lost, pairs.changed
    );
    text
}

/// A table of as many changes as a screen takes, each with one row or more; nothing if there are none.
fn section(titles: &[&str], changes: impl ExactSizeIterator<Item = Vec<Vec<String>>>) -> String {
    let all = changes.len();
    if all == 0 {
        return String::new();
    }
    let rows: Vec<Vec<String>> = changes.take(MAX_ROWS).flatten().collect();
    let mut text = format!("\n{}", table(titles, rows));
    if all > MAX_ROWS {
        text += &format!(
            "and {}: `--output json` has them\n",
            counted(all - MAX_ROWS, "more change")
        );
    }
    text
}

fn object(change: &ObjectChange) -> Vec<String> {
    let what = match change.happened {
        Happened::Added => "added".to_owned(),
        Happened::Removed => "removed".to_owned(),
        Happened::Changed => change.fields.iter().map(field).collect::<Vec<_>>().join("; "),
    };
    vec![change.kind.name().to_owned(), names(&change.which), what]
}

fn field(change: &FieldChange) -> String {
    match change {
        FieldChange::Value { field, from, to } => format!("{field} {} -> {}", value(from), value(to)),
        FieldChange::Members {
            field,
            added,
            removed,
        } => {
            format!(
                "{field} {}",
                [signed("+", added), signed("-", removed)].concat().join(" ")
            )
        }
    }
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => ABSENT.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(members) => {
            let members: Vec<String> = members.iter().map(self::value).collect();
            format!("[{}]", elided(&members, members.len() as u64, ", "))
        }
        other => other.to_string(),
    }
}

/// Names with a sign in front of each, or with their count.
fn signed(sign: &str, names: &Names) -> Vec<String> {
    let shown = shown(names.names.len(), names.count);
    let mut signed: Vec<String> = names.names[..shown]
        .iter()
        .map(|name| format!("{sign}{name}"))
        .collect();
    let rest = names.count - shown as u64;
    if rest > 0 {
        signed.push(format!("{sign}{rest} more"));
    }
    signed
}

fn decision(change: &DecisionChange) -> Vec<Vec<String>> {
    let effect = match change.effect {
        Effect::Gains => "gains",
        Effect::Loses => "loses",
        Effect::Changes => "changes",
    };
    let (from, to) = (or_absent(change.from.as_ref()), or_absent(change.to.as_ref()));
    let rows = blocks(&change.pairs, change.count);
    rows.map(|[tenants, services, count]| {
        vec![
            effect.to_owned(),
            tenants,
            services,
            count,
            from.clone(),
            to.clone(),
        ]
    })
    .collect()
}

fn backend(change: &BackendChange) -> Vec<Vec<String>> {
    let BackendChange {
        count,
        pairs,
        added,
        removed,
        moved,
        primary,
        failover,
    } = change;
    let backends = [signed("+", added), signed("-", removed), signed("moved ", moved)].concat();
    let backends = if backends.is_empty() {
        ABSENT.to_owned()
    } else {
        backends.join(" ")
    };
    let primary = primary
        .as_ref()
        .map(|FromTo { from, to }| format!("{} -> {}", or_absent(from.as_ref()), or_absent(to.as_ref())));
    let list = |pools: &[String]| match pools {
        [] => ABSENT.to_owned(),
        pools => elided(pools, pools.len() as u64, ", "),
    };
    let failover = failover
        .as_ref()
        .map(|FromTo { from, to }| format!("{} -> {}", list(from), list(to)));
    let (primary, failover) = (
        primary.unwrap_or("same".to_owned()),
        failover.unwrap_or("same".to_owned()),
    );
    blocks(pairs, *count)
        .map(|[tenants, services, count]| {
            vec![
                tenants,
                services,
                count,
                backends.clone(),
                primary.clone(),
                failover.clone(),
            ]
        })
        .collect()
}

/// Tenants, services and number of pairs of the first blocks, and of the rest.
fn blocks(blocks: &[Block], count: u64) -> impl Iterator<Item = [String; 3]> {
    let pairs = |block: &Block| block.tenants.count * block.services.count;
    let shown = if blocks.len() > MAX_BLOCKS {
        MAX_BLOCKS - 1
    } else {
        blocks.len()
    };
    let rest = count - blocks[..shown].iter().map(pairs).sum::<u64>();
    let first = blocks[..shown].iter().map(move |block| {
        [
            names(&block.tenants),
            names(&block.services),
            pairs(block).to_string(),
        ]
    });
    let others = (rest > 0).then(|| ["others".to_owned(), "others".to_owned(), rest.to_string()]);
    first.chain(others)
}

fn names(names: &Names) -> String {
    elided(&names.names, names.count, ", ")
}

/// How many of some names are shown: all, or some and the number of the rest.
fn shown(known: usize, count: u64) -> usize {
    let all = usize::try_from(count).is_ok_and(|count| count <= MAX_NAMES && count <= known);
    if all { known } else { known.min(MAX_NAMES - 1) }
}

fn elided(names: &[String], count: u64, between: &str) -> String {
    let shown = shown(names.len(), count);
    let text = names[..shown].join(between);
    match count - shown as u64 {
        0 => text,
        rest if shown == 0 => rest.to_string(),
        rest => format!("{text} and {rest} more"),
    }
}

impl Render for PolicyApplyReply {
    fn render(&self) -> String {
        let mut text = render_all(&self.diagnostics, false);
        let (name, digest) = (clean(&self.name), short_digest(&self.digest));
        let (generation, map_writes) = (self.generation, self.map_writes);
        text += &match self.would_be {
            Some(would_be) => format!(
                "nothing was changed, generation {generation} is in force; {name} would be generation {would_be}, digest \
                 {digest}, {map_writes} map writes\n"
            ),
            None if self.changed => {
                format!(
                    "{name} is in force: generation {generation}, digest {digest}, {map_writes} map writes\n"
                )
            }
            None => format!(
                "{name} is in force, digest {digest}: nothing that is enforced differs, generation {generation} stays\n"
            ),
        };
        text
    }
}

impl Render for PolicyRollbackReply {
    fn render(&self) -> String {
        format!(
            "back to the policy of generation {}\n{}",
            self.restored,
            self.applied.render()
        )
    }
}

impl Render for PolicyHistoryReply {
    fn render(&self) -> String {
        let row = |row: &HistoryRow| {
            let HistoryRow {
                generation,
                in_force,
                policy,
                rollback_of,
            } = row;
            let actor = policy
                .applied_by
                .map_or_else(|| "the agent at its start".to_owned(), |actor| actor.to_string());
            let note = match (in_force, rollback_of) {
                (true, Some(of)) => format!("in force, back to {of}"),
                (true, None) => "in force".to_owned(),
                (false, Some(of)) => format!("back to {of}"),
                (false, None) => ABSENT.to_owned(),
            };
            vec![
                generation.to_string(),
                time(policy.applied_at),
                actor,
                policy.name.clone(),
                short_digest(&policy.digest),
                policy.file.clone(),
                note,
            ]
        };
        let titles = ["#GENERATION", "APPLIED", "BY", "POLICY", "DIGEST", "FILE", "NOTE"];
        table(&titles, self.entries.iter().map(row))
    }
}
