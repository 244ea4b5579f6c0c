//! Internet checksum arithmetic, incremental (RFC 1624, equation 3).
//!
//! Sums are kept as ordinary integers that are folded at the end, so that one [`Delta`] collects every changed word
//! of a header.

/// The one's-complement difference that a set of changed words makes to a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    pub const ZERO: Self = Self(0);

    /// One 16-bit word changed. Both in the byte order that they have in the packet.
    #[inline(always)]
    pub const fn word(self, old_be: u16, new_be: u16) -> Self {
        Self(self.0 + (!old_be) as u64 + new_be as u64)
    }

    /// One 32-bit word changed, aligned to 16 bits in the packet.
    #[inline(always)]
    pub const fn double_word(self, old_be: u32, new_be: u32) -> Self {
        Self(self.0 + (!old_be) as u64 + new_be as u64)
    }

    /// Four 32-bit words changed: an IPv6 address.
    #[inline(always)]
    pub const fn quad(self, old_be: &[u32; 4], new_be: &[u32; 4]) -> Self {
        self.double_word(old_be[0], new_be[0])
            .double_word(old_be[1], new_be[1])
            .double_word(old_be[2], new_be[2])
            .double_word(old_be[3], new_be[3])
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum field after the change.
    #[inline(always)]
    pub const fn apply(self, checksum_be: u16) -> u16 {
        !fold(self.0 + (!checksum_be) as u64)
    }

    /// The same for UDP, where a computed zero is sent as all ones (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum_be: u16) -> u16 {
        match self.apply(checksum_be) {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// Adds the carries back in until sixteen bits are left. Sound for any sum below 2^48 and more: each line at least
/// halves the excess, four lines suffice for 64 bits.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
