//! From the bytes of a frame to a [`Packet`]: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with a bounded
//! walk of extension headers, TCP and UDP.
//!
//! One parser for both sides: it reads through a [`Window`], which the kernel implements over packet pointers and the
//! agent and the tests over a slice. It believes no length that the frame does not bear out.
#![forbid(unsafe_code)]

use crate::abi::address::{self, FlowKey};
use crate::decide::{Packet, Shape, TCP, UDP};

/// Bytes that can be read at an offset.
pub trait Window {
    /// Length of the whole frame, which may be more than can be read.
    fn frame_bytes(&self) -> u32;
    /// Whether the frame has so many bytes.
    #[inline(always)]
    fn reaches(&self, end: u32) -> bool {
        end <= self.frame_bytes()
    }
    /// `N` 32-bit words at a byte offset, as they lie in memory; `None` if they reach beyond the window.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// One 16-bit word at a byte offset, as it lies in memory.
    fn half(&self, offset: u32) -> Option<u16>;
}

/// The first twelve bytes of a frame: three words, and no array, which in BPF would be cleared by a function that goes byte by
/// byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    first: u32,
    second: u32,
    third: u32,
}

impl Link {
    const NONE: Self = Self {
        first: 0,
        second: 0,
        third: 0,
    };
}

/// A parsed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the judgement needs.
    pub packet: Packet,
    /// Link-layer destination and source, six bytes each, as they lie in the frame; zero if it ends before them.
    pub link: Link,
    /// Byte offset of the IP header.
    pub network_offset: u32,
    /// Byte offset of the TCP or UDP header; meaningful for `Shape::Transport` only.
    pub transport_offset: u32,
}

impl Frame {
    /// Link-layer destination and source.
    #[inline(always)]
    pub const fn macs(&self) -> ([u8; 6], [u8; 6]) {
        let (a, b) = (self.link.first.to_ne_bytes(), self.link.second.to_ne_bytes());
        let c = self.link.third.to_ne_bytes();
        (
            [a[0], a[1], a[2], a[3], b[0], b[1]],
            [b[2], b[3], c[0], c[1], c[2], c[3]],
        )
    }
}

/// IP protocol number of ICMP.
pub const ICMP: u32 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u32 = 58;
/// Extension headers that are walked before the chain is given up as unreadable.
pub const MAX_EXTENSION_HEADERS: u32 = 6;
/// VLAN tags that are walked.
pub const MAX_VLAN_TAGS: u32 = 2;

/// EtherType of IPv4.
pub const ETHERTYPE_V4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_V6: u16 = 0x86dd;
/// VLAN tags, the outermost first: of each its EtherType and its tag control information, in network order. Where there is
/// no tag, both are zero.
pub type Tags = [u16; 2 * MAX_VLAN_TAGS as usize];
/// None.
pub const NO_TAGS: Tags = [0; 2 * MAX_VLAN_TAGS as usize];
/// Bytes of one tag.
pub const TAG_BYTES: u32 = 4;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: u32 = 14;
/// EtherType of a VLAN tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a service provider's VLAN tag.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION_OPTIONS: u32 = 60;

const NO_KEY: FlowKey = FlowKey::ZERO;

/// Parses an Ethernet frame.
#[must_use]
pub fn parse<W: Window + ?Sized>(window: &W) -> Frame {
    let mut frame = Frame {
        packet: Packet {
            key: NO_KEY,
            shape: Shape::NotIp,
            tcp_flags: 0,
            hop_limit: 0,
            bytes: 0,
            segment_bytes: 0,
        },
        link: Link::NONE,
        network_offset: 0,
        transport_offset: 0,
    };
    parse_into(window, &mut frame);
    frame
}

/// The same into a frame that lies where it is to lie; whatever stood there is written over.
#[inline(always)]
pub fn parse_into<W: Window + ?Sized>(window: &W, frame: &mut Frame) {
    // First of all: here there is one path, behind the walk there are dozens, and the verifier follows each.
    frame.link = match window.words(0) {
        Some([first, second, third]) => Link { first, second, third },
        None => Link::NONE,
    };
    let packet = &mut frame.packet;
    (packet.key.source_port_be, packet.key.destination_port_be) = (0, 0);
    (packet.tcp_flags, packet.hop_limit) = (0, 0);
    frame.transport_offset = 0;
    parse_network(window, frame);
}

