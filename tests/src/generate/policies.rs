//! Random policies that share their names.

use ipnet::IpNet;

use crate::plain::{
    Backend, Constraint, Forward, Hours, Labels, Limits, Policy, Pool, Refusal, Rule, Selector, Service,
    Tenant,
};
use crate::random::Random;

pub(super) const TENANTS: [&str; 5] = ["acme", "bound", "globex", "hooli", "initech"];
pub(super) const CLASSES: [&str; 2] = ["bronze", "gold"];
pub(super) const POOLS: [&str; 3] = ["far", "main", "spare"];
/// Addresses of the service that stays on the host, and of the proxies there.
const PROXIES: [&str; 2] = ["192.0.2.60", "2001:db8::60"];
const PROXY_POOL: &str = "proxies";
const SOURCES: [&str; 10] = [
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.1.2.200/32",
    "10.2.0.0/15",
    "10.9.3.0/24",
    "0.0.0.0/0",
    "2001:db8:1::/48",
    "2001:db8:1:2::/63",
    "2001:db8:4000::/35",
];
const PROTECTED: [&str; 4] = ["10.9.0.0/16", "10.9.3.0/24", "2001:db8:9::/64", "10.9.0.64/27"];
/// Slow ones, since 65535 bytes can always come at once; and some that no step stands for exactly.
const BYTE_RATES: [u64; 6] = [10, 500, 1234, 10_000, 65_536, 1_000_000];
const REGIONS: [&str; 2] = ["eu", "us"];

pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a constant of this file")
}

