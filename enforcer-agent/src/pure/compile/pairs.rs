//! (tenant, service) to decision, eligible set and Maglev table.
//!
//! Three steps, each kept by [`Kept`] for as long as what it depends on stays the same:
//!
//! 1. [`Ruled`]: what the rules and constraints say, from the policy and which of its rules are closed;
//! 2. [`Answers`]: which back ends each (constraints, service) that a rule allows may use now, from their states;
//! 3. [`Decisions`]: the records, from both.
//!
//! So a change of weights costs the Maglev tables that it touches, and a suspension or a changed limit nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use enforcer_common::Reason;
use enforcer_common::abi::config::{
    BLOCK_CELLS, DecisionBlock, DecisionCell, DecisionRecord, LimitsRecord, MaglevTable, ROW_BLOCKS,
    RowRecord, SET_WORDS, SetRecord,
};
use enforcer_common::schema::{MAGLEV_SLOTS, MAX_DECISIONS};

use super::eligible::eligible;
use super::{BackendStatus, CompileError, Layout};
use crate::pure::maglev::{self, Entry};
use crate::pure::policy::judgement::{Bindings, ConstraintSet, Judgements};
use crate::pure::policy::resolved::{Action, ResolvedPolicy, Rule};
use crate::pure::policy::selection::Selection;
use crate::pure::tables::{EMPTY_MAGLEV, Table};

/// Decision 0, of a service slot that is not in use: flows that outlive their service are refused there. Block 0 consists
/// of nothing else, and rows refer to it where they have no other, so that no hole in the tables reads as `Allowed`.
const UNUSED: DecisionRecord = DecisionRecord {
    reason: Reason::NoRule as u32 + 1,
    ..DecisionRecord::ZERO
};

/// All decisions.
#[derive(Debug, Clone, Default)]
pub(super) struct Decisions {
    /// By index in the policy.
    pub(super) row_of_tenant: Arc<Vec<u32>>,
    pub(super) rows: Table<RowRecord>,
    pub(super) blocks: Table<DecisionBlock>,
    pub(super) decisions: Table<DecisionRecord>,
    pub(super) limits: Table<LimitsRecord>,
    pub(super) sets: Table<SetRecord>,
    pub(super) maglev: Table<Arc<MaglevTable>>,
}

/// What one compile leaves for the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    ruled: Option<(Arc<ResolvedPolicy>, Ruled)>,
    /// What [`Decisions`] were made from, besides what the rules say.
    answers: Vec<(Reason, u16)>,
    rule_numbers: Arc<Vec<u32>>,
    /// Limit groups of the pairs that rules with limits speak of.
    pair_groups: Vec<(usize, usize, u32)>,
    /// What the answers were made from, besides the policy, its slots and the host.
    states: States,
    decisions: Decisions,
    maglev: BTreeMap<Vec<Entry>, Arc<MaglevTable>>,
}

/// The state of the world, as far as it decides who may use which back end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct States {
    /// Healthy, draining and weight, in the order of pools and their back ends.
    backends: Vec<(bool, bool, u32)>,
    failed_pools: BTreeSet<String>,
    shed: BTreeMap<String, BTreeSet<String>>,
}

// === impl States ===

impl States {
    fn of(layout: &Layout<'_>) -> Self {
        let backends = layout.backends.iter().flatten();
        Self {
            backends: backends
                .map(|backend| {
                    let BackendStatus {
                        healthy,
                        draining,
                        weight,
                        next_hop: _,
                    } = backend.status;
                    (healthy, draining, weight)
                })
                .collect(),
            failed_pools: layout.inputs.failed_pools.clone(),
            shed: layout.inputs.shed.clone(),
        }
    }
}

/// What the rules and constraints say, apart from the state of back ends.
#[derive(Debug, Clone)]
struct Ruled {
    /// The rules that were closed.
    closed: Selection,
    judgements: Judgements,
    /// By index in the policy: which of the classes a tenant is in. Those of one class are bound by the same constraints.
    class_of_tenant: Vec<u32>,
    /// Slots and indexes in the policy of the services, in the order of [`Layout::services`].
    services: Vec<(u32, usize)>,
    /// By class, then by service: index in `needs`.
    need_of: Vec<Option<u32>>,
    /// What some rule that decides, or would, allows, in the order in which the tenants, by name, first need it.
    needs: Vec<Need>,
}

/// A service under constraints.
#[derive(Debug, Clone, Copy)]
struct Need {
    /// Index in [`Layout::services`].
    service: usize,
    constraints: ConstraintSet,
}

/// Which back ends each need may use.
struct Answers {
    /// By need: `Allowed` and the set, or why not.
    of_need: Vec<(Reason, u16)>,
    sets: Vec<SetRecord>,
    maglev: Vec<Arc<MaglevTable>>,
}

