//! From a captured packet to what the parser reads: an Ethernet frame of its original length, of which only the first
//! part may have been kept.

use std::cell::Cell;

use enforcer_common::parse::{Frame, Message, Window, message, parse};

/// Length of an Ethernet header without tags.
const ETHERNET_BYTES: usize = 14;
/// Length of a cooked header: packet type, device type, address length, address, EtherType.
const SLL_BYTES: usize = 16;
/// Length of a cooked header of version 2: EtherType, reserved, interface, device type, packet type, address.
const SLL2_BYTES: usize = 20;
/// What both cooked headers say of a packet that the capturing host sent itself (`PACKET_OUTGOING`).
const SLL_OUTGOING: u16 = 4;

/// What a captured packet begins with. The numbers are those of the registry of link types that pcap files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Ethernet (1).
    Ethernet,
    /// An IPv4 or IPv6 header (101, 228, 229, and 12 and 14 as some systems write).
    RawIp,
    /// Linux cooked capture (113), as of the interface `any`.
    Cooked,
    /// Linux cooked capture, version 2 (276).
    Cooked2,
}

/// A frame whose end may not have been captured.
#[derive(Debug)]
pub(super) struct Captured<'a> {
    /// In place of a link-layer header that is not Ethernet; empty before an Ethernet frame.
    header: [u8; ETHERNET_BYTES],
    header_bytes: usize,
    body: &'a [u8],
    /// Length of the whole frame when it was on the wire.
    frame_bytes: u32,
    /// Something was asked for that was on the wire and is not in the capture.
    missed: Cell<bool>,
}

// === impl Link ===

impl Link {
    /// The link type of a number, if packets of it can be judged.
    #[must_use]
    pub const fn of(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ethernet),
            12 | 14 | 101 | 228 | 229 => Some(Self::RawIp),
            113 => Some(Self::Cooked),
            276 => Some(Self::Cooked2),
            _ => None,
        }
    }

    /// Whether a packet's own header says that the capturing host sent it.
    #[must_use]
    pub fn says_outgoing(self, bytes: &[u8]) -> bool {
        match self {
            Self::Ethernet | Self::RawIp => false,
            Self::Cooked => half(bytes, 0) == Some(SLL_OUTGOING),
            Self::Cooked2 => bytes.get(10).copied().map(u16::from) == Some(SLL_OUTGOING),
        }
    }
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair = bytes.get(offset..offset + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

// === impl Captured ===

impl<'a> Captured<'a> {
    /// A captured packet as an Ethernet frame; `None` if not even its link-layer header was captured.
    pub(super) fn new(link: Link, bytes: &'a [u8], original_bytes: u32) -> Option<Self> {
        let (ethertype, skipped_bytes) = match link {
            Link::Ethernet => (None, 0),
            Link::RawIp if bytes.first()? >> 4 == 6 => (Some(0x86dd), 0),
            Link::RawIp => (Some(0x0800), 0),
            Link::Cooked => (Some(half(bytes, 14)?), SLL_BYTES),
            Link::Cooked2 => (Some(half(bytes, 0)?), SLL2_BYTES),
        };
        let mut header = [0; ETHERNET_BYTES];
        let mut header_bytes = 0;
        if let Some(ethertype) = ethertype {
            header[12..].copy_from_slice(&u16::to_be_bytes(ethertype));
            header_bytes = ETHERNET_BYTES;
        }
        // A length on the wire below what was captured is a lie of the file.
        let wire_bytes = original_bytes.max(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        Some(Self {
            header,
            header_bytes,
            body: bytes.get(skipped_bytes..)?,
            frame_bytes: wire_bytes
                .saturating_sub(skipped_bytes as u32)
                .saturating_add(header_bytes as u32),
            missed: Cell::new(false),
        })
    }

    /// The parsed frame, and what it says if it is ICMP; `None` if what would decide was on the wire and not captured.
    pub(super) fn parsed(&self) -> Option<(Frame, Option<Message>)> {
        let frame = parse(self);
        let message = message(self, &frame);
        (!self.missed.get()).then_some((frame, message))
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        if offset < self.header_bytes {
            return Some(self.header[offset]);
        }
        self.body.get(offset - self.header_bytes).copied()
    }

    fn read<const BYTES: usize>(&self, offset: u32) -> Option<[u8; BYTES]> {
        let start = offset as usize;
        let end = start.checked_add(BYTES)?;
        if end > self.frame_bytes as usize {
            return None;
        }
        if end > self.header_bytes + self.body.len() {
            self.missed.set(true);
            return None;
        }
        let mut bytes = [0; BYTES];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self.byte(start + index)?;
        }
        Some(bytes)
    }
}

impl Window for Captured<'_> {
    fn frame_bytes(&self) -> u32 {
        self.frame_bytes
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.read(offset.checked_add(4 * index as u32)?)?);
        }
        Some(words)
    }

    fn half(&self, offset: u32) -> Option<u16> {
        Some(u16::from_ne_bytes(self.read(offset)?))
    }
}
