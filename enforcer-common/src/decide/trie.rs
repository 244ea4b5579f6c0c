//! Classification by a multibit trie with eight-bit strides, in arrays.
//!
//! An array look-up is inlined by the verifier and costs a few nanoseconds, an LPM map costs a helper call and ten
//! times that (measured; see `docs/architecture.md`). The compiler pushes every shorter prefix into the leaves, so the
//! walk needs no backtracking: it stops at the first entry that is no pointer.
//!
//! A source key is the address. A destination key is the address, then one byte of protocol, then two of port, so that
//! one walk finds the service; an address-only entry (protected, local, NAT) is simply a shorter prefix. Behind the
//! protocol of ICMP stand, by number, the services that have echo requests to the address answered.
#![forbid(unsafe_code)]

use super::{Facts, Packet, Shape};
use crate::abi::address::{self, Address};

/// Node where the walk for an IPv4 source begins.
pub const ROOT_SOURCE_V4: u32 = 0;
/// Node where the walk for an IPv6 source begins.
pub const ROOT_SOURCE_V6: u32 = 1;
/// Node where the walk for an IPv4 destination begins.
pub const ROOT_DESTINATION_V4: u32 = 2;
/// Node where the walk for an IPv6 destination begins.
pub const ROOT_DESTINATION_V6: u32 = 3;
/// Nodes taken by the roots.
pub const ROOTS: u32 = 4;

/// This bit marks an entry that points to a node; the other bits are its index.
pub const POINTER: u32 = 1 << 31;

/// Source value: the address is a back end's (bit), whatever tenant it also belongs to (low bits, zero for nobody).
pub const SOURCE_BACKEND: u32 = 1 << 30;

/// Destination value: a service; its slot is in the low bits.
pub const DESTINATION_SERVICE: u32 = 1 << 28;
/// Destination value: inside a protected network.
pub const DESTINATION_PROTECTED: u32 = 2 << 28;
/// Destination value: an address of this host.
pub const DESTINATION_LOCAL: u32 = 3 << 28;
/// Destination value: the address that `Nat` puts in place of the client's.
pub const DESTINATION_NAT: u32 = 4 << 28;
/// Mask of a destination value's kind.
pub const DESTINATION_KIND: u32 = 7 << 28;

/// Services that may have echo requests to one address answered.
pub const MAX_ECHO_SERVICES: u32 = 8;

/// Who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(u32);

impl Source {
    /// No tenant and no back end.
    pub const NOBODY: Self = Self(0);

    /// The tenant's slot, zero for none.
    #[inline(always)]
    pub const fn tenant(self) -> u32 {
        self.0 & !(SOURCE_BACKEND | POINTER)
    }

    /// Whether it is the address of a back end.
    #[inline(always)]
    pub const fn is_backend(self) -> bool {
        self.0 & SOURCE_BACKEND != 0
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Nowhere that concerns us.
    Outside,
    /// An address of this host.
    Local,
    /// The NAT address of this host.
    Nat,
    /// A protected network.
    Protected,
    /// A service, by slot.
    Service(u32),
    /// An address that has services, but the packet's ports could not be read or it is no TCP or UDP.
    VipWithoutPort,
}

/// The sender of a packet.
#[inline(always)]
pub fn source<F: Facts>(facts: &F, bank: u32, packet: &Packet) -> Source {
    let entry = walk(facts, bank, &packet.key.source, ROOT_SOURCE_V4, ROOT_SOURCE_V6);
    Source(if entry & POINTER == 0 { entry } else { 0 })
}

/// The destination of a packet.
#[inline(always)]
pub fn destination<F: Facts>(facts: &F, bank: u32, packet: &Packet) -> Destination {
    let mut entry = walk(
        facts,
        bank,
        &packet.key.destination,
        ROOT_DESTINATION_V4,
        ROOT_DESTINATION_V6,
    );
    if entry & POINTER != 0 {
        if !matches!(packet.shape, Shape::Transport) {
            return Destination::VipWithoutPort;
        }
        let port = u16::from_be(packet.key.destination_port_be).to_be_bytes();
        entry = facts.trie_entry(bank, entry & !POINTER, packet.key.protocol as u8);
        if entry & POINTER != 0 {
            entry = facts.trie_entry(bank, entry & !POINTER, port[0]);
        }
        if entry & POINTER != 0 {
            entry = facts.trie_entry(bank, entry & !POINTER, port[1]);
        }
    }
    match entry & DESTINATION_KIND {
        DESTINATION_SERVICE => Destination::Service(entry & !DESTINATION_KIND),
        DESTINATION_PROTECTED => Destination::Protected,
        DESTINATION_LOCAL => Destination::Local,
        DESTINATION_NAT => Destination::Nat,
        _ => Destination::Outside,
    }
}

/// The node that lists the services which have echo requests to a packet's destination answered, if any do. `packet` is
/// ICMP.
#[inline(always)]
pub fn echo_node<F: Facts>(facts: &F, bank: u32, packet: &Packet) -> Option<u32> {
    let entry = walk(
        facts,
        bank,
        &packet.key.destination,
        ROOT_DESTINATION_V4,
        ROOT_DESTINATION_V6,
    );
    if entry & POINTER == 0 {
        return None;
    }
    let entry = facts.trie_entry(bank, entry & !POINTER, packet.key.protocol as u8);
    (entry & POINTER != 0).then_some(entry & !POINTER)
}

/// The slot of one of these services; `index` counts from zero, without gaps.
#[inline(always)]
pub fn echo_service<F: Facts>(facts: &F, bank: u32, node: u32, index: u32) -> Option<u32> {
    let entry = facts.trie_entry(bank, node, index as u8);
    (entry & (POINTER | DESTINATION_KIND) == DESTINATION_SERVICE).then_some(entry & !DESTINATION_KIND)
}

/// Walks an address; the answer may still be a pointer, if keys go on after the address.
#[inline(always)]
fn walk<F: Facts>(facts: &F, bank: u32, key: &Address, root_v4: u32, root_v6: u32) -> u32 {
    if address::is_v4(key) {
        return walk_word(facts, bank, POINTER | root_v4, key[3]);
    }
    let mut entry = POINTER | root_v6;
    for word in key {
        entry = walk_word(facts, bank, entry, *word);
        if entry & POINTER == 0 {
            return entry;
        }
    }
    entry
}

#[inline(always)]
fn walk_word<F: Facts>(facts: &F, bank: u32, mut entry: u32, word_be: u32) -> u32 {
    let word = u32::from_be(word_be);
    for byte in [
        (word >> 24) as u8,
        (word >> 16) as u8,
        (word >> 8) as u8,
        word as u8,
    ] {
        entry = facts.trie_entry(bank, entry & !POINTER, byte);
        if entry & POINTER == 0 {
            return entry;
        }
    }
    entry
}
