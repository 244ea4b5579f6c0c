//! Counters and ring-buffer events.
//!
//! Every packet adds to exactly one tally, so packets in equal the sum over all reasons. A decision that calls for an
//! audit record adds to exactly one of `recorded`, `aggregated` and `lost` as well: the window bounds how many events
//! one (direction, tenant, reason, CPU) can send, so that a flood buys neither disk nor CPU.
#![expect(
    unsafe_code,
    reason = "map values and helpers; each block states need and soundness"
)]

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use enforcer_common::abi::event::{
    EVENT_FLOW_MOVED, EVENT_FLOW_OPENED, EVENT_REFUSED, EVENT_WINDOW_SHIFT, EventRecord,
};
use enforcer_common::abi::reason::Effect;
use enforcer_common::abi::tally::{TallyRecord, tally_index};
use enforcer_common::decide::{Clock, Decision, FlowFate, Packet};

use crate::{facts, maps};

/// Counts a packet under the number of a reason; answers what counted it.
#[inline(always)]
pub(crate) fn tally<'a>(direction: u32, tenant: u32, reason: u32, bytes: u32) -> Option<&'a mut TallyRecord> {
    let block = maps::TALLIES.get_ptr_mut(tally_index(direction, tenant))?;
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the slot belongs to this CPU, a program
    // is not preempted by another that writes it (XDP and TC both run with bottom halves off), and it is never freed.
    let block = unsafe { &mut *block };
    let tally = block.reasons.get_mut(reason as usize)?;
    tally.packets += 1;
    tally.bytes += u64::from(bytes);
    Some(tally)
}

/// Counts a packet and, where the decision calls for it, tells the agent.
#[inline(always)]
pub(crate) fn count<C: Clock>(
    direction: u32,
    decision: &Decision,
    packet: &Packet,
    translated_port_be: u16,
    clock: C,
) {
    // The compiler knows that reasons are fewer than tallies and would leave the bounds check out; the verifier does not.
    let reason = core::hint::black_box(decision.reason as u32);
    let Some(tally) = tally(direction, decision.tenant, reason, packet.bytes) else {
        return;
    };
    let kind = match (decision.reason.effect(), decision.flow) {
        (Effect::Refused, _) => EVENT_REFUSED,
        (Effect::Forwarded, FlowFate::Opened | FlowFate::Reopened | FlowFate::Stateless) => EVENT_FLOW_OPENED,
        (Effect::Forwarded, FlowFate::Moved) => EVENT_FLOW_MOVED,
        (Effect::Forwarded | Effect::Passed, _) => return,
    };
    if window_is_used_up(tally, facts::coarse_now_ns()) {
        tally.aggregated += 1;
        return;
    }
    let now_ns = clock.now_ns();
    let Some(mut entry) = maps::EVENTS.reserve::<EventRecord>(0) else {
        tally.lost += 1;
        return;
    };
    // SAFETY: (need) a helper is a foreign call. (soundness) it takes nothing and returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    entry.write(EventRecord {
        now_ns,
        generation: decision.generation,
        key: packet.key,
        translated_port_be,
        reserved: 0,
        kind,
        reason: decision.reason as u32,
        tenant: decision.tenant,
        service: decision.service,
        rule: decision.rule,
        backend: decision.backend,
        shadow_rule: decision.shadow_rule,
        shadow_reason: decision.shadow_reason,
        bytes: packet.bytes,
        direction,
        cpu,
    });
    entry.submit(0);
    tally.recorded += 1;
    tally.window_events += 1;
}

#[inline(always)]
fn window_is_used_up(tally: &mut TallyRecord, now_ns: u64) -> bool {
    let window = now_ns >> EVENT_WINDOW_SHIFT;
    if tally.window != window {
        tally.window = window;
        tally.window_events = 0;
    }
    match facts::host() {
        Some(host) => tally.window_events >= host.events_per_window,
        None => true,
    }
}
