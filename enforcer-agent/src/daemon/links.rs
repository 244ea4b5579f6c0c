//! How large packets can be that go back to clients.

use std::collections::BTreeMap;
use std::net::IpAddr;

use enforcer_common::schema::MAX_LINKS;
use tracing::warn;

use super::core::Core;
use crate::adapters::dataplane::DataplaneError;
use crate::adapters::neighbours::{Interface, NextHop, NextHopError};

/// Key of the warning that the MTUs of links could not be written: the next look at them tries again.
const LINKS: &str = "MTUs of links";

/// What one look at routes, neighbours, addresses and interfaces found.
#[derive(Debug)]
pub(super) struct NetworkSeen {
    /// The way to each back end, by name.
    pub(super) hops: Vec<(String, Result<NextHop, NextHopError>)>,
    /// Addresses of this host.
    pub(super) local_addresses: Vec<IpAddr>,
    /// All interfaces.
    pub(super) interfaces: Vec<Interface>,
}

impl Core {
    /// MTUs in bytes, by index, of the interfaces on which programs run: clients' packets come in by no other, so replies
    /// leave by no other. A smaller link elsewhere would only have large replies be looked up for nothing.
    pub(super) fn links_of(&self, interfaces: &[Interface]) -> BTreeMap<u32, u32> {
        interfaces
            .iter()
            .filter(|interface| interface.mtu_bytes > 0 && self.config.interfaces.contains(&interface.name))
            .map(|interface| (interface.ifindex, interface.mtu_bytes))
            .take(MAX_LINKS as usize)
            .collect()
    }

    /// Takes note of what one look found.
    pub(super) fn network_seen(&mut self, seen: NetworkSeen) {
        let links = self.links_of(&seen.interfaces);
        if links != self.host.links || self.failing.contains_key(LINKS) {
            self.host.links = links;
            match self.write_links() {
                Ok(()) => drop(self.failing.remove(LINKS)),
                Err(error) => {
                    if self.failing.insert(LINKS, error.to_string()).is_none() {
                        warn!(%error, "MTUs of links");
                    }
                }
            }
        }
        self.routes(seen.hops, seen.local_addresses);
    }

    /// The links come first: a packet that the smallest of them says nothing of is not looked up.
    fn write_links(&mut self) -> Result<(), DataplaneError> {
        self.dataplane.set_links(&self.host.links)?;
        self.dataplane.set_host(&self.host.record())
    }
}
