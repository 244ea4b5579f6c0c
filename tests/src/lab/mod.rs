//! A laboratory of network namespaces: hosts, links between them and processes on them, all of which are removed
//! when the run ends, also when it ends by a panic, a signal or SIGKILL.
//!
//! - Everything of a run carries the run's name, `gl<pid>n<counter>`: its namespaces (`gl812n0-acme`), its directory
//!   in bpffs and its directory under [`REGISTRY`]. Links are made inside the namespaces, so their names are plain
//!   (`acme`, `lb`) and the machine's own namespace never sees them.
//! - A guard, a process in a session of its own, holds the reading end of a pipe. When the run ends, however it ends,
//!   the pipe closes and the guard removes what carries the run's name. [`Lab`] uses the same way out when dropped.
//! - Should the guard be killed too, [`sweep`] removes the remains. It knows a dead run by a file lock, which the
//!   kernel gives back when the owner dies, not by a process id, which may by then be another's. A new [`Lab`] sweeps
//!   first.
//!
//! The lab shells out to `ip` and `ethtool`. The product does not; that is one more reason for it to be here.

mod host;
mod link;
mod process;
mod registry;
pub mod topology;

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{AddrParseError, IpAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

pub use host::Host;
pub use link::{Link, MacAddress, Port, Switch};
pub use process::{Output, Process};
pub use registry::{BPFFS, REGISTRY, RunName, namespaces_of, sweep};

/// The environment variable that names the guard's program, if it is not beside the running one.
pub const GUARD_VARIABLE: &str = "NAMESPACE_LAB";
/// The guard's program, a binary of this crate.
const GUARD_PROGRAM: &str = "namespace-lab";
/// What the guard says when it has left the session of the run and is ready.
const GUARD_READY: &str = "ready";
/// Longest name of a host, so that a link named after it fits the kernel's 15 bytes.
const HOST_NAME_LIMIT: usize = 12;

/// Why something in the lab failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces need privilege.
    #[error("network namespaces need root: run as root, or with sudo")]
    NotRoot,
    /// A name that cannot be used for a host.
    #[error("{name:?} is no name for a host: use 1 to {HOST_NAME_LIMIT} of a-z, 0-9 and '-'")]
    HostName {
        /// The name given.
        name: String,
    },
    /// Two hosts of one lab with one name.
    #[error("the lab has a host {name:?} already")]
    HostTaken {
        /// The name given.
        name: String,
    },
    /// Text that is no address with a prefix length.
    #[error("{text:?} is no address with a prefix length, such as 10.1.1.1/24 or 2001:db8::1/64")]
    Prefix {
        /// The text given.
        text: String,
    },
    /// Text that is no address.
    #[error("{text:?} is no address: {source}")]
    Address {
        /// The text given.
        text: String,
        /// What is wrong with it.
        source: AddrParseError,
    },
    /// The guard's program is not where it should be.
    #[error(
        "the lab's guard is in none of {searched:?}: build it with `cargo build -p enforcer-tests --bin {GUARD_PROGRAM}`, \
         or say where it is in {GUARD_VARIABLE}"
    )]
    GuardMissing {
        /// The places that were looked at.
        searched: Vec<PathBuf>,
    },
    /// The guard ended before it was ready.
    #[error("the lab's guard {program:?} did not start, it said {said:?}: see its message above")]
    Guard {
        /// The program started.
        program: PathBuf,
        /// Its first line.
        said: String,
    },
    /// A program could not be started.
    #[error("cannot start `{command}`: {source}")]
    Start {
        /// The command line.
        command: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed with {status}: {message}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        message: String,
    },
    /// A program did not do in time what was waited for.
    #[error("`{command}`: no {awaited} within {limit:?}; its last lines were:\n{tail}")]
    Timeout {
        /// The command line.
        command: String,
        /// What was waited for.
        awaited: &'static str,
        /// How long.
        limit: Duration,
        /// The last lines of its output.
        tail: String,
    },
    /// A program ended before it wrote what was waited for.
    #[error("`{command}` ended ({status}) before it wrote {awaited}; its last lines were:\n{tail}")]
    Ended {
        /// The command line.
        command: String,
        /// What was waited for.
        awaited: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its output.
        tail: String,
    },
    /// A process in a namespace of a run that is being removed does not die.
    #[error("process {pid} in namespace {namespace} does not end after SIGKILL")]
    Undead {
        /// The process id.
        pid: i32,
        /// The namespace that it is in.
        namespace: String,
    },
    /// The operating system refused something.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

