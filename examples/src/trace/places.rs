//! Who lives where.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubenet_core::{
    model::IpFamily,
    route::{Backend, RouteTable},
};

use super::Dialled;

/// Where there are more pods, several share an interface: to attach programs to each takes its time.
const MOST_INTERFACES: usize = 16;

/// Where packets of an address come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// The node itself.
    Node,
    /// A pod of the node, behind the interface of this number.
    Pod(usize),
    /// Anywhere else: behind the node's external interface.
    World,
}

/// The pods of the node that the flows may have to do with. Everybody else is the node or lives in the world.
///
/// A pod of the node is whom the routes say to be here; and a client that is not a backend elsewhere, from the
/// node's pod ranges or, where those are not known, from the ranges that the pods of the cluster live in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// In the order in which the node prefers them.
    node: Vec<IpAddr>,
    pods: BTreeMap<IpAddr, usize>,
    interfaces: usize,
}

impl Places {
    pub(super) fn plan(table: &RouteTable, pod_cidrs: &[IpNet], flows: &[Dialled]) -> Self {
        let node = table.node().addresses.clone();
        let routes = flows.iter().filter_map(|flow| table.lookup(flow.to, flow.port, flow.protocol));
        let local = routes.flat_map(|route| route.backends()).filter(|b| b.local).map(|b| b.address);
        let mut pods: BTreeSet<IpAddr> = local.collect();
        let all: BTreeMap<IpAddr, bool> = table
            .routes()
            .flat_map(|route| route.backends())
            .map(|Backend { address, local, .. }| (*address, *local))
            .collect();
        let is_here = |client: IpAddr| {
            all.get(&client).copied().unwrap_or_else(|| {
                let family = |cidr: &&IpNet| IpFamily::of(cidr.addr()) == IpFamily::of(client);
                let mut ours = pod_cidrs.iter().filter(family).peekable();
                match ours.peek() {
                    Some(_) => ours.any(|cidr| cidr.contains(&client)),
                    None => table.node().local_detector.cidrs().iter().any(|cidr| cidr.contains(&client)),
                }
            })
        };
        pods.extend(flows.iter().map(|flow| flow.from).filter(|client| is_here(*client)));
        pods.retain(|pod| !node.contains(pod) && !pod.is_loopback());
        let interfaces = pods.len().min(MOST_INTERFACES);
        let pods = pods.into_iter().zip((0..interfaces.max(1)).cycle()).collect();
        Self { node, pods, interfaces }
    }

    pub(super) fn home(&self, address: IpAddr) -> Home {
        if self.node.contains(&address) || address.is_loopback() {
            return Home::Node;
        }
        self.pods.get(&address).map_or(Home::World, |interface| Home::Pod(*interface))
    }

    pub(super) fn node(&self) -> &[IpAddr] {
        &self.node
    }

    /// The pods' addresses, and the numbers of their interfaces.
    pub(super) fn pods(&self) -> impl Iterator<Item = (IpAddr, usize)> {
        self.pods.iter().map(|(address, interface)| (*address, *interface))
    }

    /// How many interfaces there are.
    pub(super) fn interfaces(&self) -> usize {
        self.interfaces
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kubenet_core::{
        model::{NodeInfo, Protocol},
        route::{Frontend, FrontendKind, Masquerade, Revision, Route, ServicePortName, Target, WhenEmpty},
    };

    use super::*;

    fn table() -> RouteTable {
        let node = NodeInfo::builder("node-a")
            .address("10.0.0.1".parse().unwrap())
            .cluster_cidr("10.244.0.0/16".parse().unwrap())
            .build()
            .unwrap();
        let backend =
            |address: &str, local| Backend::new(address.parse().unwrap(), 8080.try_into().unwrap(), local);
        let backends: Arc<[Backend]> = [
            backend("10.0.0.1", true),
            backend("10.244.1.2", true),
            backend("10.244.2.2", false),
            backend("198.51.100.9", true),
        ]
        .into();
        let name = ServicePortName { namespace: "demo".into(), service: "web".into(), port: "".into() };
        let route = Route::new(
            Frontend::ip("10.96.0.1".parse().unwrap(), 80.try_into().unwrap(), Protocol::Tcp),
            FrontendKind::ClusterIp,
            name,
            Target { backends, when_empty: WhenEmpty::Reject },
            Masquerade::NEVER,
        );
        RouteTable::new(Revision(1), Arc::new(node.routing()), [Arc::new(route)])
    }

    fn flow(from: &str) -> Dialled {
        Dialled::new(from, "10.96.0.1", 80, "TCP").unwrap()
    }

    fn home(pod_cidrs: &[&str], client: &str) -> Home {
        let pod_cidrs: Vec<IpNet> = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        match Places::plan(&table(), &pod_cidrs, &[flow(client)]).home(client.parse().unwrap()) {
            Home::Pod(_) => Home::Pod(0),
            home => home,
        }
    }

    #[test]
    fn everybody_has_a_home() {
        let pod = Home::Pod(0);
        for (client, of_cluster, of_node) in [
            ("10.0.0.1", Home::Node, Home::Node),
            ("127.0.0.1", Home::Node, Home::Node),
            ("10.244.1.2", pod, pod),
            ("198.51.100.9", pod, pod),
            ("10.244.2.2", Home::World, Home::World),
            ("10.244.1.77", pod, pod),
            ("10.244.2.77", pod, Home::World),
            ("198.51.100.7", Home::World, Home::World),
        ] {
            assert_eq!(home(&[], client), of_cluster, "{client}, the cluster's ranges are known");
            assert_eq!(home(&["10.244.1.0/24"], client), of_node, "{client}, the node's ranges are known");
            assert_eq!(home(&["fd00::/64"], client), of_cluster, "{client}, of the other family");
        }
    }

    #[test]
    fn many_pods_share_interfaces() {
        let flows: Vec<_> = (0..200).map(|n| flow(&format!("10.244.3.{n}"))).collect();
        let places = Places::plan(&table(), &[], &flows);
        assert_eq!((places.interfaces(), places.pods().count()), (MOST_INTERFACES, 202));
        assert!(places.pods().all(|(_, interface)| interface < MOST_INTERFACES));
    }
}