/// The VLAN tags that stand in a frame.
#[inline(always)]
pub fn tags<W: Window + ?Sized>(window: &W, frame: &Frame) -> Tags {
    let mut tags = NO_TAGS;
    let first = ETHERNET_BYTES - 2;
    for (tag, index) in [(0, 0), (0, 1), (1, 2), (1, 3)] {
        if frame.network_offset >= ETHERNET_BYTES + TAG_BYTES * (tag + 1)
            && let Some(half) = window.half(first + 2 * index)
        {
            tags[index as usize] = half;
        }
    }
    tags
}

#[inline(always)]
fn parse_network<W: Window + ?Sized>(window: &W, frame: &mut Frame) {
    let mut offset = 12;
    for _ in 0..=MAX_VLAN_TAGS {
        let Some(ethertype_be) = window.half(offset) else {
            break;
        };
        let network_offset = offset + 2;
        match u16::from_be(ethertype_be) {
            ETHERTYPE_V4 => return parse_v4(window, frame, network_offset),
            ETHERTYPE_V6 => return parse_v6(window, frame, network_offset),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => offset += 4,
            _ => break,
        }
    }
    unreadable(window, frame, Shape::NotIp, ETHERNET_BYTES);
}

/// A frame of whose packet nothing is known but how long it is.
#[inline(always)]
fn unreadable<W: Window + ?Sized>(window: &W, frame: &mut Frame, shape: Shape, network_offset: u32) {
    // Words of which the compiler does not know that they are zero: in BPF it would have a function clear them byte by byte.
    let zero = core::hint::black_box(0);
    frame.packet.key.source = [zero; 4];
    frame.packet.key.destination = [zero; 4];
    frame.packet.key.protocol = 0;
    frame.packet.shape = shape;
    frame.packet.bytes = window.frame_bytes().saturating_sub(network_offset);
    frame.packet.segment_bytes = 0;
    frame.network_offset = network_offset;
}

#[inline(always)]
fn parse_v4<W: Window + ?Sized>(window: &W, frame: &mut Frame, network_offset: u32) {
    let Some(header) = window.words::<5>(network_offset) else {
        return unreadable(window, frame, Shape::BadHeader, network_offset);
    };
    let first = u32::from_be(header[0]);
    let header_bytes = ((first >> 24) & 0xf) * 4;
    let total_bytes = first & 0xffff;
    let sound = first >> 28 == 4
        && header_bytes >= 20
        && total_bytes >= header_bytes
        && window.reaches(network_offset + total_bytes);
    if !sound {
        return unreadable(window, frame, Shape::BadHeader, network_offset);
    }
    let third = u32::from_be(header[2]);
    frame.network_offset = network_offset;
    frame.packet.key.source = address::from_v4(header[3]);
    frame.packet.key.destination = address::from_v4(header[4]);
    frame.packet.key.protocol = (third >> 16) & 0xff;
    frame.packet.hop_limit = (third >> 24) as u8;
    frame.packet.bytes = total_bytes;
    frame.packet.segment_bytes = total_bytes;
    // More-fragments or an offset; the don't-fragment bit is neither.
    if u32::from_be(header[1]) & 0x3fff != 0 {
        frame.packet.shape = Shape::Fragment;
        return;
    }
    transport(
        window,
        frame,
        (third >> 16) & 0xff,
        network_offset + header_bytes,
        total_bytes - header_bytes,
    );
}

