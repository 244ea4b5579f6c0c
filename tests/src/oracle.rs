//! What a packet should get, worked out naively from the text of the policy: lists are searched from one end to the
//! other, there is no trie, no table, no hash, no fixed-point step. Written from the description of the policy
//! language alone; it shares no code with the compiler, the decision or the parser.
//!
//! It does not know which of several allowed back ends the hash picks, so it predicts the set of them, and is then told
//! which one it was. Its limiters count in 2^-40 ns; where the data path may round to either side of a limit, it allows
//! both answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use enforcer_agent::adapters::dataplane::Timeouts;
use enforcer_common::Reason;
use enforcer_common::abi::tally::DIRECTION_EGRESS;
use enforcer_common::decide::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use ipnet::IpNet;

use crate::packet::{Segment, Transport};
use crate::plain::{Backend, Forward, Labels, Policy, Pool, Rule, Service, Tenant, has};

/// Binary digits of a nanosecond.
const FINE: u32 = 40;
/// How far the data path may round one charge, in fine units: a nanosecond for the charge, and the step's share.
const ROUNDING: u128 = 2 << FINE;
/// The most bytes that one packet is charged.
const MOST_BYTES: u64 = 65_535;

/// What is known of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its probes succeed.
    pub healthy: bool,
    /// It takes no new flows.
    pub draining: bool,
    /// It has no share of new flows.
    pub weightless: bool,
    /// The way to it is known.
    pub reachable: bool,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            healthy: true,
            draining: false,
            weightless: false,
            reachable: true,
        }
    }
}

/// What should become of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Why: one reason, or several where rounding or a hash decides.
    pub reasons: BTreeSet<Reason>,
    /// The tenant's name.
    pub tenant: Option<String>,
    /// The service's name.
    pub service: Option<String>,
    /// The deciding rule's name.
    pub rule: Option<String>,
    /// Names of the back ends that it may go to; empty where none is chosen.
    pub backends: BTreeSet<String>,
    /// Those of them to which the way is not known.
    pub unreachable: BTreeSet<String>,
    /// Those of them where another connection has the client's address and port already.
    pub taken: BTreeSet<String>,
}

/// What became of a packet, with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Why.
    pub reason: Reason,
    /// The tenant's name.
    pub tenant: Option<String>,
    /// The service's name.
    pub service: Option<String>,
    /// The deciding rule's name.
    pub rule: Option<String>,
    /// The back end's name.
    pub backend: Option<String>,
    /// The client's port towards the back end.
    pub port: u16,
}

/// A connection, as the oracle remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    from: SocketAddr,
    to: SocketAddr,
    udp: bool,
    tenant: String,
    backend: String,
    target: SocketAddr,
    /// The client's address and port as the back end sees them.
    seen_as: SocketAddr,
    /// Whether its replies find their way back.
    has_replies: bool,
    here: Signs,
    here_ns: u64,
    back: Signs,
    back_ns: u64,
}

/// What was seen in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    finished: bool,
    reset: bool,
    beyond_syn: bool,
}

/// A limiter: when all that was admitted is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Debt {
    due_fine: u128,
    /// How far the data path's own word may be from that.
    slack_fine: u128,
}

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limited {
    Connections,
    Packets,
    Bytes,
    Responses,
}

/// Which way a limit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Yes,
    No,
    Either,
}

/// What a packet does to the connection that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Opens,
    Continues,
    Moves,
    Reopens,
}

/// The oracle: a policy, what is known of the world, and what it was told of the traffic so far.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// What is to be enforced.
    pub policy: Policy,
    /// Of back ends, by name; healthy unless it says otherwise.
    pub statuses: BTreeMap<String, Status>,
    /// Pools that have failed.
    pub failed_pools: BTreeSet<String>,
    /// Tenants that are suspended.
    pub suspended: BTreeSet<String>,
    nat: Vec<IpAddr>,
    local: Vec<IpAddr>,
    /// Whether tables or ports may run out: then the oracle allows for it.
    tight: bool,
    known: Vec<Known>,
    debts: BTreeMap<(String, Limited), Debt>,
}

/// The back ends that a tenant may use for a service.
struct Choice<'a> {
    compliant: usize,
    members: Vec<&'a Backend>,
    takers: Vec<&'a Backend>,
}

// === impl Signs ===

