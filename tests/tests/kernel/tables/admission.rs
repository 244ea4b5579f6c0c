//! Who may, and who may not; and what is not ours at all.

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Segment, syn, tcp, udp};

use super::{POLICY, opening, prepare, translated};
use crate::bench::{Scenario, raw, row};

/// Who has 192.0.2.10? An ARP request.
fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0xc1, 0x01, 0x08, 0x06]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([0x02, 0, 0, 0, 0xc1, 0x01, 10, 1, 0, 1]);
    frame.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 10]);
    frame
}

/// The packet's IP header with another protocol in it.
fn with_protocol(segment: &Segment, protocol: u8) -> Vec<u8> {
    let mut frame = segment.bytes();
    frame[if segment.to.is_ipv4() { 14 + 9 } else { 14 + 6 }] = protocol;
    frame
}

pub(super) fn table() -> Scenario {
    let client = opening();
    let to_vip6 = tcp("[2001:db8:1::1]:40000", "[2001:db8::10]:8000");
    let bytes = client.network_bytes();
    let rows = vec![
        raw("ARP", arp(), 28),
        raw(
            "a frame of another protocol, 14 bytes long",
            arp()[..14].to_vec(),
            0,
        ),
        row(
            "a stranger to a stranger",
            &tcp("198.51.100.1:1", "203.0.113.1:443"),
        ),
        row(
            "a tenant to a stranger",
            &tcp("10.1.0.1:40000", "203.0.113.1:443"),
        ),
        row("SSH to the host", &tcp("198.51.100.1:1", "10.9.0.254:22")),
        row("another port of a VIP", &syn("10.1.0.1:40000", "192.0.2.10:22")),
        row(
            "another protocol on the port of a service",
            &udp("10.1.0.1:40000", "192.0.2.10:8000"),
        ),
        raw("ICMP to a VIP", with_protocol(&client, 1), bytes),
        raw(
            "ICMPv6 to a VIP",
            with_protocol(&to_vip6, 58),
            to_vip6.network_bytes(),
        ),
        raw("SCTP to a VIP", with_protocol(&client, 132), bytes),
        row(
            "a stranger to a service",
            &syn("198.51.100.1:1", "192.0.2.10:8000"),
        )
        .refused("", Reason::UnknownTenant),
        row(
            "a stranger to a service, IPv6",
            &syn("[2001:db8:2::1]:1", "[2001:db8::10]:8000"),
        )
        .refused("", Reason::UnknownTenant),
        row(
            "a tenant that no rule names",
            &syn("10.2.0.1:40000", "192.0.2.10:8000"),
        )
        .refused("globex", Reason::NoRule),
        row(
            "a service that no rule names",
            &syn("10.1.0.1:40000", "192.0.2.70:8000"),
        )
        .refused("acme", Reason::NoRule),
        row(
            "a tenant that only a closed rule names",
            &syn("10.2.0.1:40000", "192.0.2.20:8000"),
        )
        .refused("globex", Reason::OutsideSchedule),
        row("a deny wins the tie", &syn("10.3.0.1:40000", "192.0.2.10:8000"))
            .refused("initech", Reason::RuleDeny),
        row("a suspended tenant", &syn("10.4.0.1:40000", "192.0.2.10:8000"))
            .refused("hooli", Reason::Suspended),
        row("no back end on Mars", &syn("10.5.0.1:40000", "192.0.2.10:8000"))
            .refused("bound", Reason::NoCompliantBackend),
        row("every back end is ill", &syn("10.1.0.1:40000", "192.0.2.60:8000"))
            .refused("acme", Reason::NoHealthyBackend),
        row("nobody knows the way", &syn("10.1.0.1:40000", "192.0.2.50:8000"))
            .refused("acme", Reason::NoNextHop),
        row(
            "around the service to a back end",
            &tcp("10.1.0.1:40000", "10.9.0.1:9000"),
        )
        .refused("", Reason::Bypass),
        row("around it by UDP", &udp("198.51.100.1:40000", "10.9.0.1:9000")).refused("", Reason::Bypass),
        row(
            "around it over IPv6",
            &tcp("[2001:db8:1::1]:1", "[2001:db8:9::1]:9000"),
        )
        .refused("", Reason::Bypass),
        raw(
            "a ping to a back end",
            with_protocol(&client.clone().to("10.9.0.1:9000"), 1),
            bytes,
        )
        .refused("", Reason::Bypass),
        row(
            "a back end's packet that is no reply",
            &tcp("10.9.0.1:9000", "10.9.77.1:40000"),
        )
        .refused("", Reason::Bypass),
        row(
            "the host's own address within the protected network",
            &tcp("10.1.0.1:1", "10.9.0.254:443"),
        ),
        row(
            "a packet to the NAT address that is no reply",
            &tcp("10.9.0.1:9000", "10.9.0.250:20000"),
        ),
        row(
            "an ACK without a connection is judged like any other",
            &client.clone().flags(TCP_ACK),
        )
        .opens("acme", &translated(&client.flags(TCP_ACK), "10.9.0.1:9000")),
    ];
    Scenario {
        prepare,
        ..Scenario::of(POLICY, rows.into_iter().map(Into::into).collect())
    }
}

