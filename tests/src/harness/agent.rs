//! An agent on a host of the lab, driven by its own command line.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use enforcer_agent::api::reply::StatusReply;
use enforcer_agent::pure::capacity::Capacity;
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use super::{HarnessError, KernelObjects, eventually, program};
use crate::lab::{Host, Lab, Output, Process};

/// The variable that says where the agent's program is, if it is not beside the running one.
pub const AGENT_VARIABLE: &str = "ENFORCER_AGENT";
/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// How long the agent may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How much of an unreadable answer a message shows.
const EXCERPT_CHARACTERS: usize = 200;

/// What goes into the agent's own configuration file.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Interfaces whose traffic it judges.
    pub interfaces: Vec<String>,
    /// How it sees what comes in.
    pub attach_mode: &'static str,
    /// Addresses and ports for `Nat`.
    pub nat: NatSettings,
    /// Where it serves metrics.
    pub metrics: Option<SocketAddr>,
    /// How much fits into its maps.
    pub capacity: Capacity,
    /// Records that one kind of decision may make in a window of about a second.
    pub events_per_window: u64,
}

/// Addresses that take the place of clients'.
#[derive(Clone, Copy, Debug)]
pub struct NatSettings {
    /// For IPv4.
    pub ipv4: Ipv4Addr,
    /// For IPv6.
    pub ipv6: Ipv6Addr,
}

impl AgentSettings {
    /// An agent for these interfaces, with the usual values.
    #[must_use]
    pub fn new<Name: Into<String>>(interfaces: impl IntoIterator<Item = Name>) -> Self {
        Self {
            interfaces: interfaces.into_iter().map(Into::into).collect(),
            attach_mode: "Auto",
            nat: NatSettings::default(),
            metrics: None,
            capacity: Capacity {
                flows: 16_384,
                ..Capacity::default()
            },
            events_per_window: 64,
        }
    }

    fn yaml(&self, instance: &str, directory: &Path) -> String {
        let Self {
            interfaces,
            attach_mode,
            nat: NatSettings { ipv4, ipv6 },
            metrics,
            capacity,
            events_per_window,
        } = self;
        let Capacity {
            tenants,
            trie_nodes,
            eligible_sets,
            decision_blocks,
            flows,
        } = capacity;
        let directory = directory.display();
        let metrics = metrics.map_or(String::new(), |listen| {
            format!("metrics: {{listen: \"{listen}\"}}\n")
        });
        format!(
            "instance: {instance}\n\
             interfaces: [{interfaces}]\n\
             attachMode: {attach_mode}\n\
             stateDirectory: {directory}/state\n\
             socket: {directory}/control.sock\n\
             nat: {{ipv4: \"{ipv4}\", ipv6: \"{ipv6}\", ports: 10000-32767}}\n\
             encapsulation: {{ipv4: 10.254.0.0/16, ipv6: \"2001:db8:fe::/64\"}}\n\
             audit: {{directory: {directory}/audit, eventsPerWindow: {events_per_window}}}\n\
             {metrics}\
             capacity: {{tenants: {tenants}, trieNodes: {trie_nodes}, eligibleSets: {eligible_sets}, decisionBlocks: \
             {decision_blocks}}}\n\
             flowTable: {{entries: {flows}}}\n\
             telemetry: {{interval: 500ms, timeout: 400ms}}\n",
            interfaces = interfaces.join(", "),
        )
    }
}

impl Default for NatSettings {
    fn default() -> Self {
        Self {
            ipv4: Ipv4Addr::new(192, 0, 2, 1),
            ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        }
    }
}

/// An agent: its files, and its process while it runs. One for each lab: its pins carry the run's name, so that the
/// lab's guard finds them.
#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    host: Host,
    directory: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
}

// === impl Agent ===

impl Agent {
    /// Writes the configuration and gives the host the addresses that take the place of clients'. Nothing runs yet.
    ///
    /// # Errors
    /// A program that is missing, or files or addresses that are refused.
    pub fn prepare(lab: &Lab, host: &Host, settings: &AgentSettings) -> Result<Self, HarnessError> {
        let directory = lab.directory().join("agent");
        for folder in ["state", "audit"] {
            let folder = directory.join(folder);
            fs::create_dir_all(&folder).map_err(HarnessError::io("make", folder))?;
        }
        let agent = Self {
            program: program("enforcer-agent", "enforcer-agent", Some(AGENT_VARIABLE))?,
            host: host.clone(),
            directory,
            pins: lab.pin_directory(),
            process: None,
        };
        let path = agent.config();
        fs::write(&path, settings.yaml(lab.run().as_str(), &agent.directory))
            .map_err(HarnessError::io("write", path))?;
        Ok(agent)
    }

