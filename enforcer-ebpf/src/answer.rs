//! Answers to packets that are refused: a TCP reset, or an ICMP error that quotes the packet; and to echo requests. They go
//! out by the interface that the packet came in by, to whoever sent it there.

use enforcer_common::Reason;
use enforcer_common::checksum::Delta;
use enforcer_common::decide::answer::{self, Answer};
use enforcer_common::decide::{TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, is_v4};
use enforcer_common::encapsulation::{OUTER_HOP_LIMIT, V4_HEADER_BYTES, V6_HEADER_BYTES};
use enforcer_common::parse::{Frame, ICMP, ICMPV6};

use crate::facts::{MapFacts, pay};
use crate::header::{NetworkHeader, Sum};
use crate::hook::{Hook, Room};
use crate::maps;
use crate::rewrite::{get, link_addresses, put};
use crate::send::Sent;
use crate::window::PacketWindow;

const TCP_HEADER_BYTES: u32 = 20;
const ICMP_HEADER_BYTES: u32 = 8;
/// ICMP type of the answer to an echo request.
const ECHO_REPLY: u16 = 0;
/// ICMPv6 type of the same.
const ECHO_REPLY_V6: u16 = 129;
/// What of the transport header an ICMP error quotes at least: ports, and a TCP sequence number.
const QUOTED_TRANSPORT_BYTES: u32 = 8;
/// The most that is quoted: behind many extension headers the ports are left out.
const MAX_QUOTED_BYTES: u32 = 128;

/// Answers the packet that the errand is about; `None` if there is nothing to answer, or no more answers are due.
#[inline(always)]
pub(crate) fn send<H: Hook>(hook: &H) -> Option<u32> {
    let (frame, errand) = maps::told()?;
    let charge = answer::charge(&MapFacts::new(), errand.tenant, errand.now_ns)?;
    let v4 = is_v4(&frame.packet.key);
    match Answer::from_code(errand.answer) {
        Answer::None => return None,
        Answer::Reset => reset(hook, frame, v4)?,
        Answer::Prohibited if v4 => icmp(hook, frame, v4, 3, 13, 0)?,
        Answer::Prohibited => icmp(hook, frame, v4, 1, 1, 0)?,
        Answer::TooBig if v4 => icmp(hook, frame, v4, 3, 4, errand.fitting_bytes & 0xffff)?,
        Answer::TooBig => icmp(hook, frame, v4, 2, 0, errand.fitting_bytes)?,
    }
    let (own, sender) = frame.macs();
    link_addresses(&hook.window(), &sender, &own)?;
    pay(&charge, errand.now_ns);
    Some(hook.send(hook.arrived_by()))
}

/// Sends an echo request back as its answer: the same frame with its ends swapped. Of the checksums only what changes
/// counts: swapped addresses add up to the same.
#[inline(always)]
pub(crate) fn echo<H: Hook>(hook: &H, frame: &Frame) -> Result<Sent, Reason> {
    match turn_round(&hook.window(), frame) {
        Some(()) => Ok(Sent::to(hook.send(hook.arrived_by()))),
        None => Err(Reason::Internal),
    }
}

#[inline(always)]
fn turn_round(window: &PacketWindow, frame: &Frame) -> Option<()> {
    let (network, key) = (frame.network_offset, &frame.packet.key);
    let hop_limit = OUTER_HOP_LIMIT as u16;
    let kind = if is_v4(key) {
        let old: u16 = get(window, network + 8)?;
        let new = (hop_limit << 8 | u16::from_be(old) & 0xff).to_be();
        let sum: u16 = get(window, network + 10)?;
        put(window, network + 8, new)?;
        put(window, network + 10, Delta::ZERO.word(old, new).apply(sum))?;
        put(window, network + 12, [key.destination[3], key.source[3]])?;
        ECHO_REPLY
    } else {
        // Two bytes: of one alone the compiler makes a bounds check that the verifier does not follow.
        let next_header = u16::from_be(get(window, network + 6)?) & 0xff00;
        put(window, network + 6, (next_header | hop_limit).to_be())?;
        put(window, network + 8, [key.destination, key.source])?;
        ECHO_REPLY_V6
    };
    let (old, sum): (u16, u16) = get::<[u16; 2]>(window, frame.transport_offset)?.into();
    let new = (kind << 8).to_be();
    let sum = Delta::ZERO.word(old, new).apply(sum);
    put(window, frame.transport_offset, [new, sum])?;
    let (own, sender) = frame.macs();
    link_addresses(window, &sender, &own)
}

