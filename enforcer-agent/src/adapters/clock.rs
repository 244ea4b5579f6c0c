//! The clocks of this host.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

use crate::ports::Clock;

/// `CLOCK_MONOTONIC`, which the programs read too, and the time of day.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic_ns(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::Monotonic))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// The time between two ticks of the kernel: that is what its coarse clocks resolve.
#[must_use]
pub fn kernel_tick() -> Duration {
    Duration::from_nanos(nanoseconds(clock_getres(ClockId::MonotonicCoarse)))
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}
