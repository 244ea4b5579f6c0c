//! What is on this machine. Nothing here changes it, and nothing here decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt, fs,
    path::Path,
    process::Command,
};

use super::{
    plan::{OLDEST_RUST, RUN_TIME_TOOLS},
    step::{BPFFS, LINKED_TOOLCHAIN},
};
use crate::exec;

/// Everything that the plan depends on.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) is_root: bool,
    pub(super) rustup_found: bool,
    /// Set if the cargo that runs this is not one of rustup's.
    pub(super) cargo_outside_rustup: Option<String>,
    /// What `ENFORCER_BPF_TOOLCHAIN` names.
    pub(super) requested: Option<ToolchainEntry>,
    /// The toolchain `bpf`, if rustup knows that name.
    pub(super) linked: Option<ToolchainEntry>,
    pub(super) nightly: Option<Toolchain>,
    pub(super) linker: Option<Linker>,
    /// True if there is a bpf-linker that does not start, for example because its LLVM was removed.
    pub(super) linker_is_broken: bool,
    /// `None` where apt is not the package manager.
    pub(super) apt: Option<Apt>,
    pub(super) lists: ListsAge,
    pub(super) missing_tools: BTreeSet<&'static str>,
    pub(super) bpffs_mounted: bool,
}

/// A name that rustup knows, and the toolchain behind it if that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToolchainEntry {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) toolchain: Option<Toolchain>,
}

/// A compiler that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Toolchain {
    pub(super) name: String,
    /// Major and minor.
    pub(super) release: (u32, u32),
    pub(super) llvm_major: u32,
    pub(super) sysroot: String,
    pub(super) has_core_sources: bool,
}

/// A bpf-linker that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linker {
    pub(super) version: String,
    /// `None` if LLVM is linked into it, so that it cannot be told.
    pub(super) llvm_major: Option<u32>,
}

/// What apt and dpkg say.
#[derive(Clone, Debug)]
pub(super) struct Apt {
    pub(super) installed: BTreeSet<String>,
    /// Major and minor of the rustc-web that would be installed.
    pub(super) offered_compiler: Option<(u32, u32)>,
}

/// Whether apt's lists of packages were refreshed in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListsAge {
    Fresh,
    Unknown,
}

impl Toolchain {
    /// True if it can build `core` for the BPF target.
    pub(super) fn can_compile_core(&self) -> bool {
        self.has_core_sources && self.release >= OLDEST_RUST
    }
}

impl Linker {
    /// LLVM reads the bitcode of older releases and not that of newer ones.
    pub(super) fn reads_bitcode_of(&self, toolchain: &Toolchain) -> bool {
        self.llvm_major
            .is_none_or(|llvm_major| llvm_major >= toolchain.llvm_major)
    }
}

impl Apt {
    /// True if the package sources have a compiler that is new enough.
    pub(super) fn offers_compiler(&self) -> bool {
        self.offered_compiler
            .is_some_and(|release| release >= OLDEST_RUST)
    }
}

impl Facts {
    /// Asks rustup, the linker, the mount table, and, if anything is missing, apt.
    pub(super) fn gather(lists: ListsAge) -> Self {
        let listing = exec::ask(exec::rustup().args(["toolchain", "list", "-v"]));
        let known = parse_toolchain_list(listing.as_deref().unwrap_or_default());
        let entry = |name: &str| {
            let path = known.get(name)?.clone();
            Some(ToolchainEntry {
                name: name.to_owned(),
                path,
                toolchain: probe_toolchain(name),
            })
        };
        let requested = env::var("ENFORCER_BPF_TOOLCHAIN")
            .ok()
            .map(|name| ToolchainEntry {
                toolchain: probe_toolchain(&name),
                path: String::new(),
                name,
            });
        let linked = entry(LINKED_TOOLCHAIN);
        let is_linked_fine = linked
            .iter()
            .filter_map(|entry| entry.toolchain.as_ref())
            .any(Toolchain::can_compile_core);
        // A nightly only matters where `bpf` does not do.
        let has_nightly = !is_linked_fine && known.keys().any(|name| name.starts_with("nightly"));
        let nightly = if has_nightly {
            probe_toolchain("nightly")
        } else {
            None
        };
        let (linker, linker_is_broken) = probe_linker();
        let missing_tools: BTreeSet<_> = RUN_TIME_TOOLS
            .map(|(tool, _)| tool)
            .into_iter()
            .filter(|tool| exec::find_program(tool).is_none())
            .collect();
        let newest_llvm = [
            &linked.as_ref().and_then(|entry| entry.toolchain.clone()),
            &nightly,
        ];
        let is_linker_fine = linker.as_ref().is_some_and(|linker| {
            newest_llvm
                .into_iter()
                .flatten()
                .all(|toolchain| linker.reads_bitcode_of(toolchain))
        });
        let is_complete = (is_linked_fine || nightly.is_some()) && is_linker_fine && missing_tools.is_empty();
        Self {
            is_root: exec::is_root(),
            rustup_found: listing.is_some(),
            cargo_outside_rustup: cargo_outside_rustup(),
            requested,
            linked,
            nightly,
            linker,
            linker_is_broken,
            apt: if is_complete { None } else { probe_apt() },
            lists,
            missing_tools,
            bpffs_mounted: fs::read_to_string("/proc/self/mounts").is_ok_and(|table| lists_bpffs(&table)),
        }
    }
}

