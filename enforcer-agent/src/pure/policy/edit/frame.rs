//! What is put around items so that they are parsed as in their text.

use super::super::source::Place;
use super::super::yaml::{Content, NodeId, Tree};
use super::outline::breaks;

/// Where items stand: columns from 0, lines from 1.
#[derive(Debug)]
pub(super) struct Frame {
    /// The column of `spec`.
    pub(super) outer: u32,
    /// The column of the list's key.
    pub(super) inner: u32,
    /// The column of the items' `- `.
    pub(super) items: u32,
    /// Whether no item stands in front.
    pub(super) is_first: bool,
    /// The line of the first item.
    pub(super) line: u32,
    pub(super) behind: Behind,
}

/// What follows the items.
#[derive(Debug, Clone, Copy)]
pub(super) enum Behind {
    Item,
    /// A key at this column.
    Key(u32),
    /// The end of the text.
    Nothing,
}

/// Stands for everything that the frame stands for.
const FILLER: &str = "x";

// === impl Frame ===

impl Frame {
    /// Items with the frame around them: two keys, an item if there is one in front, and what follows.
    pub(super) fn around(&self, part: &str) -> String {
        let mut text = String::with_capacity(part.len() + 128);
        let mut put = |indent: u32, line: &str| {
            text.extend(std::iter::repeat_n(' ', indent as usize));
            text.push_str(line);
        };
        put(self.outer, "x:\n");
        put(self.inner, "x:\n");
        if !self.is_first {
            put(self.items, "- x\n");
        }
        put(0, part);
        match self.behind {
            Behind::Item => put(self.items, "- x\n"),
            Behind::Key(indent) => put(indent, "x: x\n"),
            Behind::Nothing => {}
        }
        text
    }

    /// The line on which the frame begins, for the items to stand on their own.
    pub(super) const fn first_line(&self) -> u32 {
        let in_front = if self.is_first { 2 } else { 3 };
        self.line.saturating_sub(in_front)
    }

    /// The list that the items are in and the items, if every part of the frame came out where it was put, and nothing
    /// else beside them.
    pub(super) fn content<'t>(&self, tree: &'t Tree<'_>, part: &str) -> Option<(Place, &'t [NodeId])> {
        let ([document], 1, 0) = (tree.documents.as_slice(), tree.beginnings, tree.aliases) else {
            return None;
        };
        let behind = self.line + u32::try_from(breaks(part)).ok()?;
        let is_filler = |node: NodeId, line: u32, indent: u32| {
            let place = tree.get(node).1;
            tree.text(node) == Some(FILLER) && (place.line(), place.column()) == (line, indent + 1)
        };
        let fields = tree.pairs(*document)?;
        let parts = tree.pairs(fields.first()?.1)?;
        let (Content::Sequence(nodes), list) = tree.get(parts.first()?.1) else {
            return None;
        };
        let mut nodes = nodes.as_slice();
        if !self.is_first {
            let (first, rest) = nodes.split_first()?;
            is_filler(*first, self.line - 1, self.items + 2).then_some(())?;
            nodes = rest;
        }
        let key = match (fields, parts) {
            ([_], [_]) => None,
            ([_], [_, key]) | ([_, key], [_]) => Some(key.0),
            _ => return None,
        };
        let items = match (self.behind, key) {
            (Behind::Item, None) => {
                let (last, rest) = nodes.split_last()?;
                is_filler(*last, behind, self.items + 2).then_some(rest)
            }
            (Behind::Key(indent), Some(key)) => is_filler(key, behind, indent).then_some(nodes),
            (Behind::Nothing, None) => Some(nodes),
            _ => None,
        };
        Some((list, items?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_does_not_come_out_where_it_was_put_is_none() {
        for (is_first, behind) in [
            (true, Behind::Item),
            (false, Behind::Item),
            (false, Behind::Key(2)),
            (false, Behind::Key(0)),
        ] {
            let frame = Frame {
                outer: 0,
                inner: 2,
                items: 2,
                is_first,
                line: 8,
                behind,
            };
            let part = "  - one\n  - two\n";
            let framed = frame.around(part);
            let found = |text: &str, first_line: u32| {
                let tree = Tree::parse_part(0, text, first_line).expect("it is YAML");
                frame.content(&tree, part).map(|(_, items)| items.len())
            };
            assert_eq!(found(&framed, frame.first_line()), Some(2), "{framed}");
            assert_eq!(found(&framed, frame.first_line() + 1), None, "on other lines");
            let reached = framed.replace("two\n", "two\n\n");
            assert_eq!(found(&reached, frame.first_line()), None, "{reached}");
            let swallowed = framed.replace("  - two\n", "  - |\n    two\n    ");
            assert_eq!(found(&swallowed, frame.first_line()), None, "{swallowed}");
            let beside = format!("{framed}y: y\n");
            assert_eq!(found(&beside, frame.first_line()), None, "{beside}");
        }
    }
}
