//! Addresses with Services that are no cluster IPs: the programs let nothing pass there of which they cannot tell
//! whether it is a Service's.

use std::{collections::HashSet, io, net::IpAddr, os::fd::AsFd, sync::Arc};

use aya::maps::IterableMap;
use kubenet_core::route::{Frontend, FrontendAddress, Route};

use super::{Engine, maps::Maps, sys, tables::by_family};
use crate::layout::{Addr4, Addr6};

/// The address of a route, where it is one of these.
fn address(route: &Route) -> Option<IpAddr> {
    match route.frontend.address {
        FrontendAddress::Ip(address) if !route.on_cluster_ip => Some(address),
        _ => None,
    }
}

impl Engine {
    /// Before routes are written: their addresses are known first.
    pub(super) fn add_addresses(&mut self, upserts: &[Arc<Route>]) {
        let addresses: HashSet<IpAddr> = upserts.iter().filter_map(|route| address(route)).collect();
        self.maps.write_addresses(&Vec::from_iter(addresses));
    }

    /// The addresses that routes may leave when these are written and these frontends removed.
    pub(super) fn addresses_to_leave(
        &self,
        upserts: &[Arc<Route>],
        removals: &[Frontend],
    ) -> HashSet<IpAddr> {
        let frontends = upserts.iter().map(|route| &route.frontend).chain(removals);
        frontends.filter_map(|frontend| address(&self.state.get(frontend)?.route)).collect()
    }

    /// Afterwards: forgets those of them on which nothing is left.
    pub(super) fn leave_addresses(&mut self, addresses: HashSet<IpAddr>) {
        let left: Vec<IpAddr> = addresses.into_iter().filter(|ip| !self.state.has_other(*ip)).collect();
        self.maps.remove_addresses(&left);
    }

    /// Makes the maps hold the addresses of all routes, and no others.
    pub(super) fn sync_addresses(&mut self) {
        let wanted: HashSet<IpAddr> = self.state.routes().filter_map(|p| address(&p.route)).collect();
        let found = match self.maps.addresses() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "cannot read which addresses have Services");
                return;
            }
        };
        self.maps.write_addresses(&Vec::from_iter(wanted.difference(&found).copied()));
        self.maps.remove_addresses(&Vec::from_iter(found.difference(&wanted).copied()));
    }
}

fn warn(addresses: &[IpAddr], failed: impl IntoIterator<Item = (usize, io::Error)>) {
    for (place, error) in failed {
        let address = addresses[place];
        tracing::warn!(%error, %address, "early fragments to this address are treated as those to any other");
    }
}

impl Maps {
    fn write_addresses(&self, addresses: &[IpAddr]) {
        let (v4, v6) = by_family(addresses, 1);
        warn(addresses, v4.write(&self.v4.service_addrs));
        warn(addresses, v6.write(&self.v6.service_addrs));
    }

    fn remove_addresses(&self, addresses: &[IpAddr]) {
        let (v4, v6) = by_family(addresses, ());
        warn(addresses, v4.delete(&self.v4.service_addrs));
        warn(addresses, v6.delete(&self.v6.service_addrs));
    }

    fn addresses(&self) -> io::Result<HashSet<IpAddr>> {
        let mut found = HashSet::new();
        sys::for_each(self.v4.service_addrs.map().fd().as_fd(), |address: Addr4, _: u32| {
            found.insert(address.into());
        })?;
        sys::for_each(self.v6.service_addrs.map().fd().as_fd(), |address: Addr6, _: u32| {
            found.insert(address.into());
        })?;
        Ok(found)
    }
}