// === impl Kept ===

impl Kept {
    /// Decides every pair. Rows, sets and Maglev tables are numbered in the order in which the tenants, by name, first need
    /// them, so that a change of weights changes no number.
    pub(super) fn decide(
        &mut self,
        layout: &Layout<'_>,
        policy: &Arc<ResolvedPolicy>,
    ) -> Result<Decisions, CompileError> {
        let kept = self
            .ruled
            .take_if(|(before, ruled)| Arc::ptr_eq(before, policy) || ruled.still_holds(before, policy));
        let still = kept.filter(|(_, ruled)| {
            ruled.services == slotted_services(layout) && ruled.closed == *layout.inputs.closed_rules
        });
        let is_kept = still.is_some();
        let (_, ruled) = self.ruled.insert((
            Arc::clone(policy),
            match still {
                Some((_, ruled)) => ruled,
                None => Ruled::of(layout),
            },
        ));
        let states = States::of(layout);
        if layout.same_policy && is_kept && states == self.states {
            return Ok(self.decisions.clone());
        }
        // Until this compile has succeeded nothing is known to fit together.
        self.states = States::default();
        let answers = Answers::of(layout, ruled, &mut self.maglev)?;
        let pair_groups = ruled.pair_groups(layout);
        let same = is_kept
            && answers.of_need == self.answers
            && layout.rule_numbers == self.rule_numbers
            && pair_groups == self.pair_groups;
        if !same {
            let mut records = Records::default();
            self.decisions = records.all(layout, ruled, &answers.of_need)?;
            self.answers = answers.of_need;
            self.rule_numbers = Arc::clone(&layout.rule_numbers);
            self.pair_groups = pair_groups;
        }
        let judgement = |tenant, service| ruled.judgements.get(tenant, service);
        keep_if_equal(
            &mut self.decisions.limits,
            layout.groups.records(layout, judgement),
        );
        keep_if_equal(&mut self.decisions.sets, answers.sets);
        keep_if_equal(&mut self.decisions.maglev, answers.maglev);
        self.states = states;
        Ok(self.decisions.clone())
    }
}

/// Leaves a table as it is, and shared, if nothing in it differs.
fn keep_if_equal<T: PartialEq>(table: &mut Table<T>, records: Vec<T>) {
    if **table != *records {
        *table = records.into();
    }
}

fn slotted_services(layout: &Layout<'_>) -> Vec<(u32, usize)> {
    let services = layout.services.iter();
    services.map(|service| (service.slot, service.index)).collect()
}

// === impl Ruled ===

impl Ruled {
    fn of(layout: &Layout<'_>) -> Self {
        let policy = layout.inputs.policy;
        let judgements = Judgements::of(policy, layout.inputs.closed_rules);
        let bindings = Bindings::of(policy);
        let mut classes: BTreeMap<ConstraintSet, u32> = BTreeMap::new();
        let class_of_tenant: Vec<u32> = (0..policy.tenants.len())
            .map(|tenant| {
                let fresh = classes.len() as u32;
                *classes.entry(bindings.of_tenant(tenant)).or_insert(fresh)
            })
            .collect();
        let mut ruled = Self {
            need_of: vec![None; classes.len() * layout.services.len()],
            needs: Vec::new(),
            services: slotted_services(layout),
            closed: layout.inputs.closed_rules.clone(),
            judgements,
            class_of_tenant,
        };
        let allows =
            |rule: Option<usize>| rule.is_some_and(|rule| policy.rules[rule].action == Action::Allow);
        for tenant in 0..policy.tenants.len() {
            let base = ruled.class_of_tenant[tenant] as usize * layout.services.len();
            for (service, slotted) in layout.services.iter().enumerate() {
                let need = &mut ruled.need_of[base + service];
                let judgement = ruled.judgements.get(tenant, slotted.index);
                if need.is_none() && (allows(judgement.decided_by) || allows(judgement.shadowed_by)) {
                    *need = Some(ruled.needs.len() as u32);
                    let constraints = bindings.get(tenant, slotted.index);
                    ruled.needs.push(Need { service, constraints });
                }
            }
        }
        ruled
    }

    /// The limit groups of the pairs that rules with limits speak of.
    fn pair_groups(&self, layout: &Layout<'_>) -> Vec<(usize, usize, u32)> {
        let policy = layout.inputs.policy;
        layout
            .groups
            .each_pair(policy, |tenant, service| self.judgements.get(tenant, service))
    }

