//! [O1] to [O4]: which objects are ours, and how they are read.

use kubenet_core::{
    kubernetes::{Converter, Manifests},
    model::{
        IpFamily,
        Protocol::{Tcp, Udp},
    },
    route::FrontendKind::{self, ClusterIp, NodePort},
};
use serde_json::{Value, json};

use crate::{
    manifest::{
        for_nodes, for_zones, named_slices, pod, pod_that_is, service, slice, slice_of, slices, terminating,
        web, web_v4, with,
    },
    world::{Dropped, Passed, Rejected, Setup, World, to},
};

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Asserts that `web` was served, and is not when it becomes this.
fn is_left_alone(object: Value) {
    let mut world = World::web(json!({}), [pod("a1")]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]));
    world.apply([object]);
    assert_eq!((world.frontends(), &world.told[..]), (vec![], &[][..]));
    for kind in FrontendKind::ALL {
        assert_eq!(world.dial("a9", kind), Passed);
    }
}

#[test]
fn o1_external_name_services_are_not_ours() {
    is_left_alone(web(json!({ "type": "ExternalName", "externalName": "www.example.org" })));
}

#[test]
fn o1_headless_services_are_not_ours() {
    is_left_alone(web(json!({ "clusterIP": "None", "clusterIPs": ["None"] })));
    is_left_alone(web(json!({ "clusterIP": "None", "clusterIPs": null })));
}

#[test]
fn o1_services_with_an_empty_cluster_ip_are_not_ours() {
    is_left_alone(web(json!({ "clusterIP": "", "clusterIPs": [""] })));
    is_left_alone(web(json!({ "clusterIP": null, "clusterIPs": null })));
}

#[test]
fn o1_services_of_another_proxy_are_not_ours_whatever_its_name() {
    for name in ["mesh", ""] {
        is_left_alone(with(web(json!({})), json!({ "metadata": { "labels": { PROXY_NAME: name } } })));
    }
}

#[test]
fn o1_an_embedder_that_is_such_a_proxy_names_its_own_value() {
    let setup = Setup { converter: Converter::new().service_proxy_name("mesh"), ..Setup::default() };
    let labelled = |name: &str, label: Value| {
        let object = service(name, &format!("10.96.0.{}", name.len()), json!({}));
        with(object, json!({ "metadata": { "labels": { PROXY_NAME: label } } }))
    };
    let services =
        [labelled("a", json!("mesh")), labelled("bb", json!("other")), labelled("ccc", json!(null))];
    assert_eq!(World::new(setup, services).frontends(), ["10.96.0.1:80/TCP demo/a"]);
}

#[test]
fn o1_slices_that_are_headless_of_names_or_of_no_service_hold_no_endpoints() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let headless = json!({ "metadata": { "labels": { "service.kubernetes.io/headless": "" } } });
    let fqdn = json!({ "addressType": "FQDN", "endpoints": [{ "addresses": ["www.example.org"] }] });
    let of_nobody = json!({ "metadata": { "labels": { "kubernetes.io/service-name": null } } });
    for (i, patch) in [headless, fqdn, of_nobody].into_iter().enumerate() {
        let others = named_slices(&format!("other-{i}"), [pod("b1")]);
        world.apply(others.into_iter().map(|slice| with(slice, patch.clone())));
    }
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]));
    assert_eq!(world.told, [""; 0], "nothing is wrong with them");
}

#[test]
fn o1_what_a_manifest_holds_for_others_is_listed_and_the_rest_is_served() {
    let manifests = Manifests::parse(
        "shop.yaml",
        "
apiVersion: v1
kind: Service
metadata: { name: db, namespace: demo }
spec: { clusterIP: None, ports: [{ port: 5432 }] }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: demo }
spec: { clusterIP: 10.96.0.10, ports: [{ port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: demo, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ port: 8080 }]
endpoints: [{ addresses: [10.244.1.1], nodeName: node-a }]
",
    )
    .unwrap();
    let skipped: Vec<_> = manifests.skipped.iter().map(|skipped| skipped.object.as_str()).collect();
    assert_eq!(skipped, ["Service demo/db"]);
    let world = World::unsynced(Setup::default());
    world.router.submit(manifests).unwrap();
    world.flush();
    assert_eq!(world.packet("a9", "10.96.0.10:80", Tcp), to(["a1"]));
}

