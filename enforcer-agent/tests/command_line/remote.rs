//! Commands that ask the daemon.

use std::process::Stdio;

use enforcer_agent::api::reply::*;
use enforcer_agent::api::{Actor, ApiError, Direction, ErrorCode, Protocol, Reply, Request};
use enforcer_agent::pure::policy::{self, PolicySource};
use tokio::io::AsyncReadExt;

use super::daemon::Daemon;
use super::{Ran, command, run};

pub(crate) async fn ask(daemon: &Daemon, arguments: &[&str]) -> Ran {
    let socket = daemon.socket();
    run(&[&["--socket", socket.to_str().unwrap()], arguments].concat()).await
}

/// The table must be as given; the JSON must hold the reply itself.
pub(crate) async fn check<T>(arguments: &[&str], wrap: fn(T) -> Reply, reply: T, expected: &str)
where
    T: serde::Serialize + Clone,
{
    let daemon = Daemon::always(Ok(wrap(reply.clone())));
    let table = ask(&daemon, arguments).await;
    assert_eq!(table.ends_with(0).stdout, expected, "{}", table.stdout);
    assert_eq!(table.stderr, "");
    let json = ask(&daemon, &[arguments, &["--output", "json"]].concat()).await;
    let value: serde_json::Value = serde_json::from_str(&json.ends_with(0).stdout).unwrap();
    assert_eq!(value, serde_json::to_value(reply).unwrap());
}

pub(crate) fn count(direction: Direction, reason: &str, packets: u64, bytes: u64) -> ReasonCount {
    ReasonCount {
        direction,
        reason: reason.into(),
        packets,
        bytes,
    }
}

pub(crate) fn policy_status() -> PolicyStatus {
    PolicyStatus {
        name: "prod".into(),
        digest: "0123456789abcdef".repeat(4),
        file: "policy.yaml".into(),
        applied_at: "2026-11-22T20:00:00Z".parse().unwrap(),
        applied_by: Some(Actor {
            uid: 0,
            pid: Some(41),
        }),
    }
}

#[tokio::test]
async fn status() {
    let reply = StatusReply {
        version: "0.1.0".into(),
        pid: 42,
        host: "lb-1".into(),
        boot_id: "b0".into(),
        instance: "enforcer".into(),
        uptime_seconds: 3700,
        generation: 7,
        policy: Some(policy_status()),
        schedules: Some(ScheduleStatus {
            scheduled_rules: 3,
            closed_rules: 1,
            next_change: Some("2026-11-23T07:00:00Z".parse().unwrap()),
        }),
        schema: SchemaStatus {
            version: 1,
            hash: "abc".into(),
        },
        interfaces: vec![
            InterfaceStatus {
                name: "eth0".into(),
                ifindex: 2,
                mode: IngressMode::Native,
                why_not_native: None,
            },
            InterfaceStatus {
                name: "tun0".into(),
                ifindex: 13,
                mode: IngressMode::Generic,
                why_not_native: Some("the driver has no XDP".into()),
            },
        ],
        packets: vec![
            count(Direction::Ingress, "Allowed", 1200, 3_145_728),
            count(Direction::Egress, "ResponseRate", 3, 4500),
        ],
        flows: FlowUsage {
            open: 12,
            capacity: 262_144,
        },
        audit: AuditStatus {
            sequence: 99,
            recorded: 90,
            aggregated: 5,
            lost: 0,
            segment: "/var/lib/enforcer/audit/audit-00000000000000000001.jsonl".into(),
            error: None,
        },
        nvml: NvmlStatus::Absent {
            reason: "libnvidia-ml.so.1 is not there".into(),
        },
        warnings: vec!["gpu-2 has no next hop yet".into()],
    };
    let expected = "\
agent       version 0.1.0, instance enforcer on lb-1, process 42, up 1h 1m
policy      prod, digest 0123456789ab, applied 2026-11-22 20:00:00Z by uid 0 (pid 41) from policy.yaml
schedules   1 of 3 rules with one are closed; next change 2026-11-23 07:00:00Z
generation  7
schema      version 1, hash abc
flows       12 of 262144
audit       record 99 in /var/lib/enforcer/audit/audit-00000000000000000001.jsonl; decisions: 90 recorded, 5 aggregated, 0 lost
gpus        none watched here: libnvidia-ml.so.1 is not there

INTERFACE  INDEX  XDP      WHY NOT NATIVE
eth0           2  native   -
tun0          13  generic  the driver has no XDP

DIRECTION  REASON        PACKETS    BYTES
ingress    Allowed          1200  3.0 MiB
egress     ResponseRate        3  4.3 KiB

warning: gpu-2 has no next hop yet
";
    check(
        &["status"],
        |reply| Reply::Status(Box::new(reply)),
        reply,
        expected,
    )
    .await;
}

#[tokio::test]
async fn changes_are_confirmed_in_one_line() {
    let reply = |changed| ChangeReply {
        name: "acme".into(),
        changed,
        generation: 8,
    };
    check(
        &["tenant", "suspend", "acme"],
        Reply::TenantSuspend,
        reply(true),
        "acme suspended, generation 8\n",
    )
    .await;
    check(
        &["tenant", "resume", "acme"],
        Reply::TenantResume,
        reply(false),
        "acme was resumed already\n",
    )
    .await;
    check(
        &["backend", "drain", "acme"],
        Reply::BackendDrain,
        reply(true),
        "acme drained, generation 8\n",
    )
    .await;
    check(
        &["backend", "undrain", "acme"],
        Reply::BackendUndrain,
        reply(true),
        "acme undrained, generation 8\n",
    )
    .await;
    let reply = DetachReply {
        interfaces: vec!["eth0".into()],
        pins: vec!["/sys/fs/bpf/enforcer".into()],
    };
    let expected = "no longer governed: eth0\nremoved /sys/fs/bpf/enforcer\n";
    check(&["detach"], Reply::Detach, reply, expected).await;
}

