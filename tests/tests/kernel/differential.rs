//! The same traffic under the same policies, three times: in the kernel, in the model (the shared decision over tables
//! in memory), and in the oracle (the text of the policy, read naively). Kernel and model have to agree on every bit,
//! model and oracle on everything that the oracle can know.
//!
//! A difference is cut down to the operations that it needs and saved below `tests/regressions`, from where every later
//! run plays it again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use enforcer_agent::pure::compile::Exhausted;
use enforcer_agent::pure::policy::schedule::closed_rules;
use enforcer_common::Reason;
use enforcer_common::abi::config::LeaseRecord;
use enforcer_common::abi::event::EventRecord;
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::decide::{FlowFate, Shape};
use enforcer_common::schema::{backend_connections, holder_connections, tenant_connections, tenant_holder};
use enforcer_tests::generate::{self, Op, Start, Surroundings, unhex};
use enforcer_tests::model::{Model, Outcome};
use enforcer_tests::oracle::{Answer, Fate, Oracle, Prediction, Status};
use enforcer_tests::packet::Segment;
use enforcer_tests::random::{Random, SEED_VARIABLE, count, seed};
use enforcer_tests::rig::{GROUPS, Rig, START_NS, TIMEOUTS, Way};
use enforcer_tests::world::{BACKEND_IFINDEX, INGRESS_IFINDEX, LOCAL_V4, NAT_V4, NAT_V6, World, next_hop};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::privileged;
use rigs::Rigs;

mod rigs;

/// Room for every flow of the generator's universe.
const ROOMY: u32 = 4096;
/// Room for far fewer.
const CRAMPED: u32 = 24;
/// Operations of one run: then a new policy, and tables without traffic.
const RUN_OPS: u64 = 2000;
/// All flows, replies and counts are compared so often.
const COMPARE_ALL_EVERY: u64 = 250;
/// So many steps meet every reason and every kind of policy; fewer may by chance leave some out.
const ENOUGH_STEPS: u64 = 500_000;
/// Ports for `Nat` with which no run is short of ports.
const PLENTY_OF_PORTS: u16 = 20_000;
/// Slots that the generator's tenants and back ends can have.
const TENANT_SLOTS: u32 = 8;
const BACKEND_SLOTS: u32 = 32;

/// A run that is kept.
#[derive(Serialize, Deserialize)]
struct Recorded {
    /// What was seen.
    problem: String,
    start: Start,
    ops: Vec<Op>,
}

/// What was seen along the way.
#[derive(Default)]
struct Stats {
    reasons: BTreeMap<Reason, u64>,
    /// Predictions that left no choice, and those that did.
    definite: u64,
    open: u64,
    installed: u64,
}

/// One run of the three.
struct Run<'r> {
    rig: &'r mut Rig,
    model: Model,
    oracle: Oracle,
    world: World,
    now_ns: u64,
    steps: u64,
    stats: &'r mut Stats,
}

/// A difference, in words.
type Difference = String;

fn unequal<T: PartialEq + std::fmt::Debug>(what: &str, kernel: &T, model: &T) -> Result<(), Difference> {
    if kernel == model {
        Ok(())
    } else {
        Err(format!("{what}\n  kernel {kernel:?}\n  model  {model:?}"))
    }
}

impl<'r> Run<'r> {
    fn begin(rig: &'r mut Rig, start: &Start, stats: &'r mut Stats) -> Result<Self, Difference> {
        let mut world = World::new(&start.policy.text()).map_err(|error| error.to_string())?;
        world.host.events_per_window = u64::MAX;
        world.host.nat_port_count = start.nat_ports;
        world.host.flows_per_tenant = start.flows_per_tenant;
        rig.set_now(START_NS).unwrap();
        rig.forget_traffic(TENANT_SLOTS).unwrap();
        rig.set_lease(&LeaseRecord::ZERO).unwrap();
        rig.events();
        let tight = start.flow_entries < ROOMY || start.nat_ports < PLENTY_OF_PORTS;
        let nat: Vec<IpAddr> = vec![NAT_V4.into(), NAT_V6.into()];
        let local: Vec<IpAddr> = vec![LOCAL_V4.into(), NAT_V4.into()];
        let mut run = Self {
            rig,
            model: Model::new(start.flow_entries),
            oracle: Oracle::new(start.policy.clone(), nat, local, tight).with_share(start.flows_per_tenant),
            world,
            now_ns: START_NS,
            steps: 0,
            stats,
        };
        run.open_and_close();
        run.install()?;
        Ok(run)
    }

