//! The one decision function.
//!
//! [`judge`] takes a parsed packet, the time and a source of [`Facts`], and says what the packet gets. It changes
//! nothing: the caller makes or moves the flow, pays the charges and rewrites the packet, in that order, so that a
//! packet that is refused at any step has taken nothing from any limiter.
//!
//! Order of judgement: where to, tenant, decision, lease and quota, flow, back end, what holds off new flows, limiters.
#![forbid(unsafe_code)]

pub mod answer;
pub mod echo;
mod facts;
pub mod limiter;
pub mod related;
pub mod trie;

use crate::Reason;
use crate::abi::address::{self, Address, FlowKey};
use crate::abi::config::{
    BACKEND_PRESENT, BACKEND_REACHABLE, BackendRecord, DecisionRecord, FORWARD_LOCAL, LeaseRecord,
    NO_BACKEND, SERVICE_RESETS_INELIGIBLE, SERVICE_STATELESS, SET_WORDS, TENANT_PRESENT, TENANT_QUOTA,
    TENANT_QUOTA_NEW, TENANT_SUSPENDED, TenantRecord, answers_directly, is_forward, takes_hop,
};
use crate::abi::flow::{FLOW_ESTABLISHED, FLOW_FIN, FLOW_RST};
use crate::encapsulation::outer_bytes;
use crate::schema::MAGLEV_SLOTS;
pub use facts::{
    Clock, Decision, Facts, Flow, FlowFate, KnownFlow, Packet, Reply, Shape, TCP, TCP_ACK, TCP_FIN, TCP_RST,
    TCP_SYN, UDP,
};
use limiter::{Claim, is_free};
use trie::{Destination, Source};

/// Judges a packet on its way in.
#[inline(always)]
pub fn judge<F: Facts, C: Clock>(facts: &F, packet: &Packet, clock: C) -> Decision {
    let generation = facts.generation();
    let bank = (generation & 1) as u32;
    let mut decision = Decision::new(Reason::NotService, generation);
    match packet.shape {
        Shape::NotIp => return decision,
        Shape::BadHeader => return decision.refused(Reason::Malformed),
        Shape::BadTransport | Shape::Other | Shape::Fragment | Shape::Transport => {}
    }
    let source = trie::source(facts, bank, packet);
    if matches!(packet.shape, Shape::Transport)
        && source.tenant() != 0
        && let Some(known) = facts.known_flow(packet, generation)
        && let Some(decision) = remembered(facts, source.tenant(), &known, packet, decision, clock)
    {
        return decision;
    }
    match destination(facts, packet, generation) {
        Destination::Service(slot) => {
            decision.tenant = source.tenant();
            to_service(facts, bank, slot, packet, decision, clock)
        }
        Destination::VipWithoutPort => match packet.shape {
            Shape::BadTransport => decision.refused(Reason::Malformed),
            Shape::Fragment => decision.refused(Reason::FragmentUnsupported),
            Shape::NotIp | Shape::BadHeader | Shape::Other | Shape::Transport => decision,
        },
        Destination::Local => decision,
        Destination::Nat | Destination::Outside => {
            from_backend(facts, bank, source, packet, decision, 1, clock)
        }
        Destination::Protected => from_backend(
            facts,
            bank,
            source,
            packet,
            decision.refused(Reason::Bypass),
            1,
            clock,
        ),
    }
}

/// The destination of a packet: remembered, or by the trie.
#[inline(always)]
fn destination<F: Facts>(facts: &F, packet: &Packet, generation: u64) -> Destination {
    let has_ports = matches!(packet.shape, Shape::Transport);
    if has_ports && let Some(slot) = facts.known_service(&packet.key, generation) {
        return Destination::Service(slot);
    }
    let found = trie::destination(facts, (generation & 1) as u32, packet);
    if let Destination::Service(slot) = found {
        facts.note_service(&packet.key, generation, slot);
    }
    found
}

