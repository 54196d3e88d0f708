//! No input makes the loader panic, and what it takes keeps the model's rules.
#![cfg(feature = "kubernetes")]

use kubenet_core::{
    kubernetes::{Manifests, parse_address},
    model::{IpFamily, validate_label},
};
use proptest::{collection, prelude::*, sample::select};
use serde_json::{Value, json};

/// Values that sit on the edges of the rules.
fn scalar() -> impl Strategy<Value = Value> {
    let texts = select(vec![
        "",
        "None",
        "web",
        "Web",
        "-",
        "a.b",
        "TCP",
        "udp",
        "SCTP",
        "IPv4",
        "IPv6",
        "FQDN",
        "NodePort",
        "ExternalName",
        "Local",
        "ClientIP",
        "10.96.0.10",
        "010.0.0.1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "127.0.0.1",
        "fe80::1",
        "v1",
        "Service",
        "List",
        "2026-01-01T00:00:00Z",
        "\u{0}",
        "é",
    ]);
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        select(vec![-1, 0, 1, 80, 65535, 65536]).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        select(vec![
            "apiVersion",
            "kind",
            "metadata",
            "name",
            "namespace",
            "labels",
            "spec",
            "ports",
            "port",
            "protocol",
            "nodePort",
            "clusterIP",
            "clusterIPs",
            "type",
            "items",
            "endpoints",
            "addresses",
            "addressType",
            "conditions",
            "ready",
            "status",
            "loadBalancer",
            "ingress",
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ];
    scalar().prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn valid() -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": "demo", "labels": { "a": "b" }, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
                "ipFamilies": ["IPv4", "IPv6"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
                "ports": [
                    { "name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP" },
                    { "name": "dns", "port": 53, "protocol": "UDP" },
                ],
                "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP",
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.2" }] } },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web-1", "namespace": "demo", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": [
                { "addresses": ["10.244.1.10"], "nodeName": "node-a", "conditions": { "ready": true } },
                { "addresses": ["10.244.1.11"], "hints": { "forZones": [{ "name": "a" }] } },
            ],
        }),
    ]
}

/// The pointers to all values inside a value.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                pointers(item, &format!("{at}/{i}"), found);
            }
        }
        Value::Object(entries) => {
            for (key, entry) in entries {
                let key = key.replace('~', "~0").replace('/', "~1");
                pointers(entry, &format!("{at}/{key}"), found);
            }
        }
        _ => {}
    }
}

/// A valid object of which some values were replaced.
fn mutated() -> impl Strategy<Value = Value> {
    let changes = collection::vec((any::<prop::sample::Index>(), any_value()), 1..4);
    (select(valid()), changes).prop_map(|(mut object, changes)| {
        for (index, value) in changes {
            let mut found = Vec::new();
            pointers(&object, "", &mut found);
            if let Some(place) = object.pointer_mut(&found[index.index(found.len())]) {
                *place = value;
            }
        }
        object
    })
}

/// Loads a text and checks what is taken, or what is said.
fn load(name: &str, text: &str) -> Result<(), TestCaseError> {
    match Manifests::parse(name, text) {
        Ok(manifests) => {
            for service in &manifests.services {
                prop_assert!(!service.cluster_ips().is_empty() && service.cluster_ips().len() <= 2);
                prop_assert!(!service.ports().is_empty());
                prop_assert!(validate_label(service.name().name()).is_ok());
                prop_assert!(service.cluster_ips().iter().all(|a| !a.is_unspecified() && !a.is_multicast()));
            }
            for slice in &manifests.slices {
                prop_assert!(slice.endpoints().iter().all(|e| IpFamily::of(e.address) == slice.family()));
            }
        }
        Err(error) => {
            prop_assert!(!error.problems().is_empty());
            prop_assert!(error.problems().iter().all(|p| !p.rule.is_empty()));
            prop_assert!(error.to_string().starts_with(name));
        }
    }
    Ok(())
}

#[test]
fn the_objects_that_are_changed_here_are_valid() {
    for object in valid() {
        for (name, text) in [("m.json", object.to_string()), ("m.yaml", to_yaml(&object, 0))] {
            let manifests = Manifests::parse(name, &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(manifests.services.len() + manifests.slices.len(), 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_as_an_object_is_taken_or_refused(value in any_value()) {
        load("m.json", &value.to_string())?;
        load("m.yaml", &value.to_string())?;
    }

    #[test]
    fn any_value_in_place_of_a_field_is_taken_or_refused(object in mutated()) {
        load("m.json", &object.to_string())?;
        load("m.yaml", &object.to_string())?;
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [object] });
        load("m.json", &list.to_string())?;
    }

    #[test]
    fn any_change_to_the_text_is_taken_or_refused(
        object in select(valid()),
        cuts in collection::vec((any::<prop::sample::Index>(), 0..8usize, "[\\PC\n\t]{0,6}"), 1..6),
        yaml in any::<bool>(),
    ) {
        let mut text: Vec<char> = if yaml { to_yaml(&object, 0) } else { object.to_string() }.chars().collect();
        for (index, length, insert) in cuts {
            let at = index.index(text.len() + 1);
            let end = text.len().min(at + length);
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        load(if yaml { "m.yaml" } else { "m.json" }, &text)?;
    }

    #[test]
    fn any_text_is_taken_or_refused(text in "[\\PC\n\t\r]{0,200}", marks in "[-&*<>|?:!%@`'\"{}\\[\\],# \na-c0-9]{0,200}") {
        for text in [&text, &marks] {
            load("m.yaml", text)?;
            load("m.json", text)?;
            load("m", text)?;
        }
    }

    #[test]
    fn addresses_that_are_printed_read_the_same(address in any::<std::net::IpAddr>()) {
        prop_assert_eq!(parse_address(&address.to_string()), Ok(address.to_canonical()));
    }

    #[test]
    fn any_text_is_an_address_or_not(text in "[0-9a-f:.%]{0,40}") {
        if let Ok(address) = parse_address(&text) {
            prop_assert_eq!(address, address.to_canonical());
        }
    }
}

/// YAML in blocks, with quoted scalars.
fn to_yaml(value: &Value, indent: usize) -> String {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(entries) if !entries.is_empty() => entries
            .iter()
            .map(|(key, entry)| match entry {
                Value::Object(_) | Value::Array(_) => format!("{pad}{key}:\n{}", to_yaml(entry, indent + 2)),
                other => format!("{pad}{key}: {other}\n"),
            })
            .collect(),
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| match item {
                Value::Object(_) | Value::Array(_) => format!("{pad}-\n{}", to_yaml(item, indent + 2)),
                other => format!("{pad}- {other}\n"),
            })
            .collect(),
        other => format!("{pad}{other}\n"),
    }
}
