//! The daemon's loop over a world in memory, in which everything that can fail is made to fail.
//!
//! | Part | Module |
//! | --- | --- |
//! | the world: kernel, state file, audit log, clock; which operation fails | [`world`] |
//! | the loop's ports over it | [`ports`] |
//! | what happens | [`script`] |
//! | what must hold whatever happens | [`invariants`] |
//!
//! The loop is the real one, from the first policy on; only adapters are replaced. One test makes each operation of a
//! scenario fail once, the other one walks at random. A run is repeated with `SEED`, and made longer with
//! `SIMULATION_STEPS`.

mod captures;
mod governors;
mod hours;
mod invariants;
mod ports;
mod random;
mod script;
mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::abi::event::{EVENT_REFUSED, EventRecord};
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::DEFAULT_TENANTS;
use enforcer_common::schema::{tenant_connections, tenant_holder};
use tokio::sync::watch;

use self::invariants::Known;
use self::ports::Ports;
use self::random::{Random, seed, variable};
use self::script::{BACKENDS, Step, any, scenario};
use self::world::{Fault, World};
use super::Event;
use super::core::Core;
use super::links::NetworkSeen;
use crate::adapters::dataplane::Swept;
use crate::adapters::neighbours::{Interface, MacAddress, NextHop, XdpHook};
use crate::adapters::probe::{ProbeFailure, ProbeResult};
use crate::api::{Actor, Request, Role};
use crate::config::Config;
use crate::ports::StateStore as _;
use crate::pure::compile;
use crate::pure::telemetry::{EngineKind, EngineSample, GpuSample};
use crate::pure::weights::Reading;

const CONFIG: &str = "interfaces: [lan, gpus]\nnat: {ipv4: 10.9.0.1}\n\
                      telemetry: {localGpuBackends: [gpu-2]}\n";
const INTERFACES: [&str; 2] = ["lan", "gpus"];
const ACTOR: Actor = Actor {
    uid: 1000,
    pid: Some(7),
};
/// Probes in a row that give a verdict, with the policies' thresholds.
const PROBES: u32 = 5;

struct Simulation {
    world: Arc<Mutex<World>>,
    ports: Ports,
    core: Core,
    hops: BTreeMap<&'static str, u8>,
    /// Decisions that the kernel only counted and that no record tells of yet.
    unrecorded: u64,
    known: Known,
}

fn hop(last: u8) -> NextHop {
    NextHop {
        ifindex: 2,
        ifname: "gpus".to_owned(),
        mtu_bytes: 1500,
        vlan: None,
        source_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        next_hop_mac: MacAddress([2, 0, 0, 0, 1, last]),
        next_hop: IpAddr::V4(Ipv4Addr::new(10, 9, 0, last)),
        preferred_source: None,
    }
}

fn link(last: u8) -> compile::NextHop {
    super::core::link_of(&hop(last))
}

