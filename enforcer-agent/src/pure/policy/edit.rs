//! Texts read one after another, each of which differs little from the one before.
//!
//! To read the YAML of ten thousand tenants takes longer than all that follows. So what was read of the last text is
//! kept, and of a text that differs from it within one list of its `spec`, only the items that differ are read.
//!
//! This must not change what comes out. It is done only where the parser is in the same state before and behind those
//! items as it was in the last text: they stand on lines of their own, `- ` in front at the column of the list, in a text
//! of one document without aliases and directives. They are parsed in a frame that is nested and indented as the text
//! around them is, and the frame's own parts have to come out where they were put: nothing may reach out of the items.
//! Whatever is not so, and whatever has an error of shape, is read from nothing.
//!
//! What was read is resolved and checked as a whole, unless only limits differ ([`limits`]).

mod frame;
mod limits;
mod outline;

use std::ops::Range;
use std::sync::Arc;

use super::bounds::{MAX_TEXT_BYTES, MAX_YAML_NODES};
use super::diagnostic::Reporter;
use super::model::{Document, Spec, Tenant};
use super::parse::Parsed;
use super::resolve::resolve;
use super::shape::{FromNode, List, Movable as _, Reader};
use super::source::{Place, PolicySource};
use super::yaml::{NodeId, Tree};
use super::{Outcome, read};
use outline::Edit;
pub(super) use outline::Outline;

/// The list of tenants.
const TENANTS: &str = "tenants";

/// Loads policies one after another. What it keeps of the last one saves work, and changes no outcome.
#[derive(Debug, Clone, Default)]
pub struct Loader {
    last: Option<Last>,
}

/// The last text with nothing wrong about its shape, and what was read of it.
#[derive(Debug, Clone)]
struct Last {
    text: Arc<str>,
    document: Document,
    outline: Outline,
    /// What became of it under this name, unless it has been read anew since.
    resolved: Option<(String, Outcome)>,
}

// === impl Loader ===

impl Loader {
    /// Reads, resolves and checks a policy, whose texts are taken in the order given.
    pub fn load_all(&mut self, texts: &[PolicySource]) -> Outcome {
        if let [only] = texts
            && let Some(last) = &mut self.last
            && last.follow(only).is_some()
        {
            return last.outcome(only);
        }
        let (outcome, parsed) = read(texts);
        // After a slip the next text is likely to be near the one before it.
        if let Some(parsed) = parsed {
            self.last = Last::of(texts, parsed, &outcome);
        }
        outcome
    }
}

// === impl Last ===

impl Last {
    fn of(texts: &[PolicySource], parsed: Parsed, outcome: &Outcome) -> Option<Self> {
        let Parsed {
            mut documents,
            outline,
        } = parsed;
        let ([only], [_]) = (texts, documents.as_slice()) else {
            return None;
        };
        Some(Self {
            text: only.text.clone(),
            outline: outline?,
            document: documents.pop()?,
            resolved: Some((only.file.clone(), outcome.clone())),
        })
    }

    /// What becomes of the text, which `source` is.
    fn outcome(&mut self, source: &PolicySource) -> Outcome {
        if let Some((_, outcome)) = self.resolved.as_ref().filter(|(file, _)| *file == source.file) {
            return outcome.clone();
        }
        let mut reporter = Reporter::new(std::slice::from_ref(source));
        let policy = resolve(&mut reporter, std::slice::from_ref(&self.document));
        let diagnostics = reporter.finish();
        let outcome = Outcome { policy, diagnostics };
        self.resolved = Some((source.file.clone(), outcome.clone()));
        outcome
    }

    /// Becomes what would be read of another text, if that differs in a way that allows it; else it stays as it is.
    fn follow(&mut self, source: &PolicySource) -> Option<()> {
        let text = &source.text;
        if *text == self.text {
            return Some(());
        }
        if text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let edit = self.outline.edit(&self.text, text)?;
        let framed = edit.frame.around(edit.part);
        let tree = Tree::parse_part(0, &framed, edit.frame.first_line()).ok()?;
        let (place, nodes) = edit.frame.content(&tree, edit.part)?;
        let lines = edit.lines_of(&tree, nodes)?;
        // With what was the second item, a list stands elsewhere; or it is none any more.
        let is_first_gone = edit.items.start == 0 && nodes.is_empty();
        if is_first_gone || self.outline.nodes + tree.len() > MAX_YAML_NODES {
            return None;
        }
        let mut reporter = Reporter::new(std::slice::from_ref(source));
        let mut reader = Reader::new(&tree, &mut reporter);
        let before: Vec<Tenant> = self.tenants(&edit, edit.items.clone()).to_vec();
        edit_list(&mut self.document, &edit, &mut reader, (place, nodes))?;
        if let Some((file, mut outcome)) = self.resolved.take().filter(|(file, _)| *file == source.file) {
            let after = self.tenants(&edit, edit.items.start..edit.items.start + nodes.len());
            let followed =
                !before.is_empty() && limits::follow(&mut outcome, source, &edit, (&before, after)).is_some();
            self.resolved = followed.then_some((file, outcome));
        }
        self.outline.follow(&edit, &lines, tree.len());
        self.text.clone_from(text);
        Some(())
    }

    /// Some of the tenants, if it is they who are edited.
    fn tenants(&self, edit: &Edit<'_>, items: Range<usize>) -> &[Tenant] {
        let tenants = self
            .document
            .spec
            .tenants
            .as_ref()
            .filter(|_| edit.list_name == TENANTS);
        tenants
            .and_then(|tenants| tenants.value.get(items))
            .unwrap_or_default()
    }
}

/// Puts new items in the place of others, unless something is wrong with their shape.
fn edit_list(
    document: &mut Document,
    edit: &Edit<'_>,
    reader: &mut Reader<'_, '_>,
    new: (Place, &[NodeId]),
) -> Option<()> {
    match edit.list_name.as_str() {
        "classes" => replace(document, |spec| &mut spec.classes, edit, reader, new),
        TENANTS => replace(document, |spec| &mut spec.tenants, edit, reader, new),
        "services" => replace(document, |spec| &mut spec.services, edit, reader, new),
        "pools" => replace(document, |spec| &mut spec.pools, edit, reader, new),
        "rules" => replace(document, |spec| &mut spec.rules, edit, reader, new),
        "protectedNetworks" => replace(document, |spec| &mut spec.protected_networks, edit, reader, new),
        "constraints" => replace(document, |spec| &mut spec.constraints, edit, reader, new),
        _ => None,
    }
}

fn replace<T: FromNode>(
    document: &mut Document,
    list: impl Fn(&mut Spec) -> &mut Option<List<T>>,
    edit: &Edit<'_>,
    reader: &mut Reader<'_, '_>,
    (place, nodes): (Place, &[NodeId]),
) -> Option<()> {
    let items: Vec<T> = nodes.iter().map(|node| T::from_node(reader, *node)).collect();
    if !reader.is_content() {
        return None;
    }
    if edit.lines != 0 {
        document.move_lines(edit.end_line, edit.lines);
    }
    let list = list(&mut document.spec).as_mut()?;
    list.value.splice(edit.items.clone(), items);
    // A list stands where its first item does.
    if edit.items.start == 0 {
        list.move_to(place);
    }
    Some(())
}

#[cfg(test)]
mod tests;
