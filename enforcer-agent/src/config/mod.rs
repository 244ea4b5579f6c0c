//! The agent's own configuration: what is particular to a host, where the policy is what all hosts share.
//!
//! It owns the YAML file of `run --config FILE`, its defaults and its bounds. It never holds policy: nothing in here
//! says who may reach what.

mod check;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_saphyr::{Error as YamlError, Spanned, UserMessageFormatter};
use thiserror::Error;

use crate::pure::capacity::Capacity;

/// Largest configuration file, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The control socket, unless the configuration names another.
pub const DEFAULT_SOCKET: &str = "/run/enforcer/control.sock";
/// Most back ends on this host's own GPUs.
pub const MAX_LOCAL_GPU_BACKENDS: usize = 64;
/// Most interfaces that one agent looks after.
pub const MAX_INTERFACES: usize = 64;

/// The configuration, checked and complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Names this agent among several on one host, and the pin directory.
    pub instance: String,
    /// Interfaces whose traffic is judged; never empty, without repetition.
    pub interfaces: Vec<String>,
    /// How programs are attached.
    pub attach_mode: AttachMode,
    /// Where the agent keeps what must survive a restart.
    pub state_directory: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The group whose members may read over the control socket; `None` leaves the socket to root's group.
    pub socket_group: Option<String>,
    /// The policy that is applied at the first start, when no policy has been applied yet.
    pub policy: Option<PathBuf>,
    /// What `Nat` puts in place of clients' addresses and ports.
    pub nat: Nat,
    /// What `Ipip` and `Gue` put around packets.
    pub encapsulation: Encapsulation,
    /// Refused packets of one tenant, and of all strangers together, that are answered per second where a policy asks for
    /// answers.
    pub answers_per_second: u32,
    /// The audit log.
    pub audit: Audit,
    /// The Prometheus endpoint; `None` leaves it out.
    pub metrics: Option<SocketAddr>,
    /// How much fits into the maps.
    pub capacity: Capacity,
    /// The flow table.
    pub flow_table: FlowTable,
    /// How back ends' telemetry is fetched.
    pub telemetry: Telemetry,
    /// Names of back ends that run on this host's own GPUs, in containers or machines with addresses of their own: what
    /// NVML says here counts for them.
    pub local_gpu_backends: Vec<String>,
}

/// How what comes in is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachMode {
    /// By XDP in the driver where it can, else by TC, which the status then says.
    #[default]
    Auto,
    /// By XDP in the driver, or not at all.
    Native,
    /// By XDP in the generic hook, behind the driver: slow, and it takes what the host has put together for one packet.
    Generic,
    /// By TC, beside whatever runs XDP on the interface.
    Tc,
}

/// Addresses and ports of `Nat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// In place of IPv4 clients.
    pub ipv4: Option<Ipv4Addr>,
    /// In place of IPv6 clients.
    pub ipv6: Option<Ipv6Addr>,
    /// First port in place of the client's.
    pub port_first: u16,
    /// Number of ports from `port_first` on; at least 1.
    pub port_count: u16,
}

/// Sources of the packets that are put around others. Their host part varies by flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Encapsulation {
    /// To IPv4 back ends.
    pub ipv4: Option<Ipv4Net>,
    /// To IPv6 back ends.
    pub ipv6: Option<Ipv6Net>,
}

/// Where audit records go and how many there may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Where the segments lie.
    pub directory: PathBuf,
    /// Decisions that one (direction, tenant, reason, CPU) sends as records in each window of about a second; the rest
    /// is counted.
    pub events_per_window: u64,
    /// Bytes after which a new segment is begun.
    pub segment_bytes: u64,
}

/// How long an idle flow stays in the flow table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTable {
    /// TCP, after the handshake.
    pub tcp_established_timeout: Duration,
    /// TCP, before it.
    pub tcp_opening_timeout: Duration,
    /// TCP, after a FIN from both ends or a RST.
    pub tcp_closing_timeout: Duration,
    /// UDP.
    pub udp_timeout: Duration,
    /// How much of the table one tenant may have, in percent.
    pub tenant_share_percent: u8,
}

// === impl FlowTable ===

impl FlowTable {
    /// Entries that one tenant may have of a table with so many; at least one.
    #[must_use]
    pub fn entries_per_tenant(&self, entries: u32) -> u64 {
        (u64::from(entries) * u64::from(self.tenant_share_percent) / 100).max(1)
    }
}

