//! Packets inside others: IP in IP, and Generic UDP Encapsulation.

use std::net::IpAddr;

use enforcer_common::Reason;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::decide::TCP_ACK;
use enforcer_common::hash::flow_hash;
use enforcer_common::parse::parse;
use enforcer_tests::packet::{Around, Complaint, Error, Segment, complain, syn, tcp, udp};
use enforcer_tests::world::{BACKEND_SIDE_MAC, MTU_BYTES, mac_of};

use super::{POLICY, from_backend, prepare};
use crate::bench::{Row, Scenario, row};

/// The one back end of the pool `four`.
pub(super) const FOUR: &str = "10.9.0.8";
/// The one back end of the pool `six`.
const SIX: &str = "2001:db8:9::7";

fn scenario(rows: Vec<Row>) -> Scenario {
    Scenario {
        prepare,
        ..Scenario::of(POLICY, rows.into_iter().map(Into::into).collect())
    }
}

/// The frame that goes to a back end: one hop further, inside a header whose source, flow label and UDP port are those
/// of the flow.
pub(super) fn wrapped_frame(segment: &Segment, backend: &str, by_udp: bool) -> Vec<u8> {
    let destination: IpAddr = backend.parse().expect("an address");
    let mut inner = segment
        .clone()
        .hop_limit(segment.hop_limit - 1)
        .link(BACKEND_SIDE_MAC, mac_of(destination));
    let around = around(&segment.key(), destination, by_udp);
    inner.vlans.clear();
    around.wrap(&inner.bytes(), 14)
}

/// An ICMP error that goes the same way.
pub(super) fn wrapped_error(error: &Error, backend: &str) -> Vec<u8> {
    let destination: IpAddr = backend.parse().expect("an address");
    let inner = error
        .clone()
        .hop_limit(error.hop_limit - 1)
        .link(BACKEND_SIDE_MAC, mac_of(destination));
    around(&parse(&error.bytes()[..]).packet.key, destination, false).wrap(&inner.bytes(), 14)
}

fn around(key: &FlowKey, destination: IpAddr, by_udp: bool) -> Around {
    let hash = flow_hash(key);
    let [.., c, d] = (hash as u32).to_be_bytes();
    let source = match destination {
        // The prefixes that the world has: sixteen bits vary, and the last thirty-two of those that vary.
        IpAddr::V4(_) => IpAddr::from([10, 254, c, d]),
        IpAddr::V6(_) => {
            let mut octets = [0; 16];
            octets[..6].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0x00, 0xfe]);
            octets[12..].copy_from_slice(&(hash as u32).to_be_bytes());
            IpAddr::from(octets)
        }
    };
    Around {
        source,
        destination,
        udp_source_port: by_udp.then_some(0xc000 | (hash as u16 & 0x3fff)),
        flow_label: hash as u32 & 0xf_ffff,
    }
}

/// Opened, used with an odd length, with tags and options, at its last hop; and an answer, which is none of ours.
fn conversation(opening: &Segment, backend: &str, by_udp: bool) -> Vec<Row> {
    let out = |segment: &Segment| wrapped_frame(segment, backend, by_udp);
    let data = match opening.transport {
        enforcer_tests::packet::Transport::Tcp(_) => opening.clone().flags(TCP_ACK).payload(101),
        _ => opening.clone().payload(101),
    };
    let tagged = data.clone().vlan(5);
    let twice = data.clone().vlan(5).vlan(6);
    let mut rows = vec![
        row("the first packet opens a flow", opening)
            .opens("acme", opening)
            .comes_out(out(opening)),
        row("data of an odd length", &data)
            .continues("acme", &data)
            .comes_out(out(&data)),
        row("behind a VLAN tag", &tagged)
            .continues("acme", &data)
            .comes_out(out(&tagged)),
        row("behind two VLAN tags", &twice)
            .continues("acme", &data)
            .comes_out(out(&twice)),
        row("the last hop", &data.clone().hop_limit(1)).refused("acme", Reason::HopLimit),
        row(
            "an answer that passes by here after all",
            &from_backend(opening.answer()),
        ),
    ];
    let padded = [data.bytes(), vec![0; 7]].concat();
    let long = [out(&data), vec![0; 7]].concat();
    rows.push(
        row("padding of the link stays behind", &data)
            .continues("acme", &data)
            .goes_in(padded)
            .comes_out(long),
    );
    rows
}