impl Signs {
    fn of(segment: &Segment) -> Self {
        match segment.transport {
            Transport::Tcp(flags) => Self {
                finished: flags & TCP_FIN != 0,
                reset: flags & TCP_RST != 0,
                beyond_syn: flags & TCP_SYN == 0,
            },
            Transport::Udp | Transport::UdpUnchecked => Self {
                beyond_syn: true,
                ..Self::default()
            },
        }
    }

    fn add(&mut self, other: Self) {
        self.finished |= other.finished;
        self.reset |= other.reset;
        self.beyond_syn |= other.beyond_syn;
    }

    fn any(self) -> bool {
        self != Self::default()
    }
}

fn is_udp(segment: &Segment) -> bool {
    !matches!(segment.transport, Transport::Tcp(_))
}

fn is_opening(segment: &Segment) -> bool {
    matches!(segment.transport, Transport::Tcp(flags) if flags & TCP_SYN != 0 && flags & TCP_ACK == 0)
}

// === impl Oracle ===

impl Oracle {
    /// An oracle that has seen no traffic.
    #[must_use]
    pub fn new(policy: Policy, nat: Vec<IpAddr>, local: Vec<IpAddr>, tight: bool) -> Self {
        Self {
            policy,
            statuses: BTreeMap::new(),
            failed_pools: BTreeSet::new(),
            suspended: BTreeSet::new(),
            nat,
            local,
            tight,
            known: Vec::new(),
            debts: BTreeMap::new(),
        }
    }

    fn status(&self, backend: &str) -> Status {
        self.statuses.get(backend).copied().unwrap_or_default()
    }

    // --- who and where ---

    fn tenant_of(&self, source: IpAddr) -> Option<&Tenant> {
        let mut best: Option<(u8, &Tenant)> = None;
        for tenant in &self.policy.tenants {
            for net in &tenant.sources {
                if net.contains(&source) && best.is_none_or(|(length, _)| net.prefix_len() > length) {
                    best = Some((net.prefix_len(), tenant));
                }
            }
        }
        best.map(|(_, tenant)| tenant)
    }

    fn service_of(&self, segment: &Segment) -> Option<&Service> {
        self.policy.services.iter().find(|service| {
            service.addresses.contains(&segment.to.ip())
                && service.port == segment.to.port()
                && service.udp == is_udp(segment)
        })
    }

    fn is_vip(&self, address: IpAddr) -> bool {
        self.policy.services.iter().any(|service| service.addresses.contains(&address))
    }

    fn is_backend(&self, address: IpAddr) -> bool {
        self.policy.backends().any(|backend| backend.address == address)
    }

    fn is_protected(&self, address: IpAddr) -> bool {
        // The host's own addresses are no part of what is protected.
        let own = self.nat.contains(&address) || self.local.contains(&address);
        !own && self.policy.protected.iter().any(|net: &IpNet| net.contains(&address))
    }

    // --- what the rules say ---

    /// The rule that decides: the highest priority; of equals, one that denies; of those, the first.
    fn rule_for(&self, tenant: &Tenant, service: &Service) -> Option<&Rule> {
        let mut best: Option<&Rule> = None;
        for rule in &self.policy.rules {
            let matches = !rule.shadow
                && rule.tenants.chooses(&tenant.name, &tenant.labels)
                && rule.services.chooses(&service.name, &service.labels);
            if !matches {
                continue;
            }
            let better = match best {
                None => true,
                Some(other) => (rule.priority, rule.deny) > (other.priority, other.deny),
            };
            if better {
                best = Some(rule);
            }
        }
        best
    }

    fn complies(&self, tenant: &Tenant, service: &Service, pool: &Pool, backend: &Backend) -> bool {
        let mut labels: Labels = pool.labels.clone();
        labels.extend(backend.labels.clone());
        self.policy.constraints.iter().all(|constraint| {
            let binds = constraint.tenants.chooses(&tenant.name, &tenant.labels)
                && constraint.services.chooses(&service.name, &service.labels);
            !binds || has(&labels, &constraint.require)
        })
    }

