//! Everything that is computed: no files, sockets, threads, clocks, randomness, environment, async or logging, and no
//! aya. Time and seeds are arguments.
#![forbid(unsafe_code)]

pub mod audit;
pub mod capacity;
pub mod compile;
pub mod diff;
pub mod doctor;
pub mod expiry;
pub mod explain;
pub mod fairness;
pub mod fleet;
pub mod health;
pub mod heat;
pub mod lease;
pub mod maglev;
pub mod metrics;
pub mod neutral;
pub mod plan;
pub mod policy;
pub mod quota;
pub mod replay;
pub mod simulate;
pub mod snapshot;
pub mod tables;
pub mod telemetry;
pub mod weights;
