//! What the kernel's routing and neighbour tables say about back ends and about this host, over rtnetlink.
//!
//! The data path rewrites link-layer addresses itself and never asks for them, so the agent looks them up ahead of time.
//! A neighbour entry is made and kept fresh by the agent's health checks, which go the ordinary way; this module only
//! reads.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt, pin_mut};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    VlanProtocol, XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};
use thiserror::Error;
use tokio::task::JoinSet;

use crate::pure::compile::VlanTag;

#[cfg(test)]
mod tests;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, last] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{last:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network interface of the agent's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` for loopback, tunnels and the like.
    pub mac: Option<MacAddress>,
    /// Largest packet without the link-layer header, in bytes.
    pub mtu_bytes: u32,
    /// Whether it was set up (not whether the cable is in).
    pub is_up: bool,
    /// Whether an XDP program is attached, and if so whether in the generic hook.
    pub xdp: XdpHook,
    /// Set if it is a VLAN interface.
    pub vlan: Option<Vlan>,
}

/// What a VLAN interface stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// The interface that its frames leave by; `None` if that is in another network namespace.
    pub parent_ifindex: Option<u32>,
    /// The tag that they have there.
    pub tag: VlanTag,
}

/// Where an interface runs XDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpHook {
    /// Nowhere.
    #[default]
    None,
    /// In the driver or the device.
    Native,
    /// After the socket buffer is built.
    Generic,
}

/// An address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix, in bits.
    pub prefix_length: u8,
    /// The interface that holds it.
    pub ifindex: u32,
}

/// How frames get to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that they leave by.
    pub ifindex: u32,
    /// The tag that they have there, if the route leads over a VLAN interface.
    pub vlan: Option<VlanTag>,
    /// The name of the interface that the route names: the VLAN interface, if it is one.
    pub ifname: String,
    /// Its MTU, in bytes.
    pub mtu_bytes: u32,
    /// Its own Ethernet address: the source of the frames.
    pub source_mac: MacAddress,
    /// The Ethernet address of the gateway, or of the destination itself if it is on the link.
    pub next_hop_mac: MacAddress,
    /// Whose address that is.
    pub next_hop: IpAddr,
    /// The address of this host that the kernel would use as the source.
    pub preferred_source: Option<IpAddr>,
}

/// Why frames cannot get to a destination (yet).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NextHopError {
    /// The routing table has no way, or forbids it.
    #[error("no route to {destination}; add one on this host")]
    NoRoute {
        /// Where to.
        destination: IpAddr,
    },
    /// The destination is this host itself, to which nothing can be forwarded on a link.
    #[error("{destination} is an address of this host; a back end must be another host or namespace")]
    Local {
        /// Where to.
        destination: IpAddr,
    },
    /// The neighbour has not answered yet. The next health check makes the kernel ask; try again after it.
    #[error("{next_hop} on {ifname} has not answered ARP or neighbour discovery yet")]
    Unresolved {
        /// Who was asked.
        next_hop: IpAddr,
        /// On which interface.
        ifname: String,
    },
    /// The way leads over a link without Ethernet addresses.
    #[error("the route to {destination} leaves by {ifname}, which is no Ethernet interface")]
    NotEthernet {
        /// Where to.
        destination: IpAddr,
        /// The interface.
        ifname: String,
    },
    /// Frames would need two tags.
    #[error(
        "the route to {destination} leaves by {ifname}, a VLAN interface on {parent}, which is one itself; \
         only one tag can be set: lead the route over a VLAN interface on a network card"
    )]
    StackedVlan {
        /// Where to.
        destination: IpAddr,
        /// The interface.
        ifname: String,
        /// The one below it.
        parent: String,
    },
    /// The programs cannot send by the interface below a VLAN interface.
    #[error(
        "the route to {destination} leaves by {ifname}, a VLAN interface on one that is not in this network namespace; \
         move both into one"
    )]
    VlanElsewhere {
        /// Where to.
        destination: IpAddr,
        /// The interface.
        ifname: String,
    },
}

/// Why the tables could not be read at all.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel refused or the answer made no sense.
    #[error("cannot read the {table}: {source}")]
    Read {
        /// Which table.
        table: &'static str,
        /// What went wrong.
        source: rtnetlink::Error,
    },
}

/// Access to the tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct HostNetwork {
    handle: Handle,
    /// Drives the socket; aborted on drop.
    _driver: JoinSet<()>,
}

/// What one look at interfaces and neighbours gave, for resolving many destinations.
struct Tables {
    interfaces: HashMap<u32, Interface>,
    neighbours: HashMap<(u32, IpAddr), MacAddress>,
}

