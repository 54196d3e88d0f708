//! Resolved routes: what a datapath is asked to serve on this node.
//!
//! A datapath never sees a Service. It sees a [`RouteTable`], and [`RouteDelta`]s that move it from one
//! [`Revision`] to the next.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use crate::model::{IpFamily, LocalDetector, Protocol};

/// What a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Where it is dialled.
    pub address: FrontendAddress,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port, host byte order.
    pub port: NonZeroU16,
}

/// The address of a [`Frontend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    /// One address: a cluster IP, an external IP or a load balancer's.
    Ip(IpAddr),
    /// Any of the node's chosen addresses of a family: [`NodeRouting::node_port_addresses`].
    NodePort(IpFamily),
}

impl Frontend {
    /// A frontend on one address.
    pub const fn ip(address: IpAddr, port: NonZeroU16, protocol: Protocol) -> Self {
        Self { address: FrontendAddress::Ip(address), protocol, port }
    }

    /// A frontend on the node's chosen addresses of one family.
    pub const fn node_port(family: IpFamily, port: NonZeroU16, protocol: Protocol) -> Self {
        Self { address: FrontendAddress::NodePort(family), protocol, port }
    }

    /// The family of its address.
    pub const fn family(&self) -> IpFamily {
        match self.address {
            FrontendAddress::Ip(address) => IpFamily::of(address),
            FrontendAddress::NodePort(family) => family,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            FrontendAddress::Ip(address) => {
                write!(f, "{}/{}", SocketAddr::new(address, self.port.get()), self.protocol)
            }
            FrontendAddress::NodePort(family) => {
                write!(f, "node port {}/{} ({family})", self.port, self.protocol)
            }
        }
    }
}

/// Which field of the Service a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

impl FrontendKind {
    /// Whether traffic to it is meant for clients outside the cluster, so that the external policy counts.
    pub const fn is_external(self) -> bool {
        !matches!(self, FrontendKind::ClusterIp)
    }
}

/// Identity of a Service port, for names, comments, metrics and error messages.
///
/// Displays as kube-proxy's `ServicePortName`: `namespace/name:port`, without the colon for an unnamed port.
/// The parts passed the checks of the model, but a datapath must still treat them as data: a table may come
/// from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Name of the port; empty for the only, unnamed one.
    pub port: Arc<str>,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// An endpoint that may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address of the endpoint, of the same family as the frontend.
    pub address: IpAddr,
    /// Port of the endpoint, host byte order.
    pub port: NonZeroU16,
    /// Whether the endpoint is on this node.
    pub local: bool,
    /// Whether the endpoint is ready or only a stop-gap.
    pub state: BackendState,
}

impl Backend {
    /// Address and port together.
    pub const fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port.get())
    }
}

/// State of a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// Ready for traffic.
    Ready,
    /// Serving while it terminates: picked only because no ready endpoint is left.
    Terminating,
}

/// Where traffic of one side (internal or external) goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The backends to pick from, sorted, without duplicates of address and port.
    pub backends: Arc<[Backend]>,
    /// What happens to a new flow when `backends` is empty.
    pub when_empty: WhenEmpty,
}

/// Answer to a new flow for which there is no backend ([E6]).
///
/// [E6]: crate::resolve
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhenEmpty {
    /// The client fails at once with `ECONNREFUSED`: TCP reset or ICMP port unreachable.
    Reject,
    /// Silence: another node has endpoints, and a load balancer will go there.
    Drop,
}

/// Where a flow comes from, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A pod of this cluster, as the [`LocalDetector`] says.
    Pod,
    /// This node's own network namespace.
    Node,
    /// Anywhere else.
    Outside,
}

impl Origin {
    /// Whether the flow uses [`Route::internal`].
    pub const fn is_internal(self) -> bool {
        !matches!(self, Origin::Outside)
    }
}

/// Whose source address is replaced by the node's, by origin of the flow.
///
/// A backend that reaches itself through its own Service is always masqueraded, whatever this says: the
/// reply would otherwise never leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Masquerade {
    /// Flows from pods.
    pub pods: bool,
    /// Flows from this node.
    pub node: bool,
    /// Flows from outside.
    pub outside: bool,
}

