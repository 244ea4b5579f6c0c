//! Decisions of an audit log, judged as new connections.
//!
//! A log is a sample, and it does not hold the packets in between: flows and limits cannot be replayed. What rules,
//! constraints and addresses say is exact; whether limits would have refused what a policy admits is told only where
//! nothing about them has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::reason::{Effect, Reason};
use enforcer_common::decide::{Decision, Packet, Shape, TCP, TCP_SYN, UDP};

use super::names::{Book, Made, Which};
use super::tally::Class;
use super::{MAX_TIME_NS, Simulation};
use crate::pure::audit::{Direction, Entry, FlowTuple, Kind};
use crate::pure::compile::address_of;
use crate::pure::policy::resolved::Protocol;

/// Connections that are remembered to count each once; further ones are not counted.
const MAX_CONNECTIONS: usize = 1 << 20;
/// A hop limit that is no reason to refuse anything.
const HOP_LIMIT: u8 = 64;

/// Reasons that lie in the packet or on the host, not in any policy: a new connection would not have them.
const BESIDE_POLICY: [Reason; 8] = [
    Reason::Malformed,
    Reason::FragmentUnsupported,
    Reason::HopLimit,
    Reason::NoNextHop,
    Reason::TableFull,
    Reason::TranslationExhausted,
    Reason::ResponseRate,
    Reason::Internal,
];

/// What is known of the log so far.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// 5-tuples of connections whose back end was counted.
    connections: BTreeSet<FlowKey>,
    /// Tenants (numbers of [`Made`]) whose traffic within the rules is not the same under both policies.
    disturbed: BTreeSet<u32>,
    /// By tenant: decisions that stay as they were if its limits have seen the same traffic. Unchanged, and otherwise
    /// explained.
    presumed: BTreeMap<u32, [u64; 2]>,
}

/// What limits have to do with a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limits {
    /// Nobody has any, or the rules refuse on both sides.
    Nothing,
    /// They admitted it, and are the same under both policies.
    Same,
    /// What they would do is not known.
    Unknown,
}

// === impl Log ===

impl Log {
    pub(super) fn lost_connections(&self) -> bool {
        self.connections.len() >= MAX_CONNECTIONS
    }
}

impl Simulation {
    /// Judges a record of an audit log under both policies, if it is a decision on a packet of a client.
    pub fn record(&mut self, entry: &Entry) {
        self.tally.totals.read += 1;
        if matches!(entry.kind, Kind::Aggregated | Kind::Lost) {
            self.tally.totals.only_counted += entry.count.unwrap_or(0);
        }
        let Some(flow) = self.replayable(entry) else {
            self.tally.totals.skipped += 1;
            return;
        };
        let now_ns = self.see_time(entry);
        self.before.set_time(now_ns);
        self.after.set_time(now_ns);
        let packet = opening_packet(&flow, entry.bytes.unwrap_or(0));
        let before = self.before.replay.preview(&packet, now_ns);
        let after = self.after.replay.preview(&packet, now_ns);
        let made = [
            self.names.made(Which::Before, &before),
            self.names.made(Which::After, &after),
        ];
        let was_admitted = matches!(entry.kind, Kind::FlowOpened | Kind::FlowMoved);
        let limits = self.limits_on(&before, &after, made, was_admitted);
        let class = self.count_record(made, &packet.key, limits);
        if class == Class::Changed || made[0].tenant != made[1].tenant {
            self.log.disturbed.extend(made.map(|made| made.tenant));
        }
        self.count_backends(&before, &after, &packet.key);
    }

