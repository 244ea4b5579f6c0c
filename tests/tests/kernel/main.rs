//! The loaded kernel programs, driven by test runs: no interface, no socket, a clock that the tests set.
//!
//! - `bench`: rows of a packet table, and what holds for every row;
//! - `tables`: the packet tables; together they reach every reason;
//! - `load`: what the verifier says of the programs, and the layout of maps and records;
//! - `sweep`, `events`: expiry of flows, and the audit's completeness;
//! - `cache`: what CPUs remember of flows;
//! - `capture`: packets that the agent is shown;
//! - `contention`: two CPUs on one limiter;
//! - `mixture`: packets while generations change;
//! - `packets`: the packets and cases of the benchmarks;
//! - `arbitrary`: any bytes at all;
//! - `differential`: kernel, model and oracle on the same random traffic.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod arbitrary;
mod bench;
mod cache;
mod capture;
mod contention;
mod differential;
mod events;
mod load;
mod longrun;
mod mixture;
mod packets;
mod sweep;
mod tables;

use enforcer_tests::privilege;

/// Whether the test can run; says so if not.
fn privileged() -> bool {
    privilege::require("needs root, to load BPF programs")
}
