//! What holds traffic up although the rules allow it: a lapsed lease, a used up quota, a class that is shed.

use std::time::Duration;

use enforcer_agent::pure::compile::Exhausted;
use enforcer_common::Reason;
use enforcer_common::abi::config::LeaseRecord;
use enforcer_common::decide::{TCP_ACK, TCP_FIN};
use enforcer_tests::packet::{Segment, syn, tcp};
use enforcer_tests::world::World;

use super::{from_backend, homeward, onward};
use crate::bench::{Bench, Scenario, Step, row};

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: governors}
spec:
  classes:
  - {name: bronze, shedAbove: 80%}
  - {name: gold}
  tenants:
  - {name: acme, sources: [10.1.0.0/16], class: bronze}
  - {name: globex, sources: [10.2.0.0/16], class: gold}
  - {name: initech, sources: [10.3.0.0/16], class: bronze, labels: {home: spare}}
  services:
  - {name: chat, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [main, spare], forward: Dnat}
  pools:
  - {name: main, backends: [{name: gpu-1, address: 10.9.0.1, port: 9000}]}
  - {name: spare, labels: {home: spare}, backends: [{name: gpu-2, address: 10.9.0.2, port: 9000}]}
  rules:
  - {name: all, action: Allow}
  protectedNetworks: [10.9.0.0/16]
  constraints:
  - {name: at-home, tenants: {matchLabels: {home: spare}}, requireBackend: {matchLabels: {home: spare}}}
"#;

const MAIN: &str = "10.9.0.1:9000";
const SPARE: &str = "10.9.0.2:9000";

fn client(network: u8, port: u16) -> Segment {
    syn(&format!("10.{network}.0.1:{port}"), "192.0.2.20:8000")
}

fn to(segment: &Segment, backend: &str) -> Segment {
    onward(segment, &segment.from.to_string(), backend)
}

/// One connection that is open, and what may happen to it.
struct Open {
    opening: Segment,
    data: Segment,
    fin: Segment,
    answer: Segment,
    /// The same connection by way of the host's stack.
    routed: Segment,
}

impl Open {
    fn of_acme() -> Self {
        let opening = client(1, 40_000);
        let data = opening.clone().flags(TCP_ACK);
        let answer = from_backend(to(&data, MAIN).answer());
        Self {
            fin: opening.clone().flags(TCP_FIN | TCP_ACK),
            routed: opening.answer().from(MAIN).hop_limit(63),
            opening,
            data,
            answer,
        }
    }

    fn opens(&self) -> Vec<Step> {
        vec![
            row("opened", &self.opening)
                .opens("acme", &to(&self.opening, MAIN))
                .into(),
        ]
    }

    /// It goes on, in both directions.
    fn goes_on(&self) -> Vec<Step> {
        vec![
            row("the open connection goes on", &self.data)
                .continues("acme", &to(&self.data, MAIN))
                .into(),
            row("and is answered", &self.answer)
                .replies("acme", &homeward(&self.answer, &self.opening))
                .into(),
            row("also by way of the stack", &self.routed)
                .replies("acme", &self.routed.clone().from("192.0.2.20:8000"))
                .egress()
                .into(),
        ]
    }

    /// It is refused, in both directions.
    fn stands_still(&self, reason: Reason) -> Vec<Step> {
        vec![
            row("the open connection is refused", &self.data)
                .refused("acme", reason)
                .times(2)
                .into(),
            row("its answers", &self.answer).refused("acme", reason).into(),
            row("also by way of the stack", &self.routed)
                .refused("acme", reason)
                .egress()
                .into(),
        ]
    }

    /// It has ended, and its port is used again.
    fn is_not_reopened(&self, reason: Reason) -> Vec<Step> {
        vec![
            row("it ends", &self.fin)
                .continues("acme", &to(&self.fin, MAIN))
                .into(),
            row("its port cannot be used again", &self.opening)
                .refused("acme", reason)
                .into(),
        ]
    }
}

fn set_lease(bench: &mut Bench, new_flows: Option<Duration>, everything: Option<Duration>) {
    let now_ns = bench.rig.now_ns();
    let until_ns = |term: Option<Duration>| term.map_or(0, |term| now_ns + term.as_nanos() as u64);
    let lease = LeaseRecord {
        new_flows_until_ns: until_ns(new_flows),
        everything_until_ns: until_ns(everything),
    };
    bench.rig.set_lease(&lease).unwrap();
}

