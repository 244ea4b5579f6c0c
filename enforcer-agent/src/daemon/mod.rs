//! The daemon: one loop over a closed set of events, and the only writer of configuration maps.
//!
//! | Part | Module |
//! | --- | --- |
//! | what is enforced, and how a change of anything gets into the kernel | [`core`] |
//! | how it comes up | [`start`] |
//! | requests of the control socket to replies | [`answer`] |
//! | counters: tallies, aggregation, metrics | [`counters`] |
//! | the lease, failed pools, shedding | [`governors`] |
//! | packets that somebody wants to see | [`captures`] |
//! | quotas | [`quotas`] |
//! | what happened to audit entries | [`records`] |
//! | tasks that look at back ends | [`monitor`] |
//! | what survives a restart | [`persist`] |
//! | which policies were applied | [`history`] |
//!
//! Tasks report by events and hold no state that anyone else needs. The loop never waits for the network or a disk but
//! for the state file, which is written before a change is put into force, and the history, after it.

mod answer;
mod captures;
mod core;
mod counters;
mod governors;
pub(crate) mod history;
mod hours;
mod links;
mod monitor;
pub(crate) mod persist;
mod quotas;
mod records;
mod shares;
#[cfg(test)]
mod simulation;
mod start;

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use self::core::Core;
use self::links::NetworkSeen;
use crate::adapters::audit_file::{AuditError, AuditLog, Settings};
use crate::adapters::clock::SystemClock;
use crate::adapters::dataplane::{self, DataplaneError, EventsReady, FlowSweeper, Swept, Timeouts};
use crate::adapters::neighbours::{HostNetwork, NetworkError};
use crate::adapters::nvml::{self, NvmlState};
use crate::adapters::probe::ProbeResult;
use crate::adapters::{memory, metrics_http};
use crate::api::server::{ControlListener, Incoming, ListenError, serve};
use crate::api::{Actor, Reply, Request};
use crate::config::{Config, FlowTable};
use crate::ports::Clock as _;
use crate::pure::telemetry::{EngineSample, GpuSample};
use crate::pure::weights::Reading;

/// Events that wait for the loop; tasks wait when it is full.
const EVENT_QUEUE: usize = 1024;
/// Requests that wait for the loop.
const REQUEST_QUEUE: usize = 16;
/// Audit records that wait for the disk; further ones are counted as lost.
const AUDIT_QUEUE: usize = 16_384;
/// Kernel events that are taken in one turn of the loop, so that requests are not starved by a flood.
const EVENTS_PER_TURN: usize = 4096;
/// Between two folds of telemetry into weights.
const FOLD_INTERVAL: Duration = Duration::from_secs(1);
/// Between two renewals of the lease: a quarter of the shortest one.
const LEASE_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks at routes and neighbours.
const NETWORK_INTERVAL: Duration = Duration::from_secs(1);
/// The same while a next hop is missing.
const NETWORK_HURRY: Duration = Duration::from_millis(100);
/// Looks in a hurry after the back ends changed; a back end that no route leads to is then looked for at leisure.
const HURRIED_LOOKS: u32 = 100;
/// Between two steps of bringing the two banks in line: as little as leaves the loop to others in between.
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(4);
/// Between two sweeps of the flow table.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that can happen to the loop.
#[derive(Debug)]
enum Event {
    /// A health probe ended.
    Probed { backend: String, result: ProbeResult },
    /// An engine was asked.
    Engine {
        backend: String,
        reading: Reading<EngineSample>,
    },
    /// A GPU exporter was asked.
    Gpu {
        backend: String,
        reading: Reading<GpuSample>,
    },
    /// This host's own GPUs were looked at.
    LocalGpu(GpuSample),
    /// Routes, neighbours and addresses were looked at.
    Network(NetworkSeen),
    /// The flow table was swept.
    Swept(Swept),
    /// A background task cannot do its work.
    Failing { what: &'static str, error: String },
}

/// Why the daemon ended or never began.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel side.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The control socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The state file.
    #[error(transparent)]
    State(#[from] persist::StateError),
    /// Routes and neighbours.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The metrics endpoint.
    #[error("metrics cannot be served on {address}: {source}; choose another `metrics.listen`")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The policy that the configuration names is not there or not right.
    #[error("{0}")]
    FirstPolicy(String),
    /// A descriptor could not be watched.
    #[error("the ring buffer cannot be watched: {0}")]
    Watch(std::io::Error),
}

/// How a turn of the loop ended.
enum Turn {
    GoOn,
    Detached,
}

/// Runs the daemon until `shutdown` completes or a client detaches it. Programs, maps and links stay where they are,
/// and go on enforcing, unless it was detached.
///
/// # Errors
/// [`RunError`]; what was enforced before still is.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
    let listener = ControlListener::bind(&config.socket, config.socket_group.as_deref())?;
    let network = HostNetwork::open()?;
    let audit = AuditLog::open(Settings {
        directory: config.audit.directory.clone(),
        segment_bytes: config.audit.segment_bytes,
        identity: records::identity(),
        queue_records: AUDIT_QUEUE,
    })?;
    let (events, mut event_queue) = mpsc::channel(EVENT_QUEUE);
    let (mut core, kernel) = Core::start(config, audit.handle(), &network, events.clone()).await?;
    let timeouts = timeouts(&core.config.flow_table);
    let sweeper = FlowSweeper::open(&core.config.pin_directory(), timeouts)?;
    std::thread::Builder::new()
        .name("flow-sweeper".to_owned())
        .spawn({
            let events = events.clone();
            move || sweep_for_ever(sweeper, &events)
        })
        .map_err(RunError::Watch)?;
    let (requests, mut request_queue) = mpsc::channel(REQUEST_QUEUE);
    let background = start_background(&mut core, network, &events, &requests).await?;
    let (stop_server, server_stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, requests, async {
        let _ = server_stopped.await;
    }));
    info!(
        instance = core.config.instance,
        generation = core.generation(),
        "ready"
    );
    let outcome = turn_until(&mut core, &kernel, &mut event_queue, &mut request_queue, shutdown).await;
    drop(background);
    let _ = stop_server.send(());
    let _ = server.await;
    core.stop().await;
    audit.close().await;
    outcome
}

