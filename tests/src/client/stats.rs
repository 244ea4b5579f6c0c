//! What became of the requests, counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::histogram::Histogram;

/// Distinct back-end names that are counted apart; the name comes from the other side, so it is bounded.
const MAX_BACK_ENDS: usize = 64;
/// Where further names are counted.
const OTHER_BACK_ENDS: &str = "(others)";

/// How one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole answer came, with a status of 200 to 299.
    Ok,
    /// The connection was refused with a reset.
    Refused,
    /// Nothing answered the connection request in time.
    ConnectTimeout,
    /// No route, or a router said that the address cannot be reached or is prohibited.
    Unreachable,
    /// The connection was reset, or ended before the answer did.
    Reset,
    /// The answer did not begin in time.
    ResponseTimeout,
    /// The answer began, and then its next part did not come in time.
    Stalled,
    /// The whole answer came, with another status.
    HttpError,
    /// Something else, for example an answer that is no HTTP.
    Other,
}

/// Quantiles in milliseconds; `None` when there is no sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the samples are at most this.
    pub p50: Option<f64>,
    /// 95 in 100 samples are at most this.
    pub p95: Option<f64>,
    /// 99 in 100 samples are at most this.
    pub p99: Option<f64>,
    /// The longest sample.
    pub max: Option<f64>,
}

/// The sums of a run, or of one second of it.
///
/// For a run, `attempted` is the sum of all outcomes, `unfinished` and `not_sent`; for one second it need not be,
/// since a request may begin in one second and end in another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What the sums cover, in seconds.
    pub seconds: f64,
    /// Requests that were due.
    pub attempted: u64,
    /// [`Outcome::Ok`].
    pub ok: u64,
    /// [`Outcome::Refused`].
    pub refused: u64,
    /// [`Outcome::ConnectTimeout`].
    pub connect_timeouts: u64,
    /// [`Outcome::Unreachable`].
    pub unreachable: u64,
    /// [`Outcome::Reset`].
    pub resets: u64,
    /// [`Outcome::ResponseTimeout`].
    pub response_timeouts: u64,
    /// [`Outcome::Stalled`].
    pub stalled: u64,
    /// [`Outcome::HttpError`].
    pub http_errors: u64,
    /// [`Outcome::Other`].
    pub other_errors: u64,
    /// Requests that were given up because the run was stopped.
    pub unfinished: u64,
    /// Requests that were due while too many others were under way.
    pub not_sent: u64,
    /// Answers that began, by the name that the back end gave.
    pub back_ends: BTreeMap<String, u64>,
    /// Body bytes received.
    pub bytes: u64,
    /// From the start of the connection (or, on one that was kept, of the request) to the first byte of the answer's
    /// body, of answers with a status of 200 to 299.
    pub latency_ms: Latency,
    /// Time to open a connection.
    pub connect_ms: Latency,
}

// === impl Summary ===

impl Summary {
    /// Requests that did not get their answer, whatever the reason; those not sent or given up are not among them.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.refused
            + self.connect_timeouts
            + self.unreachable
            + self.resets
            + self.response_timeouts
            + self.stalled
            + self.http_errors
            + self.other_errors
    }
}

#[derive(Default)]
struct Sums {
    summary: Summary,
    latency: Histogram,
    connect: Histogram,
}

// === impl Sums ===

impl Sums {
    fn close(&self, elapsed: Duration) -> Summary {
        Summary {
            seconds: elapsed.as_secs_f64(),
            latency_ms: quantiles(&self.latency),
            connect_ms: quantiles(&self.connect),
            ..self.summary.clone()
        }
    }

    fn count(&mut self, outcome: Outcome) {
        let summary = &mut self.summary;
        let counter = match outcome {
            Outcome::Ok => &mut summary.ok,
            Outcome::Refused => &mut summary.refused,
            Outcome::ConnectTimeout => &mut summary.connect_timeouts,
            Outcome::Unreachable => &mut summary.unreachable,
            Outcome::Reset => &mut summary.resets,
            Outcome::ResponseTimeout => &mut summary.response_timeouts,
            Outcome::Stalled => &mut summary.stalled,
            Outcome::HttpError => &mut summary.http_errors,
            Outcome::Other => &mut summary.other_errors,
        };
        *counter += 1;
    }

