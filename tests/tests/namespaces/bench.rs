//! An agent between clients and back ends, under a policy of the test's own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use aya::programs::XdpMode;
use enforcer_agent::adapters::dataplane::{Dataplane, Settings};
use enforcer_agent::api::reply::{
    BackendHealth, BackendListReply, PolicyApplyReply, StatusReply, TenantListReply,
};
use enforcer_agent::pure::audit::Direction;
use enforcer_agent::pure::capacity::Capacity;
use enforcer_tests::harness::{Agent, AgentSettings, eventually};
use enforcer_tests::lab::topology::{self, Leaf, Rack, Routed};
use enforcer_tests::lab::{Host, Lab};

use super::echo::Echo;

pub(super) const VIP: &str = "192.0.2.10";
pub(super) const VIP_V6: &str = "2001:db8::10";
/// Longest wait for something that the agent does by itself.
pub(super) const LIMIT: Duration = Duration::from_secs(15);
/// How long a connection is tried that is expected to be refused: one SYN.
pub(super) const REFUSED_LIMIT: Duration = Duration::from_millis(500);

/// Fields drop in this order: the agent ends before the namespaces go.
pub(super) struct Bench<Network> {
    pub(super) agent: Agent,
    pub(super) network: Network,
    /// Keeps the switch's program attached.
    _switch: Option<Dataplane>,
    pub(super) lab: Lab,
}

impl Bench<Routed> {
    /// An echo server on every back end, known to answer.
    pub(super) fn echoes(&self) -> Vec<Echo> {
        let back_ends = self.network.back_ends.iter();
        let echoes = back_ends
            .map(|leaf| Echo::start(&leaf.host, &probers(leaf)))
            .collect();
        wait_for_health(&self.agent);
        echoes
    }

    pub(super) fn client(&self) -> &Leaf {
        &self.network.clients[0]
    }
}

impl Bench<Rack> {
    /// An echo server on every back end, known to answer.
    pub(super) fn echoes(&self) -> Vec<Echo> {
        let balancer = &self.network.balancer;
        let probers = [balancer.ipv4.into(), balancer.ipv6.into()];
        let back_ends = self.network.back_ends.iter();
        let echoes = back_ends.map(|leaf| Echo::start(&leaf.host, &probers)).collect();
        wait_for_health(&self.agent);
        echoes
    }
}

/// The balancer's own addresses on the link to a back end, from which it probes.
fn probers(leaf: &Leaf) -> [IpAddr; 2] {
    let [a, b, c, _] = leaf.ipv4.octets();
    let mut segments = leaf.ipv6.segments();
    segments[7] = 1;
    [Ipv4Addr::new(a, b, c, 1).into(), Ipv6Addr::from(segments).into()]
}

/// Two clients and two back ends around a balancer; XDP on the interfaces that are named.
pub(super) fn routed(interfaces: &[&str], policy: &str) -> Bench<Routed> {
    let bench = routed_without_hops(interfaces, policy);
    wait_for_next_hops(&bench.agent);
    bench
}

/// The same where back ends need no next hop.
pub(super) fn routed_without_hops(interfaces: &[&str], policy: &str) -> Bench<Routed> {
    routed_by("Auto", interfaces, policy)
}

/// The same where the agent sees what comes in in this way.
pub(super) fn routed_by(attach_mode: &'static str, interfaces: &[&str], policy: &str) -> Bench<Routed> {
    let mut lab = Lab::new().unwrap();
    let network = topology::routed(&mut lab, &["acme", "stranger"], &["gpu-1", "gpu-2"]).unwrap();
    let settings = AgentSettings {
        attach_mode,
        ..AgentSettings::new(interfaces.iter().copied())
    };
    let agent = start(&lab, &network.balancer, &settings, policy);
    Bench {
        agent,
        network,
        _switch: None,
        lab,
    }
}

