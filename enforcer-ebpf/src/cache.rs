//! What this CPU remembers of flows: see `enforcer_common::abi::cache`.
#![expect(
    unsafe_code,
    reason = "map values and helpers; each block states need and soundness"
)]

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::cache::{
    CACHED_FREE, CACHED_UDP, CachedFlow, MAX_PENDING_BYTES, MAX_PENDING_PACKETS, TICK_SHIFT, WAYS,
    cache_hash, entry_index, epoch_index, retagged, set_index, tag, way_of,
};
use enforcer_common::abi::flow::{FLOW_ESTABLISHED, FlowRecord};
use enforcer_common::decide::{Decision, Packet, TCP_FIN, TCP_RST, TCP_SYN, UDP};
use enforcer_common::hash::flow_hash;

use crate::facts::{self, add};
use crate::maps::{self, Notes};

/// Flags of packets that begin or end a connection: they go to the flow table.
const NOT_PLAIN: u8 = TCP_SYN | TCP_FIN | TCP_RST;

/// A flow whose set has no unused entry looks only with one packet in so many whether one has become free.
const TRY_EVERY: u64 = 8;

/// Now, as entries say it.
#[inline(always)]
fn tick() -> u16 {
    (facts::coarse_now_ns() >> TICK_SHIFT) as u16
}

/// The set of this CPU in which it would remember a flow of this hash; none of its own for a cache of nothing.
#[inline(always)]
fn set_of(hash: u64) -> u32 {
    // SAFETY: (need) a helper is a foreign call. (soundness) it takes nothing and returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    set_index(cpu, maps::cache_sets(), hash)
}

/// The entry of the noted flow's set that has the flow's tag: nobody else's is worth a look, which may be dear.
#[inline(always)]
fn tagged_entry(notes: &Notes) -> Option<*mut CachedFlow> {
    if maps::cache_sets() == 0 {
        return None;
    }
    let tags = maps::FLOW_TAGS.get(notes.set)?;
    maps::FLOW_CACHE.get_ptr_mut(entry_index(notes.set, way_of(*tags, tag(notes.hash))?))
}

/// What was noted of this packet.
#[inline(always)]
fn noted() -> Option<&'static Notes> {
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the notes belong to this CPU, and the reference
    // does not outlive the statement of the caller.
    Some(unsafe { &*maps::notes()? })
}

/// Notes the low half of the flow hash of a packet whose flow was not found, and that is sent on.
#[inline(always)]
pub(crate) fn note_spread(packet: &Packet) {
    if let Some(notes) = maps::notes() {
        // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the notes belong to this CPU.
        unsafe { (*notes).spread = flow_hash(&packet.key) as u32 };
    }
}

/// What [`note_spread`] noted.
#[inline(always)]
pub(crate) fn noted_spread() -> u64 {
    noted().map_or(0, |notes| u64::from(notes.spread))
}

/// Notes the word in `FLOW_EPOCHS` of the packet's flow, before that is looked up in the flow table.
#[inline(always)]
pub(crate) fn note_epoch() {
    if let Some(notes) = maps::notes() {
        // SAFETY: as in `note_spread`.
        unsafe {
            if let Some(word) = maps::FLOW_EPOCHS.get_ptr_mut(epoch_index((*notes).hash)) {
                (*notes).epoch = facts::load(word);
            }
        }
    }
}

/// Has every CPU forget what it remembers of the flow that was noted.
#[inline(always)]
pub(crate) fn forget() {
    if let Some(notes) = noted()
        && let Some(word) = maps::FLOW_EPOCHS.get_ptr_mut(epoch_index(notes.hash))
    {
        add(word, 1);
    }
}

