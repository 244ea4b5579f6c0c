//! From the values as they are written to checked ones; every wrong value is reported, not only the first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    AttachMode, Audit, AuditSection, CapacitySection, Config, ConfigError, DEFAULT_SOCKET, Document,
    Encapsulation, EncapsulationSection, FlowTable, FlowTableSection, MAX_INTERFACES, MAX_LOCAL_GPU_BACKENDS,
    Nat, NatSection, Problem, Telemetry, TelemetrySection, Text,
};
use crate::pure::capacity::{self, Capacity};
use crate::pure::policy::quantity;

/// The kernel's `IFNAMSIZ` without the terminating zero.
const MAX_INTERFACE_NAME_BYTES: usize = 15;
/// `sun_path` of a Unix socket's address without the terminating zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;
const MAX_PATH_BYTES: usize = 4095;
const MAX_NAME_BYTES: usize = 32;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Turns the document into a configuration.
pub(super) fn check(file: &str, document: Document) -> Result<Config, ConfigError> {
    let Document {
        instance,
        interfaces,
        attach_mode,
        state_directory,
        socket,
        socket_group,
        policy,
        nat,
        encapsulation,
        answers_per_second,
        audit,
        metrics,
        capacity,
        flow_table,
        telemetry,
    } = document;
    let flow_table = flow_table.unwrap_or_default();
    let mut checker = Checker {
        file,
        problems: Vec::new(),
    };

    if interfaces.value.is_empty() || interfaces.value.len() > MAX_INTERFACES {
        let (line, column) = (interfaces.referenced.line(), interfaces.referenced.column());
        checker.report(
            line,
            column,
            format!("name from 1 to {MAX_INTERFACES} interfaces, as in `[eth0]`"),
        );
    }
    let telemetry = telemetry.unwrap_or_default();
    let local_gpu_backends =
        checker.local_gpu_backends(telemetry.local_gpu_backends.as_deref().unwrap_or_default());
    let state_directory = checker.path(state_directory, "/var/lib/enforcer", MAX_PATH_BYTES);
    let config = Config {
        instance: checker.value(instance, "enforcer", name),
        interfaces: checker.interfaces(&interfaces.value),
        attach_mode: checker.value(attach_mode, "Auto", parse_attach_mode),
        audit: checker.audit(audit.unwrap_or_default(), &state_directory),
        state_directory,
        socket: checker.path(socket, DEFAULT_SOCKET, MAX_SOCKET_PATH_BYTES),
        socket_group: socket_group.and_then(|text| checker.optional(&text, name)),
        policy: policy.and_then(|text| checker.optional(&text, |text| path(text, MAX_PATH_BYTES))),
        nat: checker.nat(nat.unwrap_or_default()),
        encapsulation: checker.encapsulation(encapsulation.unwrap_or_default()),
        answers_per_second: checker.value(answers_per_second, "100", |text| {
            count(text, 0..=1_000_000).map(|count| count as u32)
        }),
        metrics: metrics.map(|section| checker.value(section.listen, "127.0.0.1:9464", listen_address)),
        capacity: checker.capacity(capacity.unwrap_or_default(), flow_table.entries.clone()),
        flow_table: checker.flow_table(flow_table),
        telemetry: checker.telemetry(telemetry),
        local_gpu_backends,
    };
    checker
        .problems
        .sort_by_key(|problem| (problem.line, problem.column));
    if checker.problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Invalid {
            problems: checker.problems,
        })
    }
}

struct Checker<'a> {
    file: &'a str,
    problems: Vec<Problem>,
}

// === impl Checker ===

