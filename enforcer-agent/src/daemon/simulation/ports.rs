//! The ports over the world in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::MapError;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::capture::{CaptureRecord, CapturedRecord};
use enforcer_common::abi::config::{HostRecord, LeaseRecord};
use enforcer_common::abi::event::EventRecord;
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::REASON_SLOTS;
use enforcer_common::decide::limiter::Limiter;
use futures::future::{BoxFuture, ready};
use jiff::{SignedDuration, Timestamp};

use super::world::{Kernel, Outcome, World};
use crate::adapters::audit_file::{AuditError, LogStatus};
use crate::adapters::dataplane::{AttachMode, Attachment, Captures, DataplaneError, Mode, PinnedMap, Tally};
use crate::api::reply::MapEntry;
use crate::daemon::core::Outside;
use crate::daemon::history::{HistoryEntry, HistoryError};
use crate::daemon::persist::{State, StateError};
use crate::ports::{AuditSink, Banks, Clock, Dataplane, HistoryStore, StateStore, Watcher};
use crate::pure::audit::{AuditRecord, Entry};
use crate::pure::capacity::Capacity;
use crate::pure::policy::ResolvedPolicy;
use crate::pure::quota::Book;
use crate::pure::snapshot::Lease;
use crate::pure::tables::Write;

/// Every port at once, over one world.
#[derive(Clone)]
pub(super) struct Ports {
    world: Arc<Mutex<World>>,
    /// Whether this agent found a data plane when it opened it.
    adopted: bool,
}

impl Ports {
    /// Opens the world: what `Dataplane::open` does.
    pub(super) fn open(world: Arc<Mutex<World>>) -> Self {
        let mut ports = Self {
            world,
            adopted: false,
        };
        let adopted = std::mem::replace(&mut ports.world().kernel.exists, true);
        ports.adopted = adopted;
        ports
    }

    /// The same ports over another world.
    pub(super) fn over(&self, world: Arc<Mutex<World>>) -> Self {
        Self {
            world,
            adopted: self.adopted,
        }
    }

