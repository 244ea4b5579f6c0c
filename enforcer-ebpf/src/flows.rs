//! Carries out a decision: makes, moves and updates flow entries, pays charges, and has the packet sent.
#![expect(
    unsafe_code,
    reason = "map values and helpers; each block states need and soundness"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, keys and records would be copied once more on a stack of 512 bytes"
)]

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::programs::TcContext;
use enforcer_common::Reason;
use enforcer_common::abi::address::{Address, FlowKey, from_v4};
use enforcer_common::abi::config::{BackendRecord, FORWARD_NAT, HostRecord, answers_directly};
use enforcer_common::abi::flow::{FLOW_FIN, FLOW_RST, FlowRecord, ReplyRecord, seen_ns};
use enforcer_common::decide::{
    Clock, Decision, Facts as _, FlowFate, flow_bits, is_v4, may_be_stateless, reply_key,
};
use enforcer_common::hash::{flow_hash, scale};
use enforcer_common::parse::{Frame, NO_TAGS};
use enforcer_common::schema::{backend_connections, holder_connections, tenant_holder};

use crate::facts::{self, MapFacts, add, settle};
use crate::hook::{Hook, is_untagged};
use crate::route::Hop;
use crate::send::{Sent, deliver};
use crate::{cache, maps, rewrite};

/// Ports that are tried before a translation is given up.
const PORT_TRIES: u32 = 8;

/// What an insertion answers, negated, if the key is there already.
const EEXIST: i32 = 17;

/// Sends a client's packet to its back end.
#[inline(always)]
pub(crate) fn forward<H: Hook, C: Clock>(
    hook: &H,
    facts: &MapFacts,
    frame: &Frame,
    decision: &Decision,
    clock: C,
) -> Result<Sent, Reason> {
    cache::note_spread(&frame.packet);
    let bank = (decision.generation & 1) as u32;
    let backend = facts
        .backend(bank, decision.backend - 1)
        .ok_or(Reason::Internal)?;
    let host = facts::host().ok_or(Reason::Internal)?;
    let mut stateless = false;
    let translated_port_be = match decision.flow {
        FlowFate::Kept | FlowFate::Renewed => keep(host, facts, frame, decision, clock)?,
        FlowFate::Moved | FlowFate::Reopened => {
            retarget(hook, host, facts, frame, decision, backend, clock.now_ns())?
        }
        FlowFate::Opened => match open(hook, host, frame, decision, backend, clock.now_ns()) {
            Err(Reason::TableFull) if may_be_stateless(facts, decision) => {
                stateless = true;
                frame.packet.key.source_port_be
            }
            outcome => outcome?,
        },
        FlowFate::Stateless => frame.packet.key.source_port_be,
        FlowFate::Remembered | FlowFate::None => return Err(Reason::Internal),
    };
    settle(decision, frame.packet.bytes, clock);
    let mut sent = deliver(
        hook,
        frame,
        decision,
        backend,
        translated_port_be,
        cache::noted_spread,
    )
    .ok_or(Reason::Internal)?;
    sent.translated_port_be = translated_port_be;
    sent.stateless = stateless;
    Ok(sent)
}

/// Sends a packet of a flow that is remembered.
#[inline(always)]
pub(crate) fn forward_remembered<H: Hook, C: Clock>(
    hook: &H,
    facts: &MapFacts,
    frame: &Frame,
    decision: &Decision,
    clock: C,
) -> Option<Sent> {
    let remembered = cache::count(facts.found_cached()?, frame.packet.bytes);
    settle(decision, frame.packet.bytes, clock);
    deliver(
        hook,
        frame,
        decision,
        facts.found_backend()?,
        remembered.translated_port_be,
        || u64::from(remembered.spread),
    )
}

/// Sends a back end's reply to the client.
#[inline(always)]
pub(crate) fn reply<H: Hook>(
    hook: &H,
    facts: &MapFacts,
    frame: &Frame,
    decision: &Decision,
    now_ns: u64,
) -> Result<Sent, Reason> {
    let entry = facts.found_reply().ok_or(Reason::Internal)?;
    settle(decision, frame.packet.bytes, now_ns);
    touch_reply(entry, frame, now_ns);
    // SAFETY: (need) hash map values are reached through pointers. (soundness) the kernel keeps the memory mapped while
    // the program runs; plain integers are copied out.
    let record = unsafe { &*entry };
    hook.translate(frame, &record.forward.reversed())
        .ok_or(Reason::Internal)?;
    Sent::by(hook, frame, &homeward(record)).ok_or(Reason::Internal)
}

