//! `cargo xtask test`: set up, build, run every test, and say at the end how many there were.

use std::{
    env,
    io::{BufRead as _, BufReader, Read, Write},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::{
    compile, demo,
    error::{Error, Result},
    exec::{self, cargo},
    setup,
};

/// Crates whose tests need no privilege.
const PLAIN_CRATES: [&str; 3] = ["xtask", "enforcer-common", "enforcer-agent"];
/// The crate that loads kernel programs and makes network namespaces. Its tests run last.
const PRIVILEGED_CRATE: &str = "enforcer-tests";
/// What a test prints, past the harness's capture, instead of running without the privilege it needs. The same string
/// is in `tests/src/privilege.rs`; the harness would count such a test as passed.
const SKIP_MARK: &str = "SKIPPED: ";

/// What happened to the tests of one or more harness runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs every test, or those whose names contain `filter`. Prints `N passed, N failed, N skipped` last.
pub(crate) fn run(filter: Option<&str>, release: bool) -> Result<()> {
    setup::run()?;
    compile::programs(release)?;

    let mut total = Tally::default();
    let phases = [PLAIN_CRATES.as_slice(), &[PRIVILEGED_CRATE]];
    for packages in phases {
        total += run_phase(packages, filter, release)?;
    }
    let Tally {
        passed,
        failed,
        skipped,
    } = total;
    let verdict = judge(total, env::var_os("CI").is_some());
    if skipped > 0 {
        println!(
            "Skipped tests said why above: they need root with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN."
        );
    }
    if let Err(error) = &verdict {
        println!("error: {error}");
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    verdict.map_err(|_| Error::Reported)
}

/// A run without a test proves nothing, and in CI every test has what it needs.
fn judge(total: Tally, is_ci: bool) -> Result<()> {
    match total {
        Tally { failed: 1.., .. } => Err(Error::Tests("tests failed")),
        Tally { passed: 0, .. } => Err(Error::Tests(
            "no test ran: a filter that matches nothing, or skipped tests only",
        )),
        Tally { skipped: 1.., .. } if is_ci => Err(Error::Tests(
            "tests were skipped, which counts as failed where CI is set",
        )),
        _ => Ok(()),
    }
}

fn run_phase(packages: &[&str], filter: Option<&str>, release: bool) -> Result<Tally> {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    for package in packages {
        command.args(["--package", package]);
    }
    if release {
        command.arg("--release");
    }
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    command.env(
        demo::AGENT_VARIABLE,
        compile::program_path("enforcer-agent", release),
    );
    eprintln!("$ {}", exec::display(&command));
    run_and_count(&mut command, std::io::stdout(), std::io::stderr(), OUTPUT_GRACE)
}

/// Runs a test command, passes its output on line by line, and counts.
fn run_and_count(
    command: &mut Command,
    stdout: impl Write + Send + 'static,
    stderr: impl Write + Send + 'static,
    grace: Duration,
) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| exec::cannot_run(command, source))?;
    // The channel is bounded, so a harness that floods its output waits for us.
    let (sender, events) = mpsc::sync_channel(1024);
    let pipes = (child.stdout.take(), child.stderr.take());
    if let (Some(from_stdout), Some(from_stderr)) = pipes {
        forward(from_stdout, stdout, sender.clone());
        forward(from_stderr, stderr, sender.clone());
    }
    thread::spawn(move || sender.send(Event::Ended(child.wait())));

    let mut tally = Tally::default();
    let mut status = None;
    loop {
        let event = match status {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => events.recv_timeout(grace),
        };
        match event {
            Ok(Event::Line(line)) => tally += count(&line),
            Ok(Event::Ended(result)) => {
                status = Some(result.map_err(|source| exec::cannot_run(command, source))?);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("error: a test left a process behind, which still holds the test's output open");
                tally.failed += 1;
                break;
            }
        }
    }
    if !status.is_some_and(|status| status.success()) && tally.failed == 0 {
        // It did not compile, or a test binary died before its summary.
        tally.failed = 1;
    }
    // The harness took each skipped test for a passed one.
    tally.passed = tally.passed.saturating_sub(tally.skipped);
    Ok(tally)
}

