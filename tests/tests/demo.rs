//! The demo is a test of the whole product, and it cleans up whatever happens to it.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use enforcer_tests::harness::{KernelObjects, eventually};
use enforcer_tests::lab::{BPFFS, REGISTRY, RunName, namespaces_of};
use enforcer_tests::privilege;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// How long the guard may take after the demo was killed.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a demo may take until everything was shown, on a busy machine too.
const SHOW_LIMIT: Duration = Duration::from_secs(300);
/// How long one of the commands may take that a demo says to try.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// Demos measure times: one at a time.
static STAGE: Mutex<()> = Mutex::new(());

fn stage() -> MutexGuard<'static, ()> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    let _stage = stage();
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
    let _stage = stage();
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
        let left = remains(&run);
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })
    .unwrap();
    let alive = objects.left_after(LIMIT);
    assert!(alive.is_empty(), "{alive:?}");
}

/// A demo that was told to keep everything running, and does. Dropping it kills it, and its guard removes the rest.
struct Kept {
    process: OwnedFd,
    group: Pid,
    output: mpsc::Receiver<io::Result<Output>>,
    run: RunName,
    /// What it said to try.
    commands: Vec<String>,
    objects: KernelObjects,
    /// Its guard, the agent and the servers.
    children: Vec<OwnedFd>,
}

impl Kept {
    /// Starts it in a process group of its own, as a shell would, and waits until it says what to try.
    fn start() -> Self {
        let mut child = demo()
            .arg("--keep")
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let group = pid(child.id());
        let process = pidfd_open(group, PidfdFlags::empty()).unwrap();
        let run: RunName = format!("gl{}n0", child.id()).parse().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Read to the end, also when nobody listens any more: a full pipe would stop the demo.
            stderr
                .lines()
                .map_while(Result::ok)
                .for_each(|line| drop(sender.send(line)));
        });
        let mut kept = Self {
            process,
            group,
            output: output_of(child),
            run,
            commands: Vec::new(),
            objects: KernelObjects::default(),
            children: Vec::new(),
        };
        kept.commands = invitation(&lines);
        kept.objects = KernelObjects::pinned(&Path::new(BPFFS).join(kept.run.as_str())).unwrap();
        kept.children = children_of(group);
        kept
    }

    /// What it printed to its end, which has to come by itself. Nothing of the run is left then.
    fn end(self) {
        let output = self.output.recv_timeout(LIMIT).expect("the demo ends").unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(summary["passed"], true, "{summary}");
        assert_eq!(remains(&self.run), Vec::<PathBuf>::new());
        assert!(self.objects.alive().is_empty(), "{:?}", self.objects.alive());
        let alive = self.children.iter().filter(|child| !has_ended(child));
        assert_eq!(alive.count(), 0, "processes outlived the demo");
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

/// The child's end, from a thread that waits for it.
fn output_of(child: Child) -> mpsc::Receiver<io::Result<Output>> {
    let (sender, output) = mpsc::channel();
    thread::spawn(move || drop(sender.send(child.wait_with_output())));
    output
}

/// The commands of the invitation, once all of it was said: the last one ends the demo.
fn invitation(lines: &mpsc::Receiver<String>) -> Vec<String> {
    let deadline = Instant::now() + SHOW_LIMIT;
    let next = || {
        let left = deadline.saturating_duration_since(Instant::now());
        lines.recv_timeout(left).expect("a demo that invites to try")
    };
    while !next().starts_with("Everything runs.") {}
    let mut commands = Vec::new();
    while !commands
        .last()
        .is_some_and(|last: &String| last.starts_with("kill "))
    {
        commands.extend(next().strip_prefix("  ").map(str::to_owned));
    }
    commands
}

fn children_of(parent: Pid) -> Vec<OwnedFd> {
    let path = format!("/proc/{0}/task/{0}/children", parent.as_raw_nonzero());
    let children = fs::read_to_string(path).unwrap();
    let children = children
        .split_whitespace()
        .map(|number| pid(number.parse().unwrap()));
    children
        .map(|child| pidfd_open(child, PidfdFlags::empty()).unwrap())
        .collect()
}

fn has_ended(process: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)).unwrap() == 1
}

/// Runs a line as a shell would in which it was pasted.
fn paste(line: &str) -> Output {
    let child = Command::new("sh")
        .args(["-c", line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let shell = pidfd_open(pid(child.id()), PidfdFlags::empty()).unwrap();
    output_of(child)
        .recv_timeout(COMMAND_LIMIT)
        .unwrap_or_else(|_| {
            let _ = pidfd_send_signal(&shell, Signal::KILL);
            panic!("`{line}` does not end");
        })
        .unwrap()
}

#[test]
fn what_a_kept_demo_says_to_try_works() {
    if !privileged() {
        return;
    }
    let _stage = stage();
    let kept = Kept::start();
    assert!(!kept.objects.is_empty());
    assert!(kept.children.len() >= 5, "guard, agent, three servers");
    let mut explained = Vec::new();
    for command in &kept.commands {
        let Output {
            status,
            stdout,
            stderr,
        } = paste(command);
        let (stdout, stderr) = (
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
        );
        // A stream of `curl`'s, or the load client's summary.
        let is_answered = stdout.contains("data: [DONE]") || stdout.contains("\"ok\":1,");
        if command.contains("-stranger ") {
            assert!(!is_answered, "{command}: {stdout}");
            continue;
        }
        assert!(status.success(), "{command}: {status} {stdout} {stderr}");
        if command.starts_with("ip netns exec ") {
            assert!(is_answered, "{command}: {stdout} {stderr}");
        } else if command.contains(" policy explain ") {
            explained.push(stdout.contains(": forwarded, Allowed\n"));
        } else if !command.starts_with("kill ") {
            assert_ne!(stdout, "", "{command}");
        }
    }
    assert_eq!(explained, [true, false], "before and while acme is suspended");
    kept.end();
}

#[test]
fn a_kept_demo_ends_by_ctrl_c() {
    if !privileged() {
        return;
    }
    let _stage = stage();
    let kept = Kept::start();
    // A terminal sends it to the whole group that is in front.
    kill_process_group(kept.group, Signal::INT).unwrap();
    kept.end();
}
