//! What another process left in the maps becomes what is programmed. Pure.
//!
//! Every id, every generation and every range of slots is rebuilt from the maps. The process may have ended
//! between any two writes, and somebody else may have written, so that not everything needs to make sense: an
//! entry of `services` that cannot be adopted stays as it is until the first table overwrites or removes it, and
//! whatever it refers to is handed out to nobody before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use kubenet_core::{
    model::IpFamily,
    route::{Frontend, Route},
};

use super::{PerFamily, Programmed, State, check, cluster_ip, source_ranges};
use crate::{
    MapSizes,
    backends::Identity,
    decode::{Arrays, Decoded, Snapshot},
    ids::Ids,
    layout::{SVC_CUTS_SHIFT, SVC_LISTED, Service},
    rest::Now,
    sets::Set,
    slots::Range,
};

/// What was left behind and belongs to no route that was adopted.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Entries of `services` that stay until the first table is programmed.
    pub(crate) strays: BTreeMap<Frontend, Service>,
    service_ids: BTreeSet<u32>,
    affinities: BTreeSet<u32>,
    backends: PerFamily<BTreeSet<u32>>,
    ranges: Vec<Range>,
    /// The ids below this one were handed out at least once.
    seen: PerFamily<u32>,
}

impl Leftovers {
    /// Whether packets may still meet an entry with this service id.
    pub(crate) fn has_service_id(&self, id: u32) -> bool {
        self.service_ids.contains(&id)
    }

    /// The ids of backends that may be alive in the map though nobody holds them.
    pub(crate) fn backends<'a>(&'a self, state: &'a State) -> impl Iterator<Item = (IpFamily, u32)> + 'a {
        IpFamily::ALL.into_iter().flat_map(move |family| {
            let ids = 1..*self.seen.get(family);
            ids.filter(move |id| !state.backends(family).is_alive(*id)).map(move |id| (family, id))
        })
    }

    /// All strays are overwritten or gone: what they referred to may be used again.
    pub(crate) fn release(self, state: &mut State, now: Now) {
        state.give_back_reserved(self, now);
    }
}

impl State {
    /// What the maps of these sizes hold.
    pub(crate) fn adopt(sizes: MapSizes, snapshot: &Snapshot, arrays: &dyn Arrays) -> (Self, Leftovers) {
        let mut state = Self::new(sizes);
        let mut leftovers = Leftovers::default();
        let mut used = BTreeSet::new();
        for (frontend, service) in &snapshot.services {
            let decoded = snapshot.decode(arrays, frontend, service);
            let adopted = decoded
                .ok_or("it has no name")
                .and_then(|decoded| state.adopt_route(decoded, service, arrays, &mut used));
            if let Err(why) = adopted {
                tracing::warn!(%frontend, why, "an entry is not adopted: the next table writes it anew");
                leftovers.strays.insert(*frontend, *service);
            }
        }
        let known: Vec<IpAddr> =
            state.cluster_ips.addresses().filter(|ip| snapshot.cluster_ips.contains(ip)).collect();
        known.into_iter().for_each(|ip| state.cluster_ips.set_written(ip, true));
        state.reserve(&mut leftovers, snapshot, arrays, &used);
        (state, leftovers)
    }

