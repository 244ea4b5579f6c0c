//! What things cost: see `enforcer_tests::bench`.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;
use enforcer_tests::bench::{Machine, Measured, Options, Outcome, run};

/// Measures named cases over several runs each.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version)]
struct Arguments {
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Few runs of small loads: whether the cases work, not what they cost
    #[arg(long)]
    quick: bool,
    /// Only cases that this matches, as in `policy/*`
    #[arg(long, value_name = "GLOB", default_value = "*")]
    case: String,
}

fn main() -> ExitCode {
    let Arguments { json, quick, case } = Arguments::parse();
    let options = Options { json, quick, case };
    if head(&Machine::here(), json).is_err() {
        return ExitCode::FAILURE;
    }
    let mut broken = None;
    let outcome = run(&options, |outcome| {
        broken = broken.take().or(show(outcome, json).err());
    });
    match (outcome, broken) {
        (Ok(()), None) => ExitCode::SUCCESS,
        (Err(error), _) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
        // Whoever read the output has gone.
        (Ok(()), Some(_)) => ExitCode::FAILURE,
    }
}

/// Names the machine, and the columns of a table.
fn head(machine: &Machine, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(machine)?);
    }
    let Machine { cpu, cpus, kernel } = machine;
    writeln!(out, "{cpus} CPUs, {cpu}; Linux {kernel}")?;
    writeln!(
        out,
        "{:<36}{:>10}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "case", "unit", "median", "min", "max", "base", "net"
    )
}

fn show(outcome: &Outcome, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(outcome)?);
    }
    match outcome {
        Outcome::Measured(Measured {
            case,
            unit,
            median,
            min,
            max,
            base,
            net,
        }) => writeln!(
            out,
            "{case:<36}{unit:>10}{median:>11.2}{min:>11.2}{max:>11.2}{base:>11.2}{net:>11.2}"
        ),
        Outcome::Skipped {
            case,
            skipped_without,
        } => writeln!(out, "{case:<36}   skipped: {skipped_without} is not installed"),
        Outcome::Failed { case, failed } => writeln!(out, "{case:<36}   failed: {failed}"),
    }
}
