//! The cases by name.

use enforcer_common::Reason;

use super::{Spec, Surroundings, What};
use crate::bench::{Case, Work};
use crate::rig::Verdict;

/// Clients of a tenant that may do everything.
const ACME: &str = "10.1.0.0:1024";
/// More of them.
const ACME_TOO: &str = "10.1.128.0:1024";
const ACME6: &str = "[2001:db8:1::]:1024";

/// Flows, as a power of two.
const ONE: u32 = 0;
const K1: u32 = 10;
const K64: u32 = 16;
const M1: u32 = 20;
const M16: u32 = 24;

pub(in crate::bench) const CASES: [Case; 50] = [
    floor("floor/pass", Verdict::Pass),
    floor("floor/drop", Verdict::Drop),
    floor("floor/tx", Verdict::Transmit),
    line("floor/line/1M", 1),
    line("floor/line/8M", 8),
    line("floor/line/64M", 64),
    line("floor/line/256M", 256),
    case(
        "not-ours/v4",
        Spec {
            verdict: Verdict::Pass,
            ..refused(ACME, "198.51.100.7:8000", Reason::NotService)
        },
    ),
    case(
        "refuse/unknown/v4",
        refused("172.16.0.0:1024", IPIP, Reason::UnknownTenant),
    ),
    case(
        "refuse/unknown/v6",
        refused("[2001:db8:ffff::]:1024", IPIP6, Reason::UnknownTenant),
    ),
    case("refuse/rule/v4", refused("10.2.0.0:1024", IPIP, Reason::RuleDeny)),
    case(
        "limit/packets/v4",
        Spec {
            what: What::OverLimit,
            flow_bits: K1,
            ..refused("10.3.0.0:1024", IPIP, Reason::PacketRate)
        },
    ),
    opening("new-flow/ipip/v4", IPIP),
    opening("new-flow/nat/v4", NAT),
    opening("new-flow/dnat/v4", DNAT),
    opening("new-flow/l2dsr/v4", L2DSR),
    case(
        "new-flow/ipip/v4/16M-sources",
        Spec {
            under: Surroundings::ManySources,
            what: What::Opening,
            from: "11.0.0.0:1024",
            ..in_flow(IPIP, M16)
        },
    ),
    case(
        "new-flow/ipip/v4/audited",
        Spec {
            under: Surroundings::Audited,
            what: What::Opening,
            ..in_flow(IPIP, K64)
        },
    ),
    two_cpus("established/ipip/v4/1k/two-cpus", IPIP, K1),
    two_cpus("established/ipip/v4/64k/two-cpus", IPIP, K64),
    two_cpus("established/dnat/v4/1k/two-cpus", DNAT, K1),
    established("established/ipip/v4/1", IPIP, ONE),
    established("established/ipip/v4/1k", IPIP, K1),
    established("established/ipip/v4/64k", IPIP, K64),
    established("established/ipip/v6/1", IPIP6, ONE),
    established("established/ipip/v6/1k", IPIP6, K1),
    established("established/ipip/v6/64k", IPIP6, K64),
    established("established/gue/v4/1k", GUE, K1),
    established("established/gue/v6/1k", GUE6, K1),
    established("established/l2dsr/v4/1k", L2DSR, K1),
    established("established/l2dsr/v6/1k", L2DSR6, K1),
    established("established/dnat/v4/1", DNAT, ONE),
    established("established/dnat/v4/1k", DNAT, K1),
    established("established/dnat/v4/64k", DNAT, K64),
    established("established/dnat/v6/1", DNAT6, ONE),
    established("established/dnat/v6/1k", DNAT6, K1),
    established("established/dnat/v6/64k", DNAT6, K64),
    established("established/nat/v4/1k", NAT, K1),
    established("established/nat/v6/1k", NAT6, K1),
    stays("established/local/v4/1k", LOCAL),
    stays("established/local/v6/1k", LOCAL6),
    case(
        "established/ipip/v4/1k/limits",
        Spec {
            from: "10.4.0.0:1024",
            ..in_flow(IPIP, K1)
        },
    ),
    case(
        "established/ipip/v4/1k/redirect",
        Spec {
            under: Surroundings::TwoInterfaces,
            verdict: Verdict::Redirect,
            ..in_flow(IPIP, K1)
        },
    ),
    case(
        "established/dnat/v4/1k/redirect",
        Spec {
            under: Surroundings::TwoInterfaces,
            verdict: Verdict::Redirect,
            ..in_flow(DNAT, K1)
        },
    ),
    case(
        "established/ipip/v4/1k/large-policy",
        Spec {
            under: Surroundings::Large,
            from: "10.0.0.1:1024",
            ..in_flow("192.0.4.1:8000", K1)
        },
    ),
    roomy("established/ipip/v4/1M", IPIP),
    roomy("established/ipip/v6/1M", IPIP6),
    roomy("established/dnat/v4/1M", DNAT),
    roomy("established/dnat/v6/1M", DNAT6),
    roomy("established/l2dsr/v4/1M", L2DSR),
];

