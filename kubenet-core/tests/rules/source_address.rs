//! [S1] to [S5]: who is masqueraded. Port allocation ([S6]) is not to be seen here.

use kubenet_core::{
    datapath::{Capabilities, Datapath},
    model::{LocalDetector, Protocol::Tcp},
    route::FrontendKind::{self, ClusterIp, ExternalIp, LoadBalancer, NodePort},
};
use kubenet_testkit::memory::MemoryDatapath;
use serde_json::json;

use crate::{
    manifest::{pod, web},
    world::{Answer, Setup, World, node_a, to},
};

const EXTERNAL: [FrontendKind; 3] = [NodePort, ExternalIp, LoadBalancer];

/// The backends a1, here, and b1, elsewhere, on a node that tells pods so.
fn detecting(detector: LocalDetector) -> World {
    let setup = Setup { node: node_a(|node| node.local_detector(detector)), ..Setup::default() };
    World::web_on(setup, json!({}), [pod("a1"), pod("b1")])
}

/// A datapath that keeps the client's address for backends here, and says so.
fn keeping() -> Setup {
    let mut capabilities = Capabilities::full();
    capabilities.local_backends_see_client = true;
    Setup { memory: MemoryDatapath::with_capabilities(capabilities), ..Setup::default() }
}

fn both_see(who: &str) -> Answer {
    let [a1, b1] = ["a1", "b1"].map(|pod| format!("{pod} sees the {who}"));
    to([&a1, &b1])
}

#[test]
fn s1_traffic_from_outside_is_masqueraded_as_kube_proxy_does() {
    let world = World::web(json!({}), [pod("a1"), pod("b1")]);
    for kind in EXTERNAL {
        assert_eq!(world.seen("outside", kind), both_see("node"), "{kind:?}: also for backends here");
    }
}

#[test]
fn s1_a_datapath_that_keeps_the_clients_address_for_backends_here_says_so() {
    let world = World::web_on(keeping(), json!({}), [pod("a1"), pod("b1")]);
    assert!(world.memory.capabilities().local_backends_see_client);
    for kind in EXTERNAL {
        assert_eq!(world.seen("outside", kind), to(["a1 sees the client", "b1 sees the node"]), "{kind:?}");
    }
}

#[test]
fn s2_with_policy_local_the_backend_sees_the_client() {
    let world = World::web(json!({ "externalTrafficPolicy": "Local" }), [pod("a1"), pod("b1")]);
    for kind in EXTERNAL {
        assert_eq!(world.seen("outside", kind), to(["a1 sees the client"]), "{kind:?}");
    }
}

#[test]
fn s3_cluster_ip_traffic_that_is_not_a_pods_is_masqueraded() {
    let world = World::web(json!({}), [pod("a1"), pod("b1")]);
    assert_eq!(["a9", "b9"].map(|pod| world.seen(pod, ClusterIp)), [both_see("client"), both_see("client")]);
    let others = ["outside", "node-a"];
    assert_eq!(others.map(|client| world.seen(client, ClusterIp)), [both_see("node"), both_see("node")]);
}

#[test]
fn s3_with_masquerade_all_pods_cluster_ip_traffic_is_masqueraded_too() {
    let node = node_a(|node| node.masquerade_all(true));
    let world = World::web_on(Setup { node, ..Setup::default() }, json!({}), [pod("a1"), pod("b1")]);
    for client in ["a9", "b9", "node-a", "outside"] {
        assert_eq!(world.seen(client, ClusterIp), both_see("node"), "{client}");
    }
    let node = node_a(|node| node.masquerade_all(true).local_detector(LocalDetector::None));
    let world = World::web_on(Setup { node, ..Setup::default() }, json!({}), [pod("a1"), pod("b1")]);
    assert_eq!(world.seen("a9", ClusterIp), both_see("node"), "without a detector, too");
}

#[test]
fn s3_with_the_ranges_of_the_cluster_all_pods_are_known() {
    let ranges = ["10.244.0.0/16", "fd00:244::/32"].map(|cidr| cidr.parse().unwrap());
    let world = detecting(LocalDetector::Cidrs(ranges.into()));
    let seen = ["a9", "b9", "outside"].map(|client| world.seen(client, ClusterIp));
    assert_eq!(seen, ["client", "client", "node"].map(both_see));
}

