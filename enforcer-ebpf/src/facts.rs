//! `Facts` over the maps.
//!
//! References into configuration arrays are handed out: an array slot is never freed, and the agent writes only the
//! bank that is not live, and never the bank it has just left before the programs that may still read it have ended.
//! Values of hash maps are copied out, since the kernel may reuse a slot.
#![expect(
    unsafe_code,
    reason = "map values and helpers; each block states need and soundness"
)]

use core::cell::Cell;
use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use enforcer_common::Reason;
use enforcer_common::abi::address::{Address, FlowKey};
use enforcer_common::abi::cache::{CACHED_FREE, CACHED_UDP, CachedFlow};
use enforcer_common::abi::config::{
    BLOCK_CELLS, BackendRecord, DecisionCell, DecisionRecord, HostRecord, LeaseRecord, LimitRecord,
    LimitsRecord, NO_BACKEND, ROW_BLOCKS, SET_WORDS, ServiceRecord, TenantRecord,
};
use enforcer_common::abi::flow::{FlowRecord, ReplyRecord};
use enforcer_common::decide::limiter::{self, Charge, Claim, Payment};
use enforcer_common::decide::{Clock, Decision, Facts, Flow, KnownFlow, Packet, Reply};
use enforcer_common::schema::{banked, holder_connections, open_connections};

use crate::hook::Hook;
use crate::{cache, maps, route, services};

/// Kernel monotonic time; read once a packet.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    if maps::test_clock() {
        return match host() {
            Some(host) => host.test_now_ns,
            None => 0,
        };
    }
    // SAFETY: (need) a helper is a foreign call. (soundness) it takes nothing and returns a number.
    unsafe { bpf_ktime_get_ns() }
}

/// The age of the kernel as of its last tick, for windows and ages: no instant of [`now_ns`], but the verifier makes a load of
/// the helper.
#[inline(always)]
pub(crate) fn coarse_now_ns() -> u64 {
    if maps::test_clock() {
        return now_ns();
    }
    // SAFETY: as in `now_ns`.
    unsafe { bpf_jiffies64() }.wrapping_mul(maps::jiffy_ns())
}

/// The time, read when somebody asks for the first time.
#[derive(Clone, Copy)]
pub(crate) struct LazyClock(());

// === impl LazyClock ===

impl LazyClock {
    /// For the packet of this program, whose notes begin with this.
    #[inline(always)]
    pub(crate) fn start<H: Hook>(hook: &H) -> Option<Self> {
        let notes = maps::notes()?;
        // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the slot belongs to this CPU, and no other
        // program runs on it until this one ends.
        unsafe {
            (*notes).now_ns = 0;
            (*notes).arrived_by = hook.arrived_by();
        }
        Some(Self(()))
    }
}

impl Clock for LazyClock {
    #[inline(always)]
    fn now_ns(self) -> u64 {
        let Some(notes) = maps::notes() else {
            return 0;
        };
        // SAFETY: as in `start`.
        unsafe {
            if (*notes).now_ns == 0 {
                (*notes).now_ns = now_ns();
                // Read back, always: the verifier would follow apart what knows it in a register and what does not.
                compiler_fence(Ordering::SeqCst);
            }
            (*notes).now_ns
        }
    }
}

/// What is particular to this host.
#[inline(always)]
pub(crate) fn host() -> Option<&'static HostRecord> {
    maps::HOST.get(0)
}

/// Reads a word that several CPUs change.
#[inline(always)]
pub(crate) fn load(word: *const u64) -> u64 {
    // SAFETY: (need) map words are reached through pointers. (soundness) every caller passes a pointer to an aligned
    // word of a map value, which the kernel keeps mapped while the program runs; an aligned load is not torn.
    unsafe { ptr::read_volatile(word) }
}

/// Adds to a word that several CPUs change, wrapping.
///
/// The ordering is acquire-release: LLVM may lower a relaxed fetch-add to a form that old kernels do not know.
#[inline(always)]
pub(crate) fn add(word: *mut u64, value: u64) {
    // SAFETY: (need) the target has no `AtomicU64::fetch_add`. (soundness) as in `load`; the access is atomic.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(word, value) };
}

