//! Ranges of ports.

use super::*;
use crate::pure::policy::resolved::{PortRange, Service};

/// Ranges that begin and end within bytes, next to one another, over single ports of another address.
const RANGES: &[(&str, &str, &str)] = &[
    ("first", "192.0.2.10", "1-255"),
    ("second", "192.0.2.10", "256"),
    ("third", "192.0.2.10", "300-8010"),
    ("fourth", "192.0.2.10", "8011-8012"),
    ("last", "192.0.2.10", "60000-65535"),
    ("other", "192.0.2.11", "8000"),
];

fn policy_of_ranges() -> String {
    let services: Vec<String> = RANGES
        .iter()
        .map(|(name, address, port)| {
            format!("{{name: {name}, addresses: [{address}], port: {port}, protocol: TCP, pools: [p], forward: Nat}}")
        })
        .collect();
    format!(
        "{{apiVersion: enforcer.dev/v1, kind: GovernancePolicy, metadata: {{name: ranges}}, spec: {{
           tenants: [{{name: acme, sources: [10.1.0.0/16]}}], services: [{}],
           pools: [{{name: p, backends: [{{name: gpu, address: 10.9.0.1, port: 80}}]}}],
           rules: [{{name: all, action: Allow}}], protectedNetworks: [192.0.2.0/24]}}}}",
        services.join(", ")
    )
}

/// The service whose range holds a port, read off the policy.
fn naive<'a>(policy: &'a ResolvedPolicy, address: &str, port: u16) -> Option<&'a Service> {
    let address: IpAddr = address.parse().unwrap();
    policy.services.iter().find(|service| {
        let PortRange { first, last } = service.ports;
        service.addresses.contains(&address) && (first..=last).contains(&port)
    })
}

#[test]
fn every_port_of_a_range_leads_to_its_service_and_no_other_port_does() {
    let world = World::new(&policy_of_ranges());
    let compiled = world.compile().unwrap();
    let snapshot = Snapshot {
        generation: 6,
        tables: compiled.tables.clone(),
        ..Snapshot::default()
    };
    for address in ["192.0.2.10", "192.0.2.11"] {
        for port in 0..=u16::MAX {
            let decision = judge(
                &snapshot,
                &packet("10.1.0.1", address, port, TCP, 4000),
                1_000_000,
            );
            let found = compiled.directory.service(decision.service);
            let expected = naive(&world.policy, address, port);
            assert_eq!(
                found.map(|service| service.name.as_str()),
                expected.map(|service| service.name.as_str()),
                "{address} port {port}"
            );
            let reason = if expected.is_some() {
                Reason::Allowed
            } else {
                Reason::Bypass
            };
            assert_eq!(decision.reason, reason, "{address} port {port}");
        }
    }
    let ranges: Vec<String> = compiled
        .directory
        .services
        .values()
        .map(|service| service.ports.to_string())
        .collect();
    assert!(ranges.contains(&"300-8010".to_owned()), "{ranges:?}");
}
