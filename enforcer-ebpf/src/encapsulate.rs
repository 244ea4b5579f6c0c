//! Outer headers: IP in IP, and Generic UDP Encapsulation in its variant 1, in which the inner IP header follows the UDP
//! header.
#![expect(
    unsafe_code,
    reason = "a helper that moves the start of the packet; the block states need and soundness"
)]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use enforcer_common::abi::address::{self, Address};
use enforcer_common::abi::config::{FORWARD_GUE, HostRecord};
use enforcer_common::decide::{UDP, is_v4};
use enforcer_common::encapsulation::{
    GUE_PORT, IPV4_IN_IP, IPV6_IN_IP, OUTER_HOP_LIMIT, UDP_HEADER_BYTES, V4_HEADER_BYTES, V6_HEADER_BYTES,
    flow_label, gue_source_port, outer_bytes, outer_source,
};
use enforcer_common::hash::flow_hash;
use enforcer_common::parse::{ETHERTYPE_V4, ETHERTYPE_V6, Frame, MAX_VLAN_TAGS};

use crate::rewrite::{get, put, take_hop};
use crate::window::PacketWindow;
use crate::{facts, flows, maps, rewrite};

/// Where the EtherType or the first VLAN tag stands.
const AFTER_ADDRESSES: u32 = 12;
/// Half words there: two for each tag, and the EtherType.
const TAG_HALVES: usize = 2 * MAX_VLAN_TAGS as usize + 1;

/// Sends the packet to its back end inside another one; answers the verdict.
#[inline(always)]
pub(crate) fn send_inside(ctx: &XdpContext) -> Option<u32> {
    let (frame, errand) = maps::told()?;
    let backend = maps::BACKENDS.get(errand.backend)?;
    wrap(ctx, facts::host()?, frame, errand.forward, &backend.address)?;
    rewrite::link_layer(&PacketWindow::xdp(ctx), backend.next_hop_mac, backend.own_mac)?;
    Some(flows::send(ctx, backend.ifindex))
}

/// Puts the packet, less one hop, into another one to the back end. VLAN tags stay; the link-layer addresses are for the
/// caller to write.
#[inline(always)]
fn wrap(ctx: &XdpContext, host: &HostRecord, frame: &Frame, forward: u32, backend: &Address) -> Option<()> {
    let window = PacketWindow::xdp(ctx);
    take_hop(&window, frame)?;
    let class = traffic_class(&window, frame)?;
    let grow = outer_bytes(forward, backend);
    move_start(ctx, -(grow as i32))?;
    let window = PacketWindow::xdp(ctx);
    move_tags(&window, grow)?;
    let v4 = address::is_v4(backend);
    let hash = flow_hash(&frame.packet.key);
    let outer = Outer {
        source: outer_source(host, hash, v4),
        destination: *backend,
        class,
        flow_label: flow_label(hash),
        protocol: if forward == FORWARD_GUE {
            UDP as u8
        } else {
            protocol_of(frame)
        },
        payload_bytes: frame.packet.bytes
            + if forward == FORWARD_GUE {
                UDP_HEADER_BYTES
            } else {
                0
            },
    };
    let network = frame.network_offset;
    let ethertype = if v4 { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
    put(&window, network - 2, ethertype.to_be())?;
    let transport = if v4 {
        put(&window, network, outer.header_v4())?;
        network + V4_HEADER_BYTES
    } else {
        put(&window, network, outer.header_v6())?;
        network + V6_HEADER_BYTES
    };
    if forward == FORWARD_GUE {
        put(&window, transport, udp_header(hash, outer.payload_bytes))?;
    }
    Some(())
}

/// Moves the start of the packet; a negative number makes room before it. Windows from before are void.
#[inline(always)]
fn move_start(ctx: &XdpContext, by: i32) -> Option<()> {
    // SAFETY: (need) a helper is a foreign call. (soundness) the context is the program's own; the kernel checks the
    // room, and the verifier that no packet pointer from before is used.
    let moved = unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), by) };
    (moved == 0).then_some(())
}

/// Brings tags and EtherType from where they stood to before the new network header, and the first bytes of the packet
/// too if there are fewer tags: the new header is written over those. So there is one path for all numbers of tags.
#[inline(always)]
fn move_tags(window: &PacketWindow, by: u32) -> Option<()> {
    let tags: [u16; TAG_HALVES] = get(window, AFTER_ADDRESSES + by)?;
    put(window, AFTER_ADDRESSES, tags)
}

/// The byte of differentiated services and congestion notification, which the outer header copies (RFC 2983, RFC 6040).
#[inline(always)]
fn traffic_class(window: &PacketWindow, frame: &Frame) -> Option<u8> {
    let first: u16 = get(window, frame.network_offset)?;
    let first = u16::from_be(first);
    Some(if is_v4(&frame.packet.key) {
        first as u8
    } else {
        (first >> 4) as u8
    })
}

#[inline(always)]
fn protocol_of(frame: &Frame) -> u8 {
    if is_v4(&frame.packet.key) {
        IPV4_IN_IP
    } else {
        IPV6_IN_IP
    }
}

/// An outer network header.
struct Outer {
    source: Address,
    destination: Address,
    class: u8,
    flow_label: u32,
    protocol: u8,
    payload_bytes: u32,
}

// === impl Outer ===

impl Outer {
    /// Not to be fragmented: its identification is zero, and no two packets may be taken for parts of one (RFC 6864).
    #[inline(always)]
    fn header_v4(&self) -> [u32; 5] {
        let first = (0x45 << 24) | (u32::from(self.class) << 16) | (self.payload_bytes + V4_HEADER_BYTES);
        let second = 0x4000;
        let third = (u32::from(OUTER_HOP_LIMIT) << 24) | (u32::from(self.protocol) << 16);
        let (source, destination) = (u32::from_be(self.source[3]), u32::from_be(self.destination[3]));
        let sum = halves(first) + halves(second) + halves(third) + halves(source) + halves(destination);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        [
            first.to_be(),
            second.to_be(),
            (third | (!sum & 0xffff)).to_be(),
            self.source[3],
            self.destination[3],
        ]
    }

    #[inline(always)]
    fn header_v6(&self) -> [u32; 10] {
        let (s, d) = (&self.source, &self.destination);
        let first = (6 << 28) | (u32::from(self.class) << 20) | self.flow_label;
        let second =
            (self.payload_bytes << 16) | (u32::from(self.protocol) << 8) | u32::from(OUTER_HOP_LIMIT);
        [
            first.to_be(),
            second.to_be(),
            s[0],
            s[1],
            s[2],
            s[3],
            d[0],
            d[1],
            d[2],
            d[3],
        ]
    }
}

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// Without a checksum: the inner packet has its own (RFC 6935 allows it over IPv6 for tunnels).
#[inline(always)]
fn udp_header(hash: u64, bytes: u32) -> [u16; 4] {
    [
        gue_source_port(hash).to_be(),
        GUE_PORT.to_be(),
        (bytes as u16).to_be(),
        0,
    ]
}
