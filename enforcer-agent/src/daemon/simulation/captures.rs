//! Captures: what is asked of the programs, what their packets are told as, and that each one ends, whoever fails.

use enforcer_common::Reason;
use enforcer_common::abi::capture::{CaptureRecord, CapturedRecord};
use enforcer_common::abi::tally::DIRECTION_EGRESS;

use super::script::{Step, apply};
use super::{Fault, Simulation};
use crate::adapters::dataplane::Captures;
use crate::api::reply::{CaptureEndReply, CaptureReadReply, FrameBytes};
use crate::api::{Actor, ApiError, CaptureOrder, ErrorCode, Reply, Request};
use crate::pure::audit::{Direction, Entry, Kind};

const WHO: Actor = Actor {
    uid: 0,
    pid: Some(77),
};
const SECOND_NS: u64 = 1_000_000_000;

async fn begin() -> Simulation {
    let mut simulation = Simulation::begin().await;
    simulation.step(&apply(0)).await;
    simulation
}

fn order(reasons: &[&str]) -> CaptureOrder {
    CaptureOrder {
        reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
        tenant: None,
        service: None,
        count: 3,
        seconds: 5,
        snap_bytes: 128,
    }
}

async fn ask(simulation: &mut Simulation, request: Request) -> Result<Reply, ApiError> {
    simulation.core.answer(request, WHO).await
}

async fn start(simulation: &mut Simulation, order: CaptureOrder) -> Result<u32, ApiError> {
    match ask(simulation, Request::CaptureBegin(order)).await? {
        Reply::CaptureBegin(reply) => Ok(reply.serial),
        other => panic!("{other:?}"),
    }
}

