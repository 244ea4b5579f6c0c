//! The programs that go on with a packet after it was judged: tail calls, by number.
//!
//! A program has a stack of 512 bytes, and the verifier multiplies the paths through all of its parts. What only some
//! packets need, and needs room, is a program of its own.
#![forbid(unsafe_code)]

/// A program that goes on with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Continuation {
    /// Sends it to its back end inside another packet.
    Encapsulate = 0,
    /// Answers a packet that was refused.
    Answer = 1,
    /// Judges ICMP: an error about a flow, or none of ours.
    Icmp = 2,
    /// Shows the agent a packet that it asked for.
    Capture = 3,
    /// Sends it on with other VLAN tags.
    Retag = 4,
}

/// How many there are.
pub const CONTINUATIONS: u32 = Continuation::ALL.len() as u32;

impl Continuation {
    /// All of them, by number.
    pub const ALL: &'static [Self] = &[
        Self::Encapsulate,
        Self::Answer,
        Self::Icmp,
        Self::Capture,
        Self::Retag,
    ];

    /// The name of the program that goes on after TC.
    pub const fn tc_program(self) -> &'static str {
        match self {
            Self::Encapsulate => "enforcer_tc_encapsulate",
            Self::Answer => "enforcer_tc_answer",
            Self::Icmp => "enforcer_tc_icmp",
            Self::Capture => "enforcer_tc_capture",
            Self::Retag => "enforcer_tc_retag",
        }
    }

    /// The name of the program that goes on after XDP.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Encapsulate => "enforcer_encapsulate",
            Self::Answer => "enforcer_answer",
            Self::Icmp => "enforcer_icmp",
            Self::Capture => "enforcer_capture",
            Self::Retag => "enforcer_retag",
        }
    }
}

/// What such a program is told besides the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Errand {
    /// Index of the back end in `BACKENDS`.
    pub backend: u32,
    /// A `FORWARD_*` code.
    pub forward: u32,
    /// Number of the [`Answer`](crate::decide::answer::Answer).
    pub answer: u32,
    /// The largest packet that would have fitted.
    pub fitting_bytes: u32,
    /// Whose packet it is, and who pays for the answer: tenant slot.
    pub tenant: u32,
    /// What the packet gets if nothing else becomes of it: a verdict of XDP or TC, where it came in.
    pub verdict: u32,
    /// The time of the judgement.
    pub now_ns: u64,
    /// The generation that decided.
    pub generation: u64,
    /// A [`Reason`](crate::Reason) number.
    pub reason: u32,
    /// Service slot plus one, or zero.
    pub service: u32,
    /// Deciding rule plus one, or zero.
    pub rule: u32,
    /// Zero: brings the size to a multiple of eight.
    pub reserved: u32,
}

impl Errand {
    /// Nothing to do.
    pub const NONE: Self = Self {
        backend: 0,
        forward: 0,
        answer: 0,
        fitting_bytes: 0,
        tenant: 0,
        verdict: 0,
        now_ns: 0,
        generation: 0,
        reason: 0,
        service: 0,
        rule: 0,
        reserved: 0,
    };
}
