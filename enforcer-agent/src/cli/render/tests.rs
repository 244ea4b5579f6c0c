use super::*;
use crate::api::Protocol;
use crate::api::reply::{Effect, ExplainStep, PolicyExplainReply};

#[test]
fn bytes_have_units_and_are_never_rounded_up() {
    for (count, expected) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1535, "1.4 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 20) - 1, "1023.9 KiB"),
        (u64::MAX, "15.9 EiB"),
    ] {
        assert_eq!(bytes(count), expected);
    }
}

#[test]
fn durations_have_their_two_largest_units() {
    for (count, expected) in [
        (0, "0ms"),
        (999, "999ms"),
        (1000, "1s"),
        (59_999, "59s"),
        (61_000, "1m 1s"),
        (3_599_999, "59m 59s"),
        (7_260_000, "2h 1m"),
        (90_000_000, "1d 1h"),
        (u64::MAX, "213503982334d 14h"),
    ] {
        assert_eq!(milliseconds(count), expected);
    }
}

#[test]
fn text_from_outside_cannot_move_the_cursor() {
    assert_eq!(
        clean("a\u{1b}[2Jb\r\n\u{202e}c"),
        "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c"
    );
    let rows = [vec!["evil\u{1b}[31m\nname".to_owned(), "1".to_owned()]];
    let text = table(&["NAME", "#COUNT"], rows);
    assert_eq!(
        text,
        "NAME            COUNT\nevil\u{fffd}[31m\u{fffd}name      1\n"
    );
}

#[test]
fn an_empty_table_has_its_titles() {
    assert_eq!(table(&["NAME", "#COUNT"], []), "NAME  COUNT\n");
}

/// An explanation with so many steps, two names in turn.
fn explanation(steps: usize) -> PolicyExplainReply {
    let step = |index: usize| ExplainStep {
        step: ["rule", "back end"][index % 2].to_owned(),
        finding: format!("finding {index}"),
    };
    PolicyExplainReply {
        from: "10.1.1.10:40000".parse().unwrap(),
        to: "192.0.2.10:8000".parse().unwrap(),
        protocol: Protocol::Tcp,
        generation: 1,
        at: None,
        reason: "NoRule".into(),
        sentence: "No rule.".into(),
        effect: Effect::Refused,
        tenant: None,
        service: None,
        rule: None,
        backend: None,
        shadow: None,
        steps: (0..steps).map(step).collect(),
    }
}

#[test]
fn steps_of_an_explanation_stand_in_columns_however_many_there_are() {
    for (steps, first, last) in [
        (2, "1. rule      finding 0", "2. back end  finding 1"),
        (9, "1. rule      finding 0", "9. rule      finding 8"),
        (10, " 1. rule      finding 0", "10. back end  finding 9"),
        (100, "  1. rule      finding 0", "100. back end  finding 99"),
    ] {
        let text = explanation(steps).render();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("finding")).collect();
        assert_eq!(lines.len(), steps);
        assert_eq!((lines[0], lines[steps - 1]), (first, last));
        let columns: Vec<Option<usize>> = lines.iter().map(|line| line.find("finding")).collect();
        assert!(columns.iter().all(|column| *column == columns[0]), "{text}");
    }
}
