//! Requests about policies that were applied before.

use crate::api::reply::{HistoryRow, PolicyHistoryReply, PolicyRollbackReply, PolicyShowReply, PolicyStatus};
use crate::api::{Actor, ApiError, ErrorCode};
use crate::daemon::core::Core;
use crate::daemon::history::{HistoryEntry, Summary};
use crate::daemon::persist::AppliedPolicy;

use super::internal;
use crate::pure::policy::name_of;

impl Core {
    pub(super) fn policy_history(&self) -> PolicyHistoryReply {
        let in_force = self.active.as_ref().and_then(|active| {
            let mut entries = self.history.entries().iter();
            entries.rposition(|entry| entry.is_of(&active.applied, &active.digest))
        });
        let entries = self.history.entries().iter().enumerate().rev();
        let rows = entries.map(|(index, entry)| HistoryRow {
            generation: entry.generation,
            in_force: Some(index) == in_force,
            policy: PolicyStatus {
                name: entry.name.clone(),
                digest: entry.digest.clone(),
                file: entry.file.clone(),
                applied_at: entry.applied_at,
                applied_by: entry.applied_by,
            },
            rollback_of: entry.rollback_of,
        });
        PolicyHistoryReply {
            entries: rows.collect(),
        }
    }

    /// Applies the text of an earlier policy again, as a new generation.
    pub(super) async fn rollback(
        &mut self,
        generation: Option<u64>,
        actor: Actor,
    ) -> Result<PolicyRollbackReply, ApiError> {
        let (restored, policy) = {
            let summary = self.earlier(generation)?;
            (
                summary.generation,
                self.history.read(summary).map_err(internal)?.policy,
            )
        };
        let applied = AppliedPolicy {
            applied_at: self.clock.wall(),
            applied_by: Some(actor),
            ..policy
        };
        let applied = self.apply_policy(applied, Some(restored), actor).await?;
        Ok(PolicyRollbackReply { restored, applied })
    }

    /// The policy of a generation as it was applied.
    pub(super) fn show_old_policy(&self, generation: u64) -> Result<PolicyShowReply, ApiError> {
        let HistoryEntry {
            name, digest, policy, ..
        } = self
            .history
            .read(self.earlier(Some(generation))?)
            .map_err(internal)?;
        Ok(PolicyShowReply {
            policy: PolicyStatus {
                name,
                digest,
                file: name_of(&policy.sources),
                applied_at: policy.applied_at,
                applied_by: policy.applied_by,
            },
            generation,
            sources: policy.sources,
        })
    }

    /// The entry of a generation, or the one to go back to.
    fn earlier(&self, generation: Option<u64>) -> Result<&Summary, ApiError> {
        if let Some(generation) = generation {
            return self.history.of_generation(generation).ok_or_else(|| {
                let message = format!(
                    "the history has no policy that was applied as generation {generation}; `enforcer-agent policy \
                     history` lists those that it has"
                );
                ApiError::new(ErrorCode::NotFound, message)
            });
        }
        let active = self.active.as_ref();
        active.and_then(|active| self.history.before(&active.applied, &active.digest)).ok_or_else(|| {
            let message = "the history has no other policy from before the one in force: there is nothing to go back to";
            ApiError::new(ErrorCode::Refused, message)
        })
    }
}
