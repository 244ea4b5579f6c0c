//! curl on a long streamed answer, while the balancer is worked on.

use std::fs;
use std::path::Path;

use enforcer_agent::api::reply::PolicyApplyReply;
use enforcer_tests::harness::{ServerSettings, eventually, start_simulator};
use enforcer_tests::lab::Process;

use super::super::bench::{self, ALL_INTERFACES, LIMIT};
use super::{PROGRAM_LIMIT, can_run, curl, refused, url};

/// One every five milliseconds: seven seconds.
const TOKENS: usize = 1400;

/// Waits until curl has written more than it had, and still runs.
fn wait_for_more(curl: &mut Process, file: &Path) {
    let bytes = || fs::metadata(file).map_or(0, |file| file.len());
    let before = bytes();
    eventually("more of the answer", LIMIT, || {
        assert!(curl.is_running()?, "curl has ended:\n{}", curl.tail());
        let now = bytes();
        Ok((now > before).then_some(()).ok_or_else(|| format!("{now} bytes")))
    })
    .unwrap();
}

#[test]
fn a_stream_of_curl_is_whole_after_a_policy_and_a_restart_amid_it() {
    if !can_run(&["curl"]) {
        return;
    }
    let policy = bench::policy("Nat", "TCP", "", "Allow");
    let mut bench = bench::routed(&ALL_INTERFACES, &policy);
    let _simulators: Vec<Process> = bench
        .network
        .back_ends
        .iter()
        .map(|leaf| start_simulator(&leaf.host, &ServerSettings::default()).unwrap())
        .collect();
    let file = bench.lab.directory().join("stream");
    let mut command = curl();
    command.arg("--no-buffer").arg("--output").arg(&file);
    command.args(["--header", "Content-Type: application/json", "--data"]);
    command.arg(format!(
        r#"{{"stream": true, "max_tokens": {TOKENS}, "messages": [{{"role": "user", "content": "Go on."}}]}}"#
    ));
    command.arg(url(true, "v1/chat/completions"));
    let mut curl = bench.client().host.spawn(command).unwrap();
    wait_for_more(&mut curl, &file);

    let limited = bench::policy("Nat", "TCP", "newConnectionsPerSecond: 50", "Allow");
    let applied: PolicyApplyReply = bench::apply(&bench.lab, &bench.agent, &limited);
    assert!(applied.changed);
    wait_for_more(&mut curl, &file);
    assert_eq!(bench.agent.stop().unwrap(), Some(0));
    wait_for_more(&mut curl, &file);
    bench.agent.start().unwrap();
    wait_for_more(&mut curl, &file);

    let status = curl.wait(PROGRAM_LIMIT).unwrap();
    assert!(status.success(), "{status}: {}", curl.tail());
    let text = fs::read_to_string(file).unwrap();
    let events: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    assert_eq!(events.len(), TOKENS + 1, "one for each token, and the end");
    assert_eq!(events.last(), Some(&"[DONE]"));
    assert_eq!(refused(&bench.agent, &[]), [].into());
}
