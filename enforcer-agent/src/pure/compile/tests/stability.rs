//! What a change leaves alone.

use super::*;

#[test]
fn a_change_of_weights_and_next_hops_can_be_made_in_place() {
    let mut world = World::new(POLICY);
    let before = world.compile().unwrap();
    world.slots = before.slots.clone();
    world.set("gpu-1", |status| status.weight /= 2);
    world.set("gpu-4", |status| status.next_hop = None);
    let after = world.compile().unwrap();
    let writes = crate::pure::plan::in_place(&before.tables, &after.tables).expect("nothing else changed");
    assert!(!writes.is_empty() && after.slots == before.slots && after.directory == before.directory);
}

#[test]
fn the_order_of_the_text_does_not_matter() {
    let reordered = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: test}
spec:
  constraints:
  - {requireBackend: {matchLabels: {region: eu}}, tenants: {matchLabels: {data: eu}}, name: residency}
  protectedNetworks: [192.0.2.0/24, 10.9.0.0/16]
  rules:
  - {name: chat-for-all, action: Allow, services: {matchNames: [chat]}}
  - {name: dns-for-globex, action: Allow, tenants: {matchNames: [globex]}, services: {matchNames: [dns]}}
  pools:
  - name: us
    labels: {region: us}
    backends:
    - {name: gpu-4, address: 10.9.0.4, port: 9000, labels: {region: eu}}
    - {name: gpu-3, address: 10.1.200.1, port: 9000, capacity: 300}
---
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: test}
spec:
  pools:
  - name: eu
    labels: {region: eu}
    backends:
    - {name: gpu-6, address: "2001:db8:9:0::1", port: 8000, capacity: 100}
    - {name: gpu-2, address: 10.9.0.2, port: 8000}
    - {name: gpu-1, address: 10.9.0.1, port: 8000}
  services:
  - {name: dns, addresses: [192.0.2.10], port: 53, protocol: UDP, pools: [us], forward: Dnat}
  - {name: chat, addresses: ["2001:db8::10", 192.0.2.11, 192.0.2.10], port: 8000, protocol: TCP,
     pools: [eu, us], forward: Nat}
  tenants:
  - {name: globex, sources: [10.2.0.0/15, 10.1.5.0/24], limits: {packetsPerSecond: 1k, bytesPerSecond: 10000}}
  - {name: acme, sources: ["2001:db8:1::/48", 10.1.0.0/16], labels: {data: eu}}
"#;
    let (one, other) = (World::new(POLICY), World::new(reordered));
    assert_eq!(one.policy.digest(), other.policy.digest());
    let (one, other) = (one.compile().unwrap(), other.compile().unwrap());
    assert_eq!((one.tables, one.slots), (other.tables, other.slots));

    let preference = World::new(&POLICY.replace("[eu, us]", "[us, eu]"));
    assert_ne!(
        preference.policy.digest(),
        World::new(POLICY).policy.digest(),
        "the order of pools is a preference"
    );
}

#[test]
fn names_keep_their_slots_when_others_come_and_go() {
    let mut world = World::new(POLICY);
    world.slots = world.compile().unwrap().slots;
    let before = world.slots.clone();
    let text = POLICY.replace(
        "  - {name: acme,",
        "  - {name: aaa, sources: [10.77.0.0/16]}\n  - {name: acme,",
    );
    let slots = World {
        slots: before.clone(),
        ..World::new(&text)
    }
    .compile()
    .unwrap()
    .slots;
    for name in ["acme", "globex"] {
        assert_eq!(slots.tenants.get(name), before.tenants.get(name));
    }
    assert_eq!(slots.tenants.get("aaa"), Some(3));
}

#[test]
fn a_rule_keeps_its_number_wherever_it_stands() {
    let mut world = World::new(POLICY);
    let before = world.compile().unwrap();
    let number = |compiled: &Compiled, name: &str| {
        let mut rules = compiled.directory.rules.iter();
        rules
            .find(|(_, rule)| rule.name == name)
            .map(|(number, _)| *number)
    };
    // Both a rule in front of it and one that is judged before it for another reason: it denies.
    let text = POLICY
        .replace(
            "  rules:\n",
            "  rules:\n  - {name: first, action: Allow, priority: 1, tenants: {matchNames: [globex]}}\n",
        )
        .replace(
            "name: dns-for-globex, action: Allow",
            "name: dns-for-globex, action: Deny",
        );
    world.policy = World::new(&text).policy;
    world.slots = before.slots.clone();
    let after = world.compile().unwrap();
    for name in ["chat-for-all", "dns-for-globex"] {
        assert!(number(&before, name).is_some());
        assert_eq!(number(&before, name), number(&after, name), "{name}");
    }
    assert_eq!(number(&after, "first"), Some(2), "the next free number");
    let decision = ask(&after, &packet("10.1.0.1", "192.0.2.10", 8000, TCP, 4000));
    assert_eq!(after.directory.rule(decision.rule).unwrap().name, "chat-for-all");
}
