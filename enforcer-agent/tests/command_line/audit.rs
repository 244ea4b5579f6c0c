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
