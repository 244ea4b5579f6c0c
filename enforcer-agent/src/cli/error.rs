//! What can end a command, and with which exit code.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::adapters::capture::TrafficError;
use crate::adapters::dataplane::DataplaneError;
use crate::adapters::policy_files::PolicyFilesError;
use crate::api::client::ClientError;
use crate::api::{ApiError, Reply};
use crate::config::ConfigError;
use crate::daemon::RunError;
use crate::pure::simulate::CannotCompile;

/// Refused or failed.
const FAILED: u8 = 1;
/// Wrong usage.
pub(super) const USAGE: u8 = 2;
/// The daemon cannot be reached.
const UNREACHABLE: u8 = 3;
/// The check found problems.
const PROBLEMS: u8 = 4;

/// Why a command did not end well.
#[derive(Debug, Error)]
pub(super) enum CliError {
    /// The agent's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The kernel side, without a daemon.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The daemon, from outside.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon answered something else.
    #[error("the agent answered another request than the one that was asked: {0:?}")]
    OtherReply(Box<Reply>),
    /// A policy's files.
    #[error(transparent)]
    PolicyFiles(#[from] PolicyFilesError),
    /// A policy that cannot be used.
    #[error(transparent)]
    Policy(Box<ApiError>),
    /// There are differences, which were printed.
    #[error("there are differences")]
    Different,
    /// Traffic that cannot be replayed.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// A simulation that cannot begin.
    #[error(transparent)]
    Simulate(#[from] CannotCompile),
    /// The file for a capture.
    #[error("cannot write the capture to {}: {source}", path.display())]
    CaptureFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A capture on a screen.
    #[error("a capture is no text: redirect standard output, or name a file with `-w`")]
    BinaryToTerminal,
    /// The asynchronous runtime.
    #[error("cannot start: {0}")]
    Start(io::Error),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Write(io::Error),
    /// The answer cannot be written as JSON.
    #[error("cannot write the answer as JSON: {0}")]
    Json(serde_json::Error),
    /// The reader of standard output has gone: it has all it wanted.
    #[error("standard output is closed")]
    ClosedOutput,
    /// The check found problems, which were printed.
    #[error("the check found problems")]
    Problems,
}

// === impl CliError ===

impl CliError {
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::ClosedOutput => 0,
            Self::Problems => PROBLEMS,
            Self::Client(
                ClientError::Unreachable { .. }
                | ClientError::NotPermitted { .. }
                | ClientError::Broken { .. },
            ) => UNREACHABLE,
            Self::Config(_)
            | Self::Run(_)
            | Self::Dataplane(_)
            | Self::Client(
                ClientError::Protocol { .. } | ClientError::TooLarge { .. } | ClientError::Refused(_),
            )
            | Self::OtherReply(_)
            | Self::PolicyFiles(_)
            | Self::Policy(_)
            | Self::Different
            | Self::Traffic(_)
            | Self::Simulate(_)
            | Self::CaptureFile { .. }
            | Self::BinaryToTerminal
            | Self::Start(_)
            | Self::Write(_)
            | Self::Json(_) => FAILED,
        }
    }

    /// Whether there is something left to say on standard error.
    pub(super) const fn is_silent(&self) -> bool {
        matches!(self, Self::ClosedOutput | Self::Problems | Self::Different)
    }

    /// What the daemon said, if it is the one that refused, or what is wrong with a policy.
    pub(super) const fn refusal(&self) -> Option<&ApiError> {
        match self {
            Self::Client(ClientError::Refused(error)) => Some(error),
            Self::Policy(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedOutput,
            _ => Self::Write(error),
        }
    }
}
