//! `cargo xtask lint`: formatting, clippy with every warning an error, and the house rules.

use std::process::Command;

use crate::{
    error::{Error, Result},
    exec::{self, cargo},
    setup, tidy,
};

const KERNEL_CRATE: &str = "enforcer-ebpf";

/// Runs every check, also after one has failed: whoever mends one wants to see them all.
pub(crate) fn run() -> Result<()> {
    let formatting = exec::run(cargo().args(["fmt", "--all", "--check"]));
    let house_rules = tidy::run();
    // The agent's build script compiles the kernel programs, so clippy needs the toolchain as well.
    setup::run()?;
    let commands = [
        host_crates(),
        agent_with_kernel_log(),
        kernel_crate(""),
        kernel_crate("log"),
    ];
    let clippy = commands.map(|mut command| exec::run(&mut command));
    let mut outcome = house_rules;
    for failed in std::iter::once(formatting).chain(clippy).filter_map(Result::err) {
        eprintln!("lint: {failed}");
        outcome = Err(Error::Reported);
    }
    outcome
}

fn host_crates() -> Command {
    let mut command = cargo();
    command.args([
        "clippy",
        "--workspace",
        "--exclude",
        KERNEL_CRATE,
        "--all-targets",
    ]);
    command.args(["--", "-D", "warnings"]);
    command
}

/// A feature that no other command turns on would rot.
fn agent_with_kernel_log() -> Command {
    let mut command = cargo();
    command.args([
        "clippy",
        "--package",
        "enforcer-agent",
        "--features",
        "kernel-log",
        "--",
        "-D",
        "warnings",
    ]);
    command
}

/// The kernel crate is linted for the host, since the BPF toolchain has no clippy. It has no unwinding, which the
/// panic strategy says here, and it may use intrinsics that the stable compiler keeps behind `RUSTC_BOOTSTRAP`. That
/// variable changes the fingerprints of dependencies, hence the target folder of its own.
fn kernel_crate(features: &str) -> Command {
    let mut command = cargo();
    command.args(["clippy", "--package", KERNEL_CRATE, "--features", features]);
    command.args(["--config", "profile.dev.panic=\"abort\""]);
    command
        .arg("--target-dir")
        .arg(exec::target_dir().join("kernel-lint"));
    command.args(["--", "-D", "warnings"]);
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}
