//! The rules. Each is a pure function; the constants above it are the rule's whole configuration.

use super::{Files, Finding, promises, source};

/// Every rule, in no particular order.
pub(super) const ALL: &[fn(&Files) -> Vec<Finding>] = &[
    unsafe_stays_in_listed_files,
    unsafe_files_are_documented,
    pure_modules_forbid_unsafe,
    pure_modules_do_nothing,
    product_runs_no_programs,
    sizes_stay_readable,
    reasons_are_documented,
    commands_are_in_the_readme,
    dependencies_point_one_way,
    packages_come_from_one_registry,
    no_path_of_one_machine,
    nothing_is_left_for_later,
    promises::promises_name_their_tests,
];

/// Where unsafe code may live: a file, or a folder that ends in a slash. Each has a proof that it owes.
const UNSAFE_PLACES: [&str; 18] = [
    "enforcer-agent/src/adapters/",
    "enforcer-common/src/pod.rs",
    "enforcer-ebpf/src/cache.rs",
    "enforcer-ebpf/src/capture.rs",
    "enforcer-ebpf/src/decapsulator.rs",
    "enforcer-ebpf/src/driver.rs",
    "enforcer-ebpf/src/emit.rs",
    "enforcer-ebpf/src/related.rs",
    "enforcer-ebpf/src/resize.rs",
    "enforcer-ebpf/src/facts.rs",
    "enforcer-ebpf/src/flows.rs",
    "enforcer-ebpf/src/hook.rs",
    "enforcer-ebpf/src/main.rs",
    "enforcer-ebpf/src/maps.rs",
    "enforcer-ebpf/src/rewrite.rs",
    "enforcer-ebpf/src/route.rs",
    "enforcer-ebpf/src/services.rs",
    "enforcer-ebpf/src/window.rs",
];
const ARCHITECTURE: &str = "docs/architecture.md";

fn unsafe_stays_in_listed_files(files: &Files) -> Vec<Finding> {
    let is_listed = |path: &str| UNSAFE_PLACES.iter().any(|place| path.starts_with(place));
    let outside = files.rust().filter(|(path, _)| !is_listed(path));
    outside
        .flat_map(|(path, text)| {
            let code = source::code_only(text);
            let lines: Vec<usize> = source::words(&code, "unsafe")
                .map(|at| source::line_of(&code, at))
                .collect();
            lines.into_iter().map(move |line| {
                Finding::at(
                    path,
                    line,
                    "unsafe code outside the files that may hold it (tidy/rules.rs has the list)",
                )
            })
        })
        .collect()
}

fn unsafe_files_are_documented(files: &Files) -> Vec<Finding> {
    let Some(architecture) = files.0.get(ARCHITECTURE) else {
        return Vec::new();
    };
    let with_unsafe = files
        .rust()
        .filter(|(_, text)| source::words(&source::code_only(text), "unsafe").next().is_some());
    let file_name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    with_unsafe
        .filter(|(path, _)| !architecture.contains(*path) && !architecture.contains(&file_name(path)))
        .map(|(path, _)| {
            Finding::whole(
                path,
                format!("holds unsafe code and is not named in {ARCHITECTURE}"),
            )
        })
        .collect()
}

/// Modules that compute and nothing else. What lies below each inherits its attribute.
const PURE_ROOTS: [&str; 2] = [
    "enforcer-agent/src/pure/mod.rs",
    "enforcer-common/src/decide/mod.rs",
];

fn pure_modules_forbid_unsafe(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in PURE_ROOTS {
        let Some(text) = files.0.get(path) else { continue };
        if !source::code_only(text).contains("#![forbid(unsafe_code)]") {
            findings.push(Finding::whole(
                path,
                "a module of pure code must open with #![forbid(unsafe_code)]",
            ));
        }
    }
    findings
}

const PURE_FOLDER: &str = "enforcer-agent/src/pure/";
/// Paths that pure code may neither import nor name: input and output, time, chance, threads, the world.
const IMPURE_PATHS: [&str; 34] = [
    "aya",
    "axum",
    "crate::adapters",
    "crate::cli",
    "crate::daemon",
    "crate::ports",
    "log",
    "nvml_wrapper",
    "rand",
    "reqwest",
    "rustix",
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::sync::Condvar",
    "std::sync::LazyLock",
    "std::sync::Mutex",
    "std::sync::OnceLock",
    "std::sync::RwLock",
    "std::sync::mpsc",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "tokio_util",
    "tracing",
];
/// Fragments of code that reach for the world without a path of their own.
const IMPURE_FRAGMENTS: [&str; 10] = [
    "async fn",
    "async move",
    ".await",
    "println!",
    "eprintln!",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "RandomState::new",
];

