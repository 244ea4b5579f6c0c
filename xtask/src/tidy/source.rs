//! Reading Rust text far enough for the rules: what is code and what is not, which paths are imported, how long a
//! function is, where the tests begin. It takes any text; on text that is no Rust its answers are merely useless.

/// The text with the insides of comments, strings and characters turned into spaces. Lines stay where they were.
pub(super) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => end_of_line(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => end_of_block_comment(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'r' | b'b' | b'c' if !ends_in_word(&code) => end_of_prefixed_string(bytes, at).unwrap_or(at),
            b'\'' => end_of_character(text, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            // Not ASCII outside comments and strings: an identifier at most, of no interest to a rule.
            code.push(if bytes[at].is_ascii() {
                char::from(bytes[at])
            } else {
                '_'
            });
            at += 1;
        } else {
            code.extend(
                bytes[at..end]
                    .iter()
                    .map(|byte| if *byte == b'\n' { '\n' } else { ' ' }),
            );
            at = end;
        }
    }
    code
}

fn ends_in_word(code: &str) -> bool {
    code.ends_with(|character: char| character.is_ascii_alphanumeric() || character == '_')
}

fn end_of_line(bytes: &[u8], start: usize) -> usize {
    bytes[start..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |length| start + length)
}

fn end_of_block_comment(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `b"..."`, `c"..."`, `r"..."`, `r#"..."#` and their combinations; `None` if this is no string.
fn end_of_prefixed_string(bytes: &[u8], start: usize) -> Option<usize> {
    let prefix = bytes[start..]
        .iter()
        .take_while(|byte| b"rbc".contains(byte))
        .count();
    let hashes = bytes[start + prefix..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    let quote = start + prefix + hashes;
    if prefix > 2 || bytes.get(quote) != Some(&b'"') {
        return None;
    }
    if !bytes[start..start + prefix].contains(&b'r') {
        return (hashes == 0).then(|| end_of_string(bytes, quote));
    }
    let mut closing = vec![b'"'];
    closing.resize(1 + hashes, b'#');
    let length = bytes[quote + 1..]
        .windows(closing.len())
        .position(|window| window == closing);
    Some(length.map_or(bytes.len(), |length| quote + 1 + length + closing.len()))
}

/// `'x'` or an escape; `None` for a lifetime or label.
fn end_of_character(text: &str, start: usize) -> Option<usize> {
    let mut rest = text.get(start + 1..)?.char_indices();
    let (_, first) = rest.next()?;
    if first == '\\' {
        rest.next();
        return text[start + 1..]
            .char_indices()
            .skip(2)
            .find(|(_, c)| *c == '\'')
            .map(|(at, _)| start + at + 2);
    }
    let (at, second) = rest.next()?;
    (second == '\'').then_some(start + at + 2)
}

/// The line of a byte offset, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

/// Offsets at which `word` stands as a whole word.
pub(super) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    code.match_indices(word)
        .map(|(offset, _)| offset)
        .filter(move |offset| {
            !code[..*offset].ends_with(is_part) && !code[offset + word.len()..].starts_with(is_part)
        })
}

/// Every imported path with its line, groups written out: `use a::{b, c::d};` gives `a::b` and `a::c::d`.
pub(super) fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for start in words(code, "use") {
        let tree = &code[start + 3..];
        // `impl Trait + use<'a>` is no import.
        let Some(end) = tree.find(';').filter(|_| !tree.trim_start().starts_with('<')) else {
            continue;
        };
        let tree: String = tree[..end].split_whitespace().collect::<Vec<_>>().join(" ");
        let mut paths = Vec::new();
        flatten("", &tree, &mut paths);
        found.extend(paths.into_iter().map(|path| (line_of(code, start), path)));
    }
    found
}

