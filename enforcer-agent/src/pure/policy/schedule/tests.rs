use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};
use proptest::prelude::*;

use super::*;

const ZONES: [&str; 7] = [
    "Europe/Berlin",
    "America/New_York",
    // Half an hour of daylight saving.
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "America/St_Johns",
    // Puts its clocks back for Ramadan.
    "Africa/Casablanca",
    // Left out 30 December 2011.
    "Pacific/Apia",
];

fn schedule(days: &[Day], from: (u16, u16), to: (u16, u16), zone: &str) -> Schedule {
    Schedule::new(
        days.iter().copied().collect(),
        from.0 * 60 + from.1,
        to.0 * 60 + to.1,
        Zone::named(zone).unwrap(),
    )
    .unwrap()
}

/// What the schedule says, by civil dates and times of the calendar library: another way than that of the product.
fn naive_is_open(schedule: &Schedule, at: Timestamp) -> bool {
    let local: civil::DateTime = at.to_zoned(schedule.time_zone.zone.clone()).datetime();
    let begins_on = |date: civil::Date| {
        let day = Day::ALL[usize::try_from(date.weekday().to_monday_zero_offset()).unwrap()];
        schedule.days.contains(day)
    };
    let minute = u16::try_from(local.hour()).unwrap() * 60 + u16::try_from(local.minute()).unwrap();
    let today = begins_on(local.date());
    if schedule.to_minute > schedule.from_minute {
        today && minute >= schedule.from_minute && minute < schedule.to_minute
    } else {
        let yesterday = begins_on(local.date().yesterday().unwrap());
        today && minute >= schedule.from_minute || yesterday && minute < schedule.to_minute
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The changes of a schedule from one instant up to another, as `open TIME` and `closed TIME` by its own clocks.
fn changes(schedule: &Schedule, from: &str, to: &str) -> Vec<String> {
    let mut now = at(from);
    let mut found = Vec::new();
    while let Some(next) = schedule.next_change(now).filter(|next| *next <= at(to)) {
        let word = if schedule.is_open(next) { "open" } else { "closed" };
        let clock = next.to_zoned(schedule.time_zone.zone.clone());
        found.push(format!("{word} {}", clock.strftime("%a %d %H:%M:%S %:z")));
        now = next;
    }
    found
}

#[test]
fn a_window_within_a_day() {
    let office = schedule(&[Day::Mon, Day::Tue], (8, 0), (20, 0), "Europe/Berlin");
    assert_eq!(
        changes(&office, "2026-06-05T00:00:00Z", "2026-06-15T12:00:00Z"),
        [
            "open Mon 08 08:00:00 +02:00",
            "closed Mon 08 20:00:00 +02:00",
            "open Tue 09 08:00:00 +02:00",
            "closed Tue 09 20:00:00 +02:00",
            "open Mon 15 08:00:00 +02:00",
        ]
    );
    assert!(!office.is_open(at("2026-06-08T05:59:59.999999999Z")));
    assert!(office.is_open(at("2026-06-08T06:00:00Z")));
    assert!(office.is_open(at("2026-06-08T17:59:59.999999999Z")));
    assert!(!office.is_open(at("2026-06-08T18:00:00Z")));
}

#[test]
fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
    let night = schedule(&[Day::Fri], (22, 0), (6, 0), "UTC");
    let week = ("2026-06-01T00:00:00Z", "2026-06-08T00:00:00Z");
    let expected = ["open Fri 05 22:00:00 +00:00", "closed Sat 06 06:00:00 +00:00"];
    assert_eq!(changes(&night, week.0, week.1), expected);
    let day_long = schedule(&[Day::Fri], (8, 0), (8, 0), "UTC");
    let expected = ["open Fri 05 08:00:00 +00:00", "closed Sat 06 08:00:00 +00:00"];
    assert_eq!(changes(&day_long, week.0, week.1), expected);
}

#[test]
fn the_end_of_the_day_can_be_written_in_two_ways() {
    let (midnight, end) = (
        schedule(&[Day::Fri], (22, 0), (0, 0), "UTC"),
        schedule(&[Day::Fri], (22, 0), (24, 0), "UTC"),
    );
    assert_eq!(midnight, end);
    let expected = ["open Fri 05 22:00:00 +00:00", "closed Sat 06 00:00:00 +00:00"];
    assert_eq!(
        changes(&end, "2026-06-01T00:00:00Z", "2026-06-08T00:00:00Z"),
        expected
    );
}

#[test]
fn where_clocks_are_put_forward_a_skipped_boundary_takes_effect_at_the_skip() {
    // 2026-03-29 in Berlin: 02:00 becomes 03:00.
    let sunday = ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
    let opens = schedule(&[Day::Sun], (2, 30), (4, 0), "Europe/Berlin");
    let expected = ["open Sun 29 03:00:00 +02:00", "closed Sun 29 04:00:00 +02:00"];
    assert_eq!(changes(&opens, sunday.0, sunday.1), expected);
    let closes = schedule(&[Day::Sun], (1, 0), (2, 30), "Europe/Berlin");
    let expected = ["open Sun 29 01:00:00 +01:00", "closed Sun 29 03:00:00 +02:00"];
    assert_eq!(changes(&closes, sunday.0, sunday.1), expected);
    let skipped = schedule(&[Day::Sun], (2, 10), (2, 50), "Europe/Berlin");
    assert!(changes(&skipped, sunday.0, sunday.1).is_empty());
    assert_eq!(
        changes(&skipped, "2026-03-23T00:00:00Z", "2026-04-06T00:00:00Z"),
        ["open Sun 05 02:10:00 +02:00", "closed Sun 05 02:50:00 +02:00"]
    );
}

#[test]
fn where_clocks_are_put_back_the_repeated_hour_is_judged_alike_both_times() {
    // 2026-10-25 in Berlin: 03:00 becomes 02:00.
    let sunday = ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
    let opens = schedule(&[Day::Sun], (2, 30), (4, 0), "Europe/Berlin");
    assert_eq!(
        changes(&opens, sunday.0, sunday.1),
        [
            "open Sun 25 02:30:00 +02:00",
            "closed Sun 25 02:00:00 +01:00",
            "open Sun 25 02:30:00 +01:00",
            "closed Sun 25 04:00:00 +01:00",
        ]
    );
    let closes = schedule(&[Day::Sun], (1, 0), (2, 30), "Europe/Berlin");
    assert_eq!(
        changes(&closes, sunday.0, sunday.1),
        [
            "open Sun 25 01:00:00 +02:00",
            "closed Sun 25 02:30:00 +02:00",
            "open Sun 25 02:00:00 +01:00",
            "closed Sun 25 02:30:00 +01:00",
        ]
    );
}

#[test]
fn a_day_that_a_zone_left_out_has_no_window() {
    // Apia went from the end of Thursday 29 December 2011 to Saturday 31.
    let friday = schedule(&[Day::Fri], (8, 0), (20, 0), "Pacific/Apia");
    assert_eq!(
        changes(&friday, "2011-12-24T10:00:00Z", "2012-01-07T00:00:00Z"),
        ["open Fri 06 08:00:00 +14:00", "closed Fri 06 20:00:00 +14:00"]
    );
}

#[test]
fn what_is_always_open_never_changes() {
    let now = at("2026-06-01T00:00:00Z");
    for (from, to) in [((0, 0), (24, 0)), ((0, 0), (0, 0)), ((9, 30), (9, 30))] {
        let always = schedule(&Day::ALL, from, to, "Europe/Berlin");
        assert!(always.is_always_open() && always.is_open(now), "{always}");
        assert_eq!(always.next_change(now), None, "{always}");
    }
    assert!(!schedule(&Day::ALL[1..], (0, 0), (24, 0), "UTC").is_always_open());
}

#[test]
fn no_schedule_is_made_of_what_is_none() {
    assert_eq!(Schedule::new(Days(0), 0, 10, Zone::utc()), None);
    assert_eq!(Schedule::new(Days::ALL, DAY_MINUTES, 10, Zone::utc()), None);
    assert_eq!(Schedule::new(Days::ALL, 0, DAY_MINUTES + 1, Zone::utc()), None);
    for name in ["Europe/Bärlin", "europe/berlin", "", "../etc/passwd", "Local"] {
        assert!(Zone::named(name).is_err(), "{name}");
    }
    assert!(Zone::names().iter().any(|name| name == "Asia/Kathmandu"));
    assert_eq!(Zone::named("UTC").unwrap(), Zone::utc());
}

#[test]
fn the_end_of_time_is_no_panic() {
    let office = schedule(&[Day::Mon], (8, 0), (20, 0), "Europe/Berlin");
    assert_eq!(office.next_change(Timestamp::MAX), None);
    assert!(office.next_change(Timestamp::MIN).is_some());
}

#[test]
fn it_reads_as_it_is_meant_and_keeps_its_form() {
    let office = schedule(&[Day::Mon, Day::Fri], (8, 0), (20, 5), "Europe/Berlin");
    assert_eq!(office.to_string(), "Mon, Fri from 08:00 to 20:05, Europe/Berlin");
    let night = schedule(&Day::ALL, (22, 0), (6, 0), "UTC");
    assert_eq!(
        night.to_string(),
        "every day from 22:00 to 06:00 of the next day, UTC"
    );
    let json = serde_json::to_string(&office).unwrap();
    let expected = r#"{"days":["Mon","Fri"],"fromMinute":480,"toMinute":1205,"timeZone":"Europe/Berlin"}"#;
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), office);
}

