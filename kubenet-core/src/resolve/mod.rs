//! What a Service means on this node: pure functions from declared objects to routes.
//!
//! The rules follow the Kubernetes API documentation, the KEPs and kube-proxy's observed behaviour. Docs and
//! tests refer to them by the bracketed names below.
//!
//! | rule | meaning |
//! |---|---|
//! | \[O1\] | Not ours: `ExternalName`, headless, without a cluster IP, or labelled for another proxy. |
//! | \[O2\] | Endpoints of a Service port come from all its slices of one family, matched by port *name* and protocol. A slice port without a number is skipped. The same address and port counts once; one that is not terminating wins. |
//! | \[O3\] | `ready` and `serving` absent mean true, `terminating` absent means false. Ready wins even when terminating is set. An endpoint is local when its `nodeName` is ours. |
//! | \[O4\] | Each family is resolved on its own. Addresses of a family in which the Service has no cluster IP are ignored. |
//! | \[O5\] | A changed port, address or protocol is a removal and an addition. |
//! | \[F1\] \[F2\] \[F3\] | Frontends: each cluster IP, each external IP, each load-balancer address that is not of `ipMode: Proxy`. |
//! | \[F4\] | Frontend: the node port, on the node's chosen addresses. An address of its own wins over it. |
//! | \[F5\] | Two Services claim one frontend: the older keeps it, the other is reported ([`Cluster`]). |
//! | \[E1\] | Usable in a set: the ready ones; if there is none, those that are serving and terminating. |
//! | \[E2\] | Cluster set: usable endpoints anywhere, after topology. Local set: usable endpoints on this node. |
//! | \[E3\] | Hints count only if every ready endpoint has one and one is for us; those for nodes come first ([`Topology`]). |
//! | \[E4\] | `internalTrafficPolicy` chooses the set for the cluster IP. |
//! | \[E5\] | `externalTrafficPolicy` chooses the set for traffic from outside to external frontends. Pods and this node short-circuit to the cluster set. |
//! | \[E6\] | No usable endpoint anywhere: reject. Some, but policy `Local` and none here: drop. |
//! | \[S1\] to \[S5\] | Whose source address is replaced: see [`Masquerade`](crate::route::Masquerade). |
//! | \[R1\] \[R2\] \[R3\] | Who may reach a load balancer's address: see [`SourceRanges`](crate::route::SourceRanges). A range that cannot be read admits nobody. |
//! | \[A1\] \[A2\] \[A3\] | A client stays with a backend of a Service port while it may be picked, up to the timeout that holds now. |
//! | \[L1\] \[L2\] | A removed backend gets no new connections; TCP to it lives until it ends, UDP flows to it are cut. |
//! | \[N4\] | A port of a cluster IP that is no Service port is rejected. |
//! | \[H1\] \[H2\] \[H3\] | Health checks: see [`health`](crate::health). |
//! | \[K0\] to \[K3\] | Keeping up: see [`ServiceRouter`](crate::router::ServiceRouter). |
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
mod source_ranges;
#[cfg(test)]
mod tests;
mod topology;

use std::{net::IpAddr, sync::Arc};

use crate::{
    cluster::{Change, Cluster},
    health::ServiceHealth,
    model::{EndpointSlice, IpFamily, NodeInfo, Service, ServicePort},
    route::{Frontend, FrontendKind, Route, RouteTable},
};

use self::endpoints::Endpoints;
pub use self::{
    policy::{Decision, Selection},
    topology::Topology,
};

/// The routes of one Service, from all its slices.
///
/// Slices of other Services must not be among `slices`. The order of slices does not matter.
pub fn resolve_service<'a>(
    node: &'a NodeInfo,
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
) -> Vec<Arc<Route>> {
    let mut routes = Vec::new();
    for &cluster_ip in service.cluster_ips() {
        let family = IpFamily::of(cluster_ip);
        let of_family = |addresses: &'_ [IpAddr]| -> Vec<IpAddr> {
            addresses.iter().copied().filter(|address| IpFamily::of(*address) == family).collect()
        };
        let external_ips = of_family(service.external_ips());
        let load_balancer_ips = of_family(service.load_balancer_ips());
        let source_ranges = source_ranges::of(node, service, family);
        for port in service.ports() {
            let decision = decide(node, service, port, family, slices.clone());
            let name = service.port_name(port);
            let mut push = |frontend, kind| {
                let (internal, external) = match kind {
                    FrontendKind::ClusterIp => decision.for_cluster_ip(),
                    _ => decision.for_external_frontend(),
                };
                let masquerade = masquerade::rule(node, service, kind, family);
                let mut route = Route::new(frontend, kind, name.clone(), internal, masquerade);
                route.external = external;
                route.algorithm = service.algorithm();
                route.affinity = service.affinity();
                if kind == FrontendKind::LoadBalancer {
                    route.source_ranges.clone_from(&source_ranges);
                }
                routes.push(Arc::new(route));
            };
            let on = |address| Frontend::ip(address, port.port(), port.protocol());
            push(on(cluster_ip), FrontendKind::ClusterIp);
            for &address in &external_ips {
                push(on(address), FrontendKind::ExternalIp);
            }
            for &address in &load_balancer_ips {
                push(on(address), FrontendKind::LoadBalancer);
            }
            if let Some(node_port) = port.node_port() {
                push(Frontend::node_port(family, node_port, port.protocol()), FrontendKind::NodePort);
            }
        }
    }
    routes
}

/// Which endpoints of one port of a Service serve which traffic, and how they were chosen: what
/// [`resolve_service`] builds on, for explanations.
pub fn decide<'a>(
    node: &'a NodeInfo,
    service: &Service,
    port: &ServicePort,
    family: IpFamily,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Decision {
    Decision::make(service, &Endpoints::gather(node, port, family, slices))
}

/// The health check of a Service on this node, if it has one ([H1], [H3]).
///
/// [H1]: crate::resolve
/// [H3]: crate::resolve
pub fn resolve_health<'a>(
    node: &NodeInfo,
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Option<ServiceHealth> {
    let port = service.health_check_node_port()?;
    let local_endpoints = endpoints::local_ready_addresses(node, service, slices);
    Some(ServiceHealth { service: service.name().clone(), port, local_endpoints })
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