fn pure_modules_do_nothing(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files.rust().filter(|(path, _)| path.starts_with(PURE_FOLDER)) {
        let code = source::code_only(text);
        // Tests may print and may use randomness with a seed.
        let judged: String = code
            .lines()
            .take(source::lines_before_tests(&code))
            .collect::<Vec<_>>()
            .join("\n");
        if is_test_file(path) {
            continue;
        }
        for (line, import) in source::imports(&judged) {
            let import = import.trim_end_matches("::self").trim_start_matches("::");
            if let Some(impure) = IMPURE_PATHS.iter().find(|impure| is_below(import, impure)) {
                findings.push(Finding::at(
                    path,
                    line,
                    format!("pure code must not import `{impure}`"),
                ));
            }
        }
        for (index, line) in judged
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("use "))
        {
            let named = IMPURE_PATHS.iter().find(|impure| names_path(line, impure));
            let fragment = IMPURE_FRAGMENTS.iter().find(|fragment| line.contains(**fragment));
            if let Some(what) = named.or(fragment) {
                findings.push(Finding::at(
                    path,
                    index + 1,
                    format!("pure code must not use `{what}`"),
                ));
            }
        }
    }
    findings
}

/// True if `path` is `ancestor` or lies below it.
fn is_below(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// True if the line uses something below `path`, or `path` itself where that has several parts.
fn names_path(line: &str, path: &str) -> bool {
    source::words(line, path).any(|at| {
        let is_root = !line[..at].ends_with("::") && !line[..at].ends_with('.');
        is_root && (path.contains("::") || line[at + path.len()..].starts_with("::"))
    })
}

const PRODUCT_FOLDERS: [&str; 3] = [
    "enforcer-agent/src/",
    "enforcer-common/src/",
    "enforcer-ebpf/src/",
];

fn product_runs_no_programs(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files
        .rust()
        .filter(|(path, _)| PRODUCT_FOLDERS.iter().any(|folder| path.starts_with(folder)))
    {
        let code = source::code_only(text);
        let imported = source::imports(&code).into_iter();
        let imported = imported
            .filter(|(_, import)| import.ends_with("process::Command"))
            .map(|(line, _)| line);
        let named = source::words(&code, "process::Command").map(|at| source::line_of(&code, at));
        let lines: std::collections::BTreeSet<usize> = imported.chain(named).collect();
        let message = "the product starts no other programs: what it needs is done by system calls";
        findings.extend(lines.into_iter().map(|line| Finding::at(path, line, message)));
    }
    findings
}

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

fn sizes_stay_readable(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files.rust() {
        let code = source::code_only(text);
        let lines = source::lines_before_tests(&code);
        if lines > MAX_FILE_LINES {
            let message =
                format!("{lines} lines without tests at its end; {MAX_FILE_LINES} is the limit: split it");
            findings.push(Finding::whole(path, message));
        }
        if is_test_file(path) {
            continue;
        }
        for function in source::functions(&code) {
            if function.line <= lines && function.lines > MAX_FUNCTION_LINES {
                let source::Function { name, line, lines } = function;
                let message = format!("`{name}` has {lines} lines; {MAX_FUNCTION_LINES} fit a screen");
                findings.push(Finding::at(path, line, message));
            }
        }
    }
    findings
}

/// Files that hold tests only.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.starts_with("tests/kernel/") || is_sibling_of_a_module(path)
}

/// Unit tests that moved out of their module.
fn is_sibling_of_a_module(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "tests.rs" || name.ends_with("_tests.rs")
}

const REASONS_SOURCE: &str = "enforcer-common/src/abi/reason.rs";
const REASONS_DOCUMENT: &str = "docs/reasons.md";

