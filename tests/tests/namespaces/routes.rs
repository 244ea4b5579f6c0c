//! Back ends whose next hop no agent has found: the programs ask the kernel.

use enforcer_agent::adapters::dataplane::{AttachMode, decapsulate};
use enforcer_agent::pure::capacity::Capacity;
use enforcer_common::Reason;
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_tests::lab::Lab;
use enforcer_tests::lab::topology::{self, Leaf, Routed};
use enforcer_tests::rig::Rig;
use enforcer_tests::world::World;

use super::bench::{self, ALL_INTERFACES, LIMIT, REFUSED_LIMIT, VIP, VIP_V6};
use super::echo::{Echo, connect, round_trip};
use super::privileged;

/// Programs on the balancer's interfaces, under tables in which no back end has a next hop. No agent runs.
fn without_next_hops(forward: &str, mode: AttachMode, network: &Routed) -> Rig {
    let mut world = World::new(&bench::policy(forward, "TCP", "", "Allow")).unwrap();
    for name in ["gpu-1", "gpu-2", "gpu-1-v6", "gpu-2-v6"] {
        world.set_backend(name, |status| status.next_hop = None);
    }
    let capacity = Capacity {
        flows: 1024,
        ..Capacity::default()
    };
    let mut rig = Rig::production(capacity).unwrap();
    rig.set_host(&world.host.record()).unwrap();
    rig.install(world.compile().unwrap().tables).unwrap();
    for interface in ALL_INTERFACES {
        let attached = network
            .balancer
            .enter(|| rig.dataplane().attach(interface, mode).map(drop));
        attached.unwrap().unwrap();
    }
    rig
}

/// Has a host take outer headers off that come from these prefixes.
fn take_off(rig: &Rig, leaf: &Leaf, ipv4: &str, ipv6: &str) {
    let pins = rig.lab().pin_directory().join(leaf.host.name());
    let (ipv4, ipv6) = (ipv4.parse().ok(), ipv6.parse().ok());
    let attached = leaf
        .host
        .enter(|| decapsulate(&leaf.port.device, ipv4, ipv6, Some(&pins)).map(drop));
    attached.unwrap().unwrap();
}

fn packets(rig: &Rig, reason: Reason) -> u64 {
    let tallies = rig.tallies(DIRECTION_INGRESS, 8).unwrap();
    let counted = tallies.iter().filter(|((_, counted), _)| *counted == reason);
    counted.map(|(_, tally)| tally.packets).sum()
}

/// Lets the balancer know both addresses of a back end, as traffic of its own would.
fn introduce(network: &Routed, leaf: &Leaf) {
    for address in [leaf.ipv4.into(), leaf.ipv6.into()] {
        let device = leaf.host.name();
        network
            .balancer
            .add_neighbour(device, address, leaf.port.mac)
            .unwrap();
    }
}

fn through(forward: &str, mode: AttachMode) {
    let mut lab = Lab::new().unwrap();
    let network = topology::routed(&mut lab, &["acme", "stranger"], &["gpu-1", "gpu-2"]).unwrap();
    let rig = without_next_hops(forward, mode, &network);
    let client = &network.clients[0];
    // Nothing is taken off there: a peer that runs XDP hears at once what is sent back by it.
    take_off(&rig, client, "203.0.113.0/24", "2001:db8:ffff::/64");
    let echoes: Vec<Echo> = network
        .back_ends
        .iter()
        .map(|leaf| {
            if forward == "Ipip" {
                leaf.host.ip(&format!("addr add {VIP}/32 dev lo")).unwrap();
                leaf.host.ip(&format!("-6 addr add {VIP_V6}/128 dev lo")).unwrap();
                take_off(&rig, leaf, "10.254.0.0/16", "2001:db8:fe::/64");
            }
            Echo::start(&leaf.host, &[])
        })
        .collect();
    for is_ipv6 in [false, true] {
        assert!(
            connect(client, bench::vip(is_ipv6), REFUSED_LIMIT).is_none(),
            "the kernel does not know the back ends' link-layer addresses"
        );
    }
    assert!(packets(&rig, Reason::NoNextHop) >= 2);
    for leaf in &network.back_ends {
        introduce(&network, leaf);
    }
    for is_ipv6 in [false, true] {
        for _ in 0..4 {
            let mut stream = connect(client, bench::vip(is_ipv6), LIMIT).expect("an admitted connection");
            round_trip(&mut stream, 100_000);
            let ends = echoes.iter().find_map(Echo::seen).expect("it was seen");
            assert_eq!(ends.peer, stream.local_addr().unwrap());
        }
    }
    assert_eq!(packets(&rig, Reason::Internal), 0);
    if forward == "Ipip" {
        // It may go to a back end of the other family.
        return;
    }
    // A route that takes less than its link: neither end hears of it but by the balancer.
    let before = packets(&rig, Reason::TooBig);
    for leaf in &network.back_ends {
        let line = format!(
            "route replace {}/32 dev {} mtu lock 1400",
            leaf.ipv4,
            leaf.host.name()
        );
        network.balancer.ip(&line).unwrap();
    }
    let mut stream = connect(client, bench::vip(false), LIMIT).expect("an admitted connection");
    round_trip(&mut stream, 100_000);
    assert!(packets(&rig, Reason::TooBig) > before, "the sender was told");
}

#[test]
fn the_kernel_is_asked_where_no_next_hop_is_known() {
    if privileged() {
        through("Dnat", AttachMode::Tc);
        through("Ipip", AttachMode::Tc);
    }
}

#[test]
fn so_it_is_by_xdp() {
    if privileged() {
        through("Ipip", AttachMode::Native);
        through("Dnat", AttachMode::Native);
    }
}
