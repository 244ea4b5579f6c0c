//! Any bytes at all: a verdict and a counter for each.

use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Error, Segment, syn, udp};
use enforcer_tests::random::{Random, SEED_VARIABLE, count, seed};
use enforcer_tests::rig::{Verdict, Way};

use crate::bench::Bench;
use crate::privileged;
use crate::tables::{POLICY, from_backend, onward, prepare};

/// Events are taken out before the ring buffer is full.
const DRAIN_EVERY: u64 = 20_000;

/// Good frames of every kind, to be damaged.
fn good_frames() -> Vec<Vec<u8>> {
    let v6 = syn("[2001:db8:1::1]:40000", "[2001:db8::10]:8000");
    let dnat = syn("10.1.0.1:40000", "192.0.2.20:8000");
    let answer = from_backend(onward(&dnat, "10.1.0.1:40000", "10.9.0.1:9000").answer());
    let error = Error::about(&onward(&dnat, "10.1.0.1:40000", "10.9.0.1:9000"), 12);
    let error_v6 = Error::about(&v6.clone().answer(), 12).from("2001:db8:ffff::1");
    let segments: [Segment; 16] = [
        syn("10.1.0.1:40000", "192.0.2.10:8000").payload(40),
        v6.clone().payload(40),
        v6.clone()
            .extension(0, &[0, 0, 1, 4, 0, 0, 0, 0])
            .extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]),
        v6.extension(43, &[0, 0, 4, 0, 0, 0, 0, 0]).flags(TCP_ACK),
        udp("10.1.0.1:40000", "192.0.2.10:53").payload(60),
        udp("[2001:db8:1::1]:40000", "[2001:db8::20]:53").payload(60),
        udp("10.1.0.1:40000", "192.0.2.10:53").options(&[1; 12]),
        dnat.vlan(5).vlan(6),
        answer,
        syn("10.1.0.1:40000", "192.0.2.30:9000").payload(1300),
        udp("198.51.100.1:1", "10.9.0.1:9000"),
        udp("10.1.0.1:1", "192.0.2.10:53").payload(16).fragment(0, true),
        syn("10.1.0.1:40000", "192.0.2.80:9000").payload(40).vlan(3),
        syn("[2001:db8:1::1]:40000", "[2001:db8::91]:9000"),
        syn("10.1.0.1:40000", "192.0.2.95:8000"),
        udp("10.1.0.1:40000", "192.0.2.90:9000").payload(3100),
    ];
    let frames = segments.iter().map(Segment::bytes);
    frames.chain([error.bytes(), error_v6.bytes()]).collect()
}

/// A frame of random bytes, or a good one with some damage.
fn frame(random: &mut Random, good: &[Vec<u8>]) -> Vec<u8> {
    if random.percent(10) {
        let length = 14 + random.below(200) as usize;
        return random.bytes(length);
    }
    let mut frame = random.pick(good).clone();
    for _ in 0..random.below(4) {
        match random.below(5) {
            0 => {
                let bit = random.below(frame.len() as u64 * 8) as usize;
                frame[bit / 8] ^= 1 << (bit % 8);
            }
            1 => {
                // The headers are where it hurts.
                let offset = 12 + random.below(60) as usize;
                if let Some(byte) = frame.get_mut(offset) {
                    *byte = *random.pick(&[0, 1, 4, 5, 6, 0x0f, 0x45, 0x7f, 0x80, 0xff]);
                }
            }
            2 => frame.truncate(14 + random.below(frame.len() as u64 - 13) as usize),
            3 => {
                let more = random.below(64) as usize;
                frame.extend(random.bytes(more));
            }
            _ => {
                let other = random.pick(good);
                let cut = 14 + random.below(40) as usize;
                if let (Some(head), Some(tail)) = (frame.get(..cut), other.get(cut..)) {
                    frame = [head, tail].concat();
                }
            }
        }
    }
    frame
}

#[test]
fn any_frame_gets_a_verdict_and_a_counter() {
    if privileged() {
        any_frame(Way::Xdp);
    }
}

#[test]
fn so_it_does_in_tc() {
    if privileged() {
        any_frame(Way::Tc);
    }
}

fn any_frame(way: Way) {
    let (seed, frames) = (seed(), count("FRAMES", 200_000));
    println!("{SEED_VARIABLE}={seed} FRAMES={frames}");
    let mut random = Random::new(seed);
    let mut bench = Bench::by(way, POLICY, 4096, prepare);
    let good = good_frames();
    let mut verdicts = std::collections::BTreeMap::new();
    for number in 0..frames {
        let sent = frame(&mut random, &good);
        // Every seventh goes out through the stack instead.
        let direction = usize::from(number % 7 == 6);
        if !if direction == 0 { way } else { Way::Tc }.takes(sent.len()) {
            continue;
        }
        let ran = match direction {
            0 => bench.rig.ingress(&sent),
            _ => bench.rig.egress(&sent),
        };
        let ran = ran.unwrap_or_else(|error| panic!("frame {number}: {error}\n{sent:02x?}"));
        bench.sent[direction] += 1;
        *verdicts.entry((direction, ran.verdict)).or_insert(0_u64) += 1;
        assert!(
            matches!(
                ran.verdict,
                Verdict::Drop | Verdict::Pass | Verdict::Transmit | Verdict::Redirect
            ),
            "frame {number}: {:?}\n{sent:02x?}",
            ran.verdict
        );
        assert!(
            ran.verdict.forwards() || ran.frame.len() == sent.len(),
            "frame {number} was not sent and yet changed its length\n{sent:02x?}"
        );
        if direction == 0 && !ran.verdict.forwards() {
            assert!(
                ran.frame == sent,
                "frame {number} was not forwarded and yet changed\n{sent:02x?}"
            );
        }
        if number % DRAIN_EVERY == DRAIN_EVERY - 1 {
            bench.events += bench.rig.events().len() as u64;
            let now_ns = bench.rig.now_ns() + 1_000_000_000;
            bench.rig.set_now(now_ns).unwrap();
            bench.rig.sweep().unwrap();
        }
    }
    println!("{verdicts:?}");
    bench.conserves();
    assert!(
        verdicts.keys().any(|(_, verdict)| *verdict == Verdict::Redirect),
        "nothing was let through"
    );
    let internal = bench.rig.tallies(0, bench.tenants()).unwrap();
    assert!(
        !internal
            .keys()
            .any(|(_, reason)| *reason == enforcer_common::Reason::Internal),
        "the tables never contradict each other: {internal:?}"
    );
}
