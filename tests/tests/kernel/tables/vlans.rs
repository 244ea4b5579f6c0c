//! VLAN tags: of clients, of back ends, of both, and of one but not the other.

use std::time::Duration;

use enforcer_agent::pure::compile::VlanTag;
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{BALANCER_MAC, CLIENT_MAC, Error, Segment, syn, udp};
use enforcer_tests::rig::Verdict;
use enforcer_tests::world::{BACKEND_SIDE_MAC, World, mac_of};

use super::tunnels::{FOUR, wrapped_frame};
use super::{POLICY, from_backend, homeward, onward, translated};
use crate::bench::{Row, Scenario, Step, raw, row};

const BACKEND_VLAN: u16 = 20;

fn in_vlan(world: &mut World) {
    for name in ["gpu-1", "gpu-6", "gpu-8"] {
        world.set_backend(name, |status| {
            let hop = status.next_hop.as_mut().expect("the way is known");
            hop.vlan = Some(VlanTag {
                protocol: 0x8100,
                id: BACKEND_VLAN,
            });
        });
    }
}

/// The segment with these tags, outermost first, and no others.
fn tagged(segment: &Segment, vlans: &[u16]) -> Segment {
    Segment {
        vlans: vlans.to_vec(),
        ..segment.clone()
    }
}

fn frame_in_vlan(frame: &[u8], vlans: &[u16]) -> Vec<u8> {
    let tags = vlans
        .iter()
        .flat_map(|id| [[0x81, 0], id.to_be_bytes()])
        .flatten();
    let mut out = frame.to_vec();
    out.splice(12..12, tags);
    out
}

/// A connection in each forward mode, both ways, and errors about it. The client's packets have `client` tags, those towards
/// the back end `backend`; what comes back from there may have others still, and goes home with the client's.
fn conversations(client: &[u16], backend: &[u16], first_port: u16) -> Vec<Row> {
    let mut rows = Vec::new();
    let opening = |from: &str, to: &str, is_udp: bool| {
        let from = format!("{from}:{first_port}");
        let segment = if is_udp {
            udp(&from, to).payload(33)
        } else {
            syn(&from, to)
        };
        tagged(&segment, client)
    };
    for (opening, to, is_nat) in [
        (
            opening("10.1.0.1", "192.0.2.10:8000", false),
            "10.9.0.1:9000",
            true,
        ),
        (
            opening("[2001:db8:1::1]", "[2001:db8::10]:8000", false),
            "[2001:db8:9::1]:9000",
            true,
        ),
        (opening("10.1.0.1", "192.0.2.20:53", true), "10.9.0.1:9000", false),
        (
            opening("[2001:db8:1::1]", "[2001:db8::20]:53", true),
            "[2001:db8:9::1]:9000",
            false,
        ),
    ] {
        let sent = if is_nat {
            translated(&opening, to)
        } else {
            onward(&opening, &opening.from.to_string(), to)
        };
        let sent = tagged(&sent, backend);
        rows.push(row("opened", &opening).opens("acme", &sent));
        for vlans in [backend, &[][..], &[9][..], &[8, 9][..]] {
            let reply = tagged(&from_backend(sent.answer()), vlans);
            let home = homeward(&reply, &opening);
            rows.push(row("a reply, whatever its tags", &reply).replies("acme", &home));
        }
    }
    let direct = opening("10.1.0.1", "192.0.2.30:9000", false);
    let relinked = direct
        .clone()
        .link(BACKEND_SIDE_MAC, mac_of("10.9.0.1".parse().expect("an address")));
    rows.push(row("direct", &direct).opens("acme", &tagged(&relinked, backend)));
    for (to, by_udp) in [("192.0.2.80:9000", false), ("192.0.2.90:9000", true)] {
        let inside = opening("10.1.0.1", to, by_udp);
        let out = frame_in_vlan(&wrapped_frame(&inside, FOUR, by_udp), backend);
        rows.push(
            row("inside another packet", &inside)
                .opens("acme", &inside)
                .comes_out(out),
        );
    }
    rows.extend(errors(client, backend, first_port + 1));
    rows
}

