//! `policy compile`, `diff`, `apply --dry-run`, `history`, `rollback`, and `explain` with a file.

use std::fs;
use std::path::PathBuf;

use enforcer_agent::api::reply::*;
use enforcer_agent::api::{ApiError, ErrorCode, Reply, Request};
use enforcer_agent::pure::diff::Diff;
use enforcer_agent::pure::policy::PolicySource;
use serde_json::Value;

use super::daemon::Daemon;
use super::remote::{ask, check, policy_status};
use super::{policies, run};

/// The sample, and a copy with another limit, another mode of a rule and without another rule.
struct Files {
    _directory: tempfile::TempDir,
    old: String,
    new: PathBuf,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let old = fs::read_to_string(policies().join("quickstart.yaml")).unwrap();
        let new = old
            .replace("newConnectionsPerSecond: 50\n", "newConnectionsPerSecond: 80\n")
            .replace("mode: Shadow", "mode: Enforce")
            .replace(
                "services: {matchLabels: {model: bge-m3}}",
                "services: {matchNames: [chat]}",
            );
        assert_ne!(old, new);
        let path = directory.path().join("new.yaml");
        fs::write(&path, new).unwrap();
        Self {
            _directory: directory,
            old,
            new: path,
        }
    }

    fn new_path(&self) -> &str {
        self.new.to_str().unwrap()
    }

    fn shown(&self) -> PolicyShowReply {
        PolicyShowReply {
            policy: policy_status(),
            generation: 3,
            sources: vec![PolicySource::new("old.yaml", self.old.clone())],
        }
    }
}

fn sample() -> String {
    policies().join("quickstart.yaml").display().to_string()
}

const DIFFERENCES: &str = "
WHAT    NAME                CHANGE
tenant  globex              limits.newConnectionsPerSecond 50 -> 80
rule    embeddings-for-all  services +chat -embeddings
rule    trial-of-chat       mode Shadow -> Enforce

EFFECT  TENANTS          SERVICES    PAIRS  BEFORE                                  AFTER
loses   globex, initech  embeddings      2  Allowed by embeddings-for-all           NoRule
gains   initech          chat            1  NoRule (shadow trial-of-chat: Allowed)  Allowed by embeddings-for-all

TENANTS          SERVICES    PAIRS  BACK ENDS                       PRIMARY POOL  FAILOVER
globex, initech  embeddings      2  -gpu-3                          h100-us -> -  same
initech          chat            1  +gpu-1 +gpu-1-v6 +gpu-2 +gpu-3  - -> h100-eu  - -> h100-us

pairs of tenant and service, with all back ends healthy: 1 gained, 2 lost, 0 changed otherwise
";

#[tokio::test]
async fn policy_compile_prints_the_digest_and_the_size_of_each_table() {
    let ran = run(&["policy", "compile", &sample(), "--output", "json"]).await;
    let json: Value = serde_json::from_str(&ran.ends_with(0).stdout).unwrap();
    let checked = run(&["policy", "check", &sample(), "--output", "json"]).await;
    let checked: Value = serde_json::from_str(&checked.ends_with(0).stdout).unwrap();
    assert_eq!(json["digest"], checked["digest"]);
    assert_eq!(json["name"], "quickstart");
    let tables = json["tables"].as_object().unwrap();
    for (name, records) in [
        ("tenants", 4),
        ("services", 3),
        ("backends", 4),
        ("eligibleSets", 4),
    ] {
        assert_eq!(tables[name]["records"], records, "{name}");
    }
    for (name, size) in tables {
        assert!(
            size["records"].as_u64() > Some(0) && size["bytes"].as_u64() > Some(0),
            "{name}: {size}"
        );
    }
    let sum: u64 = tables.values().filter_map(|size| size["bytes"].as_u64()).sum();
    assert_eq!(json["bytes"], sum);
    let table = run(&["policy", "compile", &sample()]).await;
    let digest = json["digest"].as_str().unwrap();
    assert!(
        table
            .ends_with(0)
            .stdout
            .starts_with(&format!("policy quickstart\ndigest {digest}\n\nTABLE ")),
        "{table:#?}"
    );
}

