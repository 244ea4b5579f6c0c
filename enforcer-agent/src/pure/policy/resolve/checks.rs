//! How the parts of a policy fit together: what cannot be forwarded, and what has no effect.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::bounds::MAX_SERVICES;
use super::super::diagnostic::{Code, Place, Reporter};
use super::super::judgement::{
    Bindings, ConstraintSet, Reach, compliant_backends, is_compliant, same_family,
};
use super::super::resolved::{Backend, Forward, Mode, Pool, Protocol, ResolvedPolicy, Service};
use super::super::suggest::quoted;

/// Where the names of the parts stand, in the order of the policy's lists.
pub(super) struct Places {
    pub(super) services: Vec<Place>,
    pub(super) pools: Vec<Place>,
    pub(super) rules: Vec<Place>,
    pub(super) constraints: Vec<Place>,
}

/// Checks a policy all of whose parts are right by themselves.
pub(super) fn check(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    service_slots(reporter, policy);
    vip_is_no_backend(reporter, policy, places);
    for (service, place) in policy.services.iter().zip(&places.services) {
        families(reporter, policy, service, *place);
        ports(reporter, policy, service, *place);
        probes(reporter, policy, service, *place);
    }
    shared_dnat_backends(reporter, policy, places);
    unused_pools(reporter, policy, places);
    let reach = Reach::of(policy);
    rules_without_effect(reporter, policy, &reach, places);
    constraints_without_effect(reporter, policy, places);
    pairs_without_backend(reporter, policy, &reach, places);
}

/// The families of a service's addresses, one address each.
fn family_representatives(service: &Service) -> impl Iterator<Item = IpAddr> {
    let first = |v4: bool| {
        service
            .addresses
            .iter()
            .copied()
            .find(move |address| address.is_ipv4() == v4)
    };
    [first(true), first(false)].into_iter().flatten()
}

const fn family_name(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A service's back ends in all of its pools.
fn backends_of<'a>(
    policy: &'a ResolvedPolicy,
    service: &'a Service,
) -> impl Iterator<Item = (&'a Pool, &'a Backend)> {
    let pools = service.pools.iter().map(|pool| &policy.pools[*pool]);
    pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
}

/// A service takes a slot of the data path for each of its families.
fn service_slots(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy) {
    let slots: usize = policy
        .services
        .iter()
        .map(|service| family_representatives(service).count())
        .sum();
    if slots > MAX_SERVICES {
        let message = format!(
            "the policy has {slots} services, those with both IPv4 and IPv6 counted twice; there can be {MAX_SERVICES}"
        );
        reporter.error(
            Code::TooLarge,
            Place::WHOLE,
            message,
            "Join services that are treated alike.",
        );
    }
}

/// An address that is both a service's and a back end's would be both where traffic is judged and where it is sent.
fn vip_is_no_backend(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let backends: BTreeMap<IpAddr, &str> = policy
        .pools
        .iter()
        .flat_map(|pool| {
            pool.backends
                .iter()
                .map(|backend| (backend.address, backend.name.as_str()))
        })
        .collect();
    for (service, place) in policy.services.iter().zip(&places.services) {
        for address in &service.addresses {
            if let Some(backend) = backends.get(address) {
                let message = format!(
                    "address `{address}` of service {} is also that of back end {}",
                    quoted(&service.name),
                    quoted(backend)
                );
                reporter.error(
                    Code::Conflict,
                    *place,
                    message,
                    "Give the service an address of its own.",
                );
            }
        }
    }
}

/// No forward mode translates between IPv4 and IPv6.
fn families(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, service: &Service, place: Place) {
    for address in family_representatives(service) {
        if !backends_of(policy, service).any(|(_, backend)| same_family(address, backend.address)) {
            let family = family_name(address);
            let message = format!(
                "service {} has address `{address}`, but no {family} back end",
                quoted(&service.name)
            );
            let help = format!(
                "Add a back end with an {family} address to one of its pools, or remove the address."
            );
            reporter.error(Code::Forwarding, place, message, help);
        }
    }
    for (_, backend) in backends_of(policy, service) {
        if !service
            .addresses
            .iter()
            .any(|address| same_family(*address, backend.address))
        {
            let family = family_name(backend.address);
            let message = format!(
                "service {} has no {family} address, so that back end {} never serves it",
                quoted(&service.name),
                quoted(&backend.name)
            );
            reporter.warning(
                Code::Forwarding,
                place,
                message,
                format!("Give the service an {family} address."),
            );
        }
    }
}

