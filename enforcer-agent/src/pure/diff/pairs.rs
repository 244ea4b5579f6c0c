//! Which (tenant, service) gains, loses or changes its decision and its eligible back ends.
//!
//! There may be a million pairs and few differences among them: so a pair's answer is a handful of numbers that mean the
//! same on both sides, and only for pairs whose numbers differ is anything written down.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::Reason;

use super::{
    BackendChange, Block, Decision, DecisionChange, Effect, FromTo, PairCounts, Room, join, reason_name,
};
use crate::pure::policy::ResolvedPolicy;
use crate::pure::policy::judgement::{Bindings, ConstraintSet, Judgements, compliant_backends};
use crate::pure::policy::resolved::Action;
use crate::pure::policy::selection::Selection;

/// What is found.
pub(super) struct Pairs {
    pub(super) decisions: Vec<DecisionChange>,
    pub(super) backends: Vec<BackendChange>,
    pub(super) counts: PairCounts,
}

/// No rule.
const NONE: u32 = u32::MAX;
/// The set without back ends.
const EMPTY: u32 = 0;

/// What a pair is answered; names are numbers of [`Interned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    reason: u32,
    rule: u32,
    shadow_rule: u32,
    shadow_reason: u32,
}

/// An answer, and where it sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Access {
    answer: Answer,
    /// Number of the eligible set.
    eligible: u32,
}

/// A service's eligible back ends by pool, in the order of preference; pools without one are left out.
type Eligible = Vec<(u32, Vec<u32>)>;

/// Names and eligible sets of both policies as numbers.
#[derive(Default)]
struct Interned<'a> {
    numbers: BTreeMap<&'a str, u32>,
    names: Vec<&'a str>,
    set_numbers: BTreeMap<Eligible, u32>,
    sets: Vec<Eligible>,
}

// === impl Interned ===

impl<'a> Interned<'a> {
    fn name(&mut self, name: &'a str) -> u32 {
        *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name);
            (self.names.len() - 1) as u32
        })
    }

    fn set(&mut self, set: Eligible) -> u32 {
        if let Some(number) = self.set_numbers.get(&set) {
            return *number;
        }
        let number = self.sets.len() as u32;
        self.sets.push(set.clone());
        self.set_numbers.insert(set, number);
        number
    }

    fn text(&self, number: u32) -> Option<String> {
        self.names.get(number as usize).map(|name| (*name).to_owned())
    }
}

/// One of the two policies, judged.
struct Side<'a> {
    policy: &'a ResolvedPolicy,
    judgements: Judgements,
    bindings: Bindings,
    /// By index of the rule.
    rules: Vec<u32>,
    /// By service: the last set of constraints that was asked for, and its eligible set. Tenants that follow one another
    /// are mostly bound alike.
    last: Vec<Option<(ConstraintSet, u32)>>,
    known: BTreeMap<(usize, ConstraintSet), u32>,
}

// === impl Side ===

impl<'a> Side<'a> {
    fn of(policy: &'a ResolvedPolicy, interned: &mut Interned<'a>) -> Self {
        Self {
            policy,
            judgements: Judgements::of(policy, &Selection::default()),
            bindings: Bindings::of(policy),
            rules: policy
                .rules
                .iter()
                .map(|rule| interned.name(&rule.name))
                .collect(),
            last: vec![None; policy.services.len()],
            known: BTreeMap::new(),
        }
    }

    /// `None`: the policy has no such tenant or no such service.
    fn access(
        &mut self,
        tenant: Option<usize>,
        service: Option<usize>,
        interned: &mut Interned<'a>,
    ) -> Option<Access> {
        let (tenant, service) = (tenant?, service?);
        let judgement = self.judgements.get(tenant, service);
        let (reason, eligible) = self.answer(judgement.decided_by, tenant, service, interned);
        let shadow = judgement.shadowed_by;
        let shadow_reason = match shadow {
            Some(_) => self.answer(shadow, tenant, service, interned).0 as u32,
            None => NONE,
        };
        let number = |rule: Option<usize>| rule.map_or(NONE, |rule| self.rules[rule]);
        let answer = Answer {
            reason: reason as u32,
            rule: number(judgement.decided_by),
            shadow_rule: number(shadow),
            shadow_reason,
        };
        Some(Access { answer, eligible })
    }

