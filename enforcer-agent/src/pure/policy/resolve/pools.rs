//! Pools, their back ends and health checks.

use std::collections::BTreeMap;

use super::super::diagnostic::{Code, Reporter};
use super::super::model::{self, Spanned, Text};
use super::super::resolved::{Backend, HealthCheck, Pool, Probe};
use super::super::source::Place;
use super::super::suggest::quoted;
use super::{Placed, network, report_same_but_for_case, scalar, sort_by_name};

const DEFAULT_CAPACITY: u32 = 100;
/// Largest capacity: a thousand times it, the finest weight that telemetry sets, still fits 32 bits.
const MAX_CAPACITY: u32 = 1_000_000;
const MILLISECOND_NS: u64 = 1_000_000;
const HOUR_NS: u64 = 3600 * 1_000_000_000;
const DEFAULT_INTERVAL_NS: u64 = 1000 * MILLISECOND_NS;
const DEFAULT_TIMEOUT_NS: u64 = 500 * MILLISECOND_NS;
const DEFAULT_UNHEALTHY_AFTER: u32 = 3;
const DEFAULT_HEALTHY_AFTER: u32 = 2;
const MAX_PROBES_IN_A_ROW: u32 = 1000;

pub(super) fn resolve(reporter: &mut Reporter<'_>, pools: &[&model::Pool]) -> Vec<Placed<Pool>> {
    let mut names = BTreeMap::new();
    let mut resolved: Vec<_> = pools
        .iter()
        .map(|pool| {
            let model::Pool {
                name,
                labels,
                backends,
                health_check,
                failover,
            } = pool;
            let _ = scalar::name(reporter, name);
            if backends.value.is_empty() {
                let message = format!("pool {} has no back ends", quoted(&name.value));
                reporter.error(
                    Code::MissingField,
                    backends,
                    message,
                    "List at least one under `backends`.",
                );
            }
            let (healthy_below_percent, utilization_above_percent) =
                resolve_failover(reporter, failover.as_ref());
            let value = Pool {
                name: name.value.clone(),
                labels: scalar::labels(reporter, labels.as_ref()),
                backends: resolve_backends(reporter, &backends.value, &mut names),
                health_check: resolve_health_check(reporter, health_check.as_ref()),
                healthy_below_percent,
                utilization_above_percent,
            };
            Placed {
                value,
                place: name.into(),
            }
        })
        .collect();
    let backends: Vec<(&str, Place)> = names.into_iter().collect();
    report_same_but_for_case(reporter, "back end", &backends);
    sort_by_name(reporter, &mut resolved);
    resolved
}

/// The shares of healthy back ends and of utilization, in percent, at which the pool fails.
fn resolve_failover(
    reporter: &mut Reporter<'_>,
    failover: Option<&Spanned<model::Failover>>,
) -> (u8, Option<u8>) {
    let Some(failover) = failover else {
        return (0, None);
    };
    let model::Failover {
        healthy_below,
        utilization_above,
    } = &failover.value;
    if healthy_below.is_none() && utilization_above.is_none() {
        reporter.error(
            Code::MissingField,
            failover,
            "`failover` does not say when",
            "Add `healthyBelow`, or leave the whole field out.",
        );
    }
    let healthy_below = healthy_below
        .as_ref()
        .and_then(|share| scalar::percentage(reporter, share));
    let utilization_above = utilization_above
        .as_ref()
        .and_then(|share| scalar::percentage(reporter, share));
    (healthy_below.unwrap_or(0), utilization_above)
}

/// A pool's back ends, sorted by name. Names are unique over all pools, since `backend drain NAME` has nothing else.
fn resolve_backends<'a>(
    reporter: &mut Reporter<'_>,
    backends: &'a [model::Backend],
    names: &mut BTreeMap<&'a str, Place>,
) -> Vec<Backend> {
    let mut endpoints = BTreeMap::new();
    let mut resolved = Vec::with_capacity(backends.len());
    for backend in backends {
        let model::Backend {
            name,
            address,
            port,
            capacity,
            labels,
            telemetry,
        } = backend;
        let _ = scalar::name(reporter, name);
        if let Some(first) = names.get(name.value.as_str()) {
            let message = format!("there is already a back end named {}", quoted(&name.value));
            let help = format!(
                "Rename one of the two, even if they are in different pools; the first one stands at {}.",
                reporter.describe(*first)
            );
            reporter.error(Code::Duplicate, name, message, help);
        } else {
            names.insert(&name.value, name.into());
        }
        let labels = scalar::labels(reporter, labels.as_ref());
        let capacity = capacity.as_ref().map_or(Some(DEFAULT_CAPACITY), |text| {
            scalar::positive(reporter, text, MAX_CAPACITY, "capacity")
        });
        let (dcgm_url, engine_url) = resolve_telemetry(reporter, telemetry.as_ref());
        let endpoint = (
            network::host_address(reporter, address),
            scalar::port(reporter, port),
        );
        let (Some(capacity), (Some(ip), Some(port))) = (capacity, endpoint) else {
            continue;
        };
        if let Some(other) = endpoints.insert((ip, port), &name.value) {
            let message = format!("this address and port is already back end {}", quoted(other));
            let help = "List it once in a pool; `capacity` gives it a larger share.";
            reporter.error(Code::Duplicate, address, message, help);
        }
        resolved.push(Backend {
            name: name.value.clone(),
            address: ip,
            port,
            capacity,
            labels,
            dcgm_url,
            engine_url,
        });
    }
    resolved.sort_by(|left, right| left.name.cmp(&right.name));
    resolved
}

