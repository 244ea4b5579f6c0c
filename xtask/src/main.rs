//! Everything that is done to this workspace: set-up, builds, lints, tests, the demo. No domain logic lives here.
//!
//! This is the only crate that runs other programs by name; each task prints the command that it runs, so that it can
//! be repeated by hand.
#![forbid(unsafe_code)]

mod bench;
mod compile;
mod demo;
mod error;
mod exec;
mod lint;
mod setup;
mod suite;
mod tidy;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::error::Error;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set up, build, check and test the workspace"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what is needed to build the kernel programs and to run them in tests
    Setup {
        /// Only say what is there and what would be done; exit code 1 if something is missing
        #[arg(long)]
        check: bool,
    },
    /// Build the agent with the kernel programs inside, and the test and demo programs
    Build {
        /// Build with optimisations
        #[arg(long)]
        release: bool,
    },
    /// rustfmt, clippy for host and kernel crates, and `tidy`
    Lint,
    /// Check the house rules that no compiler knows
    Tidy,
    /// Set up what is missing, build, and run every test; privileged ones need root
    Test {
        /// Run only tests whose names contain this
        filter: Option<String>,
        /// Build with optimisations
        #[arg(long)]
        release: bool,
    },
    /// Set up what is missing, build, and show governed traffic from end to end
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on to the demo: --check, --keep, --out DIR; `cargo xtask demo --help` lists them all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Set up what is missing, build for release, and measure what things cost
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the bench: --json, --quick, --case GLOB
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup { check: true } => setup::check(),
        Task::Setup { check: false } => setup::run(),
        Task::Build { release } => compile::run(release),
        Task::Lint => lint::run(),
        Task::Tidy => tidy::run(),
        Task::Test { filter, release } => suite::run(filter.as_deref(), release),
        Task::Demo { arguments } => demo::run(&arguments),
        Task::Bench { arguments } => bench::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Reported) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_and_the_bench_get_their_arguments_untouched() {
        for words in [
            ["--check", "--out", "x"].as_slice(),
            &["--help"],
            &["-h", "--keep"],
            &[],
        ] {
            for task in ["demo", "bench"] {
                let line = ["cargo xtask", task].into_iter().chain(words.iter().copied());
                match Arguments::try_parse_from(line).map(|arguments| arguments.task) {
                    Ok(Task::Demo { arguments }) if task == "demo" => assert_eq!(arguments, words),
                    Ok(Task::Bench { arguments }) if task == "bench" => assert_eq!(arguments, words),
                    _ => panic!("`{task} {words:?}` was taken for something else"),
                }
            }
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
