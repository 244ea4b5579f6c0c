//! Frames that read like what they are, and an independent reading of frames that come out.
//!
//! A [`Segment`] is a TCP or UDP packet on Ethernet. Its checksums are computed from scratch (by etherparse), never by
//! the incremental arithmetic of the product, so that "the same segment with another destination" is a proof of every
//! rewritten byte. [`inspect`] checks a frame with a summation of its own.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use enforcer_common::abi::address::{Address, FlowKey, from_octets, from_v4, to_octets};
use enforcer_common::decide::{Packet, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};
use serde::{Deserialize, Serialize};

pub use answers::{Complaint, Error, complain, reset};
pub use echo::Echo;
pub use outer::Around;
pub use seen::{FrameError, Seen, inspect, unwrap};

mod answers;
mod echo;
mod outer;
mod seen;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Where clients' frames come from in these tests.
pub const CLIENT_MAC: Mac = [0x02, 0, 0, 0, 0xc1, 0x01];
/// Where clients' frames go: the balancer's interface.
pub const BALANCER_MAC: Mac = [0x02, 0, 0, 0, 0x1b, 0x01];

/// What is carried over IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP with these flags (`TCP_*`).
    Tcp(u8),
    /// UDP with a checksum.
    Udp,
    /// UDP without one, as IPv4 allows (RFC 768).
    UdpUnchecked,
}

/// A place in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// In units of eight bytes.
    pub offset: u16,
    /// Whether there are more after it.
    pub more: bool,
}

/// A TCP or UDP packet on Ethernet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Link-layer source.
    pub link_source: Mac,
    /// Link-layer destination.
    pub link_destination: Mac,
    /// VLAN tags, outermost first.
    pub vlans: Vec<u16>,
    /// Source.
    pub from: SocketAddr,
    /// Destination, of the same family.
    pub to: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4 options, padded to a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: their number, and their bytes, the first of which is overwritten by the next number.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Set for a fragment.
    pub fragment: Option<Fragment>,
    /// What follows the TCP or UDP header.
    pub payload: Vec<u8>,
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("a test's address, such as 10.1.0.1:40000")
}

/// A TCP packet with ACK, from a client's to a service's address, each such as `10.1.0.1:40000`.
///
/// # Panics
/// If a text is no address with a port.
#[must_use]
pub fn tcp(from: &str, to: &str) -> Segment {
    Segment::new(socket(from), socket(to), Transport::Tcp(TCP_ACK))
}

/// The first packet of a TCP connection.
///
/// # Panics
/// If a text is no address with a port.
#[must_use]
pub fn syn(from: &str, to: &str) -> Segment {
    tcp(from, to).flags(TCP_SYN)
}

/// A UDP packet.
///
/// # Panics
/// If a text is no address with a port.
#[must_use]
pub fn udp(from: &str, to: &str) -> Segment {
    Segment::new(socket(from), socket(to), Transport::Udp)
}

// === impl Segment ===

impl Segment {
    /// A packet from a client's link to the balancer's.
    #[must_use]
    pub fn new(from: SocketAddr, to: SocketAddr, transport: Transport) -> Self {
        Self {
            link_source: CLIENT_MAC,
            link_destination: BALANCER_MAC,
            vlans: Vec::new(),
            from,
            to,
            transport,
            hop_limit: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            payload: Vec::new(),
        }
    }

    /// A packet that says the same of itself as one that was read.
    ///
    /// # Panics
    /// If that one is neither TCP nor UDP, or shorter than its headers.
    #[must_use]
    pub fn like(packet: &Packet) -> Self {
        let key = &packet.key;
        let transport = match key.protocol {
            TCP => Transport::Tcp(packet.tcp_flags),
            UDP => Transport::Udp,
            other => panic!("{other} is neither TCP nor UDP"),
        };
        let from = endpoint(&key.source, key.source_port_be);
        let to = endpoint(&key.destination, key.destination_port_be);
        let mut segment = Self::new(from, to, transport);
        segment.hop_limit = packet.hop_limit;
        segment.ip_bytes(packet.bytes as usize)
    }

