//! From what a bank holds and what it should hold to the writes that lead there.

use enforcer_common::abi::config::{
    BackendRecord, PairRecord, ServiceRecord, SetRecord, TenantRecord, TrieNode,
};
use enforcer_common::schema::{MAGLEV_BLOCKS, MAX_BACKENDS, MAX_SERVICES, MAX_TENANTS};

use super::tables::{Tables, Write, maglev_index, pair_index};

/// The writes that bring a bank from `observed` (nothing known of it: `None`) to `desired`.
///
/// What the bank held and no longer should is overwritten with zeroes: a stale record must not be found by a slot that
/// is given out again, nor by a flow or reply entry that outlived its tenant, service or back end. Those name slots
/// directly, so where nothing is known these tables are cleared up to their capacity. Trie nodes, rows and sets are only
/// reached from other records of the bank: beyond the ones that are known they count as unknown, not as zero.
#[must_use]
pub fn plan(observed: Option<&Tables>, desired: &Tables) -> Vec<Write> {
    let nothing = Tables::default();
    let held = observed.unwrap_or(&nothing);
    let fresh = observed.is_none();
    let up_to = |capacity: u32| if fresh { capacity as usize } else { 0 };
    let mut writes = Vec::new();
    differences(&held.trie, &desired.trie, &TrieNode::ZERO, 0, |index, node| {
        writes.push(Write::Trie(index, Box::new(*node)));
    });
    differences(
        &held.tenants,
        &desired.tenants,
        &TenantRecord::ZERO,
        up_to(MAX_TENANTS),
        |index, record| {
            writes.push(Write::Tenant(index, *record));
        },
    );
    differences(
        &held.services,
        &desired.services,
        &ServiceRecord::ZERO,
        up_to(MAX_SERVICES),
        |index, record| {
            writes.push(Write::Service(index, *record));
        },
    );
    let empty = Vec::new();
    for row in 0..held.rows.len().max(desired.rows.len()) {
        let (old, new) = (
            held.rows.get(row).unwrap_or(&empty),
            desired.rows.get(row).unwrap_or(&empty),
        );
        // A reply entry names a row's column directly.
        let width = if row < held.rows.len() {
            0
        } else {
            MAX_SERVICES as usize
        };
        differences(old, new, &PairRecord::ZERO, width, |service, record| {
            writes.push(Write::Pair(pair_index(row as u32, service), *record));
        });
    }
    differences(&held.sets, &desired.sets, &SetRecord::ZERO, 0, |index, record| {
        writes.push(Write::Set(index, *record));
    });
    maglev(held, desired, fresh, &mut writes);
    differences(
        &held.backends,
        &desired.backends,
        &BackendRecord::ZERO,
        up_to(MAX_BACKENDS),
        |index, record| {
            writes.push(Write::Backend(index, *record));
        },
    );
    writes
}

/// The writes for a change that may be made in the live bank, or `None` if `new` needs a generation of its own.
///
/// Weights move single Maglev slots and a next hop is one record of a back end: neither changes what anyone is
/// allowed, nor whom a flow that is open belongs to, so a packet may see some of the new slots and some of the old.
#[must_use]
pub fn in_place(old: &Tables, new: &Tables) -> Option<Vec<Write>> {
    let same_decisions = old.trie == new.trie
        && old.tenants == new.tenants
        && old.services == new.services
        && old.rows == new.rows
        && old.sets == new.sets
        && old.maglev.len() == new.maglev.len()
        && old.backends.len() == new.backends.len();
    let same_targets = old
        .backends
        .iter()
        .zip(&new.backends)
        .all(|(old, new)| old.address == new.address && old.port_be == new.port_be);
    (same_decisions && same_targets).then(|| plan(Some(old), new))
}

fn maglev(held: &Tables, desired: &Tables, fresh: bool, writes: &mut Vec<Write>) {
    for set in 0..held.maglev.len().max(desired.maglev.len()) {
        for block in 0..MAGLEV_BLOCKS {
            let new = desired.maglev_block(set, block);
            let unchanged = !fresh && set < held.maglev.len() && held.maglev_block(set, block) == new;
            // An unused bank holds zeroes, and zero is a back-end slot: empty blocks are written too.
            if !unchanged {
                writes.push(Write::Maglev(maglev_index(set as u32, block), new));
            }
        }
    }
}

