//! Rate limiting by the generic cell rate algorithm, one 64-bit word per limiter.
//!
//! The word is the theoretical arrival time (TAT): when the debt of all admitted units is paid. A packet conforms if
//! the TAT after it lies at most `burst_ns` ahead of now (ITU-T I.371; the virtual scheduling form).
//!
//! Limits are held by a tenant, by a tenant on one service, and by a service. Checking and paying are two steps, so that a
//! packet pays either every limiter of all of them or none: [`refusal`] reads, the caller makes sure of everything
//! else, then [`settle`] names what is owed, and [`Charge::payment`] says how the word changes.
//!
//! Over-admission across CPUs. Between a check and its payment other CPUs may check too. Each CPU has at most one
//! packet between the two, and a payment never loses another's (it adds, or it replaces exactly the word that it has
//! read), so at most one packet per further CPU passes beyond the burst, and what it took stays owed: the long-run
//! rate is exact. An over-limit packet reads and does not write.
#![forbid(unsafe_code)]

use super::{Clock, Decision, Facts, FlowFate};
use crate::Reason;
use crate::abi::config::{LimitRecord, LimitsRecord, MAX_UNITS, STEP_SHIFT, TENANT_FAIR_SHARE, TenantRecord};
use crate::schema::{LIMITERS_PER_HOLDER, tenant_holder};

/// The limiters of one holder of limits: a tenant, a tenant on a service, or a service.
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
    pub const fn index(self, holder: u32) -> u32 {
        holder * LIMITERS_PER_HOLDER + self as u32
    }
}

/// What one packet owes one limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The limiter's index.
    pub index: u32,
    /// What is owed; zero: nothing.
    pub cost_ns: u64,
}

/// How to pay a [`Charge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payment {
    /// Add this atomically: the word lies ahead of now, so adding loses nothing.
    Add(u64),
    /// Replace the seen word by this one if it still stands there; if it does not, another CPU has just brought it up
    /// to now, so add the cost.
    Replace(u64),
}

impl Charge {
    #[inline(always)]
    pub(super) const fn of(holder: u32, limiter: Limiter, limit: &LimitRecord, units: u32) -> Self {
        Self {
            index: limiter.index(holder),
            cost_ns: cost_ns(limit, units),
        }
    }

    /// How the limiter's word changes from what stands there.
    #[inline(always)]
    pub const fn payment(&self, seen_ns: u64, now_ns: u64) -> Payment {
        if seen_ns >= now_ns {
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
    holder: u32,
    limiter: Limiter,
    limit: &LimitRecord,
    units: u32,
    now_ns: u64,
) -> Option<Charge> {
    let charge = Charge::of(holder, limiter, limit, units);
    if limit.step_fp == 0 {
        return Some(charge);
    }
    let ahead_ns = facts.limiter(charge.index).saturating_sub(now_ns);
    if ahead_ns.saturating_add(charge.cost_ns) > limit.burst_ns {
        return None;
    }
    Some(charge)
}

/// A packet before those who hold limits on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    bank: u32,
    /// Tenant slot.
    tenant: u32,
    /// The limit group of the tenant on the service; zero is none.
    pair_group: u32,
    /// The limit group of the service; zero is none.
    service_group: u32,
    kind: Kind,
    bytes: u32,
}

/// What a packet does, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// Belongs to an open connection.
    Continues = 0,
    /// Opens a connection that is counted already.
    Reopens = 1,
    /// Opens a connection.
    Opens = 2,
    /// Comes from a back end.
    Replies = 3,
}

impl Claim {
    /// Of a packet that was decided on but for limits.
    #[inline(always)]
    pub(super) const fn of(decision: &Decision, bytes: u32, is_reply: bool) -> Self {
        Self {
            bank: (decision.generation & 1) as u32,
            tenant: decision.tenant,
            pair_group: decision.pair_group,
            service_group: decision.service_group,
            kind: match decision.flow {
                _ if is_reply => Kind::Replies,
                FlowFate::Opened | FlowFate::Stateless => Kind::Opens,
                FlowFate::Reopened => Kind::Reopens,
                FlowFate::None
                | FlowFate::Kept
                | FlowFate::Remembered
                | FlowFate::Renewed
                | FlowFate::Moved => Kind::Continues,
            },
            bytes,
        }
    }

