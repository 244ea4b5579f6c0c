//! The policy language: YAML text in, a [`ResolvedPolicy`] or a list of [`Diagnostic`]s out.
//!
//! | Step | Module | What it decides |
//! | --- | --- | --- |
//! | parse | [`parse`] | is it YAML of the right shape; every field is known and none is null |
//! | resolve | [`resolve`] | every scalar is valid, every name exists, nothing contradicts anything else |
//! | judge | [`judgement`] | which rule decides for a (tenant, service), which back ends are compliant |
//! | open and close | [`schedule`] | which rules exist at a time |
//!
//! The parser keeps every scalar as text with its position, so that `resolve` can report all the wrong values of a file
//! at once rather than the first one. A field that this version does not enforce is an unknown field, never one that is
//! read and ignored: what a policy says is what is enforced.
//!
//! This module never looks at health, telemetry, weights or a clock: those are inputs of the compiler, and the policy
//! digest has to be the same on two hosts that see different back ends healthy.

pub mod bounds;
pub mod diagnostic;
pub mod judgement;
pub mod limits;
pub mod model;
pub mod parse;
pub mod quantity;
pub mod resolve;
pub mod resolved;
pub mod schedule;
pub mod selection;
mod suggest;

pub use diagnostic::{Code, Diagnostic, Severity};
pub use resolved::{Digest, ResolvedPolicy};

/// What became of a policy text.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The policy, if there was no error (warnings do not prevent one).
    pub policy: Option<ResolvedPolicy>,
    /// Everything there is to say, in the order of the file. At most [`bounds::MAX_DIAGNOSTICS`] and one that counts
    /// the rest.
    pub diagnostics: Vec<Diagnostic>,
}

impl Outcome {
    /// The policy without its warnings, or everything that is wrong.
    ///
    /// # Errors
    /// The diagnostics, warnings among them, when there is no policy.
    pub fn into_result(self) -> Result<ResolvedPolicy, Vec<Diagnostic>> {
        self.policy.ok_or(self.diagnostics)
    }
}

/// Reads, resolves and checks a policy. `file` is only a name for the diagnostics.
#[must_use]
pub fn load(file: &str, text: &str) -> Outcome {
    match parse::parse(file, text) {
        Ok(documents) => resolve::resolve(file, text, &documents),
        Err(diagnostic) => Outcome {
            policy: None,
            diagnostics: vec![*diagnostic],
        },
    }
}
