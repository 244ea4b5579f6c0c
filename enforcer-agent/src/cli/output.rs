//! Answers to standard output, errors to standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::CliError;
use super::arguments::Format;
use super::render::clean;
use crate::pure::policy::Diagnostic;
use crate::pure::policy::diagnostic::render_all;

/// Between two looks at whether somebody still reads.
const CLOSED_INTERVAL: Duration = Duration::from_millis(100);

/// Writes text as it is.
pub(super) fn text(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a value as JSON over several lines.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let mut written = serde_json::to_string_pretty(value).map_err(CliError::Json)?;
    written.push('\n');
    text(&written)
}

/// Writes a value as JSON on one line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), CliError> {
    let mut written = serde_json::to_string(value).map_err(CliError::Json)?;
    written.push('\n');
    text(&written)
}

/// Says something beside an answer that takes standard output for itself.
pub(super) fn note(text: &str) {
    // Nobody is left to tell if this fails.
    let _closed = io::stderr().write_all(text.as_bytes());
}

/// Completes when somebody interrupts the command, or nobody reads its standard output any more.
pub(super) fn interrupted() -> Result<impl Future<Output = ()>, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Start)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Start)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = closed() => {}
        }
    })
}

/// Completes when standard output is a pipe that nobody reads any more.
async fn closed() {
    loop {
        let out = io::stdout();
        let mut polled = [PollFd::new(&out, PollFlags::empty())];
        let looked = poll(&mut polled, Some(&Timespec::default()));
        if looked.is_ok() && polled[0].revents().contains(PollFlags::ERR) {
            return;
        }
        sleep(CLOSED_INTERVAL).await;
    }
}

/// Whether a stream shows colours.
pub(super) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Says on standard error why a command did not end well.
pub(super) fn report(error: &CliError, format: Format) {
    if error.is_silent() {
        return;
    }
    let message = match (format, error.refusal()) {
        (Format::Json, Some(refusal)) => json!({ "error": refusal }).to_string(),
        (Format::Json, None) => json!({ "error": { "message": error.to_string() } }).to_string(),
        (Format::Table, refusal) => {
            let diagnostics: Vec<Diagnostic> = refusal
                .and_then(|refusal| refusal.details.get("diagnostics"))
                .and_then(|diagnostics| serde_json::from_value(diagnostics.clone()).ok())
                .unwrap_or_default();
            let shown = render_all(&diagnostics, colours(&io::stderr()));
            format!(
                "{shown}error: {}",
                error
                    .to_string()
                    .lines()
                    .map(clean)
                    .collect::<Vec<_>>()
                    .join("\n")
            )
        }
    };
    // Nobody is left to tell if this fails.
    let _closed = writeln!(io::stderr(), "{message}");
}
