//! What the verifier says of the programs, and the layout of maps and records.

use std::fmt::Write as _;
use std::path::Path;

use aya::maps::{MapInfo, MapType};
use enforcer_agent::adapters::dataplane::{Dataplane, Settings, map_directory};
use enforcer_agent::pure::capacity::Capacity;
use enforcer_common::abi::reason::Reason;
use enforcer_common::continuation::Continuation;
use enforcer_common::schema::{MAPS, RECORDS, SCHEMA_VERSION};
use enforcer_tests::lab::Lab;

use crate::privileged;

/// Instructions that the verifier may walk through for the XDP program, over all paths; the kernel's bound is a
/// million. About half as much again as was measured (190,000).
const XDP_VERIFIED_BUDGET: u32 = 400_000;
/// The same for the TC ingress program.
const INGRESS_VERIFIED_BUDGET: u32 = 400_000;
const INGRESS_TRANSLATED_BUDGET: u32 = 16_000;
/// The same for the TC egress program (18,000 measured).
const EGRESS_VERIFIED_BUDGET: u32 = 27_000;
/// Instructions of the XDP program itself (11,100 measured).
const XDP_TRANSLATED_BUDGET: u32 = 16_000;
/// The same for the TC egress program (2,900 measured).
const EGRESS_TRANSLATED_BUDGET: u32 = 4_400;

/// The same of a program that goes on with a packet: instructions verified, and translated.
const fn continuation_budget(continuation: Continuation) -> (u32, u32) {
    match continuation {
        Continuation::Encapsulate => (6000, 1100),
        Continuation::Answer => (30_000, 3000),
        Continuation::Icmp => (36_000, 8000),
        Continuation::Capture => (1000, 500),
        Continuation::Retag => (6000, 1100),
    }
}

/// Bytes of machine code that a translated instruction becomes, on average at most (4.2 to 5.0 measured on x86-64): the
/// instruction cache has 32 KiB.
const MACHINE_BYTES: u32 = 6;

/// Bytes of one translated instruction.
const INSTRUCTION_BYTES: u32 = 8;

fn open(test_clock: bool) -> (Lab, Dataplane) {
    let lab = Lab::new().unwrap();
    let settings = Settings {
        pin_directory: lab.pin_directory(),
        capacity: Capacity::default(),
        test_clock,
    };
    let dataplane = Dataplane::open(&settings).unwrap_or_else(|error| panic!("{error}"));
    (lab, dataplane)
}

/// The programs as they go into production: their own clock, tables of full size.
#[test]
fn programs_load_within_their_budget() {
    if !privileged() {
        return;
    }
    for test_clock in [false, true] {
        let (_lab, mut dataplane) = open(test_clock);
        let xdp = dataplane.xdp().unwrap().info().unwrap();
        let egress = dataplane.egress().unwrap().info().unwrap();
        let ingress = dataplane.ingress().unwrap().info().unwrap();
        let mut programs = vec![
            (
                "enforcer_ingress",
                ingress,
                INGRESS_VERIFIED_BUDGET,
                INGRESS_TRANSLATED_BUDGET,
            ),
            ("enforcer_xdp", xdp, XDP_VERIFIED_BUDGET, XDP_TRANSLATED_BUDGET),
            (
                "enforcer_egress",
                egress,
                EGRESS_VERIFIED_BUDGET,
                EGRESS_TRANSLATED_BUDGET,
            ),
        ];
        for continuation in Continuation::ALL {
            let info = dataplane.continuation(*continuation).unwrap().info().unwrap();
            let (verified_budget, translated_budget) = continuation_budget(*continuation);
            programs.push((continuation.program(), info, verified_budget, translated_budget));
            let info = dataplane.tc_continuation(*continuation).unwrap().info().unwrap();
            programs.push((
                continuation.tc_program(),
                info,
                verified_budget,
                translated_budget,
            ));
        }
        for (name, info, verified_budget, translated_budget) in programs {
            let verified = info
                .verified_instruction_count()
                .expect("a kernel of 5.16 or later");
            let translated = info.size_translated().expect("a privileged caller") / INSTRUCTION_BYTES;
            let (machine, machine_budget) = (info.size_jitted(), MACHINE_BYTES * translated_budget);
            println!(
                "{name} (test clock {test_clock}): {verified} instructions verified of {verified_budget}, \
                 {translated} translated of {translated_budget}, {machine} bytes of machine code of {machine_budget}"
            );
            assert!(
                verified <= verified_budget,
                "{name}: the verifier walks {verified} instructions"
            );
            assert!(
                translated <= translated_budget,
                "{name} has {translated} instructions"
            );
            assert!(
                machine <= machine_budget,
                "{name} is {machine} bytes of machine code"
            );
            assert_eq!(info.gpl_compatible(), Some(true), "{name}");
        }
    }
}