    /// With these TCP flags.
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        self.transport = Transport::Tcp(flags);
        self
    }

    /// A TCP packet that finishes its direction.
    #[must_use]
    pub fn fin(self) -> Self {
        self.flags(TCP_FIN | TCP_ACK)
    }

    /// A TCP packet that resets the connection.
    #[must_use]
    pub fn rst(self) -> Self {
        self.flags(TCP_RST)
    }

    /// The answer to the first packet of a TCP connection.
    #[must_use]
    pub fn syn_ack(self) -> Self {
        self.flags(TCP_SYN | TCP_ACK)
    }

    /// UDP without a checksum.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.transport = Transport::UdpUnchecked;
        self
    }

    /// With another source.
    ///
    /// # Panics
    /// If the text is no address with a port.
    #[must_use]
    pub fn from(mut self, from: &str) -> Self {
        self.from = socket(from);
        self
    }

    /// With another destination.
    ///
    /// # Panics
    /// If the text is no address with a port.
    #[must_use]
    pub fn to(mut self, to: &str) -> Self {
        self.to = socket(to);
        self
    }

    /// With other link-layer addresses.
    #[must_use]
    pub fn link(mut self, source: Mac, destination: Mac) -> Self {
        self.link_source = source;
        self.link_destination = destination;
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
    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// With IPv4 options.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With one more IPv6 extension header.
    #[must_use]
    pub fn extension(mut self, number: u8, bytes: &[u8]) -> Self {
        self.extensions.push((number, bytes.to_vec()));
        self
    }

    /// As a fragment.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { offset, more });
        if self.to.is_ipv6() {
            let word = (offset << 3) | u16::from(more);
            let [high, low] = word.to_be_bytes();
            self.extensions.push((44, vec![0, 0, high, low, 0, 0, 0, 7]));
        }
        self
    }

    /// With a payload of so many bytes.
    #[must_use]
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = (0..bytes).map(|index| (index % 251) as u8).collect();
        self
    }

    /// With a payload that brings it to so many bytes from the IP header on.
    ///
    /// # Panics
    /// If its headers alone are longer.
    #[must_use]
    pub fn ip_bytes(mut self, bytes: usize) -> Self {
        self.payload.clear();
        let headers = self.bytes().len() - self.link_bytes();
        let payload = bytes
            .checked_sub(headers)
            .expect("more bytes than the headers have");
        self.payload(payload)
    }

    fn link_bytes(&self) -> usize {
        14 + 4 * self.vlans.len()
    }

    /// Bytes from the IP header on: what limits on bytes count.
    #[must_use]
    pub fn network_bytes(&self) -> u64 {
        (self.bytes().len() - self.link_bytes()) as u64
    }

    /// The packet that answers it, on the way back over the same link.
    #[must_use]
    pub fn answer(&self) -> Self {
        Self {
            link_source: self.link_destination,
            link_destination: self.link_source,
            from: self.to,
            to: self.from,
            ..self.clone()
        }
    }

    /// The 5-tuple.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        FlowKey {
            source: address(self.from.ip()),
            destination: address(self.to.ip()),
            source_port_be: self.from.port().to_be(),
            destination_port_be: self.to.port().to_be(),
            protocol: self.protocol(),
        }
    }

    fn protocol(&self) -> u32 {
        match self.transport {
            Transport::Tcp(_) => TCP,
            Transport::Udp | Transport::UdpUnchecked => UDP,
        }
    }

    /// The frame.
    ///
    /// # Panics
    /// If the addresses are of two families, or a part is longer than the format allows.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = self.link_header();
        let transport = self.transport_header();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => frame.extend(self.header_v4(transport.len())),
            (IpAddr::V6(_), IpAddr::V6(_)) => frame.extend(self.headers_v6(transport.len())),
            _ => panic!("{} and {} are of two families", self.from, self.to),
        }
        frame.extend(transport);
        frame.extend(&self.payload);
        frame
    }

    fn link_header(&self) -> Vec<u8> {
        let network = if self.to.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        let outer = |tags: usize| match tags {
            0 => network,
            1 => EtherType::VLAN_TAGGED_FRAME,
            _ => EtherType::PROVIDER_BRIDGING,
        };
        let header = Ethernet2Header {
            source: self.link_source,
            destination: self.link_destination,
            ether_type: outer(self.vlans.len()),
        };
        let mut bytes = header.to_bytes().to_vec();
        for (index, id) in self.vlans.iter().enumerate() {
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(*id).expect("a VLAN number below 4096"),
                ether_type: outer(self.vlans.len() - index - 1),
                ..SingleVlanHeader::default()
            };
            bytes.extend(tag.to_bytes());
        }
        bytes
    }

    fn header_v4(&self, transport_bytes: usize) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.from.ip(), self.to.ip()) else {
            unreachable!("the caller has looked")
        };
        let payload_bytes = u16::try_from(transport_bytes + self.payload.len()).expect("at most 65535 bytes");
        let protocol = IpNumber(self.protocol() as u8);
        let mut header = Ipv4Header::new(
            payload_bytes,
            self.hop_limit,
            protocol,
            source.octets(),
            destination.octets(),
        )
        .expect("at most 65515 bytes");
        header.identification = 7;
        header.dont_fragment = self.fragment.is_none();
        header.options = Ipv4Options::try_from(self.options.as_slice()).expect("options of 4, 8 .. 40 bytes");
        header.total_len = payload_bytes + u16::try_from(header.header_len()).expect("at most 60");
        if let Some(Fragment { offset, more }) = self.fragment {
            header.fragment_offset = IpFragOffset::try_new(offset).expect("an offset of 13 bits");
            header.more_fragments = more;
        }
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().to_vec()
    }

    fn headers_v6(&self, transport_bytes: usize) -> Vec<u8> {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (self.from.ip(), self.to.ip()) else {
            unreachable!("the caller has looked")
        };
        let extension_bytes: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        let payload_bytes = extension_bytes + transport_bytes + self.payload.len();
        let numbers: Vec<u8> = self
            .extensions
            .iter()
            .map(|(number, _)| *number)
            .chain([self.protocol() as u8])
            .collect();
        let header = Ipv6Header {
            payload_length: u16::try_from(payload_bytes).expect("at most 65535 bytes"),
            next_header: IpNumber(numbers[0]),
            hop_limit: self.hop_limit,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        };
        let mut bytes = header.to_bytes().to_vec();
        for ((_, extension), next) in self.extensions.iter().zip(&numbers[1..]) {
            bytes.push(*next);
            bytes.extend(&extension[1..]);
        }
        bytes
    }

    fn transport_header(&self) -> Vec<u8> {
        match self.transport {
            Transport::Tcp(flags) => {
                let mut header = TcpHeader::new(self.from.port(), self.to.port(), 1000, 0x1000);
                header.syn = flags & TCP_SYN != 0;
                header.ack = flags & TCP_ACK != 0;
                header.fin = flags & TCP_FIN != 0;
                header.rst = flags & TCP_RST != 0;
                header.checksum = match (self.from.ip(), self.to.ip()) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => {
                        header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &self.payload)
                    }
                    (IpAddr::V6(source), IpAddr::V6(destination)) => {
                        header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &self.payload)
                    }
                    _ => panic!("{} and {} are of two families", self.from, self.to),
                }
                .expect("at most 65535 bytes");
                header.to_bytes().to_vec()
            }
            Transport::Udp | Transport::UdpUnchecked => {
                let length = u16::try_from(8 + self.payload.len()).expect("at most 65535 bytes");
                let mut header = UdpHeader {
                    source_port: self.from.port(),
                    destination_port: self.to.port(),
                    length,
                    checksum: 0,
                };
                if self.transport == Transport::Udp {
                    header.checksum = match (self.from.ip(), self.to.ip()) {
                        (IpAddr::V4(source), IpAddr::V4(destination)) => header.calc_checksum_ipv4_raw(
                            source.octets(),
                            destination.octets(),
                            &self.payload,
                        ),
                        (IpAddr::V6(source), IpAddr::V6(destination)) => header.calc_checksum_ipv6_raw(
                            source.octets(),
                            destination.octets(),
                            &self.payload,
                        ),
                        _ => panic!("{} and {} are of two families", self.from, self.to),
                    }
                    .expect("at most 65535 bytes");
                }
                header.to_bytes().to_vec()
            }
        }
    }
}

