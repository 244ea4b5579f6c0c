//! What a packet gets: `policy explain` and `audit tail`.

use std::fmt::Write as _;

use super::lists::protocol;
use super::{Render, clean, or_absent};
use crate::api::reply::{Effect, ExplainStep, PolicyExplainReply, RuleRef};
use crate::pure::audit::{AuditRecord, Change, Entry};

impl Render for PolicyExplainReply {
    fn render(&self) -> String {
        let effect = match self.effect {
            Effect::Forwarded => "forwarded",
            Effect::Passed => "passed untouched",
            Effect::Refused => "refused",
        };
        let mut text = format!(
            "{} {} -> {}: {effect}, {}\n{}\n\n",
            protocol(self.protocol),
            self.from,
            self.to,
            clean(&self.reason),
            clean(&self.sentence)
        );
        let shadow = self
            .shadow
            .as_ref()
            .map(|shadow| format!("{} would have said {}", rule(&shadow.rule), shadow.reason));
        let generation = match self.generation {
            0 => "- (a policy that is not in force)".to_owned(),
            live => live.to_string(),
        };
        let facts = [
            ("tenant", or_absent(self.tenant.as_ref())),
            ("service", or_absent(self.service.as_ref())),
            ("rule", or_absent(self.rule.as_ref().map(rule))),
            ("back end", or_absent(self.backend.as_ref())),
            ("shadow", or_absent(shadow)),
            ("generation", generation),
        ];
        let at = self.at.map(|at| ("at", at.to_string()));
        for (name, value) in facts.into_iter().chain(at) {
            let _infallible = writeln!(text, "{name:<12}{}", clean(&value));
        }
        text.push('\n');
        text.push_str(&steps(&self.steps));
        text
    }
}

/// Numbered lines: numbers stand to the right, names in a column.
fn steps(steps: &[ExplainStep]) -> String {
    let digits = steps.len().to_string().len();
    let longest = steps.iter().map(|step| step.step.chars().count()).max();
    let width = longest.unwrap_or(0) + 2;
    let mut text = String::new();
    for (index, step) in steps.iter().enumerate() {
        let (number, name, finding) = (index + 1, clean(&step.step), clean(&step.finding));
        let _infallible = writeln!(text, "{number:>digits$}. {name:<width$}{finding}");
    }
    text
}

fn rule(rule: &RuleRef) -> String {
    match (rule.line, &rule.file) {
        (0, _) => rule.name.clone(),
        (line, None) => format!("{} (line {line})", rule.name),
        (line, Some(file)) => format!("{} (line {line} of {file})", rule.name),
    }
}

/// One record on one line: number, time, what, the 5-tuple, then the rest by name.
pub(super) fn record(record: &AuditRecord) -> String {
    let entry = &record.entry;
    let mut parts = vec![
        format!("{:>6}", record.sequence),
        entry.time.strftime("%H:%M:%S%.3f").to_string(),
        entry.kind.name().to_owned(),
    ];
    parts.extend(entry.reason.clone());
    if let Some(flow) = &entry.flow {
        let protocol = flow.protocol.map_or("", protocol);
        parts.push(
            format!("{protocol} {} -> {}", flow.from, flow.to)
                .trim_start()
                .to_owned(),
        );
    }
    parts.extend(named(entry));
    parts.extend(entry.change.as_ref().map(change));
    parts.extend(entry.actor.map(|actor| format!("by {actor}")));
    clean(&parts.join("  ")) + "\n"
}

fn named(entry: &Entry) -> impl Iterator<Item = String> {
    let shadow = entry
        .shadow
        .as_ref()
        .map(|shadow| format!("{}:{}", shadow.rule, shadow.reason));
    let texts = [
        ("tenant", entry.tenant.clone()),
        ("service", entry.service.clone()),
        ("rule", entry.rule.clone()),
        ("backend", entry.backend.clone()),
        ("count", entry.count.map(|count| count.to_string())),
        (
            "packets",
            entry
                .packets
                .filter(|packets| *packets > 1)
                .map(|packets| packets.to_string()),
        ),
        ("bytes", entry.bytes.map(|bytes| bytes.to_string())),
        ("shadow", shadow),
        ("generation", Some(entry.generation.to_string())),
    ];
    texts
        .into_iter()
        .filter_map(|(name, text)| Some(format!("{name}={}", text?)))
}

fn change(change: &Change) -> String {
    let Change {
        what,
        from,
        to,
        causes,
    } = change;
    let mut text = what.clone();
    match (from, to) {
        (Some(from), Some(to)) => text += &format!(" {from} -> {to}"),
        (None, Some(to)) => text += &format!(" -> {to}"),
        (Some(from), None) => text += &format!(" was {from}"),
        (None, None) => {}
    }
    if !causes.is_empty() {
        text += &format!(" ({})", causes.join("; "));
    }
    text
}
