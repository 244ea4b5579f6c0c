//! What the decision function reads and answers: packets, flows, [`Facts`], [`Decision`].
#![forbid(unsafe_code)]

use crate::Reason;
use crate::abi::address::{Address, FlowKey};
use crate::abi::config::{
    BackendRecord, DecisionCell, DecisionRecord, LeaseRecord, LimitRecord, LimitsRecord, SET_WORDS,
    ServiceRecord, TenantRecord,
};

use super::limiter::{self, Claim};

/// IP protocol number of TCP.
pub const TCP: u32 = 6;
/// IP protocol number of UDP.
pub const UDP: u32 = 17;

/// TCP flag FIN.
pub const TCP_FIN: u8 = 0x01;
/// TCP flag SYN.
pub const TCP_SYN: u8 = 0x02;
/// TCP flag RST.
pub const TCP_RST: u8 = 0x04;
/// TCP flag ACK.
pub const TCP_ACK: u8 = 0x10;

/// How much of the packet could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No IP packet: ARP and the like.
    NotIp,
    /// The IP header is truncated or its lengths contradict the frame's.
    BadHeader,
    /// The IP header is sound, but what follows cannot be walked or is too short.
    BadTransport,
    /// Some other protocol than TCP and UDP.
    Other,
    /// A fragment other than a whole datagram.
    Fragment,
    /// TCP or UDP with both ports.
    Transport,
}

/// What time it is. Not every packet has to know, and the kernel takes a while to say.
pub trait Clock: Copy {
    /// Kernel monotonic time; the same each time that it is asked.
    fn now_ns(self) -> u64;
}

/// A time that is known.
impl Clock for u64 {
    #[inline(always)]
    fn now_ns(self) -> u64 {
        self
    }
}

/// What the judgement needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The 5-tuple. Addresses are valid unless the shape is `NotIp` or `BadHeader`, ports only for `Transport`.
    pub key: FlowKey,
    /// How much could be read.
    pub shape: Shape,
    /// TCP flags, zero for UDP.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes from the IP header on, as the frame carries them.
    pub bytes: u32,
    /// Those of the largest packet that leaves for it: fewer only where the host has put segments together. Valid as the
    /// addresses are.
    pub segment_bytes: u32,
}

/// The part of a flow's state that the judgement reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Generation under which it was last judged.
    pub generation: u64,
    /// Tenant slot.
    pub tenant: u32,
    /// Service slot.
    pub service: u32,
    /// Deciding rule plus one, or zero.
    pub rule: u32,
    /// Back-end slot.
    pub backend: u32,
    /// Back-end address.
    pub backend_address: Address,
    /// Back-end port.
    pub backend_port_be: u16,
    /// `FLOW_*` bits of the client's direction.
    pub state: u32,
    /// The `FORWARD_*` code that it was set up for.
    pub forward: u32,
}

/// What came of it when another packet of an open flow was judged under this generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFlow {
    /// Service slot.
    pub service: u32,
    /// Number of the decision record, which allows it.
    pub decision: u16,
    /// Back-end slot.
    pub backend: u32,
    /// The `FORWARD_*` code.
    pub forward: u32,
    /// Whether nobody limits its packets.
    pub is_free: bool,
}

/// The part of a reply entry that the judgement reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Tenant slot.
    pub tenant: u32,
    /// Service slot.
    pub service: u32,
    /// Back-end slot.
    pub backend: u32,
    /// The interface that leads to the client.
    pub client_ifindex: u32,
}

