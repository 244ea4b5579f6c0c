//! Frames inside frames, built from the outside in with etherparse.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader};

/// What goes around a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// Source of the outer header.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Source port of the UDP header between the two, if there is one.
    pub udp_source_port: Option<u16>,
    /// IPv6 flow label.
    pub flow_label: u32,
}

// === impl Around ===

impl Around {
    /// The frame with its packet inside another one. Tags stay in front; what follows the packet stays behind it.
    ///
    /// # Panics
    /// If the frame has no IP header at `network`, or its addresses are of two families.
    #[must_use]
    pub fn wrap(&self, frame: &[u8], network: usize) -> Vec<u8> {
        let packet = &frame[network..];
        let (is_v4, class, bytes) = match packet[0] >> 4 {
            4 => (true, packet[1], usize::from(word(packet, 2))),
            6 => (
                false,
                (packet[0] << 4) | (packet[1] >> 4),
                usize::from(word(packet, 4)) + 40,
            ),
            other => panic!("IP version {other}"),
        };
        let inner = if is_v4 { IpNumber::IPV4 } else { IpNumber::IPV6 };
        let udp = self.udp_source_port.map(|source_port| UdpHeader {
            source_port,
            destination_port: 6080,
            length: u16::try_from(bytes + 8).expect("at most 65535 bytes"),
            checksum: 0,
        });
        let protocol = if udp.is_some() { IpNumber::UDP } else { inner };
        let payload = u16::try_from(bytes + if udp.is_some() { 8 } else { 0 }).expect("at most 65535 bytes");
        let mut out = frame[..network - 2].to_vec();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header =
                    Ipv4Header::new(payload, 64, protocol, source.octets(), destination.octets())
                        .expect("at most 65515 bytes");
                header.dscp = (class >> 2).try_into().expect("six bits");
                header.ecn = (class & 3).try_into().expect("two bits");
                header.dont_fragment = true;
                header.header_checksum = header.calc_header_checksum();
                out.extend([0x08, 0x00]);
                out.extend(header.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class: class,
                    flow_label: Ipv6FlowLabel::try_new(self.flow_label).expect("twenty bits"),
                    payload_length: payload,
                    next_header: protocol,
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                out.extend([0x86, 0xdd]);
                out.extend(header.to_bytes());
            }
            _ => panic!("{} and {} are of two families", self.source, self.destination),
        }
        if let Some(udp) = udp {
            out.extend(udp.to_bytes());
        }
        out.extend(packet);
        out
    }
}

fn word(packet: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([packet[offset], packet[offset + 1]])
}
