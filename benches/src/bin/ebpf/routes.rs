//! Tables of any size, made without declaring objects: of a million Services that would need gigabytes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use kubenet_benches::{Failure, frontend};
use kubenet_core::{
    model::{IpFamily, NodeInfo, Protocol},
    route::{
        Backend, Frontend, FrontendKind, Masquerade, Revision, Route, RouteTable, ServicePortName, Target,
        WhenEmpty,
    },
};
use kubenet_testkit::lab::Node;

const HTTP: NonZeroU16 = NonZeroU16::new(80).expect("not zero");
pub(crate) const NODE_PORT: NonZeroU16 = NonZeroU16::new(30_080).expect("not zero");
/// Endpoints of the node port: each gives its flows ports of its own to masquerade with.
const BEHIND_NODE_PORT: u32 = 1_000;

/// Lowest address of pods that dial, and of clients outside.
pub(crate) const PODS: u32 = 0x0a80_0000;
pub(crate) const OUTSIDE: u32 = 0xc612_0000;
/// Lowest address of endpoints; see [`kubenet_benches::slice()`].
pub(crate) const ENDPOINTS: u32 = 20 << 24;

/// Facts about a node: all of 10.0.0.0/8 are pods.
fn node(of: Node) -> Result<NodeInfo, Failure> {
    Ok(NodeInfo::builder(of.name())
        .address(of.v4().into())
        .address(of.v6().into())
        .cluster_cidr("10.0.0.0/8".parse()?)
        .cluster_cidr("fd00:a::/32".parse()?)
        .build()?)
}

/// How the drivers write an IPv4 address in IPv6.
pub(crate) fn six(address: u32) -> IpAddr {
    let [a, b, c, d] = address.to_be_bytes();
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfd00, a.into(), 0, 0, 0, 0, pair(a, b), pair(c, d)).into()
}

fn four(address: u32) -> IpAddr {
    Ipv4Addr::from(address).into()
}

/// The address of Service number `i`.
pub(crate) fn service_address(i: u32) -> u32 {
    match frontend(i).ip() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(_) => 0,
    }
}

/// The route of Service number `i`.
fn service(i: u32, endpoints: u32) -> Arc<Route> {
    let first = ENDPOINTS + i * (endpoints + 2);
    let backends = (1..=endpoints).map(|n| Backend::new(four(first + n), HTTP, false));
    let at = Frontend::ip(four(service_address(i)), HTTP, Protocol::Tcp);
    Arc::new(route(at, FrontendKind::ClusterIp, i, backends.collect()))
}

/// `services` Services for node-a, and beside them one of IPv6 and a node port.
pub(crate) fn table(services: u32, endpoints: u32) -> Result<Arc<RouteTable>, Failure> {
    let six_backend = Backend::new(six(ENDPOINTS + 1), HTTP, false);
    let six_at = Frontend::ip(six(service_address(0)), HTTP, Protocol::Tcp);
    let outside = (0..BEHIND_NODE_PORT).map(|n| Backend::new(four((21 << 24) + n + 1), HTTP, false));
    let node_port = Frontend::node_port(IpFamily::V4, NODE_PORT, Protocol::Tcp);
    let others = [
        Arc::new(route(six_at, FrontendKind::ClusterIp, u32::MAX, vec![six_backend])),
        Arc::new(route(node_port, FrontendKind::NodePort, u32::MAX - 1, outside.collect())),
    ];
    let routes = (0..services).map(|i| service(i, endpoints)).chain(others);
    Ok(Arc::new(RouteTable::new(Revision(1), Arc::new(node(Node::A)?.routing()), routes)))
}

/// So many Services for a node, of which the first is at this backend on the node, over TCP and UDP.
pub(crate) fn table_to(of: Node, services: u32, backend: SocketAddr) -> Result<Arc<RouteTable>, Failure> {
    let port = NonZeroU16::new(backend.port()).ok_or("port zero")?;
    let here = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let at = Frontend::ip(four(service_address(0)), HTTP, protocol);
        Arc::new(route(at, FrontendKind::ClusterIp, 0, vec![Backend::new(backend.ip(), port, true)]))
    });
    let routes = (1..services).map(|i| service(i, 1)).chain(here);
    Ok(Arc::new(RouteTable::new(Revision(1), Arc::new(node(of)?.routing()), routes)))
}

fn route(at: Frontend, kind: FrontendKind, number: u32, mut backends: Vec<Backend>) -> Route {
    backends.sort_unstable();
    let name = ServicePortName {
        namespace: "bench".into(),
        service: format!("service-{number}").into(),
        port: "http".into(),
    };
    let masquerade = match kind {
        FrontendKind::NodePort => Masquerade::ALWAYS,
        _ => Masquerade { pods: false, node: true, outside: true },
    };
    Route::new(
        at,
        kind,
        name,
        Target { backends: backends.into(), when_empty: WhenEmpty::Reject },
        masquerade,
    )
}
