//! What a packet would get, and why.
//!
//! The verdict is that of [`enforcer_common::decide::judge`], the function that the kernel programs run, asked over a
//! snapshot of their state. The steps around it put into words what the tables hold in numbers; they take from the
//! policy what the tables have lost (names, prefixes, labels), and never decide anything.

use std::net::{IpAddr, SocketAddr};

use enforcer_common::Reason;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::TenantRecord;
use enforcer_common::abi::reason::Effect;
use enforcer_common::decide::trie::{self, Destination};
use enforcer_common::decide::{Decision, Flow, Packet, Shape, TCP, TCP_ACK, TCP_SYN, UDP, judge};
use enforcer_common::schema::MAGLEV_SLOTS;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::compile::directory::{Directory, RuleEntry, ServiceEntry};
use super::compile::{BackendStatus, Family, Inputs, address_of};
use super::policy::judgement::{Bindings, is_compliant};
use super::policy::resolved::{Backend, Constraint, Pool, Protocol, ResolvedPolicy};
use super::snapshot::Snapshot;

mod limits;
mod rules;

/// The smallest TCP segment with the usual options of a SYN: what a packet is taken to weigh.
const PACKET_BYTES: u32 = 60;
const HOP_LIMIT: u8 = 64;

/// What the enforcer knows.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// What the tables were compiled from.
    pub inputs: &'a Inputs<'a>,
    /// The names of the generation in the snapshot.
    pub directory: &'a Directory,
    /// Tables, flows and limiters.
    pub snapshot: &'a Snapshot,
}

/// The packet that is asked about: of an open flow if there is one, else one that opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Source; port 0 stands for any.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The generation that decided.
    pub generation: u64,
    /// Kernel monotonic time that limiters were asked for, in nanoseconds.
    pub now_ns: u64,
    /// Number of the reason: [`Reason::from_code`].
    pub reason_code: u32,
    /// Whose packet it is.
    pub tenant: Option<String>,
    /// Where it goes.
    pub service: Option<String>,
    /// The rule that decided.
    pub rule: Option<RuleEntry>,
    /// The back end that it is sent to; none if the source port is not given, since the port chooses.
    pub backend: Option<String>,
    /// The shadow rule that would have decided otherwise, and the number of the reason that it would have given.
    pub shadow: Option<(RuleEntry, u32)>,
    /// What was found on the way, in the order of judgement.
    pub steps: Vec<Step>,
}

/// What was found at one step of the judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What was looked at.
    pub subject: Subject,
    /// What was found: one sentence.
    pub finding: String,
}

/// What a step looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Where the packet goes.
    Destination,
    /// Whether it belongs to an open flow.
    Flow,
    /// Who sent it.
    Tenant,
    /// Which rules are closed at the time.
    Schedule,
    /// What the rules say.
    Rule,
    /// What the constraints require.
    Constraint,
    /// Whether the agent has renewed its lease.
    Lease,
    /// What is left of the tenant's quotas.
    Quota,
    /// What the tenant's class means at the moment.
    Class,
    /// Which back ends are eligible, and why the others are not.
    BackEnd,
    /// What the limiters say.
    Limit,
}

// === impl Subject ===

impl Subject {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Flow => "flow",
            Self::Tenant => "tenant",
            Self::Schedule => "schedule",
            Self::Rule => "rule",
            Self::Constraint => "constraint",
            Self::Lease => "lease",
            Self::Quota => "quota",
            Self::Class => "class",
            Self::BackEnd => "back end",
            Self::Limit => "limit",
        }
    }
}

/// When the packet comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Kernel monotonic time in nanoseconds: limiters go by it.
    pub kernel_ns: u64,
    /// The time of day: schedules go by it.
    pub wall: Timestamp,
}

