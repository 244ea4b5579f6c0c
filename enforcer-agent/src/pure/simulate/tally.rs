//! Counts what differs.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::abi::address::FlowKey;

use super::names::{Book, Made};
use super::report::{BackendRow, ChangeRow, Omitted, Totals};

/// Ways to differ that are kept apart; packets of further ones are only counted.
const MAX_KINDS: usize = 65_536;
/// 5-tuples that are remembered to tell connections apart; further ones count as none.
const MAX_CONNECTIONS: usize = 1 << 20;

/// How two decisions on one packet relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Another verdict.
    Changed,
    /// The same verdict, otherwise explained.
    Otherwise,
    /// The same.
    Same,
}

impl Class {
    pub(super) fn of(before: &Made, after: &Made) -> Self {
        if before.reason.effect() != after.reason.effect() {
            Self::Changed
        } else if before == after {
            Self::Same
        } else {
            Self::Otherwise
        }
    }
}

#[derive(Debug, Default)]
struct Row {
    packets: u64,
    connections: u64,
    limits_unknown: bool,
}

/// What was counted so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) totals: Totals,
    /// Indices into `rows`.
    kinds: BTreeMap<(Made, Made), u32>,
    rows: Vec<Row>,
    /// Packets that differ in a way beyond [`MAX_KINDS`].
    beyond: u64,
    /// By row, the 5-tuples that were counted.
    connections: BTreeSet<(u32, FlowKey)>,
    /// By back end: before, after.
    backends: BTreeMap<u32, [u64; 2]>,
}

// === impl Tally ===

impl Tally {
    /// Counts a decision. `client` is the 5-tuple of its connection as the client has it.
    pub(super) fn decision(
        &mut self,
        before: Made,
        after: Made,
        client: &FlowKey,
        limits_unknown: bool,
    ) -> Class {
        let class = Class::of(&before, &after);
        match class {
            Class::Changed => self.totals.changed += 1,
            Class::Otherwise => self.totals.same_verdict_otherwise += 1,
            Class::Same => {
                self.totals.unchanged += 1;
                return class;
            }
        }
        let Some(row) = self.row_of((before, after)) else {
            self.beyond += 1;
            return class;
        };
        let is_new = self.connections.len() < MAX_CONNECTIONS && self.connections.insert((row, *client));
        let row = &mut self.rows[row as usize];
        row.packets += 1;
        row.connections += u64::from(is_new);
        row.limits_unknown |= limits_unknown;
        class
    }

    fn row_of(&mut self, kind: (Made, Made)) -> Option<u32> {
        if let Some(row) = self.kinds.get(&kind) {
            return Some(*row);
        }
        if self.rows.len() >= MAX_KINDS {
            return None;
        }
        let row = self.rows.len() as u32;
        self.kinds.insert(kind, row);
        self.rows.push(Row::default());
        Some(row)
    }

    /// Counts new connections; zero is none.
    pub(super) fn new_connection(&mut self, before: u32, after: u32) {
        for (side, backend) in [before, after].into_iter().enumerate() {
            if backend != 0 {
                self.backends.entry(backend).or_default()[side] += 1;
            }
        }
        self.totals.other_backend += u64::from(before != 0 && after != 0 && before != after);
    }

    /// Whether connections were too many to tell all of them apart.
    pub(super) fn lost_connections(&self) -> bool {
        self.connections.len() >= MAX_CONNECTIONS
    }

    /// The rows, with names.
    pub(super) fn changes(&self, book: &Book<'_>, limit: usize) -> (Vec<ChangeRow>, Omitted) {
        let mut kinds: Vec<(Class, &(Made, Made), &Row)> = self
            .kinds
            .iter()
            .map(|(kind, row)| (Class::of(&kind.0, &kind.1), kind, &self.rows[*row as usize]))
            .collect();
        kinds.sort_by_key(|(class, kind, row)| (*class, std::cmp::Reverse(row.packets), *kind));
        let rest = kinds.get(limit..).unwrap_or_default();
        let omitted = Omitted {
            rows: rest.len() as u64 + u64::from(self.beyond > 0),
            packets: rest.iter().map(|(_, _, row)| row.packets).sum::<u64>() + self.beyond,
        };
        let rows = kinds
            .iter()
            .take(limit)
            .map(|(_, (before, after), row)| ChangeRow {
                before: book.finding(before),
                after: book.finding(after),
                packets: row.packets,
                connections: row.connections,
                limits_unknown: row.limits_unknown,
            });
        (rows.collect(), omitted)
    }

    pub(super) fn backends(&self, book: &Book<'_>) -> Vec<BackendRow> {
        let named = self.backends.iter().map(|(backend, [before, after])| BackendRow {
            name: book.backend(*backend).unwrap_or_default(),
            before: *before,
            after: *after,
        });
        let mut rows: Vec<BackendRow> = named.collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        rows
    }
}
