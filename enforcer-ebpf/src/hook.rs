//! Where a program hangs: what XDP and TC do in different ways. All else is written once, over [`Hook`].
//!
//! In TC the packet is a socket buffer: its tail may lie elsewhere, the host may have put several segments together in it,
//! the sender may have left its checksum to the device, and the first VLAN tag is not in the frame. Helpers edit such a
//! buffer, since they also keep what the kernel knows of its checksums.
#![expect(
    unsafe_code,
    reason = "helpers and the context; each block states need and soundness"
)]

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, TC_ACT_OK,
    TC_ACT_SHOT, bpf_adj_room_mode, xdp_action,
};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::helpers::generated::{
    bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    bpf_xdp_load_bytes,
};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::FORWARD_GUE;
use enforcer_common::decide::{Shape, TCP};
use enforcer_common::parse::{self, ETHERNET_BYTES, Frame, MAX_VLAN_TAGS, TAG_BYTES, Tags, Window};

use crate::window::{PacketWindow, make_headers_linear, xdp_frame_bytes};
use crate::{maps, resize, rewrite};

/// Length of a UDP header.
const UDP_HEADER_BYTES: u32 = 8;

/// Why a frame gets room before its network header.
#[derive(Clone, Copy)]
pub(crate) enum Room {
    /// For an answer, which quotes the packet.
    Answer,
    /// For an outer header, of IPv4 or else IPv6, in this forward mode.
    Outer { v4: bool, forward: u32 },
}

/// A place in the kernel where programs see packets.
pub(crate) trait Hook: EbpfContext {
    /// The verdict that leaves a packet to the host.
    const PASS: u32;
    /// The verdict that drops a packet.
    const DROP: u32;
    /// The verdict where something happened that cannot: the packet goes nowhere.
    const BROKEN: u32;

    /// Makes the headers readable; before anything is read.
    fn prepare(&self) -> Option<()>;
    /// The bytes that can be read directly. Void after everything that changes the size of the frame.
    fn window(&self) -> PacketWindow;
    /// Length of the whole frame, as the kernel has it.
    fn frame_bytes(&self) -> u32;
    /// The interface that the packet came in by.
    fn arrived_by(&self) -> u32;
    /// Takes note of segments that the host has put together.
    fn split(&self, frame: &mut Frame);
    /// Sends the packet out by an interface; answers the verdict.
    fn send(&self, ifindex: u32) -> u32;
    /// Makes room for so many bytes before the network header; link-layer addresses and tags stand before it again.
    fn make_room(&self, frame: &Frame, bytes: u32, why: Room) -> Option<()>;
    /// The same for an outer header in a frame without VLAN tags, of IPv4 or else IPv6, in this forward mode. The whole
    /// link-layer header is to be written after that.
    fn make_outer_room(&self, bytes: u32, v4: bool, forward: u32) -> Option<()>;
    /// Cuts the frame to so many bytes.
    fn cut_to(&self, bytes: u32) -> Option<()>;
    /// Whether a VLAN tag of the packet is kept beside the frame.
    fn holds_tag(&self) -> bool;
    /// The VLAN tags with which the packet came.
    fn tags(&self, frame: &Frame) -> Tags;
    /// Has the frame leave with these VLAN tags instead of its own. Link-layer addresses are to be written after that.
    fn retag(&self, frame: &Frame, tags: &Tags) -> Option<()>;
    /// Gives the packet a new 5-tuple and takes one from its TTL or hop limit, checksums included.
    fn translate(&self, frame: &Frame, new: &FlowKey) -> Option<()>;
    /// Copies the frame's first bytes, as many as there is room for at `to`; says whether it did.
    ///
    /// # Safety
    /// At `to` there is room for so many.
    unsafe fn copy(&self, to: *mut c_void, bytes: u32) -> bool;
    /// The programs of this hook that go on with a packet.
    fn continuations() -> &'static ProgramArray;
}

/// A frame as the parser reads it.
pub(crate) struct HookWindow<'h, H> {
    hook: &'h H,
    bytes: PacketWindow,
}

// === impl HookWindow ===

impl<'h, H: Hook> HookWindow<'h, H> {
    /// Of a packet whose headers are readable.
    #[inline(always)]
    pub(crate) fn of(hook: &'h H) -> Self {
        Self {
            hook,
            bytes: hook.window(),
        }
    }
}

impl<H: Hook> Window for HookWindow<'_, H> {
    #[inline(always)]
    fn frame_bytes(&self) -> u32 {
        self.hook.frame_bytes()
    }

    #[inline(always)]
    fn reaches(&self, end: u32) -> bool {
        // Nearly every packet lies whole in what can be read, and then nobody has to be asked.
        end <= self.bytes.len() || end <= self.hook.frame_bytes()
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.bytes.words(offset)
    }

    #[inline(always)]
    fn half(&self, offset: u32) -> Option<u16> {
        self.bytes.half(offset)
    }
}