/// Explains what a packet would get at a time.
#[must_use]
pub fn explain(known: &Known<'_>, question: &Question, moment: Moment) -> Explanation {
    let now_ns = moment.kernel_ns;
    let key = question.key();
    let flow = known.snapshot.flows.get(&key);
    let tcp_flags = match (question.protocol, flow) {
        (Protocol::Udp, _) => 0,
        (Protocol::Tcp, Some(_)) => TCP_ACK,
        (Protocol::Tcp, None) => TCP_SYN,
    };
    let packet = Packet {
        key,
        shape: Shape::Transport,
        tcp_flags,
        hop_limit: HOP_LIMIT,
        bytes: PACKET_BYTES,
        segment_bytes: PACKET_BYTES,
    };
    let decision = judge(known.snapshot, &packet, now_ns);
    let mut tale = Tale {
        known,
        question,
        packet,
        decision,
        moment,
        steps: Vec::new(),
    };
    tale.tell(flow);
    let Tale { steps, .. } = tale;
    let directory = known.directory;
    let backend = directory
        .backend(decision.backend)
        .filter(|_| question.from.port() != 0);
    Explanation {
        generation: decision.generation,
        now_ns,
        reason_code: decision.reason as u32,
        tenant: directory.tenant(decision.tenant).map(str::to_owned),
        service: directory
            .service(decision.service)
            .map(|service| service.name.clone()),
        rule: directory.rule(decision.rule).cloned(),
        backend: backend.map(|backend| backend.name.clone()),
        shadow: directory
            .rule(decision.shadow_rule)
            .map(|rule| (rule.clone(), decision.shadow_reason)),
        steps,
    }
}

// === impl Question ===

impl Question {
    /// The packet's 5-tuple.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        FlowKey {
            source: address_of(self.from.ip()),
            destination: address_of(self.to.ip()),
            source_port_be: self.from.port().to_be(),
            destination_port_be: self.to.port().to_be(),
            protocol: match self.protocol {
                Protocol::Tcp => TCP,
                Protocol::Udp => UDP,
            },
        }
    }
}

// === impl Explanation ===

impl Explanation {
    /// The reason; `None` only if the explanation was made by another version.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        Reason::from_code(self.reason_code)
    }
}

/// The steps so far.
struct Tale<'a> {
    known: &'a Known<'a>,
    question: &'a Question,
    packet: Packet,
    decision: Decision,
    moment: Moment,
    steps: Vec<Step>,
}

// === impl Tale ===

