//! Whatever one compile leaves for the next changes no output.

use proptest::prelude::*;

use super::random::{Draft, drafts};
use super::*;
use crate::pure::policy::resolved::Class;

/// What happens between two compiles.
#[derive(Debug, Clone)]
enum Event {
    Policy(Draft),
    /// The policy of now, with another limit for its first tenant.
    Limit(u32),
    Weight(usize, u32),
    Health(usize, bool),
    Drain(usize, bool),
    Pool(bool),
    Suspension(usize, bool),
    Quota(usize, Option<Exhausted>),
    /// Whether there is a class that can be shed, and the first tenant is of it.
    Class(bool),
    Shed(bool),
    Address(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let exhausted = prop_oneof![Just(Exhausted::NewFlows), Just(Exhausted::Everything)];
    let event = prop_oneof![
        1 => drafts().prop_map(Event::Policy),
        2 => (1u32..9).prop_map(Event::Limit),
        3 => (0usize..8, prop_oneof![Just(0), Just(700), Just(100_000)]).prop_map(|(at, weight)| Event::Weight(at, weight)),
        2 => (0usize..8, any::<bool>()).prop_map(|(at, healthy)| Event::Health(at, healthy)),
        1 => (0usize..8, any::<bool>()).prop_map(|(at, draining)| Event::Drain(at, draining)),
        1 => any::<bool>().prop_map(Event::Pool),
        2 => (0usize..4, any::<bool>()).prop_map(|(at, suspended)| Event::Suspension(at, suspended)),
        1 => (0usize..4, proptest::option::of(exhausted)).prop_map(|(at, what)| Event::Quota(at, what)),
        1 => any::<bool>().prop_map(Event::Class),
        2 => any::<bool>().prop_map(Event::Shed),
        1 => (0u8..3).prop_map(Event::Address),
    ];
    proptest::collection::vec(event, 1..12)
}

fn happen(world: &mut World, event: Event) {
    let mut status = |at: usize, change: &dyn Fn(&mut BackendStatus)| {
        if let Some(status) = world.backends.get_mut(&format!("g{at}")) {
            change(status);
        }
    };
    match event {
        Event::Policy(draft) => {
            let next = World::new(&draft.text());
            world.policy = next.policy;
            world.backends.extend(next.backends);
        }
        Event::Limit(limit) => {
            Arc::make_mut(&mut world.policy.tenants[0])
                .limits
                .packets_per_second = Some(limit.into());
        }
        Event::Weight(at, weight) => status(at, &|status| status.weight = weight),
        Event::Health(at, healthy) => status(at, &|status| status.healthy = healthy),
        Event::Drain(at, draining) => status(at, &|status| status.draining = draining),
        Event::Pool(true) => drop(world.failed_pools.insert("a".to_owned())),
        Event::Pool(false) => drop(world.failed_pools.remove("a")),
        Event::Suspension(at, true) => drop(world.suspended.insert(format!("t{at}"))),
        Event::Suspension(at, false) => drop(world.suspended.remove(&format!("t{at}"))),
        Event::Quota(at, Some(what)) => drop(world.exhausted.insert(format!("t{at}"), what)),
        Event::Quota(at, None) => drop(world.exhausted.remove(&format!("t{at}"))),
        Event::Class(has_class) => {
            let class = Class {
                name: "bronze".to_owned(),
                weight: 1,
                shed_above_percent: Some(80),
            };
            world.policy.classes = if has_class { vec![class] } else { Vec::new() };
            for tenant in &mut world.policy.tenants {
                Arc::make_mut(tenant).class = None;
            }
            Arc::make_mut(&mut world.policy.tenants[0]).class = has_class.then_some(0);
        }
        Event::Shed(true) => drop(world.shed.insert("a".to_owned(), ["bronze".to_owned()].into())),
        Event::Shed(false) => drop(world.shed.remove("a")),
        Event::Address(last) => world.host.local_addresses = vec![[10, 9, 0, 200 + last].into()],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_compile_after_another_answers_what_one_from_nothing_does(first in drafts(), events in events()) {
        let mut world = World::new(&first.text());
        let mut cache = Cache::default();
        let mut policy = Arc::new(world.policy.clone());
        let mut shown = Vec::new();
        for event in std::iter::once(None).chain(events.into_iter().map(Some)) {
            if let Some(event) = event {
                shown.push(format!("{event:?}"));
                happen(&mut world, event);
            }
            // The same policy is the same one, as in the daemon: only then is anything kept whole.
            if *policy != world.policy {
                policy = Arc::new(world.policy.clone());
            }
            let inputs = Inputs { policy: &policy, ..world.inputs() };
            let next = cache.compile(&policy, &inputs);
            prop_assert_eq!(&next, &world.compile(), "after {:?}", shown);
            world.slots = next.expect("it fits").slots;
        }
    }
}

fn compile_after(cache: &mut Cache, world: &World) -> Tables {
    let policy = Arc::new(world.policy.clone());
    let inputs = Inputs {
        policy: &policy,
        ..world.inputs()
    };
    cache.compile(&policy, &inputs).expect("it fits").tables
}

#[test]
fn what_a_change_does_not_touch_is_shared() {
    let mut world = World::new(POLICY);
    let mut cache = Cache::default();
    let before = compile_after(&mut cache, &world);
    world.suspended.insert("acme".to_owned());
    Arc::make_mut(&mut world.policy.tenants[1])
        .limits
        .packets_per_second = Some(7);
    let after = compile_after(&mut cache, &world);
    assert_ne!(before.tenants, after.tenants);
    assert!(before.trie.is_same(&after.trie) && before.rows.is_same(&after.rows));
    assert!(before.blocks.is_same(&after.blocks) && before.decisions.is_same(&after.decisions));
    assert!(before.sets.is_same(&after.sets) && before.maglev.is_same(&after.maglev));

    world.set("gpu-1", |status| status.weight /= 2);
    let heavier = compile_after(&mut cache, &world);
    assert!(after.rows.is_same(&heavier.rows) && after.sets.is_same(&heavier.sets));
    let pairs = after.maglev.iter().zip(heavier.maglev.iter());
    let rebuilt = pairs.filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
    assert!(
        (1..after.maglev.len()).contains(&rebuilt),
        "{rebuilt} of {}",
        after.maglev.len()
    );
}