impl Masquerade {
    /// Nobody, except a backend that reaches itself.
    pub const NEVER: Masquerade = Masquerade { pods: false, node: false, outside: false };
    /// Everybody.
    pub const ALWAYS: Masquerade = Masquerade { pods: true, node: true, outside: true };

    /// Whether flows of this origin are masqueraded.
    pub const fn applies_to(self, origin: Origin) -> bool {
        match origin {
            Origin::Pod => self.pods,
            Origin::Node => self.node,
            Origin::Outside => self.outside,
        }
    }
}

/// One frontend and everything that a datapath needs to serve it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Route {
    /// What the client dials.
    pub frontend: Frontend,
    /// Which field of the Service it comes from.
    pub kind: FrontendKind,
    /// Whose it is.
    pub service_port: ServicePortName,
    /// For flows from pods of this cluster and from this node.
    pub internal: Target,
    /// For flows from outside.
    pub external: Target,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
}

impl Route {
    /// A route with the same backends for everybody.
    pub fn new(
        frontend: Frontend,
        kind: FrontendKind,
        service_port: ServicePortName,
        target: Target,
        masquerade: Masquerade,
    ) -> Self {
        Self { frontend, kind, service_port, internal: target.clone(), external: target, masquerade }
    }

    /// The target for flows of this origin.
    pub fn target(&self, origin: Origin) -> &Target {
        if origin.is_internal() { &self.internal } else { &self.external }
    }

    /// Every distinct address and port that this route may pick.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        let internal = &self.internal.backends;
        let same = Arc::ptr_eq(internal, &self.external.backends);
        let more = if same { &[][..] } else { &self.external.backends[..] };
        internal
            .iter()
            .chain(more.iter().filter(move |b| !internal.iter().any(|i| i.socket_addr() == b.socket_addr())))
    }
}

/// Position of a [`RouteTable`] in the sequence of changes. 0 is the empty table before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// Facts about the node that all its routes share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct NodeRouting {
    /// The node's addresses on which node ports answer; sorted, both families.
    pub node_port_addresses: Vec<IpAddr>,
    /// All of the node's addresses, the primary one of each family first: what masqueraded flows come from.
    pub addresses: Vec<IpAddr>,
    /// How a pod's flow is told from one from outside.
    pub local_detector: LocalDetector,
}

impl NodeRouting {
    /// The first address of a family: the source of masqueraded flows.
    pub fn primary_address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| IpFamily::of(*a) == family)
    }

    /// Where a flow with this source address comes from.
    pub fn origin(&self, source: IpAddr) -> Origin {
        if self.addresses.contains(&source) || source.is_loopback() {
            Origin::Node
        } else if self.local_detector.is_pod(source) {
            Origin::Pod
        } else {
            Origin::Outside
        }
    }
}

/// All routes of this node at one revision.
///
/// Cloning costs O(routes): hold it in an `Arc`. A datapath should not keep the `Arc` it was given for long,
/// so that the owner can change the table in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    revision: Revision,
    node: Arc<NodeRouting>,
    routes: BTreeMap<Frontend, Arc<Route>>,
}

/// A delta was applied to a table of another revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the delta starts from {base}, the table is at {actual}")]
pub struct RevisionMismatch {
    /// Where the delta starts.
    pub base: Revision,
    /// Where the table is.
    pub actual: Revision,
}

impl RouteTable {
    /// A table of these routes. Of two routes for one frontend the later wins.
    pub fn new(
        revision: Revision,
        node: Arc<NodeRouting>,
        routes: impl IntoIterator<Item = Arc<Route>>,
    ) -> Self {
        Self { revision, node, routes: routes.into_iter().map(|r| (r.frontend, r)).collect() }
    }

    /// Its revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The node's facts.
    pub fn node(&self) -> &Arc<NodeRouting> {
        &self.node
    }

