//! Which policies were applied: when, by whom, and their whole text, so that each can be shown and applied again.
//!
//! One file for each, numbered in the order in which they were applied. Their number and their bytes are bounded: the
//! oldest goes first. What cannot be read is named and left alone. A policy that cannot be written here is in force all
//! the same, since the state file has it: the status says so, and the next fold tries again.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::persist::AppliedPolicy;
use crate::api::Actor;
use crate::ports::HistoryStore;
use crate::pure::policy::bounds::MAX_TEXT_BYTES;
use crate::pure::policy::name_of;

/// Raised with every change that an older agent would misread.
const FORM: u32 = 1;
/// What is kept.
pub(crate) const BOUNDS: Bounds = Bounds {
    entries: 100,
    bytes: 64 << 20,
};
/// Largest file that is read: a text in which JSON has to escape every byte.
const MAX_FILE_BYTES: u64 = 6 * MAX_TEXT_BYTES as u64 + (64 << 10);
/// Most files that are named as damaged.
const MAX_DAMAGED: usize = 8;

/// How much is kept. The newest entry stays, however large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Most entries.
    pub(crate) entries: usize,
    /// Most bytes, over all entries.
    pub(crate) bytes: u64,
}

/// A policy that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HistoryEntry {
    form: u32,
    /// The generation that was live when it had been applied.
    pub(crate) generation: u64,
    /// The policy's name.
    pub(crate) name: String,
    /// Its digest.
    pub(crate) digest: String,
    /// Of a rollback: the generation whose policy it brought back.
    pub(crate) rollback_of: Option<u64>,
    /// Text, time and actor.
    pub(crate) policy: AppliedPolicy,
}

/// What is known of an entry without reading it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    number: u64,
    /// The generation that was live when it had been applied.
    pub(crate) generation: u64,
    /// The policy's name.
    pub(crate) name: String,
    /// Its digest.
    pub(crate) digest: String,
    /// Of a rollback: the generation whose policy it brought back.
    pub(crate) rollback_of: Option<u64>,
    /// What the texts were called.
    pub(crate) file: String,
    /// When it was applied.
    pub(crate) applied_at: Timestamp,
    /// By whom; `None`: by the agent's own configuration.
    pub(crate) applied_by: Option<Actor>,
    /// What it takes on disk.
    pub(crate) bytes: u64,
}

/// Why an entry cannot be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// The file system refuses.
    #[error("the policy history {}: {source}; check `stateDirectory` in the agent's configuration", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not an entry of this version.
    #[error("the policy history's {} cannot be understood and is skipped: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A later version wrote it.
    #[error("the policy history's {} has form {form}, this agent knows form {FORM}; it is skipped", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Its form.
        form: u32,
    },
    /// Somebody removed it.
    #[error(
        "the policy history's entry {number} is gone; `enforcer-agent policy history` lists what is left after a restart"
    )]
    Gone {
        /// Its number.
        number: u64,
    },
    /// No text that was accepted needs that much.
    #[error("the policy history's {} is larger than {MAX_FILE_BYTES} bytes and is skipped", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// The applied policies, as the loop knows them.
pub(crate) struct History {
    store: Box<dyn HistoryStore>,
    bounds: Bounds,
    known: Known,
}

/// What the loop remembers of them.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The number of the next entry; `None`: which there are could not be found out yet.
    next: Option<u64>,
    /// Whether that entry may be there already: writing it failed.
    unsure: bool,
    /// Oldest first.
    entries: Vec<Summary>,
    /// Numbers of those that could not be read, ascending.
    unread: Vec<u64>,
    /// Still to be removed.
    surplus: Vec<u64>,
    damaged: Vec<String>,
}

// === impl HistoryEntry ===

impl HistoryEntry {
    /// An entry of this version.
    pub(crate) const fn new(
        generation: u64,
        name: String,
        digest: String,
        rollback_of: Option<u64>,
        policy: AppliedPolicy,
    ) -> Self {
        Self {
            form: FORM,
            generation,
            name,
            digest,
            rollback_of,
            policy,
        }
    }
}

// === impl Summary ===