    fn count_back_end(&mut self, name: &str) {
        let back_ends = &mut self.summary.back_ends;
        if let Some(count) = back_ends.get_mut(name) {
            *count += 1;
        } else {
            let name = if back_ends.len() < MAX_BACK_ENDS {
                name
            } else {
                OTHER_BACK_ENDS
            };
            *back_ends.entry(name.into()).or_default() += 1;
        }
    }
}

fn quantiles(histogram: &Histogram) -> Latency {
    let milliseconds = |duration: Duration| duration.as_micros() as f64 / 1000.0;
    Latency {
        p50: histogram.quantile(500).map(milliseconds),
        p95: histogram.quantile(950).map(milliseconds),
        p99: histogram.quantile(990).map(milliseconds),
        max: (histogram.samples() > 0).then(|| milliseconds(histogram.longest())),
    }
}

/// The sums of the run and of the second that is under way.
pub(super) struct Recorder {
    started: Instant,
    state: Mutex<State>,
}

struct State {
    interval_started: Instant,
    run: Sums,
    interval: Sums,
}

// === impl Recorder ===

impl Recorder {
    pub(super) fn new() -> Self {
        let started = Instant::now();
        let state = State {
            interval_started: started,
            run: Sums::default(),
            interval: Sums::default(),
        };
        Self {
            started,
            state: Mutex::new(state),
        }
    }

    fn both(&self, mut change: impl FnMut(&mut Sums)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.run);
        change(&mut state.interval);
    }

    pub(super) fn attempted(&self) {
        self.both(|sums| sums.summary.attempted += 1);
    }

    pub(super) fn not_sent(&self) {
        self.both(|sums| {
            sums.summary.attempted += 1;
            sums.summary.not_sent += 1;
        });
    }

    pub(super) fn unfinished(&self, count: u64) {
        self.both(|sums| sums.summary.unfinished += count);
    }

    pub(super) fn connected(&self, took: Duration) {
        self.both(|sums| sums.connect.record(took));
    }

    pub(super) fn answer_began(&self, back_end: &str) {
        self.both(|sums| sums.count_back_end(back_end));
    }

    pub(super) fn first_byte(&self, took: Duration) {
        self.both(|sums| sums.latency.record(took));
    }

    pub(super) fn received(&self, bytes: u64) {
        self.both(|sums| sums.summary.bytes += bytes);
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.both(|sums| sums.count(outcome));
    }

    /// The sums since the last call.
    pub(super) fn end_interval(&self) -> Summary {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let elapsed = now - std::mem::replace(&mut state.interval_started, now);
        std::mem::take(&mut state.interval).close(elapsed)
    }

    pub(super) fn summary(&self) -> Summary {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.run.close(self.started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_end_names_from_the_other_side_are_bounded() {
        let mut sums = Sums::default();
        for index in 0..1000 {
            sums.count_back_end(&format!("gpu-{index}"));
        }
        assert_eq!(sums.summary.back_ends.len(), MAX_BACK_ENDS + 1);
        assert_eq!(sums.summary.back_ends.values().sum::<u64>(), 1000);
        assert_eq!(
            sums.summary.back_ends[OTHER_BACK_ENDS],
            1000 - MAX_BACK_ENDS as u64
        );
    }

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        use Outcome::*;
        let outcomes = [
            Ok,
            Refused,
            ConnectTimeout,
            Unreachable,
            Reset,
            ResponseTimeout,
            Stalled,
            HttpError,
            Other,
        ];
        let mut sums = Sums::default();
        for outcome in outcomes {
            sums.count(outcome);
        }
        assert_eq!(sums.summary.ok, 1);
        assert_eq!(sums.summary.failed(), outcomes.len() as u64 - 1);
    }

    #[test]
    fn a_summary_survives_json() {
        let mut sums = Sums::default();
        sums.count_back_end("gpu-1");
        sums.latency.record(Duration::from_millis(3));
        let summary = sums.close(Duration::from_secs(2));
        let text = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
    }
}
