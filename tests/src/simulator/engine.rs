//! The part of an inference engine that makes it slow: decode slots, a queue in front of them, a key-value cache that
//! fills token by token, and the gauges that say so.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{Config, StartError};

/// What the metrics report instead of the truth: a field that is left out stays true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reported {
    /// Requests being decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// Requests that queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
    /// Share of the key-value cache in use, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<f64>,
    /// GPU utilization in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_utilization: Option<u32>,
    /// The last XID error of the GPU; 0 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<u32>,
    /// Whether the GPU is throttled because it is hot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thermal_brake: Option<bool>,
}

/// What the metrics say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Requests being decoded.
    pub running: u32,
    /// Requests that queue.
    pub waiting: u32,
    /// Share of the key-value cache in use, 0 to 1.
    pub kv_cache: f64,
    /// GPU utilization in percent.
    pub gpu_utilization: u32,
    /// The last XID error of the GPU; 0 is none.
    pub xid: u32,
    /// Whether the GPU is throttled because it is hot.
    pub thermal_brake: bool,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    pub(super) finished: u64,
    pub(super) aborted: u64,
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
}

/// The queue is full.
#[derive(Debug)]
pub(super) struct QueueFull;

/// One simulated engine.
#[derive(Debug)]
pub(super) struct Engine {
    config: Config,
    name: HeaderValue,
    slots: Arc<Semaphore>,
    running: AtomicU32,
    waiting: AtomicU32,
    cached_tokens: AtomicU64,
    started: AtomicU64,
    finished: AtomicU64,
    aborted: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    reported: Mutex<Option<Reported>>,
}

// All counters are independent figures that only the metrics read together: no ordering is promised between them.
const RELAXED: Ordering = Ordering::Relaxed;

// === impl Engine ===

impl Engine {
    pub(super) fn new(config: Config) -> Result<Arc<Self>, StartError> {
        let name = HeaderValue::from_str(&config.name).map_err(|_| StartError::Name {
            name: config.name.clone(),
        })?;
        let slots = Arc::new(Semaphore::new(config.slots as usize));
        Ok(Arc::new(Self {
            config,
            name,
            slots,
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            cached_tokens: AtomicU64::new(0),
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            reported: Mutex::new(None),
        }))
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The back end's name as a header value.
    pub(super) fn name(&self) -> HeaderValue {
        self.name.clone()
    }

    pub(super) fn report(&self, reported: Option<Reported>) {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = reported;
    }

    pub(super) fn load(&self) -> Load {
        let reported = self
            .reported
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .unwrap_or_default();
        let running = self.running.load(RELAXED);
        let cached = self.cached_tokens.load(RELAXED) as f64 / f64::from(self.config.cache_tokens);
        Load {
            running: reported.running.unwrap_or(running),
            waiting: reported.waiting.unwrap_or_else(|| self.waiting.load(RELAXED)),
            kv_cache: reported.kv_cache.unwrap_or(cached).clamp(0.0, 1.0),
            gpu_utilization: reported
                .gpu_utilization
                .unwrap_or_else(|| (u64::from(running) * 100 / u64::from(self.config.slots)) as u32)
                .min(100),
            xid: reported.xid.unwrap_or(0),
            thermal_brake: reported.thermal_brake.unwrap_or(false),
        }
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            finished: self.finished.load(RELAXED),
            aborted: self.aborted.load(RELAXED),
            prompt_tokens: self.prompt_tokens.load(RELAXED),
            generated_tokens: self.generated_tokens.load(RELAXED),
        }
    }

    /// Waits for a decode slot, first come first served. Dropping the future leaves the queue.
    pub(super) async fn admit(
        self: &Arc<Self>,
        prompt_tokens: u32,
        tokens: u32,
    ) -> Result<Decode, QueueFull> {
        let permit = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _place = QueuePlace::take(self)?;
                // The semaphore is never closed, so the only way to fail does not exist.
                Arc::clone(&self.slots)
                    .acquire_owned()
                    .await
                    .map_err(|_| QueueFull)?
            }
        };
        self.running.fetch_add(1, RELAXED);
        self.prompt_tokens.fetch_add(u64::from(prompt_tokens), RELAXED);
        self.cached_tokens.fetch_add(u64::from(prompt_tokens), RELAXED);
        let mut pace =
            tokio::time::interval_at(Instant::now() + self.config.token_time, self.config.token_time);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Decode {
            sequence: self.started.fetch_add(1, RELAXED),
            engine: Arc::clone(self),
            pace,
            cached: u64::from(prompt_tokens),
            produced: 0,
            tokens,
            _permit: permit,
        })
    }
}

/// A place in the queue, given back when dropped.
struct QueuePlace<'engine>(&'engine Engine);

// === impl QueuePlace ===

impl<'engine> QueuePlace<'engine> {
    fn take(engine: &'engine Engine) -> Result<Self, QueueFull> {
        let limit = engine.config.queue_limit;
        engine
            .waiting
            .fetch_update(RELAXED, RELAXED, |waiting| {
                (waiting < limit).then_some(waiting + 1)
            })
            .map(|_| Self(engine))
            .map_err(|_| QueueFull)
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, RELAXED);
    }
}

/// A request that holds a slot. Dropping it frees the slot and its share of the cache, as an engine does when the
/// client goes away.
#[derive(Debug)]
pub(super) struct Decode {
    engine: Arc<Engine>,
    pace: Interval,
    sequence: u64,
    cached: u64,
    produced: u32,
    tokens: u32,
    _permit: OwnedSemaphorePermit,
}

// === impl Decode ===

impl Decode {
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Numbers the requests of this engine, for the response's id.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn is_last(&self) -> bool {
        self.produced == self.tokens
    }

    /// Waits for the next token and returns its index, or `None` when all were produced.
    pub(super) async fn next_token(&mut self) -> Option<u32> {
        if self.is_last() {
            return None;
        }
        self.pace.tick().await;
        let index = self.produced;
        self.produced += 1;
        self.cached += 1;
        self.engine.cached_tokens.fetch_add(1, RELAXED);
        self.engine.generated_tokens.fetch_add(1, RELAXED);
        Some(index)
    }
}

impl Drop for Decode {
    fn drop(&mut self) {
        let outcome = if self.is_last() {
            &self.engine.finished
        } else {
            &self.engine.aborted
        };
        outcome.fetch_add(1, RELAXED);
        self.engine.cached_tokens.fetch_sub(self.cached, RELAXED);
        self.engine.running.fetch_sub(1, RELAXED);
    }
}
