//! What the daemon needs of the world outside, as narrow traits: the adapters fulfil them for the running agent, memory
//! does in `daemon/simulation`, where every operation can be made to fail.
//!
//! It owns what may be asked and what each answer promises. It never does anything itself. The daemon holds the traits
//! as objects: one virtual call beside a system call costs nothing, and its code stays free of type parameters.

use std::collections::BTreeMap;
use std::time::Duration;

use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::capture::{CaptureRecord, CapturedRecord};
use enforcer_common::abi::config::{HostRecord, LeaseRecord};
use enforcer_common::abi::event::EventRecord;
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::REASON_SLOTS;
use enforcer_common::decide::limiter::Limiter;
use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::adapters::audit_file::{AuditError, LogStatus};
use crate::adapters::dataplane::{AttachMode, Attachment, Captures, DataplaneError, PinnedMap, Tally};
use crate::api::reply::MapEntry;
use crate::daemon::history::{HistoryEntry, HistoryError};
use crate::daemon::persist::{State, StateError};
use crate::pure::audit::{AuditRecord, Entry};
use crate::pure::capacity::Capacity;
use crate::pure::policy::ResolvedPolicy;
use crate::pure::quota::Book;
use crate::pure::tables::Write;

/// The configuration maps, as the installer needs them.
pub trait Banks {
    /// What goes wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The live generation.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    fn generation(&self) -> Result<u64, Self::Error>;
    /// Makes a generation live.
    ///
    /// # Errors
    /// If the kernel refuses the update; the old one is then still live.
    fn set_generation(&mut self, generation: u64) -> Result<(), Self::Error>;
    /// Writes one record of a bank.
    ///
    /// # Errors
    /// If the kernel refuses the update.
    fn write(&mut self, bank: u32, write: &Write) -> Result<(), Self::Error>;
    /// Whether a bank holds what was written.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    fn holds(&self, bank: u32, write: &Write) -> Result<bool, Self::Error>;
}

/// The time.
pub trait Clock: Send + Sync {
    /// The clock that the programs read, `CLOCK_MONOTONIC`, in nanoseconds.
    fn monotonic_ns(&self) -> u64;
    /// The time of day.
    fn wall(&self) -> Timestamp;
    /// Lets that much time pass.
    fn pause(&self, duration: Duration);

    /// What must be added to kernel time to get nanoseconds since 1970.
    fn wall_offset_ns(&self) -> i64 {
        let wall_ns = i64::try_from(self.wall().as_nanosecond()).unwrap_or(i64::MAX);
        wall_ns.saturating_sub(i64::try_from(self.monotonic_ns()).unwrap_or(i64::MAX))
    }
}

