//! From what a bank holds and what it should hold to the writes that lead there.

use std::sync::Arc;

use enforcer_common::abi::config::{
    BackendRecord, DecisionBlock, DecisionRecord, LimitRecord, LimitsRecord, RowRecord, ServiceRecord,
    SetRecord, TENANT_FAIR_SHARE, TenantRecord, TrieNode,
};

use super::tables::{EMPTY_MAGLEV, Table, Tables, Write};

/// The writes that bring a bank from `observed` (nothing known of it: `None`) to `desired`.
///
/// What the bank held and no longer should is overwritten with zeroes (a Maglev table with an empty one): a stale record
/// must not be found by a slot that is given out again. Where nothing is known, records beyond the desired ones stay:
/// the compiler fills those tables to the end whose slots flows and replies can name, and the others are only reached
/// from other records of the bank.
#[must_use]
pub fn plan(observed: Option<&Tables>, desired: &Tables) -> Vec<Write> {
    let Tables {
        trie,
        tenants,
        services,
        rows,
        blocks,
        decisions,
        limits,
        sets,
        maglev,
        backends,
    } = desired;
    let mut writes = Writes(Vec::new());
    let held = observed;
    writes.differences(held.map(|held| &held.trie), trie, &TrieNode::ZERO, |at, node| {
        Write::Trie(at, Box::new(*node))
    });
    writes.differences(
        held.map(|held| &held.tenants),
        tenants,
        &TenantRecord::ZERO,
        |at, record| Write::Tenant(at, *record),
    );
    writes.differences(
        held.map(|held| &held.services),
        services,
        &ServiceRecord::ZERO,
        |at, record| Write::Service(at, *record),
    );
    writes.differences(held.map(|held| &held.rows), rows, &RowRecord::ZERO, |at, row| {
        Write::Row(at, *row)
    });
    writes.differences(
        held.map(|held| &held.blocks),
        blocks,
        &DecisionBlock::ZERO,
        |at, block| Write::Block(at, Box::new(*block)),
    );
    writes.differences(
        held.map(|held| &held.decisions),
        decisions,
        &DecisionRecord::ZERO,
        |at, record| Write::Decision(at, *record),
    );
    writes.differences(
        held.map(|held| &held.limits),
        limits,
        &LimitsRecord::ZERO,
        |at, record| Write::Limits(at, *record),
    );
    writes.differences(held.map(|held| &held.sets), sets, &SetRecord::ZERO, |at, set| {
        Write::Set(at, Box::new(*set))
    });
    let empty = Arc::new(EMPTY_MAGLEV);
    writes.differences(held.map(|held| &held.maglev), maglev, &empty, |at, table| {
        Write::Maglev(at, Arc::clone(table))
    });
    writes.differences(
        held.map(|held| &held.backends),
        backends,
        &BackendRecord::ZERO,
        |at, record| Write::Backend(at, *record),
    );
    writes.0
}

/// The writes for a change that may be made in the live bank, or `None` if `new` needs a generation of its own.
///
/// Weights move single Maglev slots, a next hop is one record of a back end, and a tenant's share of a contended pool is the
/// step and burst of one limiter: none changes what anyone is allowed, nor whom a flow that is open belongs to, so a
/// packet may see some of the new values and some of the old. One that reads a new step beside an old burst is admitted or
/// refused as one a moment earlier or later would be: each is a word of its own, and what is admitted is paid for by
/// either step.
#[must_use]
pub fn in_place(old: &Tables, new: &Tables) -> Option<Vec<Write>> {
    let same_decisions = old.trie == new.trie
        && differ_in_shares_only(&old.tenants, &new.tenants)
        && old.services == new.services
        && old.rows == new.rows
        && old.blocks == new.blocks
        && old.decisions == new.decisions
        && old.limits == new.limits
        && old.sets == new.sets
        && old.maglev.len() == new.maglev.len()
        && old.backends.len() == new.backends.len();
    let same_targets = || {
        let pairs = old.backends.iter().zip(new.backends.iter());
        old.backends.is_same(&new.backends)
            || pairs
                .into_iter()
                .all(|(old, new)| old.address == new.address && old.port_be == new.port_be)
    };
    (same_decisions && same_targets()).then(|| plan(Some(old), new))
}

/// Whether tenants differ in nothing but the share of new connections that they are held to.
fn differ_in_shares_only(old: &Table<TenantRecord>, new: &Table<TenantRecord>) -> bool {
    let without_share = |record: &TenantRecord| TenantRecord {
        flags: record.flags & !TENANT_FAIR_SHARE,
        limits: LimitsRecord {
            connections: LimitRecord::ZERO,
            ..record.limits
        },
        ..*record
    };
    let is_held = |record: &TenantRecord| record.flags & TENANT_FAIR_SHARE != 0;
    let is_share = |(old, new): (&TenantRecord, &TenantRecord)| {
        old == new || ((is_held(old) || is_held(new)) && without_share(old) == without_share(new))
    };
    old.is_same(new) || (old.len() == new.len() && old.iter().zip(new.iter()).all(is_share))
}

struct Writes(Vec<Write>);

// === impl Writes ===

