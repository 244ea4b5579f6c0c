//! What must survive a restart of the agent: the policy in force, who applied it, the slots that records in the kernel
//! refer to, and what operators have suspended or drained.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::api::Actor;
use crate::ports::StateStore;
use crate::pure::compile::Slots;
use crate::pure::policy::PolicySource;

/// Raised with every change that an older agent would misread.
const FORM: u32 = 2;
/// The form in which the policy stood in the state file itself.
const FORM_WITH_POLICY: u32 = 1;

/// What is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The policy that was applied last.
    pub(crate) policy: Option<AppliedPolicy>,
    /// Slots by name.
    pub(crate) slots: Slots,
    /// Suspended tenants.
    pub(crate) suspended: BTreeSet<String>,
    /// Drained back ends.
    pub(crate) draining: BTreeSet<String>,
}

/// The state file. The policy has a file of its own, named by its hash: it is by far the largest part, and most changes
/// leave it as it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    form: u32,
    policy: Option<PolicyPlace>,
    slots: Slots,
    suspended: BTreeSet<String>,
    draining: BTreeSet<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum PolicyPlace {
    /// SHA-256 of the policy's file, in hexadecimal digits.
    Hash(String),
    Here(Box<AppliedPolicy>),
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
    /// The policy's file is not the one that the state was stored with.
    #[error(
        "the stored policy {path} was changed since it was stored; move state.json away to start without a policy, what \
         the kernel enforces goes on meanwhile"
    )]
    Policy {
        /// The file.
        path: PathBuf,
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

fn policy_path(directory: &Path, hash: &str) -> PathBuf {
    directory.join(format!("policy-{hash}.json"))
}

/// The state in files of the state directory.
#[derive(Debug)]
pub(crate) struct StateFile {
    directory: PathBuf,
    /// The policy whose file is there, and the hash of that.
    stored: Option<(AppliedPolicy, String)>,
}

impl StateFile {
    /// The files need not exist yet.
    pub(crate) const fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            stored: None,
        }
    }

    /// Makes sure that the policy's file is there; its hash.
    fn store_policy(&mut self, policy: &AppliedPolicy) -> Result<String, StateError> {
        if let Some((stored, hash)) = &self.stored
            && stored == policy
        {
            return Ok(hash.clone());
        }
        let content = serde_json::to_vec(policy).map_err(|source| StateError::Content {
            path: path_in(&self.directory),
            source,
        })?;
        let hash = hash_of(&content);
        write_whole(&self.directory, &policy_path(&self.directory, &hash), &content)?;
        self.stored = Some((policy.clone(), hash.clone()));
        Ok(hash)
    }

    /// Removes the policies that no state refers to any more. What cannot be removed does no harm.
    fn remove_others(&self, kept: Option<&str>) {
        let kept = kept.map(|hash| policy_path(&self.directory, hash));
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name.starts_with("policy-") && name.ends_with(".json") && Some(&path) != kept.as_ref() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl StateStore for StateFile {
    fn load(&self) -> Result<State, StateError> {
        load(&self.directory)
    }

    fn store(&mut self, state: &State) -> Result<(), StateError> {
        fs::create_dir_all(&self.directory).map_err(|source| StateError::Io {
            path: self.directory.clone(),
            source,
        })?;
        let before = self.stored.as_ref().map(|(_, hash)| hash.clone());
        let hash = state
            .policy
            .as_ref()
            .map(|policy| self.store_policy(policy))
            .transpose()?;
        let path = path_in(&self.directory);
        let State {
            policy: _,
            slots,
            suspended,
            draining,
        } = state.clone();
        let content = serde_json::to_vec(&Content {
            form: FORM,
            policy: hash.clone().map(PolicyPlace::Hash),
            slots,
            suspended,
            draining,
        });
        let content = content.map_err(|source| StateError::Content {
            path: path.clone(),
            source,
        })?;
        write_whole(&self.directory, &path, &content)?;
        if hash != before {
            self.remove_others(hash.as_deref());
        }
        Ok(())
    }
}

fn hash_of(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the state; a fresh one if there is none yet.
fn load(directory: &Path) -> Result<State, StateError> {
    let path = path_in(directory);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
        Err(source) => return Err(StateError::Io { path, source }),
    };
    let content: Content = serde_json::from_slice(&text).map_err(|source| StateError::Content {
        path: path.clone(),
        source,
    })?;
    let Content {
        form,
        policy,
        slots,
        suspended,
        draining,
    } = content;
    if form != FORM && form != FORM_WITH_POLICY {
        return Err(StateError::Form { path, form });
    }
    let policy = match policy {
        None => None,
        Some(PolicyPlace::Here(policy)) => Some(*policy),
        Some(PolicyPlace::Hash(hash)) => Some(load_policy(directory, &hash)?),
    };
    Ok(State {
        policy,
        slots,
        suspended,
        draining,
    })
}

fn load_policy(directory: &Path, hash: &str) -> Result<AppliedPolicy, StateError> {
    // What is no hash names no file.
    let path = policy_path(directory, hash);
    if hash.len() != 64 || !hash.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(StateError::Policy { path });
    }
    let content = fs::read(&path).map_err(|source| StateError::Io {
        path: path.clone(),
        source,
    })?;
    if hash_of(&content) != hash {
        return Err(StateError::Policy { path });
    }
    serde_json::from_slice(&content).map_err(|source| StateError::Content { path, source })
}