#[test]
fn o2_endpoints_come_from_all_slices_of_a_service() {
    let mut world = World::web(json!({}), [pod("a1")]);
    world.apply(named_slices("web-more", [pod("b1"), pod("c1")]));
    assert_eq!(world.dial("a9", ClusterIp), to(["a1", "b1", "c1"]));
    world.delete(&slices([])[0]);
    assert_eq!(world.packet("a9", "10.96.0.10:80", Tcp), to(["b1", "c1"]));
    assert_eq!(world.packet("a9", "[fd00:96::10]:80", Tcp), to(["a1", "b1", "c1"]));
}

#[test]
fn o2_slices_of_the_other_family_and_of_other_services_hold_no_endpoints() {
    let other_service = json!({ "metadata": { "labels": { "kubernetes.io/service-name": "other" } } });
    let other_namespace = json!({ "metadata": { "namespace": "elsewhere" } });
    let mut world = World::web(json!({}), []);
    for (i, patch) in [other_service, other_namespace].into_iter().enumerate() {
        let others = named_slices(&format!("other-{i}"), [pod("b1")]);
        world.apply(others.into_iter().map(|slice| with(slice, patch.clone())));
    }
    assert_eq!(world.dial("a9", ClusterIp), Rejected);
    world.apply([slice("web-v6", IpFamily::V6, &[pod("a1")])]);
    assert_eq!(world.packet("a9", "10.96.0.10:80", Tcp), Rejected);
    assert_eq!(world.packet("a9", "[fd00:96::10]:80", Tcp), to(["a1"]));
}

#[test]
fn o2_ports_are_matched_by_name_and_protocol() {
    let ports =
        |ports: Value| slices([pod("a1")]).into_iter().map(move |s| with(s, json!({ "ports": ports })));
    let mut world = World::web(json!({}), []);
    world.apply(ports(json!([
        { "name": "udp", "protocol": "TCP", "port": 1 },
        { "name": "sctp", "protocol": "UDP", "port": 2 },
        { "name": "tcp", "protocol": "SCTP", "port": 3 },
        { "protocol": "TCP", "port": 4 },
    ])));
    assert_eq!(world.dial("a9", ClusterIp), Rejected);
    world.apply(ports(json!([
        { "name": "metrics", "protocol": "TCP", "port": 9 },
        { "name": "sctp", "protocol": "SCTP", "port": 8080 },
        { "name": "udp", "protocol": "UDP", "port": 8080 },
        { "name": "tcp", "port": 8080 },
    ])));
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]), "an absent protocol is TCP");
}

#[test]
fn o2_an_absent_port_name_is_the_empty_one() {
    for (of_service, of_slice) in [(json!(null), json!("")), (json!(""), json!(null))] {
        let port = |number: u16, name: Value| with(json!({ "port": number }), json!({ "name": name }));
        let service = service("plain", "10.96.0.1", json!({ "ports": [port(80, of_service)] }));
        let slice = with(slice_of("plain", &[pod("a1")]), json!({ "ports": [port(8080, of_slice)] }));
        let world = World::new(Setup::default(), [service, slice]);
        assert_eq!(world.packet("a9", "10.96.0.1:80", Tcp), to(["a1"]));
    }
}

#[test]
fn o2_a_slice_port_without_a_number_is_skipped() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let ports = json!({ "ports": [{ "name": "tcp" }, { "name": "udp", "protocol": "UDP", "port": 8080 }] });
    world.apply(slices([pod("a1")]).into_iter().map(|slice| with(slice, ports.clone())));
    assert_eq!(world.packet("a9", "10.96.0.10:80", Tcp), Rejected);
    assert_eq!(world.packet("a9", "10.96.0.10:80", Udp), to(["a1"]));
}

#[test]
fn o2_only_the_first_address_of_an_endpoint_is_used() {
    let world = World::web(json!({}), [with(pod("a1"), json!({ "addresses": ["a1", "a2", "b1"] }))]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]));
}

#[test]
fn o2_target_port_is_never_read() {
    for target_port in [json!(9999), json!("http"), json!(null)] {
        let ports = json!({ "ports": [{ "port": 80, "targetPort": target_port }] });
        let service = service("plain", "10.96.0.1", ports);
        let world = World::new(Setup::default(), [service, slice_of("plain", &[pod("a1")])]);
        assert_eq!(world.packet("a9", "10.96.0.1:80", Tcp), to(["a1"]), "on 8080, as the slice says");
    }
}

