//! Expiry, as the agent's sweeper does it: what is idle for too long goes, and what has ended counts as closed.
//!
//! The sweeper looks at every flow. Here only those are looked at that were touched since the last sweep or whose time
//! may have come, which comes to the same: nothing else can have ended or expired.

use std::collections::BTreeSet;

use enforcer_common::abi::address::FlowKey;

use super::Replay;
use crate::pure::expiry::{Counted, is_old_orphan};

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Keys of flows that went, ascending.
    pub closed: Vec<FlowKey>,
    /// Reply entries without a flow that went.
    pub orphans: u64,
}

impl Replay {
    /// Removes what is idle for too long, and counts what has ended as closed.
    pub fn sweep(&mut self, now_ns: u64) -> Sweep {
        let mut candidates = std::mem::take(&mut self.touched);
        candidates.extend(self.take_due(now_ns));
        let mut closed = Vec::new();
        for key in candidates {
            if self.sweep_flow(&key, now_ns) {
                closed.push(key);
            }
        }
        // What the sweep itself changed was looked at, and it removed each flow with its reply entry.
        self.touched.clear();
        let orphans = if self.may_have_orphans {
            self.remove_orphans(now_ns)
        } else {
            0
        };
        Sweep { closed, orphans }
    }

    /// Flows whose entry in `due` lies in the past; the entries are removed.
    fn take_due(&mut self, now_ns: u64) -> BTreeSet<FlowKey> {
        let mut keys = BTreeSet::new();
        while let Some((due_ns, key)) = self.due.first().copied()
            && due_ns <= now_ns
        {
            self.due.pop_first();
            self.due_of.remove(&key);
            keys.insert(key);
        }
        keys
    }

    /// Whether the flow was there and went.
    fn sweep_flow(&mut self, key: &FlowKey, now_ns: u64) -> bool {
        let Some(flow) = self.flows.get(key).copied() else {
            return false;
        };
        let seen = self.seen(key, &flow);
        let (has_ended, expires_ns) = (seen.has_ended(), seen.expires_ns(&self.timeouts));
        if !seen.is_expired(&self.timeouts, now_ns) {
            self.count_ended(*key, has_ended.then(|| Counted::of(&flow)));
            self.look_again(*key, expires_ns);
            return false;
        }
        if let Some(at) = self.reply_key_of(key, &flow) {
            self.remove_own_reply(&at, key);
        }
        self.count_ended(*key, Some(Counted::of(&flow)));
        self.remove_flow(key);
        true
    }

    /// An entry that is too early costs one more look; one that is too late would keep a flow for too long.
    fn look_again(&mut self, key: FlowKey, due_ns: u64) {
        match self.due_of.get(&key) {
            Some(earlier) if *earlier <= due_ns => return,
            Some(later) => {
                self.due.remove(&(*later, key));
            }
            None => {}
        }
        self.due_of.insert(key, due_ns);
        self.due.insert((due_ns, key));
    }

    fn remove_orphans(&mut self, now_ns: u64) -> u64 {
        let is_orphan = |(at, reply): &(&FlowKey, &_)| {
            let reply: &enforcer_common::abi::flow::ReplyRecord = reply;
            let flow = self.flows.get(&reply.forward);
            flow.and_then(|flow| self.reply_key_of(&reply.forward, flow)) != Some(**at)
        };
        let (old, young): (Vec<_>, Vec<_>) = self
            .replies
            .iter()
            .filter(is_orphan)
            .map(|(at, reply)| (*at, is_old_orphan(reply, now_ns)))
            .partition(|(_, is_old)| *is_old);
        for (at, _) in &old {
            self.remove_reply(at);
        }
        self.may_have_orphans = !young.is_empty();
        old.len() as u64
    }
}
