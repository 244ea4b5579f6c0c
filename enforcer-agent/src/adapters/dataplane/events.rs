//! Readiness of the ring buffer for the daemon's loop.
#![expect(
    unsafe_code,
    reason = "tokio's `AsyncFd` has no safe constructor; the block states need and soundness"
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// Becomes ready when the programs have sent events.
#[derive(Debug)]
pub struct EventsReady {
    descriptor: AsyncFd<OwnedFd>,
}

impl EventsReady {
    /// Watches a copy of a ring buffer's descriptor. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If the process has no descriptors left, or the kernel refuses to watch it.
    pub(super) fn watch(ring_buffer: &impl AsFd) -> io::Result<Self> {
        let copy = ring_buffer.as_fd().try_clone_to_owned()?;
        // SAFETY: (need) there is no safe constructor. (soundness) the descriptor is owned by this value alone, is never
        // lent out, and `AsyncFd` removes it from the poll set before it closes it.
        let descriptor = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE)? };
        Ok(Self { descriptor })
    }

    /// Waits until there are events. The guard's `clear_ready` says that all were taken.
    ///
    /// # Errors
    /// If the runtime is shutting down.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.descriptor.readable().await
    }
}
