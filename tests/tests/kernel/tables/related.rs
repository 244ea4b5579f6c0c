//! ICMP errors about connections: they go to the end that they concern, and say there what that end knows.

use std::time::Duration;

use enforcer_common::Reason;
use enforcer_tests::packet::{BALANCER_MAC, CLIENT_MAC, Error, Segment, Transport, syn, tcp, udp};
use enforcer_tests::rig::Verdict;
use enforcer_tests::world::{ANSWERS_PER_SECOND, BACKEND_SIDE_MAC, mac_of};

use super::tunnels::{FOUR, wrapped_frame};
use super::{POLICY, from_backend, homeward, onward, prepare, translated};
use crate::bench::{Row, Scenario, Step, raw, row};

fn error(what: &'static str, error: &Error) -> Row {
    raw(what, error.bytes(), error.network_bytes())
}

/// A router on the clients' side cannot send on what the service answered.
fn about_answer(row: &'static str, router: &str, opening: &Segment, answered: &Segment, to: Error) -> Row {
    let seen = homeward(answered, opening);
    let about = Error::about(&seen, 0).from(router).link(CLIENT_MAC, BALANCER_MAC);
    error(row, &about).related("acme", Verdict::Redirect, to.hop_limit(63).bytes())
}

/// A router or a back end behind the balancer cannot take what the client sent.
fn about_request(row: &'static str, router: &str, opening: &Segment, sent: &Segment) -> Row {
    let mac = mac_of(router.parse().expect("an address"));
    let about = Error::about(sent, 12).from(router).link(mac, BACKEND_SIDE_MAC);
    let mut out = Error::about(&opening.clone().hop_limit(sent.hop_limit), 12)
        .link(BALANCER_MAC, CLIENT_MAC)
        .hop_limit(63);
    // From the service, whoever said it. Of TCP the quoted checksum stays as it was.
    if matches!(opening.transport, Transport::Tcp(_)) {
        let checksum = out.quote.len() - 4..out.quote.len() - 2;
        out.quote[checksum.clone()].copy_from_slice(&about.quote[checksum]);
    }
    error(row, &about).related("acme", Verdict::Transmit, out.bytes())
}

fn translated_modes() -> Vec<Row> {
    let mut rows = Vec::new();
    for (opening, router, behind, backend, is_nat) in [
        (
            syn("10.1.0.1:40000", "192.0.2.10:8000"),
            "203.0.113.1",
            "10.9.5.5",
            "10.9.0.1:9000",
            true,
        ),
        (
            udp("10.1.0.1:40000", "192.0.2.10:53").payload(30),
            "203.0.113.1",
            "10.9.0.1",
            "10.9.0.1:9000",
            true,
        ),
        (
            syn("10.1.0.1:40000", "192.0.2.20:8000"),
            "203.0.113.1",
            "10.9.0.1",
            "10.9.0.1:9000",
            false,
        ),
        (
            syn("[2001:db8:1::1]:40000", "[2001:db8::10]:8000"),
            "2001:db8:ffff::1",
            "2001:db8:9::77",
            "[2001:db8:9::1]:9000",
            true,
        ),
        (
            udp("[2001:db8:1::1]:40000", "[2001:db8::20]:53").payload(40),
            "2001:db8:ffff::1",
            "2001:db8:9::1",
            "[2001:db8:9::1]:9000",
            false,
        ),
    ] {
        let first = if is_nat {
            translated(&opening, backend)
        } else {
            onward(&opening, &opening.from.to_string(), backend)
        };
        let answer = from_backend(first.answer());
        rows.push(row("opened", &opening).opens("acme", &first));
        rows.push(row("answered", &answer).replies("acme", &homeward(&answer, &opening)));
        let link = (BACKEND_SIDE_MAC, mac_of(first.to.ip()));
        let to = Error::about(&answer.clone().hop_limit(answer.hop_limit - 1), 0).link(link.0, link.1);
        // With `Nat` from the balancer's own address: back ends know no way to routers beyond.
        let to = if is_nat {
            to.from(&first.from.ip().to_string())
        } else {
            to.from(router)
        };
        rows.push(about_answer(
            "the answer is too big for a link",
            router,
            &opening,
            &answer,
            to,
        ));
        rows.push(about_request(
            "the request is too big for a link",
            behind,
            &opening,
            &first,
        ));
    }
    rows
}

