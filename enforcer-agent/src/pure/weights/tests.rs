use proptest::prelude::*;

use super::*;
use crate::pure::telemetry::{Brakes, EngineKind};

const SECOND_NS: u64 = 1_000_000_000;
const CAPACITY: u32 = 100;

fn engine(waiting: f64, kv_cache: f64) -> EngineSample {
    EngineSample {
        engine: EngineKind::Vllm,
        running: Some(10.0),
        waiting: Some(waiting),
        kv_cache_ratio: Some(kv_cache),
        gpu_utilization_ratio: None,
    }
}

fn gpu() -> GpuSample {
    GpuSample {
        devices: 1,
        utilization_ratio: Some(0.3),
        xid: Some(0),
        ..GpuSample::default()
    }
}

fn calm() -> Signals {
    Signals {
        engine: Reading::Fresh(engine(0.0, 0.1)),
        gpu: Reading::Fresh(gpu()),
        connections_in_flight: Some(0),
        serving: true,
    }
}

/// A back end that is folded once a second.
struct Bench {
    state: BackendState,
    now_ns: u64,
    tuning: Tuning,
}

impl Bench {
    fn new() -> Self {
        Self {
            state: BackendState::default(),
            now_ns: 0,
            tuning: Tuning::default(),
        }
    }

    fn step(&mut self, signals: &Signals) -> (u16, Vec<WeightCause>) {
        let folded = fold(&self.state, signals, CAPACITY, self.now_ns, &self.tuning);
        self.state = folded.state;
        self.now_ns += SECOND_NS;
        assert_eq!(folded.weight, weight_of(CAPACITY, self.state.share_per_mille()));
        (self.state.share_per_mille(), folded.causes)
    }

    /// The shares after each of `seconds` steps.
    fn run(&mut self, signals: &Signals, seconds: usize) -> Vec<u16> {
        (0..seconds).map(|_| self.step(signals).0).collect()
    }
}

#[test]
fn a_calm_back_end_has_its_full_weight_from_the_first_fold() {
    let mut bench = Bench::new();
    assert_eq!(bench.step(&calm()), (1000, vec![]));
    assert_eq!(bench.run(&calm(), 5), [1000; 5]);
}

#[test]
fn without_any_telemetry_the_capacity_alone_counts() {
    let nothing = Signals {
        engine: Reading::NotConfigured,
        gpu: Reading::NotConfigured,
        connections_in_flight: None,
        serving: true,
    };
    let mut bench = Bench::new();
    assert_eq!(bench.run(&nothing, 10), [1000; 10]);
}

#[test]
fn a_full_queue_lowers_the_share_within_seconds_and_says_so() {
    let mut bench = Bench::new();
    bench.run(&calm(), 3);
    let saturated = Signals {
        engine: Reading::Fresh(engine(80.0, 0.2)),
        ..calm()
    };
    let (share, causes) = bench.step(&saturated);
    assert_eq!((share, causes), (800, vec![WeightCause::Queue { waiting: 80 }]));
    let shares = bench.run(&saturated, 9);
    assert!(
        shares.is_sorted_by(|earlier, later| earlier >= later),
        "{shares:?}"
    );
    assert!(*shares.last().unwrap() < 150, "{shares:?}");
    // Load alone never takes a back end out.
    assert!(*bench.run(&saturated, 100).last().unwrap() >= 50);
    // Recovery from load is slower than its onset, and complete but for the dead band.
    let shares = bench.run(&calm(), 40);
    assert!(shares[9] < 900 && *shares.last().unwrap() > 950, "{shares:?}");
}

#[test]
fn the_cache_is_no_pressure_while_it_merely_fills() {
    let mut bench = Bench::new();
    bench.run(&calm(), 1);
    assert_eq!(
        bench.run(
            &Signals {
                engine: Reading::Fresh(engine(0.0, 0.6)),
                ..calm()
            },
            5
        ),
        [1000; 5]
    );
    let (share, causes) = bench.step(&Signals {
        engine: Reading::Fresh(engine(0.0, 0.95)),
        ..calm()
    });
    assert_eq!(
        (share, causes),
        (800, vec![WeightCause::KvCache { usage_per_mille: 950 }])
    );
}

#[test]
fn connections_over_capacity_count_when_the_engine_is_calm() {
    let mut bench = Bench::new();
    bench.run(&calm(), 1);
    let (share, causes) = bench.step(&Signals {
        connections_in_flight: Some(250),
        ..calm()
    });
    assert_eq!(
        (share, causes),
        (800, vec![WeightCause::Connections { in_flight: 250 }])
    );
}

#[test]
fn gpu_utilization_counts_only_where_the_engine_says_nothing() {
    let busy = Reading::Fresh(GpuSample {
        utilization_ratio: Some(1.0),
        ..gpu()
    });
    let mut bench = Bench::new();
    bench.run(&calm(), 1);
    assert_eq!(bench.run(&Signals { gpu: busy, ..calm() }, 5), [1000; 5]);
    let mute = Signals {
        engine: Reading::NotConfigured,
        gpu: busy,
        ..calm()
    };
    let (share, causes) = bench.step(&mute);
    assert_eq!(
        (share, causes),
        (
            800,
            vec![WeightCause::GpuUtilization {
                utilization_per_mille: 1000
            }]
        )
    );
}

