//! What can go wrong in a task. Each message says what to do next.

use std::{io, path::PathBuf, process::ExitStatus};

use crate::setup::Blocked;

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A program could not be started at all.
    #[error("cannot run `{program}`: {source}. Is it installed, and is its folder in PATH?")]
    CannotRun { program: String, source: io::Error },
    /// A program ran and failed; its own output came before.
    #[error("`{command}` failed with {status}; what it printed is above")]
    CommandFailed { command: String, status: ExitStatus },
    /// A file of the workspace could not be read.
    #[error("cannot read {}: {source}", path.display())]
    CannotRead { path: PathBuf, source: io::Error },
    /// Set-up cannot go on by itself.
    #[error(transparent)]
    Setup(#[from] Blocked),
    /// The demo changes the network, and only root may.
    #[error(
        "the demo makes network namespaces and loads kernel programs, which needs root. \
         Run: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo"
    )]
    DemoNeedsRoot,
    /// The tests ran, and the count at the end is not good.
    #[error("{0}")]
    Tests(&'static str),
    /// The task failed and has already said why.
    #[error("see above")]
    Reported,
}

/// The result of a task or a part of it.
pub(crate) type Result<T> = std::result::Result<T, Error>;
