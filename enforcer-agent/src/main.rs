//! The control agent and its command line.
fn main() {}