#[test]
fn brakes_halve_and_their_release_is_told() {
    let braked = GpuSample {
        brakes: Some(Brakes {
            thermal: true,
            ..Brakes::default()
        }),
        ..gpu()
    };
    let mut bench = Bench::new();
    bench.run(&calm(), 1);
    let (_, causes) = bench.step(&Signals {
        gpu: Reading::Fresh(braked),
        ..calm()
    });
    assert_eq!(
        causes[0],
        WeightCause::Brake {
            thermal: true,
            power: false
        }
    );
    assert_eq!(
        *bench
            .run(
                &Signals {
                    gpu: Reading::Fresh(braked),
                    ..calm()
                },
                5
            )
            .last()
            .unwrap(),
        500
    );
    let (_, causes) = bench.step(&calm());
    assert_eq!(causes[0], WeightCause::BrakeReleased);
    assert_eq!(*bench.run(&calm(), 5).last().unwrap(), 1000);
}

#[test]
fn a_growing_thermal_counter_is_a_brake_and_a_standing_one_is_none() {
    let counter = |total: f64| Signals {
        gpu: Reading::Fresh(GpuSample {
            thermal_violation: Some(total),
            ..gpu()
        }),
        ..calm()
    };
    let mut bench = Bench::new();
    assert_eq!(bench.run(&counter(5e6), 2), [1000; 2]);
    let (_, causes) = bench.step(&counter(6e6));
    assert_eq!(
        causes[0],
        WeightCause::Brake {
            thermal: true,
            power: false
        }
    );
    // Folding again without news keeps the brake.
    let (_, causes) = bench.step(&Signals {
        gpu: Reading::Unchanged,
        ..calm()
    });
    assert_eq!(
        causes[0],
        WeightCause::Brake {
            thermal: true,
            power: false
        }
    );
    let (_, causes) = bench.step(&counter(6e6));
    assert_eq!(causes[0], WeightCause::BrakeReleased);
    // The exporter restarted.
    assert!(
        bench
            .step(&counter(0.0))
            .1
            .iter()
            .all(|cause| !matches!(cause, WeightCause::Brake { .. }))
    );
}

#[test]
fn a_gpu_fault_drains_at_once_and_stays_latched() {
    let showing = |xid: u32| Signals {
        gpu: Reading::Fresh(GpuSample {
            xid: Some(xid),
            ..gpu()
        }),
        ..calm()
    };
    let mut bench = Bench::new();
    assert_eq!(
        bench.run(&showing(31), 3),
        [1000; 3],
        "an application's error is no fault"
    );
    assert_eq!(bench.step(&showing(79)), (0, vec![WeightCause::Xid { code: 79 }]));
    assert_eq!(bench.step(&showing(79)), (0, vec![]));
    assert_eq!(
        bench.run(&showing(31), 2),
        [0; 2],
        "an application's error repairs nothing"
    );
    let silent = Signals {
        gpu: Reading::Missed,
        ..calm()
    };
    assert_eq!(bench.run(&silent, 5), [0; 5], "silence repairs nothing");
    let (share, causes) = bench.step(&showing(0));
    assert!(share > 0, "{share}");
    assert!(causes.contains(&WeightCause::FaultCleared), "{causes:?}");
    assert!(
        causes.contains(&WeightCause::SlowStart { elapsed_ms: 0 }),
        "{causes:?}"
    );
}

#[test]
fn an_acknowledged_fault_drains_no_more_but_another_does() {
    let showing = |xid: u32| Signals {
        gpu: Reading::Fresh(GpuSample {
            xid: Some(xid),
            ..gpu()
        }),
        ..calm()
    };
    let mut bench = Bench::new();
    bench.run(&showing(79), 2);
    assert_eq!(bench.state.fault_since_ns(), Some(0));
    bench.state.acknowledge_fault();
    assert_eq!(bench.state.fault_since_ns(), None);
    assert!(bench.run(&showing(79), 40).last().unwrap() > &900);
    assert_eq!(bench.step(&showing(48)).0, 0);
}

#[test]
fn a_failed_row_remap_drains() {
    let failed = GpuSample {
        row_remap_failed: Some(true),
        ..gpu()
    };
    let mut bench = Bench::new();
    bench.run(&calm(), 1);
    let drained = bench.step(&Signals {
        gpu: Reading::Fresh(failed),
        ..calm()
    });
    assert_eq!(drained, (0, vec![WeightCause::RowRemapFailure]));
}

