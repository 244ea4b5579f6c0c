//! The classification trie, as [`enforcer_common::decide::trie`] walks it.
//!
//! Keys are inserted shorter ones first, each into the entries that it covers in its last node. A longer key that has
//! to go on from an entry with a value turns it into a node full of that value (leaf pushing): that is how a walk can
//! stop at the first entry that is no pointer.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::IpAddr;

use enforcer_common::abi::config::{TRIE_FANOUT, TrieNode};
use enforcer_common::decide::trie::{
    DESTINATION_LOCAL, DESTINATION_NAT, DESTINATION_PROTECTED, DESTINATION_SERVICE, POINTER,
    ROOT_DESTINATION_V4, ROOT_DESTINATION_V6, ROOT_SOURCE_V4, ROOT_SOURCE_V6, ROOTS, SOURCE_BACKEND,
};
use enforcer_common::decide::{TCP, UDP};
use enforcer_common::parse::{ICMP, ICMPV6};
use ipnet::IpNet;

use super::{Layout, SlottedService};
use crate::pure::policy::resolved::{PortRange, Protocol};
use crate::pure::tables::Table;

/// There are more nodes than the map holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Which pair of roots a key belongs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// A key and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Shorter keys first: longer ones are put over them.
    bits: u32,
    /// Among keys of one length, later ones win.
    rank: u8,
    root: u32,
    bytes: Vec<u8>,
    value: u32,
}

/// All that the tries are made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Keys {
    tenants: Vec<Key>,
    /// Back ends within a tenant's prefix are both: so their values are made of the ones that stand there.
    backends: BTreeSet<IpAddr>,
    destinations: Vec<Key>,
}

/// What one compile leaves for the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    keys: Keys,
    nodes: Table<TrieNode>,
}

// === impl Kept ===

impl Kept {
    /// The nodes of both tries, the roots first: at most `capacity`. They are those of the last compile if they would be
    /// made from the same keys.
    pub(super) fn build(&mut self, layout: &Layout<'_>, capacity: u32) -> Result<Table<TrieNode>, Full> {
        // The keys are made of the policy, its slots and the host.
        if layout.same_policy && !self.nodes.is_empty() {
            return Ok(self.nodes.clone());
        }
        let keys = Keys::of(layout);
        if self.nodes.is_empty() || self.keys != keys {
            self.nodes = keys.nodes(capacity)?.into();
            self.keys = keys;
        }
        Ok(self.nodes.clone())
    }
}

// === impl Keys ===

impl Keys {
    fn of(layout: &Layout<'_>) -> Self {
        let backends = layout.backends.iter().flatten();
        let mut keys = Self {
            tenants: tenant_keys(layout),
            backends: backends.map(|backend| backend.backend.address).collect(),
            destinations: destination_keys(layout),
        };
        // Keys of one root have to come shorter ones first.
        keys.tenants.shrink_to_fit();
        keys.tenants.sort_unstable();
        keys.destinations.sort_unstable();
        keys
    }

    fn nodes(&self, capacity: u32) -> Result<Vec<TrieNode>, Full> {
        let mut nodes = Nodes::new(capacity);
        self.tenants.iter().try_for_each(|key| nodes.insert(key))?;
        for address in &self.backends {
            let mut key = Key::prefix(Side::Source, IpNet::from(*address), 0, 0);
            key.value = nodes.value_at(&key) | SOURCE_BACKEND;
            nodes.insert(&key)?;
        }
        self.destinations.iter().try_for_each(|key| nodes.insert(key))?;
        // They are kept.
        nodes.nodes.shrink_to_fit();
        Ok(nodes.nodes)
    }
}

fn tenant_keys(layout: &Layout<'_>) -> Vec<Key> {
    let tenants = layout
        .inputs
        .policy
        .tenants
        .iter()
        .zip(layout.tenant_slots.iter());
    tenants
        .flat_map(|(tenant, slot)| {
            tenant
                .sources
                .iter()
                .map(|net| Key::prefix(Side::Source, *net, 0, *slot))
        })
        .collect()
}

