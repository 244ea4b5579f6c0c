//! Two CPUs on one limiter: how much more than the burst can be admitted, and what stays owed.

use std::sync::Barrier;
use std::thread;

use aya::programs::Xdp;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::decide::{TCP_ACK, TCP_SYN};
use enforcer_common::schema::tenant_holder;
use enforcer_tests::packet::syn;
use enforcer_tests::rig::run_xdp;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::bench::{Bench, FLOWS};
use crate::privileged;

const BURST: u64 = 20;
const ROUNDS: usize = 400;

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: contention}
spec:
  tenants: [{name: acme, sources: [10.1.0.0/16], limits: {packetsPerSecond: 20, burst: 1s}}]
  services: [{name: chat, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [main], forward: Dnat}]
  pools: [{name: main, backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}]}]
  rules: [{name: all, action: Allow}]
"#;

/// The CPUs that this thread may run on.
pub(crate) fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect()
}

pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
}

/// Has this thread run on the first CPU that it may.
pub(crate) fn stay_on_one_cpu() {
    pin(cpus()[0]);
}

/// How many of a thread's packets were admitted.
fn hammer(program: &Xdp, frame: &[u8], packets: u64) -> u64 {
    (0..packets)
        .filter(|_| run_xdp(program, frame).unwrap().verdict.forwards())
        .count() as u64
}

/// With the clock standing still, CPUs that check before another has paid may admit one packet each beyond the burst,
/// and no more; what was admitted is owed to the nanosecond.
#[test]
fn over_admission_is_bounded_by_the_number_of_cpus() {
    if !privileged() {
        return;
    }
    let cpus: Vec<usize> = cpus().into_iter().take(2).collect();
    let mut bench = Bench::new(POLICY, FLOWS, |_| {});
    let acme = bench.world.tenant("acme");
    let opening = syn("10.1.0.1:40000", "192.0.2.20:8000");
    assert!(
        bench
            .rig
            .ingress(&opening.clone().flags(TCP_SYN).bytes())
            .unwrap()
            .verdict
            .forwards()
    );
    let data = opening.flags(TCP_ACK).bytes();
    let now_ns = bench.rig.now_ns();
    let mut most = 0;
    for round in 0..ROUNDS {
        let dataplane = bench.rig.dataplane();
        dataplane
            .maps
            .set_limiter(tenant_holder(acme), Limiter::Packets, 0)
            .unwrap();
        let program: &Xdp = dataplane.xdp().unwrap();
        let barrier = Barrier::new(cpus.len());
        let admitted: u64 = thread::scope(|scope| {
            let threads: Vec<_> = cpus
                .iter()
                .map(|cpu| {
                    let (barrier, data) = (&barrier, &data);
                    scope.spawn(move || {
                        pin(*cpu);
                        barrier.wait();
                        hammer(program, data, BURST + 5)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let bound = BURST + cpus.len() as u64 - 1;
        assert!(
            (BURST..=bound).contains(&admitted),
            "round {round}: {admitted} admitted, at most {bound}"
        );
        let due_ns = bench
            .rig
            .dataplane()
            .maps
            .limiter(tenant_holder(acme), Limiter::Packets)
            .unwrap();
        assert_eq!(
            due_ns,
            now_ns + admitted * 50_000_000,
            "round {round}: {admitted} packets at 50 ms each"
        );
        most = most.max(admitted);
    }
    println!(
        "{ROUNDS} rounds on {} CPUs: at most {most} admitted of a burst of {BURST}",
        cpus.len()
    );
}