    fn install(&mut self) -> Result<(), Difference> {
        let compiled = self.world.compile().map_err(|error| error.to_string())?;
        let host = self.world.host.record();
        self.rig.set_links(&self.world.host.links).unwrap();
        self.model.set_links(self.world.host.links.clone());
        self.rig.set_host(&host).unwrap();
        let installed = self.rig.install(compiled.tables.clone()).unwrap();
        self.model.install(compiled.tables, installed.generation, host);
        self.stats.installed += 1;
        Ok(())
    }

    /// Does one thing, three times.
    fn step(&mut self, op: &Op) -> Result<(), Difference> {
        self.steps += 1;
        match op {
            Op::Packet { direction, segment } => {
                let prediction = self.oracle.predict(*direction, segment, self.now_ns);
                let outcome = self.packet(*direction, &segment.bytes())?;
                self.ask_oracle(segment, &prediction, &outcome)?;
            }
            Op::Echo(request) => {
                let prediction = self.oracle.predict_echo(request, self.now_ns);
                let outcome = self.packet(DIRECTION_INGRESS, &request.bytes())?;
                self.compare_prediction(&prediction, &self.answer(&outcome))?;
            }
            Op::Frame(digits) => {
                let frame = unhex(digits).ok_or("a frame that is no hexadecimal text")?;
                if !self.rig.way().takes(frame.len()) {
                    return Ok(());
                }
                let outcome = self.packet(DIRECTION_INGRESS, &frame)?;
                // The oracle knows packets, not bytes. It predicts nothing of a damaged one, but is told what it did.
                let touches = [
                    Reason::Allowed,
                    Reason::Reply,
                    Reason::Stateless,
                    Reason::TableFull,
                    Reason::TranslationExhausted,
                    Reason::BackendIneligible,
                ];
                if touches.contains(&outcome.decision.reason) {
                    let answer = self.answer(&outcome);
                    self.oracle
                        .observe(&Segment::like(&outcome.packet), &answer, self.now_ns);
                }
            }
            Op::Advance(by_ns) => {
                self.now_ns += by_ns;
                self.rig.set_now(self.now_ns).unwrap();
            }
            Op::Sweep => self.sweep()?,
            Op::Policy(policy) => {
                self.world
                    .set_policy(&policy.text())
                    .map_err(|error| error.to_string())?;
                self.oracle.set_policy((**policy).clone());
                self.open_and_close();
                self.install()?;
            }
            Op::Wall(seconds) => {
                self.oracle.wall_seconds = *seconds;
                self.open_and_close();
                self.install()?;
            }
            Op::Lease { new_ns, all_ns } => self.lease(*new_ns, *all_ns),
            Op::Backend { .. }
            | Op::Link { .. }
            | Op::Pool { .. }
            | Op::Tenant { .. }
            | Op::Quota { .. }
            | Op::Share { .. }
            | Op::Shed { .. } => {
                self.change(op);
                self.install()?;
            }
        }
        if self.steps.is_multiple_of(COMPARE_ALL_EVERY) {
            self.compare_all()?;
        }
        Ok(())
    }

    /// The product's own idea of which rules the time closes; the oracle has another.
    fn open_and_close(&mut self) {
        let now = Timestamp::from_second(self.oracle.wall_seconds).unwrap();
        self.world.closed_rules = closed_rules(&self.world.policy, now);
    }

