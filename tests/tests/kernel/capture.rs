//! Captures: the bytes that went in with the reason that they got, and no more than were asked for.

use enforcer_agent::adapters::dataplane::Captures;
use enforcer_common::Reason;
use enforcer_common::abi::capture::{CAPTURE_BYTES, CAPTURE_WINDOW_SHIFT, CaptureRecord, CapturedRecord};
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::schema::CAPTURED_BYTES;
use enforcer_tests::packet::{Error, Segment, reset, syn, udp};
use enforcer_tests::rig::Verdict;

use crate::bench::{Bench, FLOWS};
use crate::privileged;

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: capture}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"]}
  - {name: globex, sources: [10.2.0.0/16]}
  services:
  - {name: resets, addresses: [192.0.2.10, "2001:db8::10"], port: 8000, protocol: TCP, pools: [main], forward: Dnat,
     onRefusal: Reset}
  - {name: drops, addresses: [192.0.2.30], port: 53, protocol: UDP, pools: [main], forward: Dnat}
  pools:
  - name: main
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 9000}
    - {name: gpu-6, address: "2001:db8:9::1", port: 9000}
  rules:
  - {name: not-globex, action: Deny, tenants: {matchNames: [globex]}}
  - {name: all, action: Allow}
  protectedNetworks: [10.9.0.0/16]
"#;

/// The loopback device, by which frames of a test run come in.
const LOOPBACK: u32 = 1;
/// A header of eight bytes goes before each packet.
const PACKETS_THAT_FIT: u64 = CAPTURED_BYTES as u64 / (size_of::<CapturedRecord>() as u64 + 8);

fn bench() -> Bench {
    Bench::new(POLICY, FLOWS, |_| {})
}

/// Every packet that is refused, whole.
fn everything(bench: &Bench) -> CaptureRecord {
    let reasons = Reason::ALL.iter().map(|reason| 1 << *reason as u32);
    CaptureRecord {
        until_ns: bench.rig.now_ns() + 60_000_000_000,
        reasons: reasons.fold(0, |all, one: u64| all | one),
        snap_bytes: CAPTURE_BYTES,
        packets_per_window: u32::MAX,
        serial: 7,
        ..CaptureRecord::ZERO
    }
}

fn begin(bench: &mut Bench, capture: &CaptureRecord) {
    bench.rig.dataplane().maps.set_capture(capture).unwrap();
}

fn captured(bench: &mut Bench) -> Vec<CapturedRecord> {
    let maps = &mut bench.rig.dataplane().maps;
    std::iter::from_fn(|| maps.next_captured()).collect()
}

fn captures(bench: &mut Bench) -> Captures {
    bench.rig.dataplane().maps.captures().unwrap()
}

fn bytes_of(record: &CapturedRecord) -> &[u8] {
    &record.frame[..record.captured_bytes as usize]
}

/// Sends a frame in and answers the one packet that was captured.
fn one(bench: &mut Bench, frame: &[u8], verdict: Verdict) -> CapturedRecord {
    let ran = bench.rig.ingress(frame).unwrap();
    assert_eq!(ran.verdict, verdict);
    let [record] = captured(bench)[..] else {
        panic!("one packet was sent in");
    };
    record
}

#[test]
fn a_refused_packet_is_captured_as_it_came_with_what_it_got() {
    if !privileged() {
        return;
    }
    let mut bench = bench();
    let all = everything(&bench);
    begin(&mut bench, &all);
    let (globex, rule) = (bench.world.tenant("globex"), not_globex(&bench));
    let plain = CapturedRecord {
        now_ns: bench.rig.now_ns(),
        generation: 1,
        serial: 7,
        direction: DIRECTION_INGRESS,
        ifindex: LOOPBACK,
        ..CapturedRecord::ZERO
    };
    let stranger = udp("203.0.113.9:4000", "192.0.2.30:53").payload(30).vlan(5);
    let bypass = syn("10.1.0.1:40000", "10.9.0.1:9000");
    let cases = [
        ("a stranger's", stranger, Reason::UnknownTenant, 0, 0),
        (
            "a tenant's",
            udp("10.2.0.1:4", "192.0.2.30:53"),
            Reason::RuleDeny,
            globex,
            rule,
        ),
        ("around the balancer", bypass, Reason::Bypass, 0, 0),
        (
            "not ours",
            syn("10.1.0.1:4", "198.51.100.1:22"),
            Reason::NotService,
            0,
            0,
        ),
    ];
    for (what, segment, reason, tenant, rule) in cases {
        let frame = segment.bytes();
        let verdict = if reason == Reason::NotService {
            Verdict::Pass
        } else {
            Verdict::Drop
        };
        let record = one(&mut bench, &frame, verdict);
        assert_eq!(bytes_of(&record), frame, "{what}: its bytes");
        let told = CapturedRecord {
            reason: reason as u32,
            tenant,
            rule,
            service: record.service,
            frame_bytes: frame.len() as u32,
            captured_bytes: frame.len() as u32,
            frame: record.frame,
            ..plain
        };
        assert_eq!(record, told, "{what}: what is told of it");
        let to_service = matches!(reason, Reason::UnknownTenant | Reason::RuleDeny);
        assert_eq!(record.service != 0, to_service, "{what}: its service");
    }
    // ICMP is judged by a program of its own.
    let about = Error::about(&syn("10.2.0.1:4", "192.0.2.10:8000"), 0);
    let frame = about.bytes();
    let record = one(&mut bench, &frame, Verdict::Pass);
    assert_eq!(
        (bytes_of(&record), record.reason),
        (&frame[..], Reason::NotService as u32)
    );
}