fn other_modes() -> Vec<Row> {
    let direct = syn("10.1.0.1:40000", "192.0.2.30:9000");
    let relinked = direct
        .clone()
        .link(BACKEND_SIDE_MAC, mac_of("10.9.0.1".parse().expect("an address")));
    let tunnelled = syn("10.1.0.1:40000", "192.0.2.80:9000");
    let stays = syn("10.1.0.1:40000", "192.0.2.95:8000");
    let about = |segment: &Segment| Error::about(&segment.answer().hop_limit(60), 0).from("203.0.113.1");
    let at_backend = about(&direct).link(BACKEND_SIDE_MAC, mac_of("10.9.0.1".parse().expect("an address")));
    vec![
        row("opened, direct", &direct).opens("acme", &relinked),
        error("goes to the same back end", &about(&direct)).related(
            "acme",
            Verdict::Redirect,
            at_backend.bytes(),
        ),
        row("opened, in a tunnel", &tunnelled)
            .opens("acme", &tunnelled)
            .comes_out(wrapped_frame(&tunnelled, FOUR, false)),
        error("goes through the tunnel", &about(&tunnelled)).related(
            "acme",
            Verdict::Redirect,
            super::tunnels::wrapped_error(&about(&tunnelled), FOUR),
        ),
        row("opened, on this host", &stays).opens("acme", &stays).passed(),
        error("stays on this host", &about(&stays)).related("acme", Verdict::Pass, about(&stays).bytes()),
    ]
}

pub(super) fn table() -> Scenario {
    let mut steps: Vec<Step> = translated_modes().into_iter().map(Into::into).collect();
    steps.push(Step::Advance(Duration::from_secs(1)));
    let mut rows = other_modes();
    let opening = syn("10.1.0.1:40000", "192.0.2.20:8000");
    let about = Error::about(&opening.answer(), 0).from("203.0.113.1");
    let other = Error::about(&tcp("192.0.2.20:8000", "10.1.0.1:40001"), 0).from("203.0.113.1");
    rows.push(error("about no connection", &other));
    let mut elsewhere = about.clone();
    elsewhere.to = "192.0.2.10".parse().expect("an address");
    rows.push(error("to somebody who did not send what it quotes", &elsewhere));
    rows.push(error("the last hop", &about.clone().hop_limit(1)).refused("acme", Reason::HopLimit));
    let mut cut = about.clone();
    cut.quote.truncate(27);
    rows.push(error("a quote that ends before the ports do", &cut));
    let mut fragment = about.clone();
    fragment.quote[7] = 1;
    rows.push(error("a quote of a later fragment", &fragment));
    let protected = Error::about(&tcp("10.9.0.1:9000", "10.1.0.1:40001"), 0).from("203.0.113.1");
    rows.push(error("into a protected network", &protected).refused("", Reason::Bypass));
    steps.extend(rows.into_iter().map(Step::from));
    Scenario {
        prepare,
        ..Scenario::of(POLICY, steps)
    }
}

/// Of the errors about one tenant's connections only so many are sent on.
pub(super) fn bounded() -> Scenario {
    let opening = syn("10.1.0.1:40000", "192.0.2.30:9000");
    let link = (BACKEND_SIDE_MAC, mac_of("10.9.0.1".parse().expect("an address")));
    let out = opening.clone().link(link.0, link.1);
    let about = Error::about(&opening.answer(), 0).from("203.0.113.1");
    let sent_on = about.clone().link(link.0, link.1).bytes();
    let steps: Vec<Step> = vec![
        row("opened", &opening).opens("acme", &out).into(),
        error("an error", &about)
            .related("acme", Verdict::Redirect, sent_on)
            .times(ANSWERS_PER_SECOND)
            .into(),
        error("one too many", &about)
            .refused("acme", Reason::RelatedRate)
            .times(2)
            .into(),
    ];
    Scenario {
        prepare,
        ..Scenario::of(POLICY, steps)
    }
}

#[test]
fn errors_go_to_whom_they_concern() {
    table().run();
}

#[test]
fn errors_are_bounded() {
    bounded().run();
}
