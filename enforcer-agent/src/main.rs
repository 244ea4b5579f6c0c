//! The control agent and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    enforcer_agent::cli::main(std::env::args_os())
}
