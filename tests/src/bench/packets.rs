//! What one packet costs the data plane: the object as it ships, under a policy that the agent's own compiler and
//! installer put in force, run in the kernel by `BPF_PROG_TEST_RUN`.
//!
//! The packets are made by [`super::driver`], a fresh one for each run of the program, so that every case also measures
//! the driver; what this takes is measured in the same run, as the base. Nothing is believed before it was looked at:
//! the first packets of a case must come out as the model says, and in the end the counters must have grown by exactly
//! the packets that were sent, for the reason that was expected.

mod cases;
mod worlds;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::abi::driver::DriverPlan;
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_common::decide::{TCP_ACK, TCP_SYN};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::driver::{self, Driver, DriverError, Measured};
use super::{BenchError, Options, Series};
use crate::model::Model;
use crate::packet::{Segment, tcp};
use crate::rig::{Rig, RigError, Verdict, Way};
use crate::world::BACKEND_IFINDEX;

pub(super) use cases::CASES;
pub(super) use worlds::Surroundings;

/// What is measured.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    under: Surroundings,
    what: What,
    /// Source and destination of the first flow.
    from: &'static str,
    to: &'static str,
    /// There are two to the power of this many flows.
    flow_bits: u32,
    /// Source of the first flow on a second CPU, if the case takes two.
    second: Option<&'static str>,
    verdict: Verdict,
    reason: Reason,
}

/// What the packets have behind them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// No program but one that answers at once: what the driver takes.
    Floor,
    /// A program that reads one line of so many mebibytes of memory.
    Line(u32),
    /// Nothing: they find and leave no flow.
    Stateless,
    /// Nothing, and each opens a flow.
    Opening,
    /// An open flow each.
    Established,
    /// A tenant that has used up its rate, but for what it earns back.
    OverLimit,
}

/// Loaded programs under a policy, and what makes their packets.
pub(super) struct Loaded {
    under: Surroundings,
    rig: Rig,
    driver: Driver,
    /// Of a second CPU.
    second: Driver,
    model: Model,
    tenants: u32,
}

/// So many low bits of a flow's number choose its port.
const PORT_BITS: u32 = 4;
/// Of a quick look at most these many flows: enough to see that a case works.
const QUICK_FLOW_BITS: u32 = 12;
/// Flows of a case that opens them, anew in each run.
const OPENING_PACKETS: u32 = 1 << 14;

/// Measures one case.
pub(super) fn measure(
    loaded: &mut Option<Loaded>,
    case: &'static str,
    spec: &Spec,
    options: &Options,
) -> Result<Series, BenchError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::Privileges(case));
    }
    if let What::Line(mebibytes) = spec.what {
        return lines(case, spec, mebibytes, options);
    }
    if loaded.as_ref().is_none_or(|loaded| loaded.under != spec.under) {
        // The old maps go first: two tables of a million flows need not fit.
        *loaded = None;
    }
    let loaded = match loaded {
        Some(loaded) => loaded,
        None => loaded.insert(Loaded::under(spec.under, options.quick)?),
    };
    let wrong = |what| BenchError::Wrong { case, what };
    let _pinned = Pinned::to_one_cpu()?;
    if spec.what != What::Floor {
        loaded.look(spec)?.map_err(wrong)?;
    }
    let before = loaded.counted()?;
    let mut batches = Batches::of(spec, options.quick);
    let series = batches.run(loaded, case, spec)?;
    let after = loaded.counted()?;
    batches.check(&before, &after, spec).map_err(wrong)?;
    loaded.rig.forget_traffic(loaded.tenants)?;
    Ok(series)
}

