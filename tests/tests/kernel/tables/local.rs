//! Packets that are judged, counted and limited, and stay on this host for a proxy.

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_common::schema::tenant_connections;
use enforcer_tests::packet::syn;
use enforcer_tests::world::BACKEND_SIDE_MAC;

use super::{POLICY, prepare};
use crate::bench::{Row, Scenario, Step, row};

pub(super) fn table() -> Scenario {
    let mut rows: Vec<Row> = Vec::new();
    for (from, to) in [
        ("10.1.0.1:40000", "192.0.2.95:8000"),
        ("[2001:db8:1::1]:40000", "[2001:db8::95]:8000"),
    ] {
        let opening = syn(from, to);
        let data = opening.clone().flags(TCP_ACK).payload(101);
        // As the host's stack sends it, on whatever link.
        let answer = data
            .answer()
            .link(BACKEND_SIDE_MAC, opening.link_source)
            .hop_limit(1);
        let beside = answer.clone().from(&to.replace("8000", "8001"));
        rows.push(
            row("the first packet opens a flow and stays as it is", &opening)
                .opens("acme", &opening)
                .passed(),
        );
        rows.push(row("so does data", &data).continues("acme", &data).passed());
        rows.push(
            row("no hop is taken", &data.clone().hop_limit(1))
                .continues("acme", &data.clone().hop_limit(1))
                .passed(),
        );
        rows.push(
            row("the proxy's answer is metered", &answer)
                .replies("acme", &answer)
                .egress(),
        );
        rows.push(row("what the host sends by itself is not", &beside).egress());
        let denied = syn(
            &from
                .replace("10.1.0.1", "10.4.0.1")
                .replace("2001:db8:1:", "2001:db8:7:"),
            to,
        );
        rows.push(if denied.to.is_ipv4() {
            row("a suspended tenant", &denied).refused("hooli", Reason::Suspended)
        } else {
            row("nobody", &denied).refused("", Reason::UnknownTenant)
        });
    }
    let mut steps: Vec<Step> = rows.into_iter().map(Into::into).collect();
    steps.push(Step::Inspect("both connections count", |bench| {
        let acme = tenant_connections(bench.world.tenant("acme"));
        assert_eq!(bench.rig.dataplane().maps.open_connections(acme).unwrap(), 2);
    }));
    Scenario {
        prepare,
        ..Scenario::of(POLICY, steps)
    }
}

#[test]
fn a_proxy_on_this_host() {
    table().run();
}
