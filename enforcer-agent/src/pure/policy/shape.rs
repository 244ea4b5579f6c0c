//! A tree of YAML nodes to the records of [`super::model`].
//!
//! Nothing stops at the first problem: what has the wrong shape, is missing, unknown, null or given twice is reported
//! where it stands, and a placeholder at [`Place::REPORTED`] takes its place, about which nobody complains again. So a
//! check reports all that is wrong with a policy, shapes and values, in one run.
//!
//! The recursion is as deep as the records are nested in one another, whatever the text: what is unknown is not
//! entered.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ops::Deref;

use super::bounds::{MAX_ALIAS_DEPTH, MAX_REPLAYED_NODES};
use super::diagnostic::{Code, Reporter};
use super::source::Place;
use super::suggest::{alternatives, nearest, quoted};
use super::yaml::{Content, NodeId, Tree};

/// A value, and where it stands: at the alias, if it is reached by one.
#[derive(Debug, Clone, PartialEq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub(super) place: Place,
}

/// The characters of a single value.
pub type Text = Spanned<String>;

/// A list, and where it stands.
pub type List<T> = Spanned<Vec<T>>;

/// A single value as it was written. `K` says what it has to be, for the schema; [`super::resolve`] reads it.
#[derive(Debug)]
pub struct Scalar<K> {
    text: Text,
    kind: PhantomData<fn() -> K>,
}

/// What can stand in a policy. The default is the placeholder for what is missing or wrong.
pub(super) trait FromNode: Sized + Default {
    /// Whether its field must be there.
    const REQUIRED: bool = true;

    fn from_node(reader: &mut Reader<'_, '_>, node: NodeId) -> Self;
}

/// What was read of a text, and can move in it with the lines that it stands on.
pub(super) trait Movable {
    /// The lines from `from` on are so many lines further down.
    fn move_lines(&mut self, from: u32, lines: i64);
}

/// Reads one tree, and reports what is wrong with its shape.
pub(super) struct Reader<'r, 's> {
    tree: &'r Tree<'r>,
    reporter: &'r mut Reporter<'s>,
    /// The alias by which the reader has come to where it is.
    alias: Option<Place>,
    alias_depth: usize,
    /// Nodes that were read by way of an alias.
    replayed: usize,
    /// Whether that were too many, and nothing more is read.
    exhausted: bool,
}

/// The fields of a mapping that are known and not null.
pub(super) struct Fields {
    place: Place,
    /// Indices into the names that there are.
    found: Vec<(usize, Field)>,
}

/// The keys and values of a mapping.
#[derive(Default)]
struct Entries<'r> {
    list: Vec<Entry<'r>>,
    keys: BTreeSet<&'r str>,
}

struct Entry<'r> {
    key: &'r str,
    place: Place,
    field: Field,
}

/// A field: its node, and the alias by which a merge brought it, if one did.
#[derive(Clone, Copy)]
struct Field {
    node: NodeId,
    alias: Option<Place>,
}

// === impl Spanned ===

impl<T> Spanned<T> {
    /// Has it stand somewhere else.
    pub(super) const fn move_to(&mut self, place: Place) {
        self.place = place;
    }
}

impl<T: Default> Default for Spanned<T> {
    fn default() -> Self {
        Self {
            value: T::default(),
            place: Place::REPORTED,
        }
    }
}

impl<T> From<&Spanned<T>> for Place {
    fn from(spanned: &Spanned<T>) -> Self {
        spanned.place
    }
}

// === impl Scalar ===

impl<K> Deref for Scalar<K> {
    type Target = Text;

    fn deref(&self) -> &Text {
        &self.text
    }
}

impl<K> Default for Scalar<K> {
    fn default() -> Self {
        Self::from(Text::default())
    }
}

impl<K> Clone for Scalar<K> {
    fn clone(&self) -> Self {
        Self::from(self.text.clone())
    }
}

impl<K> PartialEq for Scalar<K> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<K> From<Text> for Scalar<K> {
    fn from(text: Text) -> Self {
        Self {
            text,
            kind: PhantomData,
        }
    }
}