impl Summary {
    fn of(number: u64, entry: HistoryEntry, bytes: u64) -> Self {
        let AppliedPolicy {
            sources,
            applied_at,
            applied_by,
        } = entry.policy;
        Self {
            number,
            generation: entry.generation,
            name: entry.name,
            digest: entry.digest,
            rollback_of: entry.rollback_of,
            file: name_of(&sources),
            applied_at,
            applied_by,
            bytes,
        }
    }

    /// Whether it tells of this application of a policy with this digest.
    pub(crate) fn is_of(&self, policy: &AppliedPolicy, digest: &str) -> bool {
        self.applied_at == policy.applied_at
            && self.applied_by == policy.applied_by
            && self.file == name_of(&policy.sources)
            && self.digest == digest
    }
}

// === impl History ===

impl History {
    /// The entries of a store. If they cannot be listed now, that is tried again when something is to be kept.
    pub(crate) fn new(store: Box<dyn HistoryStore>, bounds: Bounds) -> Self {
        let known = Known::default();
        let mut history = Self { store, bounds, known };
        if let Err(error) = history.list() {
            history.known.damaged = vec![error.to_string()];
        }
        history
    }

    /// The same knowledge over another store.
    #[cfg(test)]
    pub(crate) fn with_store(&self, store: Box<dyn HistoryStore>) -> Self {
        Self {
            store,
            bounds: self.bounds,
            known: self.known.clone(),
        }
    }

    /// How many entries beyond the bounds could not be removed yet.
    #[cfg(test)]
    pub(crate) fn surplus(&self) -> usize {
        self.known.surplus.len()
    }

    /// All entries, oldest first.
    pub(crate) fn entries(&self) -> &[Summary] {
        &self.known.entries
    }

    /// The newest entry of a generation: several have the same where policies differed in nothing that is enforced.
    pub(crate) fn of_generation(&self, generation: u64) -> Option<&Summary> {
        let mut newest_first = self.known.entries.iter().rev();
        newest_first.find(|entry| entry.generation == generation)
    }

    /// The newest entry before a policy that has another digest than it has.
    pub(crate) fn before(&self, policy: &AppliedPolicy, digest: &str) -> Option<&Summary> {
        let entries = &self.known.entries;
        let own = entries.iter().rposition(|entry| entry.is_of(policy, digest));
        let earlier = &entries[..own.unwrap_or(entries.len())];
        earlier.iter().rev().find(|entry| entry.digest != digest)
    }

    /// What an operator should look at, a sentence each.
    pub(crate) fn damaged(&self) -> &[String] {
        &self.known.damaged
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// If it is not there any more, or damaged.
    pub(crate) fn read(&self, entry: &Summary) -> Result<HistoryEntry, HistoryError> {
        let number = entry.number;
        let (entry, _) = self.store.read(number)?.ok_or(HistoryError::Gone { number })?;
        Ok(entry)
    }

    /// Writes an entry and drops what is too old for the bounds.
    ///
    /// # Errors
    /// If it could not be written. What could not be removed is tried again with the next one.
    pub(crate) fn keep(&mut self, entry: HistoryEntry) -> Result<(), HistoryError> {
        let mut number = match self.known.next {
            Some(number) => number,
            None => self.list()?,
        };
        if self.known.unsure {
            if let Some((there, bytes)) = self.store.read(number)? {
                let is_same = there == entry;
                self.written(number, there, bytes);
                if is_same {
                    return Ok(());
                }
                number += 1;
            }
            self.known.unsure = false;
        }
        match self.store.write(number, &entry) {
            Ok(bytes) => self.written(number, entry, bytes),
            Err(error) => {
                self.known.unsure = true;
                return Err(error);
            }
        }
        Ok(())
    }

    fn written(&mut self, number: u64, entry: HistoryEntry, bytes: u64) {
        self.known.next = Some(number + 1);
        self.known.unsure = false;
        self.known.entries.push(Summary::of(number, entry, bytes));
        self.prune();
    }

    /// Learns what there is; the number of the next entry.
    fn list(&mut self) -> Result<u64, HistoryError> {
        let numbers = self.store.numbers()?;
        let next = numbers.last().map_or(1, |last| last + 1);
        let surplus = numbers.len().saturating_sub(self.bounds.entries);
        let mut known = Known {
            next: Some(next),
            surplus: numbers[..surplus].to_vec(),
            ..Known::default()
        };
        for number in &numbers[surplus..] {
            match self.store.read(*number) {
                Ok(Some((entry, bytes))) => known.entries.push(Summary::of(*number, entry, bytes)),
                Ok(None) => {}
                Err(error) => {
                    known.unread.push(*number);
                    if known.damaged.len() < MAX_DAMAGED {
                        known.damaged.push(error.to_string());
                    }
                }
            }
        }
        self.known = known;
        Ok(next)
    }

    fn prune(&mut self) {
        let Known {
            entries,
            unread,
            surplus,
            ..
        } = &mut self.known;
        let mut bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        while entries.len() > 1
            && (entries.len() + unread.len() > self.bounds.entries || bytes > self.bounds.bytes)
        {
            if unread.first().is_some_and(|number| *number < entries[0].number) {
                surplus.push(unread.remove(0));
            } else {
                let oldest = entries.remove(0);
                bytes -= oldest.bytes;
                surplus.push(oldest.number);
            }
        }
        let store = &mut self.store;
        surplus.retain(|number| match store.remove(*number) {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%error, "an old policy stays in the history");
                true
            }
        });
    }
}

