//! Addresses with Services that are no cluster IPs: the programs let nothing pass there of which they cannot tell
//! whether it is a Service's.

use std::{collections::HashSet, net::IpAddr, os::fd::AsFd, sync::Arc};

use aya::maps::{IterableMap, MapError};
use kubenet_core::route::{Frontend, FrontendAddress, Route};

use super::{
    Engine,
    maps::{Maps, deleted},
    sys,
};
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
        for address in addresses {
            let written = self.maps.write_address(address);
            warn(address, written);
        }
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
        for ip in addresses {
            if !self.state.has_other(ip) {
                let removed = self.maps.remove_address(ip);
                warn(ip, removed);
            }
        }
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
        for ip in wanted.difference(&found) {
            let written = self.maps.write_address(*ip);
            warn(*ip, written);
        }
        for ip in found.difference(&wanted) {
            let removed = self.maps.remove_address(*ip);
            warn(*ip, removed);
        }
    }
}

fn warn(address: IpAddr, result: Result<(), MapError>) {
    if let Err(error) = result {
        tracing::warn!(%error, %address, "early fragments to this address are treated as those to any other");
    }
}

impl Maps {
    fn write_address(&mut self, address: IpAddr) -> Result<(), MapError> {
        match address {
            IpAddr::V4(a) => self.v4.service_addrs.insert(Addr4::from(a), 1, 0),
            IpAddr::V6(a) => self.v6.service_addrs.insert(Addr6::from(a), 1, 0),
        }
    }

    fn remove_address(&mut self, address: IpAddr) -> Result<(), MapError> {
        deleted(match address {
            IpAddr::V4(a) => self.v4.service_addrs.remove(&a.into()),
            IpAddr::V6(a) => self.v6.service_addrs.remove(&a.into()),
        })
    }

    fn addresses(&self) -> std::io::Result<HashSet<IpAddr>> {
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
