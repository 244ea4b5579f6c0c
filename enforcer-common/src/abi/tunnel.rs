//! What the program at the other end of a tunnel is told.

use crate::abi::address::Address;
use crate::pod::record;

record! {
    /// Whose encapsulated packets are unpacked: one prefix of each family.
    pub struct TunnelSources, 44 bytes {
        /// Whether there is a prefix of IPv4, and one of IPv6: [`TUNNEL_V4`], [`TUNNEL_V6`].
        pub families: u32,
        /// The IPv4 prefix.
        pub v4: u32,
        /// Its mask.
        pub v4_mask: u32,
        /// The IPv6 prefix.
        pub v6: Address,
        /// Its mask.
        pub v6_mask: Address,
    }
}

/// There is a prefix of IPv4.
pub const TUNNEL_V4: u32 = 1;
/// There is a prefix of IPv6.
pub const TUNNEL_V6: u32 = 2;

impl TunnelSources {
    /// Whether an IPv4 address, in network byte order, is in the prefix.
    #[inline(always)]
    pub const fn holds_v4(&self, source: u32) -> bool {
        self.families & TUNNEL_V4 != 0 && source & self.v4_mask == self.v4
    }

    /// Whether an IPv6 address is.
    #[inline(always)]
    pub const fn holds_v6(&self, source: &Address) -> bool {
        self.families & TUNNEL_V6 != 0
            && source[0] & self.v6_mask[0] == self.v6[0]
            && source[1] & self.v6_mask[1] == self.v6[1]
            && source[2] & self.v6_mask[2] == self.v6[2]
            && source[3] & self.v6_mask[3] == self.v6[3]
    }
}
