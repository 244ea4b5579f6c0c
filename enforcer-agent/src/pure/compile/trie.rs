//! The classification trie, as [`enforcer_common::decide::trie`] walks it.
//!
//! Keys are inserted shorter ones first, each into the entries that it covers in its last node. A longer key that has
//! to go on from an entry with a value turns it into a node full of that value (leaf pushing): that is how a walk can
//! stop at the first entry that is no pointer.

use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;

use enforcer_common::abi::config::{TRIE_FANOUT, TrieNode};
use enforcer_common::decide::trie::{
    DESTINATION_LOCAL, DESTINATION_NAT, DESTINATION_PROTECTED, DESTINATION_SERVICE, POINTER,
    ROOT_DESTINATION_V4, ROOT_DESTINATION_V6, ROOT_SOURCE_V4, ROOT_SOURCE_V6, ROOTS, SOURCE_BACKEND,
};
use enforcer_common::decide::{TCP, UDP};
use enforcer_common::schema::MAX_TRIE_NODES;
use ipnet::IpNet;

use super::Layout;
use crate::pure::policy::resolved::{PortRange, Protocol};

/// There are more nodes than the map holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Which pair of roots a key belongs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
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

/// The nodes of both tries, the roots first.
pub(super) fn build(layout: &Layout<'_>) -> Result<Vec<TrieNode>, Full> {
    let mut nodes = Nodes::new();
    nodes.insert_all(tenant_keys(layout))?;
    // A back end within a tenant's prefix is both: so its value is made of the one that stands there.
    let backends: BTreeSet<IpAddr> = layout
        .backends
        .iter()
        .flatten()
        .map(|backend| backend.backend.address)
        .collect();
    for address in backends {
        let mut key = Key::prefix(Table::Source, IpNet::from(address), 0, 0);
        key.value = nodes.value_at(&key) | SOURCE_BACKEND;
        nodes.insert(&key)?;
    }
    nodes.insert_all(destination_keys(layout))?;
    Ok(nodes.0)
}

fn tenant_keys(layout: &Layout<'_>) -> Vec<Key> {
    let tenants = layout.inputs.policy.tenants.iter().zip(&layout.tenant_slots);
    tenants
        .flat_map(|(tenant, slot)| {
            tenant
                .sources
                .iter()
                .map(|net| Key::prefix(Table::Source, *net, 0, *slot))
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
        .map(|net| Key::prefix(Table::Destination, *net, 0, DESTINATION_PROTECTED))
        .collect();
    let address =
        |rank, value| move |address| Key::prefix(Table::Destination, IpNet::from(address), rank, value);
    keys.extend(
        host.local_addresses
            .iter()
            .map(|ip| canonical(*ip))
            .map(address(1, DESTINATION_LOCAL)),
    );
    keys.extend(nat.map(address(2, DESTINATION_NAT)));
    for service in &layout.services {
        let protocol = match service.service.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        let addresses = service
            .service
            .addresses
            .iter()
            .filter(|address| super::Family::of(**address) == service.family);
        for address in addresses {
            for (port, bits) in port_prefixes(service.service.ports) {
                let mut key = Key::prefix(
                    Table::Destination,
                    IpNet::from(*address),
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
    fn prefix(table: Table, net: IpNet, rank: u8, value: u32) -> Self {
        let root = match (table, net) {
            (Table::Source, IpNet::V4(_)) => ROOT_SOURCE_V4,
            (Table::Source, IpNet::V6(_)) => ROOT_SOURCE_V6,
            (Table::Destination, IpNet::V4(_)) => ROOT_DESTINATION_V4,
            (Table::Destination, IpNet::V6(_)) => ROOT_DESTINATION_V6,
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

struct Nodes(Vec<TrieNode>);

// === impl Nodes ===

impl Nodes {
    fn new() -> Self {
        Self(vec![TrieNode::ZERO; ROOTS as usize])
    }

    fn insert_all(&mut self, mut keys: Vec<Key>) -> Result<(), Full> {
        keys.sort_unstable();
        keys.iter().try_for_each(|key| self.insert(key))
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
        self.0[node].entries[first..first + count].fill(key.value);
        Ok(())
    }

    /// The node behind an entry, made of the entry's value if there is none yet.
    fn child(&mut self, node: usize, byte: u8) -> Result<usize, Full> {
        let entry = self.0[node].entries[usize::from(byte)];
        if entry & POINTER != 0 {
            return Ok((entry & !POINTER) as usize);
        }
        let index = u32::try_from(self.0.len())
            .ok()
            .filter(|index| *index < MAX_TRIE_NODES)
            .ok_or(Full)?;
        self.0.push(TrieNode {
            entries: [entry; TRIE_FANOUT],
        });
        self.0[node].entries[usize::from(byte)] = POINTER | index;
        Ok(index as usize)
    }

    /// The value that a whole address has now. There must be no keys beyond the address.
    fn value_at(&self, key: &Key) -> u32 {
        let mut entry = POINTER | key.root;
        for byte in &key.bytes {
            entry = self.0[(entry & !POINTER) as usize].entries[usize::from(*byte)];
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
