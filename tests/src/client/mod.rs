//! A load client: sends chat completions at a steady rate and says what became of every one of them.
//!
//! Arrivals are open loop: a request is due when the clock says so, not when the one before it has been answered, so
//! a slow server cannot hide its latency by slowing the client down. A request that is due while `concurrency`
//! others are under way is counted as `not_sent`, never delayed.

mod request;
mod stats;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use request::Connection;
use stats::Recorder;
pub use stats::{Latency, Outcome, Summary};

/// How long a summary's interval is.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most requests a second that can be asked for.
const MAX_REQUESTS_PER_SECOND: f64 = 100_000.0;

/// Whether an answer comes token by token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Server-sent events, one for each token.
    Stream,
    /// One JSON object when all tokens are there.
    Short,
}

/// What to send, from where, how fast and for how long.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// The server.
    pub target: Target,
    /// Source address of the connections; the kernel's choice if not given.
    pub bind: Option<IpAddr>,
    /// Requests a second; `None` keeps `concurrency` requests under way all the time.
    pub requests_per_second: Option<f64>,
    /// Most requests under way at once.
    pub concurrency: usize,
    /// How long new requests are sent. Those under way then are waited for.
    pub duration: Duration,
    /// Stops sending after so many requests, if given.
    pub requests: Option<u64>,
    /// Streamed or whole.
    pub mode: Mode,
    /// Uses a connection again for the next request.
    pub keep_alive: bool,
    /// Tokens to ask for.
    pub max_tokens: u32,
    /// Longest wait for a connection. A first SYN that is lost is sent again after a second (RFC 6298): with less
    /// than that, one attempt is one SYN.
    pub connect_timeout: Duration,
    /// Longest wait for the next part of an answer, the first included.
    pub idle_timeout: Duration,
    /// Longest time for one request from connect to the last byte.
    pub total_timeout: Duration,
}

/// An `http://` URL whose host is an address: a client in a network namespace has no name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Path and query.
    pub path: String,
}

/// Why a plan cannot be carried out.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Not a URL of the supported form.
    #[error(
        "cannot use the URL {url:?}: write http://ADDRESS:PORT/PATH with an address in digits, IPv6 in brackets"
    )]
    Url {
        /// The text given.
        url: String,
    },
    /// The source address is of the other family than the target.
    #[error("cannot reach {target} from {bind}: both have to be IPv4 or both IPv6")]
    Family {
        /// Where to connect to.
        target: SocketAddr,
        /// The source address.
        bind: IpAddr,
    },
    /// The rate is no positive number, or too large.
    #[error(
        "{rate} requests a second cannot be sent: give more than 0 and at most {MAX_REQUESTS_PER_SECOND}"
    )]
    Rate {
        /// The rate given.
        rate: f64,
    },
    /// A number that has to be at least one is zero.
    #[error("{field} is zero: give at least one")]
    Zero {
        /// The field of [`LoadPlan`].
        field: &'static str,
    },
}

// === impl Target ===

impl Target {
    /// A target with the path of chat completions.
    #[must_use]
    pub fn chat(address: SocketAddr) -> Self {
        Self {
            address,
            path: "/v1/chat/completions".into(),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = PlanError;

    fn from_str(url: &str) -> Result<Self, PlanError> {
        let wrong = || PlanError::Url { url: url.into() };
        let uri: hyper::Uri = url.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong());
        }
        let authority = uri.authority().ok_or_else(wrong)?.as_str();
        let address = authority
            .parse()
            .or_else(|_| format!("{authority}:80").parse())
            .map_err(|_| wrong())?;
        let path = match uri.path_and_query().map(hyper::http::uri::PathAndQuery::as_str) {
            None | Some("" | "/") => return Ok(Self::chat(address)),
            Some(path) => path.into(),
        };
        Ok(Self { address, path })
    }
}

// === impl LoadPlan ===

impl LoadPlan {
    /// A plan with the usual values: ten requests a second for ten seconds, each on a new connection.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            bind: None,
            requests_per_second: Some(10.0),
            concurrency: 64,
            duration: Duration::from_secs(10),
            requests: None,
            mode: Mode::Short,
            keep_alive: false,
            max_tokens: 4,
            connect_timeout: Duration::from_millis(900),
            idle_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(30),
        }
    }

    fn check(&self) -> Result<(), PlanError> {
        if let Some(bind) = self.bind
            && bind.is_ipv4() != self.target.address.is_ipv4()
        {
            return Err(PlanError::Family {
                target: self.target.address,
                bind,
            });
        }
        if let Some(rate) = self.requests_per_second
            && !(rate > 0.0 && rate <= MAX_REQUESTS_PER_SECOND)
        {
            return Err(PlanError::Rate { rate });
        }
        let zero = [
            (self.concurrency == 0, "concurrency"),
            (self.max_tokens == 0, "max_tokens"),
        ];
        match zero.into_iter().find(|(is_zero, _)| *is_zero) {
            Some((_, field)) => Err(PlanError::Zero { field }),
            None => Ok(()),
        }
    }
}