impl Tale<'_> {
    fn say(&mut self, subject: Subject, finding: impl Into<String>) {
        self.steps.push(Step {
            subject,
            finding: finding.into(),
        });
    }

    /// Goes as far as the judgement went.
    fn tell(&mut self, flow: Option<&Flow>) {
        let bank = 0; // A snapshot holds the live bank only.
        let destination = trie::destination(self.known.snapshot, bank, &self.packet);
        self.destination(destination);
        if !matches!(destination, Destination::Service(_)) {
            return;
        }
        self.flow(flow);
        let Some((index, record)) = self.tenant() else {
            return;
        };
        if self.decision.reason == Reason::Suspended {
            let finding = "It is suspended: everything of it is refused until `tenant resume`.";
            return self.say(Subject::Tenant, finding);
        }
        let Some(service) = self.known.directory.service(self.decision.service) else {
            return;
        };
        self.rule(index, service);
        if matches!(
            self.decision.reason,
            Reason::NoRule | Reason::RuleDeny | Reason::OutsideSchedule
        ) {
            return;
        }
        self.held_up();
        self.back_ends(index, service);
        if self.decision.reason == Reason::BackendIneligible {
            let finding =
                "Its flow's back end is no longer eligible: the client gets a reset, as the service says.";
            self.say(Subject::BackEnd, finding);
        }
        let refused_before_limits = matches!(
            self.decision.reason,
            Reason::BackendIneligible
                | Reason::NoCompliantBackend
                | Reason::NoHealthyBackend
                | Reason::NoNextHop
                | Reason::LeaseExpired
                | Reason::Quota
                | Reason::Shed
        );
        if !refused_before_limits {
            self.limits(index, &record);
        }
    }

    fn destination(&mut self, destination: Destination) {
        let to = self.question.to;
        let policy = self.known.inputs.policy;
        let finding = match destination {
            Destination::Service(slot) => match self.known.directory.service(slot + 1) {
                Some(service) if service.ports.is_several() => {
                    format!(
                        "{to} is service `{}`, which has ports {}.",
                        service.name, service.ports
                    )
                }
                Some(service) => format!("{to} is service `{}`.", service.name),
                None => format!(
                    "{to} is a service in slot {slot}, which has no name: the tables contradict each other."
                ),
            },
            Destination::Protected => match longest(&policy.protected_networks, to.ip()) {
                Some(net) => format!("{to} is no service and lies in the protected network {net}."),
                None => format!("{to} is no service and lies in a protected network."),
            },
            Destination::Local => format!("{to} is an address of this host and no service."),
            Destination::Nat => {
                format!("{to} is the address of `Nat` of this host: only replies of back ends belong there.")
            }
            Destination::Outside | Destination::VipWithoutPort => {
                format!("{to} is no service, no address of this host and in no protected network.")
            }
        };
        self.say(Subject::Destination, finding);
        let bank = 0;
        if !matches!(destination, Destination::Service(_))
            && trie::source(self.known.snapshot, bank, &self.packet).is_backend()
        {
            let reply = self.known.snapshot.replies.contains_key(&self.packet.key);
            let finding = if reply {
                "It is a reply on an open flow."
            } else {
                "It is no reply on an open flow."
            };
            self.say(
                Subject::Flow,
                format!("{} is a back end. {finding}", self.question.from.ip()),
            );
        }
    }

    fn flow(&mut self, flow: Option<&Flow>) {
        let finding = match flow {
            None => "There is no open flow; it would open one.".to_owned(),
            Some(flow) => {
                let backend = self.known.directory.backend(flow.backend + 1);
                let backend = backend.map_or_else(
                    || "a back end that is gone".into(),
                    |entry| format!("`{}`", entry.name),
                );
                format!(
                    "It belongs to an open flow to {backend}, last judged under generation {}.",
                    flow.generation
                )
            }
        };
        self.say(Subject::Flow, finding);
    }

    /// Index in the policy and record of the tenant.
    fn tenant(&mut self) -> Option<(usize, TenantRecord)> {
        let from = self.question.from.ip();
        let Some(name) = self.known.directory.tenant(self.decision.tenant) else {
            self.say(Subject::Tenant, format!("No tenant claims {from}."));
            return None;
        };
        let policy = self.known.inputs.policy;
        let index = policy
            .tenants
            .binary_search_by(|tenant| tenant.name.as_str().cmp(name))
            .ok()?;
        let finding = match longest(&policy.tenants[index].sources, from) {
            Some(net) => format!("{from} belongs to tenant `{name}`: its longest prefix is {net}."),
            None => format!("The flow belongs to tenant `{name}`."),
        };
        self.say(Subject::Tenant, finding);
        let record = *self
            .known
            .snapshot
            .tables
            .tenants
            .get(self.decision.tenant as usize)?;
        Some((index, record))
    }

    fn back_ends(&mut self, tenant: usize, entry: &ServiceEntry) {
        let policy = self.known.inputs.policy;
        let Ok(index) = policy
            .services
            .binary_search_by(|service| service.name.cmp(&entry.name))
        else {
            return;
        };
        let binding: Vec<&Constraint> = Bindings::of(policy)
            .get(tenant, index)
            .iter()
            .map(|number| &policy.constraints[number])
            .collect();
        for constraint in &binding {
            let finding = format!(
                "Constraint `{}` allows only back ends with {}.",
                constraint.name, constraint.require
            );
            self.say(Subject::Constraint, finding);
        }
        let shares = self.shares();
        for pool in policy.services[index]
            .pools
            .iter()
            .map(|pool| &policy.pools[*pool])
        {
            let failed = self.known.inputs.failed_pools.contains(&pool.name);
            let state = if failed { "has failed" } else { "is in order" };
            let backends: Vec<String> = pool
                .backends
                .iter()
                .map(|backend| {
                    let forward = policy.services[index].forward;
                    if !forward.encapsulates() && Family::of(backend.address) != entry.family {
                        return format!("`{}` is not of {}", backend.name, entry.family.name());
                    }
                    let state = self.back_end(pool, backend, &binding, &shares);
                    format!("`{}` {state}", backend.name)
                })
                .collect();
            self.say(
                Subject::BackEnd,
                format!("Pool `{}` {state}: {}.", pool.name, backends.join("; ")),
            );
        }
        let chosen = self
            .known
            .directory
            .backend(self.decision.backend)
            .map(|backend| backend.name.clone());
        if let Some(name) = chosen {
            let finding = if self.question.from.port() == 0 {
                "Which one is chosen depends on the source port; ask with one.".to_owned()
            } else if self.decision.reason.effect() == Effect::Forwarded {
                format!("`{name}` gets the packet.")
            } else {
                format!("`{name}` would get the packet.")
            };
            self.say(Subject::BackEnd, finding);
        }
    }

    /// Slots of the Maglev table that decides, by back-end slot.
    fn shares(&self) -> std::collections::BTreeMap<u32, usize> {
        let tables = &self.known.snapshot.tables;
        let cell = tables
            .tenants
            .get(self.decision.tenant as usize)
            .zip(self.decision.service.checked_sub(1))
            .and_then(|(tenant, service)| tables.cell(tenant.row, service))
            .filter(|cell| {
                let decision = tables.decisions.get(usize::from(cell.decision));
                decision.is_some_and(|decision| decision.reason == Reason::Allowed as u32 + 1)
            });
        let table = cell.and_then(|cell| tables.maglev.get(usize::from(cell.set)));
        let slots = table.into_iter().flat_map(|table| &table.slots);
        let mut shares = std::collections::BTreeMap::new();
        for slot in slots.take(MAGLEV_SLOTS as usize) {
            *shares.entry(u32::from(*slot)).or_insert(0) += 1;
        }
        shares
    }

    /// Why a back end is eligible, or is not.
    fn back_end(
        &self,
        pool: &Pool,
        backend: &Backend,
        binding: &[&Constraint],
        shares: &std::collections::BTreeMap<u32, usize>,
    ) -> String {
        if let Some(constraint) = binding
            .iter()
            .find(|constraint| !is_compliant(constraint, pool, backend))
        {
            let lacking = constraint
                .require
                .lacking(|key| ResolvedPolicy::backend_label(pool, backend, key));
            return format!(
                "is forbidden by `{}`, since it is not {}",
                constraint.name,
                lacking.join(" and ")
            );
        }
        let inputs = self.known.inputs;
        let status = inputs
            .backends
            .get(&backend.name)
            .copied()
            .unwrap_or(BackendStatus::unknown(backend));
        let slot = self
            .known
            .directory
            .backends
            .iter()
            .find(|(_, entry)| entry.name == backend.name);
        let share = slot.and_then(|(slot, _)| shares.get(slot)).copied().unwrap_or(0);
        let total: usize = shares.values().sum::<usize>().max(1);
        match status {
            BackendStatus { healthy: false, .. } => "is unhealthy".to_owned(),
            BackendStatus { next_hop: None, .. } => {
                "is healthy, but its link-layer address is not known".to_owned()
            }
            BackendStatus { draining: true, .. } => {
                "is draining, and keeps only the flows that it has".to_owned()
            }
            BackendStatus { weight: 0, .. } => {
                "has no weight left, and keeps only the flows that it has".to_owned()
            }
            _ if share == 0 => "is in reserve".to_owned(),
            BackendStatus { weight, .. } => {
                // Rounded to tenths of a percent.
                let tenths = (share * 1000 + total / 2) / total;
                format!(
                    "takes {}.{}% of new flows (weight {weight})",
                    tenths / 10,
                    tenths % 10
                )
            }
        }
    }
}

/// The longest of some prefixes that holds an address.
fn longest(nets: &[IpNet], address: IpAddr) -> Option<&IpNet> {
    nets.iter()
        .filter(|net| net.contains(&address))
        .max_by_key(|net| net.prefix_len())
}

#[cfg(test)]
mod tests;
