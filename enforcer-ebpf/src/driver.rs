//! Makes packets for benchmarks: each time it runs it writes the next flow's frame over whatever the last run left, and
//! goes on with the program that is measured.
//!
//! A test run that repeats a program gives it the packet as it has changed it, and always the same one, so that what is
//! measured would be another path, in warm caches. The driver costs something itself: it is measured with one of the
//! programs here in place of the measured one, which do nothing but answer. It is an object of its own, in no agent.
#![no_std]
#![no_main]
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
    unsafe_code,
    reason = "a map value, a tail call, a helper, the licence section; each block states need and soundness"
)]

#[expect(dead_code, reason = "the other object uses more of it")]
mod resize;
#[expect(dead_code, reason = "the other object uses more of it")]
mod rewrite;
#[expect(dead_code, reason = "the other object uses more of it")]
mod window;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, xdp_action};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;
use enforcer_common::abi::driver::{DriverPlan, SHORT_WORDS};
use enforcer_common::checksum::Delta;

use crate::resize::move_start;
use crate::rewrite::{get, put};
use crate::window::PacketWindow;

/// Which frames to make.
#[map]
static PLAN: Array<DriverPlan> = Array::with_max_entries(1, 0);

/// The program that is measured.
#[map]
static MEASURED: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Read-only data that the loader overrides: the interface that [`driver_redirect`] sends to.
#[unsafe(no_mangle)]
static OUT_IFINDEX: u32 = 0;

/// The memory of [`driver_line`], in cache lines; the loader chooses how much.
#[map]
static LINES: Array<[u64; 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Read-only data that the loader overrides: the number of lines less one, a power of two less one.
#[unsafe(no_mangle)]
static LINE_MASK: u32 = 0;

/// Makes the next frame and goes on with the program that is measured.
#[xdp(frags)]
pub fn driver(ctx: XdpContext) -> u32 {
    if make(&ctx).is_some() {
        // SAFETY: (need) a tail call is a foreign call. (soundness) it ends this program, which holds nothing that has to
        // be dropped, or does nothing.
        unsafe { MEASURED.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn make(ctx: &XdpContext) -> Option<()> {
    let plan = PLAN.get_ptr_mut(0)?;
    // SAFETY: (need) map values are reached through a pointer. (soundness) the kernel keeps the memory mapped, one driver
    // runs at a time, and the agent of the benchmark writes the value between runs only.
    let plan = unsafe { &mut *plan };
    let (address, port) = plan.source(plan.flow(plan.made));
    plan.made += 1;
    // Also by nothing: so a program that moves the start costs the driver no more than one that does not.
    let has = core::hint::black_box(ctx.data_end() - ctx.data());
    move_start(ctx, has as i32 - plan.frame_bytes as i32)?;
    let window = PacketWindow::xdp(ctx);
    let (short, rest) = plan.template.split_at(SHORT_WORDS);
    write(&window, 0, short)?;
    if plan.frame_bytes > 8 * SHORT_WORDS as u32 {
        write(&window, SHORT_WORDS, rest)?;
    }
    put(&window, plan.source_offset, address.to_be())?;
    put(&window, plan.port_offset, port.to_be())?;
    let moved = Delta::ZERO.double_word(plan.first_source.to_be(), address.to_be());
    if plan.header_checksum_offset != 0 {
        correct(&window, plan.header_checksum_offset, moved)?;
    }
    let moved = moved.word((plan.first_port as u16).to_be(), port.to_be());
    correct(&window, plan.checksum_offset, moved)
}

/// Brings a checksum in line with what was changed.
#[inline(always)]
fn correct(window: &PacketWindow, offset: u32, changes: Delta) -> Option<()> {
    let checksum = get(window, offset)?;
    put(window, offset, changes.apply(checksum))
}

/// Writes words from the n-th word of the packet on.
#[inline(always)]
fn write(window: &PacketWindow, first: usize, words: &[u64]) -> Option<()> {
    for (word, value) in words.iter().enumerate() {
        let target = window.at::<u64>(8 * (first + word) as u32)?;
        // SAFETY: (need) packet bytes are reached through a pointer. (soundness) `at` has checked that all of the word
        // lies inside the packet. The kernel begins the packets of test runs on a multiple of eight, and `make` has
        // moved the start back to there, so the write is aligned: `put` makes eight writes of one.
        unsafe { target.write(*value) };
    }
    Some(())
}

/// Leaves the packet to the host.
#[xdp(frags)]
pub fn driver_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Drops the packet.
#[xdp(frags)]
pub fn driver_drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Sends the packet out by the interface that it came in by.
#[xdp(frags)]
pub fn driver_tx(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Reads one line of memory, in an order without a stride, and sends the packet out by the interface that it came in by.
#[xdp(frags)]
pub fn driver_line(_ctx: XdpContext) -> u32 {
    // SAFETY: (need) the loader replaces the value after compilation, so it must not be folded. (soundness) the reference is to a live
    // static of that type.
    let mask = unsafe { core::ptr::read_volatile(&raw const LINE_MASK) };
    let Some(plan) = PLAN.get(0) else {
        return xdp_action::XDP_ABORTED;
    };
    let mixed = plan.made.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    match LINES.get((mixed >> 32) as u32 & mask) {
        // Nobody writes there, which the processor does not know.
        Some([0, ..]) => xdp_action::XDP_TX,
        _ => xdp_action::XDP_ABORTED,
    }
}

/// Sends the packet out by another interface.
#[xdp(frags)]
pub fn driver_redirect(_ctx: XdpContext) -> u32 {
    // SAFETY: (need) the loader replaces the value after compilation, so it must not be folded; a helper is a foreign
    // call. (soundness) the reference is to a live static of that type; the helper takes numbers.
    unsafe { bpf_redirect(core::ptr::read_volatile(&raw const OUT_IFINDEX), 0) as u32 }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The programs have no path that panics; if one appeared, the loop would be rejected by the verifier at load.
    loop {}
}

/// The helpers that the programs call are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
