//! What rtnetlink says about next hops and addresses, in network namespaces of the lab.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use enforcer_agent::adapters::neighbours::{HostNetwork, NextHop, NextHopError};
use enforcer_tests::lab::{Host, Lab};
use enforcer_tests::privilege;
use tokio::net::TcpStream;

fn privileged() -> bool {
    privilege::require("needs root, for network namespaces")
}

fn next_hop_from(host: &Host, destination: &str) -> Result<NextHop, NextHopError> {
    host.block_on(|| next_hop(destination)).unwrap()
}

async fn next_hop(destination: &str) -> Result<NextHop, NextHopError> {
    HostNetwork::open()
        .unwrap()
        .next_hop(address(destination))
        .await
        .unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Makes the kernel resolve the neighbour: a refused connection is an answer from it.
async fn resolve_by_connecting(destination: &str) {
    let target = SocketAddr::new(address(destination), 9);
    let attempt = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(target)).await;
    let error = attempt
        .expect("the other end answers")
        .expect_err("nothing listens there");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn this_host_knows_itself() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let network = HostNetwork::open().unwrap();
        let loopback = network.interface("lo").await.unwrap().unwrap();
        assert_eq!((loopback.mac, loopback.is_up), (None, true));
        assert_eq!(network.interface("no-such-link").await.unwrap(), None);
        let addresses = network.local_addresses().await.unwrap();
        let own = addresses
            .iter()
            .find(|own| own.address == address("127.0.0.1"))
            .unwrap();
        assert_eq!((own.ifindex, own.prefix_length), (loopback.ifindex, 8));
        let destination = address("127.0.0.1");
        assert_eq!(
            network.next_hop(destination).await.unwrap(),
            Err(NextHopError::Local { destination })
        );
    });
}

#[test]
fn next_hops_follow_routes_and_neighbours() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let (near, far) = (lab.host("near").unwrap(), lab.host("far").unwrap());
    let near_addresses = ["10.77.0.1/24", "2001:db8:77::1/64"];
    let link = lab
        .link(
            &near,
            &far,
            &near_addresses,
            &["10.77.0.2/24", "2001:db8:77::2/64"],
        )
        .unwrap();
    near.ip("link set dev far mtu 1400").unwrap();
    let (interface, addresses) = near
        .block_on(async || {
            let network = HostNetwork::open().unwrap();
            (
                network.interface("far").await.unwrap().unwrap(),
                network.local_addresses().await.unwrap(),
            )
        })
        .unwrap();
    assert_eq!((interface.mtu_bytes, interface.is_up), (1400, true));
    assert_eq!(interface.mac.unwrap().to_string(), link.a.mac.to_string());
    for own in ["127.0.0.1", "10.77.0.1", "::1", "2001:db8:77::1"] {
        assert!(
            addresses.iter().any(|local| local.address == address(own)),
            "{own} is missing in {addresses:?}"
        );
    }

    for (destination, own) in [("10.77.0.2", "10.77.0.1"), ("2001:db8:77::2", "2001:db8:77::1")] {
        let unresolved = NextHopError::Unresolved {
            next_hop: address(destination),
            ifname: "far".to_owned(),
        };
        assert_eq!(next_hop_from(&near, destination), Err(unresolved));
        near.block_on(|| resolve_by_connecting(destination)).unwrap();
        let hop = next_hop_from(&near, destination).unwrap();
        assert_eq!(hop.next_hop_mac.to_string(), link.b.mac.to_string());
        let expected = NextHop {
            ifindex: interface.ifindex,
            ifname: "far".to_owned(),
            mtu_bytes: 1400,
            vlan: None,
            source_mac: interface.mac.unwrap(),
            next_hop_mac: hop.next_hop_mac,
            next_hop: address(destination),
            preferred_source: Some(address(own)),
        };
        assert_eq!(hop, expected);
    }

    // Through gateways: of the same family, and IPv4 through an IPv6 one.
    near.add_route("198.51.100.0/24", "10.77.0.2").unwrap();
    near.ip("route add 203.0.113.0/24 via inet6 2001:db8:77::2 dev far")
        .unwrap();
    near.add_route("2001:db8:99::/64", "2001:db8:77::2").unwrap();
    for (destination, gateway) in [
        ("198.51.100.7", "10.77.0.2"),
        ("203.0.113.7", "2001:db8:77::2"),
        ("2001:db8:99::7", "2001:db8:77::2"),
    ] {
        let hop = next_hop_from(&near, destination).unwrap();
        assert_eq!(hop.next_hop, address(gateway), "{destination}");
        assert_eq!(
            hop.next_hop_mac.to_string(),
            link.b.mac.to_string(),
            "{destination}"
        );
    }
    lab.close().unwrap();
}

#[test]
fn every_way_to_have_no_way_is_told_apart() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let host = lab.host("lone").unwrap();
    let no_route = |destination: &str| {
        Err(NextHopError::NoRoute {
            destination: address(destination),
        })
    };
    assert_eq!(next_hop_from(&host, "192.0.2.1"), no_route("192.0.2.1"));
    assert_eq!(next_hop_from(&host, "2001:db8::1"), no_route("2001:db8::1"));
    for kind in ["blackhole", "unreachable", "prohibit"] {
        host.ip(&format!("route replace {kind} 192.0.2.0/24")).unwrap();
        assert_eq!(next_hop_from(&host, "192.0.2.1"), no_route("192.0.2.1"), "{kind}");
    }
    host.ip("tuntap add dev t0 mode tun").unwrap();
    host.ip("link set t0 up").unwrap();
    host.ip("route replace 192.0.2.0/24 dev t0").unwrap();
    let destination = address("192.0.2.1");
    let not_ethernet = Err(NextHopError::NotEthernet {
        destination,
        ifname: "t0".to_owned(),
    });
    assert_eq!(next_hop_from(&host, "192.0.2.1"), not_ethernet);

    // Many at once, in their order, some with and some without a way.
    let many = ["192.0.2.1", "198.51.100.1", "127.0.0.1"].map(address);
    let found = host
        .block_on(async || HostNetwork::open().unwrap().next_hops(&many).await.unwrap())
        .unwrap();
    let local = Err(NextHopError::Local {
        destination: address("127.0.0.1"),
    });
    assert_eq!(found, [not_ethernet, no_route("198.51.100.1"), local]);
    lab.close().unwrap();
}
