//! Whatever text comes in as a policy, it is refused with a reason or compiles, and no text costs more than its bounds.

use std::fs;
use std::path::Path;

use enforcer_agent::pure::compile::compile;
use enforcer_agent::pure::neutral::Neutral;
use enforcer_agent::pure::policy::bounds::MAX_DIAGNOSTICS;
use enforcer_agent::pure::policy::diagnostic::render_all;
use enforcer_agent::pure::policy::{PolicySource, Severity, load_all};
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Words of the language, of YAML, and of those who wish it ill.
const WORDS: [&str; 64] = [
    "apiVersion: enforcer.dev/v1",
    "kind: GovernancePolicy",
    "metadata: {name: p}",
    "spec:",
    "  tenants:",
    "  services:",
    "  pools:",
    "  rules:",
    "  constraints:",
    "  classes:",
    "  defaults: {action: Deny}",
    "  protectedNetworks: [10.9.0.0/16]",
    "  - name: a",
    "  - {name: b}",
    "    name: a",
    "    sources: [10.1.0.0/16]",
    "    sources: [\"2001:db8::/32\", ::ffff:10.0.0.0/104]",
    "    labels: {x: y}",
    "    limits: {newConnectionsPerSecond: 1}",
    "    limits: &l {packetsPerSecond: 200k, burst: 2s}",
    "    limits: *l",
    "    limits: {bytesPerSecond: .nan}",
    "    limits: {bytesPerSecond: -1, burst: 99999999999h}",
    "    addresses: [192.0.2.10]",
    "    addresses: [\"2001:db8::10\"]",
    "    port: 8000",
    "    port: 1-65535",
    "    port: 70000",
    "    protocol: TCP",
    "    protocol: UDP",
    "    pools: [a]",
    "    pools: [a, a, b]",
    "    forward: Nat",
    "    forward: L2Dsr",
    "    forward: Gue",
    "    backends: [{name: c, address: 10.9.0.1, port: 8000}]",
    "    backends: [{name: d, address: \"2001:db8:9::1\", port: 1, capacity: 1000000}]",
    "    backends: []",
    "    healthCheck: {http: /health, interval: 1s}",
    "    failover: {healthyBelow: 50%}",
    "    action: Allow",
    "    action: Deny",
    "    mode: Shadow",
    "    priority: -2147483648",
    "    tenants: {matchNames: [a, b]}",
    "    tenants: {matchLabels: {x: y}}",
    "    services: {matchExpressions: [{key: x, operator: NotIn, values: [y]}]}",
    "    schedule: {days: [Mon], from: \"22:00\", to: \"06:00\", timeZone: Europe/Berlin}",
    "    schedule: {from: \"24:00\", timeZone: Mars/Olympus}",
    "    requireBackend: {matchLabels: {x: y}}",
    "    requireBackend: {matchExpressions: [{key: x, operator: Exists}]}",
    "    class: a",
    "    quotas: [{metric: responseBytes, limit: 1, per: 1d}]",
    "---",
    "...",
    "<<: *l",
    "&l",
    "*l",
    "!!binary x",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "{a: {a: {a: {a: {a: {a: ",
    "\t",
    "\u{0}\u{202e}\u{feff}",
    "- - - - - - - - - - -",
];

const SAMPLES: [&str; 4] = [
    "quickstart.yaml",
    "residency.yaml",
    "batch-and-interactive.yaml",
    "kill-switch-drill.yaml",
];

fn sample(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    fs::read_to_string(directory.join(name)).expect("it is in the repository")
}

/// Refused with an error that has a place or concerns the whole, or compiled.
fn check(texts: &[String]) -> Result<(), TestCaseError> {
    let sources: Vec<PolicySource> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| PolicySource::new(format!("{index}.yaml"), text.clone()))
        .collect();
    let outcome = load_all(&sources);
    let errors = outcome
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .count();
    prop_assert_eq!(outcome.policy.is_none(), errors > 0);
    // Errors, warnings, and a line that counts the rest.
    prop_assert!(outcome.diagnostics.len() <= 2 * MAX_DIAGNOSTICS + 1);
    let shown = render_all(&outcome.diagnostics, false);
    prop_assert!(!shown.contains('\u{202e}'), "{}", shown);
    for found in &outcome.diagnostics {
        prop_assert!(!found.message.is_empty() && !found.help.is_empty(), "{:?}", found);
        let source = sources.iter().find(|source| source.file == found.file);
        let lines = source.map_or(0, |source| source.text.lines().count() + 1);
        prop_assert!(found.line as usize <= lines, "{:?}", found);
    }
    if let Some(policy) = outcome.policy {
        let again = load_all(&sources).policy.map(|policy| policy.digest());
        prop_assert_eq!(again, Some(policy.digest()));
        // A table can be too small; nothing else is left to be wrong.
        if let Ok(compiled) = compile(&Neutral::of(&policy, None).inputs(&policy)) {
            let once_more = compile(&Neutral::of(&policy, None).inputs(&policy));
            prop_assert_eq!(
                once_more.map(|compiled| compiled.tables).ok(),
                Some(compiled.tables)
            );
        }
    }
    Ok(())
}

/// A sample in which some lines were taken out, doubled, moved, or replaced.
fn damaged() -> impl Strategy<Value = String> {
    let edit = (any::<Index>(), any::<Index>(), 0..4_u8, select(&WORDS[..]));
    (select(&SAMPLES[..]), prop::collection::vec(edit, 1..6)).prop_map(|(name, edits)| {
        let text = sample(name);
        let mut lines: Vec<&str> = text.lines().collect();
        for (at, other, how, word) in edits {
            let (at, other) = (at.index(lines.len()), other.index(lines.len()));
            match how {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[other]),
                2 => lines.swap(at, other),
                _ => lines[at] = word,
            }
        }
        lines.join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_characters_are_refused_or_compile(text in any::<String>()) {
        check(&[text])?;
    }

    #[test]
    fn any_words_are_refused_or_compile(words in prop::collection::vec(select(&WORDS[..]), 0..60)) {
        check(&[words.join("\n")])?;
    }

    #[test]
    fn damaged_samples_are_refused_or_compile(text in damaged()) {
        check(&[text])?;
    }

    #[test]
    fn several_texts_are_refused_or_compile(one in damaged(), other in damaged()) {
        check(&[one, other])?;
    }
}
