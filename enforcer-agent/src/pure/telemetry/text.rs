//! A reader of the Prometheus text exposition format, version 0.0.4, that also takes what OpenMetrics 1.0 adds
//! to a sample line (timestamps in seconds and exemplars).
//!
//! It owns turning bytes from a back end into samples of the few metrics that are asked for. It refuses to allocate for
//! lines that nobody asked for, and to guess: a line of a wanted metric that does not follow the format fails the
//! whole body, because the reader cannot know what else in it is damaged. Lines of other metrics are only counted.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::borrow::Cow;

use thiserror::Error;

/// What one body may cost. A back end is not trusted to be small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// Longest body, in bytes.
    pub body_bytes: usize,
    /// Most sample lines in a body, wanted or not.
    pub samples: usize,
    /// Longest single line, in bytes.
    pub line_bytes: usize,
    /// Most labels on a line of a wanted metric.
    pub labels: usize,
}

impl Default for TextLimits {
    /// A node with eight GPUs and a busy engine exposes about 5,000 lines in 1 MiB; these allow several times that.
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            samples: 50_000,
            line_bytes: 16 << 10,
            labels: 64,
        }
    }
}

/// Why a body was not taken. Line numbers start at 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TextError {
    #[error("the metrics body has {actual_bytes} bytes, more than the {limit_bytes} allowed")]
    BodyTooLarge { actual_bytes: usize, limit_bytes: usize },
    #[error("the metrics body is not UTF-8 from byte {offset_bytes} on; is it compressed?")]
    NotUtf8 { offset_bytes: usize },
    #[error("the metrics body has more than {limit} samples")]
    TooManySamples { limit: usize },
    #[error("line {line} of the metrics is longer than {limit_bytes} bytes")]
    LineTooLong { line: usize, limit_bytes: usize },
    #[error("line {line} of the metrics has more than {limit} labels")]
    TooManyLabels { line: usize, limit: usize },
    #[error("line {line} of the metrics, `{metric}`: {fault}")]
    Malformed {
        line: usize,
        metric: String,
        fault: LineFault,
    },
    #[error(
        "`{metric}` has more than {limit} different series; point the policy at one back end's own metrics"
    )]
    TooManySeries { metric: &'static str, limit: usize },
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LineFault {
    /// A label list that ends before its closing brace.
    #[error("the label list is not closed")]
    UnclosedLabels,
    /// A label without `=` and a quoted value.
    #[error("a label is not of the form name=\"value\"")]
    BadLabel,
    /// Nothing after the name and labels.
    #[error("the value is missing")]
    MissingValue,
    /// Something that is no number where the value belongs.
    #[error("the value is no number")]
    BadValue,
    /// Something after the value that is neither a timestamp nor an exemplar.
    #[error("there is something after the value that is no timestamp")]
    TrailingText,
}

/// The labels of one sample, in the order of the line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels<'a>(Vec<(&'a str, Cow<'a, str>)>);

impl Labels<'_> {
    /// The value of the label `name`, if the sample carries it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(label, _)| *label == name)
            .map(|(_, value)| value.as_ref())
    }
}

/// One sample of a wanted metric.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSample<'a> {
    /// The metric's name.
    pub name: &'a str,
    /// Its labels.
    pub labels: Labels<'a>,
    /// Its value as written; may be infinite or not a number.
    pub value: f64,
}

/// Calls `visit` for every sample of a metric whose name `wanted` accepts, in the order of the body.
///
/// # Errors
/// [`TextError`] for the first bound that the body exceeds, for the first wanted line that is malformed, and
/// whatever `visit` returns.
pub fn read_samples<'a>(
    body: &'a [u8],
    limits: &TextLimits,
    wanted: impl Fn(&str) -> bool,
    mut visit: impl FnMut(TextSample<'a>) -> Result<(), TextError>,
) -> Result<(), TextError> {
    if body.len() > limits.body_bytes {
        return Err(TextError::BodyTooLarge {
            actual_bytes: body.len(),
            limit_bytes: limits.body_bytes,
        });
    }
    let text = std::str::from_utf8(body).map_err(|error| TextError::NotUtf8 {
        offset_bytes: error.valid_up_to(),
    })?;
    let mut samples = 0;
    for (index, raw) in text.split('\n').enumerate() {
        let line = index + 1;
        if raw.len() > limits.line_bytes {
            return Err(TextError::LineTooLong {
                line,
                limit_bytes: limits.line_bytes,
            });
        }
        let content = raw.trim_matches([' ', '\t', '\r']);
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        samples += 1;
        if samples > limits.samples {
            return Err(TextError::TooManySamples {
                limit: limits.samples,
            });
        }
        let name_end = content.find(['{', ' ', '\t']).unwrap_or(content.len());
        let (name, rest) = content.split_at(name_end);
        if !wanted(name) {
            continue;
        }
        let (labels, value) = parse_rest(rest, limits.labels).map_err(|problem| match problem {
            RestProblem::TooManyLabels => TextError::TooManyLabels {
                line,
                limit: limits.labels,
            },
            RestProblem::Fault(fault) => TextError::Malformed {
                line,
                metric: name.to_owned(),
                fault,
            },
        })?;
        visit(TextSample { name, labels, value })?;
    }
    Ok(())
}