/// How replies get to their client: as its packets came.
#[inline(always)]
pub(crate) const fn homeward(record: &ReplyRecord) -> Hop<'_> {
    Hop {
        tags: &record.tags,
        ifindex: record.client_ifindex,
        next_hop_mac: &record.client_mac,
        own_mac: &record.own_mac,
    }
}

/// Undoes the translation of a reply that goes out through the host's stack.
#[inline(always)]
pub(crate) fn reply_through_stack(
    ctx: &TcContext,
    facts: &MapFacts,
    frame: &Frame,
    decision: &Decision,
    now_ns: u64,
) -> Result<(), Reason> {
    let entry = facts.found_reply().ok_or(Reason::Internal)?;
    settle(decision, frame.packet.bytes, now_ns);
    touch_reply(entry, frame, now_ns);
    // SAFETY: as in `reply`.
    let asked = unsafe { (*entry).forward.reversed() };
    // Where it goes the stack has decided.
    let outgoing = FlowKey {
        source: asked.source,
        source_port_be: asked.source_port_be,
        ..frame.packet.key
    };
    if outgoing == frame.packet.key {
        // An answer of a proxy on this host: nothing was translated.
        return Ok(());
    }
    rewrite::readdress_buffer(ctx, frame, &outgoing).ok_or(Reason::Internal)
}

/// Marks the connection of a packet that is refused for its back end's sake as reset: it is open no more.
#[inline(always)]
pub(crate) fn abandon(facts: &MapFacts) {
    if let Some(entry) = facts.found_flow() {
        // SAFETY: as in `touch_reply`.
        unsafe { (*entry).state |= FLOW_RST };
        cache::forget();
    }
}

#[inline(always)]
fn touch_reply(entry: *mut ReplyRecord, frame: &Frame, now_ns: u64) {
    // SAFETY: (need) hash map values are reached through pointers. (soundness) as in `reply`; counters are added to
    // atomically, and a lost update of `seen_ns` or `state` by a packet in the same moment is repaired by the next.
    unsafe {
        add(&raw mut (*entry).packets, 1);
        add(&raw mut (*entry).bytes, u64::from(frame.packet.bytes));
        (*entry).seen_ns = now_ns;
        let bits = flow_bits(&frame.packet);
        if (*entry).state & bits != bits {
            (*entry).state |= bits;
        }
    }
}

/// Counts a packet of a flow, whose state is already that after it, and what the cache has counted of it.
#[inline(always)]
fn touch_flow(entry: *mut FlowRecord, frame: &Frame, now_ns: u64) {
    cache::settle_up(&frame.packet.key, entry);
    // SAFETY: as in `touch_reply`.
    unsafe {
        add(&raw mut (*entry).packets, 1);
        add(&raw mut (*entry).bytes, u64::from(frame.packet.bytes));
        (*entry).seen_ns = seen_ns((*entry).seen_ns, now_ns, (*entry).state);
    }
}

/// Another packet of a flow that keeps its back end; answers its translated port.
#[inline(always)]
fn keep<C: Clock>(
    host: &HostRecord,
    facts: &MapFacts,
    frame: &Frame,
    decision: &Decision,
    clock: C,
) -> Result<u16, Reason> {
    let entry = facts.found_flow().ok_or(Reason::Internal)?;
    // SAFETY: as in `touch_reply`.
    unsafe {
        let bits = flow_bits(&frame.packet);
        if (*entry).state & bits != bits {
            (*entry).state |= bits;
            if bits & (FLOW_FIN | FLOW_RST) != 0 {
                cache::forget();
            }
        }
        touch_flow(entry, frame, clock.now_ns());
        if matches!(decision.flow, FlowFate::Renewed) {
            renew(entry, decision);
            let address = (*entry).backend_address;
            let nat = nat_source(host, frame, decision.forward, (*entry).translated_port_be);
            let key = reply_key(&frame.packet.key, address, (*entry).backend_port_be, nat);
            if let Some(reply) = own_reply(&key, &frame.packet.key) {
                (*reply).tenant = decision.tenant;
                (*reply).service = decision.service - 1;
            }
        }
        cache::remember(&frame.packet, decision, entry);
        if decision.forward == FORWARD_NAT {
            return Ok((*entry).translated_port_be);
        }
    }
    // What stands in the entry as well, further from what was read of it.
    Ok(frame.packet.key.source_port_be)
}

