//! The promises of SPECIFICATION.md: each has a number for ever, and names the tests that keep it or says that it is
//! pending.

use super::{Files, Finding, source};

const SPECIFICATION: &str = "SPECIFICATION.md";
/// What stands where no test keeps a promise yet.
const PENDING: &str = "Pending";

/// A promise: from its number to the next one's.
struct Promise<'a> {
    number: usize,
    /// Of its first line, counted from 1.
    line: usize,
    text: Vec<&'a str>,
}

/// Every promise names a test that exists, or says that it is pending; their numbers count up from 1.
pub(super) fn promises_name_their_tests(files: &Files) -> Vec<Finding> {
    let Some(document) = files.0.get(SPECIFICATION) else {
        return vec![finding(
            0,
            "is missing; it holds the promises and the tests that keep them".to_owned(),
        )];
    };
    let mut findings = Vec::new();
    let promises = promises(document);
    if promises.is_empty() {
        findings.push(finding(
            0,
            "no promise was recognised: `**P1** What is promised.`".to_owned(),
        ));
    }
    for (index, promise) in promises.iter().enumerate() {
        let (number, expected) = (promise.number, index + 1);
        if number != expected {
            findings.push(finding(
                promise.line,
                format!("P{number} stands where P{expected} follows"),
            ));
        }
        let tests: Vec<(usize, &str)> = tests_of(promise).collect();
        let is_pending = promise
            .text
            .iter()
            .any(|line| source::words(line, PENDING).next().is_some());
        if tests.is_empty() && !is_pending {
            let message = format!("P{number} names no test and does not say `{PENDING}`");
            findings.push(finding(promise.line, message));
        }
        for (line, test) in tests {
            if !exists(files, test) {
                findings.push(finding(
                    line,
                    format!("P{number} names `{test}`, which is not there"),
                ));
            }
        }
    }
    findings
}

fn promises(document: &str) -> Vec<Promise<'_>> {
    let mut promises: Vec<Promise<'_>> = Vec::new();
    for (index, text) in document.lines().enumerate() {
        let number = text
            .strip_prefix("**P")
            .and_then(|rest| rest.split_once("**"))
            .and_then(|(number, _)| number.parse().ok());
        match (number, promises.last_mut()) {
            (Some(number), _) => promises.push(Promise {
                number,
                line: index + 1,
                text: vec![text],
            }),
            (None, Some(promise)) => promise.text.push(text),
            (None, None) => {}
        }
    }
    promises
}

/// `path/to/file.rs::name` between backticks, with the line where it stands.
fn tests_of<'a>(promise: &'a Promise<'a>) -> impl Iterator<Item = (usize, &'a str)> {
    promise.text.iter().enumerate().flat_map(move |(offset, line)| {
        line.split('`')
            .skip(1)
            .step_by(2)
            .filter(|quoted| quoted.contains(".rs::"))
            .map(move |quoted| (promise.line + offset, quoted))
    })
}

fn exists(files: &Files, test: &str) -> bool {
    let Some((path, name)) = test.rsplit_once("::") else {
        return false;
    };
    files.0.get(path).is_some_and(|text| {
        let code = source::code_only(text);
        source::words(&code, name)
            .any(|at| code[..at].ends_with("fn ") && code[at + name.len()..].starts_with('('))
    })
}

fn finding(line: usize, message: String) -> Finding {
    Finding {
        path: SPECIFICATION.to_owned(),
        line,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(specification: &str) -> Vec<(usize, String)> {
        let code = "/// fn no_code()\n#[test]\nfn it_holds() {}\nfn it_holds_for_long() {}\n";
        let entries = [("a/b.rs", code), (SPECIFICATION, specification)];
        let files = Files(
            entries
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
        );
        let found = promises_name_their_tests(&files);
        found
            .into_iter()
            .map(|finding| (finding.line, finding.message))
            .collect()
    }

    #[test]
    fn promises_with_tests_and_pending_ones_pass() {
        let text = "# Promises\n\n**P1** It holds.\n  `a/b.rs::it_holds`\n\n**P2** So does `this`.\n  Pending: no test.\n";
        assert_eq!(findings(text), []);
    }

    #[test]
    fn what_is_not_there_is_found_at_its_line() {
        for (text, line, part) in [
            ("", 0, "no promise"),
            ("**P1** It holds.\n", 1, "names no test"),
            ("**P1** It holds.\n`a/b.rs::it`\n", 2, "a/b.rs::it"),
            ("**P1** It holds.\n`a/b.rs::no_code`\n", 2, "not there"),
            ("**P1** It holds.\n`a/c.rs::it_holds`\n", 2, "not there"),
            ("**P2** It holds. `a/b.rs::it_holds`\n", 1, "P1 follows"),
        ] {
            let found = findings(text);
            assert!(
                matches!(&found[..], [(at, message)] if *at == line && message.contains(part)),
                "{text:?}: {found:?}"
            );
        }
    }

    #[test]
    fn a_specification_is_required() {
        assert_eq!(promises_name_their_tests(&Files::default()).len(), 1);
    }
}
