//! Why a weight is what it is.

use super::*;

#[test]
fn causes_read_as_sentences_and_as_records() {
    let cause = WeightCause::KvCache { usage_per_mille: 955 };
    assert_eq!(cause.to_string(), "key-value cache 95.5% full");
    assert_eq!(
        serde_json::to_string(&cause).unwrap(),
        r#"{"signal":"kvCache","usagePerMille":955}"#
    );
    assert_eq!(
        WeightCause::SlowStart {
            elapsed_ms: 2345,
            of_ms: 30_000
        }
        .to_string(),
        "slow start, 2.3 of 30.0 s"
    );
    assert_eq!(
        WeightCause::Recovering {
            towards_per_mille: 1000,
            load_per_mille: 432
        }
        .to_string(),
        "recovering towards 100.0% of the full weight, load averages 43.2%"
    );
    assert_eq!(
        WeightCause::Average { load_per_mille: 40 }.to_string(),
        "load averages 4.0%"
    );
}

#[test]
fn a_weight_that_climbs_back_says_what_it_waits_for() {
    let saturated = Signals {
        connections_in_flight: Some(100),
        ..calm()
    };
    let mut bench = Bench::new();
    bench.run(&saturated, 20);
    let (mut averages, mut shares) = (Vec::new(), vec![bench.state.share_per_mille()]);
    for _ in 0..60 {
        let (share, causes) = bench.step(&calm());
        let is_within_dead_band = shares.last() == Some(&share);
        shares.push(share);
        match causes[..] {
            [] if is_within_dead_band => {}
            [
                WeightCause::Recovering {
                    towards_per_mille: 1000,
                    load_per_mille,
                },
            ] if share <= 950 => averages.push(load_per_mille),
            // The rest of the way is within the dead band.
            [WeightCause::Average { load_per_mille }] if share > 950 => averages.push(load_per_mille),
            _ => panic!("{shares:?}: {causes:?}"),
        }
    }
    assert!(shares.is_sorted() && shares[60] > 950, "{shares:?}");
    assert!(averages.len() > 5, "{averages:?}");
    assert!(
        averages.is_sorted_by(|earlier, later| earlier > later),
        "{averages:?}"
    );
}

#[test]
fn a_weight_that_may_rise_only_step_by_step_says_so_after_a_brake() {
    let braked = Signals {
        gpu: Reading::Fresh(GpuSample {
            brakes: Some(Brakes {
                power: true,
                ..Brakes::default()
            }),
            ..gpu()
        }),
        ..calm()
    };
    let mut bench = Bench::new();
    bench.run(&braked, 10);
    let recovering = WeightCause::Recovering {
        towards_per_mille: 1000,
        load_per_mille: 0,
    };
    assert_eq!(
        bench.step(&calm()),
        (700, vec![WeightCause::BrakeReleased, recovering])
    );
    assert_eq!(bench.step(&calm()), (900, vec![recovering]));
    assert_eq!(
        bench.step(&calm()),
        (1000, vec![WeightCause::Average { load_per_mille: 0 }])
    );
}

#[test]
fn a_first_weight_that_is_not_the_full_one_has_a_cause() {
    let mut bench = Bench::new();
    let (share, causes) = bench.step(&Signals {
        connections_in_flight: Some(20),
        ..calm()
    });
    assert_eq!(
        (share, causes),
        (810, vec![WeightCause::Connections { in_flight: 20 }])
    );
}

#[test]
fn a_slow_start_names_no_load_that_is_not_there() {
    let down = Signals {
        serving: false,
        ..calm()
    };
    let mut bench = Bench::new();
    bench.run(&down, 3);
    let slow_start = |elapsed_ms| WeightCause::SlowStart {
        elapsed_ms,
        of_ms: 30_000,
    };
    assert_eq!(
        bench.step(&calm()),
        (100, vec![WeightCause::Recovered, slow_start(0)])
    );
    assert_eq!(bench.run(&calm(), 1), [100], "within the dead band");
    assert_eq!(bench.step(&calm()).1, [slow_start(2000)]);
}
