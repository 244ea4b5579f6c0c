//! The audit log on disk: one thread that writes, and readers of what it wrote.
//!
//! It owns durability: decisions reach the disk within about a second, control records before their caller goes on. It
//! never blocks a decision and never grows without bound: what does not fit into the queue, or cannot be written, is
//! counted, and the count is the next record that can be written.

mod reader;
pub(super) mod segment;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tracing::{error, info};

use crate::ports::AuditSink;
use crate::pure::audit::{AuditRecord, Change, Entry, Identity, Kind};
use segment::{Repair, Writer};

/// Records are synced to disk at the latest after this time.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Most records that are written at once.
const MAX_BATCH: usize = 1024;

/// Where and how to write.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the segments lie; made if it is missing.
    pub directory: PathBuf,
    /// Bytes after which a new segment is begun.
    pub segment_bytes: u64,
    /// Who writes.
    pub identity: Identity,
    /// Records that may wait to be written; further ones are counted as lost.
    pub queue_records: usize,
}

/// Why the log cannot be opened, written or read.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process writes there.
    #[error("another agent writes the audit log in {}; give each its own `audit.directory`", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// What lies there is no log that can be continued.
    #[error(
        "the audit log cannot be continued or read: {} {reason}. Move the directory's files away as evidence, then start \
         again", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A record was not written; it is counted as lost.
    #[error("the record was not written to the audit log: {reason}")]
    NotWritten {
        /// Why.
        reason: String,
    },
    /// The writer has ended.
    #[error("the audit log is closed")]
    Closed,
}

/// How the log is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// Sequence number of the last record; 0 before the first.
    pub sequence: u64,
    /// Records written since the log was opened.
    pub written: u64,
    /// Records lost since the log was opened: the queue was full, or the file could not be written.
    pub lost: u64,
    /// The segment that is written; `None` before the first.
    pub segment: Option<PathBuf>,
    /// Why nothing can be written at the moment, if that is so.
    pub error: Option<String>,
}

/// To write to the log, from anywhere.
#[derive(Debug, Clone)]
pub struct AuditHandle {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// The log: ends when it is closed, or when it and all its handles are gone.
#[derive(Debug)]
pub struct AuditLog {
    handle: AuditHandle,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    /// Records that found the queue full and that no `Lost` record tells of yet.
    queue_losses: AtomicU64,
    status: Mutex<LogStatus>,
}

#[derive(Debug)]
enum Message {
    Record(Box<Entry>),
    Control(Box<Entry>, oneshot::Sender<Result<u64, AuditError>>),
    Close,
}

// === impl AuditLog ===

impl AuditLog {
    /// Opens the log, continues where it ended, and starts the thread that writes.
    ///
    /// # Errors
    /// [`AuditError`] if the directory cannot be used or holds no log that can be continued.
    pub fn open(settings: Settings) -> Result<Self, AuditError> {
        let (writer, repair) = Writer::resume(&settings)?;
        if let Some(repair) = &repair {
            info!(path = %repair.path.display(), bytes = repair.bytes, "cut an unfinished line off the audit log");
        }
        let status = LogStatus {
            sequence: writer.sequence(),
            segment: writer.path(),
            ..LogStatus::default()
        };
        let shared = Arc::new(Shared {
            directory: settings.directory,
            queue_losses: AtomicU64::new(0),
            status: Mutex::new(status),
        });
        let (queue, messages) = sync_channel(settings.queue_records.max(1));
        let work = Work {
            writer,
            shared: Arc::clone(&shared),
            repair,
            file_losses: 0,
            generation: 0,
            unsynced_since: None,
        };
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || work.run(&messages))
            .map_err(|source| AuditError::Io {
                action: "start the writer of",
                path: shared.directory.clone(),
                source,
            })?;
        Ok(Self {
            handle: AuditHandle { queue, shared },
            thread,
        })
    }

    /// A way to write to it.
    #[must_use]
    pub fn handle(&self) -> AuditHandle {
        self.handle.clone()
    }

    /// Writes and syncs everything that is queued, and ends the thread. Handles that are left only count losses.
    pub async fn close(self) {
        let Self { handle, thread } = self;
        let ended = spawn_blocking(move || {
            // An error means that the thread has already ended.
            let _ended = handle.queue.send(Message::Close);
            thread.join()
        });
        if !matches!(ended.await, Ok(Ok(()))) {
            error!("the writer of the audit log ended by a panic");
        }
    }
}

