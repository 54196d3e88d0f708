//! Routes are written to the maps.

use std::{io, net::IpAddr, os::fd::AsFd};

use aya::{
    Pod,
    maps::{IterableMap, lpm_trie},
};
use ipnet::IpNet;
use kubenet_core::{
    model::IpFamily,
    route::{Backend, Frontend},
};

use super::{
    maps::{Key, Maps, key, source_key},
    membarrier, sys,
};
use crate::{
    ids::Handle,
    layout::{Addr4, Addr6, Service, ServiceKey, ServiceName, SourceRange},
    program::{Failures, Tables},
};

impl Tables for Maps {
    fn write_backend(&self, _: IpFamily, handle: Handle, backend: &Backend) {
        match backend.address {
            IpAddr::V4(address) => self.v4.write_backend(handle, address.into(), backend),
            IpAddr::V6(address) => self.v6.write_backend(handle, address.into(), backend),
        }
    }

    fn kill_backend(&self, family: IpFamily, id: u32) {
        match family {
            IpFamily::V4 => self.v4.kill_backend(id),
            IpFamily::V6 => self.v6.kill_backend(id),
        }
    }

    fn write_slots(&self, base: u32, ids: &[u32]) {
        for (slot, id) in (base..).zip(ids) {
            let stored = self.slots.store(slot, id, 0);
            debug_assert!(stored, "slot {slot} is not an index of the map");
        }
    }

    fn write_names(&self, names: &[(u32, ServiceName)]) -> Failures {
        let batch: Batch<_, _> = names.iter().copied().enumerate().collect();
        let failed = batch.write(&self.names);
        self.failures([("service_names", failed)], "services")
    }

    fn remove_names(&self, ids: &[u32]) -> Failures {
        ids.iter().for_each(|id| self.traffic.retire(*id));
        let batch: Batch<_, _> = ids.iter().map(|id| (*id, ())).enumerate().collect();
        let failed = batch.delete(&self.names);
        self.failures([("service_names", failed)], "services")
    }

    fn write_cluster_ips(&self, addresses: &[IpAddr]) -> Failures {
        let (v4, v6) = by_family(addresses, 1);
        let failed = (v4.write(&self.v4.cluster_ips), v6.write(&self.v6.cluster_ips));
        self.failures([("cluster_ips4", failed.0), ("cluster_ips6", failed.1)], "services")
    }

    fn remove_cluster_ips(&self, addresses: &[IpAddr]) -> Failures {
        let (v4, v6) = by_family(addresses, ());
        let failed = (v4.delete(&self.v4.cluster_ips), v6.delete(&self.v6.cluster_ips));
        self.failures([("cluster_ips4", failed.0), ("cluster_ips6", failed.1)], "services")
    }

    fn write_sources(&self, sources: &[(u32, IpNet)]) -> Failures {
        let (v4, v6) = by_source(sources, 1);
        let failed = (v4.write(&self.v4.source_ranges), v6.write(&self.v6.source_ranges));
        self.failures([("source_ranges4", failed.0), ("source_ranges6", failed.1)], "source_ranges")
    }

    fn remove_sources(&self, sources: &[(u32, IpNet)]) -> Failures {
        let (v4, v6) = by_source(sources, ());
        let failed = (v4.delete(&self.v4.source_ranges), v6.delete(&self.v6.source_ranges));
        self.failures([("source_ranges4", failed.0), ("source_ranges6", failed.1)], "source_ranges")
    }

    fn write_services(&self, services: &[(Frontend, Service)]) -> Failures {
        services.iter().for_each(|(_, service)| self.traffic.begin(service.id));
        let (v4, v6) = by_key(services.iter().copied());
        let failed = (v4.write(&self.v4.services), v6.write(&self.v6.services));
        self.failures([("services4", failed.0), ("services6", failed.1)], "services")
    }

    fn remove_services(&self, frontends: &[Frontend]) -> Failures {
        let (v4, v6) = by_key(frontends.iter().map(|frontend| (*frontend, ())));
        let failed = (v4.delete(&self.v4.services), v6.delete(&self.v6.services));
        self.failures([("services4", failed.0), ("services6", failed.1)], "services")
    }

    fn wait_grace_period(&self) -> bool {
        membarrier()
    }
}

