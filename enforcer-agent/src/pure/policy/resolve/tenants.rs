//! Tenants, their prefixes, limits, guarantees and quotas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::super::diagnostic::{Code, Reporter};
use super::super::limits::{MAX_BURST_NS, MAX_UNITS, Unit, kept_events_per_second, step_fp};
use super::super::model::{self, List, Scalar, Text};
use super::super::resolved::{Class, Guaranteed, Labels, Limits, Quota, QuotaPeriod, Tenant};
use super::super::schedule::Zone;
use super::super::source::Place;
use super::super::suggest::quoted;
use super::{Name, Placed, network, scalar, schedule, sort_by_name, unknown_name};

/// How much time's worth of a rate may come at once, unless the policy says so.
const DEFAULT_BURST_NS: u64 = 1_000_000_000;
/// Of a tenant that has none.
pub(super) const NO_LIMITS: Limits = Limits {
    new_connections_per_second: None,
    packets_per_second: None,
    bytes_per_second: None,
    response_bytes_per_second: None,
    concurrent_connections: None,
    burst_ns: DEFAULT_BURST_NS,
};
/// The shortest burst: less than this is below what timers and interrupts jitter.
const MIN_BURST_NS: u64 = 1_000_000;
/// The largest quota: counters have 64 bits with a sign.
const MAX_QUOTA: u64 = i64::MAX as u64;
/// The longest period of a quota.
const MAX_QUOTA_DAYS: u16 = 366;

/// What a tenant may use at most, and what it gets in any case.
pub(in super::super) struct Allowance {
    pub(in super::super) limits: Limits,
    pub(in super::super) guaranteed: Guaranteed,
    /// Sorted.
    pub(in super::super) quotas: Vec<Quota>,
}

/// Prefixes, and the tenants that claim them.
type Claims<'a> = BTreeMap<IpNet, (&'a Text, Place)>;

/// `classes` are sorted by name.
pub(super) fn resolve(
    reporter: &mut Reporter<'_>,
    tenants: &[&model::Tenant],
    classes: &[Placed<Class>],
) -> Vec<Placed<Tenant>> {
    let mut claims = Claims::new();
    let mut known_labels = BTreeSet::new();
    let mut resolved: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let model::Tenant {
                name,
                sources,
                labels,
                class,
                limits: _,
                guaranteed: _,
                quotas: _,
            } = tenant;
            let _ = scalar::name(reporter, name);
            let sources = claim(reporter, name, sources, &mut claims);
            let Allowance {
                limits,
                guaranteed,
                quotas,
            } = resolve_allowance(reporter, tenant);
            let value = Tenant {
                name: name.value.clone(),
                sources,
                labels: shared(&mut known_labels, scalar::labels(reporter, labels.as_ref())),
                class: class
                    .as_ref()
                    .and_then(|class| resolve_class(reporter, class, classes)),
                limits,
                guaranteed,
                quotas,
            };
            Placed {
                value,
                place: name.into(),
            }
        })
        .collect();
    report_nested(reporter, &claims);
    sort_by_name(reporter, &mut resolved);
    resolved
}

/// Labels that are kept once, however many tenants have them.
fn shared(known: &mut BTreeSet<Arc<Labels>>, labels: Labels) -> Arc<Labels> {
    if let Some(same) = known.get(&labels) {
        return Arc::clone(same);
    }
    let labels = Arc::new(labels);
    known.insert(Arc::clone(&labels));
    labels
}

/// What of a tenant depends on nothing else, and nothing else but a check of guarantees on it.
pub(in super::super) fn resolve_allowance(reporter: &mut Reporter<'_>, tenant: &model::Tenant) -> Allowance {
    let limits = tenant.limits.as_ref();
    let limits = limits.map_or(NO_LIMITS, |limits| resolve_limits(reporter, limits));
    Allowance {
        guaranteed: resolve_guaranteed(reporter, tenant.guaranteed.as_ref(), &limits),
        quotas: resolve_quotas(reporter, tenant.quotas.as_ref()),
        limits,
    }
}

fn resolve_class(
    reporter: &mut Reporter<'_>,
    name: &Scalar<Name>,
    classes: &[Placed<Class>],
) -> Option<usize> {
    let index = classes.binary_search_by(|class| class.value.name.as_str().cmp(&name.value));
    if index.is_err() {
        let mut names = classes.iter().map(|class| class.value.name.as_str());
        unknown_name(reporter, name, "class", &mut names);
    }
    index.ok()
}

/// Warns of prefixes that lie within another tenant's. One that holds every address is there to be lain in.
fn report_nested(reporter: &mut Reporter<'_>, claims: &Claims<'_>) {
    let mut around: Vec<(IpNet, &Text, Place)> = Vec::new();
    // Sorted by first address and then length, every prefix comes behind those that it lies in.
    for (net, (owner, place)) in claims {
        while around.last().is_some_and(|(outer, ..)| !outer.contains(net)) {
            around.pop();
        }
        if let Some((outer, other, other_place)) = around.last()
            && outer.prefix_len() > 0
            && other.value != owner.value
            && reporter.has_room_for_warnings()
        {
            let (inner_name, outer_name) = (quoted(&owner.value), quoted(&other.value));
            let message = format!("`{net}` lies within `{outer}` of tenant {outer_name}");
            let help = format!(
                "The longest prefix wins: tenant {inner_name} gets `{net}`, and {outer_name} the rest of `{outer}`, \
                 which stands at {}.",
                reporter.describe(*other_place)
            );
            reporter.warning(Code::Overlap, *place, message, help);
        }
        around.push((*net, *owner, *place));
    }
}

