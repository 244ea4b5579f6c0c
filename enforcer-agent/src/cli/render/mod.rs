//! Replies as text for people: tables without lines, numbers with units, nothing that needs a terminal.
//!
//! Every text from outside goes through [`clean`]: a name or an error message must not move the cursor.

mod judgement;
mod lists;
pub mod policy;
mod simulation;
mod status;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;

use crate::api::reply::{
    CaptureEndReply, ChangeReply, DetachReply, MapsDumpReply, PolicyShowReply, PolicyStatus,
};
use crate::pure::audit::AuditRecord;
use crate::pure::doctor::{Check, State};
use crate::pure::policy::ResolvedPolicy;

/// Something that can be shown to people.
pub trait Render {
    /// The text, ending with a line break.
    fn render(&self) -> String;
}

/// What stands where nothing is known or nothing applies.
const ABSENT: &str = "-";
/// Digits of a digest that are shown; all of them are in the JSON.
const DIGEST_DIGITS: usize = 12;

/// The text without control characters and without those that change the direction of writing.
#[must_use]
pub fn clean(text: &str) -> String {
    let harmful = |letter: char| {
        letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|letter| if harmful(letter) { '\u{fffd}' } else { letter })
        .collect()
}

/// A table: column titles, of which those with a `#` in front are for numbers, then rows.
fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(titles.iter().map(|title| title.trim_start_matches('#')));
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for (index, title) in titles.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if title.starts_with('#') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes with a binary unit: `512 B`, `1.5 KiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let unit = (count.ilog2() / 10) as usize;
    // Tenths of the unit, cut off: never more than there are.
    let tenths = (u128::from(count) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit - 1])
}

/// Milliseconds in the two largest units that matter: `250ms`, `12s`, `3m 5s`, `2h 10m`, `4d 1h`.
fn milliseconds(count: u64) -> String {
    let seconds = count / 1000;
    match seconds {
        0 => format!("{count}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn or_absent(text: Option<impl ToString>) -> String {
    text.map_or_else(|| ABSENT.to_owned(), |text| text.to_string())
}

fn short_digest(digest: &str) -> String {
    clean(&digest.chars().take(DIGEST_DIGITS).collect::<String>())
}

/// What became of a tenant or back end; `done` is the participle, such as `drained`.
#[must_use]
pub fn change(reply: &ChangeReply, done: &str) -> String {
    let name = clean(&reply.name);
    if reply.changed {
        format!("{name} {done}, generation {}\n", reply.generation)
    } else {
        format!("{name} was {done} already\n")
    }
}

/// What `policy check` says of a policy that can be used.
#[must_use]
pub fn checked(policy: &ResolvedPolicy) -> String {
    let backends: usize = policy.pools.iter().map(|pool| pool.backends.len()).sum();
    format!(
        "policy {} is valid: {}, {}, {} in {}, {}\ndigest {}\n",
        policy.name,
        counted(policy.tenants.len(), "tenant"),
        counted(policy.services.len(), "service"),
        counted(backends, "back end"),
        counted(policy.pools.len(), "pool"),
        counted(policy.rules.len(), "rule"),
        policy.digest(),
    )
}

/// What `doctor` found.
#[must_use]
pub fn checks(checks: &[Check]) -> String {
    let state = |state| match state {
        State::Ok => "ok",
        State::Warning => "warning",
        State::Problem => "PROBLEM",
    };
    let rows = checks.iter().map(|check| {
        vec![
            state(check.state).to_owned(),
            check.name.clone(),
            check.finding.clone(),
        ]
    });
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    format!(
        "{}\n{}, {}\n",
        table(&["STATE", "WHAT", "FINDING"], rows),
        counted(count(State::Problem), "problem"),
        counted(count(State::Warning), "warning")
    )
}

fn counted(number: usize, name: &str) -> String {
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}

/// One line of `audit tail`.
#[must_use]
pub fn record(record: &AuditRecord) -> String {
    judgement::record(record)
}

fn policy_line(policy: &PolicyStatus) -> String {
    let actor = policy.applied_by.map_or_else(
        || "the agent at its first start".to_owned(),
        |actor| actor.to_string(),
    );
    format!(
        "{}, digest {}, applied {} by {actor} from {}",
        clean(&policy.name),
        short_digest(&policy.digest),
        time(policy.applied_at),
        clean(&policy.file)
    )
}

impl Render for PolicyShowReply {
    /// The texts as they were applied, under comments that say what they are, so that the whole is a policy again.
    fn render(&self) -> String {
        let mut text = format!(
            "# generation {}: {}\n# digest {}\n",
            self.generation,
            policy_line(&self.policy),
            clean(&self.policy.digest)
        );
        for (index, source) in self.sources.iter().enumerate() {
            if self.sources.len() > 1 {
                let start = if index > 0 { "---\n" } else { "" };
                text += &format!("{start}# {}\n", clean(&source.file));
            }
            for line in source.text.lines() {
                text += &clean(&line.replace('\t', "    "));
                text.push('\n');
            }
        }
        text
    }
}

impl Render for MapsDumpReply {
    fn render(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            let width = entry
                .fields
                .iter()
                .map(|field| field.name.len())
                .max()
                .unwrap_or(0);
            text += &format!("{}\n", clean(&entry.key));
            for field in &entry.fields {
                let _infallible = writeln!(text, "  {:width$}  {}", clean(&field.name), clean(&field.value));
            }
        }
        match (self.entries.is_empty(), self.truncated) {
            (true, _) => text.push_str("every entry is zero\n"),
            (false, true) => text.push_str("there are more entries: raise --limit\n"),
            (false, false) => {}
        }
        text
    }
}

impl Render for CaptureEndReply {
    fn render(&self) -> String {
        let Self {
            packets,
            sampled_out,
            lost,
        } = self;
        let packets = match packets {
            1 => "1 packet".to_owned(),
            packets => format!("{packets} packets"),
        };
        format!("{packets} captured, {sampled_out} more left out by sampling, {lost} more lost\n")
    }
}

impl Render for DetachReply {
    fn render(&self) -> String {
        if self.interfaces.is_empty() && self.pins.is_empty() {
            return "nothing was attached\n".to_owned();
        }
        let mut text = format!("no longer governed: {}\n", clean(&self.interfaces.join(", ")));
        for pin in &self.pins {
            text += &format!("removed {}\n", clean(pin));
        }
        text
    }
}
