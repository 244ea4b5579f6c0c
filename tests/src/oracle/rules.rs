//! What the rules and the constraints say.

use std::collections::BTreeSet;

use enforcer_common::Reason;
use ipnet::IpNet;

use super::{Oracle, Prediction};
use crate::plain::{Backend, Labels, Limits, Policy, Pool, Rule, Selector, Service, Tenant, has};

/// The back ends that a tenant may use for a service.
pub(super) struct Choice<'a> {
    pub(super) compliant: usize,
    pub(super) members: Vec<&'a Backend>,
    pub(super) takers: Vec<&'a Backend>,
    /// The pool of the takers.
    pub(super) pool: Option<&'a str>,
}

/// A policy by which all is allowed that nothing decides, without saying so: whoever is nobody's is a tenant, and behind
/// all rules there is one more.
pub(super) fn opened(policy: &Policy) -> Policy {
    let mut opened = policy.clone();
    if !policy.allow {
        return opened;
    }
    let everybody = ["0.0.0.0/0", "::/0"].map(|net| net.parse::<IpNet>().expect("it is a prefix"));
    let is_free = |net: &IpNet| !policy.tenants.iter().any(|tenant| tenant.sources.contains(net));
    opened.tenants.push(Tenant {
        name: "(unknown)".to_owned(),
        sources: everybody.into_iter().filter(is_free).collect(),
        labels: Labels::new(),
        class: None,
        limits: Limits {
            connections: None,
            packets: None,
            bytes: None,
            responses: None,
            concurrent: None,
            burst_ms: 1000,
        },
    });
    opened.rules.push(Rule {
        name: "(default)".to_owned(),
        deny: false,
        shadow: false,
        priority: i32::MIN,
        tenants: Selector::default(),
        services: Selector::default(),
        hours: None,
        limits: None,
    });
    opened
}

impl Oracle {
    /// The rule that decides: the highest priority; of equals, one that denies; of those, the first. Of the rules that are
    /// open, or of those that are closed.
    pub(super) fn rule_for(&self, tenant: &Tenant, service: &Service, open: bool) -> Option<&Rule> {
        let mut best: Option<&Rule> = None;
        for rule in &self.policy.rules {
            let matches = !rule.shadow
                && self.is_open(rule) == open
                && (open || !rule.deny)
                && rule.tenants.chooses(&tenant.name, &tenant.labels)
                && rule.services.chooses(&service.name, &service.labels);
            if !matches {
                continue;
            }
            let better = match best {
                None => true,
                Some(other) => (rule.priority, rule.deny) > (other.priority, other.deny),
            };
            if better {
                best = Some(rule);
            }
        }
        best
    }

    fn complies(&self, tenant: &Tenant, service: &Service, pool: &Pool, backend: &Backend) -> bool {
        let mut labels: Labels = pool.labels.clone();
        labels.extend(backend.labels.clone());
        self.policy.constraints.iter().all(|constraint| {
            let binds = constraint.tenants.chooses(&tenant.name, &tenant.labels)
                && constraint.services.chooses(&service.name, &service.labels);
            !binds || has(&labels, &constraint.require)
        })
    }

    fn choice(&self, tenant: &Tenant, service: &Service, v4: bool) -> Choice<'_> {
        let mut choice = Choice {
            compliant: 0,
            members: Vec::new(),
            takers: Vec::new(),
            pool: None,
        };
        let mut by_pool: Vec<(bool, &str, Vec<&Backend>)> = Vec::new();
        for name in &service.pools {
            let Some(pool) = self.policy.pools.iter().find(|pool| pool.name == *name) else {
                continue;
            };
            let mut takers = Vec::new();
            for backend in &pool.backends {
                let fits = service.forward.is_tunnel() || backend.address.is_ipv4() == v4;
                if !fits || !self.complies(tenant, service, pool, backend) {
                    continue;
                }
                choice.compliant += 1;
                let status = self.status(&backend.name);
                if status.healthy {
                    choice.members.push(backend);
                    if !status.draining && !status.weightless {
                        takers.push(backend);
                    }
                }
            }
            by_pool.push((self.failed_pools.contains(name), &pool.name, takers));
        }
        for failed in [false, true] {
            for (has_failed, pool, takers) in &by_pool {
                if *has_failed == failed && choice.takers.is_empty() && !takers.is_empty() {
                    choice.takers.clone_from(takers);
                    choice.pool = Some(pool);
                }
            }
        }
        choice
    }

    /// The answer of the rules, with the prediction filled in as far as it goes; `None` if it is a refusal.
    pub(super) fn standing<'s>(
        &'s self,
        tenant: &'s Tenant,
        service: &Service,
        v4: bool,
        now_ns: u64,
        prediction: &mut Prediction,
    ) -> Option<Choice<'s>> {
        let refuse = |prediction: &mut Prediction, reason| {
            prediction.reasons = BTreeSet::from([reason]);
        };
        prediction.tenant = Some(tenant.name.clone());
        if self.suspended.contains(&tenant.name) {
            refuse(prediction, Reason::Suspended);
            return None;
        }
        let Some(rule) = self.rule_for(tenant, service, true) else {
            let would_allow = self.rule_for(tenant, service, false);
            prediction.rule = would_allow.map(|rule| rule.name.clone());
            let closed = would_allow.map(|_| Reason::OutsideSchedule);
            refuse(prediction, closed.unwrap_or(Reason::NoRule));
            return None;
        };
        prediction.rule = Some(rule.name.clone());
        if rule.deny {
            refuse(prediction, Reason::RuleDeny);
            return None;
        }
        let choice = self.choice(tenant, service, v4);
        if choice.compliant == 0 {
            refuse(prediction, Reason::NoCompliantBackend);
            return None;
        }
        if choice.members.is_empty() {
            refuse(prediction, Reason::NoHealthyBackend);
            return None;
        }
        if self.all_ends_ns.is_some_and(|end_ns| now_ns > end_ns) {
            refuse(prediction, Reason::LeaseExpired);
            return None;
        }
        if self.used_up.contains(&tenant.name) {
            refuse(prediction, Reason::Quota);
            return None;
        }
        Some(choice)
    }

    /// Why the tenant may open no connection, if so.
    pub(super) fn nothing_new(&self, tenant: &Tenant, choice: &Choice<'_>, now_ns: u64) -> Option<Reason> {
        if self.new_ends_ns.is_some_and(|end_ns| now_ns > end_ns) {
            return Some(Reason::LeaseExpired);
        }
        if self.used_up_for_new.contains(&tenant.name) {
            return Some(Reason::Quota);
        }
        let (class, pool) = (tenant.class.as_ref()?, choice.pool?);
        let sheds = self.shedding.contains(&(pool.to_owned(), class.clone()));
        sheds.then_some(Reason::Shed)
    }
}
