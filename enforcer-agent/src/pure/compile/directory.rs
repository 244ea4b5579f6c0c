//! What the numbers in records, events and counters mean.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::eligible::active_pool;
use super::{Family, Layout};
use crate::pure::policy::judgement::ConstraintSet;
use crate::pure::policy::resolved::{Action, Forward, Mode, PortRange, Protocol, ResolvedPolicy};

/// The names of one generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directory {
    /// Names by tenant slot.
    #[serde(with = "super::shared")]
    pub tenants: Arc<BTreeMap<u32, String>>,
    /// By service slot.
    pub services: BTreeMap<u32, ServiceEntry>,
    /// By back-end slot.
    pub backends: BTreeMap<u32, BackendEntry>,
    /// By number; records and events hold the number plus one.
    #[serde(with = "super::shared")]
    pub rules: Arc<BTreeMap<u32, RuleEntry>>,
}

/// One family of a service of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// The service's name; a service with addresses of both families has two entries.
    pub name: String,
    /// The family of this entry.
    pub family: Family,
    /// Its addresses of that family.
    pub addresses: Vec<IpAddr>,
    /// Its port, or several in a row.
    pub ports: PortRange,
    /// Its protocol.
    pub protocol: Protocol,
    /// How packets get to its back ends.
    pub forward: Forward,
    /// Names of its pools, in order of preference.
    pub pools: Vec<String>,
    /// The pool that takes the new flows of tenants that no constraint binds; `None` if none can.
    pub active_pool: Option<String>,
}

/// A back end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendEntry {
    /// Its name.
    pub name: String,
    /// The name of its pool.
    pub pool: String,
    /// Where it is.
    pub address: IpAddr,
    /// The port on which it listens.
    pub port: u16,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleEntry {
    /// Its name.
    pub name: String,
    /// The line of the policy where it begins; 0 if that is not known any more.
    pub line: u32,
    /// The text that this is a line of, if the policy has several.
    #[serde(default)]
    pub file: Option<String>,
    /// What it does.
    pub action: Action,
    /// Whether it decides.
    pub mode: Mode,
}

/// The names of tenants and rules by number, for as long as policy and slots stay the same: by far the most there are.
#[derive(Debug, Clone)]
pub(super) struct Names {
    tenants: Arc<BTreeMap<u32, String>>,
    rules: Arc<BTreeMap<u32, RuleEntry>>,
}

// === impl Names ===

impl Names {
    pub(super) fn of(policy: &ResolvedPolicy, tenant_slots: &[u32], rule_numbers: &[u32]) -> Self {
        let tenants = policy.tenants.iter().zip(tenant_slots);
        let rules = policy.rules.iter().zip(rule_numbers).map(|(rule, number)| {
            let entry = RuleEntry {
                name: rule.name.clone(),
                line: rule.line,
                file: rule.file.as_deref().map(str::to_owned),
                action: rule.action,
                mode: rule.mode,
            };
            (*number, entry)
        });
        Self {
            tenants: Arc::new(
                tenants
                    .map(|(tenant, slot)| (*slot, tenant.name.clone()))
                    .collect(),
            ),
            rules: Arc::new(rules.collect()),
        }
    }
}

// === impl Directory ===

impl Directory {
    pub(super) fn of(layout: &Layout<'_>) -> Self {
        let policy = layout.inputs.policy;
        let services = layout.services.iter().map(|service| {
            let of_family = |address: &&IpAddr| Family::of(**address) == service.family;
            let entry = ServiceEntry {
                name: service.service.name.clone(),
                family: service.family,
                addresses: service
                    .service
                    .addresses
                    .iter()
                    .filter(of_family)
                    .copied()
                    .collect(),
                ports: service.service.ports,
                protocol: service.service.protocol,
                forward: service.service.forward,
                pools: service
                    .service
                    .pools
                    .iter()
                    .map(|pool| policy.pools[*pool].name.clone())
                    .collect(),
                active_pool: active_pool(layout, service, ConstraintSet::default()),
            };
            (service.slot, entry)
        });
        let backends = layout.backends.iter().flatten().map(|slotted| {
            let entry = BackendEntry {
                name: slotted.backend.name.clone(),
                pool: slotted.pool.name.clone(),
                address: slotted.backend.address,
                port: slotted.backend.port,
            };
            (slotted.slot, entry)
        });
        Self {
            tenants: Arc::clone(&layout.names.tenants),
            services: services.collect(),
            backends: backends.collect(),
            rules: Arc::clone(&layout.names.rules),
        }
    }

    /// The tenant of a slot, as records and events hold it: zero is nobody.
    #[must_use]
    pub fn tenant(&self, slot: u32) -> Option<&str> {
        self.tenants.get(&slot).map(String::as_str)
    }

    /// The service of a slot plus one, as decisions and events hold it: zero is none.
    #[must_use]
    pub fn service(&self, slot_plus_one: u32) -> Option<&ServiceEntry> {
        self.services.get(&slot_plus_one.checked_sub(1)?)
    }

    /// The back end of a slot plus one, as decisions and events hold it: zero is none.
    #[must_use]
    pub fn backend(&self, slot_plus_one: u32) -> Option<&BackendEntry> {
        self.backends.get(&slot_plus_one.checked_sub(1)?)
    }

    /// The rule of a number plus one, as decisions and events hold it: zero is none.
    #[must_use]
    pub fn rule(&self, number_plus_one: u32) -> Option<&RuleEntry> {
        self.rules.get(&number_plus_one.checked_sub(1)?)
    }
}