/// Tasks beside the loop; dropping it ends them.
type Background = tokio::task::JoinSet<()>;

async fn start_background(
    core: &mut Core,
    network: HostNetwork,
    events: &mpsc::Sender<Event>,
    requests: &mpsc::Sender<Incoming>,
) -> Result<Background, RunError> {
    let mut tasks = Background::new();
    tasks.spawn(watch_network(network, core.destinations(), events.clone()));
    if let Some(address) = core.config.metrics {
        let endpoint = metrics_http::bind(address)
            .await
            .map_err(|source| RunError::Metrics { address, source })?;
        let requests = requests.clone();
        tasks.spawn(metrics_http::serve(endpoint, move || {
            ask_for_metrics(requests.clone())
        }));
    }
    let every = core.config.telemetry.interval;
    // Loading NVML can block for seconds.
    match tokio::task::spawn_blocking(move || nvml::start(every)).await {
        Ok(NvmlState::Present(mut monitor)) => {
            core.nvml_present();
            let events = events.clone();
            tasks.spawn(async move {
                while let Some(report) = monitor.next().await {
                    if events.send(Event::LocalGpu(report.sample)).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(NvmlState::Absent { reason }) => core.nvml_absent(reason.to_string()),
        Err(error) => core.nvml_absent(error.to_string()),
    }
    Ok(tasks)
}

/// The metrics endpoint asks the loop as any reader does.
async fn ask_for_metrics(requests: mpsc::Sender<Incoming>) -> Option<String> {
    let (answer, answered) = oneshot::channel();
    let actor = Actor {
        uid: rustix::process::geteuid().as_raw(),
        pid: None,
    };
    requests
        .send(Incoming {
            request: Request::Metrics,
            actor,
            answer,
        })
        .await
        .ok()?;
    match answered.await {
        Ok(Ok(Reply::Metrics(metrics))) => Some(metrics.text),
        _ => None,
    }
}

async fn turn_until(
    core: &mut Core,
    kernel: &EventsReady,
    events: &mut mpsc::Receiver<Event>,
    requests: &mut mpsc::Receiver<Incoming>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let mut fold = interval(FOLD_INTERVAL);
    fold.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut catch_up = interval(CATCH_UP_INTERVAL);
    catch_up.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewal = interval(LEASE_INTERVAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tokio::pin!(shutdown);
    loop {
        let boundary = core.until_boundary();
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            // Measured anew by the time of day in each turn, and at least with each fold: however the clock was set.
            () = sleep(boundary.unwrap_or_default()), if boundary.is_some() => core.follow_clock(),
            _ = renewal.tick() => core.renew_lease(),
            Some(incoming) = requests.recv() => {
                if matches!(answer(core, incoming).await, Turn::Detached) {
                    return Ok(());
                }
            }
            Some(event) = events.recv() => core.happened(event).await,
            _ = fold.tick() => core.fold(),
            _ = catch_up.tick(), if core.behind => {
                core.catch_up();
                if !core.behind {
                    // The change is behind us, and with it the policy before.
                    core.retired = None;
                    memory::give_back();
                }
            }
            ready = kernel.readable() => {
                let mut guard = ready.map_err(RunError::Watch)?;
                if core.take_kernel_events(EVENTS_PER_TURN) < EVENTS_PER_TURN {
                    guard.clear_ready();
                }
            }
        }
    }
}

async fn answer(core: &mut Core, incoming: Incoming) -> Turn {
    let Incoming {
        request,
        actor,
        answer,
    } = incoming;
    let name = request.name();
    let outcome = core.answer(request, actor).await;
    if let Err(error) = &outcome {
        warn!(request = name, %actor, code = ?error.code, "{}", error.message);
    }
    if answer.send(outcome).is_err() {
        warn!(request = name, %actor, "the peer was gone before its answer");
    }
    // Also where the answer is an error, since there is nothing left to look after.
    if core.detached { Turn::Detached } else { Turn::GoOn }
}

const fn timeouts(table: &FlowTable) -> Timeouts {
    Timeouts {
        tcp_opening: table.tcp_opening_timeout,
        tcp_established: table.tcp_established_timeout,
        tcp_closing: table.tcp_closing_timeout,
        udp: table.udp_timeout,
    }
}

/// Sweeps until the loop is gone. A table of a quarter of a million flows takes a good part of a second, so it has a
/// thread of its own.
fn sweep_for_ever(mut sweeper: FlowSweeper, events: &mpsc::Sender<Event>) {
    let failing = |error: DataplaneError| Event::Failing {
        what: "flow sweeper",
        error: error.to_string(),
    };
    if let Err(error) = sweeper.recount(|| SystemClock.monotonic_ns()) {
        let _ = events.blocking_send(failing(error));
    }
    loop {
        let event = sweeper
            .sweep(SystemClock.monotonic_ns())
            .map_or_else(failing, Event::Swept);
        if events.blocking_send(event).is_err() {
            return;
        }
        std::thread::sleep(SWEEP_INTERVAL);
    }
}

/// Looks at routes, neighbours and addresses; oftener as long as a next hop is missing.
async fn watch_network(
    network: HostNetwork,
    mut destinations: tokio::sync::watch::Receiver<Vec<(String, IpAddr)>>,
    events: mpsc::Sender<Event>,
) {
    let mut looks = 0;
    loop {
        if destinations.has_changed().unwrap_or(false) {
            looks = 0;
        }
        looks += 1;
        let wanted = destinations.borrow_and_update().clone();
        let event = match look(&network, wanted).await {
            Ok(event) => event,
            Err(error) => Event::Failing {
                what: "routes and neighbours",
                error: error.to_string(),
            },
        };
        let missing = matches!(&event, Event::Network(seen) if seen.hops.iter().any(|(_, hop)| hop.is_err()));
        let hurry = missing && looks < HURRIED_LOOKS;
        if events.send(event).await.is_err() {
            return;
        }
        sleep(if hurry { NETWORK_HURRY } else { NETWORK_INTERVAL }).await;
    }
}

/// One look.
async fn look(network: &HostNetwork, wanted: Vec<(String, IpAddr)>) -> Result<Event, NetworkError> {
    let addresses: Vec<IpAddr> = wanted.iter().map(|(_, address)| *address).collect();
    let hops = network.next_hops(&addresses).await?;
    let local = network.local_addresses().await?;
    Ok(Event::Network(NetworkSeen {
        hops: wanted.into_iter().map(|(name, _)| name).zip(hops).collect(),
        local_addresses: local.into_iter().map(|local| local.address).collect(),
        interfaces: network.interfaces().await?,
    }))
}

/// Removes an instance without its daemon: for `detach` when none runs.
///
/// # Errors
/// [`DataplaneError`].
pub fn remove_instance(config: &Config) -> Result<(), DataplaneError> {
    dataplane::detach(&config.pin_directory()).inspect_err(|error| error!(%error, "detach"))
}
