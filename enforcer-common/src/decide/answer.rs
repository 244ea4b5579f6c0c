//! What goes back to the sender of a packet that is refused.
//!
//! It is found after the judgement and changes nothing of it. Answers have a limiter of their own for each tenant, and one
//! for all strangers together: a balancer that answers everything would be a tool to flood others with, and whoever
//! is answered less often than asked still learns what is wrong.
#![forbid(unsafe_code)]

use super::limiter::{self, Charge, Limiter};
use super::{Decision, Facts, Packet, Shape, TCP, TCP_RST, way_mtu_bytes};
use crate::abi::address::{self, Address};
use crate::abi::config::{SERVICE_PROHIBITS, SERVICE_RESETS};
use crate::abi::reason::Reason;
use crate::encapsulation::outer_bytes;
use crate::schema::tenant_holder;

/// What goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Answer {
    /// Nothing.
    None = 0,
    /// A TCP segment that resets the connection (RFC 9293, 3.10.7).
    Reset = 1,
    /// ICMP: communication administratively prohibited (RFC 1812, 5.2.7.1; RFC 4443, 3.1).
    Prohibited = 2,
    /// ICMP: the packet is too big (RFC 1191, RFC 8201).
    TooBig = 3,
}

impl Answer {
    /// The answer with this number; no such number is no answer.
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Reset,
            2 => Self::Prohibited,
            3 => Self::TooBig,
            _ => Self::None,
        }
    }
}

/// What goes back to the sender of a packet that got this decision.
///
/// A packet over a rate of packets or bytes is not answered: it belongs to an open connection, which goes on. Nor is one
/// that cannot be read whole, or a reset. A back end is told one thing only: that its reply is too big for the client's link.
#[inline(always)]
pub fn kind<F: Facts>(facts: &F, decision: &Decision, packet: &Packet) -> Answer {
    // Before anything is looked up: these come in floods.
    if matches!(
        decision.reason,
        Reason::PacketRate | Reason::ByteRate | Reason::ServiceRate
    ) {
        return Answer::None;
    }
    let may_be_answered = (decision.to_service || matches!(decision.reason, Reason::TooBig))
        && matches!(packet.shape, Shape::Transport)
        && packet.tcp_flags & TCP_RST == 0
        && is_host(&packet.key.source);
    if !may_be_answered {
        return Answer::None;
    }
    let bank = (decision.generation & 1) as u32;
    let flags = match facts.service(bank, decision.service - 1) {
        Some(service) => service.flags,
        None => 0,
    };
    match decision.reason {
        Reason::TooBig => Answer::TooBig,
        Reason::BackendIneligible => Answer::Reset,
        Reason::UnknownTenant
        | Reason::NoRule
        | Reason::RuleDeny
        | Reason::Suspended
        | Reason::OutsideSchedule
        | Reason::LeaseExpired
        | Reason::ConnectionRate
        | Reason::FairShare
        | Reason::Concurrency
        | Reason::ServiceConnections
        | Reason::Quota
        | Reason::Shed
        | Reason::NoCompliantBackend
        | Reason::NoHealthyBackend
        | Reason::NoNextHop => {
            if flags & SERVICE_RESETS != 0 && packet.key.protocol == TCP {
                Answer::Reset
            } else if flags & (SERVICE_RESETS | SERVICE_PROHIBITS) != 0 {
                Answer::Prohibited
            } else {
                Answer::None
            }
        }
        _ => Answer::None,
    }
}

/// Whether an address is that of one host: nothing may be sent in answer to any other (RFC 1122, 3.2.2; RFC 4443, 2.4).
#[inline(always)]
pub(super) const fn is_host(source: &Address) -> bool {
    let last = u32::from_be(source[3]);
    if address::is_v4(source) {
        // Neither this network nor loopback nor multicast nor anything above.
        let first = last >> 24;
        return first != 0 && first != 127 && first < 224;
    }
    let first = u32::from_be(source[0]);
    let nearly_zero = source[0] == 0 && source[1] == 0 && source[2] == 0 && last <= 1;
    first >> 24 != 0xff && !nearly_zero
}

/// What an answer owes, or `None` if the tenant, or the strangers, have had as many as there may be.
#[inline(always)]
pub fn charge<F: Facts>(facts: &F, tenant: u32, now_ns: u64) -> Option<Charge> {
    let limit = facts.answers();
    if limit.step_fp == 0 {
        return None;
    }
    limiter::check(facts, tenant_holder(tenant), Limiter::Answers, &limit, 1, now_ns)
}

/// What an ICMP error that is sent on, or an answered echo request, owes: it has been admitted as an answer would have been.
#[inline(always)]
pub fn owed<F: Facts>(facts: &F, tenant: u32) -> Charge {
    Charge::of(tenant_holder(tenant), Limiter::Answers, &facts.answers(), 1)
}

/// The largest packet that would have fitted, for [`Answer::TooBig`].
#[inline(always)]
pub fn fitting_bytes<F: Facts>(facts: &F, decision: &Decision, packet: &Packet) -> u32 {
    if !decision.to_service {
        return match facts.reply(&packet.key) {
            Some(reply) => facts.link_mtu_bytes(reply.client_ifindex).unwrap_or(0),
            None => 0,
        };
    }
    let bank = (decision.generation & 1) as u32;
    match facts.backend(bank, decision.backend.wrapping_sub(1)) {
        Some(backend) => {
            let outer_bytes = outer_bytes(decision.forward, &backend.address);
            let mtu_bytes = way_mtu_bytes(facts, backend, packet.segment_bytes + outer_bytes);
            mtu_bytes.unwrap_or(0).saturating_sub(outer_bytes)
        }
        None => 0,
    }
}
