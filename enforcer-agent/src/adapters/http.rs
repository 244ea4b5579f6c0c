//! One bounded HTTP/1.1 GET to a back end, for scrapes and health checks.
//!
//! It owns the limits on time and size, and refuses everything a back end could use to lead the agent elsewhere:
//! redirects are not followed, and a URL has no user, no query of its own making and no TLS. One connection serves one
//! request: at one request a second a pool of connections would cost more care than it saves.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_ENCODING, HOST, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

/// Longest URL that is taken from a policy.
const MOST_URL_BYTES: usize = 2048;

/// Most that hyper buffers of a response's head.
const MOST_HEAD_BYTES: usize = 64 << 10;

/// Why a URL cannot be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TargetError {
    /// No URL at all.
    #[error("`{url}` is no URL: {reason}")]
    Invalid {
        /// The text.
        url: String,
        /// What the parser says.
        reason: String,
    },
    /// Another scheme, or none.
    #[error("`{url}` must begin with http://; telemetry and health checks are fetched without TLS")]
    NotHttp {
        /// The text.
        url: String,
    },
    /// `user:password@` in it.
    #[error("`{url}` carries credentials; name the host only")]
    Credentials {
        /// The text.
        url: String,
    },
    /// Longer than any sensible URL.
    #[error("a URL of {actual_bytes} bytes is too long, the most is {limit_bytes}")]
    TooLong {
        /// Its length.
        actual_bytes: usize,
        /// The most that is taken.
        limit_bytes: usize,
    },
}

/// A checked target of a GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTarget {
    host: String,
    port: u16,
    /// The value of the Host header.
    authority: String,
    /// Path and query, beginning with a slash.
    path: String,
}

impl HttpTarget {
    /// Takes a URL such as `http://10.9.0.1:9400/metrics`.
    ///
    /// # Errors
    /// [`TargetError`] says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        if url.len() > MOST_URL_BYTES {
            return Err(TargetError::TooLong {
                actual_bytes: url.len(),
                limit_bytes: MOST_URL_BYTES,
            });
        }
        let uri: Uri = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| TargetError::Invalid {
                url: url.to_owned(),
                reason: error.to_string(),
            })?;
        if uri.scheme_str() != Some("http") {
            return Err(TargetError::NotHttp { url: url.to_owned() });
        }
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        if authority.contains('@') {
            return Err(TargetError::Credentials { url: url.to_owned() });
        }
        let host = uri
            .host()
            .unwrap_or_default()
            .trim_start_matches('[')
            .trim_end_matches(']');
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            authority: authority.to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    /// The path `path` (beginning with a slash) on a back end, for health checks.
    ///
    /// # Errors
    /// [`TargetError`] if `path` is no path.
    pub fn on_back_end(address: SocketAddr, path: &str) -> Result<Self, TargetError> {
        let slash = if path.starts_with('/') { "" } else { "/" };
        Self::parse(&format!("http://{address}{slash}{path}"))
    }

    async fn resolve(&self) -> Result<SocketAddr, HttpError> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(address, self.port));
        }
        let unknown_host = |source| HttpError::UnknownHost {
            host: self.host.clone(),
            source,
        };
        let mut addresses = lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(unknown_host)?;
        addresses
            .next()
            .ok_or_else(|| unknown_host(io::ErrorKind::NotFound.into()))
    }
}

/// What one GET may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// From the first packet to the last byte of the body.
    pub timeout: Duration,
    /// Longest body.
    pub body_bytes: usize,
}

/// How far a request had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HttpStage {
    /// Looking up the name, or waiting for the TCP handshake.
    #[error("connecting")]
    Connect,
    /// Waiting for the head of the response.
    #[error("waiting for the answer")]
    Head,
    /// Reading the body.
    #[error("reading the answer")]
    Body,
}

/// Why a GET gave no body.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The name could not be resolved.
    #[error("the host `{host}` is not known: {source}")]
    UnknownHost {
        /// The name.
        host: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// No TCP connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// Not done in time.
    #[error("no end within {} ms, while {stage}", limit.as_millis())]
    Timeout {
        /// How far it had come.
        stage: HttpStage,
        /// The time that it had.
        limit: Duration,
    },
    /// Not HTTP, or broken off.
    #[error("the answer is not good HTTP, while {stage}: {source}")]
    Protocol {
        /// How far it had come.
        stage: HttpStage,
        /// What the HTTP reader says.
        source: hyper::Error,
    },
    /// A body that is too long.
    #[error("the answer is longer than {limit_bytes} bytes")]
    BodyTooLarge {
        /// The most that is taken.
        limit_bytes: usize,
    },
    /// A body that is compressed although nobody asked for it.
    #[error("the answer is compressed with `{encoding}`, which was not asked for")]
    Encoded {
        /// The content encoding.
        encoding: String,
    },
}

