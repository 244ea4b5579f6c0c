//! Leases, quotas and shedding, with a real agent: it dies, streams run out of quota, servers run hot.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use enforcer_agent::api::reply::{QuotaRow, TenantListReply};
use enforcer_agent::pure::audit::{AuditRecord, Direction, Kind};
use enforcer_tests::harness::{self, ServerSettings, Stream, eventually, start_simulator};
use enforcer_tests::lab::Process;
use enforcer_tests::lab::topology::{Leaf, Routed};

use super::bench::{self, ALL_INTERFACES, Bench, LIMIT, REFUSED_LIMIT};
use super::echo::{PORT, connect};
use super::privileged;

/// Time that a stream is watched for having stopped.
const QUIET: Duration = Duration::from_millis(400);
const LEASE: Duration = Duration::from_secs(2);
/// The agent looks at quotas once a second; in the machine's worst moments it is late.
const LOOK: Duration = Duration::from_secs(3);
/// A server that waits for everything.
const SATURATED: &str = r#"{"running": 64, "waiting": 2000, "kv_cache": 1.0}"#;

fn simulators(bench: &Bench<Routed>) -> Vec<Process> {
    let leaves = bench.network.back_ends.iter();
    leaves
        .map(|leaf| start_simulator(&leaf.host, &ServerSettings::default()).unwrap())
        .collect()
}

fn policy() -> String {
    bench::policy("Nat", "TCP", "", "Allow")
}

fn with_lease(expiry: &str) -> String {
    let seconds = LEASE.as_secs();
    let defaults = format!("spec:\n  defaults: {{onLeaseExpiry: {expiry}, leaseSeconds: {seconds}}}\n");
    policy().replace("spec:\n", &defaults)
}

/// Tenant acme with a quota of a day.
fn with_quota(metric: &str, limit: &str) -> String {
    let name = "{name: acme, ";
    let quota = format!("{name}quotas: [{{metric: {metric}, limit: {limit}, per: 1d}}], ");
    policy().replacen(name, &quota, 1)
}

fn records(bench: &Bench<Routed>, kind: Kind) -> Vec<AuditRecord> {
    let all: Vec<AuditRecord> = bench.agent.ask_lines(&["audit", "tail", "-n", "1000"]).unwrap();
    all.into_iter()
        .filter(|record| record.entry.kind == kind)
        .collect()
}

/// Whether a connection is admitted becomes what is wanted.
fn wait_for_admission(bench: &Bench<Routed>, admitted: bool) {
    let awaited = if admitted {
        "a connection that is admitted"
    } else {
        "a connection that is refused"
    };
    eventually(awaited, LIMIT, || {
        let is_open = connect(bench.client(), bench::vip(false), REFUSED_LIMIT).is_some();
        Ok((is_open == admitted)
            .then_some(())
            .ok_or_else(|| "the opposite".to_owned()))
    })
    .unwrap();
}

/// Lets a stream run for longer than a lease lasts.
fn outlives_the_lease(stream: &Stream) {
    let end = Instant::now() + LEASE + QUIET;
    while Instant::now() < end {
        stream.wait_for_more(LIMIT).unwrap();
    }
}

#[test]
fn a_lease_lapses_as_the_policy_says_and_the_next_agent_renews_it() {
    if !privileged() {
        return;
    }
    let mut bench = bench::routed(&ALL_INTERFACES, &with_lease("RefuseAll"));
    let _simulators = simulators(&bench);
    let stream = Stream::open(&bench.client().host, None, bench::vip(false)).unwrap();
    outlives_the_lease(&stream);

    bench.agent.kill().unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    stream.wait_for_silence(QUIET, LIMIT).unwrap();
    assert!(connect(bench.client(), bench::vip(false), REFUSED_LIMIT).is_none());
    bench.agent.start().unwrap();
    stream.wait_for_more(LIMIT).unwrap();
    wait_for_admission(&bench, true);
    assert!(bench::packets(&bench.agent, Direction::Ingress, "LeaseExpired") > 0);

    // A clean end is no other: nobody is there.
    assert_eq!(bench.agent.stop().unwrap(), Some(0));
    stream.wait_for_silence(QUIET, LIMIT).unwrap();
    bench.agent.start().unwrap();
    stream.wait_for_more(LIMIT).unwrap();

    bench::apply(&bench.lab, &bench.agent, &with_lease("RefuseNew"));
    bench.agent.kill().unwrap();
    wait_for_admission(&bench, false);
    outlives_the_lease(&stream);
    bench.agent.start().unwrap();
    wait_for_admission(&bench, true);

    bench::apply(&bench.lab, &bench.agent, &with_lease("Hold"));
    bench.agent.kill().unwrap();
    outlives_the_lease(&stream);
    assert!(connect(bench.client(), bench::vip(false), LIMIT).is_some());
    bench.agent.start().unwrap();
}

