//! What goes back to the sender of a refused packet, built with etherparse. Where the headers of the packet are is taken from
//! the parser, whose answers other tests look at.

use std::net::{IpAddr, Ipv6Addr};

use enforcer_common::decide::{TCP_ACK, TCP_FIN, TCP_SYN};
use enforcer_common::parse::{Frame, parse};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, TcpHeader,
};

use super::{BALANCER_MAC, CLIENT_MAC, Mac, Segment, endpoint};

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Communication is administratively prohibited.
    Prohibited,
    /// The packet is too big; this many bytes would have fitted.
    TooBig(u32),
}

/// An ICMP error on its way.
#[derive(Clone, Debug)]
pub struct Error {
    /// Link-layer source and destination.
    pub link: (Mac, Mac),
    /// Who says so.
    pub from: IpAddr,
    /// To whom.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// What is wrong.
    pub complaint: Complaint,
    /// The packet that it is about, from its IP header on.
    pub quote: Vec<u8>,
}

// === impl Error ===

impl Error {
    /// About a packet, of which it quotes as much as RFC 792 asks for, and so many bytes more.
    #[must_use]
    pub fn about(segment: &Segment, more_bytes: usize) -> Self {
        let frame = segment.bytes();
        let read = parse(frame.as_slice());
        let end = read.transport_offset as usize + 8 + more_bytes;
        Self {
            link: (CLIENT_MAC, BALANCER_MAC),
            from: segment.to.ip(),
            to: segment.from.ip(),
            hop_limit: 64,
            complaint: Complaint::TooBig(1280),
            quote: frame[read.network_offset as usize..end.min(frame.len())].to_vec(),
        }
    }

    /// From somebody else.
    ///
    /// # Panics
    /// If the text is no address.
    #[must_use]
    pub fn from(mut self, from: &str) -> Self {
        self.from = from.parse().expect("an address");
        self
    }

    /// On another link.
    #[must_use]
    pub fn link(mut self, source: Mac, destination: Mac) -> Self {
        self.link = (source, destination);
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// The frame.
    ///
    /// # Panics
    /// If its ends are of two families.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let (source, destination) = self.link;
        let mut out = [destination, source].concat();
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let message = message_v4(self.complaint, &self.quote);
                let bytes = u16::try_from(message.len()).expect("a short message");
                let mut header =
                    Ipv4Header::new(bytes, self.hop_limit, IpNumber::ICMP, from.octets(), to.octets())
                        .expect("a short message");
                header.header_checksum = header.calc_header_checksum();
                out.extend([0x08, 0x00]);
                out.extend(header.to_bytes());
                out.extend(message);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let message = message_v6(self.complaint, from, to, &self.quote);
                let header = Ipv6Header {
                    payload_length: u16::try_from(message.len()).expect("a short message"),
                    next_header: IpNumber::IPV6_ICMP,
                    hop_limit: self.hop_limit,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                out.extend([0x86, 0xdd]);
                out.extend(header.to_bytes());
                out.extend(message);
            }
            _ => panic!("two families"),
        }
        out
    }

    /// Bytes from the IP header on.
    #[must_use]
    pub fn network_bytes(&self) -> u64 {
        self.bytes().len() as u64 - 14
    }
}

fn message_v4(complaint: Complaint, quote: &[u8]) -> Vec<u8> {
    let kind = Icmpv4Type::DestinationUnreachable(match complaint {
        Complaint::Prohibited => DestUnreachableHeader::FilterProhibited,
        Complaint::TooBig(bytes) => DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: bytes as u16,
        },
    });
    let header = Icmpv4Header::with_checksum(kind, quote);
    [header.to_bytes().as_slice(), quote].concat()
}

fn message_v6(complaint: Complaint, from: Ipv6Addr, to: Ipv6Addr, quote: &[u8]) -> Vec<u8> {
    let kind = match complaint {
        Complaint::Prohibited => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Prohibited),
        Complaint::TooBig(bytes) => Icmpv6Type::PacketTooBig { mtu: bytes },
    };
    let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quote);
    [header.expect("a short message").to_bytes().as_slice(), quote].concat()
}

/// The frame that resets the connection that the segment in `frame` belongs to.
///
/// # Panics
/// If there is no TCP segment in it.
#[must_use]
pub fn reset(frame: &[u8]) -> Vec<u8> {
    let read = parse(frame);
    let (at, packet) = (read.transport_offset as usize, &read.packet);
    let word =
        |offset: usize| u32::from_be_bytes(frame[at + offset..at + offset + 4].try_into().expect("four"));
    let port =
        |offset: usize| u16::from_be_bytes(frame[at + offset..at + offset + 2].try_into().expect("two"));
    let mut header = TcpHeader::new(port(2), port(0), 0, 0);
    header.rst = true;
    if packet.tcp_flags & TCP_ACK != 0 {
        header.sequence_number = word(8);
    } else {
        let headers = at - read.network_offset as usize + usize::from(frame[at + 12] >> 4) * 4;
        let marks = (packet.tcp_flags & TCP_SYN != 0) as u32 + (packet.tcp_flags & TCP_FIN != 0) as u32;
        header.ack = true;
        header.acknowledgment_number = word(4).wrapping_add(packet.bytes - headers as u32 + marks);
    }
    header.checksum = match ends(&read) {
        (IpAddr::V4(to), IpAddr::V4(from)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
        (IpAddr::V6(to), IpAddr::V6(from)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
        _ => panic!("two families"),
    }
    .expect("twenty bytes");
    back(frame, &read, IpNumber::TCP, &header.to_bytes())
}

/// The frame with the ICMP error about the packet in `frame`: the quote ends eight bytes into the transport header, and
/// has at most 128 bytes.
///
/// # Panics
/// If there is no IP packet in it.
#[must_use]
pub fn complain(frame: &[u8], complaint: Complaint) -> Vec<u8> {
    let read = parse(frame);
    let network = read.network_offset as usize;
    let quoted = (read.transport_offset as usize + 8 - network).min(128);
    let quote = &frame[network..network + quoted];
    match ends(&read) {
        (IpAddr::V4(_), IpAddr::V4(_)) => back(frame, &read, IpNumber::ICMP, &message_v4(complaint, quote)),
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            let message = message_v6(complaint, from, to, quote);
            back(frame, &read, IpNumber::IPV6_ICMP, &message)
        }
        _ => panic!("two families"),
    }
}

/// Source and destination of a packet.
fn ends(read: &Frame) -> (IpAddr, IpAddr) {
    let key = &read.packet.key;
    (endpoint(&key.source, 0).ip(), endpoint(&key.destination, 0).ip())
}

/// A frame from whom this one went to, back to whom it came from, with the same tags.
fn back(frame: &[u8], read: &Frame, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let bytes = u16::try_from(payload.len()).expect("a short payload");
    let mut out = [
        &frame[6..12],
        &frame[..6],
        &frame[12..read.network_offset as usize],
    ]
    .concat();
    match ends(read) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            let mut header =
                Ipv4Header::new(bytes, 64, protocol, from.octets(), to.octets()).expect("a short payload");
            header.dont_fragment = true;
            header.header_checksum = header.calc_header_checksum();
            out.extend(header.to_bytes());
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            let header = Ipv6Header {
                payload_length: bytes,
                next_header: protocol,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            out.extend(header.to_bytes());
        }
        _ => panic!("two families"),
    }
    out.extend(payload);
    out
}