#[inline(always)]
fn parse_v6<W: Window + ?Sized>(window: &W, frame: &mut Frame, network_offset: u32) {
    let Some(header) = window.words::<10>(network_offset) else {
        return unreadable(window, frame, Shape::BadHeader, network_offset);
    };
    let second = u32::from_be(header[1]);
    let payload_bytes = second >> 16;
    let source = [header[2], header[3], header[4], header[5]];
    let destination = [header[6], header[7], header[8], header[9]];
    let sound = u32::from_be(header[0]) >> 28 == 6
        && window.reaches(network_offset + 40 + payload_bytes)
        // An IPv4-mapped address on the wire would be taken for IPv4 here; RFC 4942, 2.2 has it filtered.
        && !address::is_v4(&source)
        && !address::is_v4(&destination);
    if !sound {
        return unreadable(window, frame, Shape::BadHeader, network_offset);
    }
    frame.network_offset = network_offset;
    frame.packet.key.source = source;
    frame.packet.key.destination = destination;
    frame.packet.key.protocol = 0;
    frame.packet.hop_limit = second as u8;
    frame.packet.bytes = payload_bytes + 40;
    frame.packet.segment_bytes = payload_bytes + 40;
    let mut next = (second >> 8) & 0xff;
    let mut walked = 0;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        ) {
            frame.packet.key.protocol = next;
            return transport(
                window,
                frame,
                next,
                network_offset + 40 + walked,
                payload_bytes - walked,
            );
        }
        let Some(extension) = extension(window, network_offset + 40 + walked, next) else {
            break;
        };
        if next == FRAGMENT {
            frame.packet.shape = Shape::Fragment;
            return;
        }
        next = extension.next;
        walked += extension.bytes;
        if walked > payload_bytes {
            break;
        }
    }
    frame.packet.shape = Shape::BadTransport;
}

struct Extension {
    next: u32,
    bytes: u32,
}

#[inline(always)]
fn extension<W: Window + ?Sized>(window: &W, offset: u32, kind: u32) -> Option<Extension> {
    let [word] = window.words::<1>(offset)?;
    let word = u32::from_be(word);
    let length = (word >> 16) & 0xff;
    // A routing header with segments left names another destination than the one that was judged.
    if kind == ROUTING && word & 0xff != 0 {
        return None;
    }
    // RFC 4302: the authentication header counts in words of four bytes, less two; the others in words of eight.
    let bytes = if kind == AUTHENTICATION {
        (length + 2) * 4
    } else {
        (length + 1) * 8
    };
    Some(Extension {
        next: word >> 24,
        bytes,
    })
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its 5-tuple, as the error quotes it.
    pub key: FlowKey,
    /// Byte offset in the frame of its IP header.
    pub network_offset: u32,
    /// Byte offset in the frame of its ports.
    pub transport_offset: u32,
}

/// Bytes of an ICMP header; an error's quote follows.
const ICMP_HEADER_BYTES: u32 = 8;
/// What a quote has of the transport header at least (RFC 792).
const QUOTED_TRANSPORT_BYTES: u32 = 8;

/// The TCP or UDP packet that is quoted by an ICMP error: unreachable, too big, time exceeded or a bad parameter. `None`
/// for any other packet, for a quote that ends before the ports, of a later fragment, and of an IPv6 packet with extension
/// headers.
#[inline(always)]
pub fn quoted<W: Window + ?Sized>(window: &W, frame: &Frame) -> Option<Quoted> {
    let packet = &frame.packet;
    if !is_icmp(packet) {
        return None;
    }
    let [first] = window.words::<1>(frame.transport_offset)?;
    let kind = u32::from_be(first) >> 24;
    let network_offset = frame.transport_offset + ICMP_HEADER_BYTES;
    let mut key = NO_KEY;
    let transport_offset = if address::is_v4(&packet.key.destination) {
        if packet.key.protocol != ICMP || !matches!(kind, 3 | 11 | 12) {
            return None;
        }
        let header = window.words::<5>(network_offset)?;
        let first = u32::from_be(header[0]);
        let header_bytes = ((first >> 24) & 0xf) * 4;
        // The first fragment has the ports; the others say nothing of themselves.
        if first >> 28 != 4 || header_bytes < 20 || u32::from_be(header[1]) & 0x1fff != 0 {
            return None;
        }
        key.protocol = (u32::from_be(header[2]) >> 16) & 0xff;
        key.source = address::from_v4(header[3]);
        key.destination = address::from_v4(header[4]);
        network_offset + header_bytes
    } else {
        if packet.key.protocol != ICMPV6 || !matches!(kind, 1..=4) {
            return None;
        }
        let header = window.words::<10>(network_offset)?;
        if u32::from_be(header[0]) >> 28 != 6 {
            return None;
        }
        key.protocol = (u32::from_be(header[1]) >> 8) & 0xff;
        key.source = [header[2], header[3], header[4], header[5]];
        key.destination = [header[6], header[7], header[8], header[9]];
        network_offset + 40
    };
    let quoted_bytes = transport_offset - frame.network_offset + QUOTED_TRANSPORT_BYTES;
    if !matches!(key.protocol, TCP | UDP) || quoted_bytes > packet.bytes {
        return None;
    }
    let [ports, _] = window.words::<2>(transport_offset)?;
    let ports = u32::from_be(ports);
    key.source_port_be = ((ports >> 16) as u16).to_be();
    key.destination_port_be = (ports as u16).to_be();
    Some(Quoted {
        key,
        network_offset,
        transport_offset,
    })
}

