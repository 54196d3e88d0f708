//! Small random clusters, dense enough that the interesting cases are common: few names, addresses, zones
//! and ports, so that slices meet their Services, hints meet the node, and claims meet each other.
//!
//! They are plain data, as an API server would hold them; [`Svc::build`] and its like make objects of the
//! model of them.

mod node;
mod service;
mod slice;
mod tweak;

use std::{collections::BTreeMap, net::IpAddr};

use kubenet_core::{
    cluster::Change,
    model::{EndpointSlice, IpFamily, ObjectName, Service},
    resolve::resolve,
    route::{Revision, RouteTable},
};
use proptest::{collection::vec, prelude::*};

pub(crate) use self::{
    node::{Node, any_node},
    service::{Port, Svc, any_service},
    slice::{Ep, Slice, any_slice},
    tweak::{Tweak, any_small_tweak, any_tweak},
};

pub(crate) const OUR_NODE: &str = "node-a";

/// Namespace and name.
pub(crate) type Name = (&'static str, &'static str);

/// What is declared for one node.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) services: BTreeMap<Name, Svc>,
    pub(crate) slices: BTreeMap<Name, Slice>,
}

impl World {
    pub(crate) fn new(node: Node, services: Vec<Svc>, slices: Vec<Slice>) -> Self {
        let services = services.into_iter().map(|service| (service.name, service)).collect();
        let slices = slices.into_iter().map(|slice| slice.fit(&services));
        let slices = slices.map(|slice| (slice.name, slice)).collect();
        Self { node, services, slices }
    }

    pub(crate) fn objects(&self) -> (Vec<Service>, Vec<EndpointSlice>) {
        (self.services.values().map(Svc::build).collect(), self.slices.values().map(Slice::build).collect())
    }

    pub(crate) fn snapshot(&self) -> Change {
        let (services, slices) = self.objects();
        Change::Snapshot { services, slices }
    }

    /// Resolved from scratch.
    pub(crate) fn table(&self, revision: u64) -> RouteTable {
        let (services, slices) = self.objects();
        let table = resolve(&self.node.build(), &services, &slices);
        RouteTable::new(Revision(revision), table.node().clone(), table.routes().cloned())
    }
}

pub(crate) fn any_world() -> impl Strategy<Value = World> {
    (any_node(), vec(any_service(), 1..5), vec(any_slice(), 0..16))
        .prop_map(|(node, services, slices)| World::new(node, services, slices))
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn is_of(family: IpFamily) -> impl Fn(&&IpAddr) -> bool {
    move |address| IpFamily::of(**address) == family
}

pub(crate) fn object_name(kind: &str, (namespace, name): Name) -> ObjectName {
    ObjectName::new(kind, namespace, name).unwrap()
}

/// An object's name: mostly of one namespace, so that names meet.
fn any_name(names: &'static [&'static str]) -> impl Strategy<Value = Name> {
    let namespace = prop_oneof![4 => Just("demo"), 1 => Just("other")];
    (namespace, prop::sample::select(names))
}

/// True in this many of a hundred cases.
pub(crate) fn percent(share: u32) -> impl Strategy<Value = bool> + Clone {
    prop::bool::weighted(f64::from(share) / 100.0)
}

/// Some of these, each at most once, in their order.
fn some_of<T: Clone + std::fmt::Debug + 'static>(
    all: &'static [T],
    most: usize,
) -> impl Strategy<Value = Vec<T>> {
    prop::sample::subsequence(all, 0..=most)
}