/// Writes a file beside the old one, syncs it and renames it over: at no moment is there half a file.
fn write_whole(directory: &Path, path: &Path, content: &[u8]) -> Result<(), StateError> {
    let wrap = |source| StateError::Io {
        path: path.to_owned(),
        source,
    };
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside).map_err(wrap)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(wrap)?;
    fs::rename(&beside, path).map_err(wrap)?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> AppliedPolicy {
        AppliedPolicy {
            sources: vec![PolicySource::new("p.yaml", text), PolicySource::new("q.yaml", "")],
            applied_at: Timestamp::UNIX_EPOCH,
            applied_by: Some(Actor { uid: 1, pid: Some(2) }),
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = StateFile::new(directory.path().to_owned());
        assert_eq!(file.load().unwrap(), State::default());
        let mut state = State::default();
        for text in ["kind: GovernancePolicy\n", "another", "kind: GovernancePolicy\n"] {
            state.suspended.insert(text.to_owned());
            state.policy = Some(policy(text));
            file.store(&state).unwrap();
            assert_eq!(file.load().unwrap(), state);
            assert_eq!(
                names(directory.path()).len(),
                2,
                "the state, and the policy in force"
            );
        }
    }

    #[test]
    fn a_change_that_leaves_the_policy_alone_does_not_write_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = StateFile::new(directory.path().to_owned());
        let mut state = State {
            policy: Some(policy("text")),
            ..State::default()
        };
        file.store(&state).unwrap();
        let path = directory.path().join(&names(directory.path())[0]);
        fs::remove_file(&path).unwrap();
        state.draining.insert("gpu-1".to_owned());
        file.store(&state).unwrap();
        assert!(!path.exists(), "it was taken to be there");
        assert!(matches!(file.load().unwrap_err(), StateError::Io { .. }));
    }

    #[test]
    fn a_policy_that_was_changed_is_refused_and_an_older_state_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = StateFile::new(directory.path().to_owned());
        let state = State {
            policy: Some(policy("text")),
            ..State::default()
        };
        file.store(&state).unwrap();
        let path = directory.path().join(&names(directory.path())[0]);
        fs::write(&path, serde_json::to_vec(&policy("other")).unwrap()).unwrap();
        assert!(matches!(file.load().unwrap_err(), StateError::Policy { .. }));

        let old = Content {
            form: FORM_WITH_POLICY,
            policy: Some(PolicyPlace::Here(Box::new(policy("text")))),
            slots: Slots::default(),
            suspended: BTreeSet::new(),
            draining: BTreeSet::new(),
        };
        fs::write(path_in(directory.path()), serde_json::to_vec(&old).unwrap()).unwrap();
        assert_eq!(file.load().unwrap(), state);
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
        let later = Content {
            form: 3,
            policy: None,
            slots: Slots::default(),
            suspended: BTreeSet::new(),
            draining: BTreeSet::new(),
        };
        fs::write(path_in(directory.path()), serde_json::to_vec(&later).unwrap()).unwrap();
        assert!(matches!(
            load(directory.path()).unwrap_err(),
            StateError::Form { form: 3, .. }
        ));
    }

    #[test]
    fn a_state_of_the_first_form_keeps_its_policy() {
        let directory = tempfile::tempdir().unwrap();
        let now = Content {
            form: FORM_WITH_POLICY,
            policy: None,
            slots: Slots::default(),
            suspended: BTreeSet::new(),
            draining: BTreeSet::new(),
        };
        let mut old = serde_json::to_value(&now).unwrap();
        old["policy"] = serde_json::json!({
            "file": "p.yaml", "text": "kind: X\n", "appliedAt": "2026-11-22T20:00:00Z", "appliedBy": null,
        });
        fs::write(path_in(directory.path()), old.to_string()).unwrap();
        let state = load(directory.path()).unwrap();
        let policy = state.policy.expect("there is one");
        assert_eq!(policy.sources, [PolicySource::new("p.yaml", "kind: X\n")]);
    }
}
