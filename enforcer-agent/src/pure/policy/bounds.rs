//! The bounds of a policy. A policy is input from outside, so that everything in it is counted.

use enforcer_common::schema;

use serde_saphyr::options::AliasLimits;
use serde_saphyr::{Budget, Options};

use crate::pure::capacity;

/// Largest policy text, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
/// Most YAML documents in one policy text.
pub const MAX_DOCUMENTS: usize = 64;
/// Most tenants in a policy: what the largest maps hold.
pub const MAX_TENANTS: usize = capacity::MAX_TENANTS as usize;
/// Most services in a policy; one with both IPv4 and IPv6 addresses counts twice.
pub const MAX_SERVICES: usize = schema::MAX_SERVICES as usize;
/// Most pools in a policy.
pub const MAX_POOLS: usize = 1024;
/// Most back ends in a policy, over all its pools.
pub const MAX_BACKENDS: usize = schema::MAX_BACKENDS as usize;
/// Most rules in a policy.
pub const MAX_RULES: usize = 8192;
/// Most constraints in a policy.
pub const MAX_CONSTRAINTS: usize = 256;
/// Most prefixes in a policy: the sources of all tenants and the protected networks together.
pub const MAX_PREFIXES: usize = 65_536;
/// Longest name, label key and label value, in bytes: the label syntax of Kubernetes.
pub const MAX_NAME_BYTES: usize = 63;
/// Longest URL or path, in bytes.
pub const MAX_URL_BYTES: usize = 2048;
/// Most diagnostics that are kept; the rest is counted.
pub const MAX_DIAGNOSTICS: usize = 100;
/// Longest excerpt of a source line in a diagnostic, in characters.
pub const MAX_EXCERPT_CHARS: usize = 160;

/// The YAML reader's budget. A full policy within the bounds above needs under 2,000,000 events; aliases are for sharing a
/// block of labels or limits, so that replaying more than that many events again is an attack ("a billion laughs").
pub(super) fn yaml_options() -> Options {
    let budget: Option<Budget> = serde_saphyr::budget! {
        max_documents: MAX_DOCUMENTS,
        max_depth: 24,
        flow_nesting_limit: 24,
        max_aliases: 4096,
        max_anchors: 4096,
        max_events: 4_000_000,
        max_nodes: 2_000_000,
    };
    let alias_limits: AliasLimits = serde_saphyr::alias_limits! {
        max_total_replayed_events: 500_000,
        max_replay_stack_depth: 16,
    };
    serde_saphyr::options! {
        budget: budget,
        alias_limits: alias_limits,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}
