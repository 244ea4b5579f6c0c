//! A model of the whole enforcer in memory: the shared decision over a [`Snapshot`], and everything that the programs
//! do around it, written a second time over ordered maps.
//!
//! It predicts every bit: verdict, frame, flow tables, limiter words, counts, events. The kernel programs are compared
//! with it packet by packet. It is deterministic: its clock and its tables are given to it.

use std::collections::BTreeMap;

use enforcer_agent::pure::snapshot::Snapshot;
use enforcer_agent::pure::tables::Tables;
use enforcer_common::Reason;
use enforcer_common::abi::address::{Address, FlowKey, from_v4};
use enforcer_common::abi::config::{BackendRecord, FORWARD_DNAT, FORWARD_L2DSR, FORWARD_NAT, HostRecord};
use enforcer_common::abi::event::{EVENT_FLOW_MOVED, EVENT_FLOW_OPENED, EVENT_REFUSED, EventRecord};
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::Effect;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::decide::limiter::{Charge, Payment};
use enforcer_common::decide::{
    Decision, Flow, FlowFate, Packet, Reply, flow_bits, is_v4, judge, judge_egress, reply_key,
};
use enforcer_common::hash::{flow_hash, scale};
use enforcer_common::parse::{Frame, parse};
use enforcer_common::schema::{backend_connections, tenant_connections};

use crate::rig::Verdict;
use crate::world::INGRESS_IFINDEX;
use rewrite::{Rewrite, rewritten};
pub use sweep::Sweep;

mod rewrite;
mod sweep;

/// Ports that the programs try before they give up a translation.
const PORT_TRIES: u32 = 8;
/// What the model says becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the program answers.
    pub verdict: Verdict,
    /// Why.
    pub decision: Decision,
    /// The packet as it was read.
    pub packet: Packet,
    /// The frame that comes out, but for its checksums.
    pub frame: Vec<u8>,
    /// Offsets of the two-byte checksums that differ from those of the frame that went in.
    pub checksums: Vec<usize>,
    /// The event; its CPU is zero.
    pub event: Option<EventRecord>,
}

/// The enforcer in memory.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the decision reads: kept in step with the tables below.
    snapshot: Snapshot,
    host: HostRecord,
    capacity: usize,
    /// `FLOWS`.
    pub flows: BTreeMap<FlowKey, FlowRecord>,
    /// `REPLIES`.
    pub replies: BTreeMap<FlowKey, ReplyRecord>,
    /// Flows counted up, by an index of the schema.
    opened: BTreeMap<u32, i64>,
    /// Flows counted as closed, likewise.
    closed: BTreeMap<u32, i64>,
    /// Flows that are counted as closed while they are still there: with which tenant and back end.
    ended: BTreeMap<FlowKey, [u32; 2]>,
    /// Packets, by (direction, tenant, reason).
    pub packets: BTreeMap<(u32, u32, Reason), u64>,
}

// === impl Model ===

