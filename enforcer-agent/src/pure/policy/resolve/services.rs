//! Services and the addresses that they claim.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::diagnostic::{Code, Reporter};
use super::super::model::{self, List, Scalar, Text};
use super::super::resolved::{Forward, Ineligible, Pool, PortRange, Protocol, Service, TableFull};
use super::super::source::Place;
use super::super::suggest::quoted;
use super::{Name, Placed, network, scalar, sort_by_name, tenants, unknown_name};

/// What services claim: by address and protocol, the ports that they begin at, with the service's name.
type Claims<'a> = BTreeMap<(IpAddr, Protocol), BTreeMap<u16, (PortRange, &'a Text)>>;

/// `pools` are sorted by name.
pub(super) fn resolve(
    reporter: &mut Reporter<'_>,
    services: &[&model::Service],
    pools: &[Placed<Pool>],
) -> Vec<Placed<Service>> {
    let mut claims = Claims::new();
    let mut resolved: Vec<_> = services
        .iter()
        .map(|service| resolve_service(reporter, service, pools, &mut claims))
        .collect();
    sort_by_name(reporter, &mut resolved);
    resolved
}

/// A service that cannot be read keeps its name, so that rules that speak of it are not wrong as well.
fn resolve_service<'a>(
    reporter: &mut Reporter<'_>,
    service: &'a model::Service,
    pools: &[Placed<Pool>],
    claims: &mut Claims<'a>,
) -> Placed<Service> {
    let model::Service {
        name,
        addresses,
        port,
        protocol,
        labels,
        pools: pool_names,
        forward,
        on_refusal,
        on_table_full: _,
        on_ineligible: _,
        answer_echo,
        limits,
    } = service;
    let _ = scalar::name(reporter, name);
    if addresses.value.is_empty() {
        let message = format!("service {} has no address", quoted(&name.value));
        reporter.error(
            Code::MissingField,
            addresses,
            message,
            "List at least one under `addresses`.",
        );
    }
    let addresses = resolve_addresses(reporter, &addresses.value);
    let ports = scalar::ports(reporter, port);
    let protocol = scalar::choice(reporter, protocol);
    if let (Some(ports), Some(protocol)) = (ports, protocol) {
        claim(reporter, name, &addresses, (ports, protocol), claims);
    }
    let forward = scalar::choice(reporter, forward).unwrap_or(Forward::Nat);
    let (on_table_full, on_ineligible) = resolve_ways(reporter, service, forward, protocol);
    let mut addresses: Vec<IpAddr> = addresses.into_iter().map(|(address, _)| address).collect();
    addresses.sort_unstable();
    let value = Service {
        name: name.value.clone(),
        addresses,
        ports: ports.unwrap_or_else(|| PortRange::from(1)),
        protocol: protocol.unwrap_or(Protocol::Tcp),
        labels: scalar::labels(reporter, labels.as_ref()),
        pools: resolve_pools(reporter, name, pool_names, pools),
        forward,
        on_refusal: on_refusal
            .as_ref()
            .and_then(|text| scalar::choice(reporter, text))
            .unwrap_or_default(),
        on_table_full,
        on_ineligible,
        answer_echo: answer_echo
            .as_ref()
            .and_then(|text| scalar::flag(reporter, text))
            .unwrap_or_default(),
        limits: limits
            .as_ref()
            .map(|limits| tenants::resolve_limits(reporter, limits)),
    };
    Placed {
        value,
        place: name.into(),
    }
}

