//! Which rule decides for a (tenant, service), and which back ends the constraints leave it.
//!
//! This is the meaning of a policy, apart from health. The compiler and the checks of `resolve` both ask here.
//!
//! The work is done for 64 tenants at a time, since a word of a rule's tenants is then one look at all of them. For each
//! tenant there is a set of the services that no rule has decided yet: a rule that could only decide what is decided
//! already is passed over in a few words, and the block ends when nothing is left to decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bounds::{MAX_CONSTRAINTS, MAX_RULES};
use super::resolved::{Action, Backend, Constraint, Mode, Pool, ResolvedPolicy, Rule, Service};
use super::selection::{Selection, ones};
pub use reach::Reach;

mod reach;

/// Tenants that are judged together.
const BLOCK: usize = u64::BITS as usize;

/// What the rules say about one (tenant, service). Indices are into [`ResolvedPolicy::rules`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The rule that decides; none means that no rule allows it, so that it is refused.
    pub decided_by: Option<usize>,
    /// The first shadow rule that would have decided before that, and otherwise.
    pub shadowed_by: Option<usize>,
    /// Where no rule decides: the first enforced rule that would allow it if its schedule were open.
    pub closed: Option<usize>,
}

/// A [`Judgement`] in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    /// The deciding rule; with [`CLOSED`], the rule that would decide if it were open.
    rule: u16,
    shadow: u16,
}

/// No rule.
const NONE: u16 = u16::MAX;
/// Bit of [`Cell::rule`]: the rule is closed.
const CLOSED: u16 = 1 << 15;
const _: () = assert!(
    MAX_RULES < CLOSED as usize,
    "the number of a rule needs the bit of CLOSED"
);
const UNDECIDED: Cell = Cell {
    rule: NONE,
    shadow: NONE,
};

/// The judgement of every (tenant, service).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgements {
    services: usize,
    /// By tenant; tenants that all rules treat alike share a row.
    row_of_tenant: Vec<u32>,
    rows: Vec<Arc<[Cell]>>,
}

// === impl Judgements ===

impl Judgements {
    /// Judges all pairs. The rules are in the order of judgement, so that the first one that matches is the one.
    ///
    /// Rules in `closed` do not decide, nor do they cast a shadow.
    ///
    /// # Panics
    /// If there are more rules than [`MAX_RULES`], which `resolve` refuses.
    #[must_use]
    pub fn of(policy: &ResolvedPolicy, closed: &Selection) -> Self {
        assert!(policy.rules.len() <= MAX_RULES, "the number of rules is bounded");
        let services = policy.services.len();
        let mut rows = Vec::new();
        let mut row_of_tenant = Vec::with_capacity(policy.tenants.len());
        let mut numbers: BTreeMap<Arc<[Cell]>, u32> = BTreeMap::new();
        let mut block = Block::new(services);
        for first in (0..policy.tenants.len()).step_by(BLOCK) {
            let tenants = BLOCK.min(policy.tenants.len() - first);
            block.judge(policy, closed, first, tenants);
            for tenant in 0..tenants {
                let row = block.row(tenant, policy);
                let number = numbers.get(row).copied().unwrap_or_else(|| {
                    let number = u32::try_from(rows.len()).expect("there are fewer rows than tenants");
                    let row: Arc<[Cell]> = row.into();
                    numbers.insert(Arc::clone(&row), number);
                    rows.push(row);
                    number
                });
                row_of_tenant.push(number);
            }
        }
        Self {
            services,
            row_of_tenant,
            rows,
        }
    }

    /// The judgement of one pair.
    ///
    /// # Panics
    /// If an index is not one of the policy that was judged.
    #[must_use]
    pub fn get(&self, tenant: usize, service: usize) -> Judgement {
        self.in_row(self.row_of(tenant), service)
    }

    /// How many rows of judgements differ from one another.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The row of a tenant, from 0. The judgements of two tenants with the same row are the same for every service.
    ///
    /// # Panics
    /// If the index is not one of the policy that was judged.
    #[must_use]
    pub fn row_of(&self, tenant: usize) -> usize {
        self.row_of_tenant[tenant] as usize
    }

