//! A cluster told in objects of the Kubernetes API, written as users and controllers write them, means the same.

use std::net::{IpAddr, Ipv6Addr};

use kubenet_core::{
    cluster::{Change, Cluster},
    kubernetes::{Converter, Intake, Manifests},
    model::{Protocol, ServiceType, TrafficPolicy},
    resolve::resolve,
};
use proptest::{collection::vec, prelude::*};
use serde_json::{Map, Value, json};

use crate::{
    cases,
    world::{Ep, Slice, Svc, World, address, any_world},
};

/// Decides between ways to write one thing.
pub(crate) struct Spelling<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>);

impl<'a> Spelling<'a> {
    pub(crate) fn new(choices: &'a [u8]) -> Self {
        Self(choices.iter().cycle())
    }

    fn one_of(&mut self, ways: u8) -> u8 {
        self.0.next().map_or(0, |choice| choice % ways)
    }

    /// [O4]: an address as somebody may write it.
    fn address(&mut self, text: &str) -> String {
        match (address(text), self.one_of(4)) {
            (IpAddr::V4(v4), 0) => v4.octets().map(|octet| format!("{octet:03}")).join("."),
            (IpAddr::V4(v4), 1) => v4.to_ipv6_mapped().to_string(),
            (IpAddr::V6(v6), 0) => v6.segments().map(|segment| format!("{segment:04X}")).join(":"),
            _ => text.into(),
        }
    }

    /// [R1]: a range as somebody may write it.
    fn range(&mut self, text: &str) -> String {
        match self.one_of(3) {
            0 => format!(" {text}\n"),
            1 if text == "10.0.0.0/24" => "010.0.0.77/24".into(),
            _ => text.into(),
        }
    }

    /// A default, said or not said.
    fn default(&mut self, object: &mut Map<String, Value>, field: &str, value: &str) {
        match self.one_of(3) {
            0 => drop(object.insert(field.into(), value.into())),
            1 => drop(object.insert(field.into(), "".into())),
            _ => {}
        }
    }
}

fn object(entries: Value) -> Map<String, Value> {
    match entries {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

pub(crate) fn service(service: &Svc, spelling: &mut Spelling<'_>) -> Value {
    let addresses = |texts: &[&str], spelling: &mut Spelling<'_>| -> Vec<String> {
        texts.iter().map(|text| spelling.address(text)).collect()
    };
    let mut spec = object(json!({
        "externalIPs": addresses(&service.external_ips, spelling),
        "healthCheckNodePort": 30_999,
        "selector": { "app": "x" },
    }));
    let cluster_ips = addresses(&service.cluster_ips, spelling);
    if cluster_ips.len() > 1 || spelling.one_of(2) == 0 {
        spec.insert("clusterIPs".into(), json!(cluster_ips));
    }
    if cluster_ips.len() == 1 || spelling.one_of(2) == 0 {
        spec.insert("clusterIP".into(), cluster_ips[0].clone().into());
    }
    match service.service_type {
        ServiceType::ClusterIp => spelling.default(&mut spec, "type", "ClusterIP"),
        ServiceType::NodePort => drop(spec.insert("type".into(), "NodePort".into())),
        ServiceType::LoadBalancer => drop(spec.insert("type".into(), "LoadBalancer".into())),
    }
    for (field, policy) in
        [("internalTrafficPolicy", service.internal), ("externalTrafficPolicy", service.external)]
    {
        match policy {
            TrafficPolicy::Cluster => spelling.default(&mut spec, field, "Cluster"),
            TrafficPolicy::Local => drop(spec.insert(field.into(), "Local".into())),
        }
    }
    match service.affinity {
        None => spelling.default(&mut spec, "sessionAffinity", "None"),
        Some(seconds) => {
            spec.insert("sessionAffinity".into(), "ClientIP".into());
            if seconds != 10_800 || spelling.one_of(2) == 0 {
                spec.insert(
                    "sessionAffinityConfig".into(),
                    json!({ "clientIP": { "timeoutSeconds": seconds } }),
                );
            }
        }
    }
    let mut ranges: Vec<_> = service.source_ranges.iter().map(|text| spelling.range(text)).collect();
    if service.bad_source_range {
        ranges.push("10.0.0.0/33".into());
    }
    spec.insert("loadBalancerSourceRanges".into(), json!(ranges));
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|port| {
            let mut written = object(
                json!({ "port": port.port, "targetPort": 9, "nodePort": port.node_port.unwrap_or(0) }),
            );
            spelling.default(&mut written, "name", port.name);
            if !port.name.is_empty() {
                written.insert("name".into(), port.name.into());
            }
            protocol(port.protocol, &mut written, spelling);
            Value::from(written)
        })
        .collect();
    spec.insert("ports".into(), ports.into());

    let (namespace, name) = service.name;
    let mut metadata = object(json!({ "namespace": namespace, "name": name }));
    if service.maglev {
        metadata.insert("annotations".into(), json!({ "kubenet.dev/algorithm": "maglev" }));
    }
    if let Some(created) = service.created {
        metadata.insert("creationTimestamp".into(), format!("1970-01-01T00:00:0{created}Z").into());
    }
    // [F3]: one that sends to the node ports by itself, and one that is only a name.
    let mut ingress = vec![json!({ "ip": "203.0.113.200", "ipMode": "Proxy" }), json!({ "hostname": "lb" })];
    for text in &service.load_balancer_ips {
        let mut entry = object(json!({ "ip": spelling.address(text) }));
        spelling.default(&mut entry, "ipMode", "VIP");
        ingress.push(entry.into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": spec,
        "status": { "loadBalancer": { "ingress": ingress } },
    })
}

