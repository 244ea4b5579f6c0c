//! A rule's window ends while connections are open.

use std::time::Duration;

use enforcer_agent::api::reply::{PolicyExplainReply, StatusReply};
use enforcer_agent::pure::audit::{AuditRecord, Direction, Kind};
use enforcer_tests::harness::{ServerSettings, Stream, eventually, start_simulator};
use jiff::{SignedDuration, Timestamp};

use super::bench::{self, ALL_INTERFACES, LIMIT, REFUSED_LIMIT};
use super::echo::connect;
use super::privileged;

/// Time that a stream is watched for having stopped.
const QUIET: Duration = Duration::from_millis(400);
/// What the first half of the test may take.
const PREPARATION: SignedDuration = SignedDuration::from_secs(5);
/// Windows end at whole minutes.
const MINUTE_LIMIT: Duration = Duration::from_secs(75);

/// The policy of the bench, with a window that ends at the next whole minute that leaves time to look at it before.
fn policy_until_next_minute() -> (String, Timestamp) {
    let minute = Timestamp::now() + PREPARATION;
    let end = minute.as_second() / 60 * 60 + 60;
    let end = Timestamp::from_second(end).unwrap();
    let clock = |time: Timestamp| time.strftime("%H:%M").to_string();
    // Begins a whole day before it ends: the window of a day ago and that of today meet, but for this one minute.
    let (from, to) = (clock(end + SignedDuration::from_secs(60)), clock(end));
    let policy = bench::policy("Nat", "TCP", "", "Allow").replace(
        "tenants: {matchNames: [acme]}}",
        &format!("tenants: {{matchNames: [acme]}}, schedule: {{from: \"{from}\", to: \"{to}\"}}}}"),
    );
    assert!(policy.contains("schedule"));
    (policy, end)
}

#[test]
fn a_window_that_ends_ends_open_connections_too() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", "", "Allow"));
    let back_ends = bench.network.back_ends.iter();
    let _simulators: Vec<_> = back_ends
        .map(|leaf| start_simulator(&leaf.host, &ServerSettings::default()).unwrap())
        .collect();
    let (policy, end) = policy_until_next_minute();
    let applied = bench::apply(&bench.lab, &bench.agent, &policy);
    let stream = Stream::open(&bench.client().host, None, bench::vip(false)).unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    let status: StatusReply = bench.agent.ask(&["status"]).unwrap();
    let schedules = status.schedules.unwrap();
    assert_eq!((schedules.closed_rules, schedules.next_change), (0, Some(end)));
    let explain = |at: &str| -> PolicyExplainReply {
        let words = [
            "policy",
            "explain",
            "--from",
            "10.1.1.10",
            "--to",
            "192.0.2.10:8000",
            "--at",
            at,
        ];
        bench.agent.ask(&words).unwrap()
    };
    let before = end - SignedDuration::from_secs(1);
    assert_eq!(explain(&before.to_string()).reason, "Allowed");
    assert_eq!(explain(&end.to_string()).reason, "OutsideSchedule");

    let record: AuditRecord = eventually("the record that the rule closed", MINUTE_LIMIT, || {
        let records: Vec<AuditRecord> = bench.agent.ask_lines(&["audit", "tail", "-n", "200"])?;
        let closed = |record: &AuditRecord| {
            let to = record
                .entry
                .change
                .as_ref()
                .and_then(|change| change.to.as_deref());
            record.entry.kind == Kind::Schedule && to == Some("closed")
        };
        Ok(records
            .into_iter()
            .find(closed)
            .ok_or_else(|| "not yet".to_owned()))
    })
    .unwrap();
    let late = record.entry.time.duration_since(end);
    assert!(
        late >= SignedDuration::ZERO && late < SignedDuration::from_secs(1),
        "closed {late:#} after the end"
    );
    assert_eq!(record.entry.rule.as_deref(), Some("acme-chat"));
    assert_eq!(record.entry.generation, applied.generation + 1);
    stream.wait_for_silence(QUIET, LIMIT).unwrap();
    assert!(
        connect(bench.client(), bench::vip(false), REFUSED_LIMIT).is_none(),
        "nor do new ones pass"
    );
    assert!(bench::packets(&bench.agent, Direction::Ingress, "OutsideSchedule") > 0);
    let refused = eventually("the record of a refused packet", LIMIT, || {
        let records: Vec<AuditRecord> = bench.agent.ask_lines(&["audit", "tail", "-n", "200"])?;
        let refused = |record: &AuditRecord| record.entry.reason.as_deref() == Some("OutsideSchedule");
        Ok(records
            .into_iter()
            .find(refused)
            .ok_or_else(|| "not yet".to_owned()))
    })
    .unwrap();
    assert_eq!(
        refused.entry.rule.as_deref(),
        Some("acme-chat"),
        "it names the rule"
    );
}
