//! What one CPU remembers of flows: written and read by the programs, read by the agent.
//!
//! An exact-match cache before the flow table, as that of Open vSwitch is before its classifier (Pfaff et al., NSDI 2015): one
//! cache line a flow, sets of eight that are told apart by a byte of the hash as in Swiss tables (Benzaquen et al., CppCon
//! 2017), each CPU its own. It holds nothing that could not be found again: what came of the judgement of the flow under a
//! generation, and which back end it has. So a packet that finds its flow here gets what it would get otherwise. Strangers are
//! not looked for: a flood of them must not cost a miss of the processor's caches each.
//!
//! The flow table stays the one that counts. Packets and bytes that were counted here belong to the flow of that key, and
//! are brought there when a packet does not find its flow, at the latest after [`TICK_NS`] or so.

use super::address::{Address, FlowKey, differing};
use crate::decide::UDP;
use crate::pod::record;

record! {
    /// A flow as one CPU remembers it. All zero: none.
    pub struct CachedFlow, 64 bytes {
        /// Source address of the client's packets.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// The low bits of the generation under which it was judged.
        pub generation: u32,
        /// The low bits of the flow hash, by which an outer header varies.
        pub spread: u32,
        /// Source port.
        pub source_port_be: u16,
        /// Destination port.
        pub destination_port_be: u16,
        /// Number of the decision record.
        pub decision: u16,
        /// The `FORWARD_*` code, and [`CACHED_FREE`].
        pub forward: u16,
        /// Service slot.
        pub service: u16,
        /// Back-end slot, and [`CACHED_UDP`].
        pub backend: u16,
        /// `Nat`: the port in place of the client's.
        pub translated_port_be: u16,
        /// The low bits of the word in `FLOW_EPOCHS` when the flow was looked up.
        pub epoch: u16,
        /// When that was: see [`TICK_NS`].
        pub tick: u16,
        /// Packets that its record in the flow table does not count yet.
        pub packets: u16,
        /// Bytes, likewise.
        pub bytes: u32,
    }
}

/// Set in [`CachedFlow::backend`] if the protocol is UDP, not TCP.
pub const CACHED_UDP: u16 = 1 << 15;
const _: () = assert!(crate::schema::MAX_BACKENDS <= CACHED_UDP as u32);

/// Set in [`CachedFlow::forward`] if nobody limits packets of the flow.
pub const CACHED_FREE: u16 = 1 << 15;

/// No more packets than this are counted in the cache before they are brought to the flow table.
pub const MAX_PENDING_PACKETS: u16 = u16::MAX;
/// The same of bytes; one more packet never overflows them.
pub const MAX_PENDING_BYTES: u32 = 1 << 31;

/// How long a flow is remembered at most before the flow table is asked again, so that this knows that the flow is in use.
pub const TICK_NS: u64 = 1 << TICK_SHIFT;
/// The same as a shift.
pub const TICK_SHIFT: u32 = 31;

impl CachedFlow {
    /// Bits that differ between this and a flow's key: zero if it is that flow. One number, so that there is one branch.
    #[inline(always)]
    pub const fn differs(&self, key: &FlowKey) -> u64 {
        let udp = if key.protocol == UDP { CACHED_UDP } else { 0 };
        differing(&self.source, &key.source)
            | differing(&self.destination, &key.destination)
            | (self.source_port_be ^ key.source_port_be) as u64
            | (self.destination_port_be ^ key.destination_port_be) as u64
            | ((self.backend ^ udp) & CACHED_UDP) as u64
    }

    /// The key of its flow.
    #[inline(always)]
    pub const fn key(&self) -> FlowKey {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port_be: self.source_port_be,
            destination_port_be: self.destination_port_be,
            protocol: if self.backend & CACHED_UDP != 0 {
                UDP
            } else {
                crate::decide::TCP
            },
        }
    }
}

/// Constants of [`cache_hash`]: the first digits of the square roots of the first five primes, odd.
const FACTORS: [u64; 5] = [
    0x6a09_e667_f3bc_c909,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
];