pub(in crate::pure::policy) fn schedules() -> impl Strategy<Value = Schedule> {
    // Half of the boundaries lie in the small hours, where clocks are changed.
    let minute = || prop_oneof![0..DAY_MINUTES, 0..4 * 60u16];
    (1u8..=127, minute(), minute(), 0..ZONES.len()).prop_map(|(days, from, to, zone)| {
        let zone = Zone::named(ZONES[zone]).unwrap();
        Schedule::new(Days(days), from, to, zone).unwrap()
    })
}

/// Compares with a scan by steps.
fn scan(schedule: &Schedule, from: i64, to: i64, step: usize) -> Result<(), TestCaseError> {
    let mut expected = None;
    let mut open = naive_is_open(schedule, Timestamp::from_second(from).unwrap());
    for second in (from..to).step_by(step) {
        let now = Timestamp::from_second(second).unwrap();
        let is_open = naive_is_open(schedule, now);
        prop_assert_eq!(schedule.is_open(now), is_open, "{} at {}", schedule, now);
        if is_open != open {
            prop_assert_eq!(expected.unwrap_or(now), now, "{} changes too late", schedule);
            open = is_open;
            expected = None;
        } else if let Some(expected) = expected {
            prop_assert!(now < expected, "{} does not change at {}", schedule, expected);
        }
        if expected.is_none() {
            expected = schedule.next_change(now);
            prop_assert!(expected.is_none_or(|next| next > now), "{}", schedule);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// All these zones change their clocks at whole minutes in these years, so that a scan by minutes misses nothing.
    #[test]
    fn changes_are_those_that_a_scan_by_minutes_finds(schedule in schedules(), year in 2008i64..2040) {
        let start = (year - 1970) * 365 * DAY_SECONDS + 10 * DAY_SECONDS;
        let start = start - start.rem_euclid(60);
        scan(&schedule, start, start + 40 * DAY_SECONDS, 60)?;
    }

    #[test]
    fn near_a_change_of_the_clocks_to_the_second(schedule in schedules(), year in 2008i64..2040) {
        let start = (year - 1970) * 365 * DAY_SECONDS;
        let zone: &TimeZone = &schedule.time_zone.zone;
        let transition = zone.following(Timestamp::from_second(start).unwrap()).next();
        let around = transition.map_or(start, |transition| transition.timestamp().as_second());
        scan(&schedule, around - 5400, around + 5400, 1)?;
    }
}

/// Every transition of some years in every zone, for windows around the small hours.
#[test]
fn years_of_every_zone_by_minutes_around_the_changes() {
    for zone in ZONES {
        for (from, to) in [
            ((2, 30), (4, 0)),
            ((1, 0), (2, 30)),
            ((23, 45), (2, 15)),
            ((0, 0), (24, 0)),
        ] {
            let schedule = schedule(&[Day::Thu, Day::Sat, Day::Sun], from, to, zone);
            let mut after = at("2008-01-01T00:00:00Z");
            while let Some(transition) = schedule.time_zone.next_transition(after.as_second()) {
                after = Timestamp::from_second(transition).unwrap();
                if after > at("2032-01-01T00:00:00Z") {
                    break;
                }
                let around = transition - transition.rem_euclid(60);
                scan(&schedule, around - DAY_SECONDS, around + 2 * DAY_SECONDS, 60).unwrap();
            }
        }
    }
}