fn not_globex(bench: &Bench) -> u32 {
    let rules = &bench.world.directory.rules;
    let (number, _) = rules.iter().find(|(_, rule)| rule.name == "not-globex").unwrap();
    number + 1
}

#[test]
fn a_captured_packet_is_answered_all_the_same_and_was_copied_before() {
    if !privileged() {
        return;
    }
    let mut bench = bench();
    let all = everything(&bench);
    begin(&mut bench, &all);
    let frame = syn("10.2.0.1:40000", "192.0.2.10:8000").payload(20).bytes();
    let ran = bench.rig.ingress(&frame).unwrap();
    assert_eq!((ran.verdict, ran.frame), (Verdict::Transmit, reset(&frame)));
    let records = captured(&mut bench);
    assert_eq!(bytes_of(&records[0]), frame);
}

#[test]
fn what_is_forwarded_is_not_captured_nor_anything_while_there_is_no_capture() {
    if !privileged() {
        return;
    }
    let mut bench = bench();
    let refused = udp("10.2.0.1:4", "192.0.2.30:53").bytes();
    bench.rig.ingress(&refused).unwrap();
    assert_eq!(captured(&mut bench), []);
    let all = everything(&bench);
    begin(&mut bench, &all);
    let opening = syn("10.1.0.1:40000", "192.0.2.10:8000");
    assert!(bench.rig.ingress(&opening.bytes()).unwrap().verdict.forwards());
    assert_eq!(captured(&mut bench), []);
    // Time is up, although nobody ended it.
    bench.rig.set_now(all.until_ns).unwrap();
    bench.rig.ingress(&refused).unwrap();
    bench.rig.set_now(all.until_ns + 1).unwrap();
    bench.rig.ingress(&refused).unwrap();
    assert_eq!(captured(&mut bench).len(), 1);
    assert_eq!(captures(&mut bench).captured, 1);
}

