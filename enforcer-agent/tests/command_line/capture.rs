//! `capture`: what it orders, the file that it leaves, and that it ends. The file is read by another reader than its writer.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;

use enforcer_agent::api::reply::{
    CaptureBeginReply, CaptureEndReply, CaptureReadReply, CapturedPacket, FrameBytes,
};
use enforcer_agent::api::{ApiError, CaptureOrder, Direction, ErrorCode, Reply, Request};
use enforcer_common::abi::reason::{Effect, Reason};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, OptionCode, PcapBlockOwned, PcapError, PcapNGReader};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::command;
use super::daemon::Daemon;
use super::remote::ask;

const ENDED: CaptureEndReply = CaptureEndReply {
    packets: 3,
    sampled_out: 70,
    lost: 5,
};

fn packet(interface: &str, rule: Option<&str>) -> CapturedPacket {
    CapturedPacket {
        time: "2026-11-22T20:00:00.123456789Z".parse().unwrap(),
        direction: Direction::Ingress,
        interface: interface.into(),
        reason: "RuleDeny".into(),
        tenant: Some("acme".into()),
        service: Some("chat".into()),
        rule: rule.map(str::to_owned),
        generation: 7,
        frame_bytes: 1514,
        frame: FrameBytes((0..61).collect()),
    }
}

fn begun() -> Result<Reply, ApiError> {
    Ok(Reply::CaptureBegin(CaptureBeginReply {
        serial: 9,
        until: "2026-11-22T20:01:00Z".parse().unwrap(),
    }))
}

fn read(packets: Vec<CapturedPacket>, ended: Option<CaptureEndReply>) -> Result<Reply, ApiError> {
    Ok(Reply::CaptureRead(CaptureReadReply { packets, ended }))
}

/// Two packets, nothing, one more and the end.
fn three_packets() -> (Daemon, mpsc::Receiver<Request>) {
    let (asked, requests) = mpsc::channel();
    let daemon = Daemon::start(move |request, before| {
        asked.send(request).unwrap();
        match before {
            0 => begun(),
            1 => read(vec![packet("eth0", Some("night")), packet("eth1", None)], None),
            2 => read(vec![], None),
            _ => read(vec![packet("eth0", None)], Some(ENDED)),
        }
    });
    (daemon, requests)
}

/// What a reader finds: interface, nanoseconds since 1970, bytes, original length, comment.
type Found = (String, u64, Vec<u8>, u32, String);

