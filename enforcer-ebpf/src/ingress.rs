//! A packet on its way in: parsed, judged (`enforcer_common::decide`), carried out, counted.

use enforcer_common::Reason;
use enforcer_common::abi::reason::Effect;
use enforcer_common::abi::tally::DIRECTION_INGRESS;
use enforcer_common::continuation::{Continuation, Errand};
use enforcer_common::decide::answer::Answer;
use enforcer_common::decide::{self, Clock, Decision, FlowFate};
use enforcer_common::parse::{self, Frame};

use crate::facts::{LazyClock, MapFacts};
use crate::hook::{Hook, HookWindow};
use crate::send::Sent;
use crate::{answer, capture, emit, facts, flows, maps, related};

/// Judges a packet; answers the verdict.
#[inline(always)]
pub(crate) fn judge<H: Hook>(hook: &H) -> u32 {
    if hook.prepare().is_none() {
        return H::BROKEN;
    }
    let Some(frame) = maps::parse(hook) else {
        return H::BROKEN;
    };
    hook.split(frame);
    let frame: &Frame = frame;
    if parse::is_icmp(&frame.packet) {
        maps::go_on(hook, Continuation::Icmp);
    }
    let Some(clock) = LazyClock::start(hook) else {
        return H::BROKEN;
    };
    let facts = MapFacts::of(hook);
    let mut decision = decide::judge(&facts, &frame.packet, clock);
    if matches!(decision.flow, FlowFate::Remembered) {
        match send_remembered(hook, &facts, frame, &decision, clock) {
            Some(verdict) => return verdict,
            None => decision = decision.refused(Reason::Internal),
        }
    }
    let mut sent = Sent::to(match decision.reason.effect() {
        Effect::Passed => H::PASS,
        Effect::Refused | Effect::Forwarded => H::DROP,
    });
    if matches!(decision.reason.effect(), Effect::Forwarded) {
        let carried_out = match decision.reason {
            Reason::Reply => flows::reply(hook, &facts, frame, &decision, clock.now_ns()),
            _ => flows::forward(hook, &facts, frame, &decision, clock),
        };
        match carried_out {
            Ok(on) => {
                if on.stateless {
                    decision.reason = Reason::Stateless;
                    decision.flow = FlowFate::Stateless;
                }
                sent = on;
            }
            Err(reason) => decision = decision.refused(reason),
        }
    }
    emit::count(
        DIRECTION_INGRESS,
        &decision,
        &frame.packet,
        sent.translated_port_be,
        clock,
    );
    if let Some(next) = sent.next {
        maps::go_on_seldom(hook, next);
        return H::BROKEN;
    }
    if matches!(decision.reason, Reason::BackendIneligible) {
        flows::abandon(&facts);
    }
    let mut left = Left::nothing(sent.verdict);
    if matches!(decision.reason.effect(), Effect::Refused) {
        let kind = decide::answer::kind(&facts, &decision, &frame.packet);
        if !matches!(kind, Answer::None) {
            left.answer = kind as u32;
            left.fitting_bytes = decide::answer::fitting_bytes(&facts, &decision, &frame.packet);
        }
    }
    leave(hook, &decision, &left, clock)
}

/// Sends a packet of a flow that is remembered: it makes no record of anything, so that counting it is all that is left.
#[inline(always)]
fn send_remembered<H: Hook, C: Clock>(
    hook: &H,
    facts: &MapFacts,
    frame: &Frame,
    decision: &Decision,
    clock: C,
) -> Option<u32> {
    let sent = flows::forward_remembered(hook, facts, frame, decision, clock)?;
    emit::tally(
        DIRECTION_INGRESS,
        decision.tenant,
        Reason::Allowed as u32,
        frame.packet.bytes,
    );
    if let Some(next) = sent.next {
        maps::go_on_seldom(hook, next);
        return Some(H::BROKEN);
    }
    Some(sent.verdict)
}

