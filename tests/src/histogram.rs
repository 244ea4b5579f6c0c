//! A latency histogram of bounded size: log-linear buckets, as in HdrHistogram (Gil Tene), of 64 steps for each
//! doubling, so that a quantile is at most 1/64 above the true value however many samples went in.

use std::time::Duration;

/// Steps for each doubling: a power of two.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// 2^37 microseconds are 38 hours; longer samples count as that.
const LARGEST_US: u64 = (1 << 37) - 1;
const BUCKETS: usize = bucket_of(LARGEST_US) + 1;

/// Durations by microsecond, from 0 to 38 hours.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    samples: u64,
    longest_us: u64,
}

/// The bucket of a value: exact below `STEPS`, then `STEPS` equal buckets between one power of two and the next.
const fn bucket_of(value_us: u64) -> usize {
    if value_us < STEPS {
        return value_us as usize;
    }
    let shift = value_us.ilog2() - STEP_BITS;
    ((shift as u64 * STEPS) + (value_us >> shift)) as usize
}

/// The largest value that falls into the bucket.
fn largest_in(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS * 2 {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    ((bucket - shift * STEPS + 1) << shift) - 1
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            samples: 0,
            longest_us: 0,
        }
    }
}

impl Histogram {
    /// Counts one sample.
    pub fn record(&mut self, sample: Duration) {
        let sample_us = u64::try_from(sample.as_micros())
            .unwrap_or(LARGEST_US)
            .min(LARGEST_US);
        self.counts[bucket_of(sample_us)] += 1;
        self.samples += 1;
        self.longest_us = self.longest_us.max(sample_us);
    }

    /// How many samples went in.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The longest sample, exactly; zero when there is none.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us)
    }

    /// The smallest value that at least `per_mille` thousandths of the samples do not exceed (500 is the median),
    /// rounded up by at most 1/64. `None` when there are no samples.
    #[must_use]
    pub fn quantile(&self, per_mille: u32) -> Option<Duration> {
        if self.samples == 0 {
            return None;
        }
        let rank = (self.samples * u64::from(per_mille.min(1000)))
            .div_ceil(1000)
            .max(1);
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return Some(Duration::from_micros(largest_in(bucket).min(self.longest_us)));
            }
        }
        Some(self.longest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_tile_the_range_without_gap_or_overlap() {
        for bucket in 0..BUCKETS - 1 {
            let last = largest_in(bucket);
            assert_eq!(bucket_of(last), bucket, "last value of bucket {bucket}");
            assert_eq!(
                bucket_of(last + 1),
                bucket + 1,
                "first value after bucket {bucket}"
            );
        }
        assert_eq!(largest_in(BUCKETS - 1), LARGEST_US);
    }

    #[test]
    fn quantiles_are_within_one_step_of_the_true_value() {
        let mut histogram = Histogram::default();
        for millisecond in 1..=1000 {
            histogram.record(Duration::from_millis(millisecond));
        }
        for (per_mille, true_ms) in [(500, 500), (950, 950), (990, 990), (1000, 1000)] {
            let found = histogram.quantile(per_mille).unwrap();
            let true_value = Duration::from_millis(true_ms);
            assert!(
                found >= true_value && found <= true_value.mul_f64(1.0 + 1.0 / 64.0),
                "{per_mille}: {found:?}"
            );
        }
        assert_eq!(histogram.longest(), Duration::from_secs(1));
    }

    #[test]
    fn an_empty_histogram_knows_no_quantile() {
        assert_eq!(Histogram::default().quantile(500), None);
    }

    #[test]
    fn a_sample_beyond_the_range_counts_as_the_longest() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_secs(u64::MAX));
        assert_eq!(histogram.samples(), 1);
        assert_eq!(histogram.quantile(990), Some(Duration::from_micros(LARGEST_US)));
    }
}