/// A tenant's prefixes, sorted. A prefix that another tenant has claimed is an error: nothing could decide between the
/// two, where nested prefixes are decided by length.
fn claim<'a>(
    reporter: &mut Reporter<'_>,
    name: &'a Text,
    sources: &'a List<Scalar<super::Prefix>>,
    claims: &mut Claims<'a>,
) -> Vec<IpNet> {
    if sources.value.is_empty() {
        let message = format!(
            "tenant {} has no sources, so that no packet is ever its own",
            quoted(&name.value)
        );
        reporter.warning(
            Code::NoEffect,
            sources,
            message,
            "List its prefixes under `sources`.",
        );
    }
    let mut prefixes = Vec::with_capacity(sources.value.len());
    for source in &sources.value {
        let Some(net) = network::prefix(reporter, source) else {
            continue;
        };
        match claims.get(&net) {
            None => {
                claims.insert(net, (name, source.into()));
                prefixes.push(net);
            }
            Some((owner, place)) if owner.value == name.value => {
                let message = format!("`{net}` is listed twice");
                let help = format!(
                    "Remove it here; it already stands at {}.",
                    reporter.describe(*place)
                );
                reporter.warning(Code::Duplicate, source, message, help);
            }
            Some((owner, place)) => {
                let message = format!("`{net}` already belongs to tenant {}", quoted(&owner.value));
                let help = format!(
                    "A prefix can belong to one tenant; {} claims it at {}. A longer prefix may lie within it.",
                    quoted(&owner.value),
                    reporter.describe(*place)
                );
                reporter.error(Code::Conflict, source, message, help);
            }
        }
    }
    prefixes.sort_unstable();
    prefixes
}

/// Whoever's limits they are.
pub(super) fn resolve_limits(reporter: &mut Reporter<'_>, limits: &model::Limits) -> Limits {
    let model::Limits {
        new_connections_per_second,
        packets_per_second,
        bytes_per_second,
        response_bytes_per_second,
        concurrent_connections,
        burst,
    } = limits;
    let burst_ns = burst
        .as_ref()
        .and_then(|text| scalar::duration_ns(reporter, text, MIN_BURST_NS..=MAX_BURST_NS, "burst"))
        .unwrap_or(DEFAULT_BURST_NS);
    let mut rate = |text: Option<&Text>, unit| {
        let text = text?;
        let rate = resolve_rate(reporter, text, unit)?;
        warn_of_small_burst(reporter, text, rate, burst_ns, unit);
        Some(rate)
    };
    let new_connections_per_second = rate(new_connections_per_second.as_deref(), Unit::Events);
    let packets_per_second = rate(packets_per_second.as_deref(), Unit::Events);
    let bytes_per_second = rate(bytes_per_second.as_deref(), Unit::Bytes);
    let response_bytes_per_second = rate(response_bytes_per_second.as_deref(), Unit::Bytes);
    let concurrent_connections = concurrent_connections
        .as_ref()
        .and_then(|text| resolve_concurrency(reporter, text));
    Limits {
        new_connections_per_second,
        packets_per_second,
        bytes_per_second,
        response_bytes_per_second,
        concurrent_connections,
        burst_ns,
    }
}

/// What to do instead of a limit of zero.
const ZERO_HELP: &str = "To refuse a tenant, suspend it or write a rule with `action: Deny`; \
                         to leave it unlimited, leave the field out.";

/// The compiler never makes a burst smaller than one unit, since nothing could ever pass then.
fn warn_of_small_burst(reporter: &mut Reporter<'_>, text: &Text, rate: u64, burst_ns: u64, unit: Unit) {
    let (least, what) = match unit {
        Unit::Events => (1, "one of them"),
        Unit::Bytes => (MAX_UNITS, "one packet of the largest size"),
    };
    let at_once = u128::from(rate) * u128::from(burst_ns) / 1_000_000_000;
    if at_once < u128::from(least) {
        let burst = humantime::format_duration(std::time::Duration::from_nanos(burst_ns));
        let message = format!("{rate} per second in a burst of {burst} is less than {what}");
        let help = format!(
            "It is kept with a burst of {least}{}; make `burst` longer to say so.",
            if unit == Unit::Bytes { " bytes" } else { "" }
        );
        reporter.warning(Code::LimitOutOfRange, text, message, help);
    }
}

