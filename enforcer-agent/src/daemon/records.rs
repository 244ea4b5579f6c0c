//! What happened, as audit entries.

use enforcer_common::abi::flow::FlowRecord;
use tracing::warn;

use super::core::Core;
use crate::adapters::audit_file::AuditError;
use crate::adapters::dataplane::ClosedFlow;
use crate::ports::Clock;
use crate::pure::audit::{self, Actor, Change, Entry, Identity, Kind, Names, flow_tuple};
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

impl Core {
    /// An entry about now.
    pub(super) fn entry(&self, kind: Kind) -> Entry {
        let (time, kernel_time_ns) = (self.clock.wall(), self.clock.monotonic_ns());
        Entry {
            policy_digest: self.digest(),
            ..Entry::new(kind, time, kernel_time_ns, self.generation())
        }
    }

    pub(super) fn note(&mut self, kind: Kind, backend: Option<String>, change: Change) {
        let mut entry = self.entry(kind);
        entry.backend = backend;
        entry.change = Some(change);
        self.audit.record(entry);
    }

    /// What the kernel only counted, or could not hand over.
    pub(super) fn record_unrecorded(&mut self) {
        let news = match self.unrecorded.look(&*self.dataplane, &self.directory) {
            Ok(news) => news,
            Err(error) => {
                warn!(%error, "counters");
                return;
            }
        };
        for news in news {
            for (kind, count, what) in [
                (Kind::Aggregated, news.aggregated, "kernelWindow"),
                (Kind::Lost, news.lost, "kernelRingBuffer"),
            ] {
                if count == 0 {
                    continue;
                }
                let mut entry = self.entry(kind);
                entry.direction = Some(news.direction);
                entry.reason = Some(news.reason.name().to_owned());
                entry.tenant = Names::tenant(&self.directory, news.tenant).map(str::to_owned);
                entry.count = Some(count);
                entry.change = Some(Change {
                    what: what.to_owned(),
                    ..Change::default()
                });
                self.audit.record(entry);
            }
        }
    }

    /// Takes up to `limit` events of the programs; how many there were.
    pub(super) fn take_kernel_events(&mut self, limit: usize) -> usize {
        let offset_ns = self.clock.wall_offset_ns();
        for taken in 0..limit {
            let Some(event) = self.dataplane.next_event() else {
                return taken;
            };
            let digest = self.digest_of(event.generation);
            match audit::decision(&event, &self.directory, digest, offset_ns) {
                Ok(entry) => self.audit.record(entry),
                Err(error) => {
                    self.failing.insert("kernel events", error.to_string());
                }
            }
        }
        limit
    }

    /// Writes down that a peer changed something, and waits until that is on the disk.
    pub(super) async fn record_control(&self, actor: Actor, change: Change) -> Result<(), AuditError> {
        let entry = Entry {
            actor: Some(actor),
            change: Some(change),
            ..self.entry(Kind::Control)
        };
        self.audit.record_synced(entry).await.map(|_| ())
    }
}