#[tokio::test]
async fn explain_names_every_step() {
    let step = |step: &str, finding: &str| ExplainStep {
        step: step.into(),
        finding: finding.into(),
    };
    let reply = PolicyExplainReply {
        from: "10.1.0.2:0".parse().unwrap(),
        to: "192.0.2.10:8000".parse().unwrap(),
        protocol: Protocol::Tcp,
        generation: 7,
        at: Some("2026-11-22T20:00:00Z".parse().unwrap()),
        reason: "RuleDeny".into(),
        sentence: "A rule denies this tenant the use of this service.".into(),
        effect: Effect::Refused,
        tenant: Some("acme".into()),
        service: Some("chat".into()),
        rule: Some(RuleRef {
            name: "no-night".into(),
            line: 31,
            file: None,
        }),
        backend: None,
        shadow: Some(ShadowRef {
            rule: RuleRef {
                name: "trial".into(),
                line: 0,
                file: None,
            },
            reason: "Allowed".into(),
        }),
        steps: vec![
            step("destination", "service chat"),
            step("rule", "no-night denies"),
        ],
    };
    let expected = "\
TCP 10.1.0.2:0 -> 192.0.2.10:8000: refused, RuleDeny
A rule denies this tenant the use of this service.

tenant      acme
service     chat
rule        no-night (line 31)
back end    -
shadow      trial would have said Allowed
generation  7
at          2026-11-22T20:00:00Z

1. destination  service chat
2. rule         no-night denies
";
    let arguments = [
        "policy",
        "explain",
        "--from",
        "10.1.0.2",
        "--to",
        "192.0.2.10:8000",
    ];
    check(
        &arguments,
        |reply| Reply::PolicyExplain(Box::new(reply)),
        reply,
        expected,
    )
    .await;
}

#[tokio::test]
async fn policy_show_prints_a_policy_again() {
    let reply = PolicyShowReply {
        policy: policy_status(),
        generation: 7,
        sources: vec![PolicySource::new("policy.yaml", "kind: X\r\n\tb: \u{1b}c")],
    };
    let digest = "0123456789abcdef".repeat(4);
    let expected = format!(
        "# generation 7: prod, digest 0123456789ab, applied 2026-11-22 20:00:00Z by uid 0 (pid 41) from policy.yaml\n\
         # digest {digest}\nkind: X\n    b: \u{fffd}c\n"
    );
    check(&["policy", "show"], Reply::PolicyShow, reply, &expected).await;
}

#[tokio::test]
async fn policy_apply_sends_the_text_and_shows_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy.yaml");
    std::fs::write(&path, "kind: Wrong\n").unwrap();
    let path = path.to_str().unwrap();
    let daemon = Daemon::start(|request, _| {
        let Request::PolicyApply {
            sources,
            dry_run: false,
        } = request
        else {
            panic!("{request:?}")
        };
        let diagnostics = policy::load_all(&sources).diagnostics;
        Err(ApiError::new(
            ErrorCode::PolicyInvalid,
            "the policy has errors; generation 3 stays in force",
        )
        .with("diagnostics", diagnostics))
    });
    let refused = ask(&daemon, &["policy", "apply", path]).await;
    refused.ends_with(1);
    assert!(
        refused.stderr.contains(path) && refused.stderr.contains("4 errors"),
        "{refused:#?}"
    );
    assert!(
        refused
            .stderr
            .ends_with("error: the policy has errors; generation 3 stays in force\n"),
        "{refused:#?}"
    );
    let json = ask(&daemon, &["--output", "json", "policy", "apply", path]).await;
    let error: serde_json::Value = serde_json::from_str(&json.ends_with(1).stderr).unwrap();
    assert_eq!(error["error"]["code"], "policyInvalid");
    assert_eq!(error["error"]["details"]["diagnostics"][0]["severity"], "error");
}

#[tokio::test]
async fn a_refusal_ends_with_1_and_says_why() {
    let daemon = Daemon::always(Err(ApiError::new(
        ErrorCode::NotFound,
        "there is no tenant `acne`",
    )));
    let ran = ask(&daemon, &["tenant", "suspend", "acne"]).await;
    assert_eq!(ran.ends_with(1).stderr, "error: there is no tenant `acne`\n");
    assert_eq!(ran.stdout, "");
}

#[tokio::test]
async fn a_closed_standard_output_is_no_error() {
    let text = "# a line of a policy\n".repeat(200_000);
    let daemon = Daemon::always(Ok(Reply::PolicyShow(PolicyShowReply {
        policy: policy_status(),
        generation: 1,
        sources: vec![PolicySource::new("p.yaml", text)],
    })));
    let socket = daemon.socket();
    let mut child = command(&["--socket", socket.to_str().unwrap(), "policy", "show"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 12];
    child.stdout.take().unwrap().read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"# generation");
    let ran = Ran::of(child.wait_with_output().await.unwrap());
    assert_eq!(ran.ends_with(0).stderr, "");
}
