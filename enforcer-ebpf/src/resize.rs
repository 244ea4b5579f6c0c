//! Frames that grow at the front and shrink at the end.
#![expect(
    unsafe_code,
    reason = "helpers that move the bounds of the packet; each block states need and soundness"
)]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use enforcer_common::parse::{MAX_VLAN_TAGS, TAG_BYTES};

use crate::rewrite::{get, put};
use crate::window::{PacketWindow, xdp_frame_bytes};

/// Where the EtherType or the first VLAN tag stands.
const AFTER_ADDRESSES: u32 = 12;
/// Bytes of all tags there can be.
const TAGS_BYTES: u32 = TAG_BYTES * MAX_VLAN_TAGS;
const _: () = assert!(TAGS_BYTES == size_of::<u64>() as u32);

/// Moves the start of the packet; a negative number makes room before it. Windows from before are void.
#[inline(always)]
pub(crate) fn move_start(ctx: &XdpContext, by: i32) -> Option<()> {
    // SAFETY: (need) a helper is a foreign call. (soundness) the context is the program's own; the kernel checks the
    // room, and the verifier that no packet pointer from before is used.
    let moved = unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), by) };
    (moved == 0).then_some(())
}

/// Brings tags and EtherType from where they stood to before the new network header, and the first bytes of the packet
/// too if there are fewer tags: the new header is written over those. So there is one path for all numbers of tags.
#[inline(always)]
pub(crate) fn move_tags(window: &PacketWindow, by: u32) -> Option<()> {
    // Two tags, and the EtherType: words, since an array would be copied byte by byte.
    let tags: u64 = get(window, AFTER_ADDRESSES + by)?;
    let ethertype: u16 = get(window, AFTER_ADDRESSES + by + TAGS_BYTES)?;
    put(window, AFTER_ADDRESSES, tags)?;
    put(window, AFTER_ADDRESSES + TAGS_BYTES, ethertype)
}

/// Cuts the frame to so many bytes. Windows from before are void.
#[inline(always)]
pub(crate) fn cut_to(ctx: &XdpContext, bytes: u32) -> Option<()> {
    let by = bytes as i32 - xdp_frame_bytes(ctx) as i32;
    // SAFETY: as in `move_start`.
    let moved = unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), by) };
    (moved == 0).then_some(())
}
