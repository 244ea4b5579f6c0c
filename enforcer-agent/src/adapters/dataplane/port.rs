//! The kernel side as the daemon's loop asks for it.

use std::collections::BTreeMap;

use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::capture::{CaptureRecord, CapturedRecord};
use enforcer_common::abi::config::{HostRecord, LeaseRecord};
use enforcer_common::abi::event::EventRecord;
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::REASON_SLOTS;
use enforcer_common::decide::limiter::Limiter;

use super::{
    AttachMode, Attachment, BOOT_ID, Captures, Dataplane, DataplaneError, PinnedMap, Tally, detach,
    map_directory, map_info,
};
use crate::api::reply::MapEntry;
use crate::ports::{self, Banks};
use crate::pure::capacity::Capacity;
use crate::pure::tables::Write;

impl Banks for Dataplane {
    type Error = DataplaneError;

    fn generation(&self) -> Result<u64, DataplaneError> {
        self.maps.generation()
    }

    fn set_generation(&mut self, generation: u64) -> Result<(), DataplaneError> {
        self.maps.set_generation(generation)
    }

    fn write(&mut self, bank: u32, write: &Write) -> Result<(), DataplaneError> {
        self.maps.write(bank, write)
    }

    fn holds(&self, bank: u32, write: &Write) -> Result<bool, DataplaneError> {
        self.maps.holds(bank, write)
    }
}

impl ports::Dataplane for Dataplane {
    fn adopted(&self) -> bool {
        self.adopted
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<Attachment, DataplaneError> {
        Self::attach(self, interface, mode)
    }

    fn keep_only(&mut self, interfaces: &[String]) -> Result<Vec<String>, DataplaneError> {
        Self::keep_only(self, interfaces)
    }

    fn settle(&mut self) -> Result<(), DataplaneError> {
        Self::settle(self)
    }

    fn detach(&mut self) -> Result<(), DataplaneError> {
        detach(&self.pin_directory)
    }

    fn set_host(&mut self, host: &HostRecord) -> Result<(), DataplaneError> {
        self.maps.set_host(host)
    }

    fn set_links(&mut self, links: &BTreeMap<u32, u32>) -> Result<(), DataplaneError> {
        self.maps.set_links(links)
    }

    fn set_lease(&mut self, lease: &LeaseRecord) -> Result<(), DataplaneError> {
        self.maps.set_lease(lease)
    }

    fn limiter(&self, holder: u32, limiter: Limiter) -> Result<u64, DataplaneError> {
        self.maps.limiter(holder, limiter)
    }

    fn set_limiter(&mut self, holder: u32, limiter: Limiter, due_ns: u64) -> Result<(), DataplaneError> {
        self.maps.set_limiter(holder, limiter, due_ns)
    }

    fn open_connections(&self, index: u32) -> Result<u64, DataplaneError> {
        self.maps.open_connections(index)
    }

    fn connections_opened(&self, index: u32) -> Result<u64, DataplaneError> {
        self.maps.connections_opened(index)
    }

    fn counters_identity(&self) -> Result<String, DataplaneError> {
        let boot = std::fs::read_to_string(BOOT_ID).map_err(|source| DataplaneError::BootId { source })?;
        let maps = map_directory(&self.pin_directory);
        let (tallies, opened) = (
            map_info(&maps, "TALLIES")?.id,
            map_info(&maps, "CONNECTIONS_OPENED")?.id,
        );
        Ok(format!("{}/{tallies}/{opened}", boot.trim()))
    }

    fn tallies(&self, direction: u32, tenant: u32) -> Result<[Tally; REASON_SLOTS as usize], DataplaneError> {
        self.maps.tallies(direction, tenant)
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataplaneError> {
        self.maps.flow(key)
    }

    fn reply(&self, key: &FlowKey) -> Result<Option<ReplyRecord>, DataplaneError> {
        self.maps.reply(key)
    }

    fn flows(&self, limit: usize) -> Result<Vec<(FlowKey, FlowRecord)>, DataplaneError> {
        self.maps.flows(limit)
    }

    fn next_event(&mut self) -> Option<EventRecord> {
        self.maps.next_event()
    }

    fn set_capture(&mut self, capture: &CaptureRecord) -> Result<(), DataplaneError> {
        self.maps.set_capture(capture)
    }

    fn next_captured(&mut self) -> Option<CapturedRecord> {
        self.maps.next_captured()
    }

    fn captures(&self) -> Result<Captures, DataplaneError> {
        self.maps.captures()
    }

    fn dump(&self, name: &str, limit: usize) -> Result<Option<Vec<MapEntry>>, DataplaneError> {
        self.maps.dump(name, limit)
    }

    fn map_info(&self, name: &'static str) -> Result<PinnedMap, DataplaneError> {
        map_info(&map_directory(&self.pin_directory), name)
    }
}
