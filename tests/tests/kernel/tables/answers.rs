//! What the senders of refused packets are answered.

use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::decide::{TCP_ACK, TCP_FIN, TCP_SYN};
use enforcer_tests::packet::{Complaint, Segment, complain, reset, syn, tcp, udp};
use enforcer_tests::world::{ANSWERS_PER_SECOND, BACKEND_IFINDEX, INGRESS_IFINDEX, MTU_BYTES};

use super::{from_backend, homeward, onward};
use crate::bench::{Scenario, Step, row};

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: answers}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"]}
  - {name: globex, sources: [10.2.0.0/16]}
  - {name: slow, sources: [10.3.0.0/16], limits: {newConnectionsPerSecond: 1, packetsPerSecond: 2}}
  - {name: initech, sources: [10.4.0.0/16, "2001:db8:1:4::/64"]}
  services:
  - {name: resets, addresses: [192.0.2.10, "2001:db8::10"], port: 8000, protocol: TCP, pools: [main], forward: Nat,
     onRefusal: Reset}
  - {name: resets-udp, addresses: [192.0.2.10, "2001:db8::10"], port: 53, protocol: UDP, pools: [main], forward: Nat,
     onRefusal: Reset}
  - {name: says, addresses: [192.0.2.20, "2001:db8::20"], port: 8000, protocol: TCP, pools: [main], forward: Dnat,
     onRefusal: Prohibited}
  - {name: drops, addresses: [192.0.2.30, "2001:db8::30"], port: 8000, protocol: TCP, pools: [main], forward: Dnat}
  pools:
  - name: main
    backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}, {name: gpu-6, address: "2001:db8:9::1", port: 9000}]
  rules:
  - {name: not-acme, action: Deny, tenants: {matchNames: [acme]}}
  - {name: all, action: Allow, tenants: {matchNames: [slow, initech]}}
"#;

fn rows_of_resets() -> Vec<Step> {
    let v4 = |flags| tcp("10.1.0.1:40000", "192.0.2.10:8000").flags(flags);
    let v6 = |flags| tcp("[2001:db8:1::1]:40000", "[2001:db8::10]:8000").flags(flags);
    let segments = [
        ("the first packet of a connection", v4(TCP_SYN)),
        ("one in the middle", v4(TCP_ACK).payload(101)),
        ("one that ends", v4(TCP_FIN | TCP_ACK).payload(3)),
        ("one without an acknowledgment", v4(TCP_FIN).payload(7)),
        ("behind two VLAN tags", v4(TCP_SYN).vlan(5).vlan(6)),
        ("behind options", v4(TCP_SYN).options(&[1, 1, 1, 0])),
        ("over IPv6", v6(TCP_SYN)),
        ("over IPv6 in the middle", v6(TCP_ACK).payload(1400)),
        (
            "behind an extension header",
            v6(TCP_SYN).extension(0, &[0, 0, 1, 4, 0, 0, 0, 0]).payload(5),
        ),
    ];
    let answered = |(what, segment): (&'static str, Segment)| {
        let answer = reset(&segment.bytes());
        Step::from(
            row(what, &segment)
                .refused("acme", Reason::RuleDeny)
                .answered(answer),
        )
    };
    let mut steps: Vec<Step> = segments.into_iter().map(answered).collect();
    steps.push(
        row("a reset is never answered", &v4(TCP_ACK).rst())
            .refused("acme", Reason::RuleDeny)
            .into(),
    );
    steps
}

fn rows_of_complaints() -> Vec<Step> {
    let segments = [
        ("said by ICMP", syn("10.1.0.1:40001", "192.0.2.20:8000")),
        (
            "behind a VLAN tag",
            syn("10.1.0.1:40001", "192.0.2.20:8000").vlan(9),
        ),
        (
            "behind options",
            syn("10.1.0.1:40001", "192.0.2.20:8000").options(&[1; 40]),
        ),
        (
            "with a payload",
            tcp("10.1.0.1:40001", "192.0.2.20:8000").payload(900),
        ),
        (
            "over IPv6",
            syn("[2001:db8:1::1]:40001", "[2001:db8::20]:8000").payload(33),
        ),
        (
            "behind more extension headers than are quoted",
            syn("[2001:db8:1::1]:40001", "[2001:db8::20]:8000")
                .extension(0, &[0; 8])
                .extension(60, &[&[0, 9][..], &[1, 76], &[0; 76]].concat()),
        ),
        (
            "UDP where TCP would be reset",
            udp("10.1.0.1:40001", "192.0.2.10:53").payload(7),
        ),
        (
            "the same over IPv6",
            udp("[2001:db8:1::1]:40001", "[2001:db8::10]:53"),
        ),
    ];
    let answered = |(what, segment): (&'static str, Segment)| {
        let answer = complain(&segment.bytes(), Complaint::Prohibited);
        Step::from(
            row(what, &segment)
                .refused("acme", Reason::RuleDeny)
                .answered(answer),
        )
    };
    segments.into_iter().map(answered).collect()
}

