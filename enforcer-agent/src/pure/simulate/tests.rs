//! What a simulation says of packets and records that were written by hand.

mod log;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::decide::{TCP_ACK, TCP_FIN, TCP_SYN};

use super::report::{ChangeRow, Finding, Report, Totals, TrafficKind};
use super::*;
use crate::pure::policy::load;

/// acme may chat with one connection at a time; globex may not; both pools can serve.
const BEFORE: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: before}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"]}
  - {name: globex, sources: [10.2.0.0/16]}
  - {name: limited, sources: [10.3.0.0/16], limits: {newConnectionsPerSecond: 1, concurrentConnections: 1}}
  services:
  - {name: chat, addresses: [192.0.2.10, "2001:db8::10"], port: 8000, protocol: TCP, pools: [one], forward: Nat}
  - {name: direct, addresses: [192.0.2.11], port: 8000, protocol: TCP, pools: [one], forward: L2Dsr}
  pools:
  - name: one
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 8000}
    - {name: gpu-6, address: "2001:db8:9::1", port: 8000}
  rules:
  - {name: acme-and-limited, action: Allow, tenants: {matchNames: [acme, limited]}}
  protectedNetworks: [10.9.0.0/16]
"#;

fn policy(text: &str) -> ResolvedPolicy {
    load("test.yaml", text)
        .into_result()
        .unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The policy with other words in place of some.
fn edited(edits: &[(&str, &str)]) -> ResolvedPolicy {
    let mut text = BEFORE.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    policy(&text)
}

fn surroundings() -> Surroundings {
    Surroundings {
        host: HostFacts {
            nat_v4: Some([10, 9, 0, 250].into()),
            nat_port_first: 20_000,
            nat_port_count: 1000,
            ..HostFacts::default()
        },
        flow_entries: 1000,
        timeouts: Timeouts {
            tcp_opening: Duration::from_secs(10),
            tcp_established: Duration::from_secs(60),
            tcp_closing: Duration::from_secs(2),
            udp: Duration::from_secs(30),
        },
    }
}

fn simulation(after: &ResolvedPolicy) -> Simulation {
    Simulation::new(&policy(BEFORE), after, &surroundings()).unwrap()
}

/// An IPv4 or IPv6 packet with a TCP header and no payload, from its IP header on. Checksums are of no interest here.
fn tcp(from: &str, to: &str, flags: u8) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut bytes = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => panic!("two families"),
    };
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

const START_NS: u64 = 1_700_000_000_000_000_000;
const MS: u64 = 1_000_000;

impl Simulation {
    fn raw(&mut self, at_ms: u64, bytes: &[u8]) -> Judged {
        let packet = CapturedPacket {
            time_ns: Some(START_NS + at_ms * MS),
            link: Link::RawIp,
            outgoing: false,
            bytes,
            original_bytes: bytes.len() as u32,
        };
        self.packet(&packet).unwrap()
    }

    /// Reasons before and after of a packet that both policies judge.
    fn tcp(&mut self, at_ms: u64, from: &str, to: &str, flags: u8) -> [Reason; 2] {
        match self.raw(at_ms, &tcp(from, to, flags)) {
            Judged::Both { before, after } => [before.reason, after.reason],
            other => panic!("{from} -> {to}: {other:?}"),
        }
    }

    fn done(self, kind: TrafficKind) -> Report {
        let report = self.report(kind, None, Vec::new(), 100);
        let Totals {
            read,
            unchanged,
            changed,
            same_verdict_otherwise,
            unknown,
            without_connection,
            cut_short,
            skipped,
            only_counted: _,
            other_backend: _,
        } = report.totals;
        let sum =
            unchanged + changed + same_verdict_otherwise + unknown + without_connection + cut_short + skipped;
        assert_eq!(sum, read, "{:?}", report.totals);
        report
    }
}