impl Checker<'_> {
    fn report(&mut self, line: u64, column: u64, message: String) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            column,
            message,
        });
    }

    /// The value, or `None` after a report.
    fn optional<T>(&mut self, text: &Text, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(why) => {
                let shown: String = text
                    .value
                    .chars()
                    .filter(|letter| !letter.is_control())
                    .take(80)
                    .collect();
                let (line, column) = (text.referenced.line(), text.referenced.column());
                self.report(line, column, format!("`{shown}` cannot stand here: {why}"));
                None
            }
        }
    }

    /// The value, or the default's: also after a report, since nothing is done with the result then.
    fn value<T>(
        &mut self,
        text: Option<Text>,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        text.and_then(|text| self.optional(&text, &parse))
            .unwrap_or_else(|| {
                parse(default)
                    .unwrap_or_else(|why| panic!("the default `{default}` is checked by a test: {why}"))
            })
    }

    fn path(&mut self, text: Option<Text>, default: &str, most_bytes: usize) -> PathBuf {
        self.value(text, default, |text| path(text, most_bytes))
    }

    fn interfaces(&mut self, texts: &[Text]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for text in texts.iter().take(MAX_INTERFACES) {
            let known = &names;
            let check = |text: &str| {
                if known.iter().any(|name| name == text) {
                    return Err("it is named a second time".to_owned());
                }
                interface_name(text)
            };
            if let Some(name) = self.optional(text, check) {
                names.push(name);
            }
        }
        names
    }

    fn nat(&mut self, section: NatSection) -> Nat {
        let NatSection { ipv4, ipv6, ports } = section;
        let (port_first, port_count) = self.value(ports, "10000-32767", port_range);
        Nat {
            ipv4: ipv4.and_then(|text| self.optional(&text, nat_v4)),
            ipv6: ipv6.and_then(|text| self.optional(&text, nat_v6)),
            port_first,
            port_count,
        }
    }

    fn encapsulation(&mut self, section: EncapsulationSection) -> Encapsulation {
        let EncapsulationSection { ipv4, ipv6 } = section;
        Encapsulation {
            ipv4: ipv4.and_then(|text| self.optional(&text, outer_v4)),
            ipv6: ipv6.and_then(|text| self.optional(&text, outer_v6)),
        }
    }

    fn audit(&mut self, section: AuditSection, state_directory: &Path) -> Audit {
        let AuditSection {
            directory,
            events_per_window,
            segment_bytes,
        } = section;
        Audit {
            directory: directory
                .and_then(|text| self.optional(&text, |text| path(text, MAX_PATH_BYTES)))
                .unwrap_or_else(|| state_directory.join("audit")),
            events_per_window: self.value(events_per_window, "64", |text| count(text, 1..=1_000_000)),
            segment_bytes: self.value(segment_bytes, "64Mi", |text| count(text, 64 << 10..=4 << 30)),
        }
    }

    fn capacity(&mut self, section: CapacitySection, flows: Option<Text>) -> Capacity {
        let CapacitySection {
            tenants,
            trie_nodes,
            eligible_sets,
            decision_blocks,
        } = section;
        let default = Capacity::default();
        let mut size = |text: Option<Text>, default: u32, range: RangeInclusive<u32>| {
            let range = u64::from(*range.start())..=u64::from(*range.end());
            self.value(text, &default.to_string(), |text| {
                let size = count(text, range.clone())?;
                u32::try_from(size).map_err(|_| "it is more than a map can hold".to_owned())
            })
        };
        Capacity {
            tenants: size(tenants, default.tenants, 1..=capacity::MAX_TENANTS),
            trie_nodes: size(trie_nodes, default.trie_nodes, 64..=capacity::MAX_TRIE_NODES),
            eligible_sets: size(eligible_sets, default.eligible_sets, 1..=capacity::MAX_SETS),
            decision_blocks: size(
                decision_blocks,
                default.decision_blocks,
                64..=capacity::MAX_BLOCKS,
            ),
            flows: size(flows, default.flows, 1024..=capacity::MAX_FLOWS),
        }
    }

    fn flow_table(&mut self, section: FlowTableSection) -> FlowTable {
        let FlowTableSection {
            entries: _,
            tcp_established_timeout,
            tcp_opening_timeout,
            tcp_closing_timeout,
            udp_timeout,
            tenant_share,
        } = section;
        let timeout = |text: &str| duration(text, Duration::from_secs(1)..=7 * DAY);
        FlowTable {
            tcp_established_timeout: self.value(tcp_established_timeout, "1h", timeout),
            tcp_opening_timeout: self.value(tcp_opening_timeout, "30s", timeout),
            tcp_closing_timeout: self.value(tcp_closing_timeout, "10s", timeout),
            udp_timeout: self.value(udp_timeout, "60s", timeout),
            tenant_share_percent: self.value(tenant_share, "50%", |text| match quantity::percentage(text) {
                Ok(0) => Err("a tenant needs some share of the table".to_owned()),
                Ok(share) => Ok(share),
                Err(why) => Err(why.to_string()),
            }),
        }
    }

    fn local_gpu_backends(&mut self, names: &[Text]) -> Vec<String> {
        if let Some(first) = names.get(MAX_LOCAL_GPU_BACKENDS) {
            let (line, column) = (first.referenced.line(), first.referenced.column());
            self.report(
                line,
                column,
                format!("one host has at most {MAX_LOCAL_GPU_BACKENDS} back ends of its own"),
            );
        }
        names
            .iter()
            .take(MAX_LOCAL_GPU_BACKENDS)
            .filter_map(|text| self.optional(text, backend_name))
            .collect()
    }

    fn telemetry(&mut self, section: TelemetrySection) -> Telemetry {
        let TelemetrySection {
            interval,
            timeout,
            local_gpu_backends: _,
        } = section;
        let range = Duration::from_millis(50)..=Duration::from_secs(60);
        let interval = self.value(interval, "1s", |text| duration(text, range.clone()));
        let place = timeout
            .as_ref()
            .map(|text| (text.referenced.line(), text.referenced.column()));
        let default = format!("{}ms", interval.as_millis() / 2);
        let timeout = self.value(timeout, &default, |text| {
            duration(text, Duration::from_millis(10)..=range.end().to_owned())
        });
        if let Some((line, column)) = place.filter(|_| timeout > interval) {
            self.report(
                line,
                column,
                "the timeout is longer than the interval: at most one fetch may run".to_owned(),
            );
        }
        Telemetry { interval, timeout }
    }
}

