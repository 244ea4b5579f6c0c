//! From an explanation to the reply.

use enforcer_common::Reason;
use enforcer_common::abi::reason;

use super::{Effect, ExplainStep, PolicyExplainReply, RuleRef, ShadowRef};
use crate::pure::compile::directory::RuleEntry;
use crate::pure::explain::{Explanation, Question};

impl PolicyExplainReply {
    /// The answer to a question, in names.
    #[must_use]
    pub fn of(question: &Question, explanation: Explanation) -> Self {
        let reason = explanation.reason().unwrap_or(Reason::Internal);
        let rule = |rule: RuleEntry| RuleRef {
            name: rule.name,
            line: rule.line,
            file: rule.file,
        };
        Self {
            from: question.from,
            to: question.to,
            protocol: question.protocol,
            generation: explanation.generation,
            at: None,
            reason: reason.name().to_owned(),
            sentence: reason.sentence().to_owned(),
            effect: match reason.effect() {
                reason::Effect::Forwarded => Effect::Forwarded,
                reason::Effect::Passed => Effect::Passed,
                reason::Effect::Refused => Effect::Refused,
            },
            tenant: explanation.tenant,
            service: explanation.service,
            rule: explanation.rule.map(rule),
            backend: explanation.backend,
            shadow: explanation.shadow.map(|(entry, code)| ShadowRef {
                rule: rule(entry),
                reason: Reason::from_code(code)
                    .unwrap_or(Reason::Internal)
                    .name()
                    .to_owned(),
            }),
            steps: explanation
                .steps
                .into_iter()
                .map(|step| ExplainStep {
                    step: step.subject.name().to_owned(),
                    finding: step.finding,
                })
                .collect(),
        }
    }
}
