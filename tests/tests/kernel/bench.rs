//! Rows of a packet table, and what holds for every row.
//!
//! A row says what goes in, what comes out, and why. Besides that, every packet adds one to exactly one tally; a packet
//! that calls for an audit record sends exactly one event that tells the truth; a packet that is not forwarded leaves
//! its bytes, every limiter and both flow tables as they were.

use std::time::Duration;

use enforcer_agent::adapters::dataplane::Tally;
use enforcer_common::Reason;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::event::{EVENT_FLOW_MOVED, EVENT_FLOW_OPENED, EVENT_REFUSED, EventRecord};
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::abi::reason::Effect;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::decide::limiter::Limiter;
use enforcer_tests::packet::{Segment, inspect};
use enforcer_tests::rig::{Rig, Verdict, Way};
use enforcer_tests::world::World;

/// Capacity of the flow tables where a scenario does not care.
pub(crate) const FLOWS: u32 = 64;

/// A policy, its surroundings, and what happens under it.
pub(crate) struct Scenario {
    pub(crate) policy: &'static str,
    pub(crate) flow_entries: u32,
    /// Changes the world before the first packet.
    pub(crate) prepare: fn(&mut World),
    pub(crate) steps: Vec<Step>,
}

/// What happens next.
pub(crate) enum Step {
    Packet(Box<Row>),
    Advance(Duration),
    /// The world changes, and the tables are compiled and installed again.
    Change(&'static str, fn(&mut World)),
    /// Something to look at that is no packet.
    Inspect(&'static str, fn(&mut Bench)),
}

/// A packet and what is expected of it.
#[derive(Clone)]
pub(crate) struct Row {
    what: &'static str,
    frame: Vec<u8>,
    /// What an event says of it.
    key: Option<FlowKey>,
    /// What the tally counts: bytes from the IP header on.
    bytes: u64,
    times: u32,
    direction: u32,
    verdict: Verdict,
    pub(crate) reason: Reason,
    tenant: &'static str,
    /// The frame that comes out; `None`: as it went in.
    out: Option<Vec<u8>>,
    event: Option<u32>,
}

/// A row that expects to be left alone.
pub(crate) fn row(what: &'static str, segment: &Segment) -> Row {
    Row {
        key: Some(segment.key()),
        ..raw(what, segment.bytes(), segment.network_bytes())
    }
}

/// The same for bytes that are no good packet; `bytes` is what the tally is to count.
pub(crate) fn raw(what: &'static str, frame: Vec<u8>, bytes: u64) -> Row {
    Row {
        what,
        frame,
        key: None,
        bytes,
        times: 1,
        direction: DIRECTION_INGRESS,
        verdict: Verdict::Pass,
        reason: Reason::NotService,
        tenant: "",
        out: None,
        event: None,
    }
}

// === impl Row ===

impl Row {
    /// Refused.
    pub(crate) fn refused(mut self, tenant: &'static str, reason: Reason) -> Self {
        self.verdict = Verdict::Drop;
        self.reason = reason;
        self.tenant = tenant;
        self.event = Some(EVENT_REFUSED);
        self
    }

    fn sent(mut self, tenant: &'static str, verdict: Verdict, out: &Segment, event: Option<u32>) -> Self {
        self.verdict = verdict;
        self.reason = Reason::Allowed;
        self.tenant = tenant;
        self.out = Some(out.bytes());
        self.event = event;
        self
    }

    /// Opens a flow and goes out by another interface.
    pub(crate) fn opens(self, tenant: &'static str, out: &Segment) -> Self {
        self.sent(tenant, Verdict::Redirect, out, Some(EVENT_FLOW_OPENED))
    }

    /// Belongs to an open flow and goes out by another interface.
    pub(crate) fn continues(self, tenant: &'static str, out: &Segment) -> Self {
        self.sent(tenant, Verdict::Redirect, out, None)
    }

    /// Goes out by another interface, and there is no room for its flow.
    pub(crate) fn stateless(self, tenant: &'static str, out: &Segment) -> Self {
        let mut row = self.opens(tenant, out);
        row.reason = Reason::Stateless;
        row
    }

    /// Gives its flow another back end and goes out by another interface.
    pub(crate) fn moves(self, tenant: &'static str, out: &Segment) -> Self {
        self.sent(tenant, Verdict::Redirect, out, Some(EVENT_FLOW_MOVED))
    }

    /// Answers a client on the interface that it came in by.
    pub(crate) fn replies(self, tenant: &'static str, out: &Segment) -> Self {
        let mut row = self.sent(tenant, Verdict::Transmit, out, None);
        row.reason = Reason::Reply;
        row
    }

    /// The same out by the interface that it came in by.
    pub(crate) fn transmitted(mut self) -> Self {
        self.verdict = Verdict::Transmit;
        self
    }

    /// Goes through the TC egress program instead, and out.
    pub(crate) fn egress(mut self) -> Self {
        self.direction = DIRECTION_EGRESS;
        if self.verdict.forwards() {
            self.verdict = Verdict::Pass;
        }
        self
    }

    /// Comes out as these bytes.
    pub(crate) fn comes_out(mut self, frame: Vec<u8>) -> Self {
        self.out = Some(frame);
        self
    }

    /// Refused, and its sender is answered by this frame.
    pub(crate) fn answered(mut self, frame: Vec<u8>) -> Self {
        self.verdict = Verdict::Transmit;
        self.out = Some(frame);
        self
    }

    /// An ICMP error about a connection of a tenant, which goes out as this frame.
    pub(crate) fn related(mut self, tenant: &'static str, verdict: Verdict, out: Vec<u8>) -> Self {
        self.verdict = verdict;
        self.reason = Reason::Related;
        self.tenant = tenant;
        self.out = Some(out);
        self
    }

    /// An ICMP echo request of a tenant, which goes back as this frame.
    pub(crate) fn echoed(mut self, tenant: &'static str, out: Vec<u8>) -> Self {
        self.verdict = Verdict::Transmit;
        self.reason = Reason::Echo;
        self.tenant = tenant;
        self.out = Some(out);
        self
    }

    /// Stays on the host.
    pub(crate) fn passed(mut self) -> Self {
        self.verdict = Verdict::Pass;
        self
    }

    /// Goes in as these bytes.
    pub(crate) fn goes_in(mut self, frame: Vec<u8>) -> Self {
        self.frame = frame;
        self
    }

    /// The same packet so many times, each with the same outcome.
    pub(crate) fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }
}

impl From<Row> for Step {
    fn from(row: Row) -> Self {
        Self::Packet(Box::new(row))
    }
}

/// A rig with a world on it.
pub(crate) struct Bench {
    pub(crate) rig: Rig,
    pub(crate) world: World,
    /// Packets that went in, by direction.
    pub(crate) sent: [u64; 2],
    /// Events that came out.
    pub(crate) events: u64,
}

/// What a packet that is not forwarded must not change.
#[derive(PartialEq, Eq, Debug)]
struct State {
    limiters: Vec<u64>,
    flows: Vec<(FlowKey, FlowRecord)>,
    replies: Vec<(FlowKey, ReplyRecord)>,
}

// === impl Bench ===

impl Bench {
    pub(crate) fn new(policy: &str, flow_entries: u32, prepare: impl FnOnce(&mut World)) -> Self {
        Self::by(Way::Xdp, policy, flow_entries, prepare)
    }