    /// The flow of a record that can be judged as a new connection.
    fn replayable(&self, entry: &Entry) -> Option<FlowTuple> {
        let decides = matches!(entry.kind, Kind::FlowOpened | Kind::FlowMoved | Kind::Refused);
        let beside_policy = || {
            let reason = entry.reason.as_deref();
            BESIDE_POLICY.iter().any(|beside| reason == Some(beside.name()))
        };
        if !decides || entry.direction == Some(Direction::Egress) || beside_policy() {
            return None;
        }
        let flow = entry.flow?;
        // A refused answer: its record names the client's tenant and service.
        let book = Book {
            before: &self.before.directory,
            after: &self.after.directory,
        };
        let is_server =
            |address: &SocketAddr| self.before.is_server(address) || self.after.is_server(address);
        let is_answer = entry.tenant.is_some() && is_server(&flow.from) && !book.is_service(flow.to.ip());
        (!is_answer).then_some(flow)
    }

    /// The record's time, in nanoseconds since 1970.
    fn see_time(&mut self, entry: &Entry) -> u64 {
        let time_ns = u64::try_from(entry.time.as_nanosecond())
            .unwrap_or(0)
            .min(MAX_TIME_NS);
        let [first_ns, last_ns] = self.span_ns.unwrap_or([time_ns; 2]);
        self.span_ns = Some([first_ns.min(time_ns), last_ns.max(time_ns)]);
        time_ns
    }

    fn limits_on(&self, before: &Decision, after: &Decision, made: [Made; 2], was_admitted: bool) -> Limits {
        let admits = |decision: &Decision| decision.reason.effect() == Effect::Forwarded;
        let limits = [
            admits(before).then(|| self.before.limits_on(before)).flatten(),
            admits(after).then(|| self.after.limits_on(after)).flatten(),
        ];
        match limits {
            [None, None] => Limits::Nothing,
            [before, after] if before == after && made[0].tenant == made[1].tenant && was_admitted => {
                Limits::Same
            }
            _ => Limits::Unknown,
        }
    }

    fn count_record(&mut self, made: [Made; 2], client: &FlowKey, limits: Limits) -> Class {
        let [before, after] = made;
        let class = Class::of(&before, &after);
        if limits == Limits::Unknown && class != Class::Changed {
            self.tally.totals.unknown += 1;
            return class;
        }
        if limits == Limits::Same {
            let presumed = self.log.presumed.entry(after.tenant).or_default();
            presumed[usize::from(class == Class::Otherwise)] += 1;
        }
        self.tally
            .decision(before, after, client, limits == Limits::Unknown)
    }

    fn count_backends(&mut self, before: &Decision, after: &Decision, client: &FlowKey) {
        if self.log.lost_connections() || !self.log.connections.insert(*client) {
            return;
        }
        let chosen = |which, decision: &Decision| match decision.reason.effect() {
            Effect::Forwarded => self.names.backend(which, decision),
            Effect::Passed | Effect::Refused => 0,
        };
        let (from, to) = (chosen(Which::Before, before), chosen(Which::After, after));
        self.tally.new_connection(from, to);
    }

    /// A tenant that gains or loses traffic has limits that are used up otherwise: what was presumed of its decisions is
    /// unknown after all.
    pub(super) fn settle_log(&mut self) {
        let totals = &mut self.tally.totals;
        for (tenant, [unchanged, otherwise]) in std::mem::take(&mut self.log.presumed) {
            if self.log.disturbed.contains(&tenant) {
                totals.unchanged -= unchanged;
                totals.same_verdict_otherwise -= otherwise;
                totals.unknown += unchanged + otherwise;
            }
        }
    }
}

/// The first packet of a connection.
fn opening_packet(flow: &FlowTuple, bytes: u64) -> Packet {
    let (protocol, shape) = match flow.protocol {
        Some(Protocol::Tcp) => (TCP, Shape::Transport),
        Some(Protocol::Udp) => (UDP, Shape::Transport),
        None => (0, Shape::Other),
    };
    Packet {
        key: FlowKey {
            source: address_of(flow.from.ip()),
            destination: address_of(flow.to.ip()),
            source_port_be: flow.from.port().to_be(),
            destination_port_be: flow.to.port().to_be(),
            protocol,
        },
        shape,
        tcp_flags: if protocol == TCP { TCP_SYN } else { 0 },
        hop_limit: HOP_LIMIT,
        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        segment_bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
    }
}
