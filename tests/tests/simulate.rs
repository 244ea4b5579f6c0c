//! `policy simulate`: captures and logs that others wrote, and the loaded kernel programs on the same packets.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use enforcer_agent::adapters::capture::{TrafficError, replay};
use enforcer_agent::pure::audit::{Chain, Direction, Entry, FlowTuple, Identity, Kind};
use enforcer_agent::pure::policy::ResolvedPolicy;
use enforcer_agent::pure::policy::resolved::Protocol;
use enforcer_agent::pure::simulate::report::{Report, TrafficKind};
use enforcer_agent::pure::simulate::{CapturedPacket, Judged, Link, Simulation, Surroundings};
use enforcer_common::Reason;
use enforcer_common::abi::config::FORWARD_LOCAL;
use enforcer_common::abi::reason::Effect;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::decide::Decision;
use enforcer_tests::generate::{self, Op, Start, unhex};
use enforcer_tests::model::Model;
use enforcer_tests::packet::{Segment, syn, tcp, udp};
use enforcer_tests::privilege;
use enforcer_tests::random::{Random, SEED_VARIABLE, count, seed};
use enforcer_tests::rig::{Rig, START_NS, TIMEOUTS, Verdict};
use enforcer_tests::world::World;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};

/// Room for every flow of the generator's universe, and for far fewer.
const FLOW_ENTRIES: [u32; 2] = [4096, 24];
/// Packets of one random run: then another policy, and tables without traffic.
const RUN_PACKETS: u64 = 1000;
const SECOND_NS: u64 = 1_000_000_000;

/// A packet on the wire: when, which way, and its frame.
struct Sent {
    now_ns: u64,
    direction: u32,
    frame: Vec<u8>,
}

type Writer = fn(&Path, &[Sent]);

fn surroundings(world: &World, flow_entries: u32) -> Surroundings {
    Surroundings {
        host: world.host.clone(),
        flow_entries,
        timeouts: TIMEOUTS,
    }
}

fn captured(sent: &Sent) -> CapturedPacket<'_> {
    CapturedPacket {
        time_ns: Some(sent.now_ns),
        link: Link::Ethernet,
        outgoing: sent.direction == DIRECTION_EGRESS,
        bytes: &sent.frame,
        original_bytes: sent.frame.len() as u32,
    }
}

/// pcapng with times in nanoseconds, each packet with the way that it went.
fn write_pcapng(path: &Path, packets: &[Sent]) {
    let mut writer = PcapNgWriter::new(File::create(path).unwrap()).unwrap();
    let interface = InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: 0,
        options: vec![InterfaceDescriptionOption::IfTsResol(9)],
    };
    writer.write_pcapng_block(interface).unwrap();
    for sent in packets {
        let way = if sent.direction == DIRECTION_EGRESS { 2 } else { 1 };
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(sent.now_ns),
            original_len: sent.frame.len() as u32,
            data: Cow::Borrowed(&sent.frame),
            options: vec![EnhancedPacketOption::Flags(way)],
        };
        writer.write_pcapng_block(block).unwrap();
    }
}

fn write_pcap(path: &Path, packets: &[Sent]) {
    let mut writer = PcapWriter::with_header(File::create(path).unwrap(), PcapHeader::default()).unwrap();
    for sent in packets {
        let time = Duration::from_nanos(sent.now_ns);
        let packet = PcapPacket::new(time, sent.frame.len() as u32, &sent.frame);
        writer.write_packet(&packet).unwrap();
    }
}