// === impl LabError ===

impl LabError {
    /// For `map_err`: attaches what was tried, and on what.
    fn io<E: Into<io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}

/// One run's namespaces, links and processes. Dropping it removes all of them.
#[derive(Debug)]
pub struct Lab {
    run: RunName,
    hosts: Vec<Host>,
    /// Ports made so far: the last bytes of the next one's MAC address.
    ports: u16,
    guard: Option<Child>,
    /// Held as long as the run lives; see [`sweep`].
    _claim: registry::Claim,
}

// === impl Lab ===

impl Lab {
    /// Removes the remains of dead runs, then begins a run with a name of its own, and a guard.
    ///
    /// # Errors
    /// [`LabError::NotRoot`], [`LabError::GuardMissing`], or what the operating system refused.
    pub fn new() -> Result<Self, LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        sweep()?;
        let claim = registry::claim()?;
        let run = claim.run().clone();
        let guard = start_guard(&run)?;
        Ok(Self {
            run,
            hosts: Vec::new(),
            ports: 0,
            guard: Some(guard),
            _claim: claim,
        })
    }

    /// The name that everything of this run carries.
    #[must_use]
    pub fn run(&self) -> &RunName {
        &self.run
    }

    /// A directory for this run's files (sockets, policies, logs), which goes away with the run.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.run.directory()
    }

    /// Where this run's processes may pin BPF objects. It is not made here, and goes away with the run.
    #[must_use]
    pub fn pin_directory(&self) -> PathBuf {
        self.run.pin_directory()
    }

    /// The guard's process id.
    #[must_use]
    pub fn guard_pid(&self) -> Option<u32> {
        self.guard.as_ref().map(Child::id)
    }

    /// Makes a host: a network namespace with its loopback device up, no duplicate address detection (an address can
    /// be used at once) and no reverse path filter.
    ///
    /// # Errors
    /// A name that cannot be used or is taken, or what the operating system refused.
    pub fn host(&mut self, name: &str) -> Result<Host, LabError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > HOST_NAME_LIMIT || !name.bytes().all(allowed) {
            return Err(LabError::HostName { name: name.into() });
        }
        if self.hosts.iter().any(|host| host.name() == name) {
            return Err(LabError::HostTaken { name: name.into() });
        }
        let host = Host::create(&self.run, name)?;
        self.hosts.push(host.clone());
        Ok(host)
    }

    /// Joins two hosts by a pair of virtual Ethernet devices. Each device is named after the host at its other end
    /// and gets the addresses given for it, such as `10.1.1.1/24`.
    ///
    /// Checksum offload is off at both ends: a frame that a local socket sends through veth carries a partial
    /// checksum, and an XDP program at the other end loses the mark that says so. GRO is on, because veth passes on
    /// frames from XDP_TX and XDP_REDIRECT only to a device that polls.
    ///
    /// # Errors
    /// An address that cannot be read, or what the operating system refused.
    pub fn link(
        &mut self,
        a: &Host,
        b: &Host,
        addresses_a: &[&str],
        addresses_b: &[&str],
    ) -> Result<Link, LabError> {
        let ends = [
            link::End {
                host: a,
                device: b.name(),
                mac: self.next_mac(),
                addresses: addresses_a,
            },
            link::End {
                host: b,
                device: a.name(),
                mac: self.next_mac(),
                addresses: addresses_b,
            },
        ];
        link::connect(ends)
    }

    /// Makes a switch: a namespace with a bridge and nothing else.
    ///
    /// # Errors
    /// As for [`Lab::host`].
    pub fn switch(&mut self, name: &str) -> Result<Switch, LabError> {
        Switch::create(self.host(name)?)
    }

    /// Plugs a host into a switch. The host's device is named after the switch, the switch's port after the host.
    ///
    /// # Errors
    /// As for [`Lab::link`].
    pub fn plug(&mut self, switch: &Switch, host: &Host, addresses: &[&str]) -> Result<Port, LabError> {
        let link = self.link(host, switch.host(), addresses, &[])?;
        switch.take_port(&link.b)?;
        Ok(link.a)
    }

    /// Ends the run and removes everything of it, as dropping does, but says if that failed.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn close(mut self) -> Result<(), LabError> {
        self.remove_all()
    }

    fn next_mac(&mut self) -> MacAddress {
        let [high, low] = self.ports.to_be_bytes();
        self.ports += 1;
        // Locally administered, unicast, and easy to tell in a packet dump.
        MacAddress([0x02, b'l', b'a', b'b', high, low])
    }

    fn remove_all(&mut self) -> Result<(), LabError> {
        let Some(mut guard) = self.guard.take() else {
            return Ok(());
        };
        drop(guard.stdin.take());
        match guard.wait() {
            Ok(status) if status.success() => Ok(()),
            // Somebody killed the guard, or it could not remove all: try again, and say why not.
            _ => registry::remove(&self.run),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.remove_all() {
            eprintln!("the lab {} could not be removed: {error}", self.run);
        }
    }
}

