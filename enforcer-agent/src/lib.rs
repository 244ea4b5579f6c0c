//! The control agent: compiles governance policy into BPF maps, folds telemetry into back-end weights and drains the
//! ring buffer into the audit log.
//!
//! - `pure`: everything that is computed, without I/O.
//! - `install`: puts compiled tables into force, all or nothing.
//! - `ports`: what the daemon needs of the world outside, as traits.
//! - `adapters`: the only I/O; no decisions.

pub mod adapters;
pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod install;
pub mod ports;
pub mod pure;