const TERM: Duration = Duration::from_secs(1);
/// The last moment counts as within the lease.
const PAST_THE_END: Duration = Duration::from_nanos(1);

pub(super) fn lease_refuses_new() -> Scenario {
    let open = Open::of_acme();
    let (second, third) = (client(1, 40_001), client(1, 40_002));
    let mut steps = vec![Step::Inspect("a lease for what is new", |bench| {
        set_lease(bench, Some(TERM), None);
    })];
    steps.extend(open.opens());
    steps.push(Step::Advance(TERM));
    steps.push(
        row("at its last moment a flow is opened", &second)
            .opens("acme", &to(&second, MAIN))
            .into(),
    );
    steps.push(Step::Advance(PAST_THE_END));
    steps.push(
        row("after it, none is", &third)
            .refused("acme", Reason::LeaseExpired)
            .times(2)
            .into(),
    );
    steps.extend(open.goes_on());
    steps.push(
        row(
            "a stranger to a stranger",
            &tcp("198.51.100.1:1", "203.0.113.1:443"),
        )
        .into(),
    );
    steps.push(
        row(
            "what no lease would let pass",
            &syn("198.51.100.1:1", "192.0.2.20:8000"),
        )
        .refused("", Reason::UnknownTenant)
        .into(),
    );
    steps.extend(open.is_not_reopened(Reason::LeaseExpired));
    steps.push(Step::Inspect("the agent is back", |bench| {
        set_lease(bench, Some(TERM), None);
    }));
    steps.push(row("opened", &third).opens("acme", &to(&third, MAIN)).into());
    steps.push(Step::Advance(TERM + PAST_THE_END));
    steps.push(Step::Inspect("its policy says to hold", |bench| {
        set_lease(bench, None, None);
    }));
    steps.push(
        row("opened", &open.opening)
            .opens("acme", &to(&open.opening, MAIN))
            .into(),
    );
    Scenario::of(POLICY, steps)
}

pub(super) fn lease_refuses_everything() -> Scenario {
    let open = Open::of_acme();
    let mut steps = vec![Step::Inspect("a lease for everything", |bench| {
        set_lease(bench, Some(TERM), Some(TERM));
    })];
    steps.extend(open.opens());
    steps.push(Step::Advance(TERM));
    steps.extend(open.goes_on());
    steps.push(Step::Advance(PAST_THE_END));
    steps.extend(open.stands_still(Reason::LeaseExpired));
    steps.push(
        row("a new one too", &client(1, 40_001))
            .refused("acme", Reason::LeaseExpired)
            .into(),
    );
    steps.push(
        row(
            "a stranger to a stranger",
            &tcp("198.51.100.1:1", "203.0.113.1:443"),
        )
        .into(),
    );
    steps.push(row("SSH to elsewhere", &tcp("10.1.0.1:5000", "203.0.113.1:22")).into());
    steps.push(
        row("around the service", &tcp("10.1.0.1:40000", MAIN))
            .refused("", Reason::Bypass)
            .into(),
    );
    steps.push(Step::Inspect("the agent is back", |bench| {
        set_lease(bench, Some(TERM), Some(TERM));
    }));
    steps.extend(open.goes_on());
    Scenario::of(POLICY, steps)
}

pub(super) fn quotas() -> Scenario {
    let open = Open::of_acme();
    let (second, other) = (client(1, 40_001), client(2, 40_000));
    let mut steps = open.opens();
    steps.push(Step::Change("its connections are used up", |world| {
        world.exhausted.insert("acme".to_owned(), Exhausted::NewFlows);
    }));
    steps.push(row("no new one", &second).refused("acme", Reason::Quota).into());
    steps.extend(open.goes_on());
    steps.push(
        row("another tenant's", &other)
            .opens("globex", &to(&other, MAIN))
            .into(),
    );
    steps.push(Step::Change("its bytes are used up", |world| {
        world.exhausted.insert("acme".to_owned(), Exhausted::Everything);
    }));
    steps.extend(open.stands_still(Reason::Quota));
    steps.push(row("no new one", &second).refused("acme", Reason::Quota).into());
    steps.push(Step::Change("and suspended", |world| {
        world.suspended.insert("acme".to_owned());
    }));
    steps.push(
        row("says the operator", &second)
            .refused("acme", Reason::Suspended)
            .into(),
    );
    steps.push(Step::Change("a new window", |world| {
        world.suspended.clear();
        world.exhausted.clear();
    }));
    steps.extend(open.goes_on());
    steps.push(row("opened", &second).opens("acme", &to(&second, MAIN)).into());
    steps.push(Step::Change("its connections are used up", |world| {
        world.exhausted.insert("acme".to_owned(), Exhausted::NewFlows);
    }));
    steps.extend(open.is_not_reopened(Reason::Quota));
    Scenario::of(POLICY, steps)
}