/// The history in files of a directory below the state directory.
#[derive(Debug)]
pub(crate) struct HistoryDirectory {
    directory: PathBuf,
}

// === impl HistoryDirectory ===

impl HistoryDirectory {
    /// The directory need not exist yet.
    pub(crate) fn new(state_directory: &Path) -> Self {
        Self {
            directory: state_directory.join("history"),
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:020}.json"))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> HistoryError {
    let path = path.to_owned();
    move |source| HistoryError::Io {
        path: path.clone(),
        source,
    }
}

impl HistoryStore for HistoryDirectory {
    fn numbers(&self) -> Result<Vec<u64>, HistoryError> {
        let listed = match fs::read_dir(&self.directory) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error(&self.directory)(source)),
        };
        let mut numbers = Vec::new();
        for entry in listed {
            let name = entry.map_err(io_error(&self.directory))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".json"));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        // A number that is the last one would leave none for the next entry; nobody but a vandal gave it.
        numbers.retain(|number| *number < u64::MAX);
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn read(&self, number: u64) -> Result<Option<(HistoryEntry, u64)>, HistoryError> {
        let path = self.path(number);
        let mut text = Vec::new();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error(&path)(source)),
        };
        let bytes = file
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(io_error(&path))? as u64;
        if bytes > MAX_FILE_BYTES {
            return Err(HistoryError::TooLarge { path });
        }
        match serde_json::from_slice::<HistoryEntry>(&text) {
            Ok(HistoryEntry { form, .. }) if form != FORM => Err(HistoryError::Form { path, form }),
            Ok(entry) => Ok(Some((entry, bytes))),
            Err(source) => Err(HistoryError::Content { path, source }),
        }
    }

    /// Writes beside, syncs and renames: at no moment is there half an entry.
    fn write(&mut self, number: u64, entry: &HistoryEntry) -> Result<u64, HistoryError> {
        let path = self.path(number);
        let text = serde_json::to_vec_pretty(entry).map_err(|source| HistoryError::Content {
            path: path.clone(),
            source,
        })?;
        let fail = io_error(&path);
        fs::create_dir_all(&self.directory).map_err(&fail)?;
        let beside = self.directory.join("entry.new");
        let mut file = File::create(&beside).map_err(&fail)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(&fail)?;
        fs::rename(&beside, &path)
            .and_then(|()| self.sync())
            .map_err(&fail)?;
        Ok(text.len() as u64)
    }

    fn remove(&mut self, number: u64) -> Result<(), HistoryError> {
        let path = self.path(number);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&path)(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::policy::PolicySource;

    fn entry(generation: u64, digest: &str) -> HistoryEntry {
        let policy = AppliedPolicy {
            sources: vec![PolicySource::new(
                "p.yaml",
                format!("# generation {generation}\n"),
            )],
            applied_at: Timestamp::from_second(generation as i64).unwrap(),
            applied_by: Some(Actor { uid: 1, pid: Some(2) }),
        };
        HistoryEntry::new(generation, "prod".to_owned(), digest.to_owned(), None, policy)
    }

    fn open(directory: &tempfile::TempDir, bounds: Bounds) -> History {
        History::new(Box::new(HistoryDirectory::new(directory.path())), bounds)
    }

    fn generations(history: &History) -> Vec<u64> {
        history.entries().iter().map(|entry| entry.generation).collect()
    }

    fn files(directory: &tempfile::TempDir) -> usize {
        fs::read_dir(directory.path().join("history")).unwrap().count()
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = open(&directory, BOUNDS);
        assert!(history.entries().is_empty() && history.damaged().is_empty());
        for generation in [1, 3, 3, 8] {
            history.keep(entry(generation, "a")).unwrap();
        }
        let again = open(&directory, BOUNDS);
        assert_eq!(again.entries(), history.entries());
        assert_eq!(generations(&again), [1, 3, 3, 8]);
        let third = again.of_generation(3).unwrap();
        assert_eq!(third.number, 3, "the newest of the generation");
        assert_eq!(again.read(third).unwrap(), entry(3, "a"));
        assert_eq!(again.of_generation(2), None);
    }

    #[test]
    fn the_oldest_go_first_and_the_newest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let few = Bounds {
            entries: 3,
            bytes: 1 << 20,
        };
        let mut history = open(&directory, few);
        for generation in 1..=5 {
            history.keep(entry(generation, "a")).unwrap();
        }
        assert_eq!((generations(&history), files(&directory)), (vec![3, 4, 5], 3));

        let size = history.entries()[0].bytes;
        let small = Bounds {
            entries: 3,
            bytes: 2 * size,
        };
        let mut history = open(&directory, small);
        history.keep(entry(6, "a")).unwrap();
        assert_eq!((generations(&history), files(&directory)), (vec![5, 6], 2));
        let tiny = Bounds { entries: 0, bytes: 0 };
        let mut history = open(&directory, tiny);
        history.keep(entry(7, "a")).unwrap();
        assert_eq!((generations(&history), files(&directory)), (vec![7], 1));
    }

    #[test]
    fn a_damaged_entry_is_named_and_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = open(&directory, BOUNDS);
        for generation in 1..=4 {
            history.keep(entry(generation, "a")).unwrap();
        }
        let file = |number: u64| directory.path().join(format!("history/{number:020}.json"));
        fs::write(file(2), "{\"form\": 1, \"gener").unwrap();
        let later = fs::read_to_string(file(3))
            .unwrap()
            .replace("\"form\": 1", "\"form\": 2");
        fs::write(file(3), later).unwrap();
        fs::write(directory.path().join("history/notes.txt"), "not ours").unwrap();
        let mut history = open(&directory, BOUNDS);
        assert_eq!(generations(&history), [1, 4]);
        let [content, form] = history.damaged() else {
            panic!("{:?}", history.damaged())
        };
        assert!(content.contains("0002.json cannot be understood"), "{content}");
        assert!(form.contains("0003.json has form 2"), "{form}");
        history.keep(entry(5, "a")).unwrap();
        assert_eq!(
            history.entries().last().unwrap().number,
            5,
            "a damaged entry keeps its number"
        );
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_an_error_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("history");
        fs::write(&place, "in the way").unwrap();
        let mut history = open(&directory, BOUNDS);
        assert_eq!(history.damaged().len(), 1);
        let error = history.keep(entry(1, "a")).unwrap_err();
        assert!(matches!(error, HistoryError::Io { .. }), "{error}");
        fs::remove_file(&place).unwrap();
        history.keep(entry(1, "a")).unwrap();
        assert!(history.damaged().is_empty());
        assert_eq!(generations(&open(&directory, BOUNDS)), [1]);
    }

    #[test]
    fn back_is_to_the_last_policy_that_differed() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = open(&directory, BOUNDS);
        for (generation, digest) in [(1, "a"), (2, "b"), (3, "c"), (4, "c")] {
            history.keep(entry(generation, digest)).unwrap();
        }
        let before = |generation, digest| {
            let found = history.before(&entry(generation, digest).policy, digest);
            found.map(|entry| entry.generation)
        };
        assert_eq!(before(4, "c"), Some(2));
        assert_eq!(before(2, "b"), Some(1));
        assert_eq!(before(1, "a"), None);
        assert_eq!(before(9, "d"), Some(4), "one that could not be kept");
    }
}
