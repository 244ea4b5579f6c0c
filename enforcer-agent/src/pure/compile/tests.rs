//! Tests of the compiler: what comes out is asked through the decision function that the kernel programs use.

use enforcer_common::Reason;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::LimitRecord;
use enforcer_common::decide::{Decision, Packet, Shape, TCP, TCP_SYN, judge};
use enforcer_common::schema::{MAX_BACKENDS, MAX_SERVICES};

use super::*;
use crate::pure::policy::load;
use crate::pure::snapshot::Snapshot;
use crate::pure::tables::EMPTY_MAGLEV;

/// Two tenants, one bound to the EU; a dual-stack service with a pool in the EU and one in the US; one UDP service.
const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: test}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"], labels: {data: eu}}
  - {name: globex, sources: [10.1.5.0/24, 10.2.0.0/15], limits: {packetsPerSecond: 1000, bytesPerSecond: 10k}}
  services:
  - {name: chat, addresses: [192.0.2.10, 192.0.2.11, "2001:db8::10"], port: 8000, protocol: TCP,
     pools: [eu, us], forward: Nat}
  - {name: dns, addresses: [192.0.2.10], port: 53, protocol: UDP, pools: [us], forward: Dnat}
  pools:
  - name: eu
    labels: {region: eu}
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 8000}
    - {name: gpu-2, address: 10.9.0.2, port: 8000}
    - {name: gpu-6, address: "2001:db8:9::1", port: 8000}
  - name: us
    labels: {region: us}
    backends:
    - {name: gpu-3, address: 10.1.200.1, port: 9000, capacity: 300}
    - {name: gpu-4, address: 10.9.0.4, port: 9000, labels: {region: eu}}
  rules:
  - {name: chat-for-all, action: Allow, services: {matchNames: [chat]}}
  - {name: dns-for-globex, action: Allow, tenants: {matchNames: [globex]}, services: {matchNames: [dns]}}
  protectedNetworks: [10.9.0.0/16, 192.0.2.0/24]
  constraints:
  - {name: residency, tenants: {matchLabels: {data: eu}}, requireBackend: {matchLabels: {region: eu}}}
"#;

mod cached;
mod full;
mod groups;
mod ports;
mod random;
mod stability;

struct World {
    policy: ResolvedPolicy,
    slots: Slots,
    host: HostFacts,
    backends: BTreeMap<String, BackendStatus>,
    failed_pools: BTreeSet<String>,
    suspended: BTreeSet<String>,
    closed_rules: Selection,
    exhausted: BTreeMap<String, Exhausted>,
    shed: BTreeMap<String, BTreeSet<String>>,
    fair_rates: BTreeMap<String, u64>,
}

impl World {
    fn new(text: &str) -> Self {
        let outcome = load("test.yaml", text);
        let policy = outcome
            .policy
            .unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics));
        let next_hop = Some(NextHop {
            ifindex: 3,
            own_mac: [2; 6],
            next_hop_mac: [4; 6],
            mtu_bytes: 1500,
            vlan: None,
        });
        let backends = policy
            .pools
            .iter()
            .flat_map(|pool| &pool.backends)
            .map(|backend| {
                (
                    backend.name.clone(),
                    BackendStatus {
                        next_hop,
                        ..BackendStatus::unknown(backend)
                    },
                )
            })
            .collect();
        let host = HostFacts {
            nat_v4: Some(Ipv4Addr::new(10, 9, 0, 250)),
            nat_v6: Some("2001:db8:9::250".parse().unwrap()),
            nat_port_first: 10_000,
            nat_port_count: 20_000,
            answers_per_second: 0,
            outer_v4: "10.254.0.0/16".parse().ok(),
            outer_v6: "2001:db8:fe::/64".parse().ok(),
            local_addresses: vec!["10.9.0.254".parse().unwrap(), "10.9.0.250".parse().unwrap()],
            events_per_window: 8,
            flows_per_tenant: 0,
            links: BTreeMap::new(),
            capacity: Capacity::default(),
        };
        let (failed_pools, suspended) = (BTreeSet::new(), BTreeSet::new());
        Self {
            policy,
            slots: Slots::default(),
            host,
            backends,
            failed_pools,
            suspended,
            closed_rules: Selection::default(),
            exhausted: BTreeMap::new(),
            shed: BTreeMap::new(),
            fair_rates: BTreeMap::new(),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            policy: &self.policy,
            slots: &self.slots,
            host: &self.host,
            backends: &self.backends,
            failed_pools: &self.failed_pools,
            suspended: &self.suspended,
            closed_rules: &self.closed_rules,
            exhausted: &self.exhausted,
            shed: &self.shed,
            fair_rates: &self.fair_rates,
        }
    }

    fn compile(&self) -> Result<Compiled, CompileError> {
        compile(&self.inputs())
    }

    fn set(&mut self, backend: &str, change: impl Fn(&mut BackendStatus)) {
        change(self.backends.get_mut(backend).unwrap());
    }
}

