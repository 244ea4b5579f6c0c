use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::pure::policy::judgement::{Bindings, Judgements, compliant_backends};
use crate::pure::policy::load;
use crate::pure::policy::resolved::{Action, Limits, Mode, Rule, Service, Tenant};
use crate::pure::policy::selection::Selection;

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: test}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16], labels: {data: eu}}
  - {name: globex, sources: [10.2.0.0/16], limits: {packetsPerSecond: 1000}}
  - {name: initech, sources: [10.3.0.0/16], limits: {packetsPerSecond: 1000}}
  services:
  - {name: chat, addresses: [192.0.2.10], port: 8000, protocol: TCP, pools: [eu, us], forward: Nat}
  - {name: embed, addresses: [192.0.2.11], port: 8000, protocol: TCP, pools: [us], forward: Nat}
  pools:
  - name: eu
    labels: {region: eu}
    backends: [{name: gpu-1, address: 10.9.0.1, port: 80}, {name: gpu-2, address: 10.9.0.2, port: 80}]
  - name: us
    labels: {region: us}
    backends: [{name: gpu-3, address: 10.9.0.3, port: 80}]
  rules:
  - {name: chat-for-all, action: Allow, services: {matchNames: [chat]}}
  - {name: embed-for-globex, action: Allow, tenants: {matchNames: [globex]}, services: {matchNames: [embed]}}
  constraints:
  - {name: residency, tenants: {matchLabels: {data: eu}}, requireBackend: {matchLabels: {region: eu}}}
"#;

fn resolved(text: &str) -> ResolvedPolicy {
    let outcome = load("p.yaml", text);
    outcome
        .policy
        .unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics))
}

/// The rows that a change of the text makes, and those of its undoing, as JSON.
#[track_caller]
fn changed(replace: &[(&str, &str)]) -> (Diff, Diff) {
    let mut text = POLICY.to_owned();
    for (old, new) in replace {
        assert!(text.contains(old), "{old}");
        text = text.replace(old, new);
    }
    let (from, to) = (resolved(POLICY), resolved(&text));
    (diff(&from, &to), diff(&to, &from))
}

fn object(row: &ObjectChange) -> String {
    let fields: Vec<String> = row
        .fields
        .iter()
        .map(|field| serde_json::to_string(field).unwrap())
        .collect();
    format!(
        "{:?} {} {:?} {}",
        row.kind,
        row.which.names.join(","),
        row.happened,
        fields.join(" ")
    )
}

fn pairs(blocks: &[Block]) -> String {
    let block = |block: &Block| {
        format!(
            "{}*{}",
            block.tenants.names.join(","),
            block.services.names.join(",")
        )
    };
    blocks.iter().map(block).collect::<Vec<_>>().join(" ")
}

fn decision(row: &DecisionChange) -> String {
    let of = |decision: &Option<Decision>| decision.as_ref().map_or("-".to_owned(), ToString::to_string);
    format!(
        "{:?} {}: {} -> {}",
        row.effect,
        pairs(&row.pairs),
        of(&row.from),
        of(&row.to)
    )
}

fn backend(row: &BackendChange) -> String {
    let names = |names: &Names| names.names.join(",");
    let mut text = format!(
        "{}: +{} -{} ~{}",
        pairs(&row.pairs),
        names(&row.added),
        names(&row.removed),
        names(&row.moved)
    );
    if let Some(FromTo { from, to }) = &row.primary {
        write!(
            text,
            " primary {} -> {}",
            from.as_deref().unwrap_or("-"),
            to.as_deref().unwrap_or("-")
        )
        .unwrap();
    }
    if let Some(FromTo { from, to }) = &row.failover {
        write!(text, " failover {} -> {}", from.join(","), to.join(",")).unwrap();
    }
    text
}

