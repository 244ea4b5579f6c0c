//! What a policy of ten thousand tenants costs the control plane, with a real agent and the kernel's maps where these are
//! part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData, MapError};
use enforcer_agent::adapters::dataplane::map_directory;
use enforcer_agent::api::client::Client;
use enforcer_agent::api::{Reply, Request};
use enforcer_agent::pure::capacity::Capacity;
use enforcer_agent::pure::compile::{HostFacts, Inputs, Slots, compile};
use enforcer_agent::pure::policy::selection::Selection;
use enforcer_agent::pure::policy::{Digester, Loader, PolicySource, load};

use super::{BenchError, Case, Options, Series, Work};
use crate::harness::{Agent, AgentSettings};
use crate::lab::Lab;
use crate::large::{self, Size};

pub(super) const CASES: [Case; 7] = [
    Case {
        name: "policy/check",
        work: Work::Alone(check),
    },
    Case {
        name: "policy/check-edit",
        work: Work::Alone(check_edit),
    },
    Case {
        name: "policy/compile",
        work: Work::Alone(compile_case),
    },
    Case {
        name: "policy/apply",
        work: Work::Alone(apply),
    },
    Case {
        name: "policy/limit-edit",
        work: Work::Alone(limit_edit),
    },
    Case {
        name: "policy/suspend",
        work: Work::Alone(suspend),
    },
    Case {
        name: "policy/idle",
        work: Work::Alone(idle),
    },
];

/// What maps have to hold for the largest policy here.
const CAPACITY: Capacity = Capacity {
    tenants: 16_383,
    trie_nodes: 32_768,
    eligible_sets: 1024,
    decision_blocks: 65_536,
    flows: 65_536,
};
/// The agent brings its second bank in line between changes; a change is timed once it has had time for that.
const PAUSE: Duration = Duration::from_secs(2);
/// None of the thousand back ends exists: until each has been found ill, the agent has more to do than in any other second.
const SETTLE: Duration = Duration::from_secs(20);

fn size(options: &Options) -> Size {
    if options.quick { Size::TENTH } else { Size::FULL }
}

fn runs(options: &Options) -> usize {
    if options.quick { 2 } else { 7 }
}

