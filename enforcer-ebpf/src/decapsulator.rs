//! The other end of `Ipip` and `Gue`, for back ends that have no tunnel device: an XDP program that takes the outer header
//! off, so that the host finds the packet as the client sent it.
//!
//! It believes only sources that it was told: whoever could send it any packet could speak in anybody's name. It is an
//! object of its own, since it runs on other hosts and needs none of the maps.
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
    reason = "a constant that the loader overrides, the licence section; each block states need and soundness"
)]

#[expect(dead_code, reason = "the other object uses more of it")]
mod resize;
#[expect(dead_code, reason = "the other object uses more of it")]
mod rewrite;
#[expect(dead_code, reason = "the other object uses more of it")]
mod window;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use enforcer_common::abi::tunnel::TunnelSources;
use enforcer_common::decide::UDP;
use enforcer_common::encapsulation::{
    GUE_PORT, IPV4_IN_IP, IPV6_IN_IP, UDP_HEADER_BYTES, V4_HEADER_BYTES, V6_HEADER_BYTES,
};
use enforcer_common::parse::{
    ETHERTYPE_SERVICE_VLAN, ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, MAX_VLAN_TAGS,
};

use crate::resize::move_start;
use crate::rewrite::{get, put};
use crate::window::PacketWindow;

/// Half words of the longest link-layer header.
const LINK_HALVES: usize = 7 + 2 * MAX_VLAN_TAGS as usize;

/// Read-only data that the loader overrides: whose packets are unpacked. As it stands, nobody's.
#[unsafe(no_mangle)]
static SOURCES: TunnelSources = TunnelSources::ZERO;

/// A header to be taken off.
struct Outer {
    /// Where it begins.
    network_offset: u32,
    bytes: u32,
}

/// Takes outer headers off; everything else passes as it is.
#[xdp(frags)]
pub fn enforcer_decap(ctx: XdpContext) -> u32 {
    let Some(outer) = outer(&PacketWindow::xdp(&ctx)) else {
        return xdp_action::XDP_PASS;
    };
    match take_off(&ctx, &outer) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_DROP,
    }
}

/// The outer header of a packet from a source that may send such.
#[inline(always)]
fn outer(window: &PacketWindow) -> Option<Outer> {
    let mut offset = 12;
    for _ in 0..=MAX_VLAN_TAGS {
        let ethertype = u16::from_be(window.half(offset)?);
        match ethertype {
            ETHERTYPE_V4 => return outer_v4(window, offset + 2),
            ETHERTYPE_V6 => return outer_v6(window, offset + 2),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => offset += 4,
            _ => return None,
        }
    }
    None
}

#[inline(always)]
fn outer_v4(window: &PacketWindow, network_offset: u32) -> Option<Outer> {
    let header: [u32; 5] = window.words(network_offset)?;
    // No options, no fragment: the balancer makes neither.
    let is_whole = u32::from_be(header[0]) >> 24 == 0x45 && u32::from_be(header[1]) & 0x3fff == 0;
    if !is_whole || !sources().holds_v4(header[3]) {
        return None;
    }
    let protocol = (u32::from_be(header[2]) >> 16) as u8;
    inner(window, network_offset, V4_HEADER_BYTES, protocol)
}

#[inline(always)]
fn outer_v6(window: &PacketWindow, network_offset: u32) -> Option<Outer> {
    let header: [u32; 6] = window.words(network_offset)?;
    if !sources().holds_v6(&[header[2], header[3], header[4], header[5]]) {
        return None;
    }
    let protocol = (u32::from_be(header[1]) >> 8) as u8;
    inner(window, network_offset, V6_HEADER_BYTES, protocol)
}

/// The outer header, if a packet of IPv4 or IPv6 follows it as it says.
#[inline(always)]
fn inner(window: &PacketWindow, network_offset: u32, network_bytes: u32, protocol: u8) -> Option<Outer> {
    let transport = network_offset + network_bytes;
    let mut bytes = network_bytes;
    if protocol == UDP as u8 {
        let ports: [u16; 2] = get(window, transport)?;
        if u16::from_be(ports[1]) != GUE_PORT {
            return None;
        }
        bytes += UDP_HEADER_BYTES;
    }
    let first: u16 = window.half(network_offset + bytes)?;
    let is_as_said = match (u16::from_be(first) >> 12, protocol) {
        (4, IPV4_IN_IP) | (6, IPV6_IN_IP) => true,
        (4 | 6, other) => other == UDP as u8,
        _ => false,
    };
    is_as_said.then_some(Outer {
        network_offset,
        bytes,
    })
}

/// Moves the link-layer header, tags and all, to before the inner packet, and the start of the packet there.
#[inline(always)]
fn take_off(ctx: &XdpContext, outer: &Outer) -> Option<()> {
    let window = PacketWindow::xdp(ctx);
    let link: [u16; LINK_HALVES] = get(&window, 0)?;
    let first: u16 = get(&window, outer.network_offset + outer.bytes)?;
    let ethertype = if u16::from_be(first) >> 12 == 4 {
        ETHERTYPE_V4
    } else {
        ETHERTYPE_V6
    };
    for (index, half) in link.iter().enumerate() {
        let offset = 2 * index as u32;
        if offset + 2 < outer.network_offset {
            put(&window, outer.bytes + offset, *half)?;
        }
    }
    put(&window, outer.bytes + outer.network_offset - 2, ethertype.to_be())?;
    move_start(ctx, outer.bytes as i32)
}

#[inline(always)]
fn sources() -> TunnelSources {
    // SAFETY: (need) the loader replaces the value after compilation, so it must not be folded. (soundness) the
    // reference is to a live static of that type.
    unsafe { core::ptr::read_volatile(&raw const SOURCES) }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The program has no path that panics; if one appeared, the loop would be rejected by the verifier at load.
    loop {}
}

/// The helpers that the program calls are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
