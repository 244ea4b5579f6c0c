//! HTTP over virtual links: wrk on one host, nginx on another, and between them plain routing, the enforcer, nftables or
//! HAProxy.
//!
//! The load is closed: as many requests as come back, over connections that stay open. CPU time is that of the whole
//! machine, since most of it is spent in interrupts that belong to no process: it is right on a machine that does nothing
//! else.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::abi::tally::DIRECTION_INGRESS;

use super::labs::{enforce, take_frames};
use crate::bench::{BenchError, Options, Series};
use crate::harness::{eventually, get};
use crate::lab::topology::{Routed, routed};
use crate::lab::{Lab, Process};
use crate::rig::Rig;
use crate::world::World;

/// What stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Proxy {
    /// Nothing but the kernel's routing.
    Routing,
    /// The product, with `Dnat`.
    Enforcer,
    /// nftables: destination NAT by connection tracking.
    Nftables,
    /// A proxy in user space.
    Haproxy,
}

const POLICY: &str = "
apiVersion: enforcer.dev/v1
kind: GovernancePolicy
metadata: {name: http}
spec:
  tenants: [{name: acme, sources: [10.1.0.0/16]}]
  services: [{name: web, addresses: [192.0.2.20], port: 8000, protocol: TCP, pools: [one], forward: Dnat}]
  pools: [{name: one, backends: [{name: gpu, address: 10.9.1.10, port: 8000}]}]
  rules: [{name: all, action: Allow}]
";

/// The service's address, and where HAProxy listens.
const SERVICE: &str = "192.0.2.20:8000";
const PROXY: &str = "10.1.1.1:8000";
/// Connections that wrk keeps open.
const CONNECTIONS: u32 = 64;
/// How long a server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(5);

// === impl Proxy ===

impl Proxy {
    /// Programs that have to be installed.
    pub(in crate::bench) const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Routing | Self::Enforcer => &["wrk", "nginx"],
            Self::Nftables => &["wrk", "nginx", "nft"],
            Self::Haproxy => &["wrk", "nginx", "haproxy"],
        }
    }
}

/// Measures one way.
pub(in crate::bench) fn measure(
    case: &'static str,
    by: Proxy,
    options: &Options,
) -> Result<Vec<Series>, BenchError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::Privileges(case));
    }
    let mut lab = Lab::new()?;
    let network = routed(&mut lab, &["client"], &["gpu"])?;
    let (_server, _proxy, mut rig) = (
        nginx(&lab, &network)?,
        (by == Proxy::Haproxy)
            .then(|| haproxy(&lab, &network))
            .transpose()?,
        mediate(&lab, &network, by)?,
    );
    let target = match by {
        Proxy::Routing => format!("{}:8000", network.back_ends[0].ipv4),
        Proxy::Enforcer | Proxy::Nftables => SERVICE.to_owned(),
        Proxy::Haproxy => PROXY.to_owned(),
    };
    let client = &network.clients[0].host;
    let address = target.parse().map_err(|_| wrong(case, "no address"))?;
    eventually("an answer", START_LIMIT, || {
        Ok(match get(client, address, "/") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })?;
    let (runs, seconds) = if options.quick { (1, 1) } else { (5, 3) };
    let mut load = Loads::default();
    for _ in 0..runs {
        load.run(case, &network, &target, seconds)?;
    }
    if let Some(rig) = &mut rig {
        governed(rig, load.answered).map_err(|what| wrong(case, what))?;
    }
    Ok(load.series(case))
}

/// Requests and answers came by the programs: at least a packet of each for every request.
fn governed(rig: &mut Rig, answered: f64) -> Result<(), String> {
    let tallies = rig
        .tallies(DIRECTION_INGRESS, 2)
        .map_err(|error| error.to_string())?;
    for reason in [Reason::Allowed, Reason::Reply] {
        let by_reason = tallies.iter().filter(|((_, counted), _)| *counted == reason);
        let packets: u64 = by_reason.map(|(_, tally)| tally.packets).sum();
        if (packets as f64) < answered {
            return Err(format!(
                "{answered} answers, and {packets} packets counted as {reason:?}"
            ));
        }
    }
    Ok(())
}

fn wrong(case: &'static str, what: impl Into<String>) -> BenchError {
    BenchError::Wrong {
        case,
        what: what.into(),
    }
}

/// The figures of each run.
#[derive(Default)]
struct Loads {
    rates: Vec<f64>,
    halves: Vec<f64>,
    slowest: Vec<f64>,
    cpu_times: Vec<f64>,
    /// Requests of all runs.
    answered: f64,
}

