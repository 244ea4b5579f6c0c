//! Where the items of a text's lists stand, and which of them another text changes.

use std::ops::Range;

use super::super::source::{Place, line_starts};
use super::super::yaml::{Content, NodeId, Tree};
use super::frame::{Behind, Frame};

/// Most bytes of items that are read alone: where more has changed, most of the text may have.
const MAX_PART_BYTES: usize = 256 * 1024;

/// Where the items of the lists in a document's `spec` stand.
#[derive(Debug, Clone)]
pub(in super::super) struct Outline {
    /// `spec`.
    key: Key,
    lists: Vec<Items>,
    /// At least as many as the text has: those that were replaced are still counted.
    pub(super) nodes: usize,
}

/// A list of the `spec`.
#[derive(Debug, Clone)]
struct Items {
    name: String,
    key: Key,
    /// The line of each item.
    lines: Vec<u32>,
    /// The key that follows, of the `spec` or of the document.
    next: Option<Key>,
}

/// Where the key of a mapping stands.
#[derive(Debug, Clone, Copy)]
struct Key {
    line: u32,
    /// From 0.
    indent: u32,
}

/// What has to be read anew.
pub(super) struct Edit<'t> {
    list: usize,
    pub(super) list_name: String,
    /// Numbers of the items that are replaced.
    pub(super) items: Range<usize>,
    /// The new items.
    pub(super) part: &'t str,
    /// What is around them.
    pub(super) frame: Frame,
    /// The line on which stood what follows them.
    pub(super) end_line: u32,
    /// How many lines further down it stands now.
    pub(super) lines: i64,
}

/// A text with an index of its lines.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

// === impl Outline ===

impl Outline {
    /// Of a text in which items can be read alone.
    pub(in super::super) fn of(tree: &Tree<'_>, text: &str) -> Option<Self> {
        let ([document], 1, 0) = (tree.documents.as_slice(), tree.beginnings, tree.aliases) else {
            return None;
        };
        let has_directive = text.starts_with('%') || text.contains("\n%");
        if has_directive || has_lone_return(text) {
            return None;
        }
        let fields = tree.pairs(*document)?;
        let spec = fields
            .iter()
            .position(|(key, _)| tree.text(*key) == Some("spec"))?;
        let key_of = |pair: &(NodeId, NodeId)| Key::at(tree.get(pair.0).1);
        let behind = fields.get(spec + 1).map(key_of);
        let parts = tree.pairs(fields[spec].1)?;
        let lists = parts.iter().enumerate().filter_map(|(number, part)| {
            let (Content::Sequence(items), _) = tree.get(part.1) else {
                return None;
            };
            Some(Items {
                name: tree.text(part.0)?.to_owned(),
                key: key_of(part),
                lines: items.iter().map(|item| tree.get(*item).1.line()).collect(),
                next: parts.get(number + 1).map(key_of).or(behind),
            })
        });
        Some(Self {
            key: key_of(&fields[spec]),
            lists: lists.collect(),
            nodes: tree.len(),
        })
    }

    /// What has to be read anew of another text; `None` if that cannot be read alone.
    pub(super) fn edit<'t>(&self, old: &str, new: &'t str) -> Option<Edit<'t>> {
        let (changed, new_end) = changed_lines(old, new);
        let old = Lines {
            text: old,
            starts: line_starts(old),
        };
        let mut lists = self.lists.iter().enumerate();
        let (list, items) = lists.find(|(_, items)| items.hold(&old, &changed))?;
        let indent = items.indent(&old)?;
        let first = items.first_touched(&old, indent, changed.start, new)?;
        // The first item of all is never left behind others: the place of the list is where it stands.
        let last = items.number_before(&old, changed.end).max(first).max(1);
        let start = old.offset(*items.lines.get(first)?)?;
        let (end, behind) = match (items.lines.get(last), items.next) {
            (Some(line), _) => {
                is_item(old.from(*line)?, indent).then_some(())?;
                (old.offset(*line)?, Behind::Item)
            }
            (None, Some(next)) => (old.offset(next.line)?, Behind::Key(next.checked(&old)?.indent)),
            (None, None) => (old.text.len(), Behind::Nothing),
        };
        let part = new.get(start..new_end + (end - changed.end))?;
        if part.len() > MAX_PART_BYTES || has_lone_return(part) {
            return None;
        }
        let frame = Frame {
            outer: self.key.checked(&old)?.indent,
            inner: items.key.checked(&old)?.indent,
            items: indent,
            is_first: first == 0,
            line: items.lines[first],
            behind,
        };
        Some(Edit {
            list,
            list_name: items.name.clone(),
            items: first..last,
            frame,
            end_line: items.lines[first] + u32::try_from(breaks(&old.text[start..end])).ok()?,
            lines: breaks(part) as i64 - breaks(&old.text[start..end]) as i64,
            part,
        })
    }

    /// Becomes that of the text after an edit. `lines` are those of the new items, `nodes` how many these have.
    pub(super) fn follow(&mut self, edit: &Edit<'_>, lines: &[u32], nodes: usize) {
        let moved = |line: &mut u32| {
            if *line >= edit.end_line {
                // Lines of a text of bounded size: neither end is near.
                *line = (i64::from(*line) + edit.lines) as u32;
            }
        };
        moved(&mut self.key.line);
        for items in &mut self.lists {
            moved(&mut items.key.line);
            items.lines.iter_mut().for_each(moved);
            if let Some(next) = &mut items.next {
                moved(&mut next.line);
            }
        }
        let replaced = &mut self.lists[edit.list].lines;
        replaced.splice(edit.items.clone(), lines.iter().copied());
        self.nodes += nodes;
    }
}

