//! From facts to steps: pure, so that every kind of machine can be tried in a unit test.

use std::{collections::BTreeSet, fmt};

use super::{
    facts::{Apt, Facts, Linker, ListsAge, Toolchain, ToolchainEntry},
    step::{BPFFS, DISTRIBUTION_PREFIX, LINKED_TOOLCHAIN, LINKER_LLVM, Step},
};

/// The oldest compiler that the workspace builds with (`rust-version` in Cargo.toml).
pub(super) const OLDEST_RUST: (u32, u32) = (1, 89);

/// Debian's compiler with the sources of `core`. It follows the browsers' needs, so it stays recent in old releases.
pub(super) const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Programs that tests and the demo run, and the packages that bring them.
pub(super) const RUN_TIME_TOOLS: [(&str, &str); 8] = [
    ("curl", "curl"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("kill", "procps"),
    ("nginx", "nginx-light"),
    ("tc", "iproute2"),
    ("wrk", "wrk"),
];

/// Those of the packages that start a service, and the service: tests want the program alone. (iperf3 has one too, and asks
/// first; nobody answers.)
const WITH_SERVICE: [(&str, &str); 1] = [("nginx-light", "nginx")];

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing is missing.
    Ready(Ready),
    /// Run these in order, then look again.
    Run(Vec<Step>),
    /// Set-up cannot go on by itself.
    Blocked(Blocked),
}

/// What was found, for the report.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// The toolchain that the kernel programs are built with.
    pub(super) toolchain: Toolchain,
    /// Its linker.
    pub(super) linker: Linker,
    /// What works less well than it could, one sentence each.
    pub(super) notes: Vec<String>,
}

impl fmt::Display for Ready {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "kernel programs are built with {} and {}",
            self.toolchain, self.linker
        )
    }
}

/// Why set-up cannot go on by itself. Each message names the commands to run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Blocked {
    /// The steps change the system, and this is not root.
    #[error("something is missing that only root can install. Run:\n{}", indented(.commands))]
    NeedsRoot { commands: Vec<String> },
    /// The host's cargo is not rustup's, or PATH is wrong.
    #[error(
        "`rustup` is not in PATH. Install it from https://rustup.rs, or put its folder (usually ~/.cargo/bin) first in PATH"
    )]
    NoRustup,
    /// Neither a nightly with sources nor a distribution that packages them.
    #[error(
        "no toolchain here can compile for BPF, and {reason}. Run:\n    \
         rustup toolchain install nightly --component rust-src\n    cargo install bpf-linker\n\
         (bpf-linker needs the headers and libraries of an LLVM at least as new as the nightly's: see its README)"
    )]
    NoWay { reason: String },
    /// A toolchain of that name is there, is not ours, and does not do.
    #[error(
        "the toolchain `{LINKED_TOOLCHAIN}` is linked to {path} and cannot compile for BPF: it needs Rust \
         {}.{} or later and the sources of `core`. Remove it, and run this again:\n    \
         rustup toolchain uninstall {LINKED_TOOLCHAIN}",
        OLDEST_RUST.0, OLDEST_RUST.1
    )]
    ForeignToolchain { path: String },
    /// `ENFORCER_BPF_TOOLCHAIN` names something that does not do.
    #[error(
        "ENFORCER_BPF_TOOLCHAIN names `{name}`, which is not there, is older than Rust {}.{}, or has no sources of \
         `core`. Unset it, or run:\n    rustup toolchain install {name} --component rust-src",
        OLDEST_RUST.0, OLDEST_RUST.1
    )]
    UnusableRequest { name: String },
    /// The chosen toolchain is the user's own, so its linker is theirs to install.
    #[error(
        "toolchain `{toolchain}` needs a bpf-linker that reads its bitcode (LLVM {llvm_major} or later). Run, with \
         the development files of that LLVM installed:\n    \
         cargo install bpf-linker --force --no-default-features --features llvm-{llvm_major}"
    )]
    LinkerMissing { toolchain: String, llvm_major: u32 },
    /// The compiler has moved to an LLVM that the pinned linker does not know.
    #[error(
        "the compiler in {DISTRIBUTION_PREFIX} uses LLVM {llvm_major}, and the bpf-linker that this workspace was \
         tried with knows {} to {}. Install one that fits, or use a nightly:\n    \
         cargo install bpf-linker --no-default-features --features llvm-{llvm_major}",
        LINKER_LLVM.start(), LINKER_LLVM.end()
    )]
    UnknownLlvm { llvm_major: u32 },
    /// A step ran, ended well, and its result is not to be seen.
    #[error(
        "a step has run and what it should have brought is still missing ({step}). `cargo xtask setup --check` says \
         what was found; if a program lies in a folder that is not in PATH, put it there"
    )]
    NoProgress { step: String },
}

