use enforcer_common::Reason;
use enforcer_common::abi::address::{FlowKey, from_octets, from_v4};
use enforcer_common::abi::event::{EVENT_FLOW_OPENED, EVENT_REFUSED, EventRecord};

use super::*;

struct Table;

impl Names for Table {
    fn tenant(&self, slot: u32) -> Option<&str> {
        (slot == 1).then_some("acme")
    }
    fn service(&self, slot: u32) -> Option<&str> {
        (slot == 0).then_some("chat")
    }
    fn backend(&self, slot: u32) -> Option<&str> {
        (slot == 4).then_some("gpu-1")
    }
    fn rule(&self, index: u32) -> Option<&str> {
        ["gold-hours", "no-night"].get(index as usize).copied()
    }
}

fn identity() -> Identity {
    Identity {
        host: "lb-1".into(),
        boot_id: "b0".into(),
    }
}

fn event() -> EventRecord {
    EventRecord {
        now_ns: 5_000_000_001,
        generation: 7,
        key: FlowKey {
            source: from_v4(u32::from_ne_bytes([10, 1, 0, 2])),
            destination: from_v4(u32::from_ne_bytes([192, 0, 2, 10])),
            source_port_be: 40_000u16.to_be(),
            destination_port_be: 8000u16.to_be(),
            protocol: 6,
        },
        translated_port_be: 10_001u16.to_be(),
        kind: EVENT_FLOW_OPENED,
        reason: Reason::Allowed as u32,
        tenant: 1,
        service: 1,
        rule: 1,
        backend: 5,
        shadow_rule: 2,
        shadow_reason: Reason::RuleDeny as u32,
        bytes: 60,
        ..EventRecord::ZERO
    }
}

