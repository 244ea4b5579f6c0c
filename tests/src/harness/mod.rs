//! The product under test, as people and networks meet it: an agent on a host of the lab, its command line, connections
//! that stay open, and what the kernel holds for it.
//!
//! Nothing in here looks inside the agent: it is driven by its command line and judged by what comes over the wire.

mod agent;
mod http;
mod kernel;
mod simulator;
mod stream;

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::PlanError;
use crate::lab::LabError;

pub use agent::{AGENT_VARIABLE, Agent, AgentSettings, NatSettings};
pub use http::{HttpAnswer, get, post};
pub use kernel::KernelObjects;
pub use simulator::{ServerSettings, start_simulator};
pub use stream::Stream;

/// Time between two looks at something that does not say when it changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(40);

/// Why the product could not be driven; what it did wrong is for the caller to say.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A load plan cannot be carried out.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A program of the workspace is not where it should be.
    #[error(
        "{name} is in none of {searched:?}: build it with `cargo build -p {package} --bin {name}`{variable}"
    )]
    ProgramMissing {
        /// The program.
        name: &'static str,
        /// The package that builds it.
        package: &'static str,
        /// How to name another place.
        variable: String,
        /// The places that were looked at.
        searched: Vec<PathBuf>,
    },
    /// A command of the agent did not do what it was asked.
    #[error("`enforcer-agent {command}` ended with {status}: {message}")]
    Command {
        /// Its words.
        command: String,
        /// Its exit code, or the signal.
        status: String,
        /// What it wrote to standard error.
        message: String,
    },
    /// A command of the agent wrote JSON that is not of its reply's form.
    #[error("`enforcer-agent {command}` wrote JSON that cannot be read ({source}): {text}")]
    Reply {
        /// Its words.
        command: String,
        /// What is wrong.
        source: serde_json::Error,
        /// The first part of what it wrote.
        text: String,
    },
    /// Something that was waited for did not come about.
    #[error("not within {limit:?}: {awaited}; the last look found {last}")]
    Late {
        /// What was waited for.
        awaited: String,
        /// How long.
        limit: Duration,
        /// What was there instead.
        last: String,
    },
    /// A peer did not speak HTTP as expected.
    #[error("{url} gave no usable answer: {what}")]
    Http {
        /// Who was asked.
        url: String,
        /// What was wrong.
        what: String,
    },
    /// The kernel could not say what it holds.
    #[error("cannot read the kernel's {what}: {source}")]
    Kernel {
        /// Which list.
        what: &'static str,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
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

// === impl HarnessError ===

impl HarnessError {
    /// For `map_err`: attaches what was tried, and on what.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// Looks again and again until the look is a success (`Ok`), and returns what it found. `Err` of the look's result is
/// what was there instead, for the message.
///
/// For states of another process that it does not announce; where something can be waited for, wait for it.
///
/// # Errors
/// [`HarnessError::Late`] when the limit passes, or what the look itself failed with.
pub fn eventually<T>(
    awaited: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>, HarnessError>,
) -> Result<T, HarnessError> {
    let end = Instant::now() + limit;
    loop {
        let last = match look()? {
            Ok(found) => return Ok(found),
            Err(last) => last,
        };
        if Instant::now() >= end {
            return Err(HarnessError::Late {
                awaited: awaited.into(),
                limit,
                last,
            });
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// A program of this workspace: named by a variable, or beside the running program, or above it if that is a test in
/// `deps`.
pub(crate) fn program(
    name: &'static str,
    package: &'static str,
    variable: Option<&str>,
) -> Result<PathBuf, HarnessError> {
    if let Some(path) = variable.and_then(std::env::var_os) {
        return Ok(path.into());
    }
    let running = std::env::current_exe().map_err(HarnessError::io("find", "the running program"))?;
    let searched: Vec<PathBuf> = running
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .collect();
    match searched.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(HarnessError::ProgramMissing {
            name,
            package,
            variable: variable.map_or(String::new(), |variable| {
                format!(", or say where it is in {variable}")
            }),
            searched,
        }),
    }
}
