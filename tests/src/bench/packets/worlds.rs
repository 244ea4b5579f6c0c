//! What the packets of the cases are judged by.

use enforcer_agent::pure::capacity::Capacity;

use crate::large::{self, Size};
use crate::world::{BACKEND_IFINDEX, INGRESS_IFINDEX, World, WorldError};

/// A policy, and how much fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Surroundings {
    /// A few tenants and services, tables as large as they are by default. Packets go out where they came in.
    Usual,
    /// The same, but the back ends are behind another interface.
    TwoInterfaces,
    /// The same as the usual ones, with room for a million flows and more.
    Roomy,
    /// The usual ones, with one flow for each source of a network of sixteen million.
    ManySources,
    /// The usual ones, and every decision that calls for an audit record gets one.
    Audited,
    /// Ten thousand tenants and a thousand services.
    Large,
}

/// A service for each way to forward and each family, and a tenant for each kind of verdict.
const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: bench}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"]}
  - {name: everyone, sources: [11.0.0.0/8]}
  - {name: denied, sources: [10.2.0.0/16, "2001:db8:2::/48"]}
  - {name: slow, sources: [10.3.0.0/16], limits: {packetsPerSecond: 1, burst: 1ms}}
  - name: limited
    sources: [10.4.0.0/16]
    limits: {newConnectionsPerSecond: 1G, packetsPerSecond: 1G, bytesPerSecond: 1T, responseBytesPerSecond: 1T,
      concurrentConnections: 4G}
  services:
  - {name: nat, addresses: [192.0.2.10, "2001:db8::10"], port: 8000, protocol: TCP, pools: [both], forward: Nat}
  - {name: dnat, addresses: [192.0.2.20, "2001:db8::20"], port: 8000, protocol: TCP, pools: [both], forward: Dnat}
  - {name: l2dsr, addresses: [192.0.2.30, "2001:db8::30"], port: 8000, protocol: TCP, pools: [both], forward: L2Dsr}
  - {name: ipip-4, addresses: [192.0.2.40], port: 8000, protocol: TCP, pools: [four], forward: Ipip}
  - {name: ipip-6, addresses: ["2001:db8::40"], port: 8000, protocol: TCP, pools: [six], forward: Ipip}
  - {name: gue-4, addresses: [192.0.2.50], port: 8000, protocol: TCP, pools: [four], forward: Gue}
  - {name: gue-6, addresses: ["2001:db8::50"], port: 8000, protocol: TCP, pools: [six], forward: Gue}
  - {name: local, addresses: [192.0.2.60, "2001:db8::60"], port: 8000, protocol: TCP, pools: [proxies], forward: Local}
  pools:
  - name: proxies
    backends: [{name: proxy4, address: 192.0.2.60, port: 8000}, {name: proxy6, address: "2001:db8::60", port: 8000}]
  - {name: both, labels: {in: both}, backends: [BACKENDS(a, 10.9.1), BACKENDS6(b, 2001:db8:9:1)]}
  - {name: four, backends: [BACKENDS(c, 10.9.2)]}
  - {name: six, backends: [BACKENDS6(d, 2001:db8:9:2)]}
  rules:
  - {name: not-denied, action: Deny, priority: 1, tenants: {matchNames: [denied]}}
  - {name: all, action: Allow}
  protectedNetworks: [10.9.0.0/16]
"#;

/// Added to the large policy: what is measured is not which tenants the other rules allow.
const LARGE_RULE: &str =
    "  - {name: all-to-one, action: Allow, priority: 1, services: {matchNames: [service-500]}}\n";

// === impl Surroundings ===

impl Surroundings {
    /// The low bits of a flow's number that choose its port, and how far the sources lie apart: in the large policy each
    /// source belongs to another tenant.
    pub(super) const fn spread(self, port_bits: u32) -> (u32, u32) {
        match self {
            Self::Large => (0, 16),
            Self::ManySources => (0, 1),
            Self::Usual | Self::TwoInterfaces | Self::Roomy | Self::Audited => (port_bits, 1),
        }
    }

    /// The policy and the host.
    pub(in crate::bench) fn world(self, quick: bool) -> Result<World, WorldError> {
        let capacity = match self {
            Self::Usual | Self::TwoInterfaces | Self::Audited | Self::ManySources => Capacity::default(),
            Self::Roomy => Capacity {
                flows: if quick { 1 << 16 } else { 3 << 19 },
                ..Capacity::default()
            },
            Self::Large => Capacity {
                tenants: 16_383,
                trie_nodes: 32_768,
                eligible_sets: 1024,
                decision_blocks: 1 << 18,
                ..Capacity::default()
            },
        };
        let text = match self {
            Self::Large => large_policy(quick),
            Self::Usual | Self::TwoInterfaces | Self::Roomy | Self::Audited | Self::ManySources => {
                small_policy()
            }
        };
        let mut world = World::new(&text)?;
        world.host.capacity = capacity;
        world.host.nat_port_count = 40_000;
        world.host.events_per_window = match self {
            Self::Audited => u64::MAX,
            // As in the agent's configuration.
            _ => 64,
        };
        let ifindex = if self == Self::TwoInterfaces {
            BACKEND_IFINDEX
        } else {
            INGRESS_IFINDEX
        };
        for status in world.backends.values_mut() {
            if let Some(next_hop) = &mut status.next_hop {
                next_hop.ifindex = ifindex;
            }
        }
        Ok(world)
    }
}

fn small_policy() -> String {
    let four = |name: &str, network: &str, port: &str| -> String {
        let backends: Vec<String> = (1..=4)
            .map(|host| format!("{{name: {name}{host}, address: \"{network}{host}\", port: {port}}}"))
            .collect();
        backends.join(", ")
    };
    // Where packets keep their destination, back ends listen on the service's port.
    POLICY
        .replace("BACKENDS(a, 10.9.1)", &four("a", "10.9.1.", "8000"))
        .replace("BACKENDS6(b, 2001:db8:9:1)", &four("b", "2001:db8:9:1::", "8000"))
        .replace("BACKENDS(c, 10.9.2)", &four("c", "10.9.2.", "8000"))
        .replace("BACKENDS6(d, 2001:db8:9:2)", &four("d", "2001:db8:9:2::", "8000"))
}

/// Without limits: a thousand packets a second of a tenant are soon used up.
fn large_policy(quick: bool) -> String {
    let size = Size {
        services: if quick { 600 } else { 1000 },
        ..if quick { Size::TENTH } else { Size::FULL }
    };
    let mut text = String::new();
    for line in large::policy(&size, 1000).lines() {
        match line.split_once(", limits: {") {
            Some((head, _)) => text.push_str(&format!("{head}}}\n")),
            None => text.push_str(&format!("{line}\n")),
        }
        if line == "  rules:" {
            text.push_str(LARGE_RULE);
        }
    }
    text.replace("forward: Nat", "forward: Ipip")
}
