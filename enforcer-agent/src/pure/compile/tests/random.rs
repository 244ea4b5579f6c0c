//! Random policies against a naive reading of them.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::pure::policy::judgement::is_compliant;
use crate::pure::policy::resolved::{Action, Mode};

/// What a random policy is written from; `x` and `y` are values of the one label that there is.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// Labels.
    tenants: Vec<&'static str>,
    /// Labels, and whether the second pool is preferred.
    services: Vec<(&'static str, bool)>,
    /// Whether in the first pool, and labels.
    backends: Vec<(bool, &'static str)>,
    rules: Vec<DraftRule>,
    /// Labels of tenants, of services and of back ends.
    constraints: Vec<(Option<&'static str>, Option<&'static str>, &'static str)>,
}

#[derive(Debug, Clone)]
struct DraftRule {
    allow: bool,
    shadow: bool,
    priority: i32,
    tenants: Option<&'static str>,
    services: Option<&'static str>,
}

pub(super) fn drafts() -> impl Strategy<Value = Draft> {
    let label = prop_oneof![Just("x"), Just("y")];
    let selector = proptest::option::of(label.clone());
    let rule = (
        any::<bool>(),
        proptest::bool::weighted(0.2),
        -1i32..2,
        selector.clone(),
        selector.clone(),
    );
    let rule = rule.prop_map(|(allow, shadow, priority, tenants, services)| DraftRule {
        allow,
        shadow,
        priority,
        tenants,
        services,
    });
    let parts = (
        proptest::collection::vec(label.clone(), 1..5),
        proptest::collection::vec((label.clone(), any::<bool>()), 1..4),
        proptest::collection::vec((any::<bool>(), label.clone()), 2..8),
        proptest::collection::vec(rule, 0..6),
        proptest::collection::vec((selector.clone(), selector, label), 0..3),
    );
    parts.prop_map(|(tenants, services, backends, rules, constraints)| Draft {
        tenants,
        services,
        backends,
        rules,
        constraints,
    })
}

impl Draft {
    pub(super) fn text(&self) -> String {
        let mut text =
            "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: p}\nspec:\n".to_owned();
        self.write(&mut text).expect("writing to a string cannot fail");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let select = |kind: &str, label: Option<&str>| {
            label
                .map(|label| format!(", {kind}: {{matchLabels: {{l: {label}}}}}"))
                .unwrap_or_default()
        };
        writeln!(text, "  tenants:")?;
        for (index, label) in self.tenants.iter().enumerate() {
            writeln!(
                text,
                "  - {{name: t{index}, sources: [10.1.{index}.0/24], labels: {{l: {label}}}}}"
            )?;
        }
        writeln!(text, "  services:")?;
        for (index, (label, swap)) in self.services.iter().enumerate() {
            let pools = if *swap { "[b, a]" } else { "[a, b]" };
            write!(
                text,
                "  - {{name: s{index}, addresses: [192.0.2.{index}], port: 80, protocol: TCP, "
            )?;
            writeln!(text, "labels: {{l: {label}}}, pools: {pools}, forward: Nat}}")?;
        }
        writeln!(text, "  pools:")?;
        for (pool, first) in [("a", true), ("b", false)] {
            let net = format!("10.9.{}", u8::from(first));
            writeln!(text, "  - name: {pool}\n    labels: {{l: x}}\n    backends:")?;
            writeln!(text, "    - {{name: g-{pool}, address: {net}.99, port: 80}}")?;
            for (index, (_, label)) in self
                .backends
                .iter()
                .enumerate()
                .filter(|(_, (of, _))| *of == first)
            {
                writeln!(
                    text,
                    "    - {{name: g{index}, address: {net}.{index}, port: 80, labels: {{l: {label}}}}}"
                )?;
            }
        }
        let rules = if self.rules.is_empty() {
            "rules: []"
        } else {
            "rules:"
        };
        writeln!(text, "  {rules}")?;
        for (index, rule) in self.rules.iter().enumerate() {
            let action = if rule.allow { "Allow" } else { "Deny" };
            let mode = if rule.shadow { "Shadow" } else { "Enforce" };
            let selectors = select("tenants", rule.tenants) + &select("services", rule.services);
            let priority = rule.priority;
            writeln!(
                text,
                "  - {{name: r{index}, action: {action}, mode: {mode}, priority: {priority}{selectors}}}"
            )?;
        }
        let constraints = if self.constraints.is_empty() {
            "constraints: []"
        } else {
            "constraints:"
        };
        writeln!(text, "  {constraints}")?;
        for (index, (tenants, services, required)) in self.constraints.iter().enumerate() {
            let selectors = select("tenants", *tenants) + &select("services", *services);
            writeln!(
                text,
                "  - {{name: c{index}{selectors}, requireBackend: {{matchLabels: {{l: {required}}}}}}}"
            )?;
        }
        Ok(())
    }
}

/// What the rules say about a pair, read off the resolved policy one rule at a time.
fn naive_action(policy: &ResolvedPolicy, tenant: usize, service: usize) -> Option<Action> {
    let matching = policy.rules.iter().filter(|rule| {
        rule.mode == Mode::Enforce && rule.tenants.contains(tenant) && rule.services.contains(service)
    });
    let highest = matching.clone().map(|rule| rule.priority).max()?;
    let mut of_highest = matching.filter(|rule| rule.priority == highest);
    let denied = of_highest.any(|rule| rule.action == Action::Deny);
    Some(if denied { Action::Deny } else { Action::Allow })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_decision_is_what_the_policy_says(draft in drafts(), sick in proptest::collection::btree_set(0usize..8, 0..6)) {
        let text = draft.text();
        let mut world = World::new(&text);
        for index in sick {
            if let Some(status) = world.backends.get_mut(&format!("g{index}")) {
                status.healthy = false;
            }
        }
        let compiled = world.compile().unwrap();
        let snapshot = Snapshot { generation: 1, tables: compiled.tables.clone(), ..Snapshot::default() };
        let policy = &world.policy;
        for tenant in 0..policy.tenants.len() {
            for (index, service) in policy.services.iter().enumerate() {
                let complies = |pool: &Pool, backend: &Backend| {
                    policy.constraints.iter().all(|constraint| {
                        !constraint.tenants.contains(tenant)
                            || !constraint.services.contains(index)
                            || is_compliant(constraint, pool, backend)
                    })
                };
                let compliant: Vec<&Backend> = service
                    .pools
                    .iter()
                    .flat_map(|pool| policy.pools[*pool].backends.iter().map(|backend| (&policy.pools[*pool], backend)))
                    .filter(|(pool, backend)| complies(pool, backend))
                    .map(|(_, backend)| backend)
                    .collect();
                let able: Vec<&str> = compliant
                    .iter()
                    .map(|backend| backend.name.as_str())
                    .filter(|name| world.backends[*name].healthy)
                    .collect();
                let expected = match naive_action(policy, tenant, index) {
                    None => Reason::NoRule,
                    Some(Action::Deny) => Reason::RuleDeny,
                    Some(Action::Allow) if compliant.is_empty() => Reason::NoCompliantBackend,
                    Some(Action::Allow) if able.is_empty() => Reason::NoHealthyBackend,
                    Some(Action::Allow) => Reason::Allowed,
                };
                for source_port in 1000..1032 {
                    let packet = packet(&format!("10.1.{tenant}.7"), &format!("192.0.2.{index}"), 80, TCP, source_port);
                    let decision = judge(&snapshot, &packet, 5);
                    prop_assert_eq!(decision.reason, expected, "{} on {}: {}", tenant, index, text);
                    let backend = compiled.directory.backend(decision.backend).map(|backend| backend.name.as_str());
                    prop_assert_eq!(backend.is_some(), expected == Reason::Allowed);
                    prop_assert!(backend.is_none_or(|name| able.contains(&name)), "{:?} of {:?}", backend, able);
                }
            }
        }
    }

    #[test]
    fn longest_prefix_wins(
        prefixes in proptest::collection::btree_map((any::<u32>(), 0u8..=32), 1u8..40, 1..40),
        probes in proptest::collection::vec(any::<u32>(), 20),
    ) {
        // Prefixes close to one another, so that they nest.
        let nets: BTreeMap<Ipv4Net, u8> = prefixes
            .into_iter()
            .map(|((bits, length), tenant)| (bits & 0x0a03_81ff, length, tenant))
            .map(|(bits, length, tenant)| (Ipv4Net::new(bits.into(), length).unwrap().trunc(), tenant))
            .collect();
        let mut text = "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: p}\nspec:\n  tenants:\n".to_owned();
        for tenant in nets.values().collect::<BTreeSet<_>>() {
            let own = nets.iter().filter(|(_, owner)| *owner == tenant).map(|(net, _)| net.to_string());
            text += &format!("  - {{name: t{tenant}, sources: [{}]}}\n", own.collect::<Vec<_>>().join(", "));
        }
        text += "  services: [{name: s, addresses: [192.0.2.1], port: 80, protocol: TCP, pools: [p], forward: L2Dsr}]\n";
        text += "  pools: [{name: p, backends: [{name: g, address: 10.9.0.1, port: 80}]}]\n";
        text += "  rules: [{name: r, action: Allow}]\n";
        let compiled = World::new(&text).compile().unwrap();
        for probe in probes.into_iter().map(|probe| Ipv4Addr::from(probe & 0x0a03_81ff)) {
            let expected = nets
                .iter()
                .filter(|(net, _)| net.contains(&probe))
                .max_by_key(|(net, _)| net.prefix_len())
                .map(|(_, tenant)| format!("t{tenant}"));
            let decision = ask(&compiled, &packet(&probe.to_string(), "192.0.2.1", 80, TCP, 9));
            prop_assert_eq!(compiled.directory.tenant(decision.tenant), expected.as_deref(), "{}", probe);
        }
    }
}
