//! Start, admission, refusal.

use std::net::SocketAddr;
use std::time::Duration;

use enforcer_agent::api::reply::{BackendHealth, IngressMode, PolicyApplyReply};
use enforcer_agent::pure::audit::{Direction, Kind};

use crate::client::{LoadPlan, Summary};
use crate::demo::report::Step;
use crate::demo::world::{BATCH, CHAT, World, text};
use crate::harness::HarnessError;

/// How far a share may lie from the weight's: with 250 connections, over four standard deviations of the most
/// uncertain share.
const SHARE_TOLERANCE: f64 = 0.13;
/// How long a connection is tried that is expected to be refused: less than the second after which a SYN is sent again.
const REFUSED_LIMIT: Duration = Duration::from_millis(400);

pub(super) fn start(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    world.frames_before = world.frames_received()?;
    world.agent.start()?;
    world.frames_after_attach = world.frames_received()?;
    let policy = world.file("policy.yaml");
    step.command(format_args!("enforcer-agent policy apply {}", policy.display()));
    let applied: PolicyApplyReply = world.agent.ask(&["policy", "apply", text(&policy)])?;
    step.say(format_args!(
        "policy {} is generation {}, digest {}, {} map writes",
        applied.name,
        applied.generation,
        applied.digest.chars().take(12).collect::<String>(),
        applied.map_writes
    ));
    let names: Vec<String> = world.back_ends()?.into_keys().collect();
    for name in &names {
        world.wait_for_back_end(name, "healthy, with a known next hop", |row| {
            row.health == BackendHealth::Healthy && row.next_hop.is_some()
        })?;
    }
    let status = world.status()?;
    let native = status
        .interfaces
        .iter()
        .filter(|interface| interface.mode == IngressMode::Native);
    step.equal("interfaces with XDP in the driver", native.count(), 7);
    step.equal("back ends that are healthy and reachable", names.len(), 4);
    let digest = status.policy.map(|policy| policy.digest).unwrap_or_default();
    step.equal("digest in force", digest, applied.digest);
    step.figure("mapWrites", applied.map_writes);
    Ok(())
}

pub(super) fn admitted(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let first_record = world.next_record()?;
    let weights = world.back_ends()?;
    let [acme, initech] = world.load_all([
        ("acme", world.plan("acme", CHAT, 100.0, 2.5)),
        ("initech", world.plan("initech", BATCH, 40.0, 2.5)),
    ])?;
    let total: f64 = ["gpu-1", "gpu-2"]
        .iter()
        .map(|name| f64::from(weights[*name].weight))
        .sum();
    let mut rows = Vec::new();
    for (tenant, service, summary) in [
        ("acme", "chat, IPv4, Nat", &acme),
        ("initech", "batch, IPv6, Dnat", &initech),
    ] {
        for (back_end, count) in &summary.back_ends {
            let weight = weights.get(back_end).map_or(0, |row| row.weight);
            rows.push([
                tenant.to_owned(),
                service.to_owned(),
                back_end.clone(),
                weight.to_string(),
                count.to_string(),
                format!("{:.1}%", share(summary, back_end) * 100.0),
            ]);
        }
    }
    step.table(
        ["tenant", "service", "back end", "weight", "answers", "share"],
        &rows,
    );
    step.equal(
        "acme's streams that were answered in full",
        acme.ok,
        acme.attempted,
    );
    step.equal("initech's, over IPv6", initech.ok, initech.attempted);
    for name in ["gpu-1", "gpu-2"] {
        let (found, ideal) = (share(&acme, name), f64::from(weights[name].weight) / total);
        step.within(
            &format!("share of {name}, by weight {ideal:.2}"),
            found,
            ideal - SHARE_TOLERANCE,
            ideal + SHARE_TOLERANCE,
        );
        world.shares.insert(name.into(), found);
    }
    step.equal("initech's answers from gpu-3", share(&initech, "gpu-3"), 1.0);
    let record = world.wait_for_record(first_record, "acme's connection", |record| {
        record.entry.kind == Kind::FlowOpened && record.entry.tenant.as_deref() == Some("acme")
    })?;
    step.equal(
        "rule in the audit record of one of them",
        record.entry.rule.unwrap_or_default().as_str(),
        "chat-for-all",
    );
    step.figure("acme", &acme);
    step.figure("initech", &initech);
    Ok(())
}

