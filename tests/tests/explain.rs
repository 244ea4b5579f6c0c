//! `policy explain` and the loaded kernel programs, asked the same.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::{BTreeMap, BTreeSet};

use enforcer_agent::pure::compile::{BackendStatus, Inputs};
use enforcer_agent::pure::explain::{Explanation, Known, Moment, Question, explain};
use enforcer_agent::pure::policy::resolved::Protocol;
use enforcer_agent::pure::policy::schedule::closed_rules;
use enforcer_agent::pure::snapshot::Snapshot;
use enforcer_common::Reason;
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_tests::generate::{self, Op, Surroundings};
use enforcer_tests::packet::{Segment, Transport};
use enforcer_tests::privilege;
use enforcer_tests::random::{Random, SEED_VARIABLE, count, seed};
use enforcer_tests::rig::{Rig, START_NS};
use enforcer_tests::world::{World, next_hop};
use jiff::Timestamp;

/// Room for every flow: each packet comes to empty tables anyway.
const FLOW_ENTRIES: u32 = 64;
/// More tenants than a generated policy has.
const TENANTS: u32 = 8;
/// Packets asked about under one policy.
const PER_POLICY: u64 = 100;
/// Bytes of the packet that an explanation is about.
const PACKET_BYTES: usize = 60;

/// What the kernel does with the first packet of a connection: whose it is, why, and to which back end.
fn kernel(rig: &mut Rig, segment: &Segment) -> (u32, Reason, Option<u32>) {
    rig.forget_traffic(TENANTS).unwrap();
    let before = rig.tallies(DIRECTION_INGRESS, TENANTS).unwrap();
    rig.ingress(&segment.bytes()).unwrap();
    rig.events();
    let after = rig.tallies(DIRECTION_INGRESS, TENANTS).unwrap();
    let packets_before = |key| before.get(key).map_or(0, |tally| tally.packets);
    let mut counted = after
        .iter()
        .map(|(key, tally)| (*key, tally.packets - packets_before(key)))
        .filter(|(_, packets)| *packets > 0);
    let ((tenant, reason), packets) = counted.next().expect("every packet is counted");
    assert_eq!((packets, counted.next()), (1, None), "once, and for one reason");
    let flow = rig.dataplane().maps.flow(&segment.key()).unwrap();
    (tenant, reason, flow.map(|flow| flow.backend))
}

fn explained(world: &World, snapshot: &Snapshot, segment: &Segment) -> Explanation {
    let inputs = Inputs {
        policy: &world.policy,
        slots: &world.slots,
        host: &world.host,
        backends: &world.backends,
        failed_pools: &world.failed_pools,
        suspended: &world.suspended,
        closed_rules: &world.closed_rules,
        exhausted: &world.exhausted,
        shed: &world.shed,
        fair_rates: &world.fair_rates,
    };
    let known = Known {
        inputs: &inputs,
        directory: &world.directory,
        snapshot,
    };
    let question = Question {
        from: segment.from,
        to: segment.to,
        protocol: match segment.transport {
            Transport::Tcp { .. } => Protocol::Tcp,
            Transport::Udp | Transport::UdpUnchecked => Protocol::Udp,
        },
    };
    let moment = Moment {
        kernel_ns: START_NS,
        wall: Timestamp::UNIX_EPOCH,
    };
    explain(&known, &question, moment)
}

/// A connection's first packet between the ends of some generated packet.
fn first_packet(random: &mut Random, around: &Surroundings<'_>) -> Segment {
    loop {
        if let Op::Packet { segment, .. } = generate::op(random, around) {
            let transport = match segment.transport {
                Transport::Tcp { .. } => enforcer_tests::packet::syn("10.0.0.1:1", "10.0.0.2:2").transport,
                udp @ (Transport::Udp | Transport::UdpUnchecked) => udp,
            };
            return Segment::new(segment.from, segment.to, transport).ip_bytes(PACKET_BYTES);
        }
    }
}

