//! Addresses and prefixes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::super::diagnostic::{Code, Reporter};
use super::super::model::{Scalar, Text};
use super::super::source::Place;
use super::super::suggest::quoted;

/// A CIDR prefix without host bits.
pub(super) fn prefix(reporter: &mut Reporter<'_>, text: &Text) -> Option<IpNet> {
    let Ok(net) = text.value.parse::<IpNet>() else {
        let message = format!("{} is no prefix", quoted(&text.value));
        let help = match text.value.parse::<IpAddr>() {
            Ok(address) => format!("A single address is written `{}`.", IpNet::from(address)),
            Err(_) => "Write an address and a length, such as `10.1.0.0/16` or `2001:db8:1::/48`.".to_owned(),
        };
        reporter.error(Code::InvalidAddress, text, message, help);
        return None;
    };
    if is_mapped(net.addr()) && net.prefix_len() >= 96 {
        let message = format!(
            "{} is IPv4 in the form of IPv6 (IPv4-mapped)",
            quoted(&text.value)
        );
        reporter.error(
            Code::InvalidAddress,
            text,
            message,
            "Write the IPv4 prefix itself: that form is never sent.",
        );
        return None;
    }
    if net.addr() != net.network() {
        let message = format!("{} has bits set beyond its length", quoted(&text.value));
        let help = format!("Write `{}`, or the length that was meant.", net.trunc());
        reporter.error(Code::InvalidAddress, text, message, help);
        return None;
    }
    Some(net)
}

/// The address of one host, that packets can be sent to.
pub(super) fn host_address(reporter: &mut Reporter<'_>, text: &Text) -> Option<IpAddr> {
    let Ok(address) = text.value.parse::<IpAddr>() else {
        let message = format!("{} is no address", quoted(&text.value));
        let help =
            "Write an IPv4 or IPv6 address without port and length, such as `192.0.2.10` or `2001:db8::10`.";
        reporter.error(Code::InvalidAddress, text, message, help);
        return None;
    };
    let refused = |what: &str, help: &str| Some((what.to_owned(), help.to_owned()));
    let problem = match address {
        _ if is_mapped(address) => refused(
            "is IPv4 in the form of IPv6 (IPv4-mapped)",
            "Write the IPv4 address itself.",
        ),
        _ if address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            refused("is not the address of a host", "Write the address of one host.")
        }
        _ if address.is_multicast() => refused("is a multicast address", "Write the address of one host."),
        _ if address.is_loopback() => refused(
            "is a loopback address, which never leaves its host",
            "Write an address of a real interface.",
        ),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => refused(
            "is link-local, and means something else on every link",
            "Write a global or unique local address.",
        ),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    if let Some((what, help)) = problem {
        reporter.error(
            Code::InvalidAddress,
            text,
            format!("{} {what}", quoted(&text.value)),
            help,
        );
        return None;
    }
    Some(address)
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The protected networks, sorted.
pub(super) fn protected_networks<K>(reporter: &mut Reporter<'_>, texts: &[&Scalar<K>]) -> Vec<IpNet> {
    let mut seen: BTreeMap<IpNet, Place> = BTreeMap::new();
    for &text in texts {
        let Some(net) = prefix(reporter, text) else {
            continue;
        };
        if let Some(first) = seen.get(&net) {
            let message = format!("`{net}` is listed twice");
            let help = format!(
                "Remove it here; it already stands at {}.",
                reporter.describe(*first)
            );
            reporter.warning(Code::Duplicate, text, message, help);
        } else {
            seen.insert(net, text.into());
        }
    }
    seen.into_keys().collect()
}
