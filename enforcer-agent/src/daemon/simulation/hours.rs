//! Rules open and close to the second, whatever the clocks of their zone do.

use std::time::Duration;

use enforcer_common::Reason;
use jiff::Timestamp;

use super::script::{Step, hours_policy};
use super::{ACTOR, Fault, Simulation, World};
use crate::api::Request;
use crate::pure::audit::{Entry, Kind};
use crate::pure::policy::PolicySource;

/// At a time, with one rule of such hours in Berlin, and the way to all back ends known.
async fn begin_at(time: &str, from: &str, to: &str) -> Simulation {
    let mut simulation = Simulation::begin().await;
    set(&simulation, at(time));
    let request = Request::PolicyApply {
        sources: vec![PolicySource::new("hours.yaml", hours_policy(from, to))],
        dry_run: false,
    };
    let applied = simulation.core.answer(request, ACTOR).await;
    applied.expect("the policy is right");
    for backend in ["gpu-1", "gpu-3"] {
        simulation.step(&Step::Hop(backend, 1)).await;
    }
    simulation
}

/// Lets the loop sleep until a boundary, and no longer than until a time; how it wakes is what is tested.
fn sleep_until(simulation: &mut Simulation, end: Timestamp) {
    while let Some(wait) = simulation.core.until_boundary() {
        let now = simulation.core.clock.wall();
        if now + jiff::SignedDuration::try_from(wait).expect("a wait of days") > end {
            break;
        }
        simulation.world().now_ns += u64::try_from(wait.as_nanos()).expect("a wait of days");
        simulation.core.follow_clock();
    }
    set(simulation, end);
}

/// Sets the clock to a time, or to less than a second after it.
fn set(simulation: &Simulation, time: Timestamp) {
    let ahead = time.duration_since(simulation.core.clock.wall());
    let seconds = ahead.as_secs() + i64::from(ahead.subsec_nanos() > 0);
    simulation.world().wall_ahead_seconds += seconds;
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a constant of this file")
}

fn schedule_records(world: &World) -> Vec<String> {
    let of_kind = world.audit.iter().filter(|entry| entry.kind == Kind::Schedule);
    of_kind
        .map(|entry: &Entry| {
            let change = entry.change.as_ref().expect("a record of a change");
            let zone = jiff::tz::TimeZone::get("Europe/Berlin").expect("a constant of this file");
            format!(
                "{} {} {}",
                entry.time.to_zoned(zone).strftime("%a %d %H:%M:%S %:z"),
                entry.rule.as_deref().unwrap_or_default(),
                change.to.as_deref().unwrap_or_default()
            )
        })
        .collect()
}

/// Sunday 25 October 2026 in Berlin: 03:00 CEST becomes 02:00 CET.
#[tokio::test]
async fn rules_flip_at_their_boundaries_to_the_second_while_clocks_are_put_back() {
    let mut simulation = begin_at("2026-10-24T12:00:00Z", "02:30", "04:00").await;
    let generation = simulation.core.generation();
    assert_eq!(simulation.verdict("acme"), Reason::OutsideSchedule);
    sleep_until(&mut simulation, at("2026-10-25T12:00:00Z"));
    assert_eq!(simulation.verdict("acme"), Reason::OutsideSchedule);
    let records = schedule_records(&simulation.world());
    assert_eq!(
        records[1..],
        [
            "Sun 25 02:30:00 +02:00 by-night open",
            "Sun 25 02:00:00 +01:00 by-night closed",
            "Sun 25 02:30:00 +01:00 by-night open",
            "Sun 25 04:00:00 +01:00 by-night closed",
        ]
    );
    assert!(records[0].ends_with("by-night closed"), "{records:?}");
    assert_eq!(simulation.core.generation(), generation + 4);
    let synced = simulation.world().audit.clone();
    let generations: Vec<u64> = synced
        .iter()
        .filter(|entry| entry.kind == Kind::Schedule)
        .map(|entry| entry.generation)
        .collect();
    let expected: Vec<u64> = (generation..=generation + 4).collect();
    assert_eq!(
        generations, expected,
        "each record names the generation that it made"
    );
}

