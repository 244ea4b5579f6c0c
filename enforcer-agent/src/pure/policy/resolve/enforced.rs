//! Features of the policy language that the data path does not enforce yet: the only place that knows.
//!
//! A policy that uses one is refused where it does. To take a line out of [`NOT_ENFORCED`] switches the feature on.

use super::super::diagnostic::{Code, Reporter};
use super::super::source::Place;

/// A part of the policy language that can be there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    ClassWeight,
    Guaranteed,
}

/// What is not enforced, with what to do without it.
const NOT_ENFORCED: &[(Feature, &str, &str)] = &[
    (
        Feature::ClassWeight,
        "weights of classes",
        "What there is too little of is not shared out by class; only `limits` hold.",
    ),
    (
        Feature::Guaranteed,
        "guaranteed rates",
        "Only `limits` hold: limit the others so that they leave enough.",
    ),
];

/// Refuses a feature that is not enforced.
pub(super) fn require(reporter: &mut Reporter<'_>, feature: Feature, place: impl Into<Place>) {
    let Some((_, what, instead)) = NOT_ENFORCED.iter().find(|(missing, ..)| *missing == feature) else {
        return;
    };
    let message = format!("this version does not enforce {what}: refused rather than ignored");
    reporter.error(Code::Unsupported, place, message, *instead);
}
