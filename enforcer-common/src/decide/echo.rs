//! ICMP echo requests to a service's address: who is answered.
//!
//! The address answers if one of its services says so, and whoever may use such a service: the rules, the constraints and
//! what stops a tenant hold as for a packet to the service, and so does the want of a healthy back end. What holds off new
//! flows does not, since none is opened. Answers are limited with those to refused packets, and never longer than the
//! request, so that nobody can be flooded by way of them.
#![forbid(unsafe_code)]

use super::trie::{self, MAX_ECHO_SERVICES};
use super::{Decision, Facts, Packet, answer, standing, stopped};
use crate::Reason;
use crate::abi::config::TenantRecord;

/// Judges an echo request; `None` if no service has its destination answer: then it is judged as any other packet.
#[inline(always)]
pub fn judge<F: Facts>(facts: &F, packet: &Packet, now_ns: u64) -> Option<Decision> {
    let generation = facts.generation();
    let bank = (generation & 1) as u32;
    let node = trie::echo_node(facts, bank, packet)?;
    let mut decision = Decision::new(Reason::UnknownTenant, generation);
    decision.service = trie::echo_service(facts, bank, node, 0)? + 1;
    decision.to_service = true;
    decision.tenant = trie::source(facts, bank, packet).tenant();
    // A tenant may be everybody, and what is no host's address can still not be answered.
    if decision.tenant == 0 || !answer::is_host(&packet.key.source) {
        return Some(decision.refused(Reason::UnknownTenant));
    }
    let Some(tenant) = facts.tenant(bank, decision.tenant) else {
        return Some(decision.refused(Reason::Internal));
    };
    for index in 0..MAX_ECHO_SERVICES {
        let Some(slot) = trie::echo_service(facts, bank, node, index) else {
            break;
        };
        decision.service = slot + 1;
        if standing(facts, bank, tenant, slot, &mut decision).is_some() {
            return Some(admitted(facts, tenant, decision, now_ns));
        }
    }
    Some(decision)
}

/// Whether a tenant that may use the service is answered now.
#[inline(always)]
fn admitted<F: Facts>(facts: &F, tenant: &TenantRecord, mut decision: Decision, now_ns: u64) -> Decision {
    if let Some(reason) = stopped(tenant, &facts.lease(), now_ns) {
        return decision.refused(reason);
    }
    if answer::charge(facts, decision.tenant, now_ns).is_none() {
        return decision.refused(Reason::EchoRate);
    }
    decision.reason = Reason::Echo;
    decision
}
