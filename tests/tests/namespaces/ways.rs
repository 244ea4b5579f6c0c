//! Ways to a back end that keep the packet whole: through a tunnel, or to a proxy on this host. And what those hear who are
//! refused.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Instant;

use enforcer_agent::api::reply::{BackendListReply, StatusReply};
use enforcer_agent::pure::audit::Direction;

use enforcer_tests::harness::eventually;

use super::bench::{self, ALL_INTERFACES, LIMIT, VIP, VIP_V6};
use super::echo::{Echo, connect, round_trip};
use super::paths::check_served;
use super::privileged;

/// Gives a host the service's addresses.
pub(super) fn own_vip(host: &enforcer_tests::lab::Host) {
    host.ip(&format!("addr add {VIP}/32 dev lo")).unwrap();
    host.ip(&format!("-6 addr add {VIP_V6}/128 dev lo")).unwrap();
}

/// Back ends see the client's own packets, and large ones find their way although the tunnel has less room.
pub(super) fn through_a_tunnel(attach_mode: &'static str, forward: &str) {
    let policy = bench::policy(forward, "TCP", "", "Allow");
    let bench = bench::routed_by(attach_mode, &ALL_INTERFACES, &policy);
    bench::wait_for_next_hops(&bench.agent);
    bench::let_clients_be_answered(&bench);
    for leaf in &bench.network.back_ends {
        own_vip(&leaf.host);
        let prefixes = "--ipv4 10.254.0.0/16 --ipv6 2001:db8:fe::/64";
        assert!(bench::decapsulate(&bench, leaf, prefixes).contains("takes outer headers off"));
    }
    let echoes = bench.echoes();
    check_served(bench.client(), &echoes, |own, ends| {
        ends.peer == own && ends.own == bench::vip(own.is_ipv6())
    });
    assert!(
        bench::packets(&bench.agent, Direction::Ingress, "TooBig") > 0,
        "the clients' links have the same MTU as the back ends', so that full packets do not fit"
    );
    assert_eq!(bench::packets(&bench.agent, Direction::Ingress, "Reply"), 0);
    assert_eq!(bench::packets(&bench.agent, Direction::Ingress, "Internal"), 0);
    // Whoever was not told of is not believed, and without the program nobody is.
    for leaf in &bench.network.back_ends {
        bench::decapsulate(&bench, leaf, "--ipv4 203.0.113.0/24");
    }
    assert!(connect(bench.client(), bench::vip(false), bench::REFUSED_LIMIT).is_none());
    for leaf in &bench.network.back_ends {
        assert!(bench::decapsulate(&bench, leaf, "--remove").contains("as they are"));
    }
    assert!(connect(bench.client(), bench::vip(true), bench::REFUSED_LIMIT).is_none());
}

#[test]
fn ip_in_ip_shows_the_client_to_the_back_end() {
    if privileged() {
        through_a_tunnel("Auto", "Ipip");
    }
}

#[test]
fn generic_udp_shows_the_client_to_the_back_end() {
    if privileged() {
        through_a_tunnel("Auto", "Gue");
    }
}

#[test]
fn a_link_with_a_smaller_mtu_is_found_out() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Dnat", "UDP", "", "Allow"));
    bench::let_clients_be_answered(&bench);
    // Back ends that answer no probe would be taken out before the link is looked at.
    let _echoes = bench.echoes();
    for leaf in &bench.network.back_ends {
        let (ours, theirs) = (leaf.host.name(), &leaf.port.device);
        bench
            .network
            .balancer
            .ip(&format!("link set dev {ours} mtu 1400"))
            .unwrap();
        leaf.host.ip(&format!("link set dev {theirs} mtu 1400")).unwrap();
    }
    let client = &bench.client().host;
    for (is_ipv6, any, family) in [(false, "0.0.0.0:0", ""), (true, "[::]:0", "-6 ")] {
        let vip = bench::vip(is_ipv6);
        let socket = client.enter(|| UdpSocket::bind(any).unwrap()).unwrap();
        // The agent looks at its links every few seconds.
        eventually("a path with the MTU of the link to the back ends", LIMIT, || {
            // What the kernel has heard by now it says of the next datagram.
            let _ = socket.send_to(&[0; 1430], vip);
            let route = client.ip(&format!("{family}route get {}", vip.ip()))?;
            Ok(if route.contains("mtu 1400") {
                Ok(())
            } else {
                Err(route)
            })
        })
        .unwrap();
    }
    assert!(bench::packets(&bench.agent, Direction::Ingress, "TooBig") > 0);
}

