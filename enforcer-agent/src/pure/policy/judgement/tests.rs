use proptest::prelude::*;

use super::super::load;
use super::*;

/// Two tenants (a, b), two services (s, t), and the given rules.
fn policy(rules: &str) -> ResolvedPolicy {
    let text = format!(
        "{{apiVersion: enforcer.dev/v1, kind: GovernancePolicy, metadata: {{name: p}}, spec: {{
           tenants: [{{name: a, sources: [10.0.0.0/24]}}, {{name: b, sources: [10.0.1.0/24]}}],
           services: [
             {{name: s, addresses: [192.0.2.1], port: 80, protocol: TCP, pools: [p], forward: Nat}},
             {{name: t, addresses: [192.0.2.2], port: 80, protocol: TCP, pools: [p], forward: Nat}}],
           pools: [{{name: p, backends: [{{name: g, address: 10.9.0.1, port: 80}}]}}],
           rules: [{rules}]}}}}"
    );
    load("p.yaml", &text)
        .into_result()
        .expect("the policy is correct")
}

/// The names of the deciding and of the shadow rule for (a, s).
#[track_caller]
fn check(rules: &str, decided_by: Option<&str>, shadowed_by: Option<&str>) {
    let policy = policy(rules);
    let judgement = Judgements::of(&policy, &Selection::default()).get(0, 0);
    let name = |index: Option<usize>| index.map(|index| policy.rules[index].name.as_str());
    assert_eq!(
        (name(judgement.decided_by), name(judgement.shadowed_by)),
        (decided_by, shadowed_by),
        "{rules}"
    );
}

#[test]
fn the_first_rule_in_the_order_of_judgement_decides() {
    check("", None, None);
    check("{name: x, action: Allow}", Some("x"), None);
    check(
        "{name: x, action: Allow}, {name: y, action: Allow}",
        Some("x"),
        None,
    );
    check(
        "{name: x, action: Allow}, {name: y, action: Deny}",
        Some("y"),
        None,
    );
    check(
        "{name: x, action: Allow, priority: 1}, {name: y, action: Deny}",
        Some("x"),
        None,
    );
    check(
        "{name: x, action: Deny}, {name: y, action: Allow, priority: 1}",
        Some("y"),
        None,
    );
    check(
        "{name: x, action: Deny, priority: -1}, {name: y, action: Allow}",
        Some("y"),
        None,
    );
    check(
        "{name: x, action: Deny, tenants: {matchNames: [b]}}, {name: y, action: Allow}",
        Some("y"),
        None,
    );
    check("{name: x, action: Deny, services: {matchNames: [t]}}", None, None);
}

#[test]
fn a_shadow_rule_never_decides_and_is_remembered_if_it_would_have_decided_otherwise() {
    check("{name: x, action: Allow, mode: Shadow}", None, Some("x"));
    check("{name: x, action: Deny, mode: Shadow}", None, None);
    check(
        "{name: x, action: Deny, mode: Shadow}, {name: y, action: Allow}",
        Some("y"),
        Some("x"),
    );
    check(
        "{name: y, action: Deny, priority: 9}, {name: x, action: Allow, mode: Shadow}",
        Some("y"),
        None,
    );
    check(
        "{name: x, action: Allow, mode: Shadow, priority: 1}, {name: z, action: Deny, mode: Shadow},
         {name: w, action: Deny, mode: Shadow}, {name: y, action: Allow}",
        Some("y"),
        Some("z"),
    );
}

#[test]
fn pairs_are_kept_apart() {
    let policy = policy(
        "{name: x, action: Allow, tenants: {matchNames: [b]}, services: {matchNames: [t]}},
         {name: y, action: Deny, tenants: {matchNames: [a]}, services: {matchNames: [t]}}",
    );
    let judgements = Judgements::of(&policy, &Selection::default());
    let allowed = |tenant, service| judgements.get(tenant, service).is_allowed(&policy);
    assert_eq!(
        [allowed(0, 0), allowed(0, 1), allowed(1, 0), allowed(1, 1)],
        [false, false, false, true]
    );
    let reach = Reach::of(&policy);
    assert!(reach.is_effective(0) && reach.is_effective(1));
}

/// Closes some of a policy's rules, and answers the names of the deciding, the shadow and the closed rule for (a, s).
#[track_caller]
fn check_closed(rules: &str, closed: &[&str], expected: [Option<&str>; 3]) {
    let policy = policy(rules);
    let closed = (0..policy.rules.len())
        .filter(|rule| closed.contains(&policy.rules[*rule].name.as_str()))
        .collect();
    let judgement = Judgements::of(&policy, &closed).get(0, 0);
    let name = |index: Option<usize>| index.map(|index| policy.rules[index].name.as_str());
    let Judgement {
        decided_by,
        shadowed_by,
        closed,
    } = judgement;
    assert_eq!([decided_by, shadowed_by, closed].map(name), expected, "{rules}");
    assert_eq!(
        judgement.is_allowed(&policy),
        decided_by.is_some_and(|rule| policy.rules[rule].action == Action::Allow)
    );
}