/// The client is told by a router that an answer does not fit, and a back end's router says the same of a request.
fn errors(client: &[u16], backend: &[u16], port: u16) -> Vec<Row> {
    let plain = udp(&format!("10.1.0.1:{port}"), "192.0.2.20:53").payload(30);
    let opening = tagged(&plain, client);
    let sent = onward(&plain, &plain.from.to_string(), "10.9.0.1:9000");
    let answer = from_backend(sent.answer());
    let lowered = answer.clone().hop_limit(answer.hop_limit - 1);
    let of_answer = Error::about(&homeward(&answer, &plain), 0)
        .from("203.0.113.1")
        .link(CLIENT_MAC, BALANCER_MAC);
    let to_backend = Error::about(&lowered, 0)
        .from("203.0.113.1")
        .link(BACKEND_SIDE_MAC, mac_of(sent.to.ip()))
        .hop_limit(63);
    let of_request = Error::about(&sent, 12)
        .from("10.9.0.1")
        .link(mac_of(sent.to.ip()), BACKEND_SIDE_MAC);
    let to_client = Error::about(&plain.clone().hop_limit(sent.hop_limit), 12)
        .link(BALANCER_MAC, CLIENT_MAC)
        .hop_limit(63);
    let error = |what, error: &Error, vlans: &[u16]| {
        raw(what, frame_in_vlan(&error.bytes(), vlans), error.network_bytes())
    };
    let out = |error: &Error, vlans: &[u16]| frame_in_vlan(&error.bytes(), vlans);
    // An outer tag of a client has the other EtherType in a segment.
    let home = homeward(&answer, &opening).bytes();
    let mut told = to_client.bytes();
    told.splice(12..12, home[12..12 + 4 * client.len()].iter().copied());
    vec![
        row("opened", &opening).opens("acme", &tagged(&sent, backend)),
        error("an answer is too big for a link", &of_answer, &[5]).related(
            "acme",
            Verdict::Redirect,
            out(&to_backend, backend),
        ),
        error("a request is too big for a link", &of_request, &[6]).related("acme", Verdict::Transmit, told),
    ]
}

fn of_clients(backend: &[u16], first_port: u16) -> Vec<Step> {
    let clients: [&[u16]; 4] = [&[], &[7], &[BACKEND_VLAN], &[7, 8]];
    let ports = (first_port..).step_by(10);
    clients
        .into_iter()
        .zip(ports)
        .flat_map(|(client, port)| {
            let rows = conversations(client, backend, port).into_iter().map(Step::from);
            // So many errors are sent on in a second.
            rows.chain([Step::Advance(Duration::from_secs(1))])
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Back ends in no VLAN, then in one.
pub(super) fn table() -> Scenario {
    let mut steps = of_clients(&[], 41_000);
    steps.push(Step::Change("the back ends are in a VLAN", in_vlan));
    steps.extend(of_clients(&[BACKEND_VLAN], 42_000));
    Scenario {
        flow_entries: 256,
        ..Scenario::of(POLICY, steps)
    }
}

/// Packets of one connection come with other tags than its first: they go on all the same, and replies where the first came
/// from.
pub(super) fn mixed() -> Scenario {
    let opening = tagged(&syn("10.1.0.1:43000", "192.0.2.20:8000"), &[7]);
    let out = |segment: &Segment| {
        tagged(
            &onward(segment, "10.1.0.1:43000", "10.9.0.1:9000"),
            &[BACKEND_VLAN],
        )
    };
    let data = opening.clone().flags(TCP_ACK).payload(101);
    let mut steps: Vec<Step> = vec![row("opened", &opening).opens("acme", &out(&opening)).into()];
    for vlans in [&[][..], &[7][..], &[9][..], &[8, 9][..]] {
        let data = tagged(&data, vlans);
        steps.push(
            row("with other tags", &data)
                .continues("acme", &out(&data))
                .into(),
        );
    }
    let reply = from_backend(out(&opening).answer());
    let home = homeward(&reply, &opening);
    steps.push(row("the reply", &reply).replies("acme", &home).into());
    Scenario {
        prepare: in_vlan,
        ..Scenario::of(POLICY, steps)
    }
}

#[test]
fn tags_are_those_of_the_link_that_a_frame_leaves_by() {
    table().run();
}

#[test]
fn tags_may_change_within_a_connection() {
    mixed().run();
}
