//! What holds for every load, at every step.

use proptest::prelude::*;

use super::*;

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1e3_f64, any::<f64>(), Just(f64::NAN), Just(f64::INFINITY)]
}

fn any_reading<T: std::fmt::Debug + Clone + 'static>(
    sample: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Reading<T>> {
    prop_oneof![
        Just(Reading::NotConfigured),
        Just(Reading::Unchanged),
        Just(Reading::Missed),
        sample.prop_map(Reading::Fresh),
    ]
}

fn any_signals() -> impl Strategy<Value = Signals> {
    let number = || proptest::option::of(any_number());
    let engine =
        (number(), number(), number()).prop_map(|(waiting, kv_cache_ratio, gpu_utilization_ratio)| {
            EngineSample {
                waiting,
                kv_cache_ratio,
                gpu_utilization_ratio,
                ..engine(0.0, 0.0)
            }
        });
    let gpu = (
        number(),
        proptest::option::of(0..100_u32),
        number(),
        proptest::option::of(any::<bool>()),
    )
        .prop_map(|(utilization_ratio, xid, thermal_violation, remap)| GpuSample {
            utilization_ratio,
            xid,
            thermal_violation,
            row_remap_failed: remap,
            ..gpu()
        });
    (
        any_reading(engine),
        any_reading(gpu),
        proptest::option::of(any::<u64>()),
        any::<bool>(),
    )
        .prop_map(|(engine, gpu, connections_in_flight, serving)| Signals {
            engine,
            gpu,
            connections_in_flight,
            serving,
        })
}

fn any_steps() -> impl Strategy<Value = Vec<(Signals, u64)>> {
    proptest::collection::vec(
        (any_signals(), prop_oneof![0..10 * SECOND_NS, any::<u64>()]),
        0..30,
    )
}

fn steps_seconds_apart() -> impl Strategy<Value = Vec<(Signals, u64)>> {
    proptest::collection::vec((any_signals(), 0..10 * SECOND_NS), 1..30)
}

fn replay(steps: &[(Signals, u64)], capacity: u32) -> (BackendState, u64) {
    let (mut state, mut now_ns) = (BackendState::default(), 0_u64);
    for (signals, gap_ns) in steps {
        now_ns = now_ns.saturating_add(*gap_ns);
        state = fold(&state, signals, capacity, now_ns, &Tuning::default()).state;
    }
    (state, now_ns)
}

proptest! {
    #[test]
    fn bounded_and_never_nan(steps in any_steps(), capacity in any::<u32>()) {
        let (mut state, mut now_ns) = (BackendState::default(), 0_u64);
        for (signals, gap_ns) in &steps {
            now_ns = now_ns.saturating_add(*gap_ns);
            let folded = fold(&state, signals, capacity, now_ns, &Tuning::default());
            prop_assert!(folded.weight <= weight_of(capacity, FULL_SHARE_PER_MILLE));
            prop_assert!(folded.state.saturation().is_none_or(|saturation| (0.0..=1.0).contains(&saturation)));
            if !signals.serving || folded.state.fault_since_ns().is_some() {
                prop_assert_eq!(folded.weight, 0);
            } else if capacity > 0 {
                prop_assert!(folded.weight > 0);
            }
            state = folded.state;
        }
    }

    #[test]
    fn no_share_moves_without_a_cause(steps in any_steps()) {
        let (mut state, mut now_ns) = (BackendState::default(), 0_u64);
        for (signals, gap_ns) in &steps {
            now_ns = now_ns.saturating_add(*gap_ns);
            let folded = fold(&state, signals, CAPACITY, now_ns, &Tuning::default());
            if folded.state.share_per_mille() != state.share_per_mille() {
                prop_assert!(!folded.causes.is_empty());
            }
            state = folded.state;
        }
    }

    #[test]
    fn deterministic(steps in any_steps(), capacity in any::<u32>()) {
        prop_assert_eq!(replay(&steps, capacity), replay(&steps, capacity));
    }

    #[test]
    fn more_load_never_means_more_weight(
        steps in any_steps(),
        gap_ns in 0..100 * SECOND_NS,
        loads in ((0.0..200.0_f64, 0.0..200.0_f64), (0.0..1.0_f64, 0.0..1.0_f64), (0..200_u64, 0..200_u64)),
    ) {
        let (state, now_ns) = replay(&steps, CAPACITY);
        let ((queue_a, queue_b), (cache_a, cache_b), (connections_a, connections_b)) = loads;
        let weight = |queue: f64, cache: f64, connections: u64| {
            let signals = Signals {
                engine: Reading::Fresh(engine(queue, cache)),
                connections_in_flight: Some(connections),
                ..calm()
            };
            fold(&state, &signals, CAPACITY, now_ns.saturating_add(gap_ns), &Tuning::default()).weight
        };
        let light = weight(queue_a.min(queue_b), cache_a.min(cache_b), connections_a.min(connections_b));
        let heavy = weight(queue_a.max(queue_b), cache_a.max(cache_b), connections_a.max(connections_b));
        prop_assert!(heavy <= light, "{heavy} > {light}");
    }

    #[test]
    fn no_step_of_a_serving_back_end_is_larger_than_allowed(
        steps in steps_seconds_apart(),
        gap_ns in 0..5 * SECOND_NS,
    ) {
        let (state, now_ns) = replay(&steps, CAPACITY);
        let before = state.share_per_mille();
        let signals = Signals { connections_in_flight: Some(80), ..calm() };
        let after = fold(&state, &signals, CAPACITY, now_ns + gap_ns, &Tuning::default()).state;
        let allowed = (gap_ns / 1_000_000 * 200 / 1000).max(1);
        prop_assert!(u64::from(before.abs_diff(after.share_per_mille())) <= allowed);
    }
}