    /// The same where packets come in another way.
    pub(crate) fn by(way: Way, policy: &str, flow_entries: u32, prepare: impl FnOnce(&mut World)) -> Self {
        let mut world = World::new(policy).unwrap_or_else(|error| panic!("{error:#?}"));
        prepare(&mut world);
        let mut bench = Self {
            rig: Rig::new(flow_entries)
                .unwrap_or_else(|error| panic!("{error}"))
                .by(way),
            world,
            sent: [0; 2],
            events: 0,
        };
        bench.apply();
        bench
    }

    /// Compiles the world and puts it into force.
    pub(crate) fn apply(&mut self) -> enforcer_agent::install::Installed {
        let compiled = self.world.compile().unwrap_or_else(|error| panic!("{error}"));
        self.rig.set_links(&self.world.host.links).unwrap();
        self.rig.set_host(&self.world.host.record()).unwrap();
        self.rig
            .install(compiled.tables)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn tenants(&self) -> u32 {
        self.world
            .directory
            .tenants
            .keys()
            .next_back()
            .map_or(1, |slot| slot + 1)
    }

    pub(crate) fn play(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Packet(row) => (0..row.times).for_each(|time| self.check(row, time)),
                Step::Advance(by) => {
                    let now_ns = self.rig.now_ns() + by.as_nanos() as u64;
                    self.rig.set_now(now_ns).unwrap();
                }
                Step::Change(what, change) => {
                    println!("change: {what}");
                    change(&mut self.world);
                    self.apply();
                }
                Step::Inspect(what, inspect) => {
                    println!("inspect: {what}");
                    inspect(self);
                }
            }
        }
    }

