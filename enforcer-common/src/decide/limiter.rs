//! Rate limiting by the generic cell rate algorithm, one 64-bit word per limiter.
//!
//! The word is the theoretical arrival time (TAT): when the debt of all admitted units is paid. A packet conforms if
//! the TAT after it lies at most `burst_ns` ahead of now (ITU-T I.371; the virtual scheduling form).
//!
//! Checking and paying are two steps, so that a packet pays either every limiter or none:
//! [`check`] reads, the caller makes sure of everything else, then [`Charge::paid`] says how the word changes.
//!
//! Over-admission across CPUs. Between a check and its payment other CPUs may check too. Each CPU has at most one
//! packet between the two, and a payment never loses another's (it adds, or it replaces exactly the word that was
//! read), so at most one packet per further CPU passes beyond the burst, and what it took stays owed: the long-run
//! rate is exact. An over-limit packet reads and does not write.
#![forbid(unsafe_code)]

use super::Facts;
use crate::abi::config::{LimitRecord, MAX_UNITS, STEP_SHIFT};
use crate::schema::LIMITERS_PER_TENANT;

/// The limiters of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Limiter {
    /// New connections.
    Connections = 0,
    /// Packets from the client.
    Packets = 1,
    /// Bytes from the client.
    Bytes = 2,
    /// Bytes to the client.
    ResponseBytes = 3,
    /// Refused packets that are answered: see [`super::answer`]. It is no limit of the policy.
    Answers = 4,
}

impl Limiter {
    /// Every limiter, by number.
    pub const ALL: [Self; 5] = [
        Self::Connections,
        Self::Packets,
        Self::Bytes,
        Self::ResponseBytes,
        Self::Answers,
    ];

    /// Index of its word.
    #[inline(always)]
    pub const fn index(self, tenant: u32) -> u32 {
        tenant * LIMITERS_PER_TENANT + self as u32
    }
}

/// What one packet owes one limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The limiter's index.
    pub index: u32,
    /// The TAT that was read.
    pub seen_ns: u64,
    /// What is owed; zero: nothing.
    pub cost_ns: u64,
}

/// How to pay a [`Charge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payment {
    /// Nothing is owed.
    Nothing,
    /// Add this atomically: the word lies ahead of now, so adding loses nothing.
    Add(u64),
    /// Replace the seen word by this one if it still stands there; if it does not, another CPU has just brought it up
    /// to now, so add the cost.
    Replace(u64),
}

impl Charge {
    /// Owes nothing.
    pub const NONE: Self = Self {
        index: 0,
        seen_ns: 0,
        cost_ns: 0,
    };

    /// How the limiter's word changes.
    #[inline(always)]
    pub const fn payment(&self, now_ns: u64) -> Payment {
        if self.cost_ns == 0 {
            Payment::Nothing
        } else if self.seen_ns >= now_ns {
            Payment::Add(self.cost_ns)
        } else {
            Payment::Replace(now_ns + self.cost_ns)
        }
    }
}

/// The cost of `units` in nanoseconds.
#[inline(always)]
pub const fn cost_ns(limit: &LimitRecord, units: u32) -> u64 {
    let units = if units as u64 > MAX_UNITS {
        MAX_UNITS
    } else {
        units as u64
    };
    // The compiler of policies keeps step_fp at or below MAX_STEP_FP; wrapping only spares the overflow check.
    units.wrapping_mul(limit.step_fp) >> STEP_SHIFT
}

/// What the packet owes, or `None` if it is over the limit.
#[inline(always)]
pub fn check<F: Facts>(
    facts: &F,
    tenant: u32,
    limiter: Limiter,
    limit: &LimitRecord,
    units: u32,
    now_ns: u64,
) -> Option<Charge> {
    if limit.step_fp == 0 {
        return Some(Charge::NONE);
    }
    let index = limiter.index(tenant);
    let seen_ns = facts.limiter(index);
    let cost_ns = cost_ns(limit, units);
    let ahead_ns = seen_ns.saturating_sub(now_ns);
    if ahead_ns.saturating_add(cost_ns) > limit.burst_ns {
        return None;
    }
    Some(Charge {
        index,
        seen_ns,
        cost_ns,
    })
}