impl<K> From<&Scalar<K>> for Place {
    fn from(scalar: &Scalar<K>) -> Self {
        scalar.text.place
    }
}

// === impl FromNode ===

impl<K> FromNode for Scalar<K> {
    fn from_node(reader: &mut Reader<'_, '_>, node: NodeId) -> Self {
        let text = reader.scalar(node).map(|(value, place)| Text {
            value: value.to_owned(),
            place,
        });
        text.unwrap_or_default().into()
    }
}

impl<T: FromNode> FromNode for Spanned<T> {
    const REQUIRED: bool = T::REQUIRED;

    fn from_node(reader: &mut Reader<'_, '_>, node: NodeId) -> Self {
        let errors_before = reader.reporter.errors();
        let place = reader.place(node);
        let value = T::from_node(reader, node);
        // If something in it was wrong, then what is left says little about the whole: that it is empty, say.
        let is_sound = reader.reporter.errors() == errors_before;
        Self {
            value,
            place: if is_sound { place } else { Place::REPORTED },
        }
    }
}

impl<T: FromNode> FromNode for Option<T> {
    const REQUIRED: bool = false;

    fn from_node(reader: &mut Reader<'_, '_>, node: NodeId) -> Self {
        Some(T::from_node(reader, node))
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    fn from_node(reader: &mut Reader<'_, '_>, node: NodeId) -> Self {
        reader.enter(node, |reader, node| match reader.tree.get(node).0 {
            Content::Sequence(items) => items.iter().map(|item| T::from_node(reader, *item)).collect(),
            _ => {
                reader.wrong_shape(node, "a list (`- a` on lines of its own, or `[a, b]`)");
                Self::default()
            }
        })
    }
}

// === impl Movable ===

impl Movable for String {
    fn move_lines(&mut self, _: u32, _: i64) {}
}

impl<K> Movable for Scalar<K> {
    fn move_lines(&mut self, from: u32, lines: i64) {
        self.text.move_lines(from, lines);
    }
}

impl<T: Movable> Movable for Spanned<T> {
    fn move_lines(&mut self, from: u32, lines: i64) {
        self.place = self.place.moved(from, lines);
        self.value.move_lines(from, lines);
    }
}

impl<T: Movable> Movable for Option<T> {
    fn move_lines(&mut self, from: u32, lines: i64) {
        self.iter_mut().for_each(|part| part.move_lines(from, lines));
    }
}

impl<T: Movable> Movable for Vec<T> {
    fn move_lines(&mut self, from: u32, lines: i64) {
        self.iter_mut().for_each(|part| part.move_lines(from, lines));
    }
}

// === impl Reader ===

impl<'r, 's> Reader<'r, 's> {
    pub(super) const fn new(tree: &'r Tree<'r>, reporter: &'r mut Reporter<'s>) -> Self {
        Self {
            tree,
            reporter,
            alias: None,
            alias_depth: 0,
            replayed: 0,
            exhausted: false,
        }
    }

    /// Whether it gave up, since aliases repeat too much.
    pub(super) const fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Whether nothing was wrong so far.
    pub(super) const fn is_content(&self) -> bool {
        !self.reporter.has_errors()
    }

    /// Where a node stands to the one who reads the policy.
    fn place(&self, node: NodeId) -> Place {
        self.alias.unwrap_or(self.tree.get(node).1)
    }

    /// Calls `read` with the node, or with what it stands for if it is an alias.
    fn enter<T: Default>(&mut self, node: NodeId, read: impl FnOnce(&mut Self, NodeId) -> T) -> T {
        if self.exhausted {
            return T::default();
        }
        let tree = self.tree;
        let (content, place) = tree.get(node);
        self.replayed += usize::from(self.alias.is_some());
        let Content::Alias(target) = content else {
            return if self.replayed > MAX_REPLAYED_NODES {
                self.exhaust()
            } else {
                read(self, node)
            };
        };
        if self.alias_depth == MAX_ALIAS_DEPTH {
            return self.exhaust();
        }
        let outer = self.alias;
        self.alias = outer.or(Some(place));
        self.alias_depth += 1;
        let value = read(self, *target);
        self.alias = outer;
        self.alias_depth -= 1;
        value
    }

