//! Limits, counted in 2^-40 ns.

use enforcer_common::Reason;

use super::{Oracle, Prediction};
use crate::plain::Tenant;

/// Binary digits of a nanosecond.
const FINE: u32 = 40;
/// How far the data path may round one charge, in fine units: a nanosecond for the charge, and the step's share.
const ROUNDING: u128 = 2 << FINE;
/// The most bytes that one packet is charged.
const MOST_BYTES: u64 = 65_535;

/// A limiter: when all that was admitted is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Debt {
    due_fine: u128,
    /// How far the data path's own word may be from that.
    slack_fine: u128,
}

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limited {
    Connections,
    Packets,
    Bytes,
    Responses,
}

/// Which way a limit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    Yes,
    No,
    Either,
}

impl Oracle {
    /// The share that a tenant is held to, if that is below its own limit.
    pub(super) fn share(&self, tenant: &Tenant) -> Option<u64> {
        let share = self.shares.get(&tenant.name).copied()?;
        tenant
            .limits
            .connections
            .is_none_or(|limit| share < limit)
            .then_some(share)
    }

    fn rate(&self, tenant: &Tenant, limited: Limited) -> Option<u64> {
        match limited {
            Limited::Connections => self.share(tenant).or(tenant.limits.connections),
            Limited::Packets => tenant.limits.packets,
            Limited::Bytes => tenant.limits.bytes,
            Limited::Responses => tenant.limits.responses,
        }
    }

    /// What units cost at a rate, in fine units.
    fn cost_fine(rate: u64, units: u64) -> u128 {
        ((u128::from(units.min(MOST_BYTES)) * 1_000_000_000) << FINE) / u128::from(rate)
    }

    /// Whether the data path's arithmetic of 2^-20 ns is exact for this charge.
    fn is_exact(rate: u64, units: u64) -> bool {
        let (second, rate) = (1_000_000_000_u128 << 20, u128::from(rate));
        second % rate == 0 && (second / rate * u128::from(units.min(MOST_BYTES))) % (1 << 20) == 0
    }

    pub(super) fn within(&self, tenant: &Tenant, limited: Limited, units: u64, now_ns: u64) -> Within {
        let Some(rate) = self.rate(tenant, limited) else {
            return Within::Yes;
        };
        let largest = match limited {
            Limited::Connections | Limited::Packets => 1,
            Limited::Bytes | Limited::Responses => MOST_BYTES,
        };
        let asked_fine = u128::from(tenant.limits.burst_ms * 1_000_000) << FINE;
        let burst_fine = asked_fine.max(Self::cost_fine(rate, largest));
        let debt = self
            .debts
            .get(&(tenant.name.clone(), limited))
            .copied()
            .unwrap_or_default();
        let ahead_fine = debt.due_fine.saturating_sub(u128::from(now_ns) << FINE);
        let after_fine = ahead_fine + Self::cost_fine(rate, units);
        let mut doubt = debt.slack_fine;
        if !Self::is_exact(rate, units) {
            doubt += ROUNDING;
        }
        if burst_fine != asked_fine && !Self::is_exact(rate, largest) {
            doubt += ROUNDING;
        }
        if after_fine + doubt <= burst_fine {
            Within::Yes
        } else if after_fine > burst_fine + doubt {
            Within::No
        } else {
            Within::Either
        }
    }

    pub(super) fn charge(&mut self, tenant: &str, limited: Limited, units: u64, now_ns: u64) {
        let Some(rate) = self
            .policy
            .tenants
            .iter()
            .find(|known| known.name == tenant)
            .and_then(|known| self.rate(known, limited))
        else {
            return;
        };
        let now_fine = u128::from(now_ns) << FINE;
        let debt = self.debts.entry((tenant.to_owned(), limited)).or_default();
        if debt.due_fine + debt.slack_fine <= now_fine {
            // Both words lie in the past, and both start again from now.
            debt.due_fine = now_fine;
            debt.slack_fine = 0;
        } else {
            debt.due_fine = debt.due_fine.max(now_fine);
        }
        debt.due_fine += Self::cost_fine(rate, units);
        if !Self::is_exact(rate, units) {
            debt.slack_fine += ROUNDING;
        }
    }

    /// Narrows the reasons by one limit; says whether the packet may still pass.
    pub(super) fn limit(&self, prediction: &mut Prediction, reason: Reason, within: Within) -> bool {
        if within != Within::Yes {
            prediction.reasons.insert(reason);
        }
        within != Within::No
    }
}
