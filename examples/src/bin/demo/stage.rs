//! What the manifests need on the stage: which pods, which servers, and what there is to dial.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use kubenet_core::{
    kubernetes::Manifests,
    model::{IpFamily, Protocol, Service},
};
use kubenet_testkit::place::Node;

/// The node that runs the datapath.
pub(crate) const HERE: Node = Node::A;

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) pods: Vec<Actor>,
    pub(crate) targets: Vec<Target>,
}

/// A pod that an endpoint names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) node: Node,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<NonZeroU16>,
}

/// A Service port that clients dial.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) service: String,
    pub(crate) protocol: Protocol,
    /// On the cluster IP, for pods and the node.
    pub(crate) inside: SocketAddr,
    /// The node port, for clients outside; dialled on the address of the node in the same family.
    pub(crate) node_port: Option<(IpFamily, NonZeroU16)>,
    /// Whether a request should be answered; else it should be refused.
    pub(crate) answers: bool,
}

impl Stage {
    pub(crate) fn plan(manifests: &Manifests) -> Result<Self, String> {
        let mut pods: BTreeMap<String, Actor> = BTreeMap::new();
        for slice in &manifests.slices {
            for (i, endpoint) in slice.endpoints().iter().enumerate() {
                let field = || format!("EndpointSlice {}: endpoints[{i}]", slice.name());
                let node_name = endpoint.node_name.as_deref().unwrap_or_default();
                let node = Node::ALL.into_iter().find(|node| node.name() == node_name).ok_or_else(|| {
                    format!("{}.nodeName: {node_name:?}: the demo's nodes are node-a and node-b", field())
                })?;
                let name = match &endpoint.target {
                    Some(name) => name.to_string(),
                    None => format!("ip-{}", endpoint.address.to_string().replace(['.', ':'], "-")),
                };
                let actor = pods.entry(name.clone()).or_insert_with(|| Actor {
                    name,
                    node,
                    addresses: Vec::new(),
                    ports: Vec::new(),
                });
                if actor.node != node {
                    return Err(format!("{}: pod {} is on two nodes", field(), actor.name));
                }
                push_new(&mut actor.addresses, endpoint.address);
                for port in slice.ports().iter().filter_map(|port| port.port) {
                    push_new(&mut actor.ports, port);
                }
            }
        }
        let pods = pods.into_values().collect();
        let targets = manifests.services.iter().flat_map(|service| targets(service, manifests)).collect();
        let stage = Self { pods, targets };
        if !stage.targets.iter().any(|t| t.answers && t.protocol == Protocol::Tcp) {
            return Err("the manifests have no Service with a TCP port and endpoints: nothing to show".into());
        }
        Ok(stage)
    }

    /// The targets of one protocol that should answer.
    pub(crate) fn answering(&self, protocol: Protocol) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(move |target| target.answers && target.protocol == protocol)
    }
}

fn targets(service: &Service, manifests: &Manifests) -> Vec<Target> {
    let mut targets = Vec::new();
    for &address in service.cluster_ips() {
        let family = IpFamily::of(address);
        for port in service.ports() {
            let answers = manifests
                .slices
                .iter()
                .filter(|slice| slice.service() == service.name() && slice.family() == family)
                .any(|slice| {
                    let serves = |p: &&kubenet_core::model::EndpointPort| {
                        p.name == *port.name() && p.protocol == port.protocol() && p.port.is_some()
                    };
                    slice.ports().iter().any(|p| serves(&p))
                        && slice.endpoints().iter().any(|e| e.conditions.ready)
                });
            targets.push(Target {
                service: service.name().to_string(),
                protocol: port.protocol(),
                inside: SocketAddr::new(address, port.port().get()),
                node_port: port.node_port().map(|number| (family, number)),
                answers,
            });
        }
    }
    targets
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