/// A run of random traffic: the model makes the connections that answers belong to.
fn random_traffic(random: &mut Random, start: &Start, world: &World, model: &mut Model) -> Vec<Sent> {
    let mut now_ns = START_NS;
    let mut sent: Vec<Sent> = Vec::new();
    let mut swept = 0;
    while (sent.len() as u64) < RUN_PACKETS {
        let around = generate::Surroundings {
            policy: &start.policy,
            replies: model.replies(),
        };
        let (direction, frame) = match generate::op(random, &around) {
            Op::Packet { direction, segment } => (direction, segment.bytes()),
            Op::Echo(request) => (DIRECTION_INGRESS, request.bytes()),
            Op::Frame(digits) => (DIRECTION_INGRESS, unhex(&digits).unwrap()),
            Op::Advance(by_ns) => {
                now_ns += by_ns;
                continue;
            }
            // One policy and one state of the world: that is what a simulation takes for granted.
            Op::Policy(_)
            | Op::Backend { .. }
            | Op::Link { .. }
            | Op::Pool { .. }
            | Op::Tenant { .. }
            | Op::Quota { .. }
            | Op::Share { .. }
            | Op::Shed { .. }
            | Op::Lease { .. }
            | Op::Wall(_)
            | Op::Sweep => continue,
        };
        let first_ns = sent.first().map_or(now_ns, |first| first.now_ns);
        let seconds = (now_ns - first_ns) / SECOND_NS;
        if seconds > swept {
            swept = seconds;
            model.sweep(first_ns + seconds * SECOND_NS);
        }
        model.run(direction, &frame, now_ns);
        sent.push(Sent {
            now_ns,
            direction,
            frame,
        });
    }
    assert!(world.suspended.is_empty() && world.failed_pools.is_empty());
    sent
}

/// What the kernel did with a packet has to be what the decision says.
fn same_as_kernel(rig: &mut Rig, sent: &Sent, decision: &Decision) {
    let (tenant, reason) = (decision.tenant, decision.reason);
    let tally = |rig: &mut Rig| {
        let maps = &rig.dataplane().maps;
        maps.tallies(sent.direction, tenant).unwrap()[reason as usize].packets
    };
    let before = tally(rig);
    let ran = match sent.direction {
        DIRECTION_EGRESS => rig.egress(&sent.frame),
        _ => rig.ingress(&sent.frame),
    }
    .unwrap();
    assert_eq!(
        tally(rig),
        before + 1,
        "the kernel has another tenant or reason than {decision:?}"
    );
    let agrees = match (reason.effect(), sent.direction) {
        // Whoever is refused may be answered.
        (Effect::Refused, DIRECTION_EGRESS) => ran.verdict == Verdict::Drop,
        (Effect::Refused, _) => matches!(ran.verdict, Verdict::Drop | Verdict::Transmit),
        (Effect::Passed, _) | (Effect::Forwarded, DIRECTION_EGRESS) => ran.verdict == Verdict::Pass,
        (Effect::Forwarded, _) if decision.forward == FORWARD_LOCAL => ran.verdict == Verdict::Pass,
        (Effect::Forwarded, _) => ran.verdict.forwards(),
    };
    assert!(agrees, "{:?} for {decision:?}", ran.verdict);
    if reason == Reason::Allowed {
        let key = enforcer_common::parse::parse(&sent.frame[..]).packet.key;
        let flow = rig.dataplane().maps.flow(&key).unwrap().unwrap();
        assert_eq!(flow.backend + 1, decision.backend);
    }
}

