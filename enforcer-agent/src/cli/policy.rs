//! What is done with policies here, without an agent or around its answer: compile, compare, explain.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::arguments::{Explain, Format, Policy};
use super::commands::{ask, block_on, show, write};
use super::{CliError, output, render, simulation};
use crate::adapters::policy_files;
use crate::api::reply::{PolicyApplyReply, PolicyExplainReply, PolicyShowReply};
use crate::api::{ApiError, ErrorCode, Reply, Request};
use crate::pure::compile::{Compiled, compile};
use crate::pure::diff::{Diff, diff};
use crate::pure::explain::{Known, Moment, Question, explain};
use crate::pure::neutral::Neutral;
use crate::pure::policy::diagnostic::render_all;
use crate::pure::policy::{self, Diagnostic, PolicySource, ResolvedPolicy, Severity, name_of};
use crate::pure::snapshot::Snapshot;
use crate::pure::tables::TableSize;

/// A policy without errors.
pub(super) struct Loaded {
    pub(super) policy: ResolvedPolicy,
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

/// Carries a command about policies out.
pub(super) fn execute(command: Policy, socket: &Path, format: Format) -> Result<(), CliError> {
    let remote = |request| block_on(ask(socket, request))?.and_then(|reply| show(reply, format));
    match command {
        Policy::Check { paths } => check_policy(&paths, format),
        Policy::Schema => output::text(&policy::schema::text()),
        Policy::Compile { paths } => compile_policy(&paths, format),
        Policy::Diff {
            paths,
            against,
            exit_code,
        } => compare(&paths, against, socket, exit_code, format),
        Policy::Apply { paths, dry_run } => apply(&paths, dry_run, socket, format),
        Policy::Show { generation } => remote(Request::PolicyShow { generation }),
        Policy::History => remote(Request::PolicyHistory),
        Policy::Rollback { generation } => remote(Request::PolicyRollback { generation }),
        Policy::Explain(question) => match question.policy.clone() {
            Some(path) => explain_locally(&question, path, format),
            None => {
                let Explain {
                    from,
                    to: (to, protocol),
                    policy: _,
                    at,
                } = question;
                remote(Request::PolicyExplain {
                    from,
                    to,
                    protocol,
                    at,
                })
            }
        },
        Policy::Simulate(simulate) => simulation::run(&simulate, socket, format),
    }
}

/// Says everything that is wrong with a policy.
fn check_policy(paths: &[PathBuf], format: Format) -> Result<(), CliError> {
    let outcome = policy::load_all(&policy_files::read(paths)?);
    let digest = outcome.policy.as_ref().map(|policy| policy.digest().to_string());
    let valid = outcome
        .diagnostics
        .iter()
        .all(|diagnostic| diagnostic.severity != Severity::Error);
    match format {
        Format::Json => {
            output::json(&json!({ "valid": valid, "digest": digest, "diagnostics": outcome.diagnostics }))?;
        }
        Format::Table => {
            let mut shown = render_all(&outcome.diagnostics, output::colours(&io::stdout()));
            if let Some(policy) = &outcome.policy {
                shown += &render::checked(policy);
            }
            output::text(&shown)?;
        }
    }
    if valid { Ok(()) } else { Err(CliError::Problems) }
}

/// Compiles a policy for a host that is none in particular, and says how large its tables are.
pub(super) fn compile_policy(paths: &[PathBuf], format: Format) -> Result<(), CliError> {
    let Loaded { policy, warnings } = load_files(paths)?;
    let compiled = compile_neutral(&policy, &Neutral::of(&policy, None))?;
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
    paths: &[PathBuf],
    against: Option<PathBuf>,
    socket: &Path,
    exit_code: bool,
    format: Format,
) -> Result<(), CliError> {
    let to = load_files(paths)?.policy;
    let from = match against {
        Some(path) => load_files(&[path])?.policy,
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
pub(super) fn apply(paths: &[PathBuf], dry_run: bool, socket: &Path, format: Format) -> Result<(), CliError> {
    let sources = policy_files::read(paths)?;
    let to = dry_run.then(|| policy::load_all(&sources).policy).flatten();
    let request = Request::PolicyApply { sources, dry_run };
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
pub(super) fn explain_locally(question: &Explain, path: PathBuf, format: Format) -> Result<(), CliError> {
    let policy = load_files(&[path])?.policy;
    let moment = Moment {
        // Limiters that were never used are as full at one time as at another.
        kernel_ns: 0,
        wall: question.at.unwrap_or_else(Timestamp::now),
    };
    let at = question.at;
    let neutral = Neutral::of(&policy, Some(moment.wall));
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
    let reply = PolicyExplainReply {
        at,
        ..PolicyExplainReply::of(&question, explain(&known, &question, moment))
    };
    write(&reply, format)
}

/// Reads and resolves a policy.
pub(super) fn load_files(paths: &[PathBuf]) -> Result<Loaded, CliError> {
    load_texts(&policy_files::read(paths)?)
}

fn load_texts(sources: &[PolicySource]) -> Result<Loaded, CliError> {
    let policy::Outcome { policy, diagnostics } = policy::load_all(sources);
    match policy {
        Some(policy) => Ok(Loaded {
            policy,
            warnings: diagnostics,
        }),
        None => {
            let message = format!("{} is no policy that could be enforced", name_of(sources));
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
pub(super) fn in_force(socket: &Path) -> Result<ResolvedPolicy, CliError> {
    match block_on(ask(socket, Request::PolicyShow { generation: None }))?? {
        Reply::PolicyShow(PolicyShowReply { sources, .. }) => Ok(load_texts(&sources)?.policy),
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