// === impl XdpContext ===

impl Hook for XdpContext {
    const PASS: u32 = xdp_action::XDP_PASS;
    const DROP: u32 = xdp_action::XDP_DROP;
    const BROKEN: u32 = xdp_action::XDP_ABORTED;

    #[inline(always)]
    fn prepare(&self) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn window(&self) -> PacketWindow {
        PacketWindow::xdp(self)
    }

    #[inline(always)]
    fn frame_bytes(&self) -> u32 {
        xdp_frame_bytes(self)
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn split(&self, _frame: &mut Frame) {}

    /// Out by the interface it came in by, or by another.
    #[inline(always)]
    fn send(&self, ifindex: u32) -> u32 {
        if self.arrived_by() == ifindex {
            return xdp_action::XDP_TX;
        }
        redirect(ifindex)
    }

    #[inline(always)]
    fn make_room(&self, _frame: &Frame, bytes: u32, _why: Room) -> Option<()> {
        resize::move_start(self, -(bytes as i32))?;
        resize::move_tags(&self.window(), bytes)
    }

    #[inline(always)]
    fn make_outer_room(&self, bytes: u32, _v4: bool, _forward: u32) -> Option<()> {
        resize::move_start(self, -(bytes as i32))
    }

    #[inline(always)]
    fn cut_to(&self, bytes: u32) -> Option<()> {
        resize::cut_to(self, bytes)
    }

    #[inline(always)]
    fn holds_tag(&self) -> bool {
        false
    }

    #[inline(always)]
    fn tags(&self, frame: &Frame) -> Tags {
        parse::tags(&HookWindow::of(self), frame)
    }

    /// The EtherType stands right before the network header, wherever the frame begins.
    #[inline(always)]
    fn retag(&self, frame: &Frame, tags: &Tags) -> Option<()> {
        let (has_bytes, wanted_bytes) = (frame.network_offset - ETHERNET_BYTES, tag_count(tags) * TAG_BYTES);
        if has_bytes != wanted_bytes {
            resize::move_start(self, has_bytes as i32 - wanted_bytes as i32)?;
        }
        let window = self.window();
        if tags[0] != 0 {
            rewrite::put(&window, ETHERNET_BYTES - 2, [tags[0], tags[1]])?;
        }
        if tags[2] != 0 {
            rewrite::put(&window, ETHERNET_BYTES - 2 + TAG_BYTES, [tags[2], tags[3]])?;
        }
        Some(())
    }

    #[inline(always)]
    fn translate(&self, frame: &Frame, new: &FlowKey) -> Option<()> {
        rewrite::translate(&self.window(), frame, new)
    }

    #[inline(always)]
    unsafe fn copy(&self, to: *mut c_void, bytes: u32) -> bool {
        // SAFETY: (need) a helper is a foreign call. (soundness) it writes `bytes` bytes to `to`, which the caller vouches
        // for, or none.
        unsafe { bpf_xdp_load_bytes(self.as_ptr().cast(), 0, to, bytes) == 0 }
    }

    #[inline(always)]
    fn continuations() -> &'static ProgramArray {
        &maps::CONTINUATIONS
    }
}

// === impl TcContext ===

impl Hook for TcContext {
    const PASS: u32 = TC_ACT_OK as u32;
    const DROP: u32 = TC_ACT_SHOT as u32;
    const BROKEN: u32 = TC_ACT_SHOT as u32;

    #[inline(always)]
    fn prepare(&self) -> Option<()> {
        make_headers_linear(self).ok()
    }

    #[inline(always)]
    fn window(&self) -> PacketWindow {
        PacketWindow::tc(self)
    }

    #[inline(always)]
    fn frame_bytes(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        // SAFETY: (need) the context is reached through a pointer. (soundness) the kernel lends it to the program.
        unsafe { (*self.skb.skb).ifindex }
    }

    /// A tag beside two in the frame is one more than is walked: such a packet is left to the host, as XDP leaves it.
    ///
    /// What a segment has: the headers that all of them get, and as much payload as the kernel says.
    #[inline(always)]
    fn split(&self, frame: &mut Frame) {
        if self.holds_tag() && frame.network_offset >= ETHERNET_BYTES + MAX_VLAN_TAGS * TAG_BYTES {
            frame.packet.shape = Shape::NotIp;
            return;
        }
        // SAFETY: as in `arrived_by`.
        let payload_bytes = unsafe { (*self.skb.skb).gso_size };
        if payload_bytes == 0 || !matches!(frame.packet.shape, Shape::Transport) {
            return;
        }
        let header_bytes = if frame.packet.key.protocol == TCP {
            let Some(half) = self.window().half(frame.transport_offset + 12) else {
                return;
            };
            u32::from(u16::from_be(half) >> 12) * 4
        } else {
            UDP_HEADER_BYTES
        };
        frame.packet.segment_bytes =
            frame.transport_offset.wrapping_sub(frame.network_offset) + header_bytes + payload_bytes;
    }

