//! What happens in a simulation: requests, events, and the policies that they are about.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::random::Random;
use crate::api::{CaptureOrder, FlowFilter, PolicySource, Protocol, Request};

/// One thing that happens to the daemon.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Ask(Request),
    /// Probes in a row, enough for a verdict.
    Probed(&'static str, bool),
    /// Requests that wait in an engine.
    Engine(&'static str, f64),
    /// The XID of the last fault of a GPU.
    Gpu(&'static str, u32),
    LocalGpu,
    /// The last byte of a back end's link-layer address.
    Hop(&'static str, u8),
    LocalAddress(u8),
    Swept,
    Traffic,
    /// A tenant opens so many connections, of 1000 bytes each.
    Used(&'static str, u64),
    KernelEvents,
    Fold,
    /// The time of day is set forward or back by this many seconds, and then comes a fold.
    Clock(i64),
    Restart,
}

pub(super) const BACKENDS: [&str; 4] = ["gpu-1", "gpu-2", "gpu-3", "gpu-4"];
pub(super) const TENANTS: [&str; 4] = ["acme", "globex", "initech", "hooli"];

const HEAD: &str =
    "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: simulated}\nspec:\n";
const SERVICES: &str = "  services:
  - {name: chat, addresses: [192.0.2.10], port: 8000, protocol: TCP, pools: [eu, us], forward: Nat}
  protectedNetworks: [10.9.0.0/16]
";

fn tenants(names: &[(&str, u8)], limit: u32) -> String {
    let rows = names.iter().map(|(name, net)| {
        format!(
            "  - {{name: {name}, sources: [10.1.{net}.0/24], limits: {{newConnectionsPerSecond: {limit}}}}}\n"
        )
    });
    format!("  tenants:\n{}", rows.collect::<String>())
}

fn pools(eu: &[(&str, u32)], us: &[(&str, u32)]) -> String {
    let pool = |name: &str, backends: &[(&str, u32)]| {
        let rows = backends.iter().map(|(name, capacity)| {
            let host = name.trim_start_matches("gpu-");
            format!("    - {{name: {name}, address: 10.9.{host}.10, port: 8000, capacity: {capacity}}}\n")
        });
        format!("  - name: {name}\n    backends:\n{}", rows.collect::<String>())
    };
    format!("  pools:\n{}{}", pool("eu", eu), pool("us", us))
}

const RULES: &str = "  rules:\n  - {name: chat-for-all, action: Allow, services: {matchNames: [chat]}}\n";

/// The text of a policy, and whether it can be put into force.
pub(super) fn policy(number: u64) -> (String, bool) {
    let three = [("acme", 1), ("globex", 2), ("initech", 3)];
    let (eu, us) = ([("gpu-1", 100), ("gpu-2", 100)], [("gpu-3", 100)]);
    let base = |limit| format!("{HEAD}{}{SERVICES}{}", tenants(&three, limit), pools(&eu, &us));
    let denied = "  - {name: not-globex, action: Deny, priority: 5, tenants: {matchNames: [globex]}}\n";
    match number {
        0 => (format!("{}{RULES}", base(50)), true),
        // A tenant and a back end go, others come; another limit.
        1 => {
            let others = [("acme", 1), ("hooli", 4), ("initech", 3)];
            let pools = pools(&[("gpu-1", 100)], &[("gpu-3", 100), ("gpu-4", 50)]);
            (
                format!("{HEAD}{}{SERVICES}{pools}{RULES}", tenants(&others, 20)),
                true,
            )
        }
        // Weights only: made in place.
        2 => {
            let pools = pools(&[("gpu-1", 300), ("gpu-2", 100)], &us);
            (
                format!("{HEAD}{}{SERVICES}{pools}{RULES}", tenants(&three, 50)),
                true,
            )
        }
        // Nothing that is enforced.
        3 => (format!("# Lines move.\n{}{RULES}", base(50)), true),
        4 => (format!("{}{RULES}{denied}", base(50)), true),
        // With the hours of the day.
        5 => {
            let rules = "  rules:
  - {name: chat-by-day, action: Allow, services: {matchNames: [chat]}, schedule: {from: 06:00, to: 18:00}}
  - {name: globex-by-night, action: Allow, tenants: {matchNames: [globex]}, schedule: {from: 21:00, to: 03:00}}
  - {name: not-initech, action: Deny, tenants: {matchNames: [initech]}, schedule: {days: [Sat, Sun]}}
";
            (format!("{}{rules}", base(50)), true)
        }
        // With a lease, quotas and classes.
        6 => {
            let defaults = "  defaults: {onLeaseExpiry: RefuseAll, leaseSeconds: 5}\n";
            let classes = "  classes: [{name: bronze, shedAbove: 60%}, {name: gold, weight: 4}]\n";
            let tenants = tenants(&three, 50)
                .replacen("}}", &format!("}}, class: bronze, quotas: [{QUOTA}]}}"), 2)
                .replacen("}}", "}, class: gold}", 1);
            let pools = pools(&eu, &us).replacen(
                "  - name: eu\n",
                "  - name: eu\n    failover: {utilizationAbove: 80%}\n",
                1,
            );
            (
                format!("{HEAD}{defaults}{classes}{tenants}{SERVICES}{pools}{RULES}"),
                true,
            )
        }
        // Wrong.
        7 => (format!("{}{RULES}  colour: red\n", base(50)), false),
        // Right, but not for a host without an IPv6 address for `Nat`.
        _ => (
            format!("{}{RULES}", base(50)).replace("192.0.2.10]", "192.0.2.10, \"2001:db8::1\"]"),
            false,
        ),
    }
}

pub(super) const POLICIES: u64 = 9;
/// That of `acme` and `globex` in [`GOVERNED`].
const QUOTA: &str =
    "{metric: connections, limit: 100, per: 1d}, {metric: requestBytes, limit: 1000000, per: 1h}";
/// The policy with quotas, classes and a lease.
pub(super) const GOVERNED: u64 = 6;

pub(super) fn apply(number: u64) -> Step {
    Step::Ask(Request::PolicyApply {
        sources: vec![PolicySource::new(format!("{number}.yaml"), policy(number).0)],
        dry_run: false,
    })
}

/// One rule, which is open from one time to another by the clocks of Berlin.
pub(super) fn hours_policy(from: &str, to: &str) -> String {
    let rule = format!(
        "  rules:\n  - {{name: by-night, action: Allow, schedule: {{from: \"{from}\", to: \"{to}\", \
         timeZone: Europe/Berlin}}}}\n"
    );
    let pools = pools(&[("gpu-1", 100)], &[("gpu-3", 100)]);
    format!("{HEAD}{}{SERVICES}{pools}{rule}", tenants(&[("acme", 1)], 50))
}

pub(super) fn suspend(name: &str) -> Step {
    Step::Ask(Request::TenantSuspend {
        name: name.to_owned(),
    })
}

pub(super) fn resume(name: &str) -> Step {
    Step::Ask(Request::TenantResume {
        name: name.to_owned(),
    })
}

pub(super) fn drain(name: &str) -> Step {
    Step::Ask(Request::BackendDrain {
        name: name.to_owned(),
    })
}

pub(super) fn undrain(name: &str) -> Step {
    Step::Ask(Request::BackendUndrain {
        name: name.to_owned(),
    })
}

pub(super) fn rollback(generation: Option<u64>) -> Step {
    Step::Ask(Request::PolicyRollback { generation })
}

fn reads() -> Vec<Request> {
    let text = policy(1).0;
    vec![
        Request::Status,
        Request::PolicyApply {
            sources: vec![PolicySource::new("dry.yaml", text)],
            dry_run: true,
        },
        Request::PolicyShow { generation: None },
        Request::PolicyShow { generation: Some(1) },
        Request::PolicyHistory,
        Request::PolicyExplain {
            from: SocketAddr::new(IpAddr::from([10, 1, 1, 1]), 4000),
            to: SocketAddr::new(IpAddr::from([192, 0, 2, 10]), 8000),
            protocol: Protocol::Tcp,
            at: None,
        },
        Request::TenantList,
        Request::BackendList,
        Request::ServiceList,
        Request::FlowsList {
            limit: 10,
            filter: FlowFilter::default(),
        },
        Request::MapsList,
        Request::MapsDump {
            name: "TENANTS".to_owned(),
            limit: 10,
        },
        Request::AuditTail {
            from: None,
            limit: 10,
        },
        Request::Metrics,
    ]
}

/// Every kind of operation, each where it has something to do.
pub(super) fn scenario() -> Vec<Step> {
    let mut steps = vec![
        rollback(None),
        apply(0),
        Step::Hop("gpu-1", 1),
        Step::Hop("gpu-2", 1),
        Step::Hop("gpu-3", 1),
        Step::Traffic,
        Step::Fold,
        suspend("acme"),
        apply(1),
        Step::Probed("gpu-1", false),
        Step::KernelEvents,
        apply(0),
        resume("acme"),
        drain("gpu-1"),
        apply(2),
        Step::Restart,
        Step::Gpu("gpu-3", 79),
        Step::Fold,
        undrain("gpu-1"),
        Step::Probed("gpu-1", true),
        apply(3),
        apply(7),
        apply(8),
        Step::Engine("gpu-2", 900.0),
        Step::Fold,
        Step::LocalGpu,
        Step::LocalAddress(7),
        Step::Swept,
        apply(4),
        apply(5),
        Step::Clock(12 * 3600),
        Step::Clock(7 * 3600),
        suspend("globex"),
        Step::Clock(48 * 3600),
        Step::Clock(-24 * 3600),
        Step::Restart,
        resume("globex"),
        rollback(None),
        rollback(Some(1_000_000)),
        apply(GOVERNED),
        Step::Used("acme", 99),
        Step::Fold,
        Step::Used("acme", 1),
        Step::Fold,
        Step::Restart,
        Step::Engine("gpu-1", 900.0),
        Step::Engine("gpu-2", 900.0),
        Step::Fold,
        Step::Clock(24 * 3600),
        Step::Traffic,
        Step::Fold,
    ];
    steps.extend(reads().into_iter().map(Step::Ask));
    steps.push(Step::Ask(Request::CaptureBegin(CaptureOrder {
        reasons: BTreeSet::from(["NoRule".to_owned()]),
        tenant: None,
        service: None,
        count: 10,
        seconds: 10,
        snap_bytes: 64,
    })));
    steps.push(Step::Ask(Request::CaptureEnd { serial: 1 }));
    steps.push(Step::Ask(Request::Detach));
    steps.push(apply(1));
    steps
}

/// Any step.
pub(super) fn any(random: &mut Random) -> Step {
    let backend = random.pick(&BACKENDS);
    let tenant = random.pick(&TENANTS);
    match random.below(100) {
        0..16 => apply(random.below(POLICIES)),
        16..18 => rollback(None),
        18..20 => rollback(Some(random.below(20))),
        20..27 => suspend(tenant),
        27..35 => resume(tenant),
        35..41 => drain(backend),
        41..47 => undrain(backend),
        47..54 => Step::Probed(backend, random.below(2) == 0),
        54..58 => Step::Engine(backend, [0.0, 50.0, 900.0][random.below(3) as usize]),
        58..61 => Step::Gpu(backend, [0, 79][random.below(2) as usize]),
        61..62 => Step::LocalGpu,
        62..69 => Step::Hop(backend, random.below(3) as u8),
        69..71 => Step::LocalAddress(random.below(2) as u8),
        71..72 => Step::Swept,
        72..74 => Step::Traffic,
        74..76 => Step::Used(tenant, random.below(60)),
        76..78 => Step::KernelEvents,
        78..86 => Step::Fold,
        86..92 => Step::Clock(1800 * (random.below(96) as i64 - 40)),
        92..96 => Step::Ask(random.pick(&reads()).clone()),
        96..99 => Step::Restart,
        _ => Step::Ask(Request::Detach),
    }
}
