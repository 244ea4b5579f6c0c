//! The command line: text to command, command to call, answer to text.
//!
//! It owns what people type and see, and the exit codes. It never touches the kernel, but for `run`, which is the
//! daemon, `detach` where no daemon answers, and `doctor`, which only looks.

mod arguments;
mod capture;
mod commands;
mod decapsulate;
mod doctor;
mod error;
mod output;
mod policy;
pub mod render;
mod run;
mod simulation;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use arguments::CommandLine;
use error::CliError;

/// Parses the arguments, does what they say, and returns the exit code: 0 done, 1 refused or failed, 2 wrong usage, 3
/// the daemon cannot be reached, 4 the check found problems.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command_line = match CommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(usage) => {
            // Help and version go to standard output, which may be closed; nothing can be done about that.
            let _closed = usage.print();
            return ExitCode::from(if usage.use_stderr() { error::USAGE } else { 0 });
        }
    };
    let format = command_line.output;
    match commands::execute(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error, format);
            ExitCode::from(error.exit_code())
        }
    }
}
