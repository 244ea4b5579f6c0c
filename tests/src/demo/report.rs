//! What the demo says: lines and tables for people as it goes, and one summary for programs.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "1;31";

/// Where lines for people go.
#[derive(Debug)]
pub(super) struct Console {
    to_stderr: bool,
    colours: bool,
}

/// Everything that was found out, for `summary.json`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    /// Whether every step ran and every check held.
    pub(super) passed: bool,
    /// The run's name.
    pub(super) run: String,
    /// How long it took.
    pub(super) seconds: f64,
    /// Checks that held.
    pub(super) checks_passed: usize,
    /// Checks that did not hold.
    pub(super) checks_failed: usize,
    /// Why it ended early, if it did.
    pub(super) error: Option<String>,
    /// Each step.
    pub(super) steps: Vec<StepReport>,
}

/// What one step found out.
#[derive(Debug, Serialize)]
pub(super) struct StepReport {
    number: usize,
    title: String,
    seconds: f64,
    /// What was measured, by name.
    figures: Map<String, Value>,
    checks: Vec<Check>,
}

/// One thing that had to be so.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    wanted: String,
    found: String,
    passed: bool,
}

/// A step under way.
#[derive(Debug)]
pub(super) struct Step<'console> {
    console: &'console Console,
    started: Instant,
    report: StepReport,
}

// === impl Console ===

impl Console {
    /// `to_stderr` leaves standard output to the summary.
    pub(super) fn new(to_stderr: bool) -> Self {
        let is_terminal = if to_stderr {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        Self {
            to_stderr,
            colours: is_terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    pub(super) fn line(&self, text: impl Display) {
        // A reader that went away is no reason to stop: the summary and the exit code still count.
        let _ = if self.to_stderr {
            writeln!(std::io::stderr().lock(), "{text}")
        } else {
            writeln!(std::io::stdout().lock(), "{text}")
        };
    }

    fn coloured(&self, code: &str, text: impl Display) -> String {
        if self.colours {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_string()
        }
    }

    pub(super) fn step(&self, number: usize, title: &str) -> Step<'_> {
        self.line(self.coloured(BOLD, format_args!("\n{number:>2}  {title}")));
        Step {
            console: self,
            started: Instant::now(),
            report: StepReport {
                number,
                title: title.into(),
                seconds: 0.0,
                figures: Map::new(),
                checks: Vec::new(),
            },
        }
    }

    pub(super) fn verdict(&self, summary: &Summary) {
        let Summary {
            passed,
            run: _,
            seconds,
            checks_passed,
            checks_failed,
            error,
            steps: _,
        } = summary;
        if let Some(error) = error {
            self.line(self.coloured(RED, format_args!("\nThe demo ended early: {error}")));
        }
        let (colour, word) = if *passed {
            (GREEN, "passed")
        } else {
            (RED, "FAILED")
        };
        let text = format!("\n{word}: {checks_passed} checks held, {checks_failed} did not, {seconds:.1} s");
        self.line(self.coloured(colour, text));
    }
}

// === impl Summary ===

impl Summary {
    pub(super) fn add(&mut self, step: StepReport) {
        let failed = step.checks.iter().filter(|check| !check.passed).count();
        self.checks_failed += failed;
        self.checks_passed += step.checks.len() - failed;
        self.steps.push(step);
    }
}

// === impl Step ===

impl Step<'_> {
    /// A line for people.
    pub(super) fn say(&self, text: impl Display) {
        self.console.line(format_args!("    {text}"));
    }

    /// A command as one would type it.
    pub(super) fn command(&self, text: impl Display) {
        self.say(self.console.coloured(DIM, format_args!("$ {text}")));
    }

    /// A short table; numbers stand to the right.
    pub(super) fn table<const COLUMNS: usize>(&self, head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.fold(head[column].chars().count(), usize::max)
        });
        let is_number = |cell: &String| cell.starts_with(|first: char| first.is_ascii_digit());
        let numeric: [bool; COLUMNS] =
            std::array::from_fn(|column| rows.iter().all(|row| is_number(&row[column])));
        let line = |cells: [&str; COLUMNS]| {
            let mut text = String::new();
            for ((cell, width), numeric) in cells.iter().zip(widths).zip(numeric) {
                let padding = " ".repeat(width - cell.chars().count());
                let parts = if numeric {
                    [&padding, *cell]
                } else {
                    [*cell, &padding]
                };
                text.push_str(&format!("  {}{}", parts[0], parts[1]));
            }
            text.trim_end().to_owned()
        };
        self.say(self.console.coloured(DIM, line(head)));
        for row in rows {
            self.say(line(std::array::from_fn(|column| row[column].as_str())));
        }
    }

    /// Keeps a figure for the summary.
    pub(super) fn figure(&mut self, name: &str, value: impl Serialize) {
        // A figure that is no JSON, such as a NaN, is kept as null.
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.report.figures.insert(name.into(), value);
    }

    /// Something that has to be so.
    pub(super) fn check(&mut self, what: &str, passed: bool, wanted: impl Display, found: impl Display) {
        let check = Check {
            what: what.into(),
            wanted: wanted.to_string(),
            found: found.to_string(),
            passed,
        };
        let Check { wanted, found, .. } = &check;
        self.say(if passed {
            let mark = self.console.coloured(GREEN, "ok");
            format!("{mark}    {what}: {found}")
        } else {
            let mark = self.console.coloured(RED, "FAIL");
            format!("{mark}  {what}: {found}, where {wanted} was wanted")
        });
        self.report.checks.push(check);
    }

    /// A number that has to be exactly this.
    pub(super) fn equal<T: PartialEq + Display>(&mut self, what: &str, found: T, wanted: T) {
        self.check(what, found == wanted, wanted, found);
    }

    /// A number that has to lie in a range, its ends included.
    pub(super) fn within(&mut self, what: &str, found: f64, lowest: f64, highest: f64) {
        let passed = (lowest..=highest).contains(&found);
        self.check(
            what,
            passed,
            format_args!("{lowest:.2} to {highest:.2}"),
            format_args!("{found:.2}"),
        );
    }

    /// A count that has to be at least this.
    pub(super) fn at_least(&mut self, what: &str, found: u64, lowest: u64) {
        self.check(what, found >= lowest, format_args!("at least {lowest}"), found);
    }

    pub(super) fn end(mut self) -> StepReport {
        self.report.seconds = self.started.elapsed().as_secs_f64();
        self.report
    }
}