    fn state(&mut self) -> State {
        let tenants = self.tenants();
        let limiters = self.rig.limiters(tenants).unwrap();
        let maps = &self.rig.dataplane().maps;
        let mut flows = maps.flows(usize::MAX).unwrap();
        let mut replies = maps.replies(usize::MAX).unwrap();
        flows.sort_by_key(|(key, _)| *key);
        replies.sort_by_key(|(key, _)| *key);
        State {
            limiters,
            flows,
            replies,
        }
    }

    fn check(&mut self, row: &Row, time: u32) {
        let what = format!("{} (packet {} of {})", row.what, time + 1, row.times);
        let tenants = self.tenants();
        let before = self.rig.tallies(row.direction, tenants).unwrap();
        let state = self.state();
        let ran = match row.direction {
            DIRECTION_INGRESS => self.rig.ingress(&row.frame),
            _ => self.rig.egress(&row.frame),
        };
        let ran = match ran {
            // No program has seen it.
            Err(_) if !self.rig.way().takes(row.frame.len()) => return,
            ran => ran.unwrap_or_else(|error| panic!("{what}: {error}")),
        };
        self.sent[row.direction as usize] += 1;
        let after = self.rig.tallies(row.direction, tenants).unwrap();
        let counted: Vec<_> = after
            .iter()
            .filter(|(key, tally)| before.get(key) != Some(tally))
            .collect();
        let tenant = self.world.tenant(row.tenant);
        assert_eq!(
            counted.iter().map(|(key, _)| **key).collect::<Vec<_>>(),
            [(tenant, row.reason)],
            "{what}: the tally that moved; {counted:?}"
        );
        let old = before.get(&(tenant, row.reason)).copied().unwrap_or_default();
        let recorded = u64::from(row.event.is_some());
        let new = Tally {
            packets: old.packets + 1,
            bytes: old.bytes + row.bytes,
            recorded: old.recorded + recorded,
            ..old
        };
        assert_eq!(*counted[0].1, new, "{what}: by how much it moved");
        assert_eq!(
            ran.verdict,
            self.rig.way().way_out(row.verdict),
            "{what}: the verdict"
        );
        let out = row.out.as_ref().unwrap_or(&row.frame);
        let out = &self.rig.way().in_frame(&row.frame, out.clone());
        let differ = |(_, (is, should)): &(usize, (&u8, &u8))| is != should;
        let offsets: Vec<usize> = ran
            .frame
            .iter()
            .zip(out)
            .enumerate()
            .filter(differ)
            .map(|(offset, _)| offset)
            .collect();
        assert!(
            ran.frame == *out,
            "{what}: the frame that came out, of {} bytes, is\n{:?}\nand should be, of {} bytes,\n{:?}\n\
             they differ at {offsets:?}",
            ran.frame.len(),
            inspect(&ran.frame),
            out.len(),
            inspect(out),
        );
        if row.reason.effect() != Effect::Forwarded {
            let (mut before, mut after) = (state, self.state());
            if row.reason == Reason::BackendIneligible {
                // Its flow is marked as reset.
                for (_, flow) in before.flows.iter_mut().chain(&mut after.flows) {
                    flow.state = 0;
                }
            }
            if row.verdict == Verdict::Transmit {
                // The answer is paid for, and only that.
                let paid = tenant as usize * Limiter::ALL.len() + Limiter::Answers as usize;
                assert!(
                    after.limiters[paid] > before.limiters[paid],
                    "{what}: what its answer cost"
                );
                (before.limiters[paid], after.limiters[paid]) = (0, 0);
            }
            assert_eq!(
                after, before,
                "{what}: it was not forwarded and yet changed something"
            );
        }
        self.check_event(row, tenant, &what);
    }