#[track_caller]
fn check(diff: &Diff, objects: &[&str], decisions: &[&str], backends: &[&str], counts: (u64, u64, u64)) {
    assert_eq!(diff.objects.iter().map(object).collect::<Vec<_>>(), objects);
    assert_eq!(diff.decisions.iter().map(decision).collect::<Vec<_>>(), decisions);
    assert_eq!(diff.backends.iter().map(backend).collect::<Vec<_>>(), backends);
    assert_eq!((diff.pairs.gained, diff.pairs.lost, diff.pairs.changed), counts);
    assert!(!diff.truncated);
}

#[test]
fn a_rule_that_goes_takes_a_service_away() {
    let (diff, back) = changed(&[(
        "{matchNames: [globex]}, services",
        "{matchNames: [initech]}, services",
    )]);
    let rule = r#"Rule embed-for-globex Changed {"field":"tenants","added":{"count":1,"names":["NEW"]},"removed":{"count":1,"names":["OLD"]}}"#;
    check(
        &diff,
        &[&rule.replace("NEW", "initech").replace("OLD", "globex")],
        &[
            "Loses globex*embed: Allowed by embed-for-globex -> NoRule",
            "Gains initech*embed: NoRule -> Allowed by embed-for-globex",
        ],
        &[
            "globex*embed: + -gpu-3 ~ primary us -> -",
            "initech*embed: +gpu-3 - ~ primary - -> us",
        ],
        (1, 1, 0),
    );
    assert_eq!((back.pairs.gained, back.pairs.lost), (1, 1));
    assert_eq!(
        back.objects.iter().map(object).collect::<Vec<_>>(),
        [rule.replace("NEW", "globex").replace("OLD", "initech")]
    );
}

#[test]
fn equal_changes_are_one_row() {
    let (diff, _) = changed(&[("packetsPerSecond: 1000", "packetsPerSecond: 2000, burst: 2s")]);
    let fields = r#"{"field":"limits.burst","from":"1s","to":"2s"} {"field":"limits.packetsPerSecond","from":1000,"to":2000}"#;
    check(
        &diff,
        &[&format!("Tenant globex,initech Changed {fields}")],
        &[],
        &[],
        (0, 0, 0),
    );
}

