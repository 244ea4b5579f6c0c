//! `defaults.action: Allow` in terms of the rest of the language: a tenant that has every source that no other one claims,
//! and a rule behind all others that allows everything.
//!
//! So there is no second way for a packet to be judged, and records, explanations and counters name what let it pass. The
//! names are none that a policy could give.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::resolved::{Action, Mode, Rule, Tenant};
use super::super::selection::Selection;
use super::super::source::Place;
use super::{Placed, Reporter, tenants};

/// The tenant of sources that no other one claims.
const UNKNOWN: &str = "(unknown)";
/// The rule that decides where no other one does.
const DEFAULT: &str = "(default)";

/// Whether a name is one of those that no policy can give.
pub(super) fn is_reserved(name: &str) -> bool {
    name.starts_with('(')
}

/// Adds the tenant where it belongs among the others, which are sorted by name, unless these claim every source.
pub(super) fn add_tenant(action: Place, tenants: &mut Vec<Placed<Tenant>>) {
    let everything = [IpNet::from(Ipv4Net::default()), Ipv6Net::default().into()];
    let is_claimed = |net: &IpNet| tenants.iter().any(|tenant| tenant.value.sources.contains(net));
    let sources: Vec<IpNet> = everything.into_iter().filter(|net| !is_claimed(net)).collect();
    if sources.is_empty() {
        return;
    }
    let value = Tenant {
        name: UNKNOWN.to_owned(),
        sources,
        labels: Default::default(),
        class: None,
        limits: tenants::NO_LIMITS,
        guaranteed: Default::default(),
        quotas: Vec::new(),
    };
    // A name begins with a letter or a digit, which come behind the parenthesis.
    tenants.insert(0, Placed { value, place: action });
}

/// Adds the rule behind all others, which are in the order of judgement.
pub(super) fn add_rule(
    reporter: &Reporter<'_>,
    action: Place,
    (tenants, services): (usize, usize),
    rules: &mut Vec<Placed<Rule>>,
) {
    let value = Rule {
        name: DEFAULT.to_owned(),
        action: Action::Allow,
        mode: Mode::Enforce,
        priority: i32::MIN,
        tenants: Selection::all(tenants),
        services: Selection::all(services),
        schedule: None,
        limits: None,
        line: action.line(),
        file: reporter.file(action).map(std::sync::Arc::from),
    };
    rules.push(Placed { value, place: action });
}