#[test]
fn o2_the_same_address_and_port_counts_once_and_the_one_not_terminating_wins() {
    let dying = || with(terminating("a1"), json!({ "nodeName": "node-b" }));
    for [first, second] in [[dying(), pod("a1")], [pod("a1"), dying()]] {
        let mut world = World::web(json!({ "internalTrafficPolicy": "Local" }), [pod("b1"), first]);
        world.apply(named_slices("web-more", [second]));
        assert_eq!(world.dial("a9", NodePort), to(["a1", "b1"]), "ready, like the other one");
        assert_eq!(world.dial("a9", ClusterIp), to(["a1"]), "on the new pod's node");
    }
}

#[test]
fn o2_the_same_address_on_two_ports_is_two_endpoints() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let ports = json!({ "ports": [{ "name": "tcp", "port": 8081 }] });
    world.apply(named_slices("web-more", [pod("a1")]).into_iter().map(|slice| with(slice, ports.clone())));
    assert_eq!(world.packet("a9", "10.96.0.10:80", Tcp), to(["a1", "a1:8081"]));
}

#[test]
fn o2_hints_are_sets_of_zones_and_of_nodes() {
    let world = World::web(json!({}), [for_zones("b1", &["zone-2", "zone-1"]), for_zones("c1", &["zone-2"])]);
    assert_eq!(world.dial("a9", ClusterIp), to(["b1"]));
    let nodes = [for_nodes("b1", &["node-c", "node-a"], &[]), for_nodes("c1", &["node-c"], &[])];
    assert_eq!(World::web(json!({}), nodes).dial("a9", ClusterIp), to(["b1"]));
}

#[test]
fn o3_an_absent_ready_means_true() {
    for conditions in [json!(null), json!({}), json!({ "serving": true, "terminating": false })] {
        let world = World::web(json!({}), [pod_that_is("a1", conditions), terminating("b1")]);
        assert_eq!(world.dial("a9", ClusterIp), to(["a1"]), "as a ready one");
    }
}

#[test]
fn o3_an_absent_serving_means_true() {
    let world = World::web(json!({}), [pod_that_is("a1", json!({ "ready": false, "terminating": true }))]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]));
}

#[test]
fn o3_an_absent_terminating_means_false() {
    let world = World::web(json!({}), [pod_that_is("a1", json!({ "ready": false, "serving": true }))]);
    assert_eq!(world.dial("a9", ClusterIp), Rejected, "neither ready nor a stop-gap");
}

