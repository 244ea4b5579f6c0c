//! Tenants, their prefixes and their limits.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::super::diagnostic::{Code, Place, Reporter};
use super::super::limits::{MAX_BURST_NS, Unit, kept_events_per_second, step_fp};
use super::super::model::{self, Text};
use super::super::quantity;
use super::super::resolved::{Limits, Tenant};
use super::super::suggest::quoted;
use super::{Placed, network, scalar, sort_by_name};

/// How much time's worth of a rate may come at once, unless the policy says so.
const DEFAULT_BURST_NS: u64 = 1_000_000_000;
/// The shortest burst: less than this is below what timers and interrupts jitter.
const MIN_BURST_NS: u64 = 1_000_000;

pub(super) fn resolve(reporter: &mut Reporter<'_>, tenants: &[&model::Tenant]) -> Vec<Placed<Tenant>> {
    let mut claims = BTreeMap::new();
    let mut resolved: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let model::Tenant {
                name,
                sources,
                labels,
                limits,
            } = tenant;
            let _ = scalar::name(reporter, name);
            let value = Tenant {
                name: name.value.clone(),
                sources: claim(reporter, name, sources, &mut claims),
                labels: scalar::labels(reporter, labels),
                limits: resolve_limits(reporter, limits.as_ref()),
            };
            Placed {
                value,
                place: name.into(),
            }
        })
        .collect();
    sort_by_name(reporter, &mut resolved);
    resolved
}

/// A tenant's prefixes, sorted. A prefix that another tenant has claimed is an error: nothing could decide between the
/// two, where nested prefixes are decided by length.
fn claim<'a>(
    reporter: &mut Reporter<'_>,
    name: &'a Text,
    sources: &'a [Text],
    claims: &mut BTreeMap<IpNet, (&'a Text, Place)>,
) -> Vec<IpNet> {
    if sources.is_empty() {
        let message = format!(
            "tenant {} has no sources, so that no packet is ever its own",
            quoted(&name.value)
        );
        reporter.warning(
            Code::NoEffect,
            name,
            message,
            "List its prefixes under `sources`.",
        );
    }
    let mut prefixes = Vec::with_capacity(sources.len());
    for source in sources {
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
                let help = format!("Remove it here; it already stands at {}.", place.describe());
                reporter.warning(Code::Duplicate, source, message, help);
            }
            Some((owner, place)) => {
                let message = format!("`{net}` already belongs to tenant {}", quoted(&owner.value));
                let help = format!(
                    "A prefix can belong to one tenant; {} claims it at {}. A longer prefix may lie within it.",
                    quoted(&owner.value),
                    place.describe()
                );
                reporter.error(Code::Conflict, source, message, help);
            }
        }
    }
    prefixes.sort_unstable();
    prefixes
}

fn resolve_limits(reporter: &mut Reporter<'_>, limits: Option<&model::Limits>) -> Limits {
    let Some(limits) = limits else {
        return Limits {
            new_connections_per_second: None,
            packets_per_second: None,
            bytes_per_second: None,
            response_bytes_per_second: None,
            concurrent_connections: None,
            burst_ns: DEFAULT_BURST_NS,
        };
    };
    let model::Limits {
        new_connections_per_second,
        packets_per_second,
        bytes_per_second,
        response_bytes_per_second,
        concurrent_connections,
        burst,
    } = limits;
    let mut rate =
        |text: &Option<Text>, unit| text.as_ref().and_then(|text| resolve_rate(reporter, text, unit));
    let new_connections_per_second = rate(new_connections_per_second, Unit::Events);
    let packets_per_second = rate(packets_per_second, Unit::Events);
    let bytes_per_second = rate(bytes_per_second, Unit::Bytes);
    let response_bytes_per_second = rate(response_bytes_per_second, Unit::Bytes);
    let concurrent_connections = concurrent_connections
        .as_ref()
        .and_then(|text| resolve_concurrency(reporter, text));
    let burst_ns = burst
        .as_ref()
        .and_then(|text| scalar::duration_ns(reporter, text, MIN_BURST_NS..=MAX_BURST_NS, "burst"))
        .unwrap_or(DEFAULT_BURST_NS);
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

fn count(reporter: &mut Reporter<'_>, text: &Text) -> Option<u64> {
    quantity::count(&text.value)
        .inspect_err(|error| {
            let message = format!("{} is no limit: {error}", quoted(&text.value));
            reporter.error(
                Code::InvalidValue,
                text,
                message,
                format!("It is {}.", quantity::COUNT_FORM),
            );
        })
        .ok()
}

fn resolve_rate(reporter: &mut Reporter<'_>, text: &Text, unit: Unit) -> Option<u64> {
    let rate = count(reporter, text)?;
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
    let value = count(reporter, text)?;
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
