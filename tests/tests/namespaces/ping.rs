//! Echo requests to a service's address, as `ping` sends them: by a raw socket, since the program may not be there.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use enforcer_agent::pure::audit::Direction;
use enforcer_tests::harness::eventually;
use enforcer_tests::lab::topology::Leaf;
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::bench::{self, ALL_INTERFACES, LIMIT, REFUSED_LIMIT};
use super::privileged;

const IPV4_HEADER_BYTES: usize = 20;
const ECHO: IcmpEchoHeader = IcmpEchoHeader { id: 0x4711, seq: 1 };

/// Sends one echo request and waits for its answer; the TTL or hop limit of that is not looked at. `None` if none comes.
fn ping(from: &Leaf, to: IpAddr, payload: &[u8], limit: Duration) -> Option<()> {
    let source = from.address(to.is_ipv6());
    let (request, answer) = messages(source, to, payload);
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let open = || socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)).unwrap();
    let socket = UdpSocket::from(from.host.enter(open).unwrap());
    rustix::net::bind(&socket, &SocketAddr::new(source, 0)).unwrap();
    let deadline = Instant::now() + limit;
    socket.send_to(&request, SocketAddr::new(to, 0)).unwrap();
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.checked_duration_since(Instant::now())?;
        socket
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))
            .unwrap();
        let (bytes, peer) = socket.recv_from(&mut buffer).ok()?;
        let skipped = if to.is_ipv4() { IPV4_HEADER_BYTES } else { 0 };
        // Other messages come by here too, of neighbours for one.
        if peer.ip() == to && buffer.get(skipped..bytes) == Some(&answer[..]) {
            return Some(());
        }
    }
}

/// A request, and what has to come back: checksum and all.
fn messages(source: IpAddr, to: IpAddr, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (request, answer) = match (source, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let message = |kind| Icmpv4Header::with_checksum(kind, payload).to_bytes();
            (
                message(Icmpv4Type::EchoRequest(ECHO)).to_vec(),
                message(Icmpv4Type::EchoReply(ECHO)).to_vec(),
            )
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            let message = |kind| {
                let header = Icmpv6Header::with_checksum(kind, source.octets(), to.octets(), payload);
                header.unwrap().to_bytes().to_vec()
            };
            (
                message(Icmpv6Type::EchoRequest(ECHO)),
                message(Icmpv6Type::EchoReply(ECHO)),
            )
        }
        _ => unreachable!("a leaf has an address of either family"),
    };
    ([&request, payload].concat(), [&answer, payload].concat())
}

#[test]
fn a_service_address_answers_ping_of_its_tenants() {
    if !privileged() {
        return;
    }
    let silent = bench::policy("Nat", "TCP", "", "Allow");
    let answering = silent.replace("forward: Nat\n", "forward: Nat\n    answerEcho: true\n");
    let bench = bench::routed(&ALL_INTERFACES, &silent);
    let _echoes = bench.echoes();
    bench::let_clients_be_answered(&bench);
    let (acme, stranger) = (&bench.network.clients[0], &bench.network.clients[1]);
    for is_ipv6 in [false, true] {
        let vip = bench::vip(is_ipv6).ip();
        assert_eq!(
            ping(acme, vip, b"", REFUSED_LIMIT),
            None,
            "nobody has the address"
        );
    }
    bench::apply(&bench.lab, &bench.agent, &answering);
    for is_ipv6 in [false, true] {
        let vip = bench::vip(is_ipv6).ip();
        // A back end that was not there yet when it was probed is let in again a little later.
        eventually("an answer of the service's address", LIMIT, || {
            let answer = ping(acme, vip, b"every packet is judged", REFUSED_LIMIT);
            Ok(answer.ok_or_else(|| format!("{vip} does not answer its tenant")))
        })
        .unwrap();
        assert_eq!(
            ping(acme, vip, &[0x5a; 1400], LIMIT),
            Some(()),
            "{vip} answers its tenant"
        );
        assert_eq!(
            ping(stranger, vip, b"", REFUSED_LIMIT),
            None,
            "{vip} answers no stranger"
        );
    }
    assert!(bench::packets(&bench.agent, Direction::Ingress, "Echo") >= 4);
    assert_eq!(
        bench::packets(&bench.agent, Direction::Ingress, "UnknownTenant"),
        2
    );
    assert_eq!(bench::packets(&bench.agent, Direction::Ingress, "Internal"), 0);
}
