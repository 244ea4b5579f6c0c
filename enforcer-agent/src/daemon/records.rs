//! What happened, as audit entries.

use enforcer_common::abi::flow::FlowRecord;

use crate::adapters::dataplane::ClosedFlow;
use crate::ports::Clock;
use crate::pure::audit::{Entry, Identity, Kind, Names, flow_tuple};
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

/// An entry about a flow that ended.
pub(super) fn flow_closed(
    closed: &ClosedFlow,
    directory: &Directory,
    digest: Option<String>,
    clock: &dyn Clock,
) -> Entry {
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
        ..Entry::new(Kind::FlowClosed, clock.wall(), clock.monotonic_ns(), generation)
    }
}