/// What no rule decides is allowed, and IPv4 strangers are somebody; those of IPv6 are a tenant's.
const OPEN_POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: open}
spec:
  defaults: {action: Allow}
  tenants:
  - {name: acme, sources: [10.1.0.0/16]}
  - {name: sixes, sources: ["::/0"]}
  services:
  - {name: chat, addresses: [192.0.2.10, "2001:db8::10"], port: 8000, protocol: TCP, pools: [main], forward: Nat}
  - {name: seen, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [main], forward: Dnat}
  - {name: kept, addresses: [192.0.2.30], port: 8000, protocol: TCP, pools: [main], forward: Nat}
  pools:
  - name: main
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 9000, labels: {region: eu}}
    - {name: gpu-6, address: "2001:db8:9::1", port: 9000, labels: {region: eu}}
  rules:
  - {name: not-acme, action: Deny, tenants: {matchNames: [acme]}, services: {matchNames: [seen]}}
  - {name: nobody, action: Deny, services: {matchNames: [kept]}}
  protectedNetworks: [10.9.0.0/16]
"#;

pub(super) fn open() -> Scenario {
    let stranger = syn("198.51.100.1:40000", "192.0.2.10:8000");
    let six = syn("[2001:db8:2::1]:40000", "[2001:db8::10]:8000");
    let client = opening();
    let rows = vec![
        row("a stranger, whom nothing forbids anything", &stranger)
            .opens("(unknown)", &translated(&stranger, "10.9.0.1:9000")),
        row("a tenant that no rule names here", &client).opens("acme", &translated(&client, "10.9.0.1:9000")),
        row(
            "a tenant that a rule denies it",
            &syn("10.1.0.1:40000", "192.0.2.20:8000"),
        )
        .refused("acme", Reason::RuleDeny),
        row(
            "a rule without a selector of tenants binds strangers as well",
            &syn("198.51.100.1:40000", "192.0.2.30:8000"),
        )
        .refused("(unknown)", Reason::RuleDeny),
        row("a tenant that has every address of its family", &six)
            .opens("sixes", &translated(&six, "[2001:db8:9::1]:9000")),
        row(
            "nothing goes around the services",
            &tcp("198.51.100.1:40000", "10.9.0.1:9000"),
        )
        .refused("", Reason::Bypass),
    ];
    Scenario::of(OPEN_POLICY, rows.into_iter().map(Into::into).collect())
}

#[test]
fn what_no_rule_decides_is_allowed_where_the_policy_says_so() {
    open().run();
}

#[test]
fn who_may_and_what_is_not_ours() {
    table().run();
}