fn flatten(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree).trim();
        if !path.is_empty() {
            paths.push(format!("{prefix}{path}"));
        }
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let group = group.rsplit_once('}').map_or(group, |(inside, _)| inside);
    let mut depth = 0_usize;
    let mut start = 0;
    for (offset, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                flatten(&prefix, &group[start..offset], paths);
                start = offset + 1;
            }
            _ => {}
        }
    }
    flatten(&prefix, &group[start..], paths);
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// The line of `fn`, counted from 1.
    pub(super) line: usize,
    /// Lines from there to the closing brace, both included.
    pub(super) lines: usize,
}

/// Every function that has a body.
pub(super) fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for start in words(code, "fn") {
        let rest = &code[start + 2..];
        let name: String = rest
            .trim_start()
            .chars()
            .take_while(|character| character.is_ascii_alphanumeric() || *character == '_')
            .collect();
        let Some(end) = end_of_body(rest).filter(|_| !name.is_empty()) else {
            continue;
        };
        let line = line_of(code, start);
        found.push(Function {
            name,
            line,
            lines: line_of(code, start + 2 + end) - line + 1,
        });
    }
    found
}

/// The offset of the brace that closes the first body; `None` if a `;` comes first.
fn end_of_body(rest: &str) -> Option<usize> {
    let mut brackets = 0_i32;
    let mut braces = 0_i32;
    for (offset, character) in rest.char_indices() {
        match character {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(offset);
                }
            }
            ';' if braces == 0 && brackets == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The number of lines before the file's own tests.
pub(super) fn lines_before_tests(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    let is_tests = |at: &usize| {
        lines[*at].starts_with("#[cfg(test)]")
            && lines[*at + 1..]
                .iter()
                .take(3)
                .any(|line| line.trim_start().starts_with("mod "))
    };
    (0..lines.len()).find(is_tests).unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_blanked() {
        let text =
            "a /* x /* y */ z */ b // c\n\"d\\\"e\" 'f' '\\n' '\\u{1F600}' 'life r#\"g\"h\"# br\"i\" j";
        let code = code_only(text);
        assert_eq!(code.len(), text.len());
        let left: Vec<&str> = code.split_whitespace().collect();
        assert_eq!(left, ["a", "b", "'life", "j"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn unfinished_text_ends_where_it_ends() {
        for text in ["\"abc", "/* abc", "r#\"abc\"", "'", "'\\", "b", "\"\\", "é'é'"] {
            let code = code_only(text);
            assert!(code.is_ascii(), "{text}");
        }
    }

    #[test]
    fn groups_of_imports_are_written_out() {
        let code = "use std::{fs, io::{self, Read as _}, net::IpAddr};\npub(crate) use a::b;\nfn f() -> impl T + use<'a> {}\n";
        let paths: Vec<String> = imports(code).into_iter().map(|(_, path)| path).collect();
        assert_eq!(
            paths,
            [
                "std::fs",
                "std::io::self",
                "std::io::Read",
                "std::net::IpAddr",
                "a::b"
            ]
        );
        assert_eq!(imports(code)[4].0, 2);
    }

    #[test]
    fn functions_are_measured_to_their_closing_brace() {
        let code = "fn a() { if x { y } }\ntrait T { fn b(&self) -> [u8; 4]; }\nfn c<T>(f: fn(T) -> T)\nwhere T: X\n{\n}\n";
        let function = |name: &str, line, lines| Function {
            name: name.into(),
            line,
            lines,
        };
        assert_eq!(functions(code), [function("a", 1, 1), function("c", 3, 4)]);
    }

    #[test]
    fn tests_at_the_end_do_not_count() {
        assert_eq!(lines_before_tests("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(
            lines_before_tests("a\nb\n#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;\n"),
            2
        );
        assert_eq!(lines_before_tests("a\n#[cfg(test)]\nuse b;\nc\nd\ne\n"), 6);
    }

    #[test]
    fn words_stand_alone() {
        assert_eq!(
            words("unsafe_code unsafe { my_unsafe }", "unsafe").collect::<Vec<_>>(),
            [12]
        );
    }
}