    /// Whether another policy says the same, but for what is not looked at here: limits, sources, labels, lines.
    fn still_holds(&self, before: &ResolvedPolicy, after: &ResolvedPolicy) -> bool {
        let same_rule = |(before, after): (&Arc<Rule>, &Arc<Rule>)| {
            Arc::ptr_eq(before, after)
                || before.action == after.action
                    && before.mode == after.mode
                    && before.tenants == after.tenants
                    && before.services == after.services
        };
        before.tenants.len() == after.tenants.len()
            && before.services.len() == after.services.len()
            && before.rules.len() == after.rules.len()
            && before.rules.iter().zip(&after.rules).all(same_rule)
            && before.constraints.len() == after.constraints.len()
            && before
                .constraints
                .iter()
                .zip(&after.constraints)
                .all(|(before, after)| before.tenants == after.tenants && before.services == after.services)
    }
}

// === impl Answers ===

impl Answers {
    /// `tables` are those of the last compile, and afterwards those of this one.
    fn of(
        layout: &Layout<'_>,
        ruled: &Ruled,
        tables: &mut BTreeMap<Vec<Entry>, Arc<MaglevTable>>,
    ) -> Result<Self, CompileError> {
        let mut numbers: BTreeMap<([u64; SET_WORDS], Vec<Entry>), u16> = BTreeMap::new();
        let mut answers = Self {
            of_need: Vec::with_capacity(ruled.needs.len()),
            sets: Vec::new(),
            maglev: Vec::new(),
        };
        for need in &ruled.needs {
            let eligible = eligible(layout, &layout.services[need.service], need.constraints);
            let answer = if eligible.compliant == 0 {
                (Reason::NoCompliantBackend, 0)
            } else if eligible.members.is_empty() {
                (Reason::NoHealthyBackend, 0)
            } else {
                let (members, entries) = eligible.content();
                let fresh = answers.sets.len();
                // Equal sets of different services or constraints are one.
                let number = *numbers
                    .entry((members, entries))
                    .or_insert_with_key(|(_, entries)| {
                        let known = tables.get(entries).cloned();
                        answers.sets.push(SetRecord {
                            members,
                            shed_classes: eligible.shed_classes,
                        });
                        answers
                            .maglev
                            .push(known.unwrap_or_else(|| maglev_table(entries)));
                        u16::try_from(fresh).unwrap_or(u16::MAX)
                    });
                if answers.sets.len() > layout.inputs.host.capacity.eligible_sets as usize {
                    return Err(CompileError::Capacity {
                        what: "distinct sets of eligible back ends",
                        capacity: layout.inputs.host.capacity.eligible_sets,
                        field: Some("capacity.eligibleSets"),
                        advice: "let services share pools, or constraints the labels that they require",
                    });
                }
                (Reason::Allowed, number)
            };
            answers.of_need.push(answer);
        }
        let entries = numbers
            .into_iter()
            .map(|((_, entries), number)| (entries, number));
        *tables = entries
            .map(|(entries, number)| (entries, Arc::clone(&answers.maglev[usize::from(number)])))
            .collect();
        Ok(answers)
    }
}

fn maglev_table(entries: &[Entry]) -> Arc<MaglevTable> {
    let mut table = EMPTY_MAGLEV;
    let slots = maglev::table(entries, MAGLEV_SLOTS);
    table.slots[..slots.len()].copy_from_slice(&slots);
    Arc::new(table)
}

/// The distinct records so far.
#[derive(Default)]
struct Records {
    decisions: Numbered<[u32; 5]>,
    /// By rule that decides, plus one: the last decision asked for and its number. Most rules have only one.
    last: Vec<([u32; 5], u16)>,
    blocks: Numbered<[(u16, u16); BLOCK_CELLS as usize]>,
    rows: Numbered<[u32; ROW_BLOCKS as usize]>,
}

/// Distinct values, numbered in the order in which they were first met.
struct Numbered<T> {
    numbers: BTreeMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            numbers: BTreeMap::new(),
            values: Vec::new(),
        }
    }
}

impl<T: Ord + Copy> Numbered<T> {
    fn number(&mut self, value: T) -> u32 {
        let fresh = self.values.len() as u32;
        let number = *self.numbers.entry(value).or_insert(fresh);
        if number == fresh {
            self.values.push(value);
        }
        number
    }
}

// === impl Records ===

