//! The cache of flows: it is used, nothing is lost in it, and what it says is never out of date.

use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData};
use enforcer_agent::adapters::dataplane::map_directory;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::cache::{CachedFlow, TICK_NS};
use enforcer_common::abi::flow::{FLOW_FIN, FlowRecord};
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Segment, syn};
use enforcer_tests::rig::{TIMEOUTS, Way};
use enforcer_tests::world::World;

use crate::bench::{Bench, FLOWS};
use crate::contention::{cpus, pin, stay_on_one_cpu};
use crate::privileged;
use crate::sweep::pinned;
use crate::tables::{POLICY, prepare};

/// Two back ends of one pool, any of which a flow may get.
const TWO: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: two}
spec:
  tenants: [{name: acme, sources: [10.1.0.0/16]}]
  services: [{name: direct, addresses: [192.0.2.30], port: 9000, protocol: TCP, pools: [main], forward: L2Dsr}]
  pools:
  - name: main
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 9000}
    - {name: gpu-2, address: 10.9.0.2, port: 9000}
  rules: [{name: all, action: Allow, tenants: {matchNames: [acme]}, services: {matchNames: [direct]}}]
"#;

fn bench(way: Way, policy: &str, prepare: fn(&mut World)) -> Option<Bench> {
    privileged().then(|| {
        stay_on_one_cpu();
        Bench::by(way, policy, FLOWS, prepare)
    })
}

fn usual() -> Option<Bench> {
    bench(Way::Xdp, POLICY, prepare)
}

fn send(bench: &mut Bench, segment: &Segment) {
    let ran = bench.rig.ingress(&segment.bytes()).unwrap();
    bench.sent[0] += 1;
    assert!(ran.verdict.forwards(), "{segment:?}: {:?}", ran.verdict);
}

fn ack(segment: &Segment) -> Segment {
    segment.clone().flags(TCP_ACK)
}

fn direct() -> Segment {
    syn("10.1.0.1:7", "192.0.2.30:9000")
}

/// What the flow table says without the cache.
fn record(bench: &Bench, segment: &Segment) -> FlowRecord {
    let directory = map_directory(&bench.rig.lab().pin_directory());
    let flows: HashMap<MapData, FlowKey, FlowRecord> = pinned(&directory, "FLOWS", Map::HashMap);
    flows.get(&segment.key(), 0).unwrap()
}

/// What all CPUs remember of a flow.
fn remembered(bench: &Bench, segment: &Segment) -> Vec<CachedFlow> {
    let directory = map_directory(&bench.rig.lab().pin_directory());
    let cache: Array<MapData, CachedFlow> = pinned(&directory, "FLOW_CACHE", Map::Array);
    let entries = cache.iter().map(Result::unwrap);
    entries
        .filter(|entry| entry.generation != 0 && entry.differs(&segment.key()) == 0)
        .collect()
}

fn backend_of(bench: &mut Bench, segment: &Segment) -> u32 {
    bench
        .rig
        .dataplane()
        .maps
        .flow(&segment.key())
        .unwrap()
        .unwrap()
        .backend
}

/// Where the frame went: its link-layer destination.
fn next_hop(bench: &mut Bench, segment: &Segment) -> Vec<u8> {
    bench.rig.ingress(&segment.bytes()).unwrap().frame[..6].to_vec()
}

/// The flow table hears of most packets only later, and whoever asks the agent hears of all of them.
#[test]
fn packets_are_counted_in_the_cache_and_none_is_lost() {
    for way in Way::ALL {
        let Some(mut bench) = bench(way, POLICY, prepare) else {
            return;
        };
        let flow = direct();
        send(&mut bench, &flow);
        for _ in 0..5 {
            send(&mut bench, &ack(&flow));
        }
        assert_eq!(record(&bench, &flow).packets, 2, "{way:?}: the cache took over");
        let entries = remembered(&bench, &flow);
        assert_eq!(entries.iter().map(|entry| entry.packets).collect::<Vec<_>>(), [4]);
        let maps = &bench.rig.dataplane().maps;
        let seen = maps.flow(&flow.key()).unwrap().unwrap();
        assert_eq!((seen.packets, seen.bytes), (6, 6 * flow.network_bytes()));
        assert_eq!(maps.flows(9).unwrap(), [(flow.key(), seen)]);

        // A tick later the flow table is asked again, and told.
        let now_ns = bench.rig.now_ns() + TICK_NS;
        bench.rig.set_now(now_ns).unwrap();
        send(&mut bench, &ack(&flow));
        let record = record(&bench, &flow);
        assert_eq!((record.packets, record.bytes), (7, 7 * flow.network_bytes()));
        assert_eq!(record.seen_ns, now_ns);
        assert_eq!(remembered(&bench, &flow)[0].packets, 0);
    }
}

