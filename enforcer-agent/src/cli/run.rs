//! `run`: the process around the daemon: its log and its signals.

use std::io;
use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::CliError;
use super::arguments::Format;
use super::output;
use crate::config::Config;
use crate::daemon;

/// Names what is logged, in the syntax of `tracing_subscriber::EnvFilter`.
const LOG_VARIABLE: &str = "ENFORCER_LOG";
const DEFAULT_LOG: &str = "info";

/// Runs the daemon until SIGTERM or SIGINT, or until it is detached.
pub(super) fn run(config: &Path, format: Format) -> Result<(), CliError> {
    let config = Config::load(config)?;
    start_log(format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(CliError::Start)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Start)?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        daemon::run(config, shutdown).await.map_err(CliError::from)
    })
}

fn start_log(format: Format) {
    let filter = EnvFilter::builder()
        .with_env_var(LOG_VARIABLE)
        .try_from_env()
        .unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(output::colours(&io::stderr()));
    match format {
        Format::Table => log.init(),
        Format::Json => log.json().init(),
    }
}
