//! Expires flows. It has handles of its own, so that it can run on a thread of its own, and it alone writes
//! `CONNECTIONS_CLOSED`.
//!
//! A TCP connection that has ended keeps its entry for a while, for packets that are late, but it is no longer open: it
//! counts as closed from the first sweep that finds it ended. Otherwise short connections would use up a tenant's limit
//! of connections, and weigh on a back end, for ten times as long as they last.

use std::collections::BTreeMap;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use enforcer_common::abi::address::{Address, FlowKey};
use enforcer_common::abi::config::HostRecord;
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};

use super::cache::FlowCache;
use super::{DataplaneError, map_directory, open_map};
pub use crate::pure::expiry::Timeouts;
use crate::pure::expiry::{Counted, Seen, is_old_orphan, reply_key_of};

/// A flow that was removed, for the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedFlow {
    /// The client's 5-tuple.
    pub key: FlowKey,
    /// Its last state.
    pub flow: FlowRecord,
    /// The other direction, where the balancer saw it.
    pub reply: Option<ReplyRecord>,
}

/// What one sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that are still there.
    pub open: u64,
    /// Flows that were removed.
    pub closed: Vec<ClosedFlow>,
    /// Reply entries without a flow that were removed.
    pub orphans: u64,
}

/// Expires flows.
pub struct FlowSweeper {
    host: Array<MapData, HostRecord>,
    flows: HashMap<MapData, FlowKey, FlowRecord>,
    replies: HashMap<MapData, FlowKey, ReplyRecord>,
    opened: Array<MapData, u64>,
    closed: Array<MapData, u64>,
    cache: FlowCache,
    timeouts: Timeouts,
    /// Flows that are counted as closed while their entry is still there.
    ended: BTreeMap<Tuple, Counted>,
}

/// A count of `CONNECTIONS_OPENED` at a moment.
#[derive(Clone, Copy)]
struct Opened {
    count: u64,
    at_ns: u64,
}

/// How often a count is read until it stands still: two readings lie a microsecond or so apart.
const READINGS: u32 = 1000;

/// A flow's key in a form that can be ordered.
type Tuple = (Address, Address, u16, u16, u32);

const fn tuple(key: &FlowKey) -> Tuple {
    let FlowKey {
        source,
        destination,
        source_port_be,
        destination_port_be,
        protocol,
    } = *key;
    (source, destination, source_port_be, destination_port_be, protocol)
}

impl FlowSweeper {
    /// Opens the pinned maps of an instance.
    ///
    /// # Errors
    /// If a map is not pinned there.
    pub fn open(pin_directory: &Path, timeouts: Timeouts) -> Result<Self, DataplaneError> {
        let directory = map_directory(pin_directory);
        Ok(Self {
            host: open_map(&directory, "HOST", Map::Array)?,
            flows: open_map(&directory, "FLOWS", Map::HashMap)?,
            replies: open_map(&directory, "REPLIES", Map::HashMap)?,
            opened: open_map(&directory, "CONNECTIONS_OPENED", Map::Array)?,
            closed: open_map(&directory, "CONNECTIONS_CLOSED", Map::Array)?,
            cache: FlowCache::open(&directory)?,
            timeouts,
            ended: BTreeMap::new(),
        })
    }

    /// Brings the counts of open connections in line with the flow table: an agent that was killed between removing a
    /// flow and counting it would leave them one too high for ever. Flows that have ended count as open until the next
    /// sweep.
    ///
    /// Programs go on opening flows meanwhile: each count is compared with the flows that were there at the moment at which it
    /// was read. `now_ns` tells the programs' time.
    ///
    /// # Errors
    /// If the kernel refuses an operation.
    pub fn recount(&mut self, now_ns: impl Fn() -> u64) -> Result<(), DataplaneError> {
        self.ended.clear();
        let mut counts = Vec::new();
        for index in 0..self.opened.len() {
            counts.push(self.opened_at(index, &now_ns)?.map(|at| (at, 0)));
        }
        for flow in &self.flows {
            let (_, flow) = flow.map_err(|source| DataplaneError::Map {
                name: "FLOWS",
                source,
            })?;
            for index in Counted::of(&flow).indexes() {
                if let Some(Some((opened, open))) = counts.get_mut(index as usize)
                    && flow.created_ns <= opened.at_ns
                {
                    *open += 1;
                }
            }
        }
        for (index, count) in counts.into_iter().enumerate() {
            let Some((opened, open)) = count else { continue };
            let closed = opened.count.wrapping_sub(open);
            if get(&self.closed, "CONNECTIONS_CLOSED", index as u32)? != closed {
                self.set_closed(index as u32, closed)?;
            }
        }
        Ok(())
    }

    /// How many were opened at a moment at which none was; `None` if there was no such moment, so that it is left as it is.
    fn opened_at(&self, index: u32, now_ns: impl Fn() -> u64) -> Result<Option<Opened>, DataplaneError> {
        let mut before = get(&self.opened, "CONNECTIONS_OPENED", index)?;
        for _ in 0..READINGS {
            let at_ns = now_ns();
            let after = get(&self.opened, "CONNECTIONS_OPENED", index)?;
            if before == after {
                let count = before;
                return Ok(Some(Opened { count, at_ns }));
            }
            before = after;
        }
        Ok(None)
    }

