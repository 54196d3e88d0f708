//! A lab with an eBPF datapath on node-a, and routes to put into it.
#![allow(dead_code, unreachable_pub)]

pub mod bpffs;
pub mod links;
pub mod load;
pub mod offload;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use futures::executor::block_on;
use kubenet_core::{
    datapath::{ApplyReport, Datapath, ErrorKind},
    model::{IpFamily, Protocol},
    route::{
        Backend, BackendState, Frontend, FrontendKind, Masquerade, Revision, Route, RouteTable,
        ServicePortName, Target, WhenEmpty,
    },
};
use kubenet_ebpf::{EbpfBuilder, EbpfDatapath, probe};
use kubenet_testkit::lab::{Lab, LabConfig, LabError, Node};

pub const PORT: u16 = 8080;
pub const SERVICE_PORT: u16 = 80;
pub const NODE_PORT: u16 = 30_080;
pub const SOON: Duration = Duration::from_secs(2);

/// Says why a test is skipped; where nothing may be skipped, that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// A lab where the kernel and the user may do what is needed.
pub fn lab(config: LabConfig) -> Option<Lab> {
    match probe() {
        Ok(_) => {}
        Err(e) if matches!(e.kind(), ErrorKind::Permission | ErrorKind::Unsupported) => {
            skip(&e.to_string());
            return None;
        }
        Err(e) => panic!("{e}"),
    }
    match Lab::new(config) {
        Ok(lab) => Some(lab),
        Err(LabError::Unsupported(why)) => {
            skip(&why);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Settings for node-a of a lab.
pub fn builder(lab: &Lab) -> EbpfBuilder {
    let node = lab.node(Node::A);
    let builder = EbpfDatapath::builder()
        .network_namespace(node.netns().path())
        .external_interface(node.external_interface());
    match lab.cgroup() {
        Ok(cgroup) => builder.cgroup(cgroup),
        Err(_) => builder,
    }
}

/// A datapath on node-a, with its pods.
pub fn datapath(lab: &Lab) -> EbpfDatapath {
    let datapath = builder(lab).build().unwrap();
    for interface in lab.node(Node::A).pod_interfaces() {
        block_on(datapath.attach_pod(&interface)).unwrap();
    }
    datapath
}

pub fn cluster_ip(family: IpFamily, last: u8) -> IpAddr {
    match family {
        IpFamily::V4 => [10, 96, 0, last].into(),
        IpFamily::V6 => std::net::Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

pub fn service_port(name: &str) -> ServicePortName {
    ServicePortName { namespace: "demo".into(), service: name.into(), port: "".into() }
}

/// Pods as backends.
pub fn backends(lab: &Lab, family: IpFamily, pods: &[&str]) -> Arc<[Backend]> {
    let mut backends: Vec<Backend> = pods
        .iter()
        .map(|pod| {
            let pod = lab.pod(pod).unwrap();
            Backend {
                address: match family {
                    IpFamily::V4 => pod.v4().into(),
                    IpFamily::V6 => pod.v6().unwrap().into(),
                },
                port: PORT.try_into().unwrap(),
                local: pod.node() == Node::A,
                state: BackendState::Ready,
                weight: std::num::NonZeroU16::MIN,
            }
        })
        .collect();
    backends.sort_unstable();
    backends.into()
}

fn target(backends: Arc<[Backend]>) -> Target {
    Target { backends, when_empty: WhenEmpty::Reject }
}

/// A Service on a cluster IP, TCP and UDP.
pub fn on_cluster_ip(lab: &Lab, family: IpFamily, last: u8, pods: &[&str]) -> Vec<Arc<Route>> {
    let masquerade = Masquerade { pods: false, node: true, outside: true };
    [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| {
            let port = SERVICE_PORT.try_into().unwrap();
            Arc::new(Route::new(
                Frontend::ip(cluster_ip(family, last), port, protocol),
                FrontendKind::ClusterIp,
                service_port(&format!("web-{last}")),
                target(backends(lab, family, pods)),
                masquerade,
            ))
        })
        .into()
}

/// A Service on a node port, TCP and UDP.
pub fn on_node_port(lab: &Lab, family: IpFamily, port: u16, pods: &[&str]) -> Vec<Arc<Route>> {
    [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| {
            Arc::new(Route::new(
                Frontend::node_port(family, port.try_into().unwrap(), protocol),
                FrontendKind::NodePort,
                service_port(&format!("web-{port}")),
                target(backends(lab, family, pods)),
                Masquerade::ALWAYS,
            ))
        })
        .into()
}

pub fn table(lab: &Lab, revision: u64, routes: impl IntoIterator<Item = Arc<Route>>) -> Arc<RouteTable> {
    let node = lab.node_info(Node::A).unwrap().routing();
    Arc::new(RouteTable::new(Revision(revision), Arc::new(node), routes))
}

/// Programs a table, all of it.
pub fn replace(datapath: &EbpfDatapath, table: &Arc<RouteTable>) -> ApplyReport {
    let report = block_on(datapath.replace(Arc::clone(table))).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    report
}

pub fn service(family: IpFamily, last: u8) -> SocketAddr {
    SocketAddr::new(cluster_ip(family, last), SERVICE_PORT)
}

/// Where node-a answers on a node port.
pub fn node(lab: &Lab, family: IpFamily, port: u16) -> SocketAddr {
    let node = lab.node(Node::A);
    let address: IpAddr = match family {
        IpFamily::V4 => node.v4().into(),
        IpFamily::V6 => node.v6().unwrap().into(),
    };
    SocketAddr::new(address, port)
}

/// Our programs at the interfaces of node-a, as far as the kernel has TCX and can tell.
pub fn attached(lab: &Lab) -> Vec<String> {
    let node = lab.node(Node::A);
    let mut interfaces = node.pod_interfaces();
    interfaces.push(node.external_interface().to_owned());
    let list = move || {
        let mut found = Vec::new();
        for interface in interfaces {
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                let Ok((_, programs)) = SchedClassifier::query_tcx(&interface, direction) else { continue };
                let names = programs.iter().filter_map(|p| p.name_as_str());
                let ours = names.filter(|name| name.starts_with("kubenet_"));
                found.extend(ours.map(|name| format!("{name} at {interface}, {direction:?}")));
            }
        }
        found
    };
    let mut found = node.netns().run(list).unwrap();
    found.extend(
        offload::xdp_program(lab, node.external_interface())
            .map(|id| format!("XDP program {id} at {}", node.external_interface())),
    );
    found
}