/// A packet of a flow that is remembered: what it would get if all were looked up, less what cannot have changed within the
/// generation. `None` where it would be refused: why, and what its record says, is found out by who looks it up.
///
/// Within a generation only next hops change of all that was asked for (see `in_place` in the agent's `pure/plan.rs`), and of
/// the rest the lease, the clock and the packet itself.
#[inline(always)]
fn remembered<F: Facts, C: Clock>(
    facts: &F,
    tenant: u32,
    known: &KnownFlow,
    packet: &Packet,
    mut decision: Decision,
    clock: C,
) -> Option<Decision> {
    let bank = (decision.generation & 1) as u32;
    if lapsed(facts.lease().everything_until_ns, clock) || packet.hop_limit <= 1 {
        return None;
    }
    decision.tenant = tenant;
    decision.service = known.service + 1;
    decision.to_service = true;
    decision.backend = known.backend + 1;
    decision.forward = known.forward;
    decision.flow = FlowFate::Remembered;
    let backend = facts.backend(bank, known.backend)?;
    if known.forward != FORWARD_LOCAL && undeliverable(facts, backend, known.forward, packet).is_some() {
        return None;
    }
    decision.is_free = known.is_free;
    decision.reason = Reason::Allowed;
    if known.is_free {
        return Some(decision);
    }
    decided(facts.decision(bank, known.decision)?, &mut decision)?;
    decision.service_group = facts.service(bank, known.service)?.limits;
    match facts.refusal(&Claim::of(&decision, packet.bytes, false), clock.now_ns()) {
        None => Some(decision),
        Some(_) => None,
    }
}

/// Judges a packet of a protocol without ports on its way in: no more of [`judge`] than such a packet meets.
#[inline(always)]
pub fn judge_portless<F: Facts>(facts: &F, packet: &Packet) -> Decision {
    let generation = facts.generation();
    let decision = Decision::new(Reason::NotService, generation);
    match trie::destination(facts, (generation & 1) as u32, packet) {
        Destination::Protected => decision.refused(Reason::Bypass),
        _ => decision,
    }
}

/// Judges a packet on its way out through the host's stack: a reply of a back end, or none of ours. The stack has
/// already taken its hop from the TTL or hop limit.
#[inline(always)]
pub fn judge_egress<F: Facts, C: Clock>(facts: &F, packet: &Packet, clock: C) -> Decision {
    let generation = facts.generation();
    let decision = Decision::new(Reason::NotService, generation);
    let bank = (generation & 1) as u32;
    if !matches!(packet.shape, Shape::Transport) {
        return decision;
    }
    let source = trie::source(facts, bank, packet);
    from_backend(facts, bank, source, packet, decision, 0, clock)
}

/// A packet to no service: a reply to one of our flows, or what `decision` says so far. Sending it on takes `hops` from its hop limit.
///
/// The flow table is asked only if the source is a back end: a hash look-up for every packet that is not ours would
/// be the dearest part of leaving it alone.
#[inline(always)]
fn from_backend<F: Facts, C: Clock>(
    facts: &F,
    bank: u32,
    source: Source,
    packet: &Packet,
    mut decision: Decision,
    hops: u8,
    clock: C,
) -> Decision {
    if !matches!(packet.shape, Shape::Transport) || !source.is_backend() {
        return decision;
    }
    let Some(reply) = facts.reply(&packet.key) else {
        return decision;
    };
    decision.tenant = reply.tenant;
    decision.service = reply.service + 1;
    decision.backend = reply.backend + 1;
    let Some(tenant) = facts.tenant(bank, reply.tenant) else {
        return decision.refused(Reason::Internal);
    };
    // An open connection obeys the policy of now: the tenant may be gone, suspended or denied since it began.
    if standing(facts, bank, tenant, reply.service, &mut decision).is_none() {
        return decision;
    }
    if let Some(reason) = stopped(tenant, &facts.lease(), clock) {
        return decision.refused(reason);
    }
    if packet.hop_limit <= hops {
        return decision.refused(Reason::HopLimit);
    }
    // What goes out through the stack, which takes no hop here, the stack splits or answers by itself.
    if hops != 0 && overfills(facts, packet, reply.client_ifindex) {
        return decision.refused(Reason::TooBig);
    }
    if let Some(service) = facts.service(bank, reply.service) {
        decision.service_group = service.limits;
    }
    if let Some(reason) = facts.refusal(&Claim::of(&decision, packet.bytes, true), clock.now_ns()) {
        return decision.refused(reason);
    }
    decision.reason = Reason::Reply;
    decision.flow = FlowFate::Kept;
    decision
}

