//! What a packet should get, worked out naively from the text of the policy: lists are searched from one end to the
//! other, there is no trie, no table, no hash, no fixed-point step. Written from the description of the policy
//! language alone; it shares no code with the compiler, the decision or the parser.
//!
//! It does not know which of several allowed back ends the hash picks, so it predicts the set of them, and is then told
//! which one it was. Its limiters count in 2^-40 ns; where the data path may round to either side of a limit, it allows
//! both answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use enforcer_common::Reason;
use enforcer_common::abi::tally::DIRECTION_EGRESS;
use enforcer_common::decide::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use ipnet::IpNet;

use crate::packet::{Segment, Transport};
use crate::plain::{Backend, Forward, Policy, Service, Tenant};
use crate::world::MTU_BYTES;
use limits::{Debt, Limited, without_room};
use rules::Choice;

mod echo;
mod limits;
mod memory;
mod prediction;
mod rules;
mod wall;

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
    /// Those of them to whose link the packet does not fit.
    pub too_big_for: BTreeSet<String>,
    /// Those of them where another connection has the client's address and port already.
    pub taken: BTreeSet<String>,
    /// Whether the number by which the data path remembers the back end may have lost its meaning.
    pub is_nameless: bool,
    /// What the packet may do to its connection if it is admitted.
    pub fates: BTreeSet<Fate>,
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
    /// What the packet did to its connection; `None` if it was not admitted to a service.
    pub fate: Option<Fate>,
}

/// A connection, as the oracle remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    from: SocketAddr,
    to: SocketAddr,
    udp: bool,
    tenant: String,
    /// The tenant was gone from the policy for a while: if it is back, it is by another number.
    tenant_was_gone: bool,
    /// With whom it counts as open.
    holders: Vec<String>,
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
    /// The back end was gone from the policy for a while: if it is back, it is by another number.
    was_gone: bool,
    /// With whom it counts as closed since the last sweep, although it is still remembered.
    closed_for: Vec<String>,
}

/// What was seen in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    finished: bool,
    reset: bool,
    beyond_syn: bool,
}

/// What a packet does to the connection that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// There was none.
    Opens,
    /// It goes on as it is.
    Continues,
    /// It gets another back end.
    Moves,
    /// The client uses the port of an old connection again.
    Reopens,
}

