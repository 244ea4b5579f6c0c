//! A frame with other addresses: written byte by byte, without a thought for checksums.

use enforcer_agent::pure::replay::{Outer, Sent};
use enforcer_common::abi::address::to_octets;
use enforcer_common::decide::{TCP, UDP, is_v4};
use enforcer_common::parse::{Frame, quoted};

use crate::packet::{Around, endpoint};

/// The frame with its new addresses and VLAN tags, and where its checksums are.
pub(super) fn rewritten(frame: &[u8], parsed: &Frame, how: &Sent) -> (Vec<u8>, Vec<usize>) {
    let (mut out, mut checksums) = readdressed(frame, parsed, how);
    if let Some(tags) = how.tags {
        let tags = tags.chunks(2).filter(|tag| tag[0] != 0).flatten();
        let tags: Vec<u8> = tags.flat_map(|half| half.to_ne_bytes()).collect();
        let old = 12..parsed.network_offset as usize - 2;
        for checksum in &mut checksums {
            *checksum = *checksum + tags.len() - old.len();
        }
        out.splice(old, tags);
    }
    (out, checksums)
}

fn readdressed(frame: &[u8], parsed: &Frame, how: &Sent) -> (Vec<u8>, Vec<usize>) {
    let mut out = frame.to_vec();
    let mut put = |offset: usize, bytes: &[u8]| out[offset..offset + bytes.len()].copy_from_slice(bytes);
    if let Some((destination, source)) = how.link {
        put(0, &destination);
        put(6, &source);
    }
    if let Some(outer) = how.outer {
        return wrapped(out, parsed, how.hops, outer);
    }
    let Some(key) = how.key else {
        return (out, Vec::new());
    };
    let (network, transport) = (parsed.network_offset as usize, parsed.transport_offset as usize);
    let mut checksums = Vec::new();
    let (source, destination) = (to_octets(&key.source), to_octets(&key.destination));
    if is_v4(&parsed.packet.key) {
        put(network + 12, &source[12..]);
        put(network + 16, &destination[12..]);
        put(network + 8, &[frame[network + 8] - how.hops]);
        checksums.push(network + 10);
    } else {
        put(network + 8, &source);
        put(network + 24, &destination);
        put(network + 7, &[frame[network + 7] - how.hops]);
    }
    if let (Some(inside), Some(new)) = (quoted(frame, parsed), how.quoted) {
        let at = inside.network_offset as usize;
        let (source, destination) = (to_octets(&new.source), to_octets(&new.destination));
        if is_v4(&inside.key) {
            put(at + 12, &source[12..]);
            put(at + 16, &destination[12..]);
            checksums.push(at + 10);
        } else {
            put(at + 8, &source);
            put(at + 24, &destination);
        }
        let ports = inside.transport_offset as usize;
        put(ports, &new.source_port_be.to_ne_bytes());
        put(ports + 2, &new.destination_port_be.to_ne_bytes());
        checksums.push(transport + 2);
        if inside.key.protocol == UDP {
            checksums.push(ports + 6);
        }
        return (out, checksums);
    }
    put(transport, &key.source_port_be.to_ne_bytes());
    put(transport + 2, &key.destination_port_be.to_ne_bytes());
    let checksum = transport + if key.protocol == TCP { 16 } else { 6 };
    // A UDP checksum of zero says that there is none, and stays.
    if key.protocol == TCP || frame[checksum..checksum + 2] != [0, 0] {
        checksums.push(checksum);
    }
    (out, checksums)
}

/// An echo request as its answer, and where its checksums are.
pub(super) fn turned_round(frame: &[u8], parsed: &Frame) -> (Vec<u8>, Vec<usize>) {
    let mut out = frame.to_vec();
    let (network, transport) = (parsed.network_offset as usize, parsed.transport_offset as usize);
    let is_v4 = is_v4(&parsed.packet.key);
    let (hop_limit, addresses, bytes) = if is_v4 { (8, 12, 4) } else { (7, 8, 16) };
    let mut swap = |at: usize, bytes: usize| {
        let (one, other) = out[at..at + 2 * bytes].split_at_mut(bytes);
        one.swap_with_slice(other);
    };
    swap(0, 6);
    swap(network + addresses, bytes);
    out[network + hop_limit] = 64;
    out[transport] = if is_v4 { 0 } else { 129 };
    let mut checksums = vec![transport + 2];
    if is_v4 {
        checksums.push(network + 10);
    }
    (out, checksums)
}

/// The frame inside another one: only the checksum behind the hop that was taken is left open.
fn wrapped(mut frame: Vec<u8>, parsed: &Frame, hops: u8, outer: Outer) -> (Vec<u8>, Vec<usize>) {
    let network = parsed.network_offset as usize;
    let is_v4 = is_v4(&parsed.packet.key);
    frame[network + if is_v4 { 8 } else { 7 }] -= hops;
    let around = Around {
        source: endpoint(&outer.source, 0).ip(),
        destination: endpoint(&outer.destination, 0).ip(),
        udp_source_port: outer.udp_source_port,
        flow_label: outer.flow_label,
    };
    let out = around.wrap(&frame, network);
    let moved_by = out.len() - frame.len();
    let checksums = if is_v4 {
        vec![network + moved_by + 10]
    } else {
        Vec::new()
    };
    (out, checksums)
}