fn protocol(protocol: Protocol, port: &mut Map<String, Value>, spelling: &mut Spelling<'_>) {
    match protocol {
        Protocol::Tcp => spelling.default(port, "protocol", "TCP"),
        other => drop(port.insert("protocol".into(), other.as_str().into())),
    }
}

pub(crate) fn endpoint_slice(slice: &Slice, spelling: &mut Spelling<'_>) -> Value {
    let (namespace, name) = slice.name;
    let mut ports = Vec::new();
    for (name, transport, number) in &slice.ports {
        let mut port = Map::new();
        if !name.is_empty() || spelling.one_of(2) == 0 {
            port.insert("name".into(), (*name).into());
        }
        if let Some(number) = number {
            port.insert("port".into(), (*number).into());
        }
        protocol(*transport, &mut port, spelling);
        ports.push(Value::from(port));
    }
    let weights = slice.endpoints.iter().map(|e| format!("{} = {}", e.address, e.weight));
    let endpoints: Vec<_> = slice.endpoints.iter().map(|e| endpoint(e, spelling)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": { "kubernetes.io/service-name": slice.service },
            "annotations": { "kubenet.dev/weights": weights.collect::<Vec<_>>().join(",") },
        },
        "addressType": slice.family.as_str(),
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn endpoint(endpoint: &Ep, spelling: &mut Spelling<'_>) -> Value {
    // [O2]: only the first address is used.
    let other = match address(endpoint.address) {
        IpAddr::V4(_) => "10.244.1.200".to_owned(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.to_string(),
    };
    let mut written = object(json!({ "addresses": [spelling.address(endpoint.address), other] }));
    let conditions =
        [("ready", endpoint.ready), ("serving", endpoint.serving), ("terminating", endpoint.terminating)];
    let conditions: Map<_, _> =
        conditions.into_iter().filter_map(|(name, is)| Some((name.to_owned(), is?.into()))).collect();
    if !conditions.is_empty() || spelling.one_of(2) == 0 {
        written.insert("conditions".into(), conditions.into());
    }
    if let Some(node) = endpoint.node {
        written.insert("nodeName".into(), node.into());
    }
    let named = |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
    let (zones, nodes) = (named(&endpoint.for_zones), named(&endpoint.for_nodes));
    if !zones.is_empty() || !nodes.is_empty() || spelling.one_of(2) == 0 {
        written.insert("hints".into(), json!({ "forZones": zones, "forNodes": nodes }));
    }
    written.into()
}

/// [O1]: objects that are not ours, with what would be claimed if they were.
fn not_ours() -> (Vec<Value>, Vec<Value>) {
    let service = |name: &str, labels: Value, spec: Value| {
        let mut spec = object(spec);
        spec.insert("ports".into(), json!([{ "port": 80 }]));
        spec.insert("externalIPs".into(), json!(["198.51.100.1"]));
        let created = "1969-01-01T00:00:00Z";
        let metadata =
            json!({ "namespace": "demo", "name": name, "labels": labels, "creationTimestamp": created });
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec })
    };
    let slice = |name: &str, labels: Value, kind: &str, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "namespace": "demo", "name": name, "labels": labels },
            "addressType": kind,
            "ports": [{ "port": 8080 }, { "name": "a", "port": 8080 }],
            "endpoints": [{ "addresses": [address] }],
        })
    };
    let ours = json!({ "kubernetes.io/service-name": "x" });
    let headless = json!({ "kubernetes.io/service-name": "x", "service.kubernetes.io/headless": "" });
    let services = vec![
        service("o1", json!({}), json!({ "type": "ExternalName", "clusterIP": "10.96.0.1" })),
        service("o2", json!({}), json!({ "clusterIP": "None" })),
        service("o3", json!({}), json!({ "clusterIP": "" })),
        service(
            "o4",
            json!({ "service.kubernetes.io/service-proxy-name": "" }),
            json!({ "clusterIP": "10.96.0.1" }),
        ),
    ];
    let slices = vec![
        slice("o1", headless, "IPv4", "10.244.9.1"),
        slice("o2", ours, "FQDN", "example.org"),
        slice("o3", json!({}), "IPv4", "10.244.9.1"),
    ];
    (services, slices)
}

