//! Outer headers: IP in IP, and Generic UDP Encapsulation in its variant 1, in which the inner IP header follows the UDP
//! header.

use enforcer_common::abi::address::{self, Address};
use enforcer_common::abi::config::{FORWARD_GUE, HostRecord};
use enforcer_common::decide::{UDP, is_v4};
use enforcer_common::encapsulation::{
    GUE_PORT, IPV4_IN_IP, IPV6_IN_IP, UDP_HEADER_BYTES, V4_HEADER_BYTES, V6_HEADER_BYTES, flow_label,
    gue_source_port, outer_bytes, outer_source,
};
use enforcer_common::hash::flow_hash;
use enforcer_common::parse::{ETHERTYPE_V4, ETHERTYPE_V6, Frame};

use crate::header::NetworkHeader;
use crate::hook::{Hook, Room};
use crate::rewrite::{get, put, take_hop};
use crate::window::PacketWindow;
use crate::{facts, flows, maps, route};

/// Sends the packet to its back end inside another one; answers the verdict.
#[inline(always)]
pub(crate) fn send_inside<H: Hook>(hook: &H) -> Option<u32> {
    let (frame, errand) = maps::told()?;
    let backend = maps::BACKENDS.get(errand.backend)?;
    wrap(hook, facts::host()?, frame, errand.forward, &backend.address)?;
    flows::relink(hook, frame, &route::hop(backend)?)
}

/// Puts the packet, less one hop, into another one to the back end. VLAN tags stay; these and the link-layer
/// addresses are for the caller to write.
#[inline(always)]
fn wrap<H: Hook>(hook: &H, host: &HostRecord, frame: &Frame, forward: u32, backend: &Address) -> Option<()> {
    let window = hook.window();
    take_hop(&window, frame)?;
    let class = traffic_class(&window, frame)?;
    let grow = outer_bytes(forward, backend);
    let v4 = address::is_v4(backend);
    hook.make_room(frame, grow, Room::Outer { v4, forward })?;
    let window = hook.window();
    let hash = flow_hash(&frame.packet.key);
    let outer = NetworkHeader {
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
        put(&window, network, outer.v4())?;
        network + V4_HEADER_BYTES
    } else {
        put(&window, network, outer.v6())?;
        network + V6_HEADER_BYTES
    };
    if forward == FORWARD_GUE {
        put(&window, transport, udp_header(hash, outer.payload_bytes))?;
    }
    Some(())
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
