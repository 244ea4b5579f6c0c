//! ICMP errors about flows, sent on to the end that they concern: in the outer header and in the quote stand the addresses
//! that this end knows.
#![expect(unsafe_code, reason = "map values; each block states need and soundness")]

use enforcer_common::Reason;
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::config::{FORWARD_L2DSR, FORWARD_LOCAL, encapsulates};
use enforcer_common::checksum::Delta;
use enforcer_common::decide::{Decision, Facts as _, UDP, is_v4, reply_key};
use enforcer_common::parse::{Frame, Quoted};

use crate::facts::{self, MapFacts};
use crate::flows;
use crate::hook::Hook;
use crate::rewrite::{Ends, UDP_CHECKSUM, get, network_v4, network_v6, put};
use crate::route;
use crate::send::Sent;
use crate::window::PacketWindow;

/// Offset of the checksum in an ICMP header, of either version.
const ICMP_CHECKSUM: u32 = 2;

/// Sends an error on.
#[inline(always)]
pub(crate) fn send<H: Hook>(
    hook: &H,
    facts: &MapFacts,
    frame: &Frame,
    quoted: &Quoted,
    decision: &Decision,
) -> Result<Sent, Reason> {
    let sent = if decision.to_service {
        to_backend(hook, facts, frame, quoted, decision)
    } else {
        to_client(hook, facts, frame, quoted)
    };
    sent.ok_or(Reason::Internal)
}

#[inline(always)]
fn to_backend<H: Hook>(
    hook: &H,
    facts: &MapFacts,
    frame: &Frame,
    quoted: &Quoted,
    decision: &Decision,
) -> Option<Sent> {
    let flow = facts.found_flow()?;
    let bank = (decision.generation & 1) as u32;
    let client = quoted.key.reversed();
    if decision.forward == FORWARD_LOCAL {
        return Some(Sent::to(H::PASS));
    }
    if encapsulates(decision.forward) {
        return Sent::inside(decision);
    }
    let backend = facts.backend(bank, decision.backend - 1)?;
    let window = hook.window();
    if decision.forward != FORWARD_L2DSR {
        // SAFETY: (need) hash map values are reached through pointers. (soundness) the kernel keeps the memory mapped
        // while the program runs; a plain integer is copied out.
        let port_be = unsafe { (*flow).translated_port_be };
        let nat = flows::nat_source(facts::host()?, frame, decision.forward, port_be);
        // What the back end sent, as it sent it.
        let new = reply_key(&client, backend.address, backend.port_be, nat);
        let from = match &nat {
            // Back ends need a way to the balancer's address only.
            Some((address, _)) => address,
            None => &frame.packet.key.source,
        };
        let ends = Ends {
            source: from,
            destination: &backend.address,
        };
        readdress(&window, frame, quoted, &ends, &new)?;
    }
    Sent::by(hook, frame, &route::hop(backend)?)
}

#[inline(always)]
fn to_client<H: Hook>(hook: &H, facts: &MapFacts, frame: &Frame, quoted: &Quoted) -> Option<Sent> {
    let entry = facts.found_reply()?;
    // SAFETY: as in `to_backend`.
    let record = unsafe { &*entry };
    let window = hook.window();
    let ends = Ends {
        // What is behind the service is no client's business.
        source: &record.forward.destination,
        destination: &record.forward.source,
    };
    readdress(&window, frame, quoted, &ends, &record.forward)?;
    Sent::by(hook, frame, &flows::homeward(record))
}

/// Gives the error new ends and one hop less, and the packet that it quotes another 5-tuple. Checksums follow, but for the
/// quoted TCP header's: most quotes end before it, and nobody looks at it.
#[inline(always)]
fn readdress(
    window: &PacketWindow,
    frame: &Frame,
    quoted: &Quoted,
    ends: &Ends<'_>,
    new: &FlowKey,
) -> Option<()> {
    let arrived = Ends::of(&frame.packet.key);
    let old = &quoted.key;
    let at = quoted.network_offset;
    let addresses = if is_v4(old) {
        Delta::ZERO
            .double_word(old.source[3], new.source[3])
            .double_word(old.destination[3], new.destination[3])
    } else {
        Delta::ZERO
            .quad(&old.source, &new.source)
            .quad(&old.destination, &new.destination)
    };
    let ports = addresses
        .word(old.source_port_be, new.source_port_be)
        .word(old.destination_port_be, new.destination_port_be);
    let mut delta = if is_v4(old) {
        network_v4(window, frame.network_offset, &arrived, ends)?;
        let sum: u16 = get(window, at + 10)?;
        let new_sum = addresses.apply(sum);
        put(window, at + 10, new_sum)?;
        put(window, at + 12, new.source[3])?;
        put(window, at + 16, new.destination[3])?;
        ports.word(sum, new_sum)
    } else {
        // The checksum of ICMPv6 covers the addresses of its own header too.
        let outer = network_v6(window, frame.network_offset, &arrived, ends)?;
        put(window, at + 8, new.source)?;
        put(window, at + 24, new.destination)?;
        ports.and(outer)
    };
    let transport = quoted.transport_offset;
    put(window, transport, new.source_port_be)?;
    put(window, transport + 2, new.destination_port_be)?;
    if old.protocol == UDP {
        let sum: u16 = get(window, transport + UDP_CHECKSUM)?;
        if sum != 0 {
            let new_sum = ports.apply_udp(sum);
            put(window, transport + UDP_CHECKSUM, new_sum)?;
            delta = delta.word(sum, new_sum);
        }
    }
    let checksum = frame.transport_offset + ICMP_CHECKSUM;
    let sum = get(window, checksum)?;
    put(window, checksum, delta.apply(sum))
}
