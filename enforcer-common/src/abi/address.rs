//! IP addresses and flow keys.

use crate::pod::record;

/// An IPv6 address as four words in network byte order; IPv4 is held in its mapped form `::ffff:a.b.c.d` (RFC 4291).
///
/// Four words rather than sixteen bytes, so that BPF copies and compares four times instead of sixteen.
pub type Address = [u32; 4];

/// The third word of every IPv4-mapped address.
pub const V4_PREFIX_BE: u32 = 0x0000_ffff_u32.to_be();

/// The mapped form of an IPv4 address given in network byte order.
#[inline(always)]
pub const fn from_v4(address_be: u32) -> Address {
    [0, 0, V4_PREFIX_BE, address_be]
}

/// Whether this is an IPv4-mapped address.
#[inline(always)]
pub const fn is_v4(address: &Address) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == V4_PREFIX_BE
}

/// Bits that differ between two addresses: zero if they are the same. Words are taken in pairs, which the compiler reads at once.
#[inline(always)]
pub const fn differing(one: &Address, other: &Address) -> u64 {
    const fn pair(low: u32, high: u32) -> u64 {
        low as u64 | (high as u64) << 32
    }
    (pair(one[0], one[1]) ^ pair(other[0], other[1])) | (pair(one[2], one[3]) ^ pair(other[2], other[3]))
}

/// The sixteen bytes of an IPv6 address as an [`Address`].
#[inline(always)]
pub const fn from_octets(octets: [u8; 16]) -> Address {
    let o = octets;
    [
        u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
        u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
        u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
        u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
    ]
}

/// The sixteen bytes of an [`Address`], in network order.
pub const fn to_octets(address: &Address) -> [u8; 16] {
    let (a, b) = (address[0].to_ne_bytes(), address[1].to_ne_bytes());
    let (c, d) = (address[2].to_ne_bytes(), address[3].to_ne_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ]
}

record! {
    /// A 5-tuple: the key of both flow tables.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FlowKey, 40 bytes {
        /// Source address.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// Source port.
        pub source_port_be: u16,
        /// Destination port.
        pub destination_port_be: u16,
        /// IP protocol number: 6 or 17.
        pub protocol: u32,
    }
}

impl FlowKey {
    /// The same flow seen from the other end.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port_be: self.destination_port_be,
            destination_port_be: self.source_port_be,
            protocol: self.protocol,
        }
    }
}
