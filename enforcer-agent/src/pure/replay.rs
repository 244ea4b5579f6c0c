//! The data path in memory: the shared decision over a [`Snapshot`], and what the kernel programs and the agent's
//! sweeper do to flows, limiters and counts around it, step by step.
//!
//! It says what would have become of packets; it sends nothing and rewrites no byte. Its clock is the caller's. Flows
//! are in ordered maps, so that the same packets leave the same state on every host.
//!
//! | Part | Module |
//! | --- | --- |
//! | a decision is carried out: flow and reply entries, translation, charges | [`carry`] |
//! | ICMP errors about flows are sent on, echo requests answered | [`messages`] |
//! | expiry, as the sweeper does it once a second | [`sweep`] |
//!
//! The kernel programs are compared with it, packet by packet, by the differential test: a change of
//! `enforcer-ebpf/src/flows.rs` that is not made here fails there.

mod carry;
mod messages;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::abi::address::{Address, FlowKey};
use enforcer_common::abi::config::{FORWARD_NAT, HostRecord, LeaseRecord, LimitsRecord};
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::{Effect, Reason};
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::decide::answer::{self, Answer};
use enforcer_common::decide::limiter::{self, Charge, Claim, Payment};
use enforcer_common::decide::{Decision, Flow, FlowFate, Packet, Reply, judge, judge_egress};
use enforcer_common::parse::{Frame, Message, Tags};
use enforcer_common::schema::{backend_connections, holder_connections};

use super::expiry::{self, Counted, Seen, Timeouts};
use super::snapshot::{Answers, Lease, Snapshot};
use super::tables::Tables;
pub use sweep::Sweep;

/// The enforcer in memory.
#[derive(Clone, Debug)]
pub struct Replay {
    /// What the decision reads: kept in step with the tables below.
    snapshot: Snapshot,
    host: HostRecord,
    /// Entries that each flow table holds.
    capacity: usize,
    timeouts: Timeouts,
    flows: BTreeMap<FlowKey, FlowRecord>,
    replies: BTreeMap<FlowKey, ReplyRecord>,
    /// Flows counted up, by an index of the schema.
    opened: BTreeMap<u32, i64>,
    /// Flows counted as closed, likewise.
    closed: BTreeMap<u32, i64>,
    /// Flows that are counted as closed while they are still there: with which tenant and back end.
    ended: BTreeMap<FlowKey, Counted>,
    /// Flows whose state may have changed since the last sweep.
    touched: BTreeSet<FlowKey>,
    /// Flows by a time before which they cannot expire, unless they are touched; each flow that was ever swept over has
    /// one entry.
    due: BTreeSet<(u64, FlowKey)>,
    due_of: BTreeMap<FlowKey, u64>,
    /// There may be reply entries without a flow: only another policy or another forward mode leaves some.
    may_have_orphans: bool,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why. A packet that was allowed and could not be carried out is refused here, as the programs refuse it.
    pub decision: Decision,
    /// How it goes out, if it is forwarded; none for an echo request that is answered, which goes back where it came from.
    pub sent: Option<Sent>,
    /// What its sender is answered, if it is refused.
    pub answer: Answered,
}

/// What a sender is answered, and the largest packet that would have fitted where that was what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What goes back.
    pub answer: Answer,
    /// Bytes.
    pub fitting_bytes: u32,
}

/// How a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The interface.
    pub ifindex: u32,
    /// Its VLAN tags.
    pub tags: Tags,
}

