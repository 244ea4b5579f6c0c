//! `policy simulate`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_agent::api::reply::{PolicyShowReply, PolicyStatus};
use enforcer_agent::api::{Reply, Request};
use enforcer_agent::pure::policy::PolicySource;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};

use super::daemon::Daemon;
use super::remote::ask;
use super::run;

const BEFORE: &str = "\
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: before}
spec:
  tenants: [{name: acme, sources: [10.1.0.0/16]}]
  services: [{name: chat, addresses: [192.0.2.10], port: 8000, protocol: UDP, pools: [one], forward: Nat}]
  pools: [{name: one, backends: [{name: gpu-1, address: 10.9.0.1, port: 8000}]}]
  rules: [{name: acme-may, action: Allow}]
";

/// Two policies and a capture of two datagrams of acme and one of a stranger.
struct Files {
    _directory: tempfile::TempDir,
    before: PathBuf,
    after: PathBuf,
    traffic: PathBuf,
}

fn datagram(from: [u8; 4], port: u8) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    bytes.extend(from);
    bytes.extend([192, 0, 2, 10, 0, port]);
    bytes.extend(8000_u16.to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    bytes
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let header = PcapHeader {
            datalink: DataLink::RAW,
            ..PcapHeader::default()
        };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for (seconds, from, port) in [
            (0, [10, 1, 0, 1], 1),
            (1, [10, 1, 0, 1], 2),
            (2, [10, 7, 0, 1], 1),
        ] {
            let data = datagram(from, port);
            let time = Duration::from_secs(1_700_000_000 + seconds);
            writer.write_packet(&PcapPacket::new(time, 28, &data)).unwrap();
        }
        fs::write(path("traffic.pcap"), writer.into_writer()).unwrap();
        fs::write(path("before.yaml"), BEFORE).unwrap();
        let after = BEFORE
            .replace("{name: before}", "{name: after}")
            .replace("acme-may, action: Allow", "nobody-may, action: Deny");
        fs::write(path("after.yaml"), after).unwrap();
        Self {
            before: path("before.yaml"),
            after: path("after.yaml"),
            traffic: path("traffic.pcap"),
            _directory: directory,
        }
    }

    fn arguments(&self) -> [&str; 6] {
        let [after, traffic] = [&self.after, &self.traffic].map(|path| text(path));
        ["policy", "simulate", "--policy", after, "--traffic", traffic]
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const EXPECTED: &str = "\
3 packets read, 2023-11-14 22:13:20Z to 2023-11-14 22:13:22Z

         2  get another verdict
         0  get the same verdict for another tenant, service, reason or rule
         1  stay as they are

TENANT  SERVICE  VERDICT               REASON               RULE                    PACKETS  CONNECTIONS
acme    chat     forwarded -> refused  Allowed -> RuleDeny  acme-may -> nobody-may        2            2

NEW CONNECTIONS  BEFORE  AFTER
gpu-1                 2      0
";

#[tokio::test]
async fn two_files_are_compared_without_a_daemon() {
    let files = Files::new();
    let against = ["--against", text(&files.before)];
    let ran = run(&[&files.arguments()[..], &against].concat()).await;
    ran.ends_with(0);
    assert!(
        ran.stdout.starts_with("before  before, digest "),
        "{}",
        ran.stdout
    );
    let (_, rest) = ran.stdout.split_once("\n\n").unwrap();
    assert_eq!(rest, EXPECTED, "{rest}");
    assert_eq!(ran.stderr, "");

    let json = run(&[
        &files.arguments()[..],
        &against,
        &["--output", "json", "--limit", "0"],
    ]
    .concat())
    .await;
    let value: serde_json::Value = serde_json::from_str(&json.ends_with(0).stdout).unwrap();
    assert_eq!(value["totals"]["changed"], 2);
    assert_eq!(value["omitted"], serde_json::json!({ "rows": 1, "packets": 2 }));
    assert_eq!(value["backends"][0]["name"], "gpu-1");
}

#[tokio::test]
async fn a_change_fails_only_if_that_is_asked_for() {
    let files = Files::new();
    let fail = ["--fail-on-change", "--against"];
    let changed = run(&[&files.arguments()[..], &fail, &[text(&files.before)]].concat()).await;
    assert!(
        changed.ends_with(1).stdout.contains("2  get another verdict"),
        "{changed:#?}"
    );
    assert_eq!(changed.stderr, "");
    let same = run(&[&files.arguments()[..], &fail, &[text(&files.after)]].concat()).await;
    assert!(
        same.ends_with(0).stdout.contains("3  stay as they are"),
        "{same:#?}"
    );
}

#[tokio::test]
async fn without_another_file_the_policy_in_force_is_compared() {
    let files = Files::new();
    let reply = PolicyShowReply {
        policy: PolicyStatus {
            name: "before".into(),
            digest: "0".repeat(64),
            file: "applied.yaml".into(),
            applied_at: "2026-11-22T20:00:00Z".parse().unwrap(),
            applied_by: None,
        },
        generation: 7,
        sources: vec![PolicySource::new("before.yaml", BEFORE)],
    };
    let daemon = Daemon::start(move |request, _| {
        assert_eq!(request, Request::PolicyShow { generation: None });
        Ok(Reply::PolicyShow(reply.clone()))
    });
    let ran = ask(&daemon, &files.arguments()).await;
    let (_, rest) = ran.ends_with(0).stdout.split_once("\n\n").unwrap();
    assert_eq!(rest, EXPECTED, "{rest}");
}

#[tokio::test]
async fn what_cannot_be_simulated_is_said_in_a_sentence() {
    let files = Files::new();
    let against = ["--against", text(&files.before)];
    fs::write(&files.traffic, "no capture").unwrap();
    let ran = run(&[&files.arguments()[..], &against].concat()).await;
    assert!(
        ran.ends_with(1).stderr.contains("neither pcap nor pcapng"),
        "{ran:#?}"
    );
    assert_eq!((ran.stdout.as_str(), ran.stderr.lines().count()), ("", 1));

    fs::write(&files.after, BEFORE.replace("spec:", "spec:\n  tenant: []")).unwrap();
    let ran = run(&[&files.arguments()[..], &against].concat()).await;
    assert!(
        ran.ends_with(1)
            .stderr
            .contains("there is no field `tenant` here"),
        "{ran:#?}"
    );
    assert!(
        ran.stderr.contains("is no policy that could be enforced"),
        "{ran:#?}"
    );
}
