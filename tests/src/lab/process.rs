//! Programs that the lab starts: commands that end by themselves, and processes that run until they are told to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::LabError;

/// How long a command such as `ip` may take.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How much of a command's output is kept.
const OUTPUT_LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// How many lines of a process are kept.
const TAIL_LINES: usize = 500;
/// Where a line is cut.
const LINE_LIMIT_BYTES: u64 = 8 * 1024;
/// How long a process may take to end by itself when it is dropped.
const DROP_LIMIT: Duration = Duration::from_secs(3);
/// How long output may still come once its writer has ended: only a grandchild that keeps the pipe open takes so long.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How a command ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, cut at 8 MiB.
    pub stdout: String,
    /// Standard error, cut at 8 MiB.
    pub stderr: String,
}

/// The command line as one would type it.
pub(super) fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command to its end and returns its standard output; a status other than success is an error.
pub(super) fn succeed(command: Command, limit: Duration) -> Result<String, LabError> {
    let text = command_line(&command);
    let Output {
        status,
        stdout,
        stderr,
    } = finish(command, limit)?;
    if status.success() {
        Ok(stdout)
    } else {
        Err(LabError::Failed {
            command: text,
            status,
            message: stderr.trim_end().into(),
        })
    }
}

/// Runs a command to its end, or kills it after `limit`.
pub(super) fn finish(command: Command, limit: Duration) -> Result<Output, LabError> {
    finish_with(command, limit, Command::spawn)
}

/// As [`finish`], with a way of starting it, which decides in what namespace it runs.
pub(super) fn finish_with(
    mut command: Command,
    limit: Duration,
    start: impl FnOnce(&mut Command) -> io::Result<Child>,
) -> Result<Output, LabError> {
    let text = command_line(&command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(&mut command).map_err(|source| LabError::Start {
        command: text.clone(),
        source,
    })?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let ended = await_end(&mut child, limit);
    if !matches!(ended, Ok(Some(_))) {
        // It may have ended meanwhile, which is as good.
        let _ = child.kill();
    }
    let status = child.wait().map_err(LabError::io("wait for", &text))?;
    let read = |receiver: mpsc::Receiver<String>| receiver.recv_timeout(DRAIN_LIMIT).unwrap_or_default();
    let output = Output {
        status,
        stdout: read(stdout),
        stderr: read(stderr),
    };
    match ended.map_err(LabError::io("wait for", &text))? {
        Some(_) => Ok(output),
        None => Err(LabError::Timeout {
            command: text,
            awaited: "end",
            limit,
            tail: output.stderr,
        }),
    }
}

/// Reads a pipe to its end on a thread, so that neither of two pipes can block the writer.
fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            // What could be read before an error is still worth showing; the rest is read and dropped.
            let _ = pipe.by_ref().take(OUTPUT_LIMIT_BYTES).read_to_end(&mut kept);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        // Nobody listens when the limit has passed.
        let _ = sender.send(String::from_utf8_lossy(&kept).into_owned());
    });
    receiver
}

/// Waits until the child has ended; `None` when the limit passes first.
fn await_end(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    await_readable(&descriptor_of(child)?, limit)?;
    child.try_wait()
}

/// A descriptor of a child that was not waited for yet, so that its number cannot be another's.
fn descriptor_of(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Waits until a process descriptor says that the process ended, or the limit passes.
fn await_readable(process: &OwnedFd, limit: Duration) -> io::Result<()> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A process that runs on a host. It is terminated when dropped.
#[derive(Debug)]
pub struct Process {
    command: String,
    child: Child,
    lines: Arc<Lines>,
    /// Somebody asked for its death, so that it is no news.
    is_killed: bool,
}

/// The last lines that a process wrote, of both streams in the order in which they were read.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<LinesState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LinesState {
    kept: VecDeque<String>,
    /// Streams that may still write.
    open: usize,
}

// === impl Lines ===