/// A packet that goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The interface by which it leaves; `None` through the host's stack.
    pub ifindex: Option<u32>,
    /// Its new 5-tuple; `None` where that stays.
    pub key: Option<FlowKey>,
    /// What is taken from its TTL or hop limit.
    pub hops: u8,
    /// Link-layer destination and source; `None` where the stack writes them.
    pub link: Option<([u8; 6], [u8; 6])>,
    /// The VLAN tags with which it leaves; `None` where its own stay.
    pub tags: Option<Tags>,
    /// The 5-tuple of the packet that it quotes, where that changes.
    pub quoted: Option<FlowKey>,
    /// The header around it, if it is encapsulated.
    pub outer: Option<Outer>,
    /// Port in place of the client's, where its flow is translated; otherwise the client's port, and zero for replies.
    pub translated_port_be: u16,
    /// Whether there was no room for its flow's entry after all.
    pub stateless: bool,
}

/// What goes around a packet; the rest of the header follows from it and the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port of the UDP header, if there is one.
    pub udp_source_port: Option<u16>,
    /// IPv6 flow label.
    pub flow_label: u32,
}

// === impl Answered ===

impl Answered {
    /// Nothing goes back.
    pub const NOTHING: Self = Self {
        answer: Answer::None,
        fitting_bytes: 0,
    };
}

// === impl Replay ===

impl Replay {
    /// An enforcer without policy and traffic. Its flow tables hold `capacity` entries each.
    #[must_use]
    pub fn new(capacity: u32, timeouts: Timeouts) -> Self {
        Self {
            snapshot: Snapshot::default(),
            host: HostRecord::ZERO,
            capacity: capacity as usize,
            timeouts,
            flows: BTreeMap::new(),
            replies: BTreeMap::new(),
            opened: BTreeMap::new(),
            closed: BTreeMap::new(),
            ended: BTreeMap::new(),
            touched: BTreeSet::new(),
            due: BTreeSet::new(),
            due_of: BTreeMap::new(),
            may_have_orphans: false,
        }
    }

    /// Sets the agent's lease; without one it never lapses.
    pub fn set_lease(&mut self, lease: LeaseRecord) {
        self.snapshot.lease = Lease(lease);
    }

    /// Sets the MTUs of links, by index of the interface; the smallest is taken from the host's record. Without one, every
    /// reply fits.
    pub fn set_links(&mut self, links: BTreeMap<u32, u32>) {
        self.snapshot.links = links;
    }

    /// Puts tables into force. Flows, limiters and counts stay.
    pub fn install(&mut self, tables: Tables, generation: u64, host: HostRecord) {
        self.snapshot.tables = tables;
        self.snapshot.generation = generation;
        self.snapshot.answers = Answers(host.answers);
        self.snapshot.flows_per_tenant = host.flows_per_tenant;
        self.snapshot.smallest_mtu_bytes = host.smallest_mtu_bytes;
        self.host = host;
        self.touched.extend(self.flows.keys());
        self.may_have_orphans = true;
    }

    /// Judges a packet and carries out what was decided.
    ///
    /// `direction` is one of `tally::DIRECTION_*`, `message` what an ICMP packet says. `now_ns` never goes back from one call to
    /// the next.
    pub fn judge(
        &mut self,
        direction: u32,
        frame: &Frame,
        message: Option<&Message>,
        arrival: Arrival,
        now_ns: u64,
    ) -> Outcome {
        let message = message.filter(|_| direction == DIRECTION_INGRESS);
        if let Some(outcome) = message.and_then(|message| self.message(frame, message, now_ns)) {
            return outcome;
        }
        let decision = match direction {
            DIRECTION_INGRESS => judge(&self.snapshot, &frame.packet, now_ns),
            _ => judge_egress(&self.snapshot, &frame.packet, now_ns),
        };
        if decision.reason.effect() != Effect::Forwarded {
            return self.stopped(decision, &frame.packet, now_ns);
        }
        let carried_out = match (decision.reason, direction) {
            (Reason::Reply, DIRECTION_EGRESS) => self.reply_through_stack(frame, &decision, now_ns),
            (Reason::Reply, _) => self.reply(frame, &decision, now_ns),
            _ => self.forward(frame, &decision, arrival, now_ns),
        };
        match carried_out {
            Ok(sent) => Outcome {
                decision: if sent.stateless {
                    stateless(decision)
                } else {
                    decision
                },
                sent: Some(sent),
                answer: Answered::NOTHING,
            },
            Err(reason) => self.stopped(decision.refused(reason), &frame.packet, now_ns),
        }
    }