/// The maps that the kernel made are those that the schema lists, no more and no less.
#[test]
fn maps_are_made_as_the_schema_says() {
    if !privileged() {
        return;
    }
    let (lab, _dataplane) = open(false);
    let directory = map_directory(&lab.pin_directory());
    let mut pinned: Vec<String> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pinned.sort();
    let mut listed: Vec<String> = MAPS.iter().map(|map| map.name.to_owned()).collect();
    listed.sort();
    assert_eq!(pinned, listed);
    for spec in MAPS {
        let info = MapInfo::from_pin(directory.join(spec.name)).unwrap();
        let (kind, value_bytes) = match spec.kind {
            "Array" | "PageArray" => (MapType::Array, spec.value_bytes),
            "PerCpuArray" => (MapType::PerCpuArray, spec.value_bytes),
            "HashMap" => (MapType::Hash, spec.value_bytes),
            "RingBuf" => (MapType::RingBuf, 0),
            other => panic!("{}: no kind of map is called {other}", spec.name),
        };
        assert_eq!(info.map_type().unwrap(), kind, "{}", spec.name);
        assert_eq!(
            (info.key_size(), info.value_size(), info.max_entries()),
            (spec.key_bytes, value_bytes, spec.capacity),
            "{}: bytes of a key, bytes of a value, entries",
            spec.name
        );
    }
}

/// Maps, records and reason codes as text, in the order of their declaration.
fn layout() -> String {
    let mut text = format!("schema version {SCHEMA_VERSION}\n\nmap kind key-bytes value-bytes capacity\n");
    for map in MAPS {
        writeln!(
            text,
            "{} {} {} {} {}{}",
            map.name,
            map.kind,
            map.key_bytes,
            map.value_bytes,
            map.capacity,
            if map.sized { " by default" } else { "" }
        )
        .unwrap();
    }
    for (record, fields) in RECORDS {
        let bytes: usize = fields.iter().map(|(_, _, bytes)| bytes).sum();
        writeln!(text, "\n{record} {bytes} bytes: field offset bytes").unwrap();
        for (field, offset, bytes) in *fields {
            writeln!(text, "  {field} {offset} {bytes}").unwrap();
        }
    }
    text.push_str("\nreason number effect\n");
    for reason in Reason::ALL {
        writeln!(text, "{} {} {:?}", reason.name(), *reason as u32, reason.effect()).unwrap();
    }
    text
}

/// A change of this table breaks the adoption of pinned maps, and the numbers in old audit records: it is made on
/// purpose, with `BLESS=1`, or not at all.
#[test]
fn the_layout_of_maps_and_records_is_the_recorded_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/layout.txt");
    let layout = layout();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &layout).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap();
    assert!(
        layout == recorded,
        "the layout differs from {}: raise SCHEMA_VERSION if the meaning changed, and run with BLESS=1\n{}",
        path.display(),
        difference(&recorded, &layout)
    );
}

/// The lines that only one of two texts has.
fn difference(old: &str, new: &str) -> String {
    let only = |sign, these: &str, those: &str| -> String {
        let those: Vec<&str> = those.lines().collect();
        let lines = these.lines().filter(|line| !those.contains(line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    only('-', old, new) + &only('+', new, old)
}