/// Lets the agent have its rest; what a quick look finds is not told as a cost.
fn settle(options: &Options) {
    if !options.quick {
        std::thread::sleep(SETTLE);
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Text to checked policy and digest, as `policy check` does it.
fn check(options: &Options) -> Result<Vec<Series>, BenchError> {
    let text = large::policy(&size(options), 1000);
    measure("policy/check", options, || {
        let outcome = load("large.yaml", &text);
        outcome.into_result().map(|policy| policy.digest().to_string())
    })
}

/// The same after another text that differs in one tenant's limit, as the agent does it.
fn check_edit(options: &Options) -> Result<Vec<Series>, BenchError> {
    let text = |limit| {
        [PolicySource::new(
            "large.yaml",
            large::policy(&size(options), limit),
        )]
    };
    let (mut loader, mut digester) = (Loader::default(), Digester::default());
    if let Some(policy) = loader.load_all(&text(1000)).policy {
        digester.digest(&Arc::new(policy));
    }
    let texts = [text(2000), text(2001)];
    let mut turns = texts.iter().cycle();
    measure("policy/check-edit", options, || {
        let outcome = loader.load_all(turns.next().unwrap_or(&texts[0]));
        let policy = outcome.into_result();
        policy.map(|policy| digester.digest(&Arc::new(policy)).to_string())
    })
}

/// Text to the tables of a host, as `policy compile` does it.
fn compile_case(options: &Options) -> Result<Vec<Series>, BenchError> {
    let text = large::policy(&size(options), 1000);
    let host = HostFacts {
        nat_v4: Some([192, 0, 2, 1].into()),
        capacity: CAPACITY,
        ..HostFacts::default()
    };
    measure("policy/compile", options, || {
        let policy = load("large.yaml", &text)
            .into_result()
            .map_err(|problems| format!("{problems:#?}"))?;
        let compiled = compile(&Inputs {
            policy: &policy,
            slots: &Slots::default(),
            host: &host,
            backends: &BTreeMap::new(),
            failed_pools: &BTreeSet::new(),
            suspended: &BTreeSet::new(),
            closed_rules: &Selection::default(),
            exhausted: &BTreeMap::new(),
            shed: &BTreeMap::new(),
            fair_rates: &BTreeMap::new(),
        });
        compiled.map_err(|error| error.to_string())
    })
}

/// Times something in this process, and takes the peak of its memory.
fn measure<T, E: std::fmt::Debug>(
    case: &'static str,
    options: &Options,
    mut work: impl FnMut() -> Result<T, E>,
) -> Result<Vec<Series>, BenchError> {
    let io = |what| move |source| BenchError::Io { what, source };
    let (mut times, mut cpu_times, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs(options) {
        // Linux: 5 resets the peak of the resident set.
        fs::write("/proc/self/clear_refs", "5").map_err(io("/proc/self/clear_refs"))?;
        let (start, cpu) = (Instant::now(), cpu_milliseconds());
        let done = work();
        times.push(milliseconds(start));
        cpu_times.push(cpu_milliseconds() - cpu);
        let status = fs::read_to_string("/proc/self/status").map_err(io("/proc/self/status"))?;
        peaks.push(peak_mebibytes(&status));
        if let Err(error) = done {
            return Err(BenchError::Wrong {
                case,
                what: format!("the policy was refused: {error:#?}"),
            });
        }
    }
    Ok(vec![
        Series::plain(case, "ms", times),
        Series::plain(case, "ms CPU", cpu_times),
        Series::plain(case, "MiB", peaks),
    ])
}

/// What this thread has taken of a CPU: on a busy machine less than the time that passed.
fn cpu_milliseconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1000.0 + time.tv_nsec as f64 / 1e6
}

/// `VmHWM` of `/proc/PID/status`.
fn peak_mebibytes(status: &str) -> f64 {
    mebibytes(status, "VmHWM:")
}

fn mebibytes(status: &str, field: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB"));
    kibibytes
        .and_then(|text| text.trim().parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}

/// An agent in a namespace of its own, and a connection to it. Fields drop in this order.
struct Running {
    client: Client,
    agent: Agent,
    _lab: Lab,
    runtime: tokio::runtime::Runtime,
}

impl Running {
    fn start(case: &'static str) -> Result<Self, BenchError> {
        if !rustix::process::geteuid().is_root() {
            return Err(BenchError::Privileges(case));
        }
        let mut lab = Lab::new()?;
        let network = crate::lab::topology::routed(&mut lab, &["client"], &[])?;
        let settings = AgentSettings {
            capacity: CAPACITY,
            ..AgentSettings::new(["client"])
        };
        let mut agent = Agent::prepare(&lab, &network.balancer, &settings)?;
        agent.start()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| BenchError::Io {
                what: "a runtime",
                source,
            })?;
        let client = runtime.block_on(Client::connect(&agent.socket()))?;
        Ok(Self {
            client,
            agent,
            _lab: lab,
            runtime,
        })
    }

    fn ask(&mut self, request: Request) -> Result<Reply, BenchError> {
        Ok(self.runtime.block_on(self.client.call(request))?)
    }

    /// Milliseconds until the change was in force and on disk.
    fn apply(&mut self, case: &'static str, text: &str) -> Result<f64, BenchError> {
        let request = Request::PolicyApply {
            sources: vec![PolicySource::new("large.yaml", text)],
            dry_run: false,
        };
        let start = Instant::now();
        match self.ask(request)? {
            Reply::PolicyApply(reply) if reply.changed => Ok(milliseconds(start)),
            other => Err(BenchError::Wrong {
                case,
                what: format!("the policy was not put into force: {other:?}"),
            }),
        }
    }

    /// When the live generation in the kernel will have changed; `None` if it does not within some seconds.
    fn watch_generation(&self, case: &'static str) -> Result<JoinHandle<Option<Instant>>, BenchError> {
        let wrong = |error: MapError| BenchError::Wrong {
            case,
            what: format!("the map GENERATION: {error}"),
        };
        let path = map_directory(self.agent.pins()).join("GENERATION");
        let map = MapData::from_pin(path).map_err(wrong)?;
        let map = Array::<_, u64>::try_from(Map::Array(map)).map_err(wrong)?;
        let before = map.get(&0, 0).map_err(wrong)?;
        Ok(std::thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(5);
            while Instant::now() < deadline {
                if map.get(&0, 0).is_ok_and(|now| now != before) {
                    return Some(Instant::now());
                }
                // Finer than what is measured, and little enough to leave the agent its processor.
                std::thread::sleep(Duration::from_micros(500));
            }
            None
        }))
    }

    fn peak(&self) -> Result<f64, BenchError> {
        Ok(peak_mebibytes(&self.proc("status")?))
    }

    /// Seconds of CPU that the agent has taken.
    fn cpu_seconds(&self) -> Result<f64, BenchError> {
        let stat = self.proc("stat")?;
        // User and system time in ticks: the 14th and 15th field, where the second one is a name in parentheses.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    fn proc(&self, file: &str) -> Result<String, BenchError> {
        let path = format!("/proc/{}/{file}", self.agent.pid().unwrap_or_default());
        fs::read_to_string(path).map_err(|source| BenchError::Io {
            what: "the agent's state in /proc",
            source,
        })
    }
}