fn found(bytes: &[u8]) -> Vec<Found> {
    let mut reader = PcapNGReader::new(65_536, bytes).unwrap();
    let (mut interfaces, mut packets) = (Vec::new(), Vec::new());
    loop {
        let (used, block) = match reader.next() {
            Ok(next) => next,
            Err(PcapError::Eof) => return packets,
            Err(PcapError::Incomplete(_)) => {
                reader.refill().unwrap();
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        match block {
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                assert_eq!((interface.if_tsresol, interface.snaplen), (9, 128));
                let name = interface
                    .options
                    .iter()
                    .find(|option| option.code == OptionCode::IfName);
                interfaces.push(name.unwrap().as_str().unwrap().to_owned());
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let time_ns = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let comment = packet
                    .options
                    .iter()
                    .find(|option| option.code == OptionCode::Comment);
                packets.push((
                    interfaces[packet.if_id as usize].clone(),
                    time_ns,
                    packet.packet_data().to_vec(),
                    packet.origlen,
                    comment.unwrap().as_str().unwrap().to_owned(),
                ));
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {}
            _ => panic!("a capture has no other blocks"),
        }
        reader.consume(used);
    }
}

fn expected() -> Vec<Found> {
    let row = |interface: &str, rule: &str| {
        (
            interface.to_owned(),
            1_795_377_600_123_456_789,
            (0..61).collect(),
            1514,
            format!("reason=RuleDeny{rule} tenant=acme service=chat generation=7"),
        )
    };
    vec![row("eth0", " rule=night"), row("eth1", ""), row("eth0", "")]
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_capture_is_a_file_that_another_reader_understands() {
    let (daemon, requests) = three_packets();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("refused.pcapng");
    let words = [
        "capture",
        "--reason",
        "RuleDeny,bypass",
        "--tenant",
        "acme",
        "--count",
        "3",
        "-w",
        text(&path),
    ];
    let ran = ask(&daemon, &words).await;
    assert_eq!(
        ran.ends_with(0).stdout,
        "3 packets captured, 70 more left out by sampling, 5 more lost\n"
    );
    assert_eq!(found(&std::fs::read(&path).unwrap()), expected());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds what tenants send");
    let order = CaptureOrder {
        reasons: ["Bypass", "RuleDeny"].map(str::to_owned).into(),
        tenant: Some("acme".into()),
        service: None,
        count: 3,
        seconds: 60,
        snap_bytes: 128,
    };
    assert_eq!(requests.recv().unwrap(), Request::CaptureBegin(order));
    assert_eq!(requests.recv().unwrap(), Request::CaptureRead { serial: 9 });

    let (daemon, _requests) = three_packets();
    let ran = ask(&daemon, &["capture", "-w", text(&path), "--output", "json"]).await;
    let ended: CaptureEndReply = serde_json::from_str(&ran.ends_with(0).stdout).unwrap();
    assert_eq!(ended, ENDED);
}

#[tokio::test]
async fn a_capture_to_standard_output_is_nothing_but_the_capture() {
    let (daemon, requests) = three_packets();
    let socket = daemon.socket();
    let output = command(&["--socket", text(&socket), "capture", "-w", "-"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(found(&output.stdout), expected());
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("3 packets captured")
    );
    // Unless told otherwise, whatever is refused and nothing else.
    let Request::CaptureBegin(order) = requests.recv().unwrap() else {
        panic!("it begins")
    };
    assert!(order.reasons.contains("Internal") && !order.reasons.contains("NotService"));
    let refusals = Reason::ALL
        .iter()
        .filter(|reason| reason.effect() == Effect::Refused);
    let defaults = (refusals.count(), 1000, 60);
    assert_eq!((order.reasons.len(), order.count, order.seconds), defaults);
}

/// Answers without end, and says when it was told to end.
fn endless(packets: usize) -> (Daemon, mpsc::Receiver<Request>) {
    let (asked, requests) = mpsc::channel();
    let daemon = Daemon::start(move |request, _| match request {
        Request::CaptureBegin(_) => begun(),
        Request::CaptureRead { .. } => read(vec![packet("eth0", None); packets], None),
        other => {
            asked.send(other).unwrap();
            Ok(Reply::CaptureEnd(ENDED))
        }
    });
    (daemon, requests)
}

#[tokio::test]
async fn an_interrupt_ends_a_capture_in_good_order() {
    for packets in [0, 1] {
        let (daemon, requests) = endless(packets);
        let socket = daemon.socket();
        let mut child = command(&["--socket", text(&socket), "capture", "-w", "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It has begun when there is something to read.
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 28]).await.unwrap();
        let drained = tokio::spawn(async move { out.read_to_end(&mut Vec::new()).await });
        let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = said.next_line().await.unwrap().unwrap();
        assert!(said.starts_with("3 packets captured"), "{said}");
        assert_eq!(child.wait().await.unwrap().code(), Some(0));
        assert_eq!(requests.try_recv(), Ok(Request::CaptureEnd { serial: 9 }));
        drained.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_ends_a_capture() {
    for packets in [0, 1] {
        let (daemon, requests) = endless(packets);
        let socket = daemon.socket();
        let mut child = command(&["--socket", text(&socket), "capture", "-w", "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 28]).await.unwrap();
        drop(out);
        assert_eq!(child.wait().await.unwrap().code(), Some(0));
        assert_eq!(requests.try_recv(), Ok(Request::CaptureEnd { serial: 9 }));
    }
}

#[tokio::test]
async fn orders_beyond_the_bounds_are_wrong_usage_and_leave_no_file() {
    let (daemon, _requests) = endless(0);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("refused.pcapng");
    for (arguments, said) in [
        (&["--count", "0"][..], "1..=100000"),
        (&["--count", "100001"], "1..=100000"),
        (&["--seconds", "3601"], "1..=3600"),
        (&["--snap", "13"], "14..=256"),
        (&["--snap", "257"], "14..=256"),
        (&["--reason", "Allowed"], "sent on"),
        (&["--reason", "Bypas"], "Bypass"),
    ] {
        let ran = ask(&daemon, &[&["capture", "-w", text(&path)], arguments].concat()).await;
        assert!(
            ran.ends_with(2).stderr.contains(said),
            "{arguments:?}: {}",
            ran.stderr
        );
    }
    assert!(
        ask(&daemon, &["capture"])
            .await
            .ends_with(2)
            .stderr
            .contains("--write")
    );
    assert!(!path.exists());
    let nowhere = directory.path().join("none/refused.pcapng");
    let ran = ask(&daemon, &["capture", "-w", text(&nowhere)]).await;
    assert!(
        ran.ends_with(1).stderr.contains("cannot write the capture"),
        "{}",
        ran.stderr
    );
    let busy = Daemon::always(Err(ApiError::new(ErrorCode::Busy, "uid 0 captures already")));
    let ran = ask(&busy, &["capture", "-w", text(&path)]).await;
    assert!(ran.ends_with(1).stderr.contains("captures already"));
}
