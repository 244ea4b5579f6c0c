//! What the programs show the agent of single packets, when it asks for them.

use crate::pod::record;

/// Length of a sampling window: within one, each CPU captures at most `CaptureRecord::packets_per_window` packets. A
/// power of two, so that no division is needed: 2^27 ns, about 134 ms.
pub const CAPTURE_WINDOW_SHIFT: u32 = 27;

/// The most that is copied of a frame.
pub const CAPTURE_BYTES: u32 = 256;

record! {
    /// Which packets to capture: those that got one of the reasons, of the tenant and to the service.
    pub struct CaptureRecord, 40 bytes {
        /// After this, in kernel monotonic nanoseconds, nothing is captured: a capture ends without its agent too.
        pub until_ns: u64,
        /// Bit `n` stands for the [`crate::Reason`] with number `n`. All zero: there is no capture.
        pub reasons: u64,
        /// Tenant slot; zero is all of them, and strangers.
        pub tenant: u32,
        /// Service slots plus one, for a service has one for each address family; all zero is all packets.
        pub services: [u32; 2],
        /// The most to copy of a frame, at most [`CAPTURE_BYTES`].
        pub snap_bytes: u32,
        /// The most that one CPU captures in each window.
        pub packets_per_window: u32,
        /// Tells captures apart: stands in all that is captured.
        pub serial: u32,
    }
}

const _: () = assert!(
    crate::abi::reason::REASON_SLOTS <= 64,
    "a capture has a bit for each reason"
);

record! {
    /// A packet as it came, before anything in it was rewritten, and what it got.
    pub struct CapturedRecord, 312 bytes {
        /// Kernel monotonic time of the decision.
        pub now_ns: u64,
        /// Generation it was made under.
        pub generation: u64,
        /// Serial number of the capture.
        pub serial: u32,
        /// `tally::DIRECTION_*`.
        pub direction: u32,
        /// The interface that the packet came in by, or was to go out by.
        pub ifindex: u32,
        /// A [`crate::Reason`] number.
        pub reason: u32,
        /// Tenant slot, or zero.
        pub tenant: u32,
        /// Service slot plus one, or zero.
        pub service: u32,
        /// Deciding rule plus one, or zero.
        pub rule: u32,
        /// Length of the frame.
        pub frame_bytes: u32,
        /// Bytes of `frame` that were copied; the rest of it means nothing.
        pub captured_bytes: u32,
        /// Zero.
        pub reserved: u32,
        /// The first bytes of the frame, from the link-layer header on.
        pub frame: [u8; CAPTURE_BYTES as usize],
    }
}

record! {
    /// What became of the packets that a capture asked for, on one CPU; never set back.
    pub struct CaptureTally, 40 bytes {
        /// The sampling window that `window_packets` counts in.
        pub window: u64,
        /// Packets captured, or lost, in that window.
        pub window_packets: u64,
        /// Packets that went into the ring buffer.
        pub captured: u64,
        /// Packets that were left out, since the window had its share.
        pub sampled_out: u64,
        /// Packets that found the ring buffer full.
        pub lost: u64,
    }
}
