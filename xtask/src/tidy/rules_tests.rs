//! Each rule on a file that breaks it and on one that does not.

use super::*;

fn files(entries: &[(&str, &str)]) -> Files {
    Files(
        entries
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect(),
    )
}

/// The lines at which `rule` finds something in one file.
fn lines(rule: fn(&Files) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
    rule(&files(&[(path, text)]))
        .into_iter()
        .map(|finding| finding.line)
        .collect()
}

#[test]
fn unsafe_code_stays_in_its_files() {
    let text = "#![deny(unsafe_code)]\n// unsafe in a comment\nfn f() { unsafe { g() } }\n";
    assert_eq!(
        lines(unsafe_stays_in_listed_files, "enforcer-agent/src/daemon.rs", text),
        [3]
    );
    assert_eq!(
        lines(unsafe_stays_in_listed_files, "enforcer-ebpf/src/window.rs", text),
        [0; 0]
    );
    assert_eq!(
        lines(
            unsafe_stays_in_listed_files,
            "enforcer-agent/src/adapters/aya.rs",
            text
        ),
        [0; 0]
    );
}

#[test]
fn files_with_unsafe_code_are_in_the_architecture_map() {
    let code = ("enforcer-ebpf/src/window.rs", "fn f() { unsafe { g() } }");
    assert_eq!(
        unsafe_files_are_documented(&files(&[code, (ARCHITECTURE, "nothing")])).len(),
        1
    );
    assert_eq!(
        unsafe_files_are_documented(&files(&[code, (ARCHITECTURE, "| window.rs | why |")])).len(),
        0
    );
}

#[test]
fn pure_roots_forbid_unsafe_code() {
    assert_eq!(
        lines(pure_modules_forbid_unsafe, PURE_ROOTS[0], "//! Pure.\n").len(),
        1
    );
    assert_eq!(
        lines(
            pure_modules_forbid_unsafe,
            PURE_ROOTS[0],
            "#![forbid(unsafe_code)]\n"
        )
        .len(),
        0
    );
    assert_eq!(
        lines(
            pure_modules_forbid_unsafe,
            PURE_ROOTS[0],
            "// #![forbid(unsafe_code)]\n"
        )
        .len(),
        1
    );
}

#[test]
fn pure_code_reaches_for_nothing() {
    let found = |text| lines(pure_modules_do_nothing, "enforcer-agent/src/pure/plan.rs", text);
    assert_eq!(found("use std::{fmt, fs};\n"), [1]);
    assert_eq!(
        found("use std::{\n    collections::BTreeMap,\n    io::{self, Read},\n};\n"),
        [1, 1]
    );
    assert_eq!(
        found("use std::net::IpAddr;\nuse std::time::Duration;\nuse super::log;\nuse logic::log;\n"),
        [0; 0]
    );
    assert_eq!(found("fn f() { std::env::var(x); }\n"), [1]);
    assert_eq!(
        found("fn f() { tokio::spawn(x); }\nfn g() { let log = rand.x; }\n"),
        [1]
    );
    assert_eq!(found("fn f(t: jiff::Timestamp) { Timestamp::now(); }\n"), [1]);
    assert_eq!(found("// std::fs\nconst A: &str = \"std::fs\";\n"), [0; 0]);
    assert_eq!(
        found("fn f() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n"),
        [0; 0]
    );
    assert_eq!(
        lines(
            pure_modules_do_nothing,
            "enforcer-agent/src/daemon.rs",
            "use std::fs;\n"
        ),
        [0; 0]
    );
}

#[test]
fn the_product_starts_no_programs() {
    let found = |path, text| lines(product_runs_no_programs, path, text);
    assert_eq!(
        found(
            "enforcer-agent/src/a.rs",
            "use std::process::{Command, ExitCode};\n"
        ),
        [1]
    );
    assert_eq!(
        found(
            "enforcer-agent/src/a.rs",
            "fn f() { tokio::process::Command::new(x); }\n"
        ),
        [1]
    );
    assert_eq!(
        found(
            "enforcer-agent/src/a.rs",
            "use std::process::ExitCode;\nuse clap::Command;\n"
        ),
        [0; 0]
    );
    assert_eq!(found("tests/src/lab.rs", "use std::process::Command;\n"), [0; 0]);
}

#[test]
fn long_files_and_functions_are_found() {
    let long_function = format!("fn f() {{\n{}}}\n", "x;\n".repeat(MAX_FUNCTION_LINES - 1));
    assert_eq!(lines(sizes_stay_readable, "a/src/b.rs", &long_function), [1]);
    assert_eq!(lines(sizes_stay_readable, "a/tests/b.rs", &long_function), [0; 0]);
    let fitting = long_function.replacen("x;\n", "", 1);
    assert_eq!(lines(sizes_stay_readable, "a/src/b.rs", &fitting), [0; 0]);
    let long_file = "x\n".repeat(MAX_FILE_LINES + 1);
    assert_eq!(lines(sizes_stay_readable, "a/tests/b.rs", &long_file), [0]);
    assert_eq!(lines(sizes_stay_readable, "a/src/b/tests.rs", &long_file), [0]);
    let tests_at_the_end = format!("x\n#[cfg(test)]\nmod tests {{\n{long_file}}}\n");
    assert_eq!(
        lines(sizes_stay_readable, "a/src/b.rs", &tests_at_the_end),
        [0; 0]
    );
}