    /// A packet that is not forwarded: its sender may be answered.
    fn stopped(&mut self, decision: Decision, packet: &Packet, now_ns: u64) -> Outcome {
        let mut outcome = Outcome {
            decision,
            sent: None,
            answer: Answered::NOTHING,
        };
        if decision.reason == Reason::BackendIneligible {
            self.abandon(&packet.key);
        }
        let answer = answer::kind(&self.snapshot, &decision, packet);
        if answer == Answer::None || decision.reason.effect() != Effect::Refused {
            return outcome;
        }
        if let Some(charge) = answer::charge(&self.snapshot, decision.tenant, now_ns) {
            self.pay(&charge, now_ns);
            outcome.answer = Answered {
                answer,
                fitting_bytes: answer::fitting_bytes(&self.snapshot, &decision, packet),
            };
        }
        outcome
    }

    /// What a packet would get that comes in now. Nothing is changed.
    #[must_use]
    pub fn preview(&self, packet: &Packet, now_ns: u64) -> Decision {
        judge(&self.snapshot, packet, now_ns)
    }

    /// The limits that bind what got a decision: of its tenant, of the tenant on the service, and of the service.
    #[must_use]
    pub fn limits_on(&self, decision: &Decision) -> [LimitsRecord; 3] {
        let tables = &self.snapshot.tables;
        let group = |group: u32| {
            let limits = tables.limits.get(group as usize).filter(|_| group != 0);
            limits.copied().unwrap_or(LimitsRecord::ZERO)
        };
        let tenant = tables.tenants.get(decision.tenant as usize);
        [
            tenant.map_or(LimitsRecord::ZERO, |tenant| tenant.limits),
            group(decision.pair_group),
            group(decision.service_group),
        ]
    }

    /// Open flows, by the client's 5-tuple.
    #[must_use]
    pub const fn flows(&self) -> &BTreeMap<FlowKey, FlowRecord> {
        &self.flows
    }

    /// Reply entries, by the 5-tuple of the back end's packets.
    #[must_use]
    pub const fn replies(&self) -> &BTreeMap<FlowKey, ReplyRecord> {
        &self.replies
    }

    /// A limiter's word.
    #[must_use]
    pub fn limiter(&self, index: u32) -> u64 {
        self.snapshot.limiters.get(&index).copied().unwrap_or(0)
    }

    /// Connections that are open, by an index of the schema; never less than none.
    #[must_use]
    pub fn open_connections(&self, index: u32) -> u64 {
        let count = |counts: &BTreeMap<u32, i64>| counts.get(&index).copied().unwrap_or(0);
        u64::try_from(count(&self.opened) - count(&self.closed)).unwrap_or(0)
    }

    /// The 5-tuple by which the back end of an open flow answers; `None` without such a flow, and where answers do not
    /// come through this host.
    #[must_use]
    pub fn answers_of(&self, client: &FlowKey) -> Option<FlowKey> {
        self.reply_key_of(client, self.flows.get(client)?)
    }

    fn set_flow(&mut self, key: FlowKey, record: FlowRecord) {
        self.snapshot.flows.insert(key, view(&record));
        self.flows.insert(key, record);
        self.touched.insert(key);
    }

    fn remove_flow(&mut self, key: &FlowKey) {
        self.snapshot.flows.remove(key);
        self.flows.remove(key);
        self.ended.remove(key);
        if let Some(due_ns) = self.due_of.remove(key) {
            self.due.remove(&(due_ns, *key));
        }
    }

    fn set_reply(&mut self, key: FlowKey, record: ReplyRecord) {
        self.touched.insert(record.forward);
        self.snapshot.replies.insert(key, reply_view(&record));
        self.replies.insert(key, record);
    }