/// Programs and maps of one instance, as the loop uses them. Every error leaves what was asked for undone.
pub(crate) trait Dataplane: Banks<Error = DataplaneError> + Send {
    /// Whether the maps were there before: their content is that of an earlier agent.
    fn adopted(&self) -> bool;
    /// How much fits into the maps.
    fn capacity(&self) -> Capacity;
    /// Attaches the programs to an interface, in place of those of an earlier agent.
    fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<Attachment, DataplaneError>;
    /// Detaches every other interface; names of the links that were dropped.
    fn keep_only(&mut self, interfaces: &[String]) -> Result<Vec<String>, DataplaneError>;
    /// Pins the programs and drops what earlier schemas left.
    fn settle(&mut self) -> Result<(), DataplaneError>;
    /// Takes links, programs and maps away. May fail midway: some of it is gone then.
    fn detach(&mut self) -> Result<(), DataplaneError>;
    /// Writes what is particular to this host.
    fn set_host(&mut self, host: &HostRecord) -> Result<(), DataplaneError>;
    /// Writes the MTUs of links in bytes, by index of the interface, and forgets all others.
    fn set_links(&mut self, links: &BTreeMap<u32, u32>) -> Result<(), DataplaneError>;
    /// Writes the lease: until when the programs may act without the agent.
    fn set_lease(&mut self, lease: &LeaseRecord) -> Result<(), DataplaneError>;
    /// A limiter's theoretical arrival time, kernel monotonic nanoseconds.
    fn limiter(&self, holder: u32, limiter: Limiter) -> Result<u64, DataplaneError>;
    /// Sets a limiter.
    fn set_limiter(&mut self, holder: u32, limiter: Limiter, due_ns: u64) -> Result<(), DataplaneError>;
    /// Open connections, by an index of the schema's `tenant_connections` or `backend_connections`.
    fn open_connections(&self, index: u32) -> Result<u64, DataplaneError>;
    /// Connections that were ever opened, by the same index; one that goes over to another tenant is taken off.
    fn connections_opened(&self, index: u32) -> Result<u64, DataplaneError>;
    /// Tells these counters from any that began at zero before or after: they belong to this boot and these maps.
    fn counters_identity(&self) -> Result<String, DataplaneError>;
    /// The tallies of a tenant, by number of the reason, each summed over all CPUs.
    fn tallies(&self, direction: u32, tenant: u32) -> Result<[Tally; REASON_SLOTS as usize], DataplaneError>;
    /// One flow.
    fn flow(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataplaneError>;
    /// One reply entry.
    fn reply(&self, key: &FlowKey) -> Result<Option<ReplyRecord>, DataplaneError>;
    /// Up to `limit` flows, in no order.
    fn flows(&self, limit: usize) -> Result<Vec<(FlowKey, FlowRecord)>, DataplaneError>;
    /// The next event, if there is one.
    fn next_event(&mut self) -> Option<EventRecord>;
    /// Says which packets to capture; all zero: none.
    fn set_capture(&mut self, capture: &CaptureRecord) -> Result<(), DataplaneError>;
    /// The next captured packet, if there is one.
    fn next_captured(&mut self) -> Option<CapturedRecord>;
    /// What became of packets that captures asked for, ever.
    fn captures(&self) -> Result<Captures, DataplaneError>;
    /// Entries of a map that are not all zero; `None` for a map that cannot be dumped.
    fn dump(&self, name: &str, limit: usize) -> Result<Option<Vec<MapEntry>>, DataplaneError>;
    /// What the kernel says of a map.
    fn map_info(&self, name: &'static str) -> Result<PinnedMap, DataplaneError>;
}

/// The audit log.
pub(crate) trait AuditSink: Send + Sync {
    /// Queues a record, or counts it as lost. Never waits.
    fn record(&self, entry: Entry);
    /// Writes a record to disk; its sequence number.
    fn record_synced(&self, entry: Entry) -> BoxFuture<'_, Result<u64, AuditError>>;
    /// Up to `limit` records from a sequence number on, or the last ones; and the number that comes after them.
    fn tail(
        &self,
        from: Option<u64>,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<AuditRecord>, u64), AuditError>>;
    /// How the log is.
    fn status(&self) -> LogStatus;
}

/// What survives a restart of the agent.
pub(crate) trait StateStore: Send {
    /// What was stored last; a fresh state if nothing ever was.
    fn load(&self) -> Result<State, StateError>;
    /// Stores a state in place of the last one. After an error either of the two may be there, whole.
    fn store(&mut self, state: &State) -> Result<(), StateError>;
    /// Usage of quotas as it was stored last; none if it never was.
    fn load_usage(&self) -> Result<Book, StateError>;
    /// Stores usage in place of the last one. After an error either of the two may be there, whole.
    fn store_usage(&mut self, usage: &Book) -> Result<(), StateError>;
}

/// Policies that were applied, each under a number.
pub(crate) trait HistoryStore: Send {
    /// The numbers of all entries, ascending.
    fn numbers(&self) -> Result<Vec<u64>, HistoryError>;
    /// An entry, and its bytes; `None` if it is not there.
    fn read(&self, number: u64) -> Result<Option<(HistoryEntry, u64)>, HistoryError>;
    /// Writes an entry; its bytes. After an error it may be there all the same, whole.
    fn write(&mut self, number: u64, entry: &HistoryEntry) -> Result<u64, HistoryError>;
    /// Removes an entry, if it is there.
    fn remove(&mut self, number: u64) -> Result<(), HistoryError>;
}

/// Probes and telemetry: reports to the loop what it finds.
pub(crate) trait Watcher: Send {
    /// Watches the back ends of a policy and no others.
    fn follow(&mut self, policy: &ResolvedPolicy);
}
