//! The lease: until when the programs may act without a sign of the agent.
//!
//! The agent puts the deadline off again and again while its loop turns. It owns what a policy's `defaults` become in
//! the map `LEASE`; what a lapsed lease refuses is judged in `enforcer_common::decide`.

use enforcer_common::abi::config::LeaseRecord;

use super::policy::resolved::{Defaults, LeaseExpiry};

/// The lease that holds from now on; one that never lapses where the policy says `Hold`.
#[must_use]
pub fn record(defaults: &Defaults, now_ns: u64) -> LeaseRecord {
    // Zero would stand for "never", and no time is zero: the clock counts from boot.
    let until_ns = now_ns.saturating_add(u64::from(defaults.lease_seconds) * 1_000_000_000);
    match defaults.on_lease_expiry {
        LeaseExpiry::Hold => LeaseRecord::ZERO,
        LeaseExpiry::RefuseNew => LeaseRecord {
            new_flows_until_ns: until_ns,
            everything_until_ns: 0,
        },
        LeaseExpiry::RefuseAll => LeaseRecord {
            new_flows_until_ns: until_ns,
            everything_until_ns: until_ns,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_to_a_lapse_has_its_words() {
        let lease = |on_lease_expiry| {
            let defaults = Defaults {
                on_lease_expiry,
                lease_seconds: 30,
            };
            let LeaseRecord {
                new_flows_until_ns,
                everything_until_ns,
            } = record(&defaults, 7);
            (new_flows_until_ns, everything_until_ns)
        };
        assert_eq!(lease(LeaseExpiry::Hold), (0, 0));
        assert_eq!(lease(LeaseExpiry::RefuseNew), (30_000_000_007, 0));
        assert_eq!(lease(LeaseExpiry::RefuseAll), (30_000_000_007, 30_000_000_007));
    }
}
