//! Which rules exist at a time of day: what the clock of the zone shows is compared as text, minute by minute.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};

use super::Oracle;
use crate::plain::{Hours, Rule};

impl Oracle {
    pub(super) fn is_open(&self, rule: &Rule) -> bool {
        rule.hours.as_ref().is_none_or(|hours| {
            let zone = TimeZone::get(&hours.zone).expect("the generator names zones that exist");
            let now = Timestamp::from_second(self.wall_seconds).expect("the generator stays in this century");
            is_within(hours, &now.to_zoned(zone))
        })
    }
}

fn is_within(hours: &Hours, now: &Zoned) -> bool {
    // `HH:MM` sorts as the times do.
    let clock = now.strftime("%H:%M").to_string();
    let begins = |date: jiff::civil::Date| {
        let name = date.strftime("%a").to_string();
        hours.days.contains(&name)
    };
    let today = begins(now.date());
    let yesterday = begins(now.date().saturating_sub(1.day()));
    // Midnight at the end of a day is never shown.
    let to = if hours.to == "00:00" { "24:00" } else { &hours.to };
    if hours.from.as_str() < to {
        today && clock >= hours.from && clock.as_str() < to
    } else {
        today && clock >= hours.from || yesterday && clock.as_str() < to
    }
}