impl HostNetwork {
    /// Opens a netlink socket in the calling thread's network namespace. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`NetworkError::Socket`].
    pub fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = new_connection().map_err(NetworkError::Socket)?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self {
            handle,
            _driver: driver,
        })
    }

    /// All interfaces, in the order of their indices.
    ///
    /// # Errors
    /// [`NetworkError::Read`].
    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetworkError> {
        let links = self.handle.link().get().execute();
        let mut interfaces: Vec<Interface> = links
            .map_ok(|link| interface_of(&link))
            .try_collect()
            .await
            .map_err(|source| NetworkError::Read {
                table: "interfaces",
                source,
            })?;
        interfaces.sort_by_key(|interface| interface.ifindex);
        Ok(interfaces)
    }

    /// The interface of that name, if there is one.
    ///
    /// # Errors
    /// [`NetworkError::Read`].
    pub async fn interface(&self, name: &str) -> Result<Option<Interface>, NetworkError> {
        Ok(self
            .interfaces()
            .await?
            .into_iter()
            .find(|interface| interface.name == name))
    }

    /// All addresses of this host, loopback and link-local ones too, in order and without repeats.
    ///
    /// # Errors
    /// [`NetworkError::Read`].
    pub async fn local_addresses(&self) -> Result<Vec<LocalAddress>, NetworkError> {
        let messages = self.handle.address().get().execute();
        pin_mut!(messages);
        let mut addresses = Vec::new();
        while let Some(message) = messages.try_next().await.map_err(|source| NetworkError::Read {
            table: "addresses",
            source,
        })? {
            // On a point-to-point link `Address` is the other end's; `Local` is ours wherever it is given.
            let mut ours = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(address) => ours = Some(*address),
                    AddressAttribute::Address(address) => ours = ours.or(Some(*address)),
                    _ => {}
                }
            }
            let (prefix_length, ifindex) = (message.header.prefix_len, message.header.index);
            addresses.extend(ours.map(|address| LocalAddress {
                address,
                prefix_length,
                ifindex,
            }));
        }
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// The next hop to one destination.
    ///
    /// # Errors
    /// [`NetworkError`] if the tables cannot be read; the inner [`NextHopError`] if they say that there is no way.
    pub async fn next_hop(&self, destination: IpAddr) -> Result<Result<NextHop, NextHopError>, NetworkError> {
        let tables = self.tables().await?;
        self.resolve(destination, &tables).await
    }

    /// The next hops to many destinations, in their order, with one look at interfaces and neighbours.
    ///
    /// # Errors
    /// As [`Self::next_hop`].
    pub async fn next_hops(
        &self,
        destinations: &[IpAddr],
    ) -> Result<Vec<Result<NextHop, NextHopError>>, NetworkError> {
        let tables = self.tables().await?;
        let mut next_hops = Vec::with_capacity(destinations.len());
        for &destination in destinations {
            next_hops.push(self.resolve(destination, &tables).await?);
        }
        Ok(next_hops)
    }

    async fn tables(&self) -> Result<Tables, NetworkError> {
        let interfaces = self.interfaces().await?;
        let messages = self.handle.neighbours().get().execute();
        let neighbours = messages
            .try_filter_map(async |message| Ok(usable_neighbour(&message)))
            .try_collect()
            .await
            .map_err(|source| NetworkError::Read {
                table: "neighbours",
                source,
            })?;
        let interfaces = interfaces
            .into_iter()
            .map(|interface| (interface.ifindex, interface))
            .collect();
        Ok(Tables {
            interfaces,
            neighbours,
        })
    }

    async fn resolve(
        &self,
        destination: IpAddr,
        tables: &Tables,
    ) -> Result<Result<NextHop, NextHopError>, NetworkError> {
        let bits = if destination.is_ipv4() { 32 } else { 128 };
        let request = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination, bits)
            .expect("a prefix of the address's own length")
            .build();
        let answers = self.handle.route().get(request).execute();
        pin_mut!(answers);
        match answers.next().await {
            Some(Ok(route)) => Ok(next_hop_of(destination, &route, tables)),
            // The kernel answers with the errno that a send would get: unreachable, prohibited, blackholed.
            Some(Err(rtnetlink::Error::NetlinkError(_))) | None => {
                Ok(Err(NextHopError::NoRoute { destination }))
            }
            Some(Err(source)) => Err(NetworkError::Read {
                table: "routes",
                source,
            }),
        }
    }
}

