//! `audit tail`.

use std::process::Stdio;

use enforcer_agent::api::reply::AuditTailReply;
use enforcer_agent::api::{Actor, Protocol, Reply, Request};
use enforcer_agent::pure::audit::{AuditRecord, ChainHash, Change, Entry, FlowTuple, Kind};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::command;
use super::daemon::Daemon;
use super::remote::ask;

fn record(sequence: u64) -> AuditRecord {
    let flow = FlowTuple {
        from: "10.1.0.2:40000".parse().unwrap(),
        to: "192.0.2.10:8000".parse().unwrap(),
        protocol: Some(Protocol::Tcp),
        translated_port: None,
    };
    let entry = Entry {
        reason: Some("RuleDeny".into()),
        tenant: Some("acme".into()),
        flow: Some(flow),
        bytes: Some(60),
        ..Entry::new(Kind::Refused, "2026-11-22T20:00:00.5Z".parse().unwrap(), 1, 7)
    };
    AuditRecord {
        sequence,
        host: "lb-1".into(),
        boot_id: "b0".into(),
        entry,
        hash: ChainHash([7; 32]),
    }
}

#[tokio::test]
async fn audit_tail_prints_a_record_on_a_line() {
    let mut control = record(2);
    control.entry = Entry {
        actor: Some(Actor {
            uid: 0,
            pid: Some(41),
        }),
        change: Some(Change {
            what: "weight".into(),
            from: Some("1000".into()),
            to: Some("500".into()),
            causes: vec!["GPU slowed down by heat".into()],
        }),
        ..Entry::new(Kind::Control, control.entry.time, 1, 8)
    };
    let records = vec![record(1), control];
    let daemon = Daemon::always(Ok(Reply::AuditTail(AuditTailReply {
        records: records.clone(),
        next: 3,
    })));
    let table = ask(&daemon, &["audit", "tail"]).await;
    let expected = "     1  20:00:00.500  Refused  RuleDeny  TCP 10.1.0.2:40000 -> 192.0.2.10:8000  tenant=acme  bytes=60  \
                    generation=7\n     2  20:00:00.500  Control  generation=8  weight 1000 -> 500 (GPU slowed down by heat)  \
                    by uid 0 (pid 41)\n";
    assert_eq!(table.ends_with(0).stdout, expected);
    let json = ask(&daemon, &["audit", "tail", "--output", "json"]).await;
    let parsed: Vec<AuditRecord> = json
        .ends_with(0)
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(parsed, records);
}

#[tokio::test]
async fn audit_tail_follows_from_the_last_record_on() {
    let daemon = Daemon::start(|request, before| {
        let Request::AuditTail { from, limit } = request else {
            panic!("{request:?}")
        };
        let (records, next) = match before {
            0 => {
                assert_eq!((from, limit), (None, 2));
                (vec![record(4), record(5)], 6)
            }
            1 | 2 => {
                assert_eq!(from, Some(6));
                (vec![], 6)
            }
            _ => (vec![record(from.unwrap())], from.unwrap() + 1),
        };
        Ok(Reply::AuditTail(AuditTailReply { records, next }))
    });
    let socket = daemon.socket();
    let mut child = command(&[
        "--socket",
        socket.to_str().unwrap(),
        "audit",
        "tail",
        "-n",
        "2",
        "--follow",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for expected in 4..8 {
        let line = lines.next_line().await.unwrap().expect("there is another record");
        assert!(
            line.starts_with(&format!("{expected:>6}  20:00:00.500  Refused")),
            "{line}"
        );
    }
    drop(daemon);
    // The daemon is gone, and so is what was followed: the records that are still in the pipe come first.
    while let Ok(Some(_)) = lines.next_line().await {}
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
}

/// Flows of two tenants that are opened, moved, refused and closed.
fn happenings(first: u64) -> Vec<AuditRecord> {
    let kinds = [
        ("acme", Kind::FlowOpened),
        ("globex", Kind::FlowOpened),
        ("acme", Kind::FlowClosed),
        ("acme", Kind::FlowMoved),
        ("acme", Kind::Refused),
    ];
    let of = |(sequence, (tenant, kind)): (u64, (&str, Kind))| {
        let mut record = record(sequence);
        record.entry.kind = kind;
        record.entry.tenant = Some(tenant.to_owned());
        record.entry.service = Some("chat".to_owned());
        record.entry.backend = (kind != Kind::Refused).then(|| "gpu-1".to_owned());
        record
    };
    (first..).zip(kinds).map(of).collect()
}

#[tokio::test]
async fn flows_watch_prints_what_happens_to_flows_from_now_on() {
    for (arguments, expected) in [
        (&["--count", "5"][..], &[12, 13, 15, 16, 17][..]),
        (&["--tenant", "globex", "--count", "1"], &[13]),
        (
            &["--tenant", "acme", "--service", "chat", "--count", "3"],
            &[12, 15, 16],
        ),
        (&["--backend", "gpu-1", "--count", "4"], &[12, 13, 15, 17]),
    ] {
        let daemon = Daemon::start(|request, before| {
            let Request::AuditTail { from, limit } = request else {
                panic!("{request:?}")
            };
            let (records, next) = match before {
                // What was before is not told.
                0 => {
                    assert_eq!((from, limit), (None, 1));
                    (vec![record(11)], 12)
                }
                1 => {
                    assert_eq!(from, Some(12));
                    (vec![], 12)
                }
                _ => (happenings(from.unwrap()), from.unwrap() + 5),
            };
            Ok(Reply::AuditTail(AuditTailReply { records, next }))
        });
        let words = [&["flows", "watch", "--output", "json"], arguments].concat();
        let ran = ask(&daemon, &words).await;
        let sequences: Vec<u64> = ran
            .ends_with(0)
            .stdout
            .lines()
            .map(|line| serde_json::from_str::<AuditRecord>(line).unwrap().sequence)
            .collect();
        assert_eq!(sequences, expected, "{arguments:?}");
    }
}

#[tokio::test]
async fn flows_watch_ends_when_nobody_reads_or_somebody_interrupts_it() {
    for interrupts in [true, false] {
        let daemon = Daemon::start(|_, before| {
            let records = if before == 1 { happenings(1) } else { vec![] };
            Ok(Reply::AuditTail(AuditTailReply { records, next: 6 }))
        });
        let socket = daemon.socket();
        let mut child = command(&["--socket", socket.to_str().unwrap(), "flows", "watch"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for kind in ["FlowOpened", "FlowOpened", "FlowMoved", "Refused"] {
            let line = lines.next_line().await.unwrap().unwrap();
            assert!(line.contains(kind), "{line}");
        }
        if interrupts {
            let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        } else {
            drop(lines);
        }
        assert_eq!(child.wait().await.unwrap().code(), Some(0));
    }
}