/// As the API can say it: one weight for an address of a slice.
fn sayable(mut world: World) -> World {
    for slice in world.slices.values_mut() {
        let weights: std::collections::HashMap<_, _> =
            slice.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.weight)).collect();
        for endpoint in &mut slice.endpoints {
            endpoint.weight = weights[endpoint.address];
        }
    }
    world
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn objects_of_the_api_mean_what_they_say(
        world in any_world().prop_map(sayable),
        spelling in vec(any::<u8>(), 1..64),
    ) {
        let mut spelling = Spelling::new(&spelling);
        let (mut services, mut slices) = not_ours();
        services.extend(world.services.values().map(|s| service(s, &mut spelling)));
        slices.extend(world.slices.values().map(|s| endpoint_slice(s, &mut spelling)));

        let mut intake = Intake::new(Converter::new());
        let taken = services.iter().map(|s| intake.service_json(s)).collect::<Vec<_>>();
        let taken = taken.into_iter().chain(slices.iter().map(|s| intake.endpoint_slice_json(s)));
        let mut cluster = Cluster::new(world.node.build());
        for taken in taken {
            prop_assert_eq!(&taken.problems, &[]);
            taken.changes.into_iter().for_each(|change: Change| cluster.change(change));
        }
        cluster.take_delta();
        prop_assert!(cluster.table().same_routes(&world.table(1)), "{:#?}\nis not\n{:#?}", cluster.table(), world.table(1));

        let items: Vec<_> = services.into_iter().chain(slices).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        let manifests = Manifests::parse("m.json", &list.to_string()).unwrap();
        prop_assert_eq!(manifests.skipped.len(), 7);
        let table = resolve(&world.node.build(), &manifests.services, &manifests.slices);
        prop_assert!(table.same_routes(&world.table(1)));
    }
}