pub(super) fn table() -> Scenario {
    let mut steps = rows_of_resets();
    steps.push(Step::Advance(Duration::from_secs(1)));
    steps.extend(rows_of_complaints());
    let dropped = syn("10.1.0.1:40000", "192.0.2.30:8000");
    steps.push(
        row("where the policy says nothing", &dropped)
            .refused("acme", Reason::RuleDeny)
            .into(),
    );
    let stranger = syn("198.51.100.7:40000", "192.0.2.10:8000");
    let answer = reset(&stranger.bytes());
    steps.push(
        row("a stranger", &stranger)
            .refused("", Reason::UnknownTenant)
            .answered(answer)
            .into(),
    );
    for source in ["224.0.0.5:1", "255.255.255.255:1", "127.0.0.1:1", "0.0.0.0:1"] {
        let nobody = syn(source, "192.0.2.10:8000");
        steps.push(
            row("from no host's address", &nobody)
                .refused("", Reason::UnknownTenant)
                .into(),
        );
    }
    for source in ["[ff02::1]:1", "[::1]:1", "[::]:1"] {
        let nobody = syn(source, "[2001:db8::10]:8000");
        steps.push(
            row("from no host's address", &nobody)
                .refused("", Reason::UnknownTenant)
                .into(),
        );
    }
    Scenario::of(POLICY, steps)
}

/// Each tenant has answers of its own, strangers have theirs together, and when they are used up the rest is dropped.
pub(super) fn bounded() -> Scenario {
    let mut steps: Vec<Step> = Vec::new();
    for (tenant, source, reason) in [
        ("acme", "10.1.0.1:40000", Reason::RuleDeny),
        ("globex", "10.2.0.1:40000", Reason::NoRule),
        ("", "198.51.100.7:40000", Reason::UnknownTenant),
    ] {
        let segment = syn(source, "192.0.2.10:8000");
        let refused = row("refused again and again", &segment).refused(tenant, reason);
        let answer = reset(&segment.bytes());
        steps.push(
            refused
                .clone()
                .answered(answer.clone())
                .times(ANSWERS_PER_SECOND)
                .into(),
        );
        steps.push(refused.clone().times(3).into());
    }
    steps.push(Step::Advance(Duration::from_secs(1) / ANSWERS_PER_SECOND));
    let other = syn("198.51.100.8:40000", "192.0.2.10:8000");
    let refused = row("one is due again, to whichever stranger", &other).refused("", Reason::UnknownTenant);
    steps.push(refused.clone().answered(reset(&other.bytes())).into());
    steps.push(refused.into());
    Scenario::of(POLICY, steps)
}

/// What is over a rate of new connections is told so; what belongs to an open connection is not cut off.
pub(super) fn rates() -> Scenario {
    let first = syn("10.3.0.1:40000", "192.0.2.20:8000");
    let second = syn("10.3.0.1:40001", "192.0.2.20:8000");
    let data = first.clone().flags(TCP_ACK);
    let out = |segment: &Segment| onward(segment, "10.3.0.1:40000", "10.9.0.1:9000");
    let told = complain(&second.bytes(), Complaint::Prohibited);
    let big = tcp("10.4.0.1:40000", "192.0.2.30:8000").ip_bytes(MTU_BYTES as usize + 1);
    let too_big = complain(&big.bytes(), Complaint::TooBig(MTU_BYTES));
    Scenario::of(
        POLICY,
        vec![
            row("opened", &first).opens("slow", &out(&first)).into(),
            row("over the rate of connections", &second)
                .refused("slow", Reason::ConnectionRate)
                .answered(told)
                .into(),
            row("used", &data).continues("slow", &out(&data)).into(),
            row("over the rate of packets", &data)
                .refused("slow", Reason::PacketRate)
                .into(),
            row("too big is said whatever the policy says of refusals", &big)
                .refused("initech", Reason::TooBig)
                .answered(too_big)
                .into(),
        ],
    )
}

