//! The steps of set-up as data: what is shown, what is run and what is compared in tests are the same thing.

use std::{collections::BTreeSet, fmt, process::Command};

use crate::exec;

/// The release of bpf-linker that set-up installs: the newest that was tried with the pinned aya crates.
const LINKER_RELEASE: &str = "0.13.0";
/// The LLVM releases that this bpf-linker can be built against.
pub(super) const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// The name under which the distribution's compiler is known to rustup.
pub(super) const LINKED_TOOLCHAIN: &str = "bpf";
/// Where the distribution's compiler lies.
pub(super) const DISTRIBUTION_PREFIX: &str = "/usr";
/// Where the kernel's file system for pinned programs and maps belongs.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// --no-remove: a package in conflict with one of these is the user's decision.
const INSTALL: &str = "apt-get -qq -y --no-install-recommends --no-remove install";

/// One command that changes this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// A fresh machine has no package lists, and old ones name packages that are gone.
    RefreshPackageLists,
    /// Debian packages, by name.
    InstallPackages(BTreeSet<String>),
    /// A Debian package of which only the program is wanted: the service that comes with it is neither started nor
    /// left to start with the machine.
    InstallWithoutService {
        package: &'static str,
        service: &'static str,
    },
    /// Makes the distribution's compiler a toolchain of rustup's.
    LinkToolchain,
    /// Builds bpf-linker against the compiler's own LLVM; `replace` one that is there and does not fit.
    InstallLinker { llvm_major: u32, replace: bool },
    /// Tests and the agent pin programs and maps there.
    MountBpffs,
}

impl Step {
    /// True if only root may do it.
    pub(super) fn needs_root(&self) -> bool {
        match self {
            Self::RefreshPackageLists
            | Self::InstallPackages(_)
            | Self::InstallWithoutService { .. }
            | Self::MountBpffs => true,
            Self::LinkToolchain | Self::InstallLinker { .. } => false,
        }
    }

    /// True if a build works without it.
    pub(super) fn is_optional(&self) -> bool {
        matches!(self, Self::MountBpffs)
    }

    /// The command, ready to run.
    pub(super) fn command(&self) -> Command {
        let mut words = self.words().into_iter();
        let program = words.next().expect("every step has a program");
        let mut command = match program.as_str() {
            "rustup" => exec::rustup(),
            "cargo" => exec::cargo(),
            other => exec::program(other),
        };
        command.args(words).envs(self.environment());
        command
    }

    /// The command as one would type it.
    pub(super) fn command_line(&self) -> String {
        let mut line = String::new();
        for (name, value) in self.environment() {
            line += &format!("{name}={value} ");
        }
        let words = self.words().into_iter().map(|word| {
            if word.contains(' ') {
                format!("'{word}'")
            } else {
                word
            }
        });
        line + &words.collect::<Vec<_>>().join(" ")
    }

    fn words(&self) -> Vec<String> {
        let fixed = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        match self {
            Self::RefreshPackageLists => fixed("apt-get -qq update"),
            Self::InstallPackages(names) => {
                let mut words = fixed(INSTALL);
                words.extend(names.iter().cloned());
                words
            }
            // Packages ask /usr/sbin/policy-rc.d whether they may start something; 101 is no. One that is there already
            // is the machine's own, and stays: what it allows is ended.
            Self::InstallWithoutService { package, service } => {
                let script = format!(
                    "set -e; no=/usr/sbin/policy-rc.d; if [ ! -e $no ]; then trap \"rm -f $no\" EXIT; \
                     trap \"exit 1\" INT TERM; printf \"#!/bin/sh\\nexit 101\\n\" >$no; chmod 755 $no; fi; \
                     {INSTALL} {package}; invoke-rc.d --quiet {service} stop || true; update-rc.d {service} disable"
                );
                vec!["sh".to_owned(), "-c".to_owned(), script]
            }
            Self::LinkToolchain => fixed(&format!(
                "rustup toolchain link {LINKED_TOOLCHAIN} {DISTRIBUTION_PREFIX}"
            )),
            Self::InstallLinker { llvm_major, replace } => {
                let mut words = fixed(&format!(
                    "cargo install bpf-linker --version {LINKER_RELEASE} --locked --no-default-features \
                     --features llvm-{llvm_major}"
                ));
                if *replace {
                    words.push("--force".to_owned());
                }
                words
            }
            Self::MountBpffs => fixed(&format!("mount -t bpf bpf {BPFFS}")),
        }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::InstallPackages(_) | Self::InstallWithoutService { .. } => {
                vec![("DEBIAN_FRONTEND", "noninteractive".to_owned())]
            }
            Self::InstallLinker { llvm_major, .. } => {
                vec![(
                    "LLVM_PREFIX",
                    format!("{DISTRIBUTION_PREFIX}/lib/llvm-{llvm_major}"),
                )]
            }
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefreshPackageLists => write!(formatter, "the lists of packages may be old"),
            Self::InstallPackages(names) => write!(formatter, "Debian packages, {} in all", names.len()),
            Self::InstallWithoutService { service, .. } => write!(
                formatter,
                "a program for tests; its service `{service}` is kept from starting, now by policy-rc.d and with the machine \
                 by update-rc.d"
            ),
            Self::LinkToolchain => write!(formatter, "make the distribution's compiler known to rustup"),
            Self::InstallLinker { llvm_major, .. } => {
                write!(
                    formatter,
                    "a linker for BPF, built against the compiler's LLVM {llvm_major}; about a minute"
                )
            }
            Self::MountBpffs => write!(formatter, "where programs and maps are pinned"),
        }
    }
}