/// Sunday 29 March 2026 in Berlin: 02:00 CET becomes 03:00 CEST.
#[tokio::test]
async fn rules_flip_at_the_skip_where_clocks_are_put_forward() {
    let mut simulation = begin_at("2026-03-28T12:00:00Z", "02:30", "04:00").await;
    sleep_until(&mut simulation, at("2026-03-29T01:30:00Z"));
    assert_eq!(simulation.verdict("acme"), Reason::Allowed);
    sleep_until(&mut simulation, at("2026-03-29T12:00:00Z"));
    assert_eq!(simulation.verdict("acme"), Reason::OutsideSchedule);
    let records = schedule_records(&simulation.world());
    assert_eq!(
        records[1..],
        [
            "Sun 29 03:00:00 +02:00 by-night open",
            "Sun 29 04:00:00 +02:00 by-night closed",
        ]
    );
}

/// The host slept, or somebody set its clock: the next fold finds out, in both directions.
#[tokio::test]
async fn a_clock_that_is_set_is_followed_within_a_fold() {
    let mut simulation = begin_at("2026-06-08T12:00:00Z", "08:00", "20:00").await;
    assert_eq!(simulation.verdict("acme"), Reason::Allowed);
    for (time, expected) in [
        ("2026-06-08T23:00:00Z", Reason::OutsideSchedule),
        ("2026-06-08T12:00:00Z", Reason::Allowed),
        ("2026-06-11T23:00:00Z", Reason::OutsideSchedule),
        ("2026-06-11T06:30:00Z", Reason::Allowed),
    ] {
        set(&simulation, at(time));
        simulation.step(&Step::Fold).await;
        assert_eq!(simulation.verdict("acme"), expected, "{time}");
    }
    let boundary = simulation.core.until_boundary();
    assert!(
        boundary.is_some_and(
            |wait| wait <= Duration::from_secs(12 * 3600) && wait > Duration::from_secs(11 * 3600)
        ),
        "{boundary:?}"
    );
    let status = simulation.core.schedule_status().expect("a rule has a schedule");
    assert_eq!((status.scheduled_rules, status.closed_rules), (1, 0));
    assert_eq!(status.next_change, Some(at("2026-06-11T18:00:00Z")));
}

/// Nobody waits for a boundary that cannot be put into force: the next fold does it.
#[tokio::test]
async fn a_flip_that_fails_is_made_by_the_next_fold() {
    let mut simulation = begin_at("2026-06-08T17:59:00Z", "08:00", "20:00").await;
    set(&simulation, at("2026-06-08T18:00:00Z"));
    assert_eq!(simulation.core.until_boundary(), Some(Duration::ZERO));
    simulation.world().set_fault(Fault::Nth(1));
    simulation.core.follow_clock();
    assert!(!simulation.world().failed.is_empty(), "something failed");
    assert_eq!(
        simulation.verdict("acme"),
        Reason::Allowed,
        "the old hours are in force"
    );
    assert_eq!(simulation.core.until_boundary(), None);
    simulation.step(&Step::Fold).await;
    assert_eq!(simulation.verdict("acme"), Reason::OutsideSchedule);
    let records = schedule_records(&simulation.world());
    assert!(
        records.last().is_some_and(|last| last.ends_with("closed")),
        "{records:?}"
    );
}

/// An agent that starts applies the time of its start, and writes down how each rule is.
#[tokio::test]
async fn an_agent_that_starts_goes_by_the_time_of_its_start() {
    let mut simulation = begin_at("2026-06-08T17:00:00Z", "08:00", "20:00").await;
    set(&simulation, at("2026-06-08T19:00:00Z"));
    simulation.restart().await;
    assert_eq!(simulation.verdict("acme"), Reason::OutsideSchedule);
    set(&simulation, at("2026-06-09T09:00:00Z"));
    simulation.restart().await;
    assert_eq!(simulation.verdict("acme"), Reason::Allowed);
    let records = schedule_records(&simulation.world());
    let states: Vec<&str> = records
        .iter()
        .filter_map(|record| record.rsplit(' ').next())
        .collect();
    assert_eq!(states, ["open", "closed", "open"]);
}
