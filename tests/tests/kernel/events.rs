//! The ring buffer: what an event tells, and that none is lost without being counted.

use enforcer_agent::adapters::dataplane::Tally;
use enforcer_common::Reason;
use enforcer_common::abi::event::{
    EVENT_FLOW_MOVED, EVENT_FLOW_OPENED, EVENT_REFUSED, EVENT_WINDOW_SHIFT, EventRecord,
};
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_common::schema::EVENT_BYTES;
use enforcer_tests::packet::{Segment, syn};

use crate::bench::{Bench, FLOWS};
use crate::privileged;

/// A header of eight bytes goes before each event.
const EVENTS_THAT_FIT: u64 = EVENT_BYTES as u64 / (size_of::<EventRecord>() as u64 + 8);

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: events}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16]}
  - {name: globex, sources: [10.2.0.0/16]}
  services:
  - {name: chat, addresses: [192.0.2.10], port: 8000, protocol: TCP, pools: [main], forward: Nat}
  pools:
  - name: main
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 9000}
    - {name: gpu-2, address: 10.9.0.2, port: 9000}
  rules:
  - {name: trial, action: Deny, mode: Shadow, priority: 9, tenants: {matchNames: [acme]}}
  - {name: not-globex, action: Deny, tenants: {matchNames: [globex]}}
  - {name: all, action: Allow}
"#;

fn bench(events_per_window: u64) -> Bench {
    Bench::new(POLICY, FLOWS, |world| {
        world.host.events_per_window = events_per_window;
    })
}

fn send(bench: &mut Bench, segment: &Segment) {
    bench.rig.ingress(&segment.bytes()).unwrap();
    bench.sent[DIRECTION_INGRESS as usize] += 1;
}

fn rule(bench: &Bench, name: &str) -> u32 {
    let rules = &bench.world.directory.rules;
    let (number, _) = rules.iter().find(|(_, rule)| rule.name == name).unwrap();
    number + 1
}

#[test]
fn events_name_rule_shadow_back_end_and_translation() {
    if !privileged() {
        return;
    }
    let mut bench = bench(100);
    let opening = syn("10.1.0.1:40000", "192.0.2.10:8000").payload(5);
    let denied = syn("10.2.0.1:40000", "192.0.2.10:8000");
    send(&mut bench, &opening);
    send(&mut bench, &denied);
    let events = bench.rig.events();
    let [opened, refused] = &events[..] else {
        panic!("{events:#?}")
    };
    let flow = bench.rig.dataplane().maps.flow(&opening.key()).unwrap().unwrap();
    let (trial, all, not_globex) = (
        rule(&bench, "trial"),
        rule(&bench, "all"),
        rule(&bench, "not-globex"),
    );
    let expected = EventRecord {
        now_ns: bench.rig.now_ns(),
        generation: 1,
        key: opening.key(),
        translated_port_be: flow.translated_port_be,
        reserved: 0,
        kind: EVENT_FLOW_OPENED,
        reason: Reason::Allowed as u32,
        tenant: bench.world.tenant("acme"),
        service: 1,
        rule: all,
        backend: flow.backend + 1,
        shadow_rule: trial,
        shadow_reason: Reason::RuleDeny as u32,
        bytes: 45,
        direction: DIRECTION_INGRESS,
        cpu: opened.cpu,
    };
    assert_eq!(*opened, expected);
    assert_eq!(
        u16::from_be(flow.translated_port_be),
        bench.world.first_nat_port(&opening)
    );
    let expected = EventRecord {
        key: denied.key(),
        translated_port_be: 0,
        kind: EVENT_REFUSED,
        reason: Reason::RuleDeny as u32,
        tenant: bench.world.tenant("globex"),
        rule: not_globex,
        backend: 0,
        shadow_rule: 0,
        shadow_reason: 0,
        bytes: 40,
        cpu: refused.cpu,
        ..expected
    };
    assert_eq!(*refused, expected);

    // The back end fails: the flow moves under the next generation, and the event says where to.
    let own = if flow.backend == bench.world.backend("gpu-1") {
        "gpu-1"
    } else {
        "gpu-2"
    };
    bench.world.set_backend(own, |status| status.healthy = false);
    bench.apply();
    send(&mut bench, &opening);
    let events = bench.rig.events();
    let [moved] = &events[..] else {
        panic!("{events:#?}")
    };
    let other = if own == "gpu-1" { "gpu-2" } else { "gpu-1" };
    assert_eq!((moved.kind, moved.generation), (EVENT_FLOW_MOVED, 2));
    assert_eq!(moved.backend, bench.world.backend(other) + 1);
}

fn refusals(bench: &mut Bench) -> Tally {
    let globex = bench.world.tenant("globex");
    let maps = &bench.rig.dataplane().maps;
    maps.tallies(DIRECTION_INGRESS, globex).unwrap()[Reason::RuleDeny as usize]
}

/// The share of one window is per CPU: the test stays on one.
#[test]
fn a_flood_is_aggregated_and_the_next_window_speaks_again() {
    if !privileged() {
        return;
    }
    crate::contention::stay_on_one_cpu();
    let mut bench = bench(3);
    let denied = syn("10.2.0.1:40000", "192.0.2.10:8000");
    let window_ns = 1_u64 << EVENT_WINDOW_SHIFT;
    let first_ns = (bench.rig.now_ns() / window_ns + 1) * window_ns;
    for (window, packets) in [(0, 10), (0, 1), (1, 2), (1, 2), (5, 4)] {
        bench
            .rig
            .set_now(first_ns + window * window_ns + window_ns - 1)
            .unwrap();
        (0..packets).for_each(|_| send(&mut bench, &denied));
    }
    let tally = refusals(&mut bench);
    // Eleven in the first window, four in the second, four in the sixth; three of each spoke.
    assert_eq!(
        (tally.packets, tally.recorded, tally.aggregated, tally.lost),
        (19, 9, 10, 0)
    );
    bench.conserves();
}

#[test]
fn a_full_ring_buffer_loses_events_and_counts_them() {
    if !privileged() {
        return;
    }
    let mut bench = bench(u64::MAX);
    let denied = syn("10.2.0.1:40000", "192.0.2.10:8000");
    let packets = EVENTS_THAT_FIT + 500;
    (0..packets).for_each(|_| send(&mut bench, &denied));
    let tally = refusals(&mut bench);
    assert_eq!((tally.packets, tally.aggregated), (packets, 0));
    assert_eq!(tally.recorded + tally.lost, packets);
    assert!(
        (1..=501).contains(&tally.lost),
        "{} of {EVENTS_THAT_FIT} fit",
        tally.recorded
    );
    bench.conserves();
    // There is room again once it was drained.
    send(&mut bench, &denied);
    assert_eq!(refusals(&mut bench).lost, tally.lost);
    bench.conserves();
}
