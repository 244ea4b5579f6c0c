//! Kinds of machines, and what set-up does on each.

use super::*;

fn toolchain(name: &str, release: (u32, u32), llvm_major: u32, sysroot: &str) -> Toolchain {
    Toolchain {
        name: name.into(),
        release,
        llvm_major,
        sysroot: sysroot.into(),
        has_core_sources: true,
    }
}

fn linked(toolchain: Option<Toolchain>) -> Option<ToolchainEntry> {
    Some(ToolchainEntry {
        name: LINKED_TOOLCHAIN.into(),
        path: DISTRIBUTION_PREFIX.into(),
        toolchain,
    })
}

fn debian(installed: &[&str], offered_compiler: Option<(u32, u32)>) -> Option<Apt> {
    Some(Apt {
        installed: installed.iter().map(ToString::to_string).collect(),
        offered_compiler,
    })
}

fn linker(llvm_major: Option<u32>) -> Option<Linker> {
    Some(Linker {
        version: "0.13.0".into(),
        llvm_major,
    })
}

/// Root on a Debian with rustup and nothing else, its package lists just refreshed.
fn fresh_debian() -> Facts {
    Facts {
        is_root: true,
        rustup_found: true,
        cargo_outside_rustup: None,
        requested: None,
        linked: None,
        nightly: None,
        linker: None,
        linker_is_broken: false,
        apt: debian(&[], Some((1, 96))),
        lists: ListsAge::Fresh,
        missing_tools: ["ip", "tc", "ethtool"].into(),
        bpffs_mounted: false,
    }
}

/// Everything is there.
fn complete() -> Facts {
    Facts {
        linked: linked(Some(toolchain("bpf", (1, 96), 22, "/usr"))),
        linker: linker(Some(22)),
        apt: None,
        lists: ListsAge::Unknown,
        missing_tools: BTreeSet::new(),
        bpffs_mounted: true,
        ..fresh_debian()
    }
}

fn commands(plan: &Plan) -> Vec<String> {
    match plan {
        Plan::Run(steps) => steps.iter().map(Step::command_line).collect(),
        other => panic!("expected steps, got {other:?}"),
    }
}

fn blocked(plan: Plan) -> Blocked {
    match plan {
        Plan::Blocked(blocked) => blocked,
        other => panic!("expected to be blocked, got {other:?}"),
    }
}

fn ready(plan: Plan) -> Ready {
    match plan {
        Plan::Ready(ready) => ready,
        other => panic!("expected to be ready, got {other:?}"),
    }
}

#[test]
fn a_complete_machine_needs_nothing() {
    let ready = ready(plan(&complete()));
    assert_eq!(ready.toolchain.name, "bpf");
    assert_eq!(ready.notes, Vec::<String>::new());
}

#[test]
fn empty_package_lists_are_refreshed_before_anything_is_decided() {
    let facts = Facts {
        apt: debian(&[], None),
        lists: ListsAge::Unknown,
        ..fresh_debian()
    };
    assert_eq!(commands(&plan(&facts)), ["apt-get -qq update"]);
}

#[test]
fn a_fresh_debian_gets_compiler_tools_link_and_mount() {
    assert_eq!(
        commands(&plan(&fresh_debian())),
        [
            "DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --no-remove install \
             cargo-web ethtool iproute2 rust-web-src rustc-web",
            "rustup toolchain link bpf /usr",
            "mount -t bpf bpf /sys/fs/bpf",
        ]
    );
}