/// Replaces a word if it still holds `seen`; says whether it did.
#[inline(always)]
fn replace(word: *mut u64, seen: u64, new: u64) -> bool {
    // SAFETY: (need) the target has no `AtomicU64::compare_exchange`. (soundness) as in `load`; the access is atomic.
    let (_, replaced) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Relaxed }>(word, seen, new)
    };
    replaced
}

/// `Facts` over the maps. It remembers the flow entries that the judgement found, so that carrying out the decision
/// need not look them up again.
pub(crate) struct MapFacts {
    /// The context of the program, null where no route is asked for.
    ctx: *mut c_void,
    backend: Cell<*const BackendRecord>,
    cached: Cell<*mut CachedFlow>,
    flow: Cell<*mut FlowRecord>,
    reply: Cell<*mut ReplyRecord>,
}

impl MapFacts {
    /// Of a packet that came in by a hook.
    #[inline(always)]
    pub(crate) fn of<H: Hook>(hook: &H) -> Self {
        Self {
            ctx: hook.as_ptr(),
            ..Self::new()
        }
    }

    /// Without a packet that could go to a back end.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self {
            ctx: ptr::null_mut(),
            backend: Cell::new(ptr::null()),
            cached: Cell::new(ptr::null_mut()),
            flow: Cell::new(ptr::null_mut()),
            reply: Cell::new(ptr::null_mut()),
        }
    }

    /// The back end that [`Facts::backend`] found last.
    #[inline(always)]
    pub(crate) fn found_backend(&self) -> Option<&'static BackendRecord> {
        // SAFETY: (need) it was kept as a pointer, since a cell of a reference is copied bit by bit. (soundness) null, or made
        // of a reference into a configuration array, whose slots are never freed.
        unsafe { self.backend.get().as_ref() }
    }

    /// The entry of the cache that [`Facts::known_flow`] found.
    #[inline(always)]
    pub(crate) fn found_cached(&self) -> Option<*mut CachedFlow> {
        let entry = self.cached.get();
        if entry.is_null() { None } else { Some(entry) }
    }

    /// The flow entry that [`Facts::flow`] found.
    #[inline(always)]
    pub(crate) fn found_flow(&self) -> Option<*mut FlowRecord> {
        let entry = self.flow.get();
        if entry.is_null() { None } else { Some(entry) }
    }

    /// The reply entry that [`Facts::reply`] found.
    #[inline(always)]
    pub(crate) fn found_reply(&self) -> Option<*mut ReplyRecord> {
        let entry = self.reply.get();
        if entry.is_null() { None } else { Some(entry) }
    }
}

impl Facts for MapFacts {
    #[inline(always)]
    fn generation(&self) -> u64 {
        match maps::GENERATION.get_ptr_mut(0) {
            // Pairs with the agent's update of the word after the bank was written: bpf(2) is a full barrier there.
            Some(word) => load(word),
            None => 0,
        }
    }

    #[inline(always)]
    fn trie_entry(&self, bank: u32, node: u32, byte: u8) -> u32 {
        match maps::TRIE.get(banked(bank, node)) {
            Some(node) => match node.entries.get(byte as usize) {
                Some(entry) => *entry,
                None => 0,
            },
            None => 0,
        }
    }

    #[inline(always)]
    fn tenant(&self, bank: u32, slot: u32) -> Option<&TenantRecord> {
        maps::TENANTS.get(banked(bank, slot))
    }

    #[inline(always)]
    fn service(&self, bank: u32, slot: u32) -> Option<&ServiceRecord> {
        maps::SERVICES.get(banked(bank, slot))
    }

    #[inline(always)]
    fn cell(&self, bank: u32, row: u32, service: u32) -> Option<DecisionCell> {
        let row = maps::ROWS.get(banked(bank, row))?;
        // The remainders never change the index of a slot that exists; they bound the access where the verifier sees it.
        let block = row.blocks[(service / BLOCK_CELLS % ROW_BLOCKS) as usize];
        let block = maps::BLOCKS.get(banked(bank, block))?;
        let cell = block.cells[(service % BLOCK_CELLS) as usize];
        if let Some(notes) = maps::notes() {
            // SAFETY: as in `LazyClock::start`.
            unsafe { (*notes).decision = cell.decision };
        }
        Some(cell)
    }

