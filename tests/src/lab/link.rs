//! Virtual Ethernet links and switches.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Host, LabError};

/// The bridge of a switch.
const BRIDGE: &str = "bridge";

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// One end of a link.
#[derive(Clone, Debug)]
pub struct Port {
    /// The host that it is on.
    pub host: Host,
    /// The device's name there.
    pub device: String,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// The host and the device at the other end.
    peer: (Host, String),
}

/// A pair of virtual Ethernet devices.
#[derive(Clone, Debug)]
pub struct Link {
    /// The end at the host that was named first.
    pub a: Port,
    /// The end at the host that was named second.
    pub b: Port,
}

/// What one end of a link is to be.
pub(super) struct End<'lab> {
    pub(super) host: &'lab Host,
    pub(super) device: &'lab str,
    pub(super) mac: MacAddress,
    pub(super) addresses: &'lab [&'lab str],
}

/// Makes the pair, each end directly in its namespace.
pub(super) fn connect([a, b]: [End<'_>; 2]) -> Result<Link, LabError> {
    let ports = [a.port(&b)?, b.port(&a)?];
    ports[0].host.ip(&format!(
        "link add name {} address {} type veth peer name {} address {} netns {}",
        a.device,
        a.mac,
        b.device,
        b.mac,
        b.host.namespace()
    ))?;
    for port in &ports {
        port.host
            .run(&format!("ethtool -K {} tx off gro on", port.device))?;
        for address in &port.addresses {
            port.host.add_address(&port.device, &address.to_string())?;
        }
        port.up()?;
    }
    let [a, b] = ports;
    Ok(Link { a, b })
}

// === impl End ===

impl End<'_> {
    fn port(&self, peer: &End<'_>) -> Result<Port, LabError> {
        let read = |text: &&str| {
            text.parse()
                .map_err(|_| LabError::Prefix { text: (*text).into() })
        };
        Ok(Port {
            host: self.host.clone(),
            device: self.device.into(),
            mac: self.mac,
            addresses: self.addresses.iter().map(read).collect::<Result<_, _>>()?,
            peer: (peer.host.clone(), peer.device.into()),
        })
    }
}

// === impl Port ===

impl Port {
    /// Switches the device on. If the one at the other end is on too, both can send when this returns.
    ///
    /// # Errors
    /// What the operating system refused.
    pub fn up(&self) -> Result<(), LabError> {
        self.host.ip(&format!("link set dev {} up", self.device))?;
        // A device whose carrier has come back drops all that it is to send until the kernel's link watch has run,
        // up to a second later. A question about that one device makes it run at once (rtnl_getlink() calls
        // linkwatch_sync_dev(), since Linux 5.18); the answer does not matter.
        for (host, device) in [(&self.host, &self.device), (&self.peer.0, &self.peer.1)] {
            host.ip(&format!("link show dev {device}"))?;
        }
        Ok(())
    }

    /// Pulls the cable: the device goes down and loses its routes, but not its addresses.
    ///
    /// # Errors
    /// What the operating system refused.
    pub fn down(&self) -> Result<(), LabError> {
        self.host
            .ip(&format!("link set dev {} down", self.device))
            .map(drop)
    }

    /// The first address of a family.
    #[must_use]
    pub fn address(&self, ipv6: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .map(IpNet::addr)
            .find(|address| address.is_ipv6() == ipv6)
    }
}

// === impl Link ===

impl Link {
    /// Tells each end the Ethernet address of the other for good, so that no ARP or neighbour solicitation is needed.
    ///
    /// # Errors
    /// What the operating system refused.
    pub fn fix_neighbours(&self) -> Result<(), LabError> {
        for (here, there) in [(&self.a, &self.b), (&self.b, &self.a)] {
            for address in &there.addresses {
                here.host.add_neighbour(&here.device, address.addr(), there.mac)?;
            }
        }
        Ok(())
    }
}

/// A host that is only a bridge: every host plugged into it is in one Ethernet segment.
#[derive(Clone, Debug)]
pub struct Switch(Host);

// === impl Switch ===

impl Switch {
    pub(super) fn create(host: Host) -> Result<Self, LabError> {
        // A port forwards at once, and no snooping keeps neighbour solicitations back.
        host.ip(&format!(
            "link add name {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
        ))?;
        host.ip(&format!("link set dev {BRIDGE} up"))?;
        Ok(Self(host))
    }

    /// The host that the bridge is on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.0
    }

    pub(super) fn take_port(&self, port: &Port) -> Result<(), LabError> {
        self.0
            .ip(&format!("link set dev {} master {BRIDGE}", port.device))
            .map(drop)
    }
}
