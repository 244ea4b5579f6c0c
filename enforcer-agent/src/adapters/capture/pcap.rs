//! pcap and pcapng, of either byte order, with any resolution of time.
//!
//! The parser's buffer has a fixed size, so that no length in the file decides how much memory is used.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::rc::Rc;

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, LegacyPcapReader, OptionCode, PcapBlockOwned,
    PcapError, PcapHeader, PcapNGReader,
};

use super::Reading;
use crate::pure::simulate::report::TrafficKind;
use crate::pure::simulate::{CapturedPacket, Link, Simulation};

/// The parser's buffer, and so the longest record: capturing programs keep at most 256 KiB of a packet.
const BUFFER_BYTES: usize = 1 << 20;
/// Most interfaces in one section of a pcapng file.
const MAX_INTERFACES: usize = 65_536;
/// Unknown link types that are counted apart.
const MAX_LINK_TYPES: usize = 16;
/// What each pcapng file begins with: the same in both byte orders.
const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const NS_PER_SECOND: i128 = 1_000_000_000;
/// pcapng's `epb_flags`, and what its two lowest bits hold for a packet that was sent.
const FLAGS_OPTION: OptionCode = OptionCode(2);
const FLAGS_OUTBOUND: u32 = 2;

/// Replays a capture; `Err` says why it is none.
pub(super) fn read(source: impl Read, simulation: &mut Simulation) -> Result<Reading, String> {
    read_packets(source, &mut |item| match item {
        Item::Packet(packet) => simulation
            .packet(&packet)
            .map(|_| ())
            .map_err(|error| error.to_string()),
        Item::OtherLink => {
            simulation.skip_packet();
            Ok(())
        }
    })
}

/// What a capture holds.
#[derive(Debug)]
pub(super) enum Item<'a> {
    /// A packet.
    Packet(CapturedPacket<'a>),
    /// A packet of a kind of link that is not read.
    OtherLink,
}

/// Takes what a capture holds; `Err` says why it cannot go on.
type Sink<'a> = dyn FnMut(Item<'_>) -> Result<(), String> + 'a;

/// Hands every packet to `sink`. `Err`: this is no capture.
pub(super) fn read_packets(source: impl Read, sink: &mut Sink<'_>) -> Result<Reading, String> {
    let mut source = source;
    let mut start = [0; 4];
    let none = "it is neither pcap nor pcapng, nor does it begin like a line of an audit log";
    source.read_exact(&mut start).map_err(|_| none.to_owned())?;
    let error = Rc::new(RefCell::new(None));
    let source = Source {
        inner: start.chain(source),
        error: Rc::clone(&error),
    };
    // Only now, so that what is no capture costs no buffer.
    let mut reader: Box<dyn PcapReaderIterator> = if start == SECTION_HEADER {
        Box::new(PcapNGReader::new(BUFFER_BYTES, source).map_err(|_| none.to_owned())?)
    } else {
        Box::new(LegacyPcapReader::new(BUFFER_BYTES, source).map_err(|_| none.to_owned())?)
    };
    let mut packets = Packets::default();
    let ended = loop {
        match next(&mut *reader, &mut packets, sink) {
            Ok(true) => {}
            Ok(false) => break None,
            Err(End::Here(reason)) => break Some(reason),
            Err(End::Unread) => {
                let error = error.borrow_mut().take();
                break Some(error.map_or_else(
                    || "it cannot be read on".to_owned(),
                    |error: io::Error| error.to_string(),
                ));
            }
        }
    };
    let after = packets.count;
    Ok(Reading {
        kind: TrafficKind::Capture,
        ended: ended.map(|reason| format!("after packet {after}: {reason}")),
        notes: packets.notes(),
    })
}

/// Why a capture ends before its end.
enum End {
    Here(String),
    /// The system says why.
    Unread,
}