#[test]
fn o3_ready_wins_even_when_terminating_is_set() {
    let published = pod_that_is("a1", json!({ "ready": true, "serving": true, "terminating": true }));
    let world = World::web(json!({}), [published, pod("b1")]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1", "b1"]));
}

#[test]
fn o3_an_endpoint_is_local_when_its_whole_node_name_is_ours() {
    let local = json!({ "internalTrafficPolicy": "Local" });
    let on = |name: Value| World::web(local.clone(), [with(pod("a1"), json!({ "nodeName": name }))]);
    assert_eq!(on(json!("node-a")).dial("a9", ClusterIp), to(["a1"]));
    for name in [json!("node-a1"), json!("node"), json!("NODE-A"), json!(""), json!(null)] {
        assert_eq!(on(name.clone()).dial("a9", ClusterIp), Dropped, "{name}");
    }
}

#[test]
fn o4_each_family_is_resolved_on_its_own() {
    let mut world = World::web(json!({}), []);
    world.apply([slice("web-v4", IpFamily::V4, &[pod("a1")])]);
    for v4 in ["10.96.0.10:80", "10.0.0.1:30080", "198.51.100.1:80", "192.0.2.1:80"] {
        assert_eq!(world.packet("outside", v4, Tcp), to(["a1"]));
    }
    for v6 in ["[fd00:96::10]:80", "[fd00:10::1]:30080", "[2001:db8:1::1]:80", "[2001:db8:2::1]:80"] {
        assert_eq!(world.packet("outside", v6, Tcp), Rejected);
    }
}

#[test]
fn o4_a_service_of_one_family_has_frontends_of_that_family_only() {
    let mut world = World::new(Setup::default(), [web_v4(json!({}))].into_iter().chain(slices([pod("a1")])));
    assert_eq!(world.packet("outside", "10.0.0.1:30080", Tcp), to(["a1"]));
    assert_eq!(world.packet("outside", "[fd00:10::1]:30080", Tcp), Passed);
    let v6 = json!({ "clusterIP": "fd00:96::10", "clusterIPs": ["fd00:96::10"], "ipFamilies": ["IPv6"] });
    world.apply([web(v6)]);
    assert_eq!(world.packet("outside", "10.0.0.1:30080", Tcp), Passed);
    assert_eq!(world.packet("outside", "[fd00:10::1]:30080", Tcp), to(["a1"]));
}

#[test]
fn o4_the_order_of_the_families_does_not_matter() {
    let v6_first = json!({
        "clusterIP": "fd00:96::10",
        "clusterIPs": ["fd00:96::10", "10.96.0.10"],
        "ipFamilies": ["IPv6", "IPv4"],
    });
    let world = World::web(v6_first, [pod("a1")]);
    for kind in FrontendKind::ALL {
        assert_eq!(world.dial("outside", kind), to(["a1"]));
    }
}

#[test]
fn o4_an_address_of_the_wrong_family_is_ignored_and_told() {
    let spec = json!({
        "externalIPs": ["2001:db8:1::1", "198.51.100.1"],
        "loadBalancerSourceRanges": ["2001:db8::/32", "203.0.113.0/24"],
    });
    let ingress = json!([{ "ip": "192.0.2.1" }, { "ip": "2001:db8:2::1" }]);
    let service = with(web_v4(spec), json!({ "status": { "loadBalancer": { "ingress": ingress } } }));
    let world = World::new(Setup::default(), [service].into_iter().chain(slices([pod("a1")])));
    for v4 in ["198.51.100.1:80", "192.0.2.1:80"] {
        assert_eq!(world.packet("outside", v4, Tcp), to(["a1"]));
    }
    for v6 in ["[2001:db8:1::1]:80", "[2001:db8:2::1]:80"] {
        assert_eq!(world.packet("outside", v6, Tcp), Passed);
    }
    let told = "is ignored: the Service has no IPv6 cluster IP";
    let expected = [
        format!("Service demo/web: spec.externalIPs[0]: 2001:db8:1::1 {told}"),
        format!("Service demo/web: status.loadBalancer.ingress[1]: 2001:db8:2::1 {told}"),
        format!("Service demo/web: spec.loadBalancerSourceRanges[0]: 2001:db8::/32 {told}"),
    ];
    assert_eq!(world.told, expected);
}

#[test]
fn o4_addresses_are_read_as_users_write_them_and_printed_canonical() {
    let spec = json!({
        "clusterIP": "010.096.000.010",
        "clusterIPs": ["010.096.000.010", "FD00:0096:0::0010"],
        "externalIPs": ["::ffff:198.51.100.1", "2001:0DB8:1:0:0:0:0:1"],
        "loadBalancerSourceRanges": ["203.0.113.09/024", "2001:DB8::0/32"],
    });
    let ingress = json!([{ "ip": "192.000.002.001" }, { "ip": "2001:db8:2:0::1" }]);
    let service = with(web(spec), json!({ "status": { "loadBalancer": { "ingress": ingress } } }));
    let mut world = World::new(Setup::default(), [service]);
    let endpoint = |address: &str| json!({ "endpoints": [{ "addresses": [address] }] });
    let [v4, v6] = IpFamily::ALL.map(|family| slice(family.as_str().to_lowercase().as_str(), family, &[]));
    world.apply([with(v4, endpoint("10.244.01.01")), with(v6, endpoint("FD00:0244:1::1"))]);
    for kind in FrontendKind::ALL {
        assert_eq!(world.dial("outside", kind), to(["a1"]));
    }
    let printed: Vec<_> = world.frontends().into_iter().filter(|line| line.contains("TCP")).collect();
    let addresses = ["10.96.0.10", "192.0.2.1", "198.51.100.1"].map(|a| format!("{a}:80/TCP demo/web:tcp"));
    assert_eq!(printed[..3], addresses);
    assert_eq!(printed[3], "[2001:db8:1::1]:80/TCP demo/web:tcp");
}

#[test]
fn o4_an_ipv4_mapped_address_is_of_ipv4() {
    let spec = json!({
        "clusterIP": "::ffff:10.96.0.10",
        "clusterIPs": ["::ffff:10.96.0.10"],
        "externalIPs": ["::ffff:198.51.100.1"],
        "loadBalancerSourceRanges": ["::ffff:203.0.113.0/120"],
    });
    let slice = slice("web-1", IpFamily::V4, &[]);
    let endpoints = json!({ "endpoints": [{ "addresses": ["::ffff:10.244.1.1"] }] });
    let world = World::new(Setup::default(), [web_v4(spec), with(slice, endpoints)]);
    assert_eq!(world.told, [""; 0]);
    for at in ["10.96.0.10:80", "198.51.100.1:80", "192.0.2.1:80"] {
        assert_eq!(world.packet("outside", at, Tcp), to(["a1"]), "{at}");
    }
    assert_eq!(world.packet("198.18.0.1", "192.0.2.1:80", Tcp), Dropped);
}
