//! Requests that change something.

use std::collections::BTreeSet;

use crate::adapters::audit_file::AuditError;
use crate::adapters::dataplane::DataplaneError;
use crate::api::reply::{ChangeReply, DetachReply, PolicyApplyReply};
use crate::api::{Actor, ApiError, ErrorCode};
use crate::daemon::core::Core;
use crate::daemon::persist::AppliedPolicy;
use crate::pure::audit::Change;
use crate::pure::plan;
use crate::pure::policy::schedule::closed_rules;
use crate::pure::policy::{self, Diagnostic, PolicySource};

use super::{internal, not_found};

/// Key of the warning that a detach left interfaces without programs.
const DETACH: &str = "detach";

impl Core {
    pub(super) fn try_policy(&self, sources: &[PolicySource]) -> Result<PolicyApplyReply, ApiError> {
        let outcome = policy::load_all(sources);
        let diagnostics = outcome.diagnostics.clone();
        let policy = outcome.into_result().map_err(|all| {
            ApiError::new(
                ErrorCode::PolicyInvalid,
                policy::diagnostic::render_all(&all, false),
            )
            .with("diagnostics", all)
        })?;
        let compiled = self
            .compile(&policy, &closed_rules(&policy, self.clock.wall()))
            .map_err(|error| ApiError::new(ErrorCode::Refused, error.to_string()))?;
        let live = self.generation();
        let held = self.installer.live(live);
        let writes = plan::plan(held, &compiled.tables).len();
        let in_place = held.is_some_and(|held| plan::in_place(held, &compiled.tables).is_some());
        Ok(PolicyApplyReply {
            name: policy.name.clone(),
            digest: policy.digest().to_string(),
            generation: live,
            changed: false,
            map_writes: writes as u64,
            would_be: Some(if in_place { live } else { live + 1 }),
            diagnostics,
        })
    }

    /// Makes a text the policy, and records that; of a rollback, `rollback_of` is the generation that had it.
    pub(super) async fn apply_policy(
        &mut self,
        applied: AppliedPolicy,
        rollback_of: Option<u64>,
        actor: Actor,
    ) -> Result<PolicyApplyReply, ApiError> {
        let before = self.digest();
        let outcome = self.apply(applied, rollback_of);
        let restored = rollback_of.map(|generation| format!("the policy of generation {generation}"));
        let mut causes: Vec<String> = restored.into_iter().collect();
        let to = match &outcome {
            Ok(_) => self.digest(),
            Err(error) => {
                causes.extend(error.message.lines().next().map(str::to_owned));
                None
            }
        };
        let what = if rollback_of.is_some() {
            "policyRollback"
        } else {
            "policyApply"
        };
        let change = Change {
            what: what.to_owned(),
            from: before,
            to,
            causes,
        };
        let recorded = self.record_control(actor, change).await;
        let installed = outcome.map_err(|error| unrecorded(error, recorded.as_ref()))?;
        recorded.map_err(|error| in_force(&error))?;
        let active = self
            .active
            .as_ref()
            .ok_or_else(|| internal("the policy is gone"))?;
        let warnings: Vec<Diagnostic> = active.warnings.clone();
        Ok(PolicyApplyReply {
            name: active.policy.name.clone(),
            digest: active.digest.clone(),
            generation: self.generation(),
            changed: installed.is_some(),
            map_writes: installed.map_or(0, |installed| installed.writes as u64),
            would_be: None,
            diagnostics: warnings,
        })
    }

    pub(super) async fn suspend(
        &mut self,
        name: String,
        suspend: bool,
        actor: Actor,
    ) -> Result<ChangeReply, ApiError> {
        let known = |core: &Self| {
            let tenants = core.active.iter().flat_map(|active| &active.policy.tenants);
            tenants.into_iter().any(|tenant| tenant.name == name)
        };
        if !known(self) && !self.state.suspended.contains(&name) {
            return Err(not_found("tenant", &name, "tenant list"));
        }
        let changed = self.state.suspended.contains(&name) != suspend;
        if changed {
            self.change_state(|state, _| toggle(&mut state.suspended, &name, suspend))?;
        }
        let what = if suspend { "tenantSuspend" } else { "tenantResume" };
        self.changed(what, name, changed, actor).await
    }

