//! Diagnostics: what is wrong with a policy, where, and what to do about it.

use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, SourceSpan, SpanContents};
use serde::{Deserialize, Serialize};

use super::bounds::{MAX_DIAGNOSTICS, MAX_EXCERPT_CHARS};
use super::source::{Place, PolicySource, Sources};
use super::suggest::is_bidi_control;

/// Whether the policy can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It can be used, but probably does not say what was meant.
    Warning,
    /// It cannot be used.
    Error,
}

/// What kind of problem it is: stable, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The text is no YAML, or uses a YAML feature that policies do not have.
    Yaml,
    /// A bound of the policy language is exceeded.
    TooLarge,
    /// The field does not exist, or is not enforced by this version.
    UnknownField,
    /// A field that has no default is missing.
    MissingField,
    /// A value of another shape is needed here.
    WrongShape,
    /// The value is not valid for its field.
    InvalidValue,
    /// A feature that this version does not enforce.
    Unsupported,
    /// The name is empty, too long, or has characters that names cannot have.
    InvalidName,
    /// The same name, address or prefix again.
    Duplicate,
    /// A name that is not defined.
    UnknownName,
    /// A prefix or address that is not valid here.
    InvalidAddress,
    /// Two tenants or two services claim the same addresses.
    Conflict,
    /// A tenant's prefix lies within another tenant's.
    Overlap,
    /// A limit that the enforcer cannot keep.
    LimitOutOfRange,
    /// A service and its back ends do not fit together.
    Forwarding,
    /// A rule, constraint or pool without any effect.
    NoEffect,
    /// A tenant may use a service, but no back end is compliant.
    NoCompliantBackend,
    /// More is guaranteed than a pool can take.
    Promised,
    /// There was more to say than is shown.
    Truncated,
}

/// One problem. It carries its excerpt of the text, so that it can be shown where the text is not at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// Whether the policy can be used.
    pub severity: Severity,
    /// The kind of problem.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// The name of the text, as the caller gave it.
    pub file: String,
    /// Line, from 1; 0 if the problem is not at one place.
    pub line: u32,
    /// Column in characters, from 1; 0 if the problem is not at one place.
    pub column: u32,
    /// Length of the marked text in characters, on this line.
    pub width: u32,
    /// The line, or a part of it when it is long; control characters are replaced by blanks.
    pub source_line: String,
    /// The column of the first character of `source_line`: 1 unless the line is long.
    pub source_line_column: u32,
    /// What to do about it.
    pub help: String,
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// Collects diagnostics about the texts of one policy, up to a bound.
pub(super) struct Reporter<'a> {
    sources: Sources<'a>,
    found: Vec<((u16, u32, u32), Diagnostic)>,
    errors: usize,
    warnings: usize,
}

// === impl Reporter ===

impl<'a> Reporter<'a> {
    pub(super) fn new(texts: &'a [PolicySource]) -> Self {
        Self {
            sources: Sources::new(texts),
            found: Vec::new(),
            errors: 0,
            warnings: 0,
        }
    }

