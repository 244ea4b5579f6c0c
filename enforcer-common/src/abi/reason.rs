//! Why a packet got what it got: declared once, numbered for ever.
//!
//! Every reason has a counter per tenant and direction, a metric label, a line in `explain` and a section in
//! `docs/reasons.md`. A number is never reused; the gaps belong to reasons that later work adds.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $effect:ident, $sentence:literal;)+) => {
        /// A reason code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason { $(#[doc = $sentence] $name = $code,)+ }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name as it stands in metrics, audit records and documents.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)+ }
            }

            /// What the packet gets.
            pub const fn effect(self) -> Effect {
                match self { $(Self::$name => Effect::$effect,)+ }
            }

            /// The reason with this number, if there is one.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

/// What happens to a packet that got a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Sent on, to a back end or to the client; or back to the client, as an answer.
    Forwarded,
    /// Left to the host's network stack, untouched.
    Passed,
    /// Dropped.
    Refused,
}

/// Slots a tenant has in the tally table: room for every number below it.
pub const REASON_SLOTS: u32 = 40;

reasons! {
    Allowed = 0, Forwarded, "The packet was admitted and forwarded to a back end.";
    NotService = 1, Passed, "The destination is no service of this balancer; the packet was left untouched.";
    Bypass = 2, Refused, "The destination lies in a protected network that is reachable only through a service.";
    UnknownTenant = 3, Refused, "The source address belongs to no tenant.";
    NoRule = 4, Refused, "No rule allows this tenant to use this service.";
    RuleDeny = 5, Refused, "A rule denies this tenant the use of this service.";
    Suspended = 6, Refused, "The tenant is suspended.";
    OutsideSchedule = 7, Refused, "A rule would allow this tenant to use this service, but its schedule is closed at this time.";
    LeaseExpired = 8, Refused, "The agent has not renewed its lease, and the policy says to refuse then.";
    ConnectionRate = 9, Refused, "The tenant is over its rate of new connections.";
    PacketRate = 10, Refused, "The tenant is over its packet rate.";
    ByteRate = 11, Refused, "The tenant is over its byte rate.";
    ResponseRate = 12, Refused, "The tenant is over its rate of response bytes.";
    Concurrency = 13, Refused, "The tenant has as many open connections as it may have.";
    Quota = 14, Refused, "The tenant has used up a quota.";
    Shed = 15, Refused, "The pool that would take this connection runs hot, and the tenant's class is shed first.";
    NoCompliantBackend = 16, Refused, "No back end satisfies the constraints that bind this tenant.";
    NoHealthyBackend = 17, Refused, "Every back end that this tenant may use is unhealthy or drained.";
    Malformed = 18, Refused, "The packet is truncated, or its lengths contradict each other.";
    FragmentUnsupported = 19, Refused, "The packet is a fragment, and fragments to a service are not supported.";
    TableFull = 20, Refused, "The flow table is full.";
    Reply = 21, Forwarded, "A reply of a back end, sent on to the client.";
    TranslationExhausted = 22, Refused, "No free address and port to translate this connection to.";
    NoNextHop = 23, Refused, "The link-layer address of the next hop is not known.";
    HopLimit = 24, Refused, "The packet's TTL or hop limit ran out.";
    Internal = 25, Refused, "The tables contradict each other; this must stay zero in production.";
    FairShare = 26, Refused, "The pool is contended, and the tenant is over its share of new connections.";
    TooBig = 27, Refused, "The packet does not fit the link to its back end.";
    Related = 28, Forwarded, "An ICMP error about an open connection, sent on to the end that it concerns.";
    RelatedRate = 29, Refused, "More ICMP errors about this tenant's connections came than are sent on.";
    ServiceConnections = 30, Refused, "The service is over what all tenants together may open: its rate of new connections, or connections at once.";
    ServiceRate = 31, Refused, "The service is over a rate of packets or bytes of all tenants together.";
    Stateless = 32, Forwarded, "The packet was admitted and forwarded by the Maglev table alone, since there is no room for an entry of its flow.";
    BackendIneligible = 33, Refused, "The connection's back end is no longer eligible, and the service resets such connections.";
    Echo = 34, Forwarded, "An ICMP echo request to a service's address, answered.";
    EchoRate = 35, Refused, "More ICMP echo requests of this tenant came than are answered.";
}

const _: () = {
    let mut index = 0;
    while index < Reason::ALL.len() {
        assert!(
            (Reason::ALL[index] as u32) < REASON_SLOTS,
            "reason number beyond the tally table"
        );
        index += 1;
    }
};
