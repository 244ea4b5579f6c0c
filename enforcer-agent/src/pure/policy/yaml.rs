//! YAML text to a tree of nodes with places.
//!
//! The tree keeps scalars as they were written, and an alias as a reference to what it stands for, so that a billion
//! laughs cost a billion visits and no memory; [`super::shape`] counts the visits. Everything else is counted here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span};

use super::bounds::{MAX_ALIASES, MAX_DEPTH, MAX_DOCUMENTS, MAX_YAML_NODES};
use super::source::Place;

/// A node of a [`Tree`], by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

/// What a node is.
#[derive(Debug)]
pub(super) enum Content<'t> {
    /// A single value. Whether it is null depends on its style as well: `""` is not.
    Scalar {
        text: Cow<'t, str>,
        is_null: bool,
    },
    Sequence(Vec<NodeId>),
    /// Keys and values, as they were written: keys may repeat, and may be anything.
    Mapping(Vec<(NodeId, NodeId)>),
    /// Stands for another node, which is no alias.
    Alias(NodeId),
}

#[derive(Debug)]
struct Node<'t> {
    content: Content<'t>,
    place: Place,
}

/// The documents of one text.
#[derive(Debug, Default)]
pub(super) struct Tree<'t> {
    nodes: Vec<Node<'t>>,
    /// The root of every document that is not empty.
    pub(super) documents: Vec<NodeId>,
    /// How many documents begin, empty ones among them.
    pub(super) beginnings: usize,
    pub(super) aliases: usize,
}

/// Why a text is no tree. It ends the reading of its text.
#[derive(Debug)]
pub(super) struct YamlError {
    pub(super) place: Place,
    pub(super) problem: YamlProblem,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum YamlProblem {
    #[error("{0}")]
    Syntax(String),
    #[error("tags such as `!x` are not part of policies")]
    Tag,
    #[error("the alias stands within what it refers to")]
    Cycle,
    #[error("there are more than {limit} {what}")]
    TooMuch { what: &'static str, limit: usize },
}

// === impl YamlProblem ===

impl YamlProblem {
    /// What to do about it.
    pub(super) const fn help(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "Correct the YAML at this place.",
            Self::Tag => "Remove it: every field has a type of its own.",
            Self::Cycle => "Write out what was meant.",
            Self::TooMuch { .. } => "Use fewer aliases and less nesting; a policy needs neither.",
        }
    }
}

// === impl Tree ===

impl<'t> Tree<'t> {
    /// Reads all documents of a text; `source` is its index.
    ///
    /// # Errors
    /// The first thing that is no YAML, or more than is read. The documents before it are lost: what it hides could
    /// change their meaning.
    pub(super) fn parse(source: u16, text: &'t str) -> Result<Self, YamlError> {
        Self::parse_part(source, text, 1)
    }

