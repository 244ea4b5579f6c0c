//! Random policies, packets and events over a small universe of names and addresses, so that they meet often.
//!
//! Everything that happens is an [`Op`]: plain data, so that a run can be written down, cut shorter and played again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::flow::ReplyRecord;
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::decide::{TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use serde::{Deserialize, Serialize};

use crate::packet::{Echo, Error, Segment, Transport, endpoint};
use crate::plain::Policy;
use crate::random::Random;
use crate::world::{BACKEND_SIDE_MAC, LOCAL_V4, NAT_V4, NAT_V6, mac_of};

use policies::{CLASSES, POOLS, TENANTS, parsed};
pub use policies::{edit, policy};

mod policies;

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A good packet.
    Packet {
        /// `DIRECTION_*`.
        direction: u32,
        /// What it is.
        segment: Segment,
    },
    /// An ICMP echo request that comes in.
    Echo(Echo),
    /// Any frame, as hexadecimal digits.
    Frame(String),
    /// The clock moves, by nanoseconds.
    Advance(u64),
    /// Another policy.
    Policy(Box<Policy>),
    /// A back end is seen in another state.
    Backend {
        /// Its name.
        name: String,
        /// Its probes succeed.
        healthy: bool,
        /// It drains.
        draining: bool,
        /// Its share, in thousandths.
        weight: u32,
        /// The way to it is known.
        reachable: bool,
    },
    /// The link to the clients takes packets of another size.
    Link {
        /// Its MTU; `None`: that is not known.
        mtu_bytes: Option<u32>,
    },
    /// A pool fails or recovers.
    Pool {
        /// Its name.
        name: String,
        /// Whether it has failed.
        failed: bool,
    },
    /// The time of day is another one, in seconds since 1970 in UTC. It has nothing to do with the clock above.
    Wall(i64),
    /// A tenant is suspended or resumed.
    Tenant {
        /// Its name.
        name: String,
        /// Whether it is suspended.
        suspended: bool,
    },
    /// A tenant has used up a quota, or has not.
    Quota {
        /// Its name.
        name: String,
        /// Whether only new connections are refused; `None`: it has not.
        only_new: Option<bool>,
    },
    /// A tenant is held to a share of new connections, or no longer.
    Share {
        /// Its name.
        name: String,
        /// Per second.
        rate: Option<u64>,
    },
    /// A pool sheds a class, or ceases to.
    Shed {
        /// The pool.
        pool: String,
        /// The class.
        class: String,
        /// Whether it does.
        sheds: bool,
    },
    /// The agent renews its lease, for so many nanoseconds each; zero is for ever.
    Lease {
        /// For what is new.
        new_ns: u64,
        /// For everything.
        all_ns: u64,
    },
    /// What is idle for too long is removed.
    Sweep,
}

/// The start of a run: how much room there is, and the first policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Capacity of the flow tables that the run may use.
    pub flow_entries: u32,
    /// Ports that `Nat` may use.
    pub nat_ports: u16,
    /// Entries of the flow table that one tenant may have; zero: all.
    #[serde(default)]
    pub flows_per_tenant: u64,
    /// What is enforced at first.
    pub policy: Policy,
}

const CLIENTS_V4: [&str; 7] = [
    "10.1.0.1",
    "10.1.2.3",
    "10.1.2.200",
    "10.2.7.7",
    "10.3.0.9",
    "10.9.3.5",
    "198.51.100.1",
];
const CLIENTS_V6: [&str; 4] = [
    "2001:db8:1::1",
    "2001:db8:1:2::5",
    "2001:db8:4fff::7",
    "2001:db8:7::7",
];
const OTHERS_V4: [&str; 6] = [
    "203.0.113.1",
    "10.9.0.77",
    "10.9.3.5",
    "192.0.2.99",
    "10.1.0.1",
    "10.9.0.254",
];
const OTHERS_V6: [&str; 3] = ["2001:db8:9::77", "2001:db8:ffff::1", "2001:db8:9::250"];
/// The start of a run. Most have room for everything; in some, tables or ports run out.
pub fn start(random: &mut Random, flow_entries: u32) -> Start {
    let nat_ports = match random.below(10) {
        0 => 1,
        1 => 3,
        _ => 20_000,
    };
    Start {
        flow_entries,
        nat_ports,
        flows_per_tenant: if random.percent(30) {
            2 + random.below(12)
        } else {
            0
        },
        policy: policy(random),
    }
}

