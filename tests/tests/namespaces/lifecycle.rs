//! An agent's life: it starts, restarts, is refused, and leaves.

use std::fs;
use std::time::Duration;

use enforcer_agent::api::reply::{
    DetachReply, PolicyHistoryReply, PolicyRollbackReply, PolicyShowReply, StatusReply,
};
use enforcer_agent::pure::audit::{AuditRecord, Direction};
use enforcer_tests::harness::{Agent, AgentSettings, ServerSettings, Stream, start_simulator};
use enforcer_tests::lab::topology::Routed;
use enforcer_tests::lab::{Lab, Process};

use super::bench::{self, ALL_INTERFACES, Bench, LIMIT, REFUSED_LIMIT};
use super::echo::{connect, round_trip};
use super::privileged;

/// Time that a stream is watched for having stopped.
const QUIET: Duration = Duration::from_millis(400);

fn simulators(bench: &Bench<Routed>) -> Vec<Process> {
    let leaves = bench.network.back_ends.iter();
    leaves
        .map(|leaf| start_simulator(&leaf.host, &ServerSettings::default()).unwrap())
        .collect()
}

fn nat_bench() -> Bench<Routed> {
    bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", "", "Allow"))
}

#[test]
fn streams_outlive_agents() {
    if !privileged() {
        return;
    }
    let mut bench = nat_bench();
    let _simulators = simulators(&bench);
    let host = bench.client().host.clone();
    let stream = Stream::open(&host, None, bench::vip(false)).unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    let before: StatusReply = bench.agent.ask(&["status"]).unwrap();
    let objects = bench.agent.kernel_objects().unwrap();

    assert_eq!(bench.agent.stop().unwrap(), Some(0), "SIGTERM is a clean end");
    stream.wait_for_more(LIMIT).unwrap();
    bench.agent.start().unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    bench.agent.kill().unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    let stranger = &bench.network.clients[1];
    assert!(
        connect(stranger, bench::vip(false), REFUSED_LIMIT).is_none(),
        "rules hold without an agent"
    );
    assert!(
        connect(bench.client(), bench::vip(false), LIMIT).is_some(),
        "as do permissions"
    );
    let after = bench.agent.start().unwrap();
    stream.wait_for_more(LIMIT).unwrap();

    assert_eq!(
        bench.agent.kernel_objects().unwrap().links,
        objects.links,
        "the links were never given up"
    );
    assert_eq!(
        bench.agent.kernel_objects().unwrap().maps,
        objects.maps,
        "nor the state"
    );
    let digest = |status: &StatusReply| status.policy.as_ref().unwrap().digest.clone();
    assert_eq!(digest(&after), digest(&before));
    assert!(after.audit.sequence > before.audit.sequence);
}

#[test]
fn a_policy_with_an_error_changes_nothing() {
    if !privileged() {
        return;
    }
    let bench = nat_bench();
    let _echoes = bench.echoes();
    let mut stream = connect(bench.client(), bench::vip(true), LIMIT).unwrap();
    let before: StatusReply = bench.agent.ask(&["status"]).unwrap();
    let broken = bench::policy("Nat", "TCP", "newConnectionPerSecond: 5", "Allow");
    let path = bench::write_policy(&bench.lab, &broken);
    let output = bench
        .agent
        .command(&["policy", "apply", path.to_str().unwrap()])
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for part in ["policy.yaml", "newConnectionPerSecond", "newConnectionsPerSecond"] {
        assert!(output.stderr.contains(part), "no {part} in\n{}", output.stderr);
    }
    let after: StatusReply = bench.agent.ask(&["status"]).unwrap();
    assert_eq!(
        (after.generation, after.policy),
        (before.generation, before.policy)
    );
    round_trip(&mut stream, 1000);
}

#[test]
fn an_open_connection_obeys_a_policy_that_came_after_it() {
    if !privileged() {
        return;
    }
    let bench = nat_bench();
    let _simulators = simulators(&bench);
    let stream = Stream::open(&bench.client().host, None, bench::vip(true)).unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    bench::apply(&bench.lab, &bench.agent, &bench::policy("Nat", "TCP", "", "Deny"));
    stream.wait_for_silence(QUIET, LIMIT).unwrap();
    assert!(bench::packets(&bench.agent, Direction::Ingress, "RuleDeny") > 0);
    bench::apply(
        &bench.lab,
        &bench.agent,
        &bench::policy("Nat", "TCP", "", "Allow"),
    );
    stream.wait_for_more(LIMIT).unwrap();
}

