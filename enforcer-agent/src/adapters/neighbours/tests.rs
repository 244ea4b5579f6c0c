//! Routes over VLAN interfaces, out of netlink messages as the kernel sends them: not every kernel has such interfaces.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::link::InfoKind;

use super::*;

const CARD: u32 = 2;
const VLAN: u32 = 7;
const CARD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);
const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));

fn link(ifindex: u32, name: &str, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    link.header.link_layer_type = LinkLayerType::Ether;
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(if ifindex == CARD { 9000 } else { 1500 }),
        LinkAttribute::Address(CARD_MAC.to_vec()),
    ];
    link.attributes.extend(attributes);
    link
}

fn vlan(ifindex: u32, name: &str, parent: u32, data: Vec<InfoVlan>) -> LinkMessage {
    let info = vec![
        LinkInfo::Kind(InfoKind::Vlan),
        LinkInfo::Data(InfoData::Vlan(data)),
    ];
    link(
        ifindex,
        name,
        vec![LinkAttribute::Link(parent), LinkAttribute::LinkInfo(info)],
    )
}

/// The next hop over the interface [`VLAN`], whose neighbour is known.
fn over_vlan(links: &[LinkMessage]) -> Result<NextHop, NextHopError> {
    let tables = Tables {
        interfaces: links
            .iter()
            .map(|link| (link.header.index, interface_of(link)))
            .collect(),
        neighbours: HashMap::from([((VLAN, DESTINATION), GATEWAY_MAC)]),
    };
    let mut route = RouteMessage::default();
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![RouteAttribute::Oif(VLAN)];
    next_hop_of(DESTINATION, &route, &tables)
}

#[test]
fn a_vlan_interface_is_its_card_and_a_tag() {
    for (data, protocol) in [
        (vec![InfoVlan::Id(20)], 0x8100),
        (
            vec![InfoVlan::Protocol(VlanProtocol::Ieee8021Ad), InfoVlan::Id(20)],
            0x88a8,
        ),
    ] {
        let hop =
            over_vlan(&[link(CARD, "eth0", Vec::new()), vlan(VLAN, "eth0.20", CARD, data)]).expect("a way");
        let tag = VlanTag { protocol, id: 20 };
        assert_eq!((hop.ifindex, hop.vlan), (CARD, Some(tag)));
        assert_eq!((hop.ifname.as_str(), hop.mtu_bytes), ("eth0.20", 1500));
        assert_eq!((hop.source_mac.0, hop.next_hop_mac), (CARD_MAC, GATEWAY_MAC));
        assert_eq!(tag.tags(), [protocol.to_be(), 20_u16.to_be(), 0, 0]);
    }
}

#[test]
fn an_interface_below_that_is_no_vlan_changes_nothing() {
    let below = vec![LinkAttribute::Link(CARD)];
    let hop = over_vlan(&[link(CARD, "eth0", Vec::new()), link(VLAN, "macvlan0", below)]).expect("a way");
    assert_eq!((hop.ifindex, hop.vlan), (VLAN, None));
}

#[test]
fn a_vlan_on_a_vlan_or_on_nothing_is_said_to_be_one() {
    let ifname = || "eth0.20".to_owned();
    let inner = vlan(VLAN, "eth0.20", 5, vec![InfoVlan::Id(20)]);
    let stacked = over_vlan(&[
        link(CARD, "eth0", Vec::new()),
        vlan(5, "eth0.3", CARD, vec![InfoVlan::Id(3)]),
        inner.clone(),
    ]);
    let expected = NextHopError::StackedVlan {
        destination: DESTINATION,
        ifname: ifname(),
        parent: "eth0.3".to_owned(),
    };
    assert_eq!(stacked, Err(expected));
    let elsewhere = NextHopError::VlanElsewhere {
        destination: DESTINATION,
        ifname: ifname(),
    };
    assert_eq!(over_vlan(&[inner]), Err(elsewhere.clone()));
    let mut moved = vlan(VLAN, "eth0.20", CARD, vec![InfoVlan::Id(20)]);
    moved.attributes.push(LinkAttribute::LinkNetNsId(1));
    assert_eq!(
        over_vlan(&[link(CARD, "eth0", Vec::new()), moved]),
        Err(elsewhere),
        "the index is one of another namespace"
    );
}
