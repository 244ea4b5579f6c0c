//! Sends ICMP errors about flows on to the end that they concern, and answers echo requests.

use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::{FORWARD_L2DSR, FORWARD_LOCAL, encapsulates, takes_hop};
use enforcer_common::abi::reason::{Effect, Reason};
use enforcer_common::decide::{Decision, answer, echo, related, reply_key};
use enforcer_common::parse::{Frame, Message, Quoted};

use super::{Answered, Outcome, Replay, Sent};

impl Replay {
    /// What becomes of an ICMP packet; `None` if it is judged as any other.
    pub(super) fn message(&mut self, frame: &Frame, message: &Message, now_ns: u64) -> Option<Outcome> {
        match message {
            Message::Error(quoted) => {
                let decision = related::judge(&self.snapshot, &frame.packet, &quoted.key, now_ns)?;
                Some(self.related(frame, quoted, decision, now_ns))
            }
            Message::EchoRequest => {
                let decision = echo::judge(&self.snapshot, &frame.packet, now_ns)?;
                if decision.reason == Reason::Echo {
                    let owed = answer::owed(&self.snapshot, decision.tenant);
                    self.pay(&owed, now_ns);
                }
                Some(Outcome {
                    decision,
                    sent: None,
                    answer: Answered::NOTHING,
                })
            }
        }
    }

    /// Carries out what was decided about an error.
    fn related(&mut self, frame: &Frame, quoted: &Quoted, decision: Decision, now_ns: u64) -> Outcome {
        let outcome = |decision, sent| Outcome {
            decision,
            sent,
            answer: Answered::NOTHING,
        };
        if decision.reason.effect() != Effect::Forwarded {
            return outcome(decision, None);
        }
        let client = quoted.key.reversed();
        let sent = if decision.to_service {
            self.to_backend(frame, &client, &decision)
        } else {
            self.to_client(frame, &client)
        };
        match sent {
            Some(sent) => {
                let owed = answer::owed(&self.snapshot, decision.tenant);
                self.pay(&owed, now_ns);
                outcome(decision, Some(sent))
            }
            None => outcome(decision.refused(Reason::Internal), None),
        }
    }

    /// `client` is the 5-tuple of the client's packets.
    fn to_backend(&self, frame: &Frame, client: &FlowKey, decision: &Decision) -> Option<Sent> {
        let flow = self.flows.get(client)?;
        let tables = &self.snapshot.tables;
        let backend = tables.backends.get(decision.backend.checked_sub(1)? as usize)?;
        let forward = decision.forward;
        let stays = forward == FORWARD_LOCAL;
        let translates = !(stays || forward == FORWARD_L2DSR || encapsulates(forward));
        let nat = self.nat_source(client, forward, flow.translated_port_be);
        let ends = FlowKey {
            source: nat.map_or(frame.packet.key.source, |(address, _)| address),
            destination: backend.address,
            ..frame.packet.key
        };
        Some(Sent {
            ifindex: (!stays).then_some(backend.ifindex),
            key: translates.then_some(ends),
            quoted: translates.then(|| reply_key(client, backend.address, backend.port_be, nat)),
            hops: u8::from(takes_hop(forward)),
            link: (!stays).then_some((backend.next_hop_mac, backend.own_mac)),
            tags: (!stays).then_some(backend.tags),
            outer: encapsulates(forward).then(|| self.outer(&frame.packet.key, forward, backend)),
            translated_port_be: 0,
            stateless: false,
        })
    }

    /// `backend` is the 5-tuple of the back end's packets.
    fn to_client(&self, frame: &Frame, backend: &FlowKey) -> Option<Sent> {
        let reply = self.replies.get(backend)?;
        Some(Sent {
            ifindex: Some(reply.client_ifindex),
            key: Some(FlowKey {
                source: reply.forward.destination,
                destination: reply.forward.source,
                ..frame.packet.key
            }),
            quoted: Some(reply.forward),
            hops: 1,
            link: Some((reply.client_mac, reply.own_mac)),
            tags: Some(reply.tags),
            outer: None,
            translated_port_be: 0,
            stateless: false,
        })
    }
}
