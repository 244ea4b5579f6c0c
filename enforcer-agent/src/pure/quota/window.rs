//! Windows of the calendar: which one a moment lies in, by the clocks of a time zone.

use jiff::civil::{Date, DateTime, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};

use crate::pure::policy::resolved::QuotaPeriod;

/// From when to when a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first moment of it.
    pub from: Timestamp,
    /// The first moment after it.
    pub to: Timestamp,
}

/// A Monday, from which days are counted.
const MONDAY: Date = date(1970, 1, 5);

/// The window in which a moment lies.
///
/// Boundaries are times of the wall clock. One that a change to daylight saving skips stands at that change, and one that
/// comes twice at the first time; so the window around such a change is shorter or longer than others.
#[must_use]
pub fn window(per: QuotaPeriod, zone: &TimeZone, at: Timestamp) -> Window {
    let local = zone.to_datetime(at);
    let instant = |boundary: DateTime| zone.to_timestamp(boundary).ok();
    let (from, to) = boundaries(per, local);
    // Only at the end of time is there no boundary; and a clock that goes back over midnight passes the end of a day twice.
    Window {
        from: instant(from).unwrap_or(at).min(at),
        to: to.and_then(instant).unwrap_or(Timestamp::MAX).max(
            at.saturating_add(SignedDuration::from_secs(1))
                .unwrap_or(Timestamp::MAX),
        ),
    }
}

fn boundaries(per: QuotaPeriod, local: DateTime) -> (DateTime, Option<DateTime>) {
    let midnight = |date: Date| date.at(0, 0, 0, 0);
    match per {
        QuotaPeriod::Hours(hours) => {
            // A divisor of 24, so that it fits; zero never comes out of a policy.
            let hours = i8::try_from(hours).unwrap_or(24).clamp(1, 24);
            let from = local.date().at(local.hour() / hours * hours, 0, 0, 0);
            (from, from.checked_add(i64::from(hours).hours()).ok())
        }
        QuotaPeriod::Days(days) => {
            let days = i64::from(days.max(1));
            let since = local.date().duration_since(MONDAY).as_hours() / 24;
            let first = local.date().checked_sub(since.rem_euclid(days).days());
            let first = first.unwrap_or(local.date());
            (midnight(first), first.checked_add(days.days()).ok().map(midnight))
        }
        QuotaPeriod::Month => {
            let first = local.date().first_of_month();
            (midnight(first), first.checked_add(1.month()).ok().map(midnight))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PERIODS: [QuotaPeriod; 7] = [
        QuotaPeriod::Hours(1),
        QuotaPeriod::Hours(6),
        QuotaPeriod::Hours(24),
        QuotaPeriod::Days(1),
        QuotaPeriod::Days(7),
        QuotaPeriod::Days(10),
        QuotaPeriod::Month,
    ];
    const ZONES: [&str; 6] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Pacific/Apia",
    ];

    #[track_caller]
    fn check(per: QuotaPeriod, zone: &str, at: &str, from: &str, to: &str) {
        let zone = TimeZone::get(zone).unwrap();
        let parse = |text: &str| text.parse::<Timestamp>().unwrap();
        let expected = Window {
            from: parse(from),
            to: parse(to),
        };
        assert_eq!(window(per, &zone, parse(at)), expected);
    }

    #[test]
    fn windows_follow_the_calendar() {
        use QuotaPeriod::{Days, Hours, Month};
        check(
            Hours(1),
            "UTC",
            "2026-03-29T13:59:59Z",
            "2026-03-29T13:00:00Z",
            "2026-03-29T14:00:00Z",
        );
        check(
            Hours(6),
            "UTC",
            "2026-03-29T13:59:59Z",
            "2026-03-29T12:00:00Z",
            "2026-03-29T18:00:00Z",
        );
        check(
            Days(1),
            "UTC",
            "2026-03-29T00:00:00Z",
            "2026-03-29T00:00:00Z",
            "2026-03-30T00:00:00Z",
        );
        // A Sunday belongs to the week that began on Monday.
        check(
            Days(7),
            "UTC",
            "2026-03-29T13:00:00Z",
            "2026-03-23T00:00:00Z",
            "2026-03-30T00:00:00Z",
        );
        check(
            Days(7),
            "UTC",
            "1969-12-31T00:00:00Z",
            "1969-12-29T00:00:00Z",
            "1970-01-05T00:00:00Z",
        );
        check(
            Month,
            "UTC",
            "2028-02-29T23:59:59Z",
            "2028-02-01T00:00:00Z",
            "2028-03-01T00:00:00Z",
        );
        check(
            Month,
            "UTC",
            "2026-12-31T23:59:59Z",
            "2026-12-01T00:00:00Z",
            "2027-01-01T00:00:00Z",
        );
        let berlin = "Europe/Berlin";
        check(
            Days(1),
            berlin,
            "2026-01-15T23:30:00Z",
            "2026-01-15T23:00:00Z",
            "2026-01-16T23:00:00Z",
        );
        // The days of the two changes have 23 and 25 hours.
        check(
            Days(1),
            berlin,
            "2026-03-29T12:00:00Z",
            "2026-03-28T23:00:00Z",
            "2026-03-29T22:00:00Z",
        );
        check(
            Days(1),
            berlin,
            "2026-10-25T12:00:00Z",
            "2026-10-24T22:00:00Z",
            "2026-10-25T23:00:00Z",
        );
        // The hour that comes twice is one window, the one that is skipped none.
        check(
            Hours(1),
            berlin,
            "2026-10-25T00:30:00Z",
            "2026-10-25T00:00:00Z",
            "2026-10-25T02:00:00Z",
        );
        check(
            Hours(1),
            berlin,
            "2026-10-25T01:30:00Z",
            "2026-10-25T00:00:00Z",
            "2026-10-25T02:00:00Z",
        );
        check(
            Hours(1),
            berlin,
            "2026-03-29T00:30:00Z",
            "2026-03-29T00:00:00Z",
            "2026-03-29T01:00:00Z",
        );
        check(
            Hours(1),
            berlin,
            "2026-03-29T01:30:00Z",
            "2026-03-29T01:00:00Z",
            "2026-03-29T02:00:00Z",
        );
        // Half an hour is skipped.
        let howe = "Australia/Lord_Howe";
        check(
            Hours(1),
            howe,
            "2026-10-03T15:45:00Z",
            "2026-10-03T15:30:00Z",
            "2026-10-03T16:00:00Z",
        );
    }

    proptest! {
        /// Every moment lies in its window, and all moments of a window name the same one, which the next one follows.
        #[test]
        fn windows_cover_time_without_gap_or_overlap(
            seconds in 1_400_000_000i64..2_200_000_000,
            within in 0.0f64..1.0,
            per in 0..PERIODS.len(),
            zone in 0..ZONES.len(),
        ) {
            let (per, zone) = (PERIODS[per], TimeZone::get(ZONES[zone]).unwrap());
            let at = Timestamp::from_second(seconds).unwrap();
            let found = window(per, &zone, at);
            prop_assert!(found.from <= at && at < found.to);
            let length = found.to.duration_since(found.from).as_secs();
            let other = found.from + SignedDuration::from_secs((length as f64 * within) as i64);
            prop_assert_eq!(window(per, &zone, other), found);
            prop_assert_eq!(window(per, &zone, found.to).from, found.to);
            let before = found.from - SignedDuration::from_secs(1);
            prop_assert_eq!(window(per, &zone, before).to, found.from);
        }
    }
}
