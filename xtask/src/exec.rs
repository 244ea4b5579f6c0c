//! Running other programs, in an environment that does not depend on how this one was started.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::error::{Error, Result};

/// The root of the workspace.
pub(crate) fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate lies in a folder of the workspace")
}

/// The folder that holds `debug` and `release`, wherever the user's cargo configuration put it.
pub(crate) fn target_dir() -> PathBuf {
    // This program is TARGET/debug/xtask.
    let this_program = env::current_exe().ok();
    let target_dir = this_program.as_deref().and_then(|path| path.ancestors().nth(2));
    target_dir.map_or_else(|| workspace_root().join("target"), Path::to_path_buf)
}

/// The folder of rustup's proxies and of `cargo install`.
pub(crate) fn cargo_bin_dir() -> PathBuf {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    cargo_home
        .unwrap_or_else(|| PathBuf::from("/usr/local/cargo"))
        .join("bin")
}

/// PATH with rustup's folder first: the distribution's `cargo-web` puts another `cargo` in /usr/bin. The folders of
/// administration tools go last, since not every shell of root has them.
pub(crate) fn search_path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let first = cargo_bin_dir();
    let mut folders = vec![first.clone()];
    folders.extend(env::split_paths(&inherited).filter(|folder| *folder != first));
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !folders.iter().any(|known| known == Path::new(folder)) {
            folders.push(PathBuf::from(folder));
        }
    }
    env::join_paths(folders).unwrap_or(inherited)
}

/// Where a program lies, if it is in PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// True if this process runs as root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A program in the workspace's root, with the PATH above.
pub(crate) fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(workspace_root()).env("PATH", search_path());
    for leaked in leaked_variables() {
        command.env_remove(leaked);
    }
    command
}

/// The cargo that started this task, so that `cargo +TOOLCHAIN xtask` means the same toolchain all the way down.
pub(crate) fn cargo() -> Command {
    program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A call to rustup that names its toolchain itself: the one that runs this task must not override it.
pub(crate) fn rustup() -> Command {
    let mut command = program("rustup");
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTC_BOOTSTRAP"] {
        command.env_remove(variable);
    }
    // A question about a toolchain must never start a download.
    command.env("RUSTUP_AUTO_INSTALL", "0");
    command
}

/// What `cargo run` sets for this package. Build scripts further down would take it for their own, or be run again
/// because it changed.
fn leaked_variables() -> impl Iterator<Item = OsString> {
    env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "LD_LIBRARY_PATH"
    })
}

/// Prints the command and runs it. Its standard output goes to standard error: only results belong on ours.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    eprintln!("$ {line}");
    let status = command
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .map_err(|source| cannot_run(command, source))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::CommandFailed {
            command: line,
            status,
        })
    }
}

/// Runs a question quietly; `None` if the program is not there or says no.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let Output { status, stdout, .. } = command.stdin(Stdio::null()).output().ok()?;
    status
        .success()
        .then(|| String::from_utf8_lossy(&stdout).into_owned())
}

/// The error for a program that did not start.
pub(crate) fn cannot_run(command: &Command, source: std::io::Error) -> Error {
    Error::CannotRun {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    }
}

/// The command as one would type it.
pub(crate) fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let plain = |character: char| character.is_ascii_alphanumeric() || "-_=./+:,^~".contains(character);
        let quoted = if argument.chars().all(plain) && !argument.is_empty() {
            ""
        } else {
            "'"
        };
        write!(line, " {quoted}{argument}{quoted}").expect("writing to a String cannot fail");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.args([
            "clippy",
            "--config",
            "profile.dev.panic=\"abort\"",
            "--",
            "-D",
            "warnings",
            "",
        ]);
        assert_eq!(
            display(&command),
            "cargo clippy --config 'profile.dev.panic=\"abort\"' -- -D warnings ''"
        );
    }

    #[test]
    fn rustups_folder_comes_first_and_once() {
        let folders: Vec<PathBuf> = env::split_paths(&search_path()).collect();
        assert_eq!(folders[0], cargo_bin_dir());
        assert_eq!(
            folders
                .iter()
                .filter(|folder| **folder == cargo_bin_dir())
                .count(),
            1
        );
    }
}