// === impl AuditHandle ===

impl AuditHandle {
    /// Queues a record, or counts it as lost if the queue is full. Never waits.
    pub fn record(&self, entry: Entry) {
        match self.queue.try_send(Message::Record(Box::new(entry))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.queue_losses.fetch_add(1, Ordering::Relaxed);
                self.shared.status().lost += 1;
            }
        }
    }

    /// Writes a record and syncs it to disk; returns its sequence number.
    ///
    /// # Errors
    /// [`AuditError::NotWritten`] if it could not be written: it is then counted as lost. [`AuditError::Closed`].
    pub async fn record_synced(&self, entry: Entry) -> Result<u64, AuditError> {
        let (answer, receiver) = oneshot::channel();
        let queue = self.queue.clone();
        let message = Message::Control(Box::new(entry), answer);
        let sent = spawn_blocking(move || queue.send(message).is_ok()).await;
        if !matches!(sent, Ok(true)) {
            return Err(AuditError::Closed);
        }
        receiver.await.unwrap_or(Err(AuditError::Closed))
    }

    /// How the log is.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        self.shared.status().clone()
    }

    /// Up to `limit` records from sequence number `from` on, or the last `limit` without it; and the number that comes
    /// after them.
    ///
    /// # Errors
    /// [`AuditError`] if a segment cannot be read.
    pub async fn tail(&self, from: Option<u64>, limit: usize) -> Result<(Vec<AuditRecord>, u64), AuditError> {
        let last = self.status().sequence;
        let from = from
            .unwrap_or_else(|| last.saturating_add(1).saturating_sub(limit as u64))
            .max(1);
        let shared = Arc::clone(&self.shared);
        let read = spawn_blocking(move || reader::read_from(&shared.directory, from, limit));
        let records = read.await.unwrap_or(Err(AuditError::Closed))?;
        let next = records.last().map_or(from, |record| record.sequence + 1);
        Ok((records, next))
    }
}

impl AuditSink for AuditHandle {
    fn record(&self, entry: Entry) {
        Self::record(self, entry);
    }

    fn record_synced(&self, entry: Entry) -> BoxFuture<'_, Result<u64, AuditError>> {
        Box::pin(Self::record_synced(self, entry))
    }

    fn tail(
        &self,
        from: Option<u64>,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<AuditRecord>, u64), AuditError>> {
        Box::pin(Self::tail(self, from, limit))
    }

    fn status(&self) -> LogStatus {
        Self::status(self)
    }
}

/// Up to `limit` records of a log that no agent needs to be writing, from sequence number `from` on.
///
/// # Errors
/// [`AuditError`] if a segment cannot be read.
pub fn read_from(directory: &Path, from: u64, limit: usize) -> Result<Vec<AuditRecord>, AuditError> {
    reader::read_from(directory, from, limit)
}

// === impl Shared ===

impl Shared {
    fn status(&self) -> MutexGuard<'_, LogStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread has.
struct Work {
    writer: Writer,
    shared: Arc<Shared>,
    /// To be recorded before anything else.
    repair: Option<Repair>,
    /// Records that could not be written and that no `Lost` record tells of yet.
    file_losses: u64,
    /// The generation of the last record, for the log's own ones.
    generation: u64,
    /// When the oldest record was written that is not synced yet.
    unsynced_since: Option<Instant>,
}

/// A record to be answered for: its place in the batch and the one who waits.
type Waiting = (usize, oneshot::Sender<Result<u64, AuditError>>);

// === impl Work ===

impl Work {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let first = match self.next_deadline() {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(pause) => messages.recv_timeout(pause),
            };
            let mut open = true;
            let mut batch = Vec::new();
            match first {
                Ok(message) => {
                    batch.push(message);
                    batch.extend(messages.try_iter().take(MAX_BATCH - 1));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            open &= !batch.iter().any(|message| matches!(message, Message::Close));
            self.write(batch);
            if !open {
                self.sync();
                return;
            }
            if self
                .unsynced_since
                .is_some_and(|since| since.elapsed() >= SYNC_INTERVAL)
            {
                self.sync();
            }
        }
    }

