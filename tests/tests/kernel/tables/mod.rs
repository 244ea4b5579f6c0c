//! The packet tables. A table is a function that makes a [`Scenario`]: so the rows can be looked at without a kernel.

mod admission;
mod answers;
mod capacity;
mod echo;
mod egress;
mod forward;
mod generations;
mod governors;
mod jumbo;
mod levels;
mod limits;
mod local;
mod related;
mod room;
mod shapes;
mod tunnels;
mod vlans;

use std::collections::BTreeSet;

use enforcer_agent::pure::policy::schedule::closed_rules;
use enforcer_common::Reason;
use enforcer_tests::packet::{CLIENT_MAC, Segment, syn};
use enforcer_tests::world::{BACKEND_SIDE_MAC, INGRESS_IFINDEX, World, mac_of};
use jiff::Timestamp;

use crate::bench::Scenario;

/// One of everything. Every pool but `both` has one back end for each family, so that a row can name it.
pub(crate) const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: packet-tables}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"]}
  - {name: bound, sources: [10.5.0.0/16], labels: {home: mars}}
  - {name: globex, sources: [10.2.0.0/16]}
  - {name: hooli, sources: [10.4.0.0/16]}
  - {name: initech, sources: [10.3.0.0/16]}
  - {name: inside, sources: [10.9.77.0/24]}
  services:
  - {name: chat, addresses: [192.0.2.10, "2001:db8::10"], port: 8000, protocol: TCP, pools: [main], forward: Nat}
  - {name: dns, addresses: [192.0.2.10, "2001:db8::10"], port: 53, protocol: UDP, pools: [main], forward: Nat}
  - {name: seen, addresses: [192.0.2.20, "2001:db8::20"], port: 8000, protocol: TCP, pools: [main], forward: Dnat}
  - {name: seen-dns, addresses: [192.0.2.20, "2001:db8::20"], port: 53, protocol: UDP, pools: [main], forward: Dnat}
  - {name: direct, addresses: [192.0.2.30, "2001:db8::30"], port: 9000, protocol: TCP, pools: [main], forward: L2Dsr}
  - {name: beside, addresses: [192.0.2.40], port: 8000, protocol: TCP, pools: [near], forward: Nat}
  - {name: dark, addresses: [192.0.2.50], port: 8000, protocol: TCP, pools: [unreached], forward: Nat}
  - {name: ill, addresses: [192.0.2.60], port: 8000, protocol: TCP, pools: [sick], forward: Nat}
  - {name: in-four, addresses: [192.0.2.80, "2001:db8::80"], port: 9000, protocol: TCP, pools: [four], forward: Ipip}
  - {name: in-six, addresses: [192.0.2.81, "2001:db8::81"], port: 9000, protocol: UDP, pools: [six], forward: Ipip}
  - {name: by-four, addresses: [192.0.2.90, "2001:db8::90"], port: 9000, protocol: UDP, pools: [four], forward: Gue}
  - {name: by-six, addresses: [192.0.2.91, "2001:db8::91"], port: 9000, protocol: TCP, pools: [six], forward: Gue}
  - {name: stays, addresses: [192.0.2.95, "2001:db8::95"], port: 8000, protocol: TCP, pools: [proxies], forward: Local}
  - {name: closed, addresses: [192.0.2.70], port: 8000, protocol: TCP, pools: [main], forward: Nat}
  pools:
  - name: main
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 9000}
    - {name: gpu-6, address: "2001:db8:9::1", port: 9000}
  - {name: four, backends: [{name: gpu-8, address: 10.9.0.8, port: 9000}]}
  - {name: six, backends: [{name: gpu-7, address: "2001:db8:9::7", port: 9000}]}
  - name: proxies
    backends:
    - {name: proxy-4, address: 192.0.2.95, port: 8000}
    - {name: proxy-6, address: "2001:db8::95", port: 8000}
  - {name: near, backends: [{name: gpu-2, address: 10.9.0.2, port: 9000}]}
  - {name: unreached, backends: [{name: gpu-3, address: 10.9.0.3, port: 9000}]}
  - {name: sick, backends: [{name: gpu-4, address: 10.9.0.4, port: 9000}]}
  rules:
  - {name: all-but-closed, action: Allow, tenants: {matchNames: [acme, bound, hooli, initech, inside]},
     services: {matchNames: [chat, dns, seen, seen-dns, direct, beside, dark, ill, in-four, in-six, by-four, by-six, stays]}}
  - {name: by-day, action: Allow, tenants: {matchNames: [globex]}, services: {matchNames: [seen]},
     schedule: {from: "08:00", to: "20:00"}}
  - {name: not-initech, action: Deny, tenants: {matchNames: [initech]}, services: {matchNames: [chat]}}
  protectedNetworks: [10.9.0.0/16, "2001:db8:9::/64"]
  constraints:
  - {name: home, tenants: {matchLabels: {home: mars}}, requireBackend: {matchLabels: {region: mars}}}