fn resolve_rate(reporter: &mut Reporter<'_>, text: &Text, unit: Unit) -> Option<u64> {
    let rate = scalar::count(reporter, text)?;
    let step = match step_fp(rate, unit) {
        Ok(step) => step,
        Err(error) => {
            let help = if rate == 0 {
                ZERO_HELP
            } else {
                "Choose a rate within that bound, or leave the field out."
            };
            reporter.error(Code::LimitOutOfRange, text, error.to_string(), help);
            return None;
        }
    };
    let kept = kept_events_per_second(step);
    if unit == Unit::Events && kept.abs_diff(rate) * 100 > rate {
        let message = format!("{rate} per second is kept as {kept} per second");
        let help =
            "One event costs a whole number of nanoseconds; rates under 10M are kept to within one percent.";
        reporter.warning(Code::LimitOutOfRange, text, message, help);
    }
    Some(rate)
}

fn resolve_concurrency(reporter: &mut Reporter<'_>, text: &Text) -> Option<u32> {
    let value = scalar::count(reporter, text)?;
    if value == 0 {
        reporter.error(
            Code::LimitOutOfRange,
            text,
            "a limit of 0 is a refusal, not a limit",
            ZERO_HELP,
        );
        return None;
    }
    let limit = u32::try_from(value).ok();
    if limit.is_none() {
        let message = format!("{value} connections are more than a host can hold");
        reporter.error(
            Code::LimitOutOfRange,
            text,
            message,
            "Choose less, or leave the field out for no limit.",
        );
    }
    limit
}

/// The warning about what the rate comes out as has been given for limits; a guarantee is only compared with them.
fn resolve_guaranteed(
    reporter: &mut Reporter<'_>,
    guaranteed: Option<&model::Guaranteed>,
    limits: &Limits,
) -> Guaranteed {
    let Some(model::Guaranteed {
        new_connections_per_second: Some(text),
    }) = guaranteed
    else {
        return Guaranteed::default();
    };
    let rate = resolve_rate(reporter, text, Unit::Events);
    if let (Some(rate), Some(limit)) = (rate, limits.new_connections_per_second)
        && rate > limit
    {
        let message = format!("{rate} per second are guaranteed, but only {limit} are allowed");
        let help = "Guarantee at most what `limits.newConnectionsPerSecond` allows.";
        reporter.error(Code::Conflict, text, message, help);
    }
    Guaranteed {
        new_connections_per_second: rate,
    }
}

/// A tenant's quotas, sorted.
fn resolve_quotas(reporter: &mut Reporter<'_>, quotas: Option<&List<model::Quota>>) -> Vec<Quota> {
    let Some(quotas) = quotas else {
        return Vec::new();
    };
    let mut resolved: Vec<Quota> = Vec::with_capacity(quotas.value.len());
    for quota in &quotas.value {
        let model::Quota {
            metric,
            limit,
            per,
            time_zone,
        } = quota;
        let found = (
            scalar::choice(reporter, metric),
            resolve_quota_limit(reporter, limit),
            resolve_period(reporter, per),
            time_zone.as_ref().map_or_else(
                || Some(Zone::utc()),
                |zone| schedule::resolve_zone(reporter, zone),
            ),
        );
        let (Some(metric_found), Some(limit), Some(per), Some(time_zone)) = found else {
            continue;
        };
        if resolved
            .iter()
            .any(|other| (other.metric, other.per) == (metric_found, per))
        {
            let message = format!(
                "there is already a quota of {} for this period",
                quoted(&metric.value)
            );
            reporter.error(Code::Duplicate, metric, message, "Keep the smaller one.");
        }
        resolved.push(Quota {
            metric: metric_found,
            per,
            limit,
            time_zone,
        });
    }
    resolved.sort_unstable();
    resolved
}

fn resolve_quota_limit(reporter: &mut Reporter<'_>, text: &Text) -> Option<u64> {
    let limit = scalar::count(reporter, text)?;
    if limit == 0 || limit > MAX_QUOTA {
        let message = format!("a quota of {limit} cannot be kept");
        let help = if limit == 0 {
            ZERO_HELP.to_owned()
        } else {
            format!("The most is {MAX_QUOTA}.")
        };
        reporter.error(Code::LimitOutOfRange, text, message, help);
        return None;
    }
    Some(limit)
}

fn resolve_period(reporter: &mut Reporter<'_>, text: &Text) -> Option<QuotaPeriod> {
    let number = |unit: char| {
        let digits = text.value.strip_suffix(unit)?;
        let is_plain = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|_| is_plain)
    };
    let hours = number('h')
        .and_then(|hours| u8::try_from(hours).ok())
        .filter(|hours| *hours < 24 && 24 % hours == 0);
    let days = number('d').filter(|days| (1..=MAX_QUOTA_DAYS).contains(days));
    let period = match text.value.as_str() {
        "month" => Some(QuotaPeriod::Month),
        "24h" => Some(QuotaPeriod::Days(1)),
        _ => hours.map(QuotaPeriod::Hours).or(days.map(QuotaPeriod::Days)),
    };
    if period.is_none() {
        let message = format!("{} is no period of the calendar", quoted(&text.value));
        let help = format!(
            "It is hours that divide a day (1h, 2h, 3h, 4h, 6h, 8h, 12h), days (1d to {MAX_QUOTA_DAYS}d; 7d is a week \
             from Monday on), or `month`."
        );
        reporter.error(Code::InvalidValue, text, message, help);
    }
    period
}