/// Any traffic under any policy: the simulation says what the loaded programs say, back end included, and a policy that
/// is compared with itself changes nothing.
#[test]
fn a_replay_says_what_the_kernel_says() {
    if !privilege::require("needs root, to load BPF programs") {
        return;
    }
    let (seed, packets) = (seed(), count("SIMULATE_PACKETS", 20_000));
    println!("{SEED_VARIABLE}={seed} SIMULATE_PACKETS={packets}");
    let mut random = Random::new(seed);
    let mut rigs = FLOW_ENTRIES.map(|entries| Rig::new(entries).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let mut reasons: BTreeMap<Reason, u64> = BTreeMap::new();
    let mut done = 0;
    while done < packets {
        let cramped = random.percent(20);
        let (rig, flow_entries) = (
            &mut rigs[usize::from(cramped)],
            FLOW_ENTRIES[usize::from(cramped)],
        );
        let mut start = generate::start(&mut random, flow_entries);
        // The kernel's tables are for one time, the replay opens and closes rules by the time of the packets.
        start.policy.rules.iter_mut().for_each(|rule| rule.hours = None);
        let mut world = World::new(&start.policy.text()).unwrap();
        world.host.nat_port_count = start.nat_ports;
        world.host.flows_per_tenant = start.flows_per_tenant;
        // A simulation knows no links: every packet fits.
        for next_hop in world
            .backends
            .values_mut()
            .filter_map(|status| status.next_hop.as_mut())
        {
            next_hop.mtu_bytes = u32::MAX;
        }
        let compiled = world.compile().unwrap();
        rig.set_now(START_NS).unwrap();
        rig.forget_traffic(8).unwrap();
        rig.set_host(&world.host.record()).unwrap();
        rig.install(compiled.tables.clone()).unwrap();
        let mut model = Model::new(flow_entries);
        model.install(compiled.tables, 1, world.host.record());
        let traffic = random_traffic(&mut random, &start, &world, &mut model);

        let surroundings = surroundings(&world, flow_entries);
        let new = || Simulation::new(&world.policy, &world.policy, &surroundings).unwrap();
        let mut simulation = new();
        let mut swept = 0;
        for sent in &traffic {
            let seconds = (sent.now_ns - traffic[0].now_ns) / SECOND_NS;
            if seconds > swept {
                swept = seconds;
                rig.set_now(traffic[0].now_ns + seconds * SECOND_NS).unwrap();
                rig.sweep().unwrap();
            }
            rig.set_now(sent.now_ns).unwrap();
            let Judged::Both { before, after } = simulation.packet(&captured(sent)).unwrap() else {
                panic!("a packet that was not judged: {}", generate::hex(&sent.frame));
            };
            assert_eq!(before, after);
            same_as_kernel(rig, sent, &before);
            rig.events();
            *reasons.entry(before.reason).or_insert(0) += 1;
        }
        done += traffic.len() as u64;

        // The same from a file.
        let path = directory.path().join("traffic.pcapng");
        write_pcapng(&path, &traffic);
        let mut from_file = new();
        let reading = replay(&path, &mut from_file).unwrap();
        assert_eq!((reading.kind, &reading.ended), (TrafficKind::Capture, &None));
        let report = |simulation: Simulation| simulation.report(TrafficKind::Capture, None, Vec::new(), 100);
        let report_of_file = report(from_file);
        assert_eq!(report_of_file, report(simulation));
        assert_eq!(report_of_file.totals.unchanged, traffic.len() as u64);
        assert!(report_of_file.changes.is_empty());
    }
    println!("{done} packets: {reasons:?}");
    // Those that every policy has; whether one leaves a pair without a rule is up to chance.
    for reason in [Reason::Allowed, Reason::Reply, Reason::Bypass] {
        assert!(
            reasons.contains_key(&reason),
            "{reason:?} never came up: {reasons:?}"
        );
    }
}

const BEFORE: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: before}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16]}
  - {name: globex, sources: [10.2.0.0/16]}
  services:
  - {name: chat, addresses: [192.0.2.10], port: 8000, protocol: TCP, pools: [one], forward: Nat}
  - {name: embed, addresses: [192.0.2.10], port: 9000, protocol: UDP, pools: [one], forward: Nat}
  pools:
  - {name: one, backends: [{name: gpu-1, address: 10.9.0.1, port: 8000}]}
  - {name: two, backends: [{name: gpu-2, address: 10.9.0.2, port: 8000}]}
  rules:
  - {name: acme-may, action: Allow, tenants: {matchNames: [acme]}}
  - {name: globex-may-chat, action: Allow, tenants: {matchNames: [globex]}, services: {matchNames: [chat]}}
"#;

/// globex loses chat, acme's chat moves to another pool, and a limit of two connections at once comes for acme.
fn after() -> String {
    BEFORE
        .replace("{name: before}", "{name: after}")
        .replace(
            "name: globex-may-chat, action: Allow",
            "name: globex-may-not, action: Deny",
        )
        .replace(
            "port: 8000, protocol: TCP, pools: [one]",
            "port: 8000, protocol: TCP, pools: [two]",
        )
        .replace(
            "sources: [10.1.0.0/16]",
            "sources: [10.1.0.0/16], limits: {concurrentConnections: 2}",
        )
}

fn policy(text: &str) -> ResolvedPolicy {
    World::new(text).unwrap().policy
}

fn simulation() -> Simulation {
    let world = World::new(BEFORE).unwrap();
    Simulation::new(&world.policy, &policy(&after()), &surroundings(&world, 100)).unwrap()
}

