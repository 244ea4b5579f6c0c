//! The lab's guard, and a few commands for people: see `enforcer_tests::lab`.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use enforcer_tests::lab::{self, Lab, LabError, RunName, topology};

/// Network namespaces that are removed whatever happens.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Remove what runs that were killed together with their guard left behind
    Sweep,
    /// Make a small lab and keep it until standard input ends, to try things by hand
    Hold,
    /// Remove a run when standard input ends: started by every lab
    #[command(hide = true)]
    Guard {
        /// Name of the run
        run: RunName,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Action::Sweep => sweep(),
        Action::Hold => hold(),
        Action::Guard { run } => lab::guard(&run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("namespace-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sweep() -> Result<(), LabError> {
    for run in lab::sweep()? {
        println!("removed {run}");
    }
    Ok(())
}

/// One client, one balancer, one back end that runs a process.
fn hold() -> Result<(), LabError> {
    let mut lab = Lab::new()?;
    let routed = topology::routed(&mut lab, &["acme"], &["gpu-1"])?;
    let mut sleeper = Command::new("sleep");
    sleeper.arg("3600");
    let process = routed.back_ends[0].host.spawn(sleeper)?;
    let guard = lab.guard_pid().unwrap_or_default();
    let mut stdout = std::io::stdout();
    // A reader that went away is noticed by the end of standard input.
    let _ = writeln!(
        stdout,
        "run {} guard {guard} process {}",
        lab.run(),
        process.pid()
    );
    let _ = stdout.flush();
    let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
    drop(process);
    lab.close()
}
