//! The kernel programs: XDP for packets coming in, TC for packets going out through the host's stack.
//!
//! An entry point parses, judges (`enforcer_common::decide`), carries out the decision and counts it. What a packet
//! gets is decided in `enforcer-common` alone; this crate only looks things up and writes them down.
//!
//! - `maps`: the maps, expanded from the one list in `enforcer_common::schema`.
//! - `window`: bounds-checked access to packet bytes; the only casts of packet pointers.
//! - `facts`: `Facts` over the maps.
//! - `flows`: makes, moves and updates flow entries, translates addresses, pays charges.
//! - `encapsulate`: outer headers, put before a packet.
//! - `answer`: what goes back to the sender of a refused packet.
//! - `capture`: shows the agent packets that it asked for.
//! - `related`: ICMP errors about flows.
//! - `header`, `resize`: headers made from nothing, and room for them.
//! - `rewrite`: header edits and checksums.
//! - `emit`: counters and ring-buffer events.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the program macros hand the context over by value"
)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the program macros emit an undocumented, exported function each"
)]
#![expect(
    internal_features,
    reason = "the BPF target's atomics with a result are reached by intrinsics only"
)]

mod answer;
mod capture;
mod emit;
mod encapsulate;
mod facts;
mod flows;
mod header;
mod maps;
mod related;
mod resize;
mod rewrite;
mod window;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_common::abi::reason::{Effect, Reason};
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::continuation::{Continuation, Errand};
use enforcer_common::decide::answer::Answer;
use enforcer_common::decide::{self, Decision, FlowFate};
use enforcer_common::parse;

use crate::facts::MapFacts;
use crate::flows::Sent;
use crate::window::PacketWindow;

/// Judges every packet that comes in on an interface.
#[xdp]
pub fn enforcer_xdp(ctx: XdpContext) -> u32 {
    let window = PacketWindow::xdp(&ctx);
    let Some(frame) = maps::forget(parse::parse(&window)) else {
        return xdp_action::XDP_ABORTED;
    };
    if parse::is_icmp(&frame.packet) {
        maps::go_on(&ctx, Continuation::Icmp, Errand::NONE);
    }
    let now_ns = facts::now_ns();
    let facts = MapFacts::new();
    let mut decision = decide::judge(&facts, &frame.packet, now_ns);
    let mut verdict = match decision.reason.effect() {
        Effect::Passed => xdp_action::XDP_PASS,
        Effect::Refused => xdp_action::XDP_DROP,
        Effect::Forwarded => xdp_action::XDP_ABORTED,
    };
    let (mut translated_port_be, mut errand) = (0, None);
    if verdict == xdp_action::XDP_ABORTED {
        let carried_out = match decision.reason {
            Reason::Reply => flows::reply(&ctx, &facts, frame, &decision, now_ns),
            _ => flows::forward(&ctx, &facts, frame, &decision, now_ns),
        };
        match carried_out {
            Ok(sent) => {
                verdict = sent.verdict;
                translated_port_be = sent.translated_port_be;
                errand = sent.errand;
                if sent.stateless {
                    decision.reason = Reason::Stateless;
                    decision.flow = FlowFate::Stateless;
                }
            }
            Err(reason) => {
                decision = decision.refused(reason);
                verdict = xdp_action::XDP_DROP;
            }
        }
    }
    emit::count(
        DIRECTION_INGRESS,
        &decision,
        &frame.packet,
        translated_port_be,
        now_ns,
    );
    if let Some(errand) = errand {
        maps::go_on(&ctx, Continuation::Encapsulate, errand);
        return xdp_action::XDP_ABORTED;
    }
    if matches!(decision.reason, Reason::BackendIneligible) {
        flows::abandon(&facts);
    }
    let mut errand = capture::errand(&decision, verdict, now_ns);
    if verdict == xdp_action::XDP_DROP {
        let kind = decide::answer::kind(&facts, &decision, &frame.packet);
        if !matches!(kind, Answer::None) {
            errand.answer = kind as u32;
            errand.fitting_bytes = decide::answer::fitting_bytes(&facts, &decision);
        }
    }
    leave(&ctx, &decision, errand)
}

/// What is left to do with a packet that was judged: it is shown to the agent if that asked for it, and answered if it
/// is to be. A packet that is sent on is neither: it has been rewritten.
#[inline(always)]
fn leave(ctx: &XdpContext, decision: &Decision, errand: Errand) -> u32 {
    let is_wanted = match decision.reason.effect() {
        Effect::Forwarded => return errand.verdict,
        Effect::Passed | Effect::Refused => capture::is_wanted(decision),
    };
    let next = if is_wanted {
        Continuation::Capture
    } else if errand.answer != Answer::None as u32 {
        Continuation::Answer
    } else {
        return errand.verdict;
    };
    if maps::tell(errand).is_some() {
        maps::go_on_seldom(ctx, next);
    }
    errand.verdict
}

