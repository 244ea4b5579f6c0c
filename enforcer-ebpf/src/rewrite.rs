//! Header edits and checksums.
//!
//! XDP edits the bytes in place; TC goes through the helpers, which also keep the checksum state of the socket buffer
//! right (a packet of a local sender has only a partial checksum).
#![expect(
    unsafe_code,
    reason = "packet bytes and helpers; each block states need and soundness"
)]

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use enforcer_common::abi::address::{Address, FlowKey};
use enforcer_common::checksum::Delta;
use enforcer_common::decide::{TCP, is_v4};
use enforcer_common::parse::Frame;

use crate::window::PacketWindow;

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: u32 = 16;
/// Offset of the checksum in a UDP header.
pub(crate) const UDP_CHECKSUM: u32 = 6;

/// Source and destination of a packet.
pub(crate) struct Ends<'a> {
    pub(crate) source: &'a Address,
    pub(crate) destination: &'a Address,
}

// === impl Ends ===

impl<'a> Ends<'a> {
    /// Those of a 5-tuple.
    #[inline(always)]
    pub(crate) const fn of(key: &'a FlowKey) -> Self {
        Self {
            source: &key.source,
            destination: &key.destination,
        }
    }
}

/// Writes a value at an offset of the packet.
#[inline(always)]
pub(crate) fn put<T: Copy>(window: &PacketWindow, offset: u32, value: T) -> Option<()> {
    let target = window.at::<T>(offset)?;
    // SAFETY: (need) packet bytes are reached through a pointer. (soundness) `at` has checked that all of `T` lies
    // inside the packet, which XDP lets a program write; the write is unaligned.
    unsafe { ptr::write_unaligned(target, value) };
    Some(())
}

/// Reads a value at an offset of the packet; integers and arrays of them only.
#[inline(always)]
pub(crate) fn get<T: Copy>(window: &PacketWindow, offset: u32) -> Option<T> {
    let source = window.at::<T>(offset)?;
    // SAFETY: as in `put`; callers ask for integers only, for which every bit pattern is valid.
    Some(unsafe { ptr::read_unaligned(source) })
}

/// Sets the link-layer addresses. VLAN tags stay.
#[inline(always)]
pub(crate) fn link_addresses(window: &PacketWindow, destination: &[u8; 6], source: &[u8; 6]) -> Option<()> {
    let ([a, b, c, d, e, f], [u, v, w, x, y, z]) = (*destination, *source);
    // Words, since bytes would be copied one by one.
    let words = [[a, b, c, d], [e, f, u, v], [w, x, y, z]];
    put(window, 0, words.map(u32::from_ne_bytes))
}

/// Gives the packet a new 5-tuple and takes one from its TTL or hop limit.
#[inline(always)]
pub(crate) fn translate(window: &PacketWindow, frame: &Frame, new: &FlowKey) -> Option<()> {
    let old = &frame.packet.key;
    let (before, after) = (Ends::of(old), Ends::of(new));
    let delta = if is_v4(old) {
        network_v4(window, frame.network_offset, &before, &after)?
    } else {
        network_v6(window, frame.network_offset, &before, &after)?
    };
    let delta = delta
        .word(old.source_port_be, new.source_port_be)
        .word(old.destination_port_be, new.destination_port_be);
    let transport = frame.transport_offset;
    put(window, transport, new.source_port_be)?;
    put(window, transport + 2, new.destination_port_be)?;
    if old.protocol == TCP {
        let sum = get(window, transport + TCP_CHECKSUM)?;
        return put(window, transport + TCP_CHECKSUM, delta.apply(sum));
    }
    let sum: u16 = get(window, transport + UDP_CHECKSUM)?;
    // RFC 768: zero says that the sender computed none (IPv4 only; in IPv6 such a datagram stays as invalid as it was).
    if sum == 0 {
        Some(())
    } else {
        put(window, transport + UDP_CHECKSUM, delta.apply_udp(sum))
    }
}

/// Gives an IPv4 header other addresses and one hop less; answers what that is to a checksum that covers the addresses.
#[inline(always)]
pub(crate) fn network_v4(
    window: &PacketWindow,
    offset: u32,
    old: &Ends<'_>,
    new: &Ends<'_>,
) -> Option<Delta> {
    let addresses = Delta::ZERO
        .double_word(old.source[3], new.source[3])
        .double_word(old.destination[3], new.destination[3]);
    lower_ttl(window, offset, addresses)?;
    put(window, offset + 12, new.source[3])?;
    put(window, offset + 16, new.destination[3])?;
    Some(addresses)
}

/// Takes one from the TTL of an IPv4 header, in whose checksum `other` changes are to be worked in as well.
#[inline(always)]
fn lower_ttl(window: &PacketWindow, offset: u32, other: Delta) -> Option<()> {
    // TTL and protocol share a word of the checksum.
    let ttl_word: u16 = get(window, offset + 8)?;
    let lowered = u16::from_be(ttl_word).wrapping_sub(0x0100).to_be();
    let sum = get(window, offset + 10)?;
    put(window, offset + 8, lowered)?;
    put(window, offset + 10, other.word(ttl_word, lowered).apply(sum))
}