/// (tenant, service, reasons, rules, packets, connections) of every row.
type Row<'r> = (&'r str, &'r str, [&'r str; 2], [&'r str; 2], u64, u64);

fn rows(report: &Report) -> Vec<Row<'_>> {
    let name = |name: &'static str| name;
    report
        .changes
        .iter()
        .map(|row| {
            assert_eq!(
                (&row.before.tenant, &row.before.service),
                (&row.after.tenant, &row.after.service)
            );
            (
                row.before.tenant.as_deref().unwrap_or(name("-")),
                row.before.service.as_deref().unwrap_or(name("-")),
                [row.before.reason.as_str(), row.after.reason.as_str()],
                [&row.before.rule, &row.after.rule].map(|rule| rule.as_deref().unwrap_or(name("-"))),
                row.packets,
                row.connections,
            )
        })
        .collect()
}

/// acme: three connections to chat with an answer each, one datagram; globex: two connections, three packets each; a
/// stranger: one.
fn known_traffic() -> Vec<Sent> {
    let vip = "192.0.2.10:8000";
    let mut segments: Vec<Segment> = Vec::new();
    for port in 1..=3 {
        let client = format!("10.1.0.1:{port}");
        segments.push(syn(&client, vip));
        segments.push(tcp(vip, &client).syn_ack());
        segments.push(tcp(&client, vip).payload(100));
    }
    segments.push(udp("10.1.0.1:4", "192.0.2.10:9000").payload(10));
    for port in 1..=2 {
        let client = format!("10.2.0.1:{port}");
        segments.extend([syn(&client, vip), tcp(&client, vip), tcp(&client, vip).fin()]);
    }
    segments.push(syn("10.3.0.1:1", vip));
    let times = (0..).map(|index| 1_700_000_000 * SECOND_NS + index * 1_000_000);
    segments
        .iter()
        .zip(times)
        .map(|(segment, now_ns)| Sent {
            now_ns,
            direction: DIRECTION_INGRESS,
            frame: segment.bytes(),
        })
        .collect()
}

#[test]
fn known_flows_change_as_known() {
    let directory = tempfile::tempdir().unwrap();
    let traffic = known_traffic();
    let writers: [(&str, Writer); 2] = [("a.pcap", write_pcap), ("a.pcapng", write_pcapng)];
    for (name, write) in writers {
        let path = directory.path().join(name);
        write(&path, &traffic);
        let mut simulation = simulation();
        let reading = replay(&path, &mut simulation).unwrap();
        let report = simulation.report(reading.kind, reading.ended, reading.notes, 100);
        let expected: [Row<'_>; 3] = [
            (
                "globex",
                "chat",
                ["Allowed", "RuleDeny"],
                ["globex-may-chat", "globex-may-not"],
                6,
                2,
            ),
            (
                "acme",
                "chat",
                ["Allowed", "Concurrency"],
                ["acme-may", "acme-may"],
                2,
                1,
            ),
            (
                "acme",
                "embed",
                ["Allowed", "Concurrency"],
                ["acme-may", "acme-may"],
                1,
                1,
            ),
        ];
        assert_eq!(rows(&report), expected, "{name}");
        let totals = &report.totals;
        assert_eq!(
            (totals.read, totals.changed, totals.unchanged),
            (17, 9, 7),
            "{name}"
        );
        assert_eq!(
            (totals.without_connection, totals.other_backend),
            (1, 2),
            "{name}"
        );
        let backends: Vec<(&str, u64, u64)> = report
            .backends
            .iter()
            .map(|row| (row.name.as_str(), row.before, row.after))
            .collect();
        assert_eq!(backends, [("gpu-1", 6, 0), ("gpu-2", 0, 2)], "{name}");
    }
}

#[test]
fn a_capture_that_is_cut_off_counts_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.pcap");
    write_pcap(&path, &known_traffic());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let mut simulation = simulation();
    let reading = replay(&path, &mut simulation).unwrap();
    assert!(
        reading.ended.as_ref().unwrap().starts_with("after packet 16: "),
        "{reading:?}"
    );
    assert_eq!(
        simulation.report(reading.kind, None, Vec::new(), 0).totals.read,
        16
    );
}

