//! What comes in, seen by TC instead of XDP: all that XDP does, also for packets that the host has put together.

use enforcer_agent::api::reply::{IngressMode, StatusReply};
use enforcer_agent::pure::audit::Direction;
use enforcer_tests::harness::{Agent, AgentSettings};
use enforcer_tests::lab::Lab;

use super::bench::{self, ALL_INTERFACES, Bench, REFUSED_LIMIT};
use super::echo::{connect, datagram_round_trip};
use super::paths::check_served;
use super::privileged;
use super::ways;
use enforcer_tests::lab::topology::Routed;

fn tc_bench(forward: &str, protocol: &str) -> Bench<Routed> {
    let policy = bench::policy(forward, protocol, "", "Allow");
    let bench = bench::routed_by("Tc", &ALL_INTERFACES, &policy);
    bench::wait_for_next_hops(&bench.agent);
    let status: StatusReply = bench.agent.ask(&["status"]).unwrap();
    assert!(
        status.interfaces.iter().all(|row| row.mode == IngressMode::Tc),
        "{:?}",
        status.interfaces
    );
    bench
}

/// No packet was taken for larger than it will be on its link, though the links to clients put segments together.
fn nothing_was_too_big(bench: &Bench<Routed>) {
    for reason in ["TooBig", "Internal"] {
        assert_eq!(
            bench::packets(&bench.agent, Direction::Ingress, reason),
            0,
            "{reason}"
        );
    }
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Reply") > 0);
}

#[test]
fn streams_go_there_and_back() {
    if !privileged() {
        return;
    }
    for forward in ["Nat", "Dnat"] {
        let bench = tc_bench(forward, "TCP");
        let echoes = bench.echoes();
        check_served(bench.client(), &echoes, |own, ends| {
            (ends.peer == own) == (forward == "Dnat")
        });
        nothing_was_too_big(&bench);
        let stranger = &bench.network.clients[1];
        for is_ipv6 in [false, true] {
            assert!(connect(stranger, bench::vip(is_ipv6), REFUSED_LIMIT).is_none());
        }
        assert!(bench::packets(&bench.agent, Direction::Ingress, "UnknownTenant") >= 2);
    }
}

/// Senders that leave checksums and segments to their device, as virtual machines on this host do.
#[test]
fn what_a_sender_leaves_to_its_device_is_done() {
    if !privileged() {
        return;
    }
    let bench = tc_bench("Nat", "TCP");
    let leaves = bench.network.clients.iter().chain(&bench.network.back_ends);
    for leaf in leaves {
        leaf.host
            .run(&format!("ethtool -K {} tx on tso on gso on", leaf.port.device))
            .unwrap();
    }
    let echoes = bench.echoes();
    check_served(bench.client(), &echoes, |own, ends| ends.peer != own);
    nothing_was_too_big(&bench);
    // Two round trips of a million bytes, in far fewer packets than that many segments.
    let status: StatusReply = bench.agent.ask(&["status"]).unwrap();
    let mut replies = status.packets.iter().filter(|row| row.reason == "Reply");
    let replies = replies.next().expect("they were counted");
    assert!(
        replies.bytes > 1500 * replies.packets,
        "{} bytes in {} packets",
        replies.bytes,
        replies.packets
    );
}

#[test]
fn datagrams_go_there_and_back() {
    if !privileged() {
        return;
    }
    let bench = tc_bench("Dnat", "UDP");
    let echoes = bench.echoes();
    for is_ipv6 in [false, true] {
        let own = datagram_round_trip(bench.client(), bench::vip(is_ipv6), bench::LIMIT).expect("an answer");
        let ends = echoes
            .iter()
            .find_map(super::echo::Echo::seen)
            .expect("it was seen");
        assert_eq!(ends.peer, own);
    }
}

#[test]
fn tunnels_carry_packets_that_were_put_together() {
    if privileged() {
        ways::through_a_tunnel("Tc", "Ipip");
        ways::through_a_tunnel("Tc", "Gue");
    }
}

#[test]
fn the_refused_are_told() {
    if privileged() {
        ways::tell_the_refused("Tc");
    }
}

/// A device whose driver has no XDP, and nobody asked for anything else.
#[test]
fn a_driver_without_xdp_is_seen_by_tc() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let host = lab.host("lb").unwrap();
    host.ip("link add name uplink type bridge").unwrap();
    host.ip("link set dev uplink up").unwrap();
    let mut agent = Agent::prepare(&lab, &host, &AgentSettings::new(["uplink"])).unwrap();
    for why in ["not supported", "earlier agent"] {
        let status = agent.start().unwrap();
        let [row] = &status.interfaces[..] else {
            panic!("{:?}", status.interfaces);
        };
        assert_eq!(row.mode, IngressMode::Tc);
        let said = row.why_not_native.as_deref().unwrap_or_default();
        assert!(said.contains(why), "{said}");
        agent.stop().unwrap();
    }
}
