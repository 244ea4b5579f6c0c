//! The policies of `policies/`: the good ones load without a word, the bad ones say exactly what their golden text says.
//!
//! `BLESS=1 cargo test -p enforcer-tests --test policy` writes the golden texts anew; read the difference.

use std::fs;
use std::path::{Path, PathBuf};

use enforcer_agent::pure::policy::diagnostic::render_all;
use enforcer_agent::pure::policy::{Outcome, Severity, load};

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../policies")
        .join(name)
}

/// Every policy of a directory, by name of its file.
fn policies(name: &str) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(directory(name))
        .expect("the directory exists")
        .map(|entry| entry.expect("the directory can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            (
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                path,
            )
        })
        .collect();
    found.sort();
    found
}

fn load_file(name: &str, path: &Path) -> Outcome {
    load(name, &fs::read_to_string(path).expect("the policy can be read"))
}

/// Compares what a directory's policies say with the golden texts beside them.
fn check_golden(directory: &str, least: usize, usable: bool) {
    let policies = policies(directory);
    assert!(
        policies.len() >= least,
        "only {} policies in {directory}",
        policies.len()
    );
    let mut wrong = Vec::new();
    for (name, path) in policies {
        let outcome = load_file(&name, &path);
        assert_eq!(
            outcome.policy.is_some(),
            usable,
            "{directory}/{name}: {:#?}",
            outcome.diagnostics
        );
        assert!(
            !outcome.diagnostics.is_empty(),
            "{directory}/{name} should have something to say"
        );
        let said = render_all(&outcome.diagnostics, false);
        let golden = path.with_extension("stderr");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &said).expect("the golden text can be written");
        } else if fs::read_to_string(&golden).ok().as_deref() != Some(&said) {
            wrong.push(format!("{directory}/{name} says now:\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts this", wrong.join("\n"));
}

#[test]
fn samples_load_without_a_word() {
    let samples = policies(".");
    assert!(samples.len() >= 2);
    for (name, path) in samples {
        let outcome = load_file(&name, &path);
        assert_eq!(render_all(&outcome.diagnostics, false), "", "{name}");
        assert!(outcome.policy.is_some());
    }
}

#[test]
fn rejected_policies_say_why() {
    check_golden("rejected", 15, false);
}

#[test]
fn doubtful_policies_are_warned_about() {
    check_golden("warned", 4, true);
}

#[test]
fn digests_of_the_samples_are_pinned() {
    // A change of these means that hosts with different releases cannot prove that they enforce the same policy.
    for (name, expected) in [
        (
            "quickstart.yaml",
            "0486aee354cd14fc2b882d96bafc976f34c47f37e164fe5f87034e098325a8fb",
        ),
        (
            "residency.yaml",
            "96c831b15e1a8a2db1ce6845d4c010cd12b1fd0da7f36d36a61ccd55a39c4d4a",
        ),
    ] {
        let policy = load_file(name, &directory(name))
            .policy
            .expect("samples are right");
        assert_eq!(policy.digest().to_string(), expected, "{name}");
    }
}

#[test]
fn comments_and_formatting_do_not_change_the_digest() {
    let text = fs::read_to_string(directory("quickstart.yaml")).unwrap();
    let digest = |text: &str| {
        load("p.yaml", text)
            .into_result()
            .expect("the policy is right")
            .digest()
    };
    let without_comments: String = text
        .lines()
        .map(|line| format!("{}\n", line.split(" #").next().unwrap_or_default()))
        .collect();
    assert_ne!(text, without_comments);
    assert_eq!(digest(&text), digest(&without_comments));
    assert_eq!(
        digest(&text),
        digest(
            &text
                .replace("200k", "200000")
                .replace("burst: 2s", "burst: 2000ms")
        )
    );
    assert_ne!(digest(&text), digest(&text.replace("200k", "201k")));
    assert_ne!(digest(&text), digest(&text.replace("10.9.1.2", "10.9.1.3")));
}

/// No text, however damaged, makes it panic or take long; and whatever is refused says where.
#[test]
fn damaged_policies_are_refused_in_order() {
    let text = fs::read_to_string(directory("quickstart.yaml")).unwrap();
    // A fixed sequence (xorshift), so that a failure can be repeated.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    let mut refused = 0;
    for _ in 0..400 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = b"\n :-{}[]\"'#&*!|>%@\tax0"[random(22)],
                _ => {
                    bytes.remove(at);
                }
            }
        }
        let Ok(damaged) = String::from_utf8(bytes) else {
            continue;
        };
        let outcome = load("damaged.yaml", &damaged);
        let _ = render_all(&outcome.diagnostics, true);
        let has_error = outcome
            .diagnostics
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error);
        assert_eq!(outcome.policy.is_none(), has_error);
        refused += usize::from(has_error);
    }
    assert!(
        refused > 200,
        "only {refused} of 400 damaged policies were refused"
    );
}
