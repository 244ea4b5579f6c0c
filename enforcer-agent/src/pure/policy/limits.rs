//! The arithmetic of rates, and which rates can be kept.
//!
//! The data path holds one 64-bit time per limiter (GCRA: ITU-T I.371, "virtual scheduling"). A unit costs
//! `step / 2^20` ns of that time, where `step = 10^9 * 2^20 / rate`; a charge costs `(units * step) >> 20` ns, in 64 bits
//! without a division. From that follow the rates that can be kept: the product must not overflow, and a step must be
//! large enough to stand for its rate.

use thiserror::Error;

pub use enforcer_common::abi::config::{MAX_STEP_FP, MAX_UNITS, STEP_SHIFT};

/// The highest rate of bytes per second that a step stands for to within one in a thousand.
pub const MAX_BYTES_PER_SECOND: u64 = 1_000_000_000_000;
/// The highest rate of packets or connections per second: one costs a whole nanosecond.
pub const MAX_EVENTS_PER_SECOND: u64 = 1_000_000_000;
/// The longest burst. A tenant that was silent for that long has all of its rate saved up.
pub const MAX_BURST_NS: u64 = 3600 * 1_000_000_000;
/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Connections or packets, charged one at a time.
    Events,
    /// Bytes, charged a packet at a time.
    Bytes,
}

/// Why a rate cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RateError {
    /// Zero.
    #[error("a limit of 0 is a refusal, not a limit")]
    Zero,
    /// The time for the largest packet does not fit.
    #[error("{rate} per second is too little to meter; the least is {least}")]
    TooLow {
        /// What was asked for, per second.
        rate: u64,
        /// The least that can be kept, per second.
        least: u64,
    },
    /// The step is too short to stand for the rate.
    #[error("{rate} per second is too much to meter; the most is {most}")]
    TooHigh {
        /// What was asked for, per second.
        rate: u64,
        /// The most that can be kept, per second.
        most: u64,
    },
}

/// A second, as the steps count it.
const SECOND_FP: u64 = 1_000_000_000 << STEP_SHIFT;

/// The lowest byte rate whose charge for the largest packet fits into 64 bits.
pub const MIN_BYTES_PER_SECOND: u64 = {
    // The step is rounded, so that the quotient has to be well below the largest one, not just not above it.
    SECOND_FP / MAX_STEP_FP + 1
};

/// The step of a rate: nanoseconds per unit, times 2^20, rounded to the nearest.
///
/// # Errors
/// When the data path could not keep the rate.
pub const fn step_fp(rate_per_second: u64, unit: Unit) -> Result<u64, RateError> {
    let (least, most) = match unit {
        Unit::Events => (1, MAX_EVENTS_PER_SECOND),
        Unit::Bytes => (MIN_BYTES_PER_SECOND, MAX_BYTES_PER_SECOND),
    };
    if rate_per_second == 0 {
        return Err(RateError::Zero);
    }
    if rate_per_second < least {
        return Err(RateError::TooLow {
            rate: rate_per_second,
            least,
        });
    }
    if rate_per_second > most {
        return Err(RateError::TooHigh {
            rate: rate_per_second,
            most,
        });
    }
    Ok((SECOND_FP + rate_per_second / 2) / rate_per_second)
}

/// The rate of events that comes out: a charge is rounded down to whole nanoseconds, which matters when one event
/// costs only a few of them.
#[must_use]
pub const fn kept_events_per_second(step_fp: u64) -> u64 {
    1_000_000_000
        / if step_fp >> STEP_SHIFT == 0 {
            1
        } else {
            step_fp >> STEP_SHIFT
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_edges_are_where_the_arithmetic_says() {
        assert_eq!(MIN_BYTES_PER_SECOND, 4);
        assert_eq!(step_fp(0, Unit::Bytes), Err(RateError::Zero));
        assert_eq!(
            step_fp(3, Unit::Bytes),
            Err(RateError::TooLow { rate: 3, least: 4 })
        );
        let slowest = step_fp(4, Unit::Bytes).unwrap();
        assert!(slowest.checked_mul(MAX_UNITS).is_some());
        assert!(step_fp(MAX_BYTES_PER_SECOND, Unit::Bytes).is_ok());
        assert!(step_fp(MAX_BYTES_PER_SECOND + 1, Unit::Bytes).is_err());
        assert_eq!(step_fp(1, Unit::Events), Ok(1_000_000_000 << 20));
        assert_eq!(step_fp(MAX_EVENTS_PER_SECOND, Unit::Events), Ok(1 << 20));
        assert_eq!(
            kept_events_per_second(step_fp(MAX_EVENTS_PER_SECOND, Unit::Events).unwrap()),
            1_000_000_000
        );
        assert_eq!(
            kept_events_per_second(step_fp(700_000_000, Unit::Events).unwrap()),
            1_000_000_000
        );
        assert_eq!(
            kept_events_per_second(step_fp(200_000, Unit::Events).unwrap()),
            200_000
        );
    }

    proptest! {
        #[test]
        fn a_step_stands_for_its_rate_to_one_in_a_thousand(rate in MIN_BYTES_PER_SECOND..=MAX_BYTES_PER_SECOND) {
            let step = step_fp(rate, Unit::Bytes).unwrap();
            prop_assert!(step >= 1 && step.checked_mul(MAX_UNITS).is_some());
            let product = u128::from(step) * u128::from(rate);
            let second = 1_000_000_000u128 << STEP_SHIFT;
            prop_assert!(product.abs_diff(second) * 1000 <= second);
        }
    }
}
