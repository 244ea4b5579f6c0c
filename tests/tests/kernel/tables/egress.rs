//! The TC egress program: replies that go out through the host's stack.

use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_tests::packet::{Segment, syn, tcp, udp};

use super::onward;
use crate::bench::{Scenario, Step, raw, row};

const POLICY: &str = r#"
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: egress}
spec:
  tenants:
  - {name: acme, sources: [10.1.0.0/16, "2001:db8:1::/48"], limits: {responseBytesPerSecond: 65535, burst: 1s}}
  services:
  - {name: chat, addresses: [192.0.2.20, "2001:db8::20"], port: 8000, protocol: TCP, pools: [main], forward: Dnat}
  - {name: dns, addresses: [192.0.2.20, "2001:db8::20"], port: 53, protocol: UDP, pools: [main], forward: Dnat}
  pools:
  - name: main
    backends:
    - {name: gpu-1, address: 10.9.0.1, port: 9000}
    - {name: gpu-6, address: "2001:db8:9::1", port: 9000}
  rules:
  - {name: all, action: Allow}
  protectedNetworks: [10.9.0.0/16]
"#;

pub(super) fn table() -> Scenario {
    let openings = [
        (syn("10.1.0.1:40000", "192.0.2.20:8000"), "10.9.0.1:9000"),
        (
            syn("[2001:db8:1::1]:40000", "[2001:db8::20]:8000"),
            "[2001:db8:9::1]:9000",
        ),
        (udp("10.1.0.1:40000", "192.0.2.20:53"), "10.9.0.1:9000"),
        (
            udp("[2001:db8:1::1]:40000", "[2001:db8::20]:53"),
            "[2001:db8:9::1]:9000",
        ),
        (
            udp("10.1.0.2:40000", "192.0.2.20:53").unchecked(),
            "10.9.0.1:9000",
        ),
    ];
    let mut steps: Vec<Step> = Vec::new();
    for (opening, backend) in &openings {
        let onward = onward(opening, &opening.from.to_string(), backend);
        // The stack has routed it: its link-layer addresses are right and its hop limit is lowered.
        let answer = opening.answer().from(backend).payload(333).hop_limit(63);
        let out = answer.clone().from(&opening.to.to_string());
        let last = answer.clone().hop_limit(1);
        let last_out = out.clone().hop_limit(1);
        steps.push(row("opened", opening).opens("acme", &onward).into());
        steps.push(
            row("its answer gets the VIP for a source", &answer)
                .replies("acme", &out)
                .egress()
                .into(),
        );
        steps.push(
            row("so does one whose hop limit the stack lowered to 1", &last)
                .replies("acme", &last_out)
                .egress()
                .into(),
        );
    }
    let big = openings[2].0.answer().from("10.9.0.1:9000").ip_bytes(3000);
    let big_out = big.clone().from("192.0.2.20:53");
    let tagged = openings[0]
        .0
        .answer()
        .from("10.9.0.1:9000")
        .flags(TCP_ACK)
        .vlan(3);
    let tagged_out = Segment {
        from: openings[0].0.to,
        ..tagged.clone()
    };
    let cut = openings[0].0.answer().from("10.9.0.1:9000").payload(20).bytes();
    steps.extend([
        row("with a VLAN tag", &tagged)
            .replies("acme", &tagged_out)
            .egress()
            .into(),
        row("a stranger's packet", &tcp("198.51.100.1:1", "203.0.113.1:443"))
            .egress()
            .into(),
        row(
            "the host's own packet to a back end",
            &tcp("10.9.0.254:1", "10.9.0.1:9000"),
        )
        .egress()
        .into(),
        row(
            "a back end's packet that is no reply",
            &tcp("10.9.0.1:22", "10.1.0.1:40000"),
        )
        .egress()
        .into(),
        raw("a packet that contradicts itself", cut[..50].to_vec(), 36)
            .egress()
            .into(),
        Step::Advance(Duration::from_secs(60)),
        row("a stream of large responses", &big)
            .replies("acme", &big_out)
            .egress()
            .times(21)
            .into(),
        row("is stopped at the limit", &big)
            .refused("acme", Reason::ResponseRate)
            .egress()
            .times(3)
            .into(),
        Step::Change("the tenant is suspended", |world| {
            world.suspended.insert("acme".to_owned());
        }),
        row("and its open connections with it", &big)
            .refused("acme", Reason::Suspended)
            .egress()
            .into(),
    ]);
    Scenario::of(POLICY, steps)
}

#[test]
fn replies_through_the_stack() {
    table().run();
}