fn resolve_telemetry(
    reporter: &mut Reporter<'_>,
    telemetry: Option<&model::Telemetry>,
) -> (Option<String>, Option<String>) {
    let Some(model::Telemetry { dcgm, engine }) = telemetry else {
        return (None, None);
    };
    let mut url = |text: Option<&Text>| text.and_then(|text| scalar::http_url(reporter, text));
    (url(dcgm.as_deref()), url(engine.as_deref()))
}

fn resolve_health_check(
    reporter: &mut Reporter<'_>,
    check: Option<&Spanned<model::HealthCheck>>,
) -> HealthCheck {
    let mut resolved = HealthCheck {
        probe: Probe::Tcp,
        interval_ns: DEFAULT_INTERVAL_NS,
        timeout_ns: DEFAULT_TIMEOUT_NS,
        unhealthy_after: DEFAULT_UNHEALTHY_AFTER,
        healthy_after: DEFAULT_HEALTHY_AFTER,
    };
    let Some(check) = check else { return resolved };
    let model::HealthCheck {
        tcp,
        http,
        interval,
        timeout,
        unhealthy_after,
        healthy_after,
    } = &check.value;
    if let Some(probe) = resolve_probe(reporter, check, tcp.as_deref(), http.as_deref()) {
        resolved.probe = probe;
    }
    let mut time = |text: Option<&Text>, what| {
        let text = text?;
        scalar::duration_ns(reporter, text, 10 * MILLISECOND_NS..=HOUR_NS, what)
    };
    resolved.interval_ns = time(interval.as_deref(), "interval").unwrap_or(resolved.interval_ns);
    // A probe more often than the default time-out leaves less time for the answer, without having to say so.
    let default_timeout_ns = resolved.timeout_ns.min(resolved.interval_ns);
    resolved.timeout_ns = time(timeout.as_deref(), "timeout").unwrap_or(default_timeout_ns);
    if let (Some(timeout), true) = (timeout, resolved.timeout_ns > resolved.interval_ns) {
        let message = "the timeout is longer than the interval, so that probes would pile up";
        reporter.error(
            Code::InvalidValue,
            timeout,
            message,
            "Make it at most as long as `interval`.",
        );
    }
    let mut probes = |text: Option<&Text>| {
        let text = text?;
        scalar::positive(reporter, text, MAX_PROBES_IN_A_ROW, "number of probes")
    };
    resolved.unhealthy_after = probes(unhealthy_after.as_deref()).unwrap_or(resolved.unhealthy_after);
    resolved.healthy_after = probes(healthy_after.as_deref()).unwrap_or(resolved.healthy_after);
    resolved
}

fn resolve_probe(
    reporter: &mut Reporter<'_>,
    check: &Spanned<model::HealthCheck>,
    tcp: Option<&Text>,
    http: Option<&Text>,
) -> Option<Probe> {
    match (tcp, http) {
        (Some(tcp), None) if tcp.value == "true" => Some(Probe::Tcp),
        (Some(tcp), None) => {
            let message = format!("{} is nothing that a health check can do", quoted(&tcp.value));
            reporter.error(
                Code::InvalidValue,
                tcp,
                message,
                "Write `tcp: true`, or `http: /path` in its place.",
            );
            None
        }
        (None, Some(http)) => scalar::http_path(reporter, http).map(Probe::Http),
        (Some(tcp), Some(_)) => {
            let message = "a health check is either `tcp` or `http`";
            reporter.error(
                Code::Conflict,
                tcp,
                message,
                "Remove one; `http` opens a TCP connection as well.",
            );
            None
        }
        (None, None) => {
            let message = "the health check does not say what to do";
            reporter.error(
                Code::MissingField,
                check,
                message,
                "Add `tcp: true` or `http: /path`.",
            );
            None
        }
    }
}
