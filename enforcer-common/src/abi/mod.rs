//! Records as they lie in BPF maps, and the codes inside them.
//!
//! Owns: layout. Refuses: behaviour, text formats, anything that is not a fixed-width integer. Fields whose name ends
//! in `_be` are in network byte order; all others are in host order. Addresses are [`address::Address`].

pub mod address;
pub mod cache;
pub mod capture;
pub mod config;
pub mod driver;
pub mod event;
pub mod flow;
pub mod reason;
pub mod tally;
pub mod tunnel;