/// Takes one record, or reads more of the file. `false`: there is no more.
fn next(
    reader: &mut dyn PcapReaderIterator,
    packets: &mut Packets,
    sink: &mut Sink<'_>,
) -> Result<bool, End> {
    let too_long = || {
        let reason = "the next record is longer than the rest of the file, or than 1 MiB: the capture is cut off or damaged";
        Err(End::Here(reason.to_owned()))
    };
    let failed = match reader.next() {
        Ok((bytes, block)) => {
            packets.take(block, sink).map_err(End::Here)?;
            reader.consume(bytes);
            return Ok(true);
        }
        Err(error) => error.to_owned_vec(),
    };
    match failed {
        PcapError::Eof => Ok(false),
        PcapError::Incomplete(_) => {
            let before = reader.data().len();
            reader.refill().map_err(|_| End::Unread)?;
            // A parser that asks for more than the buffer can hold would ask for ever.
            if reader.data().len() == before && !reader.reader_exhausted() {
                return too_long();
            }
            Ok(true)
        }
        PcapError::UnexpectedEof if reader.data().is_empty() => Ok(false),
        PcapError::UnexpectedEof | PcapError::BufferTooSmall => too_long(),
        PcapError::ReadError => Err(End::Unread),
        PcapError::HeaderNotRecognized | PcapError::NomError(..) | PcapError::OwnedNomError(..) => Err(
            End::Here("the next record is damaged: its lengths contradict each other".to_owned()),
        ),
    }
}

/// A source that fills what it is given as far as it can, and keeps the error that the parser drops.
struct Source<R> {
    inner: R,
    error: Rc<RefCell<Option<io::Error>>>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What came before it is good.
                Err(_) if filled > 0 => break,
                Err(error) => {
                    let kind = error.kind();
                    *self.error.borrow_mut() = Some(error);
                    return Err(kind.into());
                }
            }
        }
        Ok(filled)
    }
}

/// What the headers say about the packets that follow.
#[derive(Debug, Default)]
struct Packets {
    /// Packets so far.
    count: u64,
    big_endian: bool,
    /// Of the current section; a pcap file has one.
    interfaces: Vec<Interface>,
    /// Packets by link type that is not read.
    other_links: BTreeMap<u32, u64>,
    /// Packets without a time.
    untimed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link_type: u32,
    /// Units of time in a second.
    ticks_per_second: u128,
    /// Seconds to be added.
    offset_s: i64,
    /// Most bytes of a packet that are kept; zero is no limit.
    snap_bytes: u32,
}

// === impl Packets ===