fn packet(from: &str, to: &str, port: u16, protocol: u32, source_port: u16) -> Packet {
    let address = |text: &str| address_of(text.parse().unwrap());
    Packet {
        key: FlowKey {
            source: address(from),
            destination: address(to),
            source_port_be: source_port.to_be(),
            destination_port_be: port.to_be(),
            protocol,
        },
        shape: Shape::Transport,
        tcp_flags: TCP_SYN,
        hop_limit: 64,
        bytes: 60,
        segment_bytes: 60,
    }
}

fn ask(compiled: &Compiled, packet: &Packet) -> Decision {
    let snapshot = Snapshot {
        generation: 6,
        tables: compiled.tables.clone(),
        ..Snapshot::default()
    };
    judge(&snapshot, packet, 1_000_000)
}

/// Names of the back ends that new flows of a source get.
fn backends(compiled: &Compiled, from: &str, to: &str) -> BTreeSet<String> {
    let snapshot = Snapshot {
        generation: 6,
        tables: compiled.tables.clone(),
        ..Snapshot::default()
    };
    (1024..1536)
        .filter_map(|source_port| {
            let decision = judge(&snapshot, &packet(from, to, 8000, TCP, source_port), 1_000_000);
            Some(compiled.directory.backend(decision.backend)?.name.clone())
        })
        .collect()
}

#[track_caller]
fn check(
    compiled: &Compiled,
    from: &str,
    to: &str,
    port: u16,
    protocol: u32,
    expected: Reason,
    tenant: Option<&str>,
) {
    let decision = ask(compiled, &packet(from, to, port, protocol, 4000));
    let found = (decision.reason, compiled.directory.tenant(decision.tenant));
    assert_eq!(found, (expected, tenant), "{from} to {to} port {port}");
}

#[test]
fn packets_are_classified() {
    const UDP: u32 = enforcer_common::decide::UDP;
    let compiled = World::new(POLICY).compile().unwrap();
    let acme = Some("acme");
    let globex = Some("globex");
    check(
        &compiled,
        "10.1.0.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::Allowed,
        acme,
    );
    check(
        &compiled,
        "10.1.255.255",
        "192.0.2.11",
        8000,
        TCP,
        Reason::Allowed,
        acme,
    );
    check(
        &compiled,
        "10.1.5.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::Allowed,
        globex,
    );
    check(
        &compiled,
        "10.3.255.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::Allowed,
        globex,
    );
    check(
        &compiled,
        "10.4.0.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::UnknownTenant,
        None,
    );
    check(
        &compiled,
        "2001:db8:1::1",
        "2001:db8::10",
        8000,
        TCP,
        Reason::Allowed,
        acme,
    );
    check(
        &compiled,
        "2001:db8:2::1",
        "2001:db8::10",
        8000,
        TCP,
        Reason::UnknownTenant,
        None,
    );
    check(&compiled, "10.1.0.1", "192.0.2.10", 53, UDP, Reason::NoRule, acme);
    check(
        &compiled,
        "10.2.0.1",
        "192.0.2.10",
        53,
        UDP,
        Reason::Allowed,
        globex,
    );
    // The other ports of a service's address are what the address is: here, protected.
    check(
        &compiled,
        "10.2.0.1",
        "192.0.2.10",
        8001,
        TCP,
        Reason::Bypass,
        None,
    );
    check(
        &compiled,
        "10.2.0.1",
        "192.0.2.10",
        8000,
        UDP,
        Reason::Bypass,
        None,
    );
    check(&compiled, "10.2.0.1", "192.0.2.11", 53, UDP, Reason::Bypass, None);
    check(&compiled, "10.2.0.1", "10.9.0.1", 8000, TCP, Reason::Bypass, None);
    check(
        &compiled,
        "10.2.0.1",
        "10.9.0.254",
        22,
        TCP,
        Reason::NotService,
        None,
    );
    check(
        &compiled,
        "10.2.0.1",
        "10.9.0.250",
        22,
        TCP,
        Reason::NotService,
        None,
    );
    check(
        &compiled,
        "10.2.0.1",
        "8.8.8.8",
        53,
        UDP,
        Reason::NotService,
        None,
    );
    check(
        &compiled,
        "2001:db8:1::1",
        "2001:db8::10",
        22,
        TCP,
        Reason::NotService,
        None,
    );
    // A back end inside a tenant's prefix is both.
    check(
        &compiled,
        "10.1.200.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::Allowed,
        acme,
    );
}

