//! An inference server without a model: it answers as vLLM does, holds every request for as long as a decode of that
//! many tokens would take, and runs only so many at once, so that load makes a real queue.
//!
//! It serves `POST /v1/chat/completions` (streamed or whole), `GET /health`, `GET /metrics` in vLLM's names,
//! `GET /dcgm/metrics` in dcgm-exporter's, and `POST /admin/saturate` and `/admin/clear`, which change only what the
//! metrics *report*. It never authenticates anybody: it belongs in a network namespace or on loopback.

mod engine;
mod metrics;
mod openai;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use engine::Engine;
pub use engine::{Load, Reported};

/// The response header that names the back end.
pub const BACKEND_HEADER: &str = "x-backend";
/// Largest request body that is read, in bytes.
pub const BODY_LIMIT_BYTES: usize = 64 * 1024;
/// Most tokens that one request may ask for.
pub const MAX_TOKENS: u32 = 100_000;
/// How long requests in flight may go on after shutdown was asked for.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);
/// Connections that wait to be accepted, for each listener.
const BACKLOG: u32 = 1024;

/// What one simulated GPU server is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The back end's name, sent in [`BACKEND_HEADER`] and as `system_fingerprint`.
    pub name: String,
    /// The model that it claims to serve.
    pub model: String,
    /// Where to listen; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Requests that are decoded at once; the rest queue.
    pub slots: u32,
    /// Requests that may queue; one more is answered 429.
    pub queue_limit: u32,
    /// Time for each token.
    pub token_time: Duration,
    /// Tokens for a request that does not say `max_tokens`.
    pub default_tokens: u32,
    /// Tokens that the key-value cache holds: `vllm:kv_cache_usage_perc` is the share in use.
    pub cache_tokens: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "simulator".into(),
            model: "llama-70b".into(),
            listen: Vec::new(),
            slots: 8,
            queue_limit: 1024,
            token_time: Duration::from_millis(20),
            default_tokens: 16,
            cache_tokens: 4096,
        }
    }
}

/// Why a simulator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No address to listen on.
    #[error("the simulator has no address to listen on: give at least one")]
    NoAddress,
    /// A number that has to be at least one is zero.
    #[error("the simulator's {field} is zero: give at least one")]
    Zero {
        /// The field of [`Config`].
        field: &'static str,
    },
    /// The name cannot be sent in a header.
    #[error("the simulator's name {name:?} cannot be sent in a header: use printable ASCII")]
    Name {
        /// The name given.
        name: String,
    },
    /// The operating system refused the address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address refused.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// A simulator whose sockets are open: a connection made from now on waits and is answered once it is served.
#[derive(Debug)]
pub struct Simulator {
    engine: Arc<Engine>,
    listeners: Vec<(SocketAddr, TcpListener)>,
}

// === impl Simulator ===

impl Simulator {
    /// Checks the configuration and opens the sockets.
    ///
    /// # Errors
    /// See [`StartError`]. Must be called within a tokio runtime that has I/O and time enabled.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let zero = [
            (config.slots == 0, "slots"),
            (config.token_time.is_zero(), "token_time"),
            (config.default_tokens == 0, "default_tokens"),
            (config.cache_tokens == 0, "cache_tokens"),
        ];
        if let Some((_, field)) = zero.into_iter().find(|(is_zero, _)| *is_zero) {
            return Err(StartError::Zero { field });
        }
        if config.listen.is_empty() {
            return Err(StartError::NoAddress);
        }
        let listeners = config
            .listen
            .iter()
            .map(|address| listen(*address))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            engine: Engine::new(config)?,
            listeners,
        })
    }

    /// The addresses that are listened on, with the ports that were taken.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(address, _)| *address).collect()
    }

    /// Serves until `shutdown` is ready, then lets requests in flight go on for half a second.
    ///
    /// # Errors
    /// When a listener fails for good.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let router = router(self.engine);
        let (stop, _) = watch::channel(false);
        let mut servers = JoinSet::new();
        for (_, listener) in self.listeners {
            // Tokens are small writes that have to leave at once. A socket that refuses the option is only slower.
            let listener = listener.tap_io(|stream| {
                let _ = stream.set_nodelay(true);
            });
            let mut stopped = stop.subscribe();
            let router = router.clone();
            servers.spawn(async move {
                axum::serve(listener, router)
                    .with_graceful_shutdown(async move {
                        // An error means that the sender is gone, which is a reason to stop as well.
                        let _ = stopped.wait_for(|stop| *stop).await;
                    })
                    .await
            });
        }
        tokio::select! {
            () = shutdown => {}
            Some(ended) = servers.join_next() => return ended.map_err(io::Error::other)?,
        }
        stop.send_replace(true);
        let drain = async { while servers.join_next().await.is_some() {} };
        // Out of time is no error: what is still in flight is cut off, as it is when a server is stopped.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, drain).await;
        Ok(())
    }
}

fn listen(address: SocketAddr) -> Result<(SocketAddr, TcpListener), StartError> {
    let open = || -> io::Result<(SocketAddr, TcpListener)> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            // Otherwise [::]:8000 would claim 0.0.0.0:8000 too, and the two could not be given together.
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        }
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        Ok((listener.local_addr()?, listener))
    };
    open().map_err(|source| StartError::Listen { address, source })
}

fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/metrics", get(vllm_metrics))
        .route("/dcgm/metrics", get(dcgm_metrics))
        .route("/admin/saturate", post(saturate))
        .route("/admin/clear", post(clear))
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .with_state(engine)
}

const PROMETHEUS_TEXT: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

async fn vllm_metrics(State(engine): State<Arc<Engine>>) -> impl IntoResponse {
    (
        PROMETHEUS_TEXT,
        metrics::vllm(&engine.config().model, &engine.load(), &engine.totals()),
    )
}

async fn dcgm_metrics(State(engine): State<Arc<Engine>>) -> impl IntoResponse {
    (
        PROMETHEUS_TEXT,
        metrics::dcgm(&engine.config().name, &engine.load()),
    )
}

async fn saturate(State(engine): State<Arc<Engine>>, Json(reported): Json<Reported>) -> StatusCode {
    engine.report(Some(reported));
    StatusCode::NO_CONTENT
}

async fn clear(State(engine): State<Arc<Engine>>) -> StatusCode {
    engine.report(None);
    StatusCode::NO_CONTENT
}