/// What a packet that was judged leaves behind.
struct Left {
    verdict: u32,
    /// An [`Answer`], and the largest packet that would have fitted.
    answer: u32,
    fitting_bytes: u32,
}

// === impl Left ===

impl Left {
    /// No answer.
    #[inline(always)]
    const fn nothing(verdict: u32) -> Self {
        Self {
            verdict,
            answer: Answer::None as u32,
            fitting_bytes: 0,
        }
    }
}

/// What is left to do with a packet that was judged: it is shown to the agent if that asked for it, and answered if it
/// is to be. A packet that is sent on is neither: it has been rewritten.
#[inline(always)]
fn leave<H: Hook, C: Clock>(hook: &H, decision: &Decision, left: &Left, clock: C) -> u32 {
    let is_wanted = match decision.reason.effect() {
        Effect::Forwarded => return left.verdict,
        Effect::Passed | Effect::Refused => capture::is_wanted(decision),
    };
    let next = if is_wanted {
        Continuation::Capture
    } else if left.answer != Answer::None as u32 {
        Continuation::Answer
    } else {
        return left.verdict;
    };
    let errand = Errand {
        answer: left.answer,
        fitting_bytes: left.fitting_bytes,
        ..capture::errand(decision, left.verdict, clock.now_ns())
    };
    if maps::tell(errand).is_some() {
        maps::go_on_seldom(hook, next);
    }
    left.verdict
}

/// Judges ICMP: an error about a flow goes to the end that it concerns, an echo request is answered.
#[inline(always)]
pub(crate) fn judge_icmp<H: Hook>(hook: &H) -> u32 {
    let Some((frame, _)) = maps::told() else {
        return H::BROKEN;
    };
    let Some(clock) = LazyClock::start(hook) else {
        return H::BROKEN;
    };
    let (now_ns, facts) = (clock.now_ns(), MapFacts::of(hook));
    let quoted = match parse::quoted(&HookWindow::of(hook), frame) {
        Some(quoted) => maps::forget_quoted(quoted),
        None => None,
    };
    // Written over, not chosen between: of what one of the two does not say the compiler would copy registers that nobody
    // has set, and the verifier refuses that.
    let mut decision = decide::judge_portless(&facts, &frame.packet);
    if let Some(quoted) = quoted {
        if let Some(related) = decide::related::judge(&facts, &frame.packet, &quoted.key, now_ns) {
            decision = related;
        }
    } else if parse::is_echo_request(&HookWindow::of(hook), frame)
        && let Some(echo) = decide::echo::judge(&facts, &frame.packet, now_ns)
    {
        decision = echo;
    }
    let mut sent = Sent::to(match decision.reason.effect() {
        Effect::Passed => H::PASS,
        Effect::Refused | Effect::Forwarded => H::DROP,
    });
    if matches!(decision.reason.effect(), Effect::Forwarded) {
        let carried_out = match quoted {
            Some(quoted) => related::send(hook, &facts, frame, quoted, &decision),
            None => answer::echo(hook, frame),
        };
        match carried_out {
            Ok(on) => {
                facts::pay(&decide::answer::owed(&facts, decision.tenant), now_ns);
                sent = on;
            }
            Err(reason) => decision = decision.refused(reason),
        }
    }
    emit::count(DIRECTION_INGRESS, &decision, &frame.packet, 0, now_ns);
    if let Some(next) = sent.next {
        maps::go_on_seldom(hook, next);
        return H::BROKEN;
    }
    leave(hook, &decision, &Left::nothing(sent.verdict), now_ns)
}

/// Shows the agent a packet, and goes on to its answer if there is to be one.
#[inline(always)]
pub(crate) fn show<H: Hook>(hook: &H) -> u32 {
    let Some((_, errand)) = maps::told() else {
        return H::BROKEN;
    };
    capture::show(hook, DIRECTION_INGRESS, errand);
    if errand.answer != Answer::None as u32 {
        maps::go_on_seldom(hook, Continuation::Answer);
    }
    errand.verdict
}
