//! Explanations of packets in the world of the residency sample.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::abi::flow::FLOW_ESTABLISHED;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::tenant_holder;

use super::super::compile::{HostFacts, NextHop, Slots, compile};
use super::super::policy::load;
use super::super::policy::schedule::closed_rules;
use super::*;

const POLICY: &str = include_str!("../../../../policies/residency.yaml");

/// Explains a packet in the world of the residency sample; `sick` are unhealthy, `failed` pools have failed.
fn ask(from: &str, to: &str, sick: &[&str], failed: &[&str], change: impl Fn(&mut Snapshot)) -> Explanation {
    ask_of(POLICY, Timestamp::UNIX_EPOCH, from, to, sick, failed, change)
}

/// The same in the world of another policy, at a time.
fn ask_of(
    policy: &str,
    wall: Timestamp,
    from: &str,
    to: &str,
    sick: &[&str],
    failed: &[&str],
    change: impl Fn(&mut Snapshot),
) -> Explanation {
    ask_while((policy, wall), (from, to), (sick, failed), &[], change)
}

/// The same while tenants are held to shares.
fn ask_while(
    (policy, wall): (&str, Timestamp),
    (from, to): (&str, &str),
    (sick, failed): (&[&str], &[&str]),
    held: &[(&str, u64)],
    change: impl Fn(&mut Snapshot),
) -> Explanation {
    let held = held.iter().map(|(name, rate)| ((*name).to_owned(), *rate));
    let fair_rates: BTreeMap<String, u64> = held.collect();
    let policy = load("residency.yaml", policy)
        .into_result()
        .expect("the sample is right");
    let next_hop = Some(NextHop {
        ifindex: 2,
        own_mac: [2; 6],
        next_hop_mac: [4; 6],
        mtu_bytes: 1500,
        vlan: None,
    });
    let backends: BTreeMap<String, BackendStatus> = policy
        .pools
        .iter()
        .flat_map(|pool| &pool.backends)
        .map(|backend| {
            let healthy = !sick.contains(&backend.name.as_str());
            (
                backend.name.clone(),
                BackendStatus {
                    healthy,
                    next_hop,
                    ..BackendStatus::unknown(backend)
                },
            )
        })
        .collect();
    let host = HostFacts {
        nat_v4: Some([10, 30, 0, 1].into()),
        ..HostFacts::default()
    };
    let slots = Slots::default();
    let closed_rules = closed_rules(&policy, wall);
    let inputs = Inputs {
        policy: &policy,
        slots: &slots,
        host: &host,
        backends: &backends,
        failed_pools: &failed.iter().map(|name| (*name).to_owned()).collect(),
        suspended: &BTreeSet::new(),
        closed_rules: &closed_rules,
        exhausted: &BTreeMap::new(),
        shed: &BTreeMap::new(),
        fair_rates: &fair_rates,
    };
    let compiled = compile(&inputs).expect("the sample compiles");
    let mut snapshot = Snapshot {
        generation: 4,
        tables: compiled.tables,
        ..Snapshot::default()
    };
    change(&mut snapshot);
    let known = Known {
        inputs: &inputs,
        directory: &compiled.directory,
        snapshot: &snapshot,
    };
    let question = Question {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        protocol: Protocol::Tcp,
    };
    let moment = Moment {
        kernel_ns: 5_000_000_000,
        wall,
    };
    explain(&known, &question, moment)
}

fn findings(explanation: &Explanation) -> String {
    explanation
        .steps
        .iter()
        .map(|step| format!("{}: {}\n", step.subject.name(), step.finding))
        .collect()
}

#[test]
fn a_tenant_that_is_held_to_its_share() {
    let ask = |change: fn(&mut Snapshot)| {
        let (time, ends) = (
            (POLICY, Timestamp::UNIX_EPOCH),
            ("10.20.0.7:4000", "192.0.2.20:443"),
        );
        ask_while(time, ends, (&[], &[]), &[("bank", 2)], change)
    };
    let free = ask(|_| {});
    assert_eq!(free.reason(), Some(Reason::Allowed));
    // The burst of a second, and what was paid for it up to now.
    let explanation = ask(|snapshot| {
        for tenant in 1..4 {
            let word = Limiter::Connections.index(tenant_holder(tenant));
            snapshot.limiters.insert(word, 6_000_000_000);
        }
    });
    assert_eq!(explanation.reason(), Some(Reason::FairShare));
    let found = findings(&explanation);
    for finding in [
        "its share is 2 new connections per second",
        "2 new connections per second: 100% of the burst",
        "It is over its share.",
    ] {
        assert!(found.contains(finding), "{finding}\n{found}");
    }
}

