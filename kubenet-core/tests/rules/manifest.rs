//! Kubernetes objects, as users and controllers write them.
//!
//! Places have names. `a1` and `a9` are pods on node-a, `b1` is one on node-b, and so on; `node-a` is the node
//! under test; `outside` is a client elsewhere. Each has an address of both families.

use std::net::IpAddr;

use kubenet_core::{
    model::{IpFamily, Protocol},
    route::FrontendKind,
};
use serde_json::{Value, json};

/// The address of a place.
pub(crate) fn address(family: IpFamily, place: &str) -> String {
    let (node, number) = match (place, family) {
        ("node-a", IpFamily::V4) => return "10.0.0.1".into(),
        ("node-a", IpFamily::V6) => return "fd00:10::1".into(),
        ("outside", IpFamily::V4) => return "203.0.113.9".into(),
        ("outside", IpFamily::V6) => return "2001:db8::9".into(),
        (pod, _) => (node_number(pod), &pod[1..]),
    };
    match family {
        IpFamily::V4 => format!("10.244.{node}.{number}"),
        IpFamily::V6 => format!("fd00:244:{node}::{number}"),
    }
}

/// 1 for pods on node-a, 2 for those on node-b.
fn node_number(pod: &str) -> u8 {
    assert!(pod.len() >= 2 && pod.as_bytes()[0].is_ascii_lowercase(), "no pod: {pod}");
    pod.as_bytes()[0] - b'a' + 1
}

/// The pod that has an address.
pub(crate) fn pod_at(address: IpAddr) -> String {
    let (node, number) = match address {
        IpAddr::V4(v4) => (v4.octets()[2], v4.octets()[3].to_string()),
        IpAddr::V6(v6) => (v6.segments()[2] as u8, format!("{:x}", v6.segments()[7])),
    };
    format!("{}{number}", char::from(b'a' + node - 1))
}

/// What a client dials to reach Service `web` in one of its ways.
pub(crate) fn at(family: IpFamily, kind: FrontendKind) -> &'static str {
    match (kind, family) {
        (FrontendKind::ClusterIp, IpFamily::V4) => "10.96.0.10:80",
        (FrontendKind::ClusterIp, IpFamily::V6) => "[fd00:96::10]:80",
        (FrontendKind::NodePort, IpFamily::V4) => "10.0.0.1:30080",
        (FrontendKind::NodePort, IpFamily::V6) => "[fd00:10::1]:30080",
        (FrontendKind::ExternalIp, IpFamily::V4) => "198.51.100.1:80",
        (FrontendKind::ExternalIp, IpFamily::V6) => "[2001:db8:1::1]:80",
        (FrontendKind::LoadBalancer, IpFamily::V4) => "192.0.2.1:80",
        (FrontendKind::LoadBalancer, IpFamily::V6) => "[2001:db8:2::1]:80",
        (other, _) => panic!("{other:?}"),
    }
}

/// `object` with a JSON merge patch (RFC 7386): objects are merged, `null` removes, all else replaces.
pub(crate) fn with(mut object: Value, patch: Value) -> Value {
    fn merge(target: &mut Value, patch: Value) {
        let Value::Object(patch) = patch else { return *target = patch };
        if !target.is_object() {
            *target = json!({});
        }
        for (key, value) in patch {
            match (target.as_object_mut(), value) {
                (Some(fields), Value::Null) => drop(fields.remove(&key)),
                (_, value) => merge(&mut target[key], value),
            }
        }
    }
    merge(&mut object, patch);
    object
}

/// Service `demo/web` of 2026-01-01, which is reached in every way, in both families and by every protocol,
/// with changes to its `spec`. Its ports are named after their protocols.
pub(crate) fn web(spec: Value) -> Value {
    let port = |protocol: Protocol| {
        let (name, protocol) = (protocol.as_lower_str(), protocol.as_str());
        json!({ "name": name, "protocol": protocol, "port": 80, "nodePort": 30080, "targetPort": 8080 })
    };
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": "demo", "name": "web", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "type": "LoadBalancer",
            "selector": { "app": "web" },
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": ["198.51.100.1", "2001:db8:1::1"],
            "ports": Protocol::ALL.map(port),
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }, { "ip": "2001:db8:2::1" }] } },
    });
    with(object, json!({ "spec": spec }))
}

