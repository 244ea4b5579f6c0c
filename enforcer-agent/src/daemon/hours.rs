//! Which rules of the policy in force are closed, and when that is to be looked at again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tracing::info;

use super::core::Core;
use crate::api::reply::ScheduleStatus;
use crate::pure::audit::{Change, Kind};
use crate::pure::policy::ResolvedPolicy;
use crate::pure::policy::schedule::{closed_rules, next_change};
use crate::pure::policy::selection::Selection;

/// What the schedules of a policy say from one time up to the next boundary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hours {
    /// Indices of the rules that are closed.
    closed: Selection,
    /// Whether it is open, for every rule with a schedule, by name: another policy numbers them otherwise.
    open: BTreeMap<String, bool>,
    from: Timestamp,
    to: Option<Timestamp>,
}

// === impl Hours ===

impl Hours {
    /// What holds at a time.
    pub(super) fn of(policy: &ResolvedPolicy, at: Timestamp) -> Self {
        let closed = closed_rules(policy, at);
        let scheduled = policy
            .rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.schedule.is_some());
        let open = scheduled.map(|(index, rule)| (rule.name.clone(), !closed.contains(index)));
        Self {
            open: open.collect(),
            closed,
            from: at,
            to: next_change(policy, at),
        }
    }

    /// The rules that do not exist.
    pub(super) const fn closed(&self) -> &Selection {
        &self.closed
    }

    /// Whether it may be otherwise at this time: a boundary has been passed, or the clock was put back.
    fn is_over(&self, now: Timestamp) -> bool {
        now < self.from || self.to.is_some_and(|to| now >= to)
    }
}

impl Core {
    /// How long until a rule opens or closes; `None` if none does, or while what is wanted cannot be put into force, since
    /// each fold tries that again.
    pub(super) fn until_boundary(&self) -> Option<Duration> {
        if self.active.is_none() || self.is_install_failing() {
            return None;
        }
        let wait = self.hours.to?.duration_since(self.clock.wall());
        Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
    }

    /// Opens and closes the rules whose time has come.
    pub(super) fn follow_clock(&mut self) {
        if self.is_hour_over() {
            self.refresh("schedule");
        }
    }

    /// Whether a rule is to be opened or closed. Also finds out that the clock was put forward or back, or that the host
    /// slept, when nobody waited for the boundary.
    pub(super) fn is_hour_over(&mut self) -> bool {
        let now = self.clock.wall();
        let Some(active) = self.active.as_ref().filter(|_| self.hours.is_over(now)) else {
            return false;
        };
        let hours = Hours::of(&active.policy, now);
        let is_over = hours.closed != self.hours.closed;
        if !is_over {
            self.hours = hours;
        }
        is_over
    }

    /// Remembers the hours that are in force now, and writes down which rules opened and closed; and how a rule is of which
    /// nothing was known, since the agent or the rule is new. So the last record of a rule always says how it is.
    pub(super) fn begin_hours(&mut self, hours: Hours) {
        let before = std::mem::replace(&mut self.hours, hours);
        let Some(active) = &self.active else { return };
        let scheduled = active
            .policy
            .rules
            .iter()
            .filter_map(|rule| Some((&rule.name, rule.schedule.as_ref()?)));
        for (name, schedule) in scheduled {
            let is_open = self.hours.open.get(name);
            if is_open == before.open.get(name) {
                continue;
            }
            let to = if is_open == Some(&true) { "open" } else { "closed" };
            info!(rule = name, to, "schedule");
            let mut entry = self.entry(Kind::Schedule);
            entry.rule = Some(name.clone());
            entry.change = Some(Change {
                what: "schedule".to_owned(),
                to: Some(to.to_owned()),
                causes: vec![schedule.to_string()],
                ..Change::default()
            });
            self.audit.record(entry);
        }
    }

    /// `None` if no rule has a schedule.
    pub(super) fn schedule_status(&self) -> Option<ScheduleStatus> {
        (!self.hours.open.is_empty()).then(|| ScheduleStatus {
            scheduled_rules: self.hours.open.len() as u64,
            closed_rules: self.hours.closed.len() as u64,
            next_change: self.hours.to,
        })
    }
}