#[test]
fn limits_of_a_rule_and_of_a_service() {
    let policy = POLICY.replace(
        "{name: everyone, action: Allow",
        "{name: everyone, limits: {newConnectionsPerSecond: 4}, action: Allow",
    );
    let policy = policy.replace(
        "{name: assistant, ",
        "{name: assistant, limits: {newConnectionsPerSecond: 9, concurrentConnections: 3}, ",
    );
    assert_ne!(policy, POLICY);
    let ask = |change: fn(&mut Snapshot)| {
        let (time, ends) = (
            (policy.as_str(), Timestamp::UNIX_EPOCH),
            ("10.20.0.7:4000", "192.0.2.20:443"),
        );
        ask_while(time, ends, (&[], &[]), &[], change)
    };
    let found = findings(&ask(|_| {}));
    for finding in [
        "The tenant has no limits.",
        "On this service: 4 new connections per second: 0% of the burst of 1000 ms is used up.",
        "All tenants on this service together: 9 new connections per second: 0%",
        "All tenants on this service together: 0 of 3 connections are open.",
    ] {
        assert!(found.contains(finding), "{finding}\n{found}");
    }
    let full = ask(|snapshot| snapshot.open_connections.extend((1..200).map(|group| (group, 3))));
    assert_eq!(full.reason(), Some(Reason::ServiceConnections));
    let found = findings(&full);
    assert!(
        found.contains("together: 3 of 3 connections are open."),
        "{found}"
    );
    assert!(
        found.contains("The service is over one of its own limits"),
        "{found}"
    );
}

#[test]
fn an_admitted_packet() {
    let explanation = ask("10.20.0.7:4000", "192.0.2.20:443", &["dub-2"], &[], |_| {});
    assert_eq!(explanation.reason(), Some(Reason::Allowed));
    let (chosen, found) = (explanation.backend.clone().unwrap(), findings(&explanation));
    assert!(["fra-1", "fra-2"].contains(&chosen.as_str()));
    assert_eq!(
        found,
        format!(
            "destination: 192.0.2.20:443 is service `assistant`.\n\
             flow: There is no open flow; it would open one.\n\
             tenant: 10.20.0.7 belongs to tenant `bank`: its longest prefix is 10.20.0.0/16.\n\
             rule: Rule `everyone` (line 38) decides: Allow.\n\
             constraint: Constraint `audited` allows only back ends with certified: soc2.\n\
             constraint: Constraint `eu-only` allows only back ends with region: eu.\n\
             back end: Pool `frankfurt` is in order: `fra-1` takes 50.0% of new flows (weight 100000); \
             `fra-2` takes 50.0% of new flows (weight 100000).\n\
             back end: Pool `dublin` is in order: `dub-1` is in reserve; \
             `dub-2` is forbidden by `audited`, since it is not certified: soc2.\n\
             back end: Pool `oregon` is in order: \
             `pdx-1` is forbidden by `eu-only`, since it is not region: eu.\n\
             back end: `{chosen}` gets the packet.\n\
             limit: The tenant has no limits.\n"
        )
    );
}

#[test]
fn a_tenant_without_a_back_end() {
    let sick = ["fra-1", "fra-2", "dub-1"];
    let explanation = ask("10.20.0.7:4000", "192.0.2.20:443", &sick, &["frankfurt"], |_| {});
    assert_eq!(explanation.reason(), Some(Reason::NoHealthyBackend));
    let found = findings(&explanation);
    assert!(
        found.contains("Pool `frankfurt` has failed: `fra-1` is unhealthy; `fra-2` is unhealthy."),
        "{found}"
    );
    assert!(
        explanation.backend.is_none() && !found.contains("limit:"),
        "{found}"
    );
}

#[test]
fn packets_of_nobody_and_to_nowhere() {
    let reason = |from, to| {
        let explanation = ask(from, to, &[], &[], |_| {});
        (
            explanation.reason().unwrap(),
            explanation.steps.last().unwrap().finding.clone(),
        )
    };
    assert_eq!(
        reason("10.99.0.1:1", "192.0.2.20:443"),
        (Reason::UnknownTenant, "No tenant claims 10.99.0.1.".to_owned())
    );
    assert_eq!(
        reason("10.20.0.1:1", "10.30.1.1:8443"),
        (
            Reason::Bypass,
            "10.30.1.1:8443 is no service and lies in the protected network 10.30.0.0/16.".to_owned()
        )
    );
    assert_eq!(reason("10.20.0.1:1", "8.8.8.8:53").0, Reason::NotService);
    assert_eq!(
        reason("10.30.1.1:8443", "10.30.0.1:99").1,
        "10.30.1.1 is a back end. It is no reply on an open flow."
    );
}