    /// The judgement of every tenant of a row on a service.
    ///
    /// # Panics
    /// If there is no such row or service.
    #[must_use]
    pub fn in_row(&self, row: usize, service: usize) -> Judgement {
        assert!(service < self.services, "service {service} of {}", self.services);
        let Cell { rule, shadow } = self.rows[row][service];
        let rule_if = |wanted: bool| (rule != NONE && wanted).then_some(usize::from(rule & !CLOSED));
        Judgement {
            decided_by: rule_if(rule & CLOSED == 0),
            shadowed_by: (shadow != NONE).then_some(usize::from(shadow)),
            closed: rule_if(rule & CLOSED != 0),
        }
    }
}

// === impl Judgement ===

impl Judgement {
    /// Whether the tenant may use the service.
    #[must_use]
    pub fn is_allowed(self, policy: &ResolvedPolicy) -> bool {
        self.decided_by
            .is_some_and(|rule| policy.rules[rule].action == Action::Allow)
    }
}

/// What a rule still can be for a pair; each has a set of pairs for which no rule is it yet.
#[derive(Debug, Clone, Copy)]
enum Part {
    Decides = 0,
    ShadowAllows = 1,
    ShadowDenies = 2,
    /// Would allow, if it were open.
    WouldAllow = 3,
}

const PARTS: usize = 4;

/// Some tenants at work.
struct Block {
    services: usize,
    /// Words of a set of services.
    words: usize,
    /// By part, then by tenant: the services for which no rule has this part yet.
    free: [Vec<u64>; PARTS],
    /// By part, then by tenant and service: which rule has this part.
    taken: [Vec<u16>; PARTS],
    /// The row that was asked for last.
    row: Vec<Cell>,
}

// === impl Block ===

impl Block {
    fn new(services: usize) -> Self {
        let words = services.div_ceil(64);
        Self {
            services,
            words,
            free: std::array::from_fn(|_| vec![0; BLOCK * words]),
            taken: std::array::from_fn(|_| vec![NONE; BLOCK * services]),
            row: vec![UNDECIDED; services],
        }
    }

    /// Judges the tenants from `first` on.
    fn judge(&mut self, policy: &ResolvedPolicy, closed: &Selection, first: usize, tenants: usize) {
        for part in 0..PARTS {
            self.taken[part].fill(NONE);
            for words in self.free[part].chunks_mut(self.words.max(1)) {
                fill(words, self.services);
            }
        }
        // Bits beyond the last tenant are zero in every selection.
        let mut undecided = u64::MAX >> (BLOCK - tenants);
        for (index, rule) in policy.rules.iter().enumerate() {
            let Some(part) = part_of(rule, closed.contains(index)) else {
                continue;
            };
            for tenant in ones(rule.tenants.word(first / BLOCK) & undecided) {
                if !self.take(tenant, part, index, &rule.services) {
                    undecided &= !(1 << tenant);
                }
            }
            if undecided == 0 {
                return;
            }
        }
    }

    /// Gives a rule its part for all services of a tenant that are not decided and for which no rule has that part yet.
    /// Answers whether anything is left to decide.
    fn take(&mut self, tenant: usize, part: Part, rule: usize, services: &Selection) -> bool {
        let number = u16::try_from(rule).expect("there are at most MAX_RULES rules");
        let mut left = 0;
        for word in 0..self.words {
            let at = tenant * self.words + word;
            let undecided = self.free[Part::Decides as usize][at];
            let free = &mut self.free[part as usize][at];
            let fresh = undecided & *free & services.word(word);
            *free &= !fresh;
            left |= self.free[Part::Decides as usize][at];
            for bit in ones(fresh) {
                self.taken[part as usize][tenant * self.services + word * 64 + bit] = number;
            }
        }
        left != 0
    }

    /// What became of a tenant.
    fn row(&mut self, tenant: usize, policy: &ResolvedPolicy) -> &[Cell] {
        for (service, cell) in self.row.iter_mut().enumerate() {
            let taken = |part: Part| self.taken[part as usize][tenant * self.services + service];
            let decides = taken(Part::Decides);
            let would_allow = taken(Part::WouldAllow);
            let allowed = decides != NONE && policy.rules[usize::from(decides)].action == Action::Allow;
            *cell = Cell {
                rule: if decides == NONE && would_allow != NONE {
                    would_allow | CLOSED
                } else {
                    decides
                },
                shadow: taken(if allowed {
                    Part::ShadowDenies
                } else {
                    Part::ShadowAllows
                }),
            };
        }
        &self.row
    }
}

