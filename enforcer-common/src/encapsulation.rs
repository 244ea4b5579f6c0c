//! What goes around a packet that is sent to its back end inside another one: sizes, addresses, ports.
//!
//! The outer header of a flow is always the same, so that its packets stay in order, and differs from that of other
//! flows, so that the back end's network card and the routers on the way spread flows over their queues and paths.
#![forbid(unsafe_code)]

use crate::abi::address::{self, Address};
use crate::abi::config::{FORWARD_GUE, FORWARD_IPIP, HostRecord};

/// UDP port of Generic UDP Encapsulation, as IANA has it.
pub const GUE_PORT: u16 = 6080;
/// First of the UDP source ports: the range for ephemeral ports (RFC 6335), as the drafts of GUE want it.
pub const GUE_SOURCE_PORT_FIRST: u16 = 0xc000;
/// TTL or hop limit of the outer header.
pub const OUTER_HOP_LIMIT: u8 = 64;
/// IP protocol number of IPv4 in IP.
pub const IPV4_IN_IP: u8 = 4;
/// IP protocol number of IPv6 in IP.
pub const IPV6_IN_IP: u8 = 41;

/// Bytes of an IPv4 header without options.
pub const V4_HEADER_BYTES: u32 = 20;
/// Bytes of an IPv6 header.
pub const V6_HEADER_BYTES: u32 = 40;
/// Bytes of a UDP header.
pub const UDP_HEADER_BYTES: u32 = 8;

/// Bytes that a forward mode puts before the packet on its way to a back end.
#[inline(always)]
pub const fn outer_bytes(forward: u32, backend: &Address) -> u32 {
    let network = if address::is_v4(backend) {
        V4_HEADER_BYTES
    } else {
        V6_HEADER_BYTES
    };
    match forward {
        FORWARD_IPIP => network,
        FORWARD_GUE => network + UDP_HEADER_BYTES,
        _ => 0,
    }
}

/// Source address of the outer header, by the flow's hash: `v4` is its family.
#[inline(always)]
pub const fn outer_source(host: &HostRecord, hash: u64, v4: bool) -> Address {
    // The lower half: the upper one has picked the back end.
    let spread = (hash as u32).to_be();
    if v4 {
        address::from_v4(host.outer_v4 | (spread & host.outer_v4_spread))
    } else {
        let fixed = host.outer_v6;
        [
            fixed[0],
            fixed[1],
            fixed[2],
            fixed[3] | (spread & host.outer_v6_spread),
        ]
    }
}

/// UDP source port of the outer header, by the flow's hash.
#[inline(always)]
pub const fn gue_source_port(hash: u64) -> u16 {
    GUE_SOURCE_PORT_FIRST | (hash as u16 & 0x3fff)
}

/// IPv6 flow label of the outer header, by the flow's hash (RFC 6438).
#[inline(always)]
pub const fn flow_label(hash: u64) -> u32 {
    hash as u32 & 0xf_ffff
}
