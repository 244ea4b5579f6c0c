//! ICMP echo requests and their answers, built with etherparse: every checksum from nothing.

use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv4Options,
    Ipv6Header,
};
use serde::{Deserialize, Serialize};

use super::{BALANCER_MAC, CLIENT_MAC, Mac};

/// Eight bytes of IPv6 hop-by-hop options that say nothing; the first byte is the number of what follows.
const HOP_BY_HOP: [u8; 8] = [58, 0, 1, 4, 0, 0, 0, 0];

/// An echo request, or its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// Link-layer source and destination.
    pub link: (Mac, Mac),
    /// VLAN tags, outermost first.
    pub vlans: Vec<u16>,
    /// Source.
    pub from: IpAddr,
    /// Destination, of the same family.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Whether it is the answer.
    pub is_answer: bool,
    /// Whether there are IPv4 options or an IPv6 extension header.
    pub has_options: bool,
    /// What is to come back.
    pub payload: Vec<u8>,
}

// === impl Echo ===

impl Echo {
    /// A request from a client's link to the balancer's.
    ///
    /// # Panics
    /// If a text is no address.
    #[must_use]
    pub fn request(from: &str, to: &str) -> Self {
        let address = |text: &str| text.parse().expect("an address");
        Self::between(address(from), address(to))
    }

    /// The same between addresses.
    #[must_use]
    pub const fn between(from: IpAddr, to: IpAddr) -> Self {
        Self {
            link: (CLIENT_MAC, BALANCER_MAC),
            vlans: Vec::new(),
            from,
            to,
            hop_limit: 64,
            is_answer: false,
            has_options: false,
            payload: Vec::new(),
        }
    }

    /// With a payload of so many bytes.
    #[must_use]
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = (0..bytes).map(|index| (index % 251) as u8).collect();
        self
    }

    /// With one more VLAN tag inside those that it has.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlans.push(id);
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub const fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// With IPv4 options or an IPv6 extension header.
    #[must_use]
    pub const fn with_options(mut self) -> Self {
        self.has_options = true;
        self
    }

    /// What comes back: the same from there to here, with a hop limit of its own.
    #[must_use]
    pub fn answer(&self) -> Self {
        Self {
            link: (self.link.1, self.link.0),
            from: self.to,
            to: self.from,
            hop_limit: 64,
            is_answer: true,
            ..self.clone()
        }
    }

    /// The frame.
    ///
    /// # Panics
    /// If its ends are of two families.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let (source, destination) = self.link;
        let mut out = [destination, source].concat();
        for id in &self.vlans {
            out.extend([0x81, 0x00]);
            out.extend(id.to_be_bytes());
        }
        let (ether_type, packet) = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ([0x08, 0x00], self.packet_v4(from.octets(), to.octets())),
            (IpAddr::V6(from), IpAddr::V6(to)) => ([0x86, 0xdd], self.packet_v6(from.octets(), to.octets())),
            _ => panic!("{} and {} are of two families", self.from, self.to),
        };
        out.extend(ether_type);
        out.extend(packet);
        out
    }

    /// Bytes from the IP header on.
    #[must_use]
    pub fn network_bytes(&self) -> u64 {
        (self.bytes().len() - 14 - 4 * self.vlans.len()) as u64
    }

    fn packet_v4(&self, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let kind = if self.is_answer {
            Icmpv4Type::EchoReply(ECHO)
        } else {
            Icmpv4Type::EchoRequest(ECHO)
        };
        let message = Icmpv4Header::with_checksum(kind, &self.payload);
        let message = [message.to_bytes().as_slice(), &self.payload].concat();
        let bytes = u16::try_from(message.len()).expect("at most 65535 bytes");
        let mut header =
            Ipv4Header::new(bytes, self.hop_limit, IpNumber::ICMP, from, to).expect("at most 65515 bytes");
        header.identification = 7;
        if self.has_options {
            header.options = Ipv4Options::from([1; 4]);
            header.total_len += 4;
        }
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().as_slice(), &message].concat()
    }

    fn packet_v6(&self, from: [u8; 16], to: [u8; 16]) -> Vec<u8> {
        let kind = if self.is_answer {
            Icmpv6Type::EchoReply(ECHO)
        } else {
            Icmpv6Type::EchoRequest(ECHO)
        };
        let message = Icmpv6Header::with_checksum(kind, from, to, &self.payload).expect("a short message");
        let message = [message.to_bytes().as_slice(), &self.payload].concat();
        let (next_header, extension) = if self.has_options {
            (IpNumber::IPV6_HEADER_HOP_BY_HOP, HOP_BY_HOP.as_slice())
        } else {
            (IpNumber::IPV6_ICMP, [].as_slice())
        };
        let header = Ipv6Header {
            payload_length: u16::try_from(extension.len() + message.len()).expect("at most 65535 bytes"),
            next_header,
            hop_limit: self.hop_limit,
            source: from,
            destination: to,
            ..Ipv6Header::default()
        };
        [header.to_bytes().as_slice(), extension, &message].concat()
    }
}

const ECHO: IcmpEchoHeader = IcmpEchoHeader { id: 0x4711, seq: 3 };