/// The entry of a packet's flow, if it is remembered and nothing has changed about it. Notes the flow.
#[inline(always)]
pub(crate) fn recall(packet: &Packet, generation: u64) -> Option<*mut CachedFlow> {
    let notes = maps::notes()?;
    let hash = cache_hash(&packet.key);
    let set = set_of(hash);
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the notes belong to this CPU.
    let slot = unsafe {
        (*notes).hash = hash;
        (*notes).set = set;
        tagged_entry(&*notes)?
    };
    let epoch = facts::load(maps::FLOW_EPOCHS.get_ptr_mut(epoch_index(hash))?);
    // SAFETY: (need) map values are reached through a pointer. (soundness) the slot belongs to this CPU, whose programs do
    // not preempt each other (XDP and TC both run with bottom halves off); the agent writes zeroes alone, word by word, which
    // at worst is a flow that is not found.
    let entry = unsafe { &*slot };
    let differs = entry.differs(&packet.key)
        | u64::from(entry.generation ^ generation as u32)
        | u64::from(entry.epoch ^ epoch as u16)
        | u64::from(entry.tick ^ tick())
        | u64::from(packet.tcp_flags & NOT_PLAIN)
        | u64::from(entry.packets == MAX_PENDING_PACKETS)
        | u64::from(entry.bytes & MAX_PENDING_BYTES);
    if differs != 0 {
        return None;
    }
    Some(slot)
}

/// Counts a packet of a flow that was found; answers what is remembered of it.
#[inline(always)]
pub(crate) fn count<'a>(slot: *mut CachedFlow, bytes: u32) -> &'a CachedFlow {
    // SAFETY: as in `recall`; nobody writes to the entry while this program reads it.
    unsafe {
        (*slot).packets = (*slot).packets.wrapping_add(1);
        (*slot).bytes = (*slot).bytes.wrapping_add(bytes);
        &*slot
    }
}

/// Brings what was counted of a flow to its record.
///
/// A function of its own: the stack of those that call it has no room for more.
#[inline(never)]
pub(crate) fn settle_up(key: &FlowKey, record: *mut FlowRecord) -> u32 {
    if let Some(notes) = noted()
        && let Some(slot) = tagged_entry(notes)
    {
        // SAFETY: as in `recall`, and of the record as in `flows::touch_flow`.
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
    let (Some(notes), true) = (maps::notes(), maps::cache_sets() != 0) else {
        return;
    };
    // SAFETY: as in `recall`, and of the record as in `flows::touch_flow`.
    unsafe {
        let (set, own) = ((*notes).set, tag((*notes).hash));
        let Some(tags) = maps::FLOW_TAGS.get_ptr_mut(set) else {
            return;
        };
        let packets = (*record).packets;
        if packet.tcp_flags & NOT_PLAIN != 0 || (*record).state != FLOW_ESTABLISHED {
            return;
        }
        let way = match way_of(*tags, own) {
            Some(way) => way,
            None => match way_of(*tags, 0) {
                Some(way) => way,
                None if packets.is_multiple_of(TRY_EVERY) => (packets / TRY_EVERY) as u32 % WAYS,
                None => return,
            },
        };
        let index = entry_index(set, way);
        let (Some(slot), now) = (maps::FLOW_CACHE.get_ptr_mut(index), tick()) else {
            return;
        };
        let is_other = (*slot).differs(&packet.key) != 0;
        if is_other && (*slot).tick == now && (*slot).generation == decision.generation as u32 {
            return;
        }
        if (*slot).packets != 0 {
            // Those of this flow have been brought home: these are another's.
            bring_home(index);
        }
        let key = &packet.key;
        let udp = if key.protocol == UDP { CACHED_UDP } else { 0 };
        let free = if decision.is_free { CACHED_FREE } else { 0 };
        slot.write(CachedFlow {
            source: key.source,
            destination: key.destination,
            generation: decision.generation as u32,
            spread: (*notes).spread,
            source_port_be: key.source_port_be,
            destination_port_be: key.destination_port_be,
            decision: (*notes).decision,
            forward: decision.forward as u16 | free,
            service: (decision.service - 1) as u16,
            backend: (decision.backend - 1) as u16 | udp,
            translated_port_be: (*record).translated_port_be,
            epoch: (*notes).epoch as u16,
            tick: now,
            packets: 0,
            bytes: 0,
        });
        *tags = retagged(*tags, way, own);
    }
}

/// Brings what an entry has counted of whatever flow to that flow's record. What belongs to none is lost with its flow.
///
/// A function of its own, so that the verifier walks through it once.
#[inline(never)]
fn bring_home(index: u32) -> u32 {
    let (Some(slot), Some(notes)) = (maps::FLOW_CACHE.get_ptr_mut(index), maps::notes()) else {
        return 0;
    };
    // SAFETY: as in `recall`, and of the record as in `flows::touch_flow`.
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
