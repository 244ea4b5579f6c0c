//! The maps, expanded from the one list in `enforcer_common::schema`. Nothing else declares a map, but for the word
//! that only tests set.
#![expect(
    unsafe_code,
    reason = "a constant that the loader overrides; each block states need and soundness"
)]

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf};
use enforcer_common::abi::address::FlowKey;
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::continuation::{CONTINUATIONS as CONTINUATION_COUNT, Continuation, Errand};
use enforcer_common::parse::{self, Frame, Quoted, Tags};

use crate::hook::{Hook, HookWindow};
use crate::route::{Hop, NotedHop, Route};

macro_rules! declare {
    ($($name:ident: $kind:ident<$($ty:ty),+>, $sizing:ident $capacity:expr;)+) => {
        $(declare!(@one $name: $kind<$($ty),+>, $capacity);)+
    };
    (@one $name:ident: RingBuf<$ty:ty>, $capacity:expr) => {
        #[map]
        pub(crate) static $name: RingBuf = RingBuf::pinned($capacity, 0);
    };
    // Memory that could be mapped begins on a page, so that entries of a cache line lie in one.
    (@one $name:ident: PageArray<$ty:ty>, $capacity:expr) => {
        #[map]
        pub(crate) static $name: Array<$ty> = Array::pinned($capacity, BPF_F_MMAPABLE);
    };
    (@one $name:ident: $kind:ident<$($ty:ty),+>, $capacity:expr) => {
        #[map]
        pub(crate) static $name: $kind<$($ty),+> = $kind::pinned($capacity, 0);
    };
}
enforcer_common::with_maps!(declare);

/// Room for one parsed frame on each CPU.
///
/// The parser leaves by dozens of paths, and the verifier would follow each one through all that comes after. What is
/// read back from a map it knows nothing of, so there the paths join: this cuts its work by a large factor, for a
/// few nanoseconds a packet. It is the programs' own and no part of the schema.
#[map]
static FRAME: PerCpuArray<Frame> = PerCpuArray::with_max_entries(1, 0);

/// Room for the packet that an ICMP error quotes, likewise.
#[map]
static QUOTED: PerCpuArray<Quoted> = PerCpuArray::with_max_entries(1, 0);

/// Room for the entries of a flow until they are inserted: the stack has little.
#[map]
static FLOW: PerCpuArray<FlowRecord> = PerCpuArray::with_max_entries(1, 0);
#[map]
static REPLY: PerCpuArray<ReplyRecord> = PerCpuArray::with_max_entries(1, 0);

/// What the programs note about a packet while they judge it. Off the stack, which has little room, and so that the verifier
/// does not follow what each way to a point would have noted.
#[map]
static NOTES: PerCpuArray<Notes> = PerCpuArray::with_max_entries(1, 0);

/// See [`notes`].
pub(crate) struct Notes {
    /// The time; zero: nobody has asked yet.
    pub(crate) now_ns: u64,
    /// The hash by which the packet's flow is remembered.
    pub(crate) hash: u64,
    /// The low half of its flow hash.
    pub(crate) spread: u32,
    /// The set of the cache in which this CPU would remember it.
    pub(crate) set: u32,
    /// The word in `FLOW_EPOCHS` before the flow was looked up.
    pub(crate) epoch: u64,
    /// The interface that the packet came in by.
    pub(crate) arrived_by: u32,
    /// Number of the decision that was found last.
    pub(crate) decision: u16,
    /// A flow whose counts are brought to its record.
    pub(crate) key: FlowKey,
}

/// The notes about the packet of this program.
#[inline(always)]
pub(crate) fn notes() -> Option<*mut Notes> {
    NOTES.get_ptr_mut(0)
}

/// What the kernel says of a back end whose next hop the agent does not know.
#[map]
pub(crate) static ROUTE: PerCpuArray<Route> = PerCpuArray::with_max_entries(1, 0);

/// How a frame leaves that gets other VLAN tags before.
#[map]
static HOP: PerCpuArray<NotedHop> = PerCpuArray::with_max_entries(1, 0);

/// What the program that goes on with a packet is told.
#[map]
static ERRAND: PerCpuArray<Errand> = PerCpuArray::with_max_entries(1, 0);

/// The programs that go on with a packet, by [`Continuation`]. The agent fills it in.
#[map]
pub(crate) static CONTINUATIONS: ProgramArray = ProgramArray::with_max_entries(CONTINUATION_COUNT, 0);

/// Those that go on with a packet that came in through TC: such a map holds programs of one kind.
#[map]
pub(crate) static TC_CONTINUATIONS: ProgramArray = ProgramArray::with_max_entries(CONTINUATION_COUNT, 0);

/// Goes on with another program, which has a stack of its own, and whose paths the verifier does not multiply with those
/// of this one. Comes back only if there is no such program.
#[inline(always)]
pub(crate) fn go_on<H: Hook>(hook: &H, with: Continuation) {
    // SAFETY: (need) a tail call is a foreign call. (soundness) it ends this program, which holds nothing that has to be
    // dropped, or does nothing.
    unsafe { H::continuations().tail_call(hook, with as u32) };
}

