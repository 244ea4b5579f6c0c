//! Carries out a decision, in the order of the kernel programs: find or make the entries, which may still fail; then pay;
//! then send.

use enforcer_common::abi::address::{self, FlowKey};
use enforcer_common::abi::config::{
    BackendRecord, FORWARD_GUE, FORWARD_L2DSR, FORWARD_LOCAL, FORWARD_NAT, answers_directly, encapsulates,
    takes_hop,
};
use enforcer_common::abi::flow::{FLOW_RST, FlowRecord, ReplyRecord, seen_ns};
use enforcer_common::abi::reason::Reason;
use enforcer_common::decide::{Decision, FlowFate, flow_bits, may_be_stateless, reply_key};
use enforcer_common::encapsulation::{flow_label, gue_source_port, outer_source};
use enforcer_common::hash::{flow_hash, scale};
use enforcer_common::parse::Frame;
use enforcer_common::schema::tenant_holder;

use super::{Arrival, Outer, Replay, Sent};

/// Ports that the programs try before they give up a translation.
const PORT_TRIES: u32 = 8;

/// A client's packet on its way to a back end.
#[derive(Clone, Copy)]
struct Journey<'a> {
    frame: &'a Frame,
    decision: &'a Decision,
    backend: &'a BackendRecord,
    /// How it came in.
    arrival: Arrival,
    now_ns: u64,
}

impl Replay {
    /// Sends a client's packet to its back end.
    pub(super) fn forward(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        arrival: Arrival,
        now_ns: u64,
    ) -> Result<Sent, Reason> {
        let slot = decision.backend.checked_sub(1).ok_or(Reason::Internal)?;
        let tables = &self.snapshot.tables;
        let backend = *tables.backends.get(slot as usize).ok_or(Reason::Internal)?;
        let journey = Journey {
            frame,
            decision,
            backend: &backend,
            arrival,
            now_ns,
        };
        let key = frame.packet.key;
        let mut stateless = false;
        let translated_port_be = match decision.flow {
            FlowFate::Kept | FlowFate::Renewed => self.keep(frame, decision, now_ns)?,
            FlowFate::Moved | FlowFate::Reopened => self.retarget(journey)?,
            FlowFate::Opened => match self.open(journey) {
                Err(Reason::TableFull) if may_be_stateless(&self.snapshot, decision) => {
                    stateless = true;
                    key.source_port_be
                }
                outcome => outcome?,
            },
            FlowFate::Stateless => key.source_port_be,
            FlowFate::Remembered | FlowFate::None => return Err(Reason::Internal),
        };
        self.settle(decision, frame.packet.bytes, now_ns);
        let nat = self.nat_source(&key, decision.forward, translated_port_be);
        let onward = reply_key(&key, backend.address, backend.port_be, nat).reversed();
        let forward = decision.forward;
        let stays = forward == FORWARD_LOCAL;
        let keeps_addresses = stays || forward == FORWARD_L2DSR || encapsulates(forward);
        Ok(Sent {
            ifindex: (!stays).then_some(backend.ifindex),
            key: (!keeps_addresses).then_some(onward),
            hops: u8::from(takes_hop(forward)),
            link: (!stays).then_some((backend.next_hop_mac, backend.own_mac)),
            tags: (!stays).then_some(backend.tags),
            quoted: None,
            outer: encapsulates(forward).then(|| self.outer(&key, forward, &backend)),
            translated_port_be,
            stateless,
        })
    }

    /// Marks a connection that is refused for its back end's sake as reset: it is open no more.
    pub(super) fn abandon(&mut self, key: &FlowKey) {
        if let Some(mut flow) = self.flows.get(key).copied() {
            flow.state |= FLOW_RST;
            self.set_flow(*key, flow);
        }
    }

    /// Sends a back end's reply to the client.
    pub(super) fn reply(&mut self, frame: &Frame, decision: &Decision, now_ns: u64) -> Result<Sent, Reason> {
        let reply = self.use_reply(frame, decision, now_ns)?;
        Ok(Sent {
            ifindex: Some(reply.client_ifindex),
            key: Some(reply.forward.reversed()),
            hops: 1,
            link: Some((reply.client_mac, reply.own_mac)),
            tags: Some(reply.tags),
            quoted: None,
            outer: None,
            translated_port_be: 0,
            stateless: false,
        })
    }

    /// Undoes the translation of a reply that goes out through the host's stack.
    pub(super) fn reply_through_stack(
        &mut self,
        frame: &Frame,
        decision: &Decision,
        now_ns: u64,
    ) -> Result<Sent, Reason> {
        let home = self.use_reply(frame, decision, now_ns)?.forward.reversed();
        // The stack has routed the packet by its destination, so that only the source is left to be undone.
        let key = FlowKey {
            source: home.source,
            source_port_be: home.source_port_be,
            ..frame.packet.key
        };
        Ok(Sent {
            ifindex: None,
            key: Some(key),
            hops: 0,
            link: None,
            tags: None,
            quoted: None,
            outer: None,
            translated_port_be: 0,
            stateless: false,
        })
    }

