//! The sweeper: what is idle for too long goes, and the counts of open connections stay exact.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::time::Duration;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use enforcer_agent::adapters::dataplane::{FlowSweeper, map_directory};
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::flow::{FlowRecord, SEEN_LAG_NS};
use enforcer_common::decide::TCP_ACK;
use enforcer_common::schema::{backend_connections, tenant_connections};
use enforcer_tests::packet::{Segment, syn, udp};
use enforcer_tests::rig::TIMEOUTS;

use crate::bench::{Bench, FLOWS};
use crate::privileged;
use crate::tables::{POLICY, from_backend, onward, prepare};

fn bench() -> Option<Bench> {
    privileged().then(|| Bench::new(POLICY, FLOWS, prepare))
}

fn send(bench: &mut Bench, segment: &Segment) {
    let ran = bench.rig.ingress(&segment.bytes()).unwrap();
    bench.sent[0] += 1;
    assert!(ran.verdict.forwards(), "{segment:?}: {:?}", ran.verdict);
}

/// The same flow's answer from the only back end.
fn answer(segment: &Segment) -> Segment {
    from_backend(onward(segment, &segment.from.to_string(), "10.9.0.1:9000").answer())
}

fn client(port: u16) -> Segment {
    syn(&format!("10.1.0.1:{port}"), "192.0.2.20:8000")
}

fn ports(closed: &[enforcer_agent::adapters::dataplane::ClosedFlow]) -> Vec<u16> {
    let mut ports: Vec<u16> = closed
        .iter()
        .map(|flow| u16::from_be(flow.key.source_port_be))
        .collect();
    ports.sort_unstable();
    ports
}

/// One flow in every state; each goes exactly when its timeout has passed.
#[test]
fn flows_expire_by_their_state() {
    let Some(mut bench) = bench() else { return };
    let opening = client(1);
    let half_open = client(2);
    let established = client(3);
    let half_closed = client(4);
    let closed = client(5);
    let reset = client(6);
    let direct = syn("10.1.0.1:7", "192.0.2.30:9000");
    let direct_finished = syn("10.1.0.1:8", "192.0.2.30:9000");
    let datagrams = udp("10.1.0.1:9", "192.0.2.20:53");
    let ack = |segment: &Segment| segment.clone().flags(TCP_ACK);
    for segment in [
        &opening,
        &half_open,
        &established,
        &half_closed,
        &closed,
        &reset,
        &direct,
        &direct_finished,
    ] {
        send(&mut bench, segment);
    }
    for segment in [&half_open, &established, &half_closed, &closed, &reset] {
        send(&mut bench, &answer(segment).syn_ack());
    }
    for segment in [&established, &half_closed, &closed, &reset] {
        send(&mut bench, &ack(segment));
        send(&mut bench, &answer(&ack(segment)));
    }
    send(&mut bench, &half_closed.clone().fin());
    send(&mut bench, &closed.clone().fin());
    send(&mut bench, &answer(&closed).fin());
    send(&mut bench, &answer(&reset).rst());
    send(&mut bench, &ack(&direct));
    send(&mut bench, &direct_finished.clone().fin());
    send(&mut bench, &datagrams);

    let start_ns = bench.rig.now_ns();
    let mut open = 9;
    let lag = Duration::from_nanos(SEEN_LAG_NS);
    for (after, expected) in [
        (TIMEOUTS.tcp_closing, vec![5, 6, 8]),
        (TIMEOUTS.tcp_opening, vec![1, 2]),
        (TIMEOUTS.udp + lag, vec![9]),
        (TIMEOUTS.tcp_established, vec![4]),
        (TIMEOUTS.tcp_established + lag, vec![3, 7]),
    ] {
        let due_ns = start_ns + after.as_nanos() as u64;
        bench.rig.set_now(due_ns - 1).unwrap();
        let early = bench.rig.sweep().unwrap();
        assert_eq!(
            (ports(&early.closed), early.open),
            (vec![], open),
            "one nanosecond before {after:?}"
        );
        bench.rig.set_now(due_ns).unwrap();
        let swept = bench.rig.sweep().unwrap();
        open -= expected.len() as u64;
        assert_eq!(
            (ports(&swept.closed), swept.open),
            (expected, open),
            "after {after:?}"
        );
        assert_eq!(swept.orphans, 0, "a flow goes together with its reply entry");
        let acme = bench.world.tenant("acme");
        let maps = &bench.rig.dataplane().maps;
        assert_eq!(maps.open_connections(tenant_connections(acme)).unwrap(), open);
        assert_eq!(
            maps.replies(usize::MAX).unwrap().len() as u64,
            open - u64::from(open > 0),
            "all but one direct"
        );
    }
}

/// A reply alone keeps its flow alive: a long answer to a short question.
#[test]
fn replies_keep_a_flow_alive() {
    let Some(mut bench) = bench() else { return };
    let question = udp("10.1.0.1:9", "192.0.2.20:53");
    send(&mut bench, &question);
    let timeout_ns = TIMEOUTS.udp.as_nanos() as u64 + SEEN_LAG_NS;
    for _ in 0..5 {
        let now_ns = bench.rig.now_ns() + timeout_ns - 1;
        bench.rig.set_now(now_ns).unwrap();
        send(&mut bench, &answer(&question));
        assert_eq!(bench.rig.sweep().unwrap().open, 1);
    }
    let now_ns = bench.rig.now_ns() + timeout_ns;
    bench.rig.set_now(now_ns).unwrap();
    let swept = bench.rig.sweep().unwrap();
    assert_eq!(swept.closed.len(), 1);
    let reply = swept.closed[0].reply.expect("the other direction");
    assert_eq!((reply.packets, swept.closed[0].flow.packets), (5, 1));
}

