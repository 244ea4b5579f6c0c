//! Services and the addresses that they claim.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::diagnostic::{Code, Place, Reporter};
use super::super::model::{self, Text};
use super::super::resolved::{Forward, Pool, Protocol, Service};
use super::super::suggest::{alternatives, nearest, quoted};
use super::scalar::words;
use super::{Placed, network, scalar, sort_by_name};

const PROTOCOLS: &[(&str, Protocol)] = &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)];
const FORWARDS: &[(&str, Forward)] = &[
    ("Nat", Forward::Nat),
    ("Dnat", Forward::Dnat),
    ("L2Dsr", Forward::L2Dsr),
];
/// Modes of the policy language that this version does not have.
const LATER_FORWARDS: [&str; 3] = ["Ipip", "Gue", "Local"];

/// What a packet is addressed to.
type Endpoint = (IpAddr, u16, Protocol);

/// `pools` are sorted by name.
pub(super) fn resolve(
    reporter: &mut Reporter<'_>,
    services: &[&model::Service],
    pools: &[Placed<Pool>],
) -> Vec<Placed<Service>> {
    let mut claims = BTreeMap::new();
    let mut resolved = Vec::new();
    for service in services {
        let model::Service {
            name,
            addresses,
            port,
            protocol,
            labels,
            pools: pool_names,
            forward,
        } = service;
        let _ = scalar::name(reporter, name);
        if addresses.is_empty() {
            let message = format!("service {} has no address", quoted(&name.value));
            reporter.error(
                Code::MissingField,
                name,
                message,
                "List at least one under `addresses`.",
            );
        }
        let addresses = resolve_addresses(reporter, addresses);
        let labels = scalar::labels(reporter, labels);
        let port = scalar::port(reporter, port);
        let protocol = scalar::choice(reporter, protocol, PROTOCOLS, "protocol");
        let forward = resolve_forward(reporter, forward);
        let pools = resolve_pools(reporter, name, pool_names, pools);
        // A service that cannot be read keeps its name, so that rules that speak of it are not wrong as well.
        let (port, protocol) = match (port, protocol) {
            (Some(port), Some(protocol)) => {
                claim(reporter, name, &addresses, (port, protocol), &mut claims);
                (port, protocol)
            }
            (port, protocol) => (port.unwrap_or(1), protocol.unwrap_or(Protocol::Tcp)),
        };
        let mut addresses: Vec<IpAddr> = addresses.into_iter().map(|(address, _)| address).collect();
        addresses.sort_unstable();
        let forward = forward.unwrap_or(Forward::Nat);
        let value = Service {
            name: name.value.clone(),
            addresses,
            port,
            protocol,
            labels,
            pools,
            forward,
        };
        resolved.push(Placed {
            value,
            place: name.into(),
        });
    }
    sort_by_name(reporter, &mut resolved);
    resolved
}

fn resolve_forward(reporter: &mut Reporter<'_>, text: &Text) -> Option<Forward> {
    if LATER_FORWARDS.contains(&text.value.as_str()) {
        let message = format!("this version does not forward by `{}`", text.value);
        let help = format!("There is {}.", alternatives(&words(FORWARDS)));
        reporter.error(Code::Unsupported, text, message, help);
        return None;
    }
    scalar::choice(reporter, text, FORWARDS, "forward mode")
}

fn resolve_addresses(reporter: &mut Reporter<'_>, texts: &[Text]) -> Vec<(IpAddr, Place)> {
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
    (port, protocol): (u16, Protocol),
    claims: &mut BTreeMap<Endpoint, &'a Text>,
) {
    for (address, place) in addresses {
        let owner = *claims.entry((*address, port, protocol)).or_insert(name);
        if !std::ptr::eq(owner, name) {
            let message = format!(
                "this address, port and protocol already belong to service {}",
                quoted(&owner.value)
            );
            let help = format!(
                "Choose another port or address; {} stands at {}.",
                quoted(&owner.value),
                Place::from(owner).describe()
            );
            reporter.error(Code::Conflict, *place, message, help);
        }
    }
}

/// Indices of pools in order of preference, without repetition.
fn resolve_pools(
    reporter: &mut Reporter<'_>,
    service: &Text,
    names: &[Text],
    pools: &[Placed<Pool>],
) -> Vec<usize> {
    if names.is_empty() {
        let message = format!("service {} has no pool", quoted(&service.value));
        reporter.error(
            Code::MissingField,
            service,
            message,
            "List at least one under `pools`, the preferred one first.",
        );
    }
    let mut indices = Vec::with_capacity(names.len());
    for name in names {
        let Ok(index) = pools.binary_search_by(|pool| pool.value.name.as_str().cmp(&name.value)) else {
            let names: Vec<&str> = pools.iter().map(|pool| pool.value.name.as_str()).collect();
            unknown_name(reporter, name, "pool", &names);
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

/// Reports a name that is not defined.
pub(super) fn unknown_name(reporter: &mut Reporter<'_>, name: &Text, kind: &str, names: &[&str]) {
    let help = match nearest(&name.value, names.iter().copied()) {
        Some(near) => format!("Did you mean `{near}`?"),
        None => format!("Define it under `{kind}s`, or take it out here."),
    };
    reporter.error(
        Code::UnknownName,
        name,
        format!("there is no {kind} named {}", quoted(&name.value)),
        help,
    );
}
