//! `policy simulate`: what would change for traffic that was, if another policy took the place of one.
//!
//! Two kinds of traffic can be replayed. Packets of a capture are judged by the decision function of the data path, each
//! with the flows and limits that the packets before it left, once for either policy: exactly what the data path would
//! do with these packets. Decisions of an audit log are judged as new connections, since a log is a sample: what limits
//! would have done is not known then, and said to be unknown.
//!
//! Clients and back ends do not react: what was captured is taken as sent, also by a client whose connection a policy
//! refuses. Answers of back ends are judged as answers on the same client's connection, under each policy that has one.
//!
//! | Part | Module |
//! | --- | --- |
//! | captured bytes to a parsed frame | [`frame`] |
//! | a policy, compiled, with its flows and limits | [`side`] |
//! | slots of both policies as the same numbers | [`names`] |
//! | decisions of an audit log | [`log`] |
//! | counts | [`tally`] |
//! | what was found | [`report`] |

mod frame;
mod log;
mod names;
pub mod report;
mod side;
mod tally;

#[cfg(test)]
mod tests;

use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::decide::{Decision, FlowFate, Shape};
use enforcer_common::parse::Frame;
use jiff::Timestamp;
use thiserror::Error;

use super::compile::{CompileError, HostFacts};
use super::expiry::Timeouts;
use super::policy::ResolvedPolicy;
pub use frame::Link;
use log::Log;
use names::{Book, Names, Which};
use report::{PolicyRef, Report, Traffic, TrafficKind};
use side::Side;
use tally::{Class, Tally};

/// How far a packet may be older than one before it: capturing hosts merge several queues.
pub const MAX_DISORDER_NS: u64 = 1_000_000_000;
/// Time between two sweeps of the flow table, as the agent does them.
const SWEEP_INTERVAL_NS: u64 = 1_000_000_000;
/// The latest time that is taken for one: the year 2262.
const MAX_TIME_NS: u64 = i64::MAX as u64;

/// What the replay takes for granted around both policies. Back ends are all healthy, reachable and at their full weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// What is particular to the host. Without an address for `Nat` a dummy one is taken.
    pub host: HostFacts,
    /// Flows that fit the flow table.
    pub flow_entries: u32,
    /// How long idle flows stay in it.
    pub timeouts: Timeouts,
}

/// A packet as it was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturedPacket<'a> {
    /// Nanoseconds since 1970; `None` if the capture does not say, and then it counts as that of the packet before.
    pub time_ns: Option<u64>,
    /// What it begins with.
    pub link: Link,
    /// Whether the capture says that the capturing host sent it. Such a packet is judged as one that leaves through the
    /// host's stack.
    pub outgoing: bool,
    /// What was captured.
    pub bytes: &'a [u8],
    /// How long it was on the wire.
    pub original_bytes: u32,
}

/// What became of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// Both policies judged it.
    Both {
        /// The policy before.
        before: Decision,
        /// The policy after.
        after: Decision,
    },
    /// It is an answer on a connection that one of the policies does not have, or does not answer through this host.
    WithoutConnection,
    /// Too little of it was captured.
    CutShort,
}

/// Why a simulation cannot begin.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("policy `{policy}` cannot be compiled: {source}")]
pub struct CannotCompile {
    /// The policy's name.
    pub policy: String,
    /// Why.
    pub source: CompileError,
}

/// A packet whose time cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TimeError {
    /// It is older than one before it.
    #[error(
        "packet {packet} is {} ms older than one before it, and the replay's clock cannot go back by more than {} ms: sort \
         the capture by time first",
        back_ns / 1_000_000,
        MAX_DISORDER_NS / 1_000_000
    )]
    WentBack {
        /// Its number, from 1.
        packet: u64,
        /// By how much.
        back_ns: u64,
    },
    /// It is beyond all time.
    #[error("packet {packet} says that it was captured before 1970 or after 2262: the capture is damaged")]
    TooLate {
        /// Its number, from 1.
        packet: u64,
    },
}

