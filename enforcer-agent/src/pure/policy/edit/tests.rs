//! Whatever was read before, a text is read as it is from nothing.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::{Code, ResolvedPolicy, load_all, parse};
use super::*;

/// Lists in every style that they can be written in.
const POLICY: &str = r#"apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: prod}
spec:
  # Who may send.
  tenants:
  - {name: acme, sources: [10.1.0.0/16], labels: {data: eu}, limits: {packetsPerSecond: 1000}}
  - name: globex   # a remark
    sources:
    - 10.2.0.0/16
    - "10.2.1.0/24"
    limits:
      packetsPerSecond: 2000

      burst: 2s

  # The last of them.
  - name: >-
      initech
    sources: ["10.3.0.0/16",
      10.4.0.0/16]
    labels: {'data': "any",
      team: one}
  services:
    - name: chat
      addresses: [192.0.2.10]
      port: 8000
      protocol: TCP
      pools: [eu]
      forward: Nat

    - {name: embed, addresses: [192.0.2.11], port: 8000, protocol: TCP, pools: [eu], forward: Nat}
  pools:
  - name: eu
    labels: {region: eu}
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 8000}
    -   name: gpu-2
        address: 10.9.0.2
        port: 8000
  rules:
  - {name: all-chat, action: Allow, services: {matchNames: [chat]}}
  -   name: some-embed
      action: Allow
      tenants: {matchNames: [acme, globex]}
      services: {matchNames: [embed]}
  - name: no-embed
    action: Deny
    tenants: {matchNames: [globex]}
  protectedNetworks:
  - 10.9.0.0/16
  constraints:
  - {name: residency, tenants: {matchLabels: {data: eu}}, requireBackend: {matchLabels: {region: eu}}}
"#;

/// What is put into texts: words of the language, of YAML, and of those who wish it ill.
const WORDS: [&str; 48] = [
    "  - {name: newco, sources: [10.7.0.0/16]}\n",
    "  - name: newco\n    sources: [10.7.0.0/16]\n    limits: {burst: 3s}\n",
    "    - {name: other, addresses: [192.0.2.12], port: 1, protocol: TCP, pools: [eu], forward: Nat}\n",
    "  - {name: more, action: Allow, tenants: {matchNames: [acme]}}\n",
    "  - 10.8.0.0/16\n",
    "  - x\n",
    "  -\n",
    "- x\n",
    "    - x\n",
    "  - - x\n",
    "  - ? x\n    : y\n",
    "  - |\n    x\n  - >+\n    y\n\n",
    "  - \"x\n    y\"\n",
    "  x: x\n",
    "  classes:\n  - name: gold\n",
    "x: x\n",
    "    limits: {packetsPerSecond: 5}\n",
    "    labels:\n      a: b\n",
    "    labels: {<<: {a: b}}\n",
    "    limits: &l {packetsPerSecond: 5}\n",
    "    limits: *l\n",
    "    class: gold\n",
    "    lables: {}\n",
    "    limits:\n",
    "# a remark\n",
    "    # a remark\n",
    " # a remark",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "%x\n",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "  ",
    " ",
    "\"",
    "'",
    "{",
    "}",
    "[",
    ", ",
    ": ",
    "- ",
    "| ",
    "\u{0}\u{feff}é",
    "!x ",
];

