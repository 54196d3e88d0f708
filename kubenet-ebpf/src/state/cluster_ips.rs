//! Which addresses are cluster IPs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;

/// Cluster IPs with reference counts.
#[derive(Debug, Default)]
pub(super) struct ClusterIps {
    // Apart, as most are of the family that is small.
    v4: HashMap<Ipv4Addr, Entry>,
    v6: HashMap<Ipv6Addr, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// How many routes are on it.
    references: u32,
    /// It stands in the map.
    written: bool,
}

impl ClusterIps {
    /// One reference more.
    pub(super) fn acquire(&mut self, address: IpAddr) {
        let entry = match address {
            IpAddr::V4(address) => self.v4.entry(address).or_default(),
            IpAddr::V6(address) => self.v6.entry(address).or_default(),
        };
        entry.references += 1;
    }

    /// One reference less. True when that was the last one.
    #[must_use]
    pub(super) fn release(&mut self, address: IpAddr) -> bool {
        let Some(entry) = self.get_mut(address) else { return false };
        entry.references -= 1;
        if entry.references > 0 {
            return false;
        }
        match address {
            IpAddr::V4(address) => drop(self.v4.remove(&address)),
            IpAddr::V6(address) => drop(self.v6.remove(&address)),
        }
        true
    }

    pub(super) fn is_written(&self, address: IpAddr) -> bool {
        let entry = match address {
            IpAddr::V4(address) => self.v4.get(&address),
            IpAddr::V6(address) => self.v6.get(&address),
        };
        entry.is_some_and(|entry| entry.written)
    }

    /// The map is to have it. True when nobody said so before.
    pub(super) fn claim(&mut self, address: IpAddr) -> bool {
        self.get_mut(address).is_some_and(|entry| !std::mem::replace(&mut entry.written, true))
    }

    pub(super) fn set_written(&mut self, address: IpAddr, written: bool) {
        if let Some(entry) = self.get_mut(address) {
            entry.written = written;
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.keys().map(|a| IpAddr::V4(*a)).chain(self.v6.keys().map(|a| IpAddr::V6(*a)))
    }

    fn get_mut(&mut self, address: IpAddr) -> Option<&mut Entry> {
        match address {
            IpAddr::V4(address) => self.v4.get_mut(&address),
            IpAddr::V6(address) => self.v6.get_mut(&address),
        }
    }
}