fn shed(world: &mut World, pool: &str, sheds: bool) {
    let classes = world.shed.entry(pool.to_owned()).or_default();
    classes.clear();
    if sheds {
        classes.insert("bronze".to_owned());
    }
}

pub(super) fn shedding() -> Scenario {
    let open = Open::of_acme();
    let (second, third) = (client(1, 40_001), client(1, 40_002));
    let (gold, at_home) = (client(2, 40_000), client(3, 40_000));
    let mut steps = open.opens();
    steps.push(Step::Change("the pool runs hot", |world| {
        shed(world, "main", true);
    }));
    steps.push(
        row("a bronze tenant's new connection", &second)
            .refused("acme", Reason::Shed)
            .times(2)
            .into(),
    );
    steps.extend(open.goes_on());
    steps.push(
        row("a gold one's", &gold)
            .opens("globex", &to(&gold, MAIN))
            .into(),
    );
    steps.push(
        row("a bronze one's whose connections go to another pool", &at_home)
            .opens("initech", &to(&at_home, SPARE))
            .into(),
    );
    steps.push(Step::Change(
        "its back end drains, so that the other pool takes over",
        |world| {
            world.set_backend("gpu-1", |status| status.draining = true);
        },
    ));
    steps.push(
        row("opened there", &second)
            .opens("acme", &to(&second, SPARE))
            .into(),
    );
    steps.push(Step::Change("that one runs hot too", |world| {
        shed(world, "spare", true);
    }));
    steps.push(row("refused there", &third).refused("acme", Reason::Shed).into());
    steps.extend(open.is_not_reopened(Reason::Shed));
    steps.push(Step::Change("it has cooled down", |world| {
        shed(world, "spare", false);
    }));
    steps.push(row("opened", &third).opens("acme", &to(&third, SPARE)).into());
    Scenario::of(POLICY, steps)
}

/// A share is put into force in the live bank: no flow is judged anew, and what was paid stays paid.
pub(super) fn sharing() -> Scenario {
    let open = Open::of_acme();
    let (second, third, fourth) = (client(1, 40_001), client(1, 40_002), client(1, 40_003));
    let gold = client(2, 40_000);
    let mut steps = open.opens();
    steps.push(Step::Inspect("the pool is contended", |bench| {
        let generation = bench.generation();
        bench.world.fair_rates.insert("acme".to_owned(), 1);
        assert!(bench.apply().in_place);
        assert_eq!(bench.generation(), generation);
    }));
    steps.push(
        row("one a second", &second)
            .opens("acme", &to(&second, MAIN))
            .into(),
    );
    steps.push(
        row("one too many", &third)
            .refused("acme", Reason::FairShare)
            .times(2)
            .into(),
    );
    steps.extend(open.goes_on());
    steps.push(
        row("others are not held", &gold)
            .opens("globex", &to(&gold, MAIN))
            .into(),
    );
    steps.push(Step::Advance(Duration::from_secs(1)));
    steps.push(
        row("another second", &third)
            .opens("acme", &to(&third, MAIN))
            .into(),
    );
    steps.push(Step::Inspect("the pool has cooled down", |bench| {
        bench.world.fair_rates.clear();
        assert!(bench.apply().in_place);
    }));
    steps.push(
        row("nobody is held", &fourth)
            .opens("acme", &to(&fourth, MAIN))
            .into(),
    );
    Scenario::of(POLICY, steps)
}

#[test]
fn a_contended_pool_is_shared() {
    sharing().run();
}

#[test]
fn a_lapsed_lease_refuses_what_is_new() {
    lease_refuses_new().run();
}

#[test]
fn a_lapsed_lease_refuses_everything() {
    lease_refuses_everything().run();
}

#[test]
fn a_used_up_quota_refuses_what_it_counts() {
    quotas().run();
}

#[test]
fn a_hot_pool_sheds_a_class() {
    shedding().run();
}
