//! The control agent.
