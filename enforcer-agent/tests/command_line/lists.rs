//! The lists.

use std::sync::{Arc, Mutex};

use enforcer_agent::api::reply::*;
use enforcer_agent::api::{Direction, FlowFilter, Protocol, Reply, Request};
use enforcer_agent::pure::policy::resolved::{Forward, Limits, QuotaMetric};

use super::daemon::Daemon;
use super::remote::{ask, check, count};

#[tokio::test]
async fn tenant_list() {
    let limits = Limits {
        new_connections_per_second: Some(50),
        packets_per_second: None,
        bytes_per_second: Some(50 << 20),
        response_bytes_per_second: None,
        concurrent_connections: Some(400),
        burst_ns: 1_000_000_000,
    };
    let unlimited = Limits {
        new_connections_per_second: None,
        bytes_per_second: None,
        concurrent_connections: None,
        ..limits.clone()
    };
    let tenant = |name: &str, suspended, limits, packets| TenantRow {
        name: name.into(),
        sources: vec!["10.1.0.0/16".into(), "2001:db8:1::/48".into()],
        suspended,
        connections: 4,
        limits,
        quotas: Vec::new(),
        share: None,
        packets,
    };
    let quota = |metric, used, exhausted| QuotaRow {
        metric,
        per: "1d".into(),
        time_zone: "Europe/Berlin".into(),
        used,
        limit: 4096,
        window_ends: "2026-01-15T23:00:00Z".parse().unwrap(),
        exhausted,
    };
    let metered = TenantRow {
        quotas: vec![
            quota(QuotaMetric::Connections, 17, false),
            quota(QuotaMetric::ResponseBytes, 5120, true),
        ],
        ..tenant("gamma", false, unlimited.clone(), vec![])
    };
    let packets = vec![
        count(Direction::Ingress, "Allowed", 100, 2048),
        count(Direction::Ingress, "Reply", 90, 4096),
        count(Direction::Ingress, "ConnectionRate", 7, 420),
    ];
    let reply = TenantListReply {
        tenants: vec![
            tenant("acme", false, limits, packets),
            tenant("beta", true, unlimited, vec![]),
            metered,
        ],
    };
    let expected = "\
TENANT  STATE      OPEN  ALLOWED  REFUSED     SENT  RECEIVED  LIMITS                           SOURCES
acme    active        4      190        7  2.0 KiB   4.0 KiB  50 conn/s, 50.0 MiB/s, 400 open  10.1.0.0/16, 2001:db8:1::/48
beta    suspended     4        0        0      0 B       0 B  -                                10.1.0.0/16, 2001:db8:1::/48
gamma   active        4        0        0      0 B       0 B  -                                10.1.0.0/16, 2001:db8:1::/48

TENANT  QUOTA                    USED    LIMIT  STATE    WINDOW ENDS
gamma   connections per 1d         17     4096  open     2026-01-15T23:00:00Z (Europe/Berlin)
gamma   responseBytes per 1d  5.0 KiB  4.0 KiB  used up  2026-01-15T23:00:00Z (Europe/Berlin)

TENANT  DIRECTION  REFUSED AS      PACKETS  BYTES
acme    ingress    ConnectionRate        7  420 B
";
    check(&["tenant", "list"], Reply::TenantList, reply, expected).await;
}

#[tokio::test]
async fn backend_list() {
    let gpu = BackendRow {
        name: "gpu-1".into(),
        pool: "h100-eu".into(),
        address: "10.9.0.1:8000".parse().unwrap(),
        health: BackendHealth::Healthy,
        draining: false,
        weight: 45_500,
        full_weight: 100_000,
        connections: 17,
        next_hop: Some(NextHopRow {
            interface: "eth1".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu_bytes: 1500,
        }),
        telemetry: Some(TelemetryRow {
            running: Some(8),
            waiting: Some(3),
            kv_cache_usage: Some(0.914),
            age_ms: Some(400),
            ..TelemetryRow::default()
        }),
        causes: vec!["3 requests wait in the engine".into()],
    };
    let dead = BackendRow {
        name: "gpu-2".into(),
        health: BackendHealth::Unhealthy,
        draining: true,
        weight: 0,
        full_weight: 0,
        connections: 0,
        next_hop: None,
        telemetry: Some(TelemetryRow {
            error: Some("timed\u{1b}out".into()),
            ..TelemetryRow::default()
        }),
        causes: vec![],
        ..gpu.clone()
    };
    let reply = BackendListReply {
        backends: vec![gpu, dead],
    };
    let expected = "\
BACK END  POOL     ADDRESS        HEALTH     STATE     WEIGHT  OPEN  NEXT HOP                TELEMETRY                                WHY
gpu-1     h100-eu  10.9.0.1:8000  healthy    active       45%    17  eth1 02:00:00:00:00:01  8 running, 3 waiting, kv 91%, 400ms ago  3 requests wait in the engine
gpu-2     h100-eu  10.9.0.1:8000  unhealthy  draining      0%     0  -                       failing: timed\u{fffd}out                       -
";
    check(&["backend", "list"], Reply::BackendList, reply, expected).await;
}

