//! Captures: packets that somebody wants to see, one capture at a time.
//!
//! The programs copy what the map `CAPTURE` asks for, and cease at its deadline whether or not the agent lives. The ring
//! buffer is the only queue: it is emptied by whoever reads, and what finds it full is counted. Who looked at what, and at
//! how much of it, is in the audit log.

use enforcer_common::Reason;
use enforcer_common::abi::capture::{CaptureRecord, CapturedRecord};
use enforcer_common::abi::reason::Effect;
use enforcer_common::abi::tally::DIRECTION_EGRESS;
use jiff::Timestamp;
use tracing::warn;

use super::answer::{internal, not_found};
use super::core::Core;
use crate::adapters::dataplane::{self, DataplaneError};
use crate::api::reply::{CaptureBeginReply, CaptureEndReply, CaptureReadReply, CapturedPacket, FrameBytes};
use crate::api::{
    Actor, ApiError, CAPTURE_BYTES, CaptureOrder, ErrorCode, MAX_CAPTURE_PACKETS, MAX_CAPTURE_SECONDS,
    MIN_SNAP_BYTES,
};
use crate::pure::audit::{Change, Direction, Entry, Kind, Names, name_or_number, named};

/// Packets that one CPU captures in each window at most: 477 a second, so that a flood costs next to nothing, and a
/// burst is whole all the same.
const PACKETS_PER_WINDOW: u32 = 64;
/// Most packets in one reply.
const PACKETS_PER_READ: usize = 1000;
/// A capture that nobody reads for this long is ended, so that the next one need not wait.
const UNREAD_NS: u64 = 10_000_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// Key of the warning that a capture could not be ended: the next fold tries again.
const CAPTURE: &str = "capture";

/// The capture that is under way, if there is one.
#[derive(Clone, Debug, Default)]
pub(super) struct Captures {
    serial: u32,
    current: Option<Capture>,
}

#[derive(Clone, Debug)]
struct Capture {
    serial: u32,
    order: CaptureOrder,
    actor: Actor,
    until_ns: u64,
    /// When somebody read last.
    read_ns: u64,
    /// Packets that were read.
    taken: u32,
    /// The counters when it began.
    before: dataplane::Captures,
}

impl Core {
    pub(super) async fn begin_capture(
        &mut self,
        order: &CaptureOrder,
        actor: Actor,
    ) -> Result<CaptureBeginReply, ApiError> {
        self.look_at_capture();
        if let Some(current) = &self.captures.current {
            let message = format!(
                "{} captures already; it ends at {}",
                current.actor,
                self.wall_time(current.until_ns).map_err(internal)?
            );
            return Err(ApiError::new(ErrorCode::Busy, message));
        }
        let now_ns = self.clock.monotonic_ns();
        let mut record = self.capture_record(order)?;
        record.until_ns = now_ns.saturating_add(u64::from(order.seconds) * NS_PER_SECOND);
        let until = self.wall_time(record.until_ns).map_err(internal)?;
        self.captures.serial = self.captures.serial.wrapping_add(1);
        record.serial = self.captures.serial;
        // What an earlier one left behind.
        while self.dataplane.next_captured().is_some() {}
        let before = self.dataplane.captures().map_err(internal)?;
        self.dataplane.set_capture(&record).map_err(internal)?;
        let change = Change {
            what: "captureBegin".to_owned(),
            to: Some(described(order)),
            ..Change::default()
        };
        if let Err(error) = self.record_control(actor, change).await {
            self.cease_capture().map_err(internal)?;
            let message = format!("nothing was captured, since the audit log could not be written: {error}");
            return Err(internal(message));
        }
        self.captures.current = Some(Capture {
            serial: record.serial,
            order: order.clone(),
            actor,
            until_ns: record.until_ns,
            read_ns: now_ns,
            taken: 0,
            before,
        });
        Ok(CaptureBeginReply {
            serial: record.serial,
            until,
        })
    }

