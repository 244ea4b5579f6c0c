//! What this CPU remembers of flows: see `enforcer_common::abi::cache`.
#![expect(
    unsafe_code,
    reason = "map values and helpers; each block states need and soundness"
)]

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::cache::{
    CACHED_UDP, CachedFlow, JIFFIES_SHIFT, MAX_PENDING_BYTES, MAX_PENDING_PACKETS, TAGS, TICK_SHIFT,
    cache_index, epoch_index, tag,
};
use enforcer_common::abi::config::DecisionCell;
use enforcer_common::abi::flow::{FLOW_ESTABLISHED, FlowRecord};
use enforcer_common::decide::{Decision, KnownFlow, Packet, TCP_FIN, TCP_RST, TCP_SYN, UDP};
use enforcer_common::hash::flow_hash;

use crate::facts::{self, add};
use crate::maps;

/// Flags of packets that begin or end a connection: they go to the flow table.
const NOT_PLAIN: u8 = TCP_SYN | TCP_FIN | TCP_RST;

/// A flow whose place is another's looks only with one packet in so many whether that has become free.
const TRY_EVERY: u64 = 8;

/// Now, as entries say it.
#[inline(always)]
fn tick() -> u16 {
    if maps::test_clock() {
        return (facts::now_ns() >> TICK_SHIFT) as u16;
    }
    // SAFETY: (need) a helper is a foreign call. (soundness) it takes nothing and returns a number.
    let ticks = unsafe { bpf_jiffies64() };
    (ticks >> JIFFIES_SHIFT) as u16
}

/// Index of the entry in which this CPU would remember a flow of this hash.
#[inline(always)]
fn index_of(hash: u64) -> Option<u32> {
    let slots = maps::cache_slots();
    if slots == 0 {
        return None;
    }
    // SAFETY: (need) a helper is a foreign call. (soundness) it takes nothing and returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    Some(cache_index(cpu, slots, hash))
}

/// The entry in which this CPU would remember the flow that was noted.
#[inline(always)]
fn slot() -> Option<*mut CachedFlow> {
    if maps::cache_slots() == 0 {
        return None;
    }
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the notes belong to this CPU.
    maps::FLOW_CACHE.get_ptr_mut(unsafe { (*maps::notes()?).index })
}

/// The same if its tag is the flow's: another flow's entry is not worth a look, which may be dear.
#[inline(always)]
fn tagged_slot() -> Option<*mut CachedFlow> {
    if maps::cache_slots() == 0 {
        return None;
    }
    let notes = maps::notes()?;
    // SAFETY: as in `slot` and in `find`.
    unsafe {
        if *tag_at((*notes).index)? != tag((*notes).hash) {
            return None;
        }
    }
    slot()
}

#[inline(always)]
fn tag_at(index: u32) -> Option<*mut u8> {
    let line = maps::FLOW_TAGS.get_ptr_mut(index / TAGS)?;
    // SAFETY: (need) map values are reached through a pointer. (soundness) the place of one of the record's bytes.
    Some(unsafe { (&raw mut (*line).tags).cast::<u8>().add((index % TAGS) as usize) })
}

/// Notes what was found in the decision table.
#[inline(always)]
pub(crate) fn note_cell(cell: DecisionCell) {
    if let Some(notes) = maps::notes() {
        // SAFETY: as in `slot`.
        unsafe { (*notes).cell = cell };
    }
}

/// The hash of the flow that was noted.
#[inline(always)]
pub(crate) fn noted_hash() -> Option<u64> {
    // SAFETY: as in `slot`.
    Some(unsafe { (*maps::notes()?).hash })
}

/// Has every CPU forget what it remembers of the flow that was noted.
#[inline(always)]
pub(crate) fn forget() {
    if let Some(notes) = maps::notes()
        // SAFETY: as in `slot`.
        && let Some(word) = maps::FLOW_EPOCHS.get_ptr_mut(epoch_index(unsafe { (*notes).hash }))
    {
        add(word, 1);
    }
}

/// What is remembered of a packet's flow. Notes the flow.
#[inline(always)]
pub(crate) fn recall(packet: &Packet, generation: u64) -> KnownFlow {
    match find(packet, generation) {
        Some(known) => known,
        None => KnownFlow::NONE,
    }
}

