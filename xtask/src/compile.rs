//! `cargo xtask build`: the agent, which carries the kernel object inside it, and the programs that drive it.

use crate::{
    error::Result,
    exec::{self, cargo},
    setup,
};

/// The packages whose programs the demo and the end-to-end tests start.
const PACKAGES: [&str; 2] = ["enforcer-agent", "enforcer-tests"];

/// Sets up what is missing and builds everything that can be started.
pub(crate) fn run(release: bool) -> Result<()> {
    setup::run()?;
    programs(release)
}

/// Builds the agent and the test programs.
pub(crate) fn programs(release: bool) -> Result<()> {
    let mut command = cargo();
    command.arg("build").arg("--bins");
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    if release {
        command.arg("--release");
    }
    exec::run(&mut command)
}

/// The path of a program that `programs` built.
pub(crate) fn program_path(name: &str, release: bool) -> std::path::PathBuf {
    exec::target_dir()
        .join(if release { "release" } else { "debug" })
        .join(name)
}