/// A response that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Bytes,
    /// From the first packet to the last byte.
    pub elapsed: Duration,
}

/// Fetches `target` once.
///
/// # Errors
/// [`HttpError`] if there was no whole answer within the limits. Any status is an answer.
pub async fn get(target: &HttpTarget, limits: &HttpLimits) -> Result<HttpAnswer, HttpError> {
    let started = Instant::now();
    let deadline = tokio::time::Instant::now() + limits.timeout;
    let late = |stage| {
        move |_| HttpError::Timeout {
            stage,
            limit: limits.timeout,
        }
    };

    let stream = timeout_at(deadline, connect(target))
        .await
        .map_err(late(HttpStage::Connect))??;
    // Aborts the connection's driver when this function is left, also by an error or by being dropped.
    let mut driver = JoinSet::new();
    let response = timeout_at(deadline, send(target, stream, &mut driver))
        .await
        .map_err(late(HttpStage::Head))?
        .map_err(|source| HttpError::Protocol {
            stage: HttpStage::Head,
            source,
        })?;
    let status = response.status().as_u16();
    let body = timeout_at(deadline, read_body(response, limits.body_bytes))
        .await
        .map_err(late(HttpStage::Body))??;
    Ok(HttpAnswer {
        status,
        body,
        elapsed: started.elapsed(),
    })
}

async fn connect(target: &HttpTarget) -> Result<TcpStream, HttpError> {
    let address = target.resolve().await?;
    TcpStream::connect(address)
        .await
        .map_err(|source| HttpError::Connect { address, source })
}

async fn send(
    target: &HttpTarget,
    stream: TcpStream,
    driver: &mut JoinSet<Result<(), hyper::Error>>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MOST_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    driver.spawn(connection);
    let request = Request::get(&target.path)
        .header(HOST, &target.authority)
        .header(USER_AGENT, concat!("enforcer-agent/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "text/plain;version=0.0.4, */*;q=0.1")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("path and authority were checked when the target was parsed");
    sender.send_request(request).await
}

async fn read_body(response: Response<Incoming>, limit_bytes: usize) -> Result<Bytes, HttpError> {
    if let Some(encoding) = response
        .headers()
        .get(CONTENT_ENCODING)
        .filter(|encoding| *encoding != "identity")
    {
        return Err(HttpError::Encoded {
            encoding: String::from_utf8_lossy(encoding.as_bytes()).into_owned(),
        });
    }
    let mut incoming = response.into_body();
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|source| HttpError::Protocol {
            stage: HttpStage::Body,
            source,
        })?;
        let Some(data) = frame.data_ref() else { continue };
        if body.len() + data.len() > limit_bytes {
            return Err(HttpError::BodyTooLarge { limit_bytes });
        }
        body.extend_from_slice(data);
    }
    Ok(body.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_taken_apart() {
        let target = HttpTarget::parse("http://[2001:db8::1]:9400/metrics?a=b").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("2001:db8::1", 9400));
        assert_eq!(
            (target.authority.as_str(), target.path.as_str()),
            ("[2001:db8::1]:9400", "/metrics?a=b")
        );
        let target = HttpTarget::parse("http://gpu-1").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.path.as_str()),
            ("gpu-1", 80, "/")
        );
        let address = "[2001:db8::1]:8000".parse().unwrap();
        let target = HttpTarget::on_back_end(address, "health").unwrap();
        assert_eq!(
            (target.authority.as_str(), target.path.as_str()),
            ("[2001:db8::1]:8000", "/health")
        );
    }

    #[test]
    fn targets_that_would_lead_elsewhere_are_refused() {
        assert!(matches!(
            HttpTarget::parse("https://gpu-1/"),
            Err(TargetError::NotHttp { .. })
        ));
        assert!(matches!(
            HttpTarget::parse("/metrics"),
            Err(TargetError::NotHttp { .. })
        ));
        assert!(matches!(
            HttpTarget::parse("http://a:b@gpu-1/"),
            Err(TargetError::Credentials { .. })
        ));
        assert!(matches!(
            HttpTarget::parse("http://gpu 1/"),
            Err(TargetError::Invalid { .. })
        ));
        assert!(matches!(HttpTarget::parse(""), Err(TargetError::Invalid { .. })));
        assert!(matches!(
            HttpTarget::parse(&"h".repeat(3000)),
            Err(TargetError::TooLong { .. })
        ));
        assert!(matches!(
            HttpTarget::on_back_end("127.0.0.1:80".parse().unwrap(), "/a\r\nHost: b"),
            Err(TargetError::Invalid { .. })
        ));
    }
}
