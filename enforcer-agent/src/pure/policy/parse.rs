//! Text to [`Document`]s, with a position for whatever is wrong.

use serde_saphyr::Error;

use super::bounds::{MAX_TEXT_BYTES, yaml_options};
use super::diagnostic::{Code, Diagnostic, Place, Severity};
use super::model::Document;
use super::suggest::{alternatives, nearest, quoted};

/// Fields that belong to the policy language, but that this version does not enforce, with what to do without them.
const NOT_ENFORCED: &[(&str, &str)] = &[
    ("class", "Service classes are not enforced by this version."),
    ("classes", "Service classes are not enforced by this version."),
    (
        "guaranteed",
        "Guaranteed rates are not enforced by this version; only `limits` are.",
    ),
    ("leaseSeconds", "Leases are not enforced by this version."),
    ("onLeaseExpiry", "Leases are not enforced by this version."),
    (
        "quotas",
        "Quotas are not enforced by this version; only `limits` are.",
    ),
    (
        "schedule",
        "Schedules are not enforced by this version: a rule holds at all times.",
    ),
    (
        "utilizationAbove",
        "Failover by utilization is not enforced by this version; only `healthyBelow` is.",
    ),
];

/// Reads the documents of a policy. `file` is only a name for the diagnostic.
///
/// # Errors
/// The first problem with the shape of the text: not YAML, too large, or an unknown, missing, repeated or null field.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Box<Diagnostic>> {
    let fail = |code, place, message, help| {
        Box::new(Diagnostic::at(
            file,
            text,
            Severity::Error,
            code,
            place,
            message,
            help,
        ))
    };
    if text.len() > MAX_TEXT_BYTES {
        let message = format!(
            "the policy has {} bytes; at most {MAX_TEXT_BYTES} are read",
            text.len()
        );
        // The text itself is not searched for an excerpt.
        let help = "Put sources that belong together into larger prefixes.".to_owned();
        return Err(fail(Code::TooLarge, Place::WHOLE, message, help));
    }
    let documents: Vec<Document> =
        serde_saphyr::from_multiple_with_options(text, yaml_options()).map_err(|error| {
            let place = error.location().map_or(Place::WHOLE, Place::from);
            let (code, message, help) = describe(&error);
            fail(code, place, message, help)
        })?;
    if documents.is_empty() {
        let help =
            "A policy starts with `apiVersion: enforcer.dev/v1`; `policies/quickstart.yaml` is an example.";
        return Err(fail(
            Code::MissingField,
            Place::WHOLE,
            "the policy is empty".to_owned(),
            help.to_owned(),
        ));
    }
    Ok(documents)
}

/// What to say about an error of the YAML reader.
fn describe(error: &Error) -> (Code, String, String) {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => describe(error),
        Error::SerdeUnknownField { field, expected, .. } => unknown_field(field, expected),
        Error::SerdeMissingField { field, .. } => (
            Code::MissingField,
            format!("the field {} is missing here", quoted(field)),
            format!("Add {}: it has no default.", quoted(field)),
        ),
        Error::DuplicateMappingKey { key, .. } => (
            Code::Duplicate,
            format!(
                "the field {} is given a second time",
                quoted(key.as_deref().unwrap_or("?"))
            ),
            "Keep one of the two.".to_owned(),
        ),
        Error::NullIntoString { .. } => (
            Code::WrongShape,
            "the value is missing (null)".to_owned(),
            "Give a value, or leave the whole field out to get its default.".to_owned(),
        ),
        Error::Unexpected { expected, .. } => (
            Code::WrongShape,
            format!("this should be {}", shape(expected)),
            "Compare it with the example in `policies/quickstart.yaml`.".to_owned(),
        ),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => (
            Code::TooLarge,
            format!(
                "the policy needs more than the YAML reader is given: {}",
                plain(error)
            ),
            "Use fewer aliases and less nesting; a policy needs neither.".to_owned(),
        ),
        other => (
            Code::Yaml,
            plain(other),
            "Correct the YAML at this place.".to_owned(),
        ),
    }
}

fn unknown_field(field: &str, expected: &[&str]) -> (Code, String, String) {
    let message = format!("there is no field {} here", quoted(field));
    let help = if let Some((_, why)) = NOT_ENFORCED.iter().find(|(name, _)| *name == field) {
        format!("{why} It is refused rather than ignored: remove it.")
    } else if let Some(name) = nearest(field, expected.iter().copied()) {
        format!("Did you mean `{name}`?")
    } else {
        format!("Here there can be {}.", alternatives(expected))
    };
    (Code::UnknownField, message, help)
}

/// The YAML reader's names of shapes, in the words of the people who write YAML.
fn shape(expected: &str) -> &str {
    match expected {
        "string scalar" => "a single value, no list and no mapping",
        "sequence start" => "a list (`- a` on lines of its own, or `[a, b]`)",
        "mapping start" => "a mapping (`name: value`)",
        other => other,
    }
}

/// The message of the YAML reader without the position, which the diagnostic shows by itself.
fn plain(error: &Error) -> String {
    let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let position = error
        .location()
        .map(|at| format!(" at line {}, column {}", at.line(), at.column()));
    let message = position
        .and_then(|position| message.strip_suffix(&position))
        .unwrap_or(&message);
    message
        .chars()
        .filter(|character| !character.is_control())
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Diagnostic {
        *parse("p.yaml", text).expect_err("the policy should be refused")
    }

    #[test]
    fn null_is_refused_where_a_default_exists() {
        for field in [
            "limits:",
            "limits: {burst: }",
            "limits: {burst: ~}",
            "labels:",
            "labels: {a: }",
        ] {
            let text = format!(
                "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {{name: p}}\n\
                 spec:\n  tenants:\n  - name: a\n    sources: []\n    {field}\n"
            );
            let problem = problem(&text);
            assert_eq!(
                (problem.code, problem.line),
                (Code::WrongShape, 8),
                "{field}: {problem:?}"
            );
        }
    }

    #[test]
    fn alias_bombs_are_refused_within_the_budget() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{previous}]\n");
        }
        // An unknown field at first sight; the bomb has to be under a field that is read.
        let text = format!("{text}\nspec: *a11\n");
        assert_eq!(problem(&text).severity, Severity::Error);
        let nested = format!("apiVersion: {}", "[".repeat(100_000));
        assert_eq!(problem(&nested).severity, Severity::Error);
        let many = "---\nx: 1\n".repeat(1000);
        assert_eq!(problem(&many).severity, Severity::Error);
    }

    #[test]
    fn a_text_over_the_size_is_refused_without_reading_it() {
        let problem = problem(&"#".repeat(MAX_TEXT_BYTES + 1));
        assert_eq!((problem.code, problem.line), (Code::TooLarge, 0));
    }
}
