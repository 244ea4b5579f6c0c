//! `doctor`: facts, judgement, answer.

use std::path::Path;

use serde_json::json;

use super::CliError;
use super::arguments::Format;
use super::{output, render};
use crate::adapters::host_facts;
use crate::config::Config;
use crate::pure::doctor::{State, judge};

/// Looks at this host and says what it found; [`CliError::Problems`] if the agent would not run here.
pub(super) async fn examine(config: Option<&Path>, format: Format) -> Result<(), CliError> {
    let (loaded, outcome) = match config.map(Config::load) {
        None => (None, None),
        Some(Ok(config)) => (Some(config), Some(Ok(()))),
        Some(Err(error)) => (None, Some(Err(error.to_string()))),
    };
    let mut facts = host_facts::gather(loaded.as_ref()).await;
    facts.configuration = config.map(|path| path.display().to_string()).zip(outcome);
    let checks = judge(&facts);
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (problems, warnings) = (count(State::Problem), count(State::Warning));
    match format {
        Format::Json => {
            output::json(&json!({ "problems": problems, "warnings": warnings, "checks": checks }))?;
        }
        Format::Table => output::text(&render::checks(&checks))?,
    }
    if problems == 0 {
        Ok(())
    } else {
        Err(CliError::Problems)
    }
}
