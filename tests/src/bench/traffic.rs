//! What a host forwards and refuses end to end, on one CPU: packets over virtual links, through the enforcer and through
//! what others do the same with, side by side.
//!
//! The sender is the kernel itself: the driver's frames go out as live frames of a test run, straight into the ring of the
//! link's other end, whose receive loop runs on the same CPU. A sender with sockets would cost more than what it measures.
//! What sender and links take is the base: as many frames, in the same run, to a device whose program drops them at once.

pub(super) mod http;
mod labs;

use std::time::Instant;

use enforcer_common::abi::driver::DriverPlan;
use enforcer_common::decide::TCP_ACK;

use super::driver;
use super::packets::Pinned;
use super::{BenchError, Case, Options, Series, Work};
use crate::packet::{Mac, Segment, tcp};
use http::Proxy;
use labs::{Bed, Mediator};

/// What is measured.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    by: Mediator,
    fate: Fate,
    /// Source of the first flow, and where all go.
    from: &'static str,
    to: &'static str,
}

/// What becomes of the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// None goes on.
    Refused,
    /// All go on to the back end.
    Forwarded,
    /// All come back.
    Returned,
}

/// Flows, as a power of two.
const FLOW_BITS: u32 = 16;
/// So many low bits of a flow's number choose its port: four thousand sources.
const PORT_BITS: u32 = 4;

const STRANGER: &str = "172.16.0.0:1024";
const CLIENT: &str = "10.1.0.0:1024";
const IPIP: &str = "192.0.2.40:8000";
const DNAT: &str = "192.0.2.20:8000";

pub(super) const CASES: [Case; 12] = [
    case("e2e/xdp-drop", Mediator::Drop, Fate::Refused, STRANGER, IPIP),
    case("e2e/xdp-tx", Mediator::Return, Fate::Returned, STRANGER, IPIP),
    case("e2e/drop", Mediator::Enforcer, Fate::Refused, STRANGER, IPIP),
    case("e2e/nft-drop", Mediator::NftSet, Fate::Refused, STRANGER, IPIP),
    case("e2e/nft-meter", Mediator::NftMeter, Fate::Refused, STRANGER, IPIP),
    case(
        "e2e/forward/64k",
        Mediator::Enforcer,
        Fate::Forwarded,
        CLIENT,
        IPIP,
    ),
    case(
        "e2e/forward-dnat/64k",
        Mediator::Enforcer,
        Fate::Forwarded,
        CLIENT,
        DNAT,
    ),
    case(
        "e2e/nft-dnat/64k",
        Mediator::NftDnat,
        Fate::Forwarded,
        CLIENT,
        DNAT,
    ),
    http("e2e/http/routed", Proxy::Routing),
    http("e2e/http/enforcer-dnat", Proxy::Enforcer),
    http("e2e/http/nft-dnat", Proxy::Nftables),
    http("e2e/http/haproxy", Proxy::Haproxy),
];

const fn case(name: &'static str, by: Mediator, fate: Fate, from: &'static str, to: &'static str) -> Case {
    Case {
        name,
        work: Work::Traffic(Spec { by, fate, from, to }),
    }
}

const fn http(name: &'static str, by: Proxy) -> Case {
    Case {
        name,
        work: Work::Http(by),
    }
}

/// Measures one case: nanoseconds for each packet with the base beside them, and millions of packets a second.
pub(super) fn measure(case: &'static str, spec: &Spec, options: &Options) -> Result<Vec<Series>, BenchError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::Privileges(case));
    }
    let _pinned = Pinned::to_one_cpu()?;
    let mut bed = Bed::make(spec.by)?;
    let (runs, packets) = if options.quick {
        (2, 1 << 16)
    } else {
        (11, 1 << 19)
    };
    let plan = spec.plan(bed.link_destination()?);
    // Opens the flows, which is not measured, and warms up.
    bed.send(&DriverPlan { scattered: 0, ..plan }, 1 << FLOW_BITS)?;
    let (mut times, mut bases, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let start = Instant::now();
        bed.send_to_nowhere(&plan, packets)?;
        bases.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(packets));
        let before = bed.counted()?;
        let start = Instant::now();
        bed.send(&plan, packets)?;
        let took = start.elapsed().as_secs_f64();
        let grown = bed.counted()?.since(&before);
        let arrived = spec
            .check(&grown, packets)
            .map_err(|what| BenchError::Wrong { case, what })?;
        times.push(took * 1e9 / arrived as f64);
        rates.push(arrived as f64 / took / 1e6);
    }
    Ok(vec![
        Series {
            case,
            unit: "ns",
            runs: times,
            bases,
        },
        Series::plain(case, "Mpps", rates),
    ])
}

/// Packets that a few devices have received.
#[derive(Clone, Copy, Debug)]
struct Counted {
    balancer: u64,
    back_end: u64,
    sender: u64,
}

// === impl Counted ===

impl Counted {
    fn since(&self, before: &Self) -> Self {
        Self {
            balancer: self.balancer - before.balancer,
            back_end: self.back_end - before.back_end,
            sender: self.sender - before.sender,
        }
    }
}

// === impl Spec ===

impl Spec {
    /// Programs that have to be installed.
    pub(super) const fn needs(&self) -> &'static [&'static str] {
        self.by.needs()
    }

    fn plan(&self, link_destination: Mac) -> DriverPlan {
        let segment = tcp(self.from, self.to).flags(TCP_ACK);
        let segment = driver::framed(&Segment {
            link_destination,
            ..segment
        });
        DriverPlan {
            scattered: 1,
            ..driver::plan(&segment, FLOW_BITS, PORT_BITS, 1)
        }
    }

    /// How many packets got to where they should; almost all of them, or what was measured is where they were lost. The
    /// hosts say a word of their own now and then.
    fn check(&self, grown: &Counted, packets: u32) -> Result<u64, String> {
        let few = 50;
        let (there, elsewhere) = match self.fate {
            Fate::Refused => (grown.balancer, grown.back_end + grown.sender),
            Fate::Forwarded => (grown.back_end, grown.sender),
            Fate::Returned => (grown.sender, grown.back_end),
        };
        let least = u64::from(packets) * 98 / 100;
        if (least..=u64::from(packets) + few).contains(&there) && elsewhere <= few {
            Ok(there)
        } else {
            Err(format!("of {packets} packets, devices received {grown:?}"))
        }
    }
}