#[test]
fn who_is_moved_to_which_pool() {
    let (diff, _) = changed(&[("pools: [eu, us]", "pools: [us, eu]")]);
    check(
        &diff,
        &[r#"Service chat Changed {"field":"pools","from":["eu","us"],"to":["us","eu"]}"#],
        &[],
        &["globex,initech*chat: + - ~ primary eu -> us failover us -> eu"],
        (0, 0, 2),
    );
    // `acme` has to stay in the EU: nothing changes for it, in whichever order the pools are.
}

#[test]
fn a_constraint_that_leaves_nothing_takes_the_service_away() {
    let (diff, _) = changed(&[
        ("{matchLabels: {region: eu}}}", "{matchLabels: {region: us}}}"),
        ("pools: [eu, us]", "pools: [eu]"),
    ]);
    assert_eq!(
        diff.decisions.iter().map(decision).collect::<Vec<_>>(),
        ["Loses acme*chat: Allowed by chat-for-all -> NoCompliantBackend by chat-for-all"]
    );
    assert_eq!(
        diff.backends.iter().map(backend).collect::<Vec<_>>(),
        [
            "globex,initech*chat: + -gpu-3 ~ failover us -> ",
            "acme*chat: + -gpu-1,gpu-2 ~ primary eu -> -"
        ]
    );
}

#[test]
fn tenants_and_services_that_come_gain_only_what_they_may_use() {
    let (diff, back) = changed(&[(
        "  services:\n",
        "  - {name: newco, sources: [10.4.0.0/16]}\n  services:\n  - {name: other, addresses: [192.0.2.12], port: 8000, \
         protocol: TCP, pools: [us], forward: Nat}\n",
    )]);
    check(
        &diff,
        &["Tenant newco Added ", "Service other Added "],
        &["Gains newco*chat: - -> Allowed by chat-for-all"],
        &["newco*chat: +gpu-1,gpu-2,gpu-3 - ~ primary - -> eu failover  -> us"],
        (1, 0, 0),
    );
    assert_eq!(
        back.decisions.iter().map(decision).collect::<Vec<_>>(),
        ["Loses newco*chat: Allowed by chat-for-all -> -"]
    );
}

#[test]
fn a_shadow_rule_and_another_order_of_rules_are_seen() {
    let deny = "  - {name: no-chat, action: Deny, mode: Shadow, tenants: {matchNames: [globex]}}\n";
    let (diff, _) = changed(&[("  constraints:", &format!("{deny}  constraints:"))]);
    let decisions = diff.decisions.iter().map(decision).collect::<Vec<_>>();
    assert_eq!(
        decisions,
        [
            "Changes globex*chat: Allowed by chat-for-all -> Allowed by chat-for-all (shadow no-chat: RuleDeny)",
            "Changes globex*embed: Allowed by embed-for-globex -> Allowed by embed-for-globex (shadow no-chat: RuleDeny)",
        ]
    );
    let (diff, _) = changed(&[("action: Allow, tenants", "action: Allow, priority: 1, tenants")]);
    assert_eq!(
        diff.objects.iter().map(object).collect::<Vec<_>>(),
        [
            r#"Policy test Changed {"field":"order of rules","from":["chat-for-all","embed-for-globex"],"to":["embed-for-globex","chat-for-all"]}"#,
            r#"Rule embed-for-globex Changed {"field":"priority","from":0,"to":1}"#,
        ]
    );
}

#[test]
fn a_back_end_that_changes_pools_is_moved() {
    let (diff, _) = changed(&[
        (", {name: gpu-2, address: 10.9.0.2, port: 80}", ""),
        (
            "[{name: gpu-3,",
            "[{name: gpu-2, address: 10.9.0.2, port: 80}, {name: gpu-3,",
        ),
    ]);
    check(
        &diff,
        &[r#"Backend gpu-2 Changed {"field":"pool","from":"eu","to":"us"}"#],
        &[],
        &[
            "globex,initech*chat: + - ~gpu-2",
            "acme*chat: + -gpu-2 ~",
            "globex*embed: +gpu-2 - ~",
        ],
        (0, 0, 4),
    );
}

/// A policy of any size, without its text: `rules` of them in turn allow and deny one service to every tenant whose
/// number leaves a certain remainder.
fn large(tenants: usize, services: usize, rules: usize, shift: usize) -> ResolvedPolicy {
    let mut policy = resolved(POLICY);
    let (tenant, service, rule) = (
        policy.tenants[1].clone(),
        policy.services[0].clone(),
        policy.rules[0].clone(),
    );
    policy.tenants = (0..tenants)
        .map(|number| Tenant {
            name: format!("t{number:05}"),
            limits: Limits {
                packets_per_second: Some(1000 + shift as u64),
                ..tenant.limits.clone()
            },
            ..(*tenant).clone()
        })
        .map(Arc::new)
        .collect();
    policy.services = (0..services)
        .map(|number| Service {
            name: format!("s{number:03}"),
            ..service.clone()
        })
        .collect();
    policy.rules = (0..rules)
        .map(|number| {
            let kinds = rules.div_ceil(services);
            let kind = number / services;
            Arc::new(Rule {
                name: format!("r{number}"),
                action: if (number + shift).is_multiple_of(3) {
                    Action::Deny
                } else {
                    Action::Allow
                },
                mode: Mode::Enforce,
                tenants: (0..tenants).filter(|tenant| tenant % kinds == kind).collect(),
                services: std::iter::once((number + shift) % services).collect(),
                ..(*rule).clone()
            })
        })
        .collect();
    policy.constraints[0].tenants = (0..tenants).filter(|tenant| tenant.is_multiple_of(2)).collect();
    policy.constraints[0].services = (0..services).collect();
    policy
}

#[test]
fn a_large_difference_stays_within_bounds() {
    let (from, to) = (large(2000, 100, 5000, 0), large(2000, 100, 5000, 1));
    let found = diff(&from, &to);
    let count: u64 = found.decisions.iter().map(|row| row.count).sum();
    assert!(count > 180_000, "{count}");
    // Each of the 5000 rows names 40 tenants and a service.
    let written = found
        .decisions
        .iter()
        .flat_map(|row| &row.pairs)
        .map(|block| block.tenants.names.len())
        .sum::<usize>();
    assert!(found.truncated && written <= MAX_NAMES, "{written}");
    let in_blocks = found.decisions.iter().flat_map(|row| &row.pairs);
    assert_eq!(
        in_blocks
            .map(|block| block.tenants.count * block.services.count)
            .sum::<u64>(),
        count
    );
    assert_eq!(
        found.objects[0].which.count, 2000,
        "the limits of all tenants change alike: {:?}",
        found.objects[0].fields
    );
    let mut one = from.clone();
    Arc::make_mut(&mut one.tenants[7]).limits.packets_per_second = Some(9);
    let same = diff(&from, &one);
    assert_eq!(
        (same.objects.len(), same.decisions.len(), same.backends.len()),
        (1, 0, 0)
    );
}

#[test]
fn names_beyond_the_bound_are_counted_only() {
    let mut room = Room {
        names: 3,
        truncated: false,
    };
    let all = ["a", "b", "c", "d", "e"];
    assert_eq!(room.names(all[..2].iter().copied()).names, ["a", "b"]);
    assert!(!room.truncated);
    assert_eq!(
        room.names(all.iter().copied()),
        Names {
            count: 5,
            names: vec!["a".to_owned()]
        }
    );
    assert!(room.truncated);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a naive comparison, pair by pair: the rows hold each pair that differs exactly once, and no other.
    #[test]
    fn every_pair_that_differs_is_listed_once(
        sizes in [(1usize..6, 1usize..5, 0usize..12, 0usize..5), (1usize..6, 1usize..5, 0usize..12, 0usize..5)],
    ) {
        let [from, to] = sizes.map(|(tenants, services, rules, shift)| large(tenants, services, rules, shift));
        let found = diff(&from, &to);
        let naive = |policy: &ResolvedPolicy, tenant: &str, service: &str| {
            let tenant = policy.tenants.iter().position(|each| each.name == tenant)?;
            let index = policy.services.iter().position(|each| each.name == service)?;
            let rule = Judgements::of(policy, &Selection::default()).get(tenant, index).decided_by.map(|rule| &policy.rules[rule]);
            let constraints = Bindings::of(policy).get(tenant, index);
            let names = compliant_backends(policy, &policy.services[index], constraints)
                .map(|(pool, backend)| policy.pools[pool].backends[backend].name.clone());
            let names: Vec<String> = names.collect();
            let allowed = rule.is_some_and(|rule| rule.action == Action::Allow);
            Some((rule.map(|rule| rule.name.clone()), allowed, if allowed { names } else { Vec::new() }))
        };
        for tenant in 0..6 {
            for service in 0..5 {
                let (tenant, service) = (format!("t{tenant:05}"), format!("s{service:03}"));
                let (before, after) = (naive(&from, &tenant, &service), naive(&to, &tenant, &service));
                let allowed = |side: &Option<(Option<String>, bool, Vec<String>)>| side.as_ref().is_some_and(|side| side.1);
                let unlisted = (before.is_none() || after.is_none()) && !allowed(&before) && !allowed(&after);
                let named = |block: &Block| block.tenants.names.contains(&tenant) && block.services.names.contains(&service);
                let decisions = found.decisions.iter().flat_map(|row| &row.pairs).filter(|block| named(block)).count();
                let answer = |side: &Option<(Option<String>, bool, Vec<String>)>| side.as_ref().map(|side| (side.0.clone(), side.1));
                prop_assert_eq!(decisions, usize::from(answer(&before) != answer(&after) && !unlisted), "{} {}", tenant, service);
                let backends = found.backends.iter().flat_map(|row| &row.pairs).filter(|block| named(block)).count();
                let names = |side: Option<(Option<String>, bool, Vec<String>)>| side.map_or(Vec::new(), |side| side.2);
                prop_assert_eq!(backends, usize::from(names(before) != names(after)), "{} {}", tenant, service);
            }
        }
    }
}