/// Takes one from the hop limit of an IPv6 header.
#[inline(always)]
fn lower_hop_limit(window: &PacketWindow, offset: u32) -> Option<()> {
    // Next header and hop limit. Two bytes, since the verifier learns nothing from a check for one: LLVM turns
    // `at + 1 > end` into `at >= end`.
    let [next_header, hop_limit]: [u8; 2] = get(window, offset + 6)?;
    put(window, offset + 6, [next_header, hop_limit.wrapping_sub(1)])
}

/// Takes one from the TTL or hop limit of a packet that keeps its addresses.
#[inline(always)]
pub(crate) fn take_hop(window: &PacketWindow, frame: &Frame) -> Option<()> {
    take_hop_at(window, frame.network_offset, is_v4(&frame.packet.key))
}

/// The same of a network header at an offset.
#[inline(always)]
pub(crate) fn take_hop_at(window: &PacketWindow, offset: u32, v4: bool) -> Option<()> {
    if v4 {
        lower_ttl(window, offset, Delta::ZERO)
    } else {
        lower_hop_limit(window, offset)
    }
}

/// The same for IPv6.
#[inline(always)]
pub(crate) fn network_v6(
    window: &PacketWindow,
    offset: u32,
    old: &Ends<'_>,
    new: &Ends<'_>,
) -> Option<Delta> {
    lower_hop_limit(window, offset)?;
    put(window, offset + 8, *new.source)?;
    put(window, offset + 24, *new.destination)?;
    Some(
        Delta::ZERO
            .quad(old.source, new.source)
            .quad(old.destination, new.destination),
    )
}

/// Gives a socket buffer a new 5-tuple, the checksums included, through the helpers.
#[inline(always)]
pub(crate) fn readdress_buffer(ctx: &TcContext, frame: &Frame, new: &FlowKey) -> Option<()> {
    let old = &frame.packet.key;
    let (network, transport) = (frame.network_offset, frame.transport_offset);
    // A zero UDP checksum means none; the flag keeps it so.
    let (checksum, flags) = if old.protocol == TCP {
        (transport + TCP_CHECKSUM, 0)
    } else {
        (transport + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
    };
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | flags | 4;
    if is_v4(old) {
        for (from, to) in [
            (old.source[3], new.source[3]),
            (old.destination[3], new.destination[3]),
        ] {
            if from != to {
                l4_replace(ctx, checksum, from, to, pseudo)?;
                l3_replace(ctx, network + 10, from, to)?;
            }
        }
        store(ctx, network + 12, &[new.source[3], new.destination[3]])?;
    } else {
        for word in 0..4 {
            let pairs = [
                (old.source[word], new.source[word]),
                (old.destination[word], new.destination[word]),
            ];
            for (from, to) in pairs {
                if from != to {
                    l4_replace(ctx, checksum, from, to, pseudo)?;
                }
            }
        }
        store(ctx, network + 8, &new.source)?;
        store(ctx, network + 24, &new.destination)?;
    }
    for (from, to) in [
        (old.source_port_be, new.source_port_be),
        (old.destination_port_be, new.destination_port_be),
    ] {
        if from != to {
            l4_replace(ctx, checksum, u32::from(from), u32::from(to), flags | 2)?;
        }
    }
    store(ctx, transport, &[new.source_port_be, new.destination_port_be])
}

#[inline(always)]
fn succeeded(code: i64) -> Option<()> {
    (code == 0).then_some(())
}

#[inline(always)]
fn l3_replace(ctx: &TcContext, offset: u32, from: u32, to: u32) -> Option<()> {
    // SAFETY: (need) a helper is a foreign call. (soundness) the context is the program's own, the rest are numbers.
    succeeded(unsafe { bpf_l3_csum_replace(ctx.as_ptr().cast(), offset, u64::from(from), u64::from(to), 4) })
}

#[inline(always)]
fn l4_replace(ctx: &TcContext, offset: u32, from: u32, to: u32, flags: u64) -> Option<()> {
    // SAFETY: as in `l3_replace`.
    succeeded(unsafe {
        bpf_l4_csum_replace(ctx.as_ptr().cast(), offset, u64::from(from), u64::from(to), flags)
    })
}

#[inline(always)]
fn store<T: Copy>(ctx: &TcContext, offset: u32, value: &T) -> Option<()> {
    let bytes = size_of::<T>() as u32;
    // SAFETY: (need) a helper is a foreign call. (soundness) pointer and length name a live value; the helper checks
    // the offset.
    succeeded(unsafe {
        bpf_skb_store_bytes(ctx.as_ptr().cast(), offset, ptr::from_ref(value).cast(), bytes, 0)
    })
}
