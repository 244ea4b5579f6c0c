//! The one decision function.
//!
//! [`judge`] takes a parsed packet, the time and a source of [`Facts`], and says what the packet gets. It changes
//! nothing: the caller makes or moves the flow, pays the charges and rewrites the packet, in that order, so that a
//! packet that is refused at any step has taken nothing from any limiter.
//!
//! Order of judgement: where to, flow, tenant, decision, lease and quota, back end, what holds off new flows, limiters.
#![forbid(unsafe_code)]

pub mod limiter;
pub mod trie;

use crate::Reason;
use crate::abi::address::{self, Address, FlowKey};
use crate::abi::config::{
    BACKEND_PRESENT, BACKEND_REACHABLE, BackendRecord, DecisionCell, DecisionRecord, FORWARD_DNAT,
    FORWARD_L2DSR, FORWARD_NAT, LeaseRecord, NO_BACKEND, SET_WORDS, ServiceRecord, TENANT_PRESENT,
    TENANT_QUOTA, TENANT_QUOTA_NEW, TENANT_SUSPENDED, TenantRecord,
};
use crate::abi::flow::{FLOW_ESTABLISHED, FLOW_FIN, FLOW_RST};
use crate::schema::MAGLEV_SLOTS;
use limiter::{Charge, Limiter};
use trie::{Destination, Source};

/// IP protocol number of TCP.
pub const TCP: u32 = 6;
/// IP protocol number of UDP.
pub const UDP: u32 = 17;

/// TCP flag FIN.
pub const TCP_FIN: u8 = 0x01;
/// TCP flag SYN.
pub const TCP_SYN: u8 = 0x02;
/// TCP flag RST.
pub const TCP_RST: u8 = 0x04;
/// TCP flag ACK.
pub const TCP_ACK: u8 = 0x10;

/// How much of the packet could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No IP packet: ARP and the like.
    NotIp,
    /// The IP header is truncated or its lengths contradict the frame's.
    BadHeader,
    /// The IP header is sound, but what follows cannot be walked or is too short.
    BadTransport,
    /// Some other protocol than TCP and UDP.
    Other,
    /// A fragment other than a whole datagram.
    Fragment,
    /// TCP or UDP with both ports.
    Transport,
}

/// What the judgement needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The 5-tuple. Addresses are valid unless the shape is `NotIp` or `BadHeader`, ports only for `Transport`.
    pub key: FlowKey,
    /// How much could be read.
    pub shape: Shape,
    /// TCP flags, zero for UDP.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes from the IP header on, as the frame carries them.
    pub bytes: u32,
}

/// The part of a flow's state that the judgement reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Generation under which it was last judged.
    pub generation: u64,
    /// Tenant slot.
    pub tenant: u32,
    /// Deciding rule plus one, or zero.
    pub rule: u32,
    /// Back-end slot.
    pub backend: u32,
    /// Back-end address.
    pub backend_address: Address,
    /// Back-end port.
    pub backend_port_be: u16,
    /// `FLOW_*` bits of the client's direction.
    pub state: u32,
    /// The `FORWARD_*` code that it was set up for.
    pub forward: u32,
}

/// The part of a reply entry that the judgement reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Tenant slot.
    pub tenant: u32,
    /// Service slot.
    pub service: u32,
    /// Back-end slot.
    pub backend: u32,
}

/// Where the judgement looks things up. Configuration is asked for by bank; an index beyond a table answers `None`.
pub trait Facts {
    /// The live generation.
    fn generation(&self) -> u64;
    /// Entry `byte` of trie node `node`; zero where there is none.
    fn trie_entry(&self, bank: u32, node: u32, byte: u8) -> u32;
    /// A tenant.
    fn tenant(&self, bank: u32, slot: u32) -> Option<&TenantRecord>;
    /// A service.
    fn service(&self, bank: u32, slot: u32) -> Option<&ServiceRecord>;
    /// What a row of tenants says about a service.
    fn cell(&self, bank: u32, row: u32, service: u32) -> Option<DecisionCell>;
    /// The decision that a cell names.
    fn decision(&self, bank: u32, number: u16) -> Option<&DecisionRecord>;
    /// The agent's lease.
    fn lease(&self) -> LeaseRecord;
    /// Service classes that are shed on an eligible set, a bit for each; none where there is no such set.
    fn shed_classes(&self, bank: u32, set: u32) -> u64;
    /// Members of an eligible set.
    fn set_members(&self, bank: u32, set: u32) -> Option<&[u64; SET_WORDS]>;
    /// A slot of a set's Maglev table; [`NO_BACKEND`] where there is none.
    fn maglev(&self, bank: u32, set: u32, slot: u32) -> u16;
    /// A back end.
    fn backend(&self, bank: u32, slot: u32) -> Option<&BackendRecord>;
    /// The flow of a client's 5-tuple.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
    /// The flow whose replies have this 5-tuple.
    fn reply(&self, key: &FlowKey) -> Option<Reply>;
    /// A limiter's theoretical arrival time.
    fn limiter(&self, index: u32) -> u64;
    /// Connections that the tenant has open.
    fn open_connections(&self, tenant: u32) -> u64;
}