fn decision(kind: Kind, reason: &str, tenant: &str, from: &str) -> Entry {
    Entry {
        direction: Some(Direction::Ingress),
        reason: Some(reason.to_owned()),
        tenant: Some(tenant.to_owned()),
        service: Some("chat".to_owned()),
        flow: Some(FlowTuple {
            from: from.parse().unwrap(),
            to: "192.0.2.10:8000".parse().unwrap(),
            protocol: Some(Protocol::Tcp),
            translated_port: None,
        }),
        packets: Some(1),
        bytes: Some(60),
        ..Entry::new(kind, "2026-11-22T20:00:00Z".parse().unwrap(), 1, 1)
    }
}

/// Two segments as the agent writes them.
fn write_segments(directory: &Path) {
    let identity = Identity {
        host: "lb-1".to_owned(),
        boot_id: "b0".to_owned(),
    };
    let mut chain = Chain::default();
    let segments = [
        vec![
            decision(Kind::FlowOpened, "Allowed", "acme", "10.1.0.1:1"),
            decision(Kind::FlowOpened, "Allowed", "globex", "10.2.0.1:1"),
        ],
        vec![
            decision(Kind::FlowOpened, "Allowed", "globex", "10.2.0.1:2"),
            decision(Kind::FlowClosed, "Allowed", "globex", "10.2.0.1:2"),
        ],
    ];
    for entries in segments {
        let path = directory.join(format!("audit-{:020}.jsonl", chain.sequence + 1));
        let mut text = Vec::new();
        chain.seal_header(&identity, entries[0].time, &mut text).unwrap();
        for entry in &entries {
            chain.seal(&identity, entry, &mut text).unwrap();
        }
        fs::write(path, text).unwrap();
    }
}

#[test]
fn a_log_of_several_segments_is_judged_again() {
    let directory = tempfile::tempdir().unwrap();
    write_segments(directory.path());
    let mut simulation = simulation();
    let reading = replay(directory.path(), &mut simulation).unwrap();
    assert_eq!((reading.kind, &reading.ended), (TrafficKind::AuditLog, &None));
    let report = simulation.report(reading.kind, None, Vec::new(), 100);
    let rules = ["globex-may-chat", "globex-may-not"];
    assert_eq!(
        rows(&report),
        [("globex", "chat", ["Allowed", "RuleDeny"], rules, 2, 2)]
    );
    // acme's new limit may refuse what was admitted.
    assert_eq!(
        (report.totals.unknown, report.totals.skipped, report.totals.read),
        (1, 1, 4)
    );
}

#[test]
fn a_log_that_is_damaged_counts_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    write_segments(directory.path());
    let first = directory.path().join(format!("audit-{:020}.jsonl", 1));
    let whole = fs::read(&first).unwrap();
    let last_line = whole[..whole.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap()
        + 1;
    let longest = [&whole[..last_line], &vec![b'x'; 1 << 20][..]].concat();
    let damages: [(&str, Vec<u8>); 4] = [
        ("cut off", whole[..whole.len() - 5].to_vec()),
        (
            "neither a header nor a record",
            [&whole[..last_line], b"{\"sequence\":2}\n"].concat(),
        ),
        ("no UTF-8", [&whole[..last_line], b"\xff\n"].concat()),
        ("longer than any record", longest),
    ];
    for (expected, damage) in damages {
        fs::write(&first, &damage).unwrap();
        let mut simulation = simulation();
        let reading = replay(&first, &mut simulation).unwrap();
        let reason = reading.ended.unwrap();
        assert!(reason.contains(expected) && reason.contains("line 3"), "{reason}");
        assert_eq!(
            simulation.report(reading.kind, None, Vec::new(), 0).totals.read,
            1
        );
    }
}

#[test]
fn what_is_no_traffic_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let refused = |path: &Path| replay(path, &mut simulation()).unwrap_err();
    for (bytes, expected) in [
        (&b""[..], "it is empty"),
        (b"\x1f\x8b\x08\0", "decompress"),
        (b"\x28\xb5\x2f\xfd\0", "decompress"),
        (b"apiVersion: enforcer.dev/v1\n", "neither pcap nor pcapng"),
    ] {
        fs::write(&file, bytes).unwrap();
        let error = refused(&file);
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(matches!(
        refused(Path::new("/dev/zero")),
        TrafficError::NoFile { .. }
    ));
    fs::remove_file(&file).unwrap();
    assert!(matches!(refused(&file), TrafficError::Io { .. }));
    assert!(refused(directory.path()).to_string().contains("without segments"));
}