    /// Number of routes.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are no routes.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The routes, sorted by frontend.
    pub fn routes(&self) -> impl ExactSizeIterator<Item = &Arc<Route>> {
        self.routes.values()
    }

    /// The route of exactly this frontend.
    pub fn get(&self, frontend: &Frontend) -> Option<&Arc<Route>> {
        self.routes.get(frontend)
    }

    /// The route that serves a packet to this destination: one on the address itself wins over a node port.
    pub fn lookup(&self, destination: IpAddr, port: NonZeroU16, protocol: Protocol) -> Option<&Arc<Route>> {
        self.get(&Frontend::ip(destination, port, protocol)).or_else(|| {
            if !self.node.node_port_addresses.contains(&destination) {
                return None;
            }
            self.get(&Frontend::node_port(IpFamily::of(destination), port, protocol))
        })
    }

    /// Moves the table along a delta.
    ///
    /// # Errors
    /// [`RevisionMismatch`] when the delta starts elsewhere; the table is then unchanged.
    pub fn apply(&mut self, delta: &RouteDelta) -> Result<(), RevisionMismatch> {
        if delta.base != self.revision {
            return Err(RevisionMismatch { base: delta.base, actual: self.revision });
        }
        for frontend in &delta.removals {
            self.routes.remove(frontend);
        }
        for route in &delta.upserts {
            self.routes.insert(route.frontend, Arc::clone(route));
        }
        if let Some(node) = &delta.node {
            self.node = Arc::clone(node);
        }
        self.revision = delta.revision;
        Ok(())
    }

    /// What has to change to get from this table to `next`.
    pub fn diff(&self, next: &RouteTable) -> RouteDelta {
        let mut delta = RouteDelta::empty(self.revision, next.revision);
        if self.node != next.node {
            delta.node = Some(Arc::clone(&next.node));
        }
        for (frontend, old) in &self.routes {
            delta.change(Some(old), next.routes.get(frontend));
        }
        for (frontend, new) in &next.routes {
            if !self.routes.contains_key(frontend) {
                delta.change(None, Some(new));
            }
        }
        delta
    }

    /// Whether both serve the same, whatever their revisions.
    pub fn same_routes(&self, other: &RouteTable) -> bool {
        self.node == other.node && self.routes == other.routes
    }
}

/// The way from one revision to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteDelta {
    /// Where it starts.
    pub base: Revision,
    /// Where it ends.
    pub revision: Revision,
    /// The node's facts, when they changed.
    pub node: Option<Arc<NodeRouting>>,
    /// Routes that are new or changed.
    pub upserts: Vec<Arc<Route>>,
    /// Frontends that are no longer served.
    pub removals: Vec<Frontend>,
    /// Backends that a frontend can no longer pick: connections to them may need cutting ([L2]).
    ///
    /// [L2]: crate::resolve
    pub removed_backends: Vec<RemovedBackend>,
}

/// A backend that left a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemovedBackend {
    /// The route.
    pub frontend: Frontend,
    /// Address and port of the backend.
    pub backend: SocketAddr,
}

impl RouteDelta {
    /// A delta that only moves the revision.
    pub fn empty(base: Revision, revision: Revision) -> Self {
        Self { base, revision, ..Self::default() }
    }

    /// Whether it changes nothing that packets can see.
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.upserts.is_empty() && self.removals.is_empty()
    }

    /// Records the step from `old` to `new` of one frontend. Nothing is recorded when they are equal.
    pub fn change(&mut self, old: Option<&Arc<Route>>, new: Option<&Arc<Route>>) {
        if old == new {
            return;
        }
        match (old, new) {
            (_, Some(new)) => self.upserts.push(Arc::clone(new)),
            (Some(old), None) => self.removals.push(old.frontend),
            (None, None) => {}
        }
        let Some(old) = old else { return };
        for gone in old.backends() {
            let address = gone.socket_addr();
            if !new.is_some_and(|new| new.backends().any(|b| b.socket_addr() == address)) {
                self.removed_backends.push(RemovedBackend { frontend: old.frontend, backend: address });
            }
        }
    }
}