fn quota_of_acme(bench: &Bench<Routed>) -> QuotaRow {
    let reply: TenantListReply = bench.agent.ask(&["tenant", "list"]).unwrap();
    let acme = reply.tenants.into_iter().find(|row| row.name == "acme").unwrap();
    let [quota] = &acme.quotas[..] else {
        panic!("one quota, not {:?}", acme.quotas)
    };
    quota.clone()
}

#[test]
fn connections_beyond_a_quota_are_refused_and_open_ones_go_on() {
    if !privileged() {
        return;
    }
    let mut bench = bench::routed(&ALL_INTERFACES, &policy());
    let _simulators = simulators(&bench);
    // What was opened before there was a quota does not count.
    for _ in 0..3 {
        connect(bench.client(), bench::vip(false), LIMIT).unwrap();
    }
    bench::apply(&bench.lab, &bench.agent, &with_quota("connections", "5"));
    let stream = Stream::open(&bench.client().host, None, bench::vip(false)).unwrap();
    for _ in 0..3 {
        connect(bench.client(), bench::vip(false), LIMIT).unwrap();
    }
    // What was used is known to the next agent, and what is used meanwhile.
    bench.agent.kill().unwrap();
    connect(bench.client(), bench::vip(false), LIMIT).expect("the fifth");
    bench.agent.start().unwrap();
    wait_for_admission(&bench, false);
    stream.wait_for_more(LIMIT).unwrap();
    let quota = quota_of_acme(&bench);
    assert!(quota.exhausted && (5..10).contains(&quota.used), "{quota:?}");
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Quota") > 0);
    let told = records(&bench, Kind::Quota);
    assert_eq!(told.len(), 1, "{told:#?}");
    let change = told[0].entry.change.as_ref().unwrap();
    assert_eq!(told[0].entry.tenant.as_deref(), Some("acme"));
    assert_eq!(
        (change.what.as_str(), change.to.as_deref()),
        ("connections per 1d", Some("exhausted"))
    );
    bench.agent.kill().unwrap();
    bench.agent.start().unwrap();
    assert!(
        connect(bench.client(), bench::vip(false), REFUSED_LIMIT).is_none(),
        "from the start"
    );
}

/// A stream stops in the middle, and what it got beyond the quota is bounded by how often the agent looks.
#[test]
fn a_long_stream_stops_when_its_bytes_are_used_up() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &with_quota("responseBytes", "128Ki"));
    let _simulators = simulators(&bench);
    let begun = Instant::now();
    let stream = Stream::open(&bench.client().host, None, bench::vip(false)).unwrap();
    stream.wait_for_silence(QUIET, LIMIT).unwrap();
    let taken = begun.elapsed();
    let quota = eventually("a quota that is used up", LIMIT, || {
        let quota = quota_of_acme(&bench);
        Ok(quota
            .exhausted
            .then(|| quota.clone())
            .ok_or_else(|| format!("{quota:?}")))
    })
    .unwrap();
    // The stream runs evenly: so many bytes come in the time between two looks.
    let beyond = quota.used - quota.limit;
    let most = quota.used * LOOK.as_millis() as u64 / taken.as_millis() as u64;
    assert!(
        beyond <= most,
        "{beyond} bytes beyond {}, {most} would be too late",
        quota.limit
    );
    assert!(connect(bench.client(), bench::vip(false), REFUSED_LIMIT).is_none());
    // Replies are refused too, not only what the client says to them.
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Quota") > 0);
    bench::apply(&bench.lab, &bench.agent, &with_quota("responseBytes", "1Gi"));
    stream.wait_for_more(LIMIT).unwrap();
}

/// The policy with the servers' own metrics.
fn watched(mut text: String) -> String {
    for host in ["10.9.1.10", "10.9.2.10"] {
        let back_end = format!("address: \"{host}\", port: 8000");
        let watched = format!("{back_end}, telemetry: {{engine: \"http://{host}:8000/metrics\"}}");
        text = text.replacen(&back_end, &watched, 1);
    }
    // Those of IPv6 are the same servers by other names, and at ease: they would halve what the pool is used to.
    let text: String = text
        .lines()
        .filter(|line| !line.contains("-v6"))
        .fold(String::new(), |text, line| text + line + "\n");
    text.replace(&format!(", \"{}\"", bench::VIP_V6), "")
}

/// Tells every server something.
fn all_servers(bench: &Bench<Routed>, path: &str, body: &str) {
    for leaf in &bench.network.back_ends {
        let server = SocketAddr::new([127, 0, 0, 1].into(), PORT);
        harness::post(&leaf.host, server, path, body).unwrap();
    }
}

/// Opens connections, as fast as they are answered, until told to cease; how many were admitted.
fn press(leaf: &Leaf, cease: &AtomicBool) -> u64 {
    let mut admitted = 0;
    while !cease.load(Ordering::Relaxed) {
        admitted += u64::from(connect(leaf, bench::vip(false), REFUSED_LIMIT).is_some());
    }
    admitted
}

/// What tenants are held to, by name.
fn shares(bench: &Bench<Routed>) -> BTreeMap<String, u64> {
    let list: TenantListReply = bench.agent.ask(&["tenant", "list"]).unwrap();
    let held = list.tenants.into_iter();
    held.filter_map(|tenant| Some((tenant.name, tenant.share?)))
        .collect()
}