const NAT: &str = "192.0.2.10:8000";
const NAT6: &str = "[2001:db8::10]:8000";
const DNAT: &str = "192.0.2.20:8000";
const DNAT6: &str = "[2001:db8::20]:8000";
const L2DSR: &str = "192.0.2.30:8000";
const L2DSR6: &str = "[2001:db8::30]:8000";
const IPIP: &str = "192.0.2.40:8000";
const IPIP6: &str = "[2001:db8::40]:8000";
const GUE: &str = "192.0.2.50:8000";
const GUE6: &str = "[2001:db8::50]:8000";
const LOCAL: &str = "192.0.2.60:8000";
const LOCAL6: &str = "[2001:db8::60]:8000";

const fn case(name: &'static str, spec: Spec) -> Case {
    Case {
        name,
        work: Work::Packets(spec),
    }
}

/// The driver and nothing behind it.
const fn floor(name: &'static str, verdict: Verdict) -> Case {
    let spec = in_flow(IPIP, K1);
    case(
        name,
        Spec {
            what: What::Floor,
            verdict,
            ..spec
        },
    )
}

/// One line of so many mebibytes of memory.
const fn line(name: &'static str, mebibytes: u32) -> Case {
    let spec = in_flow(IPIP, K1);
    case(
        name,
        Spec {
            what: What::Line(mebibytes),
            ..spec
        },
    )
}

/// From sources as many as a flood has.
const fn refused(from: &'static str, to: &'static str, reason: Reason) -> Spec {
    Spec {
        under: Surroundings::Usual,
        what: What::Stateless,
        from,
        to,
        flow_bits: K64,
        second: None,
        verdict: Verdict::Drop,
        reason,
    }
}

/// Packets of open flows, from a tenant that may do everything.
const fn in_flow(to: &'static str, flow_bits: u32) -> Spec {
    let v6 = matches!(to.as_bytes(), [b'[', ..]);
    Spec {
        what: What::Established,
        flow_bits,
        verdict: Verdict::Transmit,
        ..refused(if v6 { ACME6 } else { ACME }, to, Reason::Allowed)
    }
}

const fn established(name: &'static str, to: &'static str, flow_bits: u32) -> Case {
    case(name, in_flow(to, flow_bits))
}

/// Packets of open flows that a proxy on the host gets.
const fn stays(name: &'static str, to: &'static str) -> Case {
    case(
        name,
        Spec {
            verdict: Verdict::Pass,
            ..in_flow(to, K1)
        },
    )
}

/// Packets of open flows on two CPUs at once, of other flows on each.
const fn two_cpus(name: &'static str, to: &'static str, flow_bits: u32) -> Case {
    case(
        name,
        Spec {
            second: Some(ACME_TOO),
            ..in_flow(to, flow_bits)
        },
    )
}

/// A million flows.
const fn roomy(name: &'static str, to: &'static str) -> Case {
    case(
        name,
        Spec {
            under: Surroundings::Roomy,
            ..in_flow(to, M1)
        },
    )
}

const fn opening(name: &'static str, to: &'static str) -> Case {
    case(
        name,
        Spec {
            what: What::Opening,
            ..in_flow(to, K64)
        },
    )
}
