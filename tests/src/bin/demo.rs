//! Governed traffic end to end, in under a minute: see `enforcer_tests::demo`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use enforcer_tests::demo::{Options, run};

/// Shows three tenants' traffic to three GPU servers under a policy that the kernel enforces.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo", version)]
struct Arguments {
    /// Print one JSON summary on standard output, and everything else on standard error
    #[arg(long)]
    check: bool,
    /// Leave everything running afterwards, with commands to try, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Keep policy, agent configuration, audit log, metrics and summary.json in this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { check, keep, out } = Arguments::parse();
    match run(&Options { check, keep, out }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: the summary cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