/// What all requests of a run share.
struct Run {
    plan: LoadPlan,
    recorder: Recorder,
    idle: Mutex<Vec<Connection>>,
}

/// Carries the plan out and returns the sums. `on_interval` gets the sums of each second as it ends. When `stop` is
/// ready before the plan's duration is over, requests under way are given up and counted as `unfinished`.
///
/// # Errors
/// See [`PlanError`]; nothing was sent then. Whatever happens to a request is a figure in the summary, no error.
pub async fn run(
    plan: LoadPlan,
    stop: impl Future<Output = ()>,
    mut on_interval: impl FnMut(&Summary),
) -> Result<Summary, PlanError> {
    plan.check()?;
    let started = Instant::now();
    let end = started + plan.duration;
    let mut arrivals = plan.requests_per_second.map(|rate| {
        let mut arrivals = interval_at(started, Duration::from_secs_f64(1.0 / rate));
        arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
        arrivals
    });
    let mut intervals = interval_at(started + INTERVAL, INTERVAL);
    let run = Arc::new(Run {
        plan,
        recorder: Recorder::new(),
        idle: Mutex::new(Vec::new()),
    });
    let mut under_way = JoinSet::new();
    let mut sent = 0;
    let mut sending = true;
    tokio::pin!(stop);
    loop {
        if !sending && under_way.is_empty() {
            break;
        }
        let free = under_way.len() < run.plan.concurrency;
        tokio::select! {
            biased;
            () = &mut stop => break,
            _ = intervals.tick() => on_interval(&run.recorder.end_interval()),
            Some(_) = under_way.join_next() => {}
            () = sleep_until(end), if sending => sending = false,
            () = due(arrivals.as_mut(), free), if sending => {
                if free {
                    under_way.spawn(request::send(Arc::clone(&run)));
                } else {
                    run.recorder.not_sent();
                }
                sent += 1;
                sending = run.plan.requests.is_none_or(|limit| sent < limit);
            }
        }
    }
    run.recorder.unfinished(under_way.len() as u64);
    under_way.shutdown().await;
    Ok(run.recorder.summary())
}

/// Ready when the next request is due: by the clock, or in a closed loop as soon as there is room.
async fn due(arrivals: Option<&mut Interval>, free: bool) {
    match arrivals {
        Some(arrivals) => {
            arrivals.tick().await;
        }
        None if free => {}
        None => std::future::pending().await,
    }
}

// === impl Run ===

impl Run {
    fn take_idle(&self) -> Option<Connection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// At most `concurrency` connections come back, so the list is bounded.
    fn keep_idle(&self, connection: Connection) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_addresses_are_read() {
        for (url, address, path) in [
            (
                "http://192.0.2.10:8000",
                "192.0.2.10:8000",
                "/v1/chat/completions",
            ),
            ("http://192.0.2.10/", "192.0.2.10:80", "/v1/chat/completions"),
            (
                "http://[2001:db8::10]:8000/health?deep=1",
                "[2001:db8::10]:8000",
                "/health?deep=1",
            ),
            (
                "http://[2001:db8::10]",
                "[2001:db8::10]:80",
                "/v1/chat/completions",
            ),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!(
                (target.address, target.path.as_str()),
                (address.parse().unwrap(), path),
                "{url}"
            );
        }
    }

    #[test]
    fn other_urls_are_refused() {
        for url in [
            "https://192.0.2.10",
            "http://gpu-1:8000",
            "192.0.2.10:8000",
            "http://",
            "",
            "http://1.2.3.4:99999",
        ] {
            assert_eq!(url.parse::<Target>(), Err(PlanError::Url { url: url.into() }));
        }
    }

    #[tokio::test]
    async fn impossible_plans_are_refused_before_anything_is_sent() {
        let plan = LoadPlan::new(Target::chat("127.0.0.1:1".parse().unwrap()));
        for (plan, message) in [
            (
                LoadPlan {
                    bind: Some("::1".parse().unwrap()),
                    ..plan.clone()
                },
                "both have to be IPv4",
            ),
            (
                LoadPlan {
                    requests_per_second: Some(f64::NAN),
                    ..plan.clone()
                },
                "NaN requests a second",
            ),
            (
                LoadPlan {
                    requests_per_second: Some(0.0),
                    ..plan.clone()
                },
                "0 requests a second",
            ),
            (
                LoadPlan {
                    concurrency: 0,
                    ..plan.clone()
                },
                "concurrency is zero",
            ),
            (
                LoadPlan {
                    max_tokens: 0,
                    ..plan.clone()
                },
                "max_tokens is zero",
            ),
        ] {
            let error = run(plan, std::future::pending(), |_| ()).await.unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
