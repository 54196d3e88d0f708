//! What is programmed, and what has to be written to get somewhere else. Pure: no system call is made here.

mod adopt;
mod cluster_ips;
mod programmed;
mod room;
mod routes;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use kubenet_core::{
    datapath::BackendName,
    model::{Algorithm, IpFamily, Protocol},
    route::{Frontend, FrontendAddress, NodeRouting, Revision, Route, RouteTable, Target},
};

use crate::{
    MapSizes,
    affinities::Affinities,
    backends::{Backends, Identity},
    ids::Ids,
    names::check_name,
    ports::Ports,
    refused::Refused,
    rest::Now,
    sets::{Member, Set, Sets, is_listed},
};

pub(crate) use self::{
    adopt::{Leftovers, unused_sources},
    programmed::{Programmed, Staged},
    room::{Move, Plan},
};
use self::{cluster_ips::ClusterIps, routes::Routes};

/// One value for each address family.
#[derive(Clone, Debug, Default)]
pub(crate) struct PerFamily<T> {
    pub(crate) v4: T,
    pub(crate) v6: T,
}

impl<T> PerFamily<T> {
    pub(crate) fn get(&self, family: IpFamily) -> &T {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }

    pub(crate) fn get_mut(&mut self, family: IpFamily) -> &mut T {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }
}

/// What nothing refers to any more and may be cleaned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retired {
    Backend(IpFamily, u32),
    Name(u32),
    Source(u32, IpNet),
    ClusterIp(IpAddr),
}

/// What is programmed.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) node: Arc<NodeRouting>,
    routes: Routes,
    ports: Ports,
    backends: PerFamily<Backends>,
    ids: Ids,
    sets: Sets,
    affinities: Affinities,
    cluster_ips: ClusterIps,
    /// How many source ranges are written.
    sources: PerFamily<usize>,
    sizes: MapSizes,
}

impl State {
    /// Nothing, in maps of these sizes.
    pub(crate) fn new(sizes: MapSizes) -> Self {
        Self {
            revision: Revision::default(),
            node: Arc::default(),
            routes: Routes::default(),
            ports: Ports::default(),
            backends: PerFamily { v4: Backends::new(sizes.backends4), v6: Backends::new(sizes.backends6) },
            ids: Ids::up_to(sizes.service_names()),
            sets: Sets::new(sizes.slots),
            affinities: Affinities::new(sizes.service_names()),
            cluster_ips: ClusterIps::default(),
            sources: PerFamily::default(),
            sizes,
        }
    }

    pub(crate) fn get(&self, frontend: &Frontend) -> Option<&Programmed> {
        self.routes.get(frontend)
    }

    /// Whether the route is in the maps as it is.
    pub(crate) fn has(&self, route: &Arc<Route>) -> bool {
        let same = self.get(&route.frontend).is_some_and(|programmed| programmed.route == *route);
        same && cluster_ip(route).is_none_or(|ip| self.is_written(ip))
    }

    pub(crate) fn routes(&self) -> impl Iterator<Item = &Programmed> {
        self.routes.iter()
    }

    /// Whether a route is on this address that is not there on a cluster IP.
    pub(crate) fn has_other(&self, address: IpAddr) -> bool {
        self.routes.has_other(address)
    }

    pub(crate) fn backends(&self, family: IpFamily) -> &Backends {
        self.backends.get(family)
    }

    /// Every backend id of a family that is in use, and under which name it is counted.
    pub(crate) fn backend_names(&self, family: IpFamily) -> impl Iterator<Item = (u32, BackendName)> {
        self.backends(family).iter().filter_map(|(handle, Identity { port, backend })| {
            let (service_port, protocol) = self.ports.get(*port)?;
            let address = backend.socket_addr();
            Some((handle.id, BackendName { service_port: service_port.clone(), protocol, address }))
        })
    }

    #[cfg(test)]
    pub(crate) fn ports(&self) -> usize {
        self.ports.in_use()
    }

    #[cfg(test)]
    pub(crate) fn affinities(&self) -> u32 {
        self.affinities.in_use()
    }