    /// Removes what is idle for too long.
    ///
    /// # Errors
    /// If the kernel refuses an operation.
    pub fn sweep(&mut self, now_ns: u64) -> Result<Swept, DataplaneError> {
        let host = get(&self.host, "HOST", 0)?;
        let mut swept = Swept::default();
        let (mut expired, mut turned) = (Vec::new(), Vec::new());
        for entry in &self.flows {
            let (key, flow) = entry.map_err(|source| DataplaneError::Map {
                name: "FLOWS",
                source,
            })?;
            let reply = self.reply_of(&host, &key, &flow)?;
            if self.is_expired(&key, &flow, reply.as_ref(), now_ns) {
                expired.push(key);
            } else {
                swept.open += 1;
                let seen = Seen {
                    key: &key,
                    flow: &flow,
                    reply: reply.as_ref(),
                };
                let has_ended = seen.has_ended();
                if self.ended.get(&tuple(&key)).copied() != has_ended.then(|| Counted::of(&flow)) {
                    turned.push((key, flow, has_ended));
                }
            }
        }
        for (key, flow, has_ended) in turned {
            self.count_ended(&key, &flow, has_ended)?;
        }
        for key in expired {
            // The flow may have been used since it was read.
            let Some(flow) = self.lookup(&key)? else { continue };
            let reply = self.reply_of(&host, &key, &flow)?;
            if !self.is_expired(&key, &flow, reply.as_ref(), now_ns) {
                swept.open += 1;
                continue;
            }
            if self.remove(&host, &key, &flow)? {
                let flow = self.cache.forget(&key, &flow)?;
                swept.closed.push(ClosedFlow { key, flow, reply });
            }
        }
        swept.orphans = self.remove_orphans(&host, now_ns)?;
        Ok(swept)
    }

    fn lookup(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataplaneError> {
        match self.flows.get(key, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(DataplaneError::Map {
                name: "FLOWS",
                source,
            }),
        }
    }

    fn reply_of(
        &self,
        host: &HostRecord,
        key: &FlowKey,
        flow: &FlowRecord,
    ) -> Result<Option<ReplyRecord>, DataplaneError> {
        let Some(reply) = reply_key_of(host, key, flow) else {
            return Ok(None);
        };
        match self.replies.get(&reply, 0) {
            Ok(record) => Ok((record.forward == *key).then_some(record)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(DataplaneError::Map {
                name: "REPLIES",
                source,
            }),
        }
    }

    fn is_expired(&self, key: &FlowKey, flow: &FlowRecord, reply: Option<&ReplyRecord>, now_ns: u64) -> bool {
        Seen { key, flow, reply }.is_expired(&self.timeouts, now_ns)
    }

    /// Removes a flow; only who really removes it counts it.
    fn remove(
        &mut self,
        host: &HostRecord,
        key: &FlowKey,
        flow: &FlowRecord,
    ) -> Result<bool, DataplaneError> {
        // The key may by now be another flow's.
        if let Some(reply) = reply_key_of(host, key, flow)
            && self.reply_of(host, key, flow)?.is_some()
        {
            remove(&mut self.replies, "REPLIES", &reply)?;
        }
        if !remove(&mut self.flows, "FLOWS", key)? {
            return Ok(false);
        }
        self.count_ended(key, flow, true)?;
        self.ended.remove(&tuple(key));
        Ok(true)
    }

    /// Counts a flow as closed where it has not been, and no longer where it was but is in use again. A flow that has
    /// changed hands since it was counted is counted for those that have it now.
    fn count_ended(
        &mut self,
        key: &FlowKey,
        flow: &FlowRecord,
        has_ended: bool,
    ) -> Result<(), DataplaneError> {
        let tuple = tuple(key);
        let before = self.ended.get(&tuple).copied();
        let now = has_ended.then(|| Counted::of(flow));
        if before == now {
            return Ok(());
        }
        if let Some(counted) = before {
            self.add_closed(counted, u64::MAX)?;
            self.ended.remove(&tuple);
        }
        if let Some(counted) = now {
            self.add_closed(counted, 1)?;
            self.ended.insert(tuple, counted);
        }
        Ok(())
    }

    /// `by` wraps round: `u64::MAX` takes one away.
    fn add_closed(&mut self, counted: Counted, by: u64) -> Result<(), DataplaneError> {
        for index in counted.indexes() {
            let closed = get(&self.closed, "CONNECTIONS_CLOSED", index)?.wrapping_add(by);
            self.set_closed(index, closed)?;
        }
        Ok(())
    }

    fn set_closed(&mut self, index: u32, closed: u64) -> Result<(), DataplaneError> {
        self.closed
            .set(index, closed, 0)
            .map_err(|source| DataplaneError::Map {
                name: "CONNECTIONS_CLOSED",
                source,
            })
    }

    fn remove_orphans(&mut self, host: &HostRecord, now_ns: u64) -> Result<u64, DataplaneError> {
        let mut orphans = Vec::new();
        for entry in &self.replies {
            let (key, reply) = entry.map_err(|source| DataplaneError::Map {
                name: "REPLIES",
                source,
            })?;
            if !is_old_orphan(&reply, now_ns) {
                continue;
            }
            let flow = self.lookup(&reply.forward)?;
            let own = flow.and_then(|flow| reply_key_of(host, &reply.forward, &flow));
            if own != Some(key) {
                orphans.push(key);
            }
        }
        let mut removed = 0;
        for key in orphans {
            removed += u64::from(remove(&mut self.replies, "REPLIES", &key)?);
        }
        Ok(removed)
    }
}

fn get<V: Pod>(map: &Array<MapData, V>, name: &'static str, index: u32) -> Result<V, DataplaneError> {
    map.get(&index, 0)
        .map_err(|source| DataplaneError::Map { name, source })
}

fn remove<V: Pod>(
    map: &mut HashMap<MapData, FlowKey, V>,
    name: &'static str,
    key: &FlowKey,
) -> Result<bool, DataplaneError> {
    match map.remove(key) {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(false)
        }
        Err(source) => Err(DataplaneError::Map { name, source }),
    }
}
