//! [E3]: hints. The node is node-a in zone-1.

use kubenet_core::route::FrontendKind::{ClusterIp, NodePort};
use serde_json::{Value, json};

use crate::{
    manifest::{for_nodes, for_zones, node, pod, slices, terminating, unready, web, with},
    world::{Answer, Setup, World, node_info, to},
};

/// What a pod gets of these endpoints.
fn picked(endpoints: impl IntoIterator<Item = Value>) -> Answer {
    World::web(json!({}), endpoints).dial("a9", ClusterIp)
}

#[test]
fn e3_hints_for_our_zone_are_followed() {
    let endpoints = [for_zones("b1", &["zone-1"]), for_zones("c1", &["zone-2"])];
    let world = World::web(json!({}), endpoints);
    for (client, kind) in [("a9", ClusterIp), ("outside", ClusterIp), ("outside", NodePort), ("a9", NodePort)]
    {
        assert_eq!(world.dial(client, kind), to(["b1"]), "{client}");
    }
}

#[test]
fn e3_hints_are_ignored_where_a_ready_endpoint_has_none() {
    assert_eq!(picked([for_zones("b1", &["zone-1"]), pod("c1")]), to(["b1", "c1"]));
    for empty in [json!({}), json!({ "forZones": [] }), json!({ "forZones": [{ "name": "" }] })] {
        let without = with(pod("c1"), json!({ "hints": empty }));
        assert_eq!(picked([for_zones("b1", &["zone-1"]), without]), to(["b1", "c1"]));
    }
}

#[test]
fn e3_endpoints_that_are_not_ready_need_no_hint() {
    let endpoints =
        [for_zones("b1", &["zone-1"]), for_zones("c1", &["zone-2"]), unready("c2"), terminating("c3")];
    assert_eq!(picked(endpoints), to(["b1"]));
}

#[test]
fn e3_hints_are_ignored_where_none_is_for_us() {
    assert_eq!(picked([for_zones("b1", &["zone-3"]), for_zones("c1", &["zone-2"])]), to(["b1", "c1"]));
    let not_ready = with(unready("b1"), json!({ "hints": { "forZones": [{ "name": "zone-1" }] } }));
    let endpoints = [not_ready, for_zones("c1", &["zone-2"]), for_zones("d1", &["zone-3"])];
    assert_eq!(picked(endpoints), to(["c1", "d1"]), "that of an endpoint that is not ready is none");
}

#[test]
fn e3_hints_for_zones_are_ignored_on_a_node_of_no_zone() {
    let node = node(json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": null } } }));
    let setup = Setup { node: node_info(node, |builder| builder), ..Setup::default() };
    let endpoints = [for_zones("b1", &["zone-1"]), for_zones("c1", &["zone-2"])];
    assert_eq!(World::web_on(setup, json!({}), endpoints).dial("a9", ClusterIp), to(["b1", "c1"]));
}

#[test]
fn e3_hints_for_nodes_are_tried_before_those_for_zones() {
    let endpoints = || [for_nodes("a1", &["node-a"], &["zone-1"]), for_nodes("b1", &["node-b"], &["zone-1"])];
    assert_eq!(picked(endpoints()), to(["a1"]));
    let elsewhere = for_nodes("b2", &["node-a"], &["zone-2"]);
    assert_eq!(
        picked(endpoints().into_iter().chain([elsewhere])),
        to(["a1", "b2"]),
        "the hint, not the place"
    );
}

#[test]
fn e3_hints_for_zones_serve_where_those_for_nodes_do_not() {
    let none_for_us = [for_nodes("b1", &["node-b"], &["zone-1"]), for_nodes("c1", &["node-c"], &["zone-2"])];
    assert_eq!(picked(none_for_us), to(["b1"]));
    let one_has_none = [
        for_nodes("a1", &["node-a"], &["zone-1"]),
        for_zones("b1", &["zone-1"]),
        for_zones("c1", &["zone-2"]),
    ];
    assert_eq!(picked(one_has_none), to(["a1", "b1"]));
    let neither = [for_nodes("a1", &["node-a"], &[]), for_zones("b1", &["zone-1"])];
    assert_eq!(picked(neither), to(["a1", "b1"]), "ignored as a whole");
}

#[test]
fn e3_only_the_hints_decide() {
    for distribution in ["PreferSameZone", "PreferClose", "PreferSameNode"] {
        let spec = json!({ "trafficDistribution": distribution });
        let world = World::web(spec.clone(), [pod("a1"), pod("c1")]);
        assert_eq!(world.dial("a9", ClusterIp), to(["a1", "c1"]), "{distribution} without hints");
        let hinted = [for_zones("a1", &["zone-2"]), for_zones("c1", &["zone-1"])];
        assert_eq!(World::web(spec, hinted).dial("a9", ClusterIp), to(["c1"]), "{distribution}");
    }
    let annotated = |mode: &str, endpoints: [Value; 2]| {
        let annotations = json!({ "service.kubernetes.io/topology-mode": mode });
        let object = with(web(json!({})), json!({ "metadata": { "annotations": annotations } }));
        let world = World::new(Setup::default(), [object].into_iter().chain(slices(endpoints)));
        world.dial("a9", ClusterIp)
    };
    assert_eq!(annotated("Auto", [pod("a1"), pod("c1")]), to(["a1", "c1"]));
    let hinted = [for_zones("b1", &["zone-1"]), for_zones("c1", &["zone-2"])];
    assert_eq!(annotated("Disabled", hinted), to(["b1"]));
}

#[test]
fn e3_terminating_endpoints_serve_whatever_their_hints() {
    let hint = |zone: &str| json!({ "hints": { "forZones": [{ "name": zone }] } });
    let endpoints = [with(terminating("b1"), hint("zone-1")), with(terminating("c1"), hint("zone-2"))];
    assert_eq!(picked(endpoints), to(["b1", "c1"]));
}

#[test]
fn e3_hints_do_not_narrow_the_local_set() {
    let local = json!({ "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local" });
    let endpoints = [
        for_nodes("a1", &["node-b"], &["zone-2"]),
        for_nodes("a2", &["node-a"], &["zone-1"]),
        for_nodes("b1", &["node-a"], &["zone-1"]),
    ];
    let world = World::web(local, endpoints);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1", "a2"]));
    assert_eq!(world.dial("outside", NodePort), to(["a1", "a2"]));
    assert_eq!(world.dial("a9", NodePort), to(["a2", "b1"]), "the cluster set, where hints count");
}

#[test]
fn e3_hints_follow_the_zone_of_the_node() {
    let mut world = World::web(json!({}), [for_zones("b1", &["zone-1"]), for_zones("c1", &["zone-2"])]);
    let moved = node(json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "zone-2" } } }));
    world.node(node_info(moved, |builder| builder));
    assert_eq!(world.dial("a9", ClusterIp), to(["c1"]));
}
