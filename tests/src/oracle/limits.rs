//! Limits, counted in 2^-40 ns.

use enforcer_common::Reason;

use super::{Fate, Known, Oracle, Prediction};
use crate::packet::Segment;
use crate::plain::{Limits, Service, Tenant};

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

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Tenant,
    Pair,
    Service,
}

/// Someone who holds limits.
#[derive(Clone, Debug)]
pub(super) struct Holder<'a> {
    pub(super) level: Level,
    /// The tenant, `tenant/service` or `/service`.
    pub(super) key: String,
    pub(super) limits: &'a Limits,
    /// New connections per second that count instead.
    share: Option<u64>,
}

impl Holder<'_> {
    fn rate(&self, limited: Limited) -> Option<u64> {
        match limited {
            Limited::Connections => self.share.or(self.limits.connections),
            Limited::Packets => self.limits.packets,
            Limited::Bytes => self.limits.bytes,
            Limited::Responses => self.limits.responses,
        }
    }

    /// What a packet gets that is over one of its limits.
    pub(super) fn reason(&self, reason: Reason) -> Reason {
        match (self.level, reason) {
            (Level::Tenant, Reason::ConnectionRate) if self.share.is_some() => Reason::FairShare,
            (Level::Service, Reason::ConnectionRate | Reason::Concurrency) => Reason::ServiceConnections,
            (Level::Service, _) => Reason::ServiceRate,
            _ => reason,
        }
    }
}

fn pair_key(tenant: &Tenant, service: &Service) -> String {
    format!("{}/{}", tenant.name, service.name)
}

fn service_key(service: &Service) -> String {
    format!("/{}", service.name)
}

impl Oracle {
    /// The share that a tenant is held to, if that is below its own limit.
    fn share(&self, tenant: &Tenant) -> Option<u64> {
        let share = self.shares.get(&tenant.name).copied()?;
        tenant
            .limits
            .connections
            .is_none_or(|limit| share < limit)
            .then_some(share)
    }

    /// Whoever holds limits on what a tenant does on a service that it may use.
    pub(super) fn holders<'a>(&'a self, tenant: &'a Tenant, service: &'a Service) -> Vec<Holder<'a>> {
        let mut holders = vec![Holder {
            level: Level::Tenant,
            key: tenant.name.clone(),
            limits: &tenant.limits,
            share: self.share(tenant),
        }];
        let rule = self.rule_for(tenant, service, true);
        if let Some(limits) = rule.and_then(|rule| rule.limits.as_ref()) {
            holders.push(Holder {
                level: Level::Pair,
                key: pair_key(tenant, service),
                limits,
                share: None,
            });
        }
        if let Some(limits) = &service.limits {
            holders.push(Holder {
                level: Level::Service,
                key: service_key(service),
                limits,
                share: None,
            });
        }
        holders
    }

    /// Whether somebody holds limits by this name, at some hour.
    pub(super) fn is_holder(&self, key: &str) -> bool {
        let of_pair = |tenant: &Tenant, service: &Service| {
            pair_key(tenant, service) == key
                && self.policy.rules.iter().any(|rule| {
                    rule.limits.is_some()
                        && rule.tenants.chooses(&tenant.name, &tenant.labels)
                        && rule.services.chooses(&service.name, &service.labels)
                })
        };
        self.policy.tenants.iter().any(|tenant| {
            tenant.name == key
                || self
                    .policy
                    .services
                    .iter()
                    .any(|service| of_pair(tenant, service))
        }) || self
            .policy
            .services
            .iter()
            .any(|service| service.limits.is_some() && service_key(service) == key)
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

    pub(super) fn within(&self, holder: &Holder<'_>, limited: Limited, units: u64, now_ns: u64) -> Within {
        let Some(rate) = holder.rate(limited) else {
            return Within::Yes;
        };
        let largest = match limited {
            Limited::Connections | Limited::Packets => 1,
            Limited::Bytes | Limited::Responses => MOST_BYTES,
        };
        let asked_fine = u128::from(holder.limits.burst_ms * 1_000_000) << FINE;
        let burst_fine = asked_fine.max(Self::cost_fine(rate, largest));
        let debt = self
            .debts
            .get(&(holder.key.clone(), limited))
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

    /// An admitted packet pays all that hold limits on it.
    pub(super) fn charge(&mut self, rates: &[(String, Limited, u64)], units: u64, now_ns: u64) {
        for (key, limited, rate) in rates {
            self.charge_one(key, *limited, *rate, units, now_ns);
        }
    }

    /// Who holds a limit of one kind on what a tenant does on a service, and its rate.
    pub(super) fn rates(
        &self,
        tenant: &str,
        service: &Service,
        limited: Limited,
    ) -> Vec<(String, Limited, u64)> {
        let Some(tenant) = self.policy.tenants.iter().find(|known| known.name == tenant) else {
            return Vec::new();
        };
        let holders = self.holders(tenant, service).into_iter();
        holders
            .filter_map(|holder| Some((holder.key.clone(), limited, holder.rate(limited)?)))
            .collect()
    }

    fn charge_one(&mut self, key: &str, limited: Limited, rate: u64, units: u64, now_ns: u64) {
        let now_fine = u128::from(now_ns) << FINE;
        let debt = self.debts.entry((key.to_owned(), limited)).or_default();
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

    /// Whether the tenant may have another entry of the flow table, if it needs one.
    pub(super) fn has_share(&self, tenant: &Tenant, fate: Fate) -> bool {
        fate != Fate::Opens || self.share == 0 || self.open_connections(&tenant.name) < self.share
    }

    /// Whether a holder of limits may let the packet pass.
    pub(super) fn passes(
        &self,
        holder: &Holder<'_>,
        segment: &Segment,
        fate: Fate,
        now_ns: u64,
        prediction: &mut Prediction,
    ) -> bool {
        if matches!(fate, Fate::Opens | Fate::Reopens) {
            let within = self.within(holder, Limited::Connections, 1, now_ns);
            if !self.limit(prediction, holder.reason(Reason::ConnectionRate), within) {
                return false;
            }
        }
        if fate == Fate::Opens
            && let Some(most) = holder.limits.concurrent
            && self.open_connections(&holder.key) >= most
        {
            prediction.reasons.insert(holder.reason(Reason::Concurrency));
            return false;
        }
        let within = self.within(holder, Limited::Packets, 1, now_ns);
        if !self.limit(prediction, holder.reason(Reason::PacketRate), within) {
            return false;
        }
        let within = self.within(holder, Limited::Bytes, segment.network_bytes(), now_ns);
        self.limit(prediction, holder.reason(Reason::ByteRate), within)
    }

    /// Connections of a holder of limits that have not ended, as far as the last sweep saw.
    fn open_connections(&self, key: &str) -> u64 {
        let count = |keys: fn(&Known) -> &Vec<String>| {
            let of_holder = |known: &&Known| keys(known).iter().any(|one| one == key);
            self.known.iter().filter(of_holder).count()
        };
        let (open, closed) = (count(|known| &known.holders), count(|known| &known.closed_for));
        open.saturating_sub(closed) as u64
    }
}

/// What a connection gets for which there is no room.
pub(super) fn without_room(service: &Service, holders: &[Holder<'_>]) -> Reason {
    let is_counted = holders.iter().any(|holder| holder.limits.concurrent.is_some());
    if service.stateless && service.forward.is_direct() && !is_counted {
        Reason::Stateless
    } else {
        Reason::TableFull
    }
}
