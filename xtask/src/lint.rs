//! `cargo xtask lint`: formatting, clippy with every warning an error, and the house rules.

use std::process::Command;

use crate::{
    error::Result,
    exec::{self, cargo},
    setup, tidy,
};

const KERNEL_CRATE: &str = "enforcer-ebpf";

/// Runs every check; stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    exec::run(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    // The agent's build script compiles the kernel programs, so clippy needs the toolchain as well.
    setup::run()?;
    exec::run(&mut host_crates())?;
    exec::run(&mut kernel_crate(""))?;
    exec::run(&mut kernel_crate("log"))
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
