//! Which runs exist, which of them are dead, and how all that a run made is removed.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{LabError, process};

/// One directory for each run that lives, or that died and was not swept yet.
pub const REGISTRY: &str = "/run/governance-lab";
/// Where BPF objects are pinned, each run's in a directory of the run's name.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where iproute2 keeps named network namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";

/// The file in a run's directory that its owner keeps locked.
const LOCK: &str = "lock";
/// Held while runs are begun or removed, so that a sweep never sees a run half made.
const REGISTRY_LOCK: &str = ".lock";
const PREFIX: &str = "gl";
/// How long a process may take to end after SIGKILL.
const DEATH_LIMIT: Duration = Duration::from_secs(5);
/// How often a namespace is looked through for processes: each time it must be emptier, unless something forks.
const KILL_ROUNDS: usize = 20;
/// How many names one process may try: more than the labs that it can make.
const NAME_ATTEMPTS: usize = 10_000;

/// The name of a run: `gl<pid>n<counter>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunName(String);

/// Text that is no name of a run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name of a run: they look like {PREFIX}812n0")]
pub struct RunNameError {
    /// The text given.
    pub text: String,
}

// === impl RunName ===

impl RunName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn directory(&self) -> PathBuf {
        Path::new(REGISTRY).join(&self.0)
    }

    pub(super) fn pin_directory(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.0)
    }

    /// The run that a namespace belongs to, from a name such as `gl812n0-acme`.
    fn of_namespace(namespace: &str) -> Option<Self> {
        namespace.split_once('-')?.0.parse().ok()
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for RunName {
    type Err = RunNameError;

    /// Accepts exactly the names that [`claim`] gives, so that no other directory can be taken for a run's.
    fn from_str(text: &str) -> Result<Self, RunNameError> {
        let number = |digits: &str| {
            digits
                .parse::<u32>()
                .is_ok_and(|number| number.to_string() == digits)
        };
        match text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('n')) {
            Some((pid, counter)) if number(pid) && number(counter) => Ok(Self(text.into())),
            _ => Err(RunNameError { text: text.into() }),
        }
    }
}

/// A run's place in the registry. The lock goes with it, also when the process is killed.
#[derive(Debug)]
pub(super) struct Claim {
    run: RunName,
    _lock: File,
}

// === impl Claim ===

impl Claim {
    pub(super) fn run(&self) -> &RunName {
        &self.run
    }
}

/// Takes a name that no run has.
pub(super) fn claim() -> Result<Claim, LabError> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let _registry = lock_registry()?;
    for _ in 0..NAME_ATTEMPTS {
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let run = RunName(format!("{PREFIX}{}n{counter}", std::process::id()));
        match fs::create_dir(run.directory()) {
            Ok(()) => {}
            // A live run in another process id namespace has this process's number.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(LabError::io("make", run.directory())(error)),
        }
        let path = run.directory().join(LOCK);
        let lock = File::create(&path).map_err(LabError::io("make", &path))?;
        lock.lock().map_err(LabError::io("lock", &path))?;
        return Ok(Claim { run, _lock: lock });
    }
    let taken = io::Error::from(ErrorKind::AlreadyExists);
    Err(LabError::io("find a free name in", REGISTRY)(taken))
}

fn lock_registry() -> Result<File, LabError> {
    fs::create_dir_all(REGISTRY).map_err(LabError::io("make", REGISTRY))?;
    let path = Path::new(REGISTRY).join(REGISTRY_LOCK);
    let lock = File::create(&path).map_err(LabError::io("make", &path))?;
    lock.lock().map_err(LabError::io("lock", &path))?;
    Ok(lock)
}

/// Removes what dead runs left behind, and returns their names. Runs that live are not touched.
///
/// # Errors
/// The first thing that could not be removed; the rest was tried all the same.
pub fn sweep() -> Result<Vec<RunName>, LabError> {
    let _registry = lock_registry()?;
    let mut runs: Vec<RunName> = names_in(REGISTRY)?
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    runs.extend(
        names_in(NAMESPACES)?
            .iter()
            .filter_map(|name| RunName::of_namespace(name)),
    );
    runs.extend(
        names_in(BPFFS)?
            .iter()
            .filter_map(|name| name.parse::<RunName>().ok()),
    );
    runs.sort();
    runs.dedup();
    let mut removed = Vec::new();
    let mut failure = Ok(());
    for run in runs {
        if is_alive(&run)? {
            continue;
        }
        failure = failure.and(remove_parts(&run));
        removed.push(run);
    }
    failure.map(|()| removed)
}