#[test]
fn only_the_reasons_tenant_and_service_that_were_asked_for_are_captured() {
    if !privileged() {
        return;
    }
    let mut bench = bench();
    let service_of = |bench: &mut Bench, segment: &Segment| {
        let all = everything(bench);
        begin(bench, &all);
        bench.rig.ingress(&segment.bytes()).unwrap();
        captured(bench)[0].service
    };
    let v4 = service_of(&mut bench, &syn("10.2.0.1:1", "192.0.2.10:8000"));
    let v6 = service_of(&mut bench, &syn("[2001:db8:7::1]:1", "[2001:db8::10]:8000"));
    let sent = [
        syn("10.2.0.1:40000", "192.0.2.10:8000"),
        udp("10.2.0.1:40000", "192.0.2.30:53"),
        syn("[2001:db8:7::1]:1", "[2001:db8::10]:8000"),
        udp("203.0.113.9:4000", "192.0.2.30:53"),
        syn("10.1.0.1:40000", "10.9.0.1:9000"),
    ];
    let all = everything(&bench);
    let globex = bench.world.tenant("globex");
    let (unknown, bypass) = (1 << Reason::UnknownTenant as u32, 1 << Reason::Bypass as u32);
    for (what, capture, expected) in [
        ("all", all, &[0, 1, 2, 3, 4][..]),
        (
            "of a reason",
            CaptureRecord {
                reasons: unknown,
                ..all
            },
            &[2, 3],
        ),
        (
            "of two reasons",
            CaptureRecord {
                reasons: unknown | bypass,
                ..all
            },
            &[2, 3, 4],
        ),
        (
            "of a tenant",
            CaptureRecord {
                tenant: globex,
                ..all
            },
            &[0, 1],
        ),
        (
            "to a service",
            CaptureRecord {
                services: [v4, v6],
                ..all
            },
            &[0, 2],
        ),
        (
            "to half of it",
            CaptureRecord {
                services: [v6, 0],
                ..all
            },
            &[2],
        ),
    ] {
        begin(&mut bench, &capture);
        let mut found = Vec::new();
        for (number, segment) in sent.iter().enumerate() {
            bench.rig.ingress(&segment.bytes()).unwrap();
            if !captured(&mut bench).is_empty() {
                found.push(number);
            }
        }
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn long_frames_are_cut() {
    if !privileged() {
        return;
    }
    let mut bench = bench();
    let frame = udp("10.2.0.1:4", "192.0.2.30:53").payload(1000).bytes();
    for (snap_bytes, expected) in [(1, 1), (64, 64), (CAPTURE_BYTES, 256), (100_000, 256)] {
        let capture = CaptureRecord {
            snap_bytes,
            ..everything(&bench)
        };
        begin(&mut bench, &capture);
        let record = one(&mut bench, &frame, Verdict::Drop);
        assert_eq!(bytes_of(&record), &frame[..expected], "{snap_bytes}");
        assert_eq!(record.frame_bytes as usize, frame.len());
    }
}

#[test]
fn a_flood_is_sampled_and_what_finds_no_room_is_counted() {
    if !privileged() {
        return;
    }
    crate::contention::stay_on_one_cpu();
    let mut bench = bench();
    let frame = udp("10.2.0.1:4", "192.0.2.30:53").bytes();
    let window_ns = 1_u64 << CAPTURE_WINDOW_SHIFT;
    let sampled = CaptureRecord {
        packets_per_window: 3,
        ..everything(&bench)
    };
    begin(&mut bench, &sampled);
    let first_ns = (bench.rig.now_ns() / window_ns + 1) * window_ns;
    for (window, packets) in [(0, 10), (1, 2), (5, 4)] {
        bench.rig.set_now(first_ns + window * window_ns).unwrap();
        (0..packets).for_each(|_| drop(bench.rig.ingress(&frame).unwrap()));
    }
    let expected = Captures {
        captured: 8,
        sampled_out: 8,
        lost: 0,
    };
    assert_eq!(captures(&mut bench), expected);
    assert_eq!(captured(&mut bench).len(), 8);

    let all = everything(&bench);
    begin(&mut bench, &all);
    let packets = PACKETS_THAT_FIT + 100;
    (0..packets).for_each(|_| drop(bench.rig.ingress(&frame).unwrap()));
    let full = captures(&mut bench);
    assert_eq!(full.captured - 8 + full.lost, packets);
    assert!((1..=101).contains(&full.lost), "{full:?}");
    assert_eq!(captured(&mut bench).len() as u64, full.captured - 8);
    // There is room again.
    bench.rig.ingress(&frame).unwrap();
    assert_eq!(captures(&mut bench).lost, full.lost);
}

#[test]
fn a_reply_that_is_refused_on_its_way_out_is_captured() {
    if !privileged() {
        return;
    }
    let mut bench = bench();
    let opening = syn("10.1.0.1:40000", "192.0.2.10:8000");
    bench.rig.ingress(&opening.bytes()).unwrap();
    let lapsed = enforcer_common::abi::config::LeaseRecord {
        everything_until_ns: 1,
        ..enforcer_common::abi::config::LeaseRecord::ZERO
    };
    bench.rig.set_lease(&lapsed).unwrap();
    let all = everything(&bench);
    begin(&mut bench, &all);
    let frame = opening.answer().from("10.9.0.1:9000").payload(300).bytes();
    assert_eq!(bench.rig.egress(&frame).unwrap().verdict, Verdict::Drop);
    let [record] = captured(&mut bench)[..] else {
        panic!("one packet was sent out");
    };
    assert_eq!(bytes_of(&record), &frame[..256]);
    assert_eq!(
        (
            record.direction,
            record.reason,
            record.tenant,
            record.frame_bytes as usize
        ),
        (
            DIRECTION_EGRESS,
            Reason::LeaseExpired as u32,
            bench.world.tenant("acme"),
            frame.len()
        )
    );
}