/// One policy after another that shares nothing with it but the names.
fn apply(options: &Options) -> Result<Vec<Series>, BenchError> {
    let case = "policy/apply";
    let size = size(options);
    // Another limit: names of pools alone change nothing in the kernel, and a quick look has the same size throughout.
    let small = large::policy(&Size::TENTH, 999);
    let text = large::policy(&size, 1000).replace("pool-", "group-");
    let other = large::policy(&size, 1001).replace("action: Deny", "action: Allow");
    let mut running = Running::start(case)?;
    running.apply(case, &small)?;
    let mut times = Vec::new();
    for run in 0..runs(options) {
        times.push(running.apply(case, if run % 2 == 0 { &text } else { &other })?);
        std::thread::sleep(PAUSE);
    }
    let peak = running.peak()?;
    Ok(vec![
        Series::plain(case, "ms", times),
        Series::plain(case, "MiB", vec![peak]),
    ])
}

/// The whole text again, with one tenant's limit changed.
fn limit_edit(options: &Options) -> Result<Vec<Series>, BenchError> {
    let case = "policy/limit-edit";
    let size = size(options);
    let mut running = Running::start(case)?;
    running.apply(case, &large::policy(&size, 1000))?;
    settle(options);
    let (mut times, mut in_kernel) = (Vec::new(), Vec::new());
    for run in 0..runs(options) {
        std::thread::sleep(PAUSE);
        let text = large::policy(&size, 2000 + run as u32);
        let (watch, start) = (running.watch_generation(case)?, Instant::now());
        times.push(running.apply(case, &text)?);
        let seen = watch.join().ok().flatten().ok_or_else(|| BenchError::Wrong {
            case,
            what: "the kernel's generation did not change".to_owned(),
        })?;
        in_kernel.push((seen - start).as_secs_f64() * 1000.0);
    }
    Ok(vec![
        Series::plain(case, "ms", times),
        Series::plain(case, "ms to the kernel", in_kernel),
    ])
}

/// Suspensions and resumptions of one tenant in turn.
fn suspend(options: &Options) -> Result<Vec<Series>, BenchError> {
    let case = "policy/suspend";
    let mut running = Running::start(case)?;
    running.apply(case, &large::policy(&size(options), 1000))?;
    settle(options);
    let mut times = Vec::new();
    for run in 0..2 * runs(options) {
        std::thread::sleep(PAUSE / 4);
        let name = "tenant-77".to_owned();
        let request = if run % 2 == 0 {
            Request::TenantSuspend { name }
        } else {
            Request::TenantResume { name }
        };
        let start = Instant::now();
        running.ask(request)?;
        times.push(milliseconds(start));
    }
    Ok(vec![Series::plain(case, "ms", times)])
}

/// What the agent takes while nothing happens: ten thousand tenants, and one pool, whose back ends nobody answers for.
fn idle(options: &Options) -> Result<Vec<Series>, BenchError> {
    let case = "policy/idle";
    let size = Size {
        backends: 20,
        ..size(options)
    };
    let mut running = Running::start(case)?;
    running.apply(case, &large::policy(&size, 1000))?;
    settle(options);
    let window = PAUSE * if options.quick { 1 } else { 5 };
    let (mut shares, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..runs(options) {
        let (before, start) = (running.cpu_seconds()?, Instant::now());
        std::thread::sleep(window);
        let took = running.cpu_seconds()? - before;
        shares.push(100.0 * took / start.elapsed().as_secs_f64());
        resident.push(mebibytes(&running.proc("status")?, "VmRSS:"));
    }
    Ok(vec![
        Series::plain(case, "% of a core", shares),
        Series::plain(case, "MiB", resident),
    ])
}
