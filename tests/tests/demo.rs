//! The demo is a test of the whole product, and it cleans up whatever happens to it.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use enforcer_tests::harness::{KernelObjects, eventually};
use enforcer_tests::lab::{BPFFS, REGISTRY, RunName, namespaces_of};
use enforcer_tests::privilege;

/// How long the guard may take after the demo was killed.
const LIMIT: Duration = Duration::from_secs(30);

fn privileged() -> bool {
    privilege::require("needs root, for network namespaces and kernel programs")
}

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.arg("--check").stdin(Stdio::null());
    command
}

/// What a run has left: namespaces, its files, its pins.
fn remains(run: &RunName) -> Vec<PathBuf> {
    let namespaces = namespaces_of(run).unwrap();
    let namespaces = namespaces
        .into_iter()
        .map(|name| Path::new("/run/netns").join(name));
    let directories = [REGISTRY, BPFFS].map(|parent| Path::new(parent).join(run.as_str()));
    namespaces
        .chain(directories.into_iter().filter(|path| path.exists()))
        .collect()
}

#[test]
fn every_check_of_the_demo_holds() {
    if !privileged() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let output = demo().arg("--out").arg(out.path()).output().unwrap();
    let lines = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let summary: serde_json::Value = serde_json::from_str(stdout.trim_end()).unwrap();
    assert_eq!(stdout.lines().count(), 1, "one line of JSON");
    assert_eq!(summary["passed"], true);
    assert_eq!(summary["checks_failed"], 0);
    assert!(summary["checks_passed"].as_u64().unwrap() >= 60, "{summary}");
    let run: RunName = summary["run"].as_str().unwrap().parse().unwrap();
    assert_eq!(remains(&run), Vec::<PathBuf>::new());
    for name in [
        "policy.yaml",
        "policy-changed.yaml",
        "agent.yaml",
        "metrics.txt",
        "summary.json",
        "audit",
    ] {
        assert!(out.path().join(name).exists(), "no {name}");
    }
    assert_ne!(fs::read_dir(out.path().join("audit")).unwrap().count(), 0);
}

#[test]
fn a_demo_that_is_killed_leaves_nothing() {
    if !privileged() {
        return;
    }
    let mut child = demo()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let run: RunName = format!("gl{}n0", child.id()).parse().unwrap();
    let pins = Path::new(BPFFS).join(run.as_str());
    let stderr = BufReader::new(child.stderr.take().unwrap());
    // The second step begins when programs are attached and traffic is about to flow.
    let mut lines = stderr.lines().map_while(Result::ok);
    let begun = lines.any(|line| line.trim_start().starts_with("2  "));
    let objects = KernelObjects::pinned(&pins);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(begun, "the demo ended before its second step");
    let objects = objects.unwrap();
    assert!(!objects.is_empty());
    eventually("nothing left", LIMIT, || {
        let (left, alive) = (remains(&run), objects.alive());
        let is_clean = left.is_empty() && alive.is_empty();
        Ok(if is_clean {
            Ok(())
        } else {
            Err(format!("{left:?}, {alive:?}"))
        })
    })
    .unwrap();
}