/// Records that differ, and those beyond `held`, of which nothing is known. From the end of `desired` to that of `held`,
/// and at least to `clear_to`, zeroes.
fn differences<T: PartialEq>(
    held: &[T],
    desired: &[T],
    zero: &T,
    clear_to: usize,
    mut write: impl FnMut(u32, &T),
) {
    for index in 0..desired.len().max(held.len()).max(clear_to) {
        let record = desired.get(index).unwrap_or(zero);
        if held.get(index) != Some(record) {
            write(index as u32, record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enforcer_common::schema::MAGLEV_SLOTS;

    fn tables() -> Tables {
        let mut node = TrieNode::ZERO;
        node.entries[10] = 7;
        Tables {
            trie: vec![node, TrieNode::ZERO],
            tenants: vec![
                TenantRecord::ZERO,
                TenantRecord {
                    row: 1,
                    flags: 1,
                    ..TenantRecord::ZERO
                },
            ],
            services: vec![ServiceRecord { forward: 1, flags: 1 }],
            rows: vec![
                vec![PairRecord {
                    reason: 4,
                    ..PairRecord::ZERO
                }],
                vec![PairRecord::ZERO],
            ],
            sets: vec![SetRecord { members: [3; 16] }],
            maglev: vec![(0..MAGLEV_SLOTS).map(|slot| (slot % 2) as u16).collect()],
            backends: vec![
                BackendRecord {
                    flags: 1,
                    ..BackendRecord::ZERO
                };
                2
            ],
        }
    }

    /// Applies writes to a bank as the kernel maps would hold it: zeroes, or what an earlier use left.
    fn apply(bank: &mut std::collections::BTreeMap<(u8, u32), Write>, writes: Vec<Write>) {
        for write in writes {
            let key = match &write {
                Write::Trie(index, _) => (0, *index),
                Write::Tenant(index, _) => (1, *index),
                Write::Service(index, _) => (2, *index),
                Write::Pair(index, _) => (3, *index),
                Write::Set(index, _) => (4, *index),
                Write::Maglev(index, _) => (5, *index),
                Write::Backend(index, _) => (6, *index),
            };
            bank.insert(key, write);
        }
    }

    #[test]
    fn nothing_to_do_for_the_same_tables() {
        assert_eq!(plan(Some(&tables()), &tables()), vec![]);
    }

    #[test]
    fn a_bank_of_which_nothing_is_known_is_written_whole() {
        let mut bank = std::collections::BTreeMap::new();
        apply(&mut bank, plan(None, &tables()));
        let rows = 2 * MAX_SERVICES as usize;
        let expected = 2 + MAX_TENANTS as usize + MAX_SERVICES as usize + rows + 1;
        let expected = expected + MAGLEV_BLOCKS as usize + MAX_BACKENDS as usize;
        assert_eq!(bank.len(), expected);
    }

    /// A reply entry that outlived its tenant or its service names their slots.
    #[test]
    fn nothing_stale_is_left_where_nothing_was_known() {
        let mut bank = std::collections::BTreeMap::new();
        let mut larger = tables();
        larger.tenants.push(larger.tenants[1]);
        larger.rows.push(vec![larger.rows[0][0]; 2]);
        let pair = larger.rows[0][0];
        larger.rows[0].push(pair);
        larger.sets.push(larger.sets[0]);
        apply(&mut bank, plan(None, &larger));
        apply(&mut bank, plan(None, &tables()));
        assert_eq!(bank[&(1, 2)], Write::Tenant(2, TenantRecord::ZERO));
        assert_eq!(bank[&(3, 1)], Write::Pair(1, PairRecord::ZERO));
        let mut again = tables();
        again.rows.push(vec![PairRecord::ZERO; 2]);
        again.sets.push(SetRecord::ZERO);
        apply(&mut bank, plan(Some(&tables()), &again));
        let stale = pair_index(2, 1);
        assert_eq!(bank[&(3, stale)], Write::Pair(stale, PairRecord::ZERO));
        assert_eq!(bank[&(4, 1)], Write::Set(1, SetRecord::ZERO));
    }

    #[test]
    fn what_is_gone_is_zeroed() {
        let mut smaller = tables();
        smaller.tenants.truncate(1);
        smaller.rows.truncate(1);
        let writes = plan(Some(&tables()), &smaller);
        assert_eq!(writes, vec![Write::Tenant(1, TenantRecord::ZERO)]);
    }

    #[test]
    fn a_weight_change_is_made_in_place_and_a_limit_is_not() {
        let mut heavier = tables();
        heavier.maglev[0][40] = 1;
        let writes = in_place(&tables(), &heavier).expect("only a weight changed");
        assert_eq!(writes, vec![Write::Maglev(1, heavier.maglev_block(0, 1))]);
        let mut limited = tables();
        limited.tenants[1].concurrent_limit = 5;
        assert_eq!(in_place(&tables(), &limited), None);
        let mut moved = tables();
        moved.backends[0].port_be = 1;
        assert_eq!(
            in_place(&tables(), &moved),
            None,
            "another address needs a generation: flows are judged anew"
        );
    }
}
