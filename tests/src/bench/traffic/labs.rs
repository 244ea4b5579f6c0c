//! The hosts between which packets are sent, and what mediates between them.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use enforcer_agent::adapters::dataplane::AttachMode;
use enforcer_agent::pure::compile::NextHop;
use enforcer_common::abi::driver::DriverPlan;

use super::Counted;
use crate::bench::BenchError;
use crate::bench::driver::Driver;
use crate::bench::packets::Surroundings;
use crate::lab::topology::{Leaf, Routed, routed};
use crate::lab::{Host, Lab};
use crate::packet::Mac;
use crate::rig::{Rig, RigError, Verdict};
use crate::world::World;

/// What stands between the sender and the back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mediator {
    /// An XDP program that drops everything.
    Drop,
    /// An XDP program that sends everything back.
    Return,
    /// The product.
    Enforcer,
    /// nftables: a set of ten thousand sources that are dropped, as early as it can.
    NftSet,
    /// nftables: one packet a second of each source.
    NftMeter,
    /// nftables: destination NAT by connection tracking, and the kernel's routing.
    NftDnat,
}

// === impl Mediator ===

impl Mediator {
    /// Programs that have to be installed.
    pub(super) const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Drop | Self::Return | Self::Enforcer => &[],
            Self::NftSet | Self::NftMeter | Self::NftDnat => &["nft"],
        }
    }
}

/// Sources in the set of [`Mediator::NftSet`].
const SET_SOURCES: u32 = 10_000;

/// A sender, a balancer, a back end, and a second sender whose packets go nowhere.
pub(super) struct Bed {
    sender: Sender,
    nowhere: Sender,
    network: Routed,
    /// What takes packets off at their ends, or mediates. Attached for as long as it lives.
    _attached: Vec<Driver>,
    _rig: Option<Rig>,
    // Last, so that the devices go when nothing is on them any more.
    _lab: Lab,
}

/// A driver for one host's device.
struct Sender {
    host: Host,
    driver: Driver,
}

// === impl Sender ===

impl Sender {
    fn on(leaf: &Leaf) -> Result<Self, BenchError> {
        Ok(Self {
            host: leaf.host.clone(),
            driver: Driver::load(index(&leaf.host, &leaf.port.device)?)?,
        })
    }

    fn send(&mut self, plan: &DriverPlan, packets: u32) -> Result<(), BenchError> {
        let driver = &mut self.driver;
        self.host.enter(|| driver.send(plan, packets))??;
        Ok(())
    }
}

// === impl Bed ===

impl Bed {
    pub(super) fn make(by: Mediator) -> Result<Self, BenchError> {
        let mut lab = Lab::new()?;
        let network = routed(&mut lab, &["sender", "nowhere"], &["gpu"])?;
        let balancer = &network.balancer;
        let mut attached = Vec::new();
        let (sender, gpu) = (&network.clients[0], &network.back_ends[0]);
        attached.push(attach(balancer, "nowhere", Verdict::Drop)?);
        let mut rig = None;
        match by {
            Mediator::Drop => attached.push(attach(balancer, "sender", Verdict::Drop)?),
            Mediator::Return => {
                attached.push(attach(balancer, "sender", Verdict::Transmit)?);
                attached.push(attach(&sender.host, &sender.port.device, Verdict::Drop)?);
            }
            Mediator::Enforcer => {
                attached.push(attach(&gpu.host, &gpu.port.device, Verdict::Drop)?);
                rig = Some(enforce(
                    &network,
                    Surroundings::TwoInterfaces.world(false)?,
                    &["sender"],
                )?);
            }
            Mediator::NftSet | Mediator::NftMeter | Mediator::NftDnat => nftables(&lab, &network, by)?,
        }
        Ok(Self {
            sender: Sender::on(sender)?,
            nowhere: Sender::on(&network.clients[1])?,
            network,
            _attached: attached,
            _rig: rig,
            _lab: lab,
        })
    }

    /// The link-layer address that the sender's frames go to.
    pub(super) fn link_destination(&self) -> Result<Mac, BenchError> {
        mac(&self.network.balancer, "sender")
    }

    pub(super) fn send(&mut self, plan: &DriverPlan, packets: u32) -> Result<(), BenchError> {
        self.sender.send(plan, packets)
    }

    pub(super) fn send_to_nowhere(&mut self, plan: &DriverPlan, packets: u32) -> Result<(), BenchError> {
        self.nowhere.send(plan, packets)
    }

    pub(super) fn counted(&self) -> Result<Counted, BenchError> {
        let Routed {
            balancer,
            clients,
            back_ends,
        } = &self.network;
        let at = |leaf: &Leaf| received(&leaf.host, &leaf.port.device);
        Ok(Counted {
            balancer: received(balancer, "sender")?,
            back_end: at(&back_ends[0])?,
            sender: at(&clients[0])?,
        })
    }
}

fn attach(host: &Host, device: &str, verdict: Verdict) -> Result<Driver, BenchError> {
    let mut driver = Driver::load(0)?;
    let program = &mut driver;
    host.enter(|| program.attach(device, verdict))??;
    Ok(driver)
}

