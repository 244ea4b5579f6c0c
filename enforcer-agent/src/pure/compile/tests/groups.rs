//! Limit groups: who gets one, and that it is the same one for as long as there is something to limit.

use std::fmt::Write as _;

use enforcer_common::abi::config::STEP_SHIFT;

use super::*;

const POLICY: &str = "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: p}\nspec:\n  tenants:\n  \
    - {name: a, sources: [10.1.0.0/16]}\n  - {name: b, sources: [10.2.0.0/16]}\n  - {name: c, sources: [10.3.0.0/16]}\n  \
    services:\n  - {name: s, addresses: [192.0.2.1, \"2001:db8::1\"], port: 1, protocol: TCP, pools: [p], forward: Nat,\n     \
    limits: {packetsPerSecond: 100}}\n  \
    - {name: t, addresses: [192.0.2.2], port: 1, protocol: TCP, pools: [p], forward: Nat}\n  \
    pools: [{name: p, backends: [{name: g, address: 10.9.0.1, port: 1}, {name: h, address: \"2001:db8:9::1\", port: 1}]}]\n  \
    rules:\n  - {name: some, action: Allow, tenants: {matchNames: [a]}, limits: {packetsPerSecond: 10}}\n  \
    - {name: all, action: Allow}\n";

fn groups(compiled: &Compiled, from: &str, to: &str) -> (u32, u32) {
    let decision = ask(compiled, &packet(from, to, 1, TCP, 40_000));
    (decision.pair_group, decision.service_group)
}

fn packets(compiled: &Compiled, group: u32) -> Option<u64> {
    let record = compiled.tables.limits[group as usize].packets;
    (record.step_fp != 0).then(|| (1_000_000_000 << STEP_SHIFT) / record.step_fp)
}

#[test]
fn whoever_has_limits_has_a_group_and_nobody_else() {
    let compiled = World::new(POLICY).compile().unwrap();
    let (pair, service) = groups(&compiled, "10.1.0.1", "192.0.2.1");
    assert_eq!(packets(&compiled, pair), Some(10));
    assert_eq!(packets(&compiled, service), Some(100));
    let six = ask(&compiled, &packet("10.1.0.1", "192.0.2.2", 1, TCP, 40_000));
    assert_eq!(
        (packets(&compiled, six.pair_group), six.service_group),
        (Some(10), 0)
    );
    assert_ne!(six.pair_group, pair, "another service has another group");
    assert_eq!(groups(&compiled, "10.2.0.1", "192.0.2.1"), (0, service));
    assert_eq!(groups(&compiled, "10.2.0.1", "192.0.2.2"), (0, 0));
    let rows: Vec<u32> = compiled.tables.tenants.iter().map(|tenant| tenant.row).collect();
    assert_eq!(rows[2], rows[3], "who is treated alike shares a row all the same");
}

#[test]
fn a_group_stays_the_same_under_another_rule_and_is_new_after_it_was_gone() {
    let mut world = World::new(POLICY);
    let before = world.compile().unwrap();
    let (pair, service) = groups(&before, "10.1.0.1", "192.0.2.1");
    let mut next = |text: &str| {
        world.slots = world.compile().unwrap().slots;
        world.policy = load("p.yaml", text).policy.unwrap();
        world.compile().unwrap()
    };
    let other = POLICY
        .replace("name: some", "name: other")
        .replace("{packetsPerSecond: 10}", "{packetsPerSecond: 20}");
    let after = next(&other);
    assert_eq!(groups(&after, "10.1.0.1", "192.0.2.1"), (pair, service));
    assert_eq!(packets(&after, pair), Some(20));
    let without = POLICY.replace(", limits: {packetsPerSecond: 10}", "");
    assert_eq!(groups(&next(&without), "10.1.0.1", "192.0.2.1"), (0, service));
    let (again, _) = groups(&next(POLICY), "10.1.0.1", "192.0.2.1");
    assert!(again != 0 && again != pair, "flows may still bear {pair}");
}

#[test]
fn where_a_rule_without_limits_decides_there_are_none() {
    let compiled = World::new(&POLICY.replace(
        "name: all, action: Allow",
        "name: all, action: Allow, priority: 1",
    ))
    .compile()
    .unwrap();
    assert_eq!(groups(&compiled, "10.1.0.1", "192.0.2.2"), (0, 0));
}

#[test]
fn more_groups_than_there_is_room_for_are_an_error() {
    let mut text = String::from(
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: p}\nspec:\n  tenants:\n",
    );
    for tenant in 0..128 {
        writeln!(text, "  - {{name: t{tenant}, sources: [10.1.{tenant}.0/24]}}").unwrap();
    }
    text.push_str("  services:\n");
    for service in 0..128 {
        writeln!(
            text,
            "  - {{name: s{service}, addresses: [192.0.2.{service}], port: 1, protocol: TCP, pools: [p], forward: Nat}}"
        )
        .unwrap();
    }
    text.push_str("  pools: [{name: p, backends: [{name: g, address: 10.9.0.1, port: 1}]}]\n  rules:\n");
    let with = |rules: &str| World::new(&format!("{text}  - {{name: all, action: Allow{rules}}}\n"));
    let limits = ", limits: {packetsPerSecond: 10}";
    let refused = with(limits).compile().unwrap_err();
    assert!(refused.to_string().contains("16383"), "{refused}");
    let fewer = with(&format!("{limits}, tenants: {{matchNames: [t0, t1]}}"));
    assert!(fewer.compile().is_ok());
}