/// Two policies and the traffic that they are compared over.
#[derive(Debug)]
pub struct Simulation {
    before: Side,
    after: Side,
    names: Names,
    tally: Tally,
    log: Log,
    /// First and last time that was judged.
    span_ns: Option<[u64; 2]>,
    /// Answers were seen between back ends and this host: what is seen between services and clients are their copies.
    sees_servers: bool,
    /// Packets that were older than one before them, within the bound.
    disordered: u64,
}

// === impl Simulation ===

impl Simulation {
    /// Compiles both policies. Nothing has been sent yet.
    ///
    /// # Errors
    /// [`CannotCompile`], for the policy that does not fit the tables.
    pub fn new(
        before: &ResolvedPolicy,
        after: &ResolvedPolicy,
        surroundings: &Surroundings,
    ) -> Result<Self, CannotCompile> {
        let side = |policy: &ResolvedPolicy| {
            Side::new(policy, surroundings).map_err(|source| CannotCompile {
                policy: policy.name.clone(),
                source,
            })
        };
        let (before, after) = (side(before)?, side(after)?);
        Ok(Self {
            names: Names::new(&before.directory, &after.directory),
            before,
            after,
            tally: Tally::default(),
            log: Log::default(),
            span_ns: None,
            sees_servers: false,
            disordered: 0,
        })
    }

    /// Judges a packet under both policies.
    ///
    /// # Errors
    /// [`TimeError`]: the packet was not judged, and what comes after it cannot be.
    pub fn packet(&mut self, packet: &CapturedPacket<'_>) -> Result<Judged, TimeError> {
        let now_ns = self.advance(packet.time_ns)?;
        self.tally.totals.read += 1;
        let captured = frame::Captured::new(packet.link, packet.bytes, packet.original_bytes);
        let Some((frame, message)) = captured.and_then(|captured| captured.parsed()) else {
            self.tally.totals.cut_short += 1;
            return Ok(Judged::CutShort);
        };
        let outgoing = packet.outgoing || packet.link.says_outgoing(packet.bytes);
        let direction = if outgoing {
            DIRECTION_EGRESS
        } else {
            DIRECTION_INGRESS
        };
        let client = self.client_of_answer(&frame, direction);
        let frames = match client {
            None => Some((frame, frame)),
            Some(client) => self.answers(&frame, &client),
        };
        let Some((before, after)) = frames else {
            self.tally.totals.without_connection += 1;
            return Ok(Judged::WithoutConnection);
        };
        let message = message.as_ref();
        let before = self.before.judge(direction, &before, message, now_ns);
        let after = self.after.judge(direction, &after, message, now_ns);
        self.count(&before, &after, &client.unwrap_or(frame.packet.key));
        Ok(Judged::Both { before, after })
    }

    /// A packet that cannot be judged for its kind of link.
    pub fn skip_packet(&mut self) {
        self.tally.totals.read += 1;
        self.tally.totals.skipped += 1;
    }

    /// What was found. `ended` says why the traffic ended early, `notes` what else the reader of the traffic has to say;
    /// `limit` is the most rows of changes.
    #[must_use]
    pub fn report(
        mut self,
        kind: TrafficKind,
        ended: Option<String>,
        mut notes: Vec<String>,
        limit: usize,
    ) -> Report {
        self.settle_log();
        if self.disordered > 0 {
            let disordered = self.disordered;
            notes.push(format!(
                "{disordered} packets were older than one before them, by less than a second: the clock stood still for \
                 them"
            ));
        }
        if self.tally.lost_connections() || self.log.lost_connections() {
            notes.push(
                "there were too many connections to tell all of them apart: some are not counted".to_owned(),
            );
        }
        for side in [&self.before, &self.after] {
            notes.extend(
                side.stuck
                    .iter()
                    .map(|error| format!("`{}` was judged by the hours before: {error}", side.name)),
            );
        }
        let book = Book {
            before: &self.before.directory,
            after: &self.after.directory,
        };
        let (changes, omitted) = self.tally.changes(&book, limit);
        let time = |at_ns: u64| Timestamp::from_nanosecond(at_ns.into()).ok();
        let policy = |side: &Side| PolicyRef {
            name: side.name.clone(),
            digest: side.digest.clone(),
        };
        Report {
            before: policy(&self.before),
            after: policy(&self.after),
            traffic: Traffic {
                kind,
                first: self.span_ns.and_then(|[first, _]| time(first)),
                last: self.span_ns.and_then(|[_, last]| time(last)),
                ended,
                notes,
            },
            changes,
            omitted,
            backends: self.tally.backends(&book),
            totals: self.tally.totals,
        }
    }

