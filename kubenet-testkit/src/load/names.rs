//! Names, addresses and numbers, each of them given to one at a time.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::Arc,
};

use kubenet_core::model::{Hints, InvalidObject, IpFamily, NodeInfo};

pub(super) const MAX_NODES: u32 = 5_000;
/// Half of the numbers of each range: churn returns some late.
pub(super) const MAX_SERVICES: u32 = 1 << 19;
pub(super) const MAX_PODS: u32 = 1 << 22;

/// What an address is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    Cluster,
    External,
    LoadBalancer,
    Pod,
}

/// The address of this number.
pub(super) fn address(usage: Use, family: IpFamily, number: u32) -> IpAddr {
    let (v4, v6) = match usage {
        Use::Cluster => (Ipv4Addr::new(10, 96, 0, 0), 0x96),
        Use::External => (Ipv4Addr::new(172, 16, 0, 0), 0x172),
        Use::LoadBalancer => (Ipv4Addr::new(100, 64, 0, 0), 0x100),
        Use::Pod => (Ipv4Addr::new(10, 128, 0, 0), 0x128),
    };
    match family {
        IpFamily::V4 => Ipv4Addr::from(u32::from(v4) + number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, v6, 0, 0, 0, 0, (number >> 16) as u16, number as u16).into(),
    }
}

/// Numbers of a range. One that was given back rests for a while before it is given out again.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    fresh: Range<u32>,
    returned: VecDeque<u32>,
}

impl Numbers {
    /// How many rest.
    const REST: usize = 256;

    pub(super) fn new(all: Range<u32>) -> Self {
        Self { fresh: all, returned: VecDeque::new() }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if self.returned.len() > Self::REST {
            return self.returned.pop_front();
        }
        self.fresh.next().or_else(|| self.returned.pop_front())
    }

    pub(super) fn give_back(&mut self, number: u32) {
        self.returned.push_back(number);
    }
}

/// The nodes, and what endpoints on one have in common. The first is ours.
#[derive(Clone, Debug)]
pub(super) struct Nodes(Vec<Node>);

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    zone: Arc<str>,
    pub(super) for_zone: Arc<Hints>,
    pub(super) for_node: Arc<Hints>,
}

impl Nodes {
    pub(super) fn new(count: u32) -> Self {
        let node = |number: u32| {
            let (name, zone) = (Arc::<str>::from(format!("node-{number}")), format!("zone-{}", number % 3));
            let zone = Arc::<str>::from(zone);
            let zones = vec![Arc::clone(&zone)];
            let for_node = Hints { nodes: vec![Arc::clone(&name)], zones: zones.clone() };
            Node { name, zone, for_zone: Hints { nodes: vec![], zones }.into(), for_node: for_node.into() }
        };
        Self((0..count).map(node).collect())
    }

    pub(super) fn len(&self) -> u32 {
        self.0.len() as u32
    }

    pub(super) fn get(&self, number: u32) -> Option<&Node> {
        self.0.get(number as usize)
    }

    /// Our node, with pods told by the ranges of the whole cluster.
    pub(super) fn ours(&self) -> Result<NodeInfo, InvalidObject> {
        let (name, zone) = self.get(0).map_or(("", ""), |node| (&*node.name, &*node.zone));
        let pods = IpFamily::ALL
            .into_iter()
            .zip([9, 32])
            .filter_map(|(family, length)| ipnet::IpNet::new(address(Use::Pod, family, 0), length).ok());
        let addresses =
            [Ipv4Addr::new(10, 0, 0, 1).into(), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1).into()];
        let builder = addresses.into_iter().fold(NodeInfo::builder(name), |builder, a| builder.address(a));
        pods.fold(builder, |builder, range| builder.cluster_cidr(range)).zone(zone).build()
    }
}