#[test]
fn a_recovered_back_end_starts_slowly() {
    let down = Signals {
        serving: false,
        ..calm()
    };
    let mut bench = Bench::new();
    bench.run(&calm(), 1);
    assert_eq!(bench.step(&down), (0, vec![WeightCause::NotServing]));
    bench.run(&down, 10);
    let (share, causes) = bench.step(&calm());
    assert_eq!(share, 100);
    assert!(causes.contains(&WeightCause::Recovered), "{causes:?}");
    let shares = bench.run(&calm(), 35);
    assert!(shares.is_sorted(), "{shares:?}");
    assert!(
        (450..650).contains(&shares[14]) && shares[34] == 1000,
        "{shares:?}"
    );
}

#[test]
fn silence_is_held_for_three_misses_and_then_glides_to_neutral() {
    let saturated = Signals {
        engine: Reading::Fresh(engine(80.0, 0.2)),
        gpu: Reading::NotConfigured,
        ..calm()
    };
    let silent = Signals {
        engine: Reading::Missed,
        ..saturated
    };
    let mut bench = Bench::new();
    bench.run(&saturated, 20);
    let before = bench.state.share_per_mille();
    assert_eq!(bench.step(&silent), (before, vec![]));
    assert_eq!(bench.step(&silent), (before, vec![]));
    let (_, causes) = bench.step(&silent);
    assert!(
        causes.contains(&WeightCause::Silent {
            source: Source::Engine,
            misses: 3
        }),
        "{causes:?}"
    );
    let shares = bench.run(&silent, 60);
    assert!(shares.is_sorted(), "{shares:?}");
    // Neutral is half of the saturation range: 1000 - 0.5 * 950, less the dead band.
    assert!((470..=530).contains(shares.last().unwrap()), "{shares:?}");
    let (_, causes) = bench.step(&calm());
    assert!(
        causes.contains(&WeightCause::Heard {
            source: Source::Engine
        }),
        "{causes:?}"
    );
}

#[test]
fn neutral_also_brings_down_a_silent_back_end_that_was_idle() {
    let silent = Signals {
        engine: Reading::Missed,
        gpu: Reading::NotConfigured,
        ..calm()
    };
    let mut bench = Bench::new();
    bench.run(&calm(), 5);
    assert_eq!(bench.run(&silent, 2), [1000; 2]);
    assert!((520..=580).contains(bench.run(&silent, 60).last().unwrap()));
}

#[test]
fn a_small_change_is_not_published() {
    let mut bench = Bench::new();
    bench.run(&calm(), 1);
    assert_eq!(
        bench.run(
            &Signals {
                connections_in_flight: Some(4),
                ..calm()
            },
            100
        ),
        [1000; 100]
    );
}

#[test]
fn frequent_steps_add_up_to_the_same_movement() {
    let saturated = Signals {
        connections_in_flight: Some(1000),
        ..calm()
    };
    let tuning = Tuning::default();
    let mut state = fold(&BackendState::default(), &calm(), CAPACITY, 0, &tuning).state;
    for millisecond in 1..=2000_u64 {
        state = fold(&state, &saturated, CAPACITY, millisecond * 1_000_000, &tuning).state;
    }
    assert!(
        (300..700).contains(&state.share_per_mille()),
        "{}",
        state.share_per_mille()
    );
}

#[test]
fn causes_read_as_sentences_and_as_records() {
    let cause = WeightCause::KvCache { usage_per_mille: 955 };
    assert_eq!(cause.to_string(), "key-value cache 95.5% full");
    assert_eq!(
        serde_json::to_string(&cause).unwrap(),
        r#"{"signal":"kvCache","usagePerMille":955}"#
    );
    assert_eq!(
        WeightCause::SlowStart { elapsed_ms: 2345 }.to_string(),
        "slow start, 2.3 s in"
    );
}

#[track_caller]
fn check_limit(pool: &[(bool, Option<u64>)], refused: &[usize]) {
    let mut members: Vec<PoolMember> = pool
        .iter()
        .map(|&(serving, fault_since_ns)| PoolMember {
            capacity: 10,
            weight: if serving && fault_since_ns.is_none() {
                10_000
            } else {
                0
            },
            serving,
            fault_since_ns,
        })
        .collect();
    assert_eq!(limit_drains(&mut members, &Tuning::default()), refused);
    for (position, member) in members.iter().enumerate() {
        let expected = match (member.serving, member.fault_since_ns, refused.contains(&position)) {
            (true, None, _) => 10_000,
            (_, _, true) => 500,
            _ => 0,
        };
        assert_eq!(member.weight, expected, "member {position}");
    }
}

#[test]
fn telemetry_never_drains_more_than_half_of_a_pool() {
    check_limit(&[], &[]);
    check_limit(&[(true, Some(1))], &[0]);
    check_limit(&[(true, Some(1)), (true, None)], &[]);
    check_limit(&[(true, Some(2)), (true, Some(1))], &[0]);
    check_limit(
        &[(true, Some(1)), (true, Some(1)), (true, Some(1)), (true, Some(1))],
        &[2, 3],
    );
    check_limit(
        &[(false, None), (true, Some(1)), (true, Some(2)), (true, None)],
        &[2],
    );
    check_limit(
        &[(false, None), (false, Some(1)), (true, Some(2)), (true, None)],
        &[2],
    );
}

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