#[test]
fn new_flows_stay_within_the_constraints() {
    let mut world = World::new(POLICY);
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>()
    };
    let compiled = world.compile().unwrap();
    assert_eq!(
        backends(&compiled, "10.1.0.1", "192.0.2.10"),
        names(&["gpu-1", "gpu-2"])
    );
    assert_eq!(
        backends(&compiled, "10.2.0.1", "192.0.2.10"),
        names(&["gpu-1", "gpu-2"])
    );
    assert_eq!(
        backends(&compiled, "2001:db8:1::1", "2001:db8::10"),
        names(&["gpu-6"])
    );

    world.failed_pools.insert("eu".into());
    let compiled = world.compile().unwrap();
    assert_eq!(
        backends(&compiled, "10.1.0.1", "192.0.2.10"),
        names(&["gpu-4"]),
        "the one in the US pool that complies"
    );
    assert_eq!(
        backends(&compiled, "10.2.0.1", "192.0.2.10"),
        names(&["gpu-3", "gpu-4"])
    );
    assert_eq!(
        backends(&compiled, "2001:db8:1::1", "2001:db8::10"),
        names(&["gpu-6"]),
        "failed is better than none"
    );

    world.set("gpu-4", |status| status.healthy = false);
    let compiled = world.compile().unwrap();
    assert_eq!(
        backends(&compiled, "10.1.0.1", "192.0.2.10"),
        names(&["gpu-1", "gpu-2"]),
        "back to the failed pool"
    );

    for backend in ["gpu-1", "gpu-2"] {
        world.set(backend, |status| status.healthy = false);
    }
    let compiled = world.compile().unwrap();
    check(
        &compiled,
        "10.1.0.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::NoHealthyBackend,
        Some("acme"),
    );
    assert_eq!(backends(&compiled, "10.2.0.1", "192.0.2.10"), names(&["gpu-3"]));
}

#[test]
fn a_draining_back_end_keeps_its_flows_and_takes_no_new_ones() {
    let mut world = World::new(POLICY);
    for backend in ["gpu-1", "gpu-2", "gpu-3", "gpu-4"] {
        world.set(backend, |status| status.draining = true);
    }
    let compiled = world.compile().unwrap();
    let decision = ask(&compiled, &packet("10.1.0.1", "192.0.2.10", 8000, TCP, 4000));
    assert_eq!(
        decision.reason,
        Reason::NoHealthyBackend,
        "no table to choose from"
    );
    let slot = compiled.slots.backends.get("gpu-1").unwrap() as usize;
    assert!(
        compiled
            .tables
            .sets
            .iter()
            .any(|set| set.members[slot / 64] >> (slot % 64) & 1 == 1)
    );
    assert!(compiled.tables.maglev.iter().any(|table| **table == EMPTY_MAGLEV));
}

#[test]
fn without_a_compliant_back_end_a_tenant_is_refused_and_never_sent_elsewhere() {
    let text = POLICY
        .replace(", labels: {region: eu}}", "}")
        .replace("{region: eu}\n    backends", "{region: uk}\n    backends");
    let compiled = World::new(&text).compile().unwrap();
    check(
        &compiled,
        "10.1.0.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::NoCompliantBackend,
        Some("acme"),
    );
    check(
        &compiled,
        "10.2.0.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::Allowed,
        Some("globex"),
    );
}