/// Nothing is known of the client's link; it takes whole replies; it is too small for them; and it is small only among
/// others that are smaller still.
pub(super) fn replies() -> Scenario {
    let mut steps: Vec<Step> = Vec::new();
    let (v4, v6) = (
        syn("10.4.0.1:40000", "192.0.2.30:8000"),
        syn("[2001:db8:1:4::1]:40000", "[2001:db8::30]:8000"),
    );
    let pairs = [
        (&v4, tcp("10.9.0.1:9000", "10.4.0.1:40000")),
        (&v6, tcp("[2001:db8:9::1]:9000", "[2001:db8:1:4::1]:40000")),
    ];
    for (opening, reply) in &pairs {
        let out = onward(opening, &opening.from.to_string(), &reply.from.to_string());
        steps.push(row("opened", opening).opens("initech", &out).into());
    }
    let fits = |reply: &Segment, opening: &Segment, bytes: usize| {
        let reply = from_backend(reply.clone().ip_bytes(bytes));
        let home = homeward(&reply, opening);
        Step::from(row("a reply that fits", &reply).replies("initech", &home))
    };
    let rows = |steps: &mut Vec<Step>, mtu_bytes: usize| {
        for (opening, reply) in &pairs {
            steps.push(fits(reply, opening, mtu_bytes));
            let big = from_backend(reply.clone().ip_bytes(mtu_bytes + 1));
            let told = complain(&big.bytes(), Complaint::TooBig(mtu_bytes as u32));
            let row = row("one that does not", &big).refused("initech", Reason::TooBig);
            steps.push(row.answered(told).into());
        }
    };
    for (opening, reply) in &pairs {
        steps.push(fits(reply, opening, 3000));
    }
    steps.push(Step::Change("the client's link is small", |world| {
        world.host.links = [(INGRESS_IFINDEX, 1400), (BACKEND_IFINDEX, MTU_BYTES)].into();
    }));
    rows(&mut steps, 1400);
    steps.push(Step::Change("another is smaller", |world| {
        world.host.links = [(INGRESS_IFINDEX, 1500), (BACKEND_IFINDEX, 1280)].into();
    }));
    rows(&mut steps, 1500);
    steps.push(Step::Change("it is not known any more", |world| {
        world.host.links = [(BACKEND_IFINDEX, 1280)].into();
    }));
    for (opening, reply) in &pairs {
        steps.push(fits(reply, opening, 3000));
    }
    Scenario::of(POLICY, steps)
}

/// What back ends are told they are told as often as their tenant's other answers, and a reset not at all.
pub(super) fn replies_bounded() -> Scenario {
    let opening = syn("10.4.0.1:40000", "192.0.2.30:8000");
    let out = onward(&opening, "10.4.0.1:40000", "10.9.0.1:9000");
    let big = from_backend(tcp("10.9.0.1:9000", "10.4.0.1:40000").ip_bytes(1401));
    let told = complain(&big.bytes(), Complaint::TooBig(1400));
    let refused = row("too big again and again", &big).refused("initech", Reason::TooBig);
    let reset = big.clone().rst();
    let mut scenario = Scenario::of(
        POLICY,
        vec![
            row("opened", &opening).opens("initech", &out).into(),
            row("a reset is never answered", &reset)
                .refused("initech", Reason::TooBig)
                .into(),
            refused.clone().answered(told).times(ANSWERS_PER_SECOND).into(),
            refused.into(),
            row("out through the stack, which sees to it itself", &big)
                .replies("initech", &through_stack(&big, &opening))
                .egress()
                .into(),
        ],
    );
    scenario.prepare = |world| world.host.links = [(INGRESS_IFINDEX, 1400)].into();
    scenario
}

/// A reply as it leaves through the stack, which has taken its hop and written the link-layer addresses.
fn through_stack(reply: &Segment, opening: &Segment) -> Segment {
    Segment {
        from: opening.to,
        ..reply.clone()
    }
}

#[test]
fn replies_to_a_smaller_link() {
    replies().run();
}

#[test]
fn back_ends_are_told_within_bounds() {
    replies_bounded().run();
}

#[test]
fn resets_and_complaints() {
    table().run();
}

#[test]
fn answers_are_bounded() {
    bounded().run();
}

#[test]
fn what_is_open_is_not_cut_off() {
    rates().run();
}
