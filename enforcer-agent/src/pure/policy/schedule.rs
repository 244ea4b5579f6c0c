//! When a rule is open: days of the week and a window of the day, by the clock of a time zone.
//!
//! A schedule goes by what the clock on the wall shows, and by nothing else: it is open at an instant if the zone's local
//! date and time of that instant lie in the window. So where clocks are put forward, a boundary that they skip takes
//! effect at the skip; where they are put back, the repeated hour is judged alike both times. With a window from 02:30 to
//! 04:00 in Europe/Berlin that is: on the last Sunday of March it opens at 03:00, when the clock jumps there from 02:00,
//! and on the last Sunday of October it opens at 02:30, closes when the clock goes back from 03:00 to 02:00, and opens
//! again at the second 02:30.
//!
//! Zones come from the database in this program, never from the host's, so that all hosts with the same version of it
//! agree.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use super::resolved::ResolvedPolicy;
use super::selection::Selection;

/// A day by the clock, in minutes. As the end of a window it is midnight.
pub const DAY_MINUTES: u16 = 24 * 60;
const DAY_SECONDS: i64 = 24 * 60 * 60;
/// How far ahead a change is looked for. A window that is neither always open nor never begins and ends once a week, or
/// once in two where a change of the clocks skips it.
const HORIZON_SECONDS: i64 = 31 * DAY_SECONDS;

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

/// Days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Days(u8);

/// A time zone of the IANA database.
#[derive(Clone)]
pub struct Zone {
    name: String,
    zone: TimeZone,
}

/// No time zone has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no time zone named `{name}`: use a name of the IANA database, such as `Europe/Berlin`")]
pub struct UnknownZone {
    /// The name.
    pub name: String,
}

/// A window that comes back every week.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// The days on which the window begins.
    days: Days,
    /// When it begins, in minutes after midnight; below [`DAY_MINUTES`].
    from_minute: u16,
    /// When it ends, in minutes after midnight, from 1 to [`DAY_MINUTES`]; if that is not after the beginning, on the next
    /// day.
    to_minute: u16,
    time_zone: Zone,
}

// === impl Day ===

impl Day {
    /// The week, from Monday on.
    pub const ALL: [Self; 7] = [
        Self::Mon,
        Self::Tue,
        Self::Wed,
        Self::Thu,
        Self::Fri,
        Self::Sat,
        Self::Sun,
    ];

    /// `Mon` to `Sun`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mon => "Mon",
            Self::Tue => "Tue",
            Self::Wed => "Wed",
            Self::Thu => "Thu",
            Self::Fri => "Fri",
            Self::Sat => "Sat",
            Self::Sun => "Sun",
        }
    }
}

// === impl Days ===

impl Days {
    /// The whole week.
    pub const ALL: Self = Self(0b111_1111);

    /// Whether a day is one of them.
    #[must_use]
    pub const fn contains(self, day: Day) -> bool {
        self.0 >> day as u8 & 1 == 1
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The days, from Monday on.
    pub fn iter(self) -> impl Iterator<Item = Day> {
        Day::ALL.into_iter().filter(move |day| self.contains(*day))
    }

    /// Whether a date, in days since 1970-01-01, falls on one of them.
    const fn contains_date(self, date: i64) -> bool {
        // 1970-01-01 was a Thursday.
        self.0 >> (date + Day::Thu as i64).rem_euclid(7) & 1 == 1
    }
}

impl FromIterator<Day> for Days {
    fn from_iter<I: IntoIterator<Item = Day>>(days: I) -> Self {
        Self(days.into_iter().fold(0, |set, day| set | 1 << day as u8))
    }
}

impl Serialize for Days {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Days {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<Day>::deserialize(deserializer).map(Self::from_iter)
    }
}

// === impl Zone ===

impl Zone {
    /// Coordinated universal time.
    #[must_use]
    pub fn utc() -> Self {
        Self {
            name: "UTC".to_owned(),
            zone: TimeZone::UTC,
        }
    }

    /// The zone with this name, spelled as the database spells it.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(name: &str) -> Result<Self, UnknownZone> {
        let known = TimeZoneDatabase::bundled().get(name).ok();
        known
            .filter(|zone| zone.iana_name() == Some(name))
            .map(|zone| Self {
                name: name.to_owned(),
                zone,
            })
            .ok_or_else(|| UnknownZone {
                name: name.to_owned(),
            })
    }

