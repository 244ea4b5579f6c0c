//! `cargo xtask demo`: set up, build, and become the demo program, so that a signal or a terminal reaches it directly.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use crate::{
    compile,
    error::{Error, Result},
    exec, setup,
};

/// The variable that tells the demo and the end-to-end tests which agent to start.
pub(crate) const AGENT_VARIABLE: &str = "ENFORCER_AGENT";

/// Builds for release and hands over to the demo. Returns only if that failed.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let wants_help = arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h");
    if !exec::is_root() && !wants_help {
        return Err(Error::DemoNeedsRoot);
    }
    setup::run()?;
    compile::programs(true)?;

    let mut command = exec::program(compile::program_path("demo", true));
    command
        .args(arguments)
        .env(AGENT_VARIABLE, compile::program_path("enforcer-agent", true));
    // `--out DIR` is relative to where the user stands.
    if let Ok(folder) = std::env::current_dir() {
        command.current_dir(folder);
    }
    let source = command.exec();
    Err(exec::cannot_run(&command, source))
}
