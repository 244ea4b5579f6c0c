//! Scalars that need nothing but themselves: names, labels, numbers, durations, choices.
//!
//! Each reader reports what is wrong and answers `None`.

use std::ops::RangeInclusive;

use super::super::bounds::{MAX_NAME_BYTES, MAX_URL_BYTES};
use super::super::diagnostic::{Code, Reporter};
use super::super::model::{Choice, LabelTexts, Scalar, Text};
use super::super::quantity;
use super::super::resolved::{Labels, PortRange};
use super::super::suggest::{alternatives, nearest, quoted};

const NAME_FORM: &str = "Use 1 to 63 letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends, as Kubernetes does.";

/// Whether a text can be a name, a label key or a label value: such names need no quoting in logs, metrics and shells.
fn is_name(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME_BYTES
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// A name.
pub(super) fn name(reporter: &mut Reporter<'_>, text: &Text) -> Option<String> {
    if is_name(&text.value) {
        return Some(text.value.clone());
    }
    reporter.error(
        Code::InvalidName,
        text,
        format!("{} cannot be a name", quoted(&text.value)),
        NAME_FORM,
    );
    None
}

/// Labels; those that are wrong are left out.
pub(super) fn labels(reporter: &mut Reporter<'_>, texts: Option<&LabelTexts>) -> Labels {
    let mut labels = Labels::new();
    for (key, value) in texts.map(|texts| texts.entries.as_slice()).unwrap_or_default() {
        if !is_name(&key.value) {
            let message = format!("{} cannot be the key of a label", quoted(&key.value));
            reporter.error(Code::InvalidName, key, message, NAME_FORM);
        } else if let Some(value) = label_value(reporter, value) {
            labels.insert(key.value.clone(), value);
        }
    }
    labels
}

/// The value of a label.
pub(super) fn label_value(reporter: &mut Reporter<'_>, text: &Text) -> Option<String> {
    if is_name(&text.value) {
        return Some(text.value.clone());
    }
    let message = format!("{} cannot be the value of a label", quoted(&text.value));
    reporter.error(Code::InvalidName, text, message, NAME_FORM);
    None
}

/// A whole number within a range, without a unit.
pub(super) fn number(
    reporter: &mut Reporter<'_>,
    text: &Text,
    range: RangeInclusive<i64>,
    what: &str,
) -> Option<i64> {
    let digits = text.value.strip_prefix('-').unwrap_or(&text.value);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let value = text
        .value
        .parse::<i64>()
        .ok()
        .filter(|value| plain && range.contains(value));
    if value.is_none() {
        let message = format!("{} is no {what}", quoted(&text.value));
        let help = format!("It is a whole number from {} to {}.", range.start(), range.end());
        reporter.error(Code::InvalidValue, text, message, help);
    }
    value
}

/// A port.
pub(super) fn port(reporter: &mut Reporter<'_>, text: &Text) -> Option<u16> {
    let value = number(reporter, text, 1..=i64::from(u16::MAX), "port")?;
    u16::try_from(value).ok()
}

/// A port, or several in a row: `8000-8010`.
pub(super) fn ports(reporter: &mut Reporter<'_>, text: &Text) -> Option<PortRange> {
    let Some((first, last)) = text.value.split_once('-') else {
        return port(reporter, text).map(PortRange::from);
    };
    let end = |digits: &str| {
        let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|port| is_plain && *port > 0)
    };
    let range = end(first)
        .zip(end(last))
        .map(|(first, last)| PortRange { first, last })
        .filter(|range| range.first <= range.last);
    if range.is_none() {
        let message = format!("{} is no range of ports", quoted(&text.value));
        let help = "It is the first port, `-` and the last one, such as `8000-8010`, from 1 to 65535.";
        reporter.error(Code::InvalidValue, text, message, help);
    }
    range
}

/// A positive number of 32 bits.
pub(super) fn positive(reporter: &mut Reporter<'_>, text: &Text, most: u32, what: &str) -> Option<u32> {
    let value = number(reporter, text, 1..=i64::from(most), what)?;
    u32::try_from(value).ok()
}

