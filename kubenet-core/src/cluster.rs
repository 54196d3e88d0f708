//! The latest declared objects, and which routes a change touches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    health::ServiceHealth,
    model::{EndpointSlice, NodeInfo, ObjectName, Service},
    resolve::{resolve_health, resolve_service},
    route::{Frontend, FrontendKind, Revision, Route, RouteDelta, RouteTable, ServicePortName},
};

/// A declared change. The order of changes of different objects never matters for the end state ([K2]):
/// a slice that arrives before its Service is kept.
///
/// [K2]: crate::resolve
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A Service was created or changed.
    Service(Service),
    /// A Service was deleted.
    RemoveService(ObjectName),
    /// A slice was created or changed.
    EndpointSlice(EndpointSlice),
    /// A slice was deleted.
    RemoveEndpointSlice(ObjectName),
    /// Facts about this node changed.
    Node(NodeInfo),
    /// Everything that exists: what is not named here was deleted. For the first list, and after a watch may
    /// have lost deletions.
    Snapshot {
        /// All Services.
        services: Vec<Service>,
        /// All slices.
        slices: Vec<EndpointSlice>,
    },
}

/// Two Services claim one frontend; the older one has it ([F5]).
///
/// [F5]: crate::resolve
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendConflict {
    /// The frontend.
    pub frontend: Frontend,
    /// Who serves it.
    pub winner: ServicePortName,
    /// Who claims it, too.
    pub loser: ServicePortName,
}

/// Everything declared for this node, and the table that it means.
///
/// A change costs what it touches: [`Cluster::take_delta`] resolves only the Services that changed since the
/// last call.
#[derive(Debug)]
pub struct Cluster {
    node: NodeInfo,
    services: HashMap<ObjectName, Declared>,
    slice_owner: HashMap<ObjectName, ObjectName>,
    claims: HashMap<Frontend, Vec<Claim>>,
    contested: BTreeSet<Frontend>,
    dirty: BTreeSet<ObjectName>,
    service_count: usize,
    node_changed: bool,
    table: Arc<RouteTable>,
    health: BTreeMap<ObjectName, ServiceHealth>,
    /// Since they were last taken.
    health_changes: BTreeSet<ObjectName>,
}

#[derive(Debug, Default)]
struct Declared {
    service: Option<Service>,
    slices: Vec<EndpointSlice>,
    routes: Vec<Arc<Route>>,
}

impl Cluster {
    /// A cluster without Services.
    pub fn new(node: NodeInfo) -> Self {
        Self {
            node,
            services: HashMap::new(),
            slice_owner: HashMap::new(),
            claims: HashMap::new(),
            contested: BTreeSet::new(),
            dirty: BTreeSet::new(),
            service_count: 0,
            node_changed: true,
            table: Arc::new(RouteTable::default()),
            health: BTreeMap::new(),
            health_changes: BTreeSet::new(),
        }
    }

    /// The table as of the last [`Cluster::take_delta`].
    pub fn table(&self) -> &Arc<RouteTable> {
        &self.table
    }

    /// Number of Services.
    pub fn service_count(&self) -> usize {
        self.service_count
    }

    /// Whether something changed since the last [`Cluster::take_delta`].
    pub fn is_dirty(&self) -> bool {
        self.node_changed || !self.dirty.is_empty()
    }

    /// Frontends that more than one Service claims now, sorted.
    pub fn conflicts(&self) -> Vec<FrontendConflict> {
        let mut conflicts = Vec::new();
        for frontend in &self.contested {
            let claims = self.claims.get(frontend).map_or(&[][..], |claims| &claims[..]);
            let Some(winner) = Claim::winner(claims) else { continue };
            // A Service that lists one address in two fields contests nothing.
            let (ours, claims) = (&winner.service_port, claims.iter().map(|claim| &claim.route.service_port));
            let losers = claims.filter(|l| (&l.namespace, &l.service) != (&ours.namespace, &ours.service));
            conflicts.extend(losers.map(|loser| FrontendConflict {
                frontend: *frontend,
                winner: ours.clone(),
                loser: loser.clone(),
            }));
        }
        // A Service may claim a frontend through two of its fields.
        conflicts.sort_unstable();
        conflicts.dedup();
        conflicts
    }

