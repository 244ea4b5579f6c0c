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
use enforcer_common::parse::{ETHERNET_BYTES, ETHERTYPE_V4, ETHERTYPE_V6, Frame};

use crate::header::NetworkHeader;
use crate::hook::{Hook, Room};
use crate::rewrite::{get, put, take_hop_at};
use crate::route::Hop;
use crate::window::PacketWindow;
use crate::{facts, maps, rewrite, route, send};

/// Sends the packet to its back end inside another one, whatever VLAN tags it has or gets; answers the verdict.
#[inline(always)]
pub(crate) fn send_inside<H: Hook>(hook: &H) -> Option<u32> {
    let (frame, errand) = maps::told()?;
    let backend = maps::BACKENDS.get(errand.backend)?;
    let hash = flow_hash(&frame.packet.key);
    wrap::<H, false>(
        hook,
        facts::host()?,
        frame,
        errand.forward,
        &backend.address,
        hash,
    )?;
    send::relink(hook, frame, &route::hop(backend)?)
}

/// The same of a frame without VLAN tags that leaves without: nearly every one.
#[inline(always)]
pub(crate) fn send_plain<H: Hook>(
    hook: &H,
    host: &HostRecord,
    frame: &Frame,
    forward: u32,
    backend: &Address,
    hash: u64,
    hop: &Hop<'_>,
) -> Option<u32> {
    wrap::<H, true>(hook, host, frame, forward, backend, hash)?;
    rewrite::link_addresses(&hook.window(), hop.next_hop_mac, hop.own_mac)?;
    Some(hook.send(hop.ifindex))
}

/// Puts the packet, less one hop, into another one to the back end. VLAN tags stay; these and the link-layer
/// addresses are for the caller to write. `PLAIN`: there are no tags, and the caller writes both addresses.
#[inline(always)]
fn wrap<H: Hook, const PLAIN: bool>(
    hook: &H,
    host: &HostRecord,
    frame: &Frame,
    forward: u32,
    backend: &Address,
    hash: u64,
) -> Option<()> {
    let network = if PLAIN {
        ETHERNET_BYTES
    } else {
        frame.network_offset
    };
    let window = hook.window();
    let inner_v4 = is_v4(&frame.packet.key);
    take_hop_at(&window, network, inner_v4)?;
    let class = traffic_class(&window, network, inner_v4)?;
    let grow = outer_bytes(forward, backend);
    let v4 = address::is_v4(backend);
    if PLAIN {
        hook.make_outer_room(grow, v4, forward)?;
    } else {
        hook.make_room(frame, grow, Room::Outer { v4, forward })?;
    }
    let window = hook.window();
    let outer = NetworkHeader {
        source: outer_source(host, hash, v4),
        destination: *backend,
        class,
        flow_label: flow_label(hash),
        protocol: if forward == FORWARD_GUE {
            UDP as u8
        } else if inner_v4 {
            IPV4_IN_IP
        } else {
            IPV6_IN_IP
        },
        payload_bytes: frame.packet.bytes
            + if forward == FORWARD_GUE {
                UDP_HEADER_BYTES
            } else {
                0
            },
    };
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
fn traffic_class(window: &PacketWindow, network: u32, v4: bool) -> Option<u8> {
    let first: u16 = get(window, network)?;
    let first = u16::from_be(first);
    Some(if v4 { first as u8 } else { (first >> 4) as u8 })
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
