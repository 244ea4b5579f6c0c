//! iperf3 through the balancer: a connection on which both ends agree, and others, or datagrams, that carry the load, all
//! to one port. So its service has one back end, and there is one for either protocol.

use std::process::Command;
use std::time::{Duration, Instant};

use enforcer_agent::pure::audit::Direction;
use enforcer_tests::lab::topology::Routed;
use serde_json::Value;

use super::super::bench::{self, ALL_INTERFACES, Bench, LIMIT};
use super::super::echo::PORT;
use super::{can_run, refused, succeed};

/// Of a datagram: fits the links, with headers of either family.
const DATAGRAM_BYTES: u64 = 1200;
/// What the policies with limits allow.
const LIMIT_BYTES_PER_SECOND: u64 = 1_000_000;

/// A service for each protocol, on one port of one back end. A probe would be taken by iperf3 for its one client: there is
/// one at the start, for the way there, and then none for an hour.
fn policy(forward: &str, tenant_limits: &str, datagram_limits: &str) -> String {
    let stream_service = format!("    forward: {forward}\n");
    let datagram_service = format!(
        "{stream_service}\
         \x20 - name: load\n\
         \x20   addresses: [{}, \"{}\"]\n\
         \x20   port: {PORT}\n\
         \x20   protocol: UDP\n\
         \x20   pools: [gpus]\n\
         {stream_service}{datagram_limits}",
        bench::VIP,
        bench::VIP_V6
    );
    let text = bench::policy(forward, "TCP", tenant_limits, "Allow");
    text.replacen(&stream_service, &datagram_service, 1)
        .replace("{tcp: true}", "{tcp: true, interval: 1h}")
        .lines()
        .filter(|line| !line.contains("gpu-2"))
        .fold(String::new(), |text, line| text + line + "\n")
}

/// Runs a server for one test, and the client with these arguments; gives back the client's report, and how long it took.
fn measure(bench: &Bench<Routed>, is_ipv6: bool, arguments: &str) -> (Value, Duration) {
    let port = PORT.to_string();
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--forceflush", "--port", &port]);
    let mut server = bench.network.back_ends[0].host.spawn(command).unwrap();
    server
        .wait_for_line(LIMIT, |line| line.starts_with("Server listening"))
        .unwrap();
    let mut command = Command::new("iperf3");
    command.args(["--client", &bench::vip(is_ipv6).ip().to_string(), "--port", &port]);
    command.arg("--json").args(arguments.split(' '));
    let started = Instant::now();
    let report = succeed(&bench.client().host, command);
    let taken = started.elapsed();
    let status = server.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}: {}", server.tail());
    (serde_json::from_str(&report).unwrap(), taken)
}