/// What an ICMP packet says that is not left to the host's stack unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An error about the packet that it quotes.
    Error(Quoted),
    /// A request to send it back.
    EchoRequest,
}

/// What an ICMP packet says; `None` for any other packet, and what is left to the host's stack.
#[inline(always)]
pub fn message<W: Window + ?Sized>(window: &W, frame: &Frame) -> Option<Message> {
    match quoted(window, frame) {
        Some(quoted) => Some(Message::Error(quoted)),
        None if is_echo_request(window, frame) => Some(Message::EchoRequest),
        None => None,
    }
}

/// ICMP type of an echo request.
const ECHO_REQUEST: u32 = 8;
/// ICMPv6 type of an echo request.
const ECHO_REQUEST_V6: u32 = 128;

/// Whether a packet is an echo request that can be sent back as it is. With IPv4 options or IPv6 extension headers it
/// cannot: routes and times in them would have to be turned round or filled in (RFC 1122, 3.2.2.6). Nor may a frame to
/// many be answered.
#[inline(always)]
pub fn is_echo_request<W: Window + ?Sized>(window: &W, frame: &Frame) -> bool {
    let packet = &frame.packet;
    let (header_bytes, protocol, kind) = if address::is_v4(&packet.key.destination) {
        (20, ICMP, ECHO_REQUEST)
    } else {
        (40, ICMPV6, ECHO_REQUEST_V6)
    };
    let [to, ..] = frame.link.first.to_ne_bytes();
    let can_be = is_icmp(packet)
        && packet.key.protocol == protocol
        && frame.transport_offset == frame.network_offset + header_bytes
        && packet.bytes >= header_bytes + ICMP_HEADER_BYTES
        && to & 1 == 0;
    if !can_be {
        return false;
    }
    match window.words::<2>(frame.transport_offset) {
        // Type, and code 0.
        Some([first, _]) => u32::from_be(first) >> 16 == kind << 8,
        None => false,
    }
}

/// Whether a packet is ICMP, whose errors may be about a flow.
#[inline(always)]
pub const fn is_icmp(packet: &Packet) -> bool {
    matches!(packet.shape, Shape::Other) && matches!(packet.key.protocol, ICMP | ICMPV6)
}

/// Reads ports and flags. `available` is what the IP header leaves for the transport header and its payload.
#[inline(always)]
fn transport<W: Window + ?Sized>(window: &W, frame: &mut Frame, protocol: u32, offset: u32, available: u32) {
    frame.transport_offset = offset;
    frame.packet.shape = Shape::BadTransport;
    match protocol {
        TCP => {
            let Some(header) = window.words::<5>(offset) else {
                return;
            };
            let fourth = u32::from_be(header[3]);
            let header_bytes = (fourth >> 28) * 4;
            if header_bytes < 20 || header_bytes > available {
                return;
            }
            frame.packet.tcp_flags = (fourth >> 16) as u8;
            set_ports(frame, header[0]);
        }
        UDP => {
            let Some(header) = window.words::<2>(offset) else {
                return;
            };
            let length = u32::from_be(header[1]) >> 16;
            if length < 8 || length > available {
                return;
            }
            set_ports(frame, header[0]);
        }
        _ => frame.packet.shape = Shape::Other,
    }
}

#[inline(always)]
fn set_ports(frame: &mut Frame, ports: u32) {
    let ports = u32::from_be(ports);
    frame.packet.key.source_port_be = ((ports >> 16) as u16).to_be();
    frame.packet.key.destination_port_be = (ports as u16).to_be();
    frame.packet.shape = Shape::Transport;
}

/// A frame in memory.
impl Window for [u8] {
    fn frame_bytes(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.get(start..start.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(chunk.try_into().ok()?);
        }
        Some(words)
    }

    fn half(&self, offset: u32) -> Option<u16> {
        let start = offset as usize;
        let bytes = self.get(start..start.checked_add(2)?)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    }
}
