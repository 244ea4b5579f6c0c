//! A control socket with prepared answers.

use std::path::PathBuf;

use enforcer_agent::api::server::{ControlListener, Incoming, serve};
use enforcer_agent::api::{ApiError, Reply, Request};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Answers until it is dropped.
pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Daemon {
    /// Starts one that answers with a function of the request and of how many came before.
    pub(crate) fn start(
        mut answer: impl FnMut(Request, u32) -> Result<Reply, ApiError> + Send + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = ControlListener::bind(&directory.path().join("control.sock"), None).unwrap();
        let (requests, mut incoming) = mpsc::channel::<Incoming>(8);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, requests, std::future::pending()));
        tasks.spawn(async move {
            let mut before = 0;
            while let Some(Incoming {
                request,
                actor: _,
                answer: reply,
            }) = incoming.recv().await
            {
                let _gone = reply.send(answer(request, before));
                before += 1;
            }
        });
        Self {
            directory,
            _tasks: tasks,
        }
    }

    /// Starts one that has the same answer to everything.
    pub(crate) fn always(outcome: Result<Reply, ApiError>) -> Self {
        Self::start(move |_, _| outcome.clone())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }
}