    #[inline(always)]
    fn decision(&self, bank: u32, number: u16) -> Option<&DecisionRecord> {
        maps::DECISIONS.get(banked(bank, u32::from(number)))
    }

    #[inline(always)]
    fn limits(&self, bank: u32, group: u32) -> Option<&LimitsRecord> {
        maps::LIMITS.get(banked(bank, group))
    }

    #[inline(always)]
    fn lease(&self) -> LeaseRecord {
        match maps::LEASE.get_ptr_mut(0) {
            // Each word alone, since the agent may write the record at this moment.
            Some(lease) => LeaseRecord {
                // SAFETY: (need) the words change under the program. (soundness) as in `load`: the pointer is to a whole
                // record in a map value.
                new_flows_until_ns: load(unsafe { &raw const (*lease).new_flows_until_ns }),
                // SAFETY: as above.
                everything_until_ns: load(unsafe { &raw const (*lease).everything_until_ns }),
            },
            None => LeaseRecord::ZERO,
        }
    }

    #[inline(always)]
    fn shed_classes(&self, bank: u32, set: u32) -> u64 {
        match maps::SETS.get(banked(bank, set)) {
            Some(set) => set.shed_classes,
            None => 0,
        }
    }

    #[inline(always)]
    fn set_members(&self, bank: u32, set: u32) -> Option<&[u64; SET_WORDS]> {
        maps::SETS.get(banked(bank, set)).map(|set| &set.members)
    }

    #[inline(always)]
    fn maglev(&self, bank: u32, set: u32, slot: u32) -> u16 {
        match maps::MAGLEV.get(banked(bank, set)) {
            Some(table) => match table.slots.get(slot as usize) {
                Some(backend) => *backend,
                None => NO_BACKEND,
            },
            None => NO_BACKEND,
        }
    }

    #[inline(always)]
    fn backend(&self, bank: u32, slot: u32) -> Option<&BackendRecord> {
        let backend = maps::BACKENDS.get(banked(bank, slot))?;
        self.backend.set(backend);
        Some(backend)
    }

    #[inline(always)]
    fn known_flow(&self, packet: &Packet, generation: u64) -> Option<KnownFlow> {
        let slot = cache::recall(packet, generation)?;
        self.cached.set(slot);
        // SAFETY: (need) map values are reached through a pointer. (soundness) as in `cache::recall`.
        let entry = unsafe { &*slot };
        Some(KnownFlow {
            service: u32::from(entry.service),
            decision: entry.decision,
            backend: u32::from(entry.backend & !CACHED_UDP),
            forward: u32::from(entry.forward & !CACHED_FREE),
            is_free: entry.forward & CACHED_FREE != 0,
        })
    }

    #[inline(always)]
    fn known_service(&self, key: &FlowKey, generation: u64) -> Option<u32> {
        services::recall(key, generation)
    }

    #[inline(always)]
    fn note_service(&self, key: &FlowKey, generation: u64, service: u32) {
        services::remember(key, generation, service);
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        cache::note_epoch();
        let entry = maps::FLOWS.get_ptr_mut(key)?;
        self.flow.set(entry);
        // SAFETY: (need) hash map values are reached through pointers. (soundness) the kernel keeps the memory mapped
        // while the program runs, even if the entry is deleted meanwhile; the fields are plain integers and are
        // copied out here.
        let record = unsafe { &*entry };
        Some(Flow {
            generation: record.generation,
            tenant: record.tenant,
            service: record.service,
            rule: record.rule,
            backend: record.backend,
            backend_address: record.backend_address,
            backend_port_be: record.backend_port_be,
            state: record.state,
            forward: record.forward,
        })
    }

