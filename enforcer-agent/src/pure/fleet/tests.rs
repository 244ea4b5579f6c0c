use enforcer_common::decide::Facts as _;
use enforcer_common::schema::MAGLEV_SLOTS;

use super::*;
use crate::pure::compile::{self, HostFacts, Inputs, Slots};
use crate::pure::heat::COOLING_HOLD_NS;
use crate::pure::policy;
use crate::pure::policy::selection::Selection;
use crate::pure::snapshot::Snapshot;
use crate::pure::telemetry::EngineKind;

const SECOND_NS: u64 = 1_000_000_000;

/// Two pools; `gpu-1` has three times the capacity of `gpu-2`, and `gpu-3` is alone.
const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: fleet}
spec:
  classes: [{name: bronze, shedAbove: 80%}, {name: gold}]
  tenants:
  - {name: acme, sources: [10.1.0.0/16], class: bronze}
  - {name: bound, sources: [10.2.0.0/16], class: gold, labels: {data: eu}}
  services:
  - {name: chat, addresses: [192.0.2.10], port: 8000, protocol: TCP, pools: [eu, us], forward: Nat}
  pools:
  - name: eu
    labels: {region: eu}
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 8000, capacity: 300, telemetry: {engine: "http://10.9.0.1:8000/metrics"}}
    - {name: gpu-2, address: 10.9.0.2, port: 8000, capacity: 100}
    failover: {healthyBelow: 50%, utilizationAbove: 90%}
  - {name: us, labels: {region: us}, backends: [{name: gpu-3, address: 10.9.0.3, port: 8000, capacity: 100}]}
  rules: [{name: all, action: Allow}]
  constraints:
  - {name: at-home, tenants: {matchLabels: {data: eu}}, requireBackend: {matchLabels: {region: eu}}}
"#;

struct Run {
    policy: ResolvedPolicy,
    fleet: Fleet,
    now_ns: u64,
}

impl Run {
    fn begin() -> Self {
        let policy = policy::load("fleet.yaml", POLICY)
            .into_result()
            .expect("a good policy");
        let mut fleet = Fleet::default();
        fleet.follow(None, &policy, &BTreeSet::new());
        Self {
            policy,
            fleet,
            now_ns: 0,
        }
    }

    /// Seconds with these connections in flight; `None` is not known.
    fn seconds(&mut self, seconds: u64, connections: [Option<u64>; 3]) {
        let names = ["gpu-1", "gpu-2", "gpu-3"];
        let known = names.into_iter().zip(connections);
        let connections: BTreeMap<String, u64> = known
            .filter_map(|(name, count)| Some((name.to_owned(), count?)))
            .collect();
        for _ in 0..seconds {
            self.now_ns += SECOND_NS;
            self.fleet.fold(self.now_ns, &connections);
        }
    }

    fn utilizations(&self) -> [Option<u16>; 2] {
        ["eu", "us"].map(|pool| self.fleet.utilization_per_mille(pool))
    }

    /// (class, whether it is shed now) of pool `eu`, where that changed.
    fn shedding(&mut self) -> Vec<(String, bool)> {
        let changes = self.fleet.judge_shedding(&self.policy, self.now_ns);
        changes
            .into_iter()
            .inspect(|change| assert_eq!((change.pool.as_str(), change.above_percent), ("eu", 80)))
            .map(|change| (change.class, change.sheds))
            .collect()
    }

    /// Which pool takes a tenant's new flows, by the tables that follow.
    fn taker(&self, tenant: &str) -> String {
        let compiled = compile::compile(&Inputs {
            policy: &self.policy,
            slots: &Slots::default(),
            host: &HostFacts {
                nat_v4: Some([10, 9, 0, 250].into()),
                ..HostFacts::default()
            },
            backends: &self.fleet.statuses(),
            failed_pools: &self.fleet.failed_pools(),
            suspended: &BTreeSet::new(),
            closed_rules: &Selection::default(),
            exhausted: &BTreeMap::new(),
            shed: &self.fleet.shed(),
            fair_rates: &BTreeMap::new(),
        })
        .expect("a policy that fits");
        let snapshot = Snapshot {
            tables: compiled.tables,
            ..Snapshot::default()
        };
        let (slot, _) = compiled
            .directory
            .tenants
            .iter()
            .find(|(_, name)| *name == tenant)
            .unwrap();
        let (service, _) = compiled.directory.services.iter().next().unwrap();
        let row = snapshot.tenant(0, *slot).unwrap().row;
        let set = snapshot.cell(0, row, *service).unwrap().set;
        let mut pools: BTreeSet<&str> = BTreeSet::new();
        for slot in 0..MAGLEV_SLOTS {
            let backend = snapshot.maglev(0, set.into(), slot);
            pools.insert(&compiled.directory.backends[&u32::from(backend)].pool);
        }
        assert_eq!(pools.len(), 1, "{pools:?}");
        pools.into_iter().map(str::to_owned).collect()
    }
}