/// A name that becomes part of a path: no dots, no slashes.
fn name(text: &str) -> Result<String, String> {
    let letters = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-' || letter == b'_';
    if text.is_empty() || text.len() > MAX_NAME_BYTES || text.starts_with('-') || !text.bytes().all(letters) {
        return Err(format!(
            "a name has from 1 to {MAX_NAME_BYTES} letters, digits, `-` and `_`, and no `-` in front"
        ));
    }
    Ok(text.to_owned())
}

/// What the kernel takes for an interface's name (`dev_valid_name`).
fn interface_name(text: &str) -> Result<String, String> {
    let bad = |letter: char| letter == '/' || letter == ':' || letter.is_whitespace() || letter.is_control();
    if text.is_empty()
        || text.len() > MAX_INTERFACE_NAME_BYTES
        || text == "."
        || text == ".."
        || text.contains(bad)
    {
        return Err(format!(
            "an interface's name has from 1 to {MAX_INTERFACE_NAME_BYTES} bytes without `/`, `:` and blanks"
        ));
    }
    Ok(text.to_owned())
}

fn path(text: &str, most_bytes: usize) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute()
        || text.contains('\0')
        || path.components().any(|part| part == Component::ParentDir)
    {
        return Err("give an absolute path, which starts with `/` and has no `..`".to_owned());
    }
    if text.len() > most_bytes {
        return Err(format!(
            "it has {} bytes, and at most {most_bytes} are possible here",
            text.len()
        ));
    }
    Ok(path.to_owned())
}

