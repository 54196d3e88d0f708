//! What is told is what the kernel did, and not what it was thought to do.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
    },
    model::{Endpoint, EndpointPort, EndpointSlice, IpFamily, NodeInfo, Protocol, Service, ServicePort},
    resolve::resolve,
    route::{RouteDelta, RouteTable},
};
use kubenet_examples::trace::{Dialled, Kind, Stage, Verdict, observe_on};
use kubenet_iptables::Variant;

use crate::kernel::can_ask;

/// Programs another table than it is given.
#[derive(Debug)]
struct Lying {
    inner: Arc<dyn Datapath>,
    programs: Arc<RouteTable>,
}

#[async_trait]
impl Datapath for Lying {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn replace(&self, _: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        self.inner.replace(Arc::clone(&self.programs)).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        self.inner.apply(delta).await
    }

    async fn read(&self) -> Result<RouteTable, DatapathError> {
        self.inner.read().await
    }

    async fn counters(&self) -> Result<Counters, DatapathError> {
        self.inner.counters().await
    }

    async fn drain(&self) -> Result<DrainStatus, DatapathError> {
        self.inner.drain().await
    }

    async fn close(&self, how: Close) -> Result<(), DatapathError> {
        self.inner.close(how).await
    }

    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        self.inner.events()
    }
}

/// One Service of TCP and UDP for each list of endpoints; the last part of their address, odd ones on this node.
fn table(services: &[&[u8]], masquerade_all: bool) -> Arc<RouteTable> {
    let node = NodeInfo::builder("node-a")
        .address("10.89.0.1".parse().unwrap())
        .cluster_cidr("10.244.0.0/16".parse().unwrap())
        .masquerade_all(masquerade_all)
        .build()
        .unwrap();
    let port = |n: u16| n.try_into().unwrap();
    let both = [("t", Protocol::Tcp), ("u", Protocol::Udp)];
    let mut objects = (Vec::new(), Vec::new());
    for (i, endpoints) in services.iter().enumerate() {
        let name = format!("s{i}");
        let mut service = Service::builder("demo", &name).cluster_ip([10, 96, 0, i as u8].into());
        let mut slice = EndpointSlice::builder("demo", format!("{name}-1"), &name, IpFamily::V4);
        for (name, protocol) in both {
            service = service.port(ServicePort::new(name, protocol, port(80)));
            slice = slice.port(EndpointPort::new(name, protocol, port(8080)));
        }
        let endpoints = endpoints.iter().map(|n| {
            let node = if n % 2 == 1 { "node-a" } else { "node-b" };
            Endpoint::new([10, 244, 0, *n].into()).on_node(node)
        });
        objects.0.push(service.build().unwrap());
        objects.1.push(slice.endpoints(endpoints).build().unwrap());
    }
    Arc::new(resolve(&node, &objects.0, &objects.1))
}

fn backends(endpoints: &[u8]) -> Vec<SocketAddr> {
    endpoints.iter().map(|n| ([10, 244, 0, *n], 8080).into()).collect()
}

fn tells_what_the_kernel_did(datapath: &str, kind: Kind) {
    if !can_ask(datapath) {
        return;
    }
    let claimed = table(&[&[1, 2, 3], &[1], &[], &[2], &[1]], false);
    // Another backend, one more, some where there should be none, none where there should be one; and the last
    // Service is not there at all.
    let real = table(&[&[1, 2, 5], &[1, 4], &[1, 2], &[]], true);
    let flows: Vec<Dialled> = (0..5)
        .flat_map(|i| {
            let to = format!("10.96.0.{i}");
            ["TCP", "UDP"].map(|protocol| ("10.244.0.9", to.clone(), protocol))
        })
        .chain((0..5).flat_map(|i| {
            let to = format!("10.96.0.{i}");
            ["TCP", "UDP"].map(|protocol| ("10.89.0.1", to.clone(), protocol))
        }))
        .map(|(from, to, protocol)| Dialled::new(from, &to, 80, protocol).unwrap())
        .collect();
    let stage = Stage::new(&claimed, &[], &flows).unwrap();
    let inner = stage.start(kind, &claimed).unwrap();
    let lying: Arc<dyn Datapath> = Arc::new(Lying { inner, programs: real });
    let observed = observe_on(&stage, kind, &lying, &claimed, &flows, 64).unwrap();
    for (flow, seen) in flows.iter().zip(&observed.seen) {
        let expected: &[u8] = match flow.to.to_string().as_str() {
            "10.96.0.0" => &[1, 2, 5],
            "10.96.0.1" => &[1, 4],
            "10.96.0.2" => &[1, 2],
            "10.96.0.3" => {
                assert_eq!((seen.verdict(), seen.is_mixed()), (Verdict::Reject, false), "{flow:?}: {seen:?}");
                continue;
            }
            _ => {
                assert_eq!((seen.verdict(), seen.is_mixed()), (Verdict::Pass, false), "{flow:?}: {seen:?}");
                continue;
            }
        };
        assert!(!seen.is_mixed(), "{flow:?}: {seen:?}");
        assert_eq!(seen.reached.keys().copied().collect::<Vec<_>>(), backends(expected), "{flow:?}");
        if flow.from.to_string() == "10.244.0.9" {
            for (backend, reached) in &seen.reached {
                let here = backends(&[1, 5]).contains(backend);
                let kept = here && observed.capabilities.local_backends_see_client;
                assert_eq!(reached.masquerade, !kept, "{flow:?} to {backend}: {seen:?}");
            }
        }
    }
}

#[test]
fn of_iptables() {
    tells_what_the_kernel_did("iptables-nft", Kind::Iptables(Variant::Nft));
}

#[test]
fn of_ebpf() {
    tells_what_the_kernel_did("ebpf", Kind::Ebpf);
}
