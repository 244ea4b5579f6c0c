//! What a test cannot run without: root, or programs of others. Where that is missing it says so, since the test runner
//! knows no skipping at run time.

use std::io::Write as _;

/// Whether the test can run: with root, yes. Without, it prints `SKIPPED: <reason>`, which `cargo xtask test` counts.
///
/// # Panics
/// Without root where the variable `CI` is set: there, a skipped test is a failed one.
#[must_use]
pub fn require(reason: &str) -> bool {
    rustix::process::geteuid().is_root() || skip(reason)
}

/// The same for programs: all of them have to be in PATH.
///
/// # Panics
/// As [`require`].
#[must_use]
pub fn require_programs(names: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    skip(&format!(
        "needs {missing} in PATH: `cargo xtask setup` installs what is missing"
    ))
}

/// Says that a test does not run, and why; answers `false`.
fn skip(reason: &str) -> bool {
    assert!(
        std::env::var_os("CI").is_none(),
        "a test was to be skipped in CI: {reason}"
    );
    // The test runner captures what the print macros write, but not what is written directly.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {reason}\n").as_bytes());
    false
}