/// rustup's proxies set RUSTUP_TOOLCHAIN for all that they start.
fn cargo_outside_rustup() -> Option<String> {
    let cargo = env::var("CARGO").ok()?;
    env::var_os("RUSTUP_TOOLCHAIN").is_none().then_some(cargo)
}

fn probe_toolchain(name: &str) -> Option<Toolchain> {
    let ask = |arguments: &[&str]| exec::ask(exec::rustup().args(["run", name, "rustc"]).args(arguments));
    let (release, llvm_major) = parse_compiler_version(&ask(&["-vV"])?)?;
    let sysroot = ask(&["--print", "sysroot"])?.trim().to_owned();
    let has_core_sources = Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .exists();
    Some(Toolchain {
        name: name.to_owned(),
        release,
        llvm_major,
        sysroot,
        has_core_sources,
    })
}

/// The linker, and whether there is one that does not start.
fn probe_linker() -> (Option<Linker>, bool) {
    let Some(path) = exec::find_program("bpf-linker") else {
        return (None, false);
    };
    let Some(version) = exec::ask(exec::program(&path).arg("--version")) else {
        return (None, true);
    };
    let libraries = exec::ask(exec::program("ldd").arg(&path)).unwrap_or_default();
    let version = version
        .split_whitespace()
        .last()
        .unwrap_or("of unknown version")
        .to_owned();
    (
        Some(Linker {
            version,
            llvm_major: parse_linked_llvm(&libraries),
        }),
        false,
    )
}

fn probe_apt() -> Option<Apt> {
    exec::find_program("apt-get")?;
    let c_locale = |mut command: Command| {
        command.env("LC_ALL", "C");
        command
    };
    let mut query = c_locale(exec::program("dpkg-query"));
    let installed = exec::ask(query.args(["--show", "--showformat", "${db:Status-Abbrev} ${Package}\\n"]))?;
    let mut policy = c_locale(exec::program("apt-cache"));
    let policy = exec::ask(policy.args(["policy", super::plan::COMPILER_PACKAGES[0]])).unwrap_or_default();
    Some(Apt {
        installed: parse_installed(&installed),
        offered_compiler: parse_candidate(&policy),
    })
}

/// `rustup toolchain list -v`: a name, perhaps remarks in brackets, and a path.
fn parse_toolchain_list(listing: &str) -> BTreeMap<String, String> {
    listing
        .lines()
        .filter_map(|line| {
            let name = line.split_whitespace().next()?;
            let path = line.find(" /").map_or("", |start| line[start..].trim());
            Some((name.to_owned(), path.to_owned()))
        })
        .collect()
}

/// `rustc -vV`: release (major, minor) and LLVM's major number.
fn parse_compiler_version(text: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let release = parse_release(field("release:")?)?;
    let llvm_major = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((release, llvm_major))
}

/// The first two numbers of a version such as `1.96.0+dfsg1-1`.
fn parse_release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The LLVM that a program was linked to, out of `ldd`: `libLLVM.so.22.1` or `libLLVM-19.so.1`.
fn parse_linked_llvm(libraries: &str) -> Option<u32> {
    let name = libraries
        .split_whitespace()
        .find(|word| word.starts_with("libLLVM"))?;
    name.split(|character: char| !character.is_ascii_digit())
        .find(|part| !part.is_empty())?
        .parse()
        .ok()
}

/// `dpkg-query`: packages in the state "installed".
fn parse_installed(listing: &str) -> BTreeSet<String> {
    listing
        .lines()
        .filter_map(|line| line.strip_prefix("ii"))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// `apt-cache policy`: the version that would be installed.
fn parse_candidate(policy: &str) -> Option<(u32, u32)> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    parse_release(version)
}

