//! What the program that makes packets for benchmarks is told. No program that governs traffic knows of it.

use crate::pod::record;

/// Eight-byte words of the longest frame that can be made.
pub const TEMPLATE_WORDS: usize = 10;
/// The other length that a frame can have, in the same words.
pub const SHORT_WORDS: usize = 8;

record! {
    /// Which frames are made: a template in which the source address and port of the n-th flow are put.
    pub struct DriverPlan, 136 bytes {
        /// Frames that were made so far; the driver counts on.
        pub made: u64,
        /// There are two to the power of this many flows.
        pub flow_bits: u32,
        /// Flows come one after another if zero, else in an order in which neighbours are far apart.
        pub scattered: u32,
        /// Bytes of a frame: of one of the two lengths.
        pub frame_bytes: u32,
        /// Where the last four bytes of the source address stand.
        pub source_offset: u32,
        /// Where the source port stands.
        pub port_offset: u32,
        /// So many low bits of a flow's number choose its port, the others its address.
        pub port_bits: u32,
        /// Last four bytes of the first source address, in host order.
        pub first_source: u32,
        /// From one address to the next.
        pub source_step: u32,
        /// The first source port, in host order.
        pub first_port: u32,
        /// Where the checksum of the IPv4 header stands; zero if there is none.
        pub header_checksum_offset: u32,
        /// Where the checksum of TCP or UDP stands.
        pub checksum_offset: u32,
        /// Zero: brings the size to a multiple of eight.
        pub reserved: u32,
        /// The frame of the first flow.
        pub template: [u64; TEMPLATE_WORDS],
    }
}

impl DriverPlan {
    /// The flow of the n-th frame.
    ///
    /// Scattered, it is a permutation of the flows: steps that can each be undone, of which only several together have no
    /// stride that a prefetcher could follow.
    #[inline(always)]
    pub const fn flow(&self, n: u64) -> u32 {
        let mask = (1u32 << (self.flow_bits & 31)) - 1;
        let mut flow = n as u32 & mask;
        if self.scattered != 0 {
            let shift = self.flow_bits.div_ceil(2) & 31;
            flow = flow.wrapping_mul(0x9e37_79b1) & mask;
            flow ^= flow >> shift;
            flow = flow.wrapping_mul(0x85eb_ca6b) & mask;
            flow ^= flow >> shift;
        }
        flow
    }

    /// The last four bytes of a flow's source address, and its source port, both in host order.
    #[inline(always)]
    pub const fn source(&self, flow: u32) -> (u32, u16) {
        let port_bits = self.port_bits & 31;
        let address = (flow >> port_bits).wrapping_mul(self.source_step);
        let port = flow & ((1 << port_bits) - 1);
        (
            self.first_source.wrapping_add(address),
            self.first_port.wrapping_add(port) as u16,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_has_its_turn_and_neighbours_are_far_apart() {
        for flow_bits in [0, 1, 10, 11, 16] {
            let plan = DriverPlan {
                flow_bits,
                scattered: 1,
                ..DriverPlan::ZERO
            };
            let flows = 1u32 << flow_bits;
            let mut seen = [false; 1 << 16];
            for n in 0..u64::from(flows) {
                let flow = plan.flow(n) as usize;
                assert!(!seen[flow], "flow {flow} of {flows} has two turns");
                seen[flow] = true;
            }
            assert_eq!(plan.flow(u64::from(flows)), plan.flow(0), "then it begins anew");
            let mut strides = [0u32; 1 << 16];
            for n in 0..u64::from(flows) {
                let stride = plan.flow(n + 1).wrapping_sub(plan.flow(n)) & (flows - 1);
                strides[stride as usize] += 1;
            }
            let most = strides.into_iter().max().unwrap_or(0);
            assert!(
                flow_bits < 10 || most < flows / 8,
                "one stride in {most} of {flows} turns"
            );
        }
    }

    #[test]
    fn flows_have_sources_of_their_own() {
        let plan = DriverPlan {
            port_bits: 4,
            first_source: 0x0a01_0000,
            source_step: 16,
            first_port: 1024,
            ..DriverPlan::ZERO
        };
        assert_eq!(plan.source(0), (0x0a01_0000, 1024));
        assert_eq!(plan.source(15), (0x0a01_0000, 1039));
        assert_eq!(plan.source(33), (0x0a01_0020, 1025));
    }
}