    fn check_event(&mut self, row: &Row, tenant: u32, what: &str) {
        let events = self.rig.events();
        self.events += events.len() as u64;
        let kinds: Vec<u32> = events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, Vec::from_iter(row.event), "{what}: its events");
        let [event] = &events[..] else { return };
        let generation = self.generation();
        let told = EventRecord {
            now_ns: self.rig.now_ns(),
            generation,
            key: row.key.unwrap_or(event.key),
            reserved: 0,
            kind: row.event.unwrap_or(0),
            reason: row.reason as u32,
            tenant,
            bytes: row.bytes as u32,
            direction: row.direction,
            // What the row does not say: the tests of the decision look at these.
            ..*event
        };
        assert_eq!(*event, told, "{what}: what its event says");
    }

    pub(crate) fn generation(&mut self) -> u64 {
        use enforcer_agent::install::Banks as _;
        self.rig.dataplane().maps.generation().unwrap()
    }

    /// Packets in equal the sum over all tallies; decisions that call for a record were recorded, aggregated or lost.
    pub(crate) fn conserves(&mut self) {
        let all = enforcer_common::schema::DEFAULT_TENANTS;
        let mut called_for = 0;
        let mut told = Tally::default();
        for direction in [DIRECTION_INGRESS, DIRECTION_EGRESS] {
            let tallies = self.rig.tallies(direction, all).unwrap();
            let counted: u64 = tallies.values().map(|tally| tally.packets).sum();
            assert_eq!(counted, self.sent[direction as usize], "direction {direction}");
            for ((_, reason), tally) in tallies {
                if reason.effect() == Effect::Refused {
                    called_for += tally.packets;
                    assert_eq!(
                        tally.packets,
                        tally.recorded + tally.aggregated + tally.lost,
                        "{reason:?}"
                    );
                }
                told.recorded += tally.recorded;
                told.aggregated += tally.aggregated;
                told.lost += tally.lost;
            }
        }
        self.events += self.rig.events().len() as u64;
        assert_eq!(
            told.recorded, self.events,
            "events that were sent and events that came"
        );
        assert!(called_for <= told.recorded + told.aggregated + told.lost);
    }
}

// === impl Scenario ===

impl Scenario {
    pub(crate) fn of(policy: &'static str, steps: Vec<Step>) -> Self {
        Self {
            policy,
            flow_entries: FLOWS,
            prepare: |_| {},
            steps,
        }
    }

    /// Plays all steps, on a rig of its own for each way in.
    pub(crate) fn run(self) {
        if !crate::privileged() {
            return;
        }
        for way in Way::ALL {
            println!("packets come in by {way:?}");
            let mut bench = Bench::by(way, self.policy, self.flow_entries, self.prepare);
            bench.play(&self.steps);
            bench.conserves();
        }
    }

    /// The reasons that its rows expect.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.steps.iter().filter_map(|step| match step {
            Step::Packet(row) => Some(row.reason),
            _ => None,
        })
    }
}
