//! Builds the kernel object (`enforcer-ebpf`) for the BPF target and puts it at `$OUT_DIR/enforcer`, from where the
//! agent embeds it.
//!
//! The toolchain comes from `ENFORCER_BPF_TOOLCHAIN` (a rustup toolchain name) if that is set, else it is `bpf`, which
//! `cargo xtask setup` links to the distribution's own compiler and sources, else a nightly with `rust-src`. `bpf` goes
//! first because its bpf-linker was built against the same LLVM: a nightly's newer bitcode is unreadable to it.
//!
//! The script runs itself a second time for the build proper. aya-build reads its settings (`OUT_DIR`,
//! `RUSTC_BOOTSTRAP`) from the environment, and a child gets a clean one without `set_var`, which is unsafe.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

const TOOLCHAIN_VARIABLE: &str = "ENFORCER_BPF_TOOLCHAIN";
/// Set for the second run of this script, to the name of the toolchain that the first run chose.
const BUILD_WITH_VARIABLE: &str = "ENFORCER_BUILD_SCRIPT_TOOLCHAIN";
const LINKED_TOOLCHAIN: &str = "bpf";
const NIGHTLY_TOOLCHAIN: &str = "nightly";
/// The agent embeds the first two; the last is for benchmarks, and found by whoever depends on this crate.
const OBJECT_NAMES: [&str; 3] = ["enforcer", "decapsulator", "driver"];
const ADVICE: &str = "run `cargo xtask setup`, which finds or installs what is missing";

/// What the outer cargo and rustup set for the host build and would leak into the kernel build.
const HOST_BUILD_VARIABLES: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

fn main() -> ExitCode {
    if let Ok(toolchain) = env::var(BUILD_WITH_VARIABLE) {
        return match compile_with_aya_build(&toolchain) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("cargo::warning={}", in_one_line(&error));
                ExitCode::FAILURE
            }
        };
    }
    if let Err(error) = build_kernel_object() {
        // Cargo fails the build on this line. It prints it alone, where a non-zero exit code would have it print all
        // that this script wrote.
        println!("cargo::error={}", in_one_line(&error));
    }
    ExitCode::SUCCESS
}

fn in_one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

/// The first run: choose the toolchain, build in a folder shared by all profiles, copy the object out.
fn build_kernel_object() -> Result<()> {
    for path in [
        "../enforcer-common/src",
        "../enforcer-common/Cargo.toml",
        "../Cargo.toml",
        "../Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={TOOLCHAIN_VARIABLE}");

    let toolchain = choose_toolchain()?;
    ensure!(
        is_on_path("bpf-linker"),
        "the kernel programs need `bpf-linker`, which is not on PATH: {ADVICE}"
    );

    let out_dir =
        PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: run this through cargo")?);
    let shared_dir = shared_build_dir(&out_dir);
    fs::create_dir_all(&shared_dir).with_context(|| format!("cannot create {}", shared_dir.display()))?;

    // Cargo locks a target folder per profile, so a debug and a release build may be here at once. The inner cargo
    // serialises the compilation; this lock, held until `lock` is dropped, also covers the copies.
    let lock_path = shared_dir.join("build.lock");
    let lock = File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", lock_path.display()))?;

    run_in_clean_environment(&toolchain, &shared_dir)?;

    for name in OBJECT_NAMES {
        let object = shared_dir.join(name);
        fs::copy(&object, out_dir.join(name))
            .with_context(|| format!("cannot copy {} to {}", object.display(), out_dir.display()))?;
    }
    // Build scripts of crates that depend on this one get it as `DEP_ENFORCER_OBJECTS`.
    println!("cargo::metadata=objects={}", out_dir.display());
    Ok(())
}

fn run_in_clean_environment(toolchain: &str, shared_dir: &Path) -> Result<()> {
    let this_program = env::current_exe().context("cannot find the build script's own path")?;
    let mut command = Command::new(this_program);
    for variable in HOST_BUILD_VARIABLES {
        command.env_remove(variable);
    }
    if toolchain != NIGHTLY_TOOLCHAIN && !toolchain.starts_with("nightly-") {
        // The distribution's compiler is a stable one, and building `core` from source is a nightly feature.
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    let status = command
        .env(BUILD_WITH_VARIABLE, toolchain)
        .env("OUT_DIR", shared_dir)
        // aya-build shows every line on the inner cargo's stderr as a warning: leave only what is one.
        .env("CARGO_TERM_QUIET", "true")
        .status()
        .context("cannot start the build script's second run")?;
    ensure!(
        status.success(),
        "the kernel programs did not build with toolchain `{toolchain}`. If the messages above are about the \
         toolchain or the linker and not about the code, {ADVICE}"
    );
    Ok(())
}

/// The second run: compile `enforcer-ebpf` into `$OUT_DIR/enforcer`.
fn compile_with_aya_build(toolchain: &str) -> Result<()> {
    let features: &[&str] = if env::var_os("CARGO_FEATURE_KERNEL_LOG").is_some() {
        &["log"]
    } else {
        &[]
    };
    let package = aya_build::Package {
        name: "enforcer-ebpf",
        root_dir: "../enforcer-ebpf",
        no_default_features: false,
        features,
    };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(toolchain))
}

fn choose_toolchain() -> Result<String> {
    if let Ok(name) = env::var(TOOLCHAIN_VARIABLE) {
        ensure!(
            has_core_sources(&name),
            "{TOOLCHAIN_VARIABLE} names `{name}`, but rustup has no such toolchain with the sources of `core`: \
             unset it, or {ADVICE}"
        );
        return Ok(name);
    }
    for name in [LINKED_TOOLCHAIN, NIGHTLY_TOOLCHAIN] {
        if has_core_sources(name) {
            return Ok(name.to_owned());
        }
    }
    bail!(
        "no toolchain can compile the kernel programs: rustup has neither `{LINKED_TOOLCHAIN}` nor a nightly with \
         rust-src: {ADVICE}"
    )
}

/// True if the toolchain's compiler runs and the sources of `core` lie beside it.
fn has_core_sources(toolchain: &str) -> bool {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("RUSTUP_AUTO_INSTALL", "0")
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let sysroot = String::from_utf8_lossy(&output.stdout);
            let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
            let found = library.join("core/src/lib.rs").exists();
            if found {
                // A path that does not exist would make cargo run this script each time.
                println!("cargo::rerun-if-changed={}", library.join("Cargo.lock").display());
            }
            found
        }
        _ => false,
    }
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// One folder per target directory: the kernel object does not depend on the host's profile, and compiling `core`
/// again for each of them would cost a minute.
fn shared_build_dir(out_dir: &Path) -> PathBuf {
    // OUT_DIR is TARGET/PROFILE/build/enforcer-agent-HASH/out.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(out_dir);
    target_dir.join("kernel-object")
}
