//! The programs that people use, through the balancer: nginx and curl, wrk, iperf3. They have their own ideas of TCP and
//! HTTP, of when to open a connection, what to put into a packet and what to call an error.

mod iperf;
mod nginx;
mod streaming;
mod web;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use enforcer_agent::api::reply::StatusReply;
use enforcer_tests::harness::Agent;
use enforcer_tests::lab::{Host, Output};
use enforcer_tests::privilege;

use super::bench;
use super::privileged;

/// Longest time for one of these programs, on a machine that has much else to do.
const PROGRAM_LIMIT: Duration = Duration::from_secs(60);

/// Whether a test with these programs can run.
fn can_run(programs: &[&str]) -> bool {
    privileged() && privilege::require_programs(programs)
}

/// Runs a program to its end, which has to be a good one, and gives back what it wrote to standard output.
fn succeed(host: &Host, command: Command) -> String {
    let text = format!("{command:?}");
    let Output {
        status,
        stdout,
        stderr,
    } = host.output(command, PROGRAM_LIMIT).unwrap();
    assert!(status.success(), "{text}: {status}\n{stderr}\n{stdout}");
    stdout
}

/// curl, with nothing from the surroundings: neither a configuration file nor a proxy.
fn curl() -> Command {
    let mut command = Command::new("curl");
    command.args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"]);
    // It gives up by itself before it is killed, and says how far it came.
    let limit = PROGRAM_LIMIT - Duration::from_secs(10);
    command.arg("--max-time").arg(limit.as_secs().to_string());
    command
}

/// A path on the service.
fn url(is_ipv6: bool, path: &str) -> String {
    format!("http://{}/{path}", bench::vip(is_ipv6))
}

/// The SHA-256 of a file.
fn sha256(host: &Host, file: &Path) -> String {
    let mut command = Command::new("sha256sum");
    command.arg(file);
    let line = succeed(host, command);
    line.split(' ').next().unwrap_or_default().to_owned()
}

/// Packets that were refused, by reason, but for those of these reasons.
fn refused(agent: &Agent, but_for: &[&str]) -> BTreeMap<String, u64> {
    const SENT_ON: [&str; 4] = ["Allowed", "NotService", "Related", "Reply"];
    let status: StatusReply = agent.ask(&["status"]).unwrap();
    let rows = status.packets.into_iter();
    rows.filter(|row| !SENT_ON.contains(&row.reason.as_str()) && !but_for.contains(&row.reason.as_str()))
        .map(|row| (format!("{:?} {}", row.direction, row.reason), row.packets))
        .collect()
}
