//! The only I/O of the agent. Adapters hold no decisions.

pub mod dataplane;
pub mod http;
pub mod neighbours;
pub mod nvml;
pub mod probe;
pub mod prometheus;
