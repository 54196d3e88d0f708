//! Services of the cases, and how they become objects of the model.

use std::{net::SocketAddr, num::NonZeroU16};

use kubenet_core::{
    model::{
        Conditions, Endpoint, EndpointPort, EndpointSlice, InvalidObject, IpFamily, NodeInfo, Protocol,
        Service, ServicePort, ServiceType, TrafficPolicy,
    },
    resolve::resolve,
    route::{Frontend, FrontendKind, Revision, RouteTable},
};

use super::world::World;
use crate::place::{Node, Place, service_address};

/// The node whose datapath is under test.
pub(super) const HERE: Node = Node::A;
/// Pods, by node. The clients serve nothing.
pub(super) const PODS: [(&str, Node); 6] = [
    ("client-a", Node::A),
    ("a1", Node::A),
    ("a2", Node::A),
    ("client-b", Node::B),
    ("b1", Node::B),
    ("b2", Node::B),
];
/// Where every backend listens. Services have another port, so that a translation that is forgotten shows.
pub(super) const BACKEND_PORT: NonZeroU16 = port(8080);

pub(super) const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
pub(super) const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
pub(super) const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

const fn port(number: u16) -> NonZeroU16 {
    match NonZeroU16::new(number) {
        Some(port) => port,
        None => NonZeroU16::MIN,
    }
}

/// A place by its short name: `node-a`, `outside`, or a pod's.
pub(super) fn place(name: &str) -> Place {
    match name {
        "node-a" => Node::A.into(),
        "node-b" => Node::B.into(),
        "outside" => Place::Outside,
        pod => pod.into(),
    }
}

/// The node that a place is on.
pub(super) fn node_of(place: &Place) -> Option<Node> {
    match place {
        Place::Pod(name) => PODS.iter().find(|(pod, _)| pod == name).map(|(_, node)| *node),
        Place::Node(node) => Some(*node),
        Place::Outside => None,
    }
}

/// A Service of both families with a node port, on TCP and UDP.
#[derive(Clone, Debug)]
pub(super) struct Svc {
    number: u16,
    pub(super) port: u16,
    endpoints: Vec<(Place, Conditions)>,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    protocols: Vec<Protocol>,
}

impl Svc {
    pub(super) fn new(number: u16) -> Self {
        Self {
            number,
            port: 80,
            endpoints: Vec::new(),
            internal: TrafficPolicy::Cluster,
            external: TrafficPolicy::Cluster,
            protocols: vec![Protocol::Tcp, Protocol::Udp],
        }
    }

    /// The same with these ready endpoints and no others.
    pub(super) fn on(&self, endpoints: &[&str]) -> Self {
        let endpoints = endpoints.iter().map(|name| (place(name), READY)).collect();
        Self { endpoints, ..self.clone() }
    }

    pub(super) fn and(mut self, endpoint: &str, conditions: Conditions) -> Self {
        self.endpoints.push((place(endpoint), conditions));
        self
    }

    pub(super) fn internal_local(mut self) -> Self {
        self.internal = TrafficPolicy::Local;
        self
    }

    pub(super) fn external_local(mut self) -> Self {
        self.external = TrafficPolicy::Local;
        self
    }

    pub(super) fn with_port(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    pub(super) fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocols.push(protocol);
        self
    }

    fn node_port(&self) -> NonZeroU16 {
        port(30_000 + self.number)
    }

    /// What a client dials on this node.
    pub(super) fn dial(&self, kind: FrontendKind, family: IpFamily) -> SocketAddr {
        match kind {
            FrontendKind::NodePort => match family {
                IpFamily::V4 => SocketAddr::new(HERE.v4().into(), self.node_port().get()),
                IpFamily::V6 => SocketAddr::new(HERE.v6().into(), self.node_port().get()),
            },
            _ => SocketAddr::new(service_address(family, self.number), self.port),
        }
    }

    pub(super) fn frontend(&self, kind: FrontendKind, family: IpFamily, protocol: Protocol) -> Frontend {
        match kind {
            FrontendKind::NodePort => Frontend::node_port(family, self.node_port(), protocol),
            _ => Frontend::ip(service_address(family, self.number), port(self.port), protocol),
        }
    }

    fn objects(&self, world: &dyn World) -> Result<(Service, Vec<EndpointSlice>), String> {
        let name = format!("svc-{}", self.number);
        let invalid = |error: InvalidObject| error.to_string();
        let mut service = Service::builder("conformance", &name)
            .service_type(ServiceType::NodePort)
            .internal_traffic_policy(self.internal)
            .external_traffic_policy(self.external);
        for &family in world.families() {
            service = service.cluster_ip(service_address(family, self.number));
        }
        for &protocol in &self.protocols {
            let name = protocol.as_lower_str();
            service = service
                .port(ServicePort::new(name, protocol, port(self.port)).with_node_port(self.node_port()));
        }
        let mut slices = Vec::new();
        for &family in world.families() {
            let suffix = if family == IpFamily::V4 { "v4" } else { "v6" };
            let mut slice = EndpointSlice::builder("conformance", format!("{name}-{suffix}"), &name, family);
            for &protocol in &self.protocols {
                slice = slice.port(EndpointPort::new(protocol.as_lower_str(), protocol, BACKEND_PORT));
            }
            for (place, conditions) in &self.endpoints {
                let mut endpoint = Endpoint::new(world.address(place, family)?).with_conditions(*conditions);
                if let Some(node) = node_of(place) {
                    endpoint = endpoint.on_node(node.name());
                }
                slice = slice.endpoint(endpoint);
            }
            slices.push(slice.build().map_err(invalid)?);
        }
        Ok((service.build().map_err(invalid)?, slices))
    }
}

/// The routes of these Services on the node under test.
pub(super) fn table(world: &dyn World, revision: Revision, services: &[Svc]) -> Result<RouteTable, String> {
    let node: NodeInfo = HERE.info(world.families()).map_err(|e| e.to_string())?;
    let objects = services.iter().map(|svc| svc.objects(world)).collect::<Result<Vec<_>, _>>()?;
    let resolved =
        resolve(&node, objects.iter().map(|(service, _)| service), objects.iter().flat_map(|(_, s)| s));
    Ok(RouteTable::new(revision, resolved.node().clone(), resolved.routes().cloned()))
}
