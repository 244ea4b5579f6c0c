//! What a policy means, and what it does not: the form and order of the text are nothing, every field is something.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use enforcer_agent::pure::compile::compile;
use enforcer_agent::pure::diff::diff;
use enforcer_agent::pure::neutral::Neutral;
use enforcer_agent::pure::policy::schema::schema;
use enforcer_agent::pure::policy::{ResolvedPolicy, load};
use enforcer_agent::pure::tables::Tables;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A policy that says everything that can be said.
fn spec() -> Value {
    json!({
        "defaults": {"action": "Deny", "onLeaseExpiry": "RefuseNew", "leaseSeconds": 60},
        "classes": [{"name": "bronze", "shedAbove": "85%"}, {"name": "gold", "weight": 8}],
        "tenants": [
            {"name": "acme", "sources": ["10.1.0.0/16", "10.4.0.0/16", "2001:db8:1::/48"],
             "labels": {"data": "eu", "plan": "paid"}, "class": "gold",
             "guaranteed": {"newConnectionsPerSecond": 10}},
            {"name": "globex", "sources": ["10.2.0.0/16"], "labels": {"plan": "paid", "team": "one"},
             "limits": {"newConnectionsPerSecond": 50, "packetsPerSecond": "200k", "bytesPerSecond": "50Mi",
                        "responseBytesPerSecond": "20Mi", "concurrentConnections": 400, "burst": "2s"},
             "quotas": [{"metric": "responseBytes", "limit": "20Gi", "per": "1d", "timeZone": "Europe/Berlin"},
                        {"metric": "connections", "limit": 1000, "per": "1h"}]},
            {"name": "initech", "sources": ["10.3.0.0/16", "10.1.9.0/24"], "labels": {"plan": "trial"}, "class": "bronze"},
        ],
        "services": [
            {"name": "chat", "addresses": ["192.0.2.10", "192.0.2.11", "2001:db8::10"], "port": 8000, "protocol": "TCP",
             "labels": {"model": "llama", "tier": "gold"}, "pools": ["h100-eu", "h100-us"], "forward": "Nat",
             "onRefusal": "Reset", "limits": {"packetsPerSecond": "900k"}},
            {"name": "embed", "addresses": ["192.0.2.12"], "port": "8001-8003", "protocol": "TCP",
             "labels": {"model": "bge"}, "pools": ["h100-us"], "forward": "Dnat", "answerEcho": true},
            {"name": "stream", "addresses": ["192.0.2.14"], "port": "8100-8102", "protocol": "TCP",
             "pools": ["h100-us"], "forward": "Ipip", "onTableFull": "Forward", "onIneligible": "Reset"},
        ],
        "pools": [
            {"name": "h100-eu", "labels": {"region": "eu", "certified": "soc2"},
             "backends": [
                {"name": "gpu-1", "address": "10.9.0.1", "port": 8100, "capacity": 200, "labels": {"gpu": "h100"},
                 "telemetry": {"dcgm": "http://10.9.0.1:9400/metrics", "engine": "http://10.9.0.1:8100/metrics"}},
                {"name": "gpu-2", "address": "10.9.0.2", "port": 8100},
                {"name": "gpu-6", "address": "2001:db8:9::6", "port": 8100},
             ],
             "healthCheck": {"http": "/health", "interval": "2s", "timeout": "400ms", "unhealthyAfter": 4,
                             "healthyAfter": 3},
             "failover": {"healthyBelow": "40%", "utilizationAbove": "95%"}},
            {"name": "h100-us", "labels": {"region": "us"},
             "backends": [
                {"name": "gpu-3", "address": "10.9.0.3", "port": 8100, "labels": {"region": "eu"}},
                {"name": "gpu-4", "address": "10.9.0.4", "port": 8100},
             ],
             "healthCheck": {"tcp": true}},
        ],
        "rules": [
            {"name": "chat-for-paid", "action": "Allow", "tenants": {"matchLabels": {"plan": "paid"}},
             "services": {"matchNames": ["chat"]}},
            {"name": "embed-for-some", "action": "Allow", "tenants": {"matchNames": ["globex", "initech"]},
             "services": {"matchLabels": {"model": "bge"}}, "limits": {"concurrentConnections": 40}},
            {"name": "no-embed-for-eu", "action": "Deny", "priority": 5, "mode": "Enforce",
             "tenants": {"matchLabels": {"data": "eu"}}, "services": {"matchNames": ["embed"]}},
            {"name": "trial-of-chat", "action": "Allow", "mode": "Shadow",
             "tenants": {"matchLabels": {"plan": "trial"}}, "services": {"matchNames": ["chat"]},
             "schedule": {"days": ["Mon", "Tue"], "from": "08:00", "to": "20:00", "timeZone": "Europe/Berlin"}},
        ],
        "protectedNetworks": ["10.9.0.0/16", "2001:db8:9::/48"],
        "constraints": [
            {"name": "residency", "tenants": {"matchLabels": {"data": "eu"}},
             "services": {"matchNames": ["chat", "embed"]}, "requireBackend": {"matchLabels": {"region": "eu"}}},
            {"name": "audited", "tenants": {"matchNames": ["globex"]}, "services": {"matchNames": ["chat"]},
             "requireBackend": {"matchLabels": {"certified": "soc2"},
                                "matchExpressions": [{"key": "region", "operator": "NotIn", "values": ["cn"]}]}},
        ],
    })
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % bound as u64) as usize
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

