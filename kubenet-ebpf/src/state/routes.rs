//! Routes by their frontends.

use std::net::IpAddr;

use hashbrown::{HashMap, hash_map::Entry};
use kubenet_core::route::{Frontend, FrontendAddress, Route};

use super::Programmed;
use crate::index::{Index, Slab};

#[derive(Debug, Default)]
pub(super) struct Routes {
    index: Index,
    slab: Slab<Programmed>,
    /// How many there are on each address that is no cluster IP of theirs.
    others: HashMap<IpAddr, u32>,
}

/// The address of a route, where it is not one of its cluster IPs.
fn other(route: &Route) -> Option<IpAddr> {
    match route.frontend.address {
        FrontendAddress::Ip(address) if !route.on_cluster_ip => Some(address),
        _ => None,
    }
}

impl Routes {
    fn find(&self, frontend: &Frontend) -> Option<u32> {
        let is_it = |programmed: &Programmed| programmed.route.frontend == *frontend;
        self.index.find(self.index.hash(frontend), |number| self.slab.get(number).is_some_and(is_it))
    }

    pub(super) fn get(&self, frontend: &Frontend) -> Option<&Programmed> {
        self.slab.get(self.find(frontend)?)
    }

    pub(super) fn get_mut(&mut self, frontend: &Frontend) -> Option<&mut Programmed> {
        let number = self.find(frontend)?;
        self.slab.get_mut(number)
    }

    /// Returns what it replaces.
    pub(super) fn insert(&mut self, programmed: Programmed) -> Option<Programmed> {
        let frontend = programmed.route.frontend;
        if let Some(address) = other(&programmed.route) {
            *self.others.entry(address).or_default() += 1;
        }
        if let Some(known) = self.find(&frontend).and_then(|number| self.slab.get_mut(number)) {
            let old = std::mem::replace(known, programmed);
            self.leave(&old.route);
            return Some(old);
        }
        let number = self.slab.insert(programmed);
        self.index.insert(self.index.hash(&frontend), number);
        None
    }

    pub(super) fn remove(&mut self, frontend: &Frontend) -> Option<Programmed> {
        let number = self.find(frontend)?;
        self.index.remove(self.index.hash(frontend), number);
        let old = self.slab.remove(number)?;
        self.leave(&old.route);
        Some(old)
    }

    fn leave(&mut self, route: &Route) {
        if let Some(Entry::Occupied(mut entry)) = other(route).map(|address| self.others.entry(address)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// Whether a route is on this address, as no cluster IP.
    pub(super) fn has_other(&self, address: IpAddr) -> bool {
        self.others.contains_key(&address)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Programmed> {
        self.slab.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(super) fn reserve(&mut self, more: usize) {
        self.index.reserve(more);
        self.slab.reserve(more);
    }
}