    /// How long to wait for more; `None` if there is nothing else to do.
    fn next_deadline(&self) -> Option<Duration> {
        let losses = self.file_losses > 0 || self.shared.queue_losses.load(Ordering::Relaxed) > 0;
        match self.unsynced_since {
            Some(since) => Some(SYNC_INTERVAL.saturating_sub(since.elapsed())),
            // Tries again to write, since the disk may have room by now.
            None => (losses || self.repair.is_some()).then_some(SYNC_INTERVAL),
        }
    }

    fn write(&mut self, batch: Vec<Message>) {
        let queue_losses = self.shared.queue_losses.swap(0, Ordering::Relaxed);
        let mut entries = self.own_entries(queue_losses);
        let own = entries.len();
        let mut waiting: Vec<Waiting> = Vec::new();
        for message in batch {
            match message {
                Message::Record(entry) => entries.push(*entry),
                Message::Control(entry, answer) => {
                    waiting.push((entries.len(), answer));
                    entries.push(*entry);
                }
                Message::Close => {}
            }
        }
        if entries.is_empty() {
            return;
        }
        if let Some(last) = entries.last() {
            self.generation = last.generation;
        }
        let first_sequence = self.writer.sequence() + 1;
        match self.writer.append(&entries) {
            Ok(()) => {
                self.repair = None;
                self.file_losses = 0;
                self.unsynced_since.get_or_insert_with(Instant::now);
                self.report_written(entries.len() as u64);
                self.answer(waiting, first_sequence);
            }
            Err(failure) => {
                // What the queue lost is still to be told of.
                self.shared
                    .queue_losses
                    .fetch_add(queue_losses, Ordering::Relaxed);
                let lost = (entries.len() - own) as u64;
                self.file_losses += lost;
                self.report_failure(lost, &failure);
                for (_, answer) in waiting {
                    // The caller may have gone away; its record is counted all the same.
                    let _gone = answer.send(Err(AuditError::NotWritten {
                        reason: failure.to_string(),
                    }));
                }
            }
        }
    }

    /// Control records are on disk before their callers go on.
    fn answer(&mut self, waiting: Vec<Waiting>, first_sequence: u64) {
        if waiting.is_empty() {
            return;
        }
        let failure = self.sync();
        for (index, answer) in waiting {
            let outcome = match &failure {
                None => Ok(first_sequence + index as u64),
                Some(reason) => Err(AuditError::NotWritten {
                    reason: reason.clone(),
                }),
            };
            let _gone = answer.send(outcome);
        }
    }

    /// Records that the log makes about itself.
    fn own_entries(&self, queue_losses: u64) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut add = |kind, count, what: &str, cause: String| {
            let change = Change {
                what: what.to_owned(),
                causes: vec![cause],
                ..Change::default()
            };
            let entry = Entry::new(kind, Timestamp::now(), monotonic_ns(), self.generation);
            entries.push(Entry {
                count: Some(count),
                change: Some(change),
                ..entry
            });
        };
        if let Some(Repair { path, bytes }) = &self.repair {
            let cause = format!("cut {bytes} bytes of unfinished lines off {}", path.display());
            add(Kind::Repaired, *bytes, "auditFile", cause);
        }
        if queue_losses > 0 {
            add(
                Kind::Lost,
                queue_losses,
                "auditQueue",
                "records came faster than they could be written".to_owned(),
            );
        }
        if self.file_losses > 0 {
            let cause = self.shared.status().error.clone().unwrap_or_default();
            add(Kind::Lost, self.file_losses, "auditFile", cause);
        }
        entries
    }

    fn report_written(&self, written: u64) {
        let mut status = self.shared.status();
        if status.error.take().is_some() {
            info!("the audit log can be written again");
        }
        status.written += written;
        status.sequence = self.writer.sequence();
        status.segment = self.writer.path();
    }

    fn report_failure(&self, lost: u64, failure: &AuditError) {
        let mut status = self.shared.status();
        if status.error.is_none() {
            error!(error = %failure, "the audit log cannot be written; records are counted as lost until it can");
        }
        status.lost += lost;
        status.error = Some(failure.to_string());
    }

    /// Syncs; returns why that failed.
    fn sync(&mut self) -> Option<String> {
        self.unsynced_since.take()?;
        let failure = self.writer.sync().err()?;
        // The kernel reports it once and may have dropped the pages: nothing more can be done about these records.
        self.report_failure(0, &failure);
        Some(failure.to_string())
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