    pub(super) async fn drain(
        &mut self,
        name: String,
        drain: bool,
        actor: Actor,
    ) -> Result<ChangeReply, ApiError> {
        if self.fleet.member(&name).is_none() {
            return Err(not_found("back end", &name, "backend list"));
        }
        let changed = self.state.draining.contains(&name) != drain;
        if changed {
            self.change_state(|state, fleet| {
                toggle(&mut state.draining, &name, drain);
                fleet.drain(&name, drain);
            })?;
        } else {
            // An undrain acknowledges a fault also where telemetry, and no operator, drains the back end.
            self.fleet.drain(&name, drain);
        }
        let what = if drain { "backendDrain" } else { "backendUndrain" };
        self.changed(what, name, changed, actor).await
    }

    pub(super) async fn changed(
        &mut self,
        what: &str,
        name: String,
        changed: bool,
        actor: Actor,
    ) -> Result<ChangeReply, ApiError> {
        let change = Change {
            what: what.to_owned(),
            to: Some(name.clone()),
            ..Change::default()
        };
        self.record_control(actor, change)
            .await
            .map_err(|error| in_force(&error))?;
        Ok(ChangeReply {
            name,
            changed,
            generation: self.generation(),
        })
    }

    /// A detach that failed midway has taken programs off; nothing that was asked for is half done, so they are put
    /// back. What to tell the peer.
    fn attach_again(&mut self, error: &DataplaneError) -> String {
        match self.attach_all() {
            Ok(()) => {
                self.failing.remove(DETACH);
                format!("{error}; the programs are attached, as before: try again")
            }
            Err(again) => {
                let message = format!(
                    "{error}; then the programs could not be attached again: {again}. Traffic may be ungoverned: \
                     detach again, or restart the agent"
                );
                self.failing.insert(DETACH, message.clone());
                message
            }
        }
    }

    pub(super) async fn detach(&mut self, actor: Actor) -> Result<DetachReply, ApiError> {
        let interfaces = self
            .attachments
            .iter()
            .map(|attachment| attachment.interface.clone())
            .collect();
        let pins = self.config.pin_directory();
        let change = Change {
            what: "detach".to_owned(),
            from: Some(pins.display().to_string()),
            ..Change::default()
        };
        // With the maps go the counters; what they show now is written down when the daemon ends.
        self.look_at_quotas();
        if let Err(error) = self.dataplane.detach() {
            let message = self.attach_again(&error);
            self.refresh("a detach failed");
            let causes = vec![message.clone()];
            let recorded = self.record_control(actor, Change { causes, ..change }).await;
            return Err(unrecorded(internal(message), recorded.as_ref()));
        }
        self.detached = true;
        self.record_control(actor, change)
            .await
            .map_err(|error| in_force(&error))?;
        Ok(DetachReply {
            interfaces,
            pins: vec![pins.display().to_string()],
        })
    }
}

/// What to say of a change that is in force while its record is missing.
fn in_force(error: &AuditError) -> ApiError {
    internal(format!(
        "the change is in force, but the audit log could not be written: {error}"
    ))
}

/// What to say of a change that was refused: also that this could not be recorded, if so.
fn unrecorded(mut refusal: ApiError, recorded: Result<&(), &AuditError>) -> ApiError {
    if let Err(error) = recorded {
        refusal
            .message
            .push_str(&format!("\nThe refusal could not be recorded: {error}"));
    }
    refusal
}

fn toggle(names: &mut BTreeSet<String>, name: &str, present: bool) {
    if present {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}