impl Lines {
    fn state(&self) -> MutexGuard<'_, LinesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let mut state = self.state();
        if state.kept.len() == TAIL_LINES {
            state.kept.pop_front();
        }
        state.kept.push_back(line);
        self.changed.notify_all();
    }

    fn text(&self) -> String {
        self.state().kept.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Reads a stream line by line until it ends.
    fn follow(self: &Arc<Self>, stream: Option<impl Read + Send + 'static>, mut log: Option<File>) {
        let Some(stream) = stream else { return };
        self.state().open += 1;
        let lines = Arc::clone(self);
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!((&mut stream).take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line), Ok(read) if read > 0)
            {
                if let Some(log) = &mut log {
                    // A full disk must not stop the process that writes; the lines are kept here too.
                    let _ = log.write_all(&line);
                }
                lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
            lines.state().open -= 1;
            lines.changed.notify_all();
        });
    }
}

// === impl Process ===

impl Process {
    /// `start` decides in what namespace it runs. Its output is also appended to `log`, if given.
    pub(super) fn start(
        mut command: Command,
        log: Option<&Path>,
        start: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> Result<Self, LabError> {
        let text = command_line(&command);
        let open = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(LabError::io("open", path))
        };
        let logs = [log.map(open).transpose()?, log.map(open).transpose()?];
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = start(&mut command).map_err(|source| LabError::Start {
            command: text.clone(),
            source,
        })?;
        let lines = Arc::new(Lines::default());
        let [stdout_log, stderr_log] = logs;
        lines.follow(child.stdout.take(), stdout_log);
        lines.follow(child.stderr.take(), stderr_log);
        Ok(Self {
            command: text,
            child,
            lines,
            is_killed: false,
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines that it wrote.
    #[must_use]
    pub fn tail(&self) -> String {
        self.lines.text()
    }

    /// Waits for the first line, among those kept and those to come, that `wanted` accepts, and returns it.
    ///
    /// # Errors
    /// [`LabError::Timeout`], or [`LabError::Ended`] when the process ended without such a line; both with its last
    /// lines.
    pub fn wait_for_line(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String, LabError> {
        const AWAITED: &str = "line that was waited for";
        let end = Instant::now() + limit;
        let lines = Arc::clone(&self.lines);
        let mut state = lines.state();
        loop {
            if let Some(line) = state.kept.iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            if state.open == 0 {
                drop(state);
                let status = self.wait(end.saturating_duration_since(Instant::now()))?;
                let (command, tail) = (self.command.clone(), self.tail());
                return Err(LabError::Ended {
                    command,
                    awaited: AWAITED,
                    status,
                    tail,
                });
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                return Err(self.timeout(AWAITED, limit));
            }
            state = lines
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// [`LabError::Timeout`]; the process then goes on.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let ended = await_end(&mut self.child, limit).map_err(LabError::io("wait for", &self.command))?;
        ended.ok_or_else(|| self.timeout("end", limit))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub fn is_running(&mut self) -> Result<bool, LabError> {
        let status = self
            .child
            .try_wait()
            .map_err(LabError::io("look at", &self.command))?;
        Ok(status.is_none())
    }

    /// Sends a signal. One that has ended gets none, which is no error.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        if !self.is_running()? {
            return Ok(());
        }
        let process = descriptor_of(&self.child).map_err(LabError::io("signal", &self.command))?;
        match pidfd_send_signal(process, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(LabError::io("signal", &self.command)(error)),
        }
    }

    /// Sends SIGTERM, and SIGKILL if it has not ended when the limit passes. The status tells which it was.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        self.signal(Signal::TERM)?;
        match self.wait(limit) {
            Err(LabError::Timeout { .. }) => self.end_it(),
            result => result,
        }
    }

    /// Kills it, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        self.is_killed = true;
        self.end_it()
    }

    fn end_it(&mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::KILL)?;
        self.child.wait().map_err(LabError::io("wait for", &self.command))
    }

    fn timeout(&self, awaited: &'static str, limit: Duration) -> LabError {
        LabError::Timeout {
            command: self.command.clone(),
            awaited,
            limit,
            tail: self.tail(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        match self.terminate(DROP_LIMIT) {
            Ok(status)
                if status.signal() == Some(Signal::KILL.as_raw())
                    && !self.is_killed
                    && !thread::panicking() =>
            {
                eprintln!(
                    "`{}` ended by SIGKILL; its last lines were:\n{}",
                    self.command,
                    self.tail()
                );
            }
            Ok(_) => {}
            Err(error) => eprintln!("{error}"),
        }
    }
}