    /// Of a packet that is certain to go out.
    #[inline(always)]
    pub const fn due(decision: &Decision, bytes: u32) -> Self {
        Self::of(decision, bytes, matches!(decision.reason, Reason::Reply))
    }

    /// As two words, to be handed to a function of its own in the kernel: the verifier then walks through what it does once
    /// for each call, and not for each way that led there.
    #[inline(always)]
    pub const fn packed(&self) -> [u64; 2] {
        [
            self.bytes as u64 | (self.kind as u64) << 32 | (self.bank as u64) << 40,
            self.tenant as u64 | (self.pair_group as u64) << 32 | (self.service_group as u64) << 48,
        ]
    }

    /// The claim of [`Claim::packed`] words.
    #[inline(always)]
    pub const fn unpacked([what, whose]: [u64; 2]) -> Self {
        Self {
            bank: (what >> 40) as u32 & 1,
            tenant: whose as u32,
            pair_group: (whose >> 32) as u32 & 0xffff,
            service_group: (whose >> 48) as u32,
            kind: match (what >> 32) & 3 {
                0 => Kind::Continues,
                1 => Kind::Reopens,
                2 => Kind::Opens,
                _ => Kind::Replies,
            },
            bytes: what as u32,
        }
    }

    const fn is_reply(&self) -> bool {
        matches!(self.kind, Kind::Replies)
    }
}

/// Why those who hold limits on a packet let it not pass, if they do not: the tenant, the tenant on the service, the service,
/// in this order, and then the tenant's share of the flow table. All of them are asked before anyone is paid, so that a
/// refused packet takes nothing from any of them.
#[inline(always)]
pub fn refusal<F: Facts>(facts: &F, claim: &Claim, now_ns: u64) -> Option<Reason> {
    let Some(tenant) = facts.tenant(claim.bank, claim.tenant) else {
        return Some(Reason::Internal);
    };
    match refusal_of(facts, tenant_holder(claim.tenant), &tenant.limits, claim, now_ns) {
        Some(Reason::ConnectionRate) if tenant.flags & TENANT_FAIR_SHARE != 0 => {
            return Some(Reason::FairShare);
        }
        Some(reason) => return Some(reason),
        None => {}
    }
    if claim.pair_group != 0 {
        let Some(limits) = facts.limits(claim.bank, claim.pair_group) else {
            return Some(Reason::Internal);
        };
        if let Some(reason) = refusal_of(facts, claim.pair_group, limits, claim, now_ns) {
            return Some(reason);
        }
    }
    if claim.service_group != 0 {
        let Some(limits) = facts.limits(claim.bank, claim.service_group) else {
            return Some(Reason::Internal);
        };
        match refusal_of(facts, claim.service_group, limits, claim, now_ns) {
            Some(Reason::ConnectionRate | Reason::Concurrency) => return Some(Reason::ServiceConnections),
            Some(_) => return Some(Reason::ServiceRate),
            None => {}
        }
    }
    let share = facts.flows_per_tenant();
    let opens = matches!(claim.kind, Kind::Opens);
    if opens && share != 0 && facts.open_connections(tenant_holder(claim.tenant)) >= share {
        return Some(Reason::TableFull);
    }
    None
}

/// Whether nobody limits a packet of an open connection to a service: it asks no limiter and owes none.
#[inline(always)]
pub(super) const fn is_free(tenant: &TenantRecord, decision: &Decision) -> bool {
    let limits = &tenant.limits;
    !decision.flow.opens()
        && decision.pair_group == 0
        && decision.service_group == 0
        && limits.packets.step_fp | limits.bytes.step_fp == 0
}