    pub(super) fn error(
        &mut self,
        code: Code,
        place: impl Into<Place>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Error, code, place.into(), message.into(), help.into());
    }

    pub(super) fn warning(
        &mut self,
        code: Code,
        place: impl Into<Place>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Warning, code, place.into(), message.into(), help.into());
    }

    /// Errors and warnings have bounds of their own, so that a thousand warnings cannot hide an error.
    fn add(&mut self, severity: Severity, code: Code, place: Place, message: String, help: String) {
        if place.is_reported() {
            return;
        }
        let count = match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= MAX_DIAGNOSTICS {
            let diagnostic = Diagnostic::at(&self.sources, severity, code, place, message, help);
            self.found.push((place.order(), diagnostic));
        }
    }

    /// Whether the policy cannot be used.
    pub(super) const fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// The number of errors until now.
    pub(super) const fn errors(&self) -> usize {
        self.errors
    }

    /// Whether another error would be kept: if not, there is no use in thinking about what to say.
    pub(super) const fn has_room(&self) -> bool {
        self.errors < MAX_DIAGNOSTICS
    }

    /// Whether another warning would be kept.
    pub(super) const fn has_room_for_warnings(&self) -> bool {
        self.warnings < MAX_DIAGNOSTICS
    }

    /// A place in words, to point from one diagnostic to another place.
    pub(super) fn describe(&self, place: impl Into<Place>) -> String {
        self.sources.describe(place.into())
    }

    /// The name of the text of a place, if there are several.
    pub(super) fn file(&self, place: Place) -> Option<&'a str> {
        self.sources.is_several().then(|| self.sources.file(place))
    }

    /// All diagnostics in the order of the texts; the order of finding decides within one place.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(order, _)| *order);
        let dropped_errors = self.errors.saturating_sub(MAX_DIAGNOSTICS);
        let dropped = dropped_errors + self.warnings.saturating_sub(MAX_DIAGNOSTICS);
        let mut all: Vec<Diagnostic> = self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect();
        if dropped > 0 {
            let severity = if dropped_errors > 0 {
                Severity::Error
            } else {
                Severity::Warning
            };
            all.push(Diagnostic::at(
                &self.sources,
                severity,
                Code::Truncated,
                Place::WHOLE,
                format!("{dropped} more problems, {dropped_errors} of them errors"),
                "Solve these first, then check again.".into(),
            ));
        }
        all
    }
}

// === impl Diagnostic ===

impl Diagnostic {
    fn at(
        sources: &Sources<'_>,
        severity: Severity,
        code: Code,
        place: Place,
        message: String,
        help: String,
    ) -> Self {
        let (source_line, source_line_column) = excerpt(sources.line(place), place.column());
        Self {
            severity,
            code,
            message,
            file: sources.file(place).to_owned(),
            line: place.line(),
            column: place.column(),
            width: place.width(),
            source_line,
            source_line_column,
            help,
        }
    }

    /// The diagnostic for people, over several lines, ending with a line break.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let theme = if colour {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(100)
            .with_links(false);
        let mut out = String::new();
        handler
            .render_report(&mut out, &Report(self))
            .expect("writing to a string cannot fail, and read_span below answers every span");
        out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Byte offset and length of the marked text within `source_line`.
    fn mark(&self) -> SourceSpan {
        let skipped = self.column.saturating_sub(self.source_line_column) as usize;
        let byte_of = |chars: usize| {
            self.source_line
                .char_indices()
                .nth(chars)
                .map_or(self.source_line.len(), |(offset, _)| offset)
        };
        let start = byte_of(skipped);
        let end = byte_of(skipped.saturating_add(self.width as usize));
        SourceSpan::from((start, end - start))
    }
}

/// The line, cut to a window around the column if it is long, and the column of its first character.
fn excerpt(line: Option<&str>, column: u32) -> (String, u32) {
    let Some(line) = line else {
        return (String::new(), 1);
    };
    let column = column.max(1) as usize;
    let first = if column > MAX_EXCERPT_CHARS / 2 && line.chars().nth(MAX_EXCERPT_CHARS).is_some() {
        column - MAX_EXCERPT_CHARS / 2
    } else {
        1
    };
    let blank = |character: char| {
        if character.is_control() || is_bidi_control(character) {
            ' '
        } else {
            character
        }
    };
    let window = line
        .chars()
        .skip(first - 1)
        .take(MAX_EXCERPT_CHARS)
        .map(blank)
        .collect();
    (window, u32::try_from(first).unwrap_or(u32::MAX))
}

/// All diagnostics for people, with a summary line at the end; empty if there are none.
#[must_use]
pub fn render_all(diagnostics: &[Diagnostic], colour: bool) -> String {
    if diagnostics.is_empty() {
        return String::new();
    }
    let mut out: String = diagnostics
        .iter()
        .map(|diagnostic| diagnostic.render(colour) + "\n")
        .collect();
    let errors = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Severity::Error)
        .count();
    let count = |number: usize, name: &str| format!("{number} {name}{}", if number == 1 { "" } else { "s" });
    out += &format!(
        "{}, {}\n",
        count(errors, "error"),
        count(diagnostics.len() - errors, "warning")
    );
    out
}