#[test]
fn a_contended_pool_is_shared_by_weight_and_guarantee() {
    if !privileged() {
        return;
    }
    const GUARANTEE: u64 = 5;
    let tenants = format!(
        "  - {{name: globex, sources: [10.1.2.0/24], guaranteed: {{newConnectionsPerSecond: {GUARANTEE}}}}}\n  services:\n"
    );
    let text = policy()
        .replace("spec:\n", "spec:\n  classes: [{name: gold, weight: 3}]\n")
        .replacen("{name: acme, ", "{name: acme, class: gold, ", 1)
        .replace("  services:\n", &tenants)
        .replace("{matchNames: [acme]}", "{matchNames: [acme, globex]}")
        .replace("forward: Nat\n", "forward: Nat\n    onRefusal: Reset\n");
    let bench = bench::routed(&ALL_INTERFACES, &watched(text));
    bench::let_clients_be_answered(&bench);
    let _simulators = simulators(&bench);
    let cease = AtomicBool::new(false);
    let [gold, other] = [0, 1].map(|number| &bench.network.clients[number]);
    thread::scope(|scope| {
        let pressing = [gold, other].map(|leaf| {
            let cease = &cease;
            scope.spawn(move || press(leaf, cease))
        });
        all_servers(&bench, "/admin/saturate", SATURATED);
        let mut held = BTreeMap::new();
        let both = eventually("shares for both", Duration::from_secs(30), || {
            held = shares(&bench);
            Ok(if held.len() == 2 {
                Ok(())
            } else {
                Err(format!("{held:?}"))
            })
        });
        // The pool stays as full as it was, so that the budget falls until only the guarantee is left.
        let least = eventually("the guarantee", Duration::from_secs(60), || {
            let now = shares(&bench);
            let is_kept = now.get("globex") == Some(&GUARANTEE);
            Ok(if is_kept { Ok(()) } else { Err(format!("{now:?}")) })
        });
        cease.store(true, Ordering::Relaxed);
        let admitted = pressing.map(|thread| thread.join().unwrap());
        both.and(least)
            .unwrap_or_else(|error| panic!("{error}; {admitted:?} were admitted"));
        let ratio = held["acme"] as f64 / held["globex"] as f64;
        assert!((2.0..=4.0).contains(&ratio), "three to one: {held:?}");
    });
    assert!(bench::packets(&bench.agent, Direction::Ingress, "FairShare") > 0);
    assert_eq!(
        bench::packets(&bench.agent, Direction::Ingress, "ConnectionRate"),
        0
    );
    let told = records(&bench, Kind::FairShare);
    assert!(!told.is_empty());
    for change in told.iter().filter_map(|record| record.entry.change.as_ref()) {
        assert!(change.causes[0].contains("pool gpus is used to"), "{change:?}");
    }
    all_servers(&bench, "/admin/clear", "");
    eventually("that nobody is held", Duration::from_secs(60), || {
        let held = shares(&bench);
        Ok(if held.is_empty() {
            Ok(())
        } else {
            Err(format!("{held:?}"))
        })
    })
    .unwrap();
    let told = records(&bench, Kind::FairShare);
    let last = told
        .last()
        .and_then(|record| record.entry.change.clone())
        .unwrap();
    assert_eq!(last.to, None, "{last:?}");
}

#[test]
fn a_hot_pool_sheds_new_connections_and_keeps_open_ones() {
    if !privileged() {
        return;
    }
    let text = policy()
        .replace("spec:\n", "spec:\n  classes: [{name: bronze, shedAbove: 60%}]\n")
        .replacen("{name: acme, ", "{name: acme, class: bronze, ", 1);
    let bench = bench::routed(&ALL_INTERFACES, &watched(text));
    let _simulators = simulators(&bench);
    let stream = Stream::open(&bench.client().host, None, bench::vip(false)).unwrap();
    all_servers(&bench, "/admin/saturate", SATURATED);
    wait_for_admission(&bench, false);
    stream.wait_for_more(LIMIT).unwrap();
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Shed") > 0);
    let begun = records(&bench, Kind::Shedding);
    let change = begun[0].entry.change.clone().unwrap();
    assert_eq!(
        (begun[0].entry.backend.as_deref(), change.to.as_deref()),
        (Some("gpus"), Some("begins"))
    );
    assert!(
        change.causes[0].contains("bronze") && change.causes[1].contains("60%"),
        "{change:?}"
    );
    all_servers(&bench, "/admin/clear", "");
    eventually("the end of shedding", Duration::from_secs(60), || {
        let is_open = connect(bench.client(), bench::vip(false), REFUSED_LIMIT).is_some();
        Ok(is_open.then_some(()).ok_or_else(|| "shed".to_owned()))
    })
    .unwrap();
    assert_eq!(
        records(&bench, Kind::Shedding).len(),
        2,
        "it began once and ended once"
    );
}