/// Writes down what the program that goes on with the packet is to know.
#[inline(always)]
pub(crate) fn tell(errand: Errand) -> Option<()> {
    let slot = ERRAND.get_ptr_mut(0)?;
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the slot belongs to this CPU and is written
    // whole.
    unsafe { slot.write(errand) };
    Some(())
}

/// Writes down how a frame is to leave that gets other VLAN tags before.
#[inline(always)]
pub(crate) fn tell_hop(hop: &Hop<'_>) -> Option<()> {
    let slot = HOP.get_ptr_mut(0)?;
    // SAFETY: as in `tell`.
    unsafe { slot.write(hop.noted()) };
    Some(())
}

/// How the frame is to leave.
#[inline(always)]
pub(crate) fn told_hop() -> Option<Hop<'static>> {
    Some(HOP.get(0)?.hop())
}

/// The same as [`go_on`], for what few packets do: by a number that the compiler does not know. The kernel makes
/// no jump of it that it would have to patch, after a grace period each, when the programs go.
#[inline(always)]
pub(crate) fn go_on_seldom<H: Hook>(hook: &H, with: Continuation) {
    // SAFETY: as in `go_on`.
    unsafe { H::continuations().tail_call(hook, core::hint::black_box(with as u32)) };
}

/// What this program, which goes on with a packet, was told: the frame as it was parsed, and the errand.
#[inline(always)]
pub(crate) fn told() -> Option<(&'static Frame, &'static Errand)> {
    Some((FRAME.get(0)?, ERRAND.get(0)?))
}

/// Parses the packet where its parsed form is to lie, and forgets what came of it: see `FRAME`.
#[inline(always)]
pub(crate) fn parse<H: Hook>(hook: &H) -> Option<&'static mut Frame> {
    let slot = FRAME.get_ptr_mut(0)?;
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the slot belongs to this CPU, no other
    // program runs on it until this one ends, and maps begin as zeroes, which are a valid frame.
    let frame = unsafe { &mut *slot };
    parse::parse_into(&HookWindow::of(hook), frame);
    // What was written is read back: the compiler must not keep it.
    compiler_fence(Ordering::SeqCst);
    Some(frame)
}

/// The same of a packet that is quoted.
#[inline(always)]
pub(crate) fn forget_quoted(quoted: Quoted) -> Option<&'static Quoted> {
    let slot = QUOTED.get_ptr_mut(0)?;
    // SAFETY: as in `forget`.
    unsafe {
        slot.write_volatile(quoted);
        Some(&*slot)
    }
}

/// The same record, off the stack.
#[inline(always)]
pub(crate) fn off_stack_flow(record: FlowRecord) -> Option<&'static FlowRecord> {
    let slot = FLOW.get_ptr_mut(0)?;
    // SAFETY: as in `forget`.
    unsafe {
        slot.write(record);
        Some(&*slot)
    }
}

/// The same of a reply entry.
#[inline(always)]
pub(crate) fn off_stack_reply(record: ReplyRecord) -> Option<&'static ReplyRecord> {
    let slot = REPLY.get_ptr_mut(0)?;
    // SAFETY: as in `forget`.
    unsafe {
        slot.write(record);
        Some(&*slot)
    }
}

/// Puts VLAN tags into the reply entry that lies off the stack.
#[inline(always)]
pub(crate) fn set_reply_tags(tags: Tags) -> Option<()> {
    let slot = REPLY.get_ptr_mut(0)?;
    // SAFETY: as in `forget`; the slot holds a whole record by then.
    unsafe { (*slot).tags = tags };
    Some(())
}

/// Read-only data that the loader may override: 1 has the programs take the time from `HOST.test_now_ns`. The verifier
/// sees a constant and removes the branch that is not taken, so it costs a production program nothing.
#[unsafe(no_mangle)]
static TEST_CLOCK: u32 = 0;

/// Whether the program was loaded for tests.
#[inline(always)]
pub(crate) fn test_clock() -> bool {
    // SAFETY: (need) the loader replaces the value after compilation, so it must not be folded. (soundness) the
    // reference is to a live static of that type.
    unsafe { core::ptr::read_volatile(&raw const TEST_CLOCK) != 0 }
}

/// Read-only data that the loader overrides: sets that each CPU has in `FLOW_CACHE`, a power of two. Zero: nothing is
/// remembered.
#[unsafe(no_mangle)]
static CACHE_SETS: u32 = 0;

/// Sets that each CPU has in `FLOW_CACHE`.
#[inline(always)]
pub(crate) fn cache_sets() -> u32 {
    // SAFETY: as in `test_clock`.
    unsafe { core::ptr::read_volatile(&raw const CACHE_SETS) }
}

/// Read-only data that the loader overrides: nanoseconds between two ticks of the kernel.
#[unsafe(no_mangle)]
static JIFFY_NS: u64 = 0;

/// Nanoseconds between two ticks of the kernel.
#[inline(always)]
pub(crate) fn jiffy_ns() -> u64 {
    // SAFETY: as in `test_clock`.
    unsafe { core::ptr::read_volatile(&raw const JIFFY_NS) }
}