/// `L2Dsr` leaves the packet as it is, port included.
fn ports(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, service: &Service, place: Place) {
    if service.forward != Forward::L2Dsr {
        return;
    }
    for (_, backend) in backends_of(policy, service).filter(|(_, backend)| backend.port != service.port) {
        let message = format!(
            "service {} keeps port {} (`L2Dsr`), but back end {} listens on {}",
            quoted(&service.name),
            service.port,
            quoted(&backend.name),
            backend.port
        );
        let help =
            "Let the back end listen on the service's port, or forward by `Nat` or `Dnat`, which rewrite it.";
        reporter.error(Code::Forwarding, place, message, help);
    }
}

/// Both kinds of probe open a TCP connection to the back end's port.
fn probes(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, service: &Service, place: Place) {
    if service.protocol != Protocol::Udp {
        return;
    }
    let pools: Vec<String> = service
        .pools
        .iter()
        .map(|pool| quoted(&policy.pools[*pool].name))
        .collect();
    let message = format!(
        "service {} is UDP, but the health of {} is found out over TCP",
        quoted(&service.name),
        pools.join(", ")
    );
    let help = "Let the back ends accept TCP on the same port as well, or they will count as unhealthy.";
    reporter.warning(Code::Forwarding, place, message, help);
}

/// With `Dnat` a back end sees the client's own address and port: if two services lead to the same back-end port, a client
/// that uses one port for both is one connection to the back end.
fn shared_dnat_backends(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let mut users = BTreeMap::new();
    let services = policy.services.iter().zip(&places.services);
    for (service, place) in services.filter(|(service, _)| service.forward == Forward::Dnat) {
        let mut clashes = BTreeSet::new();
        for (_, backend) in backends_of(policy, service) {
            let endpoint = (backend.address, backend.port, service.protocol);
            let first: &str = users.entry(endpoint).or_insert(service.name.as_str());
            if first != service.name {
                clashes.insert((first, backend.name.as_str()));
            }
        }
        for (first, backend) in clashes {
            let message = format!(
                "services {} and {} both reach back end {} by `Dnat` on one port",
                quoted(first),
                quoted(&service.name),
                quoted(backend)
            );
            let help = "A client that uses one source port for both would mix them up; let the back end listen on \
                        two ports, or forward one by `Nat`.";
            reporter.warning(Code::Forwarding, *place, message, help);
        }
    }
}

fn unused_pools(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let used: BTreeSet<usize> = policy
        .services
        .iter()
        .flat_map(|service| service.pools.iter().copied())
        .collect();
    for (index, pool) in policy
        .pools
        .iter()
        .enumerate()
        .filter(|(index, _)| !used.contains(index))
    {
        let message = format!("no service uses pool {}", quoted(&pool.name));
        reporter.warning(
            Code::NoEffect,
            places.pools[index],
            message,
            "Add it to the `pools` of a service.",
        );
    }
}

fn rules_without_effect(
    reporter: &mut Reporter<'_>,
    policy: &ResolvedPolicy,
    reach: &Reach,
    places: &Places,
) {
    for (index, rule) in policy.rules.iter().enumerate() {
        // A selector that chooses nothing has been reported already.
        if reach.is_effective(index) || rule.tenants.is_empty() || rule.services.is_empty() {
            continue;
        }
        let verb = if rule.mode == Mode::Shadow {
            "would never decide"
        } else {
            "never decides"
        };
        let message = format!("rule {} {verb} anything", quoted(&rule.name));
        let help = match hiding_rule(policy, index) {
            Some(hiding) => format!(
                "For all that it matches another rule comes first, such as {} at {}. Rules go by priority, then \
                 `Deny` before `Allow`, then their order.",
                quoted(&policy.rules[hiding].name),
                places.rules[hiding].describe()
            ),
            None => "Another rule with the same action comes first for all that it matches.".to_owned(),
        };
        reporter.warning(Code::NoEffect, places.rules[index], message, help);
    }
}