impl Model {
    /// An enforcer without traffic, whose flow tables hold so many entries each.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self {
            snapshot: Snapshot::default(),
            host: HostRecord::ZERO,
            capacity: capacity as usize,
            flows: BTreeMap::new(),
            replies: BTreeMap::new(),
            opened: BTreeMap::new(),
            closed: BTreeMap::new(),
            ended: BTreeMap::new(),
            packets: BTreeMap::new(),
        }
    }

    /// Puts tables into force.
    pub fn install(&mut self, tables: Tables, generation: u64, host: HostRecord) {
        self.snapshot.tables = tables;
        self.snapshot.generation = generation;
        self.host = host;
    }

    /// A limiter's word.
    #[must_use]
    pub fn limiter(&self, index: u32) -> u64 {
        self.snapshot.limiters.get(&index).copied().unwrap_or(0)
    }

    /// Judges a frame and carries out what was decided.
    pub fn run(&mut self, direction: u32, frame: &[u8], now_ns: u64) -> Outcome {
        let parsed = parse(frame);
        let decided = match direction {
            DIRECTION_INGRESS => judge(&self.snapshot, &parsed.packet, now_ns),
            _ => judge_egress(&self.snapshot, &parsed.packet, now_ns),
        };
        let mut decision = decided;
        let mut translated_port_be = 0;
        let mut verdict = match decision.reason.effect() {
            Effect::Refused => Verdict::Drop,
            Effect::Passed | Effect::Forwarded => Verdict::Pass,
        };
        let mut rewrite = None;
        if decision.reason.effect() == Effect::Forwarded {
            let carried_out = match (decision.reason, direction) {
                (Reason::Reply, DIRECTION_EGRESS) => self.reply_through_stack(&parsed, &decision, now_ns),
                (Reason::Reply, _) => self.reply(&parsed, &decision, now_ns),
                _ => self.forward(&parsed, &decision, now_ns),
            };
            match carried_out {
                Ok((sent, port_be, how)) => {
                    verdict = sent;
                    translated_port_be = port_be;
                    rewrite = Some(how);
                }
                Err(reason) => {
                    decision = decision.refused(reason);
                    verdict = Verdict::Drop;
                }
            }
        }
        let counter = self
            .packets
            .entry((direction, decision.tenant, decision.reason))
            .or_insert(0);
        *counter += 1;
        let (frame, checksums) = match rewrite {
            Some(how) => rewritten(frame, &parsed, &how),
            None => (frame.to_vec(), Vec::new()),
        };
        let event = event_of(&decision, &parsed.packet, translated_port_be, direction, now_ns);
        Outcome {
            verdict,
            decision,
            packet: parsed.packet,
            frame,
            checksums,
            event,
        }
    }

    fn set_flow(&mut self, key: FlowKey, record: FlowRecord) {
        self.snapshot.flows.insert(key, view(&record));
        self.flows.insert(key, record);
    }

    fn set_reply(&mut self, key: FlowKey, record: ReplyRecord) {
        self.snapshot.replies.insert(key, reply_view(&record));
        self.replies.insert(key, record);
    }

    fn remove_reply(&mut self, key: &FlowKey) {
        self.snapshot.replies.remove(key);
        self.replies.remove(key);
    }

    /// Removes the reply entry of this very flow.
    fn remove_own_reply(&mut self, key: &FlowKey, flow: &FlowKey) {
        if self.replies.get(key).is_some_and(|reply| reply.forward == *flow) {
            self.remove_reply(key);
        }
    }

    /// Connections that are open, by an index of the schema; never less than none.
    #[must_use]
    pub fn open_connections(&self, index: u32) -> u64 {
        let count = |counts: &BTreeMap<u32, i64>| counts.get(&index).copied().unwrap_or(0);
        u64::try_from(count(&self.opened) - count(&self.closed)).unwrap_or(0)
    }

    fn mirror_open(&mut self, index: u32) {
        let open = self.open_connections(index);
        if let Some(tenant) = index.checked_sub(tenant_connections(0)) {
            self.snapshot.open_connections.insert(tenant, open);
        }
    }

    fn count_opened(&mut self, index: u32, by: i64) {
        *self.opened.entry(index).or_insert(0) += by;
        self.mirror_open(index);
    }

    fn count_closed(&mut self, [tenant, backend]: [u32; 2], by: i64) {
        for index in [tenant_connections(tenant), backend_connections(backend)] {
            *self.closed.entry(index).or_insert(0) += by;
            self.mirror_open(index);
        }
    }

    /// A flow counts as closed, or no longer, with those that have it now.
    fn count_ended(&mut self, key: FlowKey, now: Option<[u32; 2]>) {
        let before = self.ended.get(&key).copied();
        if before == now {
            return;
        }
        if let Some(counted) = before {
            self.count_closed(counted, -1);
            self.ended.remove(&key);
        }
        if let Some(counted) = now {
            self.count_closed(counted, 1);
            self.ended.insert(key, counted);
        }
    }

    fn pay(&mut self, charges: &[Charge], now_ns: u64) {
        for charge in charges {
            match charge.payment(now_ns) {
                Payment::Nothing => {}
                Payment::Add(cost_ns) => {
                    *self.snapshot.limiters.entry(charge.index).or_insert(0) += cost_ns;
                }
                Payment::Replace(due_ns) => {
                    self.snapshot.limiters.insert(charge.index, due_ns);
                }
            }
        }
    }

    fn nat_source(&self, key: &FlowKey, forward: u32, port_be: u16) -> Option<(Address, u16)> {
        let address = if is_v4(key) {
            from_v4(self.host.nat_v4)
        } else {
            self.host.nat_v6
        };
        (forward == FORWARD_NAT).then_some((address, port_be))
    }

    /// Where a flow's replies are looked for; `None` where the back end answers the client directly.
    fn reply_key_of(&self, key: &FlowKey, flow: &FlowRecord) -> Option<FlowKey> {
        let nat = self.nat_source(key, flow.forward, flow.translated_port_be);
        (flow.forward != FORWARD_L2DSR)
            .then(|| reply_key(key, flow.backend_address, flow.backend_port_be, nat))
    }

    fn forward(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        now_ns: u64,
    ) -> Result<(Verdict, u16, Rewrite), Reason> {
        let slot = (decision.backend - 1) as usize;
        let backend = *self.snapshot.tables.backends.get(slot).ok_or(Reason::Internal)?;
        let key = frame.packet.key;
        let port_be = match decision.flow {
            FlowFate::Kept | FlowFate::Renewed => self.keep(frame, decision, now_ns)?,
            FlowFate::Moved | FlowFate::Reopened => self.retarget(frame, decision, &backend, now_ns)?,
            FlowFate::Opened => self.open(frame, decision, &backend, now_ns)?,
            FlowFate::None => return Err(Reason::Internal),
        };
        self.pay(&decision.charges, now_ns);
        let nat = self.nat_source(&key, decision.forward, port_be);
        let onward = reply_key(&key, backend.address, backend.port_be, nat).reversed();
        let direct = decision.forward == FORWARD_L2DSR;
        let how = Rewrite {
            key: (!direct).then_some(onward),
            hops: u8::from(!direct),
            link: Some((backend.next_hop_mac, backend.own_mac)),
        };
        Ok((sent_by(backend.ifindex), port_be, how))
    }

    fn keep(&mut self, frame: &Frame, decision: &Decision, now_ns: u64) -> Result<u16, Reason> {
        let key = frame.packet.key;
        let mut flow = *self.flows.get(&key).ok_or(Reason::Internal)?;
        use_flow(&mut flow, frame, now_ns);
        flow.state |= flow_bits(&frame.packet);
        if decision.flow == FlowFate::Renewed {
            self.renew(&mut flow, decision);
            if let Some(at) = self.reply_key_of(&key, &flow)
                && let Some(mut reply) = self.replies.get(&at).copied()
                && reply.forward == key
            {
                reply.tenant = decision.tenant;
                reply.service = decision.service - 1;
                self.set_reply(at, reply);
            }
        }
        self.set_flow(key, flow);
        Ok(flow.translated_port_be)
    }

    fn renew(&mut self, flow: &mut FlowRecord, decision: &Decision) {
        if flow.tenant != decision.tenant {
            self.count_opened(tenant_connections(flow.tenant), -1);
            self.count_opened(tenant_connections(decision.tenant), 1);
        }
        flow.tenant = decision.tenant;
        flow.service = decision.service - 1;
        flow.rule = decision.rule;
        flow.generation = decision.generation;
    }

    fn retarget(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        backend: &BackendRecord,
        now_ns: u64,
    ) -> Result<u16, Reason> {
        let key = frame.packet.key;
        let mut flow = *self.flows.get(&key).ok_or(Reason::Internal)?;
        if flow.forward == decision.forward
            && let Some(old) = self.reply_key_of(&key, &flow)
        {
            self.remove_own_reply(&old, &key);
        }
        let port_be = self.establish_replies(frame, decision, backend, now_ns)?;
        if flow.backend != decision.backend - 1 {
            self.count_opened(backend_connections(flow.backend), -1);
            self.count_opened(backend_connections(decision.backend - 1), 1);
        }
        self.renew(&mut flow, decision);
        flow.forward = decision.forward;
        flow.backend = decision.backend - 1;
        flow.backend_address = backend.address;
        flow.backend_port_be = backend.port_be;
        flow.translated_port_be = port_be;
        flow.state = flow_bits(&frame.packet);
        use_flow(&mut flow, frame, now_ns);
        self.set_flow(key, flow);
        Ok(port_be)
    }

    fn open(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        backend: &BackendRecord,
        now_ns: u64,
    ) -> Result<u16, Reason> {
        let key = frame.packet.key;
        let port_be = self.establish_replies(frame, decision, backend, now_ns)?;
        let flow = FlowRecord {
            created_ns: now_ns,
            seen_ns: now_ns,
            packets: 1,
            bytes: u64::from(frame.packet.bytes),
            generation: decision.generation,
            tenant: decision.tenant,
            service: decision.service - 1,
            rule: decision.rule,
            backend: decision.backend - 1,
            state: flow_bits(&frame.packet),
            forward: decision.forward,
            reserved: 0,
            backend_port_be: backend.port_be,
            translated_port_be: port_be,
            backend_address: backend.address,
        };
        if self.flows.len() >= self.capacity {
            if let Some(at) = self.reply_key_of(&key, &flow) {
                self.remove_reply(&at);
            }
            return Err(Reason::TableFull);
        }
        self.set_flow(key, flow);
        self.count_opened(tenant_connections(flow.tenant), 1);
        self.count_opened(backend_connections(flow.backend), 1);
        Ok(port_be)
    }

    fn establish_replies(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        backend: &BackendRecord,
        now_ns: u64,
    ) -> Result<u16, Reason> {
        let key = frame.packet.key;
        let (own_mac, client_mac) = frame.macs();
        let record = ReplyRecord {
            forward: key,
            seen_ns: now_ns,
            packets: 0,
            bytes: 0,
            tenant: decision.tenant,
            service: decision.service - 1,
            backend: decision.backend - 1,
            client_ifindex: INGRESS_IFINDEX,
            client_mac,
            own_mac,
            state: 0,
        };
        let full = self.replies.len() >= self.capacity;
        if decision.forward == FORWARD_L2DSR {
            return Ok(key.source_port_be);
        }
        if decision.forward == FORWARD_DNAT {
            let at = reply_key(&key, backend.address, backend.port_be, None);
            match self.replies.get(&at) {
                Some(other) if other.forward != key => return Err(Reason::TranslationExhausted),
                None if full => return Err(Reason::TableFull),
                Some(_) | None => self.set_reply(at, record),
            }
            return Ok(key.source_port_be);
        }
        let mut hash = flow_hash(&key);
        for _ in 0..PORT_TRIES {
            let offset = scale(hash, u32::from(self.host.nat_port_count)) as u16;
            let port_be = self.host.nat_port_first.wrapping_add(offset).to_be();
            let nat = self.nat_source(&key, FORWARD_NAT, port_be);
            let at = reply_key(&key, backend.address, backend.port_be, nat);
            if !self.replies.contains_key(&at) {
                if full {
                    return Err(Reason::TableFull);
                }
                self.set_reply(at, record);
                return Ok(port_be);
            }
            hash = hash.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        Err(Reason::TranslationExhausted)
    }

    fn use_reply(&mut self, frame: &Frame, decision: &Decision, now_ns: u64) -> Result<ReplyRecord, Reason> {
        let key = frame.packet.key;
        let mut reply = *self.replies.get(&key).ok_or(Reason::Internal)?;
        self.pay(&decision.charges, now_ns);
        reply.packets += 1;
        reply.bytes += u64::from(frame.packet.bytes);
        reply.seen_ns = now_ns;
        reply.state |= flow_bits(&frame.packet);
        self.set_reply(key, reply);
        Ok(reply)
    }

    fn reply(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        now_ns: u64,
    ) -> Result<(Verdict, u16, Rewrite), Reason> {
        let reply = self.use_reply(frame, decision, now_ns)?;
        let how = Rewrite {
            key: Some(reply.forward.reversed()),
            hops: 1,
            link: Some((reply.client_mac, reply.own_mac)),
        };
        Ok((sent_by(reply.client_ifindex), 0, how))
    }

    fn reply_through_stack(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        now_ns: u64,
    ) -> Result<(Verdict, u16, Rewrite), Reason> {
        let home = self.use_reply(frame, decision, now_ns)?.forward.reversed();
        // The stack has routed the packet by its destination, so that only the source is left to be undone.
        let key = FlowKey {
            source: home.source,
            source_port_be: home.source_port_be,
            ..frame.packet.key
        };
        let how = Rewrite {
            key: Some(key),
            hops: 0,
            link: None,
        };
        Ok((Verdict::Pass, 0, how))
    }
}