/// The share of answers that came from a back end.
pub(super) fn share(summary: &Summary, back_end: &str) -> f64 {
    let all: u64 = summary.back_ends.values().sum();
    summary.back_ends.get(back_end).copied().unwrap_or_default() as f64 / all.max(1) as f64
}

/// A plan whose connections are expected to be refused.
pub(super) fn refused_plan(world: &World, tenant: &str, service: SocketAddr, requests: u64) -> LoadPlan {
    LoadPlan {
        requests: Some(requests),
        connect_timeout: REFUSED_LIMIT,
        ..world.plan(tenant, service, 100.0, 5.0)
    }
}

/// Who tries what, and the reason that it should get.
struct Attempt {
    who: &'static str,
    what: &'static str,
    target: SocketAddr,
    reason: &'static str,
}

pub(super) fn refused(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    const REQUESTS: u64 = 10;
    let gpu: SocketAddr = (world.gpu("gpu-3").ipv4, 8000).into();
    let attempt = |who, what, target, reason| Attempt {
        who,
        what,
        target,
        reason,
    };
    let attempts = [
        attempt(
            "stranger",
            "chat, from no tenant's network",
            CHAT,
            "UnknownTenant",
        ),
        attempt("acme", "batch, which no rule allows it", BATCH, "NoRule"),
        attempt("globex", "gpu-3 directly, around the balancer", gpu, "Bypass"),
    ];
    let first_record = world.next_record()?;
    let mut rows = Vec::new();
    let mut counts = Vec::new();
    for Attempt {
        who,
        what,
        target,
        reason,
    } in attempts
    {
        let before = world.packets(Direction::Ingress, reason)?;
        let summary = world.load(who, refused_plan(world, who, target, REQUESTS))?;
        let counted = world.packets(Direction::Ingress, reason)? - before;
        rows.push([
            who.into(),
            what.into(),
            summary.ok.to_string(),
            reason.into(),
            counted.to_string(),
        ]);
        counts.push((who, reason, summary, counted));
    }
    step.table(["who", "tries", "answers", "reason", "packets"], &rows);
    for (who, reason, summary, counted) in counts {
        step.equal(
            &format!("{who}'s connections that nobody answered"),
            summary.connect_timeouts,
            REQUESTS,
        );
        step.at_least(&format!("packets of them counted as {reason}"), counted, REQUESTS);
        recorded(world, step, first_record, who, reason)?;
    }
    // Nobody listens there, and it is the host itself that says so: what is not for a service passes untouched.
    let own: SocketAddr = ([10, 1, 4, 1], 22).into();
    let summary = world.load("stranger", refused_plan(world, "stranger", own, 3))?;
    step.equal(
        "connections to the balancer's own address that reached it",
        summary.refused,
        3,
    );
    Ok(())
}

/// A refusal is in the audit log, with the one who was refused as its source.
fn recorded(
    world: &World,
    step: &mut Step<'_>,
    from: u64,
    who: &str,
    reason: &str,
) -> Result<(), HarnessError> {
    let record = world.wait_for_record(from, reason, |record| {
        record.entry.kind == Kind::Refused && record.entry.reason.as_deref() == Some(reason)
    })?;
    let source = record.entry.flow.map(|flow| flow.from.ip());
    let leaf = world.client(who);
    step.check(
        &format!("source in the audit record of {reason}"),
        source == Some(leaf.ipv4.into()) || source == Some(leaf.ipv6.into()),
        who,
        source.map_or("none".into(), |source| source.to_string()),
    );
    Ok(())
}