/// Where the judgement looks things up. Configuration is asked for by bank; an index beyond a table answers `None`.
pub trait Facts {
    /// The live generation.
    fn generation(&self) -> u64;
    /// Entry `byte` of trie node `node`; zero where there is none.
    fn trie_entry(&self, bank: u32, node: u32, byte: u8) -> u32;
    /// A tenant.
    fn tenant(&self, bank: u32, slot: u32) -> Option<&TenantRecord>;
    /// A service.
    fn service(&self, bank: u32, slot: u32) -> Option<&ServiceRecord>;
    /// What a row of tenants says about a service.
    fn cell(&self, bank: u32, row: u32, service: u32) -> Option<DecisionCell>;
    /// The decision that a cell names.
    fn decision(&self, bank: u32, number: u16) -> Option<&DecisionRecord>;
    /// The limits of a limit group.
    fn limits(&self, bank: u32, group: u32) -> Option<&LimitsRecord>;
    /// The agent's lease.
    fn lease(&self) -> LeaseRecord;
    /// Service classes that are shed on an eligible set, a bit for each; none where there is no such set.
    fn shed_classes(&self, bank: u32, set: u32) -> u64;
    /// Members of an eligible set.
    fn set_members(&self, bank: u32, set: u32) -> Option<&[u64; SET_WORDS]>;
    /// A slot of a set's Maglev table; [`NO_BACKEND`] where there is none.
    fn maglev(&self, bank: u32, set: u32, slot: u32) -> u16;
    /// A back end.
    fn backend(&self, bank: u32, slot: u32) -> Option<&BackendRecord>;
    /// What is remembered of the flow of a packet that changes nothing about it: no connection begins or ends with it. Who
    /// remembers nothing gives the same answers, and looks everything up.
    #[inline(always)]
    fn known_flow(&self, _packet: &Packet, _generation: u64) -> Option<KnownFlow> {
        None
    }
    /// The service of a packet with ports, if it is remembered what its destination was under this generation.
    #[inline(always)]
    fn known_service(&self, _key: &FlowKey, _generation: u64) -> Option<u32> {
        None
    }
    /// Takes note of a packet's service.
    #[inline(always)]
    fn note_service(&self, _key: &FlowKey, _generation: u64, _service: u32) {}
    /// The flow of a client's 5-tuple.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
    /// The flow whose replies have this 5-tuple.
    fn reply(&self, key: &FlowKey) -> Option<Reply>;
    /// A limiter's theoretical arrival time.
    fn limiter(&self, index: u32) -> u64;
    /// Connections that are open of a holder of limits: see [`crate::schema::tenant_holder`].
    fn open_connections(&self, holder: u32) -> u64;
    /// Entries of the flow table that one tenant may have. Zero: as many as there are.
    fn flows_per_tenant(&self) -> u64;
    /// How many refused packets of a tenant are answered. All zero: none.
    fn answers(&self) -> LimitRecord;
    /// The smallest MTU of the links that are known; zero if none is.
    fn smallest_mtu_bytes(&self) -> u32;
    /// The MTU of the link of an interface, if that is known.
    fn link_mtu_bytes(&self, ifindex: u32) -> Option<u32>;
    /// The MTU of the way that the kernel itself knows to a back end of which the agent knows none, if it does. `bytes` is how
    /// long a packet is that is to go there.
    fn route_mtu_bytes(&self, backend: &Address, bytes: u32) -> Option<u32>;
    /// Why those who hold limits on a packet let it not pass, if they do not. (The programs have it in a function of its own.)
    #[inline(always)]
    fn refusal(&self, claim: &Claim, now_ns: u64) -> Option<Reason>
    where
        Self: Sized,
    {
        limiter::refusal(self, claim, now_ns)
    }
}

/// What becomes of the flow entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowFate {
    /// There is none and none is made.
    None,
    /// Unchanged but for its counters.
    Kept,
    /// The same, and it was not looked up: who remembers it has the counters.
    Remembered,
    /// Judged anew under this generation; same back end.
    Renewed,
    /// Judged anew; another back end, since its own is no longer eligible.
    Moved,
    /// The client opened a new connection on the 5-tuple of one that is closing.
    Reopened,
    /// Made.
    Opened,
    /// There is no room for one, and the packet goes by the Maglev table alone.
    Stateless,
}

impl FlowFate {
    /// Whether the packet begins a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(self) -> bool {
        matches!(self, Self::Opened | Self::Reopened | Self::Stateless)
    }
}

/// What a packet gets, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why. [`Reason::effect`] says whether the packet is forwarded, passed or dropped.
    pub reason: Reason,
    /// The generation that decided.
    pub generation: u64,
    /// Tenant slot; zero where none is known.
    pub tenant: u32,
    /// Service slot plus one; zero where there is none.
    pub service: u32,
    /// Whether the packet goes to that service, rather than comes from a back end of it.
    pub to_service: bool,
    /// Deciding rule plus one; zero where none decided.
    pub rule: u32,
    /// Back-end slot plus one; zero where none was chosen.
    pub backend: u32,
    /// A `FORWARD_*` code, zero where nothing is forwarded to a back end.
    pub forward: u32,
    /// What becomes of the flow entry.
    pub flow: FlowFate,
    /// Shadow rule that would have decided otherwise, plus one, or zero; only where the decision table was asked.
    pub shadow_rule: u32,
    /// What that rule would have answered.
    pub shadow_reason: u32,
    /// The limit group of the tenant on the service; zero is none.
    pub pair_group: u32,
    /// The limit group of the service; zero is none.
    pub service_group: u32,
    /// Whether nobody limits the packet, so that it owes nothing.
    pub is_free: bool,
}

impl Decision {
    pub(super) const fn new(reason: Reason, generation: u64) -> Self {
        Self {
            reason,
            generation,
            tenant: 0,
            service: 0,
            to_service: false,
            rule: 0,
            backend: 0,
            forward: 0,
            flow: FlowFate::None,
            shadow_rule: 0,
            shadow_reason: 0,
            pair_group: 0,
            service_group: 0,
            is_free: false,
        }
    }

    /// The same packet refused after all: no flow is made, and it owes nothing.
    #[inline(always)]
    #[must_use]
    pub const fn refused(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self.flow = FlowFate::None;
        self
    }
}