#[test]
fn s3_with_the_ranges_of_the_node_its_own_pods_are_known() {
    let world = detecting(LocalDetector::Cidrs(node_a(|node| node).pod_cidrs().to_vec()));
    let seen = ["a9", "b9", "outside"].map(|client| world.seen(client, ClusterIp));
    assert_eq!(seen, ["client", "node", "node"].map(both_see));
}

#[test]
fn s3_with_a_bridge_pods_are_known_by_that_interface() {
    let world = detecting(LocalDetector::Bridge("cni0".into()));
    let clients = ["a9@cni0", "outside@cni0", "a9@cni01", "a9@eth0", "a9"];
    let seen = clients.map(|client| world.seen(client, ClusterIp));
    assert_eq!(seen, ["client", "client", "node", "node", "node"].map(both_see));
}

#[test]
fn s3_with_a_prefix_pods_are_known_by_the_beginning_of_the_interfaces_name() {
    let world = detecting(LocalDetector::InterfacePrefix("veth".into()));
    let clients = ["a9@veth1a2b", "a9@veth", "a9@eth0", "a9"];
    let seen = clients.map(|client| world.seen(client, ClusterIp));
    assert_eq!(seen, ["client", "client", "node", "node"].map(both_see));
}

#[test]
fn s4_a_backend_that_reaches_itself_is_masqueraded() {
    let specs = [json!({}), json!({ "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" })];
    let nothing_known = Setup { node: node_a(|n| n.local_detector(LocalDetector::None)), ..Setup::default() };
    for setup in [Setup::default(), keeping(), nothing_known] {
        let mut world = World::web_on(setup, json!({}), [pod("a1")]);
        for spec in &specs {
            world.apply([web(spec.clone())]);
            for kind in FrontendKind::ALL {
                assert_eq!(world.seen("a1", kind), to(["a1 sees the node"]), "{kind:?}");
            }
        }
    }
    let world = World::web(json!({}), [pod("a1"), pod("b1")]);
    assert_eq!(world.seen("a1", ClusterIp), to(["a1 sees the node", "b1 sees the client"]));
}

#[test]
fn s5_the_nodes_own_traffic_to_external_frontends_of_policy_local_is_masqueraded() {
    let world = World::web(json!({ "externalTrafficPolicy": "Local" }), [pod("a1"), pod("b1")]);
    for kind in EXTERNAL {
        assert_eq!(world.seen("node-a", kind), both_see("node"), "{kind:?}");
        assert_eq!(world.seen("a9", kind), both_see("client"), "{kind:?}: a pod's is not");
    }
}

#[test]
fn s5_the_nodes_own_traffic_from_loopback_is_masqueraded() {
    let node = node_a(|builder| builder.localhost_node_ports(true));
    for policy in ["Cluster", "Local"] {
        let setup = Setup { node: node.clone(), ..Setup::default() };
        let spec = json!({ "externalTrafficPolicy": policy });
        let world = World::web_on(setup, spec, [pod("a1"), pod("b1")]);
        let seen = world.seen_by_packet("127.0.0.1", "127.0.0.1:30080", Tcp);
        assert_eq!(seen, to(["a1 sees the node", "b1 sees the node"]), "{policy}");
    }
}

#[test]
fn s5_with_the_interface_detectors_the_nodes_cluster_ip_traffic_is_masqueraded() {
    for detector in [LocalDetector::Bridge("cni0".into()), LocalDetector::InterfacePrefix("veth".into())] {
        assert_eq!(detecting(detector).seen("node-a", ClusterIp), both_see("node"));
    }
}

#[test]
fn s5_without_a_detector_cluster_ip_traffic_is_never_masqueraded() {
    let world = detecting(LocalDetector::None);
    for client in ["a9", "b9", "node-a", "outside"] {
        assert_eq!(world.seen(client, ClusterIp), both_see("client"), "{client}");
    }
    let v4_only = detecting(LocalDetector::Cidrs(vec!["10.244.0.0/16".parse().unwrap()]));
    let at = ["10.96.0.10:80", "[fd00:96::10]:80"].map(|at| v4_only.seen_by_packet("outside", at, Tcp));
    assert_eq!(at, [both_see("node"), both_see("client")], "in the family that has none");
}