/// Whether the tenant is over its own rate of packets.
#[inline(always)]
pub(super) fn is_over_packet_rate<F: Facts, C: Clock>(
    facts: &F,
    slot: u32,
    tenant: &TenantRecord,
    clock: C,
) -> bool {
    let limit = &tenant.limits.packets;
    limit.step_fp != 0
        && check(
            facts,
            tenant_holder(slot),
            Limiter::Packets,
            limit,
            1,
            clock.now_ns(),
        )
        .is_none()
}

/// Whether someone limits how many connections are open at once: then each needs an entry, to be counted.
#[inline(always)]
pub fn counts_connections<F: Facts>(facts: &F, claim: &Claim) -> bool {
    let counts = |limits: Option<&LimitsRecord>| match limits {
        Some(limits) => limits.concurrent_limit != 0,
        None => false,
    };
    let of_tenant = match facts.tenant(claim.bank, claim.tenant) {
        Some(tenant) => tenant.limits.concurrent_limit != 0,
        None => false,
    };
    of_tenant
        || (claim.pair_group != 0 && counts(facts.limits(claim.bank, claim.pair_group)))
        || (claim.service_group != 0 && counts(facts.limits(claim.bank, claim.service_group)))
}

/// Why one holder of limits lets a packet not pass, if it does not.
#[inline(always)]
fn refusal_of<F: Facts>(
    facts: &F,
    holder: u32,
    limits: &LimitsRecord,
    claim: &Claim,
    now_ns: u64,
) -> Option<Reason> {
    let conforms =
        |limiter, limit: &LimitRecord, units| check(facts, holder, limiter, limit, units, now_ns).is_some();
    if claim.is_reply() {
        let conforms = conforms(Limiter::ResponseBytes, &limits.response_bytes, claim.bytes);
        return if conforms {
            None
        } else {
            Some(Reason::ResponseRate)
        };
    }
    if !matches!(claim.kind, Kind::Continues) && !conforms(Limiter::Connections, &limits.connections, 1) {
        return Some(Reason::ConnectionRate);
    }
    if matches!(claim.kind, Kind::Opens)
        && limits.concurrent_limit != 0
        && facts.open_connections(holder) >= limits.concurrent_limit
    {
        return Some(Reason::Concurrency);
    }
    if !conforms(Limiter::Packets, &limits.packets, 1) {
        return Some(Reason::PacketRate);
    }
    if !conforms(Limiter::Bytes, &limits.bytes, claim.bytes) {
        return Some(Reason::ByteRate);
    }
    None
}

/// Has a packet that goes out pay those who hold limits on it.
///
/// Nothing is kept from [`refusal`] but who that is: a packet that is still refused, as when a table is full, leaves nothing
/// to be given back.
#[inline(always)]
pub fn settle<F: Facts>(facts: &F, claim: &Claim, mut pay: impl FnMut(Charge)) {
    if let Some(tenant) = facts.tenant(claim.bank, claim.tenant) {
        owe(tenant_holder(claim.tenant), &tenant.limits, claim, &mut pay);
    }
    if claim.pair_group != 0
        && let Some(limits) = facts.limits(claim.bank, claim.pair_group)
    {
        owe(claim.pair_group, limits, claim, &mut pay);
    }
    if claim.service_group != 0
        && let Some(limits) = facts.limits(claim.bank, claim.service_group)
    {
        owe(claim.service_group, limits, claim, &mut pay);
    }
}

/// What a packet owes one holder of limits.
#[inline(always)]
fn owe(holder: u32, limits: &LimitsRecord, claim: &Claim, pay: &mut impl FnMut(Charge)) {
    let mut due = |limiter, limit: &LimitRecord, units| {
        if limit.step_fp != 0 {
            pay(Charge::of(holder, limiter, limit, units));
        }
    };
    if claim.is_reply() {
        due(Limiter::ResponseBytes, &limits.response_bytes, claim.bytes);
        return;
    }
    if !matches!(claim.kind, Kind::Continues) {
        due(Limiter::Connections, &limits.connections, 1);
    }
    due(Limiter::Packets, &limits.packets, 1);
    due(Limiter::Bytes, &limits.bytes, claim.bytes);
}
