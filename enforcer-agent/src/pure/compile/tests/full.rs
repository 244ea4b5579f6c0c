//! A policy that fills the data path: it compiles, within the time that a change may take.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::*;

/// 1023 tenants of 63 kinds, 256 services, 1024 back ends in 64 pools, 1000 rules, 60 constraints.
fn full_policy() -> String {
    let mut text =
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: full}\nspec:\n".to_owned();
    text += "  tenants:\n";
    for tenant in 0..1023 {
        let (high, low) = (tenant / 256, tenant % 256);
        writeln!(
            text,
            "  - {{name: t{tenant}, sources: [10.{high}.{low}.0/24, \"2001:db8:{tenant:x}::/48\"], \
             labels: {{kind: k{}}}, limits: {{packetsPerSecond: 1k}}}}",
            tenant % 63
        )
        .unwrap();
    }
    text += "  services:\n";
    for service in 0..256 {
        writeln!(
            text,
            "  - {{name: s{service}, addresses: [192.0.2.{}], port: {}, protocol: TCP, labels: {{kind: k{}}}, \
             pools: [p{}, p{}], forward: Nat}}",
            service / 4,
            8000 + service % 4,
            service % 63,
            service % 64,
            (service + 1) % 64
        )
        .unwrap();
    }
    text += "  pools:\n";
    for pool in 0..64 {
        writeln!(
            text,
            "  - name: p{pool}\n    labels: {{region: r{}}}\n    backends:",
            pool % 2
        )
        .unwrap();
        for backend in 0..16 {
            writeln!(
                text,
                "    - {{name: g{pool}-{backend}, address: 10.200.{pool}.{backend}, port: 8000}}"
            )
            .unwrap();
        }
    }
    text += "  rules:\n";
    for rule in 0..1000 {
        writeln!(
            text,
            "  - {{name: r{rule}, action: Allow, tenants: {{matchLabels: {{kind: k{}}}}}, \
             services: {{matchNames: [s{}]}}}}",
            rule % 63,
            rule % 256
        )
        .unwrap();
    }
    text += "  constraints:\n";
    for constraint in 0..60 {
        writeln!(
            text,
            "  - {{name: c{constraint}, tenants: {{matchLabels: {{kind: k{constraint}}}}}, \
             requireBackend: {{matchLabels: {{region: r{}}}}}}}",
            constraint % 2
        )
        .unwrap();
    }
    text
}

#[test]
fn a_full_policy_compiles_within_seconds() {
    let text = full_policy();
    let start = Instant::now();
    let world = World::new(&text);
    let loaded = start.elapsed();
    let compiled = world.compile().unwrap();
    let both = start.elapsed();
    let tables = &compiled.tables;
    println!(
        "{} kB of YAML read in {loaded:?}, compiled in {:?}: {} trie nodes, {} rows, {} sets",
        text.len() / 1024,
        both - loaded,
        tables.trie.len(),
        tables.rows.len(),
        tables.sets.len()
    );
    assert_eq!(
        (tables.tenants.len(), tables.services.len(), tables.backends.len()),
        (1024, 1024, 4096)
    );
    // Seen: 1.1 s without optimisation, on a machine of two cores that builds something else.
    assert!(both < Duration::from_secs(30), "{both:?}");
}