impl Writes {
    /// Adds what leads from one table to another. A table of which nothing is known is written whole.
    fn differences<T: PartialEq>(
        &mut self,
        held: Option<&Table<T>>,
        desired: &Table<T>,
        empty: &T,
        write: impl Fn(u32, &T) -> Write,
    ) {
        let all = desired.iter().zip(0..);
        let Some(held) = held else {
            self.0.extend(all.map(|(record, index)| write(index, record)));
            return;
        };
        if held.is_same(desired) {
            return;
        }
        // Beyond what is held nothing is known: an unknown bank was written only as far as its tables went.
        let changed = all.filter(|(record, index)| held.get(*index as usize) != Some(*record));
        self.0.extend(changed.map(|(record, index)| write(index, record)));
        let gone = held.iter().zip(0..).skip(desired.len());
        let gone = gone.filter(|(record, _)| *record != empty);
        self.0.extend(gone.map(|(_, index)| write(index, empty)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use enforcer_common::abi::config::{DecisionCell, MaglevTable, SET_WORDS};

    fn tables() -> Tables {
        let mut node = TrieNode::ZERO;
        node.entries[10] = 7;
        let mut block = DecisionBlock::ZERO;
        block.cells[0] = DecisionCell { decision: 1, set: 0 };
        let mut row = RowRecord::ZERO;
        row.blocks[0] = 1;
        let mut maglev = EMPTY_MAGLEV;
        for (slot, backend) in maglev.slots.iter_mut().enumerate() {
            *backend = (slot % 2) as u16;
        }
        Tables {
            trie: vec![node, TrieNode::ZERO].into(),
            tenants: vec![
                TenantRecord::ZERO,
                TenantRecord {
                    row: 1,
                    flags: 1,
                    ..TenantRecord::ZERO
                },
            ]
            .into(),
            services: vec![ServiceRecord {
                forward: 1,
                flags: 1,
                ..ServiceRecord::ZERO
            }]
            .into(),
            rows: vec![RowRecord::ZERO, row].into(),
            blocks: vec![DecisionBlock::ZERO, block].into(),
            decisions: vec![
                DecisionRecord {
                    reason: 5,
                    ..DecisionRecord::ZERO
                };
                2
            ]
            .into(),
            limits: vec![
                LimitsRecord::ZERO,
                LimitsRecord {
                    concurrent_limit: 7,
                    ..LimitsRecord::ZERO
                },
            ]
            .into(),
            sets: vec![SetRecord {
                members: [3; SET_WORDS],
                shed_classes: 0,
            }]
            .into(),
            maglev: vec![Arc::new(maglev)].into(),
            backends: vec![
                BackendRecord {
                    flags: 1,
                    ..BackendRecord::ZERO
                };
                2
            ]
            .into(),
        }
    }

    #[test]
    fn nothing_to_do_for_the_same_tables() {
        assert_eq!(plan(Some(&tables()), &tables()), vec![]);
    }

    #[test]
    fn a_bank_of_which_nothing_is_known_is_written_whole() {
        let places: std::collections::BTreeSet<_> = plan(None, &tables()).iter().map(Write::place).collect();
        assert_eq!(places.len(), 2 + 2 + 1 + 2 + 2 + 2 + 2 + 1 + 1 + 2);
    }

    /// A reply entry that outlived its tenant or its service names their slots: the compiler's tables have a record for
    /// every one, so that whatever an unknown bank holds there is overwritten.
    #[test]
    fn nothing_stale_is_left_where_nothing_was_known() {
        let mut larger = tables();
        let tenant = larger.tenants[1];
        larger.tenants.make_mut().push(tenant);
        let row = larger.rows[1];
        larger.rows.make_mut().push(row);
        let mut bank: BTreeMap<(&str, u32), Write> = BTreeMap::new();
        let mut apply =
            |writes: Vec<Write>| bank.extend(writes.into_iter().map(|write| (write.place(), write)));
        apply(plan(None, &larger));
        let mut whole = tables();
        whole.tenants.make_mut().resize(3, TenantRecord::ZERO);
        apply(plan(None, &whole));
        let mut again = whole.clone();
        again.rows.make_mut().push(RowRecord::ZERO);
        apply(plan(Some(&whole), &again));
        assert_eq!(bank[&("TENANTS", 2)], Write::Tenant(2, TenantRecord::ZERO));
        assert_eq!(bank[&("ROWS", 2)], Write::Row(2, RowRecord::ZERO));
    }

    /// The bank may hold an older, longer table than the one that is known of it.
    #[test]
    fn beyond_what_is_held_even_zeroes_are_written() {
        let mut longer = tables();
        longer.rows.make_mut().push(RowRecord::ZERO);
        let writes = plan(Some(&tables()), &longer);
        assert_eq!(writes, vec![Write::Row(2, RowRecord::ZERO)]);
    }

    #[test]
    fn what_is_gone_is_zeroed() {
        let mut smaller = tables();
        smaller.tenants.make_mut().truncate(1);
        smaller.trie.make_mut().truncate(1);
        smaller.maglev.make_mut().clear();
        let writes = plan(Some(&tables()), &smaller);
        let expected = vec![
            Write::Tenant(1, TenantRecord::ZERO),
            Write::Maglev(0, Arc::new(EMPTY_MAGLEV)),
        ];
        assert_eq!(writes, expected, "the second trie node held zeroes already");
    }

    #[test]
    fn a_weight_change_is_made_in_place_and_a_limit_is_not() {
        let mut heavier = tables();
        let mut slots = heavier.maglev[0].slots;
        slots[40] = 1;
        heavier.maglev.make_mut()[0] = Arc::new(MaglevTable { slots });
        let writes = in_place(&tables(), &heavier).expect("only a weight changed");
        assert_eq!(writes, vec![Write::Maglev(0, Arc::clone(&heavier.maglev[0]))]);
        let mut limited = tables();
        limited.tenants.make_mut()[1].limits.concurrent_limit = 5;
        assert_eq!(in_place(&tables(), &limited), None);
        let mut limited = tables();
        limited.limits.make_mut()[1].concurrent_limit = 5;
        assert_eq!(in_place(&tables(), &limited), None);
        let mut moved = tables();
        moved.backends.make_mut()[0].port_be = 1;
        assert_eq!(
            in_place(&tables(), &moved),
            None,
            "another address needs a generation: flows are judged anew"
        );
    }
}