    /// What the programs are to be asked, but for its deadline and number.
    fn capture_record(&self, order: &CaptureOrder) -> Result<CaptureRecord, ApiError> {
        let refused = |message: String| ApiError::new(ErrorCode::Refused, message);
        for (what, value, least, most) in [
            ("packets", order.count, 1, MAX_CAPTURE_PACKETS),
            ("seconds", order.seconds, 1, MAX_CAPTURE_SECONDS),
            (
                "bytes of each packet",
                order.snap_bytes,
                MIN_SNAP_BYTES,
                CAPTURE_BYTES,
            ),
        ] {
            if !(least..=most).contains(&value) {
                return Err(refused(format!(
                    "a capture is of {least} to {most} {what}, not {value}"
                )));
            }
        }
        let mut record = CaptureRecord {
            snap_bytes: order.snap_bytes,
            packets_per_window: PACKETS_PER_WINDOW,
            ..CaptureRecord::ZERO
        };
        for name in &order.reasons {
            let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
            match reason.map(|reason| (*reason as u32, reason.effect())) {
                Some((number, Effect::Refused | Effect::Passed)) => record.reasons |= 1 << number,
                Some((_, Effect::Forwarded)) => {
                    return Err(refused(format!(
                        "packets that get `{name}` are sent on and cannot be captured"
                    )));
                }
                None => {
                    return Err(refused(format!(
                        "there is no reason `{name}`; docs/reasons.md has them"
                    )));
                }
            }
        }
        if record.reasons == 0 {
            return Err(refused(
                "name at least one reason to capture packets for".to_owned(),
            ));
        }
        if let Some(name) = &order.tenant {
            let missing = || not_found("tenant", name, "tenant list");
            let mut tenants = self.directory.tenants.iter();
            (record.tenant, _) = tenants
                .find(|(_, each)| *each == name)
                .ok_or_else(missing)
                .map(|(slot, each)| (*slot, each))?;
        }
        if let Some(name) = &order.service {
            let services = self.directory.services.iter();
            let slots = services
                .filter(|(_, service)| service.name == *name)
                .map(|(slot, _)| slot + 1);
            for (place, slot) in record.services.iter_mut().zip(slots) {
                *place = slot;
            }
            if record.services[0] == 0 {
                return Err(not_found("service", name, "service list"));
            }
        }
        Ok(record)
    }

    pub(super) async fn read_capture(&mut self, serial: u32) -> Result<CaptureReadReply, ApiError> {
        let now_ns = self.clock.monotonic_ns();
        let Some(mut capture) = self.captures.current.take_if(|current| current.serial == serial) else {
            return Err(no_such_capture(serial));
        };
        capture.read_ns = now_ns;
        // Asked before the ring buffer is: what comes in between is found the next time.
        let is_over = now_ns > capture.until_ns;
        let mut packets = Vec::new();
        let mut is_empty = false;
        while packets.len() < PACKETS_PER_READ && capture.taken < capture.order.count {
            let Some(captured) = self.dataplane.next_captured() else {
                is_empty = true;
                break;
            };
            match self.captured_packet(&captured) {
                Ok(packet) if capture.serial == captured.serial && capture.order.asks_for(&packet) => {
                    packets.push(packet);
                    capture.taken += 1;
                }
                // Of another capture, or seen while the order was being written.
                Ok(_) => {}
                Err(error) => warn!(%error, "a captured packet"),
            }
        }
        let is_full = capture.taken >= capture.order.count;
        self.captures.current = Some(capture);
        let ended = if is_full || is_over && is_empty {
            Some(self.end_capture(serial).await?)
        } else {
            None
        };
        Ok(CaptureReadReply { packets, ended })
    }

    pub(super) async fn end_capture(&mut self, serial: u32) -> Result<CaptureEndReply, ApiError> {
        if self
            .captures
            .current
            .as_ref()
            .is_none_or(|current| current.serial != serial)
        {
            return Err(no_such_capture(serial));
        }
        let Some((entry, reply)) = self.close_capture(None).map_err(internal)? else {
            return Err(no_such_capture(serial));
        };
        self.audit.record_synced(entry).await.map_err(internal)?;
        Ok(reply)
    }

    /// Ends a capture that nobody reads any more.
    pub(super) fn look_at_capture(&mut self) {
        let now_ns = self.clock.monotonic_ns();
        let is_read = |current: &Capture| now_ns.saturating_sub(current.read_ns) < UNREAD_NS;
        if self.captures.current.as_ref().is_none_or(is_read) {
            return;
        }
        self.abandon_capture("nobody read it any more");
    }

