//! ICMP echo requests to a service's address.

use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::abi::config::LeaseRecord;
use enforcer_tests::packet::{Echo, inspect, syn};
use enforcer_tests::world::ANSWERS_PER_SECOND;

use crate::bench::{Bench, Row, Scenario, Step, raw, row};

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: echo}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"]}
  - {name: globex, sources: [10.2.0.0/16, "2001:db8:2::/48"]}
  - {name: hooli, sources: [10.4.0.0/16]}
  - {name: initech, sources: [10.3.0.0/16]}
  - {name: nets, sources: [0.0.0.0/8, 224.0.0.0/4]}
  services:
  - {name: chat, addresses: [192.0.2.10, "2001:db8::10"], port: 8000, protocol: TCP, pools: [main], forward: Nat,
     answerEcho: true}
  - {name: dns, addresses: [192.0.2.10], port: 53, protocol: UDP, pools: [main], forward: Dnat, answerEcho: true}
  - {name: embed, addresses: [192.0.2.10, 192.0.2.11], port: 8001, protocol: TCP, pools: [main], forward: Nat}
  - {name: mute, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [main], forward: Nat, answerEcho: false}
  - {name: within, addresses: [10.9.0.70], port: 443, protocol: TCP, pools: [main], forward: Nat, answerEcho: true}
  pools:
  - name: main
    backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}, {name: gpu-6, address: "2001:db8:9::1", port: 9000}]
  rules:
  - {name: not-initech, action: Deny, tenants: {matchNames: [initech]}, services: {matchNames: [dns]}}
  - {name: chat, action: Allow, tenants: {matchNames: [acme, hooli, nets]}, services: {matchNames: [chat, within]}}
  - {name: dns, action: Allow, tenants: {matchNames: [globex]}, services: {matchNames: [dns]}}
  - {name: embed, action: Allow, tenants: {matchNames: [initech]}, services: {matchNames: [embed]}}
  protectedNetworks: [10.9.0.0/16]
"#;

fn echo(what: &'static str, request: &Echo) -> Row {
    raw(what, request.bytes(), request.network_bytes())
}

fn answered(what: &'static str, tenant: &'static str, request: &Echo) -> Step {
    let answer = request.answer().bytes();
    inspect(&answer).expect("an answer that adds up");
    assert_eq!(
        answer.len(),
        request.bytes().len(),
        "no answer is larger than the question"
    );
    echo(what, request).echoed(tenant, answer).into()
}

pub(super) fn table() -> Scenario {
    let v4 = || Echo::request("10.1.0.1", "192.0.2.10");
    let v6 = || Echo::request("2001:db8:1::1", "2001:db8::10");
    let mut steps = vec![
        answered("as ping sends it", "acme", &v4().payload(56)),
        answered("over IPv6", "acme", &v6().payload(56)),
        answered("without a payload", "acme", &v4()),
        answered("of an odd length", "acme", &v4().payload(101)),
        answered("of an odd length over IPv6", "acme", &v6().payload(1)),
        answered("as large as the link takes", "acme", &v4().payload(1472)),
        answered("behind two VLAN tags", "acme", &v4().payload(56).vlan(5).vlan(6)),
        answered("behind a VLAN tag over IPv6", "acme", &v6().vlan(9)),
        Step::Advance(Duration::from_secs(1)),
        answered("on its last hop", "acme", &v4().hop_limit(1)),
        answered("with the largest TTL", "acme", &v4().hop_limit(255)),
        answered(
            "of one who may use another service of the address",
            "globex",
            &Echo::request("10.2.0.1", "192.0.2.10"),
        ),
        answered(
            "to a service in a protected network",
            "acme",
            &Echo::request("10.1.0.1", "10.9.0.70"),
        ),
    ];
    let mut broadcast = v4();
    broadcast.link.1 = [0xff; 6];
    let mut cut = v4().bytes();
    // An ICMP header of seven bytes, by the length in the IP header.
    cut[17] = 27;
    let mut coded = v4().bytes();
    coded[35] = 1;
    let mut fragment = v4().payload(56).bytes();
    fragment[20] = 0x20;
    let network_bytes = fragment.len() as u64 - 14;
    let rows = [
        echo(
            "to a service that does not answer",
            &Echo::request("10.1.0.1", "192.0.2.20"),
        ),
        echo(
            "to an address none of whose services answers",
            &Echo::request("10.1.0.1", "192.0.2.11"),
        ),
        echo(
            "to an address of nobody's",
            &Echo::request("10.1.0.1", "192.0.2.99"),
        ),
        echo(
            "into a protected network",
            &Echo::request("10.1.0.1", "10.9.0.71"),
        )
        .refused("", Reason::Bypass),
        echo("with options", &v4().with_options()),
        echo("with an extension header", &v6().with_options()),
        echo("to many", &broadcast),
        echo(
            "an answer",
            &Echo {
                is_answer: true,
                ..v4()
            },
        ),
        echo(
            "an answer over IPv6",
            &Echo {
                is_answer: true,
                ..v6()
            },
        ),
        raw("a header that is cut short", cut, 27),
        raw("a code that means nothing", coded, 28),
        raw("a fragment", fragment, network_bytes).refused("", Reason::FragmentUnsupported),
    ];
    steps.extend(rows.into_iter().map(Step::from));
    Scenario::of(POLICY, steps)
}