#[test]
fn a_package_with_a_service_is_installed_without_it() {
    let facts = Facts {
        apt: debian(&[], None),
        lists: ListsAge::Fresh,
        missing_tools: ["curl", "nginx"].into(),
        ..complete()
    };
    let commands = commands(&plan(&facts));
    let [others, nginx] = &commands[..] else {
        panic!("{commands:?}")
    };
    assert!(others.ends_with("install curl"), "{others}");
    // As one would type it, with sudo in front: one program, its script in one word.
    let script = nginx
        .strip_prefix("DEBIAN_FRONTEND=noninteractive sh -c '")
        .and_then(|line| line.strip_suffix('\''))
        .unwrap_or_else(|| panic!("{nginx}"));
    assert!(!script.contains('\''), "{script}");
    let forbidden = script.find("exit 101").expect("services are forbidden");
    let installed = script.find("install nginx-light").expect("it is installed");
    let disabled = script.find("update-rc.d nginx disable").expect("it stays off");
    assert!(forbidden < installed && installed < disabled, "{script}");
    let Plan::Run(steps) = plan(&facts) else {
        panic!("steps")
    };
    assert!(
        steps[1].to_string().contains("`nginx` is kept from starting"),
        "{}",
        steps[1]
    );
}

#[test]
fn lists_of_unknown_age_are_refreshed_before_an_install() {
    let facts = Facts {
        lists: ListsAge::Unknown,
        ..fresh_debian()
    };
    assert_eq!(commands(&plan(&facts))[0], "apt-get -qq update");
}

#[test]
fn the_linker_is_built_against_the_compilers_llvm() {
    let compiler = ["rustc-web", "cargo-web", "rust-web-src", "zlib1g-dev"];
    let facts = Facts {
        linker: None,
        apt: debian(&compiler, None),
        lists: ListsAge::Fresh,
        ..complete()
    };
    assert_eq!(
        commands(&plan(&facts)),
        [
            "DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --no-remove install \
             libpolly-22-dev libzstd-dev llvm-22-dev",
            "LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked \
             --no-default-features --features llvm-22",
        ]
    );
}

#[test]
fn a_linker_with_an_older_llvm_is_replaced_and_a_newer_one_kept() {
    let libraries = ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"];
    let older = Facts {
        linker: linker(Some(21)),
        apt: debian(&libraries, None),
        ..complete()
    };
    let replacing = commands(&plan(&older));
    assert_eq!(replacing.len(), 1);
    assert!(
        replacing[0].ends_with("--features llvm-22 --force"),
        "{replacing:?}"
    );
    for fitting in [Some(22), Some(23), None] {
        ready(plan(&Facts {
            linker: linker(fitting),
            ..complete()
        }));
    }
}

#[test]
fn a_linker_that_does_not_start_is_replaced() {
    let facts = Facts {
        linker: None,
        linker_is_broken: true,
        apt: debian(&[], None),
        ..complete()
    };
    let commands = commands(&plan(&facts));
    assert!(
        commands.last().is_some_and(|line| line.ends_with("--force")),
        "{commands:?}"
    );
}

#[test]
fn a_nightly_with_sources_and_a_linker_is_used_as_it_is() {
    let nightly = toolchain("nightly", (1, 97), 22, "/opt/nightly");
    let facts = Facts {
        linked: None,
        nightly: Some(nightly),
        ..complete()
    };
    assert_eq!(ready(plan(&facts)).toolchain.name, "nightly");
}

#[test]
fn a_nightly_without_a_linker_gives_way_to_the_distribution() {
    let nightly = toolchain("nightly", (1, 97), 22, "/opt/nightly");
    let with_apt = Facts {
        nightly: Some(nightly.clone()),
        ..fresh_debian()
    };
    assert!(commands(&plan(&with_apt))[0].contains("rustc-web"));
    let without_apt = Facts {
        nightly: Some(nightly),
        apt: None,
        ..fresh_debian()
    };
    let expected = Blocked::LinkerMissing {
        toolchain: "nightly".into(),
        llvm_major: 22,
    };
    assert_eq!(blocked(plan(&without_apt)), expected);
}

#[test]
fn a_nightly_without_sources_counts_for_nothing() {
    let mut nightly = toolchain("nightly", (1, 97), 22, "/opt/nightly");
    nightly.has_core_sources = false;
    let facts = Facts {
        nightly: Some(nightly),
        apt: None,
        ..fresh_debian()
    };
    assert!(matches!(blocked(plan(&facts)), Blocked::NoWay { .. }));
}