/// What is in steady use does not expire, however long it is in use and whatever its timeout.
#[test]
fn a_flow_in_use_does_not_expire() {
    let Some(mut bench) = usual() else { return };
    let flow = direct();
    send(&mut bench, &flow);
    let end_ns = bench.rig.now_ns() + 2 * TIMEOUTS.tcp_established.as_nanos() as u64;
    while bench.rig.now_ns() < end_ns {
        let now_ns = bench.rig.now_ns() + Duration::from_secs(1).as_nanos() as u64;
        bench.rig.set_now(now_ns).unwrap();
        send(&mut bench, &ack(&flow));
        assert_eq!(bench.rig.sweep().unwrap().open, 1);
    }
}

/// The end of a connection is seen although its packets were not looked up, and so is a packet after it.
#[test]
fn the_end_of_a_connection_goes_to_the_flow_table() {
    let Some(mut bench) = usual() else { return };
    let flow = direct();
    for segment in [
        &flow,
        &ack(&flow),
        &ack(&flow),
        &flow.clone().fin(),
        &ack(&flow),
        &ack(&flow),
    ] {
        send(&mut bench, segment);
    }
    let record = record(&bench, &flow);
    assert_eq!((record.packets, record.state & FLOW_FIN), (6, FLOW_FIN));
}

/// A removed flow is forgotten, even by a clock that has gone all the way round since.
#[test]
fn a_removed_flow_is_forgotten() {
    let Some(mut bench) = usual() else { return };
    let flow = direct();
    for segment in [&flow, &ack(&flow), &ack(&flow)] {
        send(&mut bench, segment);
    }
    let start_ns = bench.rig.now_ns();
    bench
        .rig
        .set_now(start_ns + 2 * TIMEOUTS.tcp_established.as_nanos() as u64)
        .unwrap();
    let swept = bench.rig.sweep().unwrap();
    assert_eq!(swept.closed[0].flow.packets, 3, "the cache's are its own");
    assert_eq!(remembered(&bench, &flow), []);
    // The tick of an entry has sixteen bits.
    bench.rig.set_now(start_ns + (TICK_NS << 16)).unwrap();
    bench.rig.events();
    send(&mut bench, &ack(&flow));
    assert_eq!(record(&bench, &flow).packets, 1, "it was opened anew");
    assert_eq!(bench.rig.events().len(), 1);
}

/// What one CPU changes of a flow, another that remembers it does not overlook.
#[test]
fn no_cpu_remembers_an_old_binding() {
    let cpus = cpus();
    let Some(mut bench) = bench(Way::Xdp, TWO, |_| {}) else {
        return;
    };
    let [one, other, ..] = cpus[..] else {
        panic!("two CPUs are needed, and there are {cpus:?}");
    };
    let flow = direct();
    send(&mut bench, &flow);
    let first = backend_of(&mut bench, &flow);
    let name = ["gpu-1", "gpu-2"]
        .into_iter()
        .find(|name| bench.world.backend(name) == first)
        .unwrap();
    bench.world.set_backend(name, |status| status.draining = true);
    bench.apply();
    for cpu in [one, other] {
        pin(cpu);
        for _ in 0..3 {
            send(&mut bench, &ack(&flow));
        }
    }
    assert_eq!(remembered(&bench, &flow).len(), 2, "by both");
    assert_eq!(backend_of(&mut bench, &flow), first, "it drains");
    let before = next_hop(&mut bench, &ack(&flow));
    // The client opens a new connection on the same ports: its back end takes no more.
    pin(one);
    send(&mut bench, &flow);
    assert_ne!(backend_of(&mut bench, &flow), first);
    pin(other);
    assert_ne!(next_hop(&mut bench, &ack(&flow)), before);
    let seen = bench.rig.dataplane().maps.flow(&flow.key()).unwrap().unwrap();
    assert_eq!(seen.packets, 10, "and every packet is counted");
}

/// Flows of one place in the cache take turns, and none of their packets is lost.
#[test]
fn flows_that_share_a_place_lose_nothing() {
    let Some(mut bench) = usual() else { return };
    let flows: Vec<Segment> = (1..=FLOWS as u16)
        .map(|port| syn(&format!("10.1.0.1:{port}"), "192.0.2.30:9000"))
        .collect();
    for flow in &flows {
        send(&mut bench, flow);
    }
    // In turns forwards and backwards, so that each time others come first to what nobody has used for a tick.
    for round in 0..4 {
        let mut order = flows.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        for flow in &order {
            for _ in 0..10 {
                send(&mut bench, &ack(flow));
            }
        }
        let now_ns = bench.rig.now_ns() + TICK_NS;
        bench.rig.set_now(now_ns).unwrap();
    }
    let maps = &bench.rig.dataplane().maps;
    let counts: Vec<u64> = maps
        .flows(usize::MAX)
        .unwrap()
        .iter()
        .map(|(_, flow)| flow.packets)
        .collect();
    assert_eq!(counts, vec![41; FLOWS as usize]);
    let cached = flows
        .iter()
        .filter(|flow| !remembered(&bench, flow).is_empty())
        .count();
    assert!(
        (2..flows.len()).contains(&cached),
        "{cached} are remembered: some are not"
    );
}