    fn change(&mut self, op: &Op) {
        let put = |set: &mut BTreeSet<String>, name: &String, member: bool| {
            if member {
                set.insert(name.clone());
            } else {
                set.remove(name);
            }
        };
        match op {
            Op::Backend {
                name,
                healthy,
                draining,
                weight,
                reachable,
            } => {
                // In a run that was cut down, the back end may never have come.
                let Some(address) = self
                    .oracle
                    .given()
                    .backends()
                    .find(|known| known.name == *name)
                    .map(|known| known.address)
                else {
                    return;
                };
                self.world.set_backend(name, |status| {
                    status.healthy = *healthy;
                    status.draining = *draining;
                    status.weight = *weight;
                    status.next_hop = reachable.then(|| next_hop(address));
                });
                let status = Status {
                    healthy: *healthy,
                    draining: *draining,
                    weightless: *weight == 0,
                    reachable: *reachable,
                };
                self.oracle.statuses.insert(name.clone(), status);
            }
            Op::Link { mtu_bytes } => {
                self.world.host.links = mtu_bytes
                    .map(|mtu_bytes| BTreeMap::from([(INGRESS_IFINDEX, mtu_bytes), (BACKEND_IFINDEX, 1280)]))
                    .unwrap_or_default();
                self.oracle.client_mtu_bytes = *mtu_bytes;
            }
            Op::Pool { name, failed } => {
                put(&mut self.world.failed_pools, name, *failed);
                put(&mut self.oracle.failed_pools, name, *failed);
            }
            Op::Tenant { name, suspended } => {
                put(&mut self.world.suspended, name, *suspended);
                put(&mut self.oracle.suspended, name, *suspended);
            }
            Op::Quota { name, only_new } => {
                self.world.exhausted.remove(name);
                if let Some(only_new) = only_new {
                    let what = if *only_new {
                        Exhausted::NewFlows
                    } else {
                        Exhausted::Everything
                    };
                    self.world.exhausted.insert(name.clone(), what);
                }
                put(&mut self.oracle.used_up, name, *only_new == Some(false));
                put(&mut self.oracle.used_up_for_new, name, *only_new == Some(true));
            }
            Op::Share { name, rate } => {
                for shares in [&mut self.world.fair_rates, &mut self.oracle.shares] {
                    match rate {
                        Some(rate) => shares.insert(name.clone(), *rate),
                        None => shares.remove(name),
                    };
                }
            }
            Op::Shed { pool, class, sheds } => {
                put(self.world.shed.entry(pool.clone()).or_default(), class, *sheds);
                let both = (pool.clone(), class.clone());
                if *sheds {
                    self.oracle.shedding.insert(both);
                } else {
                    self.oracle.shedding.remove(&both);
                }
            }
            _ => {}
        }
    }

    fn lease(&mut self, new_ns: u64, all_ns: u64) {
        let end_ns = |term_ns: u64| (term_ns != 0).then(|| self.now_ns + term_ns);
        (self.oracle.new_ends_ns, self.oracle.all_ends_ns) = (end_ns(new_ns), end_ns(all_ns));
        let lease = LeaseRecord {
            new_flows_until_ns: self.oracle.new_ends_ns.unwrap_or(0),
            everything_until_ns: self.oracle.all_ends_ns.unwrap_or(0),
        };
        self.rig.set_lease(&lease).unwrap();
        self.model.set_lease(lease);
    }

    /// Kernel against model, on one frame.
    fn packet(&mut self, direction: u32, frame: &[u8]) -> Result<Outcome, Difference> {
        let outcome = self.model.run(direction, frame, self.now_ns);
        let decision = &outcome.decision;
        *self.stats.reasons.entry(decision.reason).or_insert(0) += 1;
        let cell = |rig: &mut Rig| {
            let maps = &rig.dataplane().maps;
            maps.tallies(direction, decision.tenant).unwrap()[decision.reason as usize]
        };
        let before = cell(self.rig);
        let ran = match direction {
            DIRECTION_INGRESS => self.rig.ingress(frame),
            _ => self.rig.egress(frame),
        }
        .map_err(|error| error.to_string())?;
        let after = cell(self.rig);
        let verdict = self.rig.way().way_out(outcome.verdict);
        unequal("verdict", &ran.verdict, &verdict)?;
        let counted = (after.packets - before.packets, after.bytes - before.bytes);
        let should = (1, u64::from(outcome.packet.bytes));
        unequal("packets and bytes of its tally", &counted, &should).map_err(|difference| {
            format!(
                "{difference}\n  {:?} of tenant {}",
                decision.reason, decision.tenant
            )
        })?;
        outcome.same_frame(self.rig.way(), frame, &ran)?;
        let events: Vec<EventRecord> = self
            .rig
            .events()
            .into_iter()
            .map(|event| EventRecord { cpu: 0, ..event })
            .collect();
        unequal("events", &events, &Vec::from_iter(outcome.event))?;
        self.compare_touched(&outcome)?;
        Ok(outcome)
    }