    /// The health checks of the Services that have one, as of the last [`Cluster::take_delta`].
    pub fn health(&self) -> &BTreeMap<ObjectName, ServiceHealth> {
        &self.health
    }

    /// What changed in [`Cluster::health`] since the last call: the Services with their health check, or with
    /// `None` when they no longer have one.
    pub fn take_health_changes(&mut self) -> Vec<(ObjectName, Option<ServiceHealth>)> {
        let changed = std::mem::take(&mut self.health_changes).into_iter();
        changed.map(|name| (name.clone(), self.health.get(&name).cloned())).collect()
    }

    /// The node that the routes are for.
    pub fn node(&self) -> &NodeInfo {
        &self.node
    }

    /// Takes a change. Nothing is resolved yet.
    pub fn change(&mut self, change: Change) {
        match change {
            Change::Service(service) => {
                let name = service.name().clone();
                let declared = self.services.entry(name.clone()).or_default();
                if declared.service.as_ref() != Some(&service) {
                    self.service_count += usize::from(declared.service.replace(service).is_none());
                    self.dirty.insert(name);
                }
            }
            Change::RemoveService(name) => {
                if let Some(declared) = self.services.get_mut(&name)
                    && declared.service.take().is_some()
                {
                    self.service_count -= 1;
                    self.dirty.insert(name);
                }
            }
            Change::EndpointSlice(slice) => self.put_slice(slice),
            Change::RemoveEndpointSlice(name) => self.remove_slice(&name),
            Change::Node(node) => {
                if self.node != node {
                    self.node = node;
                    self.node_changed = true;
                }
            }
            Change::Snapshot { services, slices } => self.replace_all(services, slices),
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice) {
        let (name, owner) = (slice.name().clone(), slice.service().clone());
        if let Some(before) = self.slice_owner.insert(name.clone(), owner.clone())
            && before != owner
        {
            self.forget_slice(&before, &name);
        }
        let declared = self.services.entry(owner.clone()).or_default();
        match declared.slices.iter_mut().find(|known| known.name() == &name) {
            Some(known) if *known == slice => return,
            Some(known) => *known = slice,
            None => declared.slices.push(slice),
        }
        self.dirty.insert(owner);
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        if let Some(owner) = self.slice_owner.remove(name) {
            self.forget_slice(&owner, name);
        }
    }

    fn forget_slice(&mut self, owner: &ObjectName, name: &ObjectName) {
        if let Some(declared) = self.services.get_mut(owner) {
            declared.slices.retain(|known| known.name() != name);
            self.dirty.insert(owner.clone());
        }
    }

    fn replace_all(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) {
        let named: BTreeSet<_> = services.iter().map(|service| service.name().clone()).collect();
        let gone: Vec<_> = self.services.keys().filter(|name| !named.contains(name)).cloned().collect();
        for name in gone {
            self.change(Change::RemoveService(name));
        }
        let named: BTreeSet<_> = slices.iter().map(|slice| slice.name().clone()).collect();
        let gone: Vec<_> = self.slice_owner.keys().filter(|name| !named.contains(name)).cloned().collect();
        for name in gone {
            self.remove_slice(&name);
        }
        for service in services {
            self.change(Change::Service(service));
        }
        for slice in slices {
            self.put_slice(slice);
        }
    }

    /// Resolves what changed since the last call, moves the table to the next revision, and says how it
    /// differs. `None` when no packet could see a difference.
    pub fn take_delta(&mut self) -> Option<RouteDelta> {
        let base = self.table.revision();
        let mut delta = RouteDelta::empty(base, base.next());
        if self.node_changed {
            self.node_changed = false;
            let node = self.node.routing();
            if **self.table.node() != node {
                delta.node = Some(Arc::new(node));
            }
            self.dirty.extend(self.services.keys().cloned());
        }
        // A BTreeSet: a frontend that moves between two changed Services must be seen once, with both done.
        let mut touched = BTreeSet::new();
        for name in std::mem::take(&mut self.dirty) {
            self.resolve_one(&name, &mut touched);
        }
        for frontend in touched {
            let claims = self.claims.get(&frontend).map_or(&[][..], |claims| &claims[..]);
            delta.change(self.table.get(&frontend), Claim::route(claims).as_ref());
            let contested = claims.len() > 1;
            if claims.is_empty() {
                self.claims.remove(&frontend);
            }
            if contested {
                self.contested.insert(frontend);
            } else {
                self.contested.remove(&frontend);
            }
        }
        if delta.is_empty() {
            return None;
        }
        // In place, unless somebody holds the table: then that one stays as it is and we go on with a copy.
        let moved = Arc::make_mut(&mut self.table).apply(&delta);
        debug_assert!(moved.is_ok(), "the delta starts from this table");
        Some(delta)
    }

    fn resolve_one(&mut self, name: &ObjectName, touched: &mut BTreeSet<Frontend>) {
        let Some(declared) = self.services.get_mut(name) else { return };
        let (routes, health) = match &declared.service {
            Some(service) => (
                resolve_service(&self.node, service, &declared.slices),
                resolve_health(&self.node, service, &declared.slices),
            ),
            None => (Vec::new(), None),
        };
        if self.health.get(name) != health.as_ref() {
            self.health_changes.insert(name.clone());
            match health {
                Some(health) => drop(self.health.insert(name.clone(), health)),
                None => drop(self.health.remove(name)),
            }
        }
        for old in &declared.routes {
            touched.insert(old.frontend);
            if let Some(claims) = self.claims.get_mut(&old.frontend) {
                claims.retain(|claim| !Arc::ptr_eq(&claim.route, old));
            }
        }
        let created = declared.service.as_ref().and_then(Service::created).unwrap_or(i64::MAX);
        for new in &routes {
            touched.insert(new.frontend);
            self.claims.entry(new.frontend).or_default().push(Claim { created, route: Arc::clone(new) });
        }
        declared.routes = routes;
        if declared.service.is_none() && declared.slices.is_empty() {
            self.services.remove(name);
        }
    }

    /// The number of the table's revision.
    pub fn revision(&self) -> Revision {
        self.table.revision()
    }
}

/// A Service port that wants a frontend.
#[derive(Debug)]
struct Claim {
    /// Creation of the Service in seconds since the Unix epoch; one of unknown age counts as the youngest.
    created: i64,
    route: Arc<Route>,
}

impl Claim {
    /// [F5]: the older claim, by creation time, then by name. Of two fields of one Service the load balancer's
    /// counts: its source ranges must not be passed by.
    fn winner(claims: &[Claim]) -> Option<&Arc<Route>> {
        fn key(claim: &Claim) -> impl Ord + '_ {
            let ServicePortName { namespace, service, port } = &claim.route.service_port;
            let unfiltered = claim.route.kind != FrontendKind::LoadBalancer;
            (claim.created, namespace, service, unfiltered, port)
        }
        let winner = claims.iter().min_by(|a, b| key(a).cmp(&key(b)));
        winner.map(|claim| &claim.route)
    }

    /// What the frontend serves: the winner's route, on a cluster IP if one of the claims is ([N4]).
    fn route(claims: &[Claim]) -> Option<Arc<Route>> {
        let mut route = Arc::clone(Claim::winner(claims)?);
        if !route.on_cluster_ip && claims.iter().any(|claim| claim.route.on_cluster_ip) {
            Arc::make_mut(&mut route).on_cluster_ip = true;
        }
        Some(route)
    }
}

#[cfg(test)]
mod tests;