fn indented(lines: &[String]) -> String {
    lines
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Decides what to do next.
pub(super) fn plan(facts: &Facts) -> Plan {
    if !facts.rustup_found {
        return Plan::Blocked(Blocked::NoRustup);
    }
    let mut steps = Vec::new();
    let mut packages = BTreeSet::new();
    if let Err(blocked) = build_steps(facts, &mut packages, &mut steps) {
        return Plan::Blocked(blocked);
    }
    if steps.contains(&Step::RefreshPackageLists) {
        // What apt offers is not known yet, so neither is what comes after.
        return run_or_ask_root(facts, steps);
    }
    let notes = run_time_steps(facts, &mut packages, &mut steps);
    // Whatever is to be linked or built next stands on the packages.
    let mut installs = install_steps(packages);
    if !installs.is_empty() && facts.lists == ListsAge::Unknown {
        installs.insert(0, Step::RefreshPackageLists);
    }
    steps.splice(0..0, installs);
    match (chosen_toolchain(facts), &facts.linker) {
        (Some(toolchain), Some(linker)) if steps.is_empty() => Plan::Ready(Ready {
            toolchain: toolchain.clone(),
            linker: linker.clone(),
            notes,
        }),
        _ => run_or_ask_root(facts, steps),
    }
}

/// Packages in one step, but for those that bring a service.
fn install_steps(mut packages: BTreeSet<String>) -> Vec<Step> {
    let mut steps: Vec<Step> = WITH_SERVICE
        .into_iter()
        .filter(|(package, _)| packages.remove(*package))
        .map(|(package, service)| Step::InstallWithoutService { package, service })
        .collect();
    if !packages.is_empty() {
        steps.insert(0, Step::InstallPackages(packages));
    }
    steps
}

fn run_or_ask_root(facts: &Facts, steps: Vec<Step>) -> Plan {
    if facts.is_root || !steps.iter().any(Step::needs_root) {
        return Plan::Run(steps);
    }
    let for_root = steps.iter().filter(|step| step.needs_root());
    let commands = for_root
        .map(|step| format!("sudo {}", step.command_line()))
        .collect();
    Plan::Blocked(Blocked::NeedsRoot { commands })
}

/// The toolchain that the agent's build script takes; the order is the same there.
fn chosen_toolchain(facts: &Facts) -> Option<&Toolchain> {
    if let Some(requested) = &facts.requested {
        return requested
            .toolchain
            .as_ref()
            .filter(|toolchain| toolchain.can_compile_core());
    }
    let linked = facts.linked.as_ref().and_then(|entry| entry.toolchain.as_ref());
    [linked, facts.nightly.as_ref()]
        .into_iter()
        .flatten()
        .find(|toolchain| toolchain.can_compile_core())
}

fn build_steps(facts: &Facts, packages: &mut BTreeSet<String>, steps: &mut Vec<Step>) -> Result<(), Blocked> {
    let Some(toolchain) = chosen_toolchain(facts) else {
        if let Some(ToolchainEntry { name, .. }) = &facts.requested {
            return Err(Blocked::UnusableRequest { name: name.clone() });
        }
        return compiler_steps(facts, packages, steps);
    };
    if facts
        .linker
        .as_ref()
        .is_some_and(|linker| linker.reads_bitcode_of(toolchain))
    {
        return Ok(());
    }
    let llvm_major = toolchain.llvm_major;
    let is_distributions = toolchain.sysroot == DISTRIBUTION_PREFIX;
    let Some(apt) = facts.apt.as_ref().filter(|_| is_distributions) else {
        // A nightly without a linker that fits it: the distribution's compiler with its own linker does as well.
        let is_nightly = facts.nightly.as_ref() == Some(toolchain) && facts.requested.is_none();
        if is_nightly && facts.apt.as_ref().is_some_and(Apt::offers_compiler) {
            return compiler_steps(facts, packages, steps);
        }
        return Err(Blocked::LinkerMissing {
            toolchain: toolchain.name.clone(),
            llvm_major,
        });
    };
    if !LINKER_LLVM.contains(&llvm_major) {
        return Err(Blocked::UnknownLlvm { llvm_major });
    }
    let libraries = [
        format!("llvm-{llvm_major}-dev"),
        format!("libpolly-{llvm_major}-dev"),
        "libzstd-dev".into(),
        "zlib1g-dev".into(),
    ];
    packages.extend(libraries.into_iter().filter(|name| !apt.installed.contains(name)));
    steps.push(Step::InstallLinker {
        llvm_major,
        replace: facts.linker.is_some() || facts.linker_is_broken,
    });
    Ok(())
}

/// Steps that end in a toolchain `bpf` made of the distribution's packages.
fn compiler_steps(
    facts: &Facts,
    packages: &mut BTreeSet<String>,
    steps: &mut Vec<Step>,
) -> Result<(), Blocked> {
    if let Some(entry) = &facts.linked
        && entry.path != DISTRIBUTION_PREFIX
    {
        return Err(Blocked::ForeignToolchain {
            path: entry.path.clone(),
        });
    }
    let Some(apt) = &facts.apt else {
        return Err(Blocked::NoWay {
            reason: "this is no Debian, so set-up cannot install one".into(),
        });
    };
    let missing: Vec<&str> = COMPILER_PACKAGES
        .into_iter()
        .filter(|name| !apt.installed.contains(*name))
        .collect();
    if missing.is_empty() && facts.linked.is_some() {
        let reason = "Debian's rustc-web is installed and linked, but too old or without sources".into();
        return Err(Blocked::NoWay { reason });
    }
    if !missing.is_empty() && !apt.offers_compiler() {
        if facts.lists == ListsAge::Unknown {
            steps.push(Step::RefreshPackageLists);
            return Ok(());
        }
        let reason = format!(
            "this machine's package sources offer no rustc-web of {}.{} or later (Debian has it in its security suite)",
            OLDEST_RUST.0, OLDEST_RUST.1
        );
        return Err(Blocked::NoWay { reason });
    }
    packages.extend(missing.into_iter().map(str::to_owned));
    if facts.linked.is_none() {
        steps.push(Step::LinkToolchain);
    }
    Ok(())
}

/// What only running needs. Without root these are notes, since building and the pure tests work.
fn run_time_steps(facts: &Facts, packages: &mut BTreeSet<String>, steps: &mut Vec<Step>) -> Vec<String> {
    let mut notes = Vec::new();
    for (tool, package) in RUN_TIME_TOOLS {
        if !facts.missing_tools.contains(tool) {
            continue;
        }
        if facts.is_root && facts.apt.is_some() {
            packages.insert(package.to_owned());
        } else {
            notes.push(format!(
                "`{tool}` is missing (package {package}): privileged tests and the demo need it"
            ));
        }
    }
    if !facts.bpffs_mounted {
        if facts.is_root {
            steps.push(Step::MountBpffs);
        } else {
            notes.push(format!(
                "{BPFFS} is not mounted: root's `cargo xtask setup` mounts it"
            ));
        }
    }
    if let Some(path) = &facts.cargo_outside_rustup {
        notes.push(format!(
            "this is {path} and not rustup's cargo, so clippy and rustfmt may be missing: put rustup's folder \
             (usually ~/.cargo/bin) first in PATH"
        ));
    }
    notes
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
