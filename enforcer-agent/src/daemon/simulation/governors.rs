//! Quotas hold to the connection over restarts and failures, and a lease that nobody renews stands still.

use enforcer_common::Reason;
use jiff::Timestamp;

use super::invariants::reason_of;
use super::script::{GOVERNED, Step, apply};
use super::{BACKENDS, Fault, Simulation};
use crate::pure::audit::Kind;

async fn begin() -> Simulation {
    let mut simulation = Simulation::begin().await;
    simulation.step(&apply(GOVERNED)).await;
    for backend in &BACKENDS[..3] {
        simulation.step(&Step::Hop(backend, 1)).await;
    }
    simulation
}

/// What was recorded of quotas, in the order of time: tenant, quota, and what became of it.
fn records(simulation: &Simulation) -> Vec<[String; 3]> {
    let world = simulation.world();
    let of_kind = world.audit.iter().filter(|entry| entry.kind == Kind::Quota);
    of_kind
        .map(|entry| {
            let change = entry.change.clone().unwrap_or_default();
            [
                entry.tenant.clone().unwrap_or_default(),
                change.what,
                change.to.unwrap_or_default(),
            ]
        })
        .collect()
}

fn record(tenant: &str, what: &str, to: &str) -> [String; 3] {
    [tenant, what, to].map(str::to_owned)
}

async fn all(simulation: &mut Simulation, steps: &[Step]) {
    for step in steps {
        simulation.step(step).await;
    }
}

#[tokio::test]
async fn a_quota_is_kept_to_the_connection_over_restarts() {
    let mut simulation = begin().await;
    all(
        &mut simulation,
        &[
            Step::Used("acme", 60),
            Step::Fold,
            Step::Used("acme", 20),
            // Nobody looked at these twenty yet.
            Step::Restart,
            Step::Used("acme", 19),
            Step::Fold,
        ],
    )
    .await;
    assert_eq!(reason_of(&simulation, "acme"), Reason::Allowed);
    assert_eq!(records(&simulation), [] as [[String; 3]; 0]);
    all(&mut simulation, &[Step::Used("acme", 1), Step::Fold]).await;
    assert_eq!(reason_of(&simulation, "acme"), Reason::Quota);
    assert_eq!(reason_of(&simulation, "globex"), Reason::Allowed);
    let exhausted = record("acme", "connections per 1d", "exhausted");
    assert_eq!(records(&simulation), std::slice::from_ref(&exhausted));
    // Another agent knows it from the start, and says it no second time.
    all(&mut simulation, &[Step::Restart, Step::Fold]).await;
    assert_eq!(reason_of(&simulation, "acme"), Reason::Quota);
    assert_eq!(records(&simulation), std::slice::from_ref(&exhausted));
    // A policy without quotas, and back.
    all(&mut simulation, &[apply(0)]).await;
    assert_eq!(reason_of(&simulation, "acme"), Reason::Allowed);
    all(&mut simulation, &[Step::Used("acme", 500), apply(GOVERNED)]).await;
    assert_eq!(reason_of(&simulation, "acme"), Reason::Quota);
    // The next day.
    let now: Timestamp = simulation.core.clock.wall();
    let day_seconds = 24 * 3600;
    let to_midnight = day_seconds - now.as_second().rem_euclid(day_seconds);
    all(&mut simulation, &[Step::Clock(to_midnight - 2)]).await;
    assert_eq!(
        reason_of(&simulation, "acme"),
        Reason::Quota,
        "a second before midnight"
    );
    all(&mut simulation, &[Step::Fold]).await;
    assert_eq!(reason_of(&simulation, "acme"), Reason::Allowed, "at midnight");
    let renewed = record("acme", "connections per 1d", "renewed");
    assert_eq!(records(&simulation), [exhausted, renewed]);
}

/// Whatever fails while a quota is used up: the next fold sees to it, or the agent after that.
#[tokio::test]
async fn a_quota_that_is_used_up_is_enforced_whatever_fails() {
    let mut simulation = begin().await;
    simulation.step(&Step::Used("acme", 100)).await;
    for restarts in [false, true] {
        for nth in 1.. {
            let mut other = simulation.fork();
            other.world().set_fault(Fault::Nth(nth));
            other.step(&Step::Fold).await;
            let failed = other.world().failed.clone();
            other.world().set_fault(Fault::Never);
            other
                .step(if restarts { &Step::Restart } else { &Step::Fold })
                .await;
            assert_eq!(reason_of(&other, "acme"), Reason::Quota, "{failed:?} failed");
            let records = records(&other).len();
            // One that the log lost, or that an agent made who died before it wrote down that it had.
            let may_differ = restarts || failed.contains(&"record");
            assert!(
                records == 1 || (may_differ && records < 3),
                "{records} records, {failed:?} failed"
            );
            if failed.is_empty() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_is_said_and_renewed_when_it_can() {
    let mut simulation = begin().await;
    let before = simulation.world().kernel.lease.0;
    simulation.step(&Step::Fold).await;
    let after = simulation.world().kernel.lease.0;
    assert_eq!(
        after.everything_until_ns,
        simulation.core.clock.monotonic_ns() + 5_000_000_000
    );
    assert!(before.everything_until_ns < after.everything_until_ns);
    // The first operation of a fold.
    simulation.world().set_fault(Fault::Nth(1));
    simulation.step(&Step::Fold).await;
    assert_eq!(simulation.world().failed, ["set lease"]);
    assert_eq!(simulation.world().kernel.lease.0, after);
    assert!(simulation.core.failing.contains_key("lease"));
    simulation.world().set_fault(Fault::Never);
    simulation.core.renew_lease();
    assert!(!simulation.core.failing.contains_key("lease"));
    assert!(simulation.world().kernel.lease.0.everything_until_ns > after.everything_until_ns);
}