#[test]
fn where_no_way_is_open_the_message_has_the_commands() {
    let elsewhere = Facts {
        apt: None,
        ..fresh_debian()
    };
    let old_debian = Facts {
        apt: debian(&[], Some((1, 85))),
        ..fresh_debian()
    };
    for facts in [elsewhere, old_debian] {
        let message = blocked(plan(&facts)).to_string();
        assert!(
            message.contains("rustup toolchain install nightly --component rust-src"),
            "{message}"
        );
        assert!(message.contains("cargo install bpf-linker"), "{message}");
    }
}

#[test]
fn without_root_the_commands_for_root_are_named() {
    let facts = Facts {
        is_root: false,
        ..fresh_debian()
    };
    let message = blocked(plan(&facts)).to_string();
    assert!(
        message.contains("\n    sudo DEBIAN_FRONTEND=noninteractive apt-get"),
        "{message}"
    );
    assert!(!message.contains("mount"), "building does not need it: {message}");
}

#[test]
fn without_root_what_only_running_needs_is_a_note() {
    let facts = Facts {
        is_root: false,
        bpffs_mounted: false,
        missing_tools: ["ethtool"].into(),
        ..complete()
    };
    assert_eq!(ready(plan(&facts)).notes.len(), 2);
}

#[test]
fn without_root_the_linker_is_still_built() {
    let libraries = ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"];
    let facts = Facts {
        is_root: false,
        linker: None,
        apt: debian(&libraries, None),
        ..complete()
    };
    assert_eq!(commands(&plan(&facts)).len(), 1);
}

#[test]
fn a_foreign_toolchain_of_that_name_is_not_overwritten() {
    let entry = ToolchainEntry {
        name: "bpf".into(),
        path: "/opt/rust".into(),
        toolchain: None,
    };
    let facts = Facts {
        linked: Some(entry),
        ..fresh_debian()
    };
    assert_eq!(
        blocked(plan(&facts)),
        Blocked::ForeignToolchain {
            path: "/opt/rust".into()
        }
    );
}

#[test]
fn a_link_whose_packages_were_removed_is_completed() {
    let facts = Facts {
        linked: linked(None),
        ..fresh_debian()
    };
    let commands = commands(&plan(&facts));
    assert!(commands[0].contains("rustc-web"));
    assert!(
        !commands.iter().any(|line| line.contains("toolchain link")),
        "{commands:?}"
    );
}

#[test]
fn an_llvm_that_the_linker_does_not_know_is_said() {
    let compiler = toolchain("bpf", (1, 99), 24, "/usr");
    let facts = Facts {
        linked: linked(Some(compiler)),
        apt: debian(&[], None),
        ..complete()
    };
    assert_eq!(blocked(plan(&facts)), Blocked::UnknownLlvm { llvm_major: 24 });
}

#[test]
fn a_requested_toolchain_wins_or_is_refused_by_name() {
    let request = |toolchain| {
        Some(ToolchainEntry {
            name: "mine".into(),
            path: String::new(),
            toolchain,
        })
    };
    let good = Facts {
        requested: request(Some(toolchain("mine", (1, 97), 22, "/opt/mine"))),
        ..complete()
    };
    assert_eq!(ready(plan(&good)).toolchain.name, "mine");
    let bad = Facts {
        requested: request(None),
        ..complete()
    };
    assert_eq!(
        blocked(plan(&bad)),
        Blocked::UnusableRequest { name: "mine".into() }
    );
}

#[test]
fn no_rustup_is_said_first() {
    assert_eq!(
        blocked(plan(&Facts {
            rustup_found: false,
            ..fresh_debian()
        })),
        Blocked::NoRustup
    );
}

#[test]
fn a_cargo_that_is_not_rustups_is_noted() {
    let facts = Facts {
        cargo_outside_rustup: Some("/usr/bin/cargo".into()),
        ..complete()
    };
    assert!(ready(plan(&facts)).notes[0].contains("/usr/bin/cargo"));
}