async fn read(simulation: &mut Simulation, serial: u32) -> Result<CaptureReadReply, ApiError> {
    match ask(simulation, Request::CaptureRead { serial }).await? {
        Reply::CaptureRead(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn asked(simulation: &Simulation) -> CaptureRecord {
    simulation
        .world()
        .kernel
        .capture
        .expect("it was set at the start")
}

fn captured(simulation: &Simulation, reason: Reason) -> CapturedRecord {
    let mut record = CapturedRecord {
        now_ns: simulation.core.clock.monotonic_ns(),
        generation: 1,
        serial: asked(simulation).serial,
        ifindex: 2,
        reason: reason as u32,
        frame_bytes: 1514,
        captured_bytes: 3,
        ..CapturedRecord::ZERO
    };
    record.frame[..4].copy_from_slice(&[1, 2, 3, 4]);
    record
}

fn arrives(simulation: &Simulation, record: CapturedRecord) {
    simulation.world().kernel.captured.push_back(record);
}

/// What was recorded of captures.
fn records(simulation: &Simulation) -> Vec<Entry> {
    let world = simulation.world();
    let of_captures = |entry: &&Entry| {
        let what = entry.change.as_ref().map_or("", |change| &change.what);
        entry.kind == Kind::Control && what.starts_with("capture")
    };
    world.audit.iter().filter(of_captures).cloned().collect()
}

#[tokio::test]
async fn a_capture_asks_for_no_more_than_was_ordered() {
    let mut simulation = begin().await;
    let slot = |simulation: &Simulation, name: &str| {
        let mut tenants = simulation.core.directory.tenants.iter();
        *tenants
            .find(|(_, each)| *each == name)
            .expect("it is in the policy")
            .0
    };
    let now_ns = simulation.core.clock.monotonic_ns();
    let ordered = CaptureOrder {
        tenant: Some("globex".to_owned()),
        service: Some("chat".to_owned()),
        ..order(&["RuleDeny", "Bypass"])
    };
    let serial = start(&mut simulation, ordered).await.unwrap();
    let asked = asked(&simulation);
    let expected = CaptureRecord {
        until_ns: now_ns + 5 * SECOND_NS,
        reasons: 1 << Reason::RuleDeny as u32 | 1 << Reason::Bypass as u32,
        tenant: slot(&simulation, "globex"),
        services: [1, 0],
        snap_bytes: 128,
        packets_per_window: 64,
        serial,
    };
    assert_eq!(asked, expected);
    // One at a time.
    let busy = start(&mut simulation, order(&["Bypass"])).await.unwrap_err();
    assert_eq!(busy.code, ErrorCode::Busy);
    assert!(busy.message.contains("pid 77"), "{}", busy.message);
    assert_eq!(super::captures::asked(&simulation), expected);
}

#[tokio::test]
async fn wrong_orders_are_refused_and_ask_for_nothing() {
    let mut simulation = begin().await;
    let wrong = |edit: fn(&mut CaptureOrder)| {
        let mut wrong = order(&["Bypass"]);
        edit(&mut wrong);
        wrong
    };
    let orders = [
        (wrong(|order| order.reasons.clear()), "at least one reason"),
        (order(&["Allowed"]), "sent on"),
        (order(&["Dislike"]), "no reason `Dislike`"),
        (wrong(|order| order.count = 0), "1 to 100000 packets"),
        (wrong(|order| order.count = 100_001), "1 to 100000 packets"),
        (wrong(|order| order.seconds = 3601), "1 to 3600 seconds"),
        (wrong(|order| order.snap_bytes = 257), "14 to 256 bytes"),
        (wrong(|order| order.snap_bytes = 13), "14 to 256 bytes"),
        (
            wrong(|order| order.tenant = Some("umbrella".to_owned())),
            "no tenant `umbrella`",
        ),
        (
            wrong(|order| order.service = Some("umbrella".to_owned())),
            "no service `umbrella`",
        ),
    ];
    for (order, said) in orders {
        let refused = start(&mut simulation, order).await.unwrap_err();
        assert!(refused.message.contains(said), "{said}: {}", refused.message);
        assert_eq!(asked(&simulation), CaptureRecord::ZERO, "{said}");
    }
    assert_eq!(records(&simulation), []);
}

#[tokio::test]
async fn packets_are_told_by_name_and_only_those_that_were_asked_for() {
    let mut simulation = begin().await;
    arrives(&simulation, captured(&simulation, Reason::Bypass));
    let serial = start(&mut simulation, order(&["Bypass", "RuleDeny"]))
        .await
        .unwrap();
    assert_eq!(
        read(&mut simulation, serial).await.unwrap().packets,
        [],
        "from before"
    );
    let acme = simulation
        .core
        .state
        .slots
        .tenants
        .get("acme")
        .expect("it is in the policy");
    let (rule, _) = simulation
        .core
        .directory
        .rules
        .first_key_value()
        .expect("there is one");
    let known = CapturedRecord {
        tenant: acme,
        service: 1,
        rule: rule + 1,
        direction: DIRECTION_EGRESS,
        ..captured(&simulation, Reason::RuleDeny)
    };
    let nameless = CapturedRecord {
        tenant: 900,
        ..captured(&simulation, Reason::Bypass)
    };
    // Not asked for: a packet may read the order while it is being written.
    arrives(&simulation, captured(&simulation, Reason::NoRule));
    let stale = CapturedRecord {
        serial: serial + 1,
        ..known
    };
    for record in [stale, known, nameless] {
        arrives(&simulation, record);
    }
    let reply = read(&mut simulation, serial).await.unwrap();
    let [first, second] = &reply.packets[..] else {
        panic!("{reply:?}")
    };
    assert_eq!(first.time, simulation.core.clock.wall());
    assert_eq!((first.direction, first.frame_bytes), (Direction::Egress, 1514));
    assert_eq!(first.frame, FrameBytes(vec![1, 2, 3]));
    assert_eq!(first.reason, "RuleDeny");
    let named = [&first.tenant, &first.service, &first.rule].map(Option::as_deref);
    assert_eq!(named, [Some("acme"), Some("chat"), Some("chat-for-all")]);
    assert_eq!(second.tenant.as_deref(), Some("#900"), "it has no name any more");
    assert_eq!((&second.service, &second.rule), (&None, &None));
    assert_eq!(reply.ended, None);
}

#[tokio::test]
async fn a_capture_ends_with_its_last_packet_and_the_audit_log_has_who_and_how_many() {
    let mut simulation = begin().await;
    let serial = start(&mut simulation, order(&["Bypass"])).await.unwrap();
    simulation.world().kernel.captures = Captures {
        captured: 9,
        sampled_out: 70,
        lost: 5,
    };
    (0..9).for_each(|_| arrives(&simulation, captured(&simulation, Reason::Bypass)));
    let reply = read(&mut simulation, serial).await.unwrap();
    let ended = CaptureEndReply {
        packets: 3,
        sampled_out: 70,
        lost: 5,
    };
    assert_eq!((reply.packets.len(), reply.ended), (3, Some(ended)));
    assert_eq!(asked(&simulation), CaptureRecord::ZERO);
    let [began, ended] = &records(&simulation)[..] else {
        panic!("a capture begins and ends")
    };
    assert_eq!(
        (began.actor, ended.actor, ended.packets),
        (Some(WHO), Some(WHO), Some(3))
    );
    let over = read(&mut simulation, serial).await.unwrap_err();
    assert_eq!(over.code, ErrorCode::NotFound);
    // The next one counts from where this one ended.
    let serial = start(&mut simulation, order(&["Bypass"])).await.unwrap();
    let ended = match ask(&mut simulation, Request::CaptureEnd { serial })
        .await
        .unwrap()
    {
        Reply::CaptureEnd(ended) => ended,
        other => panic!("{other:?}"),
    };
    assert_eq!((ended.packets, ended.sampled_out, ended.lost), (0, 0, 0));
}

#[tokio::test]
async fn a_capture_ends_at_its_time_and_what_came_before_is_read() {
    let mut simulation = begin().await;
    let serial = start(&mut simulation, order(&["Bypass"])).await.unwrap();
    arrives(&simulation, captured(&simulation, Reason::Bypass));
    simulation.world().now_ns += 5 * SECOND_NS;
    let reply = read(&mut simulation, serial).await.unwrap();
    assert_eq!(
        (reply.packets.len(), reply.ended),
        (1, None),
        "at its last moment"
    );
    simulation.world().now_ns += 1;
    let reply = read(&mut simulation, serial).await.unwrap();
    assert_eq!(reply.ended.map(|ended| ended.packets), Some(1));
}

#[tokio::test]
async fn a_capture_that_nobody_reads_makes_room_for_the_next_whatever_fails() {
    let mut simulation = begin().await;
    let ordered = CaptureOrder {
        seconds: 3600,
        ..order(&["Bypass"])
    };
    let serial = start(&mut simulation, ordered.clone()).await.unwrap();
    for _ in 0..9 {
        simulation.step(&Step::Fold).await;
    }
    read(&mut simulation, serial)
        .await
        .expect("nine seconds are not too long");
    for _ in 0..9 {
        simulation.step(&Step::Fold).await;
    }
    simulation.world().set_fault(Fault::Named("set capture"));
    simulation.step(&Step::Fold).await;
    assert!(simulation.core.failing.contains_key("capture"));
    assert_ne!(asked(&simulation), CaptureRecord::ZERO);
    simulation.world().set_fault(Fault::Never);
    simulation.step(&Step::Fold).await;
    assert!(!simulation.core.failing.contains_key("capture"));
    assert_eq!(asked(&simulation), CaptureRecord::ZERO);
    let causes = |entry: &Entry| entry.change.clone().unwrap_or_default().causes;
    assert_eq!(
        records(&simulation).iter().map(causes).collect::<Vec<_>>(),
        [vec![], vec!["nobody read it any more".to_owned()]]
    );
    start(&mut simulation, ordered)
        .await
        .expect("there is room for the next");
    // An agent that starts over has nobody to show anything to.
    simulation.step(&Step::Restart).await;
    assert_eq!(asked(&simulation), CaptureRecord::ZERO);
}

#[tokio::test]
async fn nothing_is_captured_that_is_not_in_the_audit_log() {
    let mut simulation = begin().await;
    simulation.world().set_fault(Fault::Named("record synced"));
    let refused = start(&mut simulation, order(&["Bypass"])).await.unwrap_err();
    assert!(
        refused.message.starts_with("nothing was captured"),
        "{}",
        refused.message
    );
    assert_eq!(asked(&simulation), CaptureRecord::ZERO);
    simulation.world().set_fault(Fault::Never);
    start(&mut simulation, order(&["Bypass"]))
        .await
        .expect("the log is written again");
}
