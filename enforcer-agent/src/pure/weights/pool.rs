//! What telemetry may do to a pool as a whole.

use super::{Tuning, weight_of};

/// A back end as its pool sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolMember {
    /// The capacity that the policy gives it.
    pub capacity: u32,
    /// The weight that its own fold published.
    pub weight: u32,
    /// Whether it may take new connections as far as health checks and operators are concerned.
    pub serving: bool,
    /// Since when a GPU fault drains it ([`super::BackendState::fault_since_ns`]).
    pub fault_since_ns: Option<u64>,
}

/// Keeps telemetry from draining more than half of a pool: one faulty exporter image, rolled out everywhere, must not
/// take a service down. Back ends that are out for other reasons count towards the half. Faults that were seen first
/// keep their drain (in the order of the members among equals); the others get the floor weight back.
///
/// Returns the positions of the members whose drain was refused, in rising order. A pool of one is thus never drained by
/// telemetry alone; its health check decides.
#[must_use = "a refused drain belongs in the audit log"]
pub fn limit_drains(members: &mut [PoolMember], tuning: &Tuning) -> Vec<usize> {
    let out_otherwise = members.iter().filter(|member| !member.serving).count();
    let budget = (members.len() / 2).saturating_sub(out_otherwise);
    let mut drained: Vec<(u64, usize)> = members
        .iter()
        .enumerate()
        .filter(|(_, member)| member.serving)
        .filter_map(|(position, member)| Some((member.fault_since_ns?, position)))
        .collect();
    drained.sort_unstable();
    let mut refused: Vec<usize> = drained
        .into_iter()
        .skip(budget)
        .map(|(_, position)| position)
        .collect();
    refused.sort_unstable();
    for &position in &refused {
        let member = &mut members[position];
        member.weight = weight_of(member.capacity, tuning.floor_per_mille.max(1));
    }
    refused
}
