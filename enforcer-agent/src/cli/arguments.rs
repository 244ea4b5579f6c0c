//! What can be typed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use enforcer_common::Reason;
use enforcer_common::abi::reason::Effect;
use ipnet::{Ipv4Net, Ipv6Net};
use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};

use crate::api::{CAPTURE_BYTES, MAX_CAPTURE_PACKETS, MAX_CAPTURE_SECONDS, MIN_SNAP_BYTES, Protocol};

/// Governs the traffic to inference back ends: XDP and TC programs, and the agent that feeds them.
#[derive(Debug, Parser)]
#[command(
    name = "enforcer-agent",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the agent cannot be reached, \
                        4 the check found problems."
)]
pub(super) struct CommandLine {
    /// The agent's control socket [default: /run/enforcer/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// For people or for programs
    #[arg(long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(super) output: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Tables, for people.
    Table,
    /// JSON, for programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the agent: attach, enforce, and answer on the control socket
    Run {
        /// The agent's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Look at this host: what would keep the agent from running here
    Doctor {
        /// Check this configuration and its interfaces too
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// On a back end's host: take the outer header off packets that a balancer sends by `Ipip` or `Gue`
    Decapsulate(Decapsulate),
    /// How the agent and the data plane are
    Status,
    /// Take the programs off, remove all pins, and end the agent: traffic is no longer governed
    Detach {
        /// If no agent answers, take off what one with this configuration left
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Check, compare, apply, show and explain policies
    #[command(subcommand)]
    Policy(Policy),
    /// List, suspend and resume tenants
    #[command(subcommand)]
    Tenant(Tenant),
    /// List, drain and undrain back ends
    #[command(subcommand)]
    Backend(Backend),
    /// List services
    #[command(subcommand)]
    Service(Service),
    /// List open flows, and watch what happens to flows
    #[command(subcommand)]
    Flows(Flows),
    /// Write refused packets to a file as they came, each with why it was refused
    Capture(Capture),
    /// List and dump the kernel maps
    #[command(subcommand)]
    Maps(Maps),
    /// Read the audit log
    #[command(subcommand)]
    Audit(Audit),
}

#[derive(Debug, Args)]
pub(super) struct Decapsulate {
    /// The interface that they come in by
    pub(super) interface: String,
    /// The balancer's `encapsulation.ipv4`: only packets from there are unpacked
    #[arg(long, value_name = "PREFIX", required_unless_present_any = ["ipv6", "remove"])]
    pub(super) ipv4: Option<Ipv4Net>,
    /// The balancer's `encapsulation.ipv6`
    #[arg(long, value_name = "PREFIX")]
    pub(super) ipv6: Option<Ipv6Net>,
    /// Cease to do so
    #[arg(long, conflicts_with_all = ["ipv4", "ipv6"])]
    pub(super) remove: bool,
    /// Where the link is pinned [default: /sys/fs/bpf/enforcer-decapsulator]
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) pin_directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Check a policy, without an agent
    Check {
        /// Files of the policy, or directories with them; `-` reads standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Print the JSON Schema of policies, for editors
    Schema,
    /// Compile a policy, without an agent: its digest, and how large its tables are
    Compile {
        /// Files of the policy, or directories with them; `-` reads standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// What a policy would change, and for whom
    Diff {
        /// Files of the policy as it would be, or directories with them; `-` reads standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// The policy as it is, in a file or a directory [default: the one in force]
        #[arg(long, value_name = "PATH")]
        against: Option<PathBuf>,
        /// End with 1 if there are differences
        #[arg(long)]
        exit_code: bool,
    },
    /// Make a policy the one in force
    Apply {
        /// Files of the policy, or directories with them; `-` reads standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Compile it for this host, say what it would change, and stop before anything changes
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the policy in force, or an earlier one
    Show {
        /// The one that was applied as this generation
        #[arg(long)]
        generation: Option<u64>,
    },
    /// List the policies that were applied, newest first
    History,
    /// Apply an earlier policy again, as a new generation
    Rollback {
        /// The one that was applied as this generation [default: the last one that differs from the one in force]
        generation: Option<u64>,
    },
    /// What a packet would get now, and why
    Explain(Explain),
    /// Replay traffic that was: whose verdict would another policy change?
    Simulate(Simulate),
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Where the packet comes from
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_source)]
    pub(super) from: SocketAddr,
    /// Where it goes; TCP unless it says `/udp`
    #[arg(long, value_name = "IP:PORT[/PROTO]", value_parser = parse_destination)]
    pub(super) to: (SocketAddr, Protocol),
    /// By the schedules at this time: RFC 3339, or local date and time; now if left out
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(super) at: Option<Timestamp>,
    /// Ask this policy instead of the one in force; no agent is needed, and every back end counts as healthy
    #[arg(long, value_name = "PATH")]
    pub(super) policy: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Simulate {
    /// The policy as it would be: a file or a directory; `-` reads standard input
    #[arg(long, value_name = "PATH")]
    pub(super) policy: PathBuf,
    /// A capture (pcap, pcapng), a segment of an audit log, or a directory of segments
    #[arg(long, value_name = "PATH")]
    pub(super) traffic: PathBuf,
    /// The policy to compare with, in a file or a directory [default: the one in force]
    #[arg(long, value_name = "PATH")]
    pub(super) against: Option<PathBuf>,
    /// An agent's configuration: its NAT addresses, flow table and timeouts [default: those of an empty one]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Most rows of changes
    #[arg(long, default_value_t = 100, value_name = "ROWS")]
    pub(super) limit: u32,
    /// End with 1 if any verdict changes
    #[arg(long)]
    pub(super) fail_on_change: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Tenant {
    /// List all tenants
    List,
    /// Refuse everything of a tenant until it is resumed
    Suspend {
        /// The tenant
        name: String,
    },
    /// Lift a suspension
    Resume {
        /// The tenant
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Backend {
    /// List all back ends
    List,
    /// Give a back end no new flows; those that it has stay
    Drain {
        /// The back end
        name: String,
    },
    /// Lift a drain
    Undrain {
        /// The back end
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// List all services
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum Flows {
    /// List open flows
    List {
        /// Only those of this tenant
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Only those to this service
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Only those on this back end
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
        /// Most rows
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: u32,
    },
    /// Print flows that are opened, moved or refused from now on, one on a line
    Watch {
        /// Only those of this tenant
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Only those to this service
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Only those on this back end
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
        /// End after so many lines
        #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Capture {
    /// Only packets that got one of these reasons [default: all for which packets are refused]
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = parse_reason)]
    pub(super) reason: Vec<Reason>,
    /// Only those of this tenant
    #[arg(long, value_name = "NAME")]
    pub(super) tenant: Option<String>,
    /// Only those to this service
    #[arg(long, value_name = "NAME")]
    pub(super) service: Option<String>,
    /// End after so many packets
    #[arg(long, default_value_t = 1000, value_name = "PACKETS",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CAPTURE_PACKETS)))]
    pub(super) count: u32,
    /// End after so long
    #[arg(long, default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CAPTURE_SECONDS)))]
    pub(super) seconds: u32,
    /// Write so much of each packet
    #[arg(long, default_value_t = 128, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(i64::from(MIN_SNAP_BYTES)..=i64::from(CAPTURE_BYTES)))]
    pub(super) snap: u32,
    /// The pcapng file; `-` is standard output
    #[arg(long, short, value_name = "FILE")]
    pub(super) write: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Maps {
    /// List all maps
    List,
    /// Print the entries of a map that are not all zero
    Dump {
        /// The map, as `maps list` names it
        name: String,
        /// Most entries
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Print the last records
    Tail {
        /// How many
        #[arg(long, short = 'n', default_value_t = 20, value_name = "RECORDS")]
        lines: u32,
        /// Begin with this sequence number instead
        #[arg(long, value_name = "SEQUENCE")]
        from: Option<u64>,
        /// Go on printing records as they come
        #[arg(long, short)]
        follow: bool,
    },
}

/// An address with a port or without, where the port is zero then.
fn parse_source(text: &str) -> Result<SocketAddr, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse().or_else(|_| bare.parse::<IpAddr>().map(|address| SocketAddr::new(address, 0))).map_err(|_| {
        "give an address, with a port or without: 10.1.0.2, 10.1.0.2:40000, 2001:db8::2, [2001:db8::2]:40000".to_owned()
    })
}

/// A reason that packets can be captured for.
fn parse_reason(text: &str) -> Result<Reason, String> {
    let found = Reason::ALL
        .iter()
        .find(|reason| reason.name().eq_ignore_ascii_case(text));
    match found.map(|reason| (*reason, reason.effect())) {
        Some((reason, Effect::Refused | Effect::Passed)) => Ok(reason),
        Some((_, Effect::Forwarded)) => Err(
            "packets that are sent on cannot be captured: they are rewritten by \
                                             then. Capture them on the interface"
                .to_owned(),
        ),
        None => {
            let names = Reason::ALL
                .iter()
                .filter(|reason| reason.effect() != Effect::Forwarded);
            let names: Vec<&str> = names.map(|reason| reason.name()).collect();
            Err(format!("reasons are {}", names.join(", ")))
        }
    }
}

fn parse_destination(text: &str) -> Result<(SocketAddr, Protocol), String> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let address = address
        .parse()
        .map_err(|_| "give an address and a port: 192.0.2.10:8000, [2001:db8::10]:8000/udp".to_owned())?;
    match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Ok((address, Protocol::Tcp)),
        "udp" => Ok((address, Protocol::Udp)),
        _ => Err("the protocol is `tcp` or `udp`".to_owned()),
    }
}

/// An instant, or a date and time by the clocks of this host.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    time_in(text, TimeZone::system())
}

fn time_in(text: &str, zone: TimeZone) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant);
    }
    let clock: civil::DateTime = text.parse().map_err(|_| {
        "give a time such as 2026-03-29T02:30:00+01:00, or by this host's clock 2026-03-29T02:30".to_owned()
    })?;
    zone.into_ambiguous_zoned(clock)
        .unambiguous()
        .map(|zoned| zoned.timestamp())
        .map_err(|_| {
            format!(
                "the clocks of this host show {clock} twice or never: add an offset, such as {clock}+01:00"
            )
        })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn times_are_instants_or_local() {
        let berlin = || TimeZone::get("Europe/Berlin").unwrap();
        let instant = |text: &str| time_in(text, berlin()).map(|time| time.to_string());
        for text in [
            "2026-06-08T06:00:00Z",
            "2026-06-08T08:00:00+02:00",
            "2026-06-08T08:00",
            "2026-06-08 08:00:00",
        ] {
            assert_eq!(instant(text).as_deref(), Ok("2026-06-08T06:00:00Z"), "{text}");
        }
        for twice_or_never in ["2026-03-29T02:30", "2026-10-25T02:30"] {
            assert!(
                instant(twice_or_never).unwrap_err().contains("twice or never"),
                "{twice_or_never}"
            );
        }
        assert_eq!(
            instant("2026-10-25T02:30+01:00").as_deref(),
            Ok("2026-10-25T01:30:00Z")
        );
        assert!(instant("tomorrow").is_err());
    }

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn addresses_are_read_in_every_form() {
        for (text, expected) in [
            ("10.1.0.2", Some("10.1.0.2:0")),
            ("10.1.0.2:40000", Some("10.1.0.2:40000")),
            ("2001:db8::2", Some("[2001:db8::2]:0")),
            ("[2001:db8::2]", Some("[2001:db8::2]:0")),
            ("[2001:db8::2]:4", Some("[2001:db8::2]:4")),
            ("10.1.0", None),
            ("10.1.0.2:70000", None),
            ("host", None),
            ("", None),
        ] {
            assert_eq!(
                parse_source(text)
                    .ok()
                    .map(|address| address.to_string())
                    .as_deref(),
                expected,
                "{text}"
            );
        }
        for (text, expected) in [
            ("192.0.2.10:80", Some(("192.0.2.10:80", Protocol::Tcp))),
            ("192.0.2.10:80/UDP", Some(("192.0.2.10:80", Protocol::Udp))),
            (
                "[2001:db8::10]:53/udp",
                Some(("[2001:db8::10]:53", Protocol::Udp)),
            ),
            ("192.0.2.10", None),
            ("192.0.2.10:80/sctp", None),
            ("192.0.2.10:80/", None),
        ] {
            let expected = expected.map(|(address, protocol)| (address.parse().unwrap(), protocol));
            assert_eq!(parse_destination(text).ok(), expected, "{text}");
        }
    }
}
