//! A policy of any size, as text: what benchmarks are run with.

use std::fmt::Write as _;

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tenants, each with limits; every sixteenth rule is about one of them alone.
    pub tenants: u32,
    /// Networks of /28, spread evenly over the tenants.
    pub sources: u32,
    /// Services, each of two pools.
    pub services: u32,
    /// Back ends, twenty in a pool.
    pub backends: u32,
    /// Rules.
    pub rules: u32,
}

impl Size {
    /// What one host is expected to carry.
    pub const FULL: Self = Self {
        tenants: 10_000,
        sources: 20_000,
        services: 100,
        backends: 1_000,
        rules: 5_000,
    };
    /// A tenth of it, for a quick look.
    pub const TENTH: Self = Self {
        tenants: 1_000,
        sources: 2_000,
        services: 100,
        backends: 100,
        rules: 500,
    };
}

/// Back ends of a pool.
const POOL_BACKENDS: u32 = 20;
/// Kinds of tenants that rules choose by label.
const TEAMS: u32 = 200;
/// Kinds of services that rules choose by label.
const MODELS: u32 = 25;

/// The policy. `limit` is the packet rate of tenant 0, so that an edit is one number away.
#[must_use]
pub fn policy(size: &Size, limit: u32) -> String {
    let mut text = String::from(
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: large}\nspec:\n  tenants:\n",
    );
    tenants(&mut text, size, limit);
    text.push_str("  services:\n");
    let pools = size.backends.div_ceil(POOL_BACKENDS);
    for service in 0..size.services {
        line(
            &mut text,
            format_args!(
                "  - {{name: service-{service}, addresses: [192.0.{}.{}], port: 8000, protocol: TCP, labels: {{model: \
                 m{}}}, pools: [pool-{}, pool-{}], forward: Nat}}",
                2 + service / 250,
                service % 250 + 1,
                service % MODELS,
                service % pools,
                (service + 1) % pools
            ),
        );
    }
    text.push_str("  pools:\n");
    for pool in 0..pools {
        let region = ["eu", "us"][(pool % 2) as usize];
        line(
            &mut text,
            format_args!("  - name: pool-{pool}\n    labels: {{region: {region}}}\n    backends:"),
        );
        for backend in (pool * POOL_BACKENDS..size.backends).take(POOL_BACKENDS as usize) {
            let (high, low) = (backend / 250, backend % 250 + 1);
            line(
                &mut text,
                format_args!("    - {{name: gpu-{backend}, address: 10.255.{high}.{low}, port: 8000}}"),
            );
        }
    }
    rules(&mut text, size);
    text.push_str(
        "  protectedNetworks: [10.255.0.0/16]\n  constraints:\n  - {name: residency, tenants: {matchLabels: {data: eu}}, \
         requireBackend: {matchLabels: {region: eu}}}\n",
    );
    text
}

fn tenants(text: &mut String, size: &Size, limit: u32) {
    for tenant in 0..size.tenants {
        let sources: Vec<String> = (tenant..size.sources)
            .step_by(size.tenants as usize)
            .map(|source| {
                let address = 0x0a00_0000 + source * 16;
                format!("{}/28", std::net::Ipv4Addr::from(address))
            })
            .collect();
        let rate = if tenant == 0 { limit } else { 1000 + tenant };
        line(
            text,
            format_args!(
                "  - {{name: tenant-{tenant}, sources: [{}], labels: {{team: t{}, data: {}}}, limits: \
                 {{packetsPerSecond: {rate}, newConnectionsPerSecond: 100, concurrentConnections: 1000}}}}",
                sources.join(", "),
                tenant % TEAMS,
                ["eu", "any"][(tenant % 2) as usize],
            ),
        );
    }
}

/// Most rules choose a team and a model; every sixteenth one tenant by name, so that thousands of rows differ.
fn rules(text: &mut String, size: &Size) {
    text.push_str("  rules:\n");
    for rule in 0..size.rules {
        let action = if rule % 7 == 3 { "Deny" } else { "Allow" };
        let mode = if rule % 50 == 11 { ", mode: Shadow" } else { "" };
        let tenants = if rule % 16 == 0 {
            format!("matchNames: [tenant-{}]", rule * 7 % size.tenants)
        } else {
            format!("matchLabels: {{team: t{}}}", rule % TEAMS)
        };
        line(
            text,
            format_args!(
                "  - {{name: rule-{rule}, action: {action}{mode}, tenants: {{{tenants}}}, services: {{matchLabels: \
                 {{model: m{}}}}}}}",
                rule / TEAMS % MODELS
            ),
        );
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // A `String` takes everything.
    let _ = writeln!(text, "{content}");
}

#[cfg(test)]
mod tests {
    use enforcer_agent::pure::policy::load;

    use super::*;

    #[test]
    fn it_is_as_large_as_it_says() {
        let size = Size::TENTH;
        let policy = load("large.yaml", &policy(&size, 7))
            .into_result()
            .expect("a good policy");
        let sources: usize = policy.tenants.iter().map(|tenant| tenant.sources.len()).sum();
        let backends: usize = policy.pools.iter().map(|pool| pool.backends.len()).sum();
        let counts = [
            policy.tenants.len(),
            sources,
            policy.services.len(),
            backends,
            policy.rules.len(),
        ];
        let Size {
            tenants,
            sources,
            services,
            backends,
            rules,
        } = size;
        assert_eq!(
            counts,
            [tenants, sources, services, backends, rules].map(|count| count as usize)
        );
        assert_eq!(policy.tenants[0].limits.packets_per_second, Some(7));
    }
}
