//! Bounds-checked access to the bytes of a packet: the only place that turns packet pointers into values.
#![expect(unsafe_code, reason = "packet pointers; each block states need and soundness")]

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_common::parse::MAX_EXTENSION_HEADERS;

/// Bytes of headers that the TC program wants to read directly: Ethernet, two VLAN tags, IPv6, a few extension
/// headers and TCP.
const LINEAR_BYTES: u32 = 192;

/// Beyond every offset that the parser can reach.
const OFFSET_MASK: u32 = 0x3fff;
const _: () = assert!(22 + 40 + (MAX_EXTENSION_HEADERS + 1) * 2048 <= OFFSET_MASK);

/// The bytes of one packet that can be read directly.
pub(crate) struct PacketWindow {
    start: usize,
    end: usize,
}

impl PacketWindow {
    /// The window of an XDP frame: of its first buffer, if it has several.
    #[inline(always)]
    pub(crate) fn xdp(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// The window of a socket buffer, whose tail may lie elsewhere.
    #[inline(always)]
    pub(crate) fn tc(ctx: &TcContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// How many bytes can be read.
    #[inline(always)]
    pub(crate) const fn len(&self) -> u32 {
        (self.end - self.start) as u32
    }

    /// A pointer to a `T` at a byte offset, checked against the end of the packet.
    #[inline(always)]
    pub(crate) fn at<T>(&self, offset: u32) -> Option<*mut T> {
        // The verifier wants to see a bound on the offset right here. It never changes one: link layer, IP header and
        // the few extension headers that the parser walks end well below it.
        let start = self.start + (offset & OFFSET_MASK) as usize;
        if start + size_of::<T>() > self.end {
            return None;
        }
        Some(start as *mut T)
    }

    /// `N` 32-bit words at a byte offset, as they lie in memory; `None` if they reach beyond the window.
    #[inline(always)]
    pub(crate) fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = self.at::<[u32; N]>(offset)?;
        // SAFETY: (need) packet bytes are reached through a pointer. (soundness) `at` has checked that all of the
        // array lies inside the packet; it is read unaligned and every bit pattern is a valid integer.
        Some(unsafe { ptr::read_unaligned(start) })
    }

    /// One 16-bit word at a byte offset, as it lies in memory.
    #[inline(always)]
    pub(crate) fn half(&self, offset: u32) -> Option<u16> {
        let start = self.at::<u16>(offset)?;
        // SAFETY: as above.
        Some(unsafe { ptr::read_unaligned(start) })
    }
}

/// Length of a whole XDP frame, all of its buffers.
#[inline(always)]
pub(crate) fn xdp_frame_bytes(ctx: &XdpContext) -> u32 {
    // SAFETY: (need) a helper is a foreign call. (soundness) the context is the program's own.
    unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) as u32 }
}

/// Pulls the headers of a socket buffer into its linear part, where it is not there already.
#[inline(always)]
pub(crate) fn make_headers_linear(ctx: &TcContext) -> Result<(), ()> {
    let wanted = if ctx.len() < LINEAR_BYTES {
        ctx.len()
    } else {
        LINEAR_BYTES
    };
    if ctx.data() + wanted as usize <= ctx.data_end() {
        return Ok(());
    }
    ctx.pull_data(wanted).map_err(|_| ())
}
