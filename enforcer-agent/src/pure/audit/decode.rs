//! From the programs' events to entries.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use enforcer_common::Reason;
use enforcer_common::abi::address::{self, Address, FlowKey};
use enforcer_common::abi::event::{EVENT_FLOW_MOVED, EVENT_FLOW_OPENED, EVENT_REFUSED, EventRecord};
use enforcer_common::abi::tally::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use enforcer_common::decide::{TCP, UDP};
use jiff::Timestamp;
use thiserror::Error;

use super::{Direction, Entry, FlowTuple, Kind, Protocol, Shadow};
use crate::pure::compile::Directory;

/// From slots to names, as they were under the generation that decided.
pub trait Names {
    /// The tenant in a slot.
    fn tenant(&self, slot: u32) -> Option<&str>;
    /// The service in a slot.
    fn service(&self, slot: u32) -> Option<&str>;
    /// The back end in a slot.
    fn backend(&self, slot: u32) -> Option<&str>;
    /// The rule with a number.
    fn rule(&self, number: u32) -> Option<&str>;
}

/// An event that this agent does not understand: the programs are of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "an event of the kernel programs has {field} {value}, which this agent does not know: load its own programs"
)]
pub struct DecodeError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
}

/// The entry for one event.
///
/// `wall_offset_ns` is what must be added to kernel monotonic time to get nanoseconds since 1970. A slot that has no
/// name any more is given by its number, such as `#7`.
///
/// # Errors
/// [`DecodeError`] for a code that is not declared in `enforcer-common`.
pub fn decision(
    event: &EventRecord,
    names: &impl Names,
    policy_digest: Option<String>,
    wall_offset_ns: i64,
) -> Result<Entry, DecodeError> {
    let unknown = |field, value: u32| DecodeError {
        field,
        value: value.into(),
    };
    let kind = match event.kind {
        EVENT_FLOW_OPENED => Kind::FlowOpened,
        EVENT_FLOW_MOVED => Kind::FlowMoved,
        EVENT_REFUSED => Kind::Refused,
        other => return Err(unknown("kind", other)),
    };
    let direction = match event.direction {
        DIRECTION_INGRESS => Direction::Ingress,
        DIRECTION_EGRESS => Direction::Egress,
        other => return Err(unknown("direction", other)),
    };
    let reason = |code| Reason::from_code(code).map(|reason| reason.name().to_owned());
    let wall_ns = i128::from(event.now_ns) + i128::from(wall_offset_ns);
    let time = Timestamp::from_nanosecond(wall_ns).map_err(|_| DecodeError {
        field: "time",
        value: event.now_ns,
    })?;
    let shadow = match event.shadow_rule.checked_sub(1) {
        None => None,
        Some(index) => Some(Shadow {
            rule: name_or_number(names.rule(index), index),
            reason: reason(event.shadow_reason).ok_or(unknown("shadow reason", event.shadow_reason))?,
        }),
    };
    Ok(Entry {
        policy_digest,
        direction: Some(direction),
        reason: Some(reason(event.reason).ok_or(unknown("reason", event.reason))?),
        tenant: (event.tenant != 0).then(|| name_or_number(names.tenant(event.tenant), event.tenant)),
        service: named(event.service, |slot| names.service(slot)),
        rule: named(event.rule, |index| names.rule(index)),
        backend: named(event.backend, |slot| names.backend(slot)),
        flow: Some(flow_tuple(&event.key, event.translated_port_be)),
        packets: Some(1),
        bytes: Some(event.bytes.into()),
        shadow,
        ..Entry::new(kind, time, event.now_ns, event.generation)
    })
}

/// The name for a slot or index that is held plus one, zero being none.
pub fn named<'a>(plus_one: u32, name: impl Fn(u32) -> Option<&'a str>) -> Option<String> {
    plus_one
        .checked_sub(1)
        .map(|slot| name_or_number(name(slot), slot))
}

/// The name of what has a number; the number, such as `#7`, if it has no name any more.
pub fn name_or_number(name: Option<&str>, number: u32) -> String {
    name.map_or_else(|| format!("#{number}"), str::to_owned)
}

/// A flow key in the terms of people. A translated port of zero is none.
#[must_use]
pub fn flow_tuple(key: &FlowKey, translated_port_be: u16) -> FlowTuple {
    let socket =
        |address: &Address, port_be: u16| SocketAddr::new(ip_address(address), u16::from_be(port_be));
    FlowTuple {
        from: socket(&key.source, key.source_port_be),
        to: socket(&key.destination, key.destination_port_be),
        protocol: match key.protocol {
            TCP => Some(Protocol::Tcp),
            UDP => Some(Protocol::Udp),
            _ => None,
        },
        translated_port: (translated_port_be != 0).then(|| u16::from_be(translated_port_be)),
    }
}

fn ip_address(address: &Address) -> IpAddr {
    let v6 = Ipv6Addr::from(address::to_octets(address));
    if address::is_v4(address) {
        v6.to_canonical()
    } else {
        IpAddr::V6(v6)
    }
}

impl Names for Directory {
    fn tenant(&self, slot: u32) -> Option<&str> {
        self.tenants.get(&slot).map(String::as_str)
    }

    fn service(&self, slot: u32) -> Option<&str> {
        self.services.get(&slot).map(|service| service.name.as_str())
    }

    fn backend(&self, slot: u32) -> Option<&str> {
        self.backends.get(&slot).map(|backend| backend.name.as_str())
    }

    fn rule(&self, number: u32) -> Option<&str> {
        self.rules.get(&number).map(|rule| rule.name.as_str())
    }
}