    /// What one packet may have touched.
    fn compare_touched(&mut self, outcome: &Outcome) -> Result<(), Difference> {
        let maps = &self.rig.dataplane().maps;
        if outcome.packet.shape == Shape::Transport {
            let key = &outcome.packet.key;
            if outcome.decision.service != 0 {
                unequal(
                    "its flow",
                    &maps.flow(key).unwrap(),
                    &self.model.flows().get(key).copied(),
                )?;
            }
            unequal(
                "its reply entry",
                &maps.reply(key).unwrap(),
                &self.model.replies().get(key).copied(),
            )?;
        }
        let decision = &outcome.decision;
        let tenant = Some(decision.tenant).filter(|tenant| *tenant != 0);
        let groups = [decision.pair_group, decision.service_group];
        let groups = groups.into_iter().filter(|group| *group != 0);
        for holder in tenant.map(tenant_holder).into_iter().chain(groups) {
            for limiter in Limiter::ALL {
                let (word, model) = (
                    maps.limiter(holder, limiter).unwrap(),
                    self.model.limiter(limiter.index(holder)),
                );
                unequal(&format!("{limiter:?} of holder {holder}"), &word, &model)?;
            }
        }
        Ok(())
    }

    /// Every flow, reply entry, limiter and count.
    fn compare_all(&mut self) -> Result<(), Difference> {
        let maps = &self.rig.dataplane().maps;
        let flows: BTreeMap<_, _> = maps.flows(usize::MAX).unwrap().into_iter().collect();
        unequal("all flows", &flows, self.model.flows())?;
        let replies: BTreeMap<_, _> = maps.replies(usize::MAX).unwrap().into_iter().collect();
        unequal("all reply entries", &replies, self.model.replies())?;
        let used = self.world.slots.limits.iter().map(|(_, group)| group).max();
        assert!(
            used < Some(GROUPS),
            "this run needs more limit groups than are looked at"
        );
        for holder in (1..TENANT_SLOTS).map(tenant_holder).chain(1..GROUPS) {
            for limiter in Limiter::ALL {
                let index = limiter.index(holder);
                let word = maps.limiter(holder, limiter).unwrap();
                unequal(&format!("limiter {index}"), &word, &self.model.limiter(index))?;
            }
        }
        let indexes = (0..TENANT_SLOTS)
            .map(tenant_connections)
            .chain((1..GROUPS).map(holder_connections))
            .chain((0..BACKEND_SLOTS).map(backend_connections));
        for index in indexes {
            let open = maps.open_connections(index).unwrap();
            let model = self.model.open_connections(index);
            unequal(&format!("open connections at {index}"), &open, &model)?;
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), Difference> {
        let swept = self.rig.sweep().unwrap();
        let model = self.model.sweep(self.now_ns);
        let mut closed: Vec<_> = swept.closed.iter().map(|flow| flow.key).collect();
        closed.sort_unstable();
        unequal("flows that expired", &closed, &model.closed)?;
        unequal("orphans", &swept.orphans, &model.orphans)?;
        unequal(
            "number of flows that expired",
            &self.oracle.sweep(self.now_ns, &TIMEOUTS),
            &model.closed.len(),
        )
    }

    /// What became of a packet, with names.
    fn answer(&self, outcome: &Outcome) -> Answer {
        let (decision, directory) = (&outcome.decision, &self.world.directory);
        let flow = self.model.flows().get(&outcome.packet.key);
        Answer {
            reason: decision.reason,
            tenant: directory.tenant(decision.tenant).map(str::to_owned),
            service: directory
                .service(decision.service)
                .map(|service| service.name.clone()),
            rule: directory.rule(decision.rule).map(|rule| rule.name.clone()),
            backend: directory
                .backend(decision.backend)
                .map(|backend| backend.name.clone()),
            port: flow.map_or(0, |flow| u16::from_be(flow.translated_port_be)),
            fate: match (decision.reason, decision.flow) {
                (Reason::Allowed, FlowFate::Opened) | (Reason::Stateless, _) => Some(Fate::Opens),
                (Reason::Allowed, FlowFate::Kept | FlowFate::Renewed) => Some(Fate::Continues),
                (Reason::Allowed, FlowFate::Moved) => Some(Fate::Moves),
                (Reason::Allowed, FlowFate::Reopened) => Some(Fate::Reopens),
                _ => None,
            },
        }
    }

    /// Model against oracle.
    fn ask_oracle(
        &mut self,
        segment: &Segment,
        prediction: &Prediction,
        outcome: &Outcome,
    ) -> Result<(), Difference> {
        let answer = self.answer(outcome);
        self.compare_prediction(prediction, &answer)?;
        self.oracle.observe(segment, &answer, self.now_ns);
        Ok(())
    }

    fn compare_prediction(&mut self, prediction: &Prediction, answer: &Answer) -> Result<(), Difference> {
        if let Some(problem) = prediction.contradicts(answer) {
            return Err(format!(
                "the oracle disagrees: {problem}\n  answer     {answer:?}\n  prediction {prediction:?}"
            ));
        }
        if prediction.is_definite() {
            self.stats.definite += 1;
        } else {
            self.stats.open += 1;
        }
        Ok(())
    }
}

fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// Shrinks, saves, and fails.
fn report(rigs: &mut Rigs, way: Way, seed: u64, step: u64, start: Start, ops: Vec<Op>, first: &str) -> ! {
    let (ops, problem) = rigs.shrink(way, &start, ops);
    let path = regressions().join(format!("differential-{seed}-{step}.json"));
    let recorded = Recorded { problem, start, ops };
    let text = serde_json::to_string(&recorded).unwrap();
    std::fs::create_dir_all(regressions()).unwrap();
    std::fs::write(&path, text + "\n").unwrap();
    let transcript: String = recorded
        .ops
        .iter()
        .map(|op| format!("  {}\n", generate::describe(op)))
        .collect();
    panic!(
        "{SEED_VARIABLE}={seed}, step {step}, by {way:?}: {first}\n\ncut down to {} operations, saved as {}:\n{transcript}{}",
        recorded.ops.len(),
        path.display(),
        recorded.problem
    );
}

#[test]
fn kernel_model_and_oracle_agree() {
    if !privileged() {
        return;
    }
    let (seed, steps) = (seed(), count("DIFFERENTIAL_STEPS", 100_000));
    println!("{SEED_VARIABLE}={seed} DIFFERENTIAL_STEPS={steps}");
    let begun = Instant::now();
    let mut random = Random::new(seed);
    let mut rigs = Rigs::new();
    let mut stats = Stats::default();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut done = 0;
    // Runs come in by XDP and by TC in turn.
    for way in Way::ALL.into_iter().cycle() {
        if done >= steps {
            break;
        }
        let entries = if random.percent(20) { CRAMPED } else { ROOMY };
        let start = generate::start(&mut random, entries);
        let mut ops = Vec::new();
        let mut failed = None;
        match Run::begin(rigs.of(way, &start), &start, &mut stats) {
            Err(difference) => failed = Some(difference),
            Ok(mut run) => {
                for _ in 0..RUN_OPS.min(steps - done) {
                    let around = Surroundings {
                        policy: run.oracle.given(),
                        replies: run.model.replies(),
                    };
                    let op = generate::op(&mut random, &around);
                    ops.push(op.clone());
                    done += 1;
                    if let Err(difference) = run.step(&op) {
                        failed = Some(difference);
                        break;
                    }
                }
            }
        }
        if let Some(difference) = failed {
            report(&mut rigs, way, seed, done, start, ops, &difference);
        }
        for (kind, count) in generate::tally(&ops) {
            *kinds.entry(kind).or_insert(0) += count;
        }
    }
    println!(
        "{done} steps in {:.1?}: {kinds:?}, {} installations",
        begun.elapsed(),
        stats.installed
    );
    println!("{:?}", stats.reasons);
    println!(
        "the oracle predicted {} packets, and left {} open",
        stats.definite, stats.open
    );
    let unseen: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !stats.reasons.contains_key(reason))
        .collect();
    println!("reasons that never came up: {unseen:?}");
    if steps >= ENOUGH_STEPS {
        assert!(stats.definite > stats.open * 2, "an oracle that knows too little");
        assert_eq!(unseen, [&Reason::Internal], "reasons that never came up");
    }
}

/// Every difference that was ever found stays found.
#[test]
fn recorded_differences_stay_away() {
    if !privileged() {
        return;
    }
    let mut paths: Vec<PathBuf> = std::fs::read_dir(regressions())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    let mut rigs = Rigs::new();
    for path in &paths {
        let recorded: Recorded = serde_json::from_str(&std::fs::read_to_string(path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for way in Way::ALL {
            if let Err((index, difference)) = rigs.play(way, &recorded.start, &recorded.ops) {
                panic!(
                    "{} by {way:?} at operation {index}: {difference}\nit once was: {}",
                    path.display(),
                    recorded.problem
                );
            }
        }
    }
    println!("{} recorded runs played again", paths.len());
}
