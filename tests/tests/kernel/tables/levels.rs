//! Limits beside those of a tenant: of each tenant on a service, and of a service for all tenants together.

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Segment, syn, udp};

use super::limits::{advance, continues, opens, refused, sent};
use super::{from_backend, homeward};
use crate::bench::{Scenario, Step, row};

/// - `chat`: five connections at once by rate for all together, and two for each tenant; no more than four open, two of each;
/// - `dns`: for all together two packets at once by rate, and responses of 65,535 bytes a second;
/// - `bulk`: for each tenant 65,535 bytes a second.
const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: levels}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16], limits: {newConnectionsPerSecond: 3, burst: 1s}}
  - {name: globex, sources: [10.2.0.0/16]}
  - {name: hooli, sources: [10.3.0.0/16]}
  services:
  - {name: chat, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [main], forward: Dnat,
     limits: {newConnectionsPerSecond: 5, burst: 1s}}
  - {name: side, addresses: [192.0.2.20], port: 8001, protocol: TCP, pools: [main], forward: Dnat}
  - {name: room, addresses: [192.0.2.20], port: 8002, protocol: TCP, pools: [main], forward: Dnat,
     limits: {concurrentConnections: 3}}
  - {name: dns, addresses: [192.0.2.20], port: 53, protocol: UDP, pools: [main], forward: Dnat,
     limits: {packetsPerSecond: 4, responseBytesPerSecond: 65535, burst: 1s}}
  - {name: bulk, addresses: [192.0.2.20], port: 54, protocol: UDP, pools: [main], forward: Dnat}
  pools:
  - {name: main, backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}]}
  rules:
  - {name: two-each, action: Allow, services: {matchNames: [chat]}, limits: {newConnectionsPerSecond: 2, burst: 1s}}
  - {name: two-open, action: Allow, services: {matchNames: [room]}, limits: {concurrentConnections: 2}}
  - {name: bytes-each, action: Allow, services: {matchNames: [bulk]}, limits: {bytesPerSecond: 65535, burst: 1s}}
  - {name: all, action: Allow}
"#;

fn client(network: u8, port: u16, service: u16) -> Segment {
    syn(
        &format!("10.{network}.0.1:{port}"),
        &format!("192.0.2.20:{service}"),
    )
}

pub(super) fn rates() -> Scenario {
    let chat = |network, index: u16| client(network, 40_000 + index, 8000);
    let steps = vec![
        opens("acme", &chat(1, 0)),
        opens("acme", &chat(1, 1)),
        // Two on this service, of the three that it may open anywhere.
        refused("acme", &chat(1, 2), Reason::ConnectionRate),
        opens("acme", &client(1, 41_000, 8001)),
        refused("acme", &client(1, 41_001, 8001), Reason::ConnectionRate),
        // What others do on it is theirs.
        opens("globex", &chat(2, 0)),
        opens("globex", &chat(2, 1)),
        refused("globex", &chat(2, 2), Reason::ConnectionRate),
        opens("hooli", &chat(3, 0)),
        // The fifth was the last for all together.
        refused("hooli", &chat(3, 1), Reason::ServiceConnections),
        opens("hooli", &client(3, 41_000, 8001)),
        continues("hooli", &chat(3, 0).flags(TCP_ACK), 5),
        // The service has one again after 200 ms, each tenant on it after half a second.
        advance(199),
        refused("hooli", &chat(3, 1), Reason::ServiceConnections),
        advance(1),
        refused("acme", &chat(1, 2), Reason::ConnectionRate),
        opens("hooli", &chat(3, 1)),
        advance(300),
        opens("acme", &chat(1, 2)),
    ];
    Scenario::of(POLICY, steps)
}