#[test]
fn a_limit_that_is_used_up() {
    let explanation = ask("10.22.0.9:0", "192.0.2.20:443", &[], &[], |snapshot| {
        // The tenant `studio` is in slot 3; its debt is the whole burst.
        snapshot
            .limiters
            .insert(Limiter::Connections.index(tenant_holder(3)), 10_000_000_000);
    });
    assert_eq!(explanation.reason(), Some(Reason::ConnectionRate));
    let found = findings(&explanation);
    assert!(
        found.contains("20 new connections per second: 100% of the burst of 5000 ms is used up."),
        "{found}"
    );
    assert!(
        found.ends_with("limit: It is over its limit of new connections.\n"),
        "{found}"
    );
}

#[test]
fn an_open_flow_is_explained_as_such() {
    let flow = |snapshot: &mut Snapshot| {
        let key = FlowKey {
            source: address_of("10.22.0.9".parse().unwrap()),
            destination: address_of("192.0.2.20".parse().unwrap()),
            source_port_be: 4000u16.to_be(),
            destination_port_be: 443u16.to_be(),
            protocol: TCP,
        };
        let backend = snapshot.tables.backends[0];
        let flow = Flow {
            generation: 3,
            tenant: 3,
            service: 0,
            rule: 1,
            backend: 0,
            backend_address: backend.address,
            backend_port_be: backend.port_be,
            state: FLOW_ESTABLISHED,
            forward: enforcer_common::abi::config::FORWARD_NAT,
        };
        snapshot.flows.insert(key, flow);
    };
    let explanation = ask("10.22.0.9:4000", "192.0.2.20:443", &[], &[], flow);
    assert_eq!(explanation.reason(), Some(Reason::Allowed));
    let found = findings(&explanation);
    assert!(
        found.contains("It belongs to an open flow to `dub-1`, last judged under generation 3."),
        "{found}"
    );
    assert_eq!(
        explanation.backend.as_deref(),
        Some("dub-1"),
        "it keeps its back end, though it is in reserve"
    );
}

/// The rule of the sample with hours, behind one that denies at night.
fn ask_at(time: &str) -> Explanation {
    let hours = "schedule: {days: [Mon, Tue], from: \"08:00\", to: \"20:00\", timeZone: Europe/Berlin}";
    let policy = POLICY.replace(
        "{name: everyone, action: Allow",
        &format!(
            "{{name: night, action: Deny, schedule: {{from: \"23:00\", to: \"05:00\"}}}}\n  - {{name: everyone, {hours}, action: Allow"
        ),
    );
    assert!(policy.contains(hours), "the sample has changed");
    let wall = time.parse().unwrap();
    ask_of(
        &policy,
        wall,
        "10.20.0.7:4000",
        "192.0.2.20:443",
        &[],
        &[],
        |_| {},
    )
}

#[test]
fn a_rule_with_hours_says_when_it_changes() {
    let open = ask_at("2026-06-08T12:00:00Z");
    assert_eq!(open.reason(), Some(Reason::Allowed));
    let found = findings(&open);
    assert!(
        found.contains(
            "rule: Rule `everyone` (line 39) decides: Allow. It is open Mon, Tue from 08:00 to 20:00, Europe/Berlin, \
             and closes at 2026-06-08 20:00:00 +02:00 (Mon).\n"
        ),
        "{found}"
    );
    assert!(
        found.contains(
            "schedule: Rule `night` (line 38), Deny, is closed: it is open every day from 23:00 to 05:00 of the next \
             day, UTC, and opens at 2026-06-08 23:00:00 +00:00 (Mon).\n"
        ),
        "{found}"
    );
    let closed = ask_at("2026-06-09T20:00:00Z");
    assert_eq!(closed.reason(), Some(Reason::OutsideSchedule));
    assert_eq!(
        closed.rule.as_ref().map(|rule| rule.name.as_str()),
        Some("everyone")
    );
    let found = findings(&closed);
    assert!(
        found.ends_with(
            "schedule: Rule `everyone` (line 39), Allow, is closed: it is open Mon, Tue from 08:00 to 20:00, \
             Europe/Berlin, and opens at 2026-06-15 08:00:00 +02:00 (Mon).\n\
             rule: Rule `everyone` (line 39) would allow it, and no other rule decides.\n"
        ),
        "{found}"
    );
    let denied = ask_at("2026-06-09T23:30:00Z");
    assert_eq!(denied.reason(), Some(Reason::RuleDeny));
    assert!(!findings(&denied).contains("schedule:"), "{}", findings(&denied));
}
