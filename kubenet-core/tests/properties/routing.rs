//! A routed flow always lands in the set that the rules allow.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::executor::block_on;
use kubenet_core::datapath::{Capabilities, Datapath};
use kubenet_testkit::memory::{Flow, MemoryDatapath};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use crate::{
    cases, fixed,
    oracle::{Why, dialled, expect},
    sample,
    world::{World, address, any_world, percent},
};

/// What of a world a flow is about.
#[derive(Clone, Debug)]
pub(crate) struct Pick {
    to: Index,
    /// Whether it is something that no Service claims, but almost.
    misses: bool,
    from: Index,
    interface: Option<&'static str>,
}

pub(crate) fn any_pick() -> impl Strategy<Value = Pick> {
    let interface = select(&[None, Some("cni0"), Some("veth12"), Some("eth0"), Some("cni")][..]);
    (any::<Index>(), percent(10), any::<Index>(), interface).prop_map(|(to, misses, from, interface)| Pick {
        to,
        misses,
        from,
        interface,
    })
}

/// Who may dial: pods, which may be backends, nodes, clients outside, in and around the ranges.
fn clients(world: &World, to: IpAddr) -> Vec<IpAddr> {
    const OTHERS: &[&str] = &[
        "10.244.1.1",
        "10.244.1.2",
        "10.244.1.9",
        "10.244.2.1",
        "10.244.2.2",
        "10.0.0.2",
        "10.0.0.77",
        "172.16.0.7",
        "172.16.0.8",
        "198.18.0.1",
        "127.0.0.1",
        "fd00:244:1::1",
        "fd00:244:1::9",
        "fd00:244:2::1",
        "fd00:1::9",
        "2001:db8:f::1",
        "2001:db8:e::1",
        "::1",
    ];
    let nodes = world.node.addresses.iter();
    let all = nodes.clone().chain(nodes).chain(OTHERS).map(|text| address(text));
    all.filter(|client| client.is_ipv4() == to.is_ipv4()).collect()
}

impl Pick {
    /// The same dialled by the client of another.
    pub(crate) fn dialled_by(mut self, other: &Pick) -> Self {
        (self.from, self.interface) = (other.from, other.interface);
        self
    }

    pub(crate) fn flow(&self, world: &World) -> Flow {
        let (claimed, near) = dialled(world);
        let dialled = if self.misses || claimed.is_empty() { near } else { claimed };
        let (to, protocol) = dialled[self.to.index(dialled.len())];
        let clients = clients(world, to.ip());
        let client = clients[self.from.index(clients.len())];
        let flow = Flow::new(SocketAddr::new(client, 40_000), to, protocol);
        self.interface.map_or(flow.clone(), |interface| flow.through(interface))
    }
}

/// Routes flows through a datapath and holds each verdict against the rules; says which rules decided.
fn check(world: &World, picks: &[Pick], spared: bool) -> Result<Vec<Why>, TestCaseError> {
    let mut capabilities = Capabilities::full();
    capabilities.local_backends_see_client = spared;
    let datapath = MemoryDatapath::with_capabilities(capabilities);
    block_on(datapath.replace(Arc::new(world.table(1)))).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let mut whys = Vec::new();
    for pick in picks {
        let flow = pick.flow(world);
        let verdict = datapath.route(&flow);
        let expected = expect(world, &flow, spared);
        let Some(right) = expected.iter().find(|expected| expected.allows(&verdict)) else {
            return Err(TestCaseError::fail(format!("{flow:?}\n is {verdict:?}\n instead of {expected:#?}")));
        };
        whys.push(right.why.clone());
    }
    Ok(whys)
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn a_flow_lands_in_the_set_that_the_rules_allow(
        world in any_world(),
        picks in vec(any_pick(), 1..80),
        spared in any::<bool>(),
    ) {
        check(&world, &picks, spared)?;
    }
}

/// The branches of the rules, each of which the random clusters must reach.
const BRANCHES: &[&str] = &[
    "E1 stragglers anywhere",
    "E1 stragglers here",
    "E1 stragglers here, ready ones elsewhere",
    "E2 the whole set",
    "E3 for our node",
    "E3 for our zone",
    "E3 hints for others",
    "E3 narrows the set",
    "E3 no hints",
    "E3 not all have hints",
    "E4 local set",
    "E5 local set",
    "E5 short circuit",
    "E6 none anywhere: reject",
    "E6 none here: drop",
    "F1 cluster IP",
    "F2 external IP",
    "F3 load balancer",
    "F4 an address of its own wins over a node port",
    "F4 node port",
    "F4 node port on a loopback address",
    "F5 contested",
    "N1 a loopback address from elsewhere",
    "N4 unknown port of a cluster IP",
    "O2 either may count",
    "O2 one that is not terminating wins",
    "O3 ready wins",
    "R1 a range of all",
    "R1 inside the ranges",
    "R1 only bad ranges remain",
    "R1 outside the ranges",
    "R1 ranges of the other family only",
    "R2 the node",
    "S1 external",
    "S1 spared here",
    "S2 client is seen",
    "S3 masqueradeAll",
    "S3 not a pod",
    "S3 pod",
    "S4 hairpin",
    "S5 no detector",
    "S5 node",
    "S5 node, policy Local",
    "from a pod",
    "from outside",
    "from the node",
    "maglev",
    "not a Service",
    "weights",
];

#[test]
fn every_branch_of_the_rules_is_reached() {
    let (mut runner, strategy) = (fixed(), (any_world(), vec(any_pick(), 100), any::<bool>()));
    let mut counts = BTreeMap::<_, usize>::new();
    for _ in 0..300 {
        let (world, picks, spared) = sample(&strategy, &mut runner);
        for why in check(&world, &picks, spared).unwrap() {
            for branch in why {
                *counts.entry(branch).or_default() += 1;
            }
        }
    }
    println!("{counts:#?}");
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), BRANCHES);
    assert!(counts.values().all(|count| *count >= 10), "{counts:#?}");
}
