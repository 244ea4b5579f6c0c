//! Policy changes under traffic: open connections obey, counters and limiters survive.

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::{tenant_connections, tenant_holder};
use enforcer_tests::packet::{Segment, syn};

use super::{from_backend, homeward, onward};
use crate::bench::{Scenario, Step, row};

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: generations}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16], limits: {packetsPerSecond: 10, burst: 1s}}
  - {name: globex, sources: [10.2.0.0/16], limits: {packetsPerSecond: 10, burst: 1s}}
  services:
  - {name: chat, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [main, spare], forward: Dnat}
  pools:
  - {name: main, backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}]}
  - {name: spare, backends: [{name: gpu-2, address: 10.9.0.2, port: 9000}]}
  rules:
  - {name: all, action: Allow}
  - {name: later, action: Deny, priority: 5, tenants: {matchNames: [acme]}, mode: Shadow}
"#;

fn client(network: u8, port: u16) -> Segment {
    syn(&format!("10.{network}.0.1:{port}"), "192.0.2.20:8000")
}

fn to(segment: &Segment, backend: &str) -> Segment {
    onward(segment, &segment.from.to_string(), backend)
}

const MAIN: &str = "10.9.0.1:9000";
const SPARE: &str = "10.9.0.2:9000";

/// A rule that is changed hits the connections that are open, both ways.
pub(super) fn rules() -> Scenario {
    let flow = client(1, 40_000);
    let data = flow.clone().flags(TCP_ACK);
    let answer = from_backend(to(&data, MAIN).answer());
    let other = client(2, 40_000);
    let deny = |world: &mut enforcer_tests::world::World| {
        world
            .set_policy(&POLICY.replace(", mode: Shadow", ""))
            .expect("a good policy");
    };
    let allow = |world: &mut enforcer_tests::world::World| {
        world.set_policy(POLICY).expect("a good policy");
    };
    let steps = vec![
        row("opened while the deny is a shadow", &flow)
            .opens("acme", &to(&flow, MAIN))
            .into(),
        row("opened", &other).opens("globex", &to(&other, MAIN)).into(),
        row("answered", &answer)
            .replies("acme", &homeward(&answer, &flow))
            .into(),
        Step::Change("the shadow is enforced", deny),
        row("the open connection is refused", &data)
            .refused("acme", Reason::RuleDeny)
            .times(2)
            .into(),
        row("and its answers", &answer)
            .refused("acme", Reason::RuleDeny)
            .into(),
        row("another tenant's connection goes on", &other)
            .continues("globex", &to(&other, MAIN))
            .into(),
        Step::Change("the deny is a shadow again", allow),
        row("the connection goes on", &data)
            .continues("acme", &to(&data, MAIN))
            .into(),
        row("and its answers", &answer)
            .replies("acme", &homeward(&answer, &flow))
            .into(),
    ];
    Scenario::of(POLICY, steps)
}

/// Back ends that drain keep what they have; back ends that fail lose it.
pub(super) fn back_ends() -> Scenario {
    let flow = client(1, 40_000);
    let data = flow.clone().flags(TCP_ACK);
    let second = client(1, 40_001);
    let third = client(1, 40_002);
    let answer = from_backend(to(&data, MAIN).answer());
    let moved_answer = from_backend(to(&data, SPARE).answer());
    let steps = vec![
        row("opened", &flow).opens("acme", &to(&flow, MAIN)).into(),
        Step::Change("gpu-1 drains", |world| {
            world.set_backend("gpu-1", |status| status.draining = true);
        }),
        row("it keeps its connection", &data)
            .continues("acme", &to(&data, MAIN))
            .into(),
        row("and gets no new one", &second)
            .opens("acme", &to(&second, SPARE))
            .into(),
        Step::Change("gpu-1 fails", |world| {
            world.set_backend("gpu-1", |status| status.healthy = false);
        }),
        row("its connection moves", &data)
            .moves("acme", &to(&data, SPARE))
            .into(),
        row("and stays there", &data)
            .continues("acme", &to(&data, SPARE))
            .into(),
        row("the failed back end's late answer is nobody's", &answer).into(),
        row("the new one's counts", &moved_answer)
            .replies("acme", &homeward(&moved_answer, &flow))
            .into(),
        Step::Inspect("the counts moved with it", |bench| {
            use enforcer_common::schema::backend_connections;
            let (one, two) = (bench.world.backend("gpu-1"), bench.world.backend("gpu-2"));
            let maps = &bench.rig.dataplane().maps;
            assert_eq!(maps.open_connections(backend_connections(one)).unwrap(), 0);
            assert_eq!(maps.open_connections(backend_connections(two)).unwrap(), 2);
        }),
        Step::Change("gpu-1 is back", |world| {
            world.set_backend("gpu-1", |status| {
                status.healthy = true;
                status.draining = false;
            });
        }),
        row("what moved stays", &data)
            .continues("acme", &to(&data, SPARE))
            .into(),
        row("new connections prefer the first pool", &third)
            .opens("acme", &to(&third, MAIN))
            .into(),
        Step::Change("the way to gpu-1 is lost", |world| {
            world.set_backend("gpu-1", |status| status.next_hop = None);
        }),
        row("its connections wait", &third)
            .refused("acme", Reason::NoNextHop)
            .into(),
        Step::Change("both fail", |world| {
            world.set_backend("gpu-1", |status| status.healthy = false);
            world.set_backend("gpu-2", |status| status.healthy = false);
        }),
        row("nothing is left", &data)
            .refused("acme", Reason::NoHealthyBackend)
            .into(),
    ];
    Scenario::of(POLICY, steps)
}