pub(super) fn table() -> Scenario {
    let mut rows = Vec::new();
    for (from, opened, backend, by_udp) in [
        ("10.1.0.1:40000", "192.0.2.80:9000", FOUR, false),
        ("[2001:db8:1::1]:40000", "[2001:db8::80]:9000", FOUR, false),
        ("10.1.0.1:40000", "192.0.2.91:9000", SIX, true),
        ("[2001:db8:1::1]:40000", "[2001:db8::91]:9000", SIX, true),
    ] {
        rows.extend(conversation(&syn(from, opened), backend, by_udp));
    }
    for (from, opened, backend, by_udp) in [
        ("10.1.0.1:40000", "192.0.2.81:9000", SIX, false),
        ("[2001:db8:1::1]:40000", "[2001:db8::81]:9000", SIX, false),
        ("10.1.0.1:40000", "192.0.2.90:9000", FOUR, true),
        ("[2001:db8:1::1]:40000", "[2001:db8::90]:9000", FOUR, true),
    ] {
        rows.extend(conversation(&udp(from, opened), backend, by_udp));
    }
    let mut marked = udp("10.1.0.1:40001", "192.0.2.90:9000").bytes();
    // Class and congestion notification, and what that takes from the checksum.
    marked[15] = 0xb9;
    let sum = u16::from_be_bytes([marked[24], marked[25]]) - 0xb9;
    marked[24..26].copy_from_slice(&sum.to_be_bytes());
    let plain = udp("10.1.0.1:40001", "192.0.2.90:9000");
    let mut out = wrapped_frame(&plain, FOUR, true);
    for (class, checksum) in [(15, 24), (14 + 28 + 1, 14 + 28 + 10)] {
        out[class] = 0xb9;
        let sum = u16::from_be_bytes([out[checksum], out[checksum + 1]]) - 0xb9;
        out[checksum..checksum + 2].copy_from_slice(&sum.to_be_bytes());
    }
    rows.push(
        row("the class of traffic is that of the packet", &plain)
            .goes_in(marked)
            .opens("acme", &plain)
            .comes_out(out),
    );
    scenario(rows)
}

/// What fits the link with the header before it goes; a byte more does not, in any mode that leaves by a link.
pub(super) fn too_big() -> Scenario {
    let mut rows = Vec::new();
    for (to, outer_bytes) in [
        ("192.0.2.10:8000", 0),
        ("192.0.2.20:8000", 0),
        ("192.0.2.30:9000", 0),
        ("192.0.2.80:9000", 20),
        ("192.0.2.91:9000", 48),
    ] {
        let most = (MTU_BYTES - outer_bytes) as usize;
        let segment = tcp("10.1.0.1:40000", to);
        let told = |segment: &Segment| complain(&segment.bytes(), Complaint::TooBig(most as u32));
        let (one, many) = (segment.clone().ip_bytes(most + 1), segment.ip_bytes(most + 100));
        rows.push(
            row("one byte too many", &one)
                .refused("acme", Reason::TooBig)
                .answered(told(&one)),
        );
        rows.push(
            row("far too many", &many)
                .refused("acme", Reason::TooBig)
                .answered(told(&many)),
        );
    }
    for (segment, backend, by_udp, outer_bytes) in [
        (tcp("10.1.0.1:40000", "192.0.2.80:9000"), FOUR, false, 20),
        (udp("10.1.0.1:40000", "192.0.2.81:9000"), SIX, false, 40),
        (udp("10.1.0.1:40000", "192.0.2.90:9000"), FOUR, true, 28),
        (tcp("10.1.0.1:40000", "192.0.2.91:9000"), SIX, true, 48),
    ] {
        let full = segment.ip_bytes((MTU_BYTES - outer_bytes) as usize);
        rows.push(
            row("to the last byte", &full)
                .opens("acme", &full)
                .comes_out(wrapped_frame(&full, backend, by_udp)),
        );
    }
    let stays = tcp("10.1.0.1:40000", "192.0.2.95:8000").ip_bytes(MTU_BYTES as usize + 50);
    rows.push(
        row("what goes nowhere fits", &stays)
            .opens("acme", &stays)
            .passed(),
    );
    scenario(rows)
}

#[test]
fn in_packets_of_every_family() {
    table().run();
}

#[test]
fn what_does_not_fit_the_link() {
    too_big().run();
}
