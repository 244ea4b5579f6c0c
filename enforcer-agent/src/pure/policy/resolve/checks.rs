//! How the parts of a policy fit together: what cannot be forwarded, and what nobody uses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::bounds::{MAX_ECHO_SERVICES, MAX_SERVICES};
use super::super::diagnostic::{Code, Reporter};
use super::super::resolved::{Backend, Forward, Pool, Protocol, ResolvedPolicy, Service, Tenant};
use super::super::selection::Selection;
use super::super::source::Place;
use super::super::suggest::quoted;
use super::super::users::users;
use super::rights;

/// Where the names of the parts stand, in the order of the policy's lists.
pub(super) struct Places {
    pub(super) classes: Vec<Place>,
    pub(super) tenants: Vec<Place>,
    pub(super) services: Vec<Place>,
    pub(super) pools: Vec<Place>,
    pub(super) rules: Vec<Place>,
    pub(super) constraints: Vec<Place>,
}

/// Checks a policy all of whose parts are right by themselves.
pub(super) fn check(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    service_slots(reporter, policy);
    vip_is_no_backend(reporter, policy, places);
    echo(reporter, policy, places);
    for (service, place) in policy.services.iter().zip(&places.services) {
        proxies(reporter, policy, service, *place);
        families(reporter, policy, service, *place);
        ports(reporter, policy, service, *place);
        probes(reporter, policy, service, *place);
    }
    shared_dnat_backends(reporter, policy, places);
    unused_pools(reporter, policy, places);
    unused_classes(reporter, policy, places);
    guarantees(reporter, policy, places);
    rights::check(reporter, policy, places);
}

/// The families of a service's addresses, one address each.
pub(super) fn family_representatives(service: &Service) -> impl Iterator<Item = IpAddr> {
    let first = |v4: bool| {
        service
            .addresses
            .iter()
            .copied()
            .find(move |address| address.is_ipv4() == v4)
    };
    [first(true), first(false)].into_iter().flatten()
}

pub(super) const fn family_name(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A service's back ends in all of its pools.
pub(super) fn backends_of<'a>(
    policy: &'a ResolvedPolicy,
    service: &'a Service,
) -> impl Iterator<Item = (&'a Pool, &'a Backend)> {
    let pools = service.pools.iter().map(|pool| &policy.pools[*pool]);
    pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
}