/// What becomes of the flow entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowFate {
    /// There is none and none is made.
    None,
    /// Unchanged but for its counters.
    Kept,
    /// Judged anew under this generation; same back end.
    Renewed,
    /// Judged anew; another back end, since its own is no longer eligible.
    Moved,
    /// The client opened a new connection on the 5-tuple of one that is closing.
    Reopened,
    /// Made.
    Opened,
}

impl FlowFate {
    /// Whether the packet begins a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(self) -> bool {
        matches!(self, Self::Opened | Self::Reopened)
    }
}

/// What a packet gets, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why. [`Reason::effect`] says whether the packet is forwarded, passed or dropped.
    pub reason: Reason,
    /// The generation that decided.
    pub generation: u64,
    /// Tenant slot; zero where none is known.
    pub tenant: u32,
    /// Service slot plus one; zero where there is none.
    pub service: u32,
    /// Deciding rule plus one; zero where none decided.
    pub rule: u32,
    /// Back-end slot plus one; zero where none was chosen.
    pub backend: u32,
    /// A `FORWARD_*` code, zero where nothing is forwarded to a back end.
    pub forward: u32,
    /// What becomes of the flow entry.
    pub flow: FlowFate,
    /// Shadow rule that would have decided otherwise, plus one, or zero; only where the decision table was asked.
    pub shadow_rule: u32,
    /// What that rule would have answered.
    pub shadow_reason: u32,
    /// To be paid once the packet is certain to go out.
    pub charges: [Charge; 3],
}

impl Decision {
    const fn new(reason: Reason, generation: u64) -> Self {
        Self {
            reason,
            generation,
            tenant: 0,
            service: 0,
            rule: 0,
            backend: 0,
            forward: 0,
            flow: FlowFate::None,
            shadow_rule: 0,
            shadow_reason: 0,
            charges: [Charge::NONE; 3],
        }
    }

    /// The same packet refused after all: nothing is charged and no flow is made.
    #[inline(always)]
    #[must_use]
    pub const fn refused(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self.flow = FlowFate::None;
        self.charges = [Charge::NONE; 3];
        self
    }
}

/// Judges a packet on its way in.
#[inline(always)]
pub fn judge<F: Facts>(facts: &F, packet: &Packet, now_ns: u64) -> Decision {
    let generation = facts.generation();
    let bank = (generation & 1) as u32;
    let decision = Decision::new(Reason::NotService, generation);
    match packet.shape {
        Shape::NotIp => return decision,
        Shape::BadHeader => return decision.refused(Reason::Malformed),
        Shape::BadTransport | Shape::Other | Shape::Fragment | Shape::Transport => {}
    }
    match trie::destination(facts, bank, packet) {
        Destination::Service(slot) => to_service(facts, bank, slot, packet, decision, now_ns),
        Destination::VipWithoutPort => match packet.shape {
            Shape::BadTransport => decision.refused(Reason::Malformed),
            Shape::Fragment => decision.refused(Reason::FragmentUnsupported),
            Shape::NotIp | Shape::BadHeader | Shape::Other | Shape::Transport => decision,
        },
        Destination::Nat => from_backend(facts, bank, packet, decision, Reason::NotService, 1, now_ns),
        Destination::Protected => from_backend(facts, bank, packet, decision, Reason::Bypass, 1, now_ns),
        Destination::Outside => from_backend(facts, bank, packet, decision, Reason::NotService, 1, now_ns),
        Destination::Local => decision,
    }
}