/// What the next operation is made from.
pub struct Surroundings<'a> {
    /// The policy in force.
    pub policy: &'a Policy,
    /// The entries by which replies are found: who answers whom.
    pub replies: &'a BTreeMap<FlowKey, ReplyRecord>,
}

/// The next thing that happens.
pub fn op(random: &mut Random, around: &Surroundings<'_>) -> Op {
    match random.below(1000) {
        0 => Op::Policy(Box::new(edit(random, around.policy))),
        1 => backend_op(random, around.policy),
        2 if random.percent(50) => Op::Link {
            mtu_bytes: *random.pick(&[None, Some(1280), Some(1300), Some(1500), Some(9000)]),
        },
        2 => backend_op(random, around.policy),
        3 => Op::Pool {
            name: random.word(&POOLS).to_owned(),
            failed: random.percent(40),
        },
        4 => Op::Tenant {
            name: random.word(&TENANTS).to_owned(),
            suspended: random.percent(40),
        },
        5..9 => Op::Sweep,
        10 => Op::Quota {
            name: random.word(&TENANTS).to_owned(),
            only_new: random.percent(50).then(|| random.percent(50)),
        },
        9 => Op::Share {
            name: random.word(&TENANTS).to_owned(),
            rate: random.percent(70).then(|| *random.pick(&[1, 2, 4, 7, 500])),
        },
        11 | 12 => Op::Shed {
            pool: random.word(&POOLS).to_owned(),
            class: random.word(&CLASSES).to_owned(),
            sheds: random.percent(50),
        },
        // Long ones more often, since whatever comes after the end of a short one is refused.
        13..16 => {
            let term_ns = |random: &mut Random| *random.pick(&[0, 0, 0, 0, 0, 300_000_000, 20_000_000_000]);
            Op::Lease {
                new_ns: term_ns(random),
                all_ns: term_ns(random),
            }
        }
        16..19 => Op::Wall(wall(random)),
        19..80 => Op::Advance(*random.pick(&[
            1_000_000,
            3_333_333,
            10_000_000,
            100_000_000,
            250_000_000,
            1_000_000_000,
            2_000_000_000,
            11_000_000_000,
            31_000_000_000,
        ])),
        80..90 => Op::Advance(random.below(2_000_000_000)),
        90..110 => Op::Frame(hex(&damaged(random, around))),
        110..120 => Op::Frame(hex(&complaint(random, around))),
        120..130 => Op::Echo(echo(random, around.policy)),
        130 => {
            let mut frame = echo(random, around.policy).bytes();
            damage(random, &mut frame);
            Op::Frame(hex(&frame))
        }
        _ => {
            let (direction, segment) = packet(random, around);
            Op::Packet { direction, segment }
        }
    }
}

/// An echo request to a service's address, or to some other.
fn echo(random: &mut Random, policy: &Policy) -> Echo {
    let to = if random.percent(80) {
        let service = random.pick(&policy.services);
        *random.pick(&service.addresses)
    } else {
        parsed(random.word(&OTHERS_V4))
    };
    let from = client(random, to.is_ipv4()).ip();
    let mut echo = Echo::between(from, to)
        .payload(*random.pick(&[0, 1, 56, 1400]))
        .hop_limit(*random.pick(&[1, 63, 64, 255]));
    if random.percent(10) {
        echo = echo.vlan(7);
    }
    if random.percent(10) {
        echo = echo.with_options();
    }
    echo
}

/// Some time around a change of the clocks in Berlin or on Lord Howe Island, or anywhere in the year.
fn wall(random: &mut Random) -> i64 {
    const CHANGES: [i64; 4] = [1_774_746_000, 1_792_890_000, 1_775_314_800, 1_791_041_400];
    if random.percent(30) {
        return 1_767_225_600 + random.below(365 * 86_400) as i64;
    }
    random.pick(&CHANGES) + random.below(6 * 3600) as i64 - 3 * 3600
}

fn backend_op(random: &mut Random, policy: &Policy) -> Op {
    let names: Vec<&str> = policy.backends().map(|backend| backend.name.as_str()).collect();
    Op::Backend {
        name: (*random.pick(&names)).to_owned(),
        healthy: random.percent(70),
        draining: random.percent(20),
        weight: *random.pick(&[0, 1000, 50_000, 100_000, 100_000]),
        reachable: random.percent(75),
    }
}