/// The same of IPv4 alone.
pub(crate) fn web_v4(spec: Value) -> Value {
    let v4 = json!({
        "clusterIPs": ["10.96.0.10"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "externalIPs": ["198.51.100.1"],
    });
    let ingress = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
    with(web(v4), json!({ "spec": spec, "status": ingress }))
}

/// A Service of one TCP port 80 that is reached on this cluster IP alone, with changes to its `spec`.
pub(crate) fn service(name: &str, cluster_ip: &str, spec: Value) -> Value {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": "demo", "name": name },
        "spec": { "clusterIP": cluster_ip, "ports": [{ "port": 80 }] },
    });
    with(object, json!({ "spec": spec }))
}

/// A ready endpoint. The names in `addresses` become addresses of the family of the slice.
pub(crate) fn pod(name: &str) -> Value {
    let node = format!("node-{}", &name[..1]);
    json!({ "addresses": [name], "nodeName": node, "targetRef": { "kind": "Pod", "name": name } })
}

/// An endpoint with these conditions, and no others.
pub(crate) fn pod_that_is(name: &str, conditions: Value) -> Value {
    with(pod(name), json!({ "conditions": conditions }))
}

/// An endpoint that serves while it terminates.
pub(crate) fn terminating(name: &str) -> Value {
    pod_that_is(name, json!({ "ready": false, "serving": true, "terminating": true }))
}

/// An endpoint that is not ready, and does not terminate.
pub(crate) fn unready(name: &str) -> Value {
    pod_that_is(name, json!({ "ready": false, "serving": false, "terminating": false }))
}

/// A ready endpoint that is meant for these zones.
pub(crate) fn for_zones(name: &str, zones: &[&str]) -> Value {
    with(pod(name), json!({ "hints": { "forZones": names(zones) } }))
}

/// A ready endpoint that is meant for these nodes, and for these zones.
pub(crate) fn for_nodes(name: &str, nodes: &[&str], zones: &[&str]) -> Value {
    with(for_zones(name, zones), json!({ "hints": { "forNodes": names(nodes) } }))
}

fn names(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({ "name": name })).collect()
}

/// The slices of `web` with these endpoints, one of each family. Port 8080 serves every protocol.
pub(crate) fn slices(endpoints: impl IntoIterator<Item = Value>) -> Vec<Value> {
    named_slices("web", endpoints)
}

/// The same with other names, so that they come beside those.
pub(crate) fn named_slices(prefix: &str, endpoints: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let endpoints: Vec<_> = endpoints.into_iter().collect();
    IpFamily::ALL.map(|family| slice(&format!("{prefix}-{}", family as u8), family, &endpoints)).into()
}

/// One slice of `web`.
pub(crate) fn slice(name: &str, family: IpFamily, endpoints: &[Value]) -> Value {
    let in_family = |endpoint: &Value| {
        let places = endpoint["addresses"].as_array().unwrap().iter();
        let addresses: Vec<_> = places.map(|place| address(family, place.as_str().unwrap())).collect();
        with(endpoint.clone(), json!({ "addresses": addresses }))
    };
    let port = |protocol: Protocol| {
        let (name, protocol) = (protocol.as_lower_str(), protocol.as_str());
        json!({ "name": name, "protocol": protocol, "port": 8080 })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "demo",
            "name": name,
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": family.as_str(),
        "ports": Protocol::ALL.map(port),
        "endpoints": endpoints.iter().map(in_family).collect::<Vec<_>>(),
    })
}

/// A slice of IPv4 for a Service with one unnamed port.
pub(crate) fn slice_of(service: &str, endpoints: &[Value]) -> Value {
    let patch = json!({
        "metadata": { "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "port": 8080 }],
    });
    with(slice(&format!("{service}-1"), IpFamily::V4, endpoints), patch)
}

/// The Node object of the node under test, with changes.
pub(crate) fn node(patch: Value) -> Value {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "node-a", "labels": { "topology.kubernetes.io/zone": "zone-1" } },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/48"] },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": "10.0.0.1" },
                { "type": "InternalIP", "address": "fd00:10::1" },
                { "type": "Hostname", "address": "node-a" },
            ],
        },
    });
    with(object, patch)
}