    pub(super) fn outside(&self) -> Outside {
        Outside {
            dataplane: Box::new(self.clone()),
            clock: Arc::new(self.clone()),
            audit: Box::new(self.clone()),
            store: Box::new(self.clone()),
            history: Box::new(self.clone()),
            watcher: Box::new(self.clone()),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(&self, name: &'static str) -> Result<MutexGuard<'_, World>, DataplaneError> {
        let mut world = self.world();
        match world.operate(name) {
            Outcome::Done => Ok(world),
            Outcome::Failed => Err(refused(name)),
        }
    }

    /// Of a run of operations of one kind on one map, the first, 8th, 64th and so on are numbered and stand for all.
    fn run_of(&self, name: &'static str, write: &Write) -> Result<MutexGuard<'_, World>, DataplaneError> {
        let mut world = self.world();
        if !world.is_next_of_run(name, write) {
            return Ok(world);
        }
        drop(world);
        self.map(name)
    }
}

fn refused(name: &'static str) -> DataplaneError {
    DataplaneError::Map {
        name,
        source: MapError::ElementNotFound,
    }
}

impl Banks for Ports {
    type Error = DataplaneError;

    fn generation(&self) -> Result<u64, DataplaneError> {
        Ok(self.map("generation")?.kernel.generation)
    }

    fn set_generation(&mut self, generation: u64) -> Result<(), DataplaneError> {
        let mut world = self.map("set generation")?;
        let now_ns = world.now_ns;
        world.kernel.set_generation(generation, now_ns);
        Ok(())
    }

    fn write(&mut self, bank: u32, write: &Write) -> Result<(), DataplaneError> {
        let mut world = self.run_of("write", write)?;
        let now_ns = world.now_ns;
        world.kernel.write(bank, write, now_ns);
        Ok(())
    }

    fn holds(&self, bank: u32, write: &Write) -> Result<bool, DataplaneError> {
        Ok(self.run_of("read back", write)?.kernel.holds(bank, write))
    }
}

impl Dataplane for Ports {
    fn adopted(&self) -> bool {
        self.adopted
    }

    fn capacity(&self) -> Capacity {
        Capacity::default()
    }

    fn attach(&mut self, interface: &str, _mode: AttachMode) -> Result<Attachment, DataplaneError> {
        let mut world = self.map("attach")?;
        let is_new = world.kernel.attached.insert(interface.to_owned());
        Ok(Attachment {
            interface: interface.to_owned(),
            ifindex: 2,
            mode: if is_new { Mode::Native } else { Mode::Adopted },
        })
    }

    fn keep_only(&mut self, interfaces: &[String]) -> Result<Vec<String>, DataplaneError> {
        let mut world = self.map("drop links")?;
        world.kernel.attached.retain(|each| interfaces.contains(each));
        Ok(Vec::new())
    }

    fn settle(&mut self) -> Result<(), DataplaneError> {
        self.map("pin programs").map(|_| ())
    }

    fn detach(&mut self) -> Result<(), DataplaneError> {
        let links: Vec<String> = self.world().kernel.attached.iter().cloned().collect();
        for link in links {
            self.map("remove a link")?.kernel.attached.remove(&link);
        }
        let mut world = self.map("remove the maps")?;
        world.kernel = Kernel::default();
        world.detached += 1;
        Ok(())
    }

    fn set_host(&mut self, host: &HostRecord) -> Result<(), DataplaneError> {
        self.map("set host")?.kernel.host = Some(*host);
        Ok(())
    }

    fn set_links(&mut self, links: &BTreeMap<u32, u32>) -> Result<(), DataplaneError> {
        self.map("set links")?.kernel.links.clone_from(links);
        Ok(())
    }

    fn set_lease(&mut self, lease: &LeaseRecord) -> Result<(), DataplaneError> {
        self.map("set lease")?.kernel.lease = Lease(*lease);
        Ok(())
    }

    fn limiter(&self, holder: u32, limiter: Limiter) -> Result<u64, DataplaneError> {
        let world = self.map("limiter")?;
        let due_ns = world.kernel.limiters.get(&limiter.index(holder));
        Ok(due_ns.copied().unwrap_or(0))
    }

    fn set_limiter(&mut self, holder: u32, limiter: Limiter, due_ns: u64) -> Result<(), DataplaneError> {
        let mut world = self.map("set limiter")?;
        world.kernel.limiters.insert(limiter.index(holder), due_ns);
        Ok(())
    }

    fn open_connections(&self, index: u32) -> Result<u64, DataplaneError> {
        let world = self.map("open connections")?;
        Ok(world.kernel.open.get(&index).copied().unwrap_or(0))
    }

    fn connections_opened(&self, index: u32) -> Result<u64, DataplaneError> {
        let world = self.map("connections opened")?;
        Ok(world.kernel.opened.get(&index).copied().unwrap_or(0))
    }

    fn counters_identity(&self) -> Result<String, DataplaneError> {
        let world = self.map("identity of the counters")?;
        Ok(format!("the {}th maps", world.detached))
    }

    fn tallies(&self, direction: u32, tenant: u32) -> Result<[Tally; REASON_SLOTS as usize], DataplaneError> {
        let world = self.map("tally")?;
        let mut tallies = [Tally::default(); REASON_SLOTS as usize];
        for (reason, tally) in (0..).zip(&mut tallies) {
            let counted = world.kernel.tallies.get(&(direction, tenant, reason));
            *tally = counted.copied().unwrap_or_default();
        }
        Ok(tallies)
    }

    fn flow(&self, _key: &FlowKey) -> Result<Option<FlowRecord>, DataplaneError> {
        self.map("flow").map(|_| None)
    }

    fn reply(&self, _key: &FlowKey) -> Result<Option<ReplyRecord>, DataplaneError> {
        self.map("reply").map(|_| None)
    }

    fn flows(&self, _limit: usize) -> Result<Vec<(FlowKey, FlowRecord)>, DataplaneError> {
        self.map("flows").map(|_| Vec::new())
    }

    fn next_event(&mut self) -> Option<EventRecord> {
        self.world().kernel.events.pop_front()
    }

    fn set_capture(&mut self, capture: &CaptureRecord) -> Result<(), DataplaneError> {
        self.map("set capture")?.kernel.capture = Some(*capture);
        Ok(())
    }

    fn next_captured(&mut self) -> Option<CapturedRecord> {
        self.world().kernel.captured.pop_front()
    }

    fn captures(&self) -> Result<Captures, DataplaneError> {
        Ok(self.map("captures")?.kernel.captures)
    }

    fn dump(&self, _name: &str, _limit: usize) -> Result<Option<Vec<MapEntry>>, DataplaneError> {
        self.map("dump").map(|_| Some(Vec::new()))
    }

    fn map_info(&self, name: &'static str) -> Result<PinnedMap, DataplaneError> {
        self.map(name).map(|_| PinnedMap { id: 1, capacity: 1 })
    }
}

impl Clock for Ports {
    fn monotonic_ns(&self) -> u64 {
        self.world().now_ns
    }

    fn wall(&self) -> Timestamp {
        let world = self.world();
        Timestamp::UNIX_EPOCH
            + SignedDuration::from_nanos(world.now_ns as i64)
            + SignedDuration::from_secs(world.wall_ahead_seconds)
    }

    fn pause(&self, duration: Duration) {
        self.world().now_ns += duration.as_nanos() as u64;
    }
}

impl AuditSink for Ports {
    fn record(&self, entry: Entry) {
        let mut world = self.world();
        match world.operate("record") {
            Outcome::Done => world.audit.push(entry),
            Outcome::Failed => world.audit_lost += 1,
        }
    }

    fn record_synced(&self, entry: Entry) -> BoxFuture<'_, Result<u64, AuditError>> {
        let mut world = self.world();
        let outcome = match world.operate("record synced") {
            Outcome::Done => {
                world.audit.push(entry);
                world.synced = world.audit.len();
                Ok(world.audit.len() as u64)
            }
            Outcome::Failed => {
                world.audit_lost += 1;
                Err(AuditError::NotWritten {
                    reason: "made to fail".to_owned(),
                })
            }
        };
        Box::pin(ready(outcome))
    }

    fn tail(
        &self,
        _from: Option<u64>,
        _limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<AuditRecord>, u64), AuditError>> {
        let mut world = self.world();
        let outcome = match world.operate("tail") {
            Outcome::Done => Ok((Vec::new(), world.audit.len() as u64 + 1)),
            Outcome::Failed => Err(AuditError::Closed),
        };
        Box::pin(ready(outcome))
    }

    fn status(&self) -> LogStatus {
        let world = self.world();
        LogStatus {
            sequence: world.audit.len() as u64,
            lost: world.audit_lost,
            ..LogStatus::default()
        }
    }
}

impl StateStore for Ports {
    fn load(&self) -> Result<State, StateError> {
        let mut world = self.world();
        match world.operate("load") {
            Outcome::Done => Ok(world.stored.clone()),
            Outcome::Failed => Err(unusable()),
        }
    }

    fn store(&mut self, state: &State) -> Result<(), StateError> {
        let mut world = self.world();
        let outcome = world.operate("store");
        if outcome == Outcome::Done || world.fails_late {
            world.stored = state.clone();
        }
        match outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed => {
                world.fails_late = !world.fails_late;
                Err(unusable())
            }
        }
    }

    fn load_usage(&self) -> Result<Book, StateError> {
        let mut world = self.world();
        match world.operate("load usage") {
            Outcome::Done => Ok(world.usage.clone()),
            Outcome::Failed => Err(unusable()),
        }
    }

    fn store_usage(&mut self, usage: &Book) -> Result<(), StateError> {
        let mut world = self.world();
        match world.operate("store usage") {
            Outcome::Done => {
                world.usage = usage.clone();
                Ok(())
            }
            Outcome::Failed => Err(unusable()),
        }
    }
}

fn bytes_of(entry: &HistoryEntry) -> u64 {
    let sources = entry.policy.sources.iter();
    sources.map(|source| source.text.len() as u64).sum()
}

impl HistoryStore for Ports {
    fn numbers(&self) -> Result<Vec<u64>, HistoryError> {
        let mut world = self.world();
        match world.operate("list entries") {
            Outcome::Done => Ok(world.history.keys().copied().collect()),
            Outcome::Failed => Err(unusable_history()),
        }
    }

    fn read(&self, number: u64) -> Result<Option<(HistoryEntry, u64)>, HistoryError> {
        let mut world = self.world();
        match world.operate("read an entry") {
            Outcome::Done => {
                let entry = world.history.get(&number);
                Ok(entry.map(|entry| (HistoryEntry::clone(entry), bytes_of(entry))))
            }
            Outcome::Failed => Err(unusable_history()),
        }
    }

    fn write(&mut self, number: u64, entry: &HistoryEntry) -> Result<u64, HistoryError> {
        let mut world = self.world();
        let outcome = world.operate("write an entry");
        if outcome == Outcome::Done || world.fails_late {
            world.history.insert(number, Arc::new(entry.clone()));
        }
        match outcome {
            Outcome::Done => Ok(bytes_of(entry)),
            Outcome::Failed => {
                world.fails_late = !world.fails_late;
                Err(unusable_history())
            }
        }
    }

    fn remove(&mut self, number: u64) -> Result<(), HistoryError> {
        let mut world = self.world();
        match world.operate("remove an entry") {
            Outcome::Done => {
                world.history.remove(&number);
                Ok(())
            }
            Outcome::Failed => Err(unusable_history()),
        }
    }
}

fn unusable_history() -> HistoryError {
    HistoryError::Io {
        path: "history".into(),
        source: std::io::Error::other("made to fail"),
    }
}

fn unusable() -> StateError {
    StateError::Io {
        path: "state.json".into(),
        source: std::io::Error::other("made to fail"),
    }
}

impl Watcher for Ports {
    fn follow(&mut self, policy: &ResolvedPolicy) {
        let backends = policy.pools.iter().flat_map(|pool| &pool.backends);
        self.world().watched = backends.map(|backend| backend.name.clone()).collect();
    }
}
