//! The two shapes of network that the tests and the demo use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Host, Lab, LabError, Port, Switch};

/// Name of the balancer's host in both shapes, and of the device towards it in [`routed`].
pub const BALANCER: &str = "lb";

/// A client or a back end, with its addresses.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The host.
    pub host: Host,
    /// Its device.
    pub port: Port,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

// === impl Leaf ===

impl Leaf {
    /// The address of one family.
    #[must_use]
    pub fn address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.ipv6.into() } else { self.ipv4.into() }
    }
}

/// A balancer with a link of its own to every client and every back end.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The balancer: its device towards each leaf has the leaf's name, and it forwards.
    pub balancer: Host,
    /// Clients; the first is number 1. Client N is 10.1.N.10 and 2001:db8:1:N::10.
    pub clients: Vec<Leaf>,
    /// Back ends; the first is number 1. Back end N is 10.9.N.10 and 2001:db8:9:N::10.
    pub back_ends: Vec<Leaf>,
}

/// Makes the shape in which the balancer is the only way between clients and back ends. Every leaf has a subnet of
/// its own, in which the balancer is .1 and ::1, and routes everything by it, the service addresses included.
///
/// # Errors
/// As [`Lab::host`] and [`Lab::link`].
pub fn routed(lab: &mut Lab, clients: &[&str], back_ends: &[&str]) -> Result<Routed, LabError> {
    let balancer = lab.host(BALANCER)?;
    balancer.forward()?;
    let mut leaves = |names: &[&str], block: u8| -> Result<Vec<Leaf>, LabError> {
        (1..=u8::MAX)
            .zip(names)
            .map(|(number, name)| routed_leaf(lab, &balancer, name, block, number))
            .collect()
    };
    let clients = leaves(clients, 1)?;
    let back_ends = leaves(back_ends, 9)?;
    Ok(Routed {
        balancer,
        clients,
        back_ends,
    })
}

fn routed_leaf(lab: &mut Lab, balancer: &Host, name: &str, block: u8, number: u8) -> Result<Leaf, LabError> {
    let ipv4 = |last| Ipv4Addr::new(10, block, number, last);
    let ipv6 = |last| Ipv6Addr::new(0x2001, 0xdb8, block.into(), number.into(), 0, 0, 0, last);
    let host = lab.host(name)?;
    let link = lab.link(
        &host,
        balancer,
        &[&format!("{}/24", ipv4(10)), &format!("{}/64", ipv6(0x10))],
        &[&format!("{}/24", ipv4(1)), &format!("{}/64", ipv6(1))],
    )?;
    host.add_route("default", &ipv4(1).to_string())?;
    host.add_route("default", &ipv6(1).to_string())?;
    Ok(Leaf {
        host,
        port: link.a,
        ipv4: ipv4(10),
        ipv6: ipv6(0x10),
    })
}

/// One Ethernet segment with all on it, for direct server return.
#[derive(Clone, Debug)]
pub struct Rack {
    /// The switch.
    pub switch: Switch,
    /// The balancer, 10.5.0.1 and 2001:db8:5::1.
    pub balancer: Leaf,
    /// Clients; the first is 10.5.0.101 and 2001:db8:5::65.
    pub clients: Vec<Leaf>,
    /// Back ends; the first is 10.5.0.11 and 2001:db8:5::b.
    pub back_ends: Vec<Leaf>,
}

/// Makes the shape in which back ends answer clients directly: clients route the service addresses by the balancer,
/// and every back end holds them on its loopback device. Devices are named after the switch, `rack`.
///
/// # Errors
/// As [`Lab::host`] and [`Lab::plug`].
pub fn rack(
    lab: &mut Lab,
    clients: &[&str],
    back_ends: &[&str],
    services: &[&str],
) -> Result<Rack, LabError> {
    let switch = lab.switch("rack")?;
    let balancer = rack_leaf(lab, &switch, BALANCER, 1)?;
    let mut leaves = |names: &[&str], first: u8| -> Result<Vec<Leaf>, LabError> {
        (first..=u8::MAX)
            .zip(names)
            .map(|(number, name)| rack_leaf(lab, &switch, name, number))
            .collect()
    };
    let clients = leaves(clients, 101)?;
    let back_ends = leaves(back_ends, 11)?;
    for leaf in clients.iter().chain(&back_ends) {
        // A switch merges no frames. With receive offload it would hand the balancer frames larger than the MTU, which
        // XDP cannot send on: the transfer then crawls from one lost segment to the next.
        switch
            .host()
            .run(&format!("ethtool -K {} gro off", leaf.host.name()))?;
    }
    for service in services {
        let is_ipv6 = super::address(service)?.is_ipv6();
        for client in &clients {
            client
                .host
                .add_route(service, &balancer.address(is_ipv6).to_string())?;
        }
        for back_end in &back_ends {
            back_end.host.hold_service_address(service)?;
        }
    }
    Ok(Rack {
        switch,
        balancer,
        clients,
        back_ends,
    })
}

fn rack_leaf(lab: &mut Lab, switch: &Switch, name: &str, number: u8) -> Result<Leaf, LabError> {
    let ipv4 = Ipv4Addr::new(10, 5, 0, number);
    let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, number.into());
    let host = lab.host(name)?;
    let port = lab.plug(switch, &host, &[&format!("{ipv4}/24"), &format!("{ipv6}/64")])?;
    Ok(Leaf {
        host,
        port,
        ipv4,
        ipv6,
    })
}