impl Maps {
    /// In the order of what was asked for.
    fn failures<const N: usize>(
        &self,
        failed: [(&'static str, Vec<(usize, io::Error)>); N],
        setting: &'static str,
    ) -> Failures {
        let of_map = |(map, failed): (&'static str, Vec<(usize, io::Error)>)| {
            failed.into_iter().map(move |(place, error)| (place, self.failed(map, setting, error.into())))
        };
        let mut failures: Failures = failed.into_iter().flat_map(of_map).collect();
        failures.sort_by_key(|(place, _)| *place);
        failures
    }
}

/// Entries of one map, and the place of each in what was asked for.
pub(super) struct Batch<K, V> {
    places: Vec<usize>,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> Default for Batch<K, V> {
    fn default() -> Self {
        Self { places: Vec::new(), keys: Vec::new(), values: Vec::new() }
    }
}

impl<K, V> Batch<K, V> {
    fn push(&mut self, place: usize, key: K, value: V) {
        self.places.push(place);
        self.keys.push(key);
        self.values.push(value);
    }
}

impl<K, V> FromIterator<(usize, (K, V))> for Batch<K, V> {
    fn from_iter<I: IntoIterator<Item = (usize, (K, V))>>(entries: I) -> Self {
        let mut batch = Self::default();
        entries.into_iter().for_each(|(place, (key, value))| batch.push(place, key, value));
        batch
    }
}

impl<K: Pod, V: Pod> Batch<K, V> {
    /// With one call. From the entry on that the kernel refuses, or all where it has no batches for such a map (before
    /// 5.6, for tries before 5.13), each has a call of its own: a map that is full fails those for which there is no
    /// room, and no others.
    pub(super) fn write(&self, map: &impl IterableMap<K, V>) -> Vec<(usize, io::Error)> {
        let map = map.map().fd().as_fd();
        let done = match self.keys.len() {
            0 | 1 => 0,
            _ => sys::update_batch(map, &self.keys, &self.values),
        };
        let rest = self.places.iter().zip(self.keys.iter().zip(&self.values)).skip(done);
        rest.filter_map(|(place, (key, value))| Some((*place, sys::update(map, key, value).err()?))).collect()
    }
}

impl<K: Pod> Batch<K, ()> {
    /// Deletes, as [`Batch::write`] writes. What is not there is no failure.
    pub(super) fn delete<V: Pod>(&self, map: &impl IterableMap<K, V>) -> Vec<(usize, io::Error)> {
        let map = map.map().fd().as_fd();
        let done = match self.keys.len() {
            0 | 1 => 0,
            _ => sys::delete_batch(map, &self.keys),
        };
        let rest = self.places.iter().zip(&self.keys).skip(done);
        rest.filter_map(|(place, key)| Some((*place, sys::delete(map, key).err()?))).collect()
    }
}

/// The entries of `services4` and those of `services6`.
fn by_key<V>(
    entries: impl Iterator<Item = (Frontend, V)>,
) -> (Batch<ServiceKey<Addr4>, V>, Batch<ServiceKey<Addr6>, V>) {
    let (mut v4, mut v6) = (Batch::default(), Batch::default());
    for (place, (frontend, value)) in entries.enumerate() {
        match key(&frontend) {
            Key::V4(key) => v4.push(place, key, value),
            Key::V6(key) => v6.push(place, key, value),
        }
    }
    (v4, v6)
}

pub(super) fn by_family<V: Copy>(addresses: &[IpAddr], value: V) -> (Batch<Addr4, V>, Batch<Addr6, V>) {
    let (mut v4, mut v6) = (Batch::default(), Batch::default());
    for (place, address) in addresses.iter().enumerate() {
        match *address {
            IpAddr::V4(address) => v4.push(place, address.into(), value),
            IpAddr::V6(address) => v6.push(place, address.into(), value),
        }
    }
    (v4, v6)
}

type SourceKey<A> = lpm_trie::Key<SourceRange<A>>;

fn by_source<V: Copy>(
    sources: &[(u32, IpNet)],
    value: V,
) -> (Batch<SourceKey<Addr4>, V>, Batch<SourceKey<Addr6>, V>) {
    let (mut v4, mut v6) = (Batch::default(), Batch::default());
    for (place, (service, cidr)) in sources.iter().enumerate() {
        match cidr {
            IpNet::V4(c) => v4.push(place, source_key(*service, c.addr().into(), c.prefix_len()), value),
            IpNet::V6(c) => v6.push(place, source_key(*service, c.addr().into(), c.prefix_len()), value),
        }
    }
    (v4, v6)
}
