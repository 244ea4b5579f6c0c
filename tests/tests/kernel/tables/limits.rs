//! Limits, counted to the packet under a clock that stands still and then moves.

use std::net::IpAddr;
use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Segment, syn, udp};
use enforcer_tests::world::next_hop;

use super::{from_backend, homeward, onward};
use crate::bench::{Scenario, Step, row};

/// One tenant for each limit, and one without any.
///
/// - `dialler`: ten connections a second, five at once (half a second's worth);
/// - `chatty`: a hundred packets a second, five at once;
/// - `bulky`: 65535 bytes a second, a second's worth at once;
/// - `listener`: the same for its responses;
/// - `crowded`: three connections at the same time;
/// - `tight`: all limits, each a different number at once: packets four, connections six, bytes ten packets of 6000.
const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: limits}
spec:
  tenants:
  - {name: bulky, sources: [10.3.0.0/16], limits: {bytesPerSecond: 65535, burst: 1s}}
  - {name: chatty, sources: [10.2.0.0/16], limits: {packetsPerSecond: 100, burst: 50ms}}
  - {name: crowded, sources: [10.5.0.0/16], limits: {concurrentConnections: 3}}
  - {name: dialler, sources: [10.1.0.0/16], limits: {newConnectionsPerSecond: 10, burst: 500ms}}
  - {name: free, sources: [10.9.66.0/24]}
  - {name: listener, sources: [10.4.0.0/16], limits: {responseBytesPerSecond: 65535, burst: 1s}}
  - {name: tight, sources: [10.6.0.0/16],
     limits: {newConnectionsPerSecond: 6, packetsPerSecond: 4, bytesPerSecond: 65535, responseBytesPerSecond: 65535,
              burst: 1s}}
  services:
  - {name: chat, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [main], forward: Dnat}
  - {name: dns, addresses: [192.0.2.20], port: 53, protocol: UDP, pools: [main], forward: Dnat}
  pools:
  - {name: main, backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}]}
  rules:
  - {name: all, action: Allow}
"#;

pub(super) fn sent(segment: &Segment) -> Segment {
    onward(segment, &segment.from.to_string(), "10.9.0.1:9000")
}

pub(super) fn opens(tenant: &'static str, segment: &Segment) -> Step {
    row("opens", segment).opens(tenant, &sent(segment)).into()
}

pub(super) fn continues(tenant: &'static str, segment: &Segment, times: u32) -> Step {
    row("within the limit", segment)
        .continues(tenant, &sent(segment))
        .times(times)
        .into()
}

pub(super) fn refused(tenant: &'static str, segment: &Segment, reason: Reason) -> Step {
    row("over the limit, however often it tries", segment)
        .refused(tenant, reason)
        .times(3)
        .into()
}

fn client(network: u8, port: u16) -> Segment {
    syn(&format!("10.{network}.0.1:{port}"), "192.0.2.20:8000")
}

pub(super) fn advance(milliseconds: u64) -> Step {
    Step::Advance(Duration::from_millis(milliseconds))
}

pub(super) fn connections() -> Scenario {
    let port = |index: u16| client(1, 40_000 + index);
    let mut steps: Vec<Step> = (0..5).map(|index| opens("dialler", &port(index))).collect();
    steps.push(refused("dialler", &port(5), Reason::ConnectionRate));
    steps.push(continues("dialler", &port(0).flags(TCP_ACK), 20));
    // A connection costs 100 ms: after 99 there is none yet, after 100 there is one.
    steps.push(advance(99));
    steps.push(refused("dialler", &port(5), Reason::ConnectionRate));
    steps.push(advance(1));
    steps.push(opens("dialler", &port(5)));
    steps.push(refused("dialler", &port(6), Reason::ConnectionRate));
    steps.push(refused("dialler", &port(0), Reason::ConnectionRate));
    // However long it was silent, it gets no more than the burst.
    steps.push(advance(3_600_000));
    steps.extend((6..11).map(|index| opens("dialler", &port(index))));
    steps.push(refused("dialler", &port(11), Reason::ConnectionRate));
    Scenario::of(POLICY, steps)
}

pub(super) fn packets() -> Scenario {
    let flow = client(2, 40_000);
    let data = flow.clone().flags(TCP_ACK);
    let mut steps = vec![opens("chatty", &flow), continues("chatty", &data, 4)];
    steps.push(refused("chatty", &data, Reason::PacketRate));
    for _ in 0..3 {
        steps.push(advance(10));
        steps.push(continues("chatty", &data, 1));
        steps.push(refused("chatty", &data, Reason::PacketRate));
    }
    steps.push(advance(25));
    steps.push(continues("chatty", &data, 2));
    steps.push(refused("chatty", &data, Reason::PacketRate));
    // The limit is asked before a back end is looked for, and where there is no way to it that costs nothing.
    steps.push(Step::Change("the way to the back end is lost", |world| {
        world.set_backend("gpu-1", |status| status.next_hop = None);
    }));
    steps.push(refused("chatty", &data, Reason::PacketRate));
    steps.push(advance(10));
    steps.push(refused("chatty", &data, Reason::NoNextHop));
    steps.push(Step::Change("it is found again", |world| {
        world.set_backend("gpu-1", |status| {
            status.next_hop = Some(next_hop(IpAddr::from([10, 9, 0, 1])));
        });
    }));
    steps.push(continues("chatty", &data, 1));
    steps.push(refused("chatty", &data, Reason::PacketRate));
    let neighbour = syn("10.9.66.1:40000", "192.0.2.20:8000");
    steps.push(opens("free", &neighbour));
    steps.push(continues("free", &neighbour.flags(TCP_ACK), 30));
    Scenario::of(POLICY, steps)
}