/// How back ends' metrics are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Telemetry {
    /// Time from one fetch to the next.
    pub interval: Duration,
    /// Time after which a fetch has failed; at most `interval`.
    pub timeout: Duration,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("the configuration {} has {bytes} bytes, more than the {MAX_CONFIG_BYTES} that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Something in it is wrong.
    #[error("the configuration is not valid:\n{}", Lines(problems))]
    Invalid {
        /// Everything that is wrong, in the order of the file; never empty.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the caller named it.
    pub file: String,
    /// Line, from 1; 0 if it concerns the file as a whole.
    pub line: u64,
    /// Column in characters, from 1; 0 if it concerns the file as a whole.
    pub column: u64,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(formatter, "{}: {}", self.file, self.message)
        } else {
            write!(
                formatter,
                "{}:{}:{}: {}",
                self.file, self.line, self.column, self.message
            )
        }
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "  {problem}")?;
        }
        Ok(())
    }
}

/// A scalar as it was written, and where.
type Text = Spanned<String>;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    instance: Option<Text>,
    interfaces: Spanned<Vec<Text>>,
    attach_mode: Option<Text>,
    state_directory: Option<Text>,
    socket: Option<Text>,
    socket_group: Option<Text>,
    policy: Option<Text>,
    nat: Option<NatSection>,
    encapsulation: Option<EncapsulationSection>,
    answers_per_second: Option<Text>,
    audit: Option<AuditSection>,
    metrics: Option<MetricsSection>,
    capacity: Option<CapacitySection>,
    flow_table: Option<FlowTableSection>,
    telemetry: Option<TelemetrySection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NatSection {
    ipv4: Option<Text>,
    ipv6: Option<Text>,
    ports: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EncapsulationSection {
    ipv4: Option<Text>,
    ipv6: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuditSection {
    directory: Option<Text>,
    events_per_window: Option<Text>,
    segment_bytes: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MetricsSection {
    listen: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CapacitySection {
    tenants: Option<Text>,
    trie_nodes: Option<Text>,
    eligible_sets: Option<Text>,
    decision_blocks: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FlowTableSection {
    entries: Option<Text>,
    tcp_established_timeout: Option<Text>,
    tcp_opening_timeout: Option<Text>,
    tcp_closing_timeout: Option<Text>,
    udp_timeout: Option<Text>,
    tenant_share: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TelemetrySection {
    interval: Option<Text>,
    timeout: Option<Text>,
    local_gpu_backends: Option<Vec<Text>>,
}

// === impl Config ===

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with every wrong value at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = fs::metadata(path).map_err(read_error)?.len();
        if bytes > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                bytes,
            });
        }
        let text = fs::read_to_string(path).map_err(read_error)?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Checks a text. `file` is only a name for the errors.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`]: the first wrong field, or else every wrong value.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_documents: 1, max_depth: 8, max_aliases: 16, max_anchors: 16 },
            reject_unsupported_tags: true,
            with_snippet: false,
        };
        let document: Document =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| ConfigError::Invalid {
                problems: vec![Problem {
                    file: file.to_owned(),
                    line: error.location().map_or(0, |at| at.line()),
                    column: error.location().map_or(0, |at| at.column()),
                    message: describe(&error),
                }],
            })?;
        check::check(file, document)
    }

    /// Where programs, links and maps are pinned.
    #[must_use]
    pub fn pin_directory(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.instance)
    }
}

/// What to say about an error of the YAML reader.
fn describe(error: &YamlError) -> String {
    match error {
        YamlError::WithSnippet { error, .. } | YamlError::AliasError { error, .. } => describe(error),
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let field: String = field
                .chars()
                .filter(|letter| !letter.is_control())
                .take(64)
                .collect();
            format!(
                "there is no field `{field}` here; there can be {}",
                expected.join(", ")
            )
        }
        YamlError::SerdeMissingField { field, .. } => {
            format!("the field `{field}` is missing: it has no default")
        }
        YamlError::Unexpected {
            expected: "sequence start",
            ..
        } => "this should be a list, as in `[eth0]`".to_owned(),
        YamlError::Unexpected {
            expected: "mapping start",
            ..
        } => "this should be a mapping (`name: value`)".to_owned(),
        YamlError::Eof { .. } => "the file is empty; it needs at least `interfaces: [NAME]`".to_owned(),
        other => {
            let message = other.render_with_formatter(&UserMessageFormatter);
            message
                .chars()
                .filter(|letter| !letter.is_control())
                .take(200)
                .collect()
        }
    }
}

#[cfg(test)]
mod tests;