#[test]
fn a_suspended_tenant_is_refused() {
    let mut world = World::new(POLICY);
    world.suspended.insert("acme".into());
    let compiled = world.compile().unwrap();
    check(
        &compiled,
        "10.1.0.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::Suspended,
        Some("acme"),
    );
    check(
        &compiled,
        "10.2.0.1",
        "192.0.2.10",
        8000,
        TCP,
        Reason::Allowed,
        Some("globex"),
    );
}

#[test]
fn limits_let_one_largest_packet_pass() {
    let compiled = World::new(POLICY).compile().unwrap();
    let globex = compiled.tables.tenants[compiled.slots.tenants.get("globex").unwrap() as usize];
    assert_eq!(
        globex.limits.packets,
        LimitRecord {
            step_fp: 1_000_000 << 20,
            burst_ns: 1_000_000_000
        }
    );
    assert_eq!(
        globex.limits.bytes.burst_ns,
        65_535 * 100_000,
        "at 10k a byte costs 100 microseconds"
    );
    assert_eq!(globex.limits.connections, LimitRecord::ZERO);
}

#[test]
fn shadow_rules_answer_what_they_would_have_answered() {
    let text = POLICY.replace(
        "  protectedNetworks",
        "  - {name: try, action: Deny, mode: Shadow, priority: 1, tenants: {matchNames: [acme]}}
  - {name: open, action: Allow, mode: Shadow, services: {matchNames: [dns]}}
  protectedNetworks",
    );
    let compiled = World::new(&text).compile().unwrap();
    let shadow = |from: &str, port, protocol| {
        let decision = ask(&compiled, &packet(from, "192.0.2.10", port, protocol, 4000));
        let rule = compiled
            .directory
            .rule(decision.shadow_rule)
            .map(|rule| rule.name.as_str());
        (
            decision.reason,
            rule,
            Reason::from_code(decision.shadow_reason).unwrap(),
        )
    };
    assert_eq!(
        shadow("10.1.0.1", 8000, TCP),
        (Reason::Allowed, Some("try"), Reason::RuleDeny)
    );
    assert_eq!(
        shadow("10.2.0.1", 8000, TCP),
        (Reason::Allowed, None, Reason::Allowed)
    );
    let udp = enforcer_common::decide::UDP;
    assert_eq!(
        shadow("10.1.0.1", 53, udp),
        (Reason::NoRule, Some("open"), Reason::Allowed)
    );
}

/// Flows and replies name these slots, and may outlive what had them.
#[test]
fn every_slot_that_a_flow_can_name_has_a_record() {
    let mut world = World::new(POLICY);
    world.host.capacity.tenants = 77;
    let tables = world.compile().unwrap().tables;
    let lengths = [tables.tenants.len(), tables.services.len(), tables.backends.len()];
    assert_eq!(lengths, [78, MAX_SERVICES as usize, MAX_BACKENDS as usize]);
    world.host.capacity.tenants = 1;
    let error = world.compile().unwrap_err().to_string();
    assert!(
        error.contains("raise `capacity.tenants`") && error.contains("(1)"),
        "{error}"
    );
}

#[test]
fn nat_needs_an_address_of_each_family() {
    let mut world = World::new(POLICY);
    world.host.nat_v6 = None;
    assert_eq!(
        world.compile(),
        Err(CompileError::NoNatAddress {
            service: "chat".into(),
            family: "IPv6"
        })
    );
    world.host.nat_v4 = None;
    assert_eq!(
        world.compile(),
        Err(CompileError::NoNatAddress {
            service: "chat".into(),
            family: "IPv4"
        })
    );
}

#[test]
fn a_trie_that_is_too_large_is_an_error() {
    // Every source takes a node of its own below a shared one.
    let sources: Vec<String> = (0..9000u32)
        .map(|index| format!("10.{}.{}.0/28", index / 256, index % 256))
        .collect();
    let text = POLICY.replace("10.1.5.0/24, 10.2.0.0/15", &sources.join(", "));
    let error = World::new(&text).compile().unwrap_err();
    let CompileError::Capacity { what, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(what, "trie nodes");
}