fn finding(tenant: &str, service: &str, verdict: &str, reason: &str, rule: Option<&str>) -> Finding {
    Finding {
        tenant: Some(tenant.to_owned()),
        service: Some(service.to_owned()),
        verdict: verdict.to_owned(),
        reason: reason.to_owned(),
        rule: rule.map(str::to_owned),
    }
}

#[test]
fn changes_are_counted_by_tenant_service_reason_and_rule() {
    let after = edited(&[
        ("[acme, limited]", "[globex, limited]"),
        ("acme-and-limited", "globex-and-limited"),
    ]);
    let mut simulation = simulation(&after);
    for port in [40_000, 40_001] {
        for at_ms in [0, 1, 2] {
            let from = format!("10.1.0.1:{port}");
            assert_eq!(
                simulation.tcp(at_ms, &from, "192.0.2.10:8000", TCP_ACK),
                [Reason::Allowed, Reason::NoRule]
            );
        }
    }
    let v6 = simulation.tcp(3, "[2001:db8:1::1]:40000", "[2001:db8::10]:8000", TCP_SYN);
    assert_eq!(v6, [Reason::Allowed, Reason::NoRule]);
    let other = simulation.tcp(4, "10.2.0.1:40000", "192.0.2.11:8000", TCP_SYN);
    assert_eq!(other, [Reason::NoRule, Reason::Allowed]);
    assert_eq!(
        simulation.tcp(5, "10.4.0.1:1", "10.9.0.1:22", TCP_SYN),
        [Reason::Bypass; 2]
    );
    let report = simulation.done(TrafficKind::Capture);
    assert_eq!((report.totals.changed, report.totals.unchanged), (8, 1));
    let acme = ChangeRow {
        before: finding("acme", "chat", "forwarded", "Allowed", Some("acme-and-limited")),
        after: finding("acme", "chat", "refused", "NoRule", None),
        packets: 7,
        connections: 3,
        limits_unknown: false,
    };
    let globex = ChangeRow {
        before: finding("globex", "direct", "refused", "NoRule", None),
        after: finding(
            "globex",
            "direct",
            "forwarded",
            "Allowed",
            Some("globex-and-limited"),
        ),
        packets: 1,
        connections: 1,
        limits_unknown: false,
    };
    assert_eq!(
        report.changes,
        [acme, globex],
        "both families of a service are one"
    );
    let backends: Vec<(&str, u64, u64)> = report
        .backends
        .iter()
        .map(|row| (row.name.as_str(), row.before, row.after))
        .collect();
    assert_eq!(backends, [("gpu-1", 2, 1), ("gpu-6", 1, 0)]);
    assert_eq!(report.traffic.first.unwrap().as_millisecond(), 1_700_000_000_000);
    assert_eq!(report.traffic.last.unwrap().as_millisecond(), 1_700_000_000_005);
}

#[test]
fn a_source_that_changes_hands_is_named_as_each_policy_has_it() {
    let after = edited(&[
        ("sources: [10.2.0.0/16]", "sources: [10.2.0.0/16, 10.1.7.0/24]"),
        ("[acme, limited]", "[acme, globex, limited]"),
    ]);
    let mut simulation = simulation(&after);
    assert_eq!(
        simulation.tcp(0, "10.1.7.1:40000", "192.0.2.10:8000", TCP_SYN),
        [Reason::Allowed; 2]
    );
    assert_eq!(
        simulation.tcp(0, "10.1.8.1:40000", "192.0.2.10:8000", TCP_SYN),
        [Reason::Allowed; 2]
    );
    let report = simulation.done(TrafficKind::Capture);
    let totals = &report.totals;
    assert_eq!(
        (totals.changed, totals.same_verdict_otherwise, totals.unchanged),
        (0, 1, 1)
    );
    let tenants = |row: &ChangeRow| {
        (
            row.before.tenant.clone().unwrap(),
            row.after.tenant.clone().unwrap(),
        )
    };
    assert_eq!(
        tenants(&report.changes[0]),
        ("acme".to_owned(), "globex".to_owned())
    );
}

