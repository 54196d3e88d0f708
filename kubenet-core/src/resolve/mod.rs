//! What a Service means on this node: pure functions from declared objects to routes.
//!
//! The rules follow the Kubernetes API documentation, the KEPs and kube-proxy's observed behaviour. Docs and
//! tests refer to them by the bracketed names below.
//!
//! | rule | meaning |
//! |---|---|
//! | \[O2\] | Endpoints of a Service port come from all its slices of one family, matched by port *name* and protocol. A slice port without a number is skipped. The same address and port counts once; one that is not terminating wins. |
//! | \[O3\] | `ready` and `serving` absent mean true, `terminating` absent means false. Ready wins even when terminating is set. An endpoint is local when its `nodeName` is ours. |
//! | \[E1\] | Usable in a set: the ready ones; if there is none, those that are serving and terminating. |
//! | \[E2\] | Cluster set: usable endpoints anywhere. Local set: usable endpoints on this node. |
//! | \[E4\] | `internalTrafficPolicy` chooses the set for the cluster IP. |
//! | \[E5\] | `externalTrafficPolicy` chooses the set for traffic from outside to the node port. Pods and this node short-circuit to the cluster set. |
//! | \[E6\] | No usable endpoint anywhere: reject. Some, but policy `Local` and none here: drop. |
//! | \[F1\] | Frontend: each cluster IP. |
//! | \[F4\] | Frontend: the node port, on the node's chosen addresses. |
//! | \[F5\] | Two Services claim one frontend: the older keeps it, the other is reported ([`Cluster`]). |
//! | \[S1\] to \[S5\] | Whose source address is replaced: see [`Masquerade`](crate::route::Masquerade). |
//! | \[L1\] \[L2\] | A removed backend gets no new connections; TCP to it lives until it ends, UDP flows to it are cut. |
//!
//! ```
//! use kubenet_core::{model::*, resolve::resolve, route::Frontend};
//! let node = NodeInfo::builder("node-a").address("10.0.0.1".parse()?).build()?;
//! let web = Service::builder("demo", "web")
//!     .cluster_ip("10.96.0.10".parse()?)
//!     .port(ServicePort::new("http", Protocol::Tcp, 80.try_into()?))
//!     .build()?;
//! let slice = EndpointSlice::builder("demo", "web-1", "web", IpFamily::V4)
//!     .port(EndpointPort::new("http", Protocol::Tcp, 8080.try_into()?))
//!     .endpoint(Endpoint::new("10.244.1.2".parse()?).on_node("node-a"))
//!     .build()?;
//! let table = resolve(&node, [&web], [&slice]);
//! let route = table.get(&Frontend::ip("10.96.0.10".parse()?, 80.try_into()?, Protocol::Tcp)).unwrap();
//! assert_eq!(route.internal.backends[0].socket_addr(), "10.244.1.2:8080".parse()?);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod endpoints;
mod masquerade;
mod policy;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::{
    cluster::{Change, Cluster},
    model::{EndpointSlice, IpFamily, NodeInfo, Service},
    route::{Frontend, FrontendKind, Route, RouteTable},
};

use self::{endpoints::Endpoints, policy::Targets};

/// The routes of one Service, from all its slices.
///
/// Slices of other Services must not be among `slices`. The order of slices does not matter.
pub fn resolve_service<'a>(
    node: &NodeInfo,
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
) -> Vec<Arc<Route>> {
    let mut routes = Vec::new();
    for &cluster_ip in service.cluster_ips() {
        let family = IpFamily::of(cluster_ip);
        for port in service.ports() {
            let endpoints = Endpoints::gather(node, port, family, slices.clone());
            let targets = Targets::choose(service, &endpoints);
            let name = service.port_name(port);
            let mut push = |frontend, kind, (internal, external)| {
                let masquerade = masquerade::rule(node, service, kind, family);
                let mut route = Route::new(frontend, kind, name.clone(), internal, masquerade);
                route.external = external;
                routes.push(Arc::new(route));
            };
            push(
                Frontend::ip(cluster_ip, port.port(), port.protocol()),
                FrontendKind::ClusterIp,
                targets.for_cluster_ip(),
            );
            if let Some(node_port) = port.node_port() {
                push(
                    Frontend::node_port(family, node_port, port.protocol()),
                    FrontendKind::NodePort,
                    targets.for_external_frontend(),
                );
            }
        }
    }
    routes
}

/// The table of a whole cluster at once, at revision 1. [`ServiceRouter`](crate::router::ServiceRouter) does
/// the same step by step.
pub fn resolve<'a>(
    node: &NodeInfo,
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> RouteTable {
    let mut cluster = Cluster::new(node.clone());
    for service in services {
        cluster.change(Change::Service(service.clone()));
    }
    for slice in slices {
        cluster.change(Change::EndpointSlice(slice.clone()));
    }
    cluster.take_delta();
    RouteTable::clone(cluster.table())
}