"#;

/// It is night, `hooli` is suspended, `gpu-4` is ill, nobody knows the way to `gpu-3`, and `gpu-2` is on the clients' side.
pub(crate) fn prepare(world: &mut World) {
    let night = Timestamp::UNIX_EPOCH;
    world.closed_rules = closed_rules(&world.policy, night);
    world.suspended.insert("hooli".to_owned());
    world.set_backend("gpu-4", |status| status.healthy = false);
    world.set_backend("gpu-3", |status| status.next_hop = None);
    world.set_backend("gpu-2", |status| {
        if let Some(next_hop) = &mut status.next_hop {
            next_hop.ifindex = INGRESS_IFINDEX;
        }
    });
}

/// The packet as it goes on to a back end: from `from`, to `to`, one hop further.
pub(crate) fn onward(segment: &Segment, from: &str, to: &str) -> Segment {
    let mut out = segment.clone().from(from).to(to).hop_limit(segment.hop_limit - 1);
    // Back ends are in no VLAN, unless a table says so.
    out.vlans.clear();
    let mac = mac_of(out.to.ip());
    out.link(BACKEND_SIDE_MAC, mac)
}

/// A back end's packet as it comes in: from the back end's link to the balancer's.
pub(crate) fn from_backend(segment: Segment) -> Segment {
    let mac = mac_of(segment.from.ip());
    segment.link(mac, BACKEND_SIDE_MAC)
}

/// A reply as it goes to the client: what the client's `opening` packet asked for, answered.
pub(crate) fn homeward(reply: &Segment, opening: &Segment) -> Segment {
    let back = opening.answer();
    Segment {
        link_source: back.link_source,
        link_destination: CLIENT_MAC,
        from: back.from,
        to: back.to,
        hop_limit: reply.hop_limit - 1,
        vlans: back.vlans,
        ..reply.clone()
    }
}

/// The address and port that `Nat` puts in place of a client's at the first try.
pub(crate) fn nat_source(segment: &Segment) -> String {
    let world = World::new(POLICY).expect("the policy of the tables");
    let port = world.first_nat_port(segment);
    if segment.to.is_ipv4() {
        format!("10.9.0.250:{port}")
    } else {
        format!("[2001:db8:9::250]:{port}")
    }
}

/// The packet as `Nat` sends it on.
pub(crate) fn translated(segment: &Segment, to: &str) -> Segment {
    onward(segment, &nat_source(segment), to)
}

/// A client of `acme` that opens a connection to the service `chat`.
pub(crate) fn opening() -> Segment {
    syn("10.1.0.1:40000", "192.0.2.10:8000")
}

fn everything() -> Vec<Scenario> {
    let tables = [
        admission::table,
        admission::open,
        forward::nat,
        forward::dnat,
        forward::direct,
        answers::table,
        answers::bounded,
        answers::rates,
        answers::replies,
        answers::replies_bounded,
        related::table,
        related::bounded,
        echo::table,
        echo::refusals,
        echo::bounded,
        tunnels::table,
        tunnels::too_big,
        jumbo::table,
        jumbo::refused,
        vlans::table,
        vlans::mixed,
        local::table,
        forward::reopening,
        shapes::truncations,
        shapes::lies,
        shapes::link_layer,
        shapes::ip_headers,
        shapes::fragments,
        levels::rates,
        levels::packets_and_bytes,
        levels::connections_open,
        levels::changes,
        limits::connections,
        limits::packets,
        limits::bytes,
        limits::responses,
        limits::concurrency,
        limits::one_refusal_pays_nothing,
        capacity::flow_table,
        capacity::flow_table_behind_nat,
        capacity::ports,
        room::full,
        room::shares,
        room::ineligible,
        egress::table,
        generations::rules,
        generations::back_ends,
        generations::limiters,
        generations::tenants,
        governors::lease_refuses_new,
        governors::lease_refuses_everything,
        governors::quotas,
        governors::shedding,
        governors::sharing,
    ];
    tables.into_iter().map(|table| table()).collect()
}

/// A new reason without a row fails here.
#[test]
fn every_reason_has_a_row() {
    let covered: BTreeSet<Reason> = everything()
        .iter()
        .flat_map(|scenario| scenario.reasons().collect::<Vec<_>>())
        .collect();
    // The tables contradict each other: no policy compiles to that.
    let expected: BTreeSet<Reason> = Reason::ALL
        .iter()
        .copied()
        .filter(|reason| *reason != Reason::Internal)
        .collect();
    assert_eq!(covered, expected);
}