fn reasons_are_documented(files: &Files) -> Vec<Finding> {
    let Some(text) = files.0.get(REASONS_SOURCE) else {
        return Vec::new();
    };
    let Some(document) = files.0.get(REASONS_DOCUMENT) else {
        return vec![Finding::whole(
            REASONS_DOCUMENT,
            format!("is missing; {REASONS_SOURCE} declares reason codes"),
        )];
    };
    let code = source::code_only(text);
    let reasons: Vec<(usize, &str)> = code
        .lines()
        .enumerate()
        .filter_map(|(index, line)| Some((index + 1, reason_on(line)?)))
        .collect();
    if reasons.is_empty() {
        return vec![Finding::whole(
            REASONS_SOURCE,
            "no reason code was recognised: `Name = 7, Effect, \"sentence\";`",
        )];
    }
    let undocumented = reasons
        .into_iter()
        .filter(|(_, reason)| source::words(document, reason).next().is_none());
    undocumented
        .map(|(line, reason)| {
            Finding::at(
                REASONS_SOURCE,
                line,
                format!("`{reason}` has no line in {REASONS_DOCUMENT}"),
            )
        })
        .collect()
}

/// `Name = 7, Effect, ...` declares the reason `Name`.
fn reason_on(line: &str) -> Option<&str> {
    let (name, rest) = line.trim().split_once(" = ")?;
    let (number, _) = rest.split_once(',')?;
    let is_name = name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.chars().all(|character| character.is_ascii_alphanumeric());
    (is_name && number.parse::<u32>().is_ok()).then_some(name)
}

const README: &str = "README.md";

fn commands_are_in_the_readme(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files
        .rust()
        .filter(|(path, _)| path.starts_with("enforcer-agent/src/"))
    {
        for (line, command) in subcommands(&source::code_only(text)) {
            let Some(readme) = files.0.get(README) else {
                return vec![Finding::whole(
                    README,
                    "is missing; it names every command of enforcer-agent",
                )];
            };
            if source::words(readme, &command).next().is_none() {
                findings.push(Finding::at(
                    path,
                    line,
                    format!("the command `{command}` is not in {README}"),
                ));
            }
        }
    }
    findings
}

/// The variants of every enum that derives `Subcommand`, as they are typed on the command line.
fn subcommands(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for derive in source::words(code, "Subcommand").filter(|at| is_inside_derive(code, *at)) {
        let Some(body) = code[derive..].find('{').map(|length| derive + length + 1) else {
            continue;
        };
        let mut depth = 0_i32;
        let mut is_start = true;
        let mut at = body;
        for character in code[body..].chars() {
            match character {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' if depth == 0 => break,
                '}' | ')' | ']' => depth -= 1,
                ',' if depth == 0 => is_start = true,
                first if depth == 0 && is_start && first.is_ascii_uppercase() => {
                    let name: String = code[at..]
                        .chars()
                        .take_while(char::is_ascii_alphanumeric)
                        .collect();
                    found.push((source::line_of(code, at), kebab_case(&name)));
                    is_start = false;
                }
                _ => {}
            }
            at += character.len_utf8();
        }
    }
    found
}

fn is_inside_derive(code: &str, at: usize) -> bool {
    code[..at]
        .rfind("derive(")
        .is_some_and(|start| !code[start..at].contains(')'))
}

