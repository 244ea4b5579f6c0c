//! Failures: servers that die, an agent that is killed.

use std::thread;
use std::time::{Duration, Instant};

use enforcer_agent::api::reply::{BackendHealth, StatusReply};
use enforcer_agent::pure::audit::{Direction, Kind};

use super::admission::refused_plan;
use crate::client::Summary;
use crate::demo::report::Step;
use crate::demo::world::{CHAT, LIMIT, World, causes, packets_of};
use crate::harness::{HarnessError, KernelObjects};

/// What became of the tenants' connections while servers died.
struct Deaths {
    /// acme and initech, when one compliant server was left.
    one_left: [Summary; 2],
    /// acme, when none was.
    none_left: Summary,
    /// Packets that acme lost then, by the reason's own counter.
    refused: u64,
    /// initech, then.
    elsewhere: Summary,
}

pub(super) fn back_ends_die(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let first_record = world.next_record()?;
    // The stream goes with the server that it is on.
    world.streams.remove("acme");
    let deaths = deaths(world, step)?;
    for (who, summary) in ["acme", "initech"].iter().zip(&deaths.one_left) {
        let what = format!("{who}'s answers, all from gpu-2");
        step.equal(&what, answers_from(summary, "gpu-2"), summary.attempted);
    }
    let Deaths {
        none_left, elsewhere, ..
    } = &deaths;
    step.equal("acme's answers without a compliant server", none_left.ok, 0);
    step.at_least("its packets refused as NoHealthyBackend", deaths.refused, 10);
    step.equal(
        "initech's answers, all from gpu-3 in the other region",
        answers_from(elsewhere, "gpu-3"),
        elsewhere.attempted,
    );
    let strays = world.audit_from(1)?.into_iter().filter(|record| {
        let back_end = record.entry.backend.as_deref().unwrap_or_default();
        record.entry.tenant.as_deref() == Some("acme") && back_end.starts_with("gpu-3")
    });
    step.equal("audit records of acme on gpu-3, ever", strays.count(), 0);
    let pool = world.wait_for_record(first_record, "pool h100-eu failed", |record| {
        record.entry.kind == Kind::PoolState && record.entry.backend.as_deref() == Some("h100-eu")
    })?;
    let causes = causes(&pool);
    step.check(
        "cause in the audit record of the pool's failure",
        !causes.is_empty(),
        "a cause",
        causes,
    );
    for gpu in ["gpu-1", "gpu-2"] {
        world.start_gpu(gpu)?;
    }
    for gpu in ["gpu-1", "gpu-2"] {
        world.wait_for_back_end(gpu, "healthy again", |row| {
            row.health == BackendHealth::Healthy && row.weight > 0
        })?;
    }
    Ok(())
}

fn deaths(world: &mut World, step: &mut Step<'_>) -> Result<Deaths, HarnessError> {
    let dead_after = kill_and_wait(world, "gpu-1")?;
    let one_left = world.load_all([
        ("acme", world.plan("acme", CHAT, 40.0, 0.5)),
        ("initech", world.plan("initech", CHAT, 40.0, 0.5)),
    ])?;
    kill_and_wait(world, "gpu-2")?;
    let before = world.tenant_packets("acme", "NoHealthyBackend")?;
    let none_left = world.load("acme", refused_plan(world, "acme", CHAT, 10))?;
    let refused = world.tenant_packets("acme", "NoHealthyBackend")? - before;
    let elsewhere = world.load("initech", world.plan("initech", CHAT, 40.0, 0.5))?;
    let row = |event: &str, who: &str, summary: &Summary| {
        let answers = summary.back_ends.iter();
        let answers: Vec<String> = answers
            .map(|(name, count)| format!("{count} of {name}"))
            .collect();
        let none = answers.is_empty().then(|| "none".into());
        [
            event.to_owned(),
            who.to_owned(),
            none.unwrap_or_else(|| answers.join(", ")),
        ]
    };
    step.table(
        ["event", "tenant", "answers"],
        &[
            row("gpu-1 is dead", "acme (eu only)", &one_left[0]),
            row("gpu-1 is dead", "initech", &one_left[1]),
            row("gpu-2 is dead too", "acme (eu only)", &none_left),
            row("gpu-2 is dead too", "initech", &elsewhere),
        ],
    );
    step.figure("detectedAfterMs", dead_after.as_secs_f64() * 1000.0);
    Ok(Deaths {
        one_left,
        none_left,
        refused,
        elsewhere,
    })
}

fn answers_from(summary: &Summary, back_end: &str) -> u64 {
    summary.back_ends.get(back_end).copied().unwrap_or_default()
}

fn kill_and_wait(world: &mut World, gpu: &str) -> Result<Duration, HarnessError> {
    world.kill_gpu(gpu)?;
    let killed = Instant::now();
    world.wait_for_back_end(gpu, "unhealthy", |row| row.health == BackendHealth::Unhealthy)?;
    Ok(killed.elapsed())
}

pub(super) fn agent_dies(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let before = world.status()?;
    let objects = world.agent.kernel_objects()?;
    step.command(format_args!("kill -9 {}", world.agent.pid().unwrap_or_default()));
    world.agent.kill()?;
    world.stream("initech")?.wait_for_more(LIMIT)?;
    let stranger = world.load("stranger", refused_plan(world, "stranger", CHAT, 5))?;
    let without_agent = world.load("initech", world.plan("initech", CHAT, 40.0, 0.5))?;

    // Connections are opened all the time while the new agent takes over.
    let plan = world.plan("initech", CHAT, 80.0, 2.0);
    let host = world.client("initech").host.clone();
    let load =
        thread::spawn(move || host.block_on(|| crate::client::run(plan, std::future::pending(), |_| ())));
    let started = Instant::now();
    let after = world.agent.start()?;
    let start_ms = started.elapsed().as_secs_f64() * 1000.0;
    let through_restart = load
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
    step.say(format_args!(
        "a new agent answers after {start_ms:.0} ms, generation {}",
        after.generation
    ));

    step.equal(
        "connections of an unknown source without an agent",
        stranger.ok,
        0,
    );
    step.equal(
        "initech's connections that were answered without an agent",
        without_agent.ok,
        without_agent.attempted,
    );
    step.equal(
        "and while the new one took over",
        through_restart.ok,
        through_restart.attempted,
    );
    let gap = world.stream("initech")?.wait_for_more(LIMIT)?;
    step.within(
        "its stream, open all the while, goes on after ms",
        gap.as_secs_f64() * 1000.0,
        0.0,
        1000.0,
    );
    step.figure("restartMs", start_ms);
    adopted(
        step,
        [&objects, &world.agent.kernel_objects()?],
        [&before, &after],
    );
    Ok(())
}

/// The new agent goes on where the old one ended: both pairs are what there was before and what there is now.
fn adopted(step: &mut Step<'_>, objects: [&KernelObjects; 2], statuses: [&StatusReply; 2]) {
    let [before, now] = objects.map(|objects| &objects.links);
    step.check(
        "links to the interfaces",
        now == before,
        "the very same",
        format_args!(
            "{} of {} are the same",
            now.intersection(before).count(),
            before.len()
        ),
    );
    let [before, now] = statuses.map(|status| {
        let digest = status.policy.as_ref().map(|policy| policy.digest.as_str());
        let counted = packets_of(status, Direction::Ingress, "Allowed");
        (digest.unwrap_or_default(), counted)
    });
    step.equal("policy digest after the restart", now.0, before.0);
    step.at_least(
        "packets counted as Allowed, kept over the restart",
        now.1,
        before.1,
    );
}