/// The same on one Ethernet segment.
pub(super) fn rack(policy: &str) -> Bench<Rack> {
    let mut lab = Lab::new().unwrap();
    let network = topology::rack(&mut lab, &["acme"], &["gpu-1", "gpu-2"], &[VIP, VIP_V6]).unwrap();
    let switch = passing_switch(&lab, &network);
    let settings = AgentSettings::new(["rack"]);
    let agent = start(&lab, &network.balancer.host, &settings, policy);
    wait_for_next_hops(&agent);
    Bench {
        agent,
        network,
        _switch: Some(switch),
        lab,
    }
}

/// Frames that the balancer sends back by `XDP_TX` reach a veth peer at once only if that runs XDP itself (in
/// `veth_xdp_flush`; offload settings do not do): so the switch's port does, with programs that have no policy and pass
/// everything. A network card needs none of this.
fn passing_switch(lab: &Lab, network: &Rack) -> Dataplane {
    let settings = Settings {
        pin_directory: lab.pin_directory().join("switch"),
        capacity: Capacity {
            flows: 1024,
            ..Capacity::default()
        },
        test_clock: false,
    };
    let mut dataplane = Dataplane::open(&settings).unwrap();
    let port = network.balancer.host.name();
    let attached = network
        .switch
        .host()
        .enter(|| dataplane.xdp().unwrap().attach(port, XdpMode::Driver).map(|_| ()));
    attached.unwrap().unwrap();
    dataplane
}

pub(super) const ALL_INTERFACES: [&str; 4] = ["acme", "stranger", "gpu-1", "gpu-2"];

fn start(lab: &Lab, host: &Host, settings: &AgentSettings, policy: &str) -> Agent {
    let mut agent = Agent::prepare(lab, host, settings).unwrap();
    agent.start().unwrap();
    apply(lab, &agent, policy);
    agent
}

/// Runs the command that takes outer headers off, on a back end's host.
pub(super) fn decapsulate(bench: &Bench<Routed>, leaf: &Leaf, arguments: &str) -> String {
    let agent = bench.agent.program();
    let pins = bench
        .lab
        .pin_directory()
        .join(format!("decap-{}", leaf.host.name()));
    let line = format!(
        "{} decapsulate {} --pin-directory {} {arguments}",
        agent.display(),
        leaf.port.device,
        pins.display()
    );
    leaf.host.run(&line).unwrap()
}

/// Frames that a host sends back by `XDP_TX` reach a veth peer at once only if that runs XDP itself: so clients do, with a
/// program that passes everything. A network card needs none of this.
pub(super) fn let_clients_be_answered(bench: &Bench<Routed>) {
    for leaf in &bench.network.clients {
        decapsulate(bench, leaf, "--ipv4 203.0.113.0/24");
    }
}

/// The same for back ends.
pub(super) fn let_back_ends_be_answered(bench: &Bench<Routed>) {
    for leaf in &bench.network.back_ends {
        decapsulate(bench, leaf, "--ipv4 203.0.113.0/24");
    }
}

/// Writes a policy to a file of the run.
pub(super) fn write_policy(lab: &Lab, text: &str) -> PathBuf {
    let path = lab.directory().join("policy.yaml");
    fs::write(&path, text).unwrap();
    path
}

pub(super) fn apply(lab: &Lab, agent: &Agent, policy: &str) -> PolicyApplyReply {
    let path = write_policy(lab, policy);
    agent.ask(&["policy", "apply", path.to_str().unwrap()]).unwrap()
}

/// Until every back end has answered its probes: one that is found to answer later would take flows over in the midst of a
/// test.
pub(super) fn wait_for_health(agent: &Agent) {
    eventually("back ends that answer", LIMIT, || {
        let reply: BackendListReply = agent.ask(&["backend", "list"])?;
        let mut rows = reply.backends.into_iter();
        let silent = rows.find(|row| row.health != BackendHealth::Healthy);
        Ok(silent.map_or(Ok(()), |row| Err(row.name)))
    })
    .unwrap();
}

