//! An edit of nothing but the limits and quotas of tenants, which is the most frequent one.
//!
//! Nothing else of a policy depends on them, so that all that was resolved and checked of the last text holds. This must not
//! change what comes out: it is done only where every diagnostic would be the same, to the letter and the place.

use std::sync::Arc;

use super::super::diagnostic::{Diagnostic, Reporter};
use super::super::model::Tenant;
use super::super::resolve::{Allowance, resolve_allowance};
use super::super::source::PolicySource;
use super::Outcome;
use super::outline::Edit;

/// Makes the outcome of a text that of the text after an edit of some tenants; `None` if more than their limits may differ.
pub(super) fn follow(
    outcome: &mut Outcome,
    source: &PolicySource,
    edit: &Edit<'_>,
    tenants: (&[Tenant], &[Tenant]),
) -> Option<()> {
    let (before, after) = tenants;
    let edited_lines = edit.frame.line..edit.end_line;
    let is_apart = |diagnostic: &Diagnostic| !edited_lines.contains(&diagnostic.line);
    // Places and excerpts of the text below would be other ones, and those of the edited lines themselves.
    if edit.lines != 0 || before.len() != after.len() || !outcome.diagnostics.iter().all(is_apart) {
        return None;
    }
    let policy = outcome.policy.as_mut()?;
    let mut changed = Vec::with_capacity(after.len());
    for (before, after) in before.iter().zip(after) {
        if !is_same_but_for_limits(before, after) || has_diagnostics(source, before) {
            return None;
        }
        let mut reporter = Reporter::new(std::slice::from_ref(source));
        let allowance = resolve_allowance(&mut reporter, after);
        if !reporter.finish().is_empty() {
            return None;
        }
        let name = after.name.value.as_str();
        let number = policy
            .tenants
            .binary_search_by(|tenant| tenant.name.as_str().cmp(name));
        changed.push((number.ok()?, allowance));
    }
    for (number, allowance) in changed {
        let Allowance {
            limits,
            guaranteed,
            quotas,
        } = allowance;
        let tenant = Arc::make_mut(&mut policy.tenants[number]);
        (tenant.limits, tenant.guaranteed, tenant.quotas) = (limits, guaranteed, quotas);
    }
    Some(())
}

/// Whether there was something to say about the limits of a tenant. (Excerpts are of another text; nobody reads them.)
fn has_diagnostics(source: &PolicySource, tenant: &Tenant) -> bool {
    let mut reporter = Reporter::new(std::slice::from_ref(source));
    resolve_allowance(&mut reporter, tenant);
    !reporter.finish().is_empty()
}

/// Whether two tenants are the same and stand at the same places, but for their limits and quotas.
fn is_same_but_for_limits(one: &Tenant, other: &Tenant) -> bool {
    let Tenant {
        name,
        sources,
        labels,
        class,
        limits: _,
        guaranteed,
        quotas: _,
    } = one;
    *name == other.name
        && *sources == other.sources
        && *labels == other.labels
        && *class == other.class
        // What is promised is compared with the pools that the tenant uses.
        && *guaranteed == other.guaranteed
}
