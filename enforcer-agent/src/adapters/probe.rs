//! Health checks: one probe of one back end, with the reason if it fails.
//!
//! When several probes make a verdict is not decided here but in `pure/health.rs`.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::{HttpError, HttpLimits, HttpStage, HttpTarget, TargetError, get};

/// Most that is read of the body of a health answer. Engines answer with nothing or a few words.
const MOST_BODY_BYTES: usize = 64 << 10;

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeTarget {
    /// Opens a TCP connection and closes it.
    Tcp(SocketAddr),
    /// Fetches a path and expects a status from 200 to 299. A redirect is no sign of health.
    Http(HttpTarget),
}

impl ProbeTarget {
    /// A probe of `path` on the back end at `address`.
    ///
    /// # Errors
    /// [`TargetError`] if `path` is no path.
    pub fn http(address: SocketAddr, path: &str) -> Result<Self, TargetError> {
        HttpTarget::on_back_end(address, path).map(Self::Http)
    }
}

/// Why a probe failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProbeFailure {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// No way there.
    #[error("no route to the back end")]
    Unreachable,
    /// The back end broke the connection off.
    #[error("connection broken off by the back end")]
    Reset,
    /// Not done in time.
    #[error("no end within {} ms, while {stage}", limit.as_millis())]
    Timeout {
        /// How far it had come.
        stage: HttpStage,
        /// The time that it had.
        limit: Duration,
    },
    /// The back end says that it is not well.
    #[error("status {status}")]
    Status {
        /// The status code.
        status: u16,
    },
    /// The answer is not HTTP, or too long.
    #[error("bad answer: {detail}")]
    BadAnswer {
        /// What the HTTP reader says.
        detail: String,
    },
    /// Anything else, as the kernel names it: no local port, no memory.
    #[error("{kind}")]
    Local {
        /// The kind of error.
        kind: ErrorKind,
    },
}

/// The result of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// The back end answered, after this time.
    Passed(Duration),
    /// It did not.
    Failed(ProbeFailure),
}

impl ProbeResult {
    /// Whether the back end answered.
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(self, Self::Passed(_))
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(elapsed) => write!(f, "passed in {} ms", elapsed.as_millis()),
            Self::Failed(failure) => write!(f, "failed: {failure}"),
        }
    }
}

/// Probes a back end once, within `limit`.
pub async fn probe(target: &ProbeTarget, limit: Duration) -> ProbeResult {
    let result = match target {
        ProbeTarget::Tcp(address) => probe_tcp(*address, limit).await,
        ProbeTarget::Http(target) => probe_http(target, limit).await,
    };
    result.map_or_else(ProbeResult::Failed, ProbeResult::Passed)
}

async fn probe_tcp(address: SocketAddr, limit: Duration) -> Result<Duration, ProbeFailure> {
    let started = Instant::now();
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(started.elapsed()),
        Ok(Err(error)) => Err(failure_of(error.kind())),
        Err(_) => Err(ProbeFailure::Timeout {
            stage: HttpStage::Connect,
            limit,
        }),
    }
}

async fn probe_http(target: &HttpTarget, limit: Duration) -> Result<Duration, ProbeFailure> {
    let limits = HttpLimits {
        timeout: limit,
        body_bytes: MOST_BODY_BYTES,
    };
    match get(target, &limits).await {
        Ok(answer) if (200..300).contains(&answer.status) => Ok(answer.elapsed),
        Ok(answer) => Err(ProbeFailure::Status {
            status: answer.status,
        }),
        Err(HttpError::Timeout { stage, limit }) => Err(ProbeFailure::Timeout { stage, limit }),
        Err(HttpError::Connect { source, .. }) => Err(failure_of(source.kind())),
        Err(error) => Err(ProbeFailure::BadAnswer {
            detail: error.to_string(),
        }),
    }
}

fn failure_of(kind: ErrorKind) -> ProbeFailure {
    match kind {
        ErrorKind::ConnectionRefused => ProbeFailure::Refused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            ProbeFailure::Reset
        }
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            ProbeFailure::Unreachable
        }
        // The kernel's own patience ran out before ours.
        ErrorKind::TimedOut => ProbeFailure::Unreachable,
        kind => ProbeFailure::Local { kind },
    }
}
