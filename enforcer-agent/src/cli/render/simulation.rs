//! `policy simulate`: what would change.

use std::fmt::Write as _;

use super::{Render, clean, counted, or_absent, short_digest, table, time};
use crate::pure::simulate::report::{ChangeRow, Finding, PolicyRef, Report, Totals, TrafficKind};

impl Render for Report {
    fn render(&self) -> String {
        let (what, judged_as) = match self.traffic.kind {
            TrafficKind::Capture => ("packet", ""),
            TrafficKind::AuditLog => ("record", ", each decision judged as a new connection"),
        };
        let mut text = format!(
            "before  {}\nafter   {}\n\n{} read",
            policy(&self.before),
            policy(&self.after),
            counted(usize::try_from(self.totals.read).unwrap_or(usize::MAX), what)
        );
        if let (Some(first), Some(last)) = (self.traffic.first, self.traffic.last) {
            let _infallible = write!(text, ", {} to {}{judged_as}", time(first), time(last));
        }
        text.push('\n');
        if let Some(reason) = &self.traffic.ended {
            let _infallible = writeln!(text, "the traffic ends early: {}", clean(reason));
        }
        for note in &self.traffic.notes {
            let _infallible = writeln!(text, "note: {}", clean(note));
        }
        text.push('\n');
        text += &totals(&self.totals);
        text += &changes(self);
        text += &backends(self);
        text
    }
}

fn policy(policy: &PolicyRef) -> String {
    format!("{}, digest {}", clean(&policy.name), short_digest(&policy.digest))
}

/// What is zero is left out, but for the three that make up most reports.
fn totals(totals: &Totals) -> String {
    let Totals {
        read: _,
        unchanged,
        changed,
        same_verdict_otherwise,
        unknown,
        without_connection,
        cut_short,
        skipped,
        only_counted,
        other_backend,
    } = totals;
    let always = [
        (*changed, "get another verdict"),
        (
            *same_verdict_otherwise,
            "get the same verdict for another tenant, service, reason or rule",
        ),
        (*unchanged, "stay as they are"),
    ];
    let seldom = [
        (
            *unknown,
            "are admitted by the rules; what limits do is not known from a log",
        ),
        (
            *without_connection,
            "answer a connection that one of the policies does not have",
        ),
        (*cut_short, "were not captured far enough to be judged"),
        (*skipped, "are none that can be judged"),
        (*only_counted, "further decisions are in the log as counts only"),
        (*other_backend, "new connections go to another back end"),
    ];
    let rows = always
        .into_iter()
        .chain(seldom.into_iter().filter(|(count, _)| *count > 0));
    rows.fold(String::new(), |mut text, (count, what)| {
        let _infallible = writeln!(text, "{count:>10}  {what}");
        text
    })
}

fn changes(report: &Report) -> String {
    if report.changes.is_empty() && report.omitted.rows == 0 {
        return String::new();
    }
    let titles = [
        "TENANT",
        "SERVICE",
        "VERDICT",
        "REASON",
        "RULE",
        "#PACKETS",
        "#CONNECTIONS",
    ];
    let mut text = format!("\n{}", table(&titles, report.changes.iter().map(change_row)));
    if report.changes.iter().any(|row| row.limits_unknown) {
        text += "* limits aside: what they would do is not known from a log\n";
    }
    if report.omitted.rows > 0 {
        let (rows, packets) = (report.omitted.rows, report.omitted.packets);
        let _infallible = writeln!(text, "{rows} more rows with {packets} packets: raise --limit");
    }
    text
}

fn change_row(row: &ChangeRow) -> Vec<String> {
    let ChangeRow {
        before,
        after,
        packets,
        connections,
        limits_unknown,
    } = row;
    let mark = if *limits_unknown { "*" } else { "" };
    vec![
        from_to(before, after, |finding| or_absent(finding.tenant.as_ref())),
        from_to(before, after, |finding| or_absent(finding.service.as_ref())),
        from_to(before, after, |finding| finding.verdict.clone()) + mark,
        from_to(before, after, |finding| finding.reason.clone()),
        from_to(before, after, |finding| or_absent(finding.rule.as_ref())),
        packets.to_string(),
        connections.to_string(),
    ]
}

/// One text where both say the same.
fn from_to(before: &Finding, after: &Finding, of: impl Fn(&Finding) -> String) -> String {
    let (before, after) = (of(before), of(after));
    if before == after {
        before
    } else {
        format!("{before} -> {after}")
    }
}

fn backends(report: &Report) -> String {
    if report.backends.is_empty() {
        return String::new();
    }
    let rows = report
        .backends
        .iter()
        .map(|row| vec![row.name.clone(), row.before.to_string(), row.after.to_string()]);
    format!("\n{}", table(&["NEW CONNECTIONS", "#BEFORE", "#AFTER"], rows))
}
