//! nginx behind the balancer, and curl and wrk in front of it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use enforcer_agent::api::reply::{BackendListReply, TenantListReply};
use enforcer_agent::pure::audit::Direction;
use enforcer_tests::harness::{Agent, eventually};
use enforcer_tests::lab::topology::{Leaf, Routed};
use enforcer_tests::lab::{Host, Lab};

use super::super::bench::{self, ALL_INTERFACES, Bench, LIMIT};
use super::super::ways;
use super::nginx::{Files, LARGE, MEDIUM, Nginx, SMALL};
use super::{can_run, curl, refused, sha256, succeed, url};

/// Connections for each family: with two servers of equal weight, all on one has a chance of 2^-15.
const CONNECTIONS: usize = 16;

/// A lab in which web servers are to be reached, whatever its shape.
struct Site<'bench> {
    lab: &'bench Lab,
    agent: &'bench Agent,
    client: &'bench Host,
    servers: Vec<&'bench Host>,
    /// What may be refused.
    expected: &'static [&'static str],
}

// === impl Site ===

impl<'bench> Site<'bench> {
    fn routed(bench: &'bench Bench<Routed>, expected: &'static [&'static str]) -> Self {
        Self {
            lab: &bench.lab,
            agent: &bench.agent,
            client: &bench.client().host,
            servers: hosts(&bench.network.back_ends),
            expected,
        }
    }

    /// Both families: every server is reached, files come whole, and so they go up; nothing else is refused.
    fn check(&self) {
        let files = Files::write(self.lab, self.client);
        let servers = start(self.lab, self.agent, &self.servers, &files);
        for is_ipv6 in [false, true] {
            let expected: BTreeSet<&str> = self.servers.iter().map(|host| host.name()).collect();
            let answers = who(self.client, is_ipv6);
            let seen: BTreeSet<&str> = answers.lines().collect();
            assert_eq!(seen, expected, "IPv6: {is_ipv6}");
            for (name, _) in [SMALL, LARGE] {
                let copy = self.lab.directory().join(format!("copy-of-{name}"));
                let mut command = curl();
                command.arg("--output").arg(&copy).arg(url(is_ipv6, name));
                succeed(self.client, command);
                assert_eq!(
                    sha256(self.client, &copy),
                    files.sha256(name),
                    "{name}, IPv6: {is_ipv6}"
                );
                fs::remove_file(copy).unwrap();
            }
            upload(self.client, &servers, &files, MEDIUM.0, is_ipv6);
        }
        assert_eq!(refused(self.agent, self.expected), [].into());
    }
}

/// Starts a server on each host and waits until all of them are known to answer.
fn start(lab: &Lab, agent: &Agent, hosts: &[&Host], files: &Files) -> Vec<Nginx> {
    let start = |host: &&Host| Nginx::start(lab, host, files);
    let servers = hosts.iter().map(start).collect();
    bench::wait_for_health(agent);
    servers
}

fn hosts(leaves: &[Leaf]) -> Vec<&Host> {
    leaves.iter().map(|leaf| &leaf.host).collect()
}

/// Who answers on connections of their own, a line for each.
fn who(client: &Host, is_ipv6: bool) -> String {
    let mut command = curl();
    command.args(["--header", "Connection: close"]);
    command.args(std::iter::repeat_n(url(is_ipv6, "who"), CONNECTIONS));
    succeed(client, command)
}

/// Sends a file to whichever server gets it, and compares.
fn upload(client: &Host, servers: &[Nginx], files: &Files, file: &str, is_ipv6: bool) {
    let name = format!("upload-{is_ipv6}");
    let mut command = curl();
    command.arg("--upload-file").arg(files.path(file));
    command.arg(url(is_ipv6, &format!("uploads/{name}")));
    succeed(client, command);
    let arrived = servers.iter().find_map(|server| server.upload(&name));
    let arrived = arrived.expect("what was acknowledged is there");
    assert_eq!(sha256(client, &arrived), files.sha256(file), "IPv6: {is_ipv6}");
    fs::remove_file(arrived).unwrap();
}

fn translated(forward: &str) {
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy(forward, "TCP", "", "Allow"));
    Site::routed(&bench, &[]).check();
}