pub(super) fn wait_for_next_hops(agent: &Agent) {
    eventually("next hops of all back ends", LIMIT, || {
        let reply: BackendListReply = agent.ask(&["backend", "list"])?;
        let missing = reply.backends.into_iter().find(|row| row.next_hop.is_none());
        Ok(missing.map_or(Ok(()), |row| Err(row.name)))
    })
    .unwrap();
}

/// Packets that got a reason, of everybody.
pub(super) fn packets(agent: &Agent, direction: Direction, reason: &str) -> u64 {
    let status: StatusReply = agent.ask(&["status"]).unwrap();
    let rows = status.packets.iter();
    rows.filter(|row| row.direction == direction && row.reason == reason)
        .map(|row| row.packets)
        .sum()
}

/// Connections that acme has open.
pub(super) fn open_connections(agent: &Agent) -> u64 {
    let reply: TenantListReply = agent.ask(&["tenant", "list"]).unwrap();
    reply
        .tenants
        .iter()
        .find(|row| row.name == "acme")
        .unwrap()
        .connections
}

pub(super) fn vip(is_ipv6: bool) -> SocketAddr {
    let address = if is_ipv6 { VIP_V6 } else { VIP };
    SocketAddr::new(address.parse().unwrap(), super::echo::PORT)
}

/// A policy that lets acme use one service of both families, with both back ends.
pub(super) fn policy(forward: &str, protocol: &str, limits: &str, action: &str) -> String {
    policy_for(forward, protocol, limits, action, ["10.9", "2001:db8:9"])
}

/// The same for the rack, where back ends have other addresses.
pub(super) fn rack_policy() -> String {
    policy_for("L2Dsr", "TCP", "", "Allow", ["10.5", "2001:db8:5"])
}

fn policy_for(forward: &str, protocol: &str, limits: &str, action: &str, networks: [&str; 2]) -> String {
    let is_rack = networks[0] == "10.5";
    let (sources, back_ends) = if is_rack {
        (
            "[10.5.0.101/32, \"2001:db8:5::65/128\"]",
            ["10.5.0.11", "10.5.0.12", "2001:db8:5::b", "2001:db8:5::c"],
        )
    } else {
        (
            "[10.1.1.0/24, \"2001:db8:1:1::/64\"]",
            ["10.9.1.10", "10.9.2.10", "2001:db8:9:1::10", "2001:db8:9:2::10"],
        )
    };
    let names = ["gpu-1", "gpu-2", "gpu-1-v6", "gpu-2-v6"];
    let back_ends: String = names
        .iter()
        .zip(back_ends)
        .map(|(name, address)| format!("    - {{name: {name}, address: \"{address}\", port: 8000}}\n"))
        .collect();
    let protected = if is_rack {
        ""
    } else {
        "  protectedNetworks: [10.9.0.0/16, \"2001:db8:9::/48\"]\n"
    };
    let limits = if limits.is_empty() {
        String::new()
    } else {
        format!(", limits: {{{limits}}}")
    };
    format!(
        "apiVersion: enforcer.dev/v1\n\
         kind: GovernancePolicy\n\
         metadata: {{name: bench}}\n\
         spec:\n\
         \x20 tenants:\n\
         \x20 - {{name: acme, sources: {sources}{limits}}}\n\
         \x20 services:\n\
         \x20 - name: chat\n\
         \x20   addresses: [{VIP}, \"{VIP_V6}\"]\n\
         \x20   port: 8000\n\
         \x20   protocol: {protocol}\n\
         \x20   pools: [gpus]\n\
         \x20   forward: {forward}\n\
         \x20 pools:\n\
         \x20 - name: gpus\n\
         \x20   healthCheck: {{tcp: true, interval: 200ms, unhealthyAfter: 100}}\n\
         \x20   backends:\n{back_ends}\
         \x20 rules:\n\
         \x20 - {{name: acme-chat, action: {action}, tenants: {{matchNames: [acme]}}}}\n\
         {protected}"
    )
}