fn destination_keys(layout: &Layout<'_>) -> Vec<Key> {
    let host = layout.inputs.host;
    let nat = [host.nat_v4.map(IpAddr::V4), host.nat_v6.map(IpAddr::V6)]
        .into_iter()
        .flatten();
    let protected = layout.inputs.policy.protected_networks.iter();
    let mut keys: Vec<Key> = protected
        .map(|net| Key::prefix(Side::Destination, *net, 0, DESTINATION_PROTECTED))
        .collect();
    let address =
        |rank, value| move |address| Key::prefix(Side::Destination, IpNet::from(address), rank, value);
    keys.extend(
        host.local_addresses
            .iter()
            .map(|ip| canonical(*ip))
            .map(address(1, DESTINATION_LOCAL)),
    );
    keys.extend(nat.map(address(2, DESTINATION_NAT)));
    keys.extend(echo_keys(layout));
    for service in &layout.services {
        let protocol = match service.service.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        for address in addresses_of(service) {
            for (port, bits) in port_prefixes(service.service.ports) {
                let mut key = Key::prefix(
                    Side::Destination,
                    IpNet::from(address),
                    3,
                    DESTINATION_SERVICE | service.slot,
                );
                let [high, low] = port.to_be_bytes();
                let protocol = u8::try_from(protocol).expect("protocol numbers are bytes");
                key.bytes.extend([protocol, high, low]);
                key.bits += 8 + bits;
                keys.push(key);
            }
        }
    }
    keys
}

/// For each address the services that have echo requests to it answered, numbered in the order of their names.
fn echo_keys(layout: &Layout<'_>) -> Vec<Key> {
    let answering = |service: &&SlottedService<'_>| service.service.answer_echo;
    let mut services: Vec<_> = layout.services.iter().filter(answering).collect();
    services.sort_by_key(|service| service.index);
    let mut counts: BTreeMap<IpAddr, u8> = BTreeMap::new();
    let mut keys = Vec::new();
    for service in services {
        for address in addresses_of(service) {
            let number = counts.entry(address).or_default();
            let value = DESTINATION_SERVICE | service.slot;
            let mut key = Key::prefix(Side::Destination, IpNet::from(address), 3, value);
            let protocol = if address.is_ipv4() { ICMP } else { ICMPV6 };
            let protocol = u8::try_from(protocol).expect("protocol numbers are bytes");
            key.bytes.extend([protocol, *number]);
            key.bits += 16;
            keys.push(key);
            *number += 1;
        }
    }
    keys
}

/// The addresses of a service that are of the slot's family.
fn addresses_of<'a>(service: &SlottedService<'a>) -> impl Iterator<Item = IpAddr> + use<'a> {
    let family = service.family;
    let addresses = service.service.addresses.iter().copied();
    addresses.filter(move |address| super::Family::of(*address) == family)
}

/// The fewest prefixes of the 16 bits of a port that make up a range: the first port of each, and its length in bits. At
/// most 30.
fn port_prefixes(range: PortRange) -> impl Iterator<Item = (u16, u32)> {
    let mut next = u32::from(range.first);
    let end = u32::from(range.last) + 1;
    iter::from_fn(move || {
        let left = end.checked_sub(next).filter(|left| *left > 0)?;
        // The largest block that begins here and does not go beyond the end: 2^n ports on a multiple of 2^n. Port 0 is
        // never the first one, so that there is a lowest bit.
        let free_bits = next.trailing_zeros().min(left.ilog2());
        let port = u16::try_from(next).ok()?;
        next += 1 << free_bits;
        Some((port, 16 - free_bits))
    })
}

/// An IPv4-mapped IPv6 address as what it is: the walk knows no other form.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

// === impl Key ===