    fn choice(&self, tenant: &Tenant, service: &Service, v4: bool) -> Choice<'_> {
        let mut choice = Choice {
            compliant: 0,
            members: Vec::new(),
            takers: Vec::new(),
        };
        let mut by_pool: Vec<(bool, Vec<&Backend>)> = Vec::new();
        for name in &service.pools {
            let Some(pool) = self.policy.pools.iter().find(|pool| pool.name == *name) else { continue };
            let mut takers = Vec::new();
            for backend in &pool.backends {
                if backend.address.is_ipv4() != v4 || !self.complies(tenant, service, pool, backend) {
                    continue;
                }
                choice.compliant += 1;
                let status = self.status(&backend.name);
                if status.healthy {
                    choice.members.push(backend);
                    if !status.draining && !status.weightless {
                        takers.push(backend);
                    }
                }
            }
            by_pool.push((self.failed_pools.contains(name), takers));
        }
        for failed in [false, true] {
            for (has_failed, takers) in &by_pool {
                if *has_failed == failed && choice.takers.is_empty() {
                    choice.takers.clone_from(takers);
                }
            }
        }
        choice
    }

    /// The answer of the rules, with the prediction filled in as far as it goes; `None` if it is a refusal.
    fn standing<'s>(
        &'s self,
        tenant: &'s Tenant,
        service: &Service,
        v4: bool,
        prediction: &mut Prediction,
    ) -> Option<Choice<'s>> {
        let refuse = |prediction: &mut Prediction, reason| {
            prediction.reasons = BTreeSet::from([reason]);
        };
        prediction.tenant = Some(tenant.name.clone());
        if self.suspended.contains(&tenant.name) {
            refuse(prediction, Reason::Suspended);
            return None;
        }
        let Some(rule) = self.rule_for(tenant, service) else {
            refuse(prediction, Reason::NoRule);
            return None;
        };
        prediction.rule = Some(rule.name.clone());
        if rule.deny {
            refuse(prediction, Reason::RuleDeny);
            return None;
        }
        let choice = self.choice(tenant, service, v4);
        if choice.compliant == 0 {
            refuse(prediction, Reason::NoCompliantBackend);
            return None;
        }
        if choice.members.is_empty() {
            refuse(prediction, Reason::NoHealthyBackend);
            return None;
        }
        Some(choice)
    }

    // --- limits ---

    fn rate(tenant: &Tenant, limited: Limited) -> Option<u64> {
        match limited {
            Limited::Connections => tenant.limits.connections,
            Limited::Packets => tenant.limits.packets,
            Limited::Bytes => tenant.limits.bytes,
            Limited::Responses => tenant.limits.responses,
        }
    }

    /// What units cost at a rate, in fine units.
    fn cost_fine(rate: u64, units: u64) -> u128 {
        ((u128::from(units.min(MOST_BYTES)) * 1_000_000_000) << FINE) / u128::from(rate)
    }

    /// Whether the data path's arithmetic of 2^-20 ns is exact for this charge.
    fn is_exact(rate: u64, units: u64) -> bool {
        let (second, rate) = (1_000_000_000_u128 << 20, u128::from(rate));
        second % rate == 0 && (second / rate * u128::from(units.min(MOST_BYTES))) % (1 << 20) == 0
    }

    fn within(&self, tenant: &Tenant, limited: Limited, units: u64, now_ns: u64) -> Within {
        let Some(rate) = Self::rate(tenant, limited) else { return Within::Yes };
        let largest = match limited {
            Limited::Connections | Limited::Packets => 1,
            Limited::Bytes | Limited::Responses => MOST_BYTES,
        };
        let asked_fine = u128::from(tenant.limits.burst_ms * 1_000_000) << FINE;
        let burst_fine = asked_fine.max(Self::cost_fine(rate, largest));
        let debt = self.debts.get(&(tenant.name.clone(), limited)).copied().unwrap_or_default();
        let ahead_fine = debt.due_fine.saturating_sub(u128::from(now_ns) << FINE);
        let after_fine = ahead_fine + Self::cost_fine(rate, units);
        let mut doubt = debt.slack_fine;
        if !Self::is_exact(rate, units) {
            doubt += ROUNDING;
        }
        if burst_fine != asked_fine && !Self::is_exact(rate, largest) {
            doubt += ROUNDING;
        }
        if after_fine + doubt <= burst_fine {
            Within::Yes
        } else if after_fine > burst_fine + doubt {
            Within::No
        } else {
            Within::Either
        }
    }

    fn charge(&mut self, tenant: &str, limited: Limited, units: u64, now_ns: u64) {
        let Some(rate) = self
            .policy
            .tenants
            .iter()
            .find(|known| known.name == tenant)
            .and_then(|known| Self::rate(known, limited))
        else {
            return;
        };
        let now_fine = u128::from(now_ns) << FINE;
        let debt = self.debts.entry((tenant.to_owned(), limited)).or_default();
        if debt.due_fine + debt.slack_fine <= now_fine {
            // Both words lie in the past, and both start again from now.
            debt.due_fine = now_fine;
            debt.slack_fine = 0;
        } else {
            debt.due_fine = debt.due_fine.max(now_fine);
        }
        debt.due_fine += Self::cost_fine(rate, units);
        if !Self::is_exact(rate, units) {
            debt.slack_fine += ROUNDING;
        }
    }

    /// Narrows the reasons by one limit; says whether the packet may still pass.
    fn limit(&self, prediction: &mut Prediction, reason: Reason, within: Within) -> bool {
        if within != Within::Yes {
            prediction.reasons.insert(reason);
        }
        within != Within::No
    }

    // --- packets ---

    /// What a packet should get.
    #[must_use]
    pub fn predict(&self, direction: u32, segment: &Segment, now_ns: u64) -> Prediction {
        if direction == DIRECTION_EGRESS {
            return self.from_backend(segment, Reason::NotService, 0, now_ns);
        }
        let one = |reason| Prediction {
            reasons: BTreeSet::from([reason]),
            ..Prediction::default()
        };
        if segment.fragment.is_some() {
            return if self.is_vip(segment.to.ip()) {
                one(Reason::FragmentUnsupported)
            } else if self.is_protected(segment.to.ip()) {
                one(Reason::Bypass)
            } else {
                one(Reason::NotService)
            };
        }
        if let Some(service) = self.service_of(segment) {
            return self.to_service(service, segment, now_ns);
        }
        let to = segment.to.ip();
        if self.local.contains(&to) && !self.nat.contains(&to) {
            return one(Reason::NotService);
        }
        let otherwise = if self.is_protected(to) {
            Reason::Bypass
        } else {
            Reason::NotService
        };
        self.from_backend(segment, otherwise, 1, now_ns)
    }

    fn known(&self, segment: &Segment) -> Option<&Known> {
        let udp = is_udp(segment);
        self.known
            .iter()
            .find(|known| known.from == segment.from && known.to == segment.to && known.udp == udp)
    }

    /// What the packet does to its connection, and the back ends that it may go to.
    fn fate<'a>(&self, segment: &Segment, choice: &'a Choice<'a>) -> (Fate, Vec<&'a Backend>) {
        let Some(known) = self.known(segment) else { return (Fate::Opens, choice.takers.clone()) };
        if is_opening(segment) && known.here.any() {
            return (Fate::Reopens, choice.takers.clone());
        }
        let own = choice.members.iter().find(|member| {
            member.name == known.backend && (member.address, member.port) == (known.target.ip(), known.target.port())
        });
        match own {
            Some(backend) => (Fate::Continues, vec![*backend]),
            None => (Fate::Moves, choice.takers.clone()),
        }
    }

    fn to_service(&self, service: &Service, segment: &Segment, now_ns: u64) -> Prediction {
        let mut prediction = Prediction {
            service: Some(service.name.clone()),
            ..Prediction::default()
        };
        let Some(tenant) = self.tenant_of(segment.from.ip()) else {
            prediction.reasons.insert(Reason::UnknownTenant);
            return prediction;
        };
        let Some(choice) = self.standing(tenant, service, segment.to.is_ipv4(), &mut prediction) else {
            return prediction;
        };
        if segment.hop_limit <= 1 && service.forward != Forward::L2Dsr {
            prediction.reasons.insert(Reason::HopLimit);
            return prediction;
        }
        let (fate, backends) = self.fate(segment, &choice);
        if backends.is_empty() {
            prediction.reasons.insert(Reason::NoHealthyBackend);
            return prediction;
        }
        for backend in &backends {
            prediction.backends.insert(backend.name.clone());
            if !self.status(&backend.name).reachable {
                prediction.unreachable.insert(backend.name.clone());
            }
            if service.forward == Forward::Dnat && fate != Fate::Continues && self.is_taken(segment, backend) {
                prediction.taken.insert(backend.name.clone());
            }
        }
        self.limits(tenant, segment, fate, now_ns, &mut prediction);
        if self.tight && fate != Fate::Continues && prediction.reasons.contains(&Reason::Allowed) {
            prediction.reasons.extend([Reason::TableFull, Reason::TranslationExhausted]);
        }
        prediction
    }

    /// Whether another connection of the same client's port goes to the same back end without translation.
    fn is_taken(&self, segment: &Segment, backend: &Backend) -> bool {
        let target = SocketAddr::new(backend.address, backend.port);
        self.known.iter().any(|known| {
            known.has_replies
                && known.seen_as == segment.from
                && known.udp == is_udp(segment)
                && known.target == target
                && known.to != segment.to
        })
    }

    fn limits(&self, tenant: &Tenant, segment: &Segment, fate: Fate, now_ns: u64, prediction: &mut Prediction) {
        if matches!(fate, Fate::Opens | Fate::Reopens) {
            let within = self.within(tenant, Limited::Connections, 1, now_ns);
            if !self.limit(prediction, Reason::ConnectionRate, within) {
                return;
            }
        }
        if fate == Fate::Opens
            && let Some(most) = tenant.limits.concurrent
        {
            let open = self.known.iter().filter(|known| known.tenant == tenant.name).count() as u64;
            if open >= most {
                prediction.reasons.insert(Reason::Concurrency);
                return;
            }
        }
        let within = self.within(tenant, Limited::Packets, 1, now_ns);
        if !self.limit(prediction, Reason::PacketRate, within) {
            return;
        }
        let within = self.within(tenant, Limited::Bytes, segment.network_bytes(), now_ns);
        if !self.limit(prediction, Reason::ByteRate, within) {
            return;
        }
        prediction.reasons.insert(Reason::Allowed);
    }

    /// The connection that a back end's packet answers.
    fn answered(&self, segment: &Segment) -> Option<usize> {
        self.known.iter().position(|known| {
            known.has_replies
                && known.target == segment.from
                && known.seen_as == segment.to
                && known.udp == is_udp(segment)
        })
    }

    fn from_backend(&self, segment: &Segment, otherwise: Reason, hops: u8, now_ns: u64) -> Prediction {
        let mut prediction = Prediction::default();
        let mut one = |reason| {
            prediction.reasons = BTreeSet::from([reason]);
            prediction.clone()
        };
        if segment.fragment.is_some() || !self.is_backend(segment.from.ip()) {
            return one(otherwise);
        }
        let Some(known) = self.answered(segment).map(|index| &self.known[index]) else {
            return one(otherwise);
        };
        let service = self.policy.services.iter().find(|service| {
            service.addresses.contains(&known.to.ip())
                && service.port == known.to.port()
                && service.udp == known.udp
        });
        let tenant = self.policy.tenants.iter().find(|tenant| tenant.name == known.tenant);
        let (Some(service), Some(tenant)) = (service, tenant) else {
            unreachable!("generated policies keep their tenants and services")
        };
        prediction.service = Some(service.name.clone());
        prediction.backends.insert(known.backend.clone());
        if self.standing(tenant, service, known.to.is_ipv4(), &mut prediction).is_none() {
            return prediction;
        }
        if segment.hop_limit <= hops {
            prediction.reasons.insert(Reason::HopLimit);
            return prediction;
        }
        let within = self.within(tenant, Limited::Responses, segment.network_bytes(), now_ns);
        if self.limit(&mut prediction, Reason::ResponseRate, within) {
            prediction.reasons.insert(Reason::Reply);
        }
        prediction
    }

    // --- what happened ---

    /// Takes in what became of a packet.
    pub fn observe(&mut self, segment: &Segment, answer: &Answer, now_ns: u64) {
        match answer.reason {
            Reason::Allowed => self.admitted(segment, answer, now_ns),
            Reason::Reply => {
                let Some(index) = self.answered(segment) else { return };
                let known = &mut self.known[index];
                known.back.add(Signs::of(segment));
                known.back_ns = now_ns;
                let tenant = known.tenant.clone();
                self.charge(&tenant, Limited::Responses, segment.network_bytes(), now_ns);
            }
            Reason::TranslationExhausted | Reason::TableFull => self.stranded(segment),
            _ => {}
        }
    }

    /// A connection that was to go elsewhere and found no room there has lost its way back.
    fn stranded(&mut self, segment: &Segment) {
        let udp = is_udp(segment);
        let own = |known: &&mut Known| known.from == segment.from && known.to == segment.to && known.udp == udp;
        if let Some(known) = self.known.iter_mut().find(own) {
            known.has_replies = false;
            known.back = Signs::default();
            known.back_ns = 0;
        }
    }

    fn admitted(&mut self, segment: &Segment, answer: &Answer, now_ns: u64) {
        let (Some(tenant), Some(backend)) = (&answer.tenant, &answer.backend) else { return };
        let Some(service) = self.service_of(segment) else { return };
        let forward = service.forward;
        let Some(target) = self
            .policy
            .backends()
            .find(|known| known.name == *backend)
            .map(|known| SocketAddr::new(known.address, known.port))
        else {
            return;
        };
        let seen_as = match forward {
            Forward::Nat => {
                let nat = self.nat.iter().find(|nat| nat.is_ipv4() == segment.to.is_ipv4());
                SocketAddr::new(*nat.expect("an address for Nat in each family"), answer.port)
            }
            Forward::Dnat | Forward::L2Dsr => segment.from,
        };
        let signs = Signs::of(segment);
        let udp = is_udp(segment);
        let own = self
            .known
            .iter_mut()
            .find(|known| known.from == segment.from && known.to == segment.to && known.udp == udp);
        let fresh = Known {
            from: segment.from,
            to: segment.to,
            udp,
            tenant: tenant.clone(),
            backend: backend.clone(),
            target,
            seen_as,
            has_replies: forward != Forward::L2Dsr,
            here: signs,
            here_ns: now_ns,
            back: Signs::default(),
            back_ns: 0,
        };
        let opens = match own {
            None => {
                self.known.push(fresh);
                true
            }
            Some(known) => {
                let reopens = is_opening(segment) && known.here.any();
                if reopens || known.target != target || known.backend != *backend {
                    *known = fresh;
                } else {
                    known.tenant.clone_from(tenant);
                    known.here.add(signs);
                    known.here_ns = now_ns;
                }
                reopens
            }
        };
        if opens {
            self.charge(tenant, Limited::Connections, 1, now_ns);
        }
        self.charge(tenant, Limited::Packets, 1, now_ns);
        self.charge(tenant, Limited::Bytes, segment.network_bytes(), now_ns);
    }

    /// Forgets what is idle for too long; says how many connections that were.
    pub fn sweep(&mut self, now_ns: u64, timeouts: &Timeouts) -> usize {
        let before = self.known.len();
        let l2dsr: Vec<(IpAddr, u16)> = self
            .policy
            .services
            .iter()
            .filter(|service| service.forward == Forward::L2Dsr)
            .flat_map(|service| service.addresses.iter().map(|address| (*address, service.port)))
            .collect();
        self.known.retain(|known| {
            let back = if l2dsr.contains(&(known.to.ip(), known.to.port())) {
                known.here
            } else {
                known.back
            };
            let timeout = if known.udp {
                timeouts.udp
            } else if known.here.reset || back.reset || (known.here.finished && back.finished) {
                timeouts.tcp_closing
            } else if (known.here.beyond_syn && back.beyond_syn) || known.here.finished || back.finished {
                timeouts.tcp_established
            } else {
                timeouts.tcp_opening
            };
            now_ns.saturating_sub(known.here_ns.max(known.back_ns)) < timeout.as_nanos() as u64
        });
        before - self.known.len()
    }
}

