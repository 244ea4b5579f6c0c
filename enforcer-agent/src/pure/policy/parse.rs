//! Texts to [`Document`]s. All that is wrong with their shape is reported.

use super::bounds::{MAX_SOURCES, MAX_TEXT_BYTES};
use super::diagnostic::{Code, Reporter};
use super::edit::Outline;
use super::model::Document;
use super::shape::{FromNode, Reader};
use super::source::{Place, PolicySource};
use super::yaml::{Tree, YamlProblem};

/// What the texts of a policy say, with placeholders where something is wrong.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// In the order of the texts.
    pub(super) documents: Vec<Document>,
    /// Where the items of its lists stand, of the last text that has one.
    pub(super) outline: Option<Outline>,
}

/// Reads the documents of a policy. `None` if what was read says too little about the rest of it: it is no YAML, too
/// large, or nothing at all.
pub(super) fn parse(reporter: &mut Reporter<'_>, texts: &[PolicySource]) -> Option<Parsed> {
    if !within_bounds(reporter, texts) {
        return None;
    }
    let mut parsed = Parsed::default();
    let mut is_complete = true;
    for (index, source) in texts.iter().enumerate() {
        is_complete &= parse_one(reporter, index, &source.text, &mut parsed);
    }
    if parsed.documents.is_empty() && is_complete {
        reporter.error(
            Code::MissingField,
            Place::WHOLE,
            "the policy is empty",
            "A policy starts with `apiVersion: enforcer.dev/v1`; `policies/quickstart.yaml` is an example.",
        );
        return None;
    }
    is_complete.then_some(parsed)
}

fn within_bounds(reporter: &mut Reporter<'_>, texts: &[PolicySource]) -> bool {
    let bytes: usize = texts.iter().map(|source| source.text.len()).sum();
    if bytes > MAX_TEXT_BYTES {
        let message = format!("the policy has {bytes} bytes; at most {MAX_TEXT_BYTES} are read");
        let help = "Put sources that belong together into larger prefixes.";
        reporter.error(Code::TooLarge, Place::WHOLE, message, help);
    }
    if texts.len() > MAX_SOURCES {
        let message = format!(
            "the policy has {} texts; at most {MAX_SOURCES} are read",
            texts.len()
        );
        let help = "Put what belongs together into one file; it can have several documents.";
        reporter.error(Code::TooLarge, Place::WHOLE, message, help);
    }
    bytes <= MAX_TEXT_BYTES && texts.len() <= MAX_SOURCES
}

/// Whether the text could be read to its end.
fn parse_one(reporter: &mut Reporter<'_>, index: usize, text: &str, parsed: &mut Parsed) -> bool {
    let place = Place::of_source(index);
    let tree = match Tree::parse(u16::try_from(place.source()).unwrap_or(u16::MAX), text) {
        Ok(tree) => tree,
        Err(error) => {
            let code = match error.problem {
                YamlProblem::TooMuch { .. } => Code::TooLarge,
                YamlProblem::Syntax(_) | YamlProblem::Tag | YamlProblem::Cycle => Code::Yaml,
            };
            let help = error.problem.help();
            reporter.error(code, error.place, error.problem.to_string(), help);
            return false;
        }
    };
    parsed.outline = Outline::of(&tree, text);
    let mut reader = Reader::new(&tree, reporter);
    for document in &tree.documents {
        parsed.documents.push(Document::from_node(&mut reader, *document));
    }
    !reader.is_exhausted()
}

#[cfg(test)]
mod tests {
    use super::super::{Diagnostic, Severity, load};
    use super::*;

    fn problems(text: &str) -> Vec<Diagnostic> {
        let outcome = load("p.yaml", text);
        assert_eq!(outcome.policy, None, "{text}");
        outcome.diagnostics
    }

    /// The codes and places of what is wrong with a tenant that has these further fields, which start on line 8.
    #[track_caller]
    fn check_tenant(fields: &str, expected: &[(Code, u32, u32)]) {
        let text = format!(
            "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {{name: p}}\n\
             spec:\n  tenants:\n  - name: a\n    sources: [10.0.0.0/8]\n    {fields}\n"
        );
        let diagnostics = load("p.yaml", &text).diagnostics;
        let errors = diagnostics
            .iter()
            .filter(|found| found.severity == Severity::Error);
        let found: Vec<_> = errors
            .map(|found| (found.code, found.line, found.column))
            .collect();
        assert_eq!(found, expected, "{fields}: {diagnostics:#?}");
    }

    #[test]
    fn null_is_refused_where_a_default_exists() {
        for (fields, column) in [
            ("limits:", 11),
            ("limits: {burst: }", 19),
            ("limits: {burst: ~}", 21),
            ("limits: {burst: null}", 21),
            ("labels:", 11),
            ("labels: {a: }", 15),
            ("quotas: ~", 13),
        ] {
            check_tenant(fields, &[(Code::WrongShape, 8, column)]);
        }
        check_tenant("labels: {a: \"\"}", &[(Code::InvalidName, 8, 17)]);
    }