    /// The routes to write and the frontends to remove to get to `table`.
    pub(crate) fn diff(&self, table: &RouteTable) -> (Vec<Arc<Route>>, Vec<Frontend>) {
        let upserts = table.routes().filter(|route| !self.has(route)).map(Arc::clone).collect();
        let frontends = self.routes.iter().map(|programmed| programmed.route.frontend);
        let removals = frontends.filter(|frontend| table.get(frontend).is_none()).collect();
        (upserts, removals)
    }

    /// Room for many routes at once: what grows step by step ends up larger than it must.
    pub(crate) fn expect(&mut self, routes: &[Arc<Route>]) {
        if !self.routes.is_empty() {
            return;
        }
        self.routes.reserve(routes.len());
        self.ids.reserve(routes.len());
        for family in IpFamily::ALL {
            let of_family = routes.iter().filter(|route| route.frontend.family() == family);
            let most = of_family.map(|route| route.internal.backends.len()).sum::<usize>();
            let size = self.size_of_backends(family) as usize;
            self.backends.get_mut(family).reserve(most.min(size));
        }
    }

    fn size_of_backends(&self, family: IpFamily) -> u32 {
        match family {
            IpFamily::V4 => self.sizes.backends4,
            IpFamily::V6 => self.sizes.backends6,
        }
    }

    /// Reserves what a route needs. Reserves nothing on error.
    pub(crate) fn stage(&mut self, route: &Arc<Route>, now: Now) -> Result<Staged, Refused> {
        check(route).map_err(Refused::Invalid)?;
        let old = self.routes.get(&route.frontend);
        let kept = old.filter(|old| old.route.service_port == route.service_port).map(|old| old.id);
        let new_name = kept.is_none()
            || old.is_some_and(|old| {
                (old.route.kind, old.route.on_cluster_ip) != (route.kind, route.on_cluster_ip)
            });
        let id = match kept {
            Some(id) => id,
            None => self.ids.take(now).ok_or(Refused::Ids(self.sizes.service_names()))?.id,
        };
        let mut staged = Staged {
            programmed: Programmed {
                route: Arc::clone(route),
                id,
                port: self.ports.acquire(route),
                affinity: 0,
                cuts: 0,
                internal: Set::default(),
                external: (route.internal.backends != route.external.backends).then(Box::default),
            },
            new_backends: Vec::new(),
            new_name,
            new_sources: Vec::new(),
        };
        match self.fill(&mut staged, now) {
            Ok(()) => Ok(staged),
            Err(refused) => {
                // None of it was written, so that nothing has to be cleaned from the maps.
                self.abort(staged, now);
                Err(refused)
            }
        }
    }

    fn fill(&mut self, staged: &mut Staged, now: Now) -> Result<(), Refused> {
        let route = Arc::clone(&staged.programmed.route);
        if let Some(ip) = cluster_ip(&route) {
            self.cluster_ips.acquire(ip);
        }
        let Staged { programmed, new_backends, .. } = &mut *staged;
        let affinity = self.affinities.acquire(&route, programmed.port, now);
        programmed.affinity = affinity.ok_or(Refused::Ids(self.sizes.service_names()))?;
        let family = route.frontend.family();
        let size = self.size_of_backends(family);
        let listed = is_listed(&route);
        let sets = [(&route.internal, Some(&mut programmed.internal))]
            .into_iter()
            .chain([(&route.external, programmed.external.as_deref_mut())]);
        for (target, set) in sets {
            let Some(set) = set else { continue };
            let mut ids = Vec::with_capacity(target.backends.len());
            let mut members = Vec::with_capacity(if listed { target.backends.len() } else { 0 });
            for backend in &*target.backends {
                let identity = Identity::new(programmed.port, backend);
                let Some((handle, new)) = self.backends.get_mut(family).acquire(identity, now) else { break };
                ids.push(handle.id);
                members.extend(listed.then(|| Member::new(handle.id, backend)));
                if new {
                    new_backends.push((handle, *backend));
                }
            }
            let complete = ids.len() == target.backends.len();
            *set = Set::of(ids);
            if !complete {
                return Err(Refused::Backends(family, size.saturating_sub(1)));
            }
            let taken = if listed {
                self.sets.take_listed(set, (family, route.algorithm, members), now)
            } else {
                self.sets.take(set, now)
            };
            taken.map_err(Refused::Slots)?;
        }
        self.take_sources(staged)?;
        self.count_cut(staged);
        Ok(())
    }