#[tokio::test]
async fn a_policy_with_errors_is_not_compiled_compared_or_explained() {
    let bad = policies()
        .join("rejected/unknown-field.yaml")
        .display()
        .to_string();
    let good = sample();
    for arguments in [
        &["policy", "compile", &bad][..],
        &["policy", "diff", &bad, "--against", &good],
        &["policy", "diff", &good, "--against", &bad],
        &[
            "policy",
            "explain",
            "--policy",
            &bad,
            "--from",
            "10.1.1.1",
            "--to",
            "192.0.2.10:8000",
        ],
    ] {
        let ran = run(arguments).await;
        ran.ends_with(1);
        assert_eq!(ran.stdout, "");
        assert!(
            ran.stderr.contains("unknown-field") && ran.stderr.contains("no policy that could"),
            "{ran:#?}"
        );
        let json = run(&[arguments, &["--output", "json"]].concat()).await;
        let error: Value = serde_json::from_str(&json.ends_with(1).stderr).unwrap();
        assert_eq!(
            error["error"]["details"]["diagnostics"][0]["code"],
            "unknown-field"
        );
    }
    let missing = run(&["policy", "compile", "/nonexistent/p.yaml"]).await;
    assert!(missing.ends_with(1).stderr.contains("/nonexistent/p.yaml"));
}

#[tokio::test]
async fn policy_diff_says_what_changes_for_whom() {
    let files = Files::new();
    let compare = ["policy", "diff", files.new_path(), "--against", &sample()];
    let ran = run(&compare).await;
    let shown = ran.ends_with(0).stdout.as_str();
    assert!(
        shown.starts_with("from  quickstart, digest ") && shown.ends_with(DIFFERENCES),
        "{shown}"
    );
    run(&[&compare[..], &["--exit-code"]].concat()).await.ends_with(1);

    let json = run(&[&compare[..], &["--exit-code", "--output", "json"]].concat()).await;
    let diff: Diff = serde_json::from_str(&json.ends_with(1).stdout).unwrap();
    assert_eq!(
        (diff.pairs.gained, diff.pairs.lost, diff.truncated),
        (1, 2, false)
    );
    assert_eq!(json.stderr, "", "the exit code says it");

    let same = run(&["policy", "diff", &sample(), "--against", &sample(), "--exit-code"]).await;
    assert!(
        same.ends_with(0)
            .stdout
            .ends_with("\nno differences: both mean the same\n"),
        "{same:#?}"
    );
}

#[tokio::test]
async fn policy_diff_compares_with_the_policy_in_force() {
    let files = Files::new();
    let shown = files.shown();
    let daemon = Daemon::start(move |request, _| match request {
        Request::PolicyShow { generation: None } => Ok(Reply::PolicyShow(shown.clone())),
        other => panic!("{other:?}"),
    });
    let ran = ask(&daemon, &["policy", "diff", files.new_path()]).await;
    assert!(ran.ends_with(0).stdout.ends_with(DIFFERENCES), "{ran:#?}");
    let none = Daemon::always(Err(ApiError::new(ErrorCode::NotFound, "no policy is in force")));
    let ran = ask(&none, &["policy", "diff", files.new_path()]).await;
    assert_eq!(ran.ends_with(1).stderr, "error: no policy is in force\n");
}

#[tokio::test]
async fn a_dry_run_says_what_would_be() {
    let files = Files::new();
    let reply = PolicyApplyReply {
        name: "quickstart".into(),
        digest: "ab".repeat(32),
        generation: 3,
        changed: false,
        map_writes: 12,
        would_be: Some(4),
        diagnostics: vec![],
    };
    let shown = files.shown();
    let answer = reply.clone();
    let daemon = Daemon::start(move |request, _| match request {
        Request::PolicyApply { dry_run: true, .. } => Ok(Reply::PolicyApply(answer.clone())),
        Request::PolicyShow { generation: None } => Ok(Reply::PolicyShow(shown.clone())),
        other => panic!("{other:?}"),
    });
    let dry_run = ["policy", "apply", "--dry-run", files.new_path()];
    let first = "nothing was changed, generation 3 is in force; quickstart would be generation 4, digest abababababab, 12 \
                 map writes\n";
    let ran = ask(&daemon, &dry_run).await;
    let shown = ran.ends_with(0).stdout.as_str();
    assert!(
        shown.starts_with(first) && shown.ends_with(DIFFERENCES),
        "{shown}"
    );
    let json = ask(&daemon, &[&dry_run[..], &["--output", "json"]].concat()).await;
    let json: Value = serde_json::from_str(&json.ends_with(0).stdout).unwrap();
    assert_eq!((&json["wouldBe"], &json["mapWrites"]), (&4.into(), &12.into()));
    assert_eq!(json["diff"]["pairs"]["lost"], 2);

    let fresh = Daemon::start(move |request, _| match request {
        Request::PolicyApply { dry_run: true, .. } => Ok(Reply::PolicyApply(reply.clone())),
        _ => Err(ApiError::new(ErrorCode::NotFound, "no policy is in force")),
    });
    let ran = ask(&fresh, &dry_run).await;
    assert_eq!(
        ran.ends_with(0).stdout,
        first,
        "nothing is in force to compare with"
    );
}