#[inline(always)]
fn find(packet: &Packet, generation: u64) -> Option<KnownFlow> {
    let notes = maps::notes()?;
    let hash = flow_hash(&packet.key);
    // SAFETY: as in `slot`.
    unsafe { (*notes).hash = hash };
    let index = index_of(hash)?;
    let epoch = facts::load(maps::FLOW_EPOCHS.get_ptr_mut(epoch_index(hash))?);
    // SAFETY: as in `slot`, and of the tag as of the entry below.
    unsafe {
        (*notes).index = index;
        (*notes).epoch = epoch;
        // Another flow's entry is not worth a look, which may be dear.
        if *tag_at(index)? != tag(hash) {
            return None;
        }
    }
    let slot = maps::FLOW_CACHE.get_ptr_mut(index)?;
    // SAFETY: (need) map values are reached through a pointer. (soundness) the slot belongs to this CPU, whose programs do
    // not preempt each other (XDP and TC both run with bottom halves off); the agent writes zeroes alone, word by word, which
    // at worst is a flow that is not found.
    let entry = unsafe { &*slot };
    let differs = entry.differs(&packet.key)
        | u32::from(entry.epoch ^ epoch as u16)
        | u32::from(entry.tick ^ tick())
        | u32::from(packet.tcp_flags & NOT_PLAIN)
        | u32::from(entry.packets == MAX_PENDING_PACKETS)
        | (entry.bytes & MAX_PENDING_BYTES);
    if (entry.generation ^ generation) | u64::from(differs) != 0 {
        return None;
    }
    Some(KnownFlow {
        service: u32::from(entry.service),
        cell: DecisionCell {
            decision: entry.decision,
            set: entry.set,
        },
        backend: u32::from(entry.backend & !CACHED_UDP) + 1,
    })
}

/// Counts a packet of a flow that was found; answers the flow's translated port.
#[inline(always)]
pub(crate) fn count(bytes: u32) -> u16 {
    let Some(slot) = slot() else { return 0 };
    // SAFETY: as in `find`.
    unsafe {
        (*slot).packets = (*slot).packets.wrapping_add(1);
        (*slot).bytes = (*slot).bytes.wrapping_add(bytes);
        (*slot).translated_port_be
    }
}

/// Brings what was counted of a flow to its record.
///
/// A function of its own: the stack of those that call it has no room for more.
#[inline(never)]
pub(crate) fn settle_up(key: &FlowKey, record: *mut FlowRecord) -> u32 {
    if let Some(slot) = tagged_slot() {
        // SAFETY: as in `find`, and of the record as in `flows::touch_flow`.
        unsafe {
            if (*slot).packets != 0 && (*slot).differs(key) == 0 {
                bring(slot, record);
            }
        }
    }
    0
}

/// Adds what was counted in a slot to a record, and clears the counts.
///
/// # Safety
/// Both point into map values.
#[inline(always)]
unsafe fn bring(slot: *mut CachedFlow, record: *mut FlowRecord) {
    // SAFETY: as above.
    unsafe {
        add(&raw mut (*record).packets, u64::from((*slot).packets));
        add(&raw mut (*record).bytes, u64::from((*slot).bytes));
        (*slot).packets = 0;
        (*slot).bytes = 0;
    }
}

/// Remembers an open flow whose packet was found in the flow table. A flow in use keeps its place against others.
#[inline(always)]
pub(crate) fn remember(packet: &Packet, decision: &Decision, record: *mut FlowRecord) {
    let Some(notes) = maps::notes() else { return };
    // SAFETY: as in `find`, and of the record as in `flows::touch_flow`.
    unsafe {
        let index = (*notes).index;
        let Some(tag_place) = tag_at(index) else { return };
        let (own, there) = (tag((*notes).hash), *tag_place);
        let is_worth_a_look = there == 0 || there == own || (*record).packets.is_multiple_of(TRY_EVERY);
        if maps::cache_slots() == 0
            || !is_worth_a_look
            || packet.tcp_flags & NOT_PLAIN != 0
            || (*record).state != FLOW_ESTABLISHED
        {
            return;
        }
        let (Some(slot), now) = (maps::FLOW_CACHE.get_ptr_mut(index), tick()) else {
            return;
        };
        let is_other = (*slot).differs(&packet.key) != 0;
        if is_other && (*slot).tick == now && (*slot).generation == decision.generation {
            return;
        }
        if (*slot).packets != 0 {
            // Those of this flow have been brought home: these are another's.
            bring_home();
        }
        let (cell, key) = ((*notes).cell, &packet.key);
        let udp = if key.protocol == UDP { CACHED_UDP } else { 0 };
        slot.write(CachedFlow {
            source: key.source,
            destination: key.destination,
            generation: decision.generation,
            source_port_be: key.source_port_be,
            destination_port_be: key.destination_port_be,
            decision: cell.decision,
            set: cell.set,
            service: (decision.service - 1) as u16,
            backend: (decision.backend - 1) as u16 | udp,
            translated_port_be: (*record).translated_port_be,
            epoch: (*notes).epoch as u16,
            tick: now,
            packets: 0,
            bytes: 0,
        });
        *tag_place = own;
    }
}

/// Brings what the slot has counted of whatever flow to that flow's record. What belongs to none is lost with its flow.
///
/// A function of its own, so that the verifier walks through it once.
#[inline(never)]
fn bring_home() -> u32 {
    let (Some(slot), Some(notes)) = (slot(), maps::notes()) else {
        return 0;
    };
    // SAFETY: as in `find`, and of the record as in `flows::touch_flow`.
    unsafe {
        (*notes).key = (*slot).key();
        // By reference: a copy would lie on the stack.
        let key = &(*notes).key;
        if let Some(record) = maps::FLOWS.get_ptr_mut(key) {
            bring(slot, record);
        }
    }
    0
}
