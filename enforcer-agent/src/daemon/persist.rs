//! What must survive a restart of the agent: the policy in force, who applied it, the slots that records in the kernel
//! refer to, and what operators have suspended or drained.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::Actor;
use crate::ports::StateStore;
use crate::pure::compile::Slots;
use crate::pure::policy::PolicySource;

/// Raised with every change that an older agent would misread.
const FORM: u32 = 2;
/// The oldest form that is read: its policies had one text.
const OLDEST_FORM: u32 = 1;

/// The state file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct State {
    form: u32,
    /// The policy that was applied last.
    pub(crate) policy: Option<AppliedPolicy>,
    /// Slots by name.
    pub(crate) slots: Slots,
    /// Suspended tenants.
    pub(crate) suspended: BTreeSet<String>,
    /// Drained back ends.
    pub(crate) draining: BTreeSet<String>,
}

/// A policy and who applied it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "StoredPolicy")]
pub(crate) struct AppliedPolicy {
    /// Its texts.
    pub(crate) sources: Vec<PolicySource>,
    /// When.
    pub(crate) applied_at: Timestamp,
    /// By whom; `None`: by the agent's own configuration.
    pub(crate) applied_by: Option<Actor>,
}

/// An [`AppliedPolicy`] as any form of the state file has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredPolicy {
    #[serde(default)]
    sources: Vec<PolicySource>,
    /// Of form 1: the name of its only text.
    file: Option<String>,
    /// Of form 1: its only text.
    text: Option<String>,
    applied_at: Timestamp,
    applied_by: Option<Actor>,
}

impl From<StoredPolicy> for AppliedPolicy {
    fn from(stored: StoredPolicy) -> Self {
        let StoredPolicy {
            mut sources,
            file,
            text,
            applied_at,
            applied_by,
        } = stored;
        sources.extend(text.map(|text| PolicySource::new(file.unwrap_or_default(), text)));
        Self {
            sources,
            applied_at,
            applied_by,
        }
    }
}

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refuses.
    #[error("the state file {path}: {source}; check `stateDirectory` in the agent's configuration")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a state file of this version.
    #[error(
        "the state file {path} cannot be understood: {source}; move it away to start without a policy, what the kernel \
         enforces goes on meanwhile"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A later version wrote it.
    #[error(
        "the state file {path} has form {form}, this agent knows form {FORM}: run the agent that wrote it"
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// Its form.
        form: u32,
    },
}

fn path_in(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

/// The state in a file of the state directory.
#[derive(Debug)]
pub(crate) struct StateFile {
    directory: PathBuf,
}

impl StateFile {
    /// The file need not exist yet.
    pub(crate) const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }
}

impl StateStore for StateFile {
    fn load(&self) -> Result<State, StateError> {
        load(&self.directory)
    }

    fn store(&mut self, state: &State) -> Result<(), StateError> {
        store(&self.directory, state)
    }
}

/// Reads the state; a fresh one if there is none yet.
fn load(directory: &Path) -> Result<State, StateError> {
    let path = path_in(directory);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(State {
                form: FORM,
                ..State::default()
            });
        }
        Err(source) => return Err(StateError::Io { path, source }),
    };
    let state: State = serde_json::from_slice(&text).map_err(|source| StateError::Content {
        path: path.clone(),
        source,
    })?;
    if !(OLDEST_FORM..=FORM).contains(&state.form) {
        return Err(StateError::Form {
            path,
            form: state.form,
        });
    }
    Ok(State { form: FORM, ..state })
}

/// Writes the state beside the old one, syncs it and renames it over: at no moment is there half a file.
fn store(directory: &Path, state: &State) -> Result<(), StateError> {
    let path = path_in(directory);
    let wrap = |source| StateError::Io {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(directory).map_err(wrap)?;
    let text = serde_json::to_vec_pretty(&State {
        form: FORM,
        ..state.clone()
    })
    .map_err(|source| StateError::Content {
        path: path.clone(),
        source,
    })?;
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside).map_err(wrap)?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .map_err(wrap)?;
    fs::rename(&beside, &path).map_err(wrap)?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            load(directory.path()).unwrap(),
            State {
                form: FORM,
                ..State::default()
            }
        );
        let mut state = State {
            form: FORM,
            ..State::default()
        };
        state.suspended.insert("acme".to_owned());
        state.policy = Some(AppliedPolicy {
            sources: vec![
                PolicySource::new("p.yaml", "kind: GovernancePolicy\n"),
                PolicySource::new("q.yaml", ""),
            ],
            applied_at: Timestamp::UNIX_EPOCH,
            applied_by: Some(Actor { uid: 1, pid: Some(2) }),
        });
        store(directory.path(), &state).unwrap();
        assert_eq!(load(directory.path()).unwrap(), state);
    }

    #[test]
    fn half_a_file_and_a_later_form_are_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(path_in(directory.path()), b"{\"form\": 1, \"slo").unwrap();
        let error = load(directory.path()).unwrap_err();
        assert!(
            matches!(&error, StateError::Content { .. }) && error.to_string().contains("move it away"),
            "{error}"
        );
        let later = State {
            form: FORM + 1,
            ..State::default()
        };
        fs::write(path_in(directory.path()), serde_json::to_vec(&later).unwrap()).unwrap();
        assert!(matches!(
            load(directory.path()).unwrap_err(),
            StateError::Form { form, .. } if form == FORM + 1
        ));
    }

    #[test]
    fn a_state_of_the_first_form_keeps_its_policy() {
        let directory = tempfile::tempdir().unwrap();
        let now = State {
            form: OLDEST_FORM,
            ..State::default()
        };
        let mut old = serde_json::to_value(&now).unwrap();
        old["policy"] = serde_json::json!({
            "file": "p.yaml", "text": "kind: X\n", "appliedAt": "2026-11-22T20:00:00Z", "appliedBy": null,
        });
        fs::write(path_in(directory.path()), old.to_string()).unwrap();
        let state = load(directory.path()).unwrap();
        assert_eq!(state.form, FORM);
        let policy = state.policy.expect("there is one");
        assert_eq!(policy.sources, [PolicySource::new("p.yaml", "kind: X\n")]);
    }
}