/// `/proc/self/mounts`: device, place, kind.
fn lists_bpffs(table: &str) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    })
}

impl fmt::Display for Toolchain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            release: (major, minor),
            llvm_major,
            ..
        } = self;
        write!(
            formatter,
            "toolchain `{name}` (Rust {major}.{minor}, LLVM {llvm_major})"
        )
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "bpf-linker {}", self.version)?;
        match self.llvm_major {
            Some(llvm_major) => write!(formatter, " (LLVM {llvm_major})"),
            None => Ok(()),
        }
    }
}

/// The table of `setup --check`.
impl fmt::Display for Facts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &str| writeln!(formatter, "{name:<12} {value}");
        let describe = |toolchain: Option<&Toolchain>| match toolchain {
            Some(toolchain) if toolchain.can_compile_core() => toolchain.to_string(),
            Some(toolchain) => format!("{toolchain}: too old, or without the sources of `core`"),
            None => "none that works".to_owned(),
        };
        row("root", if self.is_root { "yes" } else { "no" })?;
        row("rustup", if self.rustup_found { "found" } else { "not in PATH" })?;
        row(
            "bpf",
            &describe(self.linked.as_ref().and_then(|entry| entry.toolchain.as_ref())),
        )?;
        row(
            "nightly",
            &self
                .nightly
                .as_ref()
                .map_or("not asked for".into(), |nightly| describe(Some(nightly))),
        )?;
        let broken = if self.linker_is_broken {
            "does not start"
        } else {
            "not in PATH"
        };
        row(
            "bpf-linker",
            &self.linker.as_ref().map_or(broken.into(), Linker::to_string),
        )?;
        let missing = self.missing_tools.iter().copied().collect::<Vec<_>>().join(", ");
        row(
            "tools",
            &if missing.is_empty() {
                "all found".into()
            } else {
                format!("missing: {missing}")
            },
        )?;
        row(
            "bpffs",
            if self.bpffs_mounted {
                "mounted"
            } else {
                "not mounted"
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustup_lists_names_with_remarks_and_paths() {
        let listing = "stable-x86_64-unknown-linux-gnu (active, default) /r/toolchains/stable\n\
                       nightly-x86_64-unknown-linux-gnu /r/toolchains/nightly\nbpf /usr\n";
        let known = parse_toolchain_list(listing);
        assert_eq!(known["bpf"], "/usr");
        assert_eq!(known["stable-x86_64-unknown-linux-gnu"], "/r/toolchains/stable");
        assert!(!parse_toolchain_list("no installed toolchains\n").contains_key("bpf"));
    }

    #[test]
    fn the_compiler_says_its_release_and_its_llvm() {
        let debian = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                      host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_compiler_version(debian), Some(((1, 96), 22)));
        let nightly =
            "rustc 1.97.0-nightly (e50aa6fba4 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.5\n";
        assert_eq!(parse_compiler_version(nightly), Some(((1, 97), 22)));
        assert_eq!(
            parse_compiler_version("error: toolchain 'bpf' is not installed"),
            None
        );
    }

    #[test]
    fn the_linker_shows_its_llvm_if_it_is_shared() {
        assert_eq!(
            parse_linked_llvm("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n"),
            Some(22)
        );
        assert_eq!(
            parse_linked_llvm("\tlibLLVM-19.so.1 => /usr/lib/libLLVM-19.so.1 (0x7f)\n"),
            Some(19)
        );
        assert_eq!(parse_linked_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n"), None);
        assert_eq!(parse_linked_llvm("\tstatically linked\n"), None);
    }

    #[test]
    fn dpkg_and_apt_are_understood() {
        let installed = parse_installed("ii  rustc-web\nrc  cargo-web\nii  zlib1g-dev\n");
        assert_eq!(
            installed.into_iter().collect::<Vec<_>>(),
            ["rustc-web", "zlib1g-dev"]
        );
        let policy =
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(parse_candidate(policy), Some((1, 96)));
        assert_eq!(
            parse_candidate("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn only_a_bpf_file_system_in_its_place_counts() {
        assert!(lists_bpffs(
            "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"
        ));
        assert!(!lists_bpffs(
            "tmpfs /sys/fs/bpf tmpfs rw 0 0\nbpf /elsewhere bpf rw 0 0\n"
        ));
    }
}