    /// Gives up on the text: somebody laughs a billion times.
    fn exhaust<T: Default>(&mut self) -> T {
        self.exhausted = true;
        let message = format!(
            "aliases repeat more than {MAX_REPLAYED_NODES} values, or lead through more than {MAX_ALIAS_DEPTH} others"
        );
        let help = "Use fewer aliases; a policy needs none.";
        self.reporter
            .error(Code::TooLarge, self.alias.unwrap_or(Place::WHOLE), message, help);
        T::default()
    }

    /// A single value, and where it stands.
    fn scalar(&mut self, node: NodeId) -> Option<(&'r str, Place)> {
        let place = self.place(node);
        self.enter(node, |reader, node| match reader.tree.get(node).0 {
            Content::Scalar { text, is_null: false } => Some((text.as_ref(), place)),
            _ => {
                reader.wrong_shape(node, "a single value, no list and no mapping");
                None
            }
        })
    }

    fn wrong_shape(&mut self, node: NodeId, wanted: &str) {
        let place = self.place(node);
        let (message, help) = if matches!(self.tree.get(node).0, Content::Scalar { is_null: true, .. }) {
            (
                "the value is missing (null)".to_owned(),
                "Give a value, or leave the whole field out to get its default.",
            )
        } else {
            (
                format!("this should be {wanted}"),
                "Compare it with the example in `policies/quickstart.yaml`.",
            )
        };
        self.reporter.error(Code::WrongShape, place, message, help);
    }

    /// Calls `read` with the fields of a mapping: `names` are those that there are.
    pub(super) fn fields<T: Default>(
        &mut self,
        node: NodeId,
        names: &[&str],
        read: impl FnOnce(&mut Self, Fields) -> T,
    ) -> T {
        self.enter(node, |reader, node| {
            let Some(entries) = reader.entries(node) else {
                return T::default();
            };
            let place = reader.place(node);
            let mut found = Vec::with_capacity(entries.list.len().min(names.len()));
            for entry in entries.list {
                match names.iter().position(|known| *known == entry.key) {
                    Some(index) => found.push((index, entry.field)),
                    None => reader.unknown_field(&entry, names),
                }
            }
            read(reader, Fields { place, found })
        })
    }

    /// Every key and value of a mapping whose keys are free.
    pub(super) fn pairs<K>(&mut self, node: NodeId) -> Vec<(Text, Scalar<K>)> {
        self.enter(node, |reader, node| {
            let entries = reader
                .entries(node)
                .map(|entries| entries.list)
                .unwrap_or_default();
            let pair = |entry: Entry<'_>| {
                let key = Text {
                    value: entry.key.to_owned(),
                    place: entry.place,
                };
                (key, reader.field(entry.field))
            };
            entries.into_iter().map(pair).collect()
        })
    }

