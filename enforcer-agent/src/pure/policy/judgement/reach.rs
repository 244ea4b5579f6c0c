//! What the rules can come to, whatever the time: for the checks of a policy.

use super::{BLOCK, PARTS, Part, fill, part_of};
use crate::pure::policy::resolved::{Action, Mode, ResolvedPolicy};
use crate::pure::policy::selection::{Selection, ones};

/// Which rules can have an effect, and which pairs can be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// By rule.
    effective: Vec<bool>,
    /// By tenant: the services that it may use at some time.
    allowed: Vec<Selection>,
}

/// Some tenants at work.
struct Block {
    /// Words of a set of services.
    words: usize,
    /// By part, then by tenant: the services for which no rule that is always open has this part yet.
    free: [Vec<u64>; PARTS],
    /// By tenant.
    allowed: Vec<u64>,
}

// === impl Reach ===

impl Reach {
    /// Looks at all pairs.
    ///
    /// A rule is hidden only by rules that are always open: one with a schedule leaves room for the next, also where the
    /// schedules of the two happen to be the same.
    #[must_use]
    pub fn of(policy: &ResolvedPolicy) -> Self {
        let mut reach = Self {
            effective: vec![false; policy.rules.len()],
            allowed: Vec::with_capacity(policy.tenants.len()),
        };
        for first in (0..policy.tenants.len()).step_by(BLOCK) {
            let tenants = BLOCK.min(policy.tenants.len() - first);
            let block = Block::of(policy, first, tenants, &mut reach.effective);
            for tenant in 0..tenants {
                let allowed = &block.allowed[tenant * block.words..(tenant + 1) * block.words];
                reach.allowed.push(Selection::from_words(allowed.to_vec()));
            }
        }
        reach
    }

    /// Whether a rule decides, or as a shadow would decide, any (tenant, service) at any time.
    ///
    /// # Panics
    /// If the index is not one of the policy that was looked at.
    #[must_use]
    pub fn is_effective(&self, rule: usize) -> bool {
        self.effective[rule]
    }

    /// The services that a tenant may use at some time.
    ///
    /// # Panics
    /// If the index is not one of the policy that was looked at.
    #[must_use]
    pub fn allowed(&self, tenant: usize) -> &Selection {
        &self.allowed[tenant]
    }
}

// === impl Block ===

impl Block {
    fn of(policy: &ResolvedPolicy, first: usize, tenants: usize, effective: &mut [bool]) -> Self {
        let words = policy.services.len().div_ceil(64);
        let mut every_service = vec![0; words];
        fill(&mut every_service, policy.services.len());
        let mut block = Self {
            words,
            free: std::array::from_fn(|_| every_service.repeat(tenants)),
            allowed: vec![0; words * tenants],
        };
        let mut undecided = u64::MAX >> (BLOCK - tenants);
        for (index, rule) in policy.rules.iter().enumerate() {
            let Some(part) = part_of(rule, false) else {
                continue;
            };
            let allows = rule.mode == Mode::Enforce && rule.action == Action::Allow;
            for tenant in ones(rule.tenants.word(first / BLOCK) & undecided) {
                let mut left = 0;
                for word in 0..words {
                    let at = tenant * words + word;
                    let fresh = block.free[Part::Decides as usize][at]
                        & block.free[part as usize][at]
                        & rule.services.word(word);
                    effective[index] |= fresh != 0;
                    block.allowed[at] |= if allows { fresh } else { 0 };
                    if rule.is_always_open() {
                        block.free[part as usize][at] &= !fresh;
                    }
                    left |= block.free[Part::Decides as usize][at];
                }
                if left == 0 {
                    undecided &= !(1 << tenant);
                }
            }
            if undecided == 0 {
                break;
            }
        }
        block
    }
}