/// The hash by which a flow is remembered; its highest bits are the best. It is not the flow hash, whose every step waits for the
/// one before: here the products are on their way at once, and one more spreads their sum, which for keys that follow each other
/// is too regular. Hosts need not agree on it, and who makes flows collide takes places from nobody who uses theirs.
#[inline(always)]
pub const fn cache_hash(key: &FlowKey) -> u64 {
    const fn term(low: u32, high: u32, factor: u64) -> u64 {
        (low as u64 | (high as u64) << 32).wrapping_mul(factor)
    }
    let (s, d) = (&key.source, &key.destination);
    let ports = key.source_port_be as u32 | (key.destination_port_be as u32) << 16;
    let source = term(s[0], s[1], FACTORS[0]).wrapping_add(term(s[2], s[3], FACTORS[1]));
    let destination = term(d[0], d[1], FACTORS[2]).wrapping_add(term(d[2], d[3], FACTORS[3]));
    let rest = term(ports, key.protocol, FACTORS[4]);
    let sum = source.wrapping_add(destination).wrapping_add(rest);
    (sum ^ (sum >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Entries of one set: a flow may lie in any of its set's. Their tags are the bytes of one word of `FLOW_TAGS`.
pub const WAYS: u32 = 8;

/// The lowest bit of each byte.
const LOW_BITS: u64 = 0x0101_0101_0101_0101;
/// The highest.
const HIGH_BITS: u64 = LOW_BITS << 7;

/// The tag of a flow of this [`cache_hash`]: a byte, never zero, which stands for an entry that nobody has used.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    let tag = hash >> 56;
    // Without a branch.
    tag + (tag.wrapping_sub(1) >> 63)
}

/// The first entry of a set that has this tag, if one has; zero finds one that nobody has used. No two entries of a set have
/// the same tag.
#[inline(always)]
pub const fn way_of(tags: u64, tag: u64) -> Option<u32> {
    let differences = tags ^ tag.wrapping_mul(LOW_BITS);
    // A byte that is zero borrows (Mycroft, 1987); only bytes above it may be taken for zero by mistake.
    let zeroes = differences.wrapping_sub(LOW_BITS) & !differences & HIGH_BITS;
    if zeroes == 0 {
        return None;
    }
    // The lowest bit is that of byte `way`, shifted to its lowest bit; the product has the number of the way on top.
    let first = (zeroes & zeroes.wrapping_neg()) >> 7;
    Some((first.wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32)
}

/// The tags of a set in which an entry has got another.
#[inline(always)]
pub const fn retagged(tags: u64, way: u32, tag: u64) -> u64 {
    let shift = (way % WAYS) * 8;
    (tags & !(0xff << shift)) | (tag << shift)
}

/// Sets of each CPU, a power of two, in a cache of so many entries for `cpus` of them.
#[must_use]
pub const fn sets_per_cpu(entries: u32, cpus: u32) -> u32 {
    match (entries / WAYS).checked_div(cpus) {
        None | Some(0) => 0,
        Some(share) => 1 << share.ilog2(),
    }
}

/// The set of a flow of this hash in the cache of a CPU that has so many, a power of two.
#[inline(always)]
pub const fn set_index(cpu: u32, sets: u32, hash: u64) -> u32 {
    // Below the bits of the tag.
    cpu.wrapping_mul(sets)
        .wrapping_add((hash >> 32) as u32 & sets.wrapping_sub(1))
}

/// Index of an entry of a set.
#[inline(always)]
pub const fn entry_index(set: u32, way: u32) -> u32 {
    set.wrapping_mul(WAYS).wrapping_add(way)
}

/// Words in `FLOW_EPOCHS`.
pub const EPOCHS: u32 = 4096;

/// The word in `FLOW_EPOCHS` that changes with the binding of a flow of this hash: when it gets another back end, when a side
/// ends it, when its record is removed. What a CPU remembers of it is void then.
#[inline(always)]
pub const fn epoch_index(hash: u64) -> u32 {
    (hash >> 44) as u32 % EPOCHS
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::*;
    use crate::abi::address::from_v4;
    use crate::decide::TCP;

    fn key(source: u32, source_port: u16) -> FlowKey {
        FlowKey {
            source: from_v4(source.to_be()),
            destination: from_v4(0xc000_020a_u32.to_be()),
            source_port_be: source_port.to_be(),
            destination_port_be: 443_u16.to_be(),
            protocol: TCP,
        }
    }

    #[test]
    fn the_first_entry_with_a_tag_is_found() {
        // Neighbours of what is looked for are what a borrow could be taken in by.
        let bytes = [0, 1, 2, 0x7f, 0x80, 0x81, 0xfe, 0xff];
        let mut tags = [0; WAYS as usize];
        for round in 0..20_000_usize {
            for (way, tag) in tags.iter_mut().enumerate() {
                *tag = bytes[(round >> (way % 5 * 3)).wrapping_add(way * round) % bytes.len()];
            }
            for wanted in bytes {
                let expected = tags.iter().position(|tag| *tag == wanted);
                let found = way_of(u64::from_le_bytes(tags), u64::from(wanted));
                assert_eq!(found, expected.map(|way| way as u32), "{wanted} in {tags:?}");
            }
        }
    }

    #[test]
    fn an_entry_gets_another_tag_and_the_others_keep_theirs() {
        let tags = u64::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8]);
        for way in 0..WAYS {
            let mut expected = tags.to_le_bytes();
            expected[way as usize] = 0xfe;
            assert_eq!(retagged(tags, way, 0xfe).to_le_bytes(), expected);
        }
    }

    #[test]
    fn no_tag_stands_for_an_unused_entry() {
        assert_eq!([0, 1 << 56, 0xff << 56].map(tag), [1, 1, 0xff]);
    }

    /// Keys are anything but random: addresses and ports that follow each other. Twice as many entries as flows have room for
    /// nearly all.
    #[test]
    fn regular_keys_find_room() {
        type Make = fn(u32) -> FlowKey;
        const SETS: u32 = 1 << 14;
        let flows = SETS * WAYS / 2;
        let ways: [(&str, Make); 5] = [
            ("addresses", |n| key(0x0a00_0000 + n, 40_000)),
            ("ports", |n| key(0x0a00_0001, n as u16)),
            ("sixteen ports of each address", |n| {
                key(0x0a00_0000 + n / 16, 1024 + (n % 16) as u16)
            }),
            ("every sixteenth address", |n| key(0x0a00_0000 + n * 16, 40_000)),
            ("even ports of 256 addresses", |n| {
                key(0x0a00_0000 + n % 256, 1024 + (n / 256) as u16 * 2)
            }),
        ];
        for (name, make) in ways {
            let mut sets: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
            let mut placed = 0;
            for hash in (0..flows).map(|number| cache_hash(&make(number))) {
                let tags = sets.entry(set_index(0, SETS, hash)).or_default();
                if tags.len() < WAYS as usize && !tags.contains(&tag(hash)) {
                    tags.push(tag(hash));
                    placed += 1;
                }
            }
            assert!(placed > flows / 100 * 97, "{name}: {placed} of {flows}");
        }
    }
}
