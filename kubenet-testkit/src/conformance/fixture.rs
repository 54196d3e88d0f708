//! Services of the cases, and how they become objects of the model.

use std::{net::SocketAddr, num::NonZeroU16};

use kubenet_core::{
    datapath::Feature,
    model::{
        Affinity, Algorithm, Conditions, Endpoint, EndpointPort, EndpointSlice, InvalidObject, IpFamily,
        NodeInfo, NodeInfoBuilder, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
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

/// A Service of both families with cluster IPs and a node port, on TCP and UDP.
#[derive(Clone, Debug)]
pub(super) struct Svc {
    number: u16,
    pub(super) port: u16,
    endpoints: Vec<(Place, Conditions)>,
    /// By place in `endpoints`; 1 where nothing is said.
    weights: Vec<u16>,
    /// The zone that each of `endpoints` is meant for; none where nothing is said.
    zones: Vec<&'static str>,
    /// Where the backends listen.
    target_port: NonZeroU16,
    /// Has the cluster IPs of the Service of this number as external IPs, and is older.
    rival_of: Option<u16>,
    /// Whether it has external IPs and load-balancer addresses, too.
    exposed: bool,
    /// Clients from these places may use the load balancer's addresses; empty: all.
    sources: Vec<Place>,
    affinity: Option<Affinity>,
    algorithm: Algorithm,
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
            weights: Vec::new(),
            zones: Vec::new(),
            target_port: BACKEND_PORT,
            rival_of: None,
            exposed: false,
            sources: Vec::new(),
            affinity: None,
            algorithm: Algorithm::Random,
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

    pub(super) fn with_weights(mut self, weights: &[u16]) -> Self {
        self.weights = weights.to_vec();
        self
    }

    /// Hints: the zones that the endpoints are meant for, in their order.
    pub(super) fn for_zones(mut self, zones: &[&'static str]) -> Self {
        self.zones = zones.to_vec();
        self
    }

    /// Its backends have a port where nobody listens.
    pub(super) fn deaf(mut self) -> Self {
        self.target_port = port(9);
        self
    }

    /// Older than `other`, with the cluster IPs of that one as external IPs.
    pub(super) fn rival_of(mut self, other: &Svc) -> Self {
        self.rival_of = Some(other.number);
        self
    }

    /// The same with external IPs and load-balancer addresses.
    pub(super) fn exposed(mut self) -> Self {
        self.exposed = true;
        self
    }

    /// Only clients from these places may use the load balancer's addresses.
    pub(super) fn only_from(mut self, places: &[&str]) -> Self {
        self.sources = places.iter().map(|name| place(name)).collect();
        self
    }

    /// A client stays with its backend for so many seconds.
    pub(super) fn sticky(mut self, seconds: u32) -> Self {
        self.affinity = Affinity::new(seconds);
        self
    }

    pub(super) fn maglev(mut self) -> Self {
        self.algorithm = Algorithm::Maglev;
        self
    }

    /// What a datapath needs for a frontend of this kind.
    pub(super) fn needs(&self, kind: FrontendKind) -> impl Iterator<Item = Feature> {
        let needed = [
            (Feature::Weights, self.weights.iter().any(|weight| *weight != self.weights[0])),
            (Feature::SourceRanges, kind == FrontendKind::LoadBalancer && !self.sources.is_empty()),
            (Feature::Affinity, self.affinity.is_some()),
            (Feature::Maglev, self.algorithm == Algorithm::Maglev),
        ];
        needed.into_iter().filter_map(|(feature, needed)| needed.then_some(feature))
    }

    fn node_port(&self) -> NonZeroU16 {
        port(30_000 + self.number)
    }

    /// The number of its address of this kind. Cases have far less than 0x4000 Services.
    fn address_number(&self, kind: FrontendKind) -> u16 {
        self.number
            + match kind {
                FrontendKind::ExternalIp => 0x4000,
                FrontendKind::LoadBalancer => 0x8000,
                _ => 0,
            }
    }

    /// What a client dials on this node.
    pub(super) fn dial(&self, kind: FrontendKind, family: IpFamily) -> SocketAddr {
        match kind {
            FrontendKind::NodePort => match family {
                IpFamily::V4 => SocketAddr::new(HERE.v4().into(), self.node_port().get()),
                IpFamily::V6 => SocketAddr::new(HERE.v6().into(), self.node_port().get()),
            },
            _ => SocketAddr::new(service_address(family, self.address_number(kind)), self.port),
        }
    }

    pub(super) fn frontend(&self, kind: FrontendKind, family: IpFamily, protocol: Protocol) -> Frontend {
        match kind {
            FrontendKind::NodePort => Frontend::node_port(family, self.node_port(), protocol),
            _ => {
                let address = service_address(family, self.address_number(kind));
                Frontend::ip(address, port(self.port), protocol)
            }
        }
    }

    fn objects(&self, world: &dyn World) -> Result<(Service, Vec<EndpointSlice>), String> {
        let name = format!("svc-{}", self.number);
        let invalid = |error: InvalidObject| error.to_string();
        let mut service = Service::builder("conformance", &name)
            .service_type(ServiceType::LoadBalancer)
            .internal_traffic_policy(self.internal)
            .external_traffic_policy(self.external)
            .algorithm(self.algorithm);
        if let Some(affinity) = self.affinity {
            service = service.affinity(affinity);
        }
        for &family in world.families() {
            let address = |kind| service_address(family, self.address_number(kind));
            service = service.cluster_ip(address(FrontendKind::ClusterIp));
            if self.exposed {
                service = service
                    .external_ip(address(FrontendKind::ExternalIp))
                    .load_balancer_ip(address(FrontendKind::LoadBalancer));
            }
            if let Some(number) = self.rival_of {
                service = service.external_ip(service_address(family, number)).created(0);
            }
            for place in &self.sources {
                service = service.source_range(world.address(place, family)?.into());
            }
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
                slice = slice.port(EndpointPort::new(protocol.as_lower_str(), protocol, self.target_port));
            }
            let weights = self.weights.iter().copied().chain(std::iter::repeat(1));
            let mut zones = self.zones.iter();
            for ((place, conditions), weight) in self.endpoints.iter().zip(weights) {
                let mut endpoint = Endpoint::new(world.address(place, family)?)
                    .with_conditions(*conditions)
                    .with_weight(weight);
                if let Some(node) = node_of(place) {
                    endpoint = endpoint.on_node(node.name());
                }
                if let Some(zone) = zones.next() {
                    endpoint = endpoint.for_zone(zone);
                }
                slice = slice.endpoint(endpoint);
            }
            slices.push(slice.build().map_err(invalid)?);
        }
        Ok((service.build().map_err(invalid)?, slices))
    }
}

/// What a case changes about the node under test.
pub(super) type NodeOptions = fn(NodeInfoBuilder) -> NodeInfoBuilder;

/// The routes of these Services on the node under test.
pub(super) fn table(
    world: &dyn World,
    revision: Revision,
    services: &[Svc],
    options: NodeOptions,
) -> Result<RouteTable, String> {
    let invalid = |error: InvalidObject| error.to_string();
    let node: NodeInfo = HERE.info(world.families()).map_err(invalid)?;
    let node = options(node.into_builder()).build().map_err(invalid)?;
    let objects = services.iter().map(|svc| svc.objects(world)).collect::<Result<Vec<_>, _>>()?;
    let resolved =
        resolve(&node, objects.iter().map(|(service, _)| service), objects.iter().flat_map(|(_, s)| s));
    Ok(RouteTable::new(revision, resolved.node().clone(), resolved.routes().cloned()))
}