/// Writes what was decided anew; a connection that changed hands is counted with whom it belongs to now.
#[inline(always)]
fn renew(entry: *mut FlowRecord, decision: &Decision) {
    // SAFETY: as in `touch_reply`.
    unsafe {
        move_connection(tenant_holder((*entry).tenant), tenant_holder(decision.tenant));
        move_connection(u32::from((*entry).pair_group), decision.pair_group);
        move_connection(u32::from((*entry).service_group), decision.service_group);
        (*entry).pair_group = decision.pair_group as u16;
        (*entry).service_group = decision.service_group as u16;
        (*entry).tenant = decision.tenant;
        (*entry).service = decision.service - 1;
        (*entry).rule = decision.rule;
        (*entry).generation = decision.generation;
    }
}

/// Gives an existing entry another back end.
#[inline(always)]
fn retarget<H: Hook>(
    hook: &H,
    host: &HostRecord,
    facts: &MapFacts,
    frame: &Frame,
    decision: &Decision,
    backend: &BackendRecord,
    now_ns: u64,
) -> Result<u16, Reason> {
    let entry = facts.found_flow().ok_or(Reason::Internal)?;
    // SAFETY: as in `touch_reply`.
    unsafe {
        // The reply entry of the old target; where the forward mode changed too, the agent's sweep finds it.
        if (*entry).forward == decision.forward && !answers_directly(decision.forward) {
            let nat = nat_source(host, frame, decision.forward, (*entry).translated_port_be);
            let old = reply_key(
                &frame.packet.key,
                (*entry).backend_address,
                (*entry).backend_port_be,
                nat,
            );
            if own_reply(&old, &frame.packet.key).is_some() {
                let _ = maps::REPLIES.remove(&old);
            }
        }
        let port_be = establish_replies(hook, host, frame, decision, backend, now_ns)?;
        if (*entry).backend != decision.backend - 1 {
            count_connection(backend_connections((*entry).backend), u64::MAX);
            count_connection(backend_connections(decision.backend - 1), 1);
        }
        renew(entry, decision);
        (*entry).forward = decision.forward;
        (*entry).backend = decision.backend - 1;
        (*entry).backend_address = backend.address;
        (*entry).backend_port_be = backend.port_be;
        (*entry).translated_port_be = port_be;
        (*entry).state = flow_bits(&frame.packet);
        touch_flow(entry, frame, now_ns);
        cache::forget();
        Ok(port_be)
    }
}

/// Makes a flow; answers its translated port.
#[inline(always)]
fn open<H: Hook>(
    hook: &H,
    host: &HostRecord,
    frame: &Frame,
    decision: &Decision,
    backend: &BackendRecord,
    now_ns: u64,
) -> Result<u16, Reason> {
    let key = &frame.packet.key;
    let port_be = establish_replies(hook, host, frame, decision, backend, now_ns)?;
    let record = maps::off_stack_flow(FlowRecord {
        created_ns: now_ns,
        seen_ns: now_ns,
        packets: 1,
        bytes: u64::from(frame.packet.bytes),
        generation: decision.generation,
        tenant: decision.tenant,
        service: decision.service - 1,
        rule: decision.rule,
        backend: decision.backend - 1,
        state: flow_bits(&frame.packet),
        forward: decision.forward,
        pair_group: decision.pair_group as u16,
        service_group: decision.service_group as u16,
        backend_port_be: backend.port_be,
        translated_port_be: port_be,
        backend_address: backend.address,
        reserved: [0; 4],
    })
    .ok_or(Reason::Internal)?;
    if maps::FLOWS.insert(key, record, u64::from(BPF_NOEXIST)).is_err() {
        if !answers_directly(decision.forward) {
            let nat = nat_source(host, frame, decision.forward, port_be);
            let _ = maps::REPLIES.remove(&reply_key(key, backend.address, backend.port_be, nat));
        }
        return Err(Reason::TableFull);
    }
    move_connection(0, tenant_holder(decision.tenant));
    move_connection(0, decision.pair_group);
    move_connection(0, decision.service_group);
    count_connection(backend_connections(decision.backend - 1), 1);
    Ok(port_be)
}

/// Counts a connection with another holder of limits; group 0 is nobody.
#[inline(always)]
fn move_connection(from: u32, to: u32) {
    if from == to {
        return;
    }
    if from != 0 {
        count_connection(holder_connections(from), u64::MAX);
    }
    if to != 0 {
        count_connection(holder_connections(to), 1);
    }
}

