//! The frame of every document, and the defaults of the policy.

use super::super::diagnostic::{Code, Reporter};
use super::super::model::{self, Scalar};
use super::super::resolved::{Action, Defaults, LeaseExpiry};
use super::super::source::Place;
use super::super::suggest::quoted;
use super::scalar;

/// How long a lease lasts unless the policy says so.
const DEFAULT_LEASE_SECONDS: u32 = 30;
const MIN_LEASE_SECONDS: u32 = 1;
const MAX_LEASE_SECONDS: u32 = 24 * 3600;

/// Checks the frame of every document, and returns the policy's name.
pub(super) fn name(reporter: &mut Reporter<'_>, documents: &[model::Document]) -> String {
    let mut first_name: Option<&Scalar<super::Name>> = None;
    for document in documents {
        let model::Document {
            api_version,
            kind,
            metadata,
            spec: _,
        } = document;
        if api_version.value != "enforcer.dev/v1" {
            let message = format!("the version {} is not known", quoted(&api_version.value));
            reporter.error(
                Code::Unsupported,
                api_version,
                message,
                "This version reads `enforcer.dev/v1`.",
            );
        }
        if kind.value != "GovernancePolicy" {
            let message = format!("the kind {} is not known", quoted(&kind.value));
            reporter.error(
                Code::Unsupported,
                kind,
                message,
                "A policy is of kind `GovernancePolicy`.",
            );
        }
        let _ = scalar::name(reporter, &metadata.name);
        if Place::from(&metadata.name).is_reported() {
            continue;
        }
        let first = *first_name.get_or_insert(&metadata.name);
        if first.value != metadata.name.value {
            let message = format!("the policy is already named {}", quoted(&first.value));
            let help = format!(
                "The documents of one policy carry one name; the first one stands at {}.",
                reporter.describe(first)
            );
            reporter.error(Code::Conflict, &metadata.name, message, help);
        }
    }
    first_name.map(|name| name.value.clone()).unwrap_or_default()
}

/// What holds for the policy as a whole, and where it says that what nothing decides is allowed, if it does. Only one
/// document can say so: two could contradict one another.
pub(super) fn defaults(
    reporter: &mut Reporter<'_>,
    documents: &[model::Document],
) -> (Defaults, Option<Place>) {
    let mut resolved = Defaults {
        on_lease_expiry: LeaseExpiry::Hold,
        lease_seconds: DEFAULT_LEASE_SECONDS,
    };
    let mut given = documents
        .iter()
        .filter_map(|document| document.spec.defaults.as_ref());
    let Some(first) = given.next() else {
        return (resolved, None);
    };
    for other in given {
        let help = format!(
            "Put them into one document; the first ones stand at {}.",
            reporter.describe(first)
        );
        reporter.error(Code::Conflict, other, "the policy already has `defaults`", help);
    }
    let model::Defaults {
        action,
        on_lease_expiry,
        lease_seconds,
    } = &first.value;
    let allows = action.as_ref().and_then(|text| {
        let action = scalar::choice(reporter, text)?;
        (action == Action::Allow).then(|| text.into())
    });
    if let Some(text) = on_lease_expiry {
        let expiry = scalar::choice(reporter, text);
        resolved.on_lease_expiry = expiry.unwrap_or(resolved.on_lease_expiry);
    }
    if let Some(text) = lease_seconds {
        let range = i64::from(MIN_LEASE_SECONDS)..=i64::from(MAX_LEASE_SECONDS);
        resolved.lease_seconds = scalar::number(reporter, text, range, "number of seconds")
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(resolved.lease_seconds);
    }
    (resolved, allows)
}
