//! Resolved routes: what a datapath is asked to serve on this node.
//!
//! A datapath never sees a Service. It sees a [`RouteTable`], and [`RouteDelta`]s that move it from one
//! [`Revision`] to the next.

mod delta;
mod frontend;
mod node;
mod source_ranges;
mod table;
mod target;

use std::{net::IpAddr, sync::Arc};

pub use self::{
    delta::{RemovedBackend, RouteDelta},
    frontend::{Frontend, FrontendAddress, FrontendKind, ServicePortName},
    node::NodeRouting,
    source_ranges::SourceRanges,
    table::{Revision, RevisionMismatch, RouteTable},
    target::{Backend, BackendState, Masquerade, Origin, Target, WhenEmpty},
};
use crate::model::{Affinity, Algorithm};

/// One frontend and everything that a datapath needs to serve it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Route {
    /// What the client dials.
    pub frontend: Frontend,
    /// Which field of the Service it comes from.
    pub kind: FrontendKind,
    /// Whether the address is a cluster IP, so that its other ports are rejected ([N4]). Always for
    /// [`FrontendKind::ClusterIp`]; for another kind when it won the frontend of a cluster IP ([F5]).
    ///
    /// [F5]: crate::resolve
    /// [N4]: crate::resolve
    pub on_cluster_ip: bool,
    /// Whose it is.
    pub service_port: ServicePortName,
    /// For flows from pods of this cluster and from this node.
    pub internal: Target,
    /// For flows from outside.
    pub external: Target,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
    /// How a backend is picked.
    pub algorithm: Algorithm,
    /// Whether a client stays with the backend that was picked first. The client's choice belongs to
    /// [`Route::service_port`]: all frontends of one share it ([A1]).
    ///
    /// [A1]: crate::resolve
    pub affinity: Option<Affinity>,
    /// Who may reach the frontend, where not everybody may. Others are dropped, before anything else is
    /// decided ([R3]).
    ///
    /// [R3]: crate::resolve
    pub source_ranges: Option<Arc<SourceRanges>>,
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
        Self {
            frontend,
            kind,
            on_cluster_ip: kind == FrontendKind::ClusterIp,
            service_port,
            internal: target.clone(),
            external: target,
            masquerade,
            algorithm: Algorithm::Random,
            affinity: None,
            source_ranges: None,
        }
    }

    /// Whether a flow of this origin from this source may reach the frontend.
    pub fn admits(&self, origin: Origin, source: IpAddr) -> bool {
        self.source_ranges.as_ref().is_none_or(|ranges| ranges.admits(origin, source))
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
        let is_new = |b: &&Backend| {
            internal.binary_search_by_key(&(b.address, b.port), |i| (i.address, i.port)).is_err()
        };
        internal.iter().chain(more.iter().filter(is_new))
    }
}