    /// What a rule answers when all back ends are healthy.
    fn answer(
        &mut self,
        rule: Option<usize>,
        tenant: usize,
        service: usize,
        interned: &mut Interned<'a>,
    ) -> (Reason, u32) {
        match rule.map(|rule| self.policy.rules[rule].action) {
            None => (Reason::NoRule, EMPTY),
            Some(Action::Deny) => (Reason::RuleDeny, EMPTY),
            Some(Action::Allow) => match self.eligible(tenant, service, interned) {
                EMPTY => (Reason::NoCompliantBackend, EMPTY),
                set => (Reason::Allowed, set),
            },
        }
    }

    fn eligible(&mut self, tenant: usize, service: usize, interned: &mut Interned<'a>) -> u32 {
        let constraints = self.bindings.get(tenant, service);
        if let Some((last, set)) = self.last[service]
            && last == constraints
        {
            return set;
        }
        let set = match self.known.get(&(service, constraints)) {
            Some(set) => *set,
            None => {
                let set = interned_set(self.policy, service, constraints, interned);
                self.known.insert((service, constraints), set);
                set
            }
        };
        self.last[service] = Some((constraints, set));
        set
    }
}

fn interned_set<'a>(
    policy: &'a ResolvedPolicy,
    service: usize,
    constraints: ConstraintSet,
    interned: &mut Interned<'a>,
) -> u32 {
    let service = &policy.services[service];
    let mut set = Eligible::new();
    for (pool, backend) in compliant_backends(policy, service, constraints) {
        let pool = &policy.pools[pool];
        let backend = &pool.backends[backend];
        // Nothing translates between IPv4 and IPv6.
        if !service
            .addresses
            .iter()
            .any(|address| service.forward.reaches(*address, backend.address))
        {
            continue;
        }
        let (pool, backend) = (interned.name(&pool.name), interned.name(&backend.name));
        match set.last_mut() {
            Some((last, backends)) if *last == pool => backends.push(backend),
            _ => set.push((pool, vec![backend])),
        }
    }
    interned.set(set)
}

/// Pairs that change alike.
#[derive(Default)]
struct Group {
    count: u64,
    /// Tenants by the services that they change on; both by place in the joined lists.
    blocks: BTreeMap<Vec<u32>, Vec<u32>>,
}

/// Groups by what changes.
struct Groups<K> {
    numbers: BTreeMap<K, usize>,
    groups: Vec<Group>,
    /// The last one that was asked for.
    last: Option<(K, usize)>,
    /// Of the tenant at hand: services by group.
    open: BTreeMap<usize, Vec<u32>>,
}

// === impl Groups ===

impl<K: Ord + Clone> Groups<K> {
    fn new() -> Self {
        Self {
            numbers: BTreeMap::new(),
            groups: Vec::new(),
            last: None,
            open: BTreeMap::new(),
        }
    }

    fn add(&mut self, key: K, service: u32) {
        let number = match &self.last {
            Some((last, number)) if *last == key => *number,
            _ => {
                let groups = &mut self.groups;
                let number = *self.numbers.entry(key.clone()).or_insert_with(|| {
                    groups.push(Group::default());
                    groups.len() - 1
                });
                self.last = Some((key, number));
                number
            }
        };
        self.groups[number].count += 1;
        self.open.entry(number).or_default().push(service);
    }

    /// Ends a tenant.
    fn close(&mut self, tenant: u32) {
        for (number, services) in std::mem::take(&mut self.open) {
            self.groups[number]
                .blocks
                .entry(services)
                .or_default()
                .push(tenant);
        }
    }

    /// What changes, and for whom, the largest groups first.
    fn finish(self) -> Vec<(K, Group)> {
        let Self { numbers, groups, .. } = self;
        let mut groups: Vec<Option<Group>> = groups.into_iter().map(Some).collect();
        let mut found: Vec<(K, Group)> = numbers
            .into_iter()
            .filter_map(|(key, number)| Some((key, groups[number].take()?)))
            .collect();
        found.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        found
    }
}