/// Sets the lowest `count` bits, and no others.
fn fill(words: &mut [u64], count: usize) {
    for (number, word) in words.iter_mut().enumerate() {
        let bits = count.saturating_sub(number * 64).min(64);
        *word = if bits == 0 { 0 } else { u64::MAX >> (64 - bits) };
    }
}

/// What a rule can be; nothing, if it does not exist at the moment.
const fn part_of(rule: &Rule, closed: bool) -> Option<Part> {
    match (rule.mode, rule.action, closed) {
        (Mode::Enforce, _, false) => Some(Part::Decides),
        (Mode::Shadow, Action::Allow, false) => Some(Part::ShadowAllows),
        (Mode::Shadow, Action::Deny, false) => Some(Part::ShadowDenies),
        (Mode::Enforce, Action::Allow, true) => Some(Part::WouldAllow),
        (Mode::Enforce, Action::Deny, true) | (Mode::Shadow, _, true) => None,
    }
}

/// A set of constraints, by index into [`ResolvedPolicy::constraints`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConstraintSet([u64; MAX_CONSTRAINTS.div_ceil(64)]);

// === impl ConstraintSet ===

impl ConstraintSet {
    fn insert(&mut self, constraint: usize) {
        self.0[constraint / 64] |= 1 << (constraint % 64);
    }

    fn intersection(mut self, other: Self) -> Self {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(word, with)| *word &= with);
        self
    }

    /// Its members, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_CONSTRAINTS).filter(move |constraint| self.0[constraint / 64] >> (constraint % 64) & 1 == 1)
    }
}

/// Which constraints bind which (tenant, service).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    tenants: Vec<ConstraintSet>,
    services: Vec<ConstraintSet>,
}

// === impl Bindings ===

impl Bindings {
    /// All bindings of a policy.
    ///
    /// # Panics
    /// If there are more constraints than [`MAX_CONSTRAINTS`], which `resolve` refuses.
    #[must_use]
    pub fn of(policy: &ResolvedPolicy) -> Self {
        let mut tenants = vec![ConstraintSet::default(); policy.tenants.len()];
        let mut services = vec![ConstraintSet::default(); policy.services.len()];
        for (index, constraint) in policy.constraints.iter().enumerate() {
            constraint
                .tenants
                .iter()
                .for_each(|tenant| tenants[tenant].insert(index));
            constraint
                .services
                .iter()
                .for_each(|service| services[service].insert(index));
        }
        Self { tenants, services }
    }

    /// The constraints that bind a tenant on some service.
    ///
    /// # Panics
    /// If the index is not one of the policy.
    #[must_use]
    pub fn of_tenant(&self, tenant: usize) -> ConstraintSet {
        self.tenants[tenant]
    }

    /// The constraints that bind a pair.
    ///
    /// # Panics
    /// If an index is not one of the policy.
    #[must_use]
    pub fn get(&self, tenant: usize, service: usize) -> ConstraintSet {
        self.tenants[tenant].intersection(self.services[service])
    }
}

/// Whether a back end has what a constraint requires.
#[must_use]
pub fn is_compliant(constraint: &Constraint, pool: &Pool, backend: &Backend) -> bool {
    constraint
        .require
        .holds(|key| ResolvedPolicy::backend_label(pool, backend, key))
}

/// A service's back ends that all of the given constraints allow, as (pool index, index within the pool), in the
/// service's order of pools.
pub fn compliant_backends<'a>(
    policy: &'a ResolvedPolicy,
    service: &'a Service,
    constraints: ConstraintSet,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let all_allow = move |pool: &Pool, backend: &Backend| {
        constraints
            .iter()
            .all(|constraint| is_compliant(&policy.constraints[constraint], pool, backend))
    };
    service.pools.iter().flat_map(move |pool_index| {
        let pool = &policy.pools[*pool_index];
        let backends = pool.backends.iter().enumerate();
        backends
            .filter(move |(_, backend)| all_allow(pool, backend))
            .map(move |(index, _)| (*pool_index, index))
    })
}

#[cfg(test)]
mod tests;