impl Records {
    fn all(
        &mut self,
        layout: &Layout<'_>,
        ruled: &Ruled,
        answers: &[(Reason, u16)],
    ) -> Result<Decisions, CompileError> {
        let policy = layout.inputs.policy;
        self.last = vec![([0; 5], 0); policy.rules.len() + 1];
        self.decisions.number(key_of(&UNUSED));
        self.blocks.number([(0, 0); BLOCK_CELLS as usize]);
        let mut row_of_tenant = Vec::with_capacity(policy.tenants.len());
        for tenant in 0..policy.tenants.len() {
            let row = self.row(layout, ruled, answers, tenant)?;
            row_of_tenant.push(self.rows.number(row));
            let capacity = layout.inputs.host.capacity.decision_blocks;
            if self.blocks.values.len() > capacity as usize {
                return Err(CompileError::Capacity {
                    what: "distinct blocks of decisions",
                    capacity,
                    field: Some("capacity.decisionBlocks"),
                    advice: "give tenants that may use the same services the same labels, and choose by label",
                });
            }
        }
        let record = |[reason, rule, shadow_rule, shadow_reason, limits]: &[u32; 5]| DecisionRecord {
            reason: *reason,
            rule: *rule,
            shadow_rule: *shadow_rule,
            shadow_reason: *shadow_reason,
            limits: *limits,
            reserved: 0,
        };
        let block = |cells: &[(u16, u16); BLOCK_CELLS as usize]| DecisionBlock {
            cells: cells.map(|(decision, set)| DecisionCell { decision, set }),
        };
        let rows: Vec<RowRecord> = self
            .rows
            .values
            .iter()
            .map(|blocks| RowRecord { blocks: *blocks })
            .collect();
        let blocks: Vec<DecisionBlock> = self.blocks.values.iter().map(block).collect();
        let decisions: Vec<DecisionRecord> = self.decisions.values.iter().map(record).collect();
        Ok(Decisions {
            row_of_tenant: Arc::new(row_of_tenant),
            rows: rows.into(),
            blocks: blocks.into(),
            decisions: decisions.into(),
            ..Decisions::default()
        })
    }

    /// The blocks of a tenant's row.
    fn row(
        &mut self,
        layout: &Layout<'_>,
        ruled: &Ruled,
        answers: &[(Reason, u16)],
        tenant: usize,
    ) -> Result<[u32; ROW_BLOCKS as usize], CompileError> {
        let base = ruled.class_of_tenant[tenant] as usize * layout.services.len();
        let mut row = [0; ROW_BLOCKS as usize];
        let mut services = layout.services.iter().enumerate().peekable();
        // Services are in the order of their slots, so that those of one block are neighbours.
        while let Some((_, first)) = services.peek() {
            let block = first.slot / BLOCK_CELLS;
            let mut cells = [(0, 0); BLOCK_CELLS as usize];
            while let Some((service, slotted)) =
                services.next_if(|(_, next)| next.slot / BLOCK_CELLS == block)
            {
                let need = ruled.need_of[base + service];
                let answer = need.map_or((Reason::Internal, 0), |need| answers[need as usize]);
                cells[(slotted.slot % BLOCK_CELLS) as usize] =
                    self.cell(layout, ruled, tenant, slotted.index, answer)?;
            }
            row[block as usize] = self.blocks.number(cells);
        }
        Ok(row)
    }

    /// `answer` is what the tenant gets where a rule allows it.
    fn cell(
        &mut self,
        layout: &Layout<'_>,
        ruled: &Ruled,
        tenant: usize,
        service: usize,
        answer: (Reason, u16),
    ) -> Result<(u16, u16), CompileError> {
        let judgement = ruled.judgements.get(tenant, service);
        let says = |rule: Option<usize>| match rule.map(|rule| layout.inputs.policy.rules[rule].action) {
            None => (Reason::NoRule, 0),
            Some(Action::Deny) => (Reason::RuleDeny, 0),
            Some(Action::Allow) => answer,
        };
        let (reason, set) = match judgement.closed {
            Some(_) => (Reason::OutsideSchedule, 0),
            None => says(judgement.decided_by),
        };
        let rule = judgement.decided_by.or(judgement.closed);
        let (shadow_reason, _) = match judgement.shadowed_by {
            Some(rule) => says(Some(rule)),
            None => (Reason::Allowed, 0),
        };
        let key = [
            reason as u32 + 1,
            number(layout, rule),
            number(layout, judgement.shadowed_by),
            shadow_reason as u32,
            layout
                .groups
                .of_pair(layout.inputs.policy, judgement, (tenant, service)),
        ];
        let last = &mut self.last[rule.map_or(0, |rule| rule + 1)];
        if last.0 != key {
            let full = CompileError::Capacity {
                what: "distinct decisions",
                capacity: MAX_DECISIONS,
                field: None,
                advice: "let fewer shadow rules, and rules with limits, apply to the same tenants and services",
            };
            *last = (key, u16::try_from(self.decisions.number(key)).map_err(|_| full)?);
        }
        Ok((last.1, set))
    }
}

fn key_of(record: &DecisionRecord) -> [u32; 5] {
    let DecisionRecord {
        reason,
        rule,
        shadow_rule,
        shadow_reason,
        limits,
        reserved: _,
    } = *record;
    [reason, rule, shadow_rule, shadow_reason, limits]
}

/// A rule as records hold it: its number plus one, or zero.
fn number(layout: &Layout<'_>, rule: Option<usize>) -> u32 {
    rule.map_or(0, |rule| layout.rule_numbers[rule] + 1)
}
