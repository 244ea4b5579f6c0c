//! How saturated a back end is, and which signal says so.

use super::{Tuning, WeightCause};
use crate::pure::telemetry::{EngineSample, GpuSample};

/// One signal's saturation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pressure {
    /// 0 (at ease) to 1 (takes no more without harm); never NaN.
    pub(super) saturation: f64,
    /// What the signal said; `None` for the assumption about a silent back end.
    pub(super) cause: Option<WeightCause>,
}

/// What is known about the load of a back end: a sample is here only while its source still counts.
pub(super) struct Known<'a> {
    pub(super) engine: Option<&'a EngineSample>,
    pub(super) gpu: Option<&'a GpuSample>,
    /// A configured source of load has fallen silent.
    pub(super) silent: bool,
    pub(super) connections_in_flight: Option<u64>,
    pub(super) capacity: u32,
}

impl Known<'_> {
    /// The strongest signal, or `None` if nothing at all is known. Signals are not added up: a full queue and a full
    /// cache are two views of the same load.
    pub(super) fn strongest(&self, tuning: &Tuning) -> Option<Pressure> {
        let capacity = f64::from(self.capacity.max(1));
        let queue = self
            .engine
            .and_then(|engine| engine.waiting)
            .map(|waiting| Pressure {
                saturation: ramp(waiting / capacity, 0, tuning.queue_full_per_mille),
                cause: Some(WeightCause::Queue {
                    waiting: waiting.max(0.0) as u64,
                }),
            });
        let kv_cache = self
            .engine
            .and_then(|engine| engine.kv_cache_ratio)
            .map(|usage| Pressure {
                saturation: ramp(
                    usage,
                    tuning.kv_cache_easy_per_mille,
                    tuning.kv_cache_full_per_mille,
                ),
                cause: Some(WeightCause::KvCache {
                    usage_per_mille: per_mille(usage),
                }),
            });
        let engine_is_mute = queue.is_none() && kv_cache.is_none();
        // A GPU is busy whenever it decodes at all, so utilization is the poorest sign of saturation: only in need.
        let utilization = self
            .engine
            .and_then(|engine| engine.gpu_utilization_ratio)
            .or_else(|| self.gpu.and_then(|gpu| gpu.utilization_ratio))
            .filter(|_| engine_is_mute)
            .map(|utilization| Pressure {
                saturation: ramp(utilization, 0, 1000),
                cause: Some(WeightCause::GpuUtilization {
                    utilization_per_mille: per_mille(utilization),
                }),
            });
        let neutral = (self.silent && engine_is_mute && utilization.is_none()).then(|| Pressure {
            saturation: ramp(f64::from(tuning.neutral_saturation_per_mille) / 1000.0, 0, 1000),
            cause: None,
        });
        let connections = self.connections_in_flight.map(|in_flight| Pressure {
            // Exact below 2^53 connections.
            saturation: ramp(in_flight as f64 / capacity, 0, 1000),
            cause: Some(WeightCause::Connections { in_flight }),
        });
        // Of equals the first is named, so the order here is the order of how telling a signal is.
        [queue, kv_cache, utilization, connections, neutral]
            .into_iter()
            .flatten()
            .reduce(|strongest, other| {
                if other.saturation > strongest.saturation {
                    other
                } else {
                    strongest
                }
            })
    }
}

/// 0 up to `from`, 1 from `to` on, straight in between. Anything that is no number counts as 0 here, but samples do
/// not carry one.
fn ramp(value: f64, from_per_mille: u16, to_per_mille: u16) -> f64 {
    let from = f64::from(from_per_mille) / 1000.0;
    // At least one per mille wide, so that a setting cannot divide by zero.
    let width = f64::from(to_per_mille.saturating_sub(from_per_mille).max(1)) / 1000.0;
    ((value - from) / width).clamp(0.0, 1.0).max(0.0)
}

/// A ratio of 0 to 1, rounded.
pub(super) fn per_mille(ratio: f64) -> u16 {
    // The clamp keeps it in range, and a NaN becomes 0 in the conversion.
    (ratio.clamp(0.0, 1.0) * 1000.0).round() as u16
}