/// Whether a packet is too big for the link of an interface. A link that is not known takes everything. Where even the
/// smallest takes the packet, none is looked up.
#[inline(always)]
fn overfills<F: Facts>(facts: &F, packet: &Packet, ifindex: u32) -> bool {
    let smallest_bytes = facts.smallest_mtu_bytes();
    if packet.segment_bytes <= smallest_bytes || smallest_bytes == 0 {
        return false;
    }
    match facts.link_mtu_bytes(ifindex) {
        Some(mtu_bytes) => packet.segment_bytes > mtu_bytes,
        None => false,
    }
}

/// The eligible set that the decision table gives a tenant for a service, or `None`. Either way the reason, the rule and
/// the shadow rule are set in `decision`.
#[inline(always)]
fn standing<F: Facts>(
    facts: &F,
    bank: u32,
    tenant: &TenantRecord,
    service: u32,
    decision: &mut Decision,
) -> Option<u32> {
    if tenant.flags & TENANT_PRESENT == 0 {
        decision.reason = Reason::UnknownTenant;
        return None;
    }
    if tenant.flags & TENANT_SUSPENDED != 0 {
        decision.reason = Reason::Suspended;
        return None;
    }
    decision.reason = Reason::Internal;
    let cell = facts.cell(bank, tenant.row, service)?;
    decided(facts.decision(bank, cell.decision)?, decision)?;
    match decision.reason {
        Reason::Allowed => Some(cell.set as u32),
        _ => None,
    }
}

/// Sets in `decision` what a record of the decision table says.
#[inline(always)]
fn decided(record: &DecisionRecord, decision: &mut Decision) -> Option<()> {
    // A record that was never written has reason zero, which names none.
    decision.reason = Reason::from_code(record.reason.wrapping_sub(1))?;
    decision.rule = record.rule;
    decision.shadow_rule = record.shadow_rule;
    decision.shadow_reason = record.shadow_reason;
    decision.pair_group = record.limits;
    Some(())
}

/// Whether a part of the lease has lapsed.
#[inline(always)]
fn lapsed<C: Clock>(until_ns: u64, clock: C) -> bool {
    until_ns != 0 && clock.now_ns() > until_ns
}

/// Why nothing of the tenant passes, open connections and replies included, although the rules allow it.
#[inline(always)]
fn stopped<C: Clock>(tenant: &TenantRecord, lease: &LeaseRecord, clock: C) -> Option<Reason> {
    if lapsed(lease.everything_until_ns, clock) {
        return Some(Reason::LeaseExpired);
    }
    if tenant.flags & TENANT_QUOTA != 0 {
        return Some(Reason::Quota);
    }
    None
}

/// Why the tenant may not open a flow now, although the rules allow it; its open ones go on.
#[inline(always)]
fn held_off<F: Facts, C: Clock>(
    facts: &F,
    bank: u32,
    set: u32,
    tenant: &TenantRecord,
    lease: &LeaseRecord,
    clock: C,
) -> Option<Reason> {
    if lapsed(lease.new_flows_until_ns, clock) {
        return Some(Reason::LeaseExpired);
    }
    if tenant.flags & TENANT_QUOTA_NEW != 0 {
        return Some(Reason::Quota);
    }
    if tenant.shed_class != 0 && facts.shed_classes(bank, set) & tenant.shed_class != 0 {
        return Some(Reason::Shed);
    }
    None
}

