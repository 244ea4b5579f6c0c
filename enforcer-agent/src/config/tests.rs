use super::*;

fn problems(text: &str) -> Vec<String> {
    match Config::parse("agent.yaml", text) {
        Err(ConfigError::Invalid { problems }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn the_least_configuration_gets_every_default() {
    let config = Config::parse("agent.yaml", "interfaces: [eth0]\n").expect("valid");
    assert_eq!(
        config,
        Config {
            instance: "enforcer".into(),
            interfaces: vec!["eth0".into()],
            attach_mode: AttachMode::Auto,
            state_directory: "/var/lib/enforcer".into(),
            socket: "/run/enforcer/control.sock".into(),
            socket_group: None,
            policy: None,
            nat: Nat {
                ipv4: None,
                ipv6: None,
                port_first: 10_000,
                port_count: 22_768
            },
            encapsulation: Encapsulation::default(),
            answers_per_second: 100,
            audit: Audit {
                directory: "/var/lib/enforcer/audit".into(),
                events_per_window: 64,
                segment_bytes: 64 << 20,
            },
            metrics: None,
            capacity: Capacity {
                tenants: 1023,
                trie_nodes: 8192,
                eligible_sets: 256,
                decision_blocks: 16_384,
                flows: 262_144,
            },
            flow_table: FlowTable {
                tcp_established_timeout: Duration::from_secs(3600),
                tcp_opening_timeout: Duration::from_secs(30),
                tcp_closing_timeout: Duration::from_secs(10),
                udp_timeout: Duration::from_secs(60),
                tenant_share_percent: 50,
            },
            telemetry: Telemetry {
                interval: Duration::from_secs(1),
                timeout: Duration::from_millis(500)
            },
            local_gpu_backends: Vec::new(),
        }
    );
    assert_eq!(config.pin_directory(), Path::new("/sys/fs/bpf/enforcer"));
}

#[test]
fn every_field_can_be_set() {
    let text = r#"
instance: edge-1
interfaces: [eth0, "eth1.100"]
attachMode: Generic
stateDirectory: /srv/enforcer
socket: /run/edge/control.sock
socketGroup: operators
policy: /etc/enforcer/policy.yaml
nat: {ipv4: 192.0.2.1, ipv6: "2001:db8::1", ports: 20000-20001}
audit: {directory: /var/log/enforcer, eventsPerWindow: 1k, segmentBytes: 128Ki}
metrics: {listen: "[::1]:9464"}
capacity: {tenants: 10k, trieNodes: 64Ki, eligibleSets: 2000, decisionBlocks: 64}
flowTable: {entries: 64Ki, tcpEstablishedTimeout: 6h, tcpOpeningTimeout: 5s, tcpClosingTimeout: 2s, udpTimeout: 1m}
telemetry: {interval: 250ms, timeout: 100ms, localGpuBackends: [gpu-1, gpu-2]}
"#;
    let config = Config::parse("agent.yaml", text).expect("valid");
    assert_eq!(config.interfaces, ["eth0", "eth1.100"]);
    assert_eq!(config.attach_mode, AttachMode::Generic);
    assert_eq!(config.nat.port_count, 2);
    assert_eq!(config.audit.segment_bytes, 131_072);
    assert_eq!(config.metrics, Some("[::1]:9464".parse().expect("valid")));
    assert_eq!(config.flow_table.udp_timeout, Duration::from_secs(60));
    let capacity = Capacity {
        tenants: 10_000,
        trie_nodes: 65_536,
        eligible_sets: 2000,
        decision_blocks: 64,
        flows: 65_536,
    };
    assert_eq!(config.capacity, capacity);
    assert_eq!(config.telemetry.timeout, Duration::from_millis(100));
    assert_eq!(config.local_gpu_backends, ["gpu-1", "gpu-2"]);
    assert_eq!(config.pin_directory(), Path::new("/sys/fs/bpf/edge-1"));
}

#[test]
fn metrics_without_an_address_listen_on_loopback() {
    let config = Config::parse("agent.yaml", "interfaces: [eth0]\nmetrics: {}\n").expect("valid");
    assert_eq!(config.metrics, Some("127.0.0.1:9464".parse().expect("valid")));
}

#[test]
fn every_wrong_value_is_reported_at_its_place() {
    let text = "interfaces: [eth0, eth0, a/b]\ninstance: ../x\nsocket: relative.sock\n\
                nat: {ipv4: 127.0.0.1, ipv6: \"::ffff:1.2.3.4\", ports: 80-90}\n\
                audit: {segmentBytes: 1, eventsPerWindow: many}\ntelemetry: {interval: 1s, timeout: 2s}\n";
    let found = problems(text);
    let places: Vec<&str> = found
        .iter()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "agent.yaml:1:20",
            "agent.yaml:1:26",
            "agent.yaml:2:11",
            "agent.yaml:3:9",
            "agent.yaml:4:13",
            "agent.yaml:4:30",
            "agent.yaml:4:55",
            "agent.yaml:5:23",
            "agent.yaml:5:43",
            "agent.yaml:6:36",
        ],
        "{found:#?}"
    );
}

#[test]
fn an_unknown_field_is_named_with_its_place() {
    let found = problems("interfaces: [eth0]\nnat:\n  adress: 10.0.0.1\n");
    assert_eq!(
        found,
        ["agent.yaml:3:3: there is no field `adress` here; there can be ipv4, ipv6, ports"]
    );
}

#[test]
fn shapes_that_are_no_configuration_are_refused() {
    for text in [
        "",
        "interfaces: []",
        "interfaces: eth0",
        "interfaces: {a: b}",
        "- a",
        "instance: x",
        "interfaces: [eth0]\ninterfaces: [eth1]",
        "interfaces: [eth0]\n---\ninterfaces: [eth1]\n",
        "interfaces: [\"\"]",
        "interfaces: [sixteen-bytes-xx]",
        "a: &a [*a]",
        "interfaces: [eth0]\nflowTable: {entries: 0}",
        "interfaces: [eth0]\ncapacity: {tenants: 0}",
        "interfaces: [eth0]\ncapacity: {tenants: 16384}",
        "interfaces: [eth0]\nmetrics: {listen: localhost}",
        "interfaces: [eth0]\nsocketGroup: \"\"",
        "interfaces: [eth0]\npolicy: /etc/../x",
    ] {
        let found = problems(text);
        assert!(
            !found.is_empty() && found.iter().all(|line| line.len() < 400),
            "{text:?}: {found:?}"
        );
    }
    let long = format!("interfaces: [eth0]\nsocket: /{}", "x".repeat(107));
    assert!(
        problems(&long)[0].contains("at most 107"),
        "the path must fit a socket address"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/agent.yaml")).expect_err("there is no such file");
    assert!(error.to_string().contains("/nonexistent/agent.yaml"), "{error}");
}
