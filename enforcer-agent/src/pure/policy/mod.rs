//! The policy language: YAML text in, a [`ResolvedPolicy`] or a list of [`Diagnostic`]s out.
//!
//! | Step | Module | What it decides |
//! | --- | --- | --- |
//! | parse | `yaml`, `shape`, [`model`] | is it YAML of the right shape; every field is known and none is null |
//! | resolve | `resolve`, [`resolved`] | every scalar is valid, every name exists, nothing contradicts anything else |
//! | judge | [`judgement`] | which rule decides for a (tenant, service), which back ends are compliant |
//! | open and close | [`schedule`] | which rules exist at a time |
//!
//! Nothing but a text that is no YAML ends a check: what is wrong is reported where it stands, a placeholder takes its
//! place, and the rest is checked all the same. Nothing is read and ignored: what a policy says is what is enforced.
//!
//! This module never looks at health, telemetry, weights or a clock: those are inputs of the compiler, and the policy
//! digest has to be the same on two hosts that see different back ends healthy.

pub mod bounds;
pub mod diagnostic;
mod digest;
mod edit;
pub mod judgement;
pub mod kinds;
pub mod limits;
pub mod model;
mod parse;
pub mod quantity;
mod resolve;
pub mod resolved;
pub mod schedule;
pub mod schema;
pub mod selection;
mod shape;
mod source;
mod suggest;
pub mod users;
mod yaml;

use diagnostic::Reporter;
pub use diagnostic::{Code, Diagnostic, Severity};
pub use digest::{Digest, Digester};
pub use edit::Loader;
use parse::Parsed;
pub use resolved::ResolvedPolicy;
pub use source::{PolicySource, name_of};

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

/// Reads, resolves and checks a policy of one text. `file` is only a name for the diagnostics.
#[must_use]
pub fn load(file: &str, text: &str) -> Outcome {
    load_all(&[PolicySource::new(file, text)])
}

/// Reads, resolves and checks a policy, whose texts are taken in the order given.
#[must_use]
pub fn load_all(texts: &[PolicySource]) -> Outcome {
    read(texts).0
}

/// What became of a policy, and what was read of it if that tells anything about the next one: if nothing is wrong with its
/// shape.
fn read(texts: &[PolicySource]) -> (Outcome, Option<Parsed>) {
    let mut reporter = Reporter::new(texts);
    let parsed = parse::parse(&mut reporter, texts);
    let is_sound = !reporter.has_errors();
    let documents = parsed.as_ref().map(|parsed| parsed.documents.as_slice());
    let policy = documents.and_then(|documents| resolve::resolve(&mut reporter, documents));
    let diagnostics = reporter.finish();
    (Outcome { policy, diagnostics }, parsed.filter(|_| is_sound))
}
