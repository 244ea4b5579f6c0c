//! Maglev tables with weights.
//!
//! From Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: every back
//! end has its own permutation of the slots, and they take turns, each taking the next slot of its permutation that is
//! free. Where the paper weights a back end by the frequency of its turns without saying how, here turns are dealt by the
//! method of Sainte-Laguë: back end `i` takes its `k`-th turn (from 0) at time `(2k + 1) / weight`. That has two merits
//! over rounds in which every back end collects weight until it has enough for a turn (as Katran's second version does):
//! the number of slots is the ideal share rounded to a whole number, give or take one, and the order of the turns of any
//! two back ends does not depend on the others, so that a change of one weight moves few slots between the others.
//!
//! A pure function of the set of entries: the same on every host, whatever the order of the entries, and unchanged when
//! all weights are multiplied by one number.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use sha2::{Digest as _, Sha256};

/// One back end of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// A hash of its name, from [`key_of`]: decides which slots it prefers, on every host alike.
    pub key: u64,
    /// What stands in its slots of the table.
    pub backend: u16,
    /// Its share relative to the others; with 0 it gets no slot.
    pub weight: u32,
}

/// The key of a name: the first eight bytes of its SHA-256, which will not change with a release as the standard
/// library's hashers may.
#[must_use]
pub fn key_of(name: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// A table of `size` slots, each holding the `backend` of an entry; empty if no entry has weight.
///
/// # Panics
/// If `size` is no prime: with any other size a permutation could miss slots.
#[must_use]
pub fn table(entries: &[Entry], size: u32) -> Vec<u16> {
    assert!(
        is_prime(size),
        "the size of a Maglev table, {size}, has to be a prime"
    );
    let mut turns: BinaryHeap<Reverse<Turn>> = entries
        .iter()
        .filter(|entry| entry.weight > 0)
        .map(|entry| Reverse(Turn::first(*entry, size)))
        .collect();
    if turns.is_empty() {
        return Vec::new();
    }
    let mut slots: Vec<Option<u16>> = vec![None; size as usize];
    for _ in 0..size {
        let Some(mut next) = turns.peek_mut() else { break };
        let turn = &mut next.0;
        turn.take_free_slot(&mut slots);
        turn.number += 1;
        // Dropping `next` puts the turn back to where it now belongs.
    }
    slots
        .into_iter()
        .map(|slot| slot.expect("there were as many turns as slots"))
        .collect()
}

/// The next turn of one back end, and its place in its permutation.
#[derive(Debug, Clone, Copy)]
struct Turn {
    entry: Entry,
    /// From 0.
    number: u32,
    /// The slot to try next.
    slot: u32,
    /// How far apart the slots of its permutation are.
    skip: u32,
    size: u32,
}

// === impl Turn ===

impl Turn {
    fn first(entry: Entry, size: u32) -> Self {
        let below = |hash: u64, bound: u32| u32::try_from(hash % u64::from(bound)).expect("less than a u32");
        Self {
            entry,
            number: 0,
            slot: below(mix(entry.key ^ OFFSET_SEED), size),
            // A table of two slots has one permutation but for the offset.
            skip: below(mix(entry.key ^ SKIP_SEED), size - 1) + 1,
            size,
        }
    }

    /// Ends, since the skip and the size have no common divisor, so that every slot is tried, and one is free.
    fn take_free_slot(&mut self, slots: &mut [Option<u16>]) {
        for _ in 0..self.size {
            let slot = &mut slots[self.slot as usize];
            // No overflow: both are less than the size, and primes near 2^32 are not allowed by `is_prime`.
            self.slot = (self.slot + self.skip) % self.size;
            if slot.is_none() {
                *slot = Some(self.entry.backend);
                return;
            }
        }
    }

    /// The time of the turn is `(2 * number + 1) / weight`; this compares two of them without dividing.
    fn cmp_time(&self, other: &Self) -> Ordering {
        let odd = |number: u32| 2 * u64::from(number) + 1;
        let left = odd(self.number) * u64::from(other.entry.weight);
        let right = odd(other.number) * u64::from(self.entry.weight);
        left.cmp(&right)
    }
}

impl Ord for Turn {
    /// Ties go by key, which is the same on every host, and only then by slot number, which need not be.
    fn cmp(&self, other: &Self) -> Ordering {
        let identity = |turn: &Self| (turn.entry.key, turn.entry.backend);
        self.cmp_time(other)
            .then_with(|| identity(self).cmp(&identity(other)))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

const OFFSET_SEED: u64 = 0x6f66_6673_6574_0001;
const SKIP_SEED: u64 = 0x736b_6970_0000_0002;

/// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): two unrelated numbers from one key.
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Trial division: sizes are small, and no larger than leaves room for sums.
fn is_prime(number: u32) -> bool {
    (2..1 << 24).contains(&number)
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests;
