//! A host of the lab: a network namespace, and what can be done in it.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use rustix::fd::AsFd as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::{self, COMMAND_LIMIT};
use super::registry::NAMESPACES;
use super::{LabError, MacAddress, Output, Process, RunName};

/// Settings that every host gets. Without duplicate address detection an address can be used at once; the reverse path
/// filter would drop what an asymmetric path, such as direct server return, brings.
const DEFAULT_SETTINGS: [(&str, &str); 10] = [
    // A device that goes down keeps its IPv6 addresses, as it does the IPv4 ones.
    ("net/ipv6/conf/all/keep_addr_on_down", "1"),
    ("net/ipv6/conf/default/keep_addr_on_down", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// A host. Cheap to clone; it goes away with its [`super::Lab`], not with the last clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    namespace: String,
}

// === impl Host ===

impl Host {
    pub(super) fn create(run: &RunName, name: &str) -> Result<Self, LabError> {
        let host = Self {
            name: name.into(),
            namespace: format!("{run}-{name}"),
        };
        let mut command = Command::new("ip");
        command.args(["netns", "add", &host.namespace]);
        process::succeed(command, COMMAND_LIMIT)?;
        host.settings(&DEFAULT_SETTINGS)?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The name that the lab knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that `ip netns` knows it by.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.namespace)
    }

    /// Runs a closure on a thread inside the namespace, and returns what it returns. Sockets that it opens, processes
    /// and threads that it starts belong to the namespace. A panic goes on in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered; the closure has not run then.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let path = self.path();
        let namespace = File::open(&path).map_err(LabError::io("open", &path))?;
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(LabError::io("enter", &path))?;
            Ok(work())
        };
        // A thread of its own: the namespace is the thread's, and the thread ends with the closure.
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a future inside the namespace, on a tokio runtime of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the runtime not be made.
    pub fn block_on<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> Result<T, LabError> {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(LabError::io("make a runtime in", self.path()))?;
            Ok(runtime.block_on(async { work().await }))
        })?
    }

    /// Starts a process that runs until it is told to end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process, LabError> {
        Process::start(command, None, |command| self.start(command))
    }

    /// As [`Host::spawn`], and appends its output to a file.
    ///
    /// # Errors
    /// When it cannot be started or the file not be opened.
    pub fn spawn_logged(&self, command: Command, log: &Path) -> Result<Process, LabError> {
        Process::start(command, Some(log), |command| self.start(command))
    }

    /// Runs a command to its end, whatever its status.
    ///
    /// # Errors
    /// When it cannot be started, or has not ended after `limit`; it is killed then.
    pub fn output(&self, command: Command, limit: Duration) -> Result<Output, LabError> {
        process::finish_with(command, limit, |command| self.start(command))
    }

    /// Runs a command line, split at spaces, and returns its standard output.
    ///
    /// # Errors
    /// As [`Host::output`], and [`LabError::Failed`] when its status is not success.
    pub fn run(&self, line: &str) -> Result<String, LabError> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        let Output {
            status,
            stdout,
            stderr,
        } = self.output(command, COMMAND_LIMIT)?;
        if status.success() {
            return Ok(stdout);
        }
        Err(LabError::Failed {
            command: line.into(),
            status,
            message: stderr.trim_end().into(),
        })
    }

    /// Runs one command of `ip`, such as `link set lo up`.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn ip(&self, words: &str) -> Result<String, LabError> {
        let mut command = Command::new("ip");
        command
            .args(["-n", &self.namespace])
            .args(words.split_whitespace());
        process::succeed(command, COMMAND_LIMIT)
    }

    /// Gives a device an address with its prefix length.
    ///
    /// # Errors
    /// Text that is no such address, or what the operating system refused.
    pub fn add_address(&self, device: &str, address: &str) -> Result<(), LabError> {
        let address: ipnet::IpNet = address
            .parse()
            .map_err(|_| LabError::Prefix { text: address.into() })?;
        // `ip` takes `nodad` for IPv6 alone.
        let flags = if address.addr().is_ipv6() { "nodad" } else { "" };
        self.ip(&format!("address add {address} dev {device} {flags}"))
            .map(drop)
    }

    /// Routes a prefix, or `default`, by a router's address.
    ///
    /// # Errors
    /// Text that is no address, or what the operating system refused.
    pub fn add_route(&self, prefix: &str, router: &str) -> Result<(), LabError> {
        let family = if super::address(router)?.is_ipv4() {
            "-4"
        } else {
            "-6"
        };
        self.ip(&format!("{family} route add {prefix} via {router}"))
            .map(drop)
    }

    /// Tells a device who has an address, for good, so that nobody needs to be asked.
    ///
    /// # Errors
    /// What the operating system refused.
    pub fn add_neighbour(&self, device: &str, address: IpAddr, mac: MacAddress) -> Result<(), LabError> {
        self.ip(&format!(
            "neighbour replace {address} lladdr {mac} dev {device} nud permanent"
        ))
        .map(drop)
    }

    /// Makes it a router.
    ///
    /// # Errors
    /// What the operating system refused.
    pub fn forward(&self) -> Result<(), LabError> {
        self.settings(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ])
    }

    /// Makes it accept traffic to a service's address without telling the network so, as a back end behind direct
    /// server return does: the address is on the loopback device, and no device answers ARP for it. (IPv6 answers
    /// neighbour solicitations only for addresses of the device itself.)
    ///
    /// # Errors
    /// What the operating system refused.
    pub fn hold_service_address(&self, address: &str) -> Result<(), LabError> {
        let prefix = match super::address(address)? {
            IpAddr::V4(Ipv4Addr { .. }) => 32,
            IpAddr::V6(_) => 128,
        };
        self.settings(&[
            ("net/ipv4/conf/all/arp_ignore", "1"),
            ("net/ipv4/conf/all/arp_announce", "2"),
        ])?;
        self.add_address("lo", &format!("{address}/{prefix}"))
    }

    /// Sets kernel parameters of the namespace, such as `("net/ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// What the operating system refused.
    pub fn settings(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.enter(|| {
            settings.iter().try_for_each(|(name, value)| {
                let path = Path::new("/proc/sys").join(name);
                fs::write(&path, value).map_err(LabError::io("set", path))
            })
        })?
    }

    /// A child inherits the namespace of the thread that starts it. It gets a process group of its own: Ctrl-C in a
    /// terminal is meant for the run, which decides what ends when.
    fn start(&self, command: &mut Command) -> io::Result<Child> {
        command.process_group(0);
        self.enter(|| command.spawn()).map_err(io::Error::other)?
    }
}
