//! Sends a packet that is to go out: in the way of the forward mode, with the VLAN tags of its way.

use enforcer_common::abi::config::{BackendRecord, FORWARD_L2DSR, FORWARD_LOCAL, FORWARD_NAT, encapsulates};
use enforcer_common::continuation::{Continuation, Errand};
use enforcer_common::decide::{Decision, reply_key};
use enforcer_common::parse::Frame;
use enforcer_common::schema::banked;

use crate::flows::nat_source;
use crate::hook::{Hook, is_untagged};
use crate::route::Hop;
use crate::{encapsulate, facts, maps, rewrite, route};

/// A packet that goes out.
pub(crate) struct Sent {
    pub(crate) verdict: u32,
    /// Set if another program is to send it, and then says the verdict.
    pub(crate) next: Option<Continuation>,
    pub(crate) translated_port_be: u16,
    /// Whether there was no room for its flow's entry after all.
    pub(crate) stateless: bool,
}

// === impl Sent ===

impl Sent {
    /// With this verdict.
    #[inline(always)]
    pub(crate) const fn to(verdict: u32) -> Self {
        Self {
            verdict,
            next: None,
            translated_port_be: 0,
            stateless: false,
        }
    }

    /// To the decision's back end, inside another packet, which another program makes.
    #[inline(always)]
    pub(crate) fn inside(decision: &Decision) -> Option<Self> {
        maps::tell(Errand {
            backend: banked((decision.generation & 1) as u32, decision.backend - 1),
            forward: decision.forward,
            ..Errand::NONE
        })?;
        Some(Self {
            next: Some(Continuation::Encapsulate),
            ..Self::to(0)
        })
    }

    /// On its way, its network header being right. Only a frame that has to have other VLAN tags is left to another program.
    #[inline(always)]
    pub(crate) fn by<H: Hook>(hook: &H, frame: &Frame, hop: &Hop<'_>) -> Option<Self> {
        if hop.tags[0] != 0 || !is_untagged(hook, frame) {
            maps::tell_hop(hop)?;
            return Some(Self {
                next: Some(Continuation::Retag),
                ..Self::to(0)
            });
        }
        rewrite::link_addresses(&hook.window(), hop.next_hop_mac, hop.own_mac)?;
        Some(Self::to(hook.send(hop.ifindex)))
    }
}

/// Sends a frame on with other VLAN tags: what [`Sent::by`] leaves to a program of its own, which has the room.
#[inline(always)]
pub(crate) fn send_retagged<H: Hook>(hook: &H) -> Option<u32> {
    let (frame, _) = maps::told()?;
    relink(hook, frame, &maps::told_hop()?)
}

/// Gives the frame the hop's VLAN tags and link-layer addresses, and sends it. Its network header may be another one than it
/// came with, but stands where that stood.
#[inline(always)]
pub(crate) fn relink<H: Hook>(hook: &H, frame: &Frame, hop: &Hop<'_>) -> Option<u32> {
    if hop.tags[0] != 0 || !is_untagged(hook, frame) {
        hook.retag(frame, hop.tags)?;
    }
    rewrite::link_addresses(&hook.window(), hop.next_hop_mac, hop.own_mac)?;
    Some(hook.send(hop.ifindex))
}

/// Sends a packet to its back end in the way of the forward mode. `hash` says the flow hash, if it is asked: the low half at
/// least.
#[inline(always)]
pub(crate) fn deliver<H: Hook>(
    hook: &H,
    frame: &Frame,
    decision: &Decision,
    backend: &BackendRecord,
    translated_port_be: u16,
    hash: impl FnOnce() -> u64,
) -> Option<Sent> {
    if decision.forward == FORWARD_LOCAL {
        return Some(Sent::to(H::PASS));
    }
    let hop = route::hop(backend)?;
    if encapsulates(decision.forward) {
        return inside(hook, frame, decision, backend, hash, &hop);
    }
    if decision.forward != FORWARD_L2DSR {
        readdress(hook, frame, decision, backend, translated_port_be)?;
    }
    Sent::by(hook, frame, &hop)
}

/// Sends the packet inside another one. Only a frame that has VLAN tags, or gets some, is left to another program.
#[inline(always)]
fn inside<H: Hook>(
    hook: &H,
    frame: &Frame,
    decision: &Decision,
    backend: &BackendRecord,
    hash: impl FnOnce() -> u64,
    hop: &Hop<'_>,
) -> Option<Sent> {
    if !is_untagged(hook, frame) || hop.tags[0] != 0 {
        return Sent::inside(decision);
    }
    let forward = decision.forward;
    Some(Sent::to(encapsulate::send_plain(
        hook,
        facts::host()?,
        frame,
        forward,
        &backend.address,
        hash(),
        hop,
    )?))
}

/// Makes the packet one to the back end, in the way of the forward mode.
#[inline(always)]
fn readdress<H: Hook>(
    hook: &H,
    frame: &Frame,
    decision: &Decision,
    backend: &BackendRecord,
    translated_port_be: u16,
) -> Option<()> {
    let nat = if decision.forward == FORWARD_NAT {
        nat_source(facts::host()?, frame, FORWARD_NAT, translated_port_be)
    } else {
        None
    };
    let reply = reply_key(&frame.packet.key, backend.address, backend.port_be, nat);
    hook.translate(frame, &reply.reversed())
}
