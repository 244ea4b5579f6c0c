//! Commands that need no daemon.

use std::fs;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use super::{Ran, command, policies, run};

#[tokio::test]
async fn wrong_usage_ends_with_2_and_help_with_0() {
    for arguments in [
        &[][..],
        &["fly"],
        &["status", "extra"],
        &["--output", "xml", "status"],
        &["policy"],
        &["policy", "explain", "--from", "10.1.0.2"],
        &["policy", "explain", "--from", "host", "--to", "192.0.2.10:80"],
        &["policy", "rollback", "-1"],
        &["policy", "compile"],
        &["tenant", "suspend"],
        &["run"],
        &["flows", "list", "--limit", "-1"],
    ] {
        let ran = run(arguments).await;
        ran.ends_with(2);
        assert!(
            ran.stdout.is_empty() && ran.stderr.contains("--help"),
            "{arguments:?}: {ran:#?}"
        );
    }
    let help = run(&["--help"]).await;
    assert!(
        help.ends_with(0).stdout.contains("Exit codes: 0 done"),
        "{help:#?}"
    );
    let version = run(&["--version"]).await;
    assert_eq!(
        version.ends_with(0).stdout,
        concat!("enforcer-agent ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[tokio::test]
async fn every_remote_command_ends_with_3_without_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let policy = policies().join("quickstart.yaml");
    let (socket, policy) = (socket.to_str().unwrap(), policy.to_str().unwrap());
    for arguments in [
        &["status"][..],
        &["detach"],
        &["policy", "apply", policy],
        &["policy", "apply", "--dry-run", policy],
        &["policy", "show"],
        &["policy", "diff", policy],
        &["policy", "history"],
        &["policy", "rollback", "7"],
        &[
            "policy",
            "explain",
            "--from",
            "10.1.0.2",
            "--to",
            "192.0.2.10:8000",
        ],
        &["tenant", "list"],
        &["backend", "drain", "gpu-1"],
        &["service", "list"],
        &["flows", "list"],
        &["maps", "dump", "TENANTS"],
        &["audit", "tail", "--follow"],
    ] {
        let ran = run(&[&["--socket", socket], arguments].concat()).await;
        ran.ends_with(3);
        assert_eq!(ran.stdout, "");
        assert!(
            ran.stderr.contains(socket) && ran.stderr.contains("enforcer-agent run --config"),
            "{ran:#?}"
        );
        assert_eq!(ran.stderr.lines().count(), 1, "one clear sentence: {ran:#?}");
    }
    let json = run(&["--socket", socket, "--output", "json", "status"]).await;
    let error: serde_json::Value = serde_json::from_str(&json.ends_with(3).stderr).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains(socket));
}

#[tokio::test]
async fn policy_check_says_what_is_wrong_and_where() {
    let good = policies().join("quickstart.yaml");
    let ran = run(&["policy", "check", good.to_str().unwrap()]).await;
    ran.ends_with(0);
    assert!(
        ran.stdout.contains(" is valid: 3 tenants, 2 services, "),
        "{ran:#?}"
    );
    assert!(ran.stdout.contains("\ndigest "), "{ran:#?}");

    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.yaml");
    fs::write(
        &bad,
        fs::read_to_string(&good)
            .unwrap()
            .replacen("spec:", "spec:\n  tenant: []", 1),
    )
    .unwrap();
    let ran = run(&["policy", "check", bad.to_str().unwrap()]).await;
    ran.ends_with(4);
    assert!(ran.stdout.contains("there is no field `tenant` here"), "{ran:#?}");
    assert!(ran.stdout.contains("Did you mean `tenants`?"), "{ran:#?}");
    assert_eq!(ran.stderr, "");

    let ran = run(&["--output", "json", "policy", "check", bad.to_str().unwrap()]).await;
    let json: serde_json::Value = serde_json::from_str(&ran.ends_with(4).stdout).unwrap();
    assert_eq!(json["valid"], false);
    assert_eq!(json["digest"], serde_json::Value::Null);
    assert_eq!(json["diagnostics"][0]["code"], "unknown-field");
    assert!(json["diagnostics"][0]["line"].as_u64().unwrap() > 1);

    let missing = run(&["policy", "check", "/nonexistent/policy.yaml"]).await;
    assert!(
        missing.ends_with(1).stderr.contains("/nonexistent/policy.yaml"),
        "{missing:#?}"
    );
    let binary = directory.path().join("binary");
    fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    run(&["policy", "check", binary.to_str().unwrap()])
        .await
        .ends_with(1);
}

#[tokio::test]
async fn a_directory_is_one_policy_and_diagnostics_name_its_files() {
    let text = fs::read_to_string(policies().join("quickstart.yaml")).unwrap();
    let (head, spec) = text.split_once("\nspec:\n").unwrap();
    let (front, back) = spec.split_at(spec.find("  # Groups of back ends").unwrap());
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("1.yaml"), format!("{head}\nspec:\n{front}")).unwrap();
    let second = directory.path().join("2.yml");
    fs::write(&second, format!("{head}\nspec:\n{back}")).unwrap();
    let digest = |ran: &Ran| {
        let json: serde_json::Value = serde_json::from_str(&ran.ends_with(0).stdout).unwrap();
        json["digest"].as_str().unwrap().to_owned()
    };
    let check = |path: &str| {
        let arguments = [
            "--output".to_owned(),
            "json".into(),
            "policy".into(),
            "check".into(),
            path.into(),
        ];
        async move { run(&arguments.each_ref().map(String::as_str)).await }
    };
    let split = check(directory.path().to_str().unwrap()).await;
    let whole = check(policies().join("quickstart.yaml").to_str().unwrap()).await;
    assert_eq!(digest(&split), digest(&whole));

    fs::write(&second, format!("{head}\nspec:\n{back}\n  tenant: []\n")).unwrap();
    let ran = run(&["policy", "check", directory.path().to_str().unwrap()]).await;
    assert!(ran.ends_with(4).stdout.contains("/2.yml:"), "{ran:#?}");
}

