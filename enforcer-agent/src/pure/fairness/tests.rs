use std::collections::BTreeSet;

use super::*;
use crate::pure::policy::load;
use crate::pure::policy::selection::Selection;
use crate::pure::policy::users::users;

const SECOND_NS: u64 = 1_000_000_000;

fn policy(tenants: &str) -> ResolvedPolicy {
    let text = format!(
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {{name: fair}}\nspec:\n\
         \x20 classes: [{{name: gold, weight: 3}}, {{name: bronze}}]\n\
         \x20 tenants:\n{tenants}\
         \x20 services:\n\
         \x20 - {{name: chat, addresses: [192.0.2.10], port: 80, protocol: TCP, pools: [main, spare], forward: Nat}}\n\
         \x20 - {{name: other, addresses: [192.0.2.11], port: 80, protocol: TCP, pools: [spare], forward: Nat}}\n\
         \x20 pools:\n\
         \x20 - {{name: main, labels: {{region: us}}, backends: [{{name: gpu-1, address: 10.9.0.1, port: 80}}]}}\n\
         \x20 - {{name: spare, labels: {{region: eu}}, backends: [{{name: gpu-2, address: 10.9.0.2, port: 80}}]}}\n\
         \x20 rules:\n\
         \x20 - {{name: all, action: Allow, services: {{matchNames: [chat]}}}}\n\
         \x20 constraints:\n\
         \x20 - {{name: eu, tenants: {{matchNames: [bound]}}, requireBackend: {{matchLabels: {{region: eu}}}}}}\n"
    );
    load("fair.yaml", &text)
        .into_result()
        .unwrap_or_else(|problems| panic!("{problems:#?}"))
}

const THREE: &str = "  - {name: gold, sources: [10.1.0.0/16], class: gold}\n\
                     \x20 - {name: bronze, sources: [10.2.0.0/16], class: bronze}\n\
                     \x20 - {name: bound, sources: [10.3.0.0/16], class: bronze}\n";

/// A pool that takes `capacity` new connections per second and is hotter the more it gets, and tenants who try.
struct World {
    policy: ResolvedPolicy,
    fairness: Fairness,
    second: u64,
    attempts: BTreeMap<String, Attempts>,
    taken: u64,
    changes: Vec<ShareChange>,
}

impl World {
    fn new(tenants: &str) -> Self {
        Self {
            policy: policy(tenants),
            fairness: Fairness::default(),
            second: 0,
            attempts: BTreeMap::new(),
            taken: 0,
            changes: Vec::new(),
        }
    }

    /// A second in which each tries so many; what is admitted, by tenant.
    fn second(&mut self, tries: &[(&str, u64)], utilization: Option<u16>) -> BTreeMap<String, u64> {
        let rates = self.fairness.rates();
        let mut admitted = BTreeMap::new();
        for (tenant, tries) in tries {
            let limit = self
                .policy
                .tenants
                .iter()
                .find(|known| known.name == *tenant)
                .unwrap()
                .limits
                .clone();
            let rate = rates.get(*tenant).copied().or(limit.new_connections_per_second);
            let opened = rate.map_or(*tries, |rate| rate.min(*tries));
            let counted = self.attempts.entry((*tenant).to_owned()).or_default();
            counted.opened += opened;
            counted.refused += tries - opened;
            self.taken += opened;
            admitted.insert((*tenant).to_owned(), opened);
        }
        self.second += 1;
        let utilizations = utilization
            .map(|used| ("main".to_owned(), used))
            .into_iter()
            .collect();
        let taken = BTreeMap::from([("main".to_owned(), self.taken)]);
        let look = Look {
            policy: &self.policy,
            utilizations: &utilizations,
            taken: &taken,
            now_ns: self.second * SECOND_NS,
        };
        let contended = self.fairness.look_at_pools(&look);
        let users = users(&self.policy, &Selection::default(), &BTreeSet::new(), &contended);
        let attempts = if contended.is_empty() {
            BTreeMap::new()
        } else {
            self.attempts.clone()
        };
        self.changes.extend(self.fairness.share(&look, &users, &attempts));
        admitted
    }

    /// Many seconds at a pool that is just full with so many a second; what was admitted in the last one.
    fn press(&mut self, seconds: u64, tries: &[(&str, u64)], capacity: u64) -> BTreeMap<String, u64> {
        let mut admitted = BTreeMap::new();
        let mut load = 0;
        for _ in 0..seconds {
            let used = (load * 900 / capacity).min(1000) as u16;
            admitted = self.second(tries, Some(used));
            load = admitted.values().sum();
        }
        admitted
    }
}

