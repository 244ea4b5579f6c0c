//! "Did you mean": the nearest of a set of names, and text from outside made safe to print.

use super::bounds::{MAX_NAME_BYTES, MAX_URL_BYTES};

/// The candidate nearest to `wanted`, if one is near enough to be a slip of the fingers: at most a third of the letters
/// differ, counting a swap of two neighbours as one (Damerau-Levenshtein), without regard to upper or lower case.
pub(super) fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance costs the product of both lengths; no valid name is longer than this.
    if wanted.len() > 2 * MAX_NAME_BYTES {
        return None;
    }
    let wanted = wanted.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(wanted.len()))
        // The name breaks a tie, so that the answer does not depend on the order of the candidates.
        .min()
        .map(|(_, candidate)| candidate)
}

/// Text from outside between backticks: control characters escaped, so that a policy cannot drive the terminal of the one
/// who checks it, and cut to a length that a line can hold.
pub(super) fn quoted(text: &str) -> String {
    quoted_up_to(text, MAX_NAME_BYTES)
}

/// The same for the path of a file, which may be longer.
pub(super) fn quoted_path(path: &str) -> String {
    quoted_up_to(path, MAX_URL_BYTES)
}

fn quoted_up_to(text: &str, most_chars: usize) -> String {
    let mut shown: String = text.chars().take(most_chars).flat_map(escaped).collect();
    if text.chars().nth(most_chars).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

fn escaped(character: char) -> impl Iterator<Item = char> {
    let keep = !character.is_control() && !is_bidi_control(character);
    let plain = keep.then_some(character);
    let escape = (!keep).then(|| character.escape_default()).into_iter().flatten();
    plain.into_iter().chain(escape)
}

/// The characters that reorder text on a screen, with which a policy could be made to read as what it is not.
pub(super) const fn is_bidi_control(character: char) -> bool {
    matches!(character, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `a`, `b` or `c`, for help texts.
pub(super) fn alternatives(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["bytesPerSecond", "packetsPerSecond", "burst"];
        assert_eq!(nearest("bytePerSecond", names), Some("bytesPerSecond"));
        assert_eq!(nearest("bytespersecond", names), Some("bytesPerSecond"));
        assert_eq!(nearest("brust", names), Some("burst"));
        assert_eq!(nearest("colour", names), None);
        assert_eq!(nearest(&"x".repeat(10_000), names), None);
        assert_eq!(
            nearest("ac", ["ab", "aa"]),
            None,
            "a third of the letters is the bound"
        );
    }

    #[test]
    fn printed_text_cannot_drive_a_terminal() {
        assert_eq!(quoted("a\u{1b}[2Jb"), "`a\\u{1b}[2Jb`");
        assert_eq!(quoted("a\u{202e}b"), "`a\\u{202e}b`");
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), MAX_NAME_BYTES + 3);
    }
}