/// A segment of `count` records that starts where `chain` stands.
fn segment(chain: &mut Chain, count: u64) -> Vec<String> {
    let mut out = Vec::new();
    chain
        .seal_header(&identity(), Timestamp::UNIX_EPOCH, &mut out)
        .unwrap();
    for number in 0..count {
        let entry = Entry {
            count: Some(number),
            ..Entry::new(Kind::Control, Timestamp::UNIX_EPOCH, number, 1)
        };
        chain.seal(&identity(), &entry, &mut out).unwrap();
    }
    String::from_utf8(out)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn verify(lines: &[String]) -> Result<ChainSummary, ChainError> {
    verify_chain(lines, Some(Chain::default()))
}

/// The hash was computed with another tool: `(head -c 32 /dev/zero; printf %s "$LINE_WITHOUT_HASH") | sha256sum`.
#[test]
fn an_event_becomes_one_line_with_names_and_its_hash_last() {
    let entry = decision(&event(), &Table, Some("d1".into()), 1_800_000_000_000_000_000).unwrap();
    let mut line = Vec::new();
    Chain::default().seal(&identity(), &entry, &mut line).unwrap();
    assert_eq!(
        String::from_utf8(line).unwrap(),
        concat!(
            r#"{"sequence":1,"host":"lb-1","bootId":"b0","time":"2027-01-15T08:00:05.000000001Z","#,
            r#""kernelTimeNs":5000000001,"generation":7,"policyDigest":"d1","kind":"FlowOpened","#,
            r#""direction":"ingress","reason":"Allowed","tenant":"acme","service":"chat","rule":"gold-hours","#,
            r#""backend":"gpu-1","flow":{"from":"10.1.0.2:40000","to":"192.0.2.10:8000","protocol":"TCP","#,
            r#""translatedPort":10001},"packets":1,"bytes":60,"shadow":{"rule":"no-night","reason":"RuleDeny"},"#,
            r#""hash":"HASH"}"#,
            "\n"
        )
        .replace("HASH", "c0cce20ca96429d3da39919fb2b35e4ab43be502b76680c4376aa92c3f9f22b2")
    );
}

#[test]
fn slots_without_a_name_are_given_by_number_and_nobody_is_absent() {
    let mut refused = EventRecord {
        kind: EVENT_REFUSED,
        reason: Reason::UnknownTenant as u32,
        tenant: 0,
        service: 9,
        rule: 0,
        backend: 0,
        shadow_rule: 0,
        translated_port_be: 0,
        ..event()
    };
    refused.key.source = from_octets([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    refused.key.protocol = 58;
    let entry = decision(&refused, &Table, None, 0).unwrap();
    assert_eq!(
        (entry.tenant, entry.service.as_deref(), entry.rule),
        (None, Some("#8"), None)
    );
    let flow = entry.flow.unwrap();
    assert_eq!(flow.from.to_string(), "[2001:db8::1]:40000");
    assert_eq!((flow.protocol, flow.translated_port), (None, None));
}

#[test]
fn codes_that_are_not_declared_are_errors() {
    type Spoil = fn(&mut EventRecord);
    let cases: [(&str, Spoil); 4] = [
        ("kind", |event| event.kind = 99),
        ("reason", |event| event.reason = 99),
        ("direction", |event| event.direction = 2),
        ("shadow reason", |event| event.shadow_reason = 99),
    ];
    for (field, spoil) in cases {
        let mut event = event();
        spoil(&mut event);
        assert_eq!(decision(&event, &Table, None, 0).unwrap_err().field, field);
    }
}

#[test]
fn a_record_reads_back_as_it_was_written() {
    let entry = decision(&event(), &Table, None, 0).unwrap();
    let mut line = Vec::new();
    let mut chain = Chain::default();
    chain.seal(&identity(), &entry, &mut line).unwrap();
    let text = std::str::from_utf8(&line).unwrap().trim_end();
    let Line::Record(record) = read_line(text).unwrap() else {
        panic!("no record: {text}")
    };
    assert_eq!(
        (record.entry, record.sequence, record.hash),
        (entry, 1, chain.hash)
    );
    assert_eq!(line_sequence(&line), Some(1));
}

#[test]
fn a_chain_holds_over_segments() {
    let mut chain = Chain::default();
    let mut lines = segment(&mut chain, 3);
    lines.extend(segment(&mut chain, 2));
    let summary = verify(&lines).unwrap();
    assert_eq!(
        (summary.first_sequence, summary.records, summary.end),
        (1, 5, chain)
    );
    let second_alone = verify_chain(&lines[4..], None).unwrap();
    assert_eq!((second_alone.first_sequence, second_alone.records), (4, 2));
    assert_eq!(verify(&[]).unwrap().records, 0);
}

#[test]
fn every_way_to_tamper_is_found() {
    let mut chain = Chain::default();
    let mut good = segment(&mut chain, 3);
    good.extend(segment(&mut chain, 3));
    let fault = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = good.clone();
        change(&mut lines);
        verify(&lines).expect_err("the change must be found")
    };

    let edited = fault(&|lines| lines[2] = lines[2].replace("Control", "Refused"));
    assert_eq!(
        edited,
        ChainError {
            line: 3,
            fault: ChainFault::Hash
        }
    );
    let removed = fault(&|lines| drop(lines.remove(2)));
    assert_eq!(
        removed.fault,
        ChainFault::Sequence {
            found: 3,
            expected: 2
        }
    );
    let swapped = fault(&|lines| lines.swap(1, 2));
    assert!(
        matches!(swapped.fault, ChainFault::Sequence { .. }),
        "{swapped:?}"
    );
    let no_first_segment = fault(&|lines| drop(lines.drain(..4)));
    assert!(
        matches!(no_first_segment.fault, ChainFault::Previous { .. }),
        "{no_first_segment:?}"
    );
    let header_edited = fault(&|lines| lines[4] = lines[4].replace("lb-1", "lb-2"));
    assert_eq!(
        header_edited,
        ChainError {
            line: 5,
            fault: ChainFault::Hash
        }
    );
    let resealed = fault(&|lines| {
        let mut forged = Chain {
            sequence: 1,
            hash: ChainHash([9; 32]),
        };
        let mut out = Vec::new();
        forged
            .seal(
                &identity(),
                &Entry::new(Kind::Control, Timestamp::UNIX_EPOCH, 1, 1),
                &mut out,
            )
            .unwrap();
        lines[2] = String::from_utf8(out).unwrap().trim_end().to_owned();
    });
    assert_eq!(resealed.fault, ChainFault::Hash);
    let junk = fault(&|lines| lines[3] = "{\"sequence\":".into());
    assert!(matches!(junk.fault, ChainFault::Unreadable { .. }), "{junk:?}");
    let hash_not_last = fault(&|lines| lines[2] = lines[2].replace("\"}", "\" }"));
    assert_eq!(hash_not_last.fault, ChainFault::Hash);
    let headless = verify_chain(&good[1..], None).unwrap_err();
    assert_eq!(headless.fault, ChainFault::NoHeader);
}

#[test]
fn sequence_numbers_are_read_without_parsing() {
    for (line, expected) in [
        ("{\"sequence\":12,\"host\"", Some(12)),
        ("{\"sequence\":18446744073709551615,", Some(u64::MAX)),
        ("{\"sequence\":18446744073709551616,", None),
        ("{\"sequence\":", None),
        ("{\"sequence\":12", None),
        ("{\"segment\":\"x\"", None),
        ("", None),
    ] {
        assert_eq!(line_sequence(line.as_bytes()), expected, "{line}");
    }
}