/// The data path goes through the services that have an address answer one after the other.
fn echo(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let mut answering: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let services = policy.services.iter().zip(&places.services);
    for (service, place) in services.filter(|(service, _)| service.answer_echo) {
        for address in &service.addresses {
            let count = answering.entry(*address).or_default();
            *count += 1;
            if *count == MAX_ECHO_SERVICES + 1 {
                let message = format!(
                    "more than {MAX_ECHO_SERVICES} services with address `{address}` say `answerEcho: true`"
                );
                let help = "The address answers if one of them says so: leave it to those that most tenants may use.";
                reporter.error(Code::TooLarge, *place, message, help);
            }
        }
    }
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

/// An address that is both a service's and a back end's would be both where traffic is judged and where it is sent. Only
/// with `Local` that is so: the back end is the proxy that has the service's address.
fn vip_is_no_backend(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let mut locals: BTreeMap<usize, Vec<&Service>> = BTreeMap::new();
    let mut others = BTreeSet::new();
    for service in &policy.services {
        for pool in &service.pools {
            if service.forward == Forward::Local {
                locals.entry(*pool).or_default().push(service);
            } else {
                others.insert(*pool);
            }
        }
    }
    let is_proxy = |pool: usize, address: &IpAddr| {
        let mut services = locals.get(&pool).into_iter().flatten();
        !others.contains(&pool) && services.any(|service| service.addresses.contains(address))
    };
    let pools = policy.pools.iter().enumerate();
    let backends: BTreeMap<IpAddr, &str> = pools
        .flat_map(|(index, pool)| pool.backends.iter().map(move |backend| (index, backend)))
        .filter(|(pool, backend)| !is_proxy(*pool, &backend.address))
        .map(|(_, backend)| (backend.address, backend.name.as_str()))
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

/// The packets of a `Local` service stay where they are: whoever gets them has the address that they were sent to.
fn proxies(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, service: &Service, place: Place) {
    if service.forward != Forward::Local {
        return;
    }
    for (_, backend) in backends_of(policy, service) {
        if !service.addresses.contains(&backend.address) {
            let message = format!(
                "service {} stays on this host (`Local`), but back end {} has address `{}`, which is none of the service's",
                quoted(&service.name),
                quoted(&backend.name),
                backend.address
            );
            let help = "With `Local` the back end is the proxy on this host that listens on the service's own address: \
                        give it that address, or forward by another mode.";
            reporter.error(Code::Forwarding, place, message, help);
        }
    }
}

/// Nothing translates between IPv4 and IPv6.
fn families(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, service: &Service, place: Place) {
    for address in family_representatives(service) {
        if !backends_of(policy, service).any(|(_, backend)| service.forward.reaches(address, backend.address))
        {
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
            .any(|address| service.forward.reaches(*address, backend.address))
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

/// Where packets keep their destination, port included, the back end has to listen on every port of the service, and it
/// is probed on its own.
fn ports(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, service: &Service, place: Place) {
    if !service.forward.keeps_destination() {
        return;
    }
    for (_, backend) in
        backends_of(policy, service).filter(|(_, backend)| !service.ports.contains(backend.port))
    {
        let message = format!(
            "service {} keeps port {} (`{:?}`), but back end {} listens on {}",
            quoted(&service.name),
            service.ports,
            service.forward,
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
        if service.ports.is_several() {
            let message = format!(
                "all ports of service {} lead to one port of its back ends by `Dnat`",
                quoted(&service.name)
            );
            let help =
                "A client that uses one source port for two of them would mix them up; forward by `Nat`.";
            reporter.warning(Code::Forwarding, *place, message, help);
        }
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

fn unused_classes(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let used: BTreeSet<usize> = policy.tenants.iter().filter_map(|tenant| tenant.class).collect();
    for (index, class) in policy.classes.iter().enumerate() {
        if !used.contains(&index) {
            let message = format!("no tenant is of class {}", quoted(&class.name));
            let help = "Write it into the `class` of a tenant.";
            reporter.warning(Code::NoEffect, places.classes[index], message, help);
        }
    }
}

/// What is promised and may not be kept: to a class that is shed first, or more than a pool can take.
fn guarantees(reporter: &mut Reporter<'_>, policy: &ResolvedPolicy, places: &Places) {
    let guarantee = |tenant: &Tenant| tenant.guaranteed.new_connections_per_second.unwrap_or(0);
    for (tenant, place) in policy.tenants.iter().zip(&places.tenants) {
        let class = tenant.class.map(|class| &policy.classes[class]);
        let shed = class.and_then(|class| Some((class, class.shed_above_percent?)));
        if let Some((class, above)) = shed.filter(|_| guarantee(tenant) > 0) {
            let message = format!(
                "tenant {} has a guarantee, but its class {} is shed when a pool is used to more than {above}%",
                quoted(&tenant.name),
                quoted(&class.name)
            );
            let help = "Shedding comes first: give the tenant another class, or the class no `shedAbove`.";
            reporter.warning(Code::NoEffect, *place, message, help);
        }
    }
    if policy.tenants.iter().all(|tenant| guarantee(tenant) == 0) {
        return;
    }
    let names: Vec<String> = policy.pools.iter().map(|pool| pool.name.clone()).collect();
    let users = users(policy, &Selection::default(), &BTreeSet::new(), &names);
    for (pool, place) in policy.pools.iter().zip(&places.pools) {
        let tenants = users.of_pool[&pool.name]
            .iter()
            .map(|tenant| &*policy.tenants[*tenant]);
        let promised: u64 = tenants.map(guarantee).sum();
        let capacity: u64 = pool
            .backends
            .iter()
            .map(|backend| u64::from(backend.capacity))
            .sum();
        if promised > capacity {
            let milliseconds = capacity * 1000 / promised;
            let message = format!(
                "{promised} new connections per second are guaranteed to tenants of pool {}, which is full with {capacity} open \
                 ones",
                quoted(&pool.name)
            );
            let help = format!(
                "It can keep that only while connections last {milliseconds} ms on average, or less. Guarantee less, or add \
                 back ends."
            );
            reporter.warning(Code::Promised, *place, message, help);
        }
    }
}