    /// Ends the capture, if there is one, without its reader.
    pub(super) fn abandon_capture(&mut self, why: &str) {
        if self.captures.current.is_none() {
            return;
        }
        match self.close_capture(Some(why)) {
            Ok(Some((entry, _))) => {
                self.failing.remove(CAPTURE);
                self.audit.record(entry);
            }
            Ok(None) => {}
            Err(error) => drop(self.failing.insert(CAPTURE, error.to_string())),
        }
    }

    fn cease_capture(&mut self) -> Result<(), DataplaneError> {
        self.dataplane.set_capture(&CaptureRecord::ZERO)
    }

    /// Has the programs cease, and says how it was; after an error the capture is still there.
    fn close_capture(
        &mut self,
        why: Option<&str>,
    ) -> Result<Option<(Entry, CaptureEndReply)>, DataplaneError> {
        self.cease_capture()?;
        let now = self.dataplane.captures()?;
        let Some(capture) = self.captures.current.take() else {
            return Ok(None);
        };
        let reply = CaptureEndReply {
            packets: capture.taken.into(),
            sampled_out: now.sampled_out.saturating_sub(capture.before.sampled_out),
            lost: now.lost.saturating_sub(capture.before.lost),
        };
        let change = Change {
            what: "captureEnd".to_owned(),
            from: Some(described(&capture.order)),
            to: Some(format!("{} sampled out, {} lost", reply.sampled_out, reply.lost)),
            causes: why.map(str::to_owned).into_iter().collect(),
        };
        let entry = Entry {
            actor: Some(capture.actor),
            packets: Some(reply.packets),
            change: Some(change),
            ..self.entry(Kind::Control)
        };
        Ok(Some((entry, reply)))
    }

    fn wall_time(&self, monotonic_ns: u64) -> Result<Timestamp, jiff::Error> {
        Timestamp::from_nanosecond(i128::from(monotonic_ns) + i128::from(self.clock.wall_offset_ns()))
    }

    fn captured_packet(&self, captured: &CapturedRecord) -> Result<CapturedPacket, jiff::Error> {
        let names = &self.directory;
        let tenant = captured.tenant;
        let its_interface = self
            .attachments
            .iter()
            .find(|attached| attached.ifindex == captured.ifindex);
        let frame = captured.frame.iter().take(captured.captured_bytes as usize);
        Ok(CapturedPacket {
            time: self.wall_time(captured.now_ns)?,
            direction: match captured.direction {
                DIRECTION_EGRESS => Direction::Egress,
                _ => Direction::Ingress,
            },
            interface: its_interface.map_or_else(
                || name_or_number(None, captured.ifindex),
                |attached| attached.interface.clone(),
            ),
            reason: Reason::from_code(captured.reason).map_or_else(
                || name_or_number(None, captured.reason),
                |reason| reason.name().to_owned(),
            ),
            tenant: (tenant != 0).then(|| name_or_number(Names::tenant(names, tenant), tenant)),
            service: named(captured.service, |slot| Names::service(names, slot)),
            rule: named(captured.rule, |index| Names::rule(names, index)),
            generation: captured.generation,
            frame_bytes: captured.frame_bytes,
            frame: FrameBytes(frame.copied().collect()),
        })
    }
}

// === impl CaptureOrder ===

impl CaptureOrder {
    fn asks_for(&self, packet: &CapturedPacket) -> bool {
        let is = |wanted: &Option<String>, has: &Option<String>| wanted.is_none() || wanted == has;
        self.reasons.contains(&packet.reason)
            && is(&self.tenant, &packet.tenant)
            && is(&self.service, &packet.service)
    }
}

fn no_such_capture(serial: u32) -> ApiError {
    let message =
        format!("capture {serial} is over: its time was up, nobody read it, or the agent began anew");
    ApiError::new(ErrorCode::NotFound, message)
}

/// An order in words, for the audit log.
fn described(order: &CaptureOrder) -> String {
    let CaptureOrder {
        reasons,
        tenant,
        service,
        count,
        seconds,
        snap_bytes,
    } = order;
    let reasons: Vec<&str> = reasons.iter().map(String::as_str).collect();
    let of = tenant
        .as_ref()
        .map_or(String::new(), |tenant| format!(" of {tenant}"));
    let to = service
        .as_ref()
        .map_or(String::new(), |service| format!(" to {service}"));
    format!(
        "{}{of}{to}, {count} packets in {seconds} s, {snap_bytes} bytes of each",
        reasons.join(",")
    )
}