/// Measures what reading one line of memory costs a program.
fn lines(case: &'static str, spec: &Spec, mebibytes: u32, options: &Options) -> Result<Series, BenchError> {
    const LINES_IN_MEBIBYTE: u32 = 1 << 14;
    let _pinned = Pinned::to_one_cpu()?;
    let mut driver = Driver::with_lines(BACKEND_IFINDEX, mebibytes * LINES_IN_MEBIBYTE)?;
    let batches = Batches::of(spec, options.quick);
    let (mut runs, mut bases) = (Vec::new(), Vec::new());
    // The first one warms up.
    for run in 0..=batches.runs {
        let nothing = Measured::Nothing(spec.verdict);
        let base = driver.run(&batches.plan, nothing, batches.packets)?;
        let took = driver.run(&batches.plan, Measured::Line, batches.packets)?;
        spec.expects(case, &took)?;
        if run > 0 {
            bases.push(base.time.as_nanos() as f64);
            runs.push(took.time.as_nanos() as f64);
        }
    }
    Ok(Series {
        case,
        unit: "ns",
        runs,
        bases,
    })
}

/// The runs of a case.
struct Batches {
    /// Those that opened the flows, and every packet of the runs.
    sent: u64,
    runs: u32,
    packets: u32,
    plan: DriverPlan,
    /// Of a second CPU, if the case takes two.
    second: Option<DriverPlan>,
    began: std::time::Instant,
}

// === impl Batches ===

impl Batches {
    fn of(spec: &Spec, quick: bool) -> Self {
        let flow_bits = if quick {
            spec.flow_bits.min(QUICK_FLOW_BITS)
        } else {
            spec.flow_bits
        };
        let flags = if spec.what == What::Opening {
            TCP_SYN
        } else {
            TCP_ACK
        };
        let (port_bits, step) = spec.under.spread(PORT_BITS);
        let plan = |segment: &Segment| DriverPlan {
            scattered: 1,
            ..driver::plan(&segment.clone().flags(flags), flow_bits, port_bits, step)
        };
        Self {
            sent: 0,
            runs: if quick { 3 } else { 11 },
            packets: match (spec.what, quick) {
                (What::Opening, false) => OPENING_PACKETS,
                (What::Opening, true) => OPENING_PACKETS >> 4,
                // Every flow twice at least.
                (_, false) => (2 << flow_bits).max(1 << 18),
                (_, true) => 2 << QUICK_FLOW_BITS,
            },
            plan: plan(&spec.segment()),
            second: spec.second.map(|from| plan(&driver::framed(&tcp(from, spec.to)))),
            began: std::time::Instant::now(),
        }
    }

    fn run(&mut self, loaded: &mut Loaded, case: &'static str, spec: &Spec) -> Result<Series, BenchError> {
        if spec.what == What::Established {
            self.open_flows(loaded, spec)?;
        }
        let (mut runs, mut bases) = (Vec::new(), Vec::new());
        // The first one warms up.
        for run in 0..=self.runs {
            let (base, took) = self.pair(loaded, spec)?;
            spec.expects(case, &took)?;
            if run > 0 {
                bases.push(base.time.as_nanos() as f64);
                runs.push(took.time.as_nanos() as f64);
            }
            // What an agent does while packets pass, and in a run of new flows so that they are new again.
            loaded.rig.events();
            if spec.what == What::Opening {
                loaded.rig.forget_traffic(loaded.tenants)?;
                // Others than those whose memory is still in the processor's caches.
                self.plan.made += u64::from(self.packets);
            }
        }
        Ok(Series {
            case,
            unit: "ns",
            runs,
            bases,
        })
    }

    /// Opens the flows one after another, so that they lie in memory in another order than they are used in.
    fn open_flows(&mut self, loaded: &mut Loaded, spec: &Spec) -> Result<(), BenchError> {
        let of_second = self.second.zip(spec.second);
        for (plan, from) in [(self.plan, spec.from)].into_iter().chain(of_second) {
            let opening = driver::framed(&tcp(from, spec.to)).flags(TCP_SYN);
            let plan = DriverPlan {
                scattered: 0,
                template: driver::plan(&opening, 0, 0, 0).template,
                ..plan
            };
            let packets = 1 << plan.flow_bits;
            loaded.run(&plan, packets)?;
            loaded.rig.events();
            self.sent += u64::from(packets);
        }
        Ok(())
    }

