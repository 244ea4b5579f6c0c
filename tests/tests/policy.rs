//! The policies of `policies/`: the good ones load without a word, the bad ones say exactly what their golden text says.
//!
//! `BLESS=1 cargo test -p enforcer-tests --test policy` writes the golden texts anew; read the difference.

use std::fs;
use std::path::{Path, PathBuf};

use enforcer_agent::pure::policy::diagnostic::render_all;
use enforcer_agent::pure::policy::{Outcome, PolicySource, Severity, load, load_all, schema};
use serde_json::Value;

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
    check_golden("rejected", 110, false);
}

#[test]
fn doubtful_policies_are_warned_about() {
    check_golden("warned", 12, true);
}

#[test]
fn digests_of_the_samples_are_pinned() {
    // A change of these means that hosts with different releases cannot prove that they enforce the same policy.
    for (name, expected) in [
        (
            "quickstart.yaml",
            "dd11480d34ba01ebfa266fc63728a96d0d8986f0742fb351c2406ba6164e61dc",
        ),
        (
            "residency.yaml",
            "926878c4a34bb8d5dd3c03cc3ece6a1a3c8d1af96df0bad30cc7b588f8565b89",
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

/// Compares a text that is made from the types with its file, which is in the repository so that people can read it.
fn check_generated(path: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, expected).expect("the file can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is not what the types say; BLESS=1 writes it anew",
        path.display()
    );
}

#[test]
fn the_schema_and_the_reference_are_those_of_the_types() {
    check_generated("policies/schema.json", &schema::text());
    check_generated("docs/policy-reference.md", &schema::reference());
}

/// What an independent validator says about the documents of a policy: the first thing that is wrong.
fn validate(validator: &jsonschema::Validator, path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| error.to_string())?;
    for document in documents {
        validator
            .validate(&document)
            .map_err(|error| format!("{error} at {}", error.instance_path()))?;
    }
    Ok(())
}

#[test]
fn an_independent_validator_agrees_with_the_schema() {
    let validator = jsonschema::draft202012::new(&schema::schema()).expect("the schema is right");
    for place in [".", "warned"] {
        for (name, path) in policies(place) {
            assert_eq!(validate(&validator, &path), Ok(()), "{place}/{name}");
        }
    }
    // What is wrong with the shape of a policy, or with a value alone, is wrong to an editor as well.
    for name in [
        "wrong-shape",
        "unknown-field",
        "null-limit",
        "missing-field",
        "wrong-kind",
        "health-check-both",
        "health-check-nothing",
        "empty-selector",
        "negative-rate",
        "zero-rate",
        "burst-without-unit",
        "source-without-length",
        "address-is-a-name",
        "port-zero",
        "port-name",
        "quota-period",
        "quota-metric",
        "unknown-action",
        "expression-operator",
        "schedule-time",
        "schedule-empty",
        "class-shed-without-percent",
        "failover-share",
        "default-action",
        "telemetry-https",
        "constraint-names",
        "label-key",
        "name-too-long",
    ] {
        let path = directory("rejected").join(name).with_extension("yaml");
        let found = validate(&validator, &path);
        assert!(found.is_err(), "{name} passes the schema");
    }
}

/// A policy in several texts is the policy in one, whatever stands in which; and what is wrong names its text.
#[test]
fn a_policy_can_be_split_over_several_texts() {
    let whole = fs::read_to_string(directory("quickstart.yaml")).unwrap();
    let (head, spec) = whole.split_once("\nspec:\n").expect("there is a spec");
    let (front, back) = spec.split_at(spec.find("  # Groups of back ends").expect("there are pools"));
    let part = |file: &str, body: &str| PolicySource::new(file, format!("{head}\nspec:\n{body}"));
    let digest = |texts: &[PolicySource]| load_all(texts).policy.expect("it is right").digest();
    let split = [part("a.yaml", front), part("b.yaml", back)];
    assert_eq!(
        digest(&split),
        digest(&[PolicySource::new("p.yaml", whole.as_str())])
    );

    let wrong = [
        part("a.yaml", front),
        part("b.yaml", &back.replace("gpu-3", "gpu-2")),
    ];
    let outcome = load_all(&wrong);
    let [problem] = outcome.diagnostics.as_slice() else {
        panic!("{:#?}", outcome.diagnostics)
    };
    assert_eq!(problem.file, "b.yaml");
    assert!(problem.help.contains(" of `b.yaml`"), "{}", problem.help);
    let rules = load_all(&split).policy.expect("it is right").rules;
    assert!(
        rules
            .iter()
            .all(|rule| rule.file.as_deref() == Some("b.yaml") && rule.line > 0)
    );
}