#[test]
fn a_closed_rule_does_not_exist_but_is_named_if_it_would_allow_what_nothing_decides() {
    let allow = "{name: x, action: Allow}";
    check_closed(allow, &["x"], [None, None, Some("x")]);
    check_closed("{name: x, action: Deny}", &["x"], [None; 3]);
    check_closed("{name: x, action: Allow, mode: Shadow}", &["x"], [None; 3]);
    let two = "{name: x, action: Allow}, {name: y, action: Deny, priority: -1}";
    check_closed(two, &["x"], [Some("y"), None, None]);
    check_closed(two, &["x", "y"], [None, None, Some("x")]);
    let first = "{name: x, action: Allow}, {name: y, action: Allow}";
    check_closed(first, &["x", "y"], [None, None, Some("x")]);
    check_closed(first, &["x"], [Some("y"), None, None]);
    let denied = "{name: d, action: Deny}, {name: x, action: Allow}";
    check_closed(denied, &["d"], [Some("x"), None, None]);
    check_closed(denied, &["d", "x"], [None, None, Some("x")]);
    let shadowed = "{name: s, action: Allow, mode: Shadow, priority: 1}, {name: x, action: Allow}";
    check_closed(shadowed, &["x"], [None, Some("s"), Some("x")]);
    check_closed(shadowed, &["s", "x"], [None, None, Some("x")]);
    check_closed(shadowed, &["s"], [Some("x"), None, None]);
}

/// What the policy language says about a pair, one rule after the other.
fn naive(policy: &ResolvedPolicy, closed: &Selection, tenant: usize, service: usize) -> Judgement {
    let all: Vec<usize> = (0..policy.rules.len())
        .filter(|rule| policy.rules[*rule].tenants.contains(tenant))
        .filter(|rule| policy.rules[*rule].services.contains(service))
        .collect();
    let is = |rule: &usize, mode, action| {
        let rule = &policy.rules[*rule];
        rule.mode == mode && rule.action == action
    };
    let open = || all.iter().copied().filter(|rule| !closed.contains(*rule));
    let decided_by = open().find(|rule| policy.rules[*rule].mode == Mode::Enforce);
    let otherwise = match decided_by.map(|rule| policy.rules[rule].action) {
        Some(Action::Allow) => Action::Deny,
        Some(Action::Deny) | None => Action::Allow,
    };
    Judgement {
        decided_by,
        shadowed_by: open()
            .take_while(|rule| decided_by.is_none_or(|decides| *rule < decides))
            .find(|rule| is(rule, Mode::Shadow, otherwise)),
        closed: all
            .iter()
            .copied()
            .find(|rule| closed.contains(*rule) && is(rule, Mode::Enforce, Action::Allow))
            .filter(|_| decided_by.is_none()),
    }
}

/// Whether, for any pair and with any of the scheduled rules open, a rule decides or as a shadow would decide; by trying.
fn naive_is_effective(policy: &ResolvedPolicy, rule: usize) -> bool {
    let this = &policy.rules[rule];
    // The best case for a rule is that all rules before it that can be closed are closed.
    let covered = |tenant: usize, service: usize| {
        policy.rules[..rule].iter().any(|earlier| {
            let same_part =
                earlier.mode == Mode::Enforce || this.mode == Mode::Shadow && earlier.action == this.action;
            same_part
                && earlier.is_always_open()
                && earlier.tenants.contains(tenant)
                && earlier.services.contains(service)
        })
    };
    this.tenants
        .iter()
        .any(|tenant| this.services.iter().any(|service| !covered(tenant, service)))
}

/// Numbers below a count: few, most or all.
fn selections(count: usize) -> impl Strategy<Value = Selection> {
    prop_oneof![
        Just(Selection::all(count)),
        proptest::collection::vec(0..count, 0..4).prop_map(Selection::from_iter),
        proptest::collection::vec(0..count, count).prop_map(Selection::from_iter),
    ]
}