/// An address as flow keys hold it.
#[must_use]
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => from_v4(u32::from(v4).to_be()),
        IpAddr::V6(v6) => from_octets(v6.octets()),
    }
}

/// An address and a port of a flow key.
#[must_use]
pub fn endpoint(address: &Address, port_be: u16) -> SocketAddr {
    let ip = IpAddr::V6(Ipv6Addr::from(to_octets(address)));
    SocketAddr::new(ip.to_canonical(), u16::from_be(port_be))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_read_and_adds_up() {
        let segments = [
            syn("10.1.0.1:40000", "192.0.2.10:8000"),
            tcp("[2001:db8:1::1]:40000", "[2001:db8::10]:8000").payload(33),
            udp("10.1.0.1:40000", "192.0.2.10:53").payload(7).vlan(5).vlan(6),
            udp("10.1.0.1:40000", "192.0.2.10:53")
                .options(&[1, 1, 1, 0])
                .unchecked(),
            tcp("[2001:db8:1::1]:1", "[2001:db8::10]:2").extension(0, &[0, 0, 1, 4, 0, 0, 0, 0]),
        ];
        for segment in segments {
            let seen = inspect(&segment.bytes()).unwrap_or_else(|error| panic!("{segment:?}: {error}"));
            assert_eq!((seen.key, seen.hop_limit), (segment.key(), 64));
            assert_eq!(seen.vlans, segment.vlans);
            assert_eq!(
                (seen.link_source, seen.link_destination),
                (CLIENT_MAC, BALANCER_MAC)
            );
        }
    }

    #[test]
    fn a_wrong_byte_is_noticed() {
        let frame = tcp("10.1.0.1:40000", "192.0.2.10:8000").payload(9).bytes();
        for (offset, header) in [
            (14 + 8, "IPv4"),
            (14 + 12, "IPv4"),
            (14 + 20, "TCP"),
            (frame.len() - 1, "TCP"),
        ] {
            let mut wrong = frame.clone();
            wrong[offset] ^= 0x40;
            assert!(
                matches!(inspect(&wrong), Err(FrameError::Checksum { header: found, .. }) if found == header),
                "offset {offset}"
            );
        }
    }

    #[test]
    fn the_length_from_the_ip_header_on_is_what_was_asked_for() {
        let segment = udp("10.1.0.1:1", "192.0.2.10:2").vlan(3).ip_bytes(1000);
        assert_eq!((segment.network_bytes(), segment.bytes().len()), (1000, 1018));
    }
}
