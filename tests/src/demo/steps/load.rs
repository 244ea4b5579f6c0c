//! Load: a noisy tenant, a saturated server.

use std::collections::BTreeMap;

use enforcer_agent::api::reply::BackendRow;
use enforcer_agent::pure::audit::{AuditRecord, Kind};

use super::admission::share;
use crate::client::Summary;
use crate::demo::report::Step;
use crate::demo::world::{CHAT, OWN_SERVER, World, causes};
use crate::harness::{self, HarnessError};

/// globex's limits in the policy: new connections a second, and how many may come at once.
const RATE: f64 = 20.0;
const BURST: f64 = 10.0;
/// How long it is noisy, and how many connections a second it tries to open.
const NOISY_SECONDS: f64 = 3.0;
const NOISY_RATE: f64 = 200.0;
/// How far a measured rate may lie from the limit: the load client's clock starts and ends a little off.
const RATE_TOLERANCE: f64 = 0.1;
/// By how much the 99th percentile of a quiet tenant's latency may grow, above a floor that a busy machine's scheduler
/// alone can cause.
const LATENCY_RATIO: f64 = 3.0;
const LATENCY_FLOOR_MS: f64 = 40.0;
/// gpu-1 says that it is full: as many requests wait as its capacity stands for, and its cache has no room.
const SATURATED: &str = r#"{"running": 64, "waiting": 2000, "kv_cache": 1.0}"#;
/// The share of its full weight that the saturated server is waited to fall to.
const SATURATED_SHARE: f64 = 0.2;
/// See `admission`: for 200 connections.
const SHARE_TOLERANCE: f64 = 0.14;

pub(super) fn noisy_neighbour(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let quiet = world.load("acme", world.plan("acme", CHAT, 60.0, 2.0))?;
    let refused_before = world.tenant_packets("globex", "ConnectionRate")?;
    let [acme, globex] = world.load_all([
        ("acme", world.plan("acme", CHAT, 60.0, NOISY_SECONDS)),
        ("globex", world.plan("globex", CHAT, NOISY_RATE, NOISY_SECONDS)),
    ])?;
    let refused = world.tenant_packets("globex", "ConnectionRate")? - refused_before;
    let p99 = |summary: &Summary| summary.latency_ms.p99.unwrap_or(f64::NAN);
    let row = |who: &str, when: &str, summary: &Summary| {
        [
            who.to_owned(),
            when.to_owned(),
            format!(
                "{:.0}",
                summary.attempted as f64 / summary.seconds.min(NOISY_SECONDS)
            ),
            summary.ok.to_string(),
            format!("{:.1}", p99(summary)),
        ]
    };
    step.table(
        ["tenant", "when", "tries a second", "answers", "p99 ms"],
        &[
            row("acme", "alone", &quiet),
            row("acme", "beside globex", &acme),
            row("globex", "limit: 20 a second", &globex),
        ],
    );
    let (least, most) = (RATE * NOISY_SECONDS, RATE * NOISY_SECONDS + BURST);
    step.within(
        &format!(
            "globex's connections in {NOISY_SECONDS} s, of {} tried",
            globex.attempted
        ),
        globex.ok as f64,
        least * (1.0 - RATE_TOLERANCE),
        most * (1.0 + RATE_TOLERANCE),
    );
    step.at_least(
        "its packets refused as ConnectionRate",
        refused,
        globex.connect_timeouts,
    );
    step.equal(
        "acme's streams that were answered in full",
        acme.ok,
        acme.attempted,
    );
    step.within(
        &format!("acme's p99 in ms, {:.1} when alone", p99(&quiet)),
        p99(&acme),
        0.0,
        LATENCY_RATIO * p99(&quiet).max(LATENCY_FLOOR_MS),
    );
    step.figure("acmeAlone", &quiet);
    step.figure("acme", &acme);
    step.figure("globex", &globex);
    Ok(())
}

pub(super) fn saturation(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let first_record = world.next_record()?;
    let gpu = world.gpu("gpu-1").host.clone();
    step.command(format_args!(
        "curl -X POST gpu-1:8000/admin/saturate -d '{SATURATED}'"
    ));
    harness::post(&gpu, OWN_SERVER, "/admin/saturate", SATURATED)?;
    world.wait_for_back_end("gpu-1", "a fifth of its weight", |row| {
        f64::from(row.weight) <= SATURATED_SHARE * f64::from(row.full_weight)
    })?;
    let before = world.back_ends()?;
    let summary = world.load("acme", world.plan("acme", CHAT, 100.0, 2.0))?;
    let after = world.back_ends()?;
    harness::post(&gpu, OWN_SERVER, "/admin/clear", "")?;

    let old_share = world.shares.get("gpu-1").copied().unwrap_or_default();
    let new_share = share(&summary, "gpu-1");
    let rows = ["gpu-1", "gpu-2"].map(|name| {
        let BackendRow {
            full_weight, weight, ..
        } = &after[name];
        let shares = [
            world.shares.get(name).copied().unwrap_or_default(),
            share(&summary, name),
        ];
        let [old, new] = shares.map(|share| format!("{:.1}%", share * 100.0));
        [
            name.to_owned(),
            full_weight.to_string(),
            weight.to_string(),
            old,
            new,
        ]
    });
    step.table(
        ["back end", "full weight", "weight", "share before", "share now"],
        &rows,
    );
    step.equal(
        "acme's streams that were answered in full",
        summary.ok,
        summary.attempted,
    );
    // The weight goes on falling while it is measured: the share lies between what it began and ended with.
    let (began, ended) = (ideal_share(&before), ideal_share(&after));
    let (least, most) = (ended.min(began), ended.max(began));
    step.within(
        &format!("share of gpu-1, by weight {least:.2} to {most:.2}"),
        new_share,
        least - SHARE_TOLERANCE,
        most + SHARE_TOLERANCE,
    );
    step.within("fall of its share", old_share - new_share, 0.2, 1.0);
    signal_recorded(world, step, first_record)?;
    step.figure("shareBefore", old_share);
    step.figure("shareAfter", new_share);
    Ok(())
}

/// The audit log says which signal moved the weight.
fn signal_recorded(world: &World, step: &mut Step<'_>, first_record: u64) -> Result<(), HarnessError> {
    let names_signal = |record: &AuditRecord| {
        let causes = causes(record);
        causes.contains("requests wait") || causes.contains("key-value cache")
    };
    let record = world.wait_for_record(
        first_record,
        "gpu-1's weight and the signal that moved it",
        |record| {
            let is_weight = record.entry.kind == Kind::WeightChange;
            is_weight && record.entry.backend.as_deref() == Some("gpu-1") && names_signal(record)
        },
    )?;
    step.check(
        "signal in the audit record of the change",
        true,
        "the queue or the key-value cache",
        causes(&record),
    );
    Ok(())
}

/// The share of gpu-1 that the weights ask for.
fn ideal_share(back_ends: &BTreeMap<String, BackendRow>) -> f64 {
    let [first, second] = ["gpu-1", "gpu-2"].map(|name| f64::from(back_ends[name].weight));
    first / (first + second)
}