/// A diagnostic as miette wants to see it.
#[derive(Debug)]
struct Report<'a>(&'a Diagnostic);

impl fmt::Display for Report<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.message)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.0.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.0.help))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        (self.0.line > 0).then_some(self as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (self.0.line > 0)
            .then(|| Box::new(std::iter::once(LabeledSpan::new_with_span(None, self.0.mark()))) as _)
    }
}

impl miette::SourceCode for Report<'_> {
    /// The only line there is, whatever the context that is asked for.
    fn read_span<'a>(
        &'a self,
        _span: &SourceSpan,
        _before: usize,
        _after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let line = self.0.source_line.as_bytes();
        Ok(Box::new(miette::MietteSpanContents::new_named(
            self.0.file.clone(),
            line,
            SourceSpan::from((0, line.len())),
            self.0.line.saturating_sub(1) as usize,
            self.0.column.saturating_sub(1) as usize,
            1,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(text: &str, line: u32, column: u32, width: u32) -> Diagnostic {
        let texts = [PolicySource::new("p.yaml", text)];
        Diagnostic::at(
            &Sources::new(&texts),
            Severity::Error,
            Code::InvalidValue,
            Place::at(0, line, column, width),
            "no".into(),
            "yes".into(),
        )
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark() {
        let text = format!("{}MARK{}", "é".repeat(5000), "y".repeat(5000));
        let diagnostic = diagnostic(&text, 1, 5001, 4);
        assert_eq!(diagnostic.source_line.chars().count(), MAX_EXCERPT_CHARS);
        let mark = diagnostic.mark();
        let bytes = mark.offset()..mark.offset() + mark.len();
        assert_eq!(&diagnostic.source_line[bytes], "MARK");
        assert!(diagnostic.render(false).contains("MARK"));
    }

    #[test]
    fn every_place_can_be_rendered() {
        for text in ["", "\n", "a", "a\r\nb\u{1b}[31m\n", "😀é"] {
            for (line, column, width) in [
                (0, 0, 0),
                (1, 1, 1),
                (1, 9, 9),
                (2, 1, u32::MAX),
                (9, 9, 9),
                (1, 0, 1),
            ] {
                let rendered = diagnostic(text, line, column, width).render(false);
                assert!(rendered.contains("no") && rendered.contains("yes"), "{rendered}");
                assert!(!rendered.contains('\u{1b}'), "{rendered:?}");
            }
        }
    }

    #[test]
    fn the_number_of_diagnostics_is_bounded_and_the_rest_is_counted() {
        let texts = [PolicySource::new("p.yaml", "x")];
        let mut reporter = Reporter::new(&texts);
        for _ in 0..=MAX_DIAGNOSTICS {
            reporter.warning(Code::NoEffect, Place::WHOLE, "w", "h");
        }
        assert!(!reporter.has_errors() && reporter.has_room());
        for _ in 0..=MAX_DIAGNOSTICS {
            reporter.error(Code::Yaml, Place::at(0, 1, 1, 1), "e", "h");
        }
        reporter.error(Code::Yaml, Place::REPORTED, "never", "h");
        assert!(reporter.has_errors() && !reporter.has_room());
        let all = reporter.finish();
        assert_eq!(
            all.len(),
            2 * MAX_DIAGNOSTICS + 1,
            "warnings leave errors their room"
        );
        let last = &all[2 * MAX_DIAGNOSTICS];
        assert_eq!(last.message, "2 more problems, 1 of them errors");
        assert_eq!(last.severity, Severity::Error);
    }

    #[test]
    fn json_round_trip() {
        let before = diagnostic("ab: c", 1, 5, 1);
        let json = serde_json::to_string(&before).unwrap();
        assert!(
            json.contains(r#""severity":"error","code":"invalid-value""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Diagnostic>(&json).unwrap(), before);
    }
}