    /// The keys and values of a mapping, those of merges (`<<`) behind its own.
    fn entries(&mut self, node: NodeId) -> Option<Entries<'r>> {
        let Content::Mapping(pairs) = self.tree.get(node).0 else {
            self.wrong_shape(node, "a mapping (`name: value`)");
            return None;
        };
        let mut entries = Entries::default();
        let mut merges = Vec::new();
        for (key, value) in pairs {
            let Some((name, place)) = self.scalar(*key) else {
                continue;
            };
            if name == "<<" {
                merges.push(*value);
                continue;
            }
            let field = Field {
                node: *value,
                alias: None,
            };
            if !entries.add(name, place, field) && self.reporter.has_room() {
                let message = format!("the field {} is given a second time", quoted(name));
                self.reporter
                    .error(Code::Duplicate, place, message, "Keep one of the two.");
            }
        }
        for merge in merges {
            self.merge(merge, &mut entries);
        }
        Some(entries)
    }

    /// Adds what a merge (`<<: *common`) brings and the mapping does not have: what came first wins.
    fn merge(&mut self, node: NodeId, entries: &mut Entries<'r>) {
        self.enter(node, |reader, node| {
            if let Content::Sequence(items) = reader.tree.get(node).0 {
                items.iter().for_each(|item| reader.merge(*item, entries));
                return;
            }
            let brought = reader.entries(node).map(|entries| entries.list);
            for mut entry in brought.unwrap_or_default() {
                entry.field.alias = entry.field.alias.or(reader.alias);
                entries.add(entry.key, entry.place, entry.field);
            }
        });
    }

    fn unknown_field(&mut self, entry: &Entry<'_>, names: &[&str]) {
        if !self.reporter.has_room() {
            // Nobody will read it, and to find the nearest name costs something.
            return self.reporter.error(Code::UnknownField, entry.place, "", "");
        }
        let message = format!("there is no field {} here", quoted(entry.key));
        let help = match nearest(entry.key, names.iter().copied()) {
            Some(name) => format!("Did you mean `{name}`?"),
            None => format!("Here there can be {}.", alternatives(names)),
        };
        self.reporter
            .error(Code::UnknownField, entry.place, message, help);
    }

    fn field<T: FromNode>(&mut self, field: Field) -> T {
        let outer = self.alias;
        self.alias = outer.or(field.alias);
        let value = T::from_node(self, field.node);
        self.alias = outer;
        value
    }
}

// === impl Entries ===

impl<'r> Entries<'r> {
    /// Whether it is the first one with its key; others are not added.
    fn add(&mut self, key: &'r str, place: Place, field: Field) -> bool {
        let is_first = self.keys.insert(key);
        if is_first {
            self.list.push(Entry { key, place, field });
        }
        is_first
    }
}

// === impl Fields ===

impl Fields {
    /// The value of the field with this index and name.
    pub(super) fn take<T: FromNode>(&self, reader: &mut Reader<'_, '_>, index: usize, name: &str) -> T {
        if let Some((_, field)) = self.found.iter().find(|(found, _)| *found == index) {
            return reader.field(*field);
        }
        if T::REQUIRED {
            let message = format!("the field {} is missing here", quoted(name));
            let help = format!("Add {}: it has no default.", quoted(name));
            reader
                .reporter
                .error(Code::MissingField, self.place, message, help);
        }
        T::default()
    }
}

/// Declares records: structs that are read from mappings, each field under the name that it has in the text.
macro_rules! records {
    ($(
        $(#[$meta:meta])*
        pub struct $record:ident {
            $( $(#[$field_meta:meta])* $yaml:literal => pub $field:ident: $type:ty, )+
        }
    )+) => {
    $(
        #[derive(Debug, Clone, PartialEq, Default, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        $(#[$meta])*
        pub struct $record {
            $( $(#[$field_meta])* #[schemars(rename = $yaml)] pub $field: $type, )+
        }

        impl $crate::pure::policy::shape::FromNode for $record {
            fn from_node(
                reader: &mut $crate::pure::policy::shape::Reader<'_, '_>,
                node: $crate::pure::policy::yaml::NodeId,
            ) -> Self {
                const NAMES: &[&str] = &[$($yaml),+];
                reader.fields(node, NAMES, |reader, fields| {
                    let mut index = 0..NAMES.len();
                    // Fields are evaluated in the order in which they are written, which is that of the names.
                    Self {
                        $( $field: fields.take(reader, index.next().unwrap_or_default(), $yaml), )+
                    }
                })
            }
        }

        impl $crate::pure::policy::shape::Movable for $record {
            fn move_lines(&mut self, from: u32, lines: i64) {
                $( self.$field.move_lines(from, lines); )+
            }
        }
    )+

        /// Every record with its fields, in the order in which people read them.
        pub(super) const RECORDS: &[(&str, &[&str])] = &[$((stringify!($record), &[$($yaml),+])),+];
    };
}
pub(super) use records;