fn number(report: &Value, pointer: &str) -> u64 {
    let found = report.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no {pointer} in {report:#}"))
}

/// Datagrams that the server's socket had no room for, as on a machine that is busy with something else.
fn overrun(bench: &Bench<Routed>) -> u64 {
    let back_end = &bench.network.back_ends[0].host;
    let figures = back_end
        .run("cat /proc/self/net/snmp /proc/self/net/snmp6")
        .unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut ipv4 = figures.lines().filter(|line| line.starts_with("Udp:")).map(words);
    let (names, values) = (ipv4.next().unwrap(), ipv4.next().unwrap());
    let place = names.iter().position(|name| name == "RcvbufErrors").unwrap();
    let ipv6 = figures.lines().find(|line| line.starts_with("Udp6RcvbufErrors"));
    values[place].parse::<u64>().unwrap() + words(ipv6.unwrap())[1].parse::<u64>().unwrap()
}

fn go_both_ways(forward: &str) {
    let bench = bench::routed(&ALL_INTERFACES, &policy(forward, "", ""));
    for is_ipv6 in [false, true] {
        for arguments in ["--bytes 50M", "--bytes 50M --reverse"] {
            let (report, _) = measure(&bench, is_ipv6, arguments);
            let bytes = number(&report, "/end/sum_received/bytes");
            assert!(bytes > 25_000_000, "{arguments}, IPv6 {is_ipv6}: {bytes} bytes");
        }
        let overrun_before = overrun(&bench);
        let (report, _) = measure(&bench, is_ipv6, &datagrams("1"));
        let (sent, lost) = (
            number(&report, "/end/sum/packets"),
            number(&report, "/end/sum/lost_packets"),
        );
        assert!(sent > 100, "{sent} datagrams");
        let overrun = overrun(&bench) - overrun_before;
        assert!(
            lost <= overrun,
            "{lost} of {sent} datagrams lost, {overrun} by the server"
        );
    }
    assert_eq!(refused(&bench.agent, &[]), [].into());
}

/// 20 Mbit/s for so long.
fn datagrams(seconds: &str) -> String {
    format!("--udp --bitrate 20M --length {DATAGRAM_BYTES} --time {seconds}")
}

#[test]
fn iperf3_goes_both_ways_through_nat() {
    if can_run(&["iperf3"]) {
        go_both_ways("Nat");
    }
}

#[test]
fn iperf3_goes_both_ways_through_dnat() {
    if can_run(&["iperf3"]) {
        go_both_ways("Dnat");
    }
}

/// What a limit lets through in some time: its rate and its burst of a second. What it lets through beyond that, a packet
/// for each further CPU, is less than the headers that it counts and iperf3 does not.
fn most_bytes(taken: Duration) -> u64 {
    LIMIT_BYTES_PER_SECOND + LIMIT_BYTES_PER_SECOND * taken.as_millis() as u64 / 1000
}

#[test]
fn iperf3_measures_no_more_than_a_tenant_may_send_and_get() {
    if !can_run(&["iperf3"]) {
        return;
    }
    let limits = format!(
        "bytesPerSecond: {LIMIT_BYTES_PER_SECOND}, responseBytesPerSecond: {LIMIT_BYTES_PER_SECOND}, burst: 1s"
    );
    let bench = bench::routed(&ALL_INTERFACES, &policy("Dnat", &limits, ""));
    for (arguments, reason) in [("--time 2", "ByteRate"), ("--time 2 --reverse", "ResponseRate")] {
        let (report, taken) = measure(&bench, false, arguments);
        let bytes = number(&report, "/end/sum_received/bytes");
        let most = most_bytes(taken);
        assert!(
            (LIMIT_BYTES_PER_SECOND / 2..=most).contains(&bytes),
            "{arguments}: {bytes} bytes in {taken:?}, not up to {most}"
        );
        assert!(
            bench::packets(&bench.agent, Direction::Ingress, reason) > 0,
            "{reason}"
        );
    }
    assert_eq!(refused(&bench.agent, &["ByteRate", "ResponseRate"]), [].into());
}

#[test]
fn iperf3_loses_the_datagrams_that_a_service_has_no_room_for() {
    if !can_run(&["iperf3"]) {
        return;
    }
    let limits = format!("    limits: {{bytesPerSecond: {LIMIT_BYTES_PER_SECOND}, burst: 1s}}\n");
    let bench = bench::routed(&ALL_INTERFACES, &policy("Nat", "", &limits));
    let (report, taken) = measure(&bench, true, &datagrams("2"));
    let (sent, lost) = (
        number(&report, "/end/sum/packets"),
        number(&report, "/end/sum/lost_packets"),
    );
    let refused_packets = bench::packets(&bench.agent, Direction::Ingress, "ServiceRate");
    let explained = refused_packets + overrun(&bench);
    assert!(
        lost > 0 && lost <= explained,
        "{lost} of {sent} lost, {explained} explained"
    );
    let bytes = (sent - lost) * DATAGRAM_BYTES;
    let most = most_bytes(taken);
    assert!(
        (LIMIT_BYTES_PER_SECOND / 2..=most).contains(&bytes),
        "{bytes} bytes in {taken:?}, not up to {most}"
    );
    assert_eq!(refused(&bench.agent, &["ServiceRate"]), [].into());
}