/// A place becomes free when the first connection has ended and a sweep has seen it; the rate pays a debt of a second.
#[test]
fn limits_and_expiry_follow_the_time_of_the_packets() {
    let after = edited(&[("concurrentConnections: 1", "concurrentConnections: 2")]);
    let mut simulation = simulation(&after);
    let vip = "192.0.2.10:8000";
    assert_eq!(
        simulation.tcp(0, "10.3.0.1:1", vip, TCP_SYN),
        [Reason::Allowed; 2]
    );
    assert_eq!(
        simulation.tcp(500, "10.3.0.1:2", vip, TCP_SYN),
        [Reason::ConnectionRate; 2]
    );
    let second = simulation.tcp(1500, "10.3.0.1:3", vip, TCP_SYN);
    assert_eq!(second, [Reason::Concurrency, Reason::Allowed]);
    // Opening connections expire after ten seconds.
    let late = simulation.tcp(10_500, "10.3.0.1:4", vip, TCP_SYN);
    assert_eq!(late, [Reason::Allowed; 2]);
    let report = simulation.done(TrafficKind::Capture);
    assert_eq!((report.totals.changed, report.totals.unchanged), (1, 3));
}

/// Where the capture was made between service and client, an answer is the service's; its limits and its part of the
/// connection's life count all the same.
#[test]
fn answers_are_those_of_the_same_clients_connection() {
    let after = edited(&[("address: 10.9.0.1", "address: 10.9.0.2")]);
    let mut simulation = simulation(&after);
    let (client, vip) = ("10.3.0.1:1", "192.0.2.10:8000");
    simulation.tcp(0, client, vip, TCP_SYN);
    assert_eq!(
        simulation.tcp(1, vip, client, TCP_SYN | TCP_ACK),
        [Reason::Reply; 2]
    );
    assert_eq!(
        simulation.tcp(2, client, vip, TCP_FIN | TCP_ACK),
        [Reason::Allowed; 2]
    );
    assert_eq!(
        simulation.tcp(3, vip, client, TCP_FIN | TCP_ACK),
        [Reason::Reply; 2]
    );
    // Both ends have finished, so that after the next sweep its place is free, though not the whole connection is gone.
    assert_eq!(
        simulation.tcp(1100, "10.3.0.1:2", vip, TCP_SYN),
        [Reason::Allowed; 2]
    );
    // No answer of ours: there is no such connection; with direct return there is nothing to see of it.
    assert_eq!(
        simulation.tcp(1101, vip, "10.3.0.1:9", TCP_ACK),
        [Reason::NotService; 2]
    );
    assert_eq!(
        simulation.tcp(2500, "10.1.0.1:5", "192.0.2.11:8000", TCP_SYN),
        [Reason::Allowed; 2]
    );
    assert_eq!(
        simulation.tcp(2501, "192.0.2.11:8000", "10.1.0.1:5", TCP_ACK),
        [Reason::NotService; 2]
    );
    let report = simulation.done(TrafficKind::Capture);
    assert_eq!(
        (report.totals.changed, report.totals.same_verdict_otherwise),
        (0, 0)
    );
}