fn kebab_case(name: &str) -> String {
    let mut text = String::new();
    for (index, character) in name.chars().enumerate() {
        if character.is_ascii_uppercase() && index > 0 {
            text.push('-');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

/// What a crate may depend on; crates that are not listed are free.
const ALLOWED_DEPENDENCIES: [(&str, &[&str]); 2] = [
    ("enforcer-common/Cargo.toml", &["aya"]),
    (
        "enforcer-ebpf/Cargo.toml",
        &["aya-ebpf", "aya-log-ebpf", "enforcer-common"],
    ),
];
/// What nothing but itself may depend on: it is made of the others.
const TOP_CRATES: [&str; 2] = ["enforcer-tests", "xtask"];

fn dependencies_point_one_way(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files.0.iter().filter(|(path, _)| path.ends_with("/Cargo.toml")) {
        let allowed = ALLOWED_DEPENDENCIES
            .iter()
            .find(|(manifest, _)| manifest == path)
            .map(|(_, names)| *names);
        for Dependency {
            line,
            section,
            name,
            is_optional,
        } in dependencies(text)
        {
            if TOP_CRATES.contains(&name) {
                findings.push(Finding::at(path, line, format!("no crate may depend on {name}")));
            }
            // Tests of a crate may use what they like.
            let Some(allowed) = allowed.filter(|_| section != "dev-dependencies") else {
                continue;
            };
            if !allowed.contains(&name) {
                findings.push(Finding::at(
                    path,
                    line,
                    format!("this crate may depend on {} only", allowed.join(", ")),
                ));
            } else if name == "aya" && !is_optional {
                findings.push(Finding::at(
                    path,
                    line,
                    "aya must stay optional, behind the feature `user`",
                ));
            }
        }
    }
    findings
}

struct Dependency<'a> {
    line: usize,
    section: &'a str,
    name: &'a str,
    is_optional: bool,
}

/// The dependency entries of a manifest, one a line.
fn dependencies(manifest: &str) -> Vec<Dependency<'_>> {
    let mut section = "";
    let mut found = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        let line = line.split(" #").next().unwrap_or(line).trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            // `[dependencies.name]` and target tables: the last part says what it is.
            if let Some((_, last)) = section.rsplit_once('.')
                && last.ends_with("dependencies")
            {
                section = last;
            }
            if let Some((kind, name)) = section.split_once('.')
                && kind.ends_with("dependencies")
            {
                found.push(Dependency {
                    line: index + 1,
                    section: kind,
                    name,
                    is_optional: false,
                });
            }
        } else if section.ends_with("dependencies")
            && !section.starts_with("workspace")
            && !line.starts_with('#')
        {
            let Some((name, rest)) = line.split_once(['.', ' ', '=']) else {
                continue;
            };
            let is_optional = rest.contains("optional = true");
            found.push(Dependency {
                line: index + 1,
                section,
                name,
                is_optional,
            });
        }
    }
    found
}

const ONLY_SOURCE: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

fn packages_come_from_one_registry(files: &Files) -> Vec<Finding> {
    let Some(lock) = files.0.get("Cargo.lock") else {
        return vec![Finding::whole(
            "Cargo.lock",
            "is missing; it is committed so that everyone builds the same",
        )];
    };
    let foreign = lock
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("source = ") && *line != ONLY_SOURCE);
    foreign
        .map(|(index, _)| Finding::at("Cargo.lock", index + 1, "a package from outside crates.io"))
        .collect()
}

/// Folders that only one machine has. Written in two parts, so that this line is no finding.
const MACHINE_FOLDERS: [&str; 3] = [concat!("/", "root"), concat!("/", "work"), concat!("/", "home")];

fn no_path_of_one_machine(files: &Files) -> Vec<Finding> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "_-.$}~".contains(character);
    let mut findings = Vec::new();
    for (path, text) in &files.0 {
        for (index, line) in text.lines().enumerate() {
            for folder in MACHINE_FOLDERS {
                let stands_alone = |(at, _): (usize, &str)| {
                    let after = &line[at + folder.len()..];
                    !line[..at].ends_with(is_part) && !after.starts_with(|c: char| is_part(c) && c != '.')
                };
                if line.match_indices(folder).any(stands_alone) {
                    findings.push(Finding::at(
                        path,
                        index + 1,
                        format!("`{folder}` exists on one machine only"),
                    ));
                }
            }
        }
    }
    findings
}

fn nothing_is_left_for_later(files: &Files) -> Vec<Finding> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut findings = Vec::new();
    for (path, text) in files.rust() {
        for (index, line) in text.lines().enumerate() {
            if let Some(mark) = marks
                .iter()
                .find(|mark| source::words(line, mark).next().is_some())
            {
                findings.push(Finding::at(
                    path,
                    index + 1,
                    format!("{mark}: do it, or write down that it is not done"),
                ));
            }
        }
        let code = source::code_only(text);
        for (at, _) in code.match_indices("#[ignore") {
            let message = "an ignored test is no test: call privilege::require, or remove it";
            findings.push(Finding::at(path, source::line_of(&code, at), message));
        }
    }
    findings
}

impl Files {
    fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .filter(|(path, _)| path.ends_with(".rs"))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

impl Finding {
    fn at(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }

    fn whole(path: &str, message: impl Into<String>) -> Self {
        Self::at(path, 0, message)
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