/// A packet of `decision.tenant`, which its source is asked for: a flow made under this generation has the same, since nothing
/// else could have come out, and strangers and the suspended cost no look-up in the flow table.
#[inline(always)]
fn to_service<F: Facts, C: Clock>(
    facts: &F,
    bank: u32,
    slot: u32,
    packet: &Packet,
    mut decision: Decision,
    clock: C,
) -> Decision {
    decision.service = slot + 1;
    decision.to_service = true;
    let Some(service) = facts.service(bank, slot) else {
        return decision.refused(Reason::Internal);
    };
    if decision.tenant == 0 {
        return decision.refused(Reason::UnknownTenant);
    }
    let Some(tenant) = facts.tenant(bank, decision.tenant) else {
        return decision.refused(Reason::Internal);
    };
    let Some(set) = standing(facts, bank, tenant, slot, &mut decision) else {
        return decision;
    };
    let lease = facts.lease();
    if let Some(reason) = stopped(tenant, &lease, clock) {
        return decision.refused(reason);
    }
    if !is_forward(service.forward) {
        return decision.refused(Reason::Internal);
    }
    if packet.hop_limit <= 1 && takes_hop(service.forward) {
        return decision.refused(Reason::HopLimit);
    }
    // Asked again with the others, and only then charged. It comes first so that a flood over it does not reach for flows, each of
    // which may cost misses of the processor's caches.
    if limiter::is_over_packet_rate(facts, decision.tenant, tenant, clock) {
        return decision.refused(Reason::PacketRate);
    }
    decision.forward = service.forward;
    decision.service_group = service.limits;
    match steer(facts, bank, set, service.flags, packet, &mut decision) {
        Some(fate) => decision.flow = fate,
        None => return decision,
    }
    if decision.flow.opens()
        && let Some(reason) = held_off(facts, bank, set, tenant, &lease, clock)
    {
        return decision.refused(reason);
    }
    decision.reason = Reason::Allowed;
    decision.is_free = is_free(tenant, &decision);
    if decision.is_free {
        return decision;
    }
    match facts.refusal(&Claim::of(&decision, packet.bytes, false), clock.now_ns()) {
        None => {}
        Some(Reason::TableFull) if may_be_stateless(facts, &decision) => {
            decision.reason = Reason::Stateless;
            decision.flow = FlowFate::Stateless;
        }
        Some(reason) => return decision.refused(reason),
    }
    decision
}

/// Whether a packet for whose flow there is no room may go by the Maglev table alone: its service says so, and nobody limits
/// how many connections are open.
#[inline(always)]
pub fn may_be_stateless<F: Facts>(facts: &F, decision: &Decision) -> bool {
    let bank = (decision.generation & 1) as u32;
    let says_so = match facts.service(bank, decision.service.wrapping_sub(1)) {
        Some(service) => service.flags & SERVICE_STATELESS != 0 && answers_directly(service.forward),
        None => false,
    };
    says_so && !limiter::counts_connections(facts, &Claim::of(decision, 0, false))
}

/// Whether the packet opens a connection where the flow entry is of an earlier one. A repeated SYN of a handshake
/// that is still under way does not: nothing else of that connection was seen.
#[inline(always)]
fn reopens(packet: &Packet, flow: &Flow) -> bool {
    packet.key.protocol == TCP
        && packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
        && flow.state & (FLOW_FIN | FLOW_RST | FLOW_ESTABLISHED) != 0
}

/// Chooses the back end: the flow's own if it is still eligible, else by the Maglev table, unless the service would rather
/// have the connection reset.
#[inline(always)]
fn steer<F: Facts>(
    facts: &F,
    bank: u32,
    set: u32,
    service_flags: u32,
    packet: &Packet,
    decision: &mut Decision,
) -> Option<FlowFate> {
    let mut fate = FlowFate::Opened;
    if let Some(flow) = &facts.flow(&packet.key) {
        if reopens(packet, flow) {
            fate = FlowFate::Reopened;
        } else if keeps(facts, bank, set, flow, decision) {
            decision.backend = flow.backend + 1;
            let same = flow.generation == decision.generation;
            return reachable(facts, bank, flow.backend, packet, decision).then_some(if same {
                FlowFate::Kept
            } else {
                FlowFate::Renewed
            });
        } else if service_flags & SERVICE_RESETS_INELIGIBLE != 0
            && packet.key.protocol == TCP
            && flow.state & FLOW_ESTABLISHED != 0
        {
            *decision = decision.refused(Reason::BackendIneligible);
            return None;
        } else {
            fate = FlowFate::Moved;
        }
    }
    let slot = crate::hash::scale(crate::hash::flow_hash(&packet.key), MAGLEV_SLOTS);
    let backend = facts.maglev(bank, set, slot);
    if backend == NO_BACKEND {
        *decision = decision.refused(Reason::NoHealthyBackend);
        return None;
    }
    decision.backend = backend as u32 + 1;
    reachable(facts, bank, backend as u32, packet, decision).then_some(fate)
}