pub(crate) fn pinned<T: TryFrom<Map, Error = aya::maps::MapError>>(
    directory: &Path,
    name: &str,
    wrap: fn(MapData) -> Map,
) -> T {
    T::try_from(wrap(MapData::from_pin(directory.join(name)).unwrap())).unwrap()
}

fn set<V: Pod>(directory: &Path, name: &str, index: u32, value: V) {
    let mut map: Array<MapData, V> = pinned(directory, name, Map::Array);
    map.set(index, value, 0).unwrap();
}

fn recount(bench: &mut Bench) {
    let now_ns = bench.rig.now_ns();
    bench.rig.sweeper().recount(|| now_ns).unwrap();
}

/// Counts are right however many flows are opened while they are brought in line, and at whatever moment.
#[test]
fn flows_that_are_opened_during_a_recount_are_counted_once() {
    let Some(mut bench) = bench() else { return };
    send(&mut bench, &client(1));
    let acme = tenant_connections(bench.world.tenant("acme"));
    let gpu = backend_connections(bench.world.backend("gpu-1"));
    let indexes = {
        let maps = map_directory(&bench.rig.lab().pin_directory());
        pinned::<Array<MapData, u64>>(&maps, "CONNECTIONS_OPENED", Map::Array).len()
    };
    let mut sweeper = FlowSweeper::open(&bench.rig.lab().pin_directory(), TIMEOUTS).unwrap();
    // The clock is asked once for each count, and again for one that has changed meanwhile.
    for (number, moment) in [0, gpu, gpu + 1, acme, acme + 1, indexes - 1]
        .into_iter()
        .enumerate()
    {
        let (asked, shared) = (Cell::new(0), RefCell::new(&mut bench));
        let now_ns = || {
            let mut bench = shared.borrow_mut();
            if asked.replace(asked.get() + 1) == moment {
                let now_ns = bench.rig.now_ns() + 1;
                bench.rig.set_now(now_ns).unwrap();
                send(&mut bench, &client(2 + number as u16));
            }
            bench.rig.now_ns()
        };
        sweeper.recount(now_ns).unwrap();
        assert!(asked.get() >= indexes, "every count");
        let maps = &bench.rig.dataplane().maps;
        let open = [acme, gpu].map(|index| maps.open_connections(index).unwrap());
        assert_eq!(
            open,
            [number as u64 + 2; 2],
            "one was opened as count {moment} was read"
        );
    }
}

/// An agent that is killed in the middle of a sweep leaves a reply entry without a flow, and counts that are off.
#[test]
fn remains_of_a_killed_agent_are_repaired() {
    let Some(mut bench) = bench() else { return };
    let (kept, lost) = (client(1), client(2));
    send(&mut bench, &kept);
    send(&mut bench, &lost);
    let directory = map_directory(&bench.rig.lab().pin_directory());
    let mut flows: HashMap<MapData, FlowKey, FlowRecord> = pinned(&directory, "FLOWS", Map::HashMap);
    flows.remove(&lost.key()).unwrap();

    // A reply entry is made before its flow, so that a young one is left alone.
    assert_eq!(bench.rig.sweep().unwrap().orphans, 0);
    let now_ns = bench.rig.now_ns() + Duration::from_secs(1).as_nanos() as u64;
    bench.rig.set_now(now_ns).unwrap();
    let swept = bench.rig.sweep().unwrap();
    assert_eq!((swept.orphans, swept.open, swept.closed.len()), (1, 1, 0));

    let acme = tenant_connections(bench.world.tenant("acme"));
    let gpu = backend_connections(bench.world.backend("gpu-1"));
    let open = |bench: &mut Bench| {
        let maps = &bench.rig.dataplane().maps;
        [acme, gpu].map(|index| maps.open_connections(index).unwrap())
    };
    assert_eq!(open(&mut bench), [2, 2], "nobody counted the flow that vanished");
    recount(&mut bench);
    assert_eq!(open(&mut bench), [1, 1]);
    set(&directory, "CONNECTIONS_CLOSED", gpu, 77_u64);
    recount(&mut bench);
    assert_eq!(open(&mut bench), [1, 1], "and what was never right is made right");
    // Counting again changes nothing.
    recount(&mut bench);
    assert_eq!(open(&mut bench), [1, 1]);
}

/// A connection that has ended counts as closed with the tenant that had it; if its client becomes another tenant's and
/// sends on it again, neither tenant may end up with a count below zero, which would read as more than any limit.
#[test]
fn a_connection_that_ended_and_changed_hands_leaves_no_negative_count() {
    let Some(mut bench) = bench() else { return };
    let flow = client(1);
    send(&mut bench, &flow);
    send(&mut bench, &flow.clone().rst());
    bench.rig.sweep().unwrap();
    let (acme, inside) = (bench.world.tenant("acme"), bench.world.tenant("inside"));
    let open = |bench: &mut Bench| {
        let maps = &bench.rig.dataplane().maps;
        [acme, inside].map(|tenant| maps.open_connections(tenant_connections(tenant)).unwrap())
    };
    assert_eq!(open(&mut bench), [0, 0], "it has ended");
    let handed_over = POLICY
        .replace("10.1.0.0/16", "10.8.0.0/16")
        .replace("10.9.77.0/24", "10.1.0.0/16");
    bench.world.set_policy(&handed_over).unwrap();
    bench.apply();
    send(&mut bench, &flow.clone().flags(TCP_ACK));
    assert_eq!(open(&mut bench), [0, 1], "until the sweep has looked at it");
    bench.rig.sweep().unwrap();
    assert_eq!(open(&mut bench), [0, 0]);
}