    fn remove_reply(&mut self, key: &FlowKey) {
        self.snapshot.replies.remove(key);
        if let Some(removed) = self.replies.remove(key) {
            self.touched.insert(removed.forward);
        }
    }

    /// Removes the reply entry of this very flow.
    fn remove_own_reply(&mut self, key: &FlowKey, flow: &FlowKey) {
        if self.replies.get(key).is_some_and(|reply| reply.forward == *flow) {
            self.remove_reply(key);
        }
    }

    /// The reply entry of this very flow.
    fn own_reply(&self, key: &FlowKey, flow: &FlowRecord) -> Option<&ReplyRecord> {
        let reply = self.reply_key_of(key, flow).and_then(|at| self.replies.get(&at));
        reply.filter(|reply| reply.forward == *key)
    }

    fn seen<'a>(&'a self, key: &'a FlowKey, flow: &'a FlowRecord) -> Seen<'a> {
        Seen {
            key,
            flow,
            reply: self.own_reply(key, flow),
        }
    }

    /// Counts a connection with another holder of limits; group 0 is nobody.
    fn move_connection(&mut self, from: u32, to: u32) {
        for (holder, by) in [(from, -1), (to, 1)] {
            if from != to && holder != 0 {
                *self.opened.entry(holder_connections(holder)).or_insert(0) += by;
                self.mirror_open(holder_connections(holder));
            }
        }
    }

    fn count_opened_of_backend(&mut self, backend: u32, by: i64) {
        *self.opened.entry(backend_connections(backend)).or_insert(0) += by;
    }

    fn count_closed(&mut self, counted: Counted, by: i64) {
        for index in counted.indexes() {
            *self.closed.entry(index).or_insert(0) += by;
            self.mirror_open(index);
        }
    }

    /// The decision asks for the connections of holders of limits only.
    fn mirror_open(&mut self, index: u32) {
        if let Some(holder) = index.checked_sub(holder_connections(0)) {
            let open = self.open_connections(index);
            self.snapshot.open_connections.insert(holder, open);
        }
    }

    /// A flow counts as closed, or no longer, with those that have it now.
    fn count_ended(&mut self, key: FlowKey, now: Option<Counted>) {
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

    /// Has a packet that goes out pay what it owes.
    fn settle(&mut self, decision: &Decision, bytes: u32, now_ns: u64) {
        let mut charges = Vec::new();
        limiter::settle(&self.snapshot, &Claim::due(decision, bytes), |charge| {
            charges.push(charge);
        });
        charges.iter().for_each(|charge| self.pay(charge, now_ns));
    }

    fn pay(&mut self, charge: &Charge, now_ns: u64) {
        let word = self.snapshot.limiters.entry(charge.index).or_insert(0);
        match charge.payment(*word, now_ns) {
            Payment::Add(cost_ns) => *word += cost_ns,
            Payment::Replace(due_ns) => *word = due_ns,
        }
    }

    fn nat_source(&self, key: &FlowKey, forward: u32, port_be: u16) -> Option<(Address, u16)> {
        (forward == FORWARD_NAT).then(|| (expiry::nat_address(&self.host, key), port_be))
    }

    /// Where a flow's replies are looked for; `None` where the back end answers the client directly.
    fn reply_key_of(&self, key: &FlowKey, flow: &FlowRecord) -> Option<FlowKey> {
        expiry::reply_key_of(&self.host, key, flow)
    }
}

/// A packet for whose flow there was no room after all.
const fn stateless(decision: Decision) -> Decision {
    Decision {
        reason: Reason::Stateless,
        flow: FlowFate::Stateless,
        ..decision
    }
}

fn view(flow: &FlowRecord) -> Flow {
    Flow {
        generation: flow.generation,
        tenant: flow.tenant,
        service: flow.service,
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
        client_ifindex: reply.client_ifindex,
    }
}
