//! A packet on its way out through the host's stack: a reply of a back end is metered, and its translation is undone.

use aya_ebpf::programs::TcContext;
use enforcer_common::Reason;
use enforcer_common::abi::reason::Effect;
use enforcer_common::abi::tally::DIRECTION_EGRESS;
use enforcer_common::decide;
#[cfg(feature = "log")]
use enforcer_common::decide::Decision;

use crate::facts::MapFacts;
use crate::hook::Hook;
use crate::{capture, emit, facts, flows, maps};

/// Judges a packet; answers the verdict.
#[inline(always)]
pub(crate) fn judge(ctx: &TcContext) -> u32 {
    if ctx.prepare().is_none() {
        return TcContext::PASS;
    }
    let Some(frame) = maps::parse(ctx) else {
        return TcContext::BROKEN;
    };
    let now_ns = facts::now_ns();
    let facts = MapFacts::new();
    let mut decision = decide::judge_egress(&facts, &frame.packet, now_ns);
    if matches!(decision.reason, Reason::Reply)
        && let Err(reason) = flows::reply_through_stack(ctx, &facts, frame, &decision, now_ns)
    {
        decision = decision.refused(reason);
    }
    #[cfg(feature = "log")]
    log_decision(ctx, &decision);
    emit::count(DIRECTION_EGRESS, &decision, &frame.packet, 0, now_ns);
    let verdict = match decision.reason.effect() {
        Effect::Refused => TcContext::DROP,
        Effect::Passed | Effect::Forwarded => TcContext::PASS,
    };
    if !matches!(decision.reason.effect(), Effect::Forwarded) && capture::is_wanted(&decision) {
        capture::show(ctx, DIRECTION_EGRESS, &capture::errand(&decision, 0, now_ns));
    }
    verdict
}

/// A line for each packet, for debugging the programs themselves: a release build holds neither code nor map for it.
#[cfg(feature = "log")]
#[inline(always)]
fn log_decision<C: aya_ebpf::EbpfContext>(ctx: &C, decision: &Decision) {
    aya_log_ebpf::debug!(
        ctx,
        "reason {} tenant {} service {} back end {} generation {}",
        decision.reason as u32,
        decision.tenant,
        decision.service,
        decision.backend,
        decision.generation
    );
}