#[test]
fn nothing_is_shared_out_while_there_is_enough() {
    let mut world = World::new(THREE);
    for _ in 0..20 {
        world.second(&[("gold", 500), ("bronze", 500)], Some(900));
    }
    assert_eq!(world.fairness.rates(), BTreeMap::new());
    assert_eq!(world.changes, []);
}

#[test]
fn a_contended_pool_is_shared_by_the_weights_of_classes() {
    let mut world = World::new(THREE);
    let admitted = world.press(60, &[("gold", 400), ("bronze", 400)], 100);
    let (gold, bronze) = (admitted["gold"], admitted["bronze"]);
    assert!((60..=140).contains(&(gold + bronze)), "{admitted:?} of 100");
    let ratio = gold as f64 / bronze as f64;
    assert!((2.7..=3.3).contains(&ratio), "{admitted:?}");
    let first = world
        .changes
        .iter()
        .find(|change| change.tenant == "gold")
        .unwrap();
    assert_eq!((first.from, first.weight, first.pool.as_str()), (None, 3, "main"));
    assert!(
        first.to.is_some() && first.utilization_per_mille > Some(900),
        "{first:?}"
    );
}

#[test]
fn who_wants_less_than_its_share_is_not_held_and_leaves_the_rest() {
    let mut world = World::new(THREE);
    let admitted = world.press(60, &[("gold", 20), ("bronze", 400)], 100);
    assert_eq!(admitted["gold"], 20, "all that it asked for");
    assert!(!world.fairness.rates().contains_key("gold"));
    assert!((40..=120).contains(&admitted["bronze"]), "{admitted:?}");
}

#[test]
fn a_guarantee_is_kept_and_a_limit_too() {
    let mut world = World::new(
        "  - {name: gold, sources: [10.1.0.0/16], class: gold, limits: {newConnectionsPerSecond: 30}}\n\
         \x20 - {name: bronze, sources: [10.2.0.0/16], guaranteed: {newConnectionsPerSecond: 45}}\n\
         \x20 - {name: greedy, sources: [10.3.0.0/16], class: gold}\n\
         \x20 - {name: bound, sources: [10.4.0.0/16]}\n",
    );
    for _ in 0..5 {
        let admitted = world.press(20, &[("gold", 400), ("bronze", 400), ("greedy", 4000)], 100);
        assert!(admitted["bronze"] >= 45, "{admitted:?}");
        assert!(admitted["gold"] <= 30, "{admitted:?}");
    }
}

#[test]
fn when_the_pool_has_cooled_down_nobody_is_held() {
    let mut world = World::new(THREE);
    world.press(30, &[("gold", 400), ("bronze", 400)], 100);
    assert_eq!(world.fairness.rates().len(), 2);
    let mut seconds = 0;
    while !world.fairness.rates().is_empty() {
        world.second(&[("gold", 30), ("bronze", 30)], Some(300));
        seconds += 1;
        assert!(seconds < 60, "{:?}", world.fairness);
    }
    let last = world.changes.last().unwrap();
    assert_eq!(last.to, None);
}

#[test]
fn silence_changes_nothing() {
    let mut world = World::new(THREE);
    world.press(30, &[("gold", 400), ("bronze", 400)], 100);
    let budget = world.fairness.pools["main"].budget;
    for _ in 0..30 {
        world.second(&[("gold", 400), ("bronze", 400)], None);
    }
    assert_eq!(world.fairness.pools["main"].budget, budget);
    assert_eq!(world.fairness.rates().len(), 2);
}

#[test]
fn a_policy_that_says_nothing_of_shares_has_none() {
    let mut world = World::new(THREE);
    world.policy.classes[1].weight = 1;
    for class in &mut world.policy.classes {
        class.weight = 1;
    }
    world.press(30, &[("gold", 400), ("bronze", 400)], 100);
    assert_eq!(world.fairness.rates(), BTreeMap::new());
}

#[test]
fn tenants_use_the_pool_that_takes_their_connections() {
    let policy = policy(THREE);
    let index = |name: &str| {
        policy
            .tenants
            .iter()
            .position(|tenant| tenant.name == name)
            .unwrap()
    };
    let pools = ["main".to_owned(), "spare".to_owned()];
    let of = |failed: &[&str]| {
        let failed = failed.iter().map(|pool| (*pool).to_owned()).collect();
        users(&policy, &Selection::default(), &failed, &pools).of_pool
    };
    let mut free = vec![index("gold"), index("bronze")];
    free.sort_unstable();
    assert_eq!(of(&[])["main"], free);
    assert_eq!(of(&[])["spare"], [index("bound")]);
    assert_eq!(of(&["main"])["spare"].len(), 3);
    let closed: Selection = std::iter::once(0).collect();
    let nobody = users(&policy, &closed, &BTreeSet::new(), &pools);
    assert!(nobody.of_pool.values().all(Vec::is_empty), "{nobody:?}");
}