/// What becomes of connections for which there is no room, and of those whose back end is lost.
fn resolve_ways(
    reporter: &mut Reporter<'_>,
    service: &model::Service,
    forward: Forward,
    protocol: Option<Protocol>,
) -> (TableFull, Ineligible) {
    let model::Service {
        on_table_full,
        on_ineligible,
        ..
    } = service;
    let table_full = on_table_full
        .as_ref()
        .and_then(|text| scalar::choice(reporter, text));
    if let Some(text) = on_table_full
        && table_full == Some(TableFull::Forward)
        && !forward.answers_directly()
    {
        let message = format!("`{forward:?}` forwards nothing without an entry in the flow table");
        let help =
            "Answers find their way back by it: leave the field out, or forward by `L2Dsr`, `Ipip` or `Gue`.";
        reporter.error(Code::Forwarding, text, message, help);
    }
    let ineligible = on_ineligible
        .as_ref()
        .and_then(|text| scalar::choice(reporter, text));
    if let Some(text) = on_ineligible
        && ineligible == Some(Ineligible::Reset)
        && protocol == Some(Protocol::Udp)
    {
        let help = "UDP knows no resets: leave the field out.";
        reporter.error(Code::NoEffect, text, "only TCP connections can be reset", help);
    }
    (table_full.unwrap_or_default(), ineligible.unwrap_or_default())
}

fn resolve_addresses<K>(reporter: &mut Reporter<'_>, texts: &[Scalar<K>]) -> Vec<(IpAddr, Place)> {
    let mut addresses: Vec<(IpAddr, Place)> = Vec::with_capacity(texts.len());
    for text in texts {
        let Some(address) = network::host_address(reporter, text) else {
            continue;
        };
        if addresses.iter().any(|(other, _)| *other == address) {
            let message = format!("`{address}` is listed twice");
            reporter.warning(Code::Duplicate, text, message, "Remove it here.");
        } else {
            addresses.push((address, text.into()));
        }
    }
    addresses
}

fn claim<'a>(
    reporter: &mut Reporter<'_>,
    name: &'a Text,
    addresses: &[(IpAddr, Place)],
    (ports, protocol): (PortRange, Protocol),
    claims: &mut Claims<'a>,
) {
    for (address, place) in addresses {
        let taken = claims.entry((*address, protocol)).or_default();
        // Ranges that are there do not overlap one another, so that the last one that begins in time is the one.
        let before = taken.range(..=ports.last).next_back();
        let Some((_, (other, owner))) = before.filter(|(_, (other, _))| other.overlaps(ports)) else {
            taken.insert(ports.first, (ports, name));
            continue;
        };
        let owner_name = quoted(&owner.value);
        let message = if ports.is_several() || other.is_several() {
            format!(
                "`{address}` port {ports} of service {} overlaps with port {other} of service {owner_name}",
                quoted(&name.value)
            )
        } else {
            format!("this address, port and protocol already belong to service {owner_name}")
        };
        let help = format!(
            "Choose another port or address; {owner_name} stands at {}.",
            reporter.describe(*owner)
        );
        reporter.error(Code::Conflict, *place, message, help);
    }
}

/// Indices of pools in order of preference, without repetition.
fn resolve_pools(
    reporter: &mut Reporter<'_>,
    service: &Text,
    names: &List<Scalar<Name>>,
    pools: &[Placed<Pool>],
) -> Vec<usize> {
    let (names, place) = (&names.value, Place::from(names));
    if names.is_empty() {
        let message = format!("service {} has no pool", quoted(&service.value));
        reporter.error(
            Code::MissingField,
            place,
            message,
            "List at least one under `pools`, the preferred one first.",
        );
    }
    let mut indices = Vec::with_capacity(names.len());
    for name in names {
        let Ok(index) = pools.binary_search_by(|pool| pool.value.name.as_str().cmp(&name.value)) else {
            let mut names = pools.iter().map(|pool| pool.value.name.as_str());
            unknown_name(reporter, name, "pool", &mut names);
            continue;
        };
        if indices.contains(&index) {
            let message = format!("pool {} is listed twice", quoted(&name.value));
            reporter.warning(
                Code::Duplicate,
                name,
                message,
                "Remove it here: only its first place counts.",
            );
        } else {
            indices.push(index);
        }
    }
    indices
}