    /// The base and the case, one after the other.
    fn pair(&mut self, loaded: &mut Loaded, spec: &Spec) -> Result<(driver::Run, driver::Run), BenchError> {
        let (driver, nothing) = (&mut loaded.driver, Measured::Nothing(spec.verdict));
        if spec.what == What::Floor {
            let base = driver.run_alone(&self.plan, spec.verdict, self.packets)?;
            return Ok((base, driver.run(&self.plan, nothing, self.packets)?));
        }
        let Some(second) = self.second else {
            let base = driver.run(&self.plan, nothing, self.packets)?;
            let took = loaded.run(&self.plan, self.packets)?;
            self.sent += u64::from(self.packets);
            return Ok((base, took));
        };
        let plans = [self.plan, second];
        let base = loaded.run_both(&plans, Some(spec.verdict), self.packets)?;
        let took = loaded.run_both(&plans, None, self.packets)?;
        self.sent += 2 * u64::from(self.packets);
        Ok((base, took))
    }

    /// Every packet that was sent was counted, for the reason that was expected and no other.
    fn check(
        &self,
        before: &BTreeMap<Reason, u64>,
        after: &BTreeMap<Reason, u64>,
        spec: &Spec,
    ) -> Result<(), String> {
        let mut grown: BTreeMap<Reason, u64> = after
            .iter()
            .map(|(reason, count)| (*reason, count - before.get(reason).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let mut expected = BTreeMap::from([(spec.reason, self.sent)]);
        expected.retain(|_, count| *count > 0);
        if spec.what == What::OverLimit {
            // One packet a second is earned back.
            let earned = grown.remove(&Reason::Allowed).unwrap_or(0);
            let most = self.began.elapsed().as_secs() + 2;
            if earned > most {
                return Err(format!(
                    "{earned} packets of a limit of one a second, in {most} s"
                ));
            }
            *expected.entry(spec.reason).or_default() -= earned;
        }
        if grown == expected {
            Ok(())
        } else {
            Err(format!("packets were counted as {grown:?}, not as {expected:?}"))
        }
    }
}

// === impl Spec ===

impl Spec {
    /// Whether a run ended with the verdict that the case is about.
    fn expects(&self, case: &'static str, run: &driver::Run) -> Result<(), BenchError> {
        if run.verdict == self.verdict {
            return Ok(());
        }
        let what = format!("the verdict is {:?}, not {:?}", run.verdict, self.verdict);
        Err(BenchError::Wrong { case, what })
    }

    /// A packet of the first flow.
    fn segment(&self) -> Segment {
        driver::framed(&tcp(self.from, self.to))
    }
}

// === impl Loaded ===

impl Loaded {
    fn under(under: Surroundings, quick: bool) -> Result<Self, BenchError> {
        let mut world = under.world(quick)?;
        let capacity = world.host.capacity;
        let mut rig = Rig::production(capacity)?;
        let compiled = world.compile()?;
        let host = world.host.record();
        rig.set_host(&host)?;
        let installed = rig.install(compiled.tables.clone())?;
        let mut model = Model::new(capacity.flows);
        model.install(compiled.tables, installed.generation, host);
        let tenants = world
            .directory
            .tenants
            .keys()
            .next_back()
            .map_or(1, |slot| slot + 1);
        Ok(Self {
            under,
            rig,
            // Nothing leaves a test run: any number will do.
            driver: Driver::load(BACKEND_IFINDEX)?,
            second: Driver::load(BACKEND_IFINDEX)?,
            model,
            tenants,
        })
    }

    /// Runs so many packets of a plan through the XDP program.
    fn run(&mut self, plan: &DriverPlan, packets: u32) -> Result<driver::Run, BenchError> {
        let program = self.rig.dataplane().xdp().map_err(RigError::from)?;
        let program = program.fd().map_err(DriverError::from)?;
        Ok(self.driver.run(plan, Measured::Program(program), packets)?)
    }

    /// Runs so many packets of two plans on two CPUs at once through the XDP program, or if there is a verdict through the
    /// program that answers it at once. What is answered is the mean time of a packet on its CPU.
    fn run_both(
        &mut self,
        plans: &[DriverPlan; 2],
        nothing: Option<Verdict>,
        packets: u32,
    ) -> Result<driver::Run, BenchError> {
        let program = self.rig.dataplane().xdp().map_err(RigError::from)?;
        let program = program.fd().map_err(DriverError::from)?;
        let measured = || nothing.map_or(Measured::Program(program), Measured::Nothing);
        let (first, second) = (&mut self.driver, &mut self.second);
        let both = thread::scope(|scope| {
            let beside = scope.spawn(|| -> Result<driver::Run, BenchError> {
                let _pinned = Pinned::to_another_cpu()?;
                Ok(second.run(&plans[1], measured(), packets)?)
            });
            let here = first.run(&plans[0], measured(), packets);
            let beside = beside.join().unwrap_or(Err(BenchError::Panicked));
            (here, beside)
        });
        let (here, beside) = (both.0?, both.1?);
        Ok(driver::Run {
            time: (here.time + beside.time) / 2,
            ..here
        })
    }

    /// Whether an opening packet and one after it come out as the model says, the last one for the case's reason.
    fn look(&mut self, spec: &Spec) -> Result<Result<(), String>, BenchError> {
        let opening = spec.segment().flags(TCP_SYN).bytes();
        let next = spec.segment().bytes();
        let frames = match spec.what {
            What::Opening => vec![opening],
            _ => vec![opening, next],
        };
        let mut model = self.model.clone();
        let mut last = None;
        for frame in &frames {
            let ran = self.rig.ingress(frame)?;
            let outcome = model.run(DIRECTION_INGRESS, frame, now_ns());
            let same = outcome.same_frame(Way::Xdp, frame, &ran);
            if same.is_err() || ran.verdict != outcome.verdict {
                let verdicts = (ran.verdict, outcome.verdict);
                return Ok(Err(format!("kernel and model differ: {verdicts:?}, {same:?}")));
            }
            last = Some((outcome.verdict, outcome.decision.reason));
        }
        self.rig.events();
        self.rig.forget_traffic(self.tenants)?;
        Ok(if last == Some((spec.verdict, spec.reason)) {
            Ok(())
        } else {
            let expected = (spec.verdict, spec.reason);
            Err(format!("a packet by itself is {last:?}, not {expected:?}"))
        })
    }

    /// Packets that came in, by reason.
    fn counted(&mut self) -> Result<BTreeMap<Reason, u64>, BenchError> {
        let mut counted = BTreeMap::new();
        for ((_, reason), tally) in self.rig.tallies(DIRECTION_INGRESS, self.tenants)? {
            *counted.entry(reason).or_insert(0) += tally.packets;
        }
        Ok(counted)
    }
}

/// The clock that the programs read.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_nanos() as u64
}

/// Where the first thread that was bound to a CPU could run before.
static ALL_CPUS: OnceLock<CpuSet> = OnceLock::new();

/// This thread on one CPU, until it is dropped: what it starts later may run anywhere.
pub(super) struct Pinned(CpuSet);

impl Pinned {
    /// To the last one that it may use, since interrupts tend to go to the first.
    pub(super) fn to_one_cpu() -> Result<Self, BenchError> {
        Self::to(0)
    }

    /// To the one before. The thread that started this one is on the last, and so this one would be.
    fn to_another_cpu() -> Result<Self, BenchError> {
        Self::to(1)
    }

    /// To the n-th from the last of this process's CPUs.
    fn to(from_last: usize) -> Result<Self, BenchError> {
        let refused = |source: rustix::io::Errno| BenchError::Io {
            what: "one CPU for the measurement",
            source: source.into(),
        };
        let own = sched_getaffinity(None).map_err(refused)?;
        // A thread starts where the one may run that started it: what the process may is known before it was bound.
        let all = ALL_CPUS.get_or_init(|| own);
        let mut one = CpuSet::new();
        if let Some(cpu) = (0..CpuSet::MAX_CPU)
            .rev()
            .filter(|cpu| all.is_set(*cpu))
            .nth(from_last)
        {
            one.set(cpu);
        }
        sched_setaffinity(None, &one).map_err(refused)?;
        Ok(Self(own))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A set that was in force before.
        let _ = sched_setaffinity(None, &self.0);
    }
}