fn labels(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

fn chance<T>(random: &mut Random, percent: u64, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
    random.percent(percent).then(|| value(random))
}

/// The services: the same in every policy but for their pools, since a service that changes its forward mode or address
/// under traffic is a matter for the tests of generations.
fn services(random: &mut Random) -> Vec<Service> {
    let table: [(&str, &[&str], u16, bool, Forward); 10] = [
        ("chat", &["192.0.2.10", "2001:db8::10"], 8000, false, Forward::Nat),
        ("dns", &["192.0.2.10"], 53, true, Forward::Nat),
        (
            "seen",
            &["192.0.2.20", "2001:db8::20"],
            8000,
            false,
            Forward::Dnat,
        ),
        ("seen-dns", &["192.0.2.20", "192.0.2.21"], 53, true, Forward::Dnat),
        ("seen-too", &["192.0.2.22"], 8000, false, Forward::Dnat),
        (
            "direct",
            &["192.0.2.30", "2001:db8::30"],
            9000,
            false,
            Forward::L2Dsr,
        ),
        ("within", &["10.9.0.70"], 443, false, Forward::Nat),
        (
            "wrapped",
            &["192.0.2.50", "2001:db8::50"],
            9000,
            false,
            Forward::Ipip,
        ),
        (
            "wrapped-udp",
            &["192.0.2.51", "2001:db8::51"],
            9000,
            true,
            Forward::Gue,
        ),
        ("stays", &PROXIES, 9000, false, Forward::Local),
    ];
    table
        .into_iter()
        .map(|(name, addresses, port, udp, forward)| {
            let first = random.below(3) as usize;
            let count = 1 + random.below(3) as usize;
            let pools = match forward {
                Forward::Local => vec![PROXY_POOL.to_owned()],
                _ => (0..count)
                    .map(|index| POOLS[(first + index) % 3].to_owned())
                    .collect(),
            };
            Service {
                name: name.to_owned(),
                addresses: addresses.iter().map(|address| parsed(address)).collect(),
                port,
                udp,
                labels: labels("tier", if random.percent(50) { "gold" } else { "iron" }),
                pools,
                forward,
                limits: chance(random, 25, limits),
                stateless: forward.is_direct() && random.percent(50),
                resets: !udp && random.percent(40),
                echo: random.percent(50),
                on_refusal: *random.pick(&[Refusal::Drop, Refusal::Reset, Refusal::Prohibited]),
            }
        })
        .collect()
}

/// Each pool has a few of its back ends, at least one of each family; an address has one of two values, so that a name
/// can come back with another.
fn pools(random: &mut Random) -> Vec<Pool> {
    let mut number = 0;
    let proxies = PROXIES.iter().map(|address| Backend {
        name: format!("proxy-{address}").replace(':', "-"),
        address: parsed(address),
        port: 9000,
        capacity: 100,
        labels: labels("region", "eu"),
    });
    let proxies = Pool {
        name: PROXY_POOL.to_owned(),
        labels: Labels::new(),
        backends: proxies.collect(),
    };
    POOLS
        .iter()
        .map(|name| {
            let mut backends = Vec::new();
            for index in 0..4 {
                number += 1;
                // The first IPv4 and the first IPv6 one are always there.
                if matches!(index, 1 | 3) && random.percent(50) {
                    continue;
                }
                let variant = if random.percent(85) { 0 } else { 100 };
                let address = if index < 2 {
                    format!("10.9.0.{}", 100 + number + variant)
                } else {
                    format!("2001:db8:9::{:x}", 0x1000 + number + variant)
                };
                backends.push(Backend {
                    name: format!("gpu-{number}"),
                    address: parsed(&address),
                    port: 9000,
                    capacity: *random.pick(&[50, 100, 300]),
                    labels: chance(random, 30, |random| labels("region", random.word(&REGIONS)))
                        .unwrap_or_default(),
                });
            }
            Pool {
                name: (*name).to_owned(),
                labels: chance(random, 70, |random| labels("region", random.word(&REGIONS)))
                    .unwrap_or_default(),
                backends,
            }
        })
        .chain([proxies])
        .collect()
}

fn limits(random: &mut Random) -> Limits {
    Limits {
        connections: chance(random, 40, |random| *random.pick(&[3, 5, 10, 1000])),
        packets: chance(random, 40, |random| *random.pick(&[7, 20, 100, 10_000])),
        bytes: chance(random, 40, |random| *random.pick(&BYTE_RATES)),
        responses: chance(random, 40, |random| *random.pick(&BYTE_RATES)),
        concurrent: chance(random, 30, |random| *random.pick(&[1, 2, 5, 40])),
        burst_ms: *random.pick(&[100, 500, 1000, 2000]),
    }
}

fn tenants(random: &mut Random) -> Vec<Tenant> {
    let mut tenants: Vec<Tenant> = TENANTS
        .iter()
        .enumerate()
        .map(|(index, name)| Tenant {
            name: (*name).to_owned(),
            sources: vec![parsed(&format!("10.200.{index}.0/24"))],
            labels: chance(random, 50, |random| labels("data", random.word(&REGIONS))).unwrap_or_default(),
            class: chance(random, 60, |random| random.word(&CLASSES).to_owned()),
            limits: limits(random),
        })
        .collect();
    for source in SOURCES {
        // A prefix of everybody is rare, or nobody would be unknown.
        if random.percent(if source == "0.0.0.0/0" { 5 } else { 90 }) {
            let tenant = random.below(tenants.len() as u64) as usize;
            tenants[tenant].sources.push(parsed(source));
        }
    }
    tenants
}

fn tenant_selector(random: &mut Random) -> Selector {
    match random.below(5) {
        0 | 1 => Selector {
            names: Some(vec![
                random.word(&TENANTS).to_owned(),
                TENANTS[random.below(2) as usize].to_owned(),
            ]),
            labels: None,
        },
        2 => Selector {
            names: None,
            labels: Some(labels("data", random.word(&REGIONS))),
        },
        _ => Selector::default(),
    }
}

fn service_selector(random: &mut Random) -> Selector {
    match random.below(5) {
        0 => Selector {
            names: Some(vec![
                random
                    .word(&["chat", "dns", "seen", "direct", "within", "wrapped", "stays"])
                    .to_owned(),
            ]),
            labels: None,
        },
        1 => Selector {
            names: None,
            labels: Some(labels("tier", random.word(&["gold", "iron"]))),
        },
        _ => Selector::default(),
    }
}

fn without_repetition(mut selector: Selector) -> Selector {
    if let Some(names) = &mut selector.names {
        names.sort();
        names.dedup();
    }
    selector
}

/// Boundaries lie in the hours in which clocks are changed as often as elsewhere.
fn hours(random: &mut Random) -> Hours {
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const CLOCKS: [&str; 8] = [
        "00:00", "01:30", "02:00", "02:30", "03:15", "08:00", "20:00", "23:45",
    ];
    let first = random.below(7) as usize;
    let count = 1 + random.below(7) as usize;
    let mut days: Vec<String> = (0..count)
        .map(|index| DAYS[(first + index) % 7].to_owned())
        .collect();
    days.sort();
    let to = if random.percent(15) {
        "24:00"
    } else {
        random.word(&CLOCKS)
    };
    Hours {
        days,
        from: random.word(&CLOCKS).to_owned(),
        to: to.to_owned(),
        zone: random
            .word(&["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
            .to_owned(),
    }
}

fn rules(random: &mut Random) -> Vec<Rule> {
    let mut rules: Vec<Rule> = (0..random.below(6))
        .map(|index| {
            let (deny, shadow) = (random.percent(35), random.percent(25));
            Rule {
                name: format!("rule-{index}"),
                deny,
                shadow,
                priority: random.below(3) as i32 - 1,
                tenants: without_repetition(tenant_selector(random)),
                services: service_selector(random),
                hours: chance(random, 40, hours),
                limits: chance(random, 40, limits).filter(|_| !deny && !shadow),
            }
        })
        .collect();
    // Without it most packets would be refused, and there would be little to see.
    if random.percent(85) {
        let place = random.below(rules.len() as u64 + 1) as usize;
        let all = Rule {
            name: "all".to_owned(),
            deny: false,
            shadow: false,
            priority: 0,
            tenants: Selector::default(),
            services: Selector::default(),
            hours: chance(random, 10, hours),
            limits: chance(random, 25, limits),
        };
        rules.insert(place, all);
    }
    rules
}

/// A policy.
pub fn policy(random: &mut Random) -> Policy {
    let constraints = (0..random.below(3))
        .map(|index| Constraint {
            name: format!("constraint-{index}"),
            tenants: without_repetition(tenant_selector(random)),
            services: service_selector(random),
            require: labels("region", random.word(&REGIONS)),
        })
        .collect();
    let mut protected: Vec<IpNet> = Vec::new();
    for net in PROTECTED {
        if random.percent(60) {
            protected.push(parsed(net));
        }
    }
    Policy {
        classes: CLASSES.map(str::to_owned).to_vec(),
        tenants: tenants(random),
        services: services(random),
        pools: pools(random),
        rules: rules(random),
        protected,
        constraints,
        allow: random.percent(10),
    }
}

/// Another policy that shares most with the one before it.
pub fn edit(random: &mut Random, before: &Policy) -> Policy {
    let other = policy(random);
    let mut edited = before.clone();
    match random.below(6) {
        0 => edited.tenants = other.tenants,
        1 => {
            for (tenant, source) in edited.tenants.iter_mut().zip(other.tenants) {
                if random.percent(40) {
                    tenant.limits = source.limits;
                }
            }
        }
        2 => {
            edited.rules = other.rules;
            edited.allow = random.percent(30);
        }
        3 => edited.pools = other.pools,
        4 => edited.services = other.services,
        _ => {
            edited.constraints = other.constraints;
            edited.protected = other.protected;
        }
    }
    edited
}
