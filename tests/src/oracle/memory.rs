//! What the oracle remembers of the traffic: the connections, as it was told of them.

use std::net::{IpAddr, SocketAddr};

use enforcer_agent::adapters::dataplane::Timeouts;
use enforcer_common::Reason;

use super::limits::Limited;
use super::{Answer, Fate, Known, Oracle, Signs, is_udp};
use crate::packet::Segment;
use crate::plain::{Forward, Service};

/// A connection in steady use is noted once in so many nanoseconds, as a shift.
const NOTE_SHIFT: u32 = 31;
/// So much longer it may be idle, since nobody knows better when it was used.
const NOTED_LATE_NS: u64 = 5_000_000_000;

impl Known {
    /// A connection in steady use is noted once in a while.
    fn note(&mut self, now_ns: u64) {
        if !self.is_steady() || self.here_ns >> NOTE_SHIFT != now_ns >> NOTE_SHIFT {
            self.here_ns = now_ns;
        }
    }

    /// Whether the client has gone beyond the opening and has not ended anything. UDP has no opening.
    fn is_steady(&self) -> bool {
        self.udp || self.here.beyond_syn && !self.here.finished && !self.here.reset
    }
}

impl Oracle {
    /// Takes in what became of a packet.
    pub fn observe(&mut self, segment: &Segment, answer: &Answer, now_ns: u64) {
        match answer.reason {
            Reason::Allowed => self.admitted(segment, answer, now_ns),
            Reason::Stateless => self.charged_only(segment, answer, now_ns),
            Reason::BackendIneligible => {
                let udp = is_udp(segment);
                let own = |known: &&mut Known| {
                    known.from == segment.from && known.to == segment.to && known.udp == udp
                };
                if let Some(known) = self.known.iter_mut().find(own) {
                    known.here.reset = true;
                }
            }
            Reason::Reply => {
                let Some(index) = self.answered(segment) else {
                    return;
                };
                let known = &mut self.known[index];
                known.back.add(Signs::of(segment));
                known.back_ns = now_ns;
                let (tenant, to, udp) = (known.tenant.clone(), known.to, known.udp);
                let service = self.service_at(to, udp).cloned();
                if let Some(service) = service {
                    let rates = self.rates(&tenant, &service, Limited::Responses);
                    self.charge(&rates, segment.network_bytes(), now_ns);
                }
            }
            Reason::TranslationExhausted | Reason::TableFull => self.stranded(segment),
            _ => {}
        }
    }

    /// A connection that was to go elsewhere and found no room there has lost its way back.
    fn stranded(&mut self, segment: &Segment) {
        let udp = is_udp(segment);
        let own =
            |known: &&mut Known| known.from == segment.from && known.to == segment.to && known.udp == udp;
        if let Some(known) = self.known.iter_mut().find(own) {
            known.has_replies = false;
            known.back = Signs::default();
            known.back_ns = 0;
        }
    }

    /// A packet for whose connection there is no room: it pays like any other, and is not remembered.
    fn charged_only(&mut self, segment: &Segment, answer: &Answer, now_ns: u64) {
        let Some((tenant, service)) = answer.tenant.as_ref().zip(self.service_of(segment).cloned()) else {
            return;
        };
        self.pay(tenant, &service, true, segment.network_bytes(), now_ns);
    }

    fn pay(&mut self, tenant: &str, service: &Service, opens: bool, bytes: u64, now_ns: u64) {
        if opens {
            self.charge(&self.rates(tenant, service, Limited::Connections), 1, now_ns);
        }
        self.charge(&self.rates(tenant, service, Limited::Packets), 1, now_ns);
        self.charge(&self.rates(tenant, service, Limited::Bytes), bytes, now_ns);
    }

    fn admitted(&mut self, segment: &Segment, answer: &Answer, now_ns: u64) {
        let (Some(tenant), Some(backend)) = (&answer.tenant, &answer.backend) else {
            return;
        };
        let Some(service) = self.service_of(segment).cloned() else {
            return;
        };
        let holders = self.counted_with(tenant, &service);
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
            _ => segment.from,
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
            tenant_was_gone: false,
            holders: holders.clone(),
            backend: backend.clone(),
            target,
            seen_as,
            has_replies: !forward.is_direct(),
            here: signs,
            here_ns: now_ns,
            back: Signs::default(),
            back_ns: 0,
            was_gone: false,
            closed_for: Vec::new(),
        };
        let fate = answer.fate.unwrap_or(Fate::Continues);
        match own {
            None => self.known.push(fresh),
            Some(known) if fate == Fate::Continues => {
                known.tenant.clone_from(tenant);
                known.holders = holders;
                known.tenant_was_gone = false;
                known.here.add(signs);
                known.note(now_ns);
            }
            Some(known) => {
                *known = Known {
                    closed_for: std::mem::take(&mut known.closed_for),
                    ..fresh
                };
            }
        }
        let opens = matches!(fate, Fate::Opens | Fate::Reopens);
        self.pay(tenant, &service, opens, segment.network_bytes(), now_ns);
    }

    /// Forgets what is idle for too long, and notes what has ended; says how many connections were forgotten.
    pub fn sweep(&mut self, now_ns: u64, timeouts: &Timeouts) -> usize {
        let before = self.known.len();
        let direct: Vec<(IpAddr, u16)> = self
            .policy
            .services
            .iter()
            .filter(|service| service.forward.is_direct())
            .flat_map(|service| service.addresses.iter().map(|address| (*address, service.port)))
            .collect();
        self.known.retain_mut(|known| {
            let back = if direct.contains(&(known.to.ip(), known.to.port())) {
                known.here
            } else {
                known.back
            };
            let here = known.here;
            let has_ended = !known.udp && (here.reset || back.reset || (here.finished && back.finished));
            known.closed_for = if has_ended {
                known.holders.clone()
            } else {
                Vec::new()
            };
            let timeout = if known.udp {
                timeouts.udp
            } else if has_ended {
                timeouts.tcp_closing
            } else if (here.beyond_syn && back.beyond_syn) || here.finished || back.finished {
                timeouts.tcp_established
            } else {
                timeouts.tcp_opening
            };
            let late_ns = if known.is_steady() && !has_ended {
                NOTED_LATE_NS
            } else {
                0
            };
            now_ns.saturating_sub(known.here_ns.max(known.back_ns)) < timeout.as_nanos() as u64 + late_ns
        });
        before - self.known.len()
    }
}
