//! What this CPU remembers of destinations: which service has an address, protocol and port. A walk of the trie is seven steps
//! over IPv4 and nineteen over IPv6, each of which waits for the one before.
//!
//! Only services are remembered, each under its generation and with its whole key; so there are few, nobody but the policy says
//! which, and nothing is ever out of date.
#![expect(unsafe_code, reason = "per-CPU values; each block states need and soundness")]

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use enforcer_common::abi::address::{Address, FlowKey, differing};

/// Places, one of which each destination has: its own, or it shares it.
const PLACES: u32 = 256;

/// The programs' own and no part of the schema.
#[map]
static KNOWN_SERVICES: PerCpuArray<KnownService> = PerCpuArray::with_max_entries(PLACES, 0);

/// A destination. All zero: none, since no protocol with ports has number zero.
struct KnownService {
    generation: u64,
    destination: Address,
    protocol: u32,
    port_be: u16,
    service: u16,
}

/// The place of a destination: by a multiplicative hash (Knuth, TAOCP 6.4), whose highest bits are the best.
#[inline(always)]
fn place(key: &FlowKey) -> u32 {
    let [a, b, c, d] = key.destination;
    let mixed = u64::from(a ^ b ^ c ^ d) ^ (u64::from(key.destination_port_be ^ key.protocol as u16) << 32);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u32 % PLACES
}

/// The service of a destination, if it is remembered.
#[inline(always)]
pub(crate) fn recall(key: &FlowKey, generation: u64) -> Option<u32> {
    let known = KNOWN_SERVICES.get(place(key))?;
    let differs = differing(&known.destination, &key.destination)
        | (known.generation ^ generation)
        | u64::from(known.protocol ^ key.protocol)
        | u64::from(known.port_be ^ key.destination_port_be);
    if differs != 0 {
        return None;
    }
    Some(u32::from(known.service))
}

/// Remembers the service of a destination.
#[inline(always)]
pub(crate) fn remember(key: &FlowKey, generation: u64, service: u32) {
    let Some(place) = KNOWN_SERVICES.get_ptr_mut(place(key)) else {
        return;
    };
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the slot belongs to this CPU, no other program runs
    // on it until this one ends, and it is written whole.
    unsafe {
        place.write(KnownService {
            generation,
            destination: key.destination,
            protocol: key.protocol,
            port_be: key.destination_port_be,
            service: service as u16,
        });
    }
}