/// Where it was made between back end and balancer, the answer is the back end's, to the translated port; the candidate's
/// back end would have sent it too.
#[test]
fn answers_on_the_servers_side_are_found_by_the_translated_port() {
    let after = edited(&[("address: 10.9.0.1", "address: 10.9.0.2"), ("gpu-1", "gpu-2")]);
    let mut simulation = simulation(&after);
    let (client, vip) = ("10.1.0.1:1", "192.0.2.10:8000");
    simulation.tcp(0, client, vip, TCP_SYN);
    let port = simulation
        .before
        .replay
        .replies()
        .keys()
        .next()
        .unwrap()
        .destination_port_be;
    let translated = format!("10.9.0.250:{}", u16::from_be(port));
    assert_eq!(
        simulation.tcp(1, "10.9.0.1:8000", &translated, TCP_SYN | TCP_ACK),
        [Reason::Reply; 2]
    );
    // From here on the copies on the clients' side are taken for what they are.
    assert_eq!(
        simulation.tcp(2, vip, client, TCP_SYN | TCP_ACK),
        [Reason::NotService; 2]
    );
    let report = simulation.done(TrafficKind::Capture);
    assert_eq!(report.totals.other_backend, 1);
    assert_eq!(
        (report.totals.changed, report.totals.same_verdict_otherwise),
        (0, 0)
    );
}

#[test]
fn an_answer_without_a_connection_is_no_change_of_its_own() {
    let after = edited(&[("[acme, limited]", "[limited]")]);
    let mut simulation = simulation(&after);
    let (client, vip) = ("10.1.0.1:1", "192.0.2.10:8000");
    assert_eq!(
        simulation.tcp(0, client, vip, TCP_SYN),
        [Reason::Allowed, Reason::NoRule]
    );
    assert_eq!(
        simulation.raw(1, &tcp(vip, client, TCP_ACK)),
        Judged::WithoutConnection
    );
    let report = simulation.done(TrafficKind::Capture);
    assert_eq!((report.totals.changed, report.totals.without_connection), (1, 1));
}

#[test]
fn every_kind_of_link_is_judged_as_the_same_packet() {
    let inner = tcp("10.1.0.1:1", "192.0.2.10:8000", TCP_SYN);
    let with = |header: &[u8]| [header, &inner].concat();
    let cooked = |kind: u8| with(&[0, kind, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 8, 0]);
    let cooked2 = |kind: u8| with(&[8, 0, 0, 0, 0, 0, 0, 3, 0, 1, kind, 6, 1, 2, 3, 4, 5, 6, 0, 0]);
    let ethernet = with(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 7, 8, 0]);
    let incoming = [
        (Link::Ethernet, ethernet),
        (Link::RawIp, inner.clone()),
        (Link::Cooked, cooked(0)),
        (Link::Cooked2, cooked2(0)),
    ];
    for (link, bytes) in &incoming {
        let mut simulation = simulation(&policy(BEFORE));
        let packet = CapturedPacket {
            time_ns: Some(START_NS),
            link: *link,
            outgoing: false,
            bytes,
            original_bytes: bytes.len() as u32,
        };
        let Judged::Both { before, .. } = simulation.packet(&packet).unwrap() else {
            panic!("{link:?}")
        };
        assert_eq!(
            (before.reason, before.flow),
            (Reason::Allowed, FlowFate::Opened),
            "{link:?}"
        );
        // What this host sent itself is judged on its way out: no service is looked for there.
        let mut simulation = self::simulation(&policy(BEFORE));
        let sent = match link {
            Link::Cooked => cooked(4),
            Link::Cooked2 => cooked2(4),
            Link::Ethernet | Link::RawIp => bytes.clone(),
        };
        let packet = CapturedPacket {
            outgoing: matches!(link, Link::Ethernet | Link::RawIp),
            bytes: &sent,
            ..packet
        };
        let Judged::Both { before, .. } = simulation.packet(&packet).unwrap() else {
            panic!("{link:?}")
        };
        assert_eq!(before.reason, Reason::NotService, "{link:?}");
    }
}

