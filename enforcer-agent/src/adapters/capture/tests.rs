//! Captures by an independent writer, and captures by nobody who means well.

use std::borrow::Cow;
use std::io::{self, Read};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
use pcap_file::{DataLink, Endianness, TsResolution};
use proptest::prelude::*;

use super::Reading;
use super::pcap::{Item, read_packets};
use crate::pure::simulate::Link;

/// What was handed over: time, link, outgoing, bytes, original length; `None` for another kind of link.
type Handed = Option<(Option<u64>, Link, bool, Vec<u8>, u32)>;

fn packets(capture: impl Read) -> Result<(Vec<Handed>, Reading), String> {
    let mut handed = Vec::new();
    let reading = read_packets(capture, &mut |item| {
        handed.push(match item {
            Item::OtherLink => None,
            Item::Packet(packet) => Some((
                packet.time_ns,
                packet.link,
                packet.outgoing,
                packet.bytes.to_vec(),
                packet.original_bytes,
            )),
        });
        Ok(())
    })?;
    Ok((handed, reading))
}

fn pcap(
    endianness: Endianness,
    ts_resolution: TsResolution,
    datalink: DataLink,
    times: &[Duration],
) -> Vec<u8> {
    let header = PcapHeader {
        endianness,
        ts_resolution,
        datalink,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    for (index, time) in times.iter().enumerate() {
        let data = vec![index as u8; 60 + index];
        writer.write_packet(&PcapPacket::new(*time, 1500, &data)).unwrap();
    }
    writer.into_writer()
}

fn ethernet(times: &[Duration]) -> Vec<u8> {
    pcap(
        Endianness::Little,
        TsResolution::NanoSecond,
        DataLink::ETHERNET,
        times,
    )
}

#[test]
fn pcap_of_either_byte_order_and_resolution() {
    let times = [
        Duration::new(1_700_000_000, 123_456_000),
        Duration::new(4_294_967_295, 999_999_000),
    ];
    for endianness in [Endianness::Little, Endianness::Big] {
        for resolution in [TsResolution::MicroSecond, TsResolution::NanoSecond] {
            let (handed, reading) =
                packets(&pcap(endianness, resolution, DataLink::ETHERNET, &times)[..]).unwrap();
            let expected: Vec<Handed> = times
                .iter()
                .enumerate()
                .map(|(index, time)| {
                    let time_ns = Some(time.as_nanos() as u64);
                    Some((
                        time_ns,
                        Link::Ethernet,
                        false,
                        vec![index as u8; 60 + index],
                        1500,
                    ))
                })
                .collect();
            assert_eq!(handed, expected, "{endianness:?} {resolution:?}");
            assert_eq!((reading.ended, reading.notes), (None, Vec::new()));
        }
    }
}

fn interface(
    linktype: DataLink,
    options: Vec<InterfaceDescriptionOption<'static>>,
) -> InterfaceDescriptionBlock<'static> {
    InterfaceDescriptionBlock {
        linktype,
        snaplen: 0,
        options,
    }
}

/// The writer puts the duration's nanoseconds down as they are: they stand for ticks.
fn enhanced(
    interface_id: u32,
    ticks: u64,
    options: Vec<EnhancedPacketOption<'static>>,
) -> EnhancedPacketBlock<'static> {
    EnhancedPacketBlock {
        interface_id,
        timestamp: Duration::from_nanos(ticks),
        original_len: 77,
        data: Cow::Owned(vec![interface_id as u8; 61]),
        options,
    }
}