impl Packets {
    fn take(&mut self, block: PcapBlockOwned<'_>, sink: &mut Sink<'_>) -> Result<(), String> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => self.interfaces = vec![interface_of_header(&header)],
            PcapBlockOwned::Legacy(record) => {
                let interface = *self
                    .interfaces
                    .first()
                    .ok_or("a packet without a header before it")?;
                let ticks =
                    u128::from(record.ts_sec) * interface.ticks_per_second + u128::from(record.ts_usec);
                self.packet(interface, Some(ticks), record.data, record.origlen, false, sink)?;
            }
            PcapBlockOwned::NG(Block::SectionHeader(section)) => {
                self.big_endian = section.big_endian();
                self.interfaces.clear();
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                if self.interfaces.len() >= MAX_INTERFACES {
                    return Err(format!("it has more than {MAX_INTERFACES} interfaces"));
                }
                self.interfaces.push(self.interface_of_block(&block)?);
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                let interface = self.interface(block.if_id)?;
                let ticks = u128::from(block.ts_high) << 32 | u128::from(block.ts_low);
                let outgoing = self.is_outgoing(&block);
                self.packet(
                    interface,
                    Some(ticks),
                    block.packet_data(),
                    block.origlen,
                    outgoing,
                    sink,
                )?;
            }
            PcapBlockOwned::NG(Block::SimplePacket(block)) => {
                let interface = self.interface(0)?;
                let kept = block.packet_data();
                let snap_bytes = match interface.snap_bytes {
                    0 => kept.len(),
                    bytes => kept.len().min(bytes as usize),
                };
                self.untimed += 1;
                self.packet(interface, None, &kept[..snap_bytes], block.origlen, false, sink)?;
            }
            // Names, statistics, secrets and whatever else may come between packets.
            PcapBlockOwned::NG(_) => {}
        }
        Ok(())
    }

    fn interface(&self, index: u32) -> Result<Interface, String> {
        let interface = self.interfaces.get(index as usize).copied();
        interface.ok_or_else(|| format!("a packet of interface {index}, which the capture does not describe"))
    }

    fn packet(
        &mut self,
        interface: Interface,
        ticks: Option<u128>,
        bytes: &[u8],
        original_bytes: u32,
        outgoing: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), String> {
        self.count += 1;
        let Some(link) = Link::of(interface.link_type) else {
            if self.other_links.len() < MAX_LINK_TYPES || self.other_links.contains_key(&interface.link_type)
            {
                *self.other_links.entry(interface.link_type).or_insert(0) += 1;
            }
            return sink(Item::OtherLink);
        };
        let packet = CapturedPacket {
            time_ns: ticks.map(|ticks| interface.time_ns(ticks)),
            link,
            outgoing,
            bytes,
            original_bytes,
        };
        sink(Item::Packet(packet)).inspect_err(|_| self.count -= 1)
    }

    fn interface_of_block(&self, block: &InterfaceDescriptionBlock<'_>) -> Result<Interface, String> {
        let exponent = u32::from(block.if_tsresol & 0x7f);
        let base: u128 = if block.if_tsresol & 0x80 == 0 { 10 } else { 2 };
        let ticks_per_second = base
            .checked_pow(exponent)
            .ok_or_else(|| format!("an interface with time in units of {base}^-{exponent} s"))?;
        let offset = block
            .options
            .iter()
            .find(|option| option.code == OptionCode::IfTsoffset);
        let offset = offset.and_then(|option| <[u8; 8]>::try_from(option.as_bytes().ok()?).ok());
        Ok(Interface {
            link_type: block.linktype.0 as u32,
            ticks_per_second,
            offset_s: offset.map_or(0, |bytes| {
                if self.big_endian {
                    i64::from_be_bytes(bytes)
                } else {
                    i64::from_le_bytes(bytes)
                }
            }),
            snap_bytes: block.snaplen,
        })
    }

    fn is_outgoing(&self, block: &EnhancedPacketBlock<'_>) -> bool {
        let flags = block.options.iter().find(|option| option.code == FLAGS_OPTION);
        let flags = flags.and_then(|option| <[u8; 4]>::try_from(option.as_bytes().ok()?).ok());
        let flags = flags.map_or(0, |bytes| {
            if self.big_endian {
                u32::from_be_bytes(bytes)
            } else {
                u32::from_le_bytes(bytes)
            }
        });
        flags & 3 == FLAGS_OUTBOUND
    }

    fn notes(&self) -> Vec<String> {
        let links = self.other_links.iter().map(|(link_type, packets)| {
            format!(
                "{packets} packets have link type {link_type}, which is not read: Ethernet (1), raw IP (101) and Linux \
                 cooked captures (113, 276) are"
            )
        });
        let untimed = (self.untimed > 0).then(|| {
            let untimed = self.untimed;
            format!("{untimed} packets have no time: the clock stood still for them")
        });
        links.chain(untimed).collect()
    }
}

fn interface_of_header(header: &PcapHeader) -> Interface {
    Interface {
        // Above it are the length of the frame check sequence and reserved bits.
        link_type: header.network.0 as u32 & 0xffff,
        ticks_per_second: if header.is_nanosecond_precision() {
            1_000_000_000
        } else {
            1_000_000
        },
        offset_s: 0,
        snap_bytes: header.snaplen,
    }
}

// === impl Interface ===

impl Interface {
    /// Nanoseconds since 1970; `u64::MAX` for what lies outside of all time.
    fn time_ns(&self, ticks: u128) -> u64 {
        // The ticks of all formats have at most 64 bits.
        let ns = ticks.saturating_mul(NS_PER_SECOND as u128) / self.ticks_per_second;
        let offset_ns = i128::from(self.offset_s) * NS_PER_SECOND;
        let ns = i128::try_from(ns).ok().and_then(|ns| ns.checked_add(offset_ns));
        ns.and_then(|ns| u64::try_from(ns).ok()).unwrap_or(u64::MAX)
    }
}
