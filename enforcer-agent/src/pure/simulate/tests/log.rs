//! Audit logs.

use enforcer_common::Reason;
use jiff::Timestamp;

use super::super::report::{Totals, TrafficKind};
use super::{BEFORE, edited, policy, simulation};
use crate::pure::audit::{Direction, Entry, FlowTuple, Kind};
use crate::pure::policy::ResolvedPolicy;
use crate::pure::policy::resolved::Protocol;

fn record(kind: Kind, tenant: &str, reason: Reason, from: &str, to: &str) -> Entry {
    let time: Timestamp = "2026-11-22T20:00:00Z".parse().unwrap();
    Entry {
        direction: Some(Direction::Ingress),
        reason: Some(reason.name().to_owned()),
        tenant: Some(tenant.to_owned()),
        service: Some("chat".to_owned()),
        flow: Some(FlowTuple {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: Some(Protocol::Tcp),
            translated_port: None,
        }),
        bytes: Some(60),
        ..Entry::new(kind, time, 1, 1)
    }
}

const VIP: &str = "192.0.2.10:8000";

#[test]
fn decisions_of_a_log_are_judged_as_new_connections() {
    let after = edited(&[
        ("[acme, limited]", "[globex]"),
        ("acme-and-limited", "globex-only"),
    ]);
    let mut simulation = simulation(&after);
    simulation.record(&record(
        Kind::FlowOpened,
        "acme",
        Reason::Allowed,
        "10.1.0.1:1",
        VIP,
    ));
    simulation.record(&record(
        Kind::FlowMoved,
        "acme",
        Reason::Allowed,
        "10.1.0.1:1",
        VIP,
    ));
    simulation.record(&record(
        Kind::Refused,
        "globex",
        Reason::NoRule,
        "10.2.0.1:1",
        VIP,
    ));
    simulation.record(&record(
        Kind::Refused,
        "",
        Reason::UnknownTenant,
        "10.7.0.1:1",
        VIP,
    ));
    let report = simulation.done(TrafficKind::AuditLog);
    assert_eq!(
        (
            report.totals.changed,
            report.totals.unchanged,
            report.totals.unknown
        ),
        (3, 1, 0)
    );
    assert_eq!((report.changes[0].packets, report.changes[0].connections), (2, 1));
    assert_eq!(report.changes[1].after.rule.as_deref(), Some("globex-only"));
    assert_eq!((report.backends[0].before, report.backends[0].after), (1, 1));
}

#[test]
fn what_limits_would_do_is_unknown_and_never_guessed() {
    let opened = record(Kind::FlowOpened, "limited", Reason::Allowed, "10.3.0.1:1", VIP);
    let refused = record(
        Kind::Refused,
        "limited",
        Reason::ConnectionRate,
        "10.3.0.1:2",
        VIP,
    );
    let elsewhere = record(
        Kind::Refused,
        "limited",
        Reason::NoRule,
        "10.3.0.1:3",
        "192.0.2.11:8000",
    );
    let judged = |after: &ResolvedPolicy, records: &[&Entry]| {
        let mut simulation = simulation(after);
        for record in records {
            simulation.record(record);
        }
        let Totals {
            unchanged,
            changed,
            unknown,
            ..
        } = simulation.done(TrafficKind::AuditLog).totals;
        [unchanged, changed, unknown]
    };
    // Nothing about the tenant changes: what limits admitted they would admit; what they refused stays open.
    assert_eq!(judged(&policy(BEFORE), &[&opened, &refused]), [1, 0, 1]);
    // Other limits: both are open.
    let wider = edited(&[("newConnectionsPerSecond: 1", "newConnectionsPerSecond: 9")]);
    assert_eq!(judged(&wider, &[&opened, &refused]), [0, 0, 2]);
    // The rules refuse before any limit is asked.
    let nobody = edited(&[("[acme, limited]", "[acme]")]);
    assert_eq!(judged(&nobody, &[&opened, &refused]), [0, 2, 0]);
    // The same limits with other traffic under them: a service less.
    let chat_only = edited(&[(
        "{matchNames: [acme, limited]}",
        "{matchNames: [acme, limited]}, services: {matchNames: [chat]}",
    )]);
    assert_eq!(judged(&chat_only, &[&opened, &elsewhere]), [0, 1, 1]);
}

#[test]
fn an_admission_with_limits_behind_it_is_marked() {
    let after = edited(&[
        ("[acme, limited]", "[acme, limited, globex]"),
        (
            "sources: [10.2.0.0/16]",
            "sources: [10.2.0.0/16], limits: {packetsPerSecond: 5}",
        ),
    ]);
    let mut simulation = simulation(&after);
    simulation.record(&record(
        Kind::Refused,
        "globex",
        Reason::NoRule,
        "10.2.0.1:1",
        VIP,
    ));
    let report = simulation.done(TrafficKind::AuditLog);
    assert!(report.changes[0].limits_unknown);
    assert_eq!(report.changes[0].after.verdict, "forwarded");
}

#[test]
fn records_that_are_no_decision_on_a_new_connection_are_skipped() {
    let mut simulation = simulation(&policy(BEFORE));
    let mut skipped = vec![
        record(Kind::FlowClosed, "acme", Reason::Allowed, "10.1.0.1:1", VIP),
        record(Kind::Refused, "acme", Reason::HopLimit, "10.1.0.1:1", VIP),
        record(Kind::Refused, "acme", Reason::TableFull, "10.1.0.1:1", VIP),
        // Answers that were refused.
        record(
            Kind::Refused,
            "acme",
            Reason::ResponseRate,
            "10.9.0.1:8000",
            "10.9.0.250:20001",
        ),
        record(
            Kind::Refused,
            "acme",
            Reason::Suspended,
            "10.9.0.1:8000",
            "10.9.0.250:20001",
        ),
    ];
    let mut egress = record(
        Kind::Refused,
        "acme",
        Reason::Suspended,
        "10.9.0.1:8000",
        "10.1.0.1:1",
    );
    egress.direction = Some(Direction::Egress);
    skipped.push(egress);
    let mut aggregated = record(Kind::Aggregated, "acme", Reason::NoRule, "10.1.0.1:1", VIP);
    aggregated.count = Some(40);
    skipped.push(aggregated);
    for entry in &skipped {
        simulation.record(entry);
    }
    // A back end that goes around: a decision like any other.
    let mut bypass = record(Kind::Refused, "", Reason::Bypass, "10.9.0.1:8000", "10.9.0.1:22");
    (bypass.tenant, bypass.service) = (None, None);
    simulation.record(&bypass);
    let report = simulation.done(TrafficKind::AuditLog);
    assert_eq!(report.totals.skipped, skipped.len() as u64);
    assert_eq!((report.totals.unchanged, report.totals.only_counted), (1, 40));
}
