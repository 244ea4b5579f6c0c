//! Ways through the balancer: who is let through, by which forward mode, and what both ends see of each other.

use std::collections::BTreeSet;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use enforcer_agent::pure::audit::Direction;
use enforcer_tests::harness::eventually;
use enforcer_tests::lab::topology::Leaf;

use super::bench::{self, ALL_INTERFACES, LIMIT, REFUSED_LIMIT};
use super::echo::{Echo, Ends, connect, datagram_round_trip, round_trip};
use super::privileged;

/// More than a receive window, in whole segments.
const MANY_BYTES: usize = 1_000_000;
/// Connections for each family: with two back ends of equal weight, all on one has a chance of 2^-15.
const CONNECTIONS: usize = 16;

/// Opens connections over one family and gives back who served each, as the server saw it.
fn served(client: &Leaf, echoes: &[Echo], is_ipv6: bool) -> Vec<(usize, SocketAddr, Ends)> {
    (0..CONNECTIONS)
        .map(|index| {
            let mut stream =
                connect(client, bench::vip(is_ipv6), LIMIT).expect("an admitted connection is answered");
            round_trip(&mut stream, if index == 0 { MANY_BYTES } else { 100 });
            let found: Vec<(usize, Ends)> = echoes
                .iter()
                .enumerate()
                .filter_map(|(index, echo)| Some((index, echo.seen()?)))
                .collect();
            let [(back_end, ends)] = found[..] else {
                panic!("one connection was seen as {found:?}");
            };
            (back_end, stream.local_addr().unwrap(), ends)
        })
        .collect()
}

/// Both back ends serve both families, and believe to talk to `expected` (given the client's own end).
pub(super) fn check_served(client: &Leaf, echoes: &[Echo], expected: impl Fn(SocketAddr, Ends) -> bool) {
    for is_ipv6 in [false, true] {
        let served = served(client, echoes, is_ipv6);
        for (_, own, ends) in &served {
            assert!(expected(*own, *ends), "{own} was seen as {ends:?}");
        }
        let back_ends: BTreeSet<usize> = served.iter().map(|(back_end, ..)| *back_end).collect();
        assert_eq!(back_ends.len(), 2, "IPv6: {is_ipv6}, {served:?}");
    }
}

#[test]
fn nat_hides_the_client_from_the_back_end() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", "", "Allow"));
    let echoes = bench.echoes();
    let hidden: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    check_served(bench.client(), &echoes, |_, ends| {
        hidden.contains(&ends.peer.ip()) && (10_000..=32_767).contains(&ends.peer.port())
    });
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Reply") > 0);
    assert_eq!(bench::packets(&bench.agent, Direction::Ingress, "Internal"), 0);
}

#[test]
fn dnat_shows_the_client_to_the_back_end() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Dnat", "TCP", "", "Allow"));
    let echoes = bench.echoes();
    check_served(bench.client(), &echoes, |own, ends| ends.peer == own);
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Reply") > 0);
    assert_eq!(bench::packets(&bench.agent, Direction::Egress, "Reply"), 0);
}

#[test]
fn replies_that_come_through_the_stack_are_translated_on_the_way_out() {
    if !privileged() {
        return;
    }
    // No program sees the replies come in: the host forwards them, and the program on the way out undoes the translation.
    let bench = bench::routed(&["acme", "stranger"], &bench::policy("Dnat", "TCP", "", "Allow"));
    let echoes = bench.echoes();
    check_served(bench.client(), &echoes, |own, ends| ends.peer == own);
    assert_eq!(bench::packets(&bench.agent, Direction::Ingress, "Reply"), 0);
    assert!(bench::packets(&bench.agent, Direction::Egress, "Reply") > 0);
}

#[test]
fn direct_server_return_changes_nothing_but_the_link_layer() {
    if !privileged() {
        return;
    }
    let bench = bench::rack(&bench::rack_policy());
    let echoes = bench.echoes();
    check_served(&bench.network.clients[0], &echoes, |own, ends| {
        ends.peer == own && ends.own == bench::vip(own.is_ipv6())
    });
    assert_eq!(
        bench::packets(&bench.agent, Direction::Ingress, "Reply"),
        0,
        "replies do not pass here"
    );
}

