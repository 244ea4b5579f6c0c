//! An inference simulator as a process on a host of the lab.

use std::process::Command;
use std::time::Duration;

use super::{HarnessError, program};
use crate::lab::{Host, Process};

/// How long a simulator may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What the simulated server is like.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The port, on every address of the host.
    pub port: u16,
    /// Requests that are decoded at once.
    pub slots: u32,
    /// Time for each token, in milliseconds.
    pub token_ms: u64,
    /// Tokens that its key-value cache holds: small enough, long streams make it report saturation.
    pub cache_tokens: u32,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            port: 8000,
            slots: 64,
            token_ms: 5,
            cache_tokens: 4_000_000,
        }
    }
}

/// Starts a simulator that names itself after the host, on IPv4 and IPv6, and waits until it listens.
///
/// # Errors
/// When it cannot be started or does not listen.
pub fn start_simulator(host: &Host, settings: &ServerSettings) -> Result<Process, HarnessError> {
    let mut command = Command::new(program("inference-simulator", "enforcer-tests", None)?);
    command.args(["--name", host.name()]);
    for address in ["0.0.0.0", "[::]"] {
        command.args(["--listen", &format!("{address}:{}", settings.port)]);
    }
    command.args(["--slots", &settings.slots.to_string()]);
    command.args(["--token-ms", &settings.token_ms.to_string()]);
    command.args(["--cache-tokens", &settings.cache_tokens.to_string()]);
    let mut process = host.spawn(command)?;
    process.wait_for_line(START_LIMIT, |line| line.starts_with("listening on"))?;
    Ok(process)
}
