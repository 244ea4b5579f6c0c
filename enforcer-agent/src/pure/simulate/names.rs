//! Slots of both policies as one set of numbers, so that who decided what can be compared without comparing names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use enforcer_common::abi::reason::{Effect, Reason};
use enforcer_common::decide::Decision;

use super::report::Finding;
use crate::pure::compile::directory::ServiceEntry;
use crate::pure::compile::{Directory, Family};

/// Added to what only the policy after the change has: beyond every slot.
const AFTER_ONLY: u32 = 1 << 24;

/// What a policy made of a packet, in numbers that mean the same for both policies. Zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Made {
    /// Tenant, plus one.
    pub(super) tenant: u32,
    /// Service, plus one. A service with two families is one here.
    pub(super) service: u32,
    /// Deciding rule, plus one.
    pub(super) rule: u32,
    /// Why.
    pub(super) reason: Reason,
}

/// From the slots of the policy after the change to those of the one before, by name.
#[derive(Debug)]
pub(super) struct Names {
    tenants: BTreeMap<u32, u32>,
    /// Of both policies, by [`Which`]: the halves of a service with addresses of both families are one.
    services: [BTreeMap<u32, u32>; 2],
    rules: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, u32>,
}

/// Whose slots they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Before,
    After,
}

// === impl Names ===

impl Names {
    pub(super) fn new(before: &Directory, after: &Directory) -> Self {
        let service = |entry: &ServiceEntry| entry.name.clone();
        Self {
            tenants: join(&before.tenants, &after.tenants, Clone::clone),
            services: [
                join(&before.services, &before.services, service),
                join(&before.services, &after.services, service),
            ],
            rules: join(&before.rules, &after.rules, |rule| rule.name.clone()),
            backends: join(&before.backends, &after.backends, |backend| backend.name.clone()),
        }
    }

    /// What was made of a packet, comparable over both policies.
    pub(super) fn made(&self, which: Which, decision: &Decision) -> Made {
        let one = |slot_plus_one: u32, slots: &BTreeMap<u32, u32>| {
            slot_plus_one
                .checked_sub(1)
                .map_or(0, |slot| number(which, slots, slot) + 1)
        };
        Made {
            // Slot 0 is nobody.
            tenant: match decision.tenant {
                0 => 0,
                slot => number(which, &self.tenants, slot) + 1,
            },
            service: decision.service.checked_sub(1).map_or(0, |slot| {
                number(Which::After, &self.services[which as usize], slot) + 1
            }),
            rule: one(decision.rule, &self.rules),
            reason: decision.reason,
        }
    }

    /// The chosen back end, comparable over both policies; zero is none.
    pub(super) fn backend(&self, which: Which, decision: &Decision) -> u32 {
        let slot = decision.backend.checked_sub(1);
        slot.map_or(0, |slot| number(which, &self.backends, slot) + 1)
    }
}

fn join<Entry, Name: Ord>(
    before: &BTreeMap<u32, Entry>,
    after: &BTreeMap<u32, Entry>,
    name: impl Fn(&Entry) -> Name,
) -> BTreeMap<u32, u32> {
    let mut numbers: BTreeMap<Name, u32> = BTreeMap::new();
    for (slot, entry) in before {
        numbers.entry(name(entry)).or_insert(*slot);
    }
    let after = after.iter();
    after
        .map(|(slot, entry)| (*slot, *numbers.entry(name(entry)).or_insert(AFTER_ONLY + slot)))
        .collect()
}

fn number(which: Which, slots: &BTreeMap<u32, u32>, slot: u32) -> u32 {
    match which {
        Which::Before => slot,
        Which::After => slots.get(&slot).copied().unwrap_or(AFTER_ONLY + slot),
    }
}

/// The names behind the numbers, as the policy before the change has them where it has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Book<'a> {
    pub(super) before: &'a Directory,
    pub(super) after: &'a Directory,
}

// === impl Book ===

impl Book<'_> {
    pub(super) fn finding(&self, made: &Made) -> Finding {
        Finding {
            tenant: self.look_up(made.tenant, |names, slot| names.tenant(slot).map(str::to_owned)),
            service: self.look_up(made.service, |names, slot| {
                names.service(slot + 1).map(|service| service.name.clone())
            }),
            verdict: effect_name(made.reason.effect()).to_owned(),
            reason: made.reason.name().to_owned(),
            rule: self.look_up(made.rule, |names, slot| {
                names.rule(slot + 1).map(|rule| rule.name.clone())
            }),
        }
    }

    pub(super) fn backend(&self, plus_one: u32) -> Option<String> {
        self.look_up(plus_one, |names, slot| {
            names.backend(slot + 1).map(|backend| backend.name.clone())
        })
    }

    fn look_up(&self, plus_one: u32, name: impl Fn(&Directory, u32) -> Option<String>) -> Option<String> {
        let number = plus_one.checked_sub(1)?;
        match number.checked_sub(AFTER_ONLY) {
            Some(slot) => name(self.after, slot),
            None => name(self.before, number),
        }
    }

    /// Whether either policy has a service at an address.
    pub(super) fn is_service(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        [self.before, self.after].into_iter().any(|names| {
            let mut services = names.services.values();
            services.any(|service| service.family == family && service.addresses.contains(&address))
        })
    }
}

/// The verdict of an effect, as the report names it.
pub(super) const fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Forwarded => "forwarded",
        Effect::Passed => "passed",
        Effect::Refused => "refused",
    }
}