    #[inline(always)]
    fn send(&self, ifindex: u32) -> u32 {
        redirect(ifindex)
    }

    /// A frame that has a VLAN tag in itself gets the room at its start, as XDP does it: the kernel would count the tag to the
    /// packet.
    #[inline(always)]
    fn make_room(&self, frame: &Frame, bytes: u32, why: Room) -> Option<()> {
        if let Room::Outer { v4, forward } = why
            && frame.network_offset == ETHERNET_BYTES
        {
            return self.make_outer_room(bytes, v4, forward);
        }
        // SAFETY: (need) a helper is a foreign call. (soundness) the context is the program's own; the verifier sees to it
        // that no packet pointer from before is used.
        if unsafe { bpf_skb_change_head(self.as_ptr().cast(), bytes, 0) } != 0 {
            return None;
        }
        resize::move_tags(&self.window(), bytes)
    }

    /// An outer header is made known to the kernel, which splits what was put together behind it.
    #[inline(always)]
    fn make_outer_room(&self, bytes: u32, v4: bool, forward: u32) -> Option<()> {
        let mut flags = if v4 {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        } else {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
        };
        if forward == FORWARD_GUE {
            flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
        }
        let mode = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
        self.adjust_room(bytes as i32, mode, u64::from(flags)).ok()
    }

    #[inline(always)]
    fn cut_to(&self, bytes: u32) -> Option<()> {
        // SAFETY: as in `make_room`.
        let cut = unsafe { bpf_skb_change_tail(self.as_ptr().cast(), bytes, 0) };
        (cut == 0).then_some(())
    }

    #[inline(always)]
    fn holds_tag(&self) -> bool {
        // In a box, or the compiler would keep a pointer to the field, and the verifier allows none into the context.
        let buffer = core::hint::black_box(self.skb.skb);
        // SAFETY: as in `arrived_by`.
        unsafe { (*buffer).vlan_present != 0 }
    }

    #[inline(always)]
    fn tags(&self, frame: &Frame) -> Tags {
        let inside = parse::tags(&HookWindow::of(self), frame);
        if !self.holds_tag() {
            return inside;
        }
        // SAFETY: as in `arrived_by`.
        let (protocol_be, control) = unsafe { ((*self.skb.skb).vlan_proto, (*self.skb.skb).vlan_tci) };
        [protocol_be as u16, (control as u16).to_be(), inside[0], inside[1]]
    }

    /// By the helpers, which know where a tag is: the outermost one goes beside the frame. What is right already stays as it is.
    #[inline(always)]
    fn retag(&self, frame: &Frame, tags: &Tags) -> Option<()> {
        if self.tags(frame) == *tags {
            return Some(());
        }
        let held = u32::from(self.holds_tag()) + (frame.network_offset - ETHERNET_BYTES) / TAG_BYTES;
        for index in 0..MAX_VLAN_TAGS {
            // SAFETY: as in `make_room`.
            if index < held && unsafe { bpf_skb_vlan_pop(self.as_ptr().cast()) } != 0 {
                return None;
            }
        }
        for [protocol_be, control_be] in [[tags[2], tags[3]], [tags[0], tags[1]]] {
            if protocol_be == 0 {
                continue;
            }
            let control = u16::from_be(control_be);
            // SAFETY: as in `make_room`.
            if unsafe { bpf_skb_vlan_push(self.as_ptr().cast(), protocol_be, control) } != 0 {
                return None;
            }
        }
        Some(())
    }

    #[inline(always)]
    fn translate(&self, frame: &Frame, new: &FlowKey) -> Option<()> {
        rewrite::take_hop(&self.window(), frame)?;
        rewrite::readdress_buffer(self, frame, new)
    }

    #[inline(always)]
    unsafe fn copy(&self, to: *mut c_void, bytes: u32) -> bool {
        // SAFETY: as for XDP.
        unsafe { bpf_skb_load_bytes(self.as_ptr().cast(), 0, to, bytes) == 0 }
    }

    #[inline(always)]
    fn continuations() -> &'static ProgramArray {
        &maps::TC_CONTINUATIONS
    }
}

/// Whether a packet came with no VLAN tag: nearly always.
#[inline(always)]
pub(crate) fn is_untagged<H: Hook>(hook: &H, frame: &Frame) -> bool {
    frame.network_offset == ETHERNET_BYTES && !hook.holds_tag()
}

#[inline(always)]
fn tag_count(tags: &Tags) -> u32 {
    u32::from(tags[0] != 0) + u32::from(tags[2] != 0)
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: (need) a helper is a foreign call. (soundness) it takes numbers; the kernel checks the interface.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}