/// What stopped the reading of a line after its name.
enum RestProblem {
    TooManyLabels,
    Fault(LineFault),
}

impl From<LineFault> for RestProblem {
    fn from(fault: LineFault) -> Self {
        Self::Fault(fault)
    }
}

/// Reads what follows the name: labels, value, and an optional timestamp and exemplar, which are checked and dropped.
fn parse_rest(rest: &str, most_labels: usize) -> Result<(Labels<'_>, f64), RestProblem> {
    let (labels, rest) = match rest.trim_start_matches([' ', '\t']).strip_prefix('{') {
        Some(inside) => parse_labels(inside, most_labels)?,
        None => (Labels::default(), rest),
    };
    // An exemplar is `# {labels} value [timestamp]` and says nothing about the sample.
    let numbers = rest.split_once('#').map_or(rest, |(numbers, _)| numbers);
    let mut words = numbers.split([' ', '\t']).filter(|word| !word.is_empty());
    let value = words.next().ok_or(LineFault::MissingValue)?;
    let value = value.parse::<f64>().map_err(|_| LineFault::BadValue)?;
    let timestamp_reads = words.next().is_none_or(|word| word.parse::<f64>().is_ok());
    if !timestamp_reads || words.next().is_some() {
        return Err(LineFault::TrailingText.into());
    }
    Ok((labels, value))
}

/// Reads labels up to and with the closing brace, and returns them with the text after it.
fn parse_labels(mut rest: &str, most_labels: usize) -> Result<(Labels<'_>, &str), RestProblem> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((Labels(labels), after));
        }
        if rest.is_empty() {
            return Err(LineFault::UnclosedLabels.into());
        }
        if labels.len() == most_labels {
            return Err(RestProblem::TooManyLabels);
        }
        let (name, after_name) = rest.split_once('=').ok_or(LineFault::BadLabel)?;
        let name = name.trim_matches([' ', '\t']);
        let name_is_plain = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let quoted = after_name.trim_start_matches([' ', '\t']).strip_prefix('"');
        let (true, Some(quoted)) = (name_is_plain, quoted) else {
            return Err(LineFault::BadLabel.into());
        };
        let (value, after) = parse_quoted(quoted)?;
        labels.push((name, value));
        rest = after.trim_start_matches([' ', '\t']);
        match rest.strip_prefix(',') {
            Some(after_comma) => rest = after_comma,
            None if rest.starts_with('}') => {}
            None if rest.is_empty() => return Err(LineFault::UnclosedLabels.into()),
            None => return Err(LineFault::BadLabel.into()),
        }
    }
}

/// Reads a label value up to and with its closing quote. Borrows unless the value holds an escape.
fn parse_quoted(text: &str) -> Result<(Cow<'_, str>, &str), LineFault> {
    let mut end = None;
    let mut escaped = false;
    let mut has_escape = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => (escaped, has_escape) = (true, true),
            b'"' => {
                end = Some(index);
                break;
            }
            _ => {}
        }
    }
    let end = end.ok_or(LineFault::UnclosedLabels)?;
    // Both cut points are ASCII quotes, so they lie on character boundaries.
    let (value, after) = (&text[..end], &text[end + 1..]);
    Ok((
        if has_escape {
            Cow::Owned(unescape(value))
        } else {
            Cow::Borrowed(value)
        },
        after,
    ))
}