/// The shipped programs on some of the balancer's devices; every back end is the host `gpu`.
pub(super) fn enforce(network: &Routed, mut world: World, devices: &[&str]) -> Result<Rig, BenchError> {
    let (balancer, gpu) = (&network.balancer, &network.back_ends[0]);
    let next_hop = NextHop {
        ifindex: index(balancer, "gpu")?,
        own_mac: mac(balancer, "gpu")?,
        next_hop_mac: gpu.port.mac.0,
        mtu_bytes: 1500,
        vlan: None,
    };
    for status in world.backends.values_mut() {
        status.next_hop = Some(next_hop);
    }
    let mut rig = Rig::production(world.host.capacity)?;
    rig.set_host(&world.host.record())?;
    rig.install(world.compile()?.tables)?;
    let dataplane = rig.dataplane();
    for device in devices {
        let attached = balancer.enter(|| dataplane.attach(device, AttachMode::Native))?;
        attached.map_err(RigError::from)?;
    }
    Ok(rig)
}

/// Has a device without a program of its own take frames that XDP programs at the other end send: its receive loop is the
/// one that coalescing has, and the other end is told of it when that is turned on while the device is up.
pub(super) fn take_frames(host: &Host, device: &str) -> Result<(), BenchError> {
    for gro in ["off", "on"] {
        host.run(&format!("ethtool -K {device} gro {gro}"))?;
    }
    Ok(())
}

/// Rules of the balancer, and of the back end one that drops what arrives, as early as sockets' packets can be dropped.
fn nftables(lab: &Lab, network: &Routed, by: Mediator) -> Result<(), BenchError> {
    let (balancer, gpu) = (&network.balancer, &network.back_ends[0]);
    take_frames(balancer, "sender")?;
    balancer.add_route("10.1.0.0/16", &network.clients[0].ipv4.to_string())?;
    let early = "type filter hook ingress device \"sender\" priority 0;";
    let rules = match by {
        Mediator::NftSet => {
            let mut elements = String::new();
            for source in 0..SET_SOURCES {
                let _ = write!(elements, "{}, ", Ipv4Addr::from(0xac10_0000 + source));
            }
            format!(
                "table netdev bench {{ set refused {{ type ipv4_addr; elements = {{ {elements} }} }}\n\
                 chain early {{ {early} ip saddr @refused drop\n}}\n}}\n"
            )
        }
        Mediator::NftMeter => format!(
            "table netdev bench {{ set seen {{ type ipv4_addr; size 65536; flags dynamic; }}\n\
             chain early {{ {early} update @seen {{ ip saddr limit rate over 1/second burst 1 packets }} drop\n}}\n}}\n"
        ),
        _ => format!(
            "table ip bench {{ chain early {{ type nat hook prerouting priority -100;\n\
             ip daddr 192.0.2.20 tcp dport 8000 dnat to {}:8000\n}}\n}}\n",
            gpu.ipv4
        ),
    };
    load(lab, balancer, "balancer.nft", &rules)?;
    let device = &gpu.port.device;
    let sink = format!(
        "table netdev bench {{ chain early {{ type filter hook ingress device \"{device}\" priority 0; policy drop; }}\n}}\n"
    );
    balancer.add_neighbour("gpu", gpu.ipv4.into(), gpu.port.mac)?;
    load(lab, &gpu.host, "sink.nft", &sink)
}

pub(super) fn load(lab: &Lab, host: &Host, name: &str, rules: &str) -> Result<(), BenchError> {
    let path = lab.directory().join(name);
    std::fs::write(&path, rules).map_err(|source| BenchError::Io {
        what: "rules of nftables",
        source,
    })?;
    host.run(&format!("nft -f {}", path.display()))?;
    Ok(())
}

/// What `ip` says of a device.
fn device(host: &Host, device: &str) -> Result<serde_json::Value, BenchError> {
    let text = host.run(&format!("ip -json -stats link show dev {device}"))?;
    serde_json::from_str::<Vec<serde_json::Value>>(&text)
        .ok()
        .and_then(|mut devices| devices.pop())
        .ok_or_else(|| BenchError::Io {
            what: "what `ip` says of a device",
            source: std::io::ErrorKind::InvalidData.into(),
        })
}

fn index(host: &Host, name: &str) -> Result<u32, BenchError> {
    Ok(device(host, name)?["ifindex"].as_u64().unwrap_or_default() as u32)
}

fn received(host: &Host, name: &str) -> Result<u64, BenchError> {
    Ok(device(host, name)?["stats64"]["rx"]["packets"]
        .as_u64()
        .unwrap_or_default())
}

fn mac(host: &Host, name: &str) -> Result<Mac, BenchError> {
    let device = device(host, name)?;
    let mut mac = [0; 6];
    let text = device["address"].as_str().unwrap_or_default();
    for (octet, text) in mac.iter_mut().zip(text.split(':')) {
        *octet = u8::from_str_radix(text, 16).unwrap_or_default();
    }
    Ok(mac)
}
