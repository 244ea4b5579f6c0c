//! ICMP errors about flows: whom they concern.
//!
//! A router or host that cannot deliver a packet says so to its sender and quotes the packet. Where addresses were
//! translated, or where several back ends have one address, only the flow tables know who that is. What is no error about
//! a flow is judged as any other packet.
#![forbid(unsafe_code)]

use super::answer;
use super::trie::{self, Destination};
use super::{Decision, Facts, Packet, standing, stopped};
use crate::Reason;
use crate::abi::address::{Address, FlowKey};
use crate::abi::config::{FORWARD_LOCAL, is_forward, takes_hop};

/// Judges an ICMP error that quotes a packet of this 5-tuple; `None` if it is about no flow.
///
/// The error is for the sender of the quoted packet. If that is a service, it is for the flow's back end; otherwise for the
/// client whose packets a back end could not be given.
#[inline(always)]
pub fn judge<F: Facts>(facts: &F, packet: &Packet, quoted: &FlowKey, now_ns: u64) -> Option<Decision> {
    if packet.key.destination != quoted.source {
        return None;
    }
    let generation = facts.generation();
    let bank = (generation & 1) as u32;
    let mut decision = Decision::new(Reason::Related, generation);
    let sender = quoted.reversed();
    match trie::destination(facts, bank, packet) {
        Destination::VipWithoutPort => {
            let flow = facts.flow(&sender)?;
            decision.tenant = flow.tenant;
            decision.service = flow.service + 1;
            decision.to_service = true;
            decision.backend = flow.backend + 1;
            decision.forward = flow.forward;
            if let Some(refused) = undeliverable(facts, bank, packet, &decision, &flow.backend_address) {
                return Some(decision.refused(refused));
            }
        }
        _ => {
            let reply = facts.reply(&sender)?;
            decision.tenant = reply.tenant;
            decision.service = reply.service + 1;
            decision.backend = reply.backend + 1;
            if packet.hop_limit <= 1 {
                return Some(decision.refused(Reason::HopLimit));
            }
        }
    }
    Some(admitted(facts, bank, decision, now_ns))
}

/// Why the back end of a flow cannot be given an error, if so.
#[inline(always)]
fn undeliverable<F: Facts>(
    facts: &F,
    bank: u32,
    packet: &Packet,
    decision: &Decision,
    flow_address: &Address,
) -> Option<Reason> {
    if !is_forward(decision.forward) {
        return Some(Reason::Internal);
    }
    if packet.hop_limit <= 1 && takes_hop(decision.forward) {
        return Some(Reason::HopLimit);
    }
    if decision.forward == FORWARD_LOCAL {
        return None;
    }
    match facts.backend(bank, decision.backend - 1) {
        // The slot may be another's by now.
        Some(backend) if backend.address == *flow_address => {
            super::undeliverable(facts, backend, decision.forward, packet)
        }
        _ => Some(Reason::NoNextHop),
    }
}

/// Whether the tenant's connections still stand, and may have one more error sent on: these are limited with the answers
/// to refused packets, since whoever can guess a 5-tuple can send them.
#[inline(always)]
fn admitted<F: Facts>(facts: &F, bank: u32, mut decision: Decision, now_ns: u64) -> Decision {
    let Some(tenant) = facts.tenant(bank, decision.tenant) else {
        return decision.refused(Reason::Internal);
    };
    if standing(facts, bank, tenant, decision.service - 1, &mut decision).is_none() {
        return decision;
    }
    if let Some(reason) = stopped(tenant, &facts.lease(), now_ns) {
        return decision.refused(reason);
    }
    if answer::charge(facts, decision.tenant, now_ns).is_none() {
        return decision.refused(Reason::RelatedRate);
    }
    decision.reason = Reason::Related;
    decision
}