// === impl Items ===

impl Items {
    /// Whether a part of the text lies within the list.
    fn hold(&self, text: &Lines<'_>, part: &Range<usize>) -> bool {
        let first = self.lines.first().and_then(|line| text.offset(*line));
        let end = match self.next {
            Some(next) => text.offset(next.line),
            None => Some(text.text.len()),
        };
        first
            .zip(end)
            .is_some_and(|(first, end)| first <= part.start && part.end <= end)
    }

    /// The column, from 0, of the `- ` in front of each item. (A list that is indented as its key is has no place of its
    /// own.)
    fn indent(&self, text: &Lines<'_>) -> Option<u32> {
        let line = text.from(*self.lines.first()?)?;
        u32::try_from(line.bytes().take_while(|byte| *byte == b' ').count()).ok()
    }

    /// How many items begin before a byte.
    fn number_before(&self, text: &Lines<'_>, at: usize) -> usize {
        self.lines
            .partition_point(|line| text.offset(*line).is_some_and(|start| start < at))
    }

    /// The item in which a change begins. What stands in front of an item, such as a remark, belongs to the one before.
    fn first_touched(&self, old: &Lines<'_>, indent: u32, at: usize, new: &str) -> Option<usize> {
        let number = self.number_before(old, at + 1).checked_sub(1)?;
        if is_item(new.get(old.offset(self.lines[number])?..)?, indent) {
            return Some(number);
        }
        let before = number.checked_sub(1)?;
        is_item(old.from(self.lines[before])?, indent).then_some(before)
    }
}

// === impl Key ===

impl Key {
    const fn at(place: Place) -> Self {
        Self {
            line: place.line(),
            indent: place.column().saturating_sub(1),
        }
    }

    /// The key, if it is the first on its line.
    fn checked(self, text: &Lines<'_>) -> Option<Self> {
        let line = text.from(self.line)?;
        let indent = line.get(..self.indent as usize)?;
        indent.bytes().all(|byte| byte == b' ').then_some(self)
    }
}

// === impl Edit ===

impl Edit<'_> {
    /// The lines on which the new items stand, if each has one of its own.
    pub(super) fn lines_of(&self, tree: &Tree<'_>, nodes: &[NodeId]) -> Option<Vec<u32>> {
        let starts = line_starts(self.part);
        let line_of = |node: &NodeId| {
            let line = tree.get(*node).1.line();
            let start = *starts.get(line.checked_sub(self.frame.line)? as usize)?;
            is_item(&self.part[start..], self.frame.items).then_some(line)
        };
        nodes.iter().map(line_of).collect()
    }
}

// === impl Lines ===

impl<'t> Lines<'t> {
    fn offset(&self, line: u32) -> Option<usize> {
        self.starts.get(line.checked_sub(1)? as usize).copied()
    }

    /// The text from a line on.
    fn from(&self, line: u32) -> Option<&'t str> {
        self.text.get(self.offset(line)?..)
    }
}

/// Whether a line begins with the `- ` of an item.
fn is_item(line: &str, indent: u32) -> bool {
    line.split_at_checked(indent as usize)
        .is_some_and(|(blanks, item)| blanks.bytes().all(|byte| byte == b' ') && item.starts_with("- "))
}

/// Whether a line may end where no line feed is.
fn has_lone_return(text: &str) -> bool {
    let mut returns = text.match_indices('\r');
    returns.any(|(at, _)| text.as_bytes().get(at + 1) != Some(&b'\n'))
}

pub(super) fn breaks(text: &str) -> usize {
    text.matches('\n').count()
}

/// The lines in which two texts differ: where they are in the old one, and where they end in the new one.
fn changed_lines(old: &str, new: &str) -> (Range<usize>, usize) {
    let (old, new) = (old.as_bytes(), new.as_bytes());
    let same = common_prefix(old, new);
    let start = old[..same]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let (old_rest, new_rest) = (&old[start..], &new[start..]);
    let mut same = common_suffix(old_rest, new_rest);
    let begins_line = |rest: &[u8], same: usize| match rest.len() - same {
        0 => true,
        at => rest[at - 1] == b'\n',
    };
    if !(begins_line(old_rest, same) && begins_line(new_rest, same)) {
        let tail = &old_rest[old_rest.len() - same..];
        same = tail
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |at| same - at - 1);
    }
    (start..old.len() - same, new.len() - same)
}

/// Bytes that are compared at once.
const CHUNK: usize = 4096;

fn common_prefix(old: &[u8], new: &[u8]) -> usize {
    let chunks = old.chunks(CHUNK).zip(new.chunks(CHUNK));
    let same = CHUNK * chunks.take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[same.min(old.len())..], &new[same.min(new.len())..]);
    same.min(same + old.len()) + old.iter().zip(new).take_while(|(old, new)| old == new).count()
}

fn common_suffix(old: &[u8], new: &[u8]) -> usize {
    let chunks = old.rchunks(CHUNK).zip(new.rchunks(CHUNK));
    let same = CHUNK * chunks.take_while(|(old, new)| old == new).count();
    let (old, new) = (
        &old[..old.len().saturating_sub(same)],
        &new[..new.len().saturating_sub(same)],
    );
    let rest = old.iter().rev().zip(new.iter().rev());
    same + rest.take_while(|(old, new)| old == new).count()
}