#[test]
fn datagrams_go_there_and_back_through_nat() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "UDP", "", "Allow"));
    let echoes = bench.echoes();
    for is_ipv6 in [false, true] {
        for _ in 0..CONNECTIONS {
            let own = datagram_round_trip(bench.client(), bench::vip(is_ipv6), LIMIT);
            let seen = echoes.iter().find_map(Echo::seen).unwrap();
            assert_ne!(seen.peer, own.expect("an admitted datagram comes back"));
        }
    }
    assert_eq!(
        datagram_round_trip(&bench.network.clients[1], bench::vip(false), REFUSED_LIMIT),
        None,
        "an unknown source"
    );
    assert!(
        connect(bench.client(), bench::vip(false), REFUSED_LIMIT).is_none(),
        "the service is UDP"
    );
}

#[test]
fn who_is_not_admitted_reaches_nobody() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", "", "Deny"));
    let echoes = bench.echoes();
    let (acme, stranger) = (bench.client(), &bench.network.clients[1]);
    let refused = |reason| bench::packets(&bench.agent, Direction::Ingress, reason);
    for is_ipv6 in [false, true] {
        assert!(
            connect(acme, bench::vip(is_ipv6), REFUSED_LIMIT).is_none(),
            "its rule denies it"
        );
        assert!(
            connect(stranger, bench::vip(is_ipv6), REFUSED_LIMIT).is_none(),
            "in no tenant's network"
        );
        for client in [acme, stranger] {
            let back_end = SocketAddr::new(bench.network.back_ends[0].address(is_ipv6), 8000);
            assert!(
                connect(client, back_end, REFUSED_LIMIT).is_none(),
                "around the balancer"
            );
        }
    }
    assert_eq!(echoes.iter().find_map(Echo::seen), None);
    assert_eq!(
        (refused("RuleDeny"), refused("UnknownTenant"), refused("Bypass")),
        (2, 2, 4)
    );
    assert_eq!(refused("Allowed"), 0);
}

#[test]
fn a_tenant_gets_the_connections_that_its_limits_allow() {
    const RATE: u64 = 5;
    const TRIES: u64 = 60;
    if !privileged() {
        return;
    }
    let limits = format!("newConnectionsPerSecond: {RATE}, burst: 1s");
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Dnat", "TCP", &limits, "Allow"));
    let _echoes = bench.echoes();
    let started = Instant::now();
    let mut admitted = 0;
    for _ in 0..TRIES {
        // Long enough for a connection, too short for a second SYN.
        admitted +=
            u64::from(connect(bench.client(), bench::vip(false), Duration::from_millis(40)).is_some());
    }
    // The burst, and what the rate gives back meanwhile; one more for what is left of the last interval.
    let most = RATE + started.elapsed().as_secs() * RATE + RATE + 1;
    assert!(
        (RATE..=most).contains(&admitted),
        "{admitted} of {TRIES} in {:?}",
        started.elapsed()
    );
    let refused = bench::packets(&bench.agent, Direction::Ingress, "ConnectionRate");
    assert_eq!(refused, TRIES - admitted);
}

#[test]
fn a_tenant_has_no_more_connections_open_than_it_may() {
    if !privileged() {
        return;
    }
    let limits = "concurrentConnections: 2";
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", limits, "Allow"));
    let _echoes = bench.echoes();
    let open = || connect(bench.client(), bench::vip(false), REFUSED_LIMIT);
    let (first, _second) = (open().unwrap(), open().unwrap());
    assert!(open().is_none(), "two are open");
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Concurrency") >= 1);
    first.shutdown(Shutdown::Both).unwrap();
    drop(first);
    // Its entry stays for ten seconds, for packets that are late, but it does not count as open that long.
    eventually("a free place", Duration::from_secs(6), || {
        let count = bench::open_connections(&bench.agent);
        Ok(if count < 2 {
            Ok(())
        } else {
            Err(format!("{count} are open"))
        })
    })
    .unwrap();
    assert!(open().is_some(), "one is open");
}
