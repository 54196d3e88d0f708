//! Objects for the API server.

use serde_json::{Value, json};

pub(crate) const NODE: &str = "node-a";

/// A Service of type ClusterIP with port 80.
pub(crate) fn service(name: &str, cluster_ip: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": "demo", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": [{ "port": 80 }] },
    })
}

/// The only slice of a Service, with these endpoints on this node.
pub(crate) fn slice(service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({ "addresses": [address], "nodeName": NODE })).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "demo",
            "name": format!("{service}-1"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "port": 8080 }],
        "endpoints": endpoints,
    })
}

/// This node.
pub(crate) fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": NODE, "labels": { "topology.kubernetes.io/zone": "zone-a" } },
        "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] },
    })
}

/// The same with the value at a JSON pointer changed.
pub(crate) fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.into(), value);
    object
}