#[tokio::test]
async fn the_schema_is_printed_as_it_stands_in_the_repository() {
    let ran = run(&["policy", "schema"]).await;
    let expected = fs::read_to_string(policies().join("schema.json")).unwrap();
    assert_eq!(ran.ends_with(0).stdout, expected);
}

#[tokio::test]
async fn policy_check_reads_standard_input() {
    let text = fs::read(policies().join("quickstart.yaml")).unwrap();
    let mut child = command(&["--output", "json", "policy", "check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&text).await.unwrap();
    let ran = Ran::of(child.wait_with_output().await.unwrap());
    let json: serde_json::Value = serde_json::from_str(&ran.ends_with(0).stdout).unwrap();
    assert_eq!(
        (&json["valid"], json["digest"].as_str().unwrap().len()),
        (&true.into(), 64)
    );
}

#[tokio::test]
async fn run_with_a_wrong_configuration_names_every_place() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("agent.yaml");
    fs::write(&config, "interfaces: [eth0]\nnat: {ports: 1-2}\ninstance: a/b\n").unwrap();
    let path = config.to_str().unwrap();
    let ran = run(&["run", "--config", path]).await;
    ran.ends_with(1);
    assert!(ran.stderr.contains(&format!("{path}:2:14: ")), "{ran:#?}");
    assert!(ran.stderr.contains(&format!("{path}:3:11: ")), "{ran:#?}");
    let ran = run(&["run", "--config", "/nonexistent/agent.yaml"]).await;
    assert!(
        ran.ends_with(1).stderr.contains("/nonexistent/agent.yaml"),
        "{ran:#?}"
    );
}

#[tokio::test]
async fn doctor_names_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("agent.yaml");
    let state = directory.path().join("state");
    let text = format!(
        "interfaces: [no-such-if, lo]\nstateDirectory: {}\n",
        state.display()
    );
    fs::write(&config, text).unwrap();
    let ran = run(&["--output", "json", "doctor", "--config", config.to_str().unwrap()]).await;
    let json: serde_json::Value = serde_json::from_str(&ran.ends_with(4).stdout).unwrap();
    let checks = json["checks"].as_array().unwrap();
    let state_of = |name: &str, part: &str| {
        let mut matching = checks.iter().filter(|check| check["name"] == name);
        let found = matching.find(|check| check["finding"].as_str().unwrap().contains(part));
        found.unwrap_or_else(|| panic!("nothing about {name} with `{part}`: {checks:#?}"))["state"].clone()
    };
    assert_eq!(
        state_of("interface no-such-if", "there is none of this name"),
        "problem"
    );
    assert_eq!(state_of("interface lo", "no Ethernet frames"), "problem");
    assert_eq!(state_of("configuration", "is valid"), "ok");
    assert_eq!(state_of("directory", "state can be written"), "ok");
    let problems = checks.iter().filter(|check| check["state"] == "problem").count();
    assert_eq!(json["problems"], problems);
    assert!(!state.exists(), "doctor changes nothing");

    let table = run(&["doctor", "--config", config.to_str().unwrap()]).await;
    table.ends_with(4);
    assert!(table.stdout.starts_with("STATE    WHAT "), "{}", table.stdout);
    assert!(
        table.stdout.contains(&format!("\n{problems} problem")),
        "{}",
        table.stdout
    );
    let bad = run(&["doctor", "--config", "/nonexistent/agent.yaml"]).await;
    assert!(
        bad.ends_with(4).stdout.contains("/nonexistent/agent.yaml"),
        "{bad:#?}"
    );
}

#[tokio::test]
async fn detach_without_agent_and_pins_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("agent.yaml");
    let socket = directory.path().join("none.sock");
    let instance = format!("test-{}", std::process::id());
    let text = format!(
        "interfaces: [eth0]\ninstance: {instance}\nsocket: {}\n",
        socket.display()
    );
    fs::write(&config, text).unwrap();
    let ran = run(&["detach", "--config", config.to_str().unwrap()]).await;
    assert_eq!(ran.ends_with(0).stdout, "nothing was attached\n");
}

#[tokio::test]
async fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]).await;
        assert!(ran.ends_with(0).stdout.contains("undrain"), "{shell}");
    }
}