#[test]
fn curl_gets_whole_files_from_nginx_through_nat() {
    if can_run(&["curl", "nginx"]) {
        translated("Nat");
    }
}

#[test]
fn curl_gets_whole_files_from_nginx_through_dnat() {
    if can_run(&["curl", "nginx"]) {
        translated("Dnat");
    }
}

fn tunnelled(forward: &str) {
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy(forward, "TCP", "", "Allow"));
    bench::let_clients_be_answered(&bench);
    for leaf in &bench.network.back_ends {
        ways::own_vip(&leaf.host);
        bench::decapsulate(&bench, leaf, "--ipv4 10.254.0.0/16 --ipv6 2001:db8:fe::/64");
    }
    // The first full packets of an upload have no room in a tunnel, and the client is told.
    Site::routed(&bench, &["TooBig"]).check();
    assert!(bench::packets(&bench.agent, Direction::Ingress, "TooBig") > 0);
}

#[test]
fn curl_gets_whole_files_from_nginx_through_ip_in_ip() {
    if can_run(&["curl", "nginx"]) {
        tunnelled("Ipip");
    }
}

#[test]
fn curl_gets_whole_files_from_nginx_through_generic_udp() {
    if can_run(&["curl", "nginx"]) {
        tunnelled("Gue");
    }
}

#[test]
fn curl_gets_whole_files_from_nginx_by_direct_server_return() {
    if !can_run(&["curl", "nginx"]) {
        return;
    }
    let bench = bench::rack(&bench::rack_policy());
    let site = Site {
        lab: &bench.lab,
        agent: &bench.agent,
        client: &bench.network.clients[0].host,
        servers: hosts(&bench.network.back_ends),
        expected: &[],
    };
    site.check();
}

#[test]
fn curl_gets_whole_files_from_nginx_on_the_balancer() {
    if !can_run(&["curl", "nginx"]) {
        return;
    }
    let bench = bench::routed_without_hops(&ALL_INTERFACES, &ways::local_policy(""));
    ways::own_vip(&bench.network.balancer);
    let site = Site {
        servers: vec![&bench.network.balancer],
        ..Site::routed(&bench, &[])
    };
    site.check();
}

/// Makes the link to a back end smaller than its server tells clients that it is, as one further on would be: what it says
/// of its own would keep segments small from the start.
fn narrow(bench: &Bench<Routed>, leaf: &Leaf) {
    let (ours, theirs) = (leaf.host.name(), &leaf.port.device);
    let balancer = &bench.network.balancer;
    balancer.ip(&format!("link set dev {ours} mtu 1400")).unwrap();
    leaf.host.ip(&format!("link set dev {theirs} mtu 1400")).unwrap();
    for (family, segment_bytes) in [("-4", 1460), ("-6", 1440)] {
        let route = leaf.host.ip(&format!("{family} route show default")).unwrap();
        let route = route.trim();
        leaf.host
            .ip(&format!("{family} route replace {route} advmss {segment_bytes}"))
            .unwrap();
    }
}

