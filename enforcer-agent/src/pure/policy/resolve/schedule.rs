//! The schedule of a rule.

use super::super::diagnostic::{Code, Reporter};
use super::super::kinds::{Choice, TimeOfDay};
use super::super::model::{self, List, Scalar, Spanned, Text};
use super::super::schedule::{DAY_MINUTES, Day, Days, Schedule, Zone};
use super::super::suggest::{nearest, quoted};
use super::scalar;

/// Reads a schedule. `None` if anything about it is wrong, which has been reported then.
pub(super) fn resolve(reporter: &mut Reporter<'_>, schedule: &Spanned<model::Schedule>) -> Option<Schedule> {
    let model::Schedule {
        days,
        from,
        to,
        time_zone,
    } = &schedule.value;
    if days.is_none() && from.is_none() && to.is_none() && time_zone.is_none() {
        let help = "Leave `schedule` out for a rule that is always open.";
        reporter.error(Code::NoEffect, schedule, "this schedule is empty", help);
        return None;
    }
    let days = days
        .as_ref()
        .map_or(Some(Days::ALL), |days| resolve_days(reporter, days));
    let from_minute = from
        .as_ref()
        .map_or(Some(0), |text| time_of_day(reporter, text, DAY_MINUTES - 1));
    let to_minute = to
        .as_ref()
        .map_or(Some(DAY_MINUTES), |text| time_of_day(reporter, text, DAY_MINUTES));
    let zone = time_zone
        .as_ref()
        .map_or_else(|| Some(Zone::utc()), |text| resolve_zone(reporter, text));
    let resolved = Schedule::new(days?, from_minute?, to_minute?, zone?)?;
    if resolved.is_always_open() {
        let help = "Leave `schedule` out, or say when the rule is closed.";
        reporter.warning(Code::NoEffect, schedule, "this schedule is always open", help);
    }
    Some(resolved)
}

fn resolve_days(reporter: &mut Reporter<'_>, list: &List<Scalar<Day>>) -> Option<Days> {
    let texts = &list.value;
    if texts.is_empty() {
        let help = "List the days on which the window begins, or leave `days` out for every day.";
        reporter.error(Code::NoEffect, list, "this schedule is never open", help);
        return None;
    }
    let mut days = Vec::with_capacity(texts.len().min(Day::WORDS.len()));
    let mut complete = true;
    for text in texts {
        match scalar::choice(reporter, text) {
            Some(day) if days.contains(&day) => {
                let message = format!("{} is listed twice", quoted(&text.value));
                reporter.warning(Code::Duplicate, text, message, "Remove it here.");
            }
            Some(day) => days.push(day),
            None => complete = false,
        }
    }
    complete.then(|| days.into_iter().collect())
}

/// Minutes after midnight of `HH:MM`.
fn time_of_day(reporter: &mut Reporter<'_>, text: &Scalar<TimeOfDay>, last_minute: u16) -> Option<u16> {
    let digits = |part: &str| {
        let two_digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_digit());
        two_digits.then(|| part.parse::<u16>().ok()).flatten()
    };
    let minute = text
        .value
        .split_once(':')
        .and_then(|(hours, minutes)| digits(hours).zip(digits(minutes)))
        .filter(|(_, minutes)| *minutes < 60)
        .map(|(hours, minutes)| hours * 60 + minutes)
        .filter(|minute| *minute <= last_minute);
    if minute.is_none() {
        let message = format!("{} is no time of day", quoted(&text.value));
        let last = format!("{:02}:{:02}", last_minute / 60, last_minute % 60);
        let help = format!("Write hours and minutes, from `00:00` to `{last}`, such as `08:30`.");
        reporter.error(Code::InvalidValue, text, message, help);
    }
    minute
}

/// A time zone.
pub(super) fn resolve_zone(reporter: &mut Reporter<'_>, text: &Text) -> Option<Zone> {
    let zone = Zone::named(&text.value).ok();
    if zone.is_none() && !reporter.has_room() {
        // Nobody will read it, and to find the nearest of all names costs something.
        reporter.error(Code::UnknownName, text, "", "");
    } else if zone.is_none() {
        let names = Zone::names();
        let help = match nearest(&text.value, names.iter().map(String::as_str)) {
            Some(near) => format!("Did you mean `{near}`?"),
            None => "Use a name of the IANA time zone database, such as `Europe/Berlin` or `UTC`.".to_owned(),
        };
        let message = format!("there is no time zone named {}", quoted(&text.value));
        reporter.error(Code::UnknownName, text, message, help);
    }
    zone
}