/// Reads an address with a message that names the text.
fn address(text: &str) -> Result<IpAddr, LabError> {
    text.parse().map_err(|source| LabError::Address {
        text: text.into(),
        source,
    })
}

fn start_guard(run: &RunName) -> Result<Child, LabError> {
    let program = guard_program()?;
    let mut guard = Command::new(&program)
        .args(["guard", run.as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .current_dir("/")
        .spawn()
        .map_err(|source| LabError::Start {
            command: program.display().to_string(),
            source,
        })?;
    let mut said = String::new();
    if let Some(stdout) = guard.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut said)
            .map_err(LabError::io("hear from", &program))?;
    }
    if said.trim_end() != GUARD_READY {
        let _ = guard.wait();
        return Err(LabError::Guard { program, said });
    }
    Ok(guard)
}

/// The guard lies beside the running program, or above it if that is a test in `deps`.
fn guard_program() -> Result<PathBuf, LabError> {
    if let Some(program) = std::env::var_os(GUARD_VARIABLE) {
        return Ok(program.into());
    }
    let running = std::env::current_exe().map_err(LabError::io("find", "the running program"))?;
    let searched: Vec<PathBuf> = running
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(GUARD_PROGRAM))
        .collect();
    match searched.iter().find(|program| program.is_file()) {
        Some(program) => Ok(program.clone()),
        None => Err(LabError::GuardMissing { searched }),
    }
}

/// The guard's whole life, for the program `namespace-lab`: leave the run's session, so that no signal meant for the
/// run's terminal reaches the guard, wait for the end of standard input, then remove the run.
///
/// # Errors
/// What could not be removed.
pub fn guard(run: &RunName) -> Result<(), LabError> {
    let stdin = Path::new("/dev/stdin");
    rustix::process::setsid().map_err(LabError::io("leave the session of", run.as_str()))?;
    println!("{GUARD_READY}");
    // Nothing is ever written; a byte would be ignored.
    io::stdin()
        .lock()
        .read_to_end(&mut Vec::new())
        .map_err(LabError::io("read", stdin))?;
    registry::remove(run)
}
