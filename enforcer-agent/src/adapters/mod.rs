//! The only I/O of the agent. Adapters hold no decisions.

pub mod dataplane;