/// Resolves `\\`, `\"` and `\n`; any other escape stands for itself, as in Prometheus' own reader.
fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            plain.push(character);
            continue;
        }
        match characters.next() {
            Some('n') => plain.push('\n'),
            Some(escaped @ ('\\' | '"')) => plain.push(escaped),
            Some(other) => plain.extend(['\\', other]),
            None => plain.push('\\'),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Owned = (String, Vec<(String, String)>, f64);

    fn read(body: &[u8], limits: &TextLimits) -> Result<Vec<Owned>, TextError> {
        let mut samples = Vec::new();
        read_samples(
            body,
            limits,
            |name| name.starts_with("m"),
            |sample| {
                let labels = sample
                    .labels
                    .0
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value.into_owned()));
                samples.push((sample.name.to_owned(), labels.collect(), sample.value));
                Ok(())
            },
        )?;
        Ok(samples)
    }

    #[track_caller]
    fn check_one(line: &str, labels: &[(&str, &str)], value: f64) {
        let samples = read(line.as_bytes(), &TextLimits::default()).unwrap();
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(samples, vec![("m".to_owned(), labels, value)], "{line}");
    }

    #[track_caller]
    fn check_fault(line: &str, fault: LineFault) {
        let error = read(format!("# HELP m x\n{line}\n").as_bytes(), &TextLimits::default()).unwrap_err();
        assert_eq!(
            error,
            TextError::Malformed {
                line: 2,
                metric: "m".to_owned(),
                fault
            },
            "{line}"
        );
    }

    #[test]
    fn the_forms_that_exporters_print() {
        check_one("m 1", &[], 1.0);
        check_one("  m\t1.5e+06 1395066363000\r\n", &[], 1.5e6);
        check_one("m{} -0.5", &[], -0.5);
        check_one("m { a = \"x\" , b=\"y\", } 2", &[("a", "x"), ("b", "y")], 2.0);
        check_one("m{a=\"} , = { # \"} 3", &[("a", "} , = { # ")], 3.0);
        check_one(
            r#"m{a="q\"b\\n\nl\d"} +Inf"#,
            &[("a", "q\"b\\n\nl\\d")],
            f64::INFINITY,
        );
        check_one("m{a=\"ä\"} 4 # {trace_id=\"1\"} 0.67 1.5", &[("a", "ä")], 4.0);
    }

    #[test]
    fn not_a_number_is_read_as_such() {
        assert!(read(b"m NaN", &TextLimits::default()).unwrap()[0].2.is_nan());
    }

    #[test]
    fn malformed_lines_of_a_wanted_metric_fail_the_body() {
        check_fault("m", LineFault::MissingValue);
        check_fault("m{a=\"x\"}", LineFault::MissingValue);
        check_fault("m twelve", LineFault::BadValue);
        check_fault("m 1 2 3", LineFault::TrailingText);
        check_fault("m 1 later", LineFault::TrailingText);
        check_fault("m{a=\"x\" 1", LineFault::BadLabel);
        check_fault("m{a=\"x\"", LineFault::UnclosedLabels);
        check_fault("m{a=\"x} 1", LineFault::UnclosedLabels);
        check_fault("m{a=x} 1", LineFault::BadLabel);
        check_fault("m{=\"x\"} 1", LineFault::BadLabel);
        check_fault("m{", LineFault::UnclosedLabels);
    }

    #[test]
    fn lines_that_nobody_wants_are_not_judged() {
        assert_eq!(
            read(
                b"other{ broken\n{\"m.utf8\", a=\"b\"} 1\n",
                &TextLimits::default()
            ),
            Ok(Vec::new())
        );
    }

    #[test]
    fn every_bound_holds() {
        let limits = TextLimits {
            body_bytes: 40,
            samples: 2,
            line_bytes: 20,
            labels: 1,
        };
        assert_eq!(
            read(&[b'#'; 41], &limits),
            Err(TextError::BodyTooLarge {
                actual_bytes: 41,
                limit_bytes: 40
            })
        );
        assert_eq!(
            read(b"x 1\nx 1\nx 1", &limits),
            Err(TextError::TooManySamples { limit: 2 })
        );
        assert_eq!(
            read(&[b'm'; 21], &limits),
            Err(TextError::LineTooLong {
                line: 1,
                limit_bytes: 20
            })
        );
        assert_eq!(
            read(b"m{a=\"\",b=\"\"} 1", &limits),
            Err(TextError::TooManyLabels { line: 1, limit: 1 })
        );
        assert_eq!(
            read(b"m 1\n\xff", &limits),
            Err(TextError::NotUtf8 { offset_bytes: 4 })
        );
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body, &TextLimits::default());
        }

        #[test]
        fn no_line_makes_it_panic(line in "m[{}=\",\\\\ a#1\\n]{0,40}") {
            let _ = read(line.as_bytes(), &TextLimits::default());
        }

        #[test]
        fn label_values_survive_the_round_trip(value in "\\PC{0,20}") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let samples = read(format!("m{{a=\"{escaped}\"}} 1").as_bytes(), &TextLimits::default()).unwrap();
            prop_assert_eq!(&samples[0].1[0].1, &value);
        }
    }
}
