//! The way to a back end: the agent's, or where it knows none, what the kernel's own routing and neighbour tables say.
//!
//! The agent resolves next hops ahead of time, so that a packet asks nobody. The kernel is asked for back ends whose next hop
//! the agent has not found yet, or has lost.
#![expect(
    unsafe_code,
    reason = "a helper and its parameters in a map value; each block states need and soundness"
)]

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use aya_ebpf::helpers::generated;
use enforcer_common::abi::address::{Address, is_v4};
use enforcer_common::abi::config::{BACKEND_REACHABLE, BackendRecord};
use enforcer_common::parse::Tags;

use crate::maps;

/// Address families of the kernel.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What the kernel was asked last on this CPU, and what it said.
pub(crate) struct Route {
    parameters: bpf_fib_lookup,
    /// The back end that it was asked for; all zero if it knew no way there.
    backend: Address,
    /// None: the kernel's ways lead over the VLAN's own interfaces, of which nothing is known here.
    tags: Tags,
}

/// How a frame leaves: where that is written, so that nothing is copied but into the frame.
pub(crate) struct Hop<'a> {
    /// The VLAN tags that it leaves with.
    pub(crate) tags: &'a Tags,
    pub(crate) ifindex: u32,
    pub(crate) next_hop_mac: &'a [u8; 6],
    pub(crate) own_mac: &'a [u8; 6],
}

/// The same, written down for another program.
#[repr(C)]
pub(crate) struct NotedHop {
    tags: Tags,
    ifindex: u32,
    next_hop_mac: [u8; 6],
    own_mac: [u8; 6],
}

// === impl Hop ===

impl Hop<'_> {
    /// A copy.
    #[inline(always)]
    pub(crate) const fn noted(&self) -> NotedHop {
        NotedHop {
            tags: *self.tags,
            ifindex: self.ifindex,
            next_hop_mac: *self.next_hop_mac,
            own_mac: *self.own_mac,
        }
    }
}

// === impl NotedHop ===

impl NotedHop {
    /// What is written there.
    #[inline(always)]
    pub(crate) const fn hop(&self) -> Hop<'_> {
        Hop {
            tags: &self.tags,
            ifindex: self.ifindex,
            next_hop_mac: &self.next_hop_mac,
            own_mac: &self.own_mac,
        }
    }
}

/// The way to a back end, of which the judgement has found that there is one.
#[inline(always)]
pub(crate) fn hop(backend: &BackendRecord) -> Option<Hop<'_>> {
    if backend.flags & BACKEND_REACHABLE != 0 {
        return Some(Hop {
            tags: &backend.tags,
            ifindex: backend.ifindex,
            next_hop_mac: &backend.next_hop_mac,
            own_mac: &backend.own_mac,
        });
    }
    let route = maps::ROUTE.get(0)?;
    (route.backend == backend.address).then_some(Hop {
        tags: &route.tags,
        ifindex: route.parameters.ifindex,
        next_hop_mac: &route.parameters.dmac,
        own_mac: &route.parameters.smac,
    })
}

/// Asks the kernel for the way to a back end, and keeps it for [`hop`]; answers its MTU. It has to be a way on which this host
/// forwards packets that come in by that interface.
#[inline(always)]
pub(crate) fn look_up(ctx: *mut c_void, arrived_by: u32, backend: &Address, bytes: u32) -> Option<u32> {
    // Tests of the programs know no tables but their own.
    if maps::test_clock() {
        return None;
    }
    let route = maps::ROUTE.get_ptr_mut(0)?;
    // SAFETY: (need) per-CPU values are reached through a pointer. (soundness) the slot belongs to this CPU, no other program
    // runs on it until this one ends, and every bit pattern of an address is valid.
    unsafe { (*route).backend = *backend };
    match ask(ctx, arrived_by, bytes) {
        0 => None,
        mtu_bytes => Some(mtu_bytes),
    }
}

/// The MTU of the way to the back end that stands in the slot; zero if there is none.
///
/// A function of its own, since the stack of the programs has no room for more.
#[inline(never)]
fn ask(ctx: *mut c_void, arrived_by: u32, bytes: u32) -> u32 {
    let Some(route) = maps::ROUTE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: (need) as in `look_up`; a helper is a foreign call. (soundness) the slot has room for the parameters, which are
    // plain integers and written whole; the context is the program's own.
    unsafe {
        let parameters = &raw mut (*route).parameters;
        parameters.write_bytes(0, 1);
        let backend = &raw const (*route).backend;
        (*parameters).ifindex = arrived_by;
        // What is too long for the link is told so, with the MTU.
        (*parameters).__bindgen_anon_1.tot_len = if bytes > 0xffff { 0xffff } else { bytes as u16 };
        if is_v4(&*backend) {
            (*parameters).family = AF_INET;
            (*parameters).__bindgen_anon_4.ipv4_dst = (*backend)[3];
        } else {
            (*parameters).family = AF_INET6;
            (*parameters).__bindgen_anon_4.ipv6_dst = *backend;
        }
        let length = size_of::<bpf_fib_lookup>() as i32;
        let said = generated::bpf_fib_lookup(ctx, parameters, length, 0) as u32;
        if said != BPF_FIB_LKUP_RET_SUCCESS {
            (*route).backend = [0; 4];
        }
        if said == BPF_FIB_LKUP_RET_SUCCESS || said == BPF_FIB_LKUP_RET_FRAG_NEEDED {
            return u32::from((*parameters).__bindgen_anon_1.mtu_result);
        }
    }
    0
}
