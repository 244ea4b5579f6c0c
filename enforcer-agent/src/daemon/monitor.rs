//! Tasks that look at back ends: one probes, one asks the engine, one asks the GPU exporter. They only report; what
//! it means is decided in `pure/fleet.rs`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::Event;
use crate::adapters::http::HttpTarget;
use crate::adapters::probe::{ProbeTarget, probe};
use crate::adapters::prometheus::{ScrapeLimits, scrape_engine, scrape_gpu};
use crate::config::Telemetry;
use crate::ports::Watcher;
use crate::pure::policy::resolved::{Backend, HealthCheck, Pool, Probe, ResolvedPolicy};
use crate::pure::weights::Reading;

/// Everything that the tasks of one back end depend on: as long as it stays the same, they go on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    address: SocketAddr,
    check: HealthCheck,
    engine_url: Option<String>,
    dcgm_url: Option<String>,
}

/// The running tasks, by back end. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Monitor {
    tasks: HashMap<String, (Watched, JoinSet<()>)>,
    telemetry: Telemetry,
    events: mpsc::Sender<Event>,
}

impl Monitor {
    pub(super) fn new(telemetry: Telemetry, events: mpsc::Sender<Event>) -> Self {
        Self {
            tasks: HashMap::new(),
            telemetry,
            events,
        }
    }

    fn start(&self, name: &str, watched: &Watched) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let target = match &watched.check.probe {
            Probe::Tcp => Ok(ProbeTarget::Tcp(watched.address)),
            Probe::Http(path) => ProbeTarget::http(watched.address, path),
        };
        match target {
            Ok(target) => {
                let (every, limit) = (
                    Duration::from_nanos(watched.check.interval_ns),
                    Duration::from_nanos(watched.check.timeout_ns),
                );
                let backend = name.to_owned();
                tasks.spawn(report_for_ever(every, self.events.clone(), move || {
                    let (backend, target) = (backend.clone(), target.clone());
                    async move {
                        Event::Probed {
                            backend,
                            result: probe(&target, limit).await,
                        }
                    }
                }));
            }
            Err(error) => {
                warn!(backend = name, %error, "health check cannot be made; the back end counts as healthy");
            }
        }
        self.start_scrapes(name, watched, &mut tasks);
        tasks
    }

    fn start_scrapes(&self, name: &str, watched: &Watched, tasks: &mut JoinSet<()>) {
        let limits = ScrapeLimits {
            timeout: self.telemetry.timeout,
            ..ScrapeLimits::default()
        };
        let every = self.telemetry.interval;
        if let Some(target) = parsed(name, watched.engine_url.as_deref()) {
            let backend = name.to_owned();
            tasks.spawn(report_for_ever(every, self.events.clone(), move || {
                let (backend, target) = (backend.clone(), target.clone());
                async move {
                    let reading = scrape_engine(&target, &limits)
                        .await
                        .map_or(Reading::Missed, Reading::Fresh);
                    Event::Engine { backend, reading }
                }
            }));
        }
        if let Some(target) = parsed(name, watched.dcgm_url.as_deref()) {
            let backend = name.to_owned();
            tasks.spawn(report_for_ever(every, self.events.clone(), move || {
                let (backend, target) = (backend.clone(), target.clone());
                async move {
                    let reading = scrape_gpu(&target, &limits)
                        .await
                        .map_or(Reading::Missed, Reading::Fresh);
                    Event::Gpu { backend, reading }
                }
            }));
        }
    }
}

impl Watcher for Monitor {
    fn follow(&mut self, policy: &ResolvedPolicy) {
        let mut known = std::mem::take(&mut self.tasks);
        for (pool, backend) in policy
            .pools
            .iter()
            .flat_map(|pool| pool.backends.iter().map(move |each| (pool, each)))
        {
            let watched = watched(pool, backend);
            let tasks = match known.remove(&backend.name) {
                Some((same, tasks)) if same == watched => tasks,
                _ => self.start(&backend.name, &watched),
            };
            self.tasks.insert(backend.name.clone(), (watched, tasks));
        }
    }
}

fn watched(pool: &Pool, backend: &Backend) -> Watched {
    Watched {
        address: SocketAddr::new(backend.address, backend.port),
        check: pool.health_check.clone(),
        engine_url: backend.engine_url.clone(),
        dcgm_url: backend.dcgm_url.clone(),
    }
}

fn parsed(backend: &str, url: Option<&str>) -> Option<HttpTarget> {
    let url = url?;
    HttpTarget::parse(url)
        .inspect_err(
            |error| warn!(backend, url, %error, "telemetry source cannot be used; it counts as unknown"),
        )
        .ok()
}

/// A slow answer delays the next look; it is never followed by a burst.
fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Looks again and again until the loop is gone.
async fn report_for_ever<F, T>(every: Duration, events: mpsc::Sender<Event>, look: F)
where
    F: Fn() -> T,
    T: Future<Output = Event>,
{
    let mut ticks = ticks(every);
    loop {
        ticks.tick().await;
        if events.send(look().await).await.is_err() {
            return;
        }
    }
}
