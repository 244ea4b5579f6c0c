//! Compares what was predicted with what became of a packet.

use std::collections::BTreeSet;

use enforcer_common::Reason;

use super::{Answer, Prediction};

// === impl Prediction ===

impl Prediction {
    /// Whether it leaves no choice.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        self.reasons.len() == 1
    }

    /// What is wrong with an answer; `None` if it is as predicted.
    #[must_use]
    pub fn contradicts(&self, answer: &Answer) -> Option<String> {
        let differs = |what: &str, is: &Option<String>, should: &Option<String>| {
            (is != should).then(|| format!("{what} is {is:?}, should be {should:?}"))
        };
        if let Some(problem) = differs("tenant", &answer.tenant, &self.tenant)
            .or_else(|| differs("service", &answer.service, &self.service))
            .or_else(|| differs("rule", &answer.rule, &self.rule))
        {
            return Some(problem);
        }
        if let Some(fate) = answer.fate
            && !self.fates.contains(&fate)
        {
            return Some(format!(
                "the connection {fate:?}, should be one of {:?}",
                self.fates
            ));
        }
        let mut reasons = self.reasons.clone();
        match &answer.backend {
            _ if self.is_nameless => {}
            None if answer.reason == Reason::BackendIneligible => {}
            None if self.backends.is_empty() || reasons.contains(&Reason::NoHealthyBackend) => {}
            Some(backend) if self.backends.contains(backend) => {
                if self.unreachable.contains(backend) {
                    reasons = BTreeSet::from([Reason::NoNextHop]);
                } else if self.too_big_for.contains(backend) {
                    reasons = BTreeSet::from([Reason::TooBig]);
                } else if self.taken.contains(backend) && reasons.remove(&Reason::Allowed) {
                    reasons.insert(Reason::TranslationExhausted);
                }
            }
            backend => {
                return Some(format!(
                    "back end is {backend:?}, should be one of {:?}",
                    self.backends
                ));
            }
        }
        (!reasons.contains(&answer.reason))
            .then(|| format!("reason is {:?}, should be one of {reasons:?}", answer.reason))
    }
}