/// The names of the run's namespaces.
///
/// # Errors
/// When the directory of namespaces cannot be read.
pub fn namespaces_of(run: &RunName) -> Result<Vec<String>, LabError> {
    let mut namespaces = names_in(NAMESPACES)?;
    namespaces.retain(|name| RunName::of_namespace(name).as_ref() == Some(run));
    Ok(namespaces)
}

/// Removes all that the run made. What is gone already is no error.
pub(super) fn remove(run: &RunName) -> Result<(), LabError> {
    let _registry = lock_registry()?;
    remove_parts(run)
}

/// Tries every part and returns the first error. The registry's entry goes last: as long as something is left, so is
/// the entry by which the next sweep finds it.
fn remove_parts(run: &RunName) -> Result<(), LabError> {
    let namespaces = namespaces_of(run)?;
    let mut result = Ok(());
    for namespace in &namespaces {
        result = result.and(kill_processes_in(namespace));
    }
    for namespace in &namespaces {
        result = result.and(delete_namespace(namespace));
    }
    result = result.and(remove_directory(&run.pin_directory()));
    result.and_then(|()| remove_directory(&run.directory()))
}

fn is_alive(run: &RunName) -> Result<bool, LabError> {
    let path = run.directory().join(LOCK);
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(LabError::io("open", path)(error)),
    };
    match lock.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(LabError::io("lock", path)(error)),
    }
}

/// The entries of a directory; none if there is no such directory.
fn names_in(directory: &str) -> Result<Vec<String>, LabError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LabError::io("read", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(LabError::io("read", directory))?;
        // A name that is no UTF-8 was not given by a lab.
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn remove_directory(path: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(LabError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn delete_namespace(namespace: &str) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    command.args(["netns", "delete", namespace]);
    match process::succeed(command, process::COMMAND_LIMIT) {
        // Whatever `ip` said: what counts is that it is gone.
        Err(_) if !Path::new(NAMESPACES).join(namespace).exists() => Ok(()),
        result => result.map(drop),
    }
}

/// Kills every process whose main thread is in the namespace, until there is none. The calling process is spared: one
/// of its threads may be inside, the process is not.
fn kill_processes_in(namespace: &str) -> Result<(), LabError> {
    let path = Path::new(NAMESPACES).join(namespace);
    // Of a namespace that was made only by half there is a plain file, which no process is in.
    let Ok(identity) = fs::metadata(&path).map(|file| (file.dev(), file.ino())) else {
        return Ok(());
    };
    let inside = |pid: Pid| {
        let namespace = fs::metadata(format!("/proc/{}/ns/net", pid.as_raw_nonzero()));
        namespace.is_ok_and(|file| (file.dev(), file.ino()) == identity)
    };
    for _ in 0..KILL_ROUNDS {
        let pids: Vec<Pid> = names_in("/proc")?
            .iter()
            .filter_map(|name| Pid::from_raw(name.parse().ok()?))
            .filter(|pid| *pid != rustix::process::getpid() && inside(*pid))
            .collect();
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            kill(pid, inside).map_err(|undead| match undead {
                Some(source) => LabError::io("kill a process in", &path)(source),
                None => LabError::Undead {
                    pid: pid.as_raw_nonzero().get(),
                    namespace: namespace.into(),
                },
            })?;
        }
    }
    let forking = io::Error::other("new processes appear faster than they can be killed");
    Err(LabError::io("empty", path)(forking))
}

/// Kills one process and waits until it has ended. `Err(None)`: it does not end.
fn kill(pid: Pid, still_meant: impl Fn(Pid) -> bool) -> Result<(), Option<Errno>> {
    // A descriptor names one process for ever, where its number may be given to another: so look again after opening.
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(Some(error)),
    };
    if !still_meant(pid) {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(Some(error)),
    }
    let limit = Timespec {
        tv_sec: DEATH_LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
        Ok(0) => Err(None),
        Ok(_) => Ok(()),
        Err(error) => Err(Some(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_claim_gives_are_names_of_runs() {
        for text in ["gl1n0", "gl4194304n17"] {
            assert_eq!(text.parse::<RunName>().unwrap().as_str(), text);
        }
        for text in [
            "", "gl", "gln", "gl1", "gl1n", "gln1", "gl01n0", "gl1n+0", "gl1n0x", "gl1n0/..", "global",
            "GL1n0",
        ] {
            assert_eq!(text.parse::<RunName>(), Err(RunNameError { text: text.into() }));
        }
    }

    #[test]
    fn a_namespace_names_its_run() {
        let run = |namespace| RunName::of_namespace(namespace).map(|run| run.0);
        assert_eq!(run("gl12n3-gpu-1"), Some("gl12n3".into()));
        assert_eq!(run("gl12n3"), None);
        assert_eq!(run("glue-1"), None);
        assert_eq!(run("production"), None);
    }
}
