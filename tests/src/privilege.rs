//! Tests that need root: without it they say so, since the test runner knows no skipping at run time.

use std::io::Write as _;

/// Whether the test can run: with root, yes. Without, it prints `SKIPPED: <reason>`, which `cargo xtask test` counts.
///
/// # Panics
/// Without root where the variable `CI` is set: there, a skipped test is a failed one.
#[must_use]
pub fn require(reason: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "a test was to be skipped in CI: {reason}"
    );
    // The test runner captures what the print macros write, but not what is written directly.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {reason}\n").as_bytes());
    false
}
