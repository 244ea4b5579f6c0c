//! The only I/O of the agent. Adapters hold no decisions.

pub mod audit_file;
pub mod capture;
pub mod clock;
pub mod dataplane;
pub mod host_facts;
pub mod http;
pub mod memory;
pub mod metrics_http;
pub mod neighbours;
pub mod nvml;
pub mod policy_files;
pub mod probe;
pub mod prometheus;
