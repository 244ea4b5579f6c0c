//! Packets while generations change: each is judged by one policy from end to end.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use aya::programs::Xdp;
use enforcer_agent::adapters::dataplane::{Dataplane, Settings};
use enforcer_agent::pure::capacity::Capacity;
use enforcer_common::Reason;
use enforcer_common::abi::address::to_octets;
use enforcer_common::abi::event::EventRecord;
use enforcer_tests::packet::syn;
use enforcer_tests::rig::run_xdp;

use crate::bench::Bench;
use crate::privileged;

const TENANTS: u32 = 120;
const CHANGES: u64 = 60;
/// Flows that one thread opens at most; together they fit the flow table.
const PORTS: u32 = 60_000;

/// Network `n` is tenant `n`'s under the first policy, and under the second that of the tenant as far from the end. Rule,
/// pool and limits differ as well, and every tenant has a row of its own.
fn policy(second: bool) -> String {
    let name = if second { "second" } else { "first" };
    let mut text = format!(
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {{name: {name}}}\nspec:\n  tenants:\n"
    );
    for tenant in 0..TENANTS {
        let network = if second { TENANTS - 1 - tenant } else { tenant };
        writeln!(text, "  - {{name: t{tenant:03}, sources: [10.1.{network}.0/24]}}").unwrap();
    }
    writeln!(
        text,
        "  services: [{{name: chat, addresses: [192.0.2.30], port: 9000, protocol: TCP, pools: [{name}], forward: L2Dsr}}]\n  \
         pools:\n  - {{name: first, backends: [{{name: gpu-1, address: 10.9.0.1, port: 9000}}]}}\n  \
         - {{name: second, backends: [{{name: gpu-2, address: 10.9.0.2, port: 9000}}]}}\n  rules:"
    )
    .unwrap();
    for tenant in 0..TENANTS {
        writeln!(
            text,
            "  - {{name: {name}-{tenant:03}, action: Allow, tenants: {{matchNames: [t{tenant:03}]}}}}"
        )
        .unwrap();
    }
    text
}

/// Opens flows from every network until it is told to stop; how many.
fn open_flows(program: &Xdp, stop: &AtomicBool, next: &AtomicU32) -> u32 {
    let mut opened = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= 2 * PORTS {
            break;
        }
        let (network, port) = (number % TENANTS, 1024 + number / TENANTS);
        let frame = syn(&format!("10.1.{network}.9:{port}"), "192.0.2.30:9000").bytes();
        assert!(
            run_xdp(program, &frame).unwrap().verdict.forwards(),
            "both policies allow it"
        );
        opened += 1;
    }
    opened
}

/// What the policy of the event's generation says of its source.
fn check(event: &EventRecord, bench: &Bench, rules: [[u32; TENANTS as usize]; 2]) {
    let second = event.generation.is_multiple_of(2);
    let network = u32::from(to_octets(&event.key.source)[14]);
    let tenant = if second { TENANTS - 1 - network } else { network };
    let name = format!("t{tenant:03}");
    let backend = if second { "gpu-2" } else { "gpu-1" };
    let expected = (
        Reason::Allowed as u32,
        bench.world.tenant(&name),
        rules[usize::from(second)][tenant as usize] + 1,
        bench.world.backend(backend) + 1,
    );
    assert_eq!(
        (event.reason, event.tenant, event.rule, event.backend),
        expected,
        "{name} under generation {}",
        event.generation
    );
}

/// Whole generations follow one another as fast as they can be installed, each written over the last but one, while other
/// CPUs judge packets.
#[test]
fn no_packet_is_judged_by_two_generations() {
    if !privileged() {
        return;
    }
    let mut bench = Bench::new(&policy(false), 262_144, |_| {});
    let rules = |bench: &Bench, prefix: &str| {
        let mut numbers = [0; TENANTS as usize];
        for (number, rule) in &*bench.world.directory.rules {
            let index: usize = rule.name.strip_prefix(prefix).unwrap().parse().unwrap();
            numbers[index] = *number;
        }
        numbers
    };
    let first = bench.world.compile().unwrap().tables;
    let of_first = rules(&bench, "first-");
    bench.world.set_policy(&policy(true)).unwrap();
    let second = bench.world.compile().unwrap().tables;
    let rules = [of_first, rules(&bench, "second-")];
    // The same programs once more over the same maps, as a new agent would load them: so that this thread keeps its hands
    // free for the tables.
    let settings = Settings {
        pin_directory: bench.rig.lab().pin_directory(),
        capacity: Capacity::default(),
        test_clock: true,
    };
    let mut adopting = Dataplane::open(&settings).unwrap();
    let program: &Xdp = adopting.xdp().unwrap();
    let (stop, next) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut seen = [0_u64; 2];
    let opened: u32 = thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| open_flows(program, &stop, &next)))
            .collect();
        let mut look = |bench: &mut Bench| {
            for event in bench.rig.events() {
                check(&event, bench, rules);
                seen[usize::from(event.generation.is_multiple_of(2))] += 1;
            }
        };
        for change in 0..CHANGES {
            let tables = if change % 2 == 0 { &second } else { &first };
            bench.rig.install(tables.clone()).unwrap();
            look(&mut bench);
        }
        stop.store(true, Ordering::Relaxed);
        let opened = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        look(&mut bench);
        opened
    });
    println!("{opened} flows during {CHANGES} changes; events by policy: {seen:?}");
    assert!(
        seen.iter().all(|events| *events > 100),
        "both policies judged: {seen:?}"
    );
}
