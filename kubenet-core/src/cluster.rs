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
            delta.change(self.table.get(&frontend), Claim::winner(claims));
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
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::{Endpoint, EndpointPort, IpFamily, Protocol, ServicePort, ServiceType};

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    fn node() -> NodeInfo {
        NodeInfo::builder("node-a").address("10.0.0.1".parse().unwrap()).build().unwrap()
    }

    fn service(name: &str, ip: &str, number: u16, created: i64) -> Service {
        Service::builder("demo", name)
            .service_type(ServiceType::NodePort)
            .cluster_ip(ip.parse().unwrap())
            .port(ServicePort::new("", Protocol::Tcp, port(number)).with_node_port(port(30000 + number)))
            .created(created)
            .build()
            .unwrap()
    }

    fn slice(name: &str, service: &str, address: &str) -> EndpointSlice {
        EndpointSlice::builder("demo", name, service, IpFamily::V4)
            .port(EndpointPort::new("", Protocol::Tcp, port(8080)))
            .endpoint(Endpoint::new(address.parse().unwrap()))
            .build()
            .unwrap()
    }

    fn cluster(changes: impl IntoIterator<Item = Change>) -> Cluster {
        let mut cluster = Cluster::new(node());
        for change in changes {
            cluster.change(change);
        }
        cluster
    }

    #[test]
    fn k2_the_order_of_changes_never_matters() {
        let changes = [
            Change::Service(service("a", "10.96.0.1", 80, 1)),
            Change::EndpointSlice(slice("a-1", "a", "10.244.1.2")),
            Change::Service(service("b", "10.96.0.1", 80, 2)),
        ];
        let mut forwards = cluster(changes.clone());
        let mut backwards = cluster(changes.into_iter().rev());
        forwards.take_delta();
        backwards.take_delta();
        assert!(forwards.table().same_routes(backwards.table()));
        assert!(forwards.table().routes().all(|route| &*route.service_port.service == "a"));
    }

    #[test]
    fn f5_the_older_claim_keeps_a_frontend_and_the_other_takes_over_when_it_goes() {
        let mut cluster = cluster([
            Change::Service(service("young", "10.96.0.1", 80, 2)),
            Change::Service(service("old", "10.96.0.1", 80, 1)),
        ]);
        cluster.take_delta();
        let owner = |cluster: &Cluster| {
            let frontend = Frontend::ip("10.96.0.1".parse().unwrap(), port(80), Protocol::Tcp);
            cluster.table().get(&frontend).unwrap().service_port.service.to_string()
        };
        assert_eq!(owner(&cluster), "old");
        let conflicts = cluster.conflicts();
        assert_eq!(conflicts.len(), 2, "the cluster IP and the node port");
        assert_eq!(&*conflicts[0].loser.service, "young");
        let old = service("old", "10.96.0.1", 80, 1);
        cluster.change(Change::RemoveService(old.name().clone()));
        cluster.take_delta();
        assert_eq!(owner(&cluster), "young");
        assert!(cluster.conflicts().is_empty());
    }

    #[test]
    fn f5_conflicts_are_told_in_order_and_once() {
        let twice = Service::builder("demo", "c")
            .cluster_ip("10.96.0.9".parse().unwrap())
            .external_ip("10.96.0.1".parse().unwrap())
            .load_balancer_ip("10.96.0.1".parse().unwrap())
            .port(ServicePort::new("", Protocol::Tcp, port(80)))
            .build()
            .unwrap();
        let mut cluster = cluster([
            Change::Service(twice),
            Change::Service(service("b", "10.96.0.1", 80, 2)),
            Change::Service(service("a", "10.96.0.1", 80, 1)),
        ]);
        cluster.take_delta();
        let losers: Vec<_> = cluster
            .conflicts()
            .iter()
            .filter(|c| c.frontend.address != crate::route::FrontendAddress::NodePort(IpFamily::V4))
            .map(|c| c.loser.service.to_string())
            .collect();
        assert_eq!(losers, ["b", "c"]);
    }

    #[test]
    fn o5_a_changed_port_or_address_leaves_nothing_of_the_old_frontend() {
        let mut cluster = cluster([Change::Service(service("a", "10.96.0.1", 80, 1))]);
        cluster.take_delta();
        cluster.change(Change::Service(service("a", "10.96.0.2", 81, 1)));
        let delta = cluster.take_delta().unwrap();
        assert_eq!(delta.removals.len(), 2);
        assert_eq!(delta.upserts.len(), 2);
        assert_eq!(cluster.table().len(), 2);
    }

    #[test]
    fn a_change_that_means_nothing_makes_no_delta() {
        let mut cluster = cluster([Change::Service(service("a", "10.96.0.1", 80, 1))]);
        assert!(cluster.take_delta().is_some());
        cluster.change(Change::Service(service("a", "10.96.0.1", 80, 1)));
        cluster.change(Change::EndpointSlice(slice("x", "unknown", "10.244.1.2")));
        assert_eq!(cluster.take_delta(), None);
    }

    #[test]
    fn a_removed_endpoint_is_named_in_the_delta() {
        let mut cluster = cluster([
            Change::Service(service("a", "10.96.0.1", 80, 1)),
            Change::EndpointSlice(slice("a-1", "a", "10.244.1.2")),
        ]);
        cluster.take_delta();
        cluster.change(Change::EndpointSlice(slice("a-1", "a", "10.244.1.3")));
        let delta = cluster.take_delta().unwrap();
        let removed: Vec<_> = delta.removed_backends.iter().map(|r| r.backend.to_string()).collect();
        assert_eq!(removed, ["10.244.1.2:8080", "10.244.1.2:8080"], "once for each frontend");
    }

    #[test]
    fn a_slice_that_changes_hands_leaves_its_old_service() {
        let mut cluster = cluster([
            Change::Service(service("a", "10.96.0.1", 80, 1)),
            Change::Service(service("b", "10.96.0.2", 81, 1)),
            Change::EndpointSlice(slice("s", "a", "10.244.1.2")),
        ]);
        cluster.take_delta();
        cluster.change(Change::EndpointSlice(slice("s", "b", "10.244.1.2")));
        cluster.take_delta();
        let mut counts: Vec<_> = cluster
            .table()
            .routes()
            .map(|route| (route.service_port.service.to_string(), route.internal.backends.len()))
            .collect();
        counts.sort();
        counts.dedup();
        assert_eq!(counts, [("a".to_owned(), 0), ("b".to_owned(), 1)]);
    }

    #[test]
    fn a_snapshot_removes_what_it_does_not_name() {
        let mut cluster = cluster([
            Change::Service(service("a", "10.96.0.1", 80, 1)),
            Change::EndpointSlice(slice("a-1", "a", "10.244.1.2")),
        ]);
        cluster.take_delta();
        cluster.change(Change::Snapshot {
            services: vec![service("b", "10.96.0.2", 81, 1)],
            slices: vec![slice("b-1", "b", "10.244.1.3")],
        });
        cluster.take_delta();
        assert_eq!(cluster.table().len(), 2);
        assert_eq!(cluster.service_count(), 1);
        assert_eq!(cluster.slice_owner.len(), 1);
    }
}