/// Judges ICMP: an error about a flow goes to the end that it concerns.
#[xdp]
pub fn enforcer_icmp(ctx: XdpContext) -> u32 {
    let Some((frame, _)) = maps::told() else {
        return xdp_action::XDP_ABORTED;
    };
    let (now_ns, facts) = (facts::now_ns(), MapFacts::new());
    let quoted = match parse::quoted(&PacketWindow::xdp(&ctx), frame) {
        Some(quoted) => maps::forget_quoted(quoted),
        None => None,
    };
    let related = match quoted {
        Some(quoted) => decide::related::judge(&facts, &frame.packet, &quoted.key, now_ns),
        None => None,
    };
    let mut decision = match related {
        Some(decision) => decision,
        None => decide::judge_portless(&facts, &frame.packet),
    };
    let mut sent = match decision.reason.effect() {
        Effect::Passed => Sent::to(xdp_action::XDP_PASS),
        Effect::Refused | Effect::Forwarded => Sent::to(xdp_action::XDP_DROP),
    };
    if let (Effect::Forwarded, Some(quoted)) = (decision.reason.effect(), quoted) {
        match related::send(&ctx, &facts, frame, quoted, &decision) {
            Ok(on) => {
                facts::pay(&decide::answer::owed(&facts, decision.tenant), now_ns);
                sent = on;
            }
            Err(reason) => decision = decision.refused(reason),
        }
    }
    emit::count(DIRECTION_INGRESS, &decision, &frame.packet, 0, now_ns);
    if let Some(errand) = sent.errand {
        maps::go_on(&ctx, Continuation::Encapsulate, errand);
    }
    leave(&ctx, &decision, capture::errand(&decision, sent.verdict, now_ns))
}

/// Shows the agent a packet, and goes on to its answer if there is to be one.
#[xdp]
pub fn enforcer_capture(ctx: XdpContext) -> u32 {
    let Some((_, errand)) = maps::told() else {
        return xdp_action::XDP_ABORTED;
    };
    capture::on_the_way_in(&ctx, errand);
    if errand.answer != Answer::None as u32 {
        maps::go_on_seldom(&ctx, Continuation::Answer);
    }
    errand.verdict
}

/// Answers a packet that was refused, unless its tenant has had as many answers as there may be.
#[xdp]
pub fn enforcer_answer(ctx: XdpContext) -> u32 {
    answer::send(&ctx).unwrap_or(xdp_action::XDP_DROP)
}

/// Sends a packet that was admitted to its back end inside another one.
#[xdp]
pub fn enforcer_encapsulate(ctx: XdpContext) -> u32 {
    encapsulate::send_inside(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Judges what goes out through the host's stack: replies of back ends are metered and their translation is undone.
#[classifier]
pub fn enforcer_egress(ctx: TcContext) -> i32 {
    if window::make_headers_linear(&ctx).is_err() {
        return TC_ACT_OK;
    }
    let window = PacketWindow::tc(&ctx);
    let Some(frame) = maps::forget(parse::parse(&window)) else {
        return TC_ACT_SHOT;
    };
    let now_ns = facts::now_ns();
    let facts = MapFacts::new();
    let mut decision = decide::judge_egress(&facts, &frame.packet, now_ns);
    if matches!(decision.reason, Reason::Reply)
        && let Err(reason) = flows::reply_through_stack(&ctx, &facts, frame, &decision, now_ns)
    {
        decision = decision.refused(reason);
    }
    #[cfg(feature = "log")]
    log_decision(&ctx, &decision);
    emit::count(DIRECTION_EGRESS, &decision, &frame.packet, 0, now_ns);
    let verdict = match decision.reason.effect() {
        Effect::Refused => TC_ACT_SHOT,
        Effect::Passed | Effect::Forwarded => TC_ACT_OK,
    };
    if !matches!(decision.reason.effect(), Effect::Forwarded) && capture::is_wanted(&decision) {
        capture::on_the_way_out(&ctx, &capture::errand(&decision, 0, now_ns));
    }
    verdict
}

/// A line for each packet, for debugging the programs themselves: a release build holds neither code nor map for it.
#[cfg(feature = "log")]
#[inline(always)]
fn log_decision<C: aya_ebpf::EbpfContext>(ctx: &C, decision: &Decision) {
    aya_log_ebpf::debug!(
        ctx,
        "reason {} tenant {} service {} back end {} generation {}",
        decision.reason as u32,
        decision.tenant,
        decision.service,
        decision.backend,
        decision.generation
    );
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The programs have no path that panics; if one appeared, the loop would be rejected by the verifier at load.
    loop {}
}

/// The helpers that the programs call are for GPL-compatible programs only.
#[expect(
    unsafe_code,
    reason = "the loader finds the licence by its section; the symbol is unique in this object"
)]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
