//! Connections for which there is no room, and connections whose back end is lost: as the service says.

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Segment, reset, syn, tcp, udp};
use enforcer_tests::world::{BACKEND_SIDE_MAC, mac_of};

use super::onward;
use crate::bench::{Scenario, Step, row};

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: room}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16], limits: {newConnectionsPerSecond: 10, burst: 1s}}
  - {name: counted, sources: [10.3.0.0/16], limits: {concurrentConnections: 100}}
  - {name: globex, sources: [10.2.0.0/16]}
  services:
  - {name: refuses, addresses: [192.0.2.30], port: 9000, protocol: TCP, pools: [main], forward: L2Dsr}
  - {name: goes-on, addresses: [192.0.2.31], port: 9000, protocol: TCP, pools: [main], forward: L2Dsr,
     onTableFull: Forward}
  - {name: resets, addresses: [192.0.2.32], port: 8000, protocol: TCP, pools: [main, spare], forward: Dnat,
     onIneligible: Reset}
  - {name: moves, addresses: [192.0.2.33], port: 8000, protocol: TCP, pools: [main, spare], forward: Dnat}
  - {name: dns, addresses: [192.0.2.33], port: 53, protocol: UDP, pools: [main, spare], forward: Dnat}
  pools:
  - {name: main, backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}]}
  - {name: spare, backends: [{name: gpu-2, address: 10.9.0.2, port: 9000}]}
  rules:
  - {name: all, action: Allow}
"#;

const ROOM: u32 = 4;

fn direct(network: u8, port: u16, service: u8) -> Segment {
    syn(
        &format!("10.{network}.0.1:{port}"),
        &format!("192.0.2.{service}:9000"),
    )
}

fn relinked(segment: &Segment) -> Segment {
    let address = std::net::Ipv4Addr::new(10, 9, 0, 1);
    segment.clone().link(BACKEND_SIDE_MAC, mac_of(address.into()))
}

fn opens(tenant: &'static str, segment: &Segment) -> Step {
    row("there is room", segment)
        .opens(tenant, &relinked(segment))
        .into()
}

fn refused(tenant: &'static str, segment: &Segment) -> Step {
    row("there is no room", segment)
        .refused(tenant, Reason::TableFull)
        .times(3)
        .into()
}

fn stateless(tenant: &'static str, segment: &Segment, times: u32) -> Step {
    row("there is no room, and it goes on", segment)
        .stateless(tenant, &relinked(segment))
        .times(times)
        .into()
}

pub(super) fn full() -> Scenario {
    let mut steps: Vec<Step> = (0..3)
        .map(|index| opens("globex", &direct(2, 40_000 + index, 30)))
        .collect();
    let kept = direct(1, 40_000, 31);
    steps.extend([
        opens("acme", &kept),
        refused("globex", &direct(2, 41_000, 30)),
        // Nobody would count them.
        refused("counted", &direct(3, 41_000, 31)),
        // Each packet pays as a connection does: ten a second, of which one has been opened.
        stateless("acme", &direct(1, 41_000, 31), 1),
        stateless("acme", &direct(1, 41_000, 31).flags(TCP_ACK), 8),
        row("paid for like connections", &direct(1, 41_000, 31))
            .refused("acme", Reason::ConnectionRate)
            .into(),
        row("what is open goes on", &kept.clone().flags(TCP_ACK))
            .continues("acme", &relinked(&kept.flags(TCP_ACK)))
            .times(5)
            .into(),
        Step::Inspect("they are no open connections", |bench| {
            use enforcer_common::schema::tenant_connections;
            let acme = tenant_connections(bench.world.tenant("acme"));
            assert_eq!(bench.rig.dataplane().maps.open_connections(acme).unwrap(), 1);
        }),
    ]);
    Scenario {
        flow_entries: ROOM,
        ..Scenario::of(POLICY, steps)
    }
}

pub(super) fn shares() -> Scenario {
    let steps = vec![
        opens("globex", &direct(2, 40_000, 30)),
        opens("globex", &direct(2, 40_001, 30)),
        refused("globex", &direct(2, 40_002, 30)),
        stateless("globex", &direct(2, 40_002, 31), 5),
        // What one tenant floods takes nothing from another.
        opens("acme", &direct(1, 40_000, 30)),
        opens("acme", &direct(1, 40_001, 31)),
        refused("acme", &direct(1, 40_002, 30)),
        row(
            "its own port again is no further one",
            &direct(2, 40_000, 30).flags(TCP_ACK),
        )
        .continues("globex", &relinked(&direct(2, 40_000, 30).flags(TCP_ACK)))
        .into(),
    ];
    Scenario {
        prepare: |world| world.host.flows_per_tenant = 2,
        ..Scenario::of(POLICY, steps)
    }
}

const MAIN: &str = "10.9.0.1:9000";
const SPARE: &str = "10.9.0.2:9000";

fn to(segment: &Segment, backend: &str) -> Segment {
    onward(segment, &segment.from.to_string(), backend)
}

pub(super) fn ineligible() -> Scenario {
    let flow = |port: u16, service: u8| syn(&format!("10.2.0.1:{port}"), &format!("192.0.2.{service}:8000"));
    let data = |port: u16, service: u8| flow(port, service).flags(TCP_ACK).payload(10);
    let datagram = udp("10.2.0.1:40000", "192.0.2.33:53");
    let opens =
        |segment: &Segment| -> Step { row("opens", segment).opens("globex", &to(segment, MAIN)).into() };
    let lost = data(40_000, 32);
    let steps = vec![
        opens(&flow(40_000, 32)),
        row("is established", &lost)
            .continues("globex", &to(&lost, MAIN))
            .into(),
        opens(&flow(40_001, 32)),
        opens(&flow(40_002, 33)),
        row("is established", &data(40_002, 33))
            .continues("globex", &to(&data(40_002, 33), MAIN))
            .into(),
        opens(&datagram),
        Step::Change("gpu-1 fails", |world| {
            world.set_backend("gpu-1", |status| status.healthy = false);
        }),
        row("the client is told", &lost)
            .refused("globex", Reason::BackendIneligible)
            .answered(reset(&lost.bytes()))
            .times(2)
            .into(),
        row("nothing was established yet", &flow(40_001, 32))
            .moves("globex", &to(&flow(40_001, 32), SPARE))
            .into(),
        row("the other service moves", &data(40_002, 33))
            .moves("globex", &to(&data(40_002, 33), SPARE))
            .into(),
        row("UDP moves", &datagram)
            .moves("globex", &to(&datagram, SPARE))
            .into(),
        Step::Inspect("what was reset is open no more", |bench| {
            use enforcer_common::schema::tenant_connections;
            bench.rig.sweep().unwrap();
            let globex = tenant_connections(bench.world.tenant("globex"));
            assert_eq!(bench.rig.dataplane().maps.open_connections(globex).unwrap(), 3);
        }),
        row("it tries again", &flow(40_000, 32))
            .opens("globex", &to(&flow(40_000, 32), SPARE))
            .into(),
        row("and is served", &tcp("10.2.0.1:40000", "192.0.2.32:8000"))
            .continues("globex", &to(&tcp("10.2.0.1:40000", "192.0.2.32:8000"), SPARE))
            .into(),
    ];
    Scenario::of(POLICY, steps)
}

#[test]
fn a_full_table_refuses_or_forwards_by_the_service() {
    full().run();
}

#[test]
fn one_tenant_has_no_more_than_its_share_of_the_table() {
    shares().run();
}

#[test]
fn connections_whose_back_end_is_lost_are_moved_or_reset_by_the_service() {
    ineligible().run();
}