/// A good packet and the way it goes.
fn packet(random: &mut Random, around: &Surroundings<'_>) -> (u32, Segment) {
    let kind = random.below(100);
    let segment = match kind {
        0..72 => to_service(random, around.policy),
        72..92 if !around.replies.is_empty() => return reply(random, around.replies),
        _ => elsewhere(random, around.policy),
    };
    let direction = if random.percent(4) {
        DIRECTION_EGRESS
    } else {
        DIRECTION_INGRESS
    };
    (direction, adorned(random, segment))
}

fn client(random: &mut Random, v4: bool) -> SocketAddr {
    let address: IpAddr = parsed(if v4 {
        random.word(&CLIENTS_V4)
    } else {
        random.word(&CLIENTS_V6)
    });
    SocketAddr::new(address, 1000 + random.below(6) as u16)
}

fn tcp_flags(random: &mut Random) -> u8 {
    match random.below(100) {
        0..55 => TCP_ACK,
        55..85 => TCP_SYN,
        85..92 => TCP_FIN | TCP_ACK,
        92..97 => TCP_RST,
        97..99 => TCP_SYN | TCP_ACK,
        _ => 0,
    }
}

fn to_service(random: &mut Random, policy: &Policy) -> Segment {
    let service = random.pick(&policy.services);
    let address = *random.pick(&service.addresses);
    let from = client(random, address.is_ipv4());
    let transport = match (service.udp, address.is_ipv4() && random.percent(20)) {
        (false, _) => Transport::Tcp(tcp_flags(random)),
        (true, true) => Transport::UdpUnchecked,
        (true, false) => Transport::Udp,
    };
    Segment::new(from, SocketAddr::new(address, service.port), transport)
}

/// A back end's packet to one of our flows, or nearly.
fn reply(random: &mut Random, replies: &BTreeMap<FlowKey, ReplyRecord>) -> (u32, Segment) {
    let index = random.below(replies.len() as u64) as usize;
    let key = replies.keys().nth(index).expect("an index below the length");
    let transport = if key.protocol == TCP {
        Transport::Tcp(match tcp_flags(random) {
            TCP_SYN => TCP_SYN | TCP_ACK,
            flags => flags,
        })
    } else {
        Transport::Udp
    };
    let mut segment = Segment::new(
        endpoint(&key.source, key.source_port_be),
        endpoint(&key.destination, key.destination_port_be),
        transport,
    );
    if random.percent(5) {
        segment.to.set_port(segment.to.port().wrapping_add(1).max(1));
    }
    if random.percent(3) {
        segment.from.set_port(9001);
    }
    let direction = if random.percent(15) {
        DIRECTION_EGRESS
    } else {
        DIRECTION_INGRESS
    };
    let mac = mac_of(segment.from.ip());
    (direction, adorned(random, segment.link(mac, BACKEND_SIDE_MAC)))
}

/// To no service, or to the wrong port of one.
fn elsewhere(random: &mut Random, policy: &Policy) -> Segment {
    let v4 = random.percent(70);
    let backends: Vec<IpAddr> = policy
        .backends()
        .map(|backend| backend.address)
        .filter(|address| address.is_ipv4() == v4)
        .collect();
    let vips: Vec<IpAddr> = policy
        .services
        .iter()
        .flat_map(|service| service.addresses.iter().copied())
        .filter(|address| address.is_ipv4() == v4)
        .collect();
    let own: IpAddr = match (v4, random.percent(50)) {
        (true, true) => LOCAL_V4.into(),
        (true, false) => NAT_V4.into(),
        (false, _) => NAT_V6.into(),
    };
    let to = match random.below(5) {
        0 => *random.pick(&backends),
        1 => *random.pick(&vips),
        2 => own,
        _ => parsed(if v4 {
            random.word(&OTHERS_V4)
        } else {
            random.word(&OTHERS_V6)
        }),
    };
    let from = if random.percent(30) {
        SocketAddr::new(*random.pick(&backends), 9000)
    } else {
        client(random, v4)
    };
    let transport = if random.percent(60) {
        Transport::Tcp(tcp_flags(random))
    } else {
        Transport::Udp
    };
    let port = *random.pick(&[22, 53, 8000, 8001, 9000, 1001, 443]);
    Segment::new(from, SocketAddr::new(to, port), transport)
}