    /// Its program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.join("agent.yaml")
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// The directory of its audit log.
    #[must_use]
    pub fn audit_directory(&self) -> PathBuf {
        self.directory.join("audit")
    }

    /// What it wrote to its standard streams, over all its starts.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// Where it pins what the kernel holds for it.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The ids of what it has pinned.
    ///
    /// # Errors
    /// A pin that cannot be opened.
    pub fn kernel_objects(&self) -> Result<KernelObjects, HarnessError> {
        KernelObjects::pinned(&self.pins)
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it ends before it answers, with its last lines, or does not answer in time.
    pub fn start(&mut self) -> Result<StatusReply, HarnessError> {
        let mut process = self.host.spawn_logged(self.run_command(), &self.log())?;
        let answer = eventually("an agent that answers", START_LIMIT, || {
            if !process.is_running()? {
                // Says why, with its last lines.
                process.wait_for_line(Duration::ZERO, |_| false)?;
            }
            Ok(self.ask(&["status"]).map_err(|error| error.to_string()))
        });
        self.process = Some(process);
        answer
    }

    /// Starts it where it is expected to refuse, and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn start_and_fail(&self) -> Result<Output, HarnessError> {
        Ok(self.host.output(self.run_command(), START_LIMIT)?)
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), HarnessError> {
        match self.process.take() {
            Some(mut process) => Ok(process.kill().map(drop)?),
            None => Ok(()),
        }
    }

    /// Ends it with SIGTERM; what it has pinned stays. Answers its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<Option<i32>, HarnessError> {
        let Some(mut process) = self.process.take() else {
            return Ok(None);
        };
        process.signal(Signal::TERM)?;
        Ok(process.wait(STOP_LIMIT)?.code())
    }

    /// Waits until it has ended by itself, as after `detach`. Answers its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait(&mut self) -> Result<Option<i32>, HarnessError> {
        match self.process.take() {
            Some(mut process) => Ok(process.wait(STOP_LIMIT)?.code()),
            None => Ok(None),
        }
    }

    /// The process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Runs a command line of the agent, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn command(&self, words: &[&str]) -> Result<Output, HarnessError> {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(self.socket()).args(words);
        Ok(self.host.output(command, COMMAND_LIMIT)?)
    }

    /// Runs a command line of the agent that has to succeed, with JSON for its output, and reads that.
    ///
    /// # Errors
    /// [`HarnessError::Command`] or [`HarnessError::Reply`].
    pub fn ask<Answer: DeserializeOwned>(&self, words: &[&str]) -> Result<Answer, HarnessError> {
        read(words, &self.succeed(words)?)
    }

    /// The same for a command that answers with one JSON value on each line.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn ask_lines<Answer: DeserializeOwned>(&self, words: &[&str]) -> Result<Vec<Answer>, HarnessError> {
        self.succeed(words)?
            .lines()
            .map(|line| read(words, line))
            .collect()
    }

    fn succeed(&self, words: &[&str]) -> Result<String, HarnessError> {
        let asked: Vec<&str> = words.iter().copied().chain(["--output", "json"]).collect();
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(&asked)?;
        if status.success() {
            return Ok(stdout);
        }
        let code = status.code().map(|code| format!("exit code {code}"));
        Err(HarnessError::Command {
            command: words.join(" "),
            status: code.unwrap_or_else(|| format!("signal {:?}", status.signal())),
            message: stderr.trim_end().into(),
        })
    }

    /// The last lines that it wrote.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }

    fn run_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(self.config());
        command
    }
}

fn read<Answer: DeserializeOwned>(words: &[&str], text: &str) -> Result<Answer, HarnessError> {
    serde_json::from_str(text).map_err(|source| HarnessError::Reply {
        command: words.join(" "),
        source,
        text: text.chars().take(EXCERPT_CHARACTERS).collect(),
    })
}
