//! nginx on a host of the lab, with its own files and no others.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use enforcer_tests::harness::{self, eventually};
use enforcer_tests::lab::{Host, Lab, Process};
use enforcer_tests::random::Random;

use super::super::bench::LIMIT;
use super::super::echo::PORT;
use super::sha256;

/// A file that fits into one segment.
pub(super) const SMALL: (&str, usize) = ("small", 1_000);
/// A file of more than any window.
pub(super) const MEDIUM: (&str, usize) = ("medium", 5_000_000);
/// A file that takes a while.
pub(super) const LARGE: (&str, usize) = ("large", 50_000_000);

/// A server that has [`Files`], takes uploads, and says who it is. It ends when dropped.
pub(super) struct Nginx {
    host: Host,
    directory: PathBuf,
    _process: Process,
}

// === impl Nginx ===

impl Nginx {
    /// Starts it on port 8000 of both families and waits until it answers.
    pub(super) fn start(lab: &Lab, host: &Host, files: &Files) -> Self {
        let directory = lab.directory().join(format!("nginx-{}", host.name()));
        fs::create_dir_all(directory.join("uploads")).unwrap();
        let configuration = directory.join("nginx.conf");
        fs::write(&configuration, text(&directory, host.name(), &files.directory)).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&directory).arg("-c").arg(&configuration);
        // Before it has read its configuration it would write to the log of the machine's own nginx.
        command.arg("-e").arg(directory.join("error.log"));
        let mut process = host.spawn(command).unwrap();
        let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        eventually("nginx that answers", LIMIT, || {
            assert!(process.is_running()?, "nginx has ended:\n{}", process.tail());
            let answer = harness::get(host, here, "/who");
            Ok(answer.map(drop).map_err(|error| error.to_string()))
        })
        .unwrap();
        Self {
            host: host.clone(),
            directory,
            _process: process,
        }
    }

    /// Where an upload of this name lies, if it came here.
    pub(super) fn upload(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join("uploads").join(name)).filter(|path| path.exists())
    }

    /// Requests that it has had, but for the one that asks for that. Probes by TCP are none.
    pub(super) fn requests(&self) -> u64 {
        let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        let answer = harness::get(&self.host, here, "/status").unwrap();
        // The third line has what was accepted, handled and asked.
        let figures = answer.body.lines().nth(2).unwrap_or_default();
        let requests = figures
            .split_whitespace()
            .last()
            .and_then(|word| word.parse::<u64>().ok());
        requests.unwrap_or_else(|| panic!("no figures: {answer:?}")) - 1
    }
}

/// What all files begin with: nothing in it repeats, so that nothing in it can take another's place.
static CONTENT: LazyLock<Vec<[u8; 8]>> = LazyLock::new(|| {
    let mut random = Random::new(1);
    (0..LARGE.1 / 8).map(|_| random.bits().to_le_bytes()).collect()
});

/// What servers of one run have to give.
pub(super) struct Files {
    directory: PathBuf,
    sums: BTreeMap<&'static str, String>,
}

// === impl Files ===

impl Files {
    /// Writes them; the host has the program that sums them up.
    pub(super) fn write(lab: &Lab, host: &Host) -> Self {
        let directory = lab.directory().join("files");
        fs::create_dir_all(&directory).unwrap();
        let write = |(name, bytes)| {
            let path = directory.join(name);
            fs::write(&path, &CONTENT.as_flattened()[..bytes]).unwrap();
            (name, sha256(host, &path))
        };
        let sums = [SMALL, MEDIUM, LARGE].map(write).into();
        Self { directory, sums }
    }

    /// Where one of them lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The SHA-256 of one of them.
    pub(super) fn sha256(&self, name: &str) -> &str {
        &self.sums[name]
    }
}

/// Every path is one of the run's. Connections are never closed for having lasted, so that clients open no more than they
/// want to.
fn text(directory: &Path, name: &str, files: &Path) -> String {
    let (directory, files) = (directory.display(), files.display());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("  {what}_temp_path {directory}/{what};\n"))
        .collect();
    format!(
        "daemon off;\n\
         user root;\n\
         worker_processes 1;\n\
         pid {directory}/nginx.pid;\n\
         error_log {directory}/error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
         {temporary}\
         \x20 access_log off;\n\
         \x20 default_type application/octet-stream;\n\
         \x20 sendfile on;\n\
         \x20 keepalive_requests 100000000;\n\
         \x20 client_max_body_size 64m;\n\
         \x20 server {{\n\
         \x20   listen {PORT};\n\
         \x20   listen [::]:{PORT};\n\
         \x20   root {files};\n\
         \x20   location = /who {{ return 200 \"{name}\\n\"; }}\n\
         \x20   location = /status {{ stub_status; }}\n\
         \x20   location /uploads/ {{ root {directory}; dav_methods PUT; }}\n\
         \x20 }}\n\
         }}\n"
    )
}
