//! `cargo xtask bench`: set up, build for release, and become the bench program.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use crate::{compile, demo::AGENT_VARIABLE, error::Result, exec, setup};

/// Builds for release and hands over to the bench, which says what needs root. Returns only if that failed.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    setup::run()?;
    compile::programs(true)?;
    let mut command = exec::program(compile::program_path("bench", true));
    command
        .args(arguments)
        .env(AGENT_VARIABLE, compile::program_path("enforcer-agent", true));
    let source = command.exec();
    Err(exec::cannot_run(&command, source))
}