    /// The names of all zones.
    #[must_use]
    pub fn names() -> Vec<String> {
        let database = TimeZoneDatabase::bundled();
        database.available().map(|name| name.to_string()).collect()
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The zone, for calendar arithmetic.
    #[must_use]
    pub const fn time_zone(&self) -> &TimeZone {
        &self.zone
    }

    /// What its clocks show, in seconds since 1970-01-01 00:00 by these clocks.
    fn local_seconds(&self, at: i64) -> Option<i64> {
        let at = Timestamp::from_second(at).ok()?;
        Some(at.as_second() + i64::from(self.zone.to_offset(at).seconds()))
    }

    /// When its clocks are next put forward or back, in seconds since 1970-01-01 UTC.
    fn next_transition(&self, after: i64) -> Option<i64> {
        let after = Timestamp::from_second(after).ok()?;
        let next = self.zone.following(after).next()?;
        Some(next.timestamp().as_second())
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Zone({})", self.name)
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Zone {}

impl PartialOrd for Zone {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Zone {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name.cmp(&other.name)
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::named(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

// === impl Schedule ===

impl Schedule {
    /// A window that begins on some days at `from_minute` and ends at `to_minute`, both in minutes after midnight; at the
    /// end of the day if that is 0 or [`DAY_MINUTES`], and on the next day if it is not after the beginning.
    ///
    /// `None` if there is no day, or a minute lies beyond the day.
    #[must_use]
    pub fn new(days: Days, from_minute: u16, to_minute: u16, time_zone: Zone) -> Option<Self> {
        let to_minute = if to_minute == 0 { DAY_MINUTES } else { to_minute };
        (!days.is_empty() && from_minute < DAY_MINUTES && to_minute <= DAY_MINUTES).then_some(Self {
            days,
            from_minute,
            to_minute,
            time_zone,
        })
    }

    /// The zone whose clocks it goes by.
    #[must_use]
    pub const fn time_zone(&self) -> &Zone {
        &self.time_zone
    }

    /// Whether it is open all the time, so that there might as well be none.
    #[must_use]
    pub fn is_always_open(&self) -> bool {
        let whole_day = self.from_minute == 0 && self.to_minute == DAY_MINUTES;
        self.days == Days::ALL && (whole_day || self.from_minute == self.to_minute)
    }

    /// Whether it is open at an instant.
    #[must_use]
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.is_open_at_second(floor_second(at))
    }

    /// The first instant after another at which [`Self::is_open`] answers otherwise than at that one; `None` if it never
    /// does, or not before the end of time as it can be counted.
    ///
    /// Goes from one instant to the next at which anything could change: the boundaries of the window and of the day by
    /// the offset in force, and the changes of that offset.
    #[must_use]
    pub fn next_change(&self, after: Timestamp) -> Option<Timestamp> {
        let start = floor_second(after);
        let open = self.is_open_at_second(start);
        let mut transition = self.time_zone.next_transition(start);
        let mut at = start;
        while at <= start + HORIZON_SECONDS {
            if transition.is_some_and(|transition| transition <= at) {
                transition = self.time_zone.next_transition(at);
            }
            let boundary = at + self.to_next_boundary(self.time_zone.local_seconds(at)?);
            at = transition.map_or(boundary, |transition| transition.min(boundary));
            if self.is_open_at_second(at) != open {
                return Timestamp::from_second(at).ok();
            }
        }
        None
    }

    fn is_open_at_second(&self, at: i64) -> bool {
        let Some(local) = self.time_zone.local_seconds(at) else {
            return false;
        };
        let date = local.div_euclid(DAY_SECONDS);
        let time = local.rem_euclid(DAY_SECONDS);
        let (from, to) = (self.begin_seconds(), self.end_seconds());
        if from < to {
            self.days.contains_date(date) && (from..to).contains(&time)
        } else {
            self.days.contains_date(date) && time >= from || self.days.contains_date(date - 1) && time < to
        }
    }

    /// Seconds until the clock next shows a boundary of the window or midnight, if nobody puts it forward or back.
    fn to_next_boundary(&self, local: i64) -> i64 {
        let time = local.rem_euclid(DAY_SECONDS);
        let boundaries = [self.begin_seconds(), self.end_seconds(), DAY_SECONDS];
        let next = boundaries.into_iter().filter(|boundary| *boundary > time).min();
        next.unwrap_or(DAY_SECONDS) - time
    }

    fn begin_seconds(&self) -> i64 {
        i64::from(self.from_minute) * 60
    }

    fn end_seconds(&self) -> i64 {
        i64::from(self.to_minute) * 60
    }
}

/// `Mon, Tue from 08:00 to 20:00, Europe/Berlin`.
impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days == Days::ALL {
            formatter.write_str("every day")?;
        } else {
            for (index, day) in self.days.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                write!(formatter, "{separator}{}", day.name())?;
            }
        }
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let (from, to) = (clock(self.from_minute), clock(self.to_minute));
        let next_day = if self.to_minute <= self.from_minute {
            " of the next day"
        } else {
            ""
        };
        write!(
            formatter,
            " from {from} to {to}{next_day}, {}",
            self.time_zone.name
        )
    }
}

/// Whole seconds since 1970-01-01 UTC, rounded down.
fn floor_second(at: Timestamp) -> i64 {
    at.as_second() - i64::from(at.subsec_nanosecond() < 0)
}

/// The rules of a policy whose schedules are closed at an instant. A rule without a schedule is always open.
#[must_use]
pub fn closed_rules(policy: &ResolvedPolicy, at: Timestamp) -> Selection {
    // Many rules share few schedules.
    let mut known: BTreeMap<&Schedule, bool> = BTreeMap::new();
    let mut is_open = |schedule| *known.entry(schedule).or_insert_with(|| schedule.is_open(at));
    let rules = policy.rules.iter().enumerate();
    rules
        .filter(|(_, rule)| rule.schedule.as_ref().is_some_and(|schedule| !is_open(schedule)))
        .map(|(index, _)| index)
        .collect()
}

/// The first instant after another at which any rule of a policy opens or closes.
#[must_use]
pub fn next_change(policy: &ResolvedPolicy, after: Timestamp) -> Option<Timestamp> {
    let schedules: std::collections::BTreeSet<&Schedule> = policy
        .rules
        .iter()
        .filter_map(|rule| rule.schedule.as_ref())
        .collect();
    schedules
        .into_iter()
        .filter_map(|schedule| schedule.next_change(after))
        .min()
}

#[cfg(test)]
pub(super) mod tests;