fn rules(tenants: usize, services: usize) -> impl Strategy<Value = Vec<Rule>> {
    let schedule = || crate::pure::policy::schedule::tests::schedules();
    let rule = (
        any::<bool>(),
        any::<bool>(),
        selections(tenants),
        selections(services),
        proptest::option::of(schedule()),
    );
    let rule = rule.prop_map(|(allow, shadow, tenants, services, schedule)| Rule {
        name: String::new(),
        action: if allow { Action::Allow } else { Action::Deny },
        mode: if shadow { Mode::Shadow } else { Mode::Enforce },
        priority: 0,
        tenants,
        services,
        schedule,
        limits: None,
        line: 0,
        file: None,
    });
    proptest::collection::vec(rule, 0..24)
}

/// A policy with so many tenants and services and such rules. Nothing else of it is looked at here.
fn plain_policy(tenants: usize, services: usize, rules: Vec<Rule>) -> ResolvedPolicy {
    let mut policy = policy("");
    policy.tenants = vec![policy.tenants[0].clone(); tenants];
    policy.services = vec![policy.services[0].clone(); services];
    policy.rules = rules.into_iter().map(Arc::new).collect();
    policy
}

fn plain_policies() -> impl Strategy<Value = ResolvedPolicy> {
    // Around the sizes of words and blocks.
    let counts = (
        prop_oneof![1..4usize, 62..67usize, 126..131usize],
        prop_oneof![1..4usize, 62..67usize],
    );
    counts.prop_flat_map(|(tenants, services)| {
        rules(tenants, services).prop_map(move |rules| plain_policy(tenants, services, rules))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_judgement_is_the_one_of_the_naive_definition(
        policy in plain_policies(),
        closed in proptest::collection::btree_set(0usize..24, 0..24),
    ) {
        let closed: Selection = closed.into_iter().collect();
        let judgements = Judgements::of(&policy, &closed);
        let reach = Reach::of(&policy);
        for tenant in 0..policy.tenants.len() {
            for service in 0..policy.services.len() {
                let judgement = judgements.get(tenant, service);
                prop_assert_eq!(judgement, naive(&policy, &closed, tenant, service), "{} {}", tenant, service);
                prop_assert_eq!(judgement, judgements.in_row(judgements.row_of(tenant), service));
            }
        }
        for rule in 0..policy.rules.len() {
            prop_assert_eq!(reach.is_effective(rule), naive_is_effective(&policy, rule), "{}", rule);
        }
    }

    /// Over all the times at which some of the scheduled rules are closed, tried one by one.
    #[test]
    fn what_can_be_allowed_is_what_is_allowed_at_some_time(policy in plain_policies()) {
        let scheduled: Vec<usize> = (0..policy.rules.len())
            .filter(|rule| !policy.rules[*rule].is_always_open())
            .take(5)
            .collect();
        let mut policy = policy;
        for (index, rule) in policy.rules.iter_mut().enumerate() {
            let rule = Arc::make_mut(rule);
            rule.schedule = rule.schedule.take().filter(|_| scheduled.contains(&index));
        }
        let mut allowed = vec![vec![false; policy.services.len()]; policy.tenants.len()];
        for times in 0u32..1 << scheduled.len() {
            let closed: Selection = scheduled
                .iter()
                .enumerate()
                .filter(|(bit, _)| times >> bit & 1 == 1)
                .map(|(_, rule)| *rule)
                .collect();
            let judgements = Judgements::of(&policy, &closed);
            for (tenant, row) in allowed.iter_mut().enumerate() {
                for (service, cell) in row.iter_mut().enumerate() {
                    *cell |= judgements.get(tenant, service).is_allowed(&policy);
                }
            }
        }
        let reach = Reach::of(&policy);
        for (tenant, row) in allowed.iter().enumerate() {
            let expected: Selection = (0..row.len()).filter(|service| row[*service]).collect();
            prop_assert_eq!(reach.allowed(tenant), &expected, "{}", tenant);
        }
    }
}

/// The rows are shared, so that their number is that of the kinds of tenants.
#[test]
fn tenants_that_all_rules_treat_alike_share_a_row() {
    let rule = |tenants: Selection, action| Rule {
        name: String::new(),
        action,
        mode: Mode::Enforce,
        priority: 0,
        tenants,
        services: Selection::all(70),
        schedule: None,
        limits: None,
        line: 0,
        file: None,
    };
    let even = (0..200).filter(|tenant| tenant % 2 == 0).collect();
    let policy = plain_policy(
        200,
        70,
        vec![rule(even, Action::Deny), rule(Selection::all(200), Action::Allow)],
    );
    let judgements = Judgements::of(&policy, &Selection::default());
    assert_eq!(judgements.rows(), 2);
    assert_eq!(judgements.row_of(0), judgements.row_of(198));
    assert_ne!(judgements.row_of(0), judgements.row_of(1));
}
