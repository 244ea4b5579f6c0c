//! An independent reading of a frame: etherparse takes it apart, and a summation of our own checks it.

use std::net::IpAddr;

use enforcer_common::abi::address::FlowKey;
use enforcer_common::decide::{TCP, UDP};
use enforcer_common::parse::{ICMP, ICMPV6};
use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};

use super::{Mac, address};

/// What a frame says, read by etherparse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Link-layer source.
    pub link_source: Mac,
    /// Link-layer destination.
    pub link_destination: Mac,
    /// VLAN tags, outermost first.
    pub vlans: Vec<u16>,
    /// The 5-tuple; of ICMP without ports.
    pub key: FlowKey,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No TCP, UDP or ICMP packet on Ethernet.
    #[error("no TCP, UDP or ICMP packet on Ethernet: {problem}")]
    Unreadable {
        /// What etherparse says.
        problem: String,
    },
    /// A checksum does not add up.
    #[error("the {header} checksum does not add up: the sum is {sum:#06x} instead of 0xffff")]
    Checksum {
        /// `IPv4`, `TCP`, `UDP`, `ICMP` or `ICMPv6`.
        header: &'static str,
        /// What the words, checksum and all, add up to.
        sum: u16,
    },
}

/// Reads a frame and checks all of its checksums.
///
/// # Errors
/// [`FrameError`].
pub fn inspect(frame: &[u8]) -> Result<Seen, FrameError> {
    let unreadable = |problem: String| FrameError::Unreadable { problem };
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| unreadable(error.to_string()))?;
    let (link_destination, link_source) = match frame.first_chunk::<12>() {
        Some([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]) => {
            ([*d0, *d1, *d2, *d3, *d4, *d5], [*s0, *s1, *s2, *s3, *s4, *s5])
        }
        None => return Err(unreadable("no link-layer header".to_owned())),
    };
    let (source, destination, hop_limit, carried): (IpAddr, IpAddr, u8, &[u8]) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            add_up("IPv4", ones_sum(header.slice()))?;
            let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
            (source, destination, header.ttl(), ip.payload().payload)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
            (source, destination, header.hop_limit(), ip.payload().payload)
        }
        _ => return Err(unreadable("no IP header".to_owned())),
    };
    let (protocol, source_port, destination_port, name, unchecked) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (TCP, tcp.source_port(), tcp.destination_port(), "TCP", false),
        Some(TransportSlice::Udp(udp)) => {
            let none = udp.checksum() == 0;
            (UDP, udp.source_port(), udp.destination_port(), "UDP", none)
        }
        Some(TransportSlice::Icmpv4(_)) => {
            add_up("ICMP", ones_sum(carried))?;
            (ICMP, 0, 0, "ICMP", true)
        }
        Some(TransportSlice::Icmpv6(_)) => (ICMPV6, 0, 0, "ICMPv6", false),
        _ => return Err(unreadable("neither TCP nor UDP nor ICMP".to_owned())),
    };
    if !unchecked {
        let mut pseudo = octets(source);
        pseudo.extend(octets(destination));
        pseudo.extend((carried.len() as u32).to_be_bytes());
        pseudo.extend(protocol.to_be_bytes());
        pseudo.extend(carried);
        add_up(name, ones_sum(&pseudo))?;
    }
    Ok(Seen {
        link_source,
        link_destination,
        vlans: packet.vlan_ids().iter().map(|id| id.value()).collect(),
        key: FlowKey {
            source: address(source),
            destination: address(destination),
            source_port_be: source_port.to_be(),
            destination_port_be: destination_port.to_be(),
            protocol,
        },
        hop_limit,
    })
}

/// The frame that another one carries, with the link layer of that one; `None` if it carries none.
///
/// # Errors
/// [`FrameError`] if the outer header cannot be read or its checksum does not add up.
pub fn unwrap(frame: &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| FrameError::Unreadable {
        problem: error.to_string(),
    })?;
    let carried = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            add_up("IPv4", ones_sum(ip.header().slice()))?;
            ip.payload()
        }
        Some(NetSlice::Ipv6(ip)) => ip.payload(),
        _ => return Ok(None),
    };
    let inner = match &packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.destination_port() == 6080 => udp.payload(),
        _ if matches!(carried.ip_number, IpNumber::IPV4 | IpNumber::IPV6) => carried.payload,
        _ => return Ok(None),
    };
    let ether_type: [u8; 2] = if inner.first().is_some_and(|first| first >> 4 == 4) {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    let network = 14 + 4 * packet.vlan_ids().len();
    let mut out = frame[..network - 2].to_vec();
    out.extend(ether_type);
    out.extend(inner);
    Ok(Some(out))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn add_up(header: &'static str, sum: u16) -> Result<(), FrameError> {
    if sum == 0xffff {
        Ok(())
    } else {
        Err(FrameError::Checksum { header, sum })
    }
}

/// The one's-complement sum of RFC 1071, word by word.
fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