/// Lengths, hop limits, tags, options, extension headers, fragments.
fn adorned(random: &mut Random, segment: Segment) -> Segment {
    let mut segment = segment.payload(*random.pick(&[0, 0, 1, 101, 1400, 3000, 3000]));
    segment.hop_limit = if random.percent(6) {
        *random.pick(&[3, 2, 1, 0])
    } else {
        *random.pick(&[64, 255])
    };
    if random.percent(5) {
        segment = segment.vlan(7);
        if random.percent(50) {
            segment = segment.vlan(4000);
        }
    }
    if random.percent(5) {
        segment = match segment.to {
            SocketAddr::V4(_) => segment.options(&[1; 40][..*random.pick(&[4, 8, 40])]),
            SocketAddr::V6(_) => segment
                .extension(60, &[0, 0, 1, 4, 0, 0, 0, 0])
                .extension(0, &[0, 0, 1, 4, 0, 0, 0, 0]),
        };
    }
    if random.percent(2) {
        let offset = *random.pick(&[0, 1, 185]);
        segment = segment.fragment(offset, offset == 0 || random.percent(50));
    }
    segment
}

/// An ICMP error about a packet that somebody may have sent: a service to a client, or a client to a back end; now and then
/// with some damage.
fn complaint(random: &mut Random, around: &Surroundings<'_>) -> Vec<u8> {
    let about = match random.below(3) {
        0 if !around.replies.is_empty() => reply(random, around.replies).1.answer(),
        1 => to_service(random, around.policy),
        _ => to_service(random, around.policy).answer(),
    };
    let about = Segment {
        fragment: None,
        extensions: Vec::new(),
        ..about
    };
    let mut error = Error::about(&about.payload(40), random.below(30) as usize);
    if random.percent(50) {
        let router = if error.to.is_ipv4() {
            "203.0.113.1"
        } else {
            "2001:db8:ffff::1"
        };
        error = error.from(router);
    }
    if random.percent(5) {
        error = error.hop_limit(1);
    }
    let mut frame = error.bytes();
    if random.percent(20) {
        let bit = 14 * 8 + random.below((frame.len() as u64 - 14) * 8) as usize;
        frame[bit / 8] ^= 1 << (bit % 8);
    }
    if random.percent(5) {
        frame.truncate(14 + random.below(frame.len() as u64 - 13) as usize);
    }
    frame
}

/// A good frame with some damage.
fn damaged(random: &mut Random, around: &Surroundings<'_>) -> Vec<u8> {
    let (_, segment) = packet(random, around);
    let mut frame = segment.bytes();
    damage(random, &mut frame);
    frame
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(3) {
        0 => {
            let bit = random.below(frame.len() as u64 * 8) as usize;
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        1 => frame.truncate(14 + random.below(frame.len() as u64 - 13) as usize),
        _ => {
            let offset = 12 + random.below(42) as usize;
            if let Some(byte) = frame.get_mut(offset) {
                *byte = random.bits() as u8;
            }
        }
    }
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal digits as bytes; `None` if they are none.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// An operation in a line, for a transcript.
#[must_use]
pub fn describe(op: &Op) -> String {
    match op {
        Op::Packet { direction, segment } => format!(
            "direction {direction}: {} -> {} {:?}, hop limit {}, {} bytes, fragment {:?}",
            segment.from,
            segment.to,
            segment.transport,
            segment.hop_limit,
            segment.network_bytes(),
            segment.fragment
        ),
        Op::Policy(policy) => format!("policy {}", policy.text()),
        other => format!("{other:?}"),
    }
}

/// How often each kind of operation came up.
#[must_use]
pub fn tally(ops: &[Op]) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    for op in ops {
        let kind = match op {
            Op::Packet { .. } => "packets",
            Op::Echo(_) => "echo requests",
            Op::Frame(_) => "frames",
            Op::Advance(_) => "time",
            Op::Policy(_) => "policies",
            Op::Backend { .. } | Op::Pool { .. } => "health",
            Op::Link { .. } => "links",
            Op::Tenant { .. } => "suspensions",
            Op::Quota { .. } | Op::Share { .. } | Op::Shed { .. } | Op::Lease { .. } => "governors",
            Op::Sweep => "sweeps",
            Op::Wall(_) => "times of day",
        };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    kinds
}