    fn use_reply(&mut self, frame: &Frame, decision: &Decision, now_ns: u64) -> Result<ReplyRecord, Reason> {
        let key = frame.packet.key;
        let mut reply = *self.replies.get(&key).ok_or(Reason::Internal)?;
        self.settle(decision, frame.packet.bytes, now_ns);
        reply.packets += 1;
        reply.bytes += u64::from(frame.packet.bytes);
        reply.seen_ns = now_ns;
        reply.state |= flow_bits(&frame.packet);
        self.set_reply(key, reply);
        Ok(reply)
    }

    /// Another packet of a flow that keeps its back end; answers its translated port.
    fn keep(&mut self, frame: &Frame, decision: &Decision, now_ns: u64) -> Result<u16, Reason> {
        let key = frame.packet.key;
        let mut flow = *self.flows.get(&key).ok_or(Reason::Internal)?;
        flow.state |= flow_bits(&frame.packet);
        use_flow(&mut flow, frame, now_ns);
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

    /// Writes what was decided anew; a connection that changed hands is counted with whom it belongs to now.
    fn renew(&mut self, flow: &mut FlowRecord, decision: &Decision) {
        self.move_connection(tenant_holder(flow.tenant), tenant_holder(decision.tenant));
        self.move_connection(flow.pair_group.into(), decision.pair_group);
        self.move_connection(flow.service_group.into(), decision.service_group);
        flow.pair_group = decision.pair_group as u16;
        flow.service_group = decision.service_group as u16;
        flow.tenant = decision.tenant;
        flow.service = decision.service - 1;
        flow.rule = decision.rule;
        flow.generation = decision.generation;
    }

    /// Gives an existing entry another back end.
    fn retarget(&mut self, journey: Journey<'_>) -> Result<u16, Reason> {
        let Journey {
            frame,
            decision,
            backend,
            now_ns,
            ..
        } = journey;
        let key = frame.packet.key;
        let mut flow = *self.flows.get(&key).ok_or(Reason::Internal)?;
        if flow.forward != decision.forward {
            // As in the programs: the sweep finds the reply entry of the old mode.
            self.may_have_orphans = true;
        } else if let Some(old) = self.reply_key_of(&key, &flow) {
            self.remove_own_reply(&old, &key);
        }
        let port_be = self.establish_replies(journey)?;
        if flow.backend != decision.backend - 1 {
            self.count_opened_of_backend(flow.backend, -1);
            self.count_opened_of_backend(decision.backend - 1, 1);
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

    /// Makes a flow; answers its translated port.
    fn open(&mut self, journey: Journey<'_>) -> Result<u16, Reason> {
        let Journey {
            frame,
            decision,
            backend,
            now_ns,
            ..
        } = journey;
        let key = frame.packet.key;
        let port_be = self.establish_replies(journey)?;
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
            pair_group: decision.pair_group as u16,
            service_group: decision.service_group as u16,
            backend_port_be: backend.port_be,
            translated_port_be: port_be,
            backend_address: backend.address,
            reserved: [0; 4],
        };
        if self.flows.len() >= self.capacity {
            if let Some(at) = self.reply_key_of(&key, &flow) {
                self.remove_reply(&at);
            }
            return Err(Reason::TableFull);
        }
        self.set_flow(key, flow);
        self.move_connection(0, tenant_holder(decision.tenant));
        self.move_connection(0, decision.pair_group);
        self.move_connection(0, decision.service_group);
        self.count_opened_of_backend(flow.backend, 1);
        Ok(port_be)
    }

    /// Makes the entry by which replies find their way back; answers the port in place of the client's.
    fn establish_replies(&mut self, journey: Journey<'_>) -> Result<u16, Reason> {
        let Journey {
            frame,
            decision,
            backend,
            ..
        } = journey;
        let key = frame.packet.key;
        if answers_directly(decision.forward) {
            return Ok(key.source_port_be);
        }
        let record = reply_record(journey);
        let full = self.replies.len() >= self.capacity;
        if decision.forward != FORWARD_NAT {
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

    /// The header around a packet of this flow.
    pub(super) fn outer(&self, key: &FlowKey, forward: u32, backend: &BackendRecord) -> Outer {
        let hash = flow_hash(key);
        Outer {
            source: outer_source(&self.host, hash, address::is_v4(&backend.address)),
            destination: backend.address,
            udp_source_port: (forward == FORWARD_GUE).then(|| gue_source_port(hash)),
            flow_label: flow_label(hash),
        }
    }
}

/// Counts a packet of a flow, whose state is already that after it.
fn use_flow(flow: &mut FlowRecord, frame: &Frame, now_ns: u64) {
    flow.packets += 1;
    flow.bytes += u64::from(frame.packet.bytes);
    flow.seen_ns = seen_ns(flow.seen_ns, now_ns, flow.state);
}

fn reply_record(journey: Journey<'_>) -> ReplyRecord {
    let (own_mac, client_mac) = journey.frame.macs();
    ReplyRecord {
        forward: journey.frame.packet.key,
        seen_ns: journey.now_ns,
        packets: 0,
        bytes: 0,
        tenant: journey.decision.tenant,
        service: journey.decision.service - 1,
        backend: journey.decision.backend - 1,
        client_ifindex: journey.arrival.ifindex,
        client_mac,
        own_mac,
        state: 0,
        tags: journey.arrival.tags,
    }
}
