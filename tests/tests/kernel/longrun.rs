//! What only shows in the long run: rates that are kept, and counts of connections that never drift.
//!
//! `CONNECTIONS=1000000` sets how many connections are opened and closed.

use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_common::decide::TCP_ACK;
use enforcer_common::schema::{backend_connections, holder_connections, tenant_connections};
use enforcer_tests::packet::{Segment, syn};
use enforcer_tests::random::count;

use crate::bench::Bench;
use crate::privileged;

/// Rates of packets and of bytes per second, and what one packet of the test counts for.
const RATES: [(&str, u64, u64); 12] = [
    ("packetsPerSecond", 1, 1),
    ("packetsPerSecond", 10, 1),
    ("packetsPerSecond", 100, 1),
    ("packetsPerSecond", 1000, 1),
    ("packetsPerSecond", 10_000, 1),
    ("packetsPerSecond", 100_000, 1),
    ("packetsPerSecond", 1_000_000, 1),
    ("packetsPerSecond", 10_000_000, 1),
    ("bytesPerSecond", 10_000, 1000),
    ("bytesPerSecond", 1_000_000, 1000),
    ("bytesPerSecond", 100_000_000, 1000),
    ("bytesPerSecond", 10_000_000_000, 1000),
];
/// How many times the rate is offered.
const OFFERED: u64 = 4;
/// Packets that have to be admitted: enough for one more or less not to matter.
const ADMITTED: u64 = 2000;

fn policy(tenants: &str) -> String {
    format!(
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {{name: long-run}}\nspec:\n  tenants:\n{tenants}  \
         services:\n  - {{name: chat, addresses: [192.0.2.30], port: 9000, protocol: TCP, pools: [main], forward: L2Dsr, \
         limits: {{concurrentConnections: 1000000}}}}\n  \
         pools: [{{name: main, backends: [{{name: gpu-1, address: 10.9.0.1, port: 9000}}]}}]\n  \
         rules: [{{name: all, action: Allow}}]\n"
    )
}

#[test]
fn rates_are_kept_within_a_percent() {
    if !privileged() {
        return;
    }
    let tenant = |(index, (limit, rate, _)): (usize, &(&str, u64, u64))| {
        format!(
            "  - {{name: t{index}, sources: [10.1.{index}.0/24], limits: {{{limit}: {rate}, burst: 1ms}}}}\n"
        )
    };
    let tenants: String = RATES.iter().enumerate().map(tenant).collect();
    let mut bench = Bench::new(&policy(&tenants), 64, |_| {});
    for (index, (limit, rate, units)) in RATES.iter().enumerate() {
        let opening = syn(&format!("10.1.{index}.1:40000"), "192.0.2.30:9000");
        let frame = opening.flags(TCP_ACK).ip_bytes(1000).bytes();
        let begun_ns = bench.rig.now_ns();
        let mut send = |at_ns: u64| {
            bench.rig.set_now(begun_ns + at_ns).unwrap();
            bench.rig.ingress(&frame).unwrap().verdict.forwards()
        };
        // Until the burst is used up: then only the rate is left.
        while send(0) {}
        let span_ns = u128::from(ADMITTED) * u128::from(*units) * 1_000_000_000 / u128::from(*rate);
        let offers = ADMITTED * OFFERED;
        let at = |offer: u64| (span_ns * u128::from(offer) / u128::from(offers)) as u64;
        let admitted = (1..=offers).filter(|offer| send(at(*offer))).count() as u64;
        assert!(
            admitted.abs_diff(ADMITTED) * 100 <= ADMITTED,
            "{limit} {rate}: {admitted} packets instead of {ADMITTED} in {span_ns} ns"
        );
        bench.rig.set_now(begun_ns + span_ns as u64 + 1).unwrap();
    }
}

/// Connections at once, a part of the table.
const AT_ONCE: u64 = 8000;

#[test]
fn connections_are_counted_exactly_however_many_come_and_go() {
    if !privileged() {
        return;
    }
    let tenants = "  - {name: acme, sources: [10.1.0.0/16]}\n  - {name: globex, sources: [10.2.0.0/16]}\n";
    let mut bench = Bench::new(&policy(tenants), 16_384, |_| {});
    let (acme, globex) = (bench.world.tenant("acme"), bench.world.tenant("globex"));
    let group = bench
        .world
        .slots
        .limits
        .iter()
        .map(|(_, group)| group)
        .next()
        .unwrap();
    let client = |network: u64, number: u64| -> Segment {
        let port = 1024 + number % 50_000;
        syn(
            &format!("10.{network}.{}.1:{port}", number % 250),
            "192.0.2.30:9000",
        )
    };
    let expect = |bench: &mut Bench, of_acme: u64, of_globex: u64| {
        let maps = &bench.rig.dataplane().maps;
        let open = |index| maps.open_connections(index).unwrap();
        let all = of_acme + of_globex;
        assert_eq!(
            [
                open(tenant_connections(acme)),
                open(tenant_connections(globex)),
                open(holder_connections(group)),
                open(backend_connections(0)),
            ],
            [of_acme, of_globex, all, all]
        );
    };
    let rounds = count("CONNECTIONS", 64_000) / AT_ONCE;
    for round in 0..rounds.max(1) {
        for number in 0..AT_ONCE {
            // Every fourth is another tenant's; and every packet comes twice, since clients repeat themselves.
            let frame = client(if number % 4 == 0 { 2 } else { 1 }, round * 7919 + number).bytes();
            for _ in 0..2 {
                assert!(bench.rig.ingress(&frame).unwrap().verdict.forwards());
            }
        }
        expect(&mut bench, AT_ONCE / 4 * 3, AT_ONCE / 4);
        for number in 0..AT_ONCE {
            let network = if number % 4 == 0 { 2 } else { 1 };
            if network == 1 || round % 2 == 0 {
                let frame = client(network, round * 7919 + number).rst().bytes();
                assert!(bench.rig.ingress(&frame).unwrap().verdict.forwards());
            }
        }
        bench.rig.sweep().unwrap();
        // What was not reset is still open, and goes when it has been idle for long enough.
        expect(&mut bench, 0, if round % 2 == 0 { 0 } else { AT_ONCE / 4 });
        let later = bench.rig.now_ns() + 3_600_000_000_000;
        bench.rig.set_now(later).unwrap();
        let swept = bench.rig.sweep().unwrap();
        assert_eq!((swept.closed.len() as u64, swept.open), (AT_ONCE, 0));
        expect(&mut bench, 0, 0);
    }
    let tallies = bench.rig.tallies(DIRECTION_INGRESS, 3).unwrap();
    let packets: u64 = tallies.values().map(|tally| tally.packets).sum();
    let resets = rounds * AT_ONCE - rounds / 2 * (AT_ONCE / 4);
    assert_eq!(packets, 2 * rounds * AT_ONCE + resets, "{tallies:?}");
}
