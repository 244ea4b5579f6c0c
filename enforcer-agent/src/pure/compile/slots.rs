//! Names to small integers.
//!
//! The data path keeps limiter state, counters and flows by slot, and none of that is reset by a change of policy: so a
//! name keeps its slot for as long as it exists. A slot that becomes free is not given out by the compile that freed it,
//! since flows that were made a moment ago still bear it. After that it is at the end of the line: slots are given out in
//! turn, so that a slot's counters and the flows that still bear it belong to another name as late as can be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use enforcer_common::schema::{MAX_BACKENDS, MAX_LIMIT_GROUPS, MAX_SERVICES};
use serde::{Deserialize, Serialize};

use super::{CompileError, Family};

/// Numbers that rules take in turn. Nothing is indexed by them, so there may be many, and a number that a record bears
/// is given to another rule as late as can be.
const RULE_NUMBERS: u32 = 1 << 20;

/// Slots by name, for all that has slots. Serialisable, since it has to outlive the agent as long as the maps do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slots {
    /// From 1: slot 0 is nobody.
    pub tenants: SlotMap,
    /// By [`service_key`].
    pub services: SlotMap,
    /// By name.
    pub backends: SlotMap,
    /// By name: what records and events bear in place of a rule's name, plus one. A rule's place in the order of
    /// judgement would not do: flows outlive it.
    #[serde(default)]
    pub rules: SlotMap,
    /// Limit groups, from 1: see [`super::groups`].
    #[serde(default)]
    pub limits: SlotMap,
}

/// Slots by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotMap {
    /// Shared, since most changes leave it as it is, and states are copied.
    #[serde(with = "super::shared")]
    slots: Arc<BTreeMap<String, u32>>,
    /// Where the search for a free slot begins.
    next: u32,
}

/// What a service's slot goes by: its name, and the family, since each family of a service has a slot.
#[must_use]
pub fn service_key(name: &str, family: Family) -> String {
    format!("{name}/{}", family.name())
}

// === impl Slots ===

impl Slots {
    /// The slots of the next compile, with room for `capacity` tenants.
    pub(super) fn next(
        &self,
        capacity: u32,
        tenants: impl Iterator<Item = String>,
        services: impl Iterator<Item = String>,
        backends: impl Iterator<Item = String>,
        rules: impl Iterator<Item = String>,
        limits: Option<Vec<String>>,
    ) -> Result<Self, CompileError> {
        let full = |what, capacity, field| CompileError::Capacity {
            what,
            capacity,
            field,
            advice: SLOTS_ADVICE,
        };
        Ok(Self {
            tenants: self.tenants.next(tenants, 1..capacity + 1).ok_or(full(
                "tenants",
                capacity,
                Some("capacity.tenants"),
            ))?,
            services: self.services.next(services, 0..MAX_SERVICES).ok_or(full(
                "services",
                MAX_SERVICES,
                None,
            ))?,
            backends: self.backends.next(backends, 0..MAX_BACKENDS).ok_or(full(
                "back ends",
                MAX_BACKENDS,
                None,
            ))?,
            rules: self
                .rules
                .next(rules, 0..RULE_NUMBERS)
                .ok_or(full("rules", RULE_NUMBERS, None))?,
            limits: limits
                .and_then(|keys| self.limits.next(keys.into_iter(), 1..MAX_LIMIT_GROUPS))
                .ok_or(CompileError::Capacity {
                    what: "limits of services, and of tenants on services,",
                    capacity: MAX_LIMIT_GROUPS - 1,
                    field: None,
                    advice: "let rules with `limits` choose fewer tenants or services",
                })?,
        })
    }
}

const SLOTS_ADVICE: &str = "remove old names first, and add the new ones in a second change: those that were removed \
                            count until then";

// === impl SlotMap ===

impl SlotMap {
    /// The slot of a name that was given one.
    ///
    /// # Panics
    /// If the name has no slot.
    pub(super) fn slot(&self, name: &str) -> u32 {
        self.slots[name]
    }