    #[test]
    fn every_problem_is_reported_at_once_and_none_twice() {
        check_tenant(
            "lables: {a: b}\n    limits: {brust: 2s, bytesPerSecond: [1], packetsPerSecond: -1}\n    sources: []\n    \
             class: ~",
            &[
                (Code::UnknownField, 8, 5),
                (Code::UnknownField, 9, 14),
                (Code::WrongShape, 9, 41),
                (Code::InvalidValue, 9, 64),
                (Code::Duplicate, 10, 5),
                (Code::WrongShape, 11, 12),
            ],
        );
        let text = "kind: [GovernancePolicy]\nmetadata: x\nspec:\n  tenants: [{sources: 5}, x, {name: [a]}]\n  pools: 5\n  \
                    rules: [{name: r, action: Alow, tenants: all}]\n";
        let found: Vec<_> = problems(text)
            .into_iter()
            .map(|found| (found.code, found.line))
            .collect();
        assert_eq!(
            found,
            [
                (Code::MissingField, 1),
                (Code::WrongShape, 1),
                (Code::WrongShape, 2),
                (Code::MissingField, 4),
                (Code::WrongShape, 4),
                (Code::WrongShape, 4),
                (Code::MissingField, 4),
                (Code::WrongShape, 4),
                (Code::WrongShape, 5),
                (Code::InvalidValue, 6),
                (Code::WrongShape, 6),
            ],
        );
    }

    #[test]
    fn aliases_and_merges_stand_for_what_they_refer_to() {
        let text = "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: p}\nspec:\n  tenants:\n  \
                    - {name: a, sources: [10.0.0.0/24], limits: &limits {burst: 2s, packetsPerSecond: 5}, labels: &l {x: y}}\n  \
                    - {name: b, sources: [10.0.1.0/24], limits: {<<: *limits, burst: 3s}, labels: *l}\n  \
                    - {name: c, sources: [10.0.2.0/24], labels: {<<: [*l, {x: z, w: v}]}}\n";
        let policy = load("p.yaml", text).policy.expect("it is right");
        let [a, b, c] = policy.tenants.as_slice() else {
            panic!("there are three")
        };
        assert_eq!(
            (a.limits.burst_ns, a.limits.packets_per_second),
            (2_000_000_000, Some(5))
        );
        assert_eq!(
            (b.limits.burst_ns, b.limits.packets_per_second),
            (3_000_000_000, Some(5))
        );
        assert_eq!(a.labels, b.labels);
        let labels: Vec<_> = c
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(labels, ["w=v", "x=y"]);
    }

    #[test]
    fn what_an_alias_brings_is_reported_where_the_alias_stands() {
        let text = "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: p}\nspec:\n  tenants:\n  \
                    - {name: a, sources: &s [10.0.0.0/24]}\n  - {name: b, sources: *s}\n";
        let [problem] = problems(text).try_into().expect("there is one problem");
        assert_eq!(
            (problem.code, problem.line, problem.column),
            (Code::Conflict, 7, 24)
        );
        assert!(problem.help.contains("line 6, column 28"), "{}", problem.help);
    }

    #[test]
    fn alias_bombs_are_refused_within_the_budget() {
        // Every level has ten times as many labels; only what is read counts, so it stands where it is read.
        let mut text =
            "apiVersion: enforcer.dev/v1\nspec:\n  tenants: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("  a{level}: &a{level} [{previous}]\n");
        }
        let unread = problems(&text);
        assert!(
            unread.iter().all(|found| found.code != Code::TooLarge),
            "{unread:#?}"
        );
        let text = format!("{text}  rules: *a11\n");
        let read = problems(&text);
        assert!(
            read.iter().any(|found| found.code == Code::UnknownField),
            "{read:#?}"
        );

        // A list of merges of lists of merges is read to its end.
        let mut bomb = "m0: &m0 {x: y}\n".to_owned();
        for level in 1..12 {
            let previous = format!("*m{}, ", level - 1).repeat(10);
            bomb += &format!("m{level}: &m{level} [{previous}]\n");
        }
        let found = problems(&format!("{bomb}spec: {{<<: *m11}}\n"));
        assert!(
            found.iter().any(|found| found.code == Code::TooLarge),
            "{found:#?}"
        );
    }

    #[test]
    fn what_is_too_deep_or_too_much_is_refused() {
        for text in [
            format!("apiVersion: {}", "[".repeat(100_000)),
            format!("{}x", "- ".repeat(100_000)),
            "---\nx: 1\n".repeat(1000),
            format!("a: &a x\nb: [{}]", "*a,".repeat(5000)),
            "a: &a [*a]".to_owned(),
            "a: !x y".to_owned(),
            "#".repeat(MAX_TEXT_BYTES + 1),
        ] {
            let found = problems(&text);
            let code = found.last().expect("something is wrong").code;
            assert!(matches!(code, Code::TooLarge | Code::Yaml), "{found:#?}");
            assert_eq!(found.len(), 1, "{found:#?}");
        }
    }

    #[test]
    fn a_syntax_error_in_one_text_hides_no_problem_of_another() {
        let texts = [
            PolicySource::new("a.yaml", "apiVersion: enforcer.dev/v1\nspec: [\n"),
            PolicySource::new("b.yaml", "kindd: x\n"),
        ];
        let diagnostics = super::super::load_all(&texts).diagnostics;
        let found: Vec<_> = diagnostics
            .iter()
            .map(|found| (found.file.as_str(), found.code))
            .collect();
        assert_eq!(found[0], ("a.yaml", Code::Yaml));
        assert!(found.contains(&("b.yaml", Code::UnknownField)), "{found:?}");
    }
}