/// What a running test command has to say.
enum Event {
    Line(String),
    Ended(std::io::Result<ExitStatus>),
}

/// How long the output may stay open, in silence, after the command has ended. What it wrote is in the pipe by then.
const OUTPUT_GRACE: Duration = Duration::from_secs(5);

/// Copies lines to `sink` and to the channel until the pipe is closed or nobody counts any more.
fn forward(
    pipe: impl Read + Send + 'static,
    mut sink: impl Write + Send + 'static,
    sender: mpsc::SyncSender<Event>,
) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // A reader that went away (`| head`) is no reason to stop counting.
            let _closed = writeln!(sink, "{line}");
            if sender.send(Event::Line(line)).is_err() {
                return;
            }
        }
    });
}

/// What one line of output says: a harness's summary, a skip mark, or nothing.
fn count(line: &str) -> Tally {
    if line.contains(SKIP_MARK) {
        return Tally {
            skipped: 1,
            ..Tally::default()
        };
    }
    let Some(summary) = line.strip_prefix("test result: ") else {
        return Tally::default();
    };
    let number_before = |word: &str| {
        let (before, _) = summary.split_once(word)?;
        before.split_whitespace().last()?.parse::<u64>().ok()
    };
    // Ignored tests never ran; a compensation for `passed` is added where the marks are subtracted.
    let ignored = number_before(" ignored").unwrap_or(0);
    Tally {
        passed: number_before(" passed").unwrap_or(0) + ignored,
        failed: number_before(" failed").unwrap_or(0),
        skipped: ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_summary_is_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 2 ignored; 0 measured; 5 filtered out; finished in 0.52s";
        assert_eq!(
            count(line),
            Tally {
                passed: 14,
                failed: 3,
                skipped: 2
            }
        );
        assert_eq!(count("test pure::policy::tests::reads ... ok"), Tally::default());
        assert_eq!(count("running 12 tests"), Tally::default());
    }

    #[test]
    fn a_mark_counts_even_behind_the_name_of_its_test() {
        let expected = Tally {
            skipped: 1,
            ..Tally::default()
        };
        assert_eq!(count("SKIPPED: needs root"), expected);
        assert_eq!(
            count("test loads_every_program ... SKIPPED: needs root"),
            expected
        );
    }

    /// The output goes nowhere: an outer `cargo xtask test` would count it.
    fn tally_of(script: &str) -> Tally {
        let mut command = Command::new("sh");
        let grace = Duration::from_millis(200);
        run_and_count(
            command.args(["-c", script]),
            std::io::sink(),
            std::io::sink(),
            grace,
        )
        .expect("sh runs")
    }

    #[test]
    fn skipped_tests_do_not_count_as_passed() {
        let tally = tally_of(
            "echo 'SKIPPED: needs root' >&2; echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured'",
        );
        assert_eq!(
            tally,
            Tally {
                passed: 2,
                failed: 0,
                skipped: 2
            }
        );
    }

    #[test]
    fn a_harness_that_dies_counts_as_a_failure() {
        let tally = tally_of("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; kill -9 $$");
        assert_eq!(
            tally,
            Tally {
                passed: 3,
                failed: 1,
                skipped: 0
            }
        );
    }

    #[test]
    fn a_process_left_behind_is_a_failure_and_no_hang() {
        let tally = tally_of("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; sleep 3 &");
        assert_eq!(
            tally,
            Tally {
                passed: 3,
                failed: 1,
                skipped: 0
            }
        );
    }

    #[test]
    fn nothing_run_and_ci_skips_are_failures() {
        let tally = |passed, failed, skipped| Tally {
            passed,
            failed,
            skipped,
        };
        assert!(judge(tally(5, 0, 0), true).is_ok());
        assert!(judge(tally(5, 0, 1), false).is_ok());
        assert!(judge(tally(5, 0, 1), true).is_err());
        assert!(judge(tally(5, 1, 0), false).is_err());
        assert!(judge(tally(0, 0, 0), false).is_err());
        assert!(judge(tally(0, 0, 4), false).is_err());
    }
}