/// A packet is judged by what it was on the wire, or not at all: never as malformed because little of it was captured.
#[test]
fn what_was_cut_short_is_judged_if_enough_was_kept() {
    let mut whole = tcp("10.1.0.1:1", "192.0.2.10:8000", TCP_ACK);
    whole[2..4].copy_from_slice(&1040_u16.to_be_bytes());
    whole.resize(1040, 0);
    for kept in 0..=60 {
        let mut simulation = simulation(&policy(BEFORE));
        let packet = CapturedPacket {
            time_ns: Some(START_NS),
            link: Link::RawIp,
            outgoing: false,
            bytes: &whole[..kept],
            original_bytes: 1040,
        };
        let judged = simulation.packet(&packet).unwrap();
        if kept < 40 {
            assert_eq!(judged, Judged::CutShort, "{kept}");
            continue;
        }
        assert!(
            matches!(judged, Judged::Both { before, .. } if before.reason == Reason::Allowed),
            "{kept}"
        );
        let flow = simulation.before.replay.flows().values().next().unwrap();
        assert_eq!(flow.bytes, 1040);
    }
    // On the wire it was as short as this: malformed.
    let mut simulation = simulation(&policy(BEFORE));
    let Judged::Both { before, .. } = simulation.raw(0, &whole[..39]) else {
        panic!()
    };
    assert_eq!(before.reason, Reason::Malformed);
}

#[test]
fn the_clock_stands_still_for_a_little_disorder_and_refuses_more() {
    let mut simulation = simulation(&policy(BEFORE));
    let bytes = tcp("10.1.0.1:1", "192.0.2.10:8000", TCP_SYN);
    simulation.raw(5000, &bytes);
    simulation.raw(4000, &bytes);
    let packet = |time_ns| CapturedPacket {
        time_ns: Some(time_ns),
        link: Link::RawIp,
        outgoing: false,
        bytes: &bytes,
        original_bytes: 40,
    };
    let back = simulation.packet(&packet(START_NS + 3999 * MS)).unwrap_err();
    assert_eq!(
        back,
        TimeError::WentBack {
            packet: 3,
            back_ns: 1001 * MS
        }
    );
    assert!(back.to_string().contains("1001 ms older"), "{back}");
    assert_eq!(
        simulation.packet(&packet(u64::MAX)),
        Err(TimeError::TooLate { packet: 3 })
    );
    let report = simulation.done(TrafficKind::Capture);
    assert_eq!(report.totals.read, 2);
    assert!(
        report.traffic.notes[0].starts_with("1 packets were older"),
        "{:?}",
        report.traffic.notes
    );
}

#[test]
fn rows_beyond_the_limit_are_counted() {
    let after = edited(&[("action: Allow", "action: Deny")]);
    let mut simulation = simulation(&after);
    simulation.tcp(0, "10.1.0.1:1", "192.0.2.10:8000", TCP_SYN);
    simulation.tcp(0, "10.1.0.1:1", "192.0.2.11:8000", TCP_SYN);
    simulation.tcp(0, "10.1.0.1:2", "192.0.2.11:8000", TCP_SYN);
    let report = simulation.report(TrafficKind::Capture, None, Vec::new(), 1);
    assert_eq!(report.changes[0].packets, 2);
    assert_eq!((report.omitted.rows, report.omitted.packets), (1, 1));
}

/// The first packet comes at 22:13:20 UTC.
#[test]
fn rules_open_and_close_by_the_time_of_the_traffic() {
    let after = edited(&[(
        "matchNames: [acme, limited]}}",
        "matchNames: [acme, limited]}, schedule: {to: \"22:14\"}}",
    )]);
    let mut simulation = simulation(&after);
    let mut at = |ms| simulation.tcp(ms, "10.1.0.1:40000", "192.0.2.10:8000", TCP_ACK);
    assert_eq!(at(0), [Reason::Allowed, Reason::Allowed]);
    assert_eq!(at(39_999), [Reason::Allowed, Reason::Allowed]);
    assert_eq!(at(40_000), [Reason::Allowed, Reason::OutsideSchedule]);
    // Open again at midnight.
    assert_eq!(at(6_400_000), [Reason::Allowed, Reason::Allowed]);
    let report = simulation.done(TrafficKind::Capture);
    assert_eq!((report.totals.changed, report.totals.unchanged), (1, 3));
}
