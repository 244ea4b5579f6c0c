//! What the kernel programs and the control agent must agree on, and nothing else.
//!
//! - [`abi`]: the records that lie in BPF maps and the reason codes.
//! - [`schema`]: the list of maps, their capacities and the schema hash.
//! - [`hash`]: the flow hash, version 1.
//! - [`parse`]: from the bytes of a frame to a packet.
//! - [`checksum`]: Internet checksum arithmetic.
//! - [`encapsulation`]: what goes around a packet that is sent on inside another one.
//! - [`continuation`]: the programs that go on with a packet after it was judged.
//! - [`decide`]: the one decision function, generic over how facts are looked up. The kernel calls it over maps,
//!   `policy explain` calls it over a snapshot; there is no second implementation.
//!
//! This crate never allocates, never reads a clock and depends on nothing (the `user` feature adds aya's `Pod`).
//! It holds no floats, no 128-bit arithmetic and no signed division, since those do not become BPF.
#![no_std]

pub mod abi;
pub mod checksum;
pub mod continuation;
pub mod decide;
pub mod encapsulation;
pub mod hash;
pub mod parse;
mod pod;
pub mod schema;

pub use abi::reason::Reason;
pub use pod::Fields;