/// Who may use none of the services is not answered.
pub(super) fn refusals() -> Scenario {
    let to_vip = |from: &str| Echo::request(from, "192.0.2.10");
    let rows = [
        echo("of a stranger", &to_vip("198.51.100.7")).refused("", Reason::UnknownTenant),
        echo(
            "of a stranger over IPv6",
            &Echo::request("2001:db8:7::7", "2001:db8::10"),
        )
        .refused("", Reason::UnknownTenant),
        echo(
            "of one whom no rule lets in",
            &Echo::request("2001:db8:2::1", "2001:db8::10"),
        )
        .refused("globex", Reason::NoRule),
        echo(
            "of one who may use only a service that does not answer",
            &to_vip("10.3.0.1"),
        )
        .refused("initech", Reason::RuleDeny),
        echo("from no host's address", &to_vip("224.0.0.5")).refused("nets", Reason::UnknownTenant),
        echo("from no host's address", &to_vip("0.0.0.0")).refused("nets", Reason::UnknownTenant),
    ];
    let mut steps: Vec<Step> = rows.into_iter().map(Step::from).collect();
    steps.push(answered("before it is suspended", "hooli", &to_vip("10.4.0.1")));
    steps.push(Step::Change("hooli is suspended", |world| {
        world.suspended.insert("hooli".to_owned());
    }));
    let suspended = echo("of one who is suspended", &to_vip("10.4.0.1"));
    steps.push(suspended.refused("hooli", Reason::Suspended).into());
    steps.push(Step::Change("no back end is healthy", |world| {
        world.set_backend("gpu-1", |status| status.healthy = false);
    }));
    let ill = echo(
        "of one whom nobody could serve",
        &Echo::request("10.1.0.1", "10.9.0.70"),
    );
    steps.push(ill.refused("acme", Reason::NoHealthyBackend).into());
    steps.push(Step::Change("it is well again", |world| {
        world.set_backend("gpu-1", |status| status.healthy = true);
    }));
    steps.push(Step::Inspect("the lease lapses", lapse));
    let late = echo("when nothing passes any more", &to_vip("10.1.0.1"));
    steps.push(late.refused("acme", Reason::LeaseExpired).into());
    Scenario::of(POLICY, steps)
}

fn lapse(bench: &mut Bench) {
    let lease = LeaseRecord {
        everything_until_ns: bench.rig.now_ns() - 1,
        ..LeaseRecord::ZERO
    };
    bench.rig.set_lease(&lease).unwrap();
}

/// Each tenant is answered so often and no more, and as often again as time goes by.
pub(super) fn bounded() -> Scenario {
    let acme = Echo::request("10.1.0.1", "192.0.2.10").payload(56);
    let other = Echo::request("2001:db8:1::5", "2001:db8::10").payload(56);
    let globex = Echo::request("10.2.0.1", "192.0.2.10").payload(56);
    let mut steps: Vec<Step> = (0..ANSWERS_PER_SECOND)
        .map(|_| answered("an echo request", "acme", &acme))
        .collect();
    for request in [&acme, &other] {
        let row = echo("one too many", request);
        steps.push(row.refused("acme", Reason::EchoRate).times(3).into());
    }
    steps.push(answered("another tenant's", "globex", &globex));
    steps.push(Step::Advance(Duration::from_secs(1) / ANSWERS_PER_SECOND));
    steps.push(answered("one is due again", "acme", &other));
    let row = echo("and no more", &acme);
    steps.push(row.refused("acme", Reason::EchoRate).into());
    let nobody = syn("198.51.100.7:40000", "192.0.2.10:8000");
    steps.push(row_of_stranger(&nobody));
    Scenario::of(POLICY, steps)
}

fn row_of_stranger(segment: &enforcer_tests::packet::Segment) -> Step {
    row("a stranger's packet, refused as ever", segment)
        .refused("", Reason::UnknownTenant)
        .into()
}

#[test]
fn echo_requests_are_answered() {
    table().run();
}

#[test]
fn strangers_and_the_refused_are_not_answered() {
    refusals().run();
}

#[test]
fn echo_is_bounded() {
    bounded().run();
}