#[test]
fn pcapng_with_several_interfaces_resolutions_and_sections() {
    for endianness in [Endianness::Little, Endianness::Big] {
        let mut writer = PcapNgWriter::with_endianness(Vec::new(), endianness).unwrap();
        writer
            .write_pcapng_block(interface(DataLink::ETHERNET, vec![]))
            .unwrap();
        let nanoseconds = vec![
            InterfaceDescriptionOption::IfTsResol(9),
            InterfaceDescriptionOption::IfTsOffset(3),
        ];
        writer
            .write_pcapng_block(interface(DataLink::LINUX_SLL, nanoseconds))
            .unwrap();
        let halves = vec![InterfaceDescriptionOption::IfTsResol(0x80 | 10)];
        writer
            .write_pcapng_block(interface(DataLink::RAW, halves))
            .unwrap();
        writer
            .write_pcapng_block(interface(DataLink::IEEE802_11, vec![]))
            .unwrap();
        writer.write_pcapng_block(enhanced(0, 5_000_001, vec![])).unwrap();
        let outbound = vec![EnhancedPacketOption::Flags(0b10)];
        writer
            .write_pcapng_block(enhanced(1, 2_000_000_007, outbound))
            .unwrap();
        writer
            .write_pcapng_block(enhanced(2, 10 * 1024 + 512, vec![EnhancedPacketOption::Flags(1)]))
            .unwrap();
        writer.write_pcapng_block(enhanced(3, 0, vec![])).unwrap();
        let simple = SimplePacketBlock {
            original_len: 10,
            data: Cow::Owned(vec![9; 10]),
        };
        writer.write_pcapng_block(simple).unwrap();
        let mut capture = writer.into_inner();
        // A second section knows nothing of the first one's interfaces, and may be of the other byte order.
        let mut second = PcapNgWriter::with_endianness(Vec::new(), Endianness::Big).unwrap();
        second
            .write_pcapng_block(interface(DataLink::RAW, vec![]))
            .unwrap();
        second
            .write_pcapng_block(enhanced(0, 12_000_000, vec![]))
            .unwrap();
        capture.extend(second.into_inner());

        let (handed, reading) = packets(&capture[..]).unwrap();
        let packet =
            |time_ns, link, outgoing, id: u8| Some((Some(time_ns), link, outgoing, vec![id; 61], 77));
        let expected = vec![
            packet(5_000_001_000, Link::Ethernet, false, 0),
            packet(5_000_000_007, Link::Cooked, true, 1),
            packet(10_500_000_000, Link::RawIp, false, 2),
            None,
            Some((None, Link::Ethernet, false, vec![9; 10], 10)),
            packet(12_000_000_000, Link::RawIp, false, 0),
        ];
        assert_eq!(handed, expected, "{endianness:?}");
        assert_eq!(reading.ended, None);
        assert_eq!(reading.notes.len(), 2, "{:?}", reading.notes);
        assert!(
            reading.notes[0].starts_with("1 packets have link type 105"),
            "{:?}",
            reading.notes
        );
    }
}

#[test]
fn what_came_before_the_damage_counts() {
    let times = [
        Duration::from_secs(1),
        Duration::from_secs(2),
        Duration::from_secs(3),
    ];
    let whole = ethernet(&times);
    let ends = [24_usize, 24 + 76, 24 + 76 + 77];
    for bytes in
        (24..whole.len()).filter(|bytes| bytes % 16 == 0 || ends.iter().any(|end| end.abs_diff(*bytes) < 3))
    {
        let (handed, reading) = packets(&whole[..bytes]).unwrap();
        // Records of 16 bytes and 60, 61 and 62.
        let full = ends.iter().rposition(|end| bytes >= *end).unwrap();
        assert_eq!(handed.len(), full, "{bytes}");
        let is_boundary = ends.contains(&bytes);
        assert_eq!(reading.ended.is_none(), is_boundary, "{bytes}: {reading:?}");
        if let Some(reason) = reading.ended {
            assert!(reason.starts_with(&format!("after packet {full}: ")), "{reason}");
            assert!(reason.contains("cut off or damaged"), "{reason}");
        }
    }
}

/// Ends after `left` bytes with an error, and counts what was asked for.
struct Failing {
    bytes: Vec<u8>,
    at: usize,
}

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes.len() {
            return Err(io::Error::other("the disk is on fire"));
        }
        // In small pieces, as a slow source gives them.
        let piece = buffer.len().min(7).min(self.bytes.len() - self.at);
        buffer[..piece].copy_from_slice(&self.bytes[self.at..self.at + piece]);
        self.at += piece;
        Ok(piece)
    }
}

#[test]
fn an_error_of_the_system_is_told_in_its_words() {
    let times = [Duration::from_secs(1), Duration::from_secs(2)];
    let capture = Failing {
        bytes: ethernet(&times),
        at: 0,
    };
    let (handed, reading) = packets(capture).unwrap();
    assert_eq!(handed.len(), 2);
    assert_eq!(
        reading.ended.as_deref(),
        Some("after packet 2: the disk is on fire")
    );
}

/// A source without an end.
struct Endless;

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(0x5a);
        Ok(buffer.len())
    }
}