/// What changes in where a pair is sent, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Delta {
    added: Vec<u32>,
    removed: Vec<u32>,
    moved: Vec<u32>,
    primary: Option<(Option<u32>, Option<u32>)>,
    failover: Option<(Vec<u32>, Vec<u32>)>,
}

// === impl Delta ===

impl Delta {
    fn of(from: &Eligible, to: &Eligible) -> Self {
        let pools = |set: &Eligible| set.iter().map(|(pool, _)| *pool).collect::<Vec<u32>>();
        let members = |set: &Eligible| -> BTreeMap<u32, u32> {
            let all = set
                .iter()
                .flat_map(|(pool, backends)| backends.iter().map(|backend| (*backend, *pool)));
            all.collect()
        };
        let (old_pools, new_pools) = (pools(from), pools(to));
        let (old, new) = (members(from), members(to));
        let only = |one: &BTreeMap<u32, u32>, other: &BTreeMap<u32, u32>| {
            one.keys()
                .filter(|backend| !other.contains_key(backend))
                .copied()
                .collect::<Vec<u32>>()
        };
        let moved = old
            .iter()
            .filter(|(backend, pool)| new.get(backend).is_some_and(|now| now != *pool));
        let (old_first, new_first) = (old_pools.first().copied(), new_pools.first().copied());
        let rest = |pools: &[u32]| pools.get(1..).unwrap_or_default().to_vec();
        let (old_rest, new_rest) = (rest(&old_pools), rest(&new_pools));
        Self {
            added: only(&new, &old),
            removed: only(&old, &new),
            moved: moved.map(|(backend, _)| *backend).collect(),
            primary: (old_first != new_first).then_some((old_first, new_first)),
            failover: (old_rest != new_rest).then_some((old_rest, new_rest)),
        }
    }
}

/// Deltas by number. Different sets may differ alike, such as by one back end of a pool that many services share.
#[derive(Default)]
struct Deltas {
    /// By the numbers of the sets before and after.
    known: BTreeMap<(u32, u32), u32>,
    numbers: BTreeMap<Delta, u32>,
    deltas: Vec<Delta>,
}

// === impl Deltas ===

impl Deltas {
    fn number(&mut self, from: u32, to: u32, interned: &Interned<'_>) -> u32 {
        if let Some(known) = self.known.get(&(from, to)) {
            return *known;
        }
        let delta = Delta::of(&interned.sets[from as usize], &interned.sets[to as usize]);
        let deltas = &mut self.deltas;
        let number = *self.numbers.entry(delta).or_insert_with_key(|delta| {
            deltas.push(delta.clone());
            (deltas.len() - 1) as u32
        });
        self.known.insert((from, to), number);
        number
    }
}

/// Judges all pairs of both policies and compares.
pub(super) fn compare(from: &ResolvedPolicy, to: &ResolvedPolicy, room: &mut Room) -> Pairs {
    let mut interned = Interned::default();
    interned.set(Eligible::new()); // `EMPTY`
    let (mut old, mut new) = (Side::of(from, &mut interned), Side::of(to, &mut interned));
    let tenants = join(&from.tenants, &to.tenants, |tenant| &tenant.name);
    let services = join(&from.services, &to.services, |service| &service.name);
    let mut counts = PairCounts::default();
    let mut decisions = Groups::new();
    let (mut deltas, mut sets) = (Deltas::default(), Groups::new());
    for (tenant, (_, old_tenant, new_tenant)) in tenants.iter().enumerate() {
        for (service, (_, old_service, new_service)) in services.iter().enumerate() {
            let before = old.access(*old_tenant, *old_service, &mut interned);
            let after = new.access(*new_tenant, *new_service, &mut interned);
            let Some(effect) = effect(before, after) else {
                continue;
            };
            match effect {
                Effect::Gains => counts.gained += 1,
                Effect::Loses => counts.lost += 1,
                Effect::Changes => counts.changed += 1,
            }
            let answer = |access: Option<Access>| access.map(|access| access.answer);
            if answer(before) != answer(after) {
                decisions.add((effect, answer(before), answer(after)), service as u32);
            }
            let set = |access: Option<Access>| access.map_or(EMPTY, |access| access.eligible);
            if set(before) != set(after) {
                sets.add(deltas.number(set(before), set(after), &interned), service as u32);
            }
        }
        decisions.close(tenant as u32);
        sets.close(tenant as u32);
    }
    let names = Joined {
        tenants: tenants.iter().map(|(name, ..)| *name).collect(),
        services: services.iter().map(|(name, ..)| *name).collect(),
    };
    let decisions = decision_rows(decisions, &names, &interned, room);
    let backends = backend_rows(sets, &deltas, &names, &interned, room);
    Pairs {
        decisions,
        backends,
        counts,
    }
}

