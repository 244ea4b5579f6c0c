//! One of the two policies that are compared: compiled, with its own flows and limiters.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;

use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::LimitsRecord;
use enforcer_common::decide::Decision;
use enforcer_common::parse::{Frame, Message, NO_TAGS};
use jiff::Timestamp;

use super::{SWEEP_INTERVAL_NS, Surroundings};
use crate::pure::compile::{CompileError, Compiled, Directory, Inputs, compile};
use crate::pure::neutral::Neutral;
use crate::pure::policy::ResolvedPolicy;
use crate::pure::policy::schedule::{closed_rules, next_change};
use crate::pure::policy::selection::Selection;
use crate::pure::replay::{Arrival, Replay};

/// Where packets come in.
const ARRIVAL: Arrival = Arrival {
    ifindex: 2,
    tags: NO_TAGS,
};

/// A policy and the state that it would have left.
#[derive(Debug)]
pub(super) struct Side {
    policy: ResolvedPolicy,
    /// All back ends healthy and reachable, nobody suspended.
    neutral: Neutral,
    /// One more whenever a rule opens or closes.
    generation: u64,
    /// The times, in nanoseconds since 1970, for which the tables hold: until a rule opens or closes.
    holds: Range<u64>,
    /// Why the tables could not follow a schedule.
    pub(super) stuck: Option<CompileError>,
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) directory: Directory,
    pub(super) replay: Replay,
    /// Where back ends listen.
    servers: BTreeSet<SocketAddr>,
    /// Whole intervals since the first packet after which this side was swept.
    swept: u64,
}

// === impl Side ===

impl Side {
    pub(super) fn new(policy: &ResolvedPolicy, surroundings: &Surroundings) -> Result<Self, CompileError> {
        // With every rule open, until the first packet tells the time.
        let mut neutral = Neutral::of(policy, None).on(&surroundings.host);
        let Compiled {
            tables,
            directory,
            slots,
        } = compile(&neutral.inputs(policy))?;
        neutral.follow(slots, Selection::default());
        let mut replay = Replay::new(surroundings.flow_entries, surroundings.timeouts);
        let generation = 1;
        replay.install(tables, generation, neutral.host().record());
        let has_schedules = policy.rules.iter().any(|rule| rule.schedule.is_some());
        Ok(Self {
            policy: policy.clone(),
            neutral,
            generation,
            holds: if has_schedules { 0..0 } else { 0..u64::MAX },
            stuck: None,
            name: policy.name.clone(),
            digest: policy.digest().to_string(),
            servers: directory
                .backends
                .values()
                .map(|backend| SocketAddr::new(backend.address, backend.port))
                .collect(),
            directory,
            replay,
            swept: 0,
        })
    }

    /// Opens and closes rules by a time, in nanoseconds since 1970. It may go back.
    pub(super) fn set_time(&mut self, now_ns: u64) {
        if self.holds.contains(&now_ns) {
            return;
        }
        let Ok(now) = Timestamp::from_nanosecond(now_ns.into()) else {
            return;
        };
        let until_ns =
            next_change(&self.policy, now).and_then(|until| u64::try_from(until.as_nanosecond()).ok());
        self.holds = now_ns..until_ns.unwrap_or(u64::MAX);
        let closed = closed_rules(&self.policy, now);
        if closed == *self.neutral.closed_rules() {
            return;
        }
        let inputs = self.neutral.inputs(&self.policy);
        let inputs = Inputs {
            closed_rules: &closed,
            ..inputs
        };
        match compile(&inputs) {
            Ok(compiled) => {
                self.generation += 1;
                self.neutral.follow(compiled.slots, closed);
                self.directory = compiled.directory;
                let host = self.neutral.host().record();
                self.replay.install(compiled.tables, self.generation, host);
            }
            Err(error) => self.stuck = Some(error),
        }
    }

    /// Judges a packet, and does to flows and limiters what the data path would.
    pub(super) fn judge(
        &mut self,
        direction: u32,
        frame: &Frame,
        message: Option<&Message>,
        now_ns: u64,
    ) -> Decision {
        self.set_time(now_ns);
        self.replay
            .judge(direction, frame, message, ARRIVAL, now_ns)
            .decision
    }

    /// Sweeps as often as the agent does. Between two packets nothing is seen of the sweeps but the last.
    pub(super) fn sweep_until(&mut self, since_first_ns: u64, first_ns: u64) {
        let intervals = since_first_ns / SWEEP_INTERVAL_NS;
        if intervals > self.swept {
            self.swept = intervals;
            self.replay.sweep(first_ns + intervals * SWEEP_INTERVAL_NS);
        }
    }

    /// The client's 5-tuple of the flow that a packet with this one answers.
    pub(super) fn client_of_answer(&self, key: &FlowKey) -> Option<FlowKey> {
        self.replay.replies().get(key).map(|reply| reply.forward)
    }

    /// The limits that bind what got this decision; `None` if there are none.
    pub(super) fn limits_on(&self, decision: &Decision) -> Option<[LimitsRecord; 3]> {
        let limits = self.replay.limits_on(decision);
        limits
            .iter()
            .any(|limits| *limits != LimitsRecord::ZERO)
            .then_some(limits)
    }

    pub(super) fn is_server(&self, address: &SocketAddr) -> bool {
        self.servers.contains(address)
    }
}
