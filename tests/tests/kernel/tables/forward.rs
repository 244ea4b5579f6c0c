//! The forward modes, both ways.

use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::decide::TCP_ACK;
use enforcer_common::schema::tenant_connections;
use enforcer_tests::packet::{Segment, syn, tcp, udp};

use super::{POLICY, from_backend, homeward, nat_source, onward, opening, prepare, translated};
use crate::bench::{Row, Scenario, Step, row};

fn scenario(rows: Vec<Row>) -> Scenario {
    Scenario {
        prepare,
        ..Scenario::of(POLICY, rows.into_iter().map(Into::into).collect())
    }
}

/// The rows of one connection: opened, answered, used in both directions with odd and even lengths.
fn conversation(opening: &Segment, onward: impl Fn(&Segment) -> Segment, backend: &str) -> Vec<Row> {
    let first = onward(opening);
    let answer = from_backend(first.answer().from(backend));
    let data = opening.clone().flags(TCP_ACK).payload(101);
    let back = answer.clone().flags(TCP_ACK).payload(250);
    vec![
        row("the first packet opens a flow", opening).opens("acme", &first),
        row("the back end's answer", &answer).replies("acme", &homeward(&answer, opening)),
        row("data of an odd length", &data).continues("acme", &onward(&data)),
        row("an answer of an even length", &back).replies("acme", &homeward(&back, opening)),
        row("the last hop", &data.clone().hop_limit(1)).refused("acme", Reason::HopLimit),
        row("the last hop but one", &data.clone().hop_limit(2))
            .continues("acme", &onward(&data.hop_limit(2))),
        row("an answer at its last hop", &back.clone().hop_limit(1)).refused("acme", Reason::HopLimit),
        row(
            "another port of the same client is another flow",
            &syn("10.1.0.1:41000", "192.0.2.10:8000"),
        )
        .opens(
            "acme",
            &translated(&syn("10.1.0.1:41000", "192.0.2.10:8000"), "10.9.0.1:9000"),
        ),
        row(
            "a port of the back end that nobody spoke to",
            &back.from("10.9.0.1:9001").to("203.0.113.9:7"),
        ),
    ]
}

/// The packet with a payload for which the checksum behind the translation is zero, which UDP writes as all ones.
fn with_checksum_of_all_ones(segment: &Segment, backend: &str) -> Segment {
    let checksum = |segment: &Segment| {
        let bytes = translated(segment, backend).bytes();
        [bytes[14 + 20 + 6], bytes[14 + 20 + 7]]
    };
    let mut segment = segment.clone().payload(2);
    segment.payload = vec![0, 0];
    // What is missing from a sum of all ones is the checksum itself.
    segment.payload = checksum(&segment).to_vec();
    assert_eq!(checksum(&segment), [0xff, 0xff]);
    segment
}

pub(super) fn nat() -> Scenario {
    let v4 = opening();
    let v6 = syn("[2001:db8:1::1]:40000", "[2001:db8::10]:8000");
    let dns4 = udp("10.1.0.1:40000", "192.0.2.10:53").payload(30);
    let dns6 = udp("[2001:db8:1::1]:40000", "[2001:db8::10]:53").payload(31);
    let unchecked = udp("10.1.0.9:40000", "192.0.2.10:53").payload(30).unchecked();
    let mut rows = conversation(
        &v4,
        |segment| translated(segment, "10.9.0.1:9000"),
        "10.9.0.1:9000",
    );
    for (opening, backend) in [
        (&v6, "[2001:db8:9::1]:9000"),
        (&dns6, "[2001:db8:9::1]:9000"),
        (&dns4, "10.9.0.1:9000"),
    ] {
        let first = translated(opening, backend);
        let answer = from_backend(first.answer());
        rows.push(row("opened", opening).opens("acme", &first));
        rows.push(row("used", opening).continues("acme", &first));
        rows.push(row("answered", &answer).replies("acme", &homeward(&answer, opening)));
    }
    let first = translated(&unchecked, "10.9.0.1:9000");
    let answer = from_backend(first.answer());
    rows.push(row("UDP without a checksum stays without", &unchecked).opens("acme", &first));
    rows.push(row("so does its answer", &answer).replies("acme", &homeward(&answer, &unchecked)));
    let all_ones = with_checksum_of_all_ones(&udp("10.1.0.8:40000", "192.0.2.10:53"), "10.9.0.1:9000");
    rows.push(
        row("a checksum that comes out as zero is sent as all ones", &all_ones)
            .opens("acme", &translated(&all_ones, "10.9.0.1:9000")),
    );
    let beside = syn("10.1.0.1:40000", "192.0.2.40:8000");
    let out = onward(&beside, &nat_source(&beside), "10.9.0.2:9000");
    rows.push(
        row("a back end on the clients' side", &beside)
            .opens("acme", &out)
            .transmitted(),
    );
    scenario(rows)
}

