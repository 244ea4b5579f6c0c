//! Packets of every shape: cut short, lying about lengths, tagged, with options and extension headers, in fragments.

use enforcer_common::Reason;
use enforcer_tests::packet::{Segment, syn, tcp, udp};

use super::{POLICY, opening, prepare, translated};
use crate::bench::{Row, Scenario, raw, row};

fn scenario(rows: Vec<Row>) -> Scenario {
    Scenario {
        prepare,
        ..Scenario::of(POLICY, rows.into_iter().map(Into::into).collect())
    }
}

/// A frame with some bytes overwritten.
fn with(segment: &Segment, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = segment.bytes();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

fn malformed(what: &'static str, frame: Vec<u8>, bytes: u64) -> Row {
    raw(what, frame, bytes).refused("", Reason::Malformed)
}

pub(super) fn truncations() -> Scenario {
    let mut rows = Vec::new();
    let packets = [
        opening().payload(10),
        udp("10.1.0.1:40000", "192.0.2.10:53").payload(10),
        syn("[2001:db8:1::1]:40000", "[2001:db8::10]:8000").payload(4),
        opening().options(&[1, 1, 1, 0]).payload(3),
        syn("[2001:db8:1::1]:40000", "[2001:db8::10]:8000").extension(0, &[0, 0, 1, 4, 0, 0, 0, 0]),
    ];
    for packet in &packets {
        let frame = packet.bytes();
        for length in 14..frame.len() {
            rows.push(malformed(
                "cut short",
                frame[..length].to_vec(),
                length as u64 - 14,
            ));
        }
    }
    let tagged = opening().vlan(9).bytes();
    for length in 14..tagged.len() {
        let frame = tagged[..length].to_vec();
        rows.push(if length < 18 {
            raw(
                "cut within the VLAN tag: nobody can say that it is IP",
                frame,
                length as u64 - 14,
            )
        } else {
            malformed("cut behind the VLAN tag", frame, length as u64 - 18)
        });
    }
    scenario(rows)
}

pub(super) fn lies() -> Scenario {
    let v4 = opening().payload(20);
    let v6 = syn("[2001:db8:1::1]:40000", "[2001:db8::10]:8000").payload(20);
    let dns = udp("10.1.0.1:40000", "192.0.2.10:53").payload(20);
    let stranger = tcp("10.1.0.1:40000", "203.0.113.1:443").payload(20);
    let (b4, b6, bd) = (v4.network_bytes(), v6.network_bytes(), dns.network_bytes());
    let ip = 14;
    scenario(vec![
        malformed("IPv4 with version 6", with(&v4, ip, &[0x65]), b4),
        malformed("IPv6 with version 4", with(&v6, ip, &[0x40]), b6),
        malformed("a header of 16 bytes", with(&v4, ip, &[0x44]), b4),
        malformed(
            "a header that is longer than the packet",
            with(&v4, ip, &[0x4f, 0, 0, 40]),
            b4,
        ),
        malformed(
            "a total length below the header's",
            with(&v4, ip + 2, &[0, 19]),
            b4,
        ),
        malformed(
            "a total length beyond the frame",
            with(&v4, ip + 2, &[0, b4 as u8 + 1]),
            b4,
        ),
        malformed("a total length of 65535", with(&v4, ip + 2, &[0xff, 0xff]), b4),
        malformed(
            "IPv6 with a payload beyond the frame",
            with(&v6, ip + 4, &[0, b6 as u8 - 39]),
            b6,
        ),
        malformed("a TCP header of 16 bytes", with(&v4, ip + 20 + 12, &[0x40]), b4),
        malformed(
            "a TCP header beyond the packet",
            with(&v4, ip + 20 + 12, &[0xf0]),
            b4,
        ),
        malformed(
            "a TCP header beyond the total length",
            with(&v4, ip + 2, &[0, 39]),
            39,
        ),
        malformed(
            "IPv6 that leaves no room for TCP",
            with(&v6, ip + 4, &[0, 19]),
            59,
        ),
        malformed("a jumbogram", with(&v6, ip + 4, &[0, 0]), 40),
        malformed("a UDP length of 7", with(&dns, ip + 20 + 4, &[0, 7]), bd),
        malformed("a UDP length of 0", with(&dns, ip + 20 + 4, &[0, 0]), bd),
        malformed(
            "a UDP length beyond the packet",
            with(&dns, ip + 20 + 4, &[0, 29]),
            bd,
        ),
        // Whoever it is for, this host or another: its transport header is none of our business.
        raw(
            "a bad TCP header to a stranger",
            with(&stranger, ip + 20 + 12, &[0x40]),
            stranger.network_bytes(),
        ),
    ])
}

pub(super) fn link_layer() -> Scenario {
    let one = opening().vlan(7);
    let two = syn("10.1.0.2:40000", "192.0.2.10:8000").vlan(7).vlan(8);
    let three = opening().vlan(7).vlan(8).vlan(9);
    let v6 = syn("[2001:db8:1::1]:40000", "[2001:db8::10]:8000").vlan(4094);
    let mut padded = opening();
    padded.from.set_port(40_100);
    let with_padding = |segment: &Segment| {
        let mut frame = segment.bytes();
        frame.resize(60, 0);
        frame
    };
    let mut short = raw(
        "padded to the least length of a frame",
        with_padding(&padded),
        padded.network_bytes(),
    )
    .opens("acme", &translated(&padded, "10.9.0.1:9000"));
    short = short.comes_out(with_padding(&translated(&padded, "10.9.0.1:9000")));
    scenario(vec![
        row("one VLAN tag, which is for the link that it came by", &one)
            .opens("acme", &translated(&one, "10.9.0.1:9000")),
        row("two VLAN tags", &two).opens("acme", &translated(&two, "10.9.0.1:9000")),
        row("IPv6 with a VLAN tag", &v6).opens("acme", &translated(&v6, "[2001:db8:9::1]:9000")),
        raw(
            "three VLAN tags are more than anyone here walks",
            three.bytes(),
            three.bytes().len() as u64 - 14,
        ),
        short,
    ])
}

pub(super) fn ip_headers() -> Scenario {
    let options = opening().options(&[1; 40]);
    let hop_by_hop: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    let long: &[u8] = &[[0, 3, 1, 28].as_slice(), &[0; 28]].concat();
    let authentication: &[u8] = &[[0, 1].as_slice(), &[0; 10]].concat();
    let v6 = |port: u16| syn(&format!("[2001:db8:1::1]:{port}"), "[2001:db8::10]:8000");
    let walked = v6(1)
        .extension(0, hop_by_hop)
        .extension(60, long)
        .extension(51, authentication);
    let routed = v6(2).extension(43, &[0, 0, 4, 0, 0, 0, 0, 0]);
    let six = (0..6).fold(v6(3), |segment, _| segment.extension(60, hop_by_hop));
    let seven = six.clone().extension(60, hop_by_hop);
    let source_routed = v6(4).extension(43, &[0, 0, 4, 1, 0, 0, 0, 0]);
    let endless = v6(5).extension(60, &[0, 255, 1, 4, 0, 0, 0, 0]);
    let mapped_source = tcp("[::ffff:10.1.0.1]:40000", "[2001:db8::10]:8000");
    let mapped_destination = tcp("[2001:db8:1::1]:40000", "[::ffff:192.0.2.10]:8000");
    let to = |segment: &Segment| translated(segment, "[2001:db8:9::1]:9000");
    let refused = |what, segment: &Segment| malformed(what, segment.bytes(), segment.network_bytes());
    scenario(vec![
        row("IPv4 with forty bytes of options", &options)
            .opens("acme", &translated(&options, "10.9.0.1:9000")),
        row("three kinds of extension headers", &walked).opens("acme", &to(&walked)),
        row("a routing header that is used up", &routed).opens("acme", &to(&routed)),
        row("six extension headers", &six).opens("acme", &to(&six)),
        refused("seven are one too many", &seven),
        refused("a routing header that names another destination", &source_routed),
        refused("an extension header beyond the packet", &endless),
        refused("an IPv4-mapped source on the wire", &mapped_source),
        refused("an IPv4-mapped destination on the wire", &mapped_destination),
    ])
}

pub(super) fn fragments() -> Scenario {
    let v4 = udp("10.1.0.1:40000", "192.0.2.10:53").payload(64);
    let v6 = udp("[2001:db8:1::1]:40000", "[2001:db8::10]:53").payload(64);
    let refused = |what, segment: &Segment| {
        raw(what, segment.bytes(), segment.network_bytes()).refused("", Reason::FragmentUnsupported)
    };
    let elsewhere = v4.clone().to("203.0.113.1:53").fragment(0, true);
    let around = v4.clone().to("10.9.0.1:9000").fragment(4, false);
    scenario(vec![
        refused("the first fragment", &v4.clone().fragment(0, true)),
        refused("one in the middle", &v4.clone().fragment(185, true)),
        refused("the last", &v4.clone().fragment(370, false)),
        refused("the first, IPv6", &v6.clone().fragment(0, true)),
        refused("the last, IPv6", &v6.clone().fragment(180, false)),
        refused("an atomic fragment (RFC 6946)", &v6.fragment(0, false)),
        raw(
            "a fragment to a stranger",
            elsewhere.bytes(),
            elsewhere.network_bytes(),
        ),
        raw(
            "a fragment around the service",
            around.bytes(),
            around.network_bytes(),
        )
        .refused("", Reason::Bypass),
    ])
}

#[test]
fn cut_short_at_every_length() {
    truncations().run();
}

#[test]
fn lying_lengths() {
    lies().run();
}

#[test]
fn vlan_tags_and_padding() {
    link_layer().run();
}

#[test]
fn options_and_extension_headers() {
    ip_headers().run();
}

#[test]
fn fragments_to_a_service() {
    fragments().run();
}