/// Writes a value as YAML in the flow style, with fields and lists in any order but where order means something, and
/// with line breaks and comments here and there.
fn write(value: &Value, ordered: bool, chance: &mut Chance, text: &mut String) {
    let gap = |chance: &mut Chance, text: &mut String| {
        text.push_str(["", " ", "\n ", " # a remark: [\n "][chance.below(4)]);
    };
    match value {
        Value::Array(list) => {
            let mut list: Vec<&Value> = list.iter().collect();
            if !ordered {
                chance.shuffle(&mut list);
            }
            text.push('[');
            for member in list {
                gap(chance, text);
                write(member, false, chance, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            chance.shuffle(&mut fields);
            text.push('{');
            for (name, value) in fields {
                gap(chance, text);
                write!(text, "{name}: ").unwrap();
                let is_rules = name == "rules";
                let is_preference = name == "pools" && value[0].is_string();
                write(value, is_rules || is_preference, chance, text);
                text.push(',');
            }
            text.push('}');
        }
        scalar => write!(text, "{scalar}").unwrap(),
    }
}

/// The policy as a text of one or more documents.
fn text(name: &str, spec: &Value, chance: &mut Chance) -> String {
    let mut documents: Vec<Value> = vec![json!({}); 1 + chance.below(3)];
    for (field, value) in spec.as_object().unwrap() {
        let (Some(members), false) = (value.as_array(), field == "rules") else {
            let document = chance.below(documents.len());
            documents[document][field] = value.clone();
            continue;
        };
        for member in members {
            let document = chance.below(documents.len());
            let list = &mut documents[document][field];
            match list.as_array_mut() {
                Some(list) => list.push(member.clone()),
                None => *list = json!([member]),
            }
        }
    }
    let mut text = String::new();
    for spec in documents {
        let document = json!({
            "apiVersion": "enforcer.dev/v1", "kind": "GovernancePolicy", "metadata": {"name": name}, "spec": spec,
        });
        text.push_str("---\n");
        write(&document, false, chance, &mut text);
        text.push('\n');
    }
    text
}

#[track_caller]
fn resolved(text: &str) -> ResolvedPolicy {
    let outcome = load("policy.yaml", text);
    outcome
        .policy
        .unwrap_or_else(|| panic!("{:#?}\n{text}", outcome.diagnostics))
}

fn tables(policy: &ResolvedPolicy) -> Tables {
    compile(&Neutral::of(policy, None).inputs(policy)).unwrap().tables
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn form_and_order_of_the_text_mean_nothing(one: u64, other: u64) {
        let spec = spec();
        let texts = [one, other].map(|seed| text("prod", &spec, &mut Chance(seed)));
        let [first, second] = texts.each_ref().map(|text| resolved(text));
        prop_assert_eq!(first.digest(), second.digest(), "{}\n{}", texts[0], texts[1]);
        prop_assert!(tables(&first) == tables(&second), "{}\n{}", texts[0], texts[1]);
        let diff = diff(&first, &second);
        prop_assert!(diff.is_empty(), "{:#?}", diff);
    }
}

/// The new name of whatever is renamed.
const RENAMED: &str = "renamed";
/// Fields with one value that is allowed.
const CONSTANT: [&str; 1] = ["/pools/1/healthCheck/tcp"];

/// What else each field can say, by path. A name ([`RENAMED`]) changes wherever it is used.
fn other_values() -> Vec<(&'static str, Value)> {
    let rename = || json!(RENAMED);
    vec![
        ("/defaults/action", json!("Allow")),
        ("/defaults/onLeaseExpiry", json!("RefuseAll")),
        ("/defaults/leaseSeconds", json!(61)),
        ("/classes/0/name", rename()),
        ("/classes/0/shedAbove", json!("86%")),
        ("/classes/1/name", rename()),
        ("/classes/1/weight", json!(9)),
        ("/tenants/0/guaranteed/newConnectionsPerSecond", json!(11)),
        ("/tenants/0/class", json!("bronze")),
        ("/tenants/2/class", json!("gold")),
        ("/tenants/1/quotas/0/metric", json!("requestBytes")),
        ("/tenants/1/quotas/0/limit", json!("21Gi")),
        ("/tenants/1/quotas/0/per", json!("2d")),
        ("/tenants/1/quotas/0/timeZone", json!("UTC")),
        ("/tenants/1/quotas/1/metric", json!("requestBytes")),
        ("/tenants/1/quotas/1/limit", json!(1001)),
        ("/tenants/1/quotas/1/per", json!("2h")),
        ("/tenants/0/name", rename()),
        ("/tenants/0/sources/0", json!("10.7.0.0/16")),
        ("/tenants/0/sources/1", json!("10.4.0.0/15")),
        ("/tenants/0/sources/2", json!("2001:db8:2::/48")),
        ("/tenants/0/labels/data", json!("de")),
        ("/tenants/0/labels/plan", json!("trial")),
        ("/tenants/1/name", rename()),
        ("/tenants/1/sources/0", json!("10.2.0.0/15")),
        ("/tenants/1/labels/plan", json!("trial")),
        ("/tenants/1/labels/team", json!("two")),
        ("/tenants/1/limits/newConnectionsPerSecond", json!(51)),
        ("/tenants/1/limits/packetsPerSecond", json!("201k")),
        ("/tenants/1/limits/bytesPerSecond", json!("50M")),
        ("/tenants/1/limits/responseBytesPerSecond", json!("20M")),
        ("/tenants/1/limits/concurrentConnections", json!(401)),
        ("/tenants/1/limits/burst", json!("2500ms")),
        ("/tenants/2/name", rename()),
        ("/tenants/2/sources/0", json!("10.3.0.0/17")),
        ("/tenants/2/sources/1", json!("10.1.8.0/24")),
        ("/tenants/2/labels/plan", json!("paid")),
        ("/services/0/name", rename()),
        ("/services/0/addresses/0", json!("192.0.2.20")),
        ("/services/0/addresses/1", json!("192.0.2.21")),
        ("/services/0/addresses/2", json!("2001:db8::11")),
        ("/services/0/port", json!(8002)),
        ("/services/0/labels/model", json!("bge")),
        ("/services/0/labels/tier", json!("silver")),
        ("/services/0/pools", json!(["h100-us", "h100-eu"])),
        ("/services/0/forward", json!("Dnat")),
        ("/services/0/onRefusal", json!("Prohibited")),
        ("/services/0/protocol", json!("UDP")),
        ("/services/2/onIneligible", json!("Move")),
        ("/services/0/limits/packetsPerSecond", json!("800k")),
        ("/services/2/name", rename()),
        ("/services/2/addresses/0", json!("192.0.2.15")),
        ("/services/2/port", json!("8100-8103")),
        (
            "/services/2",
            json!({"name": "stream", "addresses": ["192.0.2.14"], "port": "8100-8102", "protocol": "UDP",
                   "pools": ["h100-us"], "forward": "Ipip", "onTableFull": "Forward"}),
        ),
        ("/services/2/pools/0", json!("h100-eu")),
        ("/services/2/forward", json!("Gue")),
        ("/services/2/onTableFull", json!("Refuse")),
        ("/services/1/name", rename()),
        ("/services/1/addresses/0", json!("192.0.2.13")),
        ("/services/1/port", json!("8001-8004")),
        ("/services/1/protocol", json!("UDP")),
        ("/services/1/labels/model", json!("llama")),
        ("/services/1/pools/0", json!("h100-eu")),
        ("/services/1/forward", json!("Nat")),
        ("/services/1/answerEcho", json!(false)),
        ("/pools/0/name", rename()),
        ("/pools/0/labels/region", json!("de")),
        ("/pools/0/labels/certified", json!("iso")),
        ("/pools/0/backends/0/name", rename()),
        ("/pools/0/backends/0/address", json!("10.9.0.11")),
        ("/pools/0/backends/0/port", json!(8101)),
        ("/pools/0/backends/0/capacity", json!(201)),
        ("/pools/0/backends/0/labels/gpu", json!("a100")),
        (
            "/pools/0/backends/0/telemetry/dcgm",
            json!("http://10.9.0.1:9401/metrics"),
        ),
        (
            "/pools/0/backends/0/telemetry/engine",
            json!("http://10.9.0.1:8100/stats"),
        ),
        ("/pools/0/backends/1/name", rename()),
        ("/pools/0/backends/1/address", json!("10.9.0.12")),
        ("/pools/0/backends/1/port", json!(8101)),
        ("/pools/0/backends/2/name", rename()),
        ("/pools/0/backends/2/address", json!("2001:db8:9::7")),
        ("/pools/0/backends/2/port", json!(8101)),
        ("/pools/0/healthCheck/http", json!("/ready")),
        ("/pools/0/healthCheck/interval", json!("3s")),
        ("/pools/0/healthCheck/timeout", json!("401ms")),
        ("/pools/0/healthCheck/unhealthyAfter", json!(5)),
        ("/pools/0/healthCheck/healthyAfter", json!(1)),
        ("/pools/0/failover/healthyBelow", json!("41%")),
        ("/pools/0/failover/utilizationAbove", json!("96%")),
        ("/pools/1/name", rename()),
        ("/pools/1/labels/region", json!("ca")),
        ("/pools/1/backends/0/name", rename()),
        ("/pools/1/backends/0/address", json!("10.9.0.13")),
        ("/pools/1/backends/0/port", json!(8101)),
        ("/pools/1/backends/0/labels/region", json!("us")),
        ("/pools/1/backends/1/name", rename()),
        ("/pools/1/backends/1/address", json!("10.9.0.14")),
        ("/pools/1/backends/1/port", json!(8101)),
        ("/rules/0/name", rename()),
        ("/rules/0/action", json!("Deny")),
        ("/rules/0/tenants/matchLabels/plan", json!("trial")),
        ("/rules/0/services/matchNames/0", json!("embed")),
        ("/rules/1/name", rename()),
        (
            "/rules/1",
            json!({"name": "embed-for-some", "action": "Deny", "tenants": {"matchNames": ["globex", "initech"]},
                   "services": {"matchLabels": {"model": "bge"}}}),
        ),
        ("/rules/1/tenants/matchNames/0", json!("acme")),
        ("/rules/1/tenants/matchNames/1", json!("acme")),
        ("/rules/1/services/matchLabels/model", json!("llama")),
        ("/rules/1/limits/concurrentConnections", json!(41)),
        ("/rules/2/name", rename()),
        ("/rules/2/action", json!("Allow")),
        ("/rules/2/priority", json!(6)),
        ("/rules/2/mode", json!("Shadow")),
        ("/rules/2/tenants", json!({"matchLabels": {"plan": "trial"}})),
        ("/rules/2/services/matchNames/0", json!("chat")),
        ("/rules/3/name", rename()),
        ("/rules/3/action", json!("Deny")),
        ("/rules/3/mode", json!("Enforce")),
        ("/rules/3/tenants/matchLabels/plan", json!("paid")),
        ("/rules/3/services/matchNames/0", json!("embed")),
        ("/rules/3/schedule/days/0", json!("Wed")),
        ("/rules/3/schedule/days/1", json!("Sun")),
        ("/rules/3/schedule/from", json!("08:01")),
        ("/rules/3/schedule/to", json!("20:01")),
        ("/rules/3/schedule/timeZone", json!("Europe/London")),
        ("/protectedNetworks/0", json!("10.9.0.0/17")),
        ("/protectedNetworks/1", json!("2001:db8:9::/49")),
        ("/constraints/0/name", rename()),
        (
            "/constraints/0/tenants",
            json!({"matchLabels": {"plan": "trial"}}),
        ),
        ("/constraints/0/services/matchNames", json!(["embed"])),
        ("/constraints/0/requireBackend/matchLabels/region", json!("us")),
        ("/constraints/1/name", rename()),
        ("/constraints/1/tenants/matchNames/0", json!("initech")),
        ("/constraints/1/services/matchNames/0", json!("embed")),
        (
            "/constraints/1/requireBackend/matchLabels/certified",
            json!("iso"),
        ),
        (
            "/constraints/1/requireBackend/matchExpressions/0/key",
            json!("zone"),
        ),
        (
            "/constraints/1/requireBackend/matchExpressions/0/operator",
            json!("In"),
        ),
        (
            "/constraints/1/requireBackend/matchExpressions/0/values/0",
            json!("ru"),
        ),
    ]
}

fn leaves(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                leaves(&format!("{path}/{name}"), value, found);
            }
        }
        Value::Array(members) => {
            for (index, value) in members.iter().enumerate() {
                leaves(&format!("{path}/{index}"), value, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// Puts another text in place of one, wherever it stands.
fn rename(value: &mut Value, old: &str, new: &str) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|value| rename(value, old, new)),
        Value::Array(members) => members.iter_mut().for_each(|value| rename(value, old, new)),
        Value::String(text) if text == old => *text = new.to_owned(),
        _ => {}
    }
}

#[test]
fn every_field_means_something() {
    let spec = spec();
    let before = resolved(&text("prod", &spec, &mut Chance(1)));
    let mut open = BTreeSet::new();
    leaves("", &spec, &mut open);
    for path in CONSTANT {
        assert!(open.remove(path), "{path}");
    }
    let mut digests = BTreeSet::from([before.digest().to_string()]);
    for (path, value) in other_values() {
        let mut other = spec.clone();
        let place = other
            .pointer_mut(path)
            .unwrap_or_else(|| panic!("{path} is not in the policy"));
        if value == RENAMED {
            let old = place.as_str().unwrap().to_owned();
            rename(&mut other, &old, RENAMED);
        } else {
            assert_ne!(*place, value, "{path}");
            *place = value;
        }
        open.retain(|leaf| leaf != path && !leaf.starts_with(&format!("{path}/")));
        let after = resolved(&text("prod", &other, &mut Chance(2)));
        assert!(
            digests.insert(after.digest().to_string()),
            "{path}: the digest is no other"
        );
        for (from, to) in [(&before, &after), (&after, &before)] {
            assert!(!diff(from, to).is_empty(), "{path}: nothing differs");
        }
    }
    assert!(open.is_empty(), "nothing was tried for {open:#?}");
    let renamed = resolved(&text("test", &spec, &mut Chance(3)));
    assert!(digests.insert(renamed.digest().to_string()));
    assert!(!diff(&before, &renamed).is_empty());
}

/// Fields that stand around the body of a policy.
const FRAME: [&str; 4] = ["apiVersion", "kind", "metadata", "spec"];

fn field_names(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                found.insert(name.clone());
                field_names(value, found);
            }
        }
        Value::Array(members) => members.iter().for_each(|value| field_names(value, found)),
        _ => {}
    }
}

/// The names of the fields that a schema declares, at any depth.
fn declared(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let ("properties", Some(properties)) = (name.as_str(), value.as_object()) {
                    found.extend(properties.keys().cloned());
                }
                declared(value, found);
            }
        }
        Value::Array(members) => members.iter().for_each(|value| declared(value, found)),
        _ => {}
    }
}

#[test]
fn the_policy_of_these_tests_says_everything_that_can_be_said() {
    let (mut known, mut used) = (BTreeSet::new(), BTreeSet::new());
    declared(&schema(), &mut known);
    field_names(&spec(), &mut used);
    assert!(
        known.contains("healthyBelow") && known.contains("schedule"),
        "{known:?}"
    );
    let around = FRAME.into_iter().map(str::to_owned).collect();
    let untried: Vec<_> = known
        .difference(&used)
        .filter(|name| !BTreeSet::contains(&around, *name))
        .collect();
    assert!(untried.is_empty(), "{untried:?}");
}
