//! `policy simulate`: traffic that was, under another policy.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::CliError;
use super::arguments::{Format, Simulate};
use super::commands::write;
use super::policy::{in_force, load_files};
use crate::adapters::capture::{self, Reading};
use crate::api::MAX_ROWS;
use crate::config::{Config, Encapsulation, FlowTable, Nat};
use crate::pure::capacity::Capacity;
use crate::pure::compile::HostFacts;
use crate::pure::expiry::Timeouts;
use crate::pure::simulate::{Simulation, Surroundings};

/// The agent's defaults, for a host that is none in particular.
const FLOW_TABLE: FlowTable = FlowTable {
    tcp_established_timeout: Duration::from_secs(3600),
    tcp_opening_timeout: Duration::from_secs(30),
    tcp_closing_timeout: Duration::from_secs(10),
    udp_timeout: Duration::from_secs(60),
    tenant_share_percent: 50,
};
/// Likewise.
const NAT: Nat = Nat {
    ipv4: None,
    ipv6: None,
    port_first: 10_000,
    port_count: 22_768,
};

/// Likewise.
const ANSWERS_PER_SECOND: u32 = 100;

/// Replays the traffic and says what would change.
pub(super) fn run(simulate: &Simulate, socket: &Path, format: Format) -> Result<(), CliError> {
    let Simulate {
        policy,
        traffic,
        against,
        config,
        limit,
        fail_on_change,
    } = simulate;
    let config = config.as_deref().map(Config::load).transpose()?;
    let surroundings = match &config {
        Some(config) => surroundings(
            config.nat,
            config.encapsulation,
            config.flow_table,
            config.capacity,
            config.answers_per_second,
        ),
        None => surroundings(
            NAT,
            Encapsulation::default(),
            FLOW_TABLE,
            Capacity::LARGEST,
            ANSWERS_PER_SECOND,
        ),
    };
    let after = load_files(std::slice::from_ref(policy))?.policy;
    let before = match against {
        Some(path) => load_files(std::slice::from_ref(path))?.policy,
        None => in_force(socket)?,
    };
    let mut simulation = Simulation::new(&before, &after, &surroundings)?;
    let Reading { kind, ended, notes } = capture::replay(traffic, &mut simulation)?;
    let report = simulation.report(kind, ended, notes, (*limit).min(MAX_ROWS) as usize);
    write(&report, format)?;
    if *fail_on_change && report.totals.changed > 0 {
        return Err(CliError::Different);
    }
    Ok(())
}

fn surroundings(
    nat: Nat,
    encapsulation: Encapsulation,
    table: FlowTable,
    capacity: Capacity,
    answers_per_second: u32,
) -> Surroundings {
    Surroundings {
        host: HostFacts {
            nat_v4: nat.ipv4,
            nat_v6: nat.ipv6,
            nat_port_first: nat.port_first,
            nat_port_count: nat.port_count,
            answers_per_second,
            outer_v4: encapsulation.ipv4,
            outer_v6: encapsulation.ipv6,
            local_addresses: nat
                .ipv4
                .into_iter()
                .map(Into::into)
                .chain(nat.ipv6.map(Into::into))
                .collect(),
            events_per_window: 0,
            flows_per_tenant: table.entries_per_tenant(capacity.flows),
            links: BTreeMap::new(),
            capacity,
        },
        flow_entries: capacity.flows,
        timeouts: Timeouts {
            tcp_opening: table.tcp_opening_timeout,
            tcp_established: table.tcp_established_timeout,
            tcp_closing: table.tcp_closing_timeout,
            udp: table.udp_timeout,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_configuration_the_defaults_of_one_hold() {
        let config = Config::parse("agent.yaml", "interfaces: [eth0]\n").unwrap();
        assert_eq!(config.flow_table, FLOW_TABLE);
        assert_eq!((config.nat.ipv4, config.nat.ipv6), (None, None));
        let range = |nat: Nat| (nat.port_first, nat.port_count);
        assert_eq!(range(config.nat), range(NAT));
    }
}