#[test]
fn a_pool_is_used_as_much_as_its_back_ends_by_capacity() {
    let mut run = Run::begin();
    assert_eq!(run.utilizations(), [None, None], "nothing was looked at yet");
    // 300 and 0 of 400; 50 of 100.
    run.seconds(1, [Some(300), Some(0), Some(50)]);
    assert_eq!(run.utilizations(), [Some(750), Some(500)]);
    run.fleet.drain("gpu-1", true);
    run.seconds(60, [Some(300), Some(100), Some(200)]);
    assert_eq!(
        run.utilizations(),
        [Some(1000), Some(1000)],
        "one that drains does not count"
    );
    let mut run = Run::begin();
    run.seconds(1, [Some(150), None, None]);
    assert_eq!(
        run.utilizations(),
        [Some(500), None],
        "nothing known is not nothing used"
    );
    for _ in 0..3 {
        run.fleet.probed("gpu-1", false);
    }
    assert_eq!(
        run.utilizations(),
        [None, None],
        "nobody serves of whom anything is known"
    );
}

#[test]
fn silent_telemetry_falls_back_on_connections_and_never_on_nothing() {
    let mut run = Run::begin();
    let full = EngineSample {
        engine: EngineKind::Vllm,
        running: Some(8.0),
        waiting: Some(900.0),
        kv_cache_ratio: Some(0.5),
        gpu_utilization_ratio: None,
    };
    run.fleet.engine_said("gpu-1", Reading::Fresh(full));
    run.seconds(1, [Some(0), Some(0), Some(0)]);
    assert_eq!(run.utilizations()[0], Some(750));
    for _ in 0..30 {
        run.fleet.engine_said("gpu-1", Reading::Missed);
        run.seconds(2, [Some(0), Some(0), Some(0)]);
    }
    // Half of three quarters.
    let used = run.utilizations()[0].unwrap();
    assert!(
        (375..380).contains(&used),
        "{used}: half of the capacity of three quarters of the pool"
    );
    run.seconds(60, [Some(300), Some(0), Some(0)]);
    assert_eq!(run.utilizations()[0], Some(750));
}

#[test]
fn a_class_is_shed_while_its_pool_is_hot() {
    let mut run = Run::begin();
    run.seconds(1, [Some(240), Some(80), Some(0)]);
    assert_eq!(run.shedding(), [], "80% is not above 80%");
    run.seconds(30, [Some(255), Some(85), Some(0)]);
    assert_eq!(run.shedding(), [("bronze".to_owned(), true)]);
    assert_eq!(run.shedding(), []);
    let sheds = BTreeMap::from([("eu".to_owned(), BTreeSet::from(["bronze".to_owned()]))]);
    assert_eq!(run.fleet.shed(), sheds);
    run.seconds(60, [Some(230), Some(77), Some(0)]);
    assert_eq!(
        (run.shedding(), run.fleet.shed()),
        (vec![], sheds),
        "within the hysteresis"
    );
    run.seconds(60, [Some(150), Some(50), Some(0)]);
    assert_eq!(run.shedding(), [], "the hold begins");
    run.now_ns += COOLING_HOLD_NS;
    assert_eq!(run.shedding(), [("bronze".to_owned(), false)]);
    assert_eq!(run.fleet.shed(), BTreeMap::new());
}

/// Another pool takes over, but never for a tenant whose constraints forbid it.
#[test]
fn a_hot_pool_fails_over_to_compliant_pools_only() {
    let mut run = Run::begin();
    run.seconds(1, [Some(150), Some(50), Some(0)]);
    assert_eq!(run.fleet.judge_pools(&run.policy, run.now_ns), []);
    assert_eq!(
        (run.taker("acme"), run.taker("bound")),
        ("eu".to_owned(), "eu".to_owned())
    );
    run.seconds(60, [Some(300), Some(100), Some(0)]);
    let changes = run.fleet.judge_pools(&run.policy, run.now_ns);
    assert_eq!(changes.len(), 1);
    let (pool, change) = &changes[0];
    assert!(pool == "eu" && change.failed && change.by_utilization && !change.unfit);
    assert_eq!(change.look.utilization_per_mille, Some(1000));
    assert_eq!(
        (run.taker("acme"), run.taker("bound")),
        ("us".to_owned(), "eu".to_owned())
    );
    // If no other pool can, the hot one is better than nothing.
    run.fleet.drain("gpu-3", true);
    assert_eq!(run.taker("acme"), "eu");
}
