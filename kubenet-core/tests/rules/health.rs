//! [H1], [H3]: what a health check counts. How it is answered over HTTP, and [H2], is for the tests of
//! `kubenet_core::health`.

use kubenet_core::{
    cluster::Cluster,
    kubernetes::{Converter, Intake},
    route::FrontendKind::NodePort,
};
use serde_json::{Value, json};

use crate::{
    manifest::{named_slices, pod, pod_that_is, slices, terminating, unready, web, with},
    world::{World, node_a, to},
};

/// A Service that has a health check.
fn checked(spec: Value) -> Value {
    let local = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000 });
    with(web(local), json!({ "spec": spec }))
}

/// The health checks of this Service with these slices: the Service, the port, how many endpoints are here.
fn health(service: Value, slices: impl IntoIterator<Item = Value>) -> Vec<(String, u16, usize)> {
    let mut intake = Intake::new(Converter::new());
    let mut taken = intake.service(&serde_json::from_value(service).unwrap());
    for slice in slices {
        taken.append(intake.endpoint_slice(&serde_json::from_value(slice).unwrap()));
    }
    let mut cluster = Cluster::new(node_a(|builder| builder));
    for change in taken.changes {
        cluster.change(change);
    }
    cluster.take_delta();
    let checks = cluster.health().values();
    checks.map(|check| (check.service.to_string(), check.port.get(), check.local_endpoints)).collect()
}

/// How many endpoints are here.
fn local_endpoints(slices: impl IntoIterator<Item = Value>) -> usize {
    match &health(checked(json!({})), slices)[..] {
        [(_, _, count)] => *count,
        other => panic!("{other:?}"),
    }
}

#[test]
fn h1_a_load_balancer_of_policy_local_is_checked_on_its_health_check_node_port() {
    assert_eq!(health(checked(json!({})), slices([pod("a1")])), [("demo/web".to_owned(), 32000, 1)]);
    let not_checked = [
        json!({ "externalTrafficPolicy": "Cluster" }),
        json!({ "type": "NodePort" }),
        json!({ "healthCheckNodePort": 0 }),
        json!({ "healthCheckNodePort": null }),
    ];
    for spec in not_checked {
        assert_eq!(health(checked(spec.clone()), slices([pod("a1")])), [], "{spec}");
    }
}

#[test]
fn h1_endpoints_of_other_nodes_do_not_count() {
    assert_eq!(local_endpoints(slices([pod("b1"), pod("c1")])), 0);
    assert_eq!(local_endpoints(slices([pod("b1"), pod("a1"), pod("a2")])), 2);
    assert_eq!(local_endpoints([]), 0);
}

#[test]
fn h3_endpoints_count_by_address_over_all_ports() {
    let ports = |name: &str, protocol: &str| json!({ "ports": [{ "name": name, "protocol": protocol, "port": 8080 }] });
    let tcp = slices([pod("a1"), pod("a2")]).into_iter().map(|slice| with(slice, ports("tcp", "TCP")));
    let more = named_slices("web-more", [pod("a2"), pod("a3")]);
    let more = more.into_iter().map(|slice| with(slice, ports("udp", "UDP")));
    assert_eq!(local_endpoints(tcp.chain(more)), 3);
}

#[test]
fn h3_a_pod_with_an_address_of_each_family_counts_once() {
    let both = slices([pod("a1"), pod("a2")]);
    for slice in &both {
        assert_eq!(local_endpoints([slice.clone()]), 2);
    }
    assert_eq!(local_endpoints(both), 2);
}

#[test]
fn h3_only_ready_endpoints_count() {
    let published = pod_that_is("a1", json!({ "ready": true, "terminating": true }));
    assert_eq!(local_endpoints(slices([published, unready("a2"), terminating("a3")])), 1);
}

#[test]
fn h3_a_node_whose_only_endpoints_terminate_fails_the_check_and_serves_the_stragglers() {
    let endpoints = || [terminating("a1"), pod("b1")];
    assert_eq!(local_endpoints(slices(endpoints())), 0);
    let world = World::web(json!({ "externalTrafficPolicy": "Local" }), endpoints());
    assert_eq!(world.dial("outside", NodePort), to(["a1"]));
}

#[test]
fn h1_an_endpoint_without_a_port_of_the_service_is_not_usable() {
    for ports in [json!([]), json!(null), json!([{ "name": "tcp" }]), json!([{ "name": "other", "port": 1 }])]
    {
        let portless = slices([pod("a1")]).into_iter().map(|slice| with(slice, json!({ "ports": ports })));
        assert_eq!(local_endpoints(portless), 0, "{ports}");
    }
}
