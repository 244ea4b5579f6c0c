//! Service classes.

use super::super::diagnostic::Reporter;
use super::super::model;
use super::super::resolved::Class;
use super::{Placed, scalar, sort_by_name};

const DEFAULT_WEIGHT: u32 = 1;
/// The largest weight: shares are found with integers, and no class should round to nothing beside another.
const MAX_WEIGHT: u32 = 1000;

/// The classes, sorted by name.
pub(super) fn resolve(reporter: &mut Reporter<'_>, classes: &[&model::Class]) -> Vec<Placed<Class>> {
    let mut resolved: Vec<_> = classes
        .iter()
        .map(|class| {
            let model::Class {
                name,
                weight,
                shed_above,
            } = class;
            let _ = scalar::name(reporter, name);
            let weight = weight
                .as_ref()
                .and_then(|text| scalar::positive(reporter, text, MAX_WEIGHT, "weight"));
            let shed_above_percent = shed_above
                .as_ref()
                .and_then(|text| scalar::percentage(reporter, text));
            let value = Class {
                name: name.value.clone(),
                weight: weight.unwrap_or(DEFAULT_WEIGHT),
                shed_above_percent,
            };
            Placed {
                value,
                place: name.into(),
            }
        })
        .collect();
    sort_by_name(reporter, &mut resolved);
    resolved
}