#[inline(always)]
fn count_connection(index: u32, by: u64) {
    if let Some(word) = maps::CONNECTIONS_OPENED.get_ptr_mut(index) {
        add(word, by);
    }
}

/// The address and port that `Nat` puts in place of the client's; `None` for the other modes.
#[inline(always)]
pub(crate) fn nat_source(
    host: &HostRecord,
    frame: &Frame,
    forward: u32,
    port_be: u16,
) -> Option<(Address, u16)> {
    if forward != FORWARD_NAT {
        return None;
    }
    let address = if is_v4(&frame.packet.key) {
        from_v4(host.nat_v4)
    } else {
        host.nat_v6
    };
    Some((address, port_be))
}

/// Makes the entry by which replies find their way back; answers the port in place of the client's.
#[inline(always)]
fn establish_replies<H: Hook>(
    hook: &H,
    host: &HostRecord,
    frame: &Frame,
    decision: &Decision,
    backend: &BackendRecord,
    now_ns: u64,
) -> Result<u16, Reason> {
    let key = &frame.packet.key;
    if answers_directly(decision.forward) {
        return Ok(key.source_port_be);
    }
    let record =
        maps::off_stack_reply(reply_record(hook, frame, decision, now_ns)).ok_or(Reason::Internal)?;
    if !is_untagged(hook, frame) {
        maps::set_reply_tags(hook.tags(frame)).ok_or(Reason::Internal)?;
    }
    if decision.forward != FORWARD_NAT {
        let reply = reply_key(key, backend.address, backend.port_be, None);
        return match maps::REPLIES.insert(&reply, record, u64::from(BPF_NOEXIST)) {
            Ok(()) => Ok(key.source_port_be),
            Err(_) => replace_own(&reply, record).map(|()| key.source_port_be),
        };
    }
    // Two tries that differ only by the low half of the hash go to distant ports.
    let mut hash = flow_hash(key);
    for _ in 0..PORT_TRIES {
        let port_be = (host
            .nat_port_first
            .wrapping_add(scale(hash, u32::from(host.nat_port_count)) as u16))
        .to_be();
        let reply = reply_key(
            key,
            backend.address,
            backend.port_be,
            nat_source(host, frame, FORWARD_NAT, port_be),
        );
        match maps::REPLIES.insert(&reply, record, u64::from(BPF_NOEXIST)) {
            Ok(()) => return Ok(port_be),
            // Another connection has this port.
            Err(code) if code == -EEXIST => {}
            // A full table has no room for another port either.
            Err(_) => return Err(Reason::TableFull),
        }
        hash = hash.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    Err(Reason::TranslationExhausted)
}

/// The entry at `key`, if it is that of the flow `forward`. Another flow can have the key: one of the same client port to
/// another VIP that goes to the same back end, or one that got the translated port after this flow had lost it.
#[inline(always)]
fn own_reply(key: &FlowKey, forward: &FlowKey) -> Option<*mut ReplyRecord> {
    let entry = maps::REPLIES.get_ptr_mut(key)?;
    // SAFETY: as in `reply`.
    let owner = unsafe { (*entry).forward };
    if owner == *forward { Some(entry) } else { None }
}

/// A reply key without translation can already be taken: by a remainder of this very flow, which is replaced, or by a flow of the
/// same client port to another VIP that went to the same back end, which must not be cut.
#[inline(always)]
fn replace_own(key: &FlowKey, record: &ReplyRecord) -> Result<(), Reason> {
    let entry = maps::REPLIES.get_ptr(key).ok_or(Reason::TableFull)?;
    // SAFETY: as in `reply`.
    let owner = unsafe { (*entry).forward };
    if owner != record.forward {
        return Err(Reason::TranslationExhausted);
    }
    maps::REPLIES
        .insert(key, record, u64::from(BPF_ANY))
        .map_err(|_| Reason::TableFull)
}

#[inline(always)]
fn reply_record<H: Hook>(hook: &H, frame: &Frame, decision: &Decision, now_ns: u64) -> ReplyRecord {
    let (own_mac, client_mac) = frame.macs();
    ReplyRecord {
        forward: frame.packet.key,
        seen_ns: now_ns,
        packets: 0,
        bytes: 0,
        tenant: decision.tenant,
        service: decision.service - 1,
        backend: decision.backend - 1,
        client_ifindex: hook.arrived_by(),
        client_mac,
        own_mac,
        state: 0,
        tags: NO_TAGS,
    }
}
