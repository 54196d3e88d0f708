//! Clusters to measure with, and what the benchmarks share.
#![forbid(unsafe_code)]

pub mod connects;
pub mod drive;
pub mod exchange;
pub mod interpret;
pub mod machine;
pub mod report;
pub mod stats;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
};

use kubenet_core::{
    cluster::{Change, Cluster},
    model::{
        Endpoint, EndpointPort, EndpointSlice, InvalidObject, IpFamily, NodeInfo, Protocol, Service,
        ServicePort,
    },
};

/// Why a benchmark cannot go on.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

const PORT: NonZeroU16 = NonZeroU16::new(80).expect("not zero");

/// The node that routes are resolved for.
///
/// # Errors
/// None: the values are fixed.
pub fn node() -> Result<NodeInfo, InvalidObject> {
    let address = |a, b, c, d| IpAddr::from(Ipv4Addr::new(a, b, c, d));
    NodeInfo::builder("node-0").address(address(10, 0, 0, 1)).build()
}

/// Service number `i`: one port on one cluster IP.
///
/// # Errors
/// A number above 2^24.
pub fn service(i: u32) -> Result<Service, InvalidObject> {
    Service::builder("bench", format!("service-{i}"))
        .cluster_ip(frontend(i).ip())
        .port(ServicePort::new("http", Protocol::Tcp, PORT))
        .build()
}

/// The slice of Service number `i` with `endpoints` endpoints on ten nodes. Another `generation` has another
/// last endpoint.
///
/// # Errors
/// Numbers that leave the address range.
pub fn slice(i: u32, endpoints: u32, generation: u32) -> Result<EndpointSlice, InvalidObject> {
    let first = (20 << 24) + i * (endpoints + 2);
    let last = (endpoints > 0).then_some(endpoints + generation % 2);
    let addresses = (1..endpoints).chain(last);
    EndpointSlice::builder("bench", format!("service-{i}-1"), format!("service-{i}"), IpFamily::V4)
        .port(EndpointPort::new("http", Protocol::Tcp, PORT))
        .endpoints(addresses.map(|n| {
            Endpoint::new(Ipv4Addr::from(first + n).into())
                .on_node(&format!("node-{}", n % 10))
                .named(&format!("service-{i}-7d4b9c6f5d-{n:05}"))
        }))
        .build()
}

/// The slice of Service number `i` with one endpoint, here and on this node.
///
/// # Errors
/// None: the values are fixed.
pub fn slice_at(
    i: u32,
    address: Ipv4Addr,
    port: NonZeroU16,
    node: &str,
) -> Result<EndpointSlice, InvalidObject> {
    EndpointSlice::builder("bench", format!("service-{i}-1"), format!("service-{i}"), IpFamily::V4)
        .port(EndpointPort::new("http", Protocol::Tcp, port))
        .endpoint(Endpoint::new(address.into()).on_node(node).named(&format!("service-{i}-7d4b9c6f5d-00001")))
        .build()
}

/// The address that clients of Service number `i` dial, at port 80.
pub fn frontend(i: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from((11 << 24) + i), PORT.get()))
}

/// `services` Services of `endpoints` endpoints, declared but not resolved.
///
/// # Errors
/// Those of [`service`] and [`slice()`].
pub fn cluster(services: u32, endpoints: u32) -> Result<Cluster, InvalidObject> {
    let mut cluster = Cluster::new(node()?);
    for i in 0..services {
        cluster.change(Change::Service(service(i)?));
        cluster.change(Change::EndpointSlice(slice(i, endpoints, 0)?));
    }
    Ok(cluster)
}