#[test]
fn an_upload_of_curl_finds_out_that_a_link_is_smaller() {
    if !can_run(&["curl", "nginx"]) {
        return;
    }
    let bench = bench::routed(&ALL_INTERFACES, &bench::policy("Dnat", "TCP", "", "Allow"));
    bench::let_clients_be_answered(&bench);
    let files = Files::write(&bench.lab, &bench.client().host);
    let servers = start(&bench.lab, &bench.agent, &hosts(&bench.network.back_ends), &files);
    for leaf in &bench.network.back_ends {
        narrow(&bench, leaf);
    }
    eventually("back ends behind links of that MTU", LIMIT, || {
        let reply: BackendListReply = bench.agent.ask(&["backend", "list"])?;
        let mut rows = reply.backends.into_iter();
        let other = rows.find(|row| row.next_hop.as_ref().is_none_or(|hop| hop.mtu_bytes != 1400));
        Ok(other.map_or(Ok(()), |row| Err(format!("{}: {:?}", row.name, row.next_hop))))
    })
    .unwrap();
    let mut too_big = 0;
    for (is_ipv6, family) in [(false, "-4"), (true, "-6")] {
        let client = &bench.client().host;
        upload(client, &servers, &files, LARGE.0, is_ipv6);
        let route = client
            .ip(&format!("{family} route get {}", bench::vip(is_ipv6).ip()))
            .unwrap();
        assert!(route.contains("mtu 1400"), "{route}");
        let before = too_big;
        too_big = bench::packets(&bench.agent, Direction::Ingress, "TooBig");
        assert!(too_big > before, "IPv6: {is_ipv6}");
    }
    assert_eq!(refused(&bench.agent, &["TooBig"]), [].into());
}

/// What wrk says of its requests: how many were answered. Anything that went wrong it says too.
fn answered(report: &str) -> u64 {
    assert!(
        !report.contains("Socket errors") && !report.contains("Non-2xx"),
        "{report}"
    );
    let line = report.lines().find(|line| line.contains(" requests in "));
    let first = line.and_then(|line| line.split_whitespace().next());
    let requests = first.and_then(|word| word.parse::<u64>().ok());
    requests.unwrap_or_else(|| panic!("no figures in\n{report}"))
}

#[test]
fn every_connection_and_request_of_wrk_is_accounted_for() {
    const CONNECTIONS: u64 = 8;
    if !can_run(&["wrk", "nginx"]) {
        return;
    }
    // A quota that is never used up counts connections that were opened.
    let policy = bench::policy("Nat", "TCP", "", "Allow");
    let quota = "{name: acme, quotas: [{metric: connections, limit: 1M, per: 366d}], ";
    let bench = bench::routed(&ALL_INTERFACES, &policy.replacen("{name: acme, ", quota, 1));
    let files = Files::write(&bench.lab, &bench.client().host);
    let servers = start(&bench.lab, &bench.agent, &hosts(&bench.network.back_ends), &files);
    let requests = || servers.iter().map(Nginx::requests).sum::<u64>();
    let [mut opened, mut served] = [0, requests()];
    for is_ipv6 in [false, true] {
        let mut command = Command::new("wrk");
        command.args(["--threads", "1", "--duration", "1s"]);
        command.arg("--connections").arg(CONNECTIONS.to_string());
        command.arg(url(is_ipv6, SMALL.0));
        let answered = answered(&succeed(&bench.client().host, command));
        // One more, with which it tries the address before it begins.
        opened += CONNECTIONS + 1;
        eventually("as many connections as wrk has opened", LIMIT, || {
            let reply: TenantListReply = bench.agent.ask(&["tenant", "list"])?;
            let acme = reply.tenants.iter().find(|row| row.name == "acme").unwrap();
            let used = acme.quotas.first().map_or(0, |quota| quota.used);
            assert!(used <= opened, "{used} connections instead of {opened}");
            Ok((used == opened).then_some(()).ok_or_else(|| used.to_string()))
        })
        .unwrap();
        // To count the servers' requests is one for each, and when wrk ends there is at most one under way on each
        // connection.
        let before = served;
        served = requests();
        let asked = served - before - servers.len() as u64;
        assert!(
            answered > 0 && (answered..=answered + CONNECTIONS).contains(&asked),
            "{answered} answers to {asked} requests, IPv6: {is_ipv6}"
        );
        let packets = bench::packets(&bench.agent, Direction::Ingress, "Allowed");
        assert!(packets >= answered, "{packets} packets for {answered} requests");
    }
    assert_eq!(refused(&bench.agent, &[]), [].into());
}