#[test]
fn a_rollback_brings_an_earlier_policy_back() {
    if !privileged() {
        return;
    }
    let mut bench = nat_bench();
    let _simulators = simulators(&bench);
    let stream = Stream::open(&bench.client().host, None, bench::vip(true)).unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    let denied = bench::apply(&bench.lab, &bench.agent, &bench::policy("Nat", "TCP", "", "Deny"));
    stream.wait_for_silence(QUIET, LIMIT).unwrap();

    let back: PolicyRollbackReply = bench.agent.ask(&["policy", "rollback"]).unwrap();
    assert!(back.applied.changed && back.applied.generation > denied.generation);
    assert!(back.restored < denied.generation, "{back:?}");
    stream.wait_for_more(LIMIT).unwrap();
    // Another agent knows the same history.
    assert_eq!(bench.agent.stop().unwrap(), Some(0));
    bench.agent.start().unwrap();
    let history: PolicyHistoryReply = bench.agent.ask(&["policy", "history"]).unwrap();
    let entries = &history.entries;
    assert_eq!(entries.len(), 3, "{history:#?}");
    assert_eq!(entries[0].policy.digest, entries[2].policy.digest);
    assert_eq!(
        (entries[0].in_force, entries[0].rollback_of),
        (true, Some(back.restored))
    );
    assert_eq!(
        (entries[1].generation, entries[1].in_force),
        (denied.generation, false)
    );
    assert_eq!(entries[0].policy.digest, back.applied.digest);
    let generation = denied.generation.to_string();
    let old: PolicyShowReply = bench
        .agent
        .ask(&["policy", "show", "--generation", &generation])
        .unwrap();
    assert!(old.sources[0].text.contains("action: Deny"), "{:?}", old.sources);
    let records: Vec<AuditRecord> = bench.agent.ask_lines(&["audit", "tail", "-n", "1000"]).unwrap();
    let change = |record: &AuditRecord| record.entry.change.clone();
    let mut changes = records.iter().filter_map(change);
    let rollback = changes.find(|change| change.what == "policyRollback").unwrap();
    assert_eq!(rollback.from.as_ref(), Some(&denied.digest));
    assert_eq!(rollback.to.as_ref(), Some(&back.applied.digest));

    bench
        .agent
        .ask::<PolicyRollbackReply>(&["policy", "rollback", &generation])
        .unwrap();
    stream.wait_for_silence(QUIET, LIMIT).unwrap();
}

#[test]
fn an_interface_with_another_program_is_left_to_it() {
    if !privileged() {
        return;
    }
    let bench = nat_bench();
    let _echoes = bench.echoes();
    let objects = bench.agent.kernel_objects().unwrap();
    let other_lab = Lab::new().unwrap();
    let settings = AgentSettings::new(["acme"]);
    let other = Agent::prepare(&other_lab, &bench.network.balancer, &settings).unwrap();
    let output = other.start_and_fail().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        output.stderr.contains("acme") && output.stderr.contains("XDP"),
        "{output:?}"
    );
    assert!(
        output.stderr.lines().count() <= 3,
        "one clear sentence, not\n{}",
        output.stderr
    );
    assert_eq!(objects.alive(), objects, "the first agent's");
    let mut stream = connect(bench.client(), bench::vip(false), LIMIT).expect("the first agent's rules hold");
    round_trip(&mut stream, 1000);
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let host = lab.host("lb").unwrap();
    let agent = Agent::prepare(&lab, &host, &AgentSettings::new(["uplink7"])).unwrap();
    let output = agent.start_and_fail().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("uplink7"), "{output:?}");
    assert!(
        output.stderr.lines().count() <= 3,
        "one clear sentence, not\n{}",
        output.stderr
    );
    let left = agent.kernel_objects().unwrap();
    assert!(left.links.is_empty(), "{left:?}");
}

#[test]
fn a_daemon_that_does_not_run_is_an_exit_code_of_its_own() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let host = lab.host("lb").unwrap();
    let agent = Agent::prepare(&lab, &host, &AgentSettings::new(["lo"])).unwrap();
    for words in [&["status"][..], &["tenant", "list"], &["detach"]] {
        let output = agent.command(words).unwrap();
        assert_eq!(output.status.code(), Some(3), "{words:?}: {output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "one sentence: {output:?}");
    }
}

#[test]
fn detach_leaves_nothing() {
    if !privileged() {
        return;
    }
    let mut bench = nat_bench();
    let _echoes = bench.echoes();
    let objects = bench.agent.kernel_objects().unwrap();
    assert_eq!(
        objects.links.len(),
        2 * ALL_INTERFACES.len(),
        "one for each direction: {objects:?}"
    );
    let reply: DetachReply = bench.agent.ask(&["detach"]).unwrap();
    assert_eq!(reply.interfaces.len(), ALL_INTERFACES.len());
    assert_eq!(bench.agent.wait().unwrap(), Some(0));
    assert!(!bench.agent.pins().exists());
    assert!(!bench.agent.socket().exists());
    let left = objects.left_after(LIMIT);
    assert!(left.is_empty(), "{left:?}");
    let devices = bench.network.balancer.ip("-d link show").unwrap();
    assert!(!devices.contains("prog/xdp"), "{devices}");
    // What the log says stays, and ends with the detachment.
    let logs = fs::read_dir(bench.agent.audit_directory()).unwrap();
    let text: String = logs
        .map(|log| fs::read_to_string(log.unwrap().path()).unwrap())
        .collect();
    assert!(text.contains("\"detach\""), "{text}");
}
