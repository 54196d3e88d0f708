use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU16, sync::Arc};

use super::{Frontend, NodeRouting, Route, RouteDelta};
use crate::model::{IpFamily, Protocol};

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
            if !self.node.has_node_ports_on(destination) {
                return None;
            }
            self.get(&Frontend::node_port(IpFamily::of(destination), port, protocol))
        })
    }

    /// Whether some route is on this cluster IP. A packet to it that no route serves is rejected ([N4]).
    ///
    /// [N4]: crate::resolve
    pub fn has_cluster_ip(&self, address: IpAddr) -> bool {
        let first = Frontend::ip(address, NonZeroU16::MIN, Protocol::Tcp);
        let last = Frontend::ip(address, NonZeroU16::MAX, Protocol::Sctp);
        self.routes.range(first..=last).any(|(_, route)| route.on_cluster_ip)
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