/// The oracle: a policy, what is known of the world, and what it was told of the traffic so far.
#[derive(Clone, Debug)]
pub struct Oracle {
    policy: Policy,
    /// As it was given, where `policy` has been [`rules::opened`].
    given: Policy,
    /// Of back ends, by name; healthy unless it says otherwise.
    pub statuses: BTreeMap<String, Status>,
    /// Pools that have failed.
    pub failed_pools: BTreeSet<String>,
    /// Tenants that are suspended.
    pub suspended: BTreeSet<String>,
    /// The time of day by which rules open and close, in seconds since 1970 in UTC.
    pub wall_seconds: i64,
    /// Tenants of whom nothing passes, since a quota is used up.
    pub used_up: BTreeSet<String>,
    /// Tenants who may open nothing, since a quota is used up.
    pub used_up_for_new: BTreeSet<String>,
    /// Pools, each with a class that it refuses new connections of.
    pub shedding: BTreeSet<(String, String)>,
    /// New connections per second that tenants are held to, since a pool is contended.
    pub shares: BTreeMap<String, u64>,
    /// From this moment on nothing that is new passes, if the agent does not say otherwise.
    pub new_ends_ns: Option<u64>,
    /// From this moment on nothing at all passes.
    pub all_ends_ns: Option<u64>,
    /// What the link to the clients takes, if that is known.
    pub client_mtu_bytes: Option<u32>,
    nat: Vec<IpAddr>,
    local: Vec<IpAddr>,
    /// Whether tables or ports may run out: then the oracle allows for it.
    tight: bool,
    /// Entries of the flow table that one tenant may have; zero: all.
    share: u64,
    known: Vec<Known>,
    debts: BTreeMap<(String, Limited), Debt>,
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
            policy: rules::opened(&policy),
            given: policy,
            statuses: BTreeMap::new(),
            failed_pools: BTreeSet::new(),
            suspended: BTreeSet::new(),
            wall_seconds: 0,
            used_up: BTreeSet::new(),
            used_up_for_new: BTreeSet::new(),
            shedding: BTreeSet::new(),
            shares: BTreeMap::new(),
            new_ends_ns: None,
            all_ends_ns: None,
            client_mtu_bytes: None,
            nat,
            local,
            tight,
            share: 0,
            known: Vec::new(),
            debts: BTreeMap::new(),
        }
    }

    /// One tenant may have so many entries of the flow table; zero: all.
    #[must_use]
    pub fn with_share(mut self, share: u64) -> Self {
        self.share = share;
        self
    }

    /// The policy that is enforced, as it was given.
    #[must_use]
    pub fn given(&self) -> &Policy {
        &self.given
    }

    /// Another policy is enforced from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = rules::opened(&policy);
        self.given = policy;
        for known in &mut self.known {
            if !self
                .policy
                .backends()
                .any(|backend| backend.name == known.backend)
            {
                known.was_gone = true;
            }
        }
        // Who no longer holds limits begins anew if it ever does again.
        let mut known = std::mem::take(&mut self.known);
        for known in &mut known {
            known.tenant_was_gone |= !self.is_holder(&known.tenant);
            known.holders.retain(|key| self.is_holder(key));
            known.closed_for.retain(|key| self.is_holder(key));
        }
        self.known = known;
        let mut debts = std::mem::take(&mut self.debts);
        debts.retain(|(key, _), _| self.is_holder(key));
        self.debts = debts;
    }

    /// With whom a connection of a tenant to a service counts.
    fn counted_with(&self, tenant: &str, service: &Service) -> Vec<String> {
        let tenant = self.policy.tenants.iter().find(|known| known.name == tenant);
        let holders = tenant.map(|tenant| self.holders(tenant, service));
        holders.into_iter().flatten().map(|holder| holder.key).collect()
    }

    fn service_at(&self, to: SocketAddr, udp: bool) -> Option<&Service> {
        self.policy.services.iter().find(|service| {
            service.addresses.contains(&to.ip()) && service.port == to.port() && service.udp == udp
        })
    }

    fn status(&self, backend: &str) -> Status {
        self.statuses.get(backend).copied().unwrap_or_default()
    }

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
        self.service_at(segment.to, is_udp(segment))
    }

    fn is_vip(&self, address: IpAddr) -> bool {
        self.policy
            .services
            .iter()
            .any(|service| service.addresses.contains(&address))
    }

    fn is_backend(&self, address: IpAddr) -> bool {
        self.policy.backends().any(|backend| backend.address == address)
    }

    fn is_protected(&self, address: IpAddr) -> bool {
        // The host's own addresses are no part of what is protected.
        let own = self.nat.contains(&address) || self.local.contains(&address);
        !own && self
            .policy
            .protected
            .iter()
            .any(|net: &IpNet| net.contains(&address))
    }

    /// What a packet should get.
    #[must_use]
    pub fn predict(&self, direction: u32, segment: &Segment, now_ns: u64) -> Prediction {
        if direction == DIRECTION_EGRESS {
            return self.judge_reply(segment, Reason::NotService, 0, now_ns);
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
        self.judge_reply(segment, otherwise, 1, now_ns)
    }

    fn known(&self, segment: &Segment) -> Option<&Known> {
        let udp = is_udp(segment);
        self.known
            .iter()
            .find(|known| known.from == segment.from && known.to == segment.to && known.udp == udp)
    }

    /// What the packet may do to its connection, and the back ends that it may go to then.
    fn fates<'a>(&self, segment: &Segment, choice: &'a Choice<'a>) -> Vec<(Fate, Vec<&'a Backend>)> {
        let takers = || choice.takers.clone();
        let Some(known) = self.known(segment) else {
            return vec![(Fate::Opens, takers())];
        };
        if is_opening(segment) && known.here.any() {
            return vec![(Fate::Reopens, takers())];
        }
        let own = choice.members.iter().find(|member| {
            member.name == known.backend && SocketAddr::new(member.address, member.port) == known.target
        });
        match own {
            Some(backend) if known.was_gone => {
                vec![(Fate::Continues, vec![*backend]), (Fate::Moves, takers())]
            }
            Some(backend) => vec![(Fate::Continues, vec![*backend])],
            None => vec![(Fate::Moves, takers())],
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
        let Some(choice) = self.standing(tenant, service, segment.to.is_ipv4(), now_ns, &mut prediction)
        else {
            return prediction;
        };
        if segment.hop_limit <= 1 && !matches!(service.forward, Forward::L2Dsr | Forward::Local) {
            prediction.reasons.insert(Reason::HopLimit);
            return prediction;
        }
        let holders = self.holders(tenant, service);
        // The first of them is the tenant.
        let within = self.within(&holders[0], Limited::Packets, 1, now_ns);
        if !self.limit(&mut prediction, Reason::PacketRate, within) {
            return prediction;
        }
        let fates = self.fates(segment, &choice);
        let mut opens = None;
        let is_established = self.known(segment).is_some_and(|known| known.here.beyond_syn);
        for (fate, backends) in &fates {
            if *fate == Fate::Moves && service.resets && !service.udp && is_established {
                prediction.reasons.insert(Reason::BackendIneligible);
                continue;
            }
            if backends.is_empty() {
                prediction.reasons.insert(Reason::NoHealthyBackend);
                continue;
            }
            prediction.fates.insert(*fate);
            opens = Some(*fate);
            for backend in backends {
                self.look_at(service, segment, *fate, backend, &mut prediction);
            }
        }
        let Some(fate) = opens else { return prediction };
        if matches!(fate, Fate::Opens | Fate::Reopens)
            && let Some(reason) = self.nothing_new(tenant, &choice, now_ns)
        {
            prediction.reasons.insert(reason);
            return prediction;
        }
        let passes = holders
            .iter()
            .all(|holder| self.passes(holder, segment, fate, now_ns, &mut prediction));
        let without_room = without_room(service, &holders);
        if passes {
            let reason = if self.has_share(tenant, fate) {
                Reason::Allowed
            } else {
                without_room
            };
            prediction.reasons.insert(reason);
        }
        if self.tight && fate != Fate::Continues && prediction.reasons.contains(&Reason::Allowed) {
            prediction
                .reasons
                .extend([without_room, Reason::TableFull, Reason::TranslationExhausted]);
        }
        prediction
    }

    /// What would become of the packet on its way to a back end.
    fn look_at(
        &self,
        service: &Service,
        segment: &Segment,
        fate: Fate,
        backend: &Backend,
        prediction: &mut Prediction,
    ) {
        prediction.backends.insert(backend.name.clone());
        let sent_bytes = segment.network_bytes() + service.forward.overhead_bytes(backend.address);
        if service.forward == Forward::Local {
            // It goes nowhere.
        } else if !self.status(&backend.name).reachable {
            prediction.unreachable.insert(backend.name.clone());
        } else if sent_bytes > u64::from(MTU_BYTES) {
            prediction.too_big_for.insert(backend.name.clone());
        }
        let establishes = service.forward == Forward::Dnat && fate != Fate::Continues;
        if establishes && self.is_taken(segment, backend) {
            prediction.taken.insert(backend.name.clone());
        }
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

    /// The connection that a back end's packet answers.
    fn answered(&self, segment: &Segment) -> Option<usize> {
        self.known.iter().position(|known| {
            known.has_replies
                && known.target == segment.from
                && known.seen_as == segment.to
                && known.udp == is_udp(segment)
        })
    }

    fn judge_reply(&self, segment: &Segment, otherwise: Reason, hops: u8, now_ns: u64) -> Prediction {
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
        let service = self.service_at(known.to, known.udp);
        let tenant = self
            .policy
            .tenants
            .iter()
            .find(|tenant| tenant.name == known.tenant);
        let service = service.expect("generated policies keep their services");
        prediction.service = Some(service.name.clone());
        prediction.backends.insert(known.backend.clone());
        prediction.is_nameless = known.was_gone;
        let Some(tenant) = tenant.filter(|_| !known.tenant_was_gone) else {
            prediction.reasons.insert(Reason::UnknownTenant);
            return prediction;
        };
        if self
            .standing(tenant, service, known.to.is_ipv4(), now_ns, &mut prediction)
            .is_none()
        {
            return prediction;
        }
        if segment.hop_limit <= hops {
            prediction.reasons.insert(Reason::HopLimit);
            return prediction;
        }
        let is_too_big = |mtu_bytes: u32| segment.network_bytes() > mtu_bytes.into();
        if hops > 0 && self.client_mtu_bytes.is_some_and(is_too_big) {
            prediction.reasons.insert(Reason::TooBig);
            return prediction;
        }
        let passes = self.holders(tenant, service).iter().all(|holder| {
            let within = self.within(holder, Limited::Responses, segment.network_bytes(), now_ns);
            self.limit(&mut prediction, holder.reason(Reason::ResponseRate), within)
        });
        if passes {
            prediction.reasons.insert(Reason::Reply);
        }
        prediction
    }
}
