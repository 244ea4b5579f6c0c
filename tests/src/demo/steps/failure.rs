//! Failures: servers that die, an agent that is killed.

use std::thread;
use std::time::{Duration, Instant};

use enforcer_agent::api::reply::BackendHealth;
use enforcer_agent::pure::audit::{Direction, Kind};

use super::admission::refused_plan;
use crate::client::Summary;
use crate::demo::report::Step;
use crate::demo::world::{CHAT, LIMIT, World};
use crate::harness::HarnessError;

pub(super) fn back_ends_die(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let first_record = world.next_record()?;
    // The stream goes with the server that it is on.
    world.streams.remove("acme");
    let mut rows = Vec::new();
    let mut found = |event: &str, who: &str, summary: &Summary| {
        let answers: Vec<String> = summary
            .back_ends
            .iter()
            .map(|(name, count)| format!("{count} of {name}"))
            .collect();
        let answers = if answers.is_empty() {
            "none".into()
        } else {
            answers.join(", ")
        };
        rows.push([event.to_owned(), who.to_owned(), answers]);
    };
    let dead_after = kill_and_wait(world, "gpu-1")?;
    let one_left = world.load_all([
        ("acme", world.plan("acme", CHAT, 40.0, 0.5)),
        ("initech", world.plan("initech", CHAT, 40.0, 0.5)),
    ])?;
    found("gpu-1 is dead", "acme (eu only)", &one_left[0]);
    found("gpu-1 is dead", "initech", &one_left[1]);

    kill_and_wait(world, "gpu-2")?;
    let before = world.tenant_packets("acme", "NoHealthyBackend")?;
    let none_left = world.load("acme", refused_plan(world, "acme", CHAT, 10))?;
    let refused = world.tenant_packets("acme", "NoHealthyBackend")? - before;
    let elsewhere = world.load("initech", world.plan("initech", CHAT, 40.0, 0.5))?;
    found("gpu-2 is dead too", "acme (eu only)", &none_left);
    found("gpu-2 is dead too", "initech", &elsewhere);
    step.table(["event", "tenant", "answers"], &rows);

    for (who, summary) in ["acme", "initech"].iter().zip(&one_left) {
        let from_gpu_2 = summary.back_ends.get("gpu-2").copied().unwrap_or_default();
        step.equal(
            &format!("{who}'s answers, all from gpu-2"),
            from_gpu_2,
            summary.attempted,
        );
    }
    step.equal("acme's answers without a compliant server", none_left.ok, 0);
    step.at_least("its packets refused as NoHealthyBackend", refused, 10);
    let from_gpu_3 = elsewhere.back_ends.get("gpu-3").copied().unwrap_or_default();
    step.equal(
        "initech's answers, all from gpu-3 in the other region",
        from_gpu_3,
        elsewhere.attempted,
    );
    let strays = world.audit_from(1)?.into_iter().filter(|record| {
        let is_us = record
            .entry
            .backend
            .as_deref()
            .is_some_and(|name| name.starts_with("gpu-3"));
        record.entry.tenant.as_deref() == Some("acme") && is_us
    });
    step.equal("audit records of acme on gpu-3, ever", strays.count(), 0);
    let pool = world.wait_for_record(first_record, "pool h100-eu failed", |record| {
        record.entry.kind == Kind::PoolState && record.entry.backend.as_deref() == Some("h100-eu")
    })?;
    let causes = pool
        .entry
        .change
        .map(|change| change.causes)
        .unwrap_or_default()
        .join("; ");
    step.check(
        "cause in the audit record of the pool's failure",
        !causes.is_empty(),
        "a cause",
        causes,
    );
    step.figure("detectedAfterMs", dead_after.as_secs_f64() * 1000.0);

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
    let now = world.agent.kernel_objects()?;
    step.check(
        "links to the interfaces",
        now.links == objects.links,
        "the very same",
        format_args!(
            "{} of {} are the same",
            now.links.intersection(&objects.links).count(),
            objects.links.len()
        ),
    );
    let digest = |status: &enforcer_agent::api::reply::StatusReply| {
        status
            .policy
            .as_ref()
            .map(|policy| policy.digest.clone())
            .unwrap_or_default()
    };
    step.equal("policy digest after the restart", digest(&after), digest(&before));
    let counted = |status| crate::demo::world::packets_of(status, Direction::Ingress, "Allowed");
    step.at_least(
        "packets counted as Allowed, kept over the restart",
        counted(&after),
        counted(&before),
    );
    step.figure("restartMs", start_ms);
    world.kernel_objects = now;
    Ok(())
}
