use std::{collections::BTreeMap, num::NonZeroU16};

use kubenet_core::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, IpFamily, Protocol};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
};

use super::{Name, OUR_NODE, Svc, address, any_name, service::any_protocol, some_of};

/// A slice as declared.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub(crate) name: Name,
    /// The Service, of the same namespace.
    pub(crate) service: &'static str,
    pub(crate) family: IpFamily,
    pub(crate) ports: Vec<(&'static str, Protocol, Option<u16>)>,
    pub(crate) endpoints: Vec<Ep>,
    /// The Service that it is made to fit, if it is.
    fits: Option<Index>,
}

/// An endpoint of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ep {
    pub(crate) address: &'static str,
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
    pub(crate) node: Option<&'static str>,
    pub(crate) for_zones: Vec<&'static str>,
    pub(crate) for_nodes: Vec<&'static str>,
    pub(crate) weight: u16,
}

impl Slice {
    /// Most slices belong to a Service that exists, and have its ports.
    pub(crate) fn fit(mut self, services: &BTreeMap<Name, Svc>) -> Self {
        if services.is_empty() {
            return self;
        }
        let Some(service) = self.fits.and_then(|index| services.values().nth(index.index(services.len())))
        else {
            return self;
        };
        (self.name.0, self.service) = service.name;
        for (name, protocol, _) in &mut self.ports {
            if let Some(port) = service.ports.iter().find(|port| port.name == *name) {
                *protocol = port.protocol;
            }
        }
        self
    }

    pub(crate) fn build(&self) -> EndpointSlice {
        let (namespace, name) = self.name;
        let mut builder = EndpointSlice::builder(namespace, name, self.service, self.family);
        for (name, protocol, number) in &self.ports {
            let port = number.and_then(NonZeroU16::new);
            builder = builder.port(EndpointPort { name: (*name).into(), protocol: *protocol, port });
        }
        builder.endpoints(self.endpoints.iter().map(Ep::build)).build().unwrap()
    }
}

impl Ep {
    fn build(&self) -> Endpoint {
        let conditions = Conditions::from_api(self.ready, self.serving, self.terminating);
        let mut endpoint =
            Endpoint::new(address(self.address)).with_conditions(conditions).with_weight(self.weight);
        if let Some(node) = self.node {
            endpoint = endpoint.on_node(node);
        }
        for zone in &self.for_zones {
            endpoint = endpoint.for_zone(zone);
        }
        for node in &self.for_nodes {
            endpoint = endpoint.for_node(node);
        }
        endpoint
    }
}

type Conditioned = (Option<bool>, Option<bool>, Option<bool>);
type Hinted = (Vec<&'static str>, Vec<&'static str>);

fn any_conditions() -> impl Strategy<Value = Conditioned> {
    const UNREADY: Conditioned = (Some(false), Some(false), None);
    const STRAGGLER: Conditioned = (Some(false), Some(true), Some(true));
    prop_oneof![
        6 => Just((None, None, None)),
        2 => Just(STRAGGLER),
        1 => Just(UNREADY),
        2 => (option::of(any::<bool>()), option::of(any::<bool>()), option::of(any::<bool>())),
    ]
}

fn any_hints() -> impl Strategy<Value = Hinted> {
    (some_of(&["east", "west"], 2), some_of(&[OUR_NODE, "node-b"], 1))
}

fn any_endpoint(family: IpFamily) -> impl Strategy<Value = Ep> {
    /// Pods here, pods elsewhere, and the node itself.
    const V4: &[&str] = &["10.244.1.1", "10.244.1.2", "10.244.2.1", "10.244.2.2", "10.244.2.3", "10.0.0.1"];
    const V6: &[&str] = &["fd00:244:1::1", "fd00:244:1::2", "fd00:244:2::1", "fd00:244:2::2"];
    let addresses = match family {
        IpFamily::V4 => V4,
        IpFamily::V6 => V6,
    };
    let odd_node = select(&[None, Some(""), Some(OUR_NODE), Some("node-b"), Some("node-a2")][..]);
    let weight = prop_oneof![12 => Just(1), 1 => Just(0), 1 => Just(2), 1 => Just(6)];
    (select(addresses), any_conditions(), option::weighted(0.2, odd_node), any_hints(), weight).prop_map(
        |(address, (ready, serving, terminating), odd_node, (for_zones, for_nodes), weight)| {
            let here = ["10.244.1.", "fd00:244:1:", "10.0.0.1"].iter().any(|a| address.starts_with(a));
            let node = odd_node.unwrap_or(Some(if here { OUR_NODE } else { "node-b" }));
            Ep { address, ready, serving, terminating, node, for_zones, for_nodes, weight }
        },
    )
}

/// What the endpoints of one slice have in common, so that "all" and "none" are common, too.
#[derive(Clone, Debug)]
enum Common {
    Nothing,
    NoHints,
    /// Each is meant for somebody.
    Hinted,
    Terminating,
    Unready,
}

fn make_common(common: &Common, mut endpoint: Ep) -> Ep {
    match common {
        Common::Nothing => {}
        Common::NoHints => (endpoint.for_zones, endpoint.for_nodes) = (vec![], vec![]),
        Common::Hinted => {
            if endpoint.for_zones.is_empty() {
                endpoint.for_zones = vec!["east"];
            }
        }
        Common::Terminating => {
            (endpoint.ready, endpoint.serving, endpoint.terminating) = (Some(false), None, Some(true));
        }
        Common::Unready => (endpoint.ready, endpoint.serving) = (Some(false), Some(false)),
    }
    endpoint
}

pub(crate) fn any_slice() -> impl Strategy<Value = Slice> {
    let port = |name: &'static str| {
        let number = option::weighted(0.9, select(&[8080, 8080, 8081][..]));
        let port = (any_protocol(name), number).prop_map(move |(protocol, number)| (name, protocol, number));
        option::weighted(0.95, port)
    };
    let ports = (port(""), port("a"), port("b"), port("c"))
        .prop_map(|(unnamed, a, b, c)| [unnamed, a, b, c].into_iter().flatten().collect());
    let common = prop_oneof![
        3 => Just(Common::Nothing),
        4 => Just(Common::NoHints),
        5 => Just(Common::Hinted),
        2 => Just(Common::Terminating),
        1 => Just(Common::Unready),
    ];
    let family = prop_oneof![5 => Just(IpFamily::V4), 3 => Just(IpFamily::V6)];
    let endpoints = family.prop_flat_map(|family| (Just(family), vec(any_endpoint(family), 0..5)));
    let names = any_name(&["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"]);
    let fits = option::weighted(0.9, any::<Index>());
    (names, select(&["x", "y", "z"][..]), fits, ports, common, endpoints).prop_map(
        |(name, service, fits, ports, common, (family, endpoints))| {
            let endpoints = endpoints.into_iter().map(|endpoint| make_common(&common, endpoint)).collect();
            Slice { name, service, family, ports, endpoints, fits }
        },
    )
}
