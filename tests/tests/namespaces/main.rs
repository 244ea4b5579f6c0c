//! The product in network namespaces, end to end: real sockets, real programs on real (virtual) interfaces.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod bench;
mod capture;
mod echo;
mod governors;
mod lifecycle;
mod paths;
mod ping;
mod programs;
mod routes;
mod schedule;
mod tc;
mod ways;

use enforcer_tests::privilege;

fn privileged() -> bool {
    privilege::require("needs root, for network namespaces and kernel programs")
}
