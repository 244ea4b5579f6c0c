//! The flow hash, version 1: picks the Maglev slot of a new flow.
//!
//! Named and versioned because two hosts must pick the same back end for the same flow: a change of one bit here
//! is a change of every golden vector in the tests, on purpose. It is a multiply-and-rotate mix over the ten words
//! of the key with the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014); it needs only 64-bit multiplies,
//! which BPF has. It is no keyed hash: a client can steer which eligible back end it gets, and nothing else.

use crate::abi::address::FlowKey;

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLIER: u64 = 0xff51_afd7_ed55_8ccd;

#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(MULTIPLIER).rotate_left(29)
}

/// The hash of a client's 5-tuple.
#[inline(always)]
pub const fn flow_hash(key: &FlowKey) -> u64 {
    let (s, d) = (&key.source, &key.destination);
    // Words are taken in network order, so that hosts of either byte order agree.
    let mut hash = SEED;
    hash = mix(
        hash,
        ((u32::from_be(s[0]) as u64) << 32) | u32::from_be(s[1]) as u64,
    );
    hash = mix(
        hash,
        ((u32::from_be(s[2]) as u64) << 32) | u32::from_be(s[3]) as u64,
    );
    hash = mix(
        hash,
        ((u32::from_be(d[0]) as u64) << 32) | u32::from_be(d[1]) as u64,
    );
    hash = mix(
        hash,
        ((u32::from_be(d[2]) as u64) << 32) | u32::from_be(d[3]) as u64,
    );
    let ports =
        ((u16::from_be(key.source_port_be) as u64) << 16) | u16::from_be(key.destination_port_be) as u64;
    hash = mix(hash, ((key.protocol as u64) << 32) | ports);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Maps a hash to `0..count` without a division (Lemire, "Fast random integer generation in an interval", 2019).
#[inline(always)]
pub const fn scale(hash: u64, count: u32) -> u32 {
    (((hash >> 32) * count as u64) >> 32) as u32
}