/// Judges a packet on its way out through the host's stack: a reply of a back end, or none of ours. The stack has
/// already taken its hop from the TTL or hop limit.
#[inline(always)]
pub fn judge_egress<F: Facts>(facts: &F, packet: &Packet, now_ns: u64) -> Decision {
    let generation = facts.generation();
    let decision = Decision::new(Reason::NotService, generation);
    from_backend(
        facts,
        (generation & 1) as u32,
        packet,
        decision,
        Reason::NotService,
        0,
        now_ns,
    )
}

/// A packet to no service: a reply to one of our flows, or `otherwise`. Sending it on takes `hops` from its hop limit.
///
/// The flow table is asked only if the source is a back end: a hash look-up for every packet that is not ours would
/// be the dearest part of leaving it alone.
#[inline(always)]
fn from_backend<F: Facts>(
    facts: &F,
    bank: u32,
    packet: &Packet,
    mut decision: Decision,
    otherwise: Reason,
    hops: u8,
    now_ns: u64,
) -> Decision {
    decision.reason = otherwise;
    if !matches!(packet.shape, Shape::Transport) || !trie::source(facts, bank, packet).is_backend() {
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
    if let Some(reason) = stopped(tenant, &facts.lease(), now_ns) {
        return decision.refused(reason);
    }
    if packet.hop_limit <= hops {
        return decision.refused(Reason::HopLimit);
    }
    let limit = Limiter::ResponseBytes;
    match limiter::check(
        facts,
        reply.tenant,
        limit,
        &tenant.response_bytes,
        packet.bytes,
        now_ns,
    ) {
        Some(charge) => decision.charges[0] = charge,
        None => return decision.refused(Reason::ResponseRate),
    }
    decision.reason = Reason::Reply;
    decision.flow = FlowFate::Kept;
    decision
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
    let standing = facts.decision(bank, cell.decision)?;
    // A record that was never written has reason zero, which names none.
    decision.reason = Reason::from_code(standing.reason.wrapping_sub(1))?;
    decision.rule = standing.rule;
    decision.shadow_rule = standing.shadow_rule;
    decision.shadow_reason = standing.shadow_reason;
    match decision.reason {
        Reason::Allowed => Some(cell.set as u32),
        _ => None,
    }
}

/// Whether a part of the lease has lapsed.
#[inline(always)]
const fn lapsed(until_ns: u64, now_ns: u64) -> bool {
    until_ns != 0 && now_ns > until_ns
}

/// Why nothing of the tenant passes, open connections and replies included, although the rules allow it.
#[inline(always)]
const fn stopped(tenant: &TenantRecord, lease: &LeaseRecord, now_ns: u64) -> Option<Reason> {
    if lapsed(lease.everything_until_ns, now_ns) {
        return Some(Reason::LeaseExpired);
    }
    if tenant.flags & TENANT_QUOTA != 0 {
        return Some(Reason::Quota);
    }
    None
}

/// Why the tenant may not open a flow now, although the rules allow it; its open ones go on.
#[inline(always)]
fn held_off<F: Facts>(
    facts: &F,
    bank: u32,
    set: u32,
    tenant: &TenantRecord,
    lease: &LeaseRecord,
    now_ns: u64,
) -> Option<Reason> {
    if lapsed(lease.new_flows_until_ns, now_ns) {
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

#[inline(always)]
fn to_service<F: Facts>(
    facts: &F,
    bank: u32,
    slot: u32,
    packet: &Packet,
    mut decision: Decision,
    now_ns: u64,
) -> Decision {
    decision.service = slot + 1;
    let Some(service) = facts.service(bank, slot) else {
        return decision.refused(Reason::Internal);
    };
    let flow = facts.flow(&packet.key);
    // Under the same generation the flow's tenant stands; otherwise the source may have changed hands.
    decision.tenant = match &flow {
        Some(flow) if flow.generation == decision.generation => flow.tenant,
        _ => match trie::source(facts, bank, packet) {
            Source::NOBODY => return decision.refused(Reason::UnknownTenant),
            source => source.tenant(),
        },
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
    if let Some(reason) = stopped(tenant, &lease, now_ns) {
        return decision.refused(reason);
    }
    if packet.hop_limit <= 1 && service.forward != FORWARD_L2DSR {
        return decision.refused(Reason::HopLimit);
    }
    decision.forward = match service.forward {
        FORWARD_NAT | FORWARD_DNAT | FORWARD_L2DSR => service.forward,
        _ => return decision.refused(Reason::Internal),
    };
    decision.flow = match steer(facts, bank, set, packet, flow.as_ref(), &mut decision) {
        Some(fate) => fate,
        None => return decision,
    };
    if decision.flow.opens()
        && let Some(reason) = held_off(facts, bank, set, tenant, &lease, now_ns)
    {
        return decision.refused(reason);
    }
    decision.reason = Reason::Allowed;
    limit(facts, tenant, packet, decision, now_ns)
}

/// Whether the packet opens a connection where the flow entry is of an earlier one. A repeated SYN of a handshake
/// that is still under way does not: nothing else of that connection was seen.
#[inline(always)]
fn reopens(packet: &Packet, flow: &Flow) -> bool {
    packet.key.protocol == TCP
        && packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
        && flow.state & (FLOW_FIN | FLOW_RST | FLOW_ESTABLISHED) != 0
}

/// Chooses the back end: the flow's own if it is still eligible, else by the Maglev table.
#[inline(always)]
fn steer<F: Facts>(
    facts: &F,
    bank: u32,
    set: u32,
    packet: &Packet,
    flow: Option<&Flow>,
    decision: &mut Decision,
) -> Option<FlowFate> {
    let mut fate = FlowFate::Opened;
    if let Some(flow) = flow {
        if reopens(packet, flow) {
            fate = FlowFate::Reopened;
        } else if flow.forward == decision.forward && keeps(facts, bank, set, flow) {
            decision.backend = flow.backend + 1;
            let same = flow.generation == decision.generation;
            return reachable(facts, bank, flow.backend, decision).then_some(if same {
                FlowFate::Kept
            } else {
                FlowFate::Renewed
            });
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
    reachable(facts, bank, backend as u32, decision).then_some(fate)
}

/// Whether a flow may keep its back end: it is a member of the eligible set, and the slot is still the same back end.
#[inline(always)]
fn keeps<F: Facts>(facts: &F, bank: u32, set: u32, flow: &Flow) -> bool {
    let Some(members) = facts.set_members(bank, set) else {
        return false;
    };
    // The remainder never changes the index of a slot that exists; it bounds the access where the verifier can see it.
    let word = members[(flow.backend / 64) as usize % SET_WORDS];
    if (word >> (flow.backend % 64)) & 1 == 0 {
        return false;
    }
    let Some(backend) = facts.backend(bank, flow.backend) else {
        return false;
    };
    backend.address == flow.backend_address && backend.port_be == flow.backend_port_be
}

#[inline(always)]
fn reachable<F: Facts>(facts: &F, bank: u32, slot: u32, decision: &mut Decision) -> bool {
    let flags = match facts.backend(bank, slot) {
        Some(backend) => backend.flags,
        None => 0,
    };
    if flags & BACKEND_PRESENT == 0 {
        *decision = decision.refused(Reason::Internal);
        return false;
    }
    if flags & BACKEND_REACHABLE == 0 {
        *decision = decision.refused(Reason::NoNextHop);
        return false;
    }
    true
}

/// Asks every limiter before any is charged: a refused packet takes nothing from any of them.
#[inline(always)]
fn limit<F: Facts>(
    facts: &F,
    tenant: &TenantRecord,
    packet: &Packet,
    mut decision: Decision,
    now_ns: u64,
) -> Decision {
    let slot = decision.tenant;
    if decision.flow.opens() {
        let limit = Limiter::Connections;
        match limiter::check(facts, slot, limit, &tenant.connections, 1, now_ns) {
            Some(charge) => decision.charges[0] = charge,
            None => return decision.refused(Reason::ConnectionRate),
        }
    }
    if matches!(decision.flow, FlowFate::Opened)
        && tenant.concurrent_limit != 0
        && facts.open_connections(slot) >= tenant.concurrent_limit
    {
        return decision.refused(Reason::Concurrency);
    }
    match limiter::check(facts, slot, Limiter::Packets, &tenant.packets, 1, now_ns) {
        Some(charge) => decision.charges[1] = charge,
        None => return decision.refused(Reason::PacketRate),
    }
    match limiter::check(facts, slot, Limiter::Bytes, &tenant.bytes, packet.bytes, now_ns) {
        Some(charge) => decision.charges[2] = charge,
        None => return decision.refused(Reason::ByteRate),
    }
    decision
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
