//! Shows the agent packets that it asked for, as they came: nothing in them has been rewritten yet.
//!
//! Only what is refused or left to the host's stack can be shown. Sampling windows bound what that costs in a flood: each
//! CPU copies so many packets in a window, and counts the rest.
#![expect(
    unsafe_code,
    reason = "map values and ring-buffer entries; each block states need and soundness"
)]

use enforcer_common::abi::capture::{CAPTURE_BYTES, CAPTURE_WINDOW_SHIFT, CaptureRecord, CapturedRecord};
use enforcer_common::continuation::Errand;
use enforcer_common::decide::Decision;

use crate::hook::Hook;
use crate::maps;

/// Whether packets that got this reason are asked for: all that it costs a packet while there is no capture.
#[inline(always)]
pub(crate) fn is_wanted(decision: &Decision) -> bool {
    match maps::CAPTURE.get(0) {
        Some(capture) => capture.reasons.wrapping_shr(decision.reason as u32) & 1 != 0,
        None => false,
    }
}

/// What the agent, or an answer, has to know of a decision.
#[inline(always)]
pub(crate) const fn errand(decision: &Decision, verdict: u32, now_ns: u64) -> Errand {
    Errand {
        tenant: decision.tenant,
        verdict,
        now_ns,
        generation: decision.generation,
        reason: decision.reason as u32,
        service: decision.service,
        rule: decision.rule,
        ..Errand::NONE
    }
}

/// Captures a packet on its way in or out, if it is asked for.
#[inline(always)]
pub(crate) fn show<H: Hook>(hook: &H, direction: u32, errand: &Errand) {
    let Some(capture) = maps::CAPTURE.get(0) else {
        return;
    };
    if !is_asked_for(capture, errand) {
        return;
    }
    let Some(tally) = maps::CAPTURE_TALLIES.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the slot belongs to this CPU, programs do
    // not preempt each other, and it is never freed.
    let tally = unsafe { &mut *tally };
    let window = errand.now_ns >> CAPTURE_WINDOW_SHIFT;
    if tally.window != window {
        tally.window = window;
        tally.window_packets = 0;
    }
    if tally.window_packets >= u64::from(capture.packets_per_window) {
        tally.sampled_out += 1;
        return;
    }
    tally.window_packets += 1;
    let Some(mut entry) = maps::CAPTURED.reserve::<CapturedRecord>(0) else {
        tally.lost += 1;
        return;
    };
    let frame_bytes = hook.frame_bytes();
    let bytes = bounded(frame_bytes.min(capture.snap_bytes));
    let record = entry.as_mut_ptr();
    // SAFETY: (need) the record is too large for the stack, so it is written in place. (soundness) the entry has the room
    // of one and is aligned to eight bytes; each field but the tail of `frame`, which nobody reads, is written before it is
    // submitted; `bytes` is at most what `frame` has.
    let copied = unsafe {
        (&raw mut (*record).now_ns).write(errand.now_ns);
        (&raw mut (*record).generation).write(errand.generation);
        (&raw mut (*record).serial).write(capture.serial);
        (&raw mut (*record).direction).write(direction);
        (&raw mut (*record).ifindex).write(hook.arrived_by());
        (&raw mut (*record).reason).write(errand.reason);
        (&raw mut (*record).tenant).write(errand.tenant);
        (&raw mut (*record).service).write(errand.service);
        (&raw mut (*record).rule).write(errand.rule);
        (&raw mut (*record).frame_bytes).write(frame_bytes);
        (&raw mut (*record).captured_bytes).write(bytes);
        (&raw mut (*record).reserved).write(0);
        hook.copy((&raw mut (*record).frame).cast(), bytes)
    };
    if copied {
        entry.submit(0);
        tally.captured += 1;
    } else {
        entry.discard(0);
        tally.lost += 1;
    }
}

/// Whether the packet is one of those that the capture, whose reasons it has, is after.
#[inline(always)]
fn is_asked_for(capture: &CaptureRecord, errand: &Errand) -> bool {
    let [one, other] = capture.services;
    let its_tenant = capture.tenant == 0 || capture.tenant == errand.tenant;
    let its_service =
        (one | other) == 0 || errand.service != 0 && (errand.service == one || errand.service == other);
    errand.now_ns <= capture.until_ns && its_tenant && its_service
}

/// From one byte to as many as there is room for, in a way that the verifier follows.
#[inline(always)]
fn bounded(bytes: u32) -> u32 {
    let bytes = core::hint::black_box(bytes);
    if bytes == 0 {
        return 1;
    }
    if bytes > CAPTURE_BYTES {
        return CAPTURE_BYTES;
    }
    bytes
}
