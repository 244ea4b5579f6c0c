//! The books: what is counted in one place agrees with what is counted in another. And the end of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use enforcer_agent::api::reply::{DetachReply, StatusReply};
use enforcer_agent::pure::audit::{AuditRecord, Direction, Kind, verify_chain};
use enforcer_common::Reason;
use enforcer_common::abi::reason::Effect;

use crate::demo::report::Step;
use crate::demo::world::{LIMIT, METRICS, World};
use crate::harness::{self, HarnessError, eventually};

/// The title of [`detach`].
pub(in crate::demo) const DETACH_TITLE: &str = "Detach: nothing is left in the kernel";

pub(super) fn balance(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    packets(world, step)?;
    decisions(world, step)?;
    let lines = audit_lines(&world.agent.audit_directory())?;
    match verify_chain(&lines, None) {
        Ok(chain) => {
            step.equal("first record of the audit log", chain.first_sequence, 1);
            step.equal("records up to the last one", chain.records, chain.end.sequence);
        }
        Err(error) => step.check("chain of the audit log", false, "whole", error),
    }
    let answer = harness::get(world.balancer(), METRICS, "/metrics")?;
    step.equal("status of the metrics endpoint", answer.status, 200);
    let path = world.file("metrics.txt");
    fs::write(&path, &answer.body).map_err(HarnessError::io("write", path))?;
    step.figure("metricsLines", answer.body.lines().count());
    Ok(())
}

/// What the devices received is what the programs judged: nothing comes in without a verdict and a counter.
fn packets(world: &World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    // Probes come and go all the time, so the counters are read between two looks at the devices.
    let least = world.frames_received()?.saturating_sub(world.frames_after_attach);
    let status = world.status()?;
    let most = world.frames_received()?.saturating_sub(world.frames_before);
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for row in status
        .packets
        .iter()
        .filter(|row| row.direction == Direction::Ingress)
    {
        *sums.entry(&row.reason).or_default() += row.packets;
    }
    let rows: Vec<[String; 2]> = sums
        .iter()
        .map(|(reason, count)| [(*reason).into(), count.to_string()])
        .collect();
    step.table(["reason", "packets in"], &rows);
    let total: u64 = sums.values().sum();
    step.check(
        "sum over all reasons",
        (least..=most).contains(&total),
        format_args!("{least} to {most}, by the devices' own counters"),
        format_args!("{total}; the devices received {least} to {most}"),
    );
    step.figure("packetsByReason", &sums);
    Ok(())
}

/// Decisions that call for a record: those that the kernel sent, only counted, or lost are all in the log.
fn decisions(world: &World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    // The log is written within a second, so the two are looked at until they agree.
    let agreed = eventually("records of all decisions", LIMIT, || {
        let status = world.status()?;
        let tally = Tally::of(&world.audit_from(1)?);
        let agrees = tally.decisions == status.audit.recorded && tally.aggregated == status.audit.aggregated;
        let found = format!("{tally:?} in the log, {:?} in the kernel", status.audit);
        Ok(if agrees { Ok((status, tally)) } else { Err(found) })
    });
    let (status, tally) = match agreed {
        Ok(agreed) => agreed,
        Err(HarnessError::Late { last, .. }) => {
            step.check("decisions in the log", false, "those of the kernel", last);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    step.equal(
        "decisions that the kernel sent, in the log",
        tally.decisions,
        status.audit.recorded,
    );
    step.equal(
        "decisions that it only counted, in the log",
        tally.aggregated,
        status.audit.aggregated,
    );
    attribution(world, step)?;
    step.equal("decisions lost", tally.lost.max(status.audit.lost), 0);
    let decided = status.audit.recorded + status.audit.aggregated + status.audit.lost;
    let refused = refused_packets(&status);
    step.check(
        "all of these",
        decided >= refused,
        format_args!("at least the {refused} packets refused"),
        format_args!("{decided}, {refused} of them refusals"),
    );
    Ok(())
}

/// Flows outlive a policy, and its rules their place in it: the records name what decided then, not what is there now.
fn attribution(world: &World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let records = world.audit_from(1)?;
    let of_flows = records.iter().map(|record| &record.entry).filter(|entry| {
        matches!(entry.kind, Kind::FlowOpened | Kind::FlowClosed) && entry.tenant.as_deref() == Some("acme")
    });
    let rules: BTreeSet<&str> = of_flows.filter_map(|entry| entry.rule.as_deref()).collect();
    let found = rules.into_iter().collect::<Vec<_>>().join(", ");
    step.equal(
        "rules in the records of acme's flows, under all policies",
        found.as_str(),
        "chat-for-all",
    );
    Ok(())
}

/// What an audit log says about decisions.
#[derive(Debug, Default)]
struct Tally {
    decisions: u64,
    aggregated: u64,
    lost: u64,
}

impl Tally {
    fn of(records: &[AuditRecord]) -> Self {
        let mut tally = Self::default();
        for record in records {
            let count = record.entry.count.unwrap_or_default();
            match record.entry.kind {
                Kind::FlowOpened | Kind::FlowMoved | Kind::Refused => tally.decisions += 1,
                Kind::Aggregated => tally.aggregated += count,
                Kind::Lost => tally.lost += count,
                _ => {}
            }
        }
        tally
    }
}

fn refused_packets(status: &StatusReply) -> u64 {
    let is_refusal = |name: &str| {
        let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
        reason.is_some_and(|reason| reason.effect() == Effect::Refused)
    };
    status
        .packets
        .iter()
        .filter(|row| is_refusal(&row.reason))
        .map(|row| row.packets)
        .sum()
}

/// The lines of all segments, in order.
fn audit_lines(directory: &Path) -> Result<Vec<String>, HarnessError> {
    let entries = fs::read_dir(directory).map_err(HarnessError::io("read", directory))?;
    let mut segments: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    // Their names carry the first sequence number with leading zeros.
    segments.sort();
    let mut lines = Vec::new();
    for segment in segments {
        let text = fs::read_to_string(&segment).map_err(HarnessError::io("read", segment))?;
        // The writer may be in the middle of the last line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        lines.extend(whole.lines().map(str::to_owned));
    }
    Ok(lines)
}

/// Takes the programs off the interfaces, and looks that they are gone.
pub(in crate::demo) fn detach(world: &mut World, step: &mut Step<'_>) -> Result<(), HarnessError> {
    let objects = world.agent.kernel_objects()?;
    step.command("enforcer-agent detach");
    let reply: DetachReply = world.agent.ask(&["detach"])?;
    step.equal("interfaces that were given back", reply.interfaces.len(), 7);
    let code = world.agent.wait()?.unwrap_or(-1);
    step.equal("exit code of the agent", code, 0);
    step.check(
        "pin directory",
        !world.agent.pins().exists(),
        "none",
        if world.agent.pins().exists() {
            "still there"
        } else {
            "gone"
        },
    );
    // The kernel frees programs and maps after a grace period.
    let left = objects.left_after(LIMIT);
    let found = if left.is_empty() {
        "none".to_owned()
    } else {
        format!("{left:?}")
    };
    let counts = format!(
        "programs, links and maps left, of {}, {} and {}",
        objects.programs.len(),
        objects.links.len(),
        objects.maps.len()
    );
    step.equal(&counts, found.as_str(), "none");
    let devices = world.balancer().ip("-d link show")?;
    step.equal(
        "devices with an XDP program",
        devices.matches("prog/xdp").count(),
        0,
    );
    Ok(())
}
