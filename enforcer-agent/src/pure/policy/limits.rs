//! The arithmetic of rates, and which rates can be kept.
//!
//! The data path holds one 64-bit time per limiter (GCRA: ITU-T I.371, "virtual scheduling"). A unit costs
//! `step / 2^20` ns of that time, where `step = 10^9 * 2^20 / rate`; a charge costs `(units * step) >> 20` ns, in 64 bits
//! without a division. From that follow the rates that can be kept: the product must not overflow, and a step must be
//! large enough to stand for its rate.

use thiserror::Error;

/// Binary digits of a step behind the point.
pub const STEP_FRACTION_BITS: u32 = 20;
/// Most bytes that are charged at once: the largest IP packet, as it comes out of segmentation offload.
pub const MAX_CHARGE_BYTES: u64 = 65_535;
/// The highest rate of bytes per second that a step stands for to within one in a thousand.
pub const MAX_BYTES_PER_SECOND: u64 = 1_000_000_000_000;
/// The highest rate of packets or connections per second: one costs a whole nanosecond.
pub const MAX_EVENTS_PER_SECOND: u64 = 1_000_000_000;
/// The longest burst. A tenant that was silent for that long has all of its rate saved up.
pub const MAX_BURST_NS: u64 = 3600 * 1_000_000_000;
/// A full Ethernet frame with two VLAN tags and without its checksum: a byte limit under which it never passes
/// is a mistake.
pub const FULL_FRAME_BYTES: u64 = 1522;

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

/// The lowest byte rate whose charge for the largest packet fits into 64 bits.
pub const MIN_BYTES_PER_SECOND: u64 = {
    // step * MAX_CHARGE_BYTES < 2^64 and step <= 10^9 * 2^20 / rate + 1/2
    let largest_step = u64::MAX / MAX_CHARGE_BYTES;
    (1_000_000_000 << STEP_FRACTION_BITS) / largest_step + 1
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
        return Err(RateError::TooLow { rate: rate_per_second, least });
    }
    if rate_per_second > most {
        return Err(RateError::TooHigh { rate: rate_per_second, most });
    }
    let second_fp = 1_000_000_000u64 << STEP_FRACTION_BITS;
    Ok((second_fp + rate_per_second / 2) / rate_per_second)
}

/// What a charge costs, in nanoseconds. `units` is at most [`MAX_CHARGE_BYTES`].
#[must_use]
pub const fn cost_ns(units: u64, step_fp: u64) -> u64 {
    units.saturating_mul(step_fp) >> STEP_FRACTION_BITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_edges_are_where_the_arithmetic_says() {
        assert_eq!(MIN_BYTES_PER_SECOND, 4);
        assert_eq!(step_fp(0, Unit::Bytes), Err(RateError::Zero));
        assert_eq!(step_fp(3, Unit::Bytes), Err(RateError::TooLow { rate: 3, least: 4 }));
        let slowest = step_fp(4, Unit::Bytes).unwrap();
        assert!(slowest.checked_mul(MAX_CHARGE_BYTES).is_some());
        assert!(step_fp(MAX_BYTES_PER_SECOND, Unit::Bytes).is_ok());
        assert!(step_fp(MAX_BYTES_PER_SECOND + 1, Unit::Bytes).is_err());
        assert_eq!(step_fp(1, Unit::Events), Ok(1_000_000_000 << 20));
        assert_eq!(step_fp(MAX_EVENTS_PER_SECOND, Unit::Events), Ok(1 << 20));
        assert_eq!(cost_ns(1, 1 << 20), 1);
    }

    proptest! {
        #[test]
        fn a_step_stands_for_its_rate_to_one_in_a_thousand(rate in MIN_BYTES_PER_SECOND..=MAX_BYTES_PER_SECOND) {
            let step = step_fp(rate, Unit::Bytes).unwrap();
            prop_assert!(step >= 1 && step.checked_mul(MAX_CHARGE_BYTES).is_some());
            let product = u128::from(step) * u128::from(rate);
            let second = 1_000_000_000u128 << STEP_FRACTION_BITS;
            prop_assert!(product.abs_diff(second) * 1000 <= second);
        }
    }
}