    /// Moves the clock to a packet's time, and sweeps on the way.
    fn advance(&mut self, time_ns: Option<u64>) -> Result<u64, TimeError> {
        let packet = self.tally.totals.read + 1;
        let [first_ns, last_ns] = match (self.span_ns, time_ns) {
            (_, Some(time_ns)) if time_ns > MAX_TIME_NS => return Err(TimeError::TooLate { packet }),
            (None, time_ns) => [time_ns.unwrap_or(0); 2],
            (Some(span_ns), None) => span_ns,
            (Some([first_ns, last_ns]), Some(time_ns)) if time_ns < last_ns => {
                let back_ns = last_ns - time_ns;
                if back_ns > MAX_DISORDER_NS {
                    return Err(TimeError::WentBack { packet, back_ns });
                }
                self.disordered += 1;
                [first_ns, last_ns]
            }
            (Some([first_ns, _]), Some(time_ns)) => [first_ns, time_ns],
        };
        self.span_ns = Some([first_ns, last_ns]);
        for side in [&mut self.before, &mut self.after] {
            side.sweep_until(last_ns - first_ns, first_ns);
        }
        Ok(last_ns)
    }

    /// The client's 5-tuple, if the packet answers a connection of either policy.
    ///
    /// An answer can be seen on its way from the back end to this host, or from there to the client. The latter is no
    /// packet that this host receives, but where the capture was made on the clients' side it stands for the former,
    /// which the capture does not show.
    fn client_of_answer(&mut self, frame: &Frame, direction: u32) -> Option<FlowKey> {
        if frame.packet.shape != Shape::Transport {
            return None;
        }
        let key = &frame.packet.key;
        let sides = [&self.before, &self.after];
        if let Some(client) = sides.iter().find_map(|side| side.client_of_answer(key)) {
            self.sees_servers = true;
            return Some(client);
        }
        let client = key.reversed();
        let is_open = || sides.iter().any(|side| side.replay.answers_of(&client).is_some());
        (direction == DIRECTION_INGRESS && !self.sees_servers && is_open()).then_some(client)
    }

    /// An answer as either policy's back end would have sent it; `None` unless both would have one.
    fn answers(&self, frame: &Frame, client: &FlowKey) -> Option<(Frame, Frame)> {
        let answer_under = |side: &Side| {
            if side.client_of_answer(&frame.packet.key) == Some(*client) {
                return Some(*frame);
            }
            let mut answer = *frame;
            answer.packet.key = side.replay.answers_of(client)?;
            Some(answer)
        };
        Some((answer_under(&self.before)?, answer_under(&self.after)?))
    }

    fn count(&mut self, before: &Decision, after: &Decision, client: &FlowKey) -> Class {
        let opened = |decision: &Decision| matches!(decision.flow, FlowFate::Opened | FlowFate::Reopened);
        let backend = |which, decision: &Decision| {
            if opened(decision) {
                self.names.backend(which, decision)
            } else {
                0
            }
        };
        let (from, to) = (backend(Which::Before, before), backend(Which::After, after));
        self.tally.new_connection(from, to);
        let made = (
            self.names.made(Which::Before, before),
            self.names.made(Which::After, after),
        );
        self.tally.decision(made.0, made.1, client, false)
    }
}