    /// Flows of UDP see by themselves that a backend is gone altogether, and by this number that it may be.
    fn count_cut(&self, Staged { programmed: new, .. }: &mut Staged) {
        let frontend = &new.route.frontend;
        if let Some(old) = self.routes.get(frontend).filter(|old| old.id == new.id) {
            let cut = frontend.protocol == Protocol::Udp && old.takes_away(new);
            new.cuts = old.cuts.wrapping_add(cut.into());
        }
    }

    /// Room for the ranges that are not there yet.
    fn take_sources(&mut self, staged: &mut Staged) -> Result<(), Refused> {
        let route = &staged.programmed.route;
        let family = route.frontend.family();
        let old = self.routes.get(&route.frontend).filter(|old| old.id == staged.programmed.id);
        let old = old.map_or(&[][..], |old| source_ranges(&old.route));
        let new = missing(source_ranges(route), old);
        let used = self.sources.get_mut(family);
        if *used + new.len() > self.sizes.source_ranges as usize {
            return Err(Refused::Sources(family, self.sizes.source_ranges));
        }
        *used += new.len();
        staged.new_sources = new;
        Ok(())
    }

    /// These ranges of a service are not needed any more.
    fn release_sources(
        &mut self,
        family: IpFamily,
        id: u32,
        cidrs: Vec<IpNet>,
    ) -> impl Iterator<Item = Retired> {
        *self.sources.get_mut(family) -= cidrs.len();
        cidrs.into_iter().map(move |cidr| Retired::Source(id, cidr))
    }

    /// The route's entry of `services` is written: what it replaced is given back.
    #[must_use]
    pub(crate) fn commit(&mut self, staged: Staged, now: Now) -> Vec<Retired> {
        let frontend = staged.programmed.route.frontend;
        let id = staged.programmed.id;
        let new = Arc::clone(&staged.programmed.route);
        let Some(old) = self.routes.insert(staged.programmed) else { return Vec::new() };
        let same_id = old.id == id;
        let mut retired = self.release(&old, same_id, now);
        let kept = if same_id { source_ranges(&new) } else { &[] };
        retired.extend(self.release_sources(
            frontend.family(),
            old.id,
            missing(source_ranges(&old.route), kept),
        ));
        retired
    }

    /// The route's entry of `services` could not be written: what was reserved for it is given back.
    pub(crate) fn abort(&mut self, staged: Staged, now: Now) -> Vec<Retired> {
        let Programmed { route, id, .. } = &staged.programmed;
        let kept_id = self.routes.get(&route.frontend).is_some_and(|old| old.id == *id);
        let (family, id) = (route.frontend.family(), *id);
        let mut retired = self.release(&staged.programmed, kept_id, now);
        retired.extend(self.release_sources(family, id, staged.new_sources));
        retired
    }

    /// The frontend's entry of `services` is gone.
    #[must_use]
    pub(crate) fn remove(&mut self, frontend: &Frontend, now: Now) -> Vec<Retired> {
        let Some(old) = self.routes.remove(frontend) else { return Vec::new() };
        let mut retired = self.release(&old, false, now);
        let cidrs = missing(source_ranges(&old.route), &[]);
        retired.extend(self.release_sources(frontend.family(), old.id, cidrs));
        retired
    }

