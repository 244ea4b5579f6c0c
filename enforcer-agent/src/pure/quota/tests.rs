use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::pure::policy;

fn policy_of(quotas: &str) -> ResolvedPolicy {
    let text = format!(
        "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {{name: quotas}}\nspec:\n  tenants:\n\
         {quotas}  services:\n  \
         - {{name: chat, addresses: [192.0.2.10], port: 8000, protocol: TCP, pools: [eu], forward: Nat}}\n  pools:\n  \
         - {{name: eu, backends: [{{name: gpu-1, address: 10.9.0.1, port: 8000}}]}}\n  rules:\n  \
         - {{name: all, action: Allow}}\n"
    );
    policy::load("quotas.yaml", &text)
        .into_result()
        .expect("a good policy")
}

const HOURLY: &str = "  - {name: acme, sources: [10.1.0.0/16], quotas: [\
                      {metric: connections, limit: 10, per: 1d}, {metric: requestBytes, limit: 1000, per: 1h}]}\n";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// A book and the kernel's counters of one tenant.
struct Run {
    policy: ResolvedPolicy,
    book: Book,
    slot: u32,
    counters: Counters,
    identity: String,
    now: Timestamp,
}

impl Run {
    fn begin(quotas: &str, now: &str) -> Self {
        let mut run = Self {
            policy: policy_of(quotas),
            book: Book::default(),
            slot: 3,
            counters: Counters {
                connections: 1_000_000,
                request_bytes: 2_000_000,
                response_bytes: 3_000_000,
            },
            identity: "boot 1".to_owned(),
            now: at(now),
        };
        run.book.begin(&run.identity);
        assert_eq!(run.look(), [], "what was counted before is nobody's");
        run
    }

    fn look(&mut self) -> Vec<(QuotaMetric, u64, bool, bool)> {
        let counters = BTreeMap::from([("acme", (self.slot, self.counters))]);
        let changes = self.book.look(&self.policy, &counters, self.now);
        changes
            .into_iter()
            .map(|change| {
                (
                    change.usage.metric,
                    change.usage.used,
                    change.usage.exhausted,
                    change.renewed,
                )
            })
            .collect()
    }

    /// Connections and request bytes.
    fn uses(&mut self, connections: u64, bytes: u64) {
        self.counters.connections += connections;
        self.counters.request_bytes += bytes;
    }