// === impl Prediction ===

impl Prediction {
    /// Whether it leaves no choice.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        self.reasons.len() == 1
    }

    /// What is wrong with an answer; `None` if it is as predicted.
    #[must_use]
    pub fn contradicts(&self, answer: &Answer) -> Option<String> {
        let differs = |what: &str, is: &Option<String>, should: &Option<String>| {
            (is != should).then(|| format!("{what} is {is:?}, should be {should:?}"))
        };
        if let Some(problem) = differs("tenant", &answer.tenant, &self.tenant)
            .or_else(|| differs("service", &answer.service, &self.service))
            .or_else(|| differs("rule", &answer.rule, &self.rule))
        {
            return Some(problem);
        }
        let mut reasons = self.reasons.clone();
        match &answer.backend {
            None if self.backends.is_empty() => {}
            Some(backend) if self.backends.contains(backend) => {
                if self.unreachable.contains(backend) {
                    reasons = BTreeSet::from([Reason::NoNextHop]);
                } else if self.taken.contains(backend) && reasons.remove(&Reason::Allowed) {
                    reasons.insert(Reason::TranslationExhausted);
                }
            }
            backend => {
                return Some(format!("back end is {backend:?}, should be one of {:?}", self.backends));
            }
        }
        (!reasons.contains(&answer.reason))
            .then(|| format!("reason is {:?}, should be one of {reasons:?}", answer.reason))
    }
}