/// Another state of a back end, a pool or a tenant.
fn happen(world: &mut World, op: &Op) {
    let put = |set: &mut BTreeSet<String>, name: &str, member: bool| {
        set.retain(|other| other != name);
        set.extend(member.then(|| name.to_owned()));
    };
    match op {
        Op::Backend {
            name,
            healthy,
            draining,
            weight,
            reachable,
        } => {
            let mut backends = world.policy.pools.iter().flat_map(|pool| &pool.backends);
            let Some(address) = backends
                .find(|known| known.name == *name)
                .map(|known| known.address)
            else {
                return;
            };
            world.set_backend(name, |status| {
                *status = BackendStatus {
                    healthy: *healthy,
                    draining: *draining,
                    weight: *weight,
                    next_hop: reachable.then(|| next_hop(address)),
                };
            });
        }
        Op::Pool { name, failed } => put(&mut world.failed_pools, name, *failed),
        Op::Tenant { name, suspended } => put(&mut world.suspended, name, *suspended),
        _ => {}
    }
}

/// Any packet under any policy, with back ends, pools and tenants in any state: same reason, same tenant, same back end.
#[test]
fn an_explanation_says_what_the_kernel_does() {
    if !privilege::require("needs root, to load BPF programs") {
        return;
    }
    let (seed, packets) = (seed(), count("EXPLAIN_PACKETS", 10_000));
    println!("{SEED_VARIABLE}={seed} EXPLAIN_PACKETS={packets}");
    let mut random = Random::new(seed);
    let mut rig = Rig::new(FLOW_ENTRIES).unwrap();
    let mut reasons: BTreeMap<Reason, u64> = BTreeMap::new();
    for _ in 0..packets / PER_POLICY {
        let start = generate::start(&mut random, FLOW_ENTRIES);
        let mut world = World::new(&start.policy.text()).unwrap();
        let replies = BTreeMap::new();
        let around = Surroundings {
            policy: &start.policy,
            replies: &replies,
        };
        for _ in 0..1000 {
            happen(&mut world, &generate::op(&mut random, &around));
        }
        let at = Timestamp::from_second(1_700_000_000 + random.below(10_000_000) as i64).unwrap();
        world.closed_rules = closed_rules(&world.policy, at);
        let tables = world.compile().unwrap().tables;
        rig.set_now(START_NS).unwrap();
        rig.set_host(&world.host.record()).unwrap();
        let installed = rig.install(tables.clone()).unwrap();
        let snapshot = Snapshot {
            generation: installed.generation,
            tables,
            ..Snapshot::default()
        };
        for _ in 0..PER_POLICY {
            let segment = first_packet(&mut random, &around);
            let (tenant, reason, backend) = kernel(&mut rig, &segment);
            let said = explained(&world, &snapshot, &segment);
            let context = format!("{segment:?}\n{said:#?}");
            assert_eq!(said.reason(), Some(reason), "{context}");
            let tenant_of = said.tenant.as_deref().map_or(0, |name| world.tenant(name));
            assert_eq!(tenant_of, tenant, "{context}");
            // One that was chosen and then not sent to, for another reason, is named but has no flow.
            let chosen = said.backend.as_deref().filter(|_| reason == Reason::Allowed);
            let backend_of = chosen.map(|name| world.backend(name));
            assert_eq!(backend_of, backend, "{context}");
            *reasons.entry(reason).or_insert(0) += 1;
        }
    }
    println!("{packets} packets: {reasons:?}");
    for reason in [
        Reason::Allowed,
        Reason::NoRule,
        Reason::RuleDeny,
        Reason::Suspended,
        Reason::OutsideSchedule,
        Reason::NoCompliantBackend,
        Reason::NoHealthyBackend,
        Reason::UnknownTenant,
        Reason::Bypass,
    ] {
        assert!(
            reasons.contains_key(&reason),
            "{reason:?} never came up: {reasons:?}"
        );
    }
}
