//! Changes while traffic flows: a rule, a suspension.

use std::time::{Duration, Instant};

use enforcer_agent::api::reply::{ChangeReply, PolicyApplyReply};
use enforcer_agent::pure::audit::{AuditRecord, Kind};

use super::admission::refused_plan;
use crate::demo::report::Step;
use crate::demo::world::{BATCH, CHAT, LIMIT, World, text};
use crate::harness::HarnessError;

/// A stream brings a token every 5 ms: after so long without one it has stopped.
const QUIET: Duration = Duration::from_millis(400);
/// How soon open connections have to obey: the command itself, the file system and the scheduler included.
const OBEY_LIMIT_MS: f64 = 2000.0;

pub(super) fn policy(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    world.open_stream("globex", BATCH)?;
    world.open_stream("initech", BATCH)?;
    world.open_stream("acme", CHAT)?;
    for tenant in ["globex", "initech", "acme"] {
        world.stream(tenant)?.wait_for_more(LIMIT)?;
    }
    let generation = world.status()?.generation;
    malformed(world, step)?;

    let first_record = world.next_record()?;
    let changed = world.edit_policy(
        "policy-changed.yaml",
        "name: batch-for-globex, action: Allow",
        "name: batch-for-globex, action: Deny",
    )?;
    step.command(format_args!("enforcer-agent policy apply {}", changed.display()));
    let started = Instant::now();
    let applied: PolicyApplyReply = world.agent.ask(&["policy", "apply", text(&changed)])?;
    let command_ms = started.elapsed().as_secs_f64() * 1000.0;
    let stopped = world.stream("globex")?.wait_for_silence(QUIET, LIMIT)?;
    step.say(format_args!(
        "generation {} took {command_ms:.0} ms; rule batch-for-globex is now Deny",
        applied.generation
    ));
    step.check(
        "generation",
        applied.generation > generation,
        format_args!("more than {generation}"),
        applied.generation,
    );
    let obeyed_ms = command_ms + stopped.as_secs_f64() * 1000.0;
    step.within(
        "globex's open stream stopped after ms",
        obeyed_ms,
        0.0,
        OBEY_LIMIT_MS,
    );
    for tenant in ["initech", "acme"] {
        let gap = world.stream(tenant)?.wait_for_more(LIMIT)?;
        step.within(
            &format!("{tenant}'s open stream went on after ms"),
            gap.as_secs_f64() * 1000.0,
            0.0,
            1000.0,
        );
    }
    let summary = world.load("globex", refused_plan(world, "globex", BATCH, 5))?;
    step.equal("globex's new connections to batch", summary.ok, 0);
    step.at_least(
        "its packets refused as RuleDeny",
        world.tenant_packets("globex", "RuleDeny")?,
        5,
    );
    world.streams.remove("globex");
    let record = wait_for_control(world, first_record, "policyApply")?;
    let uid = record
        .entry
        .actor
        .map_or("nobody".into(), |actor| format!("uid {}", actor.uid));
    step.equal("actor in the audit record of the change", uid.as_str(), "uid 0");
    step.figure("obeyedMs", obeyed_ms);
    Ok(())
}

/// A policy with an error changes nothing.
fn malformed(world: &World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let before = world.status()?;
    let broken = world.edit_policy("policy-broken.yaml", "  rules:", "  ruels:")?;
    let output = world.agent.command(&["policy", "apply", text(&broken)])?;
    let after = world.status()?;
    let code = output.status.code().unwrap_or(-1);
    step.equal("exit code of applying a policy with a misspelt field", code, 1);
    let unchanged = before.policy == after.policy && before.generation == after.generation;
    step.check(
        "what is in force after it",
        unchanged,
        "the same",
        if unchanged { "the same" } else { "another" },
    );
    Ok(())
}

fn wait_for_control(world: &World, from: u64, what: &str) -> Result<AuditRecord, HarnessError> {
    world.wait_for_record(from, what, |record| {
        let change = record.entry.change.as_ref();
        record.entry.kind == Kind::Control && change.is_some_and(|change| change.what == what)
    })
}

pub(super) fn suspension(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let first_record = world.next_record()?;
    step.command("enforcer-agent tenant suspend initech");
    let started = Instant::now();
    let reply: ChangeReply = world.agent.ask(&["tenant", "suspend", "initech"])?;
    let command_ms = started.elapsed().as_secs_f64() * 1000.0;
    step.check(
        "suspension",
        reply.changed,
        "a change",
        if reply.changed { "a change" } else { "none" },
    );
    let stopped = world.stream("initech")?.wait_for_silence(QUIET, LIMIT)?;
    let obeyed_ms = command_ms + stopped.as_secs_f64() * 1000.0;
    step.within(
        "initech's open stream stopped after ms",
        obeyed_ms,
        0.0,
        OBEY_LIMIT_MS,
    );
    let summary = world.load("initech", refused_plan(world, "initech", CHAT, 5))?;
    step.equal("its new connections", summary.ok, 0);
    step.at_least(
        "its packets refused as Suspended",
        world.tenant_packets("initech", "Suspended")?,
        5,
    );
    world.stream("acme")?.wait_for_more(LIMIT)?;
    wait_for_control(world, first_record, "tenantSuspend")?;

    step.command("enforcer-agent tenant resume initech");
    world.agent.ask::<ChangeReply>(&["tenant", "resume", "initech"])?;
    // The server sends again what was lost, as TCP does: the stream picks up where it stopped.
    let resumed = world.stream("initech")?.wait_for_more(LIMIT)?;
    step.within(
        "its open stream goes on after ms",
        resumed.as_secs_f64() * 1000.0,
        0.0,
        LIMIT.as_secs_f64() * 1000.0,
    );
    let summary = world.load("initech", world.plan("initech", CHAT, 20.0, 0.5))?;
    step.equal(
        "its new connections that were answered",
        summary.ok,
        summary.attempted,
    );
    wait_for_control(world, first_record, "tenantResume")?;
    step.figure("obeyedMs", obeyed_ms);
    Ok(())
}