#[test]
fn every_reason_has_a_line_in_the_document() {
    let declared = "reasons! {\n    Allowed = 0, Forwarded, \"Sent on.\";\n    NoRule = 4, Refused, \"No rule.\";\n}\n\
                    pub const REASON_SLOTS: u32 = 32;\n";
    let source = (REASONS_SOURCE, declared);
    assert_eq!(reasons_are_documented(&files(&[source])).len(), 1);
    let findings = reasons_are_documented(&files(&[source, (REASONS_DOCUMENT, "`Allowed`")]));
    assert_eq!(
        findings.iter().map(|finding| finding.line).collect::<Vec<_>>(),
        [3]
    );
    assert_eq!(
        reasons_are_documented(&files(&[source, (REASONS_DOCUMENT, "`Allowed` `NoRule`")])).len(),
        0
    );
    let unreadable = (REASONS_SOURCE, "enum Reason {}");
    assert_eq!(
        reasons_are_documented(&files(&[unreadable, (REASONS_DOCUMENT, "")])).len(),
        1
    );
}

#[test]
fn every_command_is_in_the_readme() {
    let text = "#[derive(Debug, clap::Subcommand)]\nenum Command {\n    /// Runs.\n    Run { config: String },\n    \
                #[command(subcommand)]\n    Policy(Policy),\n    FlowTable,\n}\nenum Other { Nothing }\n";
    let code = source::code_only(text);
    let names: Vec<String> = subcommands(&code).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["run", "policy", "flow-table"]);
    let source = ("enforcer-agent/src/cli/mod.rs", text);
    assert_eq!(commands_are_in_the_readme(&files(&[source])).len(), 1);
    let findings =
        commands_are_in_the_readme(&files(&[source, (README, "    enforcer-agent run | flow-table")]));
    assert_eq!(
        findings.iter().map(|finding| finding.line).collect::<Vec<_>>(),
        [6]
    );
}

#[test]
fn dependencies_that_turn_an_arrow_round_are_found() {
    let common = "[features]\nuser = [\"dep:aya\"]\n[dependencies]\naya = { workspace = true, optional = true }\n\
                  serde.workspace = true\n[dev-dependencies]\nproptest.workspace = true\n";
    assert_eq!(
        lines(dependencies_point_one_way, "enforcer-common/Cargo.toml", common),
        [5]
    );
    let not_optional = "[dependencies]\naya.workspace = true\n[dependencies.serde]\nversion = \"1\"\n";
    assert_eq!(
        lines(
            dependencies_point_one_way,
            "enforcer-common/Cargo.toml",
            not_optional
        ),
        [2, 3]
    );
    let agent =
        "[dependencies]\ntokio.workspace = true\n[dev-dependencies]\nenforcer-tests.workspace = true\n";
    assert_eq!(
        lines(dependencies_point_one_way, "enforcer-agent/Cargo.toml", agent),
        [4]
    );
}

#[test]
fn packages_from_elsewhere_are_found() {
    let lock = format!(
        "[[package]]\nname = \"a\"\n{ONLY_SOURCE}\n[[package]]\nname = \"b\"\nsource = \"git+https://x\"\n"
    );
    assert_eq!(lines(packages_come_from_one_registry, "Cargo.lock", &lock), [6]);
    assert_eq!(lines(packages_come_from_one_registry, "README.md", ""), [0]);
}

#[test]
fn paths_of_one_machine_are_found() {
    let found = |text: &str| lines(no_path_of_one_machine, "docs/a.md", &text.replace('@', "/"));
    assert_eq!(found("see @root/x\nand @work\nand (@home/me)."), [1, 2, 3]);
    assert_eq!(
        found("@workspace http:@@x.y@z@worker a@root-cause $HOME@root"),
        [0; 0]
    );
}

#[test]
fn what_is_left_for_later_is_found() {
    let text = concat!("// TO", "DO: more\n#[ig", "nore]\nfn f() {}\n");
    assert_eq!(lines(nothing_is_left_for_later, "a/src/b.rs", text), [1, 2]);
}

#[test]
fn this_workspace_can_be_read() {
    let mut files = Files::default();
    super::super::read_folder(crate::exec::workspace_root(), "", &mut files)
        .expect("every text file is UTF-8");
    assert!(files.0.contains_key("xtask/src/main.rs"));
}
