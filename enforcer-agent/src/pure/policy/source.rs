//! The texts of a policy, and places in them.
//!
//! A policy is one text or a set of them (a directory, several files). The set is what the control API carries, the
//! agent keeps and `policy show` prints. Its order is the order of the names, so that the same files make the same
//! policy on every host, however they were listed.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bounds::MAX_SOURCES;
use super::suggest::quoted_path;

/// One text of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySource {
    /// What to call it in diagnostics and records: the path as it was given.
    pub file: String,
    /// The text itself.
    pub text: Arc<str>,
}

// === impl PolicySource ===

impl PolicySource {
    /// A text with its name.
    #[must_use]
    pub fn new(file: impl Into<String>, text: impl Into<Arc<str>>) -> Self {
        Self {
            file: file.into(),
            text: text.into(),
        }
    }
}

/// What to call a policy in one line: the name of its text, or of the first one and how many more there are.
#[must_use]
pub fn name_of(texts: &[PolicySource]) -> String {
    match texts {
        [] => String::new(),
        [only] => only.file.clone(),
        [first, rest @ ..] => format!("{} and {} more", first.file, rest.len()),
    }
}

/// A place in one of a policy's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the text.
    source: u16,
    /// Line, from 1; 0 for what concerns the policy as a whole.
    line: u32,
    /// Column in characters, from 1.
    column: u32,
    /// Length of what is marked, in characters.
    width: u32,
}

// === impl Place ===

impl Place {
    /// For what concerns the policy as a whole.
    pub(super) const WHOLE: Self = Self::at(0, 0, 0, 0);
    /// Of something that is missing or has the wrong shape, which has been reported already. What would be said about
    /// it later on would only be a consequence of that, and is not reported.
    pub(super) const REPORTED: Self = Self::at(u16::MAX, u32::MAX, 0, 0);

    pub(super) const fn at(source: u16, line: u32, column: u32, width: u32) -> Self {
        Self {
            source,
            line,
            column,
            width,
        }
    }

    /// A text as a whole.
    pub(super) fn of_source(source: usize) -> Self {
        Self::at(u16::try_from(source).unwrap_or(u16::MAX), 0, 0, 0)
    }

    pub(super) const fn is_reported(self) -> bool {
        self.source == u16::MAX
    }

    /// The place of the same thing after the lines from `from` on have moved.
    pub(super) const fn moved(self, from: u32, lines: i64) -> Self {
        if self.line < from || self.is_reported() {
            return self;
        }
        // Lines of a text of bounded size: neither end is near.
        let line = (self.line as i64 + lines) as u32;
        Self { line, ..self }
    }

    pub(super) const fn line(self) -> u32 {
        self.line
    }

    pub(super) const fn column(self) -> u32 {
        self.column
    }

    pub(super) const fn width(self) -> u32 {
        self.width
    }

    pub(super) const fn source(self) -> usize {
        self.source as usize
    }

    /// What the diagnostics are sorted by.
    pub(super) const fn order(self) -> (u16, u32, u32) {
        (self.source, self.line, self.column)
    }
}

/// The texts of one policy, with an index of their lines that is made when the first one is asked for.
pub(super) struct Sources<'a> {
    texts: &'a [PolicySource],
    line_starts: Vec<OnceCell<Vec<usize>>>,
}

// === impl Sources ===

impl<'a> Sources<'a> {
    pub(super) fn new(texts: &'a [PolicySource]) -> Self {
        Self {
            texts,
            line_starts: texts.iter().take(MAX_SOURCES).map(|_| OnceCell::new()).collect(),
        }
    }

    /// Whether there are several.
    pub(super) const fn is_several(&self) -> bool {
        self.texts.len() > 1
    }

    /// The name of the text of a place; of the first text for what concerns the policy as a whole.
    pub(super) fn file(&self, place: Place) -> &'a str {
        self.texts
            .get(place.source())
            .map_or("", |source| source.file.as_str())
    }

    /// The line at a place, without its end.
    pub(super) fn line(&self, place: Place) -> Option<&'a str> {
        let index = place.line().checked_sub(1)? as usize;
        let text = &self.texts.get(place.source())?.text;
        let starts = self
            .line_starts
            .get(place.source())?
            .get_or_init(|| line_starts(text));
        let range: Range<usize> = *starts.get(index)?..starts.get(index + 1).copied().unwrap_or(text.len());
        let line = &text[range];
        let line = line.strip_suffix('\n').unwrap_or(line);
        Some(line.strip_suffix('\r').unwrap_or(line))
    }

    /// `line 3, column 14`, to point from one diagnostic to another place; with the name of the text if there are
    /// several.
    pub(super) fn describe(&self, place: Place) -> String {
        let position = format!("line {}, column {}", place.line(), place.column());
        if self.is_several() {
            format!("{position} of {}", quoted_path(self.file(place)))
        } else {
            position
        }
    }
}

/// Where each line begins.
pub(super) fn line_starts(text: &str) -> Vec<usize> {
    let mut starts = vec![0];
    starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
    // As `str::lines` has it: what follows the last line end is a line only if there is something.
    if starts.last() == Some(&text.len()) {
        starts.pop();
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_as_str_lines_finds_them() {
        for text in ["", "\n", "a", "a\n", "a\r\nb", "a\n\nb\n", "é\r\n😀"] {
            let texts = [PolicySource::new("p.yaml", text)];
            let sources = Sources::new(&texts);
            let lines: Vec<&str> = (1..9)
                .map_while(|line| sources.line(Place::at(0, line, 1, 1)))
                .collect();
            assert_eq!(lines, text.lines().collect::<Vec<_>>(), "{text:?}");
            assert_eq!(sources.line(Place::WHOLE), None);
            assert_eq!(sources.line(Place::REPORTED), None);
        }
    }

    #[test]
    fn places_name_the_text_only_if_there_are_several() {
        let texts = [PolicySource::new("a.yaml", "x"), PolicySource::new("b.yaml", "y")];
        let place = Place::at(1, 1, 2, 3);
        assert_eq!(
            Sources::new(&texts).describe(place),
            "line 1, column 2 of `b.yaml`"
        );
        assert_eq!(
            Sources::new(&texts[..1]).describe(Place::at(0, 4, 2, 3)),
            "line 4, column 2"
        );
    }
}