pub(super) fn bytes() -> Scenario {
    let flow = udp("10.3.0.1:40000", "192.0.2.20:53").ip_bytes(1000);
    let small = flow.clone().ip_bytes(535);
    let smaller = flow.clone().ip_bytes(28);
    let steps = vec![
        opens("bulky", &flow),
        continues("bulky", &flow, 64),
        // 65000 of 65535 bytes are gone; what is left is enough for 535 and not for 1000.
        refused("bulky", &flow, Reason::ByteRate),
        continues("bulky", &small, 1),
        refused("bulky", &smaller, Reason::ByteRate),
        advance(100),
        continues("bulky", &flow, 6),
        refused("bulky", &flow, Reason::ByteRate),
        continues("bulky", &small, 1),
        refused("bulky", &smaller, Reason::ByteRate),
    ];
    Scenario::of(POLICY, steps)
}

pub(super) fn responses() -> Scenario {
    let flow = udp("10.4.0.1:40000", "192.0.2.20:53");
    let answer = from_backend(sent(&flow).answer().ip_bytes(1000));
    let reply = |times: u32| -> Step {
        row("a response within the limit", &answer)
            .replies("listener", &homeward(&answer, &flow))
            .times(times)
            .into()
    };
    let stop = || refused("listener", &answer, Reason::ResponseRate);
    let steps = vec![
        opens("listener", &flow),
        reply(65),
        stop(),
        continues("listener", &flow, 10),
        advance(100),
        reply(7),
        stop(),
    ];
    Scenario::of(POLICY, steps)
}

pub(super) fn concurrency() -> Scenario {
    let port = |index: u16| client(5, 40_000 + index);
    let full = |index| refused("crowded", &port(index), Reason::Concurrency);
    let mut steps: Vec<Step> = (0..3).map(|index| opens("crowded", &port(index))).collect();
    steps.push(full(3));
    let finished = port(1).rst();
    steps.push(continues("crowded", &finished, 1));
    // The connection is closed when the sweep has removed it, not before.
    steps.push(full(3));
    // A client may use its own port again all the same: that is no further connection.
    steps.push(opens("crowded", &port(1)));
    steps.push(continues("crowded", &finished, 1));
    steps.push(advance(2_000));
    steps.push(Step::Inspect(
        "the sweep closes the connection that was reset",
        |bench| {
            assert_eq!(bench.rig.sweep().unwrap().closed.len(), 1);
        },
    ));
    steps.push(opens("crowded", &port(3)));
    steps.push(full(4));
    Scenario::of(POLICY, steps)
}

/// The bench looks at every limiter around every refused packet: here each limit in turn is the one that refuses.
pub(super) fn one_refusal_pays_nothing() -> Scenario {
    let port = |index: u16| client(6, 40_000 + index).ip_bytes(1400);
    let data = |index: u16| port(index).flags(TCP_ACK).ip_bytes(3400);
    let mut steps: Vec<Step> = (0..4).map(|index| opens("tight", &port(index))).collect();
    steps.push(refused("tight", &port(4), Reason::PacketRate));
    steps.push(refused("tight", &data(0), Reason::PacketRate));
    steps.push(advance(250));
    steps.push(continues("tight", &data(0), 1));
    steps.push(refused("tight", &data(0), Reason::PacketRate));
    steps.push(Step::Inspect(
        "each limiter holds exactly what the admitted packets cost",
        |bench| {
            use enforcer_common::decide::limiter::Limiter;
            use enforcer_common::schema::tenant_holder;
            let (tight, now_ns) = (bench.world.tenant("tight"), bench.rig.now_ns());
            let maps = &bench.rig.dataplane().maps;
            let ahead = |limiter| maps.limiter(tenant_holder(tight), limiter).unwrap() - now_ns;
            // Four connections at a sixth of a second, and a quarter of a second has passed.
            assert_eq!(ahead(Limiter::Connections), 4 * 166_666_666 - 250_000_000);
            assert_eq!(ahead(Limiter::Packets), 5 * 250_000_000 - 250_000_000);
            // The debt of the first 5600 bytes was paid by then; 3400 bytes at 65535 a second are left.
            assert_eq!(ahead(Limiter::Bytes), 51_880_674);
            assert_eq!(
                maps.limiter(tenant_holder(tight), Limiter::ResponseBytes)
                    .unwrap(),
                0
            );
        },
    ));
    Scenario {
        prepare: |world| {
            let next_hops = world.backends.values_mut();
            for next_hop in next_hops.filter_map(|status| status.next_hop.as_mut()) {
                next_hop.mtu_bytes = 9000;
            }
        },
        ..Scenario::of(POLICY, steps)
    }
}

#[test]
fn new_connections() {
    connections().run();
}

#[test]
fn packets_from_the_client() {
    packets().run();
}

#[test]
fn bytes_from_the_client() {
    bytes().run();
}

#[test]
fn bytes_to_the_client() {
    responses().run();
}

#[test]
fn connections_at_the_same_time() {
    concurrency().run();
}

#[test]
fn a_refused_packet_takes_nothing_from_any_limiter() {
    one_refusal_pays_nothing().run();
}