/// Lengths that lie end the reading after at most one buffer, whatever they claim and however much follows.
#[test]
fn lengths_that_lie_are_refused_within_one_buffer() {
    let header = ethernet(&[]);
    for claim in [1 << 20, 0x7fff_ffff, 0x8000_0000, u32::MAX - 4, u32::MAX] {
        let mut record = vec![0; 8];
        record.extend(claim.to_le_bytes());
        record.extend(claim.to_le_bytes());
        let capture = header.chain(&record[..]).chain(Endless);
        let (handed, reading) = packets(capture).unwrap();
        assert!(handed.is_empty());
        assert!(
            reading
                .ended
                .unwrap()
                .contains("longer than the rest of the file"),
            "{claim:#x}"
        );
    }
    let section = PcapNgWriter::with_endianness(Vec::new(), Endianness::Little)
        .unwrap()
        .into_inner();
    for kind in [
        1_u32,
        2,
        3,
        4,
        5,
        6,
        9,
        10,
        0xbad,
        0x4000_0bad,
        0x0a0d_0d0a,
        0x7777_7777,
    ] {
        for claim in [
            0_u32,
            1,
            4,
            8,
            11,
            12,
            13,
            16,
            20,
            28,
            1 << 20,
            0x8000_0000,
            u32::MAX,
        ] {
            let mut block = kind.to_le_bytes().to_vec();
            block.extend(claim.to_le_bytes());
            let (handed, reading) = packets(section.chain(&block[..]).chain(Endless)).unwrap();
            assert!(handed.is_empty());
            assert!(reading.ended.is_some(), "{kind:#x} {claim:#x}");
        }
    }
    // A packet that claims more than its block has.
    let mut writer = PcapNgWriter::with_endianness(Vec::new(), Endianness::Little).unwrap();
    writer
        .write_pcapng_block(interface(DataLink::ETHERNET, vec![]))
        .unwrap();
    let mut capture = writer.into_inner();
    for word in [6_u32, 36, 0, 0, 0, 4096, 4096, 0, 36] {
        capture.extend(word.to_le_bytes());
    }
    let (handed, reading) = packets(capture.chain(Endless)).unwrap();
    assert!(handed.is_empty() && reading.ended.is_some(), "{reading:?}");
}

#[test]
fn what_is_no_capture_is_refused() {
    for bytes in [
        &b""[..],
        b"\xd4\xc3",
        b"\xd4\xc3\xb2\xa1",
        b"#!/bin/sh\n",
        b"\x0a\x0d\x0d\x0a",
        &[0; 4096],
    ] {
        let reason = packets(bytes).unwrap_err();
        assert!(reason.contains("neither pcap nor pcapng"), "{reason}");
    }
    assert!(packets(Endless).is_err());
}

#[test]
fn a_packet_of_no_interface_ends_the_capture() {
    let mut writer = PcapNgWriter::with_endianness(Vec::new(), Endianness::Little).unwrap();
    writer
        .write_pcapng_block(interface(DataLink::ETHERNET, vec![]))
        .unwrap();
    let mut capture = writer.into_inner();
    // The writer refuses to write this.
    for word in [6_u32, 36, 7, 0, 0, 4, 4, 0, 36] {
        capture.extend(word.to_le_bytes());
    }
    let (_, reading) = packets(&capture[..]).unwrap();
    assert!(reading.ended.unwrap().contains("interface 7"));
    let huge = vec![InterfaceDescriptionOption::IfTsResol(0x7f)];
    let mut writer = PcapNgWriter::with_endianness(Vec::new(), Endianness::Little).unwrap();
    writer
        .write_pcapng_block(interface(DataLink::ETHERNET, huge))
        .unwrap();
    let (_, reading) = packets(&writer.into_inner()[..]).unwrap();
    assert!(reading.ended.unwrap().contains("10^-127"));
}

proptest! {
    // Each case makes a buffer, which takes an unoptimised build some milliseconds.
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any bytes: an end, and never a panic.
    #[test]
    fn any_bytes_end(start in 0_usize..6, bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let magic: [&[u8]; 6] = [
            b"",
            b"\xd4\xc3\xb2\xa1",
            b"\xa1\xb2\x3c\x4d",
            b"\x34\xcd\xb2\xa1",
            b"\x0a\x0d\x0d\x0a\x1c\0\0\0\x4d\x3c\x2b\x1a\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x1c\0\0\0",
            b"\x0a\x0d\x0d\x0a\0\0\0\x1c\x1a\x2b\x3c\x4d\0\x01\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\x1c",
        ];
        let _refused_or_read = packets(magic[start].chain(&bytes[..]));
    }

    /// A good capture with a few bytes changed: no more packets than records fit.
    #[test]
    fn damaged_captures_end(changes in proptest::collection::vec((0_usize..600, any::<u8>()), 1..6)) {
        let mut writer = PcapNgWriter::with_endianness(Vec::new(), Endianness::Little).unwrap();
        writer.write_pcapng_block(interface(DataLink::ETHERNET, vec![InterfaceDescriptionOption::IfTsResol(9)])).unwrap();
        for ticks in 0..4 {
            writer.write_pcapng_block(enhanced(0, ticks, vec![EnhancedPacketOption::Flags(1)])).unwrap();
        }
        let times: Vec<Duration> = (1..5).map(Duration::from_secs).collect();
        for mut capture in [writer.into_inner(), ethernet(&times)] {
            for (at, byte) in &changes {
                let length = capture.len();
                capture[at % length] = *byte;
            }
            if let Ok((handed, _)) = packets(&capture[..]) {
                prop_assert!(handed.len() <= capture.len() / 16);
            }
        }
    }
}