impl Key {
    fn prefix(side: Side, net: IpNet, rank: u8, value: u32) -> Self {
        let root = match (side, net) {
            (Side::Source, IpNet::V4(_)) => ROOT_SOURCE_V4,
            (Side::Source, IpNet::V6(_)) => ROOT_SOURCE_V6,
            (Side::Destination, IpNet::V4(_)) => ROOT_DESTINATION_V4,
            (Side::Destination, IpNet::V6(_)) => ROOT_DESTINATION_V6,
        };
        let bytes = match net.network() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self {
            bits: u32::from(net.prefix_len()),
            rank,
            root,
            bytes,
            value,
        }
    }
}

struct Nodes {
    nodes: Vec<TrieNode>,
    capacity: u32,
}

// === impl Nodes ===

impl Nodes {
    fn new(capacity: u32) -> Self {
        Self {
            nodes: vec![TrieNode::ZERO; ROOTS as usize],
            capacity,
        }
    }

    /// Keys of one root have to come shorter ones first.
    fn insert(&mut self, key: &Key) -> Result<(), Full> {
        // All strides but the last lead to a node; the last one, of 1 to 8 bits (none for a prefix of length 0), covers
        // a range of entries.
        let descents = key.bits.saturating_sub(1) / 8;
        let mut node = key.root as usize;
        for byte in key.bytes.iter().take(descents as usize) {
            node = self.child(node, *byte)?;
        }
        let used_bits = key.bits - descents * 8;
        let first = usize::from(key.bytes[descents as usize]);
        let count = TRIE_FANOUT >> used_bits;
        self.nodes[node].entries[first..first + count].fill(key.value);
        Ok(())
    }

    /// The node behind an entry, made of the entry's value if there is none yet.
    fn child(&mut self, node: usize, byte: u8) -> Result<usize, Full> {
        let entry = self.nodes[node].entries[usize::from(byte)];
        if entry & POINTER != 0 {
            return Ok((entry & !POINTER) as usize);
        }
        let index = u32::try_from(self.nodes.len())
            .ok()
            .filter(|index| *index < self.capacity)
            .ok_or(Full)?;
        self.nodes.push(TrieNode {
            entries: [entry; TRIE_FANOUT],
        });
        self.nodes[node].entries[usize::from(byte)] = POINTER | index;
        Ok(index as usize)
    }

    /// The value that a whole address has now. There must be no keys beyond the address.
    fn value_at(&self, key: &Key) -> u32 {
        let mut entry = POINTER | key.root;
        for byte in &key.bytes {
            entry = self.nodes[(entry & !POINTER) as usize].entries[usize::from(*byte)];
            if entry & POINTER == 0 {
                break;
            }
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_prefixes_of_a_range_hold_its_ports_once_each(first in 1..=u16::MAX, last in 1..=u16::MAX) {
            let range = PortRange { first: first.min(last), last: first.max(last) };
            let prefixes: Vec<(u16, u32)> = port_prefixes(range).collect();
            prop_assert!(prefixes.len() <= 30, "{prefixes:?}");
            let mut next = u32::from(range.first);
            for (port, bits) in prefixes {
                let size = 1u32 << (16 - bits);
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(next % size, 0);
                next += size;
            }
            prop_assert_eq!(next, u32::from(range.last) + 1);
        }
    }

    #[test]
    fn ranges_are_cut_into_the_fewest_prefixes() {
        let prefixes = |first, last| port_prefixes(PortRange { first, last }).collect::<Vec<_>>();
        assert_eq!(prefixes(8000, 8000), [(8000, 16)]);
        assert_eq!(prefixes(8000, 8010), [(8000, 13), (8008, 15), (8010, 16)]);
        assert_eq!(prefixes(32768, 65535), [(32768, 1)]);
        assert_eq!(prefixes(1, 65535).len(), 16);
        assert_eq!(prefixes(1, 65534).len(), 30);
    }
}
