//! What the rules say, which of them the time closes, and what stands in the way although they allow it.

use enforcer_common::Reason;

use super::{Known, Subject, Tale};
use crate::pure::compile::directory::{RuleEntry, ServiceEntry};
use crate::pure::policy::resolved::Rule;
use crate::pure::policy::schedule::Schedule;

/// Closed rules that are named; the rest is counted.
const MAX_CLOSED_RULES: usize = 8;

impl Tale<'_> {
    pub(super) fn rule(&mut self, tenant: usize, service: &ServiceEntry) {
        self.closed_rules(tenant, service);
        let decisive = self.known.directory.rule(self.decision.rule);
        let finding = match decisive {
            None => "No rule speaks of this tenant and this service, so that it is refused.".to_owned(),
            Some(rule) if self.decision.reason == Reason::OutsideSchedule => {
                format!("Rule {} would allow it, and no other rule decides.", place(rule))
            }
            Some(rule) => {
                let until = self.until(rule);
                format!("Rule {} decides: {:?}.{until}", place(rule), rule.action)
            }
        };
        self.say(Subject::Rule, finding);
        if let Some(rule) = self.known.directory.rule(self.decision.shadow_rule) {
            let reason = Reason::from_code(self.decision.shadow_reason).map_or("unknown", Reason::name);
            self.say(
                Subject::Rule,
                format!("Shadow rule {} would have answered {reason}.", place(rule)),
            );
        }
    }

    /// How long a rule with a schedule goes on to exist.
    fn until(&self, rule: &RuleEntry) -> String {
        let rules = &self.known.inputs.policy.rules;
        let schedule = rules
            .iter()
            .find(|known| known.name == rule.name)
            .and_then(|known| known.schedule.as_ref());
        schedule.map_or_else(String::new, |schedule| {
            let change = self.change(schedule, "closes");
            format!(" It is open {schedule}{change}.")
        })
    }

    /// Rules that match, and would come before the one that decides, but are closed.
    fn closed_rules(&mut self, tenant: usize, entry: &ServiceEntry) {
        let Known {
            inputs, directory, ..
        } = *self.known;
        let policy = inputs.policy;
        let services = &policy.services;
        let Ok(service) = services.binary_search_by(|service| service.name.cmp(&entry.name)) else {
            return;
        };
        let decisive = directory
            .rule(self.decision.rule)
            .filter(|_| self.decision.reason != Reason::OutsideSchedule);
        let before = policy
            .rules
            .iter()
            .take_while(|rule| decisive.is_none_or(|decisive| decisive.name != rule.name));
        let closed: Vec<(&Rule, &Schedule)> = before
            .enumerate()
            .filter(|(index, rule)| {
                inputs.closed_rules.contains(*index)
                    && rule.tenants.contains(tenant)
                    && rule.services.contains(service)
            })
            .filter_map(|(_, rule)| Some((&**rule, rule.schedule.as_ref()?)))
            .collect();
        for (rule, schedule) in closed.iter().take(MAX_CLOSED_RULES) {
            let change = self.change(schedule, "opens");
            let place = place_of(&rule.name, rule.line, rule.file.as_deref());
            let finding = format!(
                "Rule {place}, {:?}, is closed: it is open {schedule}{change}.",
                rule.action
            );
            self.say(Subject::Schedule, finding);
        }
        let further = closed.len().saturating_sub(MAX_CLOSED_RULES);
        if further > 0 {
            self.say(
                Subject::Schedule,
                format!("{further} more that match are closed."),
            );
        }
    }

    /// When a schedule next changes, by its own clocks.
    fn change(&self, schedule: &Schedule, verb: &str) -> String {
        schedule
            .next_change(self.moment.wall)
            .map_or_else(String::new, |change| {
                let clock = change.to_zoned(schedule.time_zone().time_zone().clone());
                format!(", and {verb} at {}", clock.strftime("%Y-%m-%d %H:%M:%S %:z (%a)"))
            })
    }

    /// What stands in the way although the rules allow it.
    pub(super) fn held_up(&mut self) {
        let (subject, finding) = match self.decision.reason {
            Reason::LeaseExpired => (
                Subject::Lease,
                "The agent has not renewed its lease in time, and the policy says to refuse then.",
            ),
            Reason::Quota => (
                Subject::Quota,
                "A quota is used up; `tenant list` shows which one, and when its window ends.",
            ),
            Reason::Shed => (
                Subject::Class,
                "The pool that would take the connection runs hot, and the tenant's class is shed first.",
            ),
            _ => return,
        };
        self.say(subject, finding);
    }
}

/// A rule's name and line.
fn place(rule: &RuleEntry) -> String {
    place_of(&rule.name, rule.line, rule.file.as_deref())
}

fn place_of(name: &str, line: u32, file: Option<&str>) -> String {
    match (line, file) {
        (0, _) => format!("`{name}`"),
        (line, None) => format!("`{name}` (line {line})"),
        (line, Some(file)) => format!("`{name}` (line {line} of {file})"),
    }
}