fn parse_attach_mode(text: &str) -> Result<AttachMode, String> {
    match text {
        "Auto" => Ok(AttachMode::Auto),
        "Native" => Ok(AttachMode::Native),
        "Generic" => Ok(AttachMode::Generic),
        "Tc" => Ok(AttachMode::Tc),
        _ => Err("give `Auto`, `Native`, `Generic` or `Tc`".to_owned()),
    }
}

fn nat_v4(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| "give an IPv4 address, such as 192.0.2.1".to_owned())?;
    unicast(IpAddr::V4(address))?;
    Ok(address)
}

fn nat_v6(text: &str) -> Result<Ipv6Addr, String> {
    let address: Ipv6Addr = text
        .parse()
        .map_err(|_| "give an IPv6 address, such as 2001:db8::1".to_owned())?;
    if address.to_ipv4_mapped().is_some() {
        return Err("it is an IPv4 address in IPv6 form; give it as `ipv4`".to_owned());
    }
    unicast(IpAddr::V6(address))?;
    Ok(address)
}

fn unicast(address: IpAddr) -> Result<(), String> {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
        return Err("no packet can be sent from it to a back end; give an address of this host".to_owned());
    }
    Ok(())
}

fn outer_v4(text: &str) -> Result<Ipv4Net, String> {
    let help = "give an IPv4 prefix without host bits, such as 10.254.0.0/16, or one address";
    let net = prefix::<Ipv4Net, Ipv4Addr>(text).ok_or_else(|| help.to_owned())?;
    if net.network() != net.addr() {
        return Err(help.to_owned());
    }
    unicast(IpAddr::V4(net.addr()))?;
    Ok(net)
}

fn outer_v6(text: &str) -> Result<Ipv6Net, String> {
    let help = "give an IPv6 prefix without host bits, such as 2001:db8:fe::/64, or one address";
    let net = prefix::<Ipv6Net, Ipv6Addr>(text).ok_or_else(|| help.to_owned())?;
    if net.network() != net.addr() || net.addr().to_ipv4_mapped().is_some() {
        return Err(help.to_owned());
    }
    unicast(IpAddr::V6(net.addr()))?;
    Ok(net)
}

/// A prefix, or an address as the prefix that holds nothing else.
fn prefix<Net: FromStr + From<Address>, Address: FromStr>(text: &str) -> Option<Net> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<Address>().ok().map(Net::from))
}

/// `FIRST-LAST` to the first port and the number of ports.
fn port_range(text: &str) -> Result<(u16, u16), String> {
    let help = || "give a range of ports from 1024 to 65535, such as 10000-32767".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(help)?;
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|letter| letter.is_ascii_digit());
        digits
            .then(|| text.parse::<u16>().ok())
            .flatten()
            .ok_or_else(help)
    };
    let (first, last) = (port(first)?, port(last)?);
    if first < 1024 || last < first {
        return Err(help());
    }
    Ok((first, last - first + 1))
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "give an address and a port, such as 127.0.0.1:9464 or [::1]:9464".to_owned())
}

fn count(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let value = quantity::count(text).map_err(|error| format!("{error}; give {}", quantity::COUNT_FORM))?;
    if !range.contains(&value) {
        return Err(format!(
            "it must lie between {} and {}",
            range.start(),
            range.end()
        ));
    }
    Ok(value)
}

fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let value =
        quantity::duration(text).map_err(|error| format!("{error}; give {}", quantity::DURATION_FORM))?;
    if !range.contains(&value) {
        return Err(format!(
            "it must lie between {:?} and {:?}",
            range.start(),
            range.end()
        ));
    }
    Ok(value)
}

/// Any name that a policy may give a back end; whether there is one of it is the policy's business.
fn backend_name(text: &str) -> Result<String, String> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if (1..=63).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a back end's name has 1 to 63 letters, digits, `-`, `_` and `.`".to_owned())
    }
}