/// Neither the tenant that is edited nor its neighbour gets a full bucket.
pub(super) fn limiters() -> Scenario {
    let flow = client(1, 40_000);
    let data = flow.clone().flags(TCP_ACK);
    let other = client(2, 40_000);
    let other_data = other.clone().flags(TCP_ACK);
    let steps = vec![
        row("opened", &flow).opens("acme", &to(&flow, MAIN)).into(),
        row("used", &data)
            .continues("acme", &to(&data, MAIN))
            .times(9)
            .into(),
        row("over", &data).refused("acme", Reason::PacketRate).into(),
        row("opened", &other).opens("globex", &to(&other, MAIN)).into(),
        row("used", &other_data)
            .continues("globex", &to(&other_data, MAIN))
            .times(4)
            .into(),
        Step::Change(
            "acme gets another limit on bytes, and a tenant before it in the alphabet arrives",
            |world| {
                let edited = POLICY
                    .replace(
                        "sources: [10.1.0.0/16], limits: {",
                        "sources: [10.1.0.0/16], limits: {bytesPerSecond: 1M, ",
                    )
                    .replace(
                        "tenants:\n",
                        "tenants:\n  - {name: aaron, sources: [10.7.0.0/16]}\n",
                    );
                world.set_policy(&edited).expect("a good policy");
            },
        ),
        row("acme is over as before", &data)
            .refused("acme", Reason::PacketRate)
            .into(),
        row("globex has five left", &other_data)
            .continues("globex", &to(&other_data, MAIN))
            .times(5)
            .into(),
        row("and not six", &other_data)
            .refused("globex", Reason::PacketRate)
            .into(),
        Step::Inspect("the words are those of ten packets each", |bench| {
            let now_ns = bench.rig.now_ns();
            for tenant in ["acme", "globex"] {
                let slot = bench.world.tenant(tenant);
                let due_ns = bench
                    .rig
                    .dataplane()
                    .maps
                    .limiter(tenant_holder(slot), Limiter::Packets)
                    .unwrap();
                assert_eq!(due_ns, now_ns + 1_000_000_000, "{tenant}");
            }
        }),
        Step::Inspect("a weight is changed in place", |bench| {
            let before = bench.generation();
            bench.world.set_backend("gpu-1", |status| status.weight /= 2);
            let installed = bench.apply();
            assert!(installed.in_place, "{installed:?}");
            assert_eq!((installed.generation, bench.generation()), (before, before));
        }),
        row("and refills nothing either", &data)
            .refused("acme", Reason::PacketRate)
            .into(),
    ];
    Scenario::of(POLICY, steps)
}

/// Suspended, resumed, and a source that changes hands.
pub(super) fn tenants() -> Scenario {
    let flow = client(1, 40_000);
    let data = flow.clone().flags(TCP_ACK);
    let answer = from_backend(to(&data, MAIN).answer());
    let steps = vec![
        row("opened", &flow).opens("acme", &to(&flow, MAIN)).into(),
        Step::Change("acme is suspended", |world| {
            world.suspended.insert("acme".to_owned());
        }),
        row("its open connection is refused", &data)
            .refused("acme", Reason::Suspended)
            .times(2)
            .into(),
        row("and its answers", &answer)
            .refused("acme", Reason::Suspended)
            .into(),
        Step::Change("acme is resumed", |world| world.suspended.clear()),
        row("it goes on", &data)
            .continues("acme", &to(&data, MAIN))
            .into(),
        Step::Change("its source is given to globex", |world| {
            let edited = POLICY
                .replace("10.1.0.0/16", "10.8.0.0/16")
                .replace("10.2.0.0/16", "10.1.0.0/16");
            world.set_policy(&edited).expect("a good policy");
        }),
        row("the connection is globex's now", &data)
            .continues("globex", &to(&data, MAIN))
            .into(),
        row("and so are its answers", &answer)
            .replies("globex", &homeward(&answer, &flow))
            .into(),
        Step::Inspect("the connection is counted with its new tenant", |bench| {
            let [acme, globex] = ["acme", "globex"].map(|name| tenant_connections(bench.world.tenant(name)));
            let maps = &bench.rig.dataplane().maps;
            assert_eq!(maps.open_connections(acme).unwrap(), 0);
            assert_eq!(maps.open_connections(globex).unwrap(), 1);
        }),
        Step::Change("the source is nobody's", |world| {
            let edited = POLICY.replace("10.1.0.0/16", "10.8.0.0/16");
            world.set_policy(&edited).expect("a good policy");
        }),
        row("the connection is refused", &data)
            .refused("", Reason::UnknownTenant)
            .into(),
    ];
    Scenario::of(POLICY, steps)
}

#[test]
fn a_rule_that_changes_hits_open_connections() {
    rules().run();
}

#[test]
fn connections_follow_their_back_ends() {
    back_ends().run();
}

#[test]
fn limiters_survive_a_change_of_policy() {
    limiters().run();
}

#[test]
fn connections_follow_their_tenants() {
    tenants().run();
}
