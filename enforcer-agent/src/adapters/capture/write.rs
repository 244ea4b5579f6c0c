//! Captured packets as pcapng, for tcpdump, tshark and Wireshark.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::api::reply::CapturedPacket;
use crate::pure::audit::Direction;

/// Timestamps count nanoseconds: the negative power of ten, as the option `if_tsresol` has it.
const NANOSECONDS: u8 = 9;
/// What `epb_flags` says of a packet that came in, and of one that was to go out.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes a capture.
pub struct CaptureWriter<W: Write> {
    writer: PcapNgWriter<W>,
    snap_bytes: u32,
    /// Numbers of the interfaces that were described.
    interfaces: BTreeMap<String, u32>,
}

// === impl CaptureWriter ===

impl<W: Write> CaptureWriter<W> {
    /// Begins a capture of so many bytes of each packet.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(writer: W, snap_bytes: u32) -> io::Result<Self> {
        let application = concat!("enforcer-agent ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(application))],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(writer, section).map_err(io_error)?;
        Ok(Self {
            writer,
            snap_bytes,
            interfaces: BTreeMap::new(),
        })
    }

    /// Writes a packet, with what it got as its comment.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, packet: &CapturedPacket) -> io::Result<()> {
        let interface_id = self.interface(&packet.interface)?;
        let since_1970_ns = u64::try_from(packet.time.as_nanosecond()).unwrap_or(0);
        let flags = match packet.direction {
            Direction::Ingress => INBOUND,
            Direction::Egress => OUTBOUND,
        };
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(since_1970_ns),
            original_len: packet.frame_bytes,
            data: Cow::Borrowed(&packet.frame.0),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Owned(comment(packet))),
                EnhancedPacketOption::Flags(flags),
            ],
        };
        self.writer.write_pcapng_block(block).map(drop).map_err(io_error)
    }

    /// Hands on what was written.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    /// The number of an interface, which is described before its first packet.
    fn interface(&mut self, name: &str) -> io::Result<u32> {
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snap_bytes,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_pcapng_block(block).map_err(io_error)?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }
}

/// What a packet got, in words: `reason=RuleDeny rule=night tenant=acme service=chat generation=7`.
fn comment(packet: &CapturedPacket) -> String {
    let named = [
        ("rule", &packet.rule),
        ("tenant", &packet.tenant),
        ("service", &packet.service),
    ];
    let named = named
        .into_iter()
        .filter_map(|(what, name)| Some(format!(" {what}={}", name.as_ref()?)));
    let named: String = named.collect();
    format!("reason={}{named} generation={}", packet.reason, packet.generation)
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
