//! What is done with policies here, without an agent or around its answer: compile, compare, explain.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::arguments::{Explain, Format};
use super::commands::{ask, block_on, read_policy, show, write};
use super::{CliError, output, render};
use crate::api::reply::{PolicyApplyReply, PolicyExplainReply, PolicyShowReply};
use crate::api::{ApiError, ErrorCode, Reply, Request};
use crate::pure::compile::{Compiled, compile};
use crate::pure::diff::{Diff, diff};
use crate::pure::explain::{Known, Question, explain};
use crate::pure::neutral::Neutral;
use crate::pure::policy::{self, Diagnostic, ResolvedPolicy};
use crate::pure::snapshot::Snapshot;
use crate::pure::tables::TableSize;

/// A policy without errors.
struct Loaded {
    policy: ResolvedPolicy,
    warnings: Vec<Diagnostic>,
}

/// What a policy compiles to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sizes {
    /// Its name.
    pub(super) name: String,
    /// Its digest.
    pub(super) digest: String,
    /// How large each table is.
    pub(super) tables: BTreeMap<&'static str, TableSize>,
    /// Bytes of all tables.
    pub(super) bytes: u64,
    /// Warnings.
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// An answer to a dry run, and what would change for whom.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DryRun<'a> {
    #[serde(flatten)]
    reply: &'a PolicyApplyReply,
    /// Null: no policy is in force, so that everything is new.
    diff: Option<&'a Diff>,
}

/// Compiles a policy for a host that is none in particular, and says how large its tables are.
pub(super) fn compile_policy(path: &Path, format: Format) -> Result<(), CliError> {
    let Loaded { policy, warnings } = load_file(path)?;
    let compiled = compile_neutral(&policy, &Neutral::of(&policy))?;
    let tables: BTreeMap<&'static str, TableSize> = compiled.tables.sizes().collect();
    let sizes = Sizes {
        name: policy.name.clone(),
        digest: policy.digest().to_string(),
        bytes: tables.values().map(|size| size.bytes).sum(),
        tables,
        diagnostics: warnings,
    };
    match format {
        Format::Table => output::text(&render::policy::sizes(&sizes)),
        Format::Json => output::json(&sizes),
    }
}

/// Says what a policy would change for whom: against another file, or against the policy in force.
pub(super) fn compare(
    path: &Path,
    against: Option<&Path>,
    socket: &Path,
    exit_code: bool,
    format: Format,
) -> Result<(), CliError> {
    let to = load_file(path)?.policy;
    let from = match against {
        Some(path) => load_file(path)?.policy,
        None => in_force(socket)?,
    };
    let diff = diff(&from, &to);
    match format {
        Format::Table => output::text(&render::policy::diff(&diff))?,
        Format::Json => output::json(&diff)?,
    }
    if exit_code && !diff.is_empty() {
        return Err(CliError::Different);
    }
    Ok(())
}

/// Has the agent apply a policy; a dry run also says what would change for whom.
pub(super) fn apply(path: &Path, dry_run: bool, socket: &Path, format: Format) -> Result<(), CliError> {
    let (file, text) = (path.display().to_string(), read_policy(path)?);
    let to = dry_run.then(|| policy::load(&file, &text).policy).flatten();
    let request = Request::PolicyApply { file, text, dry_run };
    let reply = match block_on(ask(socket, request))?? {
        Reply::PolicyApply(reply) if dry_run => reply,
        other => return show(other, format),
    };
    // The agent has no errors to name, so there is a policy here too, unless the agent is of another version.
    let diff = match (to, in_force(socket)) {
        (Some(to), Ok(from)) => Some(diff(&from, &to)),
        (_, Err(error)) if !is_without_policy(&error) => return Err(error),
        _ => None,
    };
    match format {
        Format::Json => output::json(&DryRun {
            reply: &reply,
            diff: diff.as_ref(),
        }),
        Format::Table => {
            write(&reply, format)?;
            diff.map_or(Ok(()), |diff| {
                output::text(&format!("\n{}", render::policy::diff(&diff)))
            })
        }
    }
}

/// Explains what a packet would get under a policy that need not be in force: every back end healthy, no flow open, all
/// limits unused.
pub(super) fn explain_locally(question: &Explain, path: &Path, format: Format) -> Result<(), CliError> {
    let policy = load_file(path)?.policy;
    let neutral = Neutral::of(&policy);
    let Compiled {
        tables, directory, ..
    } = compile_neutral(&policy, &neutral)?;
    let snapshot = Snapshot {
        tables,
        ..Snapshot::default()
    };
    let inputs = neutral.inputs(&policy);
    let known = Known {
        inputs: &inputs,
        directory: &directory,
        snapshot: &snapshot,
    };
    let (to, protocol) = question.to;
    let question = Question {
        from: question.from,
        to,
        protocol,
    };
    // Limiters that were never used are as full at one time as at another.
    write(
        &PolicyExplainReply::of(&question, explain(&known, &question, 0)),
        format,
    )
}

/// Reads and resolves a policy file.
fn load_file(path: &Path) -> Result<Loaded, CliError> {
    load_text(&path.display().to_string(), &read_policy(path)?)
}

fn load_text(file: &str, text: &str) -> Result<Loaded, CliError> {
    let policy::Outcome { policy, diagnostics } = policy::load(file, text);
    match policy {
        Some(policy) => Ok(Loaded {
            policy,
            warnings: diagnostics,
        }),
        None => {
            let message = format!("{file} is no policy that could be enforced");
            Err(CliError::Policy(Box::new(
                ApiError::new(ErrorCode::PolicyInvalid, message).with("diagnostics", diagnostics),
            )))
        }
    }
}

fn compile_neutral(policy: &ResolvedPolicy, neutral: &Neutral) -> Result<Compiled, CliError> {
    compile(&neutral.inputs(policy))
        .map_err(|error| CliError::Policy(Box::new(ApiError::new(ErrorCode::Refused, error.to_string()))))
}

/// The policy that the agent has in force.
fn in_force(socket: &Path) -> Result<ResolvedPolicy, CliError> {
    match block_on(ask(socket, Request::PolicyShow { generation: None }))?? {
        Reply::PolicyShow(PolicyShowReply { policy, text, .. }) => Ok(load_text(&policy.file, &text)?.policy),
        other => Err(CliError::OtherReply(Box::new(other))),
    }
}

fn is_without_policy(error: &CliError) -> bool {
    matches!(
        error.refusal(),
        Some(ApiError {
            code: ErrorCode::NotFound,
            ..
        })
    )
}