    /// The same of a part of a text that begins on another line than the first.
    pub(super) fn parse_part(source: u16, text: &'t str, first_line: u32) -> Result<Self, YamlError> {
        let mut options: Options = granit_parser::options! {
            // One more, so that the bound is ours, and the message too.
            flow_nesting_limit: MAX_DEPTH + 1,
            block_nesting_limit: MAX_DEPTH + 1,
        };
        options.set_emit_comments(false);
        let mut builder = Builder::new(source, first_line);
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|error| builder.syntax_error(&error))?;
            let place = builder.place(&span);
            builder
                .take(event, place)
                .map_err(|problem| YamlError { place, problem })?;
        }
        Ok(builder.tree)
    }

    /// How many nodes there are.
    pub(super) const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The keys and values of a mapping that is no alias.
    pub(super) fn pairs(&self, id: NodeId) -> Option<&[(NodeId, NodeId)]> {
        match self.get(id).0 {
            Content::Mapping(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The text of a single value that is no alias.
    pub(super) fn text(&self, id: NodeId) -> Option<&str> {
        match self.get(id).0 {
            Content::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// What a node is, and its own place.
    pub(super) fn get(&self, id: NodeId) -> (&Content<'t>, Place) {
        let node = &self.nodes[id.0 as usize];
        (&node.content, node.place)
    }
}

/// A collection that is not complete.
struct Open {
    anchor: usize,
    place: Place,
    is_mapping: bool,
    children: Vec<NodeId>,
}

struct Builder<'t> {
    source: u16,
    first_line: u32,
    tree: Tree<'t>,
    open: Vec<Open>,
    /// What is complete, by the parser's number of its anchor.
    anchored: BTreeMap<usize, NodeId>,
}

// === impl Builder ===

impl<'t> Builder<'t> {
    fn new(source: u16, first_line: u32) -> Self {
        Self {
            source,
            first_line,
            tree: Tree::default(),
            open: Vec::new(),
            anchored: BTreeMap::new(),
        }
    }

    fn place(&self, span: &Span) -> Place {
        let width = span.end.index().saturating_sub(span.start.index());
        self.place_of(span.start.line(), span.start.col(), width)
    }

    fn place_of(&self, line: usize, column_from_zero: usize, width: usize) -> Place {
        let saturate = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Place::at(
            self.source,
            saturate(line.saturating_sub(1)).saturating_add(self.first_line),
            saturate(column_from_zero).saturating_add(1),
            saturate(width).max(1),
        )
    }

    fn syntax_error(&self, error: &ScanError) -> YamlError {
        let marker = error.marker();
        // The message may repeat what stands in the text.
        let message = error
            .info()
            .chars()
            .filter(|character| !character.is_control())
            .take(200)
            .collect();
        YamlError {
            place: self.place_of(marker.line(), marker.col(), 1),
            problem: YamlProblem::Syntax(message),
        }
    }

    fn take(&mut self, event: Event<'t>, place: Place) -> Result<(), YamlProblem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some())?;
                let is_null = style == ScalarStyle::Plain && is_null(&text);
                self.complete(Content::Scalar { text, is_null }, place, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                refuse_tag(tag.is_some())?;
                self.start(anchor, place, false)
            }
            Event::MappingStart(_, anchor, tag) => {
                refuse_tag(tag.is_some())?;
                self.start(anchor, place, true)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                self.tree.aliases += 1;
                within("aliases", self.tree.aliases, MAX_ALIASES)?;
                let target = *self.anchored.get(&anchor).ok_or(YamlProblem::Cycle)?;
                self.complete(Content::Alias(target), place, 0)
            }
            Event::DocumentStart(..) => {
                self.anchored.clear();
                self.tree.beginnings += 1;
                within("documents", self.tree.documents.len() + 1, MAX_DOCUMENTS)
            }
            // Without `emit_unresolved_aliases`, `emit_anchor_events` and comments there are no other ones.
            _ => Ok(()),
        }
    }

    fn start(&mut self, anchor: usize, place: Place, is_mapping: bool) -> Result<(), YamlProblem> {
        within("levels of nesting", self.open.len() + 1, MAX_DEPTH)?;
        self.open.push(Open {
            anchor,
            place,
            is_mapping,
            children: Vec::new(),
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), YamlProblem> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let content = if open.is_mapping {
            let pairs = open.children.chunks_exact(2);
            Content::Mapping(pairs.map(|pair| (pair[0], pair[1])).collect())
        } else {
            Content::Sequence(open.children)
        };
        self.complete(content, open.place, open.anchor)
    }

    /// A node with all that is in it.
    fn complete(&mut self, content: Content<'t>, place: Place, anchor: usize) -> Result<(), YamlProblem> {
        within("values", self.tree.nodes.len() + 1, MAX_YAML_NODES)?;
        let id = NodeId(u32::try_from(self.tree.nodes.len()).unwrap_or(u32::MAX));
        let is_empty_document =
            self.open.is_empty() && matches!(content, Content::Scalar { is_null: true, .. });
        self.tree.nodes.push(Node { content, place });
        if anchor != 0 {
            self.anchored.insert(anchor, id);
        }
        match self.open.last_mut() {
            Some(open) => open.children.push(id),
            None if is_empty_document => {}
            None => self.tree.documents.push(id),
        }
        Ok(())
    }
}

const fn refuse_tag(is_tagged: bool) -> Result<(), YamlProblem> {
    if is_tagged { Err(YamlProblem::Tag) } else { Ok(()) }
}

const fn within(what: &'static str, count: usize, limit: usize) -> Result<(), YamlProblem> {
    if count > limit {
        Err(YamlProblem::TooMuch { what, limit })
    } else {
        Ok(())
    }
}

/// The null of YAML's core schema.
fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}
