//! From telemetry to back-end weights: a fold without clock or I/O.
//!
//! It owns how load, brakes, faults, recovery and silence turn into the *published* weight, the one that the Maglev
//! tables are built from, and the causes that the audit log gives for each change. It never empties a pool on the word
//! of telemetry ([`limit_drains`]) and never takes silence for idleness.
//!
//! The weight scale: a published weight is `capacity * share`, where the share is an integer from 0 to 1000
//! per mille. 0 means that the back end takes no new connection; 1000 that it takes its full part. So back ends of
//! different capacity stay in proportion, and weights of different pools can be compared.

mod cause;
mod fold;
mod pool;
mod pressure;
#[cfg(test)]
mod tests;

pub use cause::{Source, WeightCause};
pub use fold::{BackendState, Folded, fold};
pub use pool::{PoolMember, limit_drains};

use super::telemetry::{EngineSample, GpuSample};

/// The share of a back end that is at its full weight.
pub const FULL_SHARE_PER_MILLE: u16 = 1000;

/// The largest capacity that the scale takes; a larger one counts as this. It keeps a weight within 32 bits.
pub const MOST_CAPACITY: u32 = 1_000_000;

/// The published weight of a back end with this capacity and share.
#[must_use]
pub fn weight_of(capacity: u32, share_per_mille: u16) -> u32 {
    // At most 1,000,000 * 1000, which fits.
    capacity.min(MOST_CAPACITY) * u32::from(share_per_mille.min(FULL_SHARE_PER_MILLE))
}

/// What one source of telemetry had to say since the last fold.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Reading<T> {
    /// The policy names no such source.
    #[default]
    NotConfigured,
    /// No attempt was made since the last fold; the last sample still holds.
    Unchanged,
    /// An attempt was made and failed.
    Missed,
    /// An attempt was made and gave this.
    Fresh(T),
}

impl<T> Reading<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Self::NotConfigured => Reading::NotConfigured,
            Self::Unchanged => Reading::Unchanged,
            Self::Missed => Reading::Missed,
            Self::Fresh(sample) => Reading::Fresh(change(sample)),
        }
    }
}

/// Everything that is known of a back end at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Signals {
    /// The engine's own metrics.
    pub engine: Reading<EngineSample>,
    /// The GPUs' metrics, from dcgm-exporter or NVML.
    pub gpu: Reading<GpuSample>,
    /// Connections that the kernel counts on this back end right now; exact, never stale.
    pub connections_in_flight: Option<u64>,
    /// Whether the back end may take new connections: it is healthy and no operator has drained it.
    pub serving: bool,
}

/// The constants of the fold. All integers, so that no setting can bring in a NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Time constant of the smoothing while saturation rises, in ns.
    pub rise_time_constant_ns: u64,
    /// Time constant of the smoothing while saturation falls, in ns. Longer, so that a back end that has just caught
    /// up is not flooded.
    pub fall_time_constant_ns: u64,
    /// The queue, in per mille of the capacity, that counts as full saturation.
    pub queue_full_per_mille: u16,
    /// Use of the key-value cache up to which it is no sign of saturation, per mille.
    pub kv_cache_easy_per_mille: u16,
    /// Use of the key-value cache from which it is full saturation, per mille: engines preempt requests past it.
    pub kv_cache_full_per_mille: u16,
    /// The saturation that is assumed of a back end whose telemetry has fallen silent, per mille.
    pub neutral_saturation_per_mille: u16,
    /// The share that a fully saturated back end keeps, per mille. Not zero: load alone never removes a back end.
    pub floor_per_mille: u16,
    /// Changes of the share smaller than this are not published, per mille: each one costs a table.
    pub dead_band_per_mille: u16,
    /// The most by which the share moves in a second, per mille. Faults are exempt.
    pub step_per_second_per_mille: u16,
    /// How long a recovered back end takes to regain its full share, in ns.
    pub slow_start_ns: u64,
    /// The share with which a recovered back end begins, per mille.
    pub slow_start_from_per_mille: u16,
    /// Misses in a row before a source counts as silent.
    pub misses_before_verdict: u32,
}

impl Default for Tuning {
    /// For a fold each second.
    fn default() -> Self {
        Self {
            rise_time_constant_ns: 2_000_000_000,
            fall_time_constant_ns: 8_000_000_000,
            queue_full_per_mille: 500,
            kv_cache_easy_per_mille: 600,
            kv_cache_full_per_mille: 950,
            neutral_saturation_per_mille: 500,
            floor_per_mille: 50,
            dead_band_per_mille: 50,
            step_per_second_per_mille: 200,
            slow_start_ns: 30_000_000_000,
            slow_start_from_per_mille: 100,
            misses_before_verdict: 3,
        }
    }
}