fn view(flow: &FlowRecord) -> Flow {
    Flow {
        generation: flow.generation,
        tenant: flow.tenant,
        rule: flow.rule,
        backend: flow.backend,
        backend_address: flow.backend_address,
        backend_port_be: flow.backend_port_be,
        state: flow.state,
        forward: flow.forward,
    }
}

fn reply_view(reply: &ReplyRecord) -> Reply {
    Reply {
        tenant: reply.tenant,
        service: reply.service,
        backend: reply.backend,
    }
}

fn use_flow(flow: &mut FlowRecord, frame: &Frame, now_ns: u64) {
    flow.packets += 1;
    flow.bytes += u64::from(frame.packet.bytes);
    flow.seen_ns = now_ns;
}

fn sent_by(ifindex: u32) -> Verdict {
    if ifindex == INGRESS_IFINDEX {
        Verdict::Transmit
    } else {
        Verdict::Redirect
    }
}

fn event_of(
    decision: &Decision,
    packet: &Packet,
    translated_port_be: u16,
    direction: u32,
    now_ns: u64,
) -> Option<EventRecord> {
    let kind = match (decision.reason.effect(), decision.flow) {
        (Effect::Refused, _) => EVENT_REFUSED,
        (Effect::Forwarded, FlowFate::Opened | FlowFate::Reopened) => EVENT_FLOW_OPENED,
        (Effect::Forwarded, FlowFate::Moved) => EVENT_FLOW_MOVED,
        (Effect::Forwarded | Effect::Passed, _) => return None,
    };
    Some(EventRecord {
        now_ns,
        generation: decision.generation,
        key: packet.key,
        translated_port_be,
        reserved: 0,
        kind,
        reason: decision.reason as u32,
        tenant: decision.tenant,
        service: decision.service,
        rule: decision.rule,
        backend: decision.backend,
        shadow_rule: decision.shadow_rule,
        shadow_reason: decision.shadow_reason,
        bytes: packet.bytes,
        direction,
        cpu: 0,
    })
}
