//! The kernel programs: XDP for packets coming in, or TC where XDP cannot be attached, and TC for packets going out through
//! the host's stack. The entry points are here.
//!
//! What a packet gets is decided in `enforcer-common` alone; this crate only looks things up and writes them down.
//!
//! - `ingress`, `egress`: parse, judge, carry out, count.
//! - `hook`: what XDP and TC do in different ways.
//! - `maps`: the maps, expanded from the one list in `enforcer_common::schema`.
//! - `window`: bounds-checked access to packet bytes; the only casts of packet pointers.
//! - `facts`: `Facts` over the maps.
//! - `cache`: what this CPU remembers of flows, before their table.
//! - `services`: what this CPU remembers of destinations, before the trie.
//! - `flows`: makes, moves and updates flow entries, pays charges.
//! - `send`: sends a packet in the way of the forward mode.
//! - `encapsulate`: outer headers, put before a packet.
//! - `answer`: what goes back to the sender of a refused packet, or of an echo request.
//! - `capture`: shows the agent packets that it asked for.
//! - `related`: ICMP errors about flows.
//! - `header`, `resize`: headers made from nothing, and room for them.
//! - `route`: the way to a back end, the agent's or the kernel's.
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
mod cache;
mod capture;
mod egress;
mod emit;
mod encapsulate;
mod facts;
mod flows;
mod header;
mod hook;
mod ingress;
mod maps;
mod related;
mod resize;
mod rewrite;
mod route;
mod send;
mod services;
mod window;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::hook::Hook as _;

/// Judges every packet that comes in on an interface.
#[xdp(frags)]
#[inline(always)]
pub fn enforcer_xdp(ctx: XdpContext) -> u32 {
    ingress::judge(&ctx)
}

/// Judges ICMP: an error about a flow goes to the end that it concerns, an echo request is answered.
#[xdp(frags)]
#[inline(always)]
pub fn enforcer_icmp(ctx: XdpContext) -> u32 {
    ingress::judge_icmp(&ctx)
}

/// Shows the agent a packet, and goes on to its answer if there is to be one.
#[xdp(frags)]
#[inline(always)]
pub fn enforcer_capture(ctx: XdpContext) -> u32 {
    ingress::show(&ctx)
}

/// Answers a packet that was refused, unless its tenant has had as many answers as there may be.
#[xdp(frags)]
#[inline(always)]
pub fn enforcer_answer(ctx: XdpContext) -> u32 {
    answer::send(&ctx).unwrap_or(XdpContext::DROP)
}

/// Sends a packet that was admitted to its back end inside another one.
#[xdp(frags)]
#[inline(always)]
pub fn enforcer_encapsulate(ctx: XdpContext) -> u32 {
    encapsulate::send_inside(&ctx).unwrap_or(XdpContext::BROKEN)
}

/// Sends a packet on with other VLAN tags than it came with.
#[xdp(frags)]
#[inline(always)]
pub fn enforcer_retag(ctx: XdpContext) -> u32 {
    send::send_retagged(&ctx).unwrap_or(XdpContext::BROKEN)
}

/// [`enforcer_xdp`] for interfaces where XDP cannot be attached.
#[classifier]
#[inline(always)]
pub fn enforcer_ingress(ctx: TcContext) -> i32 {
    ingress::judge(&ctx) as i32
}

/// [`enforcer_icmp`] there.
#[classifier]
#[inline(always)]
pub fn enforcer_tc_icmp(ctx: TcContext) -> i32 {
    ingress::judge_icmp(&ctx) as i32
}

/// [`enforcer_capture`] there.
#[classifier]
#[inline(always)]
pub fn enforcer_tc_capture(ctx: TcContext) -> i32 {
    ingress::show(&ctx) as i32
}

/// [`enforcer_answer`] there.
#[classifier]
#[inline(always)]
pub fn enforcer_tc_answer(ctx: TcContext) -> i32 {
    answer::send(&ctx).unwrap_or(TcContext::DROP) as i32
}

/// [`enforcer_encapsulate`] there.
#[classifier]
#[inline(always)]
pub fn enforcer_tc_encapsulate(ctx: TcContext) -> i32 {
    encapsulate::send_inside(&ctx).unwrap_or(TcContext::BROKEN) as i32
}

/// [`enforcer_retag`] there.
#[classifier]
#[inline(always)]
pub fn enforcer_tc_retag(ctx: TcContext) -> i32 {
    send::send_retagged(&ctx).unwrap_or(TcContext::BROKEN) as i32
}

/// Judges what goes out through the host's stack: replies of back ends are metered and their translation is undone.
#[classifier]
#[inline(always)]
pub fn enforcer_egress(ctx: TcContext) -> i32 {
    egress::judge(&ctx) as i32
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
