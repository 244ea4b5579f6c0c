//! Records, codes, the map schema, the flow hash and the one decision function.
#![no_std]