pub(super) fn packets_and_bytes() -> Scenario {
    let dns = udp("10.1.0.1:40000", "192.0.2.20:53");
    let other = udp("10.2.0.1:40000", "192.0.2.20:53");
    let bulk = udp("10.2.0.1:41000", "192.0.2.20:54").ip_bytes(1400);
    let more = udp("10.3.0.1:41000", "192.0.2.20:54").ip_bytes(1400);
    let answer = from_backend(sent(&dns).answer().ip_bytes(1000));
    let second = from_backend(sent(&other).answer().ip_bytes(1000));
    let steps = vec![
        opens("acme", &dns),
        continues("acme", &dns, 2),
        opens("globex", &other),
        refused("acme", &dns, Reason::ServiceRate),
        refused("globex", &other, Reason::ServiceRate),
        advance(250),
        continues("globex", &other, 1),
        refused("acme", &dns, Reason::ServiceRate),
        // Responses of all together.
        row("a response within the limit", &answer)
            .replies("acme", &homeward(&answer, &dns))
            .times(40)
            .into(),
        row("a response within the limit", &second)
            .replies("globex", &homeward(&second, &other))
            .times(25)
            .into(),
        refused("acme", &answer, Reason::ServiceRate),
        refused("globex", &second, Reason::ServiceRate),
        // Bytes of each.
        opens("globex", &bulk),
        continues("globex", &bulk, 45),
        refused("globex", &bulk, Reason::ByteRate),
        opens("hooli", &more),
        continues("hooli", &more, 45),
        refused("hooli", &more, Reason::ByteRate),
    ];
    Scenario::of(POLICY, steps)
}

pub(super) fn connections_open() -> Scenario {
    let room = |network, index: u16| client(network, 40_000 + index, 8002);
    let steps = vec![
        opens("acme", &room(1, 0)),
        opens("acme", &room(1, 1)),
        refused("acme", &room(1, 2), Reason::Concurrency),
        opens("globex", &room(2, 0)),
        refused("globex", &room(2, 1), Reason::ServiceConnections),
        opens("globex", &client(2, 41_000, 8001)),
        continues("acme", &room(1, 1).rst(), 1),
        Step::Inspect("the sweep counts what has ended", |bench| {
            bench.rig.sweep().unwrap();
        }),
        opens("globex", &room(2, 1)),
        refused("acme", &room(1, 2), Reason::ServiceConnections),
    ];
    Scenario::of(POLICY, steps)
}

/// Whatever rule decides: what a tenant has used of a service it has used, and who is open is counted where it is.
pub(super) fn changes() -> Scenario {
    let chat = |index: u16| client(2, 40_000 + index, 8000);
    let room = |index: u16| client(2, 42_000 + index, 8002);
    let steps = vec![
        opens("globex", &chat(0)),
        opens("globex", &chat(1)),
        opens("globex", &room(0)),
        opens("globex", &room(1)),
        Step::Change("another rule decides, with the same limits", |world| {
            let policy = POLICY
                .replace("name: two-each", "name: still-two")
                .replace("name: two-open", "name: so-two");
            world.set_policy(&policy).unwrap();
        }),
        refused("globex", &chat(2), Reason::ConnectionRate),
        refused("globex", &room(2), Reason::Concurrency),
        Step::Change("the rules have no limits any more", |world| {
            let policy = POLICY
                .replace(", limits: {newConnectionsPerSecond: 2, burst: 1s}", "")
                .replace(", limits: {concurrentConnections: 2}", "");
            world.set_policy(&policy).unwrap();
        }),
        opens("globex", &chat(2)),
        opens("globex", &room(2)),
        refused("globex", &room(3), Reason::ServiceConnections),
        Step::Change("they have limits again, of which nothing is used", |world| {
            world.set_policy(POLICY).unwrap();
        }),
        opens("globex", &chat(3)),
        opens("globex", &chat(4)),
        refused("globex", &chat(5), Reason::ConnectionRate),
    ];
    Scenario::of(POLICY, steps)
}

#[test]
fn new_connections_of_a_tenant_on_a_service_and_of_a_service() {
    rates().run();
}

#[test]
fn packets_bytes_and_responses_of_a_tenant_on_a_service_and_of_a_service() {
    packets_and_bytes().run();
}

#[test]
fn connections_at_the_same_time_of_a_tenant_on_a_service_and_of_a_service() {
    connections_open().run();
}

#[test]
fn what_is_used_stays_used_when_another_rule_decides() {
    changes().run();
}