/// What happens to a text.
#[derive(Debug, Clone)]
enum Happening {
    /// A number is another one.
    Number(Index, u32),
    /// A word is put at the beginning of a line.
    Line(Index, &'static str),
    /// A word is put anywhere.
    Word(Index, &'static str),
    /// Some lines go.
    Without(Index, usize),
    /// Some lines come a second time, elsewhere.
    Again(Index, Index, usize),
    /// A few characters go.
    Characters(Index, usize),
    /// Every line ends otherwise.
    Ends,
    /// The text is as it was at first.
    Back,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let index = any::<Index>;
    let word = || select(&WORDS[..]);
    let happening = prop_oneof![
        6 => (index(), 1u32..9).prop_map(|(at, number)| Happening::Number(at, number)),
        6 => (index(), word()).prop_map(|(at, word)| Happening::Line(at, word)),
        2 => (index(), word()).prop_map(|(at, word)| Happening::Word(at, word)),
        3 => (index(), 1usize..5).prop_map(|(at, lines)| Happening::Without(at, lines)),
        3 => (index(), index(), 1usize..5).prop_map(|(at, from, lines)| Happening::Again(at, from, lines)),
        2 => (index(), 1usize..5).prop_map(|(at, count)| Happening::Characters(at, count)),
        1 => Just(Happening::Ends),
        6 => Just(Happening::Back),
    ];
    proptest::collection::vec(happening, 1..12)
}

fn happen(text: &str, first: &str, happening: &Happening) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut characters: Vec<char> = text.chars().collect();
    match *happening {
        Happening::Number(at, number) => {
            let digits: Vec<usize> = (0..characters.len())
                .filter(|at| characters[*at].is_ascii_digit())
                .collect();
            if !digits.is_empty() {
                let at = digits[at.index(digits.len())];
                let number: Vec<char> = number.to_string().chars().collect();
                characters.splice(at..=at, number);
            }
            characters.into_iter().collect()
        }
        Happening::Line(at, word) => {
            lines.insert(at.index(lines.len() + 1), word);
            lines.concat()
        }
        Happening::Word(at, word) => {
            let at = at.index(characters.len() + 1);
            characters.splice(at..at, word.chars());
            characters.into_iter().collect()
        }
        Happening::Without(at, count) => {
            let at = at.index(lines.len() + 1);
            lines.drain(at..(at + count).min(lines.len()));
            lines.concat()
        }
        Happening::Again(at, from, count) => {
            let (at, from) = (at.index(lines.len() + 1), from.index(lines.len() + 1));
            let again = lines[from..(from + count).min(lines.len())].to_vec();
            lines.splice(at..at, again);
            lines.concat()
        }
        Happening::Characters(at, count) => {
            let at = at.index(characters.len() + 1);
            characters.drain(at..(at + count).min(characters.len()));
            characters.into_iter().collect()
        }
        Happening::Ends if text.contains('\r') => text.replace('\r', ""),
        Happening::Ends => text.replace('\n', "\r\n"),
        Happening::Back => first.to_owned(),
    }
}

/// What was read, with the place of every value.
fn shown(document: &Document) -> String {
    format!("{document:#?}")
}

/// Loads a text after others, and from nothing; whether it was read by its difference.
fn check(loader: &mut Loader, text: &str) -> Result<bool, TestCaseError> {
    let texts = [PolicySource::new("p.yaml", text)];
    let followed = loader
        .last
        .as_mut()
        .is_some_and(|last| last.follow(&texts[0]).is_some());
    let outcome = loader.load_all(&texts);
    let alone = load_all(&texts);
    prop_assert_eq!(&outcome.diagnostics, &alone.diagnostics, "{}", text);
    prop_assert_eq!(&outcome.policy, &alone.policy, "{}", text);
    let digest = |outcome: &Outcome| outcome.policy.as_ref().map(ResolvedPolicy::digest);
    prop_assert_eq!(digest(&outcome), digest(&alone));
    if let Some(last) = loader.last.as_ref().filter(|last| &*last.text == text) {
        let mut reporter = Reporter::new(&texts);
        let parsed = parse::parse(&mut reporter, &texts).expect("it was read before");
        prop_assert!(!reporter.has_errors(), "{}", text);
        prop_assert_eq!(shown(&last.document), shown(&parsed.documents[0]), "{}", text);
        // Only the count of nodes may differ: it counts those that went as well.
        let outline = |outline: &Outline| {
            let outline = format!("{outline:#?}");
            outline[..outline.rfind("nodes").unwrap_or_default()].to_owned()
        };
        let expected = parsed.outline.as_ref().map(outline);
        prop_assert_eq!(Some(outline(&last.outline)), expected, "{}", text);
    }
    Ok(followed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_text_after_others_is_read_as_from_nothing(ends: bool, happenings in happenings()) {
        let first = if ends { POLICY.replace('\n', "\r\n") } else { POLICY.to_owned() };
        let mut loader = Loader::default();
        check(&mut loader, &first)?;
        let mut text = first.clone();
        for happening in &happenings {
            text = happen(&text, &first, happening);
            check(&mut loader, &text)?;
        }
    }
}

/// Loads a text after [`POLICY`] that has something else in place of `from`.
#[track_caller]
fn is_followed(from: &str, to: &str) -> bool {
    assert_eq!(POLICY.matches(from).count(), 1, "{from}");
    let mut loader = Loader::default();
    check(&mut loader, POLICY).unwrap();
    check(&mut loader, &POLICY.replace(from, to)).unwrap()
}

#[test]
fn of_an_edit_only_the_items_are_read_that_it_touches() {
    for (from, to) in [
        ("packetsPerSecond: 1000", "packetsPerSecond: 1001"),
        ("packetsPerSecond: 2000\n\n", "packetsPerSecond: 2001\n"),
        ("burst: 2s", "burst: 2s\n      bytesPerSecond: 5k"),
        ("# a remark", "# another"),
        ("  # The last of them.\n", ""),
        ("      initech", "      other"),
        ("port: 8000\n  rules", "port: 8001\n  rules"),
        ("action: Deny", "action: Allow"),
        ("  - 10.9.0.0/16", "  - 10.9.0.0/16\n  - 10.8.0.0/16"),
        ("{region: eu}}}\n", "{region: us}}}"),
        // Whole items come and go.
        (
            "  - name: globex",
            "  - {name: newco, sources: [10.7.0.0/16]}\n  - name: globex",
        ),
        (
            "  - {name: acme",
            "  - {name: aaa, sources: [10.7.0.0/16]}\n  - {name: acme",
        ),
        (
            "      team: one}\n",
            "      team: one}\n  - {name: zzz, sources: [10.7.0.0/16]}\n",
        ),
        (
            "  -   name: some-embed\n      action: Allow\n      tenants: {matchNames: [acme, globex]}\n      services: {matchNames: [embed]}\n",
            "",
        ),
        (
            "  - name: no-embed\n    action: Deny\n    tenants: {matchNames: [globex]}\n",
            "",
        ),
        ("    - {name: gpu-1, address: 10.9.0.1, port: 8000}\n", ""),
        // What is wrong, but not in its shape.
        ("10.1.0.0/16", "10.1.0.1/16"),
        ("action: Deny", "action: Perhaps"),
        (
            "tenants: {matchNames: [globex]}\n  protected",
            "tenants: {matchNames: [nobody]}\n  protected",
        ),
    ] {
        assert!(is_followed(from, to), "{from} to {to}");
    }
}

#[test]
fn what_may_mean_something_to_the_rest_is_read_from_nothing() {
    for (from, to) in [
        // Outside of the lists.
        ("name: prod", "name: test"),
        ("  services:\n", "  classes:\n"),
        ("  # Who may send.\n", ""),
        // More than one list.
        (
            "      team: one}\n  services:\n    - name: chat",
            "      team: two}\n  services:\n    - name: chit",
        ),
        // What would reach out of the items, or is no item.
        ("name: globex ", "name: \"globex "),
        ("sources:\n    - 10.2.0.0/16", "sources: [\n    - 10.2.0.0/16"),
        (
            "labels: {'data': \"any\",\n      team: one}\n",
            "labels: {'data': \"any\",\n      team: one\n",
        ),
        ("  - name: globex", "  - name: x\n...\n  - name: globex"),
        ("  - name: globex", "  - name: x\n---\n  - name: globex"),
        ("  - name: globex", "  x: x\n  - name: globex"),
        ("  - name: globex", " - name: globex"),
        ("  - name: globex", "  -  \n    name: globex"),
        ("  - name: no-embed", "  -\n    name: no-embed"),
        ("action: Deny", "action: &deny Deny"),
        ("action: Deny", "action: *deny"),
        ("action: Deny", "action: !x Deny"),
        ("action: Deny", "action: Deny\r    mode: Enforce"),
        ("  - 10.9.0.0/16\n", ""),
        (
            "  - {name: all-chat, action: Allow, services: {matchNames: [chat]}}\n",
            "",
        ),
        // Shapes.
        ("action: Deny", "aktion: Deny"),
        ("action: Deny", "action: [Deny]"),
        ("action: Deny\n", ""),
    ] {
        let is_harmless = to.contains("&deny");
        assert_eq!(is_followed(from, to), is_harmless, "{from} to {to}");
    }
}

#[test]
fn after_a_slip_the_next_text_is_read_by_its_difference_to_the_one_before() {
    let mut loader = Loader::default();
    assert!(!check(&mut loader, POLICY).unwrap());
    for (text, is_near) in [
        (POLICY.replace("burst: 2s", "brust: 2s"), false),
        (POLICY.replace("burst: 2s", "burst: 3s"), true),
        (POLICY.replace("forward: Nat", "forward: [Nat"), false),
        (POLICY.replace("burst: 2s", "burst: 4s"), true),
        (POLICY.replace("burst: 2s", "burst: 5 parsecs"), true),
        (POLICY.replace("burst: 2s", "burst: 5s"), true),
    ] {
        assert_eq!(check(&mut loader, &text).unwrap(), is_near);
    }
}

#[test]
fn the_bounds_hold_for_what_is_read_by_its_difference() {
    let nested = |levels: usize| format!("{}x{}", "[".repeat(levels), "]".repeat(levels));
    for levels in 15..30 {
        let to = format!("action: {}", nested(levels));
        assert!(!is_followed("action: Deny", &to));
    }
    let mut loader = Loader::default();
    check(&mut loader, POLICY).unwrap();
    let last = loader.last.as_mut().unwrap();
    last.outline.nodes = MAX_YAML_NODES - 1;
    assert!(!check(&mut loader, &POLICY.replace("burst: 2s", "burst: 3s")).unwrap());
    let nodes = loader.last.as_ref().unwrap().outline.nodes;
    assert!(nodes < 1000, "read from nothing, they are counted anew: {nodes}");
    let huge = format!("{POLICY}{}", "#".repeat(MAX_TEXT_BYTES));
    assert!(!check(&mut loader, &huge).unwrap());
    let outcome = loader.load_all(&[PolicySource::new("p.yaml", huge)]);
    assert_eq!(outcome.diagnostics[0].code, Code::TooLarge);
}

/// Whether what was resolved of [`POLICY`] is kept for a text that has something else in place of `from`.
#[track_caller]
fn is_only_limits(from: &str, to: &str) -> bool {
    assert_eq!(POLICY.matches(from).count(), 1, "{from}");
    let text = POLICY.replace(from, to);
    let mut loader = Loader::default();
    check(&mut loader, POLICY).unwrap();
    let mut last = loader.last.clone().unwrap();
    last.follow(&PolicySource::new("p.yaml", text.as_str())).unwrap();
    check(&mut loader, &text).unwrap();
    last.resolved.is_some()
}

#[test]
fn where_only_limits_differ_nothing_else_is_resolved() {
    for (from, to) in [
        ("packetsPerSecond: 1000", "packetsPerSecond: 1001"),
        ("packetsPerSecond: 1000}", "bytesPerSecond: 5Mi, burst: 3s}"),
        ("burst: 2s", "burst: 3s"),
        (", limits: {packetsPerSecond: 1000}", ""),
        (
            "limits: {packetsPerSecond: 1000}",
            "quotas: [{metric: connections, limit: 5k, per: 1d}]",
        ),
    ] {
        assert!(is_only_limits(from, to), "{from} to {to}");
    }
}

#[test]
fn what_may_differ_in_more_than_limits_is_resolved_as_a_whole() {
    for (from, to) in [
        // Other parts of tenants.
        ("name: acme", "name: acmi"),
        ("10.1.0.0/16", "10.5.0.0/16"),
        ("{data: eu}, limits", "{data: us}, limits"),
        (
            "limits: {packetsPerSecond: 1000}",
            "guaranteed: {newConnectionsPerSecond: 5}",
        ),
        // Something is said about the limits, or wrong with them.
        ("burst: 2s", "burst: 1ns"),
        ("packetsPerSecond: 1000", "packetsPerSecond: 0"),
        ("packetsPerSecond: 1000", "packetsPerSecond: 900M"),
        ("packetsPerSecond: 1000", "bytesPerSecond: 1k, burst: 1ms"),
        // What follows stands elsewhere.
        ("burst: 2s", "burst: 2s\n      bytesPerSecond: 5k"),
        ("10.1.0.0/16], labels", "10.1.0.0/16],  labels"),
        // Parts that are no tenants.
        ("port: 8000\n  rules", "port: 8001\n  rules"),
        ("action: Deny", "action: Allow"),
    ] {
        assert!(!is_only_limits(from, to), "{from} to {to}");
    }
}

#[test]
fn what_is_said_about_an_edited_line_is_said_of_the_new_one() {
    // The prefix lies within another tenant's, which is said where it stands: on the line that is edited.
    let text = POLICY.replace("10.1.0.0/16", "10.2.0.0/17");
    let mut loader = Loader::default();
    check(&mut loader, &text).unwrap();
    assert!(
        check(
            &mut loader,
            &text.replace("packetsPerSecond: 1000", "packetsPerSecond: 1001")
        )
        .unwrap()
    );
    assert!(
        check(
            &mut loader,
            &text.replace("packetsPerSecond: 2000", "packetsPerSecond: 2001")
        )
        .unwrap()
    );
}

#[test]
fn a_text_of_another_name_is_not_spoken_of_by_the_old_one() {
    let text = POLICY.replace("10.1.0.0/16", "10.2.0.0/17");
    let mut loader = Loader::default();
    for file in ["p.yaml", "q.yaml"] {
        let outcome = loader.load_all(&[PolicySource::new(file, text.as_str())]);
        assert!(!outcome.diagnostics.is_empty());
        assert!(
            outcome
                .diagnostics
                .iter()
                .all(|diagnostic| diagnostic.file == file)
        );
    }
}

#[test]
fn what_was_only_counted_of_an_edited_line_is_counted_anew() {
    use super::super::bounds::MAX_DIAGNOSTICS;
    let tenants: String = (0..MAX_DIAGNOSTICS + 3)
        .map(|number| {
            let (high, low) = (number / 256, number % 256);
            format!(
                "  - {{name: t{number}, sources: [10.{high}.{low}.0/24], limits: {{bytesPerSecond: 1000, burst: 1ms}}}}\n"
            )
        })
        .collect();
    let text = format!(
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {{name: p}}\nspec:\n  tenants:\n{tenants}"
    );
    let last = text.rfind("bytesPerSecond: 1000, burst: 1ms").unwrap();
    let mended = format!("{}bytesPerSecond: 900M}}}}\n", &text[..last]);
    let mut loader = Loader::default();
    check(&mut loader, &text).unwrap();
    assert!(check(&mut loader, &mended).unwrap());
}
