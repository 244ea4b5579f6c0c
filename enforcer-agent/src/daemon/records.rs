//! What happened, as audit entries.

use enforcer_common::abi::flow::FlowRecord;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use crate::adapters::dataplane::ClosedFlow;
use crate::pure::audit::{Actor, Change, Entry, Identity, Kind, Names, flow_tuple};
use crate::pure::compile::Directory;

/// Who writes the log.
pub(super) fn identity() -> Identity {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Identity {
        host,
        boot_id: boot_id.trim().to_owned(),
    }
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

/// The clock that the programs read, `CLOCK_MONOTONIC`.
pub(super) fn kernel_now_ns() -> u64 {
    u64::try_from(nanoseconds(ClockId::Monotonic)).unwrap_or(0)
}

/// What must be added to kernel time to get nanoseconds since 1970.
pub(super) fn wall_offset_ns() -> i64 {
    nanoseconds(ClockId::Realtime).saturating_sub(nanoseconds(ClockId::Monotonic))
}

/// An entry about now.
pub(super) fn entry(kind: Kind, generation: u64, digest: Option<String>) -> Entry {
    Entry {
        policy_digest: digest,
        ..Entry::new(kind, Timestamp::now(), kernel_now_ns(), generation)
    }
}

/// An entry about a change that somebody asked for.
pub(super) fn control(
    generation: u64,
    digest: Option<String>,
    actor: Option<Actor>,
    change: Change,
) -> Entry {
    Entry {
        actor,
        change: Some(change),
        ..entry(Kind::Control, generation, digest)
    }
}

/// An entry about a flow that ended.
pub(super) fn flow_closed(closed: &ClosedFlow, directory: &Directory, digest: Option<String>) -> Entry {
    let FlowRecord {
        generation,
        tenant,
        service,
        rule,
        backend,
        packets,
        bytes,
        translated_port_be,
        ..
    } = closed.flow;
    let (reply_packets, reply_bytes) = closed.reply.map_or((0, 0), |reply| (reply.packets, reply.bytes));
    let owned = |name: Option<&str>| name.map(str::to_owned);
    Entry {
        policy_digest: digest,
        tenant: owned(Names::tenant(directory, tenant)),
        service: owned(Names::service(directory, service)),
        rule: rule
            .checked_sub(1)
            .and_then(|index| owned(Names::rule(directory, index))),
        backend: owned(Names::backend(directory, backend)),
        flow: Some(flow_tuple(&closed.key, translated_port_be)),
        packets: Some(packets + reply_packets),
        bytes: Some(bytes + reply_bytes),
        ..Entry::new(Kind::FlowClosed, Timestamp::now(), kernel_now_ns(), generation)
    }
}
