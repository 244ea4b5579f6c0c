//! Expiry, as the agent's sweeper does it.

use enforcer_agent::adapters::dataplane::Timeouts;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::FORWARD_L2DSR;
use enforcer_common::abi::flow::{FLOW_ESTABLISHED, FLOW_FIN, FLOW_RST, FlowRecord, ReplyRecord};
use enforcer_common::decide::TCP;

use super::Model;

/// A reply entry younger than this may be about to get its flow.
const ORPHAN_AGE_NS: u64 = 1_000_000_000;

/// What a sweep does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Keys of flows that go, ascending.
    pub closed: Vec<FlowKey>,
    /// Reply entries without a flow that go.
    pub orphans: u64,
}

impl Model {
    /// Removes what is idle for too long, and counts what has ended as closed.
    pub fn sweep(&mut self, now_ns: u64, timeouts: &Timeouts) -> Sweep {
        let mut swept = Sweep::default();
        for (key, flow) in self.flows.clone() {
            let has_ended = self.has_ended(&key, &flow);
            if !self.is_expired(&key, &flow, now_ns, timeouts) {
                self.count_ended(key, has_ended.then_some([flow.tenant, flow.backend]));
                continue;
            }
            if let Some(at) = self.reply_key_of(&key, &flow) {
                self.remove_own_reply(&at, &key);
            }
            self.flows.remove(&key);
            self.snapshot.flows.remove(&key);
            self.count_ended(key, Some([flow.tenant, flow.backend]));
            self.ended.remove(&key);
            swept.closed.push(key);
        }
        let orphans: Vec<FlowKey> = self
            .replies
            .iter()
            .filter(|(_, reply)| now_ns.saturating_sub(reply.seen_ns) >= ORPHAN_AGE_NS)
            .filter(|(key, reply)| {
                let flow = self.flows.get(&reply.forward);
                flow.and_then(|flow| self.reply_key_of(&reply.forward, flow)) != Some(**key)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in &orphans {
            self.remove_reply(key);
        }
        swept.orphans = orphans.len() as u64;
        swept
    }

    fn own_reply(&self, key: &FlowKey, flow: &FlowRecord) -> Option<&ReplyRecord> {
        let reply = self.reply_key_of(key, flow).and_then(|at| self.replies.get(&at));
        reply.filter(|reply| reply.forward == *key)
    }

    /// What was seen of the back end's direction: where it answers directly, the client's is all there is to see.
    fn state_back(&self, key: &FlowKey, flow: &FlowRecord) -> u32 {
        if flow.forward == FORWARD_L2DSR {
            flow.state
        } else {
            self.own_reply(key, flow).map_or(0, |reply| reply.state)
        }
    }

    fn has_ended(&self, key: &FlowKey, flow: &FlowRecord) -> bool {
        let (here, back) = (flow.state, self.state_back(key, flow));
        key.protocol == TCP && ((here | back) & FLOW_RST != 0 || here & back & FLOW_FIN != 0)
    }

    fn is_expired(&self, key: &FlowKey, flow: &FlowRecord, now_ns: u64, timeouts: &Timeouts) -> bool {
        let seen_ns = flow
            .seen_ns
            .max(self.own_reply(key, flow).map_or(0, |reply| reply.seen_ns));
        let (here, back) = (flow.state, self.state_back(key, flow));
        let timeout = if key.protocol != TCP {
            timeouts.udp
        } else if self.has_ended(key, flow) {
            timeouts.tcp_closing
        } else if here & back & FLOW_ESTABLISHED != 0 || (here | back) & FLOW_FIN != 0 {
            timeouts.tcp_established
        } else {
            timeouts.tcp_opening
        };
        now_ns.saturating_sub(seen_ns) >= timeout.as_nanos() as u64
    }
}
