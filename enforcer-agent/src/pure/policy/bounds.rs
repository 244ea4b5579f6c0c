//! The bounds of a policy. A policy is input from outside, so that everything in it is counted.

use enforcer_common::decide::trie;
use enforcer_common::schema;

use crate::pure::capacity;

/// Largest policy, in bytes over all of its texts.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
/// Most texts in a policy.
pub const MAX_SOURCES: usize = 256;
/// Most YAML documents in one policy text.
pub const MAX_DOCUMENTS: usize = 64;
/// Most values, lists and mappings in one policy text: several times what the bounds below can need.
pub const MAX_YAML_NODES: usize = 2_000_000;
/// Most lists and mappings within one another; the policy language has nine levels.
pub const MAX_DEPTH: usize = 24;
/// Most aliases in one policy text. They are for sharing a block of labels or limits.
pub const MAX_ALIASES: usize = 4096;
/// Most values that are read by way of aliases in one policy text; more is an attack ("a billion laughs").
pub const MAX_REPLAYED_NODES: usize = 500_000;
/// Most aliases on the way to a value.
pub const MAX_ALIAS_DEPTH: usize = 16;
/// Most service classes in a policy.
pub const MAX_CLASSES: usize = 64;
/// Most tenants in a policy: what the largest maps hold.
pub const MAX_TENANTS: usize = capacity::MAX_TENANTS as usize;
/// Most services in a policy; one with both IPv4 and IPv6 addresses counts twice.
pub const MAX_SERVICES: usize = schema::MAX_SERVICES as usize;
/// Most services with one address that may have echo requests to it answered.
pub const MAX_ECHO_SERVICES: usize = trie::MAX_ECHO_SERVICES as usize;
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
/// Most errors, and most warnings, that are kept; the rest is counted.
pub const MAX_DIAGNOSTICS: usize = 100;
/// Longest excerpt of a source line in a diagnostic, in characters.
pub const MAX_EXCERPT_CHARS: usize = 160;