    fn release(&mut self, programmed: &Programmed, keep_id: bool, now: Now) -> Vec<Retired> {
        let family = programmed.route.frontend.family();
        let mut retired = Vec::new();
        for set in programmed.sets() {
            for &id in set.ids() {
                if self.backends.get_mut(family).release(id, now) {
                    retired.push(Retired::Backend(family, id));
                }
            }
            self.sets.give_back(set, now);
        }
        self.affinities.release(programmed.port, programmed.affinity, now);
        self.ports.release(programmed.port);
        if let Some(ip) = cluster_ip(&programmed.route).filter(|ip| self.cluster_ips.release(*ip)) {
            retired.push(Retired::ClusterIp(ip));
        }
        if !keep_id {
            self.ids.give_back(programmed.id, now);
            retired.push(Retired::Name(programmed.id));
        }
        retired
    }

    /// Whether the map has this cluster IP.
    pub(crate) fn is_written(&self, cluster_ip: IpAddr) -> bool {
        self.cluster_ips.is_written(cluster_ip)
    }

    /// The map is to have this cluster IP, and counts as having it. True when nobody said so before.
    pub(crate) fn claim_cluster_ip(&mut self, cluster_ip: IpAddr) -> bool {
        self.cluster_ips.claim(cluster_ip)
    }

    /// The map has it not, after all.
    pub(crate) fn unclaim_cluster_ip(&mut self, cluster_ip: IpAddr) {
        self.cluster_ips.set_written(cluster_ip, false);
    }

    /// Whether a grace period would free something.
    pub(crate) fn has_resting(&self) -> bool {
        let backends = self.backends.v4.has_resting() || self.backends.v6.has_resting();
        backends || self.ids.has_resting() || self.affinities.has_resting() || self.sets.has_resting()
    }

    /// Whether it would free slots.
    pub(crate) fn has_resting_slots(&self) -> bool {
        self.sets.has_resting()
    }

    /// The caller waited for an RCU grace period.
    pub(crate) fn wake_all(&mut self) {
        self.backends.v4.wake_all();
        self.backends.v6.wake_all();
        self.ids.wake_all();
        self.affinities.wake_all();
        self.sets.wake_all();
    }
}

/// The cluster IP that a route is on.
pub(crate) fn cluster_ip(route: &Route) -> Option<IpAddr> {
    match route.frontend.address {
        FrontendAddress::Ip(address) => route.on_cluster_ip.then_some(address),
        FrontendAddress::NodePort(_) => None,
    }
}

/// From where a route may be reached, if not from everywhere.
pub(crate) fn source_ranges(route: &Route) -> &[IpNet] {
    route.source_ranges.as_ref().map_or(&[], |ranges| &ranges.cidrs)
}

/// Those of `cidrs` that are not in `other`, each once.
fn missing(cidrs: &[IpNet], other: &[IpNet]) -> Vec<IpNet> {
    let other: BTreeSet<&IpNet> = other.iter().collect();
    let cidrs: BTreeSet<&IpNet> = cidrs.iter().collect();
    cidrs.difference(&other).map(|cidr| **cidr).collect()
}

/// The rules that a route must obey to have a place in the maps. The router keeps them; a table may come from
/// elsewhere.
fn check(route: &Route) -> Result<(), String> {
    let family = route.frontend.family();
    if let FrontendAddress::Ip(address) = route.frontend.address
        && (address.is_unspecified() || address.is_multicast())
    {
        return Err(format!("frontend {}: the address must be a unicast address", route.frontend));
    }
    for Target { backends, .. } in [&route.internal, &route.external] {
        if let Some(stray) = backends.iter().find(|b| IpFamily::of(b.address) != family) {
            return Err(format!(
                "backend {}: must be an {family} address like the frontend {}",
                stray.socket_addr(),
                route.frontend
            ));
        }
    }
    if let Some(stray) = source_ranges(route).iter().find(|cidr| IpFamily::of(cidr.addr()) != family) {
        return Err(format!(
            "source range {stray}: must be an {family} range like the frontend {}",
            route.frontend
        ));
    }
    if !matches!(route.algorithm, Algorithm::Random | Algorithm::Maglev) {
        return Err(format!("the algorithm {} is not supported by this datapath", route.algorithm));
    }
    check_name(route)
}