/// The enforced rule that always decides in a rule's place, for the first pair that it matches.
fn hiding_rule(policy: &ResolvedPolicy, rule: usize) -> Option<usize> {
    let hidden = &policy.rules[rule];
    let (tenant, service) = (hidden.tenants.first()?, hidden.services.first()?);
    policy.rules[..rule].iter().position(|earlier| {
        earlier.mode == Mode::Enforce
            && earlier.is_always_open()
            && earlier.tenants.contains(tenant)
            && earlier.services.contains(service)
    })
}

fn constraints_without_effect(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    for (index, constraint) in policy.constraints.iter().enumerate() {
        // What chooses nothing has been reported where it stands; here it is about a policy without tenants or services.
        let satisfiable = policy.pools.iter().any(|pool| {
            pool.backends
                .iter()
                .any(|backend| is_compliant(constraint, pool, backend))
        });
        if !satisfiable {
            let wanted: Vec<String> = constraint
                .require_labels
                .iter()
                .map(|(key, value)| format!("`{key}: {value}`"))
                .collect();
            let message = format!(
                "no back end of the policy has {}, which constraint {} requires",
                wanted.join(" and "),
                quoted(&constraint.name)
            );
            let help = "Label the back ends, or their pools, that comply.";
            reporter.warning(Code::NoEffect, places.constraints[index], message, help);
        }
    }
}

/// A tenant that may use a service, but is refused since its constraints leave no back end.
fn pairs_without_backend(
    reporter: &mut Reporter<'_>,
    policy: &ResolvedPolicy,
    reach: &Reach,
    places: &Places,
) {
    let bindings = Bindings::of(policy);
    // Many tenants are bound alike, and the answer depends on nothing else.
    let mut families_left: BTreeMap<(usize, ConstraintSet), Vec<IpAddr>> = BTreeMap::new();
    for (tenant_index, tenant) in policy.tenants.iter().enumerate() {
        for service_index in reach.allowed(tenant_index).iter() {
            let service = &policy.services[service_index];
            let constraints = bindings.get(tenant_index, service_index);
            let bare = families_left
                .entry((service_index, constraints))
                .or_insert_with(|| families_without_backend(policy, service, constraints));
            let names: Vec<String> = constraints
                .iter()
                .map(|constraint| quoted(&policy.constraints[constraint].name))
                .collect();
            for address in bare.iter() {
                let place = constraints
                    .iter()
                    .next()
                    .map_or(Place::WHOLE, |first| places.constraints[first]);
                let message = format!(
                    "tenant {} may use service {}, but no {} back end complies with {}",
                    quoted(&tenant.name),
                    quoted(&service.name),
                    family_name(*address),
                    names.join(" and ")
                );
                let help = "It will be refused (NoCompliantBackend). Add a compliant back end to one of the service's \
                            pools, or a rule that says `Deny`.";
                reporter.warning(Code::NoCompliantBackend, place, message, help);
            }
        }
    }
}

/// One address for each family of the service that has back ends, but no compliant one. (A family without any is an error
/// of its own.)
fn families_without_backend(
    policy: &ResolvedPolicy,
    service: &Service,
    constraints: ConstraintSet,
) -> Vec<IpAddr> {
    let has_any = |address: &IpAddr| {
        backends_of(policy, service).any(|(_, backend)| same_family(*address, backend.address))
    };
    let has_compliant = |address: &IpAddr| {
        compliant_backends(policy, service, constraints)
            .any(|(pool, backend)| same_family(*address, policy.pools[pool].backends[backend].address))
    };
    family_representatives(service)
        .filter(|address| has_any(address) && !has_compliant(address))
        .collect()
}