    fn passes(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn used(&self) -> Vec<u64> {
        let quotas = &self.policy.tenants[0].quotas;
        self.book
            .statuses("acme", quotas)
            .map(|status| status.usage.used)
            .collect()
    }

    /// Another agent, which knows what was written down.
    fn restart(&mut self) {
        let text = serde_json::to_string(&self.book).unwrap();
        self.book = serde_json::from_str(&text).unwrap();
        self.book.begin(&self.identity);
    }

    fn exhausted(&self) -> Option<Exhausted> {
        self.book.exhausted(&self.policy).get("acme").copied()
    }
}

#[test]
fn usage_grows_with_the_counters_until_it_is_used_up_and_begins_anew() {
    let mut run = Run::begin(HOURLY, "2026-01-15T10:30:00Z");
    run.uses(9, 999);
    run.passes(1);
    assert_eq!(
        (run.look(), run.used(), run.exhausted()),
        (vec![], vec![9, 999], None)
    );
    run.uses(0, 1);
    run.passes(1);
    assert_eq!(run.look(), [(QuotaMetric::RequestBytes, 1000, true, false)]);
    assert_eq!(run.exhausted(), Some(Exhausted::Everything));
    run.uses(5, 0);
    run.passes(1);
    assert_eq!(run.look(), [(QuotaMetric::Connections, 14, true, false)]);
    assert_eq!(run.exhausted(), Some(Exhausted::Everything), "the stronger one");
    // The hour ends, the day does not.
    run.now = at("2026-01-15T11:00:00Z");
    assert_eq!(run.look(), [(QuotaMetric::RequestBytes, 0, false, true)]);
    assert_eq!(run.exhausted(), Some(Exhausted::NewFlows));
    run.now = at("2026-01-16T00:00:00Z");
    assert_eq!(run.look(), [(QuotaMetric::Connections, 0, false, true)]);
    assert_eq!(run.exhausted(), None);
}

#[test]
fn usage_survives_restarts_reboots_and_other_policies() {
    let mut run = Run::begin(HOURLY, "2026-01-15T10:30:00Z");
    run.uses(3, 100);
    run.passes(1);
    run.look();
    // What passes while there is no agent counts.
    run.uses(2, 200);
    run.restart();
    run.passes(60);
    run.look();
    assert_eq!(run.used(), [5, 300]);
    // The counters of the next boot begin at zero.
    (run.identity, run.counters) = ("boot 2".to_owned(), Counters::default());
    run.restart();
    run.uses(1, 50);
    run.passes(60);
    run.look();
    assert_eq!(run.used(), [6, 350]);
    // A policy without quotas, and back: in another slot, whose counters are another tenant's.
    let policy = std::mem::replace(
        &mut run.policy,
        policy_of("  - {name: acme, sources: [10.1.0.0/16]}\n"),
    );
    run.uses(1, 50);
    run.passes(1);
    run.look();
    run.policy = policy;
    run.slot = 9;
    run.uses(70, 7000);
    run.passes(1);
    run.look();
    assert_eq!(run.used(), [6, 350]);
    run.uses(1, 10);
    run.passes(1);
    run.look();
    assert_eq!(run.used(), [7, 360]);
    // A slot that is known before anything passes loses nothing.
    run.slot = 10;
    assert!(!run.book.is_open("acme", 10));
    run.book.open("acme", 10, run.counters);
    assert!(run.book.is_open("acme", 10));
    run.uses(1, 10);
    run.passes(1);
    run.look();
    assert_eq!(run.used(), [8, 370]);
}

#[test]
fn a_growth_over_a_boundary_is_shared_out_by_time() {
    let mut run = Run::begin(HOURLY, "2026-01-15T10:59:57Z");
    run.uses(4, 400);
    run.passes(4);
    run.look();
    assert_eq!(run.used(), [4, 100], "a quarter of the time lies in the new hour");
    // An agent that was away for days does not charge it all to today.
    run.uses(0, 9600);
    run.now = at("2026-01-18T11:00:01Z");
    run.look();
    assert_eq!(run.used()[1], 0);
}

#[test]
fn a_clock_that_is_set_back_gives_nothing_back() {
    let mut run = Run::begin(HOURLY, "2026-01-15T11:00:00Z");
    run.uses(0, 600);
    run.passes(1);
    run.look();
    run.now = at("2026-01-15T10:10:00Z");
    run.uses(0, 100);
    run.look();
    assert_eq!(run.used()[1], 700);
    // It never gets stuck in a future that a wrong clock made.
    run.now = at("2026-01-15T11:00:01Z");
    run.look();
    assert!(run.used()[1] < 700);
}

#[test]
fn connections_that_a_policy_gives_to_another_tenant_give_nothing_back() {
    let mut run = Run::begin(HOURLY, "2026-01-15T10:30:00Z");
    run.uses(5, 0);
    run.passes(1);
    run.look();
    run.counters.connections -= 4;
    run.passes(1);
    run.look();
    assert_eq!(run.used()[0], 5);
    run.uses(2, 0);
    run.passes(1);
    run.look();
    assert_eq!(run.used()[0], 7);
}

#[test]
fn another_limit_holds_at_once_and_is_recorded_with_the_next_look() {
    let mut run = Run::begin(HOURLY, "2026-01-15T10:30:00Z");
    run.uses(0, 600);
    run.passes(1);
    run.look();
    run.policy = policy_of(&HOURLY.replace("limit: 1000", "limit: 500"));
    assert_eq!(run.exhausted(), Some(Exhausted::Everything));
    run.passes(1);
    assert_eq!(run.look(), [(QuotaMetric::RequestBytes, 600, true, false)]);
    run.policy = policy_of(HOURLY);
    assert_eq!(run.exhausted(), None);
    run.passes(1);
    assert_eq!(run.look(), [(QuotaMetric::RequestBytes, 600, false, false)]);
}

#[test]
fn what_nobody_asks_for_is_forgotten_when_its_window_ends() {
    let mut run = Run::begin(HOURLY, "2026-01-15T10:30:00Z");
    run.policy = policy_of("  - {name: other, sources: [10.1.0.0/16]}\n");
    run.passes(1);
    run.look();
    assert_eq!(run.book.tenants.len(), 1);
    run.now = at("2026-01-16T00:00:00Z");
    run.look();
    assert!(run.book.tenants.is_empty());
}

proptest! {
    /// Within one window nothing is lost and nothing is counted twice, whatever restarts and reboots happen.
    #[test]
    fn usage_is_what_passed(
        steps in proptest::collection::vec((0u64..5, 0u64..1_000_000, 0u8..8), 0..60),
    ) {
        let mut run = Run::begin(HOURLY, "2026-01-15T10:00:00Z");
        let (mut connections, mut bytes) = (0, 0);
        for (opened, sent, event) in steps {
            run.passes(1);
            match event {
                0 => run.restart(),
                1 => {
                    run.identity.push('.');
                    run.counters = Counters::default();
                    run.restart();
                }
                _ => {}
            }
            run.uses(opened, sent);
            connections += opened;
            bytes += sent;
            let before = run.used();
            run.look();
            prop_assert_eq!(run.used(), vec![connections, bytes]);
            prop_assert!(run.used().iter().zip(&before).all(|(now, before)| now >= before));
            let wanted = match (bytes >= 1000, connections >= 10) {
                (true, _) => Some(Exhausted::Everything),
                (false, true) => Some(Exhausted::NewFlows),
                (false, false) => None,
            };
            prop_assert_eq!(run.exhausted(), wanted);
        }
    }
}
