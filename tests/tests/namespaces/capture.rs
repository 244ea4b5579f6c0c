//! What an operator on call looks at: packets that were refused, as they came, and flows as they happen.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use enforcer_agent::pure::audit::{AuditRecord, Kind};
use enforcer_tests::harness::eventually;
use enforcer_tests::lab::topology::{Leaf, Routed};
use enforcer_tests::packet::{endpoint, inspect};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, OptionCode, PcapBlockOwned, PcapError, PcapNGReader};

use super::bench::{self, ALL_INTERFACES, Bench, LIMIT, REFUSED_LIMIT};
use super::echo::connect;
use super::privileged;

/// A command of the agent that runs beside the test; it ends with the test.
struct Running(Child);

impl Running {
    fn start(bench: &Bench<Routed>, words: &[&str]) -> Self {
        let mut command = Command::new(bench.agent.program());
        command.arg("--socket").arg(bench.agent.socket()).args(words);
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// What it wrote, once it has ended well.
    fn output(mut self) -> String {
        eventually("the end of the command", LIMIT, || {
            let ended = self.0.try_wait().unwrap();
            Ok(ended.ok_or_else(|| "it runs".to_owned()))
        })
        .unwrap();
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
        std::io::read_to_string(self.0.stdout.take().unwrap()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already if all went well.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Bytes and comment of every packet of a file.
fn packets(path: &Path) -> Vec<(Vec<u8>, String)> {
    let bytes = fs::read(path).unwrap();
    let mut reader = PcapNGReader::new(65_536, &bytes[..]).unwrap();
    let mut packets = Vec::new();
    loop {
        match reader.next() {
            Ok((used, block)) => {
                if let PcapBlockOwned::NG(Block::EnhancedPacket(packet)) = block {
                    let comment = packet
                        .options
                        .iter()
                        .find(|option| option.code == OptionCode::Comment);
                    let comment = comment.unwrap().as_str().unwrap().to_owned();
                    packets.push((packet.packet_data().to_vec(), comment));
                }
                reader.consume(used);
            }
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(PcapError::Eof) => return packets,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Waits until the audit log says that a capture has begun.
fn wait_for_begin(bench: &Bench<Routed>) {
    eventually("the record of a capture", LIMIT, || {
        let records: Vec<AuditRecord> = bench.agent.ask_lines(&["audit", "tail", "-n", "50"])?;
        let began = records.iter().any(|record| is_about(record, "captureBegin"));
        Ok(began
            .then_some(())
            .ok_or_else(|| format!("{} records", records.len())))
    })
    .unwrap();
}

fn is_about(record: &AuditRecord, what: &str) -> bool {
    record
        .entry
        .change
        .as_ref()
        .is_some_and(|change| change.what == what)
}

fn capture_of(bench: &Bench<Routed>, who: &Leaf, is_ipv6: bool) -> Vec<(Vec<u8>, String)> {
    let path = bench.lab.directory().join("refused.pcapng");
    let words = [
        "capture",
        "--reason",
        "UnknownTenant",
        "--count",
        "1",
        "-w",
        path.to_str().unwrap(),
    ];
    let capture = Running::start(bench, &words);
    wait_for_begin(bench);
    assert!(connect(who, bench::vip(is_ipv6), REFUSED_LIMIT).is_none());
    assert!(capture.output().starts_with("1 packet captured"));
    packets(&path)
}

#[test]
fn the_first_packet_of_a_stranger_is_captured_with_the_reason_why_it_was_refused() {
    if !privileged() {
        return;
    }
    for is_ipv6 in [false, true] {
        let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", "", "Allow"));
        let stranger = &bench.network.clients[1];
        let packets = capture_of(&bench, stranger, is_ipv6);
        let [(frame, comment)] = &packets[..] else {
            panic!("{packets:?}")
        };
        assert_eq!(comment, "reason=UnknownTenant service=chat generation=1");
        // It is whole: the checksums add up.
        let seen = inspect(frame).unwrap();
        let from = endpoint(&seen.key.source, seen.key.source_port_be);
        let to = endpoint(&seen.key.destination, seen.key.destination_port_be);
        assert_eq!((from.ip(), to), (stranger.address(is_ipv6), bench::vip(is_ipv6)));
        let records: Vec<AuditRecord> = bench.agent.ask_lines(&["audit", "tail", "-n", "50"]).unwrap();
        let end = records
            .iter()
            .find(|record| is_about(record, "captureEnd"))
            .expect("it is recorded");
        assert_eq!(end.entry.packets, Some(1));
        assert_eq!(end.entry.actor.map(|actor| actor.uid), Some(0));
    }
}

#[test]
fn flows_are_watched_as_they_happen() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", "", "Allow"));
    let _echoes = bench.echoes();
    let words = [
        "flows", "watch", "--tenant", "acme", "--count", "2", "--output", "json",
    ];
    let mut watch = Running::start(&bench, &words);
    // When it begins to watch it does not say: flows are opened, and refused to others, until it has seen two.
    eventually("two flows", LIMIT, || {
        assert!(connect(bench.client(), bench::vip(false), LIMIT).is_some());
        assert!(connect(&bench.network.clients[1], bench::vip(false), REFUSED_LIMIT).is_none());
        let ended = watch.0.try_wait().unwrap();
        Ok(ended.ok_or_else(|| "none, or one".to_owned()))
    })
    .unwrap();
    let output = watch.output();
    let records: Vec<AuditRecord> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 2, "{output}");
    for record in records {
        assert_eq!(record.entry.kind, Kind::FlowOpened);
        assert_eq!(record.entry.tenant.as_deref(), Some("acme"));
    }
}