/// Whether a flow may keep its back end: it is a member of the eligible set, the slot is still the same back end, and the
/// forward mode the same. Neither changes within a generation, so that the entry's colder half is not read for that.
#[inline(always)]
fn keeps<F: Facts>(facts: &F, bank: u32, set: u32, flow: &Flow, decision: &Decision) -> bool {
    if !is_member(facts, bank, set, flow.backend) {
        return false;
    }
    if flow.generation == decision.generation {
        return true;
    }
    let Some(backend) = facts.backend(bank, flow.backend) else {
        return false;
    };
    flow.forward == decision.forward
        && backend.address == flow.backend_address
        && backend.port_be == flow.backend_port_be
}

/// Whether an eligible set has a back end.
#[inline(always)]
fn is_member<F: Facts>(facts: &F, bank: u32, set: u32, backend: u32) -> bool {
    let Some(members) = facts.set_members(bank, set) else {
        return false;
    };
    // The remainder never changes the index of a slot that exists; it bounds the access where the verifier can see it.
    let word = members[(backend / 64) as usize % SET_WORDS];
    (word >> (backend % 64)) & 1 != 0
}

/// Whether the packet can be sent to the back end: the agent or at least the kernel knows the way to it, and the packet fits
/// its link.
#[inline(always)]
fn reachable<F: Facts>(facts: &F, bank: u32, slot: u32, packet: &Packet, decision: &mut Decision) -> bool {
    let reason = match facts.backend(bank, slot) {
        Some(backend) if backend.flags & BACKEND_PRESENT != 0 => {
            if decision.forward == FORWARD_LOCAL {
                return true;
            }
            match undeliverable(facts, backend, decision.forward, packet) {
                Some(reason) => reason,
                None => return true,
            }
        }
        _ => Reason::Internal,
    };
    *decision = decision.refused(reason);
    false
}

/// Why a packet cannot be sent on a link to the back end, if it cannot.
#[inline(always)]
fn undeliverable<F: Facts>(
    facts: &F,
    backend: &BackendRecord,
    forward: u32,
    packet: &Packet,
) -> Option<Reason> {
    let bytes = packet.segment_bytes + outer_bytes(forward, &backend.address);
    match way_mtu_bytes(facts, backend, bytes) {
        None => Some(Reason::NoNextHop),
        Some(mtu_bytes) => (bytes > mtu_bytes).then_some(Reason::TooBig),
    }
}

/// The MTU of the way to a back end: the agent's if it knows one, else the kernel's.
#[inline(always)]
fn way_mtu_bytes<F: Facts>(facts: &F, backend: &BackendRecord, bytes: u32) -> Option<u32> {
    if backend.flags & BACKEND_REACHABLE != 0 {
        return Some(backend.mtu_bytes);
    }
    facts.route_mtu_bytes(&backend.address, bytes)
}

/// The `FLOW_*` bits that a packet adds to its direction of a flow.
#[inline(always)]
pub const fn flow_bits(packet: &Packet) -> u32 {
    if packet.key.protocol != TCP {
        return FLOW_ESTABLISHED;
    }
    let mut bits = 0;
    if packet.tcp_flags & TCP_FIN != 0 {
        bits |= FLOW_FIN;
    }
    if packet.tcp_flags & TCP_RST != 0 {
        bits |= FLOW_RST;
    }
    if packet.tcp_flags & TCP_SYN == 0 {
        bits |= FLOW_ESTABLISHED;
    }
    bits
}

/// The 5-tuple of the packets that a back end sends back on a flow.
///
/// `nat`: address and port in place of the client's, or `None` where the back end sees the client itself.
#[inline(always)]
pub const fn reply_key(
    client: &FlowKey,
    backend_address: Address,
    backend_port_be: u16,
    nat: Option<(Address, u16)>,
) -> FlowKey {
    let (destination, destination_port_be) = match nat {
        Some((address, port_be)) => (address, port_be),
        None => (client.source, client.source_port_be),
    };
    FlowKey {
        source: backend_address,
        destination,
        source_port_be: backend_port_be,
        destination_port_be,
        protocol: client.protocol,
    }
}

/// Whether a flow is IPv4.
#[inline(always)]
pub const fn is_v4(key: &FlowKey) -> bool {
    address::is_v4(&key.destination)
}