#[tokio::test]
async fn policy_explain_asks_a_file() {
    let allowed = explain("10.1.1.10:40000", "192.0.2.10:8000").await;
    assert_eq!(
        (allowed.reason.as_str(), allowed.effect),
        ("Allowed", Effect::Forwarded)
    );
    assert_eq!(allowed.rule.unwrap().name, "chat-for-paid");
    let backend = allowed.backend.unwrap();
    assert!(
        backend == "gpu-1" || backend == "gpu-2",
        "{backend} is not in the EU"
    );
    let denied = explain("10.1.1.10:40000", "192.0.2.11:8000").await;
    assert_eq!(denied.reason, "RuleDeny");
    let shadow = explain("10.1.3.1:40000", "192.0.2.10:8000").await;
    assert_eq!(shadow.shadow.unwrap().rule.name, "trial-of-chat");
    let evening = explain_at("10.1.3.1:40000", "192.0.2.10:8000", "2026-11-20T20:00:00+01:00").await;
    assert_eq!(evening.shadow, None, "the trial is over for today");
    let around = explain("10.1.1.10:40000", "10.9.1.2:8000").await;
    assert_eq!(around.reason, "Bypass");
}

/// What a packet would get under the sample, on a Friday morning.
async fn explain(from: &str, to: &str) -> PolicyExplainReply {
    explain_at(from, to, "2026-11-20T10:00:00+01:00").await
}

async fn explain_at(from: &str, to: &str, at: &str) -> PolicyExplainReply {
    let sample = sample();
    let question = [
        "policy", "explain", "--policy", &sample, "--from", from, "--to", to, "--at", at,
    ];
    let ran = run(&[&question[..], &["--output", "json"]].concat()).await;
    serde_json::from_str(&ran.ends_with(0).stdout).unwrap()
}

#[tokio::test]
async fn policy_history_lists_what_was_applied() {
    let row = |generation, in_force, rollback_of| HistoryRow {
        generation,
        in_force,
        policy: policy_status(),
        rollback_of,
    };
    let mut first = row(1, false, None);
    first.policy.applied_by = None;
    let reply = PolicyHistoryReply {
        entries: vec![row(12, true, Some(3)), row(7, false, None), first],
    };
    let expected = "\
GENERATION  APPLIED               BY                      POLICY  DIGEST        FILE         NOTE
        12  2026-11-22 20:00:00Z  uid 0 (pid 41)          prod    0123456789ab  policy.yaml  in force, back to 3
         7  2026-11-22 20:00:00Z  uid 0 (pid 41)          prod    0123456789ab  policy.yaml  -
         1  2026-11-22 20:00:00Z  the agent at its start  prod    0123456789ab  policy.yaml  -
";
    check(&["policy", "history"], Reply::PolicyHistory, reply, expected).await;
}

#[tokio::test]
async fn policy_rollback_names_what_it_went_back_to() {
    let reply = PolicyRollbackReply {
        restored: 3,
        applied: PolicyApplyReply {
            name: "prod".into(),
            digest: "ab".repeat(32),
            generation: 13,
            changed: true,
            map_writes: 12,
            would_be: None,
            diagnostics: vec![],
        },
    };
    let expected = "back to the policy of generation 3\nprod is in force: generation 13, digest abababababab, 12 map writes\n";
    check(
        &["policy", "rollback", "3"],
        Reply::PolicyRollback,
        reply,
        expected,
    )
    .await;
}
