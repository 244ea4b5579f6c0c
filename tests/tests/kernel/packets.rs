//! The packets that benchmarks are made of, and the cases themselves: that they do what they say, not how long they take.

use enforcer_common::abi::driver::DriverPlan;
use enforcer_tests::bench::driver::{Driver, framed, plan};
use enforcer_tests::bench::{Options, run};
use enforcer_tests::generate::hex;
use enforcer_tests::packet::{syn, tcp};

use crate::privileged;

/// A frame of the driver is that of a segment with the flow's source, checksums and all.
#[test]
fn the_driver_makes_the_frames_of_its_flows() {
    if !privileged() {
        return;
    }
    let mut driver = Driver::load(1).unwrap();
    let v4 = syn("10.1.255.0:65530", "192.0.2.10:8000");
    let v6 = tcp("[2001:db8:1::ffff:0]:1024", "[2001:db8::10]:8000");
    for segment in [&v4, &v6] {
        for scattered in [0, 1] {
            let plan = DriverPlan {
                scattered,
                ..plan(segment, 12, 2, 3)
            };
            for n in [0, 1, 3, 4, 777, 4095, 4096] {
                let (address, port) = plan.source(plan.flow(n));
                let mut expected = framed(segment);
                let ip = match segment.from.ip() {
                    std::net::IpAddr::V4(_) => std::net::Ipv4Addr::from(address).into(),
                    std::net::IpAddr::V6(ip) => {
                        let high = u128::from(ip) & !u128::from(u32::MAX);
                        std::net::Ipv6Addr::from(high | u128::from(address)).into()
                    }
                };
                expected.from = std::net::SocketAddr::new(ip, port);
                let made = driver.frame(&plan, n).unwrap();
                assert_eq!(hex(&made), hex(&expected.bytes()), "frame {n} of {segment:?}");
            }
        }
    }
}

fn cases_hold(case: &str) {
    if !privileged() {
        return;
    }
    let options = Options {
        json: false,
        quick: true,
        case: case.to_owned(),
    };
    let outcome = run(&options, |outcome| println!("{outcome:?}"));
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// All kinds of cases; not those that differ from another by more flows or a larger policy.
#[test]
fn every_packet_of_a_benchmark_gets_the_verdict_that_it_is_about() {
    for cases in [
        "floor/*",
        "not-ours/*",
        "refuse/*",
        "limit/*",
        "new-flow/*",
        "established/*/1k",
        "established/*/limits",
    ] {
        cases_hold(cases);
    }
}