/// A duration within a range, in nanoseconds.
pub(super) fn duration_ns(
    reporter: &mut Reporter<'_>,
    text: &Text,
    range_ns: RangeInclusive<u64>,
    what: &str,
) -> Option<u64> {
    let form = quantity::DURATION_FORM;
    let duration = match quantity::duration(&text.value) {
        Ok(duration) => duration,
        Err(error) => {
            let message = format!("{} is no {what}: {error}", quoted(&text.value));
            reporter.error(Code::InvalidValue, text, message, format!("It is {form}."));
            return None;
        }
    };
    let value_ns = u64::try_from(duration.as_nanos())
        .ok()
        .filter(|value_ns| range_ns.contains(value_ns));
    if value_ns.is_none() {
        let shown = |bound_ns: &u64| humantime::format_duration(std::time::Duration::from_nanos(*bound_ns));
        let message = format!("{} is out of range", quoted(&text.value));
        let help = format!(
            "A {what} lasts from {} to {}.",
            shown(range_ns.start()),
            shown(range_ns.end())
        );
        reporter.error(Code::InvalidValue, text, message, help);
    }
    value_ns
}

/// One of a few words.
pub(super) fn choice<C: Choice>(reporter: &mut Reporter<'_>, text: &Scalar<C>) -> Option<C> {
    let chosen = C::WORDS
        .iter()
        .find(|(word, _)| *word == text.value)
        .map(|(_, value)| *value);
    if chosen.is_none() {
        let words = C::words();
        let help = match nearest(&text.value, words.iter().copied()) {
            Some(word) => format!("Did you mean `{word}`?"),
            None => format!("There is {}.", alternatives(&words)),
        };
        let message = format!("{} is no {}", quoted(&text.value), C::WHAT);
        reporter.error(Code::InvalidValue, text, message, help);
    }
    chosen
}

/// `true` or `false`.
pub(super) fn flag(reporter: &mut Reporter<'_>, text: &Text) -> Option<bool> {
    let value = text.value.parse().ok();
    if value.is_none() {
        let message = format!("{} is neither `true` nor `false`", quoted(&text.value));
        reporter.error(Code::InvalidValue, text, message, "There is `true` or `false`.");
    }
    value
}

/// A percentage.
pub(super) fn percentage(reporter: &mut Reporter<'_>, text: &Text) -> Option<u8> {
    quantity::percentage(&text.value)
        .inspect_err(|error| {
            let message = format!("{} is no share: {error}", quoted(&text.value));
            reporter.error(Code::InvalidValue, text, message, "Write it like `50%`.");
        })
        .ok()
}

/// A count, from 0.
pub(super) fn count(reporter: &mut Reporter<'_>, text: &Text) -> Option<u64> {
    quantity::count(&text.value)
        .inspect_err(|error| {
            let message = format!("{} is no limit: {error}", quoted(&text.value));
            reporter.error(
                Code::InvalidValue,
                text,
                message,
                format!("It is {}.", quantity::COUNT_FORM),
            );
        })
        .ok()
}

/// An `http` URL of an address or name, to be asked for metrics.
pub(super) fn http_url(reporter: &mut Reporter<'_>, text: &Text) -> Option<String> {
    let uri = Some(&text.value)
        .filter(|url| url.len() <= MAX_URL_BYTES)
        .and_then(|url| url.parse::<http::Uri>().ok());
    let usable = uri.is_some_and(|uri| {
        let authority = uri.authority().map(http::uri::Authority::as_str);
        // User and password would end up in logs and in `policy show`.
        uri.scheme_str() == Some("http") && authority.is_some_and(|authority| !authority.contains('@'))
    });
    if !usable {
        let message = format!("{} is no URL that can be asked for metrics", quoted(&text.value));
        let help = "Write it like `http://10.9.0.1:9400/metrics`: plain HTTP, without user and password.";
        reporter.error(Code::InvalidValue, text, message, help);
        return None;
    }
    Some(text.value.clone())
}

/// The path of an HTTP probe.
pub(super) fn http_path(reporter: &mut Reporter<'_>, text: &Text) -> Option<String> {
    let path = &text.value;
    let usable = path.starts_with('/')
        && path.len() <= MAX_URL_BYTES
        && path
            .parse::<http::uri::PathAndQuery>()
            .is_ok_and(|parsed| parsed.as_str() == path);
    if !usable {
        let message = format!("{} is no path", quoted(path));
        reporter.error(
            Code::InvalidValue,
            text,
            message,
            "A path starts with `/`, such as `/health`.",
        );
        return None;
    }
    Some(path.clone())
}