#[tokio::test]
async fn service_list() {
    let pool = |name: &str, state, healthy| ServicePoolRow {
        name: name.into(),
        state,
        healthy,
        backends: 2,
    };
    let reply = ServiceListReply {
        services: vec![ServiceRow {
            name: "chat".into(),
            addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
            ports: 8000.into(),
            protocol: Protocol::Tcp,
            forward: Forward::Nat,
            pools: vec![pool("eu", PoolState::Failed, 0), pool("us", PoolState::Active, 2)],
        }],
    };
    let expected = "\
SERVICE  ADDRESSES                 PORT      FORWARD  POOLS IN ORDER OF PREFERENCE
chat     192.0.2.10, 2001:db8::10  8000/TCP  Nat      eu (failed, 0/2 healthy), us (active, 2/2 healthy)
";
    check(&["service", "list"], Reply::ServiceList, reply, expected).await;
}

#[tokio::test]
async fn flows_list_passes_its_filter_on() {
    let reply = FlowsListReply {
        flows: vec![FlowRow {
            from: "10.1.0.2:40000".parse().unwrap(),
            to: "192.0.2.10:8000".parse().unwrap(),
            protocol: Protocol::Tcp,
            state: FlowState::Established,
            tenant: "acme".into(),
            service: "chat".into(),
            rule: None,
            backend: "gpu-1".into(),
            translated_port: Some(10_001),
            generation: 7,
            age_ms: 61_000,
            idle_ms: 20,
            packets: 5,
            bytes: 700,
            reply_packets: Some(6),
            reply_bytes: Some(1 << 20),
        }],
        matching: 3,
    };
    let expected = "\
PROTO  FROM            TO               STATE        TENANT  SERVICE  BACK END  AS PORT  RULE    AGE  IDLE   SENT  RECEIVED  GENERATION
TCP    10.1.0.2:40000  192.0.2.10:8000  established  acme    chat     gpu-1       10001  -     1m 1s  20ms  700 B   1.0 MiB           7
1 of 3 flows: raise --limit to see more
";
    check(&["flows", "list"], Reply::FlowsList, reply, expected).await;

    let asked = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&asked);
    let daemon = Daemon::start(move |request, _| {
        *seen.lock().unwrap() = Some(request);
        Ok(Reply::FlowsList(FlowsListReply {
            flows: vec![],
            matching: 0,
        }))
    });
    ask(
        &daemon,
        &[
            "flows",
            "list",
            "--tenant",
            "acme",
            "--backend",
            "gpu-1",
            "--limit",
            "5",
        ],
    )
    .await
    .ends_with(0);
    let filter = FlowFilter {
        tenant: Some("acme".into()),
        service: None,
        backend: Some("gpu-1".into()),
    };
    assert_eq!(
        *asked.lock().unwrap(),
        Some(Request::FlowsList { limit: 5, filter })
    );
}

#[tokio::test]
async fn maps() {
    let map = |name: &str, entries| MapRow {
        name: name.into(),
        kind: "HashMap".into(),
        id: 31,
        key_bytes: 40,
        value_bytes: 88,
        capacity: 1024,
        entries,
    };
    let reply = MapsListReply {
        maps: vec![map("FLOWS", Some(3)), map("TENANTS", None)],
    };
    let expected = "\
MAP      KIND     ID  KEY BYTES  VALUE BYTES  CAPACITY  ENTRIES
FLOWS    HashMap  31         40           88      1024        3
TENANTS  HashMap  31         40           88      1024        -
";
    check(&["maps", "list"], Reply::MapsList, reply, expected).await;

    let field = |name: &str, value: &str| MapField {
        name: name.into(),
        value: value.into(),
    };
    let entry = MapEntry {
        key: "bank 1, slot 2".into(),
        fields: vec![field("row", "1"), field("concurrent_limit", "9")],
    };
    let reply = MapsDumpReply {
        name: "TENANTS".into(),
        entries: vec![entry],
        truncated: true,
    };
    let expected = "\
bank 1, slot 2
  row               1
  concurrent_limit  9
there are more entries: raise --limit
";
    check(&["maps", "dump", "TENANTS"], Reply::MapsDump, reply, expected).await;
}