/// The network header of an answer: from the address that the packet was sent to.
#[inline(always)]
fn back(frame: &Frame, protocol: u8, payload_bytes: u32) -> NetworkHeader {
    NetworkHeader {
        source: frame.packet.key.destination,
        destination: frame.packet.key.source,
        class: 0,
        flow_label: 0,
        protocol,
        payload_bytes,
    }
}

/// Writes a network header and answers the offset behind it.
#[inline(always)]
fn put_network(window: &PacketWindow, offset: u32, header: &NetworkHeader, v4: bool) -> Option<u32> {
    if v4 {
        put(window, offset, header.v4())?;
        Some(offset + V4_HEADER_BYTES)
    } else {
        put(window, offset, header.v6())?;
        Some(offset + V6_HEADER_BYTES)
    }
}

/// Makes the segment a reset to its sender. Options and extension headers are left behind.
#[inline(always)]
fn reset<H: Hook>(hook: &H, frame: &Frame, v4: bool) -> Option<()> {
    let window = hook.window();
    let segment: [u32; 4] = get(&window, frame.transport_offset)?;
    let [ports, sequence, acknowledged, rest] = segment.map(u32::from_be);
    let flags = (rest >> 16) as u8;
    let headers_bytes = frame.transport_offset - frame.network_offset + (rest >> 28) * 4;
    let (sequence, acknowledged, answer_flags) = if flags & TCP_ACK != 0 {
        (acknowledged, 0, TCP_RST)
    } else {
        let opens_and_ends = u32::from(flags & TCP_SYN != 0) + u32::from(flags & TCP_FIN != 0);
        let length = (frame.packet.bytes - headers_bytes).wrapping_add(opens_and_ends);
        (0, sequence.wrapping_add(length), TCP_RST | TCP_ACK)
    };
    let header = back(frame, TCP as u8, TCP_HEADER_BYTES);
    let ports = ports.rotate_left(16);
    let rest = (TCP_HEADER_BYTES / 4) << 28 | u32::from(answer_flags) << 16;
    let sum = header
        .pseudo_sum(v4)
        .word(ports)
        .word(sequence)
        .word(acknowledged)
        .word(rest);
    let transport = put_network(&window, frame.network_offset, &header, v4)?;
    let answer = [ports, sequence, acknowledged, rest, sum.checksum() << 16];
    put(&window, transport, answer.map(u32::to_be))?;
    hook.cut_to(transport + TCP_HEADER_BYTES)
}

/// Puts the packet, as far as it is quoted, behind the header of an ICMP error.
#[inline(always)]
fn icmp<H: Hook>(hook: &H, frame: &Frame, v4: bool, kind: u32, code: u32, parameter: u32) -> Option<()> {
    let whole = frame.transport_offset - frame.network_offset + QUOTED_TRANSPORT_BYTES;
    let quoted = if whole < MAX_QUOTED_BYTES {
        whole
    } else {
        MAX_QUOTED_BYTES
    };
    let grow = ICMP_HEADER_BYTES + if v4 { V4_HEADER_BYTES } else { V6_HEADER_BYTES };
    hook.make_room(frame, grow, Room::Answer)?;
    let window = hook.window();
    let protocol = if v4 { ICMP } else { ICMPV6 };
    let header = back(frame, protocol as u8, ICMP_HEADER_BYTES + quoted);
    let message = put_network(&window, frame.network_offset, &header, v4)?;
    let first = (kind << 24) | (code << 16);
    let mut sum = if v4 { Sum::ZERO } else { header.pseudo_sum(v4) };
    sum = sum.word(first).word(parameter);
    let quote = message + ICMP_HEADER_BYTES;
    for word in 0..MAX_QUOTED_BYTES / 4 {
        if word * 4 < quoted {
            sum = sum.word(u32::from_be(get(&window, quote + word * 4)?));
        }
    }
    put(
        &window,
        message,
        [(first | sum.checksum()).to_be(), parameter.to_be()],
    )?;
    hook.cut_to(quote + quoted)
}