    #[inline(always)]
    fn reply(&self, key: &FlowKey) -> Option<Reply> {
        let entry = maps::REPLIES.get_ptr_mut(key)?;
        self.reply.set(entry);
        // SAFETY: as in `flow`.
        let record = unsafe { &*entry };
        Some(Reply {
            tenant: record.tenant,
            service: record.service,
            backend: record.backend,
            client_ifindex: record.client_ifindex,
        })
    }

    #[inline(always)]
    fn limiter(&self, index: u32) -> u64 {
        match maps::LIMITERS.get_ptr_mut(index) {
            Some(word) => load(word),
            None => 0,
        }
    }

    #[inline(always)]
    fn open_connections(&self, holder: u32) -> u64 {
        let index = holder_connections(holder);
        let (opened, closed) = (
            maps::CONNECTIONS_OPENED.get_ptr_mut(index),
            maps::CONNECTIONS_CLOSED.get_ptr_mut(index),
        );
        match (opened, closed) {
            (Some(opened), Some(closed)) => {
                // Closed first: a removal between the two reads can then only be missed, not counted too often.
                let closed = load(closed);
                open_connections(load(opened), closed)
            }
            _ => 0,
        }
    }

    #[inline(always)]
    fn refusal(&self, claim: &Claim, now_ns: u64) -> Option<Reason> {
        let [what, whose] = claim.packed();
        Reason::from_code(refusal(what, whose, now_ns).wrapping_sub(1))
    }

    #[inline(always)]
    fn flows_per_tenant(&self) -> u64 {
        match host() {
            Some(host) => host.flows_per_tenant,
            None => 0,
        }
    }

    #[inline(always)]
    fn answers(&self) -> LimitRecord {
        match host() {
            Some(host) => host.answers,
            None => LimitRecord::ZERO,
        }
    }

    #[inline(always)]
    fn route_mtu_bytes(&self, backend: &Address, bytes: u32) -> Option<u32> {
        if self.ctx.is_null() {
            return None;
        }
        // SAFETY: as in `LazyClock::start`.
        let arrived_by = unsafe { (*maps::notes()?).arrived_by };
        route::look_up(self.ctx, arrived_by, backend, bytes)
    }

    #[inline(always)]
    fn smallest_mtu_bytes(&self) -> u32 {
        match host() {
            Some(host) => host.smallest_mtu_bytes,
            None => 0,
        }
    }

    #[inline(always)]
    fn link_mtu_bytes(&self, ifindex: u32) -> Option<u32> {
        let link = maps::LINKS.get_ptr(ifindex)?;
        // SAFETY: as in `flow`.
        Some(unsafe { (*link).mtu_bytes })
    }
}

/// The number of the reason for which limits let a packet not pass, plus one; zero if they let it pass.
#[inline(never)]
fn refusal(what: u64, whose: u64, now_ns: u64) -> u32 {
    match limiter::refusal(&MapFacts::new(), &Claim::unpacked([what, whose]), now_ns) {
        Some(reason) => reason as u32 + 1,
        None => 0,
    }
}

/// Has a packet that goes out pay what it owes.
#[inline(always)]
pub(crate) fn settle<C: Clock>(decision: &Decision, bytes: u32, clock: C) {
    if decision.is_free {
        return;
    }
    let [what, whose] = Claim::due(decision, bytes).packed();
    settle_packed(what, whose, clock.now_ns());
}

#[inline(never)]
fn settle_packed(what: u64, whose: u64, now_ns: u64) {
    let claim = Claim::unpacked([what, whose]);
    limiter::settle(&MapFacts::new(), &claim, |charge| pay(&charge, now_ns));
}

/// Pays one charge.
#[inline(always)]
pub(crate) fn pay(charge: &Charge, now_ns: u64) {
    let Some(word) = maps::LIMITERS.get_ptr_mut(charge.index) else {
        return;
    };
    let seen_ns = load(word);
    match charge.payment(seen_ns, now_ns) {
        Payment::Add(cost_ns) => add(word, cost_ns),
        Payment::Replace(due_ns) => {
            if !replace(word, seen_ns, due_ns) {
                add(word, charge.cost_ns);
            }
        }
    }
}
