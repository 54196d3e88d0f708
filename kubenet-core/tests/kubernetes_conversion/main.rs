//! Conversion of Kubernetes objects: which are ours, which rules they must keep, and what is not served.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod optional;

use std::net::IpAddr;

use k8s_openapi::api::{core::v1, discovery::v1 as discovery};
use kubenet_core::{
    kubernetes::{Conversion, Converter, NotOurs, Notice},
    model::{Algorithm, EndpointSlice, IpFamily, NodeInfo, Protocol, Service, ServiceType, TrafficPolicy},
};
use serde_json::{Value, json};

/// Changes the values at JSON pointers; a missing last key is added.
fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
        parent.as_object_mut().unwrap().insert(key.into(), value.clone());
    }
    object
}

fn service_with(changes: &[(&str, Value)]) -> v1::Service {
    let object = json!({
        "metadata": { "namespace": "demo", "name": "web", "labels": {} },
        "spec": { "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80, "name": "http" }] },
        "status": { "loadBalancer": {} },
    });
    serde_json::from_value(with(object, changes)).unwrap()
}

fn slice_with(changes: &[(&str, Value)]) -> discovery::EndpointSlice {
    let object = json!({
        "metadata": { "namespace": "demo", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": [{ "addresses": ["10.244.1.10"] }],
    });
    serde_json::from_value(with(object, changes)).unwrap()
}

fn service(changes: &[(&str, Value)]) -> (Service, Vec<Notice>) {
    match Conversion::try_from(&service_with(changes)) {
        Ok(Conversion::Ours(service, notices)) => (service, notices),
        other => panic!("{changes:?}: {other:?}"),
    }
}

fn slice(changes: &[(&str, Value)]) -> EndpointSlice {
    match Conversion::try_from(&slice_with(changes)) {
        Ok(Conversion::Ours(slice, _)) => slice,
        other => panic!("{changes:?}: {other:?}"),
    }
}

fn service_is_left_alone(changes: &[(&str, Value)]) -> NotOurs {
    match Conversion::<Service>::try_from(&service_with(changes)) {
        Ok(Conversion::NotOurs(reason)) => reason,
        other => panic!("{changes:?}: {other:?}"),
    }
}

fn slice_is_left_alone(changes: &[(&str, Value)]) -> NotOurs {
    match Conversion::<EndpointSlice>::try_from(&slice_with(changes)) {
        Ok(Conversion::NotOurs(reason)) => reason,
        other => panic!("{changes:?}: {other:?}"),
    }
}

fn service_is_wrong(changes: &[(&str, Value)]) -> String {
    Conversion::<Service>::try_from(&service_with(changes)).unwrap_err().to_string()
}

fn slice_is_wrong(changes: &[(&str, Value)]) -> String {
    Conversion::<EndpointSlice>::try_from(&slice_with(changes)).unwrap_err().to_string()
}

#[test]
fn o1_external_name_services_are_not_ours() {
    assert_eq!(service_is_left_alone(&[("/spec/type", json!("ExternalName"))]), NotOurs::ExternalName);
}

#[test]
fn o1_headless_services_are_not_ours() {
    let many = [("/spec/clusterIP", json!("None")), ("/spec/clusterIPs", json!(["None"]))];
    assert_eq!(service_is_left_alone(&many), NotOurs::Headless);
    let only = [("/spec/clusterIP", json!("None")), ("/spec/clusterIPs", json!(null))];
    assert_eq!(service_is_left_alone(&only), NotOurs::Headless);
    // Headless Services need no ports.
    assert_eq!(service_is_left_alone(&[("/spec", json!({"clusterIP": "None"}))]), NotOurs::Headless);
}

#[test]
fn o1_services_without_a_cluster_ip_are_not_ours() {
    for spec in
        [json!({}), json!(null), json!({"clusterIP": ""}), json!({"clusterIP": "", "clusterIPs": [""]})]
    {
        assert_eq!(service_is_left_alone(&[("/spec", spec)]), NotOurs::NoClusterIp);
    }
}

#[test]
fn o1_services_of_another_proxy_are_not_ours() {
    let key = "service.kubernetes.io/service-proxy-name";
    for value in ["other", ""] {
        assert_eq!(
            service_is_left_alone(&[("/metadata/labels", json!({ key: value }))]),
            NotOurs::OtherProxy
        );
    }
    let mine = Converter::new().service_proxy_name("mine");
    let labelled = |value: &str| service_with(&[("/metadata/labels", json!({ key: value }))]);
    assert!(mine.service(&labelled("mine")).unwrap().ours().is_some());
    for other in [labelled("other"), labelled(""), service_with(&[])] {
        assert_eq!(mine.service(&other).unwrap(), Conversion::NotOurs(NotOurs::OtherProxy));
    }
}

#[test]
fn o1_headless_slices_are_not_ours() {
    let labels =
        |value: &str| json!({ "service.kubernetes.io/headless": value, "kubernetes.io/service-name": "web" });
    for value in ["", "true"] {
        assert_eq!(slice_is_left_alone(&[("/metadata/labels", labels(value))]), NotOurs::Headless);
    }
}

#[test]
fn o1_fqdn_slices_are_not_ours() {
    let changes =
        [("/addressType", json!("FQDN")), ("/endpoints", json!([{ "addresses": ["example.org"] }]))];
    assert_eq!(slice_is_left_alone(&changes), NotOurs::Fqdn);
}

#[test]
fn o1_slices_without_a_service_are_not_ours() {
    for labels in [json!(null), json!({}), json!({ "kubernetes.io/service-name": "" })] {
        assert_eq!(slice_is_left_alone(&[("/metadata/labels", labels)]), NotOurs::NoService);
    }
}

#[test]
fn names_are_checked_even_where_the_object_is_not_ours() {
    let changes = [("/metadata/name", json!("Web")), ("/spec/type", json!("ExternalName"))];
    assert!(service_is_wrong(&changes).starts_with("Service demo/Web: metadata.name: \"Web\": must consist"));
    let changes = [("/metadata/namespace", json!("a.b")), ("/addressType", json!("FQDN"))];
    assert!(
        slice_is_wrong(&changes).starts_with("EndpointSlice a.b/web-1: metadata.namespace: \"a.b\": must")
    );
    assert_eq!(
        service_is_wrong(&[("/metadata/name", json!(null))]),
        "Service demo/(no name): metadata.name: must be set"
    );
}

#[test]
fn o2_the_first_address_of_an_endpoint_counts() {
    let slice = slice(&[("/endpoints", json!([{ "addresses": ["10.244.1.10", "not an address"] }]))]);
    assert_eq!(slice.endpoints().len(), 1);
    assert_eq!(slice.endpoints()[0].address.to_string(), "10.244.1.10");
    assert_eq!(
        slice_is_wrong(&[("/endpoints", json!([{ "addresses": [] }]))]),
        "EndpointSlice demo/web-1: endpoints[0].addresses: must hold at least one address"
    );
}

#[test]
fn o2_a_slice_port_without_a_number_is_kept_as_such() {
    let slice = slice(&[("/ports", json!([{}, { "name": "a", "port": 53, "protocol": "UDP" }]))]);
    assert_eq!(slice.ports()[0].port, None);
    assert_eq!(&*slice.ports()[0].name, "");
    assert_eq!(slice.ports()[1].protocol, Protocol::Udp);
}

#[test]
fn o2_target_port_is_never_read() {
    let ports = |target: Value| ("/spec/ports", json!([{ "port": 80, "targetPort": target }]));
    assert_eq!(service(&[ports(json!(8080))]), service(&[ports(json!("http"))]));
}

#[test]
fn o3_absent_conditions_have_the_defaults_of_the_api() {
    let conditions = |conditions: Value| {
        let slice =
            slice(&[("/endpoints", json!([{ "addresses": ["10.0.0.1"], "conditions": conditions }]))]);
        let read = slice.endpoints()[0].conditions;
        (read.ready, read.serving, read.terminating)
    };
    assert_eq!(conditions(json!(null)), (true, true, false));
    assert_eq!(conditions(json!({})), (true, true, false));
    assert_eq!(
        conditions(json!({ "ready": false, "serving": false, "terminating": true })),
        (false, false, true)
    );
}

#[test]
fn o3_an_empty_node_name_is_none() {
    let endpoint = |node: Value| {
        slice(&[("/endpoints", json!([{ "addresses": ["10.0.0.1"], "nodeName": node }]))]).endpoints()[0]
            .clone()
    };
    assert!(endpoint(json!("node-a")).is_on("node-a"));
    assert!(!endpoint(json!("node-a")).is_on("node"));
    assert!(!endpoint(json!("")).is_on(""));
    assert_eq!(endpoint(json!("")), endpoint(json!(null)));
}

#[test]
fn the_pod_behind_an_endpoint_is_named() {
    let named =
        slice(&[("/endpoints", json!([{ "addresses": ["10.0.0.1"], "targetRef": { "name": "web-0" } }]))]);
    assert_eq!(named.endpoints()[0].target.as_deref(), Some("web-0"));
}

#[test]
fn o4_addresses_are_read_as_users_write_them() {
    let (web, _) = service(&[
        ("/spec/clusterIP", json!("::ffff:10.96.0.10")),
        ("/spec/clusterIPs", json!(["010.096.000.010", "FD00:96:0:0::0010"])),
    ]);
    let addresses: Vec<_> = web.cluster_ips().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.10", "fd00:96::10"]);
    let web_1 = slice(&[("/endpoints", json!([{ "addresses": ["::ffff:10.244.001.010"] }]))]);
    assert_eq!(web_1.endpoints()[0].address.to_string(), "10.244.1.10");
    assert_eq!(web_1.family(), IpFamily::V4);
}

#[test]
fn o4_cluster_ip_is_used_where_cluster_ips_is_absent() {
    for absent in [json!(null), json!([]), json!([""])] {
        let (web, _) = service(&[("/spec/clusterIPs", absent)]);
        assert_eq!(web.cluster_ips(), ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    }
}

#[test]
fn cluster_ip_must_be_the_first_of_cluster_ips() {
    assert_eq!(
        service_is_wrong(&[("/spec/clusterIP", json!("10.96.0.11"))]),
        "Service demo/web: spec.clusterIP: \"10.96.0.11\": must equal spec.clusterIPs[0], which is 10.96.0.10"
    );
}

#[test]
fn cluster_ips_must_be_of_the_families_that_are_named() {
    assert_eq!(
        service_is_wrong(&[("/spec/ipFamilies", json!(["IPv6"]))]),
        "Service demo/web: spec.clusterIPs[0]: \"10.96.0.10\": must be of family IPv6, as spec.ipFamilies[0] says"
    );
    assert_eq!(
        service_is_wrong(&[("/spec/ipFamilies", json!(["IPv4", "ipv6"]))]),
        "Service demo/web: spec.ipFamilies[1]: \"ipv6\": must be IPv4 or IPv6"
    );
}

#[test]
fn none_and_addresses_exclude_each_other() {
    assert_eq!(
        service_is_wrong(&[("/spec/clusterIPs", json!(["10.96.0.10", "None"]))]),
        "Service demo/web: spec.clusterIPs[1]: \"None\": must stand alone: a Service is headless or has addresses"
    );
}

#[test]
fn enumerations_take_the_values_of_the_api_and_default_when_empty() {
    let (web, _) = service(&[
        ("/spec/type", json!("")),
        ("/spec/internalTrafficPolicy", json!("")),
        ("/spec/sessionAffinity", json!("")),
        ("/spec/ports", json!([{ "port": 80, "protocol": "" }])),
    ]);
    assert_eq!(web.service_type(), ServiceType::ClusterIp);
    assert_eq!(web.internal_traffic_policy(), TrafficPolicy::Cluster);
    assert_eq!(web.ports()[0].protocol(), Protocol::Tcp);
    let (web, _) = service(&[
        ("/spec/type", json!("LoadBalancer")),
        ("/spec/internalTrafficPolicy", json!("Local")),
        ("/spec/externalTrafficPolicy", json!("Local")),
        ("/spec/ports", json!([{ "port": 80, "protocol": "SCTP", "nodePort": 30080 }])),
    ]);
    assert_eq!(web.service_type(), ServiceType::LoadBalancer);
    assert_eq!(web.internal_traffic_policy(), TrafficPolicy::Local);
    assert_eq!(web.external_traffic_policy(), TrafficPolicy::Local);
    assert_eq!(web.ports()[0].protocol(), Protocol::Sctp);
    for (pointer, value, field) in [
        ("/spec/type", "nodeport", "spec.type"),
        ("/spec/internalTrafficPolicy", "PreferLocal", "spec.internalTrafficPolicy"),
        ("/spec/externalTrafficPolicy", "local", "spec.externalTrafficPolicy"),
        ("/spec/sessionAffinity", "Cookie", "spec.sessionAffinity"),
    ] {
        let error = service_is_wrong(&[(pointer, json!(value))]);
        assert!(error.starts_with(&format!("Service demo/web: {field}: {value:?}: must be ")), "{error}");
    }
    assert_eq!(
        slice_is_wrong(&[("/addressType", json!("ipv4"))]),
        "EndpointSlice demo/web-1: addressType: \"ipv4\": must be IPv4, IPv6 or FQDN"
    );
}

#[test]
fn ports_must_be_1_to_65535() {
    for number in [0, -1, 65536, i32::MAX, i32::MIN] {
        assert_eq!(
            service_is_wrong(&[("/spec/ports", json!([{ "port": number }]))]),
            format!("Service demo/web: spec.ports[0].port: \"{number}\": must be 1 to 65535")
        );
        assert_eq!(
            slice_is_wrong(&[("/ports", json!([{ "port": number }]))]),
            format!("EndpointSlice demo/web-1: ports[0].port: \"{number}\": must be 1 to 65535")
        );
    }
    let node_port = |number: i32| {
        [("/spec/type", json!("NodePort")), ("/spec/ports", json!([{ "port": 80, "nodePort": number }]))]
    };
    assert_eq!(service(&node_port(0)).0.ports()[0].node_port(), None);
    assert_eq!(service(&node_port(65535)).0.ports()[0].node_port().map(u16::from), Some(65535));
    assert!(service_is_wrong(&node_port(65536)).contains("spec.ports[0].nodePort"));
}

#[test]
fn creation_time_is_kept() {
    let (web, _) = service(&[("/metadata/creationTimestamp", json!("1970-01-02T00:00:00Z"))]);
    assert_eq!(web.created(), Some(86400));
    assert_eq!(service(&[]).0.created(), None);
}