impl Simulation {
    /// A first agent on a host where none was.
    async fn begin() -> Self {
        let world = Arc::new(Mutex::new(World::new()));
        let ports = Ports::open(Arc::clone(&world));
        let core = start(&ports, &BTreeMap::new()).await.expect("nothing fails");
        Self {
            world,
            ports,
            core,
            hops: BTreeMap::new(),
            unrecorded: 0,
            known: Known::default(),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, going on by itself.
    fn fork(&self) -> Self {
        let world = Arc::new(Mutex::new(self.world().clone()));
        let ports = self.ports.over(Arc::clone(&world));
        Self {
            core: fork(&self.core, &ports),
            world,
            ports,
            hops: self.hops.clone(),
            unrecorded: self.unrecorded,
            known: self.known.clone(),
        }
    }

    /// Does one step and checks everything that must hold after it.
    async fn step(&mut self, step: &Step) {
        {
            let mut world = self.world();
            world.failed.clear();
            world.now_ns += 1_000_000;
        }
        self.turn();
        match step {
            Step::Ask(request) => self.ask(request).await,
            Step::Fold => self.fold(),
            Step::Clock(by_seconds) => self.set_clock(*by_seconds),
            Step::Restart => self.restart().await,
            Step::Traffic => self.traffic(),
            Step::Used(tenant, connections) => self.used(tenant, *connections),
            Step::KernelEvents => self.kernel_events(),
            event => {
                for event in self.events(event) {
                    self.core.happened(event).await;
                }
            }
        }
        self.check(step);
    }

    /// The loop wakes at a boundary of the policy, before anything else happens.
    fn turn(&mut self) {
        if self.core.until_boundary() == Some(Duration::ZERO) {
            self.core.follow_clock();
        }
    }

    /// Somebody sets the clock; the next fold finds out.
    fn set_clock(&mut self, by_seconds: i64) {
        {
            let mut world = self.world();
            // Not before 1970.
            world.wall_ahead_seconds = (world.wall_ahead_seconds + by_seconds).max(0);
        }
        self.fold();
    }

    fn events(&mut self, step: &Step) -> Vec<Event> {
        let named = |backend: &&str| (*backend).to_owned();
        match step {
            Step::Probed(backend, passed) => (0..PROBES)
                .map(|_| Event::Probed {
                    backend: named(backend),
                    result: if *passed {
                        ProbeResult::Passed(Duration::from_millis(1))
                    } else {
                        ProbeResult::Failed(ProbeFailure::Refused)
                    },
                })
                .collect(),
            Step::Engine(backend, waiting) => vec![Event::Engine {
                backend: named(backend),
                reading: Reading::Fresh(EngineSample {
                    engine: EngineKind::Vllm,
                    running: Some(8.0),
                    waiting: Some(*waiting),
                    kv_cache_ratio: Some(0.5),
                    gpu_utilization_ratio: None,
                }),
            }],
            Step::Gpu(backend, xid) => vec![Event::Gpu {
                backend: named(backend),
                reading: Reading::Fresh(GpuSample {
                    devices: 1,
                    xid: Some(*xid),
                    ..GpuSample::default()
                }),
            }],
            Step::LocalGpu => vec![Event::LocalGpu(GpuSample {
                devices: 1,
                ..GpuSample::default()
            })],
            Step::Hop(backend, last) => {
                self.hops.insert(backend, *last);
                vec![self.network(self.core.host.local_addresses.clone())]
            }
            Step::LocalAddress(last) => vec![self.network(vec![IpAddr::from([10, 0, 0, *last])])],
            Step::Swept => vec![Event::Swept(Swept::default())],
            other => panic!("{other:?} is no event"),
        }
    }

    fn network(&self, local_addresses: Vec<IpAddr>) -> Event {
        let hops = self.hops.iter();
        Event::Network(NetworkSeen {
            hops: hops
                .map(|(name, last)| ((*name).to_owned(), Ok(hop(*last))))
                .collect(),
            local_addresses,
            interfaces: self.interfaces(),
        })
    }

    /// The MTUs go with the first back end's next hop. One interface is none of the configuration's.
    fn interfaces(&self) -> Vec<Interface> {
        let last = self.hops.get(BACKENDS[0]).copied().unwrap_or(0);
        let named = |(ifindex, name, mtu_bytes): (u32, &str, u32)| Interface {
            ifindex,
            name: name.to_owned(),
            mac: Some(MacAddress([2, 0, 0, 0, 0, ifindex as u8])),
            mtu_bytes,
            is_up: true,
            xdp: XdpHook::Native,
            vlan: None,
        };
        let small = 1500 - u32::from(last);
        [
            (1, INTERFACES[0], small),
            (2, INTERFACES[1], 9000),
            (3, "tunnel", 576),
        ]
        .map(named)
        .into()
    }

    async fn ask(&mut self, request: &Request) {
        let before = self.before();
        let outcome = self.core.answer(request.clone(), ACTOR).await;
        self.check_answer(request, &before, &outcome);
        if self.core.detached {
            self.world().fault = Fault::Never;
            self.known = Known::default();
            self.restart().await;
        }
    }

    /// Another agent over the same host. One that cannot start leaves what was there, and is started again.
    async fn restart(&mut self) {
        self.unrecorded = 0;
        self.world().now_ns += 1_000_000_000;
        loop {
            let attached = self.world().kernel.attached.clone();
            self.ports = Ports::open(Arc::clone(&self.world));
            match start(&self.ports, &self.hops).await {
                Ok(core) => {
                    self.core = core;
                    return;
                }
                Err(error) => {
                    let mut world = self.world();
                    assert!(!world.failed.is_empty(), "a start failed by itself: {error}");
                    assert!(
                        !world.kernel.exists || world.kernel.attached.is_superset(&attached),
                        "a start that failed took programs off"
                    );
                    world.fault = Fault::Never;
                }
            }
        }
    }

    /// Limiters are in use, also those of slots that are free: someone had them before. And the kernel counts what it
    /// has no room to report.
    fn traffic(&mut self) {
        let mut world = self.world();
        let due_ns = world.now_ns + 5_000_000;
        for tenant in 1..DEFAULT_TENANTS {
            for limiter in Limiter::ALL {
                world
                    .kernel
                    .limiters
                    .insert(limiter.index(tenant_holder(tenant)), due_ns);
            }
        }
        let nobody = (DIRECTION_INGRESS, 0, Reason::NoRule as u32);
        world.kernel.tallies.entry(nobody).or_default().aggregated += 3;
        drop(world);
        self.unrecorded += 3;
    }

    /// As far as the kernel lets it.
    fn used(&mut self, tenant: &str, connections: u64) {
        let Some(slot) = self.core.state.slots.tenants.get(tenant) else {
            return;
        };
        let mut world = self.world();
        *world.kernel.opened.entry(tenant_connections(slot)).or_default() += connections;
        let allowed = (DIRECTION_INGRESS, slot, Reason::Allowed as u32);
        world.kernel.tallies.entry(allowed).or_default().bytes += 1000 * connections;
    }

    fn kernel_events(&mut self) {
        let mut world = self.world();
        let event = EventRecord {
            kind: EVENT_REFUSED,
            reason: Reason::NoRule as u32,
            generation: world.kernel.generation,
            ..EventRecord::ZERO
        };
        world.kernel.events.extend([event; 3]);
        let before = world.audit.len() as u64 + world.audit_lost;
        drop(world);
        assert_eq!(self.core.take_kernel_events(4096), 3);
        let world = self.world();
        assert_eq!(world.audit.len() as u64 + world.audit_lost - before, 3);
    }

    fn fold(&mut self) {
        self.world().now_ns += 1_000_000_000;
        let before = self.world().audit.len();
        self.core.fold();
        self.check_fold(before);
    }
}

/// What `Core::start` does once the kernel side is open and the host was looked at.
async fn start(ports: &Ports, hops: &BTreeMap<&'static str, u8>) -> Result<Core, super::RunError> {
    let config = Config::parse("agent.yaml", CONFIG).expect("the configuration is right");
    let state = ports.load()?;
    let local_addresses = vec![IpAddr::from([10, 0, 0, 1])];
    let mut core = Core::new(config, ports.outside(), state, local_addresses);
    let fresh = !core.dataplane.adopted();
    let known = hops.iter().map(|(name, last)| (*name, link(*last)));
    let begun = match core.first_policy() {
        Ok(()) => core.take_over(known).await,
        Err(error) => Err(error),
    };
    match begun {
        Ok(()) => Ok(core),
        Err(error) => {
            core.undo_attachments(fresh);
            Err(error)
        }
    }
}

fn fork(core: &Core, ports: &Ports) -> Core {
    let outside = ports.outside();
    Core {
        config: core.config.clone(),
        dataplane: outside.dataplane,
        installer: core.installer.with_clock(Arc::clone(&outside.clock)),
        clock: outside.clock,
        store: outside.store,
        unsaved: core.unsaved,
        history: core.history.with_store(outside.history),
        loader: core.loader.clone(),
        digester: core.digester.clone(),
        cache: core.cache.clone(),
        behind: core.behind,
        live: core.live,
        fleet: core.fleet.clone(),
        host: core.host.clone(),
        state: core.state.clone(),
        active: core.active.clone(),
        retired: None,
        hours: core.hours.clone(),
        lease: core.lease,
        quotas: core.quotas.clone(),
        shares: core.shares.clone(),
        directory: core.directory.clone(),
        digests: core.digests.clone(),
        audit: outside.audit,
        attachments: core.attachments.clone(),
        started_ns: core.started_ns,
        open_flows: core.open_flows,
        nvml: core.nvml.clone(),
        failing: core.failing.clone(),
        warnings: core.warnings.clone(),
        unrecorded: core.unrecorded.clone(),
        captures: core.captures.clone(),
        watcher: outside.watcher,
        detached: core.detached,
        destinations: watch::Sender::new(core.destinations.borrow().clone()),
    }
}

/// What must come right after any failure: the next fold repairs, another change does not bring anything of the failed
/// one along, and another agent finds what the first one left.
async fn recover(simulation: &mut Simulation) {
    repair(simulation).await;
    simulation.step(&Step::Restart).await;
}

async fn repair(simulation: &mut Simulation) {
    simulation.world().set_fault(Fault::Never);
    simulation.step(&Step::Fold).await;
    let failing = &simulation.core.failing;
    assert!(
        !failing.contains_key("install") && !failing.contains_key("policy history"),
        "{failing:?}"
    );
    if simulation.core.active.is_some() {
        let is_suspended = simulation.core.state.suspended.contains("initech");
        let toggle = if is_suspended {
            script::resume
        } else {
            script::suspend
        };
        simulation.step(&toggle("initech")).await;
    }
}

/// As far as it can have done anything: a question changes nothing, and a failure in a bank nothing but banks.
async fn recover_from(step: &Step, simulation: &mut Simulation) {
    let failed = simulation.world().failed.clone();
    match step {
        Step::Ask(request) if request.role() == Role::Read => {}
        _ if failed.iter().all(|what| ["write", "read back"].contains(what)) => repair(simulation).await,
        _ => recover(simulation).await,
    }
}

/// Does a step with one operation failing; what failed, if the step has that many operations.
async fn fail_once(simulation: &Simulation, step: &Step, nth: u64, fails_late: bool) -> Option<&'static str> {
    let mut other = simulation.fork();
    other.world().set_fault(Fault::Nth(nth));
    other.world().fails_late = fails_late;
    other.step(step).await;
    let failed = other.world().failed.first().copied()?;
    recover_from(step, &mut other).await;
    Some(failed)
}

#[tokio::test]
async fn every_operation_of_a_scenario_fails_once() {
    let mut simulation = Simulation::begin().await;
    let mut failures = BTreeMap::new();
    for step in scenario() {
        for nth in 1.. {
            let Some(failed) = fail_once(&simulation, &step, nth, false).await else {
                break;
            };
            *failures.entry(failed).or_insert(0) += 1;
            if ["store", "write an entry"].contains(&failed) {
                fail_once(&simulation, &step, nth, true).await;
            }
        }
        simulation.step(&step).await;
        assert!(
            simulation.core.failing.is_empty(),
            "{:?}",
            simulation.core.failing
        );
    }
    println!("operations that were made to fail: {failures:?}");
    for kind in [
        "set generation",
        "write",
        "read back",
        "set limiter",
        "set lease",
        "store",
        "store usage",
        "load usage",
        "list entries",
        "read an entry",
        "write an entry",
        "record synced",
        "attach",
        "remove a link",
    ] {
        assert!(failures.contains_key(kind), "{kind} never failed: {failures:?}");
    }
}

#[tokio::test]
async fn whatever_happens_and_fails_the_old_or_the_new_is_enforced() {
    let seed = seed();
    let steps = variable("SIMULATION_STEPS").unwrap_or(2000);
    println!("SEED={seed} SIMULATION_STEPS={steps}");
    let mut random = Random::new(seed);
    let mut simulation = Simulation::begin().await;
    for backend in BACKENDS {
        simulation.hops.insert(backend, 1);
    }
    for number in 0..steps {
        // Calm stretches too, since otherwise little is ever put into force.
        if number % 8 == 0 {
            let per_mille = [0, 2, 20][random.below(3) as usize];
            let fault = Fault::Chance(Random::new(random.bits()), per_mille);
            simulation.world().set_fault(fault);
        }
        if number % 64 == 63 {
            recover(&mut simulation).await;
        }
        let step = any(&mut random);
        simulation.step(&step).await;
    }
    recover(&mut simulation).await;
}
