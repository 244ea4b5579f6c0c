//! Frames of several buffers: larger than one page, as links with a large MTU bring them.

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Complaint, Segment, complain, reset, syn, tcp, udp};
use enforcer_tests::world::World;

use super::tunnels::{FOUR, wrapped_frame};
use super::{from_backend, homeward, onward};
use crate::bench::{Row, Scenario, row};

/// The MTU of the links to the back ends.
const LARGE_MTU_BYTES: u32 = 9216;
/// Bytes of a full packet.
const LARGE_BYTES: usize = 9000;

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: jumbo}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"]}
  - {name: denied, sources: [10.2.0.0/16, "2001:db8:2::/48"]}
  services:
  - {name: seen, addresses: [192.0.2.20, "2001:db8::20"], port: 8000, protocol: TCP, pools: [main], forward: Dnat,
     onRefusal: Reset}
  - {name: seen-dns, addresses: [192.0.2.20, "2001:db8::20"], port: 53, protocol: UDP, pools: [main], forward: Dnat,
     onRefusal: Prohibited}
  - {name: direct, addresses: [192.0.2.30], port: 9000, protocol: TCP, pools: [main], forward: L2Dsr}
  - {name: inside, addresses: [192.0.2.80, "2001:db8::80"], port: 9000, protocol: TCP, pools: [four], forward: Ipip}
  - {name: by-udp, addresses: [192.0.2.90], port: 9000, protocol: UDP, pools: [four], forward: Gue}
  - {name: stays, addresses: [192.0.2.95], port: 8000, protocol: TCP, pools: [proxies], forward: Local}
  pools:
  - name: main
    backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}, {name: gpu-6, address: "2001:db8:9::1", port: 9000}]
  - {name: four, backends: [{name: gpu-8, address: 10.9.0.8, port: 9000}]}
  - {name: proxies, backends: [{name: proxy-4, address: 192.0.2.95, port: 8000}]}
  rules:
  - {name: acme, action: Allow, tenants: {matchNames: [acme]}}
"#;

fn prepare(world: &mut World) {
    for name in ["gpu-1", "gpu-6", "gpu-8"] {
        world.set_backend(name, |status| {
            if let Some(next_hop) = &mut status.next_hop {
                next_hop.mtu_bytes = LARGE_MTU_BYTES;
            }
        });
    }
}

fn scenario(rows: Vec<Row>) -> Scenario {
    Scenario {
        prepare,
        ..Scenario::of(POLICY, rows.into_iter().map(Into::into).collect())
    }
}

/// Opened, filled, answered, closed off at the length that the header claims.
fn conversation(from: &str, to: &str, backend: &str) -> Vec<Row> {
    let opening = syn(from, to);
    let full = tcp(from, to).flags(TCP_ACK).ip_bytes(LARGE_BYTES);
    let answer = from_backend(onward(&opening, from, backend).answer())
        .flags(TCP_ACK)
        .ip_bytes(LARGE_BYTES);
    let mut short = full.bytes();
    short.pop();
    let carried = short.len() as u64 - 14;
    let padded = [full.bytes(), vec![0; 300]].concat();
    let padded_out = [onward(&full, from, backend).bytes(), vec![0; 300]].concat();
    vec![
        row("a small packet opens a flow", &opening).opens("acme", &onward(&opening, from, backend)),
        row("a large one follows", &full).continues("acme", &onward(&full, from, backend)),
        row("and is answered by one", &answer).replies("acme", &homeward(&answer, &opening)),
        row("with padding of the link", &full)
            .continues("acme", &onward(&full, from, backend))
            .goes_in(padded)
            .comes_out(padded_out),
        crate::bench::raw("with a byte less than the header says", short, carried)
            .refused("", Reason::Malformed),
    ]
}

/// Only what the back end does not send back comes by here.
fn one_way(what: &'static str, segment: &Segment, out: Vec<u8>) -> Row {
    row(what, segment).opens("acme", segment).comes_out(out)
}

pub(super) fn table() -> Scenario {
    let mut rows = conversation("10.1.0.1:40000", "192.0.2.20:8000", "10.9.0.1:9000");
    rows.extend(conversation(
        "[2001:db8:1::1]:40000",
        "[2001:db8::20]:8000",
        "[2001:db8:9::1]:9000",
    ));
    let full = |to| tcp("10.1.0.1:40000", to).flags(TCP_ACK).ip_bytes(LARGE_BYTES);
    let direct = full("192.0.2.30:9000");
    let mut direct_out = onward(&direct, "10.1.0.1:40000", "10.9.0.1:9000");
    (direct_out.to, direct_out.hop_limit) = (direct.to, direct.hop_limit);
    rows.push(one_way("direct server return", &direct, direct_out.bytes()));
    let inside = full("192.0.2.80:9000");
    rows.push(one_way(
        "inside another",
        &inside,
        wrapped_frame(&inside, FOUR, false),
    ));
    let tagged = full("192.0.2.80:9000").vlan(7);
    rows.push(
        row("the same behind a tag", &tagged)
            .continues("acme", &tagged)
            .comes_out(wrapped_frame(&tagged, FOUR, false)),
    );
    let six = tcp("[2001:db8:1::1]:40000", "[2001:db8::80]:9000")
        .flags(TCP_ACK)
        .ip_bytes(LARGE_BYTES);
    rows.push(one_way(
        "IPv6 inside IPv4",
        &six,
        wrapped_frame(&six, FOUR, false),
    ));
    let by_udp = udp("10.1.0.1:40000", "192.0.2.90:9000").ip_bytes(LARGE_BYTES);
    rows.push(one_way("inside UDP", &by_udp, wrapped_frame(&by_udp, FOUR, true)));
    let stays = full("192.0.2.95:8000");
    rows.push(
        row("left to a proxy on this host", &stays)
            .opens("acme", &stays)
            .passed(),
    );
    scenario(rows)
}

/// Answers are small, whatever they answer.
pub(super) fn refused() -> Scenario {
    let mut rows = Vec::new();
    for (from, to) in [
        ("10.2.0.1:40000", "192.0.2.20"),
        ("[2001:db8:2::1]:40000", "[2001:db8::20]"),
    ] {
        let segment = tcp(from, &format!("{to}:8000"))
            .flags(TCP_ACK)
            .ip_bytes(LARGE_BYTES);
        rows.push(
            row("refused and reset", &segment)
                .refused("denied", Reason::NoRule)
                .answered(reset(&segment.bytes())),
        );
        let datagram = udp(from, &format!("{to}:53")).ip_bytes(LARGE_BYTES);
        rows.push(
            row("refused and told so", &datagram)
                .refused("denied", Reason::NoRule)
                .answered(complain(&datagram.bytes(), Complaint::Prohibited)),
        );
    }
    let huge = tcp("10.1.0.1:40000", "192.0.2.20:8000").ip_bytes(LARGE_MTU_BYTES as usize + 1);
    rows.push(
        row("larger than the large link", &huge)
            .refused("acme", Reason::TooBig)
            .answered(complain(&huge.bytes(), Complaint::TooBig(LARGE_MTU_BYTES))),
    );
    scenario(rows)
}

#[test]
fn large_frames_go_every_way() {
    table().run();
}

#[test]
fn large_frames_are_answered_by_small_ones() {
    refused().run();
}
