//! The VLAN that a back end's next hop is in.

use enforcer_common::parse::Tags;
use serde::{Deserialize, Serialize};

/// A VLAN tag, of priority zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VlanTag {
    /// Its EtherType: 0x8100 (IEEE 802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
    /// Number of the VLAN.
    pub id: u16,
}

// === impl VlanTag ===

impl VlanTag {
    /// This tag alone, as records have it.
    #[must_use]
    pub const fn tags(self) -> Tags {
        [self.protocol.to_be(), self.id.to_be(), 0, 0]
    }
}
