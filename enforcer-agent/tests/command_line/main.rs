//! The built binary as people and scripts see it: outputs, errors and exit codes. The daemon is the real control socket
//! with prepared answers behind it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod audit;
mod capture;
mod daemon;
mod lists;
mod local;
mod policies;
mod remote;
mod simulate;

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::process::Command;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer-agent"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("ENFORCER_LOG")
        .kill_on_drop(true);
    command
}

async fn run(arguments: &[&str]) -> Ran {
    Ran::of(command(arguments).output().await.expect("the binary starts"))
}

/// What a run left.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
        }
    }

    #[track_caller]
    fn ends_with(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }
}

fn policies() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies"))
}