/// Without being told, back ends would send whole segments again and again, which the kernel drops on their way to the link.
#[test]
fn replies_find_their_way_through_a_smaller_link_of_the_client() {
    if !privileged() {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Nat", "TCP", "", "Allow"));
    bench::let_back_ends_be_answered(&bench);
    let _echoes = bench.echoes();
    let link = bench.client().host.name();
    let balancer = &bench.network.balancer;
    balancer.ip(&format!("link set dev {link} mtu 1400")).unwrap();
    // A client that did not know its link would send segments that do not get here; this one still asks for whole ones.
    let (client, device) = (&bench.client().host, &bench.client().port.device);
    client.ip(&format!("link set dev {device} mtu 1400")).unwrap();
    for (family, segment_bytes) in [("-4", 1460), ("-6", 1440)] {
        let route = client.ip(&format!("{family} route show default")).unwrap();
        let gateway = route.split_whitespace().nth(2).expect("a default route");
        client
            .ip(&format!(
                "{family} route replace default via {gateway} dev {device} advmss {segment_bytes}"
            ))
            .unwrap();
    }
    // The agent looks at its links every second.
    eventually("the MTU of the client's link", LIMIT, || {
        let links = bench.agent.command(&["maps", "dump", "LINKS"])?.stdout;
        Ok(if links.contains("1400") {
            Ok(())
        } else {
            Err(links)
        })
    })
    .unwrap();
    for is_ipv6 in [false, true] {
        let mut stream = connect(bench.client(), bench::vip(is_ipv6), LIMIT).expect("an admitted connection");
        round_trip(&mut stream, 100_000);
    }
    assert!(bench::packets(&bench.agent, Direction::Ingress, "TooBig") > 0);
}

/// Large packets, which the driver hands over in several buffers, in native XDP.
#[test]
fn links_with_a_large_mtu_are_made_use_of() {
    if !privileged() {
        return;
    }
    for forward in ["Dnat", "Ipip"] {
        let policy = bench::policy(forward, "TCP", "", "Allow");
        let bench = bench::routed(&ALL_INTERFACES, &policy);
        let clients = bench.network.clients.iter().map(|leaf| (leaf, 9000));
        // Room for what goes before a packet.
        let back_ends = bench.network.back_ends.iter().map(|leaf| (leaf, 9100));
        for (leaf, mtu_bytes) in clients.chain(back_ends) {
            let (ours, theirs) = (leaf.host.name(), &leaf.port.device);
            let line = |device: &str| format!("link set dev {device} mtu {mtu_bytes}");
            bench.network.balancer.ip(&line(ours)).unwrap();
            leaf.host.ip(&line(theirs)).unwrap();
        }
        eventually("back ends behind links of that MTU", LIMIT, || {
            let reply: BackendListReply = bench.agent.ask(&["backend", "list"])?;
            let missing = reply
                .backends
                .into_iter()
                .find(|row| row.next_hop.as_ref().is_none_or(|hop| hop.mtu_bytes != 9100));
            Ok(missing.map_or(Ok(()), |row| Err(row.name)))
        })
        .unwrap();
        if forward == "Ipip" {
            for leaf in &bench.network.back_ends {
                own_vip(&leaf.host);
                bench::decapsulate(&bench, leaf, "--ipv4 10.254.0.0/16 --ipv6 2001:db8:fe::/64");
            }
        }
        let echoes = bench.echoes();
        check_served(bench.client(), &echoes, |own, ends| ends.peer == own);
        let status: StatusReply = bench.agent.ask(&["status"]).unwrap();
        let mut admitted = status.packets.iter().filter(|row| row.reason == "Allowed");
        let admitted = admitted.next().expect("they were counted");
        // Of the packets of two streams of a million bytes, every second is an acknowledgment.
        assert!(
            admitted.bytes > 4096 * admitted.packets / 2,
            "{} bytes in {} packets",
            admitted.bytes,
            admitted.packets
        );
        for reason in ["TooBig", "Internal", "Malformed"] {
            assert_eq!(
                bench::packets(&bench.agent, Direction::Ingress, reason),
                0,
                "{reason}"
            );
        }
    }
}

/// A policy whose back ends are proxies on the balancer.
pub(super) fn local_policy(limits: &str) -> String {
    let policy = bench::policy("Local", "TCP", limits, "Allow");
    let proxies = format!(
        "    - {{name: proxy-4, address: {VIP}, port: 8000}}\n    - {{name: proxy-6, address: \"{VIP_V6}\", port: 8000}}\n"
    );
    let start = policy.find("    - {name: gpu-1").expect("the first back end");
    let end = policy.find("  rules:").expect("the rules");
    [&policy[..start], &proxies, &policy[end..]].concat()
}

#[test]
fn a_proxy_on_the_balancer_is_governed() {
    if !privileged() {
        return;
    }
    let policy = local_policy("concurrentConnections: 3");
    let bench = bench::routed_without_hops(&ALL_INTERFACES, &policy);
    own_vip(&bench.network.balancer);
    let own: [IpAddr; 2] = [VIP.parse().unwrap(), VIP_V6.parse().unwrap()];
    let echo = Echo::start(&bench.network.balancer, &own);
    for is_ipv6 in [false, true] {
        let mut stream = connect(bench.client(), bench::vip(is_ipv6), LIMIT).expect("an admitted connection");
        round_trip(&mut stream, 100_000);
        let ends = echo.seen().expect("the proxy saw it");
        assert_eq!(ends.peer, stream.local_addr().unwrap());
        let stranger = &bench.network.clients[1];
        assert!(connect(stranger, bench::vip(is_ipv6), bench::REFUSED_LIMIT).is_none());
    }
    assert!(
        bench::packets(&bench.agent, Direction::Egress, "Reply") > 0,
        "answers are metered"
    );
    assert!(bench::packets(&bench.agent, Direction::Ingress, "UnknownTenant") >= 2);
}

#[test]
fn whoever_is_refused_is_told_at_once() {
    if privileged() {
        tell_the_refused("Auto");
    }
}

/// Resets and ICMP errors reach clients of both families, known and unknown.
pub(super) fn tell_the_refused(attach_mode: &'static str) {
    for (answer, kinds) in [
        ("Reset", &[ErrorKind::ConnectionRefused][..]),
        (
            "Prohibited",
            &[ErrorKind::HostUnreachable, ErrorKind::PermissionDenied][..],
        ),
    ] {
        let policy = bench::policy("Nat", "TCP", "", "Deny");
        let policy = policy.replace(
            "forward: Nat\n",
            &format!("forward: Nat\n    onRefusal: {answer}\n"),
        );
        let bench = bench::routed_by(attach_mode, &ALL_INTERFACES, &policy);
        bench::let_clients_be_answered(&bench);
        for (is_ipv6, client) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
            let started = Instant::now();
            let client = &bench.network.clients[client];
            let refused = client
                .host
                .enter(|| TcpStream::connect_timeout(&bench::vip(is_ipv6), LIMIT).map(drop))
                .unwrap()
                .unwrap_err();
            assert!(
                kinds.contains(&refused.kind()),
                "{answer}, IPv6 {is_ipv6}: {refused}"
            );
            assert!(
                started.elapsed() < LIMIT / 2,
                "{answer}: after {:?}",
                started.elapsed()
            );
        }
        assert_eq!(bench::packets(&bench.agent, Direction::Ingress, "Internal"), 0);
    }
}