fn next_hop_of(destination: IpAddr, route: &RouteMessage, tables: &Tables) -> Result<NextHop, NextHopError> {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(NextHopError::Local { destination }),
        _ => return Err(NextHopError::NoRoute { destination }),
    }
    let (mut ifindex, mut gateway, mut preferred_source) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::PrefSource(address) => preferred_source = ip_of(address),
            _ => {}
        }
    }
    // An interface that went away between the two looks is as good as no route.
    let interface = ifindex.and_then(|index| tables.interfaces.get(&index));
    let interface = interface.ok_or(NextHopError::NoRoute { destination })?;
    let ifname = interface.name.clone();
    let Some(source_mac) = interface.mac else {
        return Err(NextHopError::NotEthernet { destination, ifname });
    };
    let (sends_by, vlan) = outlet(destination, interface, tables)?;
    let next_hop = gateway.unwrap_or(destination);
    let Some(&next_hop_mac) = tables.neighbours.get(&(interface.ifindex, next_hop)) else {
        return Err(NextHopError::Unresolved { next_hop, ifname });
    };
    Ok(NextHop {
        ifindex: sends_by,
        vlan,
        ifname,
        mtu_bytes: interface.mtu_bytes,
        source_mac,
        next_hop_mac,
        next_hop,
        preferred_source,
    })
}

/// The interface that frames leave by, and the tag that they have there: the programs send by network cards, and a VLAN
/// interface is none.
fn outlet(
    destination: IpAddr,
    interface: &Interface,
    tables: &Tables,
) -> Result<(u32, Option<VlanTag>), NextHopError> {
    let Some(vlan) = interface.vlan else {
        return Ok((interface.ifindex, None));
    };
    let ifname = interface.name.clone();
    let parent = vlan
        .parent_ifindex
        .and_then(|index| tables.interfaces.get(&index));
    match parent {
        None => Err(NextHopError::VlanElsewhere { destination, ifname }),
        Some(parent) if parent.vlan.is_some() => Err(NextHopError::StackedVlan {
            destination,
            ifname,
            parent: parent.name.clone(),
        }),
        Some(parent) => Ok((parent.ifindex, Some(vlan.tag))),
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn interface_of(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        ifindex: link.header.index,
        name: String::new(),
        mac: None,
        mtu_bytes: 0,
        is_up: link.header.flags.contains(LinkFlags::Up),
        xdp: XdpHook::None,
        vlan: None,
    };
    let (mut below, mut is_elsewhere, mut tag) = (None, false, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu_bytes) => interface.mtu_bytes = *mtu_bytes,
            LinkAttribute::Address(address) if link.header.link_layer_type == LinkLayerType::Ether => {
                interface.mac = mac_of(address);
            }
            LinkAttribute::Xdp(attributes) => interface.xdp = xdp_hook(attributes),
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::LinkInfo(attributes) => tag = vlan_tag(attributes),
            _ => {}
        }
    }
    interface.vlan = tag.map(|tag| Vlan {
        parent_ifindex: below.filter(|_| !is_elsewhere),
        tag,
    });
    interface
}

fn vlan_tag(attributes: &[LinkInfo]) -> Option<VlanTag> {
    let vlan = attributes.iter().find_map(|attribute| match attribute {
        LinkInfo::Data(InfoData::Vlan(vlan)) => Some(vlan),
        _ => None,
    })?;
    let (mut id, mut protocol) = (None, VlanProtocol::Ieee8021Q);
    for attribute in vlan {
        match attribute {
            InfoVlan::Id(number) => id = Some(*number),
            InfoVlan::Protocol(named) => protocol = *named,
            _ => {}
        }
    }
    Some(VlanTag {
        protocol: protocol as u16,
        id: id?,
    })
}

fn xdp_hook(attributes: &[LinkXdp]) -> XdpHook {
    let attached = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(attached) => Some(attached),
        _ => None,
    });
    match attached {
        Some(XdpAttached::Driver | XdpAttached::Hardware | XdpAttached::Multiple) => XdpHook::Native,
        Some(XdpAttached::SocketBuffer) => XdpHook::Generic,
        _ => XdpHook::None,
    }
}

/// A neighbour whose Ethernet address the kernel itself would use. A stale one is: the kernel sends to it first and
/// asks later.
fn usable_neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), MacAddress)> {
    match message.header.state {
        NeighbourState::Permanent
        | NeighbourState::Noarp
        | NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe => {}
        _ => return None,
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
            _ => {}
        }
    }
    Some(((message.header.ifindex, address?), mac?))
}

/// An Ethernet address out of bytes; all zeros is what loopback has, and means none.
fn mac_of(bytes: &[u8]) -> Option<MacAddress> {
    <[u8; 6]>::try_from(bytes)
        .ok()
        .filter(|mac| *mac != [0; 6])
        .map(MacAddress)
}