    /// The slot of a name, if it has one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u32> {
        self.slots.get(name).copied()
    }

    /// Names and slots, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.slots.iter().map(|(name, slot)| (name.as_str(), *slot))
    }

    fn next(&self, names: impl Iterator<Item = String>, range: std::ops::Range<u32>) -> Option<Self> {
        // In the order of names, so that it does not depend on where in the policy a name stands.
        let names: BTreeSet<String> = names.collect();
        let is_sound = || {
            let slots: BTreeSet<u32> = self.slots.values().copied().collect();
            slots.len() == self.slots.len() && slots.iter().all(|slot| range.contains(slot))
        };
        // Most changes bring no name and take none away.
        if names.iter().eq(self.slots.keys()) && range.contains(&self.next) && is_sound() {
            return Some(self.clone());
        }
        let taken: BTreeSet<u32> = self.slots.values().copied().collect();
        let first = if range.contains(&self.next) {
            self.next
        } else {
            range.start
        };
        let turn = (first..range.end).chain(range.start..first);
        let mut free = turn.filter(|slot| !taken.contains(slot));
        let (mut slots, mut next) = (BTreeMap::new(), first);
        for name in names {
            // A slot out of range can only come from a damaged state file.
            let kept = self.slots.get(&name).copied().filter(|slot| range.contains(slot));
            let slot = match kept {
                Some(slot) => slot,
                None => {
                    let slot = free.next()?;
                    next = slot + 1;
                    slot
                }
            };
            slots.insert(name, slot);
        }
        // Two names with one slot can only come from there as well; both would share limits and counters.
        let distinct: BTreeSet<&u32> = slots.values().collect();
        if distinct.len() < slots.len() {
            return Self::default().next(slots.into_keys(), range);
        }
        // What has every name already is the same again.
        let next = if range.contains(&next) { next } else { range.start };
        Some(Self {
            slots: Arc::new(slots),
            next,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> impl Iterator<Item = String> {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn map(entries: &[(&str, u32)]) -> SlotMap {
        let slots = entries
            .iter()
            .map(|(name, slot)| ((*name).to_owned(), *slot))
            .collect();
        SlotMap {
            slots: Arc::new(slots),
            next: 0,
        }
    }

    #[track_caller]
    fn check(map: &SlotMap, expected: &[(&str, u32)]) {
        let slots: Vec<(&str, u32)> = map.iter().collect();
        assert_eq!(slots, expected);
    }

    #[test]
    fn names_keep_their_slots_and_freed_ones_go_to_the_end_of_the_line() {
        let first = SlotMap::default().next(names(&["b", "a", "c"]), 1..6).unwrap();
        check(&first, &[("a", 1), ("b", 2), ("c", 3)]);
        let second = first.next(names(&["c", "b"]), 1..6).unwrap();
        check(&second, &[("b", 2), ("c", 3)]);
        let third = second.next(names(&["b", "c", "d", "e"]), 1..6).unwrap();
        check(&third, &[("b", 2), ("c", 3), ("d", 4), ("e", 5)]);
        let fourth = third.next(names(&["b", "c", "d", "e", "f"]), 1..6).unwrap();
        check(&fourth, &[("b", 2), ("c", 3), ("d", 4), ("e", 5), ("f", 1)]);
    }

    #[test]
    fn a_full_range_is_an_error_and_not_a_slot_given_twice() {
        let first = SlotMap::default().next(names(&["a", "b"]), 0..2).unwrap();
        assert_eq!(first.next(names(&["b", "c"]), 0..2), None, "0 is freed only now");
        let second = first.next(names(&["b"]), 0..2).unwrap();
        check(
            &second.next(names(&["b", "c"]), 0..2).unwrap(),
            &[("b", 1), ("c", 0)],
        );
    }

    #[test]
    fn a_damaged_state_file_does_no_harm() {
        let damaged = map(&[("a", 7), ("b", 7), ("c", 900)]);
        let next = damaged.next(names(&["a", "b", "c"]), 0..8).unwrap();
        let slots: BTreeSet<u32> = next.iter().map(|(_, slot)| slot).collect();
        assert_eq!(slots.len(), 3);
        assert!(slots.iter().all(|slot| *slot < 8));
    }
}