pub(super) fn dnat() -> Scenario {
    let keep =
        |backend: &'static str| move |segment: &Segment| onward(segment, &segment.from.to_string(), backend);
    let v4 = syn("10.1.0.1:40000", "192.0.2.20:8000");
    let mut rows = conversation(&v4, keep("10.9.0.1:9000"), "10.9.0.1:9000");
    let others = [
        (udp("10.1.0.1:40000", "192.0.2.20:53").payload(5), "10.9.0.1:9000"),
        (
            syn("[2001:db8:1::1]:40000", "[2001:db8::20]:8000"),
            "[2001:db8:9::1]:9000",
        ),
        (
            udp("[2001:db8:1::1]:40000", "[2001:db8::20]:53").payload(6),
            "[2001:db8:9::1]:9000",
        ),
        (
            udp("10.1.0.7:40000", "192.0.2.20:53").payload(5).unchecked(),
            "10.9.0.1:9000",
        ),
    ];
    for (opening, backend) in &others {
        let first = keep(backend)(opening);
        let answer = from_backend(first.answer());
        rows.push(row("opened", opening).opens("acme", &first));
        rows.push(row("answered", &answer).replies("acme", &homeward(&answer, opening)));
    }
    let inside = syn("10.9.77.1:40000", "192.0.2.20:8000");
    let first = keep("10.9.0.1:9000")(&inside);
    let answer = from_backend(first.answer());
    let other = answer.clone().to("10.9.77.1:40001");
    rows.push(row("a client within the protected network", &inside).opens("inside", &first));
    rows.push(row("whose replies pass", &answer).replies("inside", &homeward(&answer, &inside)));
    rows.push(row("where other packets of the back end do not", &other).refused("", Reason::Bypass));
    scenario(rows)
}

pub(super) fn direct() -> Scenario {
    // Nothing changes but the link-layer addresses: not even the hop limit, since this is no router.
    let relinked = |segment: &Segment, backend: &str| {
        let to: std::net::SocketAddr = backend.parse().expect("an address");
        segment.clone().link(
            enforcer_tests::world::BACKEND_SIDE_MAC,
            enforcer_tests::world::mac_of(to.ip()),
        )
    };
    let v4 = syn("10.1.0.1:40000", "192.0.2.30:9000");
    let v6 = syn("[2001:db8:1::1]:40000", "[2001:db8::30]:9000");
    let data = v4.clone().flags(TCP_ACK).payload(77);
    let answer = from_backend(tcp("192.0.2.30:9000", "10.1.0.1:40000"));
    scenario(vec![
        row("opened", &v4).opens("acme", &relinked(&v4, "10.9.0.1:9000")),
        row("used", &data).continues("acme", &relinked(&data, "10.9.0.1:9000")),
        row("at its last hop", &data.clone().hop_limit(1))
            .continues("acme", &relinked(&data.hop_limit(1), "10.9.0.1:9000")),
        row("opened, IPv6", &v6).opens("acme", &relinked(&v6, "[2001:db8:9::1]:9000")),
        row("an answer that passes by here after all", &answer),
    ])
}

/// A client that uses the port of an earlier connection again.
pub(super) fn reopening() -> Scenario {
    let syn = opening();
    let data = syn.clone().flags(TCP_ACK);
    let onward = |segment: &Segment| translated(segment, "10.9.0.1:9000");
    let answer = from_backend(onward(&data).answer());
    let rows: Vec<Row> = vec![
        row("opened", &syn).opens("acme", &onward(&syn)),
        row("a SYN that is sent again belongs to the same connection", &syn)
            .continues("acme", &onward(&syn))
            .times(3),
        row("used", &data).continues("acme", &onward(&data)),
        row("answered", &answer).replies("acme", &homeward(&answer, &data)),
        row("finished", &data.clone().fin()).continues("acme", &onward(&data.clone().fin())),
        row("a new SYN after the connection was used", &syn).opens("acme", &onward(&syn)),
        row("reset", &data.clone().rst()).continues("acme", &onward(&data.rst())),
        row("a new SYN after the reset", &syn).opens("acme", &onward(&syn)),
        row("and its answer", &answer).replies("acme", &homeward(&answer, &syn)),
    ];
    let mut scenario = scenario(rows);
    scenario.steps.push(Step::Advance(Duration::from_secs(1)));
    scenario.steps.push(Step::Inspect(
        "one connection is open, and each SYN paid",
        |bench| {
            let acme = tenant_connections(bench.world.tenant("acme"));
            let open = bench.rig.dataplane().maps.open_connections(acme).unwrap();
            assert_eq!(open, 1);
        },
    ));
    scenario
}

#[test]
fn nat_both_ways() {
    nat().run();
}

#[test]
fn dnat_both_ways() {
    dnat().run();
}

#[test]
fn direct_server_return() {
    direct().run();
}

#[test]
fn a_port_that_is_used_again() {
    reopening().run();
}