// === impl Loads ===

impl Loads {
    fn run(
        &mut self,
        case: &'static str,
        network: &Routed,
        target: &str,
        seconds: u32,
    ) -> Result<(), BenchError> {
        let busy = busy_ticks()?;
        let said = network.clients[0].host.run(&format!(
            "wrk --threads 1 --connections {CONNECTIONS} --duration {seconds}s --latency http://{target}/"
        ))?;
        let busy = busy_ticks()? - busy;
        let figure = |name: &str| {
            let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next())
                .ok_or_else(|| wrong(case, format!("wrk does not say `{name}`: {said}")))
        };
        if said.contains("Socket errors") || said.contains("Non-2xx") {
            return Err(wrong(case, format!("not all requests were answered: {said}")));
        }
        let rate: f64 = figure("Requests/sec:")?.parse().unwrap_or(0.0);
        self.answered += rate * f64::from(seconds);
        self.rates.push(rate);
        self.halves.push(milliseconds(figure("50%")?));
        self.slowest.push(milliseconds(figure("99%")?));
        // Linux counts hundredths of a second there.
        self.cpu_times
            .push(busy as f64 * 1e4 / (rate * f64::from(seconds)));
        Ok(())
    }

    fn series(self, case: &'static str) -> Vec<Series> {
        vec![
            Series::plain(case, "requests/s", self.rates),
            Series::plain(case, "p50 ms", self.halves),
            Series::plain(case, "p99 ms", self.slowest),
            Series::plain(case, "us CPU", self.cpu_times),
        ]
    }
}

/// A time as wrk writes it.
fn milliseconds(text: &str) -> f64 {
    for (unit, factor) in [("us", 1e-3), ("ms", 1.0), ("s", 1e3)] {
        if let Some(Ok(number)) = text.strip_suffix(unit).map(str::parse::<f64>) {
            return number * factor;
        }
    }
    f64::NAN
}

/// Time that all CPUs together were neither idle nor taken away, in hundredths of a second.
fn busy_ticks() -> Result<u64, BenchError> {
    let text = fs::read_to_string("/proc/stat").map_err(|source| BenchError::Io {
        what: "/proc/stat",
        source,
    })?;
    let words = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, waiting for I/O, interrupts, soft interrupts; what follows was not had.
    Ok(ticks.iter().take(7).sum::<u64>() - ticks.get(3).unwrap_or(&0) - ticks.get(4).unwrap_or(&0))
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|source| BenchError::Io {
        what: "a server's configuration",
        source,
    })
}

fn nginx(lab: &Lab, network: &Routed) -> Result<Process, BenchError> {
    let directory = lab.directory();
    let path = directory.join("nginx.conf");
    let body = "x".repeat(1024);
    write(
        &path,
        &format!(
            "daemon off; worker_processes 1; pid {}/nginx.pid; error_log stderr;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 100000000;\n\
             server {{ listen 8000; location / {{ return 200 '{body}'; }} }} }}\n",
            directory.display()
        ),
    )?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(path);
    Ok(network.back_ends[0].host.spawn(command)?)
}

fn haproxy(lab: &Lab, network: &Routed) -> Result<Process, BenchError> {
    let path = lab.directory().join("haproxy.cfg");
    write(
        &path,
        &format!(
            "global\n  nbthread 1\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             frontend web\n  bind {PROXY}\n  default_backend gpus\n\
             backend gpus\n  http-reuse always\n  server gpu {}:8000\n",
            network.back_ends[0].ipv4
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(path);
    Ok(network.balancer.spawn(command)?)
}

fn mediate(lab: &Lab, network: &Routed, by: Proxy) -> Result<Option<Rig>, BenchError> {
    match by {
        Proxy::Routing | Proxy::Haproxy => Ok(None),
        Proxy::Nftables => {
            let rules = "table ip bench { chain early { type nat hook prerouting priority -100;\n\
                         ip daddr 192.0.2.20 tcp dport 8000 dnat to 10.9.1.10:8000\n}\n}\n";
            super::labs::load(lab, &network.balancer, "balancer.nft", rules)?;
            Ok(None)
        }
        Proxy::Enforcer => {
            for leaf in [&network.clients[0], &network.back_ends[0]] {
                take_frames(&leaf.host, &leaf.port.device)?;
            }
            Ok(Some(enforce(network, World::new(POLICY)?, &["client", "gpu"])?))
        }
    }
}
