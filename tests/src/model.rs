//! A model of the whole enforcer in memory: the product's own replay of the data path, and around it what a replay has no
//! use for and the kernel programs do: rewritten frames, verdicts, counts, events.
//!
//! It predicts every bit. The kernel programs are compared with it packet by packet. It is deterministic: its clock and
//! its tables are given to it.

use std::collections::BTreeMap;

use enforcer_agent::pure::replay::{Answered, Arrival, Replay, Sent, Sweep};
use enforcer_agent::pure::tables::Tables;
use enforcer_common::Reason;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::{HostRecord, LeaseRecord};
use enforcer_common::abi::event::{EVENT_FLOW_MOVED, EVENT_FLOW_OPENED, EVENT_REFUSED, EventRecord};
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::Effect;
use enforcer_common::decide::answer::Answer;
use enforcer_common::decide::{Decision, FlowFate, Packet};
use enforcer_common::parse::{message, parse, tags};

use crate::generate::hex;
use crate::packet::{Complaint, complain, inspect, reset, unwrap};
use crate::rig::{Ran, TIMEOUTS, Verdict, Way};
use crate::world::INGRESS_IFINDEX;
use rewrite::{rewritten, turned_round};

mod rewrite;

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
    replay: Replay,
    /// Packets, by (direction, tenant, reason).
    pub packets: BTreeMap<(u32, u32, Reason), u64>,
}

// === impl Outcome ===

impl Outcome {
    /// Every byte of what the program left of `sent` is as the model says, but for the checksums; these add up wherever
    /// they did before.
    ///
    /// # Errors
    /// What differs.
    pub fn same_frame(&self, way: Way, sent: &[u8], ran: &Ran) -> Result<(), String> {
        let in_frame = way.in_frame(sent, self.frame.clone());
        let is_moved_by = self.frame.len() - in_frame.len();
        let (kernel, model) = (&ran.frame, &in_frame);
        if kernel.len() != model.len() {
            return Err(format!(
                "length of the frame: kernel {}, model {}",
                kernel.len(),
                model.len()
            ));
        }
        let is_checksum = |offset: usize| {
            let place = offset + is_moved_by;
            self.checksums.iter().any(|at| (*at..*at + 2).contains(&place))
        };
        for (offset, (kernel_byte, model_byte)) in kernel.iter().zip(model).enumerate() {
            if kernel_byte != model_byte && !is_checksum(offset) {
                return Err(format!(
                    "byte {offset} of the frame\n  kernel {}\n  model  {}",
                    hex(kernel),
                    hex(model)
                ));
            }
        }
        if !self.checksums.is_empty() && inspect(sent).is_ok() {
            let shown = |error| format!("{error}\n  kernel {}", hex(kernel));
            let inner = unwrap(kernel).map_err(shown)?;
            inspect(inner.as_ref().unwrap_or(kernel)).map_err(shown)?;
        }
        Ok(())
    }
}

// === impl Model ===

impl Model {
    /// An enforcer without traffic, whose flow tables hold so many entries each; flows expire as the rig's do.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self {
            replay: Replay::new(capacity, TIMEOUTS),
            packets: BTreeMap::new(),
        }
    }

    /// Puts tables into force.
    pub fn install(&mut self, tables: Tables, generation: u64, host: HostRecord) {
        self.replay.install(tables, generation, host);
    }

    /// `LINKS`: MTUs in bytes, by index of the interface.
    pub fn set_links(&mut self, links: BTreeMap<u32, u32>) {
        self.replay.set_links(links);
    }

    /// `FLOWS`.
    #[must_use]
    pub const fn flows(&self) -> &BTreeMap<FlowKey, FlowRecord> {
        self.replay.flows()
    }

    /// `REPLIES`.
    #[must_use]
    pub const fn replies(&self) -> &BTreeMap<FlowKey, ReplyRecord> {
        self.replay.replies()
    }

    /// Sets the agent's lease.
    pub fn set_lease(&mut self, lease: LeaseRecord) {
        self.replay.set_lease(lease);
    }

    /// A limiter's word.
    #[must_use]
    pub fn limiter(&self, index: u32) -> u64 {
        self.replay.limiter(index)
    }

    /// Connections that are open, by an index of the schema; never less than none.
    #[must_use]
    pub fn open_connections(&self, index: u32) -> u64 {
        self.replay.open_connections(index)
    }

    /// Removes what is idle for too long, and counts what has ended as closed.
    pub fn sweep(&mut self, now_ns: u64) -> Sweep {
        self.replay.sweep(now_ns)
    }

    /// Judges a frame and carries out what was decided.
    pub fn run(&mut self, direction: u32, frame: &[u8], now_ns: u64) -> Outcome {
        let parsed = parse(frame);
        let outcome = self.replay.judge(
            direction,
            &parsed,
            message(frame, &parsed).as_ref(),
            Arrival {
                ifindex: INGRESS_IFINDEX,
                tags: tags(frame, &parsed),
            },
            now_ns,
        );
        let decision = outcome.decision;
        let counter = self
            .packets
            .entry((direction, decision.tenant, decision.reason))
            .or_insert(0);
        *counter += 1;
        let (frame, checksums) = match &outcome.sent {
            Some(sent) => rewritten(frame, &parsed, sent),
            None if decision.reason == Reason::Echo => turned_round(frame, &parsed),
            None => (answered(frame, outcome.answer), Vec::new()),
        };
        let translated_port_be = outcome.sent.map_or(0, |sent| sent.translated_port_be);
        let event = event_of(&decision, &parsed.packet, translated_port_be, direction, now_ns);
        Outcome {
            verdict: match outcome.answer.answer {
                Answer::None => verdict(&decision, outcome.sent.as_ref()),
                _ => Verdict::Transmit,
            },
            decision,
            packet: parsed.packet,
            frame,
            checksums,
            event,
        }
    }
}

/// The frame that is left: the answer in place of a packet that gets one.
fn answered(frame: &[u8], answered: Answered) -> Vec<u8> {
    match answered.answer {
        Answer::None => frame.to_vec(),
        Answer::Reset => reset(frame),
        Answer::Prohibited => complain(frame, Complaint::Prohibited),
        Answer::TooBig => complain(frame, Complaint::TooBig(answered.fitting_bytes)),
    }
}

fn verdict(decision: &Decision, sent: Option<&Sent>) -> Verdict {
    match (decision.reason.effect(), sent) {
        (Effect::Refused, _) => Verdict::Drop,
        (Effect::Forwarded, None) if decision.reason == Reason::Echo => Verdict::Transmit,
        (Effect::Passed, _) | (Effect::Forwarded, None | Some(Sent { ifindex: None, .. })) => Verdict::Pass,
        (
            Effect::Forwarded,
            Some(Sent {
                ifindex: Some(INGRESS_IFINDEX),
                ..
            }),
        ) => Verdict::Transmit,
        (Effect::Forwarded, Some(_)) => Verdict::Redirect,
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
        (Effect::Forwarded, FlowFate::Opened | FlowFate::Reopened | FlowFate::Stateless) => EVENT_FLOW_OPENED,
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
