//! Full tables: a reason and a counter, never a packet that slips through.

use std::time::Duration;

use enforcer_common::Reason;
use enforcer_tests::packet::{Segment, syn};
use enforcer_tests::world::World;

use super::{POLICY, opening, prepare, translated};
use crate::bench::{Scenario, Step, row};

const ROOM: u32 = 4;

fn relinked(segment: &Segment) -> Segment {
    let address = std::net::Ipv4Addr::new(10, 9, 0, 1);
    segment.clone().link(
        enforcer_tests::world::BACKEND_SIDE_MAC,
        enforcer_tests::world::mac_of(address.into()),
    )
}

fn direct(port: u16) -> Segment {
    syn(&format!("10.1.0.1:{port}"), "192.0.2.30:9000")
}

/// Fills the table, then tries `more`, then lets the flows expire and tries again.
fn filled(steps: Vec<Step>, more: &Segment, out: &Segment) -> Scenario {
    let mut steps = steps;
    steps.push(
        row("there is no room", more)
            .refused("acme", Reason::TableFull)
            .times(3)
            .into(),
    );
    steps.push(Step::Advance(Duration::from_secs(10)));
    steps.push(Step::Inspect("the sweep makes room", |bench| {
        let swept = bench.rig.sweep().unwrap();
        assert_eq!((swept.closed.len(), swept.open), (ROOM as usize, 0));
    }));
    steps.push(row("there is room again", more).opens("acme", out).into());
    Scenario {
        flow_entries: ROOM,
        prepare,
        ..Scenario::of(POLICY, steps)
    }
}

pub(super) fn flow_table() -> Scenario {
    let steps = (0..ROOM as u16)
        .map(|index| {
            row("fills the table", &direct(index + 1))
                .opens("acme", &relinked(&direct(index + 1)))
                .into()
        })
        .collect();
    filled(steps, &direct(99), &relinked(&direct(99)))
}

pub(super) fn flow_table_behind_nat() -> Scenario {
    let client = |port: u16| opening().from(&format!("10.1.0.1:{port}"));
    let out = |port: u16| translated(&client(port), "10.9.0.1:9000");
    let steps = (0..ROOM as u16)
        .map(|index| {
            row("fills both tables", &client(index + 1))
                .opens("acme", &out(index + 1))
                .into()
        })
        .collect();
    filled(steps, &client(99), &out(99))
}

/// One port for the translation: one connection to a back end.
pub(super) fn ports() -> Scenario {
    let one_port = |world: &mut World| {
        prepare(world);
        world.host.nat_port_first = 33_333;
        world.host.nat_port_count = 1;
    };
    let first = opening();
    let second = opening().from("10.1.0.2:40000");
    let third = syn("10.1.0.3:40000", "192.0.2.40:8000");
    let out = super::onward(&first, "10.9.0.250:33333", "10.9.0.1:9000");
    let beside = super::onward(&third, "10.9.0.250:33333", "10.9.0.2:9000");
    let seen = syn("10.1.0.1:40000", "192.0.2.20:8000");
    let seen_out = super::onward(&seen, "10.1.0.1:40000", "10.9.0.1:9000");
    let unseen = syn("10.1.0.4:40000", "192.0.2.20:8000");
    let steps = vec![
        row("takes the only port", &first).opens("acme", &out).into(),
        row("none is left", &second)
            .refused("acme", Reason::TranslationExhausted)
            .times(2)
            .into(),
        row("the connection that has it goes on", &first)
            .continues("acme", &out)
            .into(),
        row("the same port towards another back end", &third)
            .opens("acme", &beside)
            .transmitted()
            .into(),
        row("Dnat needs none", &seen).opens("acme", &seen_out).into(),
        row("and knows no shortage", &unseen)
            .opens("acme", &super::onward(&unseen, "10.1.0.4:40000", "10.9.0.1:9000"))
            .into(),
    ];
    Scenario {
        prepare: one_port,
        ..Scenario::of(POLICY, steps)
    }
}

#[test]
fn the_flow_table_is_full() {
    flow_table().run();
}

#[test]
fn both_flow_tables_are_full() {
    flow_table_behind_nat().run();
}

#[test]
fn no_port_is_left() {
    ports().run();
}