    /// Adopts a route, or nothing of it.
    fn adopt_route(
        &mut self,
        decoded: Decoded,
        service: &Service,
        arrays: &dyn Arrays,
        used: &mut BTreeSet<u32>,
    ) -> Result<(), &'static str> {
        let port = self.ports.acquire(&decoded.route);
        let adopted = self.adopt_on(port, &decoded, service, arrays, used);
        if adopted.is_err() {
            self.ports.release(port);
        }
        adopted
    }

    fn adopt_on(
        &mut self,
        port: u32,
        decoded: &Decoded,
        service: &Service,
        arrays: &dyn Arrays,
        used: &mut BTreeSet<u32>,
    ) -> Result<(), &'static str> {
        let route = &decoded.route;
        let family = route.frontend.family();
        check(route).map_err(|_| "no route may be like that")?;
        if service.id == 0 || service.id > self.sizes.service_names() || used.contains(&service.id) {
            return Err("its id is another's");
        }
        if service.affinity > self.sizes.service_names()
            || (service.affinity != 0 && !self.affinities.may_adopt(port, service.affinity))
        {
            return Err("the id of its clients' choices is another's");
        }
        let backends = self.identities(port, decoded, arrays)?;
        let mut programmed = Programmed {
            route: Arc::new(decoded.route.clone()),
            id: service.id,
            port,
            affinity: service.affinity,
            cuts: (service.flags >> SVC_CUTS_SHIFT) as u16,
            internal: Set::default(),
            external: None,
        };
        let mut sets = Vec::new();
        for found in decoded.sets() {
            let content = (family, route.algorithm, found.members.clone());
            match self.sets.adopt(content, found.range, service.flags & SVC_LISTED != 0) {
                Some(set) => sets.push(set),
                None => break,
            }
        }
        let complete = sets.len() == decoded.sets().count();
        let mut taken = sets.iter().cloned();
        programmed.internal = taken.next().unwrap_or_default();
        programmed.external = taken.next().map(Box::new);
        // Nothing that this library would not have written.
        if !complete || programmed.service() != *service {
            sets.iter().rev().for_each(|set| self.sets.unadopt(set));
            return Err(if complete { "it has flags that are not known" } else { "its slots are another's" });
        }
        for id in sets.iter().flat_map(Set::ids) {
            if let Some(identity) = backends.get(id) {
                self.backends.get_mut(family).adopt(*id, *identity);
            }
        }
        if service.affinity != 0 {
            self.affinities.adopt(port, service.affinity);
        }
        used.insert(service.id);
        if let Some(ip) = cluster_ip(route) {
            self.cluster_ips.acquire(ip);
        }
        *self.sources.get_mut(family) += source_ranges(route).len();
        self.routes.insert(programmed);
        Ok(())
    }

    /// What the backends' ids stand for.
    fn identities(
        &self,
        port: u32,
        decoded: &Decoded,
        arrays: &dyn Arrays,
    ) -> Result<HashMap<u32, Identity>, &'static str> {
        const SHARED: &str = "an id of its backends is another's";
        let family = decoded.route.frontend.family();
        let mut by_id = HashMap::new();
        let mut identities = HashMap::new();
        for found in decoded.sets() {
            if !found.is_whole {
                return Err("its set of backends is not whole");
            }
            let mut ids = BTreeSet::new();
            for member in &found.members {
                let id = member.id;
                let entry =
                    arrays.backend(family, id).filter(|entry| entry.alive).ok_or("a backend is gone")?;
                let identity = Identity::new(port, &entry.backend);
                let is_first = identities.insert(identity, id).is_none_or(|other| other == id);
                if !is_first || !ids.insert(id) || !self.backends(family).may_adopt(id, &identity) {
                    return Err(SHARED);
                }
                by_id.insert(id, identity);
            }
        }
        Ok(by_id)
    }

    /// Marks as used what strays refer to, and sets up the allocators.
    fn reserve(
        &mut self,
        leftovers: &mut Leftovers,
        snapshot: &Snapshot,
        arrays: &dyn Arrays,
        used: &BTreeSet<u32>,
    ) {
        let Leftovers { strays, service_ids, affinities, backends, ranges, seen } = leftovers;
        for (frontend, service) in &*strays {
            service_ids.insert(service.id);
            affinities.insert(service.affinity);
            for (base, count) in [
                (service.internal_base, service.internal_count),
                (service.external_base, service.external_count),
            ] {
                let end = base.saturating_add(count).min(arrays.slots());
                backends.get_mut(frontend.family()).extend((base..end).filter_map(|slot| arrays.slot(slot)));
                ranges.extend(self.sets.reserve(Range { base, count }));
            }
        }
        let names = self.sizes.service_names();
        let adopted = used;
        service_ids.retain(|id| (1..=names).contains(id) && !adopted.contains(id));
        let last = snapshot.names.keys().chain(&*service_ids).chain(adopted);
        let last = last.max().copied().unwrap_or(0).min(names);
        self.ids = Ids::adopt(names, vec![1; last as usize + 1], |id| {
            adopted.contains(&id) || service_ids.contains(&id)
        });

        affinities.retain(|id| (1..=names).contains(id) && !self.affinities.has_adopted(*id));
        self.affinities.finish_adoption(names, affinities);

        for family in IpFamily::ALL {
            let size = match family {
                IpFamily::V4 => self.sizes.backends4,
                IpFamily::V6 => self.sizes.backends6,
            };
            let generations = (0..size).map(|id| arrays.generation(family, id));
            let mut generations: Vec<u32> = generations.collect();
            let used = generations.iter().rposition(|generation| *generation != 0).map_or(1, |last| last + 1);
            generations.truncate(used);
            // An id that only a stray knows was written by nobody.
            let length = generations.len() as u32;
            let reserved = backends.get_mut(family);
            reserved.retain(|id| (1..length).contains(id) && !self.backends(family).is_alive(*id));
            let reserved = &*reserved;
            self.backends.get_mut(family).finish_adoption(size, generations, |id| reserved.contains(&id));
            *seen.get_mut(family) = length;
        }
    }

    fn give_back_reserved(&mut self, leftovers: Leftovers, now: Now) {
        for family in IpFamily::ALL {
            for id in leftovers.backends.get(family) {
                self.backends.get_mut(family).give_back(*id, now);
            }
        }
        for id in leftovers.affinities {
            self.affinities.give_back(id, now);
        }
        for id in leftovers.service_ids {
            self.ids.give_back(id, now);
        }
        for range in leftovers.ranges {
            self.sets.give_back_range(range, now);
        }
    }
}

/// Source ranges in the map that count for no route.
pub(crate) fn unused_sources(state: &State, leftovers: &Leftovers, snapshot: &Snapshot) -> Vec<(u32, IpNet)> {
    let by_id: HashMap<u32, &Route> = state.routes().map(|p| (p.id, &*p.route)).collect();
    let is_unused = |id: u32, cidr: &IpNet| {
        !leftovers.has_service_id(id)
            && by_id.get(&id).is_none_or(|route| !source_ranges(route).contains(cidr))
    };
    let all = snapshot.sources.iter().flat_map(|(id, cidrs)| cidrs.iter().map(|cidr| (*id, *cidr)));
    all.filter(|(id, cidr)| is_unused(*id, cidr)).collect()
}
