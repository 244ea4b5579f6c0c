//! Scrapes of engines and GPU exporters over HTTP.

use std::time::Duration;

use thiserror::Error;

use super::http::{HttpError, HttpLimits, HttpTarget, get};
use crate::pure::telemetry::{EngineSample, GpuSample, TelemetryError, TextLimits, parse_engine, parse_gpu};

/// What one scrape may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrapeLimits {
    /// From the first packet to the last byte.
    pub timeout: Duration,
    /// Sizes; the body's also bounds what is read from the network.
    pub text: TextLimits,
}

impl Default for ScrapeLimits {
    /// One second, so that a scrape each second never piles up.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            text: TextLimits::default(),
        }
    }
}

/// Why a scrape gave no sample: a miss.
#[derive(Debug, Error)]
pub enum ScrapeError {
    /// No whole answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// An answer, but not the metrics.
    #[error("the exporter answers with status {status} instead of its metrics")]
    Status {
        /// The status code.
        status: u16,
    },
    /// Metrics, but none that can be used.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

/// Scrapes an engine.
///
/// # Errors
/// [`ScrapeError`]; each one is a miss of this source.
pub async fn scrape_engine(target: &HttpTarget, limits: &ScrapeLimits) -> Result<EngineSample, ScrapeError> {
    Ok(parse_engine(&fetch(target, limits).await?, &limits.text)?)
}

/// Scrapes a dcgm-exporter.
///
/// # Errors
/// [`ScrapeError`]; each one is a miss of this source.
pub async fn scrape_gpu(target: &HttpTarget, limits: &ScrapeLimits) -> Result<GpuSample, ScrapeError> {
    Ok(parse_gpu(&fetch(target, limits).await?, &limits.text)?)
}

async fn fetch(target: &HttpTarget, limits: &ScrapeLimits) -> Result<bytes::Bytes, ScrapeError> {
    let http_limits = HttpLimits {
        timeout: limits.timeout,
        body_bytes: limits.text.body_bytes,
    };
    let answer = get(target, &http_limits).await?;
    if answer.status != 200 {
        return Err(ScrapeError::Status {
            status: answer.status,
        });
    }
    Ok(answer.body)
}