/// What the difference means for a pair; `None` if there is none. A pair that comes or goes refused is none: its tenant
/// or service is listed itself.
fn effect(before: Option<Access>, after: Option<Access>) -> Option<Effect> {
    let allowed =
        |access: Option<Access>| access.is_some_and(|access| access.answer.reason == Reason::Allowed as u32);
    match (allowed(before), allowed(after)) {
        (true, false) => Some(Effect::Loses),
        (false, true) => Some(Effect::Gains),
        (false, false) if before.is_none() || after.is_none() => None,
        _ => (before != after).then_some(Effect::Changes),
    }
}

/// Names by place in the joined lists.
struct Joined<'a> {
    tenants: Vec<&'a str>,
    services: Vec<&'a str>,
}

// === impl Joined ===

impl Joined<'_> {
    fn blocks(&self, group: &Group, room: &mut Room) -> Vec<Block> {
        let blocks = group.blocks.iter().map(|(services, tenants)| Block {
            tenants: room.names(tenants.iter().map(|tenant| self.tenants[*tenant as usize])),
            services: room.names(services.iter().map(|service| self.services[*service as usize])),
        });
        blocks.collect()
    }
}

fn decision_rows(
    groups: Groups<(Effect, Option<Answer>, Option<Answer>)>,
    names: &Joined<'_>,
    interned: &Interned<'_>,
    room: &mut Room,
) -> Vec<DecisionChange> {
    let decision = |answer: Answer| Decision {
        reason: reason_name(answer.reason),
        rule: interned.text(answer.rule),
        shadow_rule: interned.text(answer.shadow_rule),
        shadow_reason: (answer.shadow_rule != NONE).then(|| reason_name(answer.shadow_reason)),
    };
    let mut found = groups.finish();
    found.sort_by_key(|((effect, ..), _)| *effect);
    let found = room.rows(found);
    let rows = found
        .into_iter()
        .map(|((effect, from, to), group)| DecisionChange {
            effect,
            count: group.count,
            pairs: names.blocks(&group, room),
            from: from.map(decision),
            to: to.map(decision),
        });
    rows.collect()
}

fn backend_rows(
    groups: Groups<u32>,
    deltas: &Deltas,
    names: &Joined<'_>,
    interned: &Interned<'_>,
    room: &mut Room,
) -> Vec<BackendChange> {
    let found = room.rows(groups.finish());
    let texts = |numbers: &[u32]| {
        numbers
            .iter()
            .filter_map(|number| interned.text(*number))
            .collect::<Vec<String>>()
    };
    let rows = found.into_iter().map(|(number, group)| {
        let delta = &deltas.deltas[number as usize];
        let mut sorted = |numbers: &[u32]| {
            let names: BTreeSet<&str> = numbers
                .iter()
                .map(|number| interned.names[*number as usize])
                .collect();
            room.names(names.into_iter())
        };
        BackendChange {
            count: group.count,
            added: sorted(&delta.added),
            removed: sorted(&delta.removed),
            moved: sorted(&delta.moved),
            primary: delta.primary.map(|(from, to)| FromTo {
                from: from.and_then(|pool| interned.text(pool)),
                to: to.and_then(|pool| interned.text(pool)),
            }),
            failover: delta.failover.as_ref().map(|(from, to)| FromTo {
                from: texts(from),
                to: texts(to),
            }),
            pairs: names.blocks(&group, room),
        }
    });
    rows.collect()
}
