//! [E1], [E2], [E4] to [E7]: which endpoints serve which traffic. [E3] is in `topology`.

use kubenet_core::{
    model::{LocalDetector, Protocol::Tcp},
    route::FrontendKind::{self, ClusterIp, ExternalIp, LoadBalancer, NodePort},
};
use serde_json::{Value, json};

use crate::{
    manifest::{pod, pod_that_is, terminating, unready, web, with},
    world::{Dropped, Passed, Rejected, Setup, World, node_a, to},
};

const CLIENTS: [&str; 4] = ["a9", "b9", "node-a", "outside"];
const EXTERNAL: [FrontendKind; 3] = [NodePort, ExternalIp, LoadBalancer];

fn internal_local() -> Value {
    json!({ "internalTrafficPolicy": "Local" })
}

fn external_local() -> Value {
    json!({ "externalTrafficPolicy": "Local" })
}

#[test]
fn e1_usable_are_the_ready_ones() {
    let world = World::web(json!({}), [pod("a1"), unready("a2"), terminating("a3"), pod("b1")]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1", "b1"]));
}

#[test]
fn e1_without_a_ready_one_usable_are_those_that_serve_while_they_terminate() {
    let silent = pod_that_is("b1", json!({ "ready": false, "serving": false, "terminating": true }));
    let starting = pod_that_is("b2", json!({ "ready": false, "serving": true, "terminating": false }));
    let world =
        World::web(json!({}), [terminating("a1"), unready("a2"), silent, starting, terminating("b3")]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1", "b3"]));
}

#[test]
fn e1_else_none_is_usable() {
    let silent = pod_that_is("b1", json!({ "ready": false, "serving": false, "terminating": true }));
    assert_eq!(World::web(json!({}), [unready("a1"), silent]).dial("a9", ClusterIp), Rejected);
}

#[test]
fn e2_the_cluster_set_is_the_usable_ones_anywhere() {
    let unplaced = with(pod("d1"), json!({ "nodeName": null }));
    let world = World::web(json!({}), [pod("a1"), pod("b1"), pod("c1"), unplaced]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1", "b1", "c1", "d1"]));
}

#[test]
fn e2_the_local_set_is_the_usable_ones_on_this_node() {
    let world = World::web(internal_local(), [pod("a1"), pod("a2"), terminating("a3"), pod("b1")]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1", "a2"]));
    let world = World::web(internal_local(), [terminating("a1"), unready("a2"), pod("b1")]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]), "none here is ready, whatever is elsewhere");
}

#[test]
fn e4_internal_policy_cluster_uses_the_cluster_set() {
    for spec in [json!({}), json!({ "internalTrafficPolicy": "Cluster" })] {
        let world = World::web(spec, [pod("a1"), pod("b1")]);
        for client in CLIENTS {
            assert_eq!(world.dial(client, ClusterIp), to(["a1", "b1"]), "{client}");
        }
    }
}

#[test]
fn e4_internal_policy_local_uses_the_local_set() {
    let world = World::web(internal_local(), [pod("a1"), pod("b1")]);
    for client in CLIENTS {
        assert_eq!(world.dial(client, ClusterIp), to(["a1"]), "{client}");
    }
}

#[test]
fn e5_external_policy_cluster_uses_the_cluster_set() {
    for spec in [json!({}), json!({ "externalTrafficPolicy": "Cluster" })] {
        let world = World::web(spec, [pod("a1"), pod("b1")]);
        for (client, kind) in CLIENTS.iter().flat_map(|client| EXTERNAL.map(|kind| (client, kind))) {
            assert_eq!(world.dial(client, kind), to(["a1", "b1"]), "{client} to {kind:?}");
        }
    }
}

#[test]
fn e5_external_policy_local_uses_the_local_set_for_traffic_from_outside() {
    let world = World::web(external_local(), [pod("a1"), pod("b1")]);
    for kind in EXTERNAL {
        assert_eq!(world.dial("outside", kind), to(["a1"]), "{kind:?}");
    }
}

#[test]
fn e5_local_policy_short_circuits_for_pods_and_the_node() {
    let world = World::web(external_local(), [pod("a1"), pod("b1")]);
    for (client, kind) in ["a9", "b9", "node-a"].iter().flat_map(|client| EXTERNAL.map(|kind| (client, kind)))
    {
        assert_eq!(world.dial(client, kind), to(["a1", "b1"]), "{client} to {kind:?}");
    }
}

#[test]
fn e5_pods_are_told_by_the_local_detector() {
    let on = |detector: LocalDetector| {
        let setup = Setup { node: node_a(|node| node.local_detector(detector)), ..Setup::default() };
        World::web_on(setup, external_local(), [pod("a1"), pod("b1")])
    };
    let all = || to(["a1", "b1"]);
    let node_cidr = on(LocalDetector::Cidrs(node_a(|node| node).pod_cidrs().to_vec()));
    assert_eq!(["a9", "b9", "node-a"].map(|c| node_cidr.dial(c, NodePort)), [all(), to(["a1"]), all()]);
    let bridge = on(LocalDetector::Bridge("cni0".into()));
    assert_eq!(
        ["a9@cni0", "a9@eth0", "node-a"].map(|c| bridge.dial(c, NodePort)),
        [all(), to(["a1"]), all()]
    );
    let none = on(LocalDetector::None);
    assert_eq!(["a9", "node-a"].map(|c| none.dial(c, NodePort)), [to(["a1"]), all()]);
}

#[test]
fn e5_the_external_policy_counts_for_node_ports_load_balancers_and_external_ips() {
    let answer = |kind: &str, external_ips: Value, node_port: Value, at: &str| {
        let port = with(json!({ "name": "tcp", "port": 80 }), json!({ "nodePort": node_port }));
        let spec = json!({ "type": kind, "externalIPs": external_ips, "ports": [port] });
        World::web(with(spec, external_local()), [pod("a1"), pod("b1")]).packet("outside", at, Tcp)
    };
    let (none, some) = (json!(null), json!(["198.51.100.1"]));
    assert_eq!(answer("NodePort", json!([]), json!(30080), "10.0.0.1:30080"), to(["a1"]));
    assert_eq!(answer("LoadBalancer", json!([]), none.clone(), "192.0.2.1:80"), to(["a1"]));
    assert_eq!(answer("ClusterIP", some, none.clone(), "198.51.100.1:80"), to(["a1"]));
    assert_eq!(answer("ClusterIP", json!([]), none, "192.0.2.1:80"), to(["a1", "b1"]), "it does not count");
}

#[test]
fn e5_neither_policy_touches_the_frontends_of_the_other() {
    let world = World::web(internal_local(), [pod("a1"), pod("b1")]);
    for (client, kind) in CLIENTS.iter().flat_map(|client| EXTERNAL.map(|kind| (client, kind))) {
        assert_eq!(world.dial(client, kind), to(["a1", "b1"]), "{client} to {kind:?}");
    }
    let world = World::web(external_local(), [pod("a1"), pod("b1")]);
    for client in CLIENTS {
        assert_eq!(world.dial(client, ClusterIp), to(["a1", "b1"]), "{client}");
    }
}

#[test]
fn e6_without_a_usable_endpoint_anywhere_everybody_is_rejected() {
    let both = json!({ "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local" });
    for spec in [json!({}), internal_local(), external_local(), both] {
        for endpoints in [vec![], vec![unready("a1"), unready("b1")]] {
            let world = World::web(spec.clone(), endpoints);
            for (client, kind) in CLIENTS.iter().flat_map(|c| FrontendKind::ALL.map(|kind| (c, kind))) {
                assert_eq!(world.dial(client, kind), Rejected, "{client} to {kind:?} by {spec}");
            }
        }
    }
}

#[test]
fn e6_a_service_without_any_slice_rejects() {
    let world = World::new(Setup::default(), [web(json!({}))]);
    for kind in FrontendKind::ALL {
        assert_eq!(world.dial("outside", kind), Rejected, "{kind:?}");
    }
}

#[test]
fn e6_with_endpoints_elsewhere_local_policy_drops_external_traffic() {
    for elsewhere in [pod("b1"), terminating("b1")] {
        let world = World::web(external_local(), [elsewhere, unready("a1")]);
        for kind in EXTERNAL {
            assert_eq!(world.dial("outside", kind), Dropped, "{kind:?}");
            assert_eq!(world.dial("a9", kind), to(["b1"]), "{kind:?}: the policy is not for pods");
        }
    }
}

#[test]
fn e6_with_endpoints_elsewhere_local_policy_drops_internal_traffic() {
    let world = World::web(internal_local(), [pod("b1"), unready("a1")]);
    for client in CLIENTS {
        assert_eq!(world.dial(client, ClusterIp), Dropped, "{client}");
    }
}

#[test]
fn e7_a_load_balancers_traffic_never_goes_back_to_it() {
    let world = World::web(external_local(), [pod("b1")]);
    assert_eq!(world.dial("outside", LoadBalancer), Dropped, "passed on, it would come here again");
    for client in ["a9", "b9", "node-a"] {
        assert_eq!(world.dial(client, LoadBalancer), to(["b1"]), "{client} needs no load balancer");
    }
    for route in world.table().routes() {
        for backend in route.backends() {
            let at = backend.socket_addr().to_string();
            assert_eq!(world.packet("outside", &at, route.frontend.protocol), Passed, "translated once");
        }
    }
    let without = World::web(external_local(), []);
    assert_eq!(CLIENTS.map(|client| without.dial(client, LoadBalancer)), [(); 4].map(|()| Rejected));
}
