//! One back end, second by second.

mod causes;
mod pool;
mod properties;

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
        causes.contains(&WeightCause::SlowStart {
            elapsed_ms: 0,
            of_ms: 30_000
        }),
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
