//! Headers that are made from nothing.

use enforcer_common::abi::address::Address;
use enforcer_common::encapsulation::{OUTER_HOP_LIMIT, V4_HEADER_BYTES};

/// A network header. IPv4 has no options and is not to be fragmented: its identification is zero, and no two packets may
/// be taken for parts of one (RFC 6864).
pub(crate) struct NetworkHeader {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Differentiated services and congestion notification.
    pub(crate) class: u8,
    /// IPv6 only.
    pub(crate) flow_label: u32,
    pub(crate) protocol: u8,
    pub(crate) payload_bytes: u32,
}

// === impl NetworkHeader ===

impl NetworkHeader {
    /// As IPv4.
    #[inline(always)]
    pub(crate) fn v4(&self) -> [u32; 5] {
        let first = (0x45 << 24) | (u32::from(self.class) << 16) | (self.payload_bytes + V4_HEADER_BYTES);
        let second = 0x4000;
        let third = (u32::from(OUTER_HOP_LIMIT) << 24) | (u32::from(self.protocol) << 16);
        let sum = Sum::ZERO
            .word(first)
            .word(second)
            .word(third)
            .word(u32::from_be(self.source[3]))
            .word(u32::from_be(self.destination[3]));
        [
            first.to_be(),
            second.to_be(),
            (third | sum.checksum()).to_be(),
            self.source[3],
            self.destination[3],
        ]
    }

    /// As IPv6.
    #[inline(always)]
    pub(crate) fn v6(&self) -> [u32; 10] {
        let (s, d) = (&self.source, &self.destination);
        let first = (6 << 28) | (u32::from(self.class) << 20) | self.flow_label;
        let second =
            (self.payload_bytes << 16) | (u32::from(self.protocol) << 8) | u32::from(OUTER_HOP_LIMIT);
        [
            first.to_be(),
            second.to_be(),
            s[0],
            s[1],
            s[2],
            s[3],
            d[0],
            d[1],
            d[2],
            d[3],
        ]
    }

    /// What the checksum of the payload takes from the header (RFC 9293, 3.1; RFC 8200, 8.1). An IPv4 address in its mapped
    /// form adds the same as alone, but for its prefix.
    #[inline(always)]
    pub(crate) fn pseudo_sum(&self, v4: bool) -> Sum {
        let sum = Sum::ZERO
            .word(u32::from_be(self.source[3]))
            .word(u32::from_be(self.destination[3]))
            .word(u32::from(self.protocol))
            .word(self.payload_bytes);
        if v4 {
            return sum;
        }
        let (s, d) = (&self.source, &self.destination);
        sum.word(u32::from_be(s[0]))
            .word(u32::from_be(s[1]))
            .word(u32::from_be(s[2]))
            .word(u32::from_be(d[0]))
            .word(u32::from_be(d[1]))
            .word(u32::from_be(d[2]))
    }
}

/// The sum of an Internet checksum (RFC 1071): of at most some thousand words.
#[derive(Clone, Copy)]
pub(crate) struct Sum(u32);

// === impl Sum ===

impl Sum {
    pub(crate) const ZERO: Self = Self(0);

    /// With one more word, in the host's byte order.
    #[inline(always)]
    pub(crate) const fn word(self, word: u32) -> Self {
        Self(self.0 + (word >> 16) + (word & 0xffff))
    }

    /// The checksum, in the lower half.
    #[inline(always)]
    pub(crate) const fn checksum(self) -> u32 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !sum & 0xffff
    }
}
