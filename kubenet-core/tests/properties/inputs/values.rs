//! Values of JSON that sit on the edges of the rules, or far from them.

use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::{Index, select},
};
use serde_json::{Value, json};

use crate::{
    objects::{Spelling, endpoint_slice, service},
    world::{any_service, any_slice},
};

pub(crate) const TEXTS: &[&str] = &[
    "",
    " ",
    "None",
    "x",
    "X",
    "-",
    "a.b",
    "a_b",
    "TCP",
    "tcp",
    "SCTP",
    "IPv4",
    "IPv6",
    "FQDN",
    "NodePort",
    "LoadBalancer",
    "ExternalName",
    "Local",
    "Cluster",
    "ClientIP",
    "VIP",
    "Proxy",
    "InternalIP",
    "10.96.0.1",
    "010.0.0.1",
    "10.0.0.256",
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "fe80::1%eth0",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "ff02::1",
    "127.0.0.1",
    "10.0.0.0/24",
    "10.0.0.0/33",
    "::/0",
    "::ffff:0.0.0.0/95",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:60Z",
    "-271821-04-20T00:00:00Z",
    "10.244.1.1=1000,=,10.244.1.2=65536",
    "maglev",
    "\u{0}",
    "\u{feff}",
    "\u{202e}x",
    "é",
    "٤",
    "🦀",
    "\r\n",
    "9223372036854775808",
    "1e999",
    "null",
    "true",
    "{}",
    "kubernetes.io/service-name",
];

const KEYS: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "resourceVersion",
    "creationTimestamp",
    "spec",
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ports",
    "port",
    "protocol",
    "nodePort",
    "targetPort",
    "externalIPs",
    "loadBalancerSourceRanges",
    "sessionAffinityConfig",
    "clientIP",
    "timeoutSeconds",
    "status",
    "loadBalancer",
    "ingress",
    "ip",
    "ipMode",
    "addressType",
    "endpoints",
    "addresses",
    "conditions",
    "ready",
    "hints",
    "forZones",
    "forNodes",
    "nodeName",
    "targetRef",
    "podCIDRs",
    "address",
    "kind",
    "apiVersion",
    "items",
    "kubernetes.io/service-name",
    "service.kubernetes.io/headless",
    "kubenet.dev/weights",
    "",
];

fn any_number() -> impl Strategy<Value = i64> {
    select(&[i64::MIN, -1, 0, 1, 80, 65_535, 65_536, 86_401, 1 << 31, i64::MAX][..])
}

fn any_scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => Just(Value::Null),
        2 => any::<bool>().prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        4 => any_number().prop_map(Value::from),
        8 => select(TEXTS).prop_map(Value::from),
        1 => select(TEXTS).prop_map(|text| text.repeat(5_000).into()),
        2 => "\\PC{0,40}".prop_map(Value::from),
    ]
}

/// A tree of anything.
pub(crate) fn any_value() -> impl Strategy<Value = Value> {
    let tree = any_scalar().prop_recursive(5, 48, 6, |inner| {
        let key = prop_oneof![4 => select(KEYS).prop_map(str::to_owned), 1 => "\\PC{0,8}"];
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(key, inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    });
    // As deep as a parser of JSON goes.
    let deep = (any_scalar(), 1..120usize, any::<bool>()).prop_map(|(value, depth, list)| {
        (0..depth).fold(value, |inner, _| if list { json!([inner]) } else { json!({ "spec": inner }) })
    });
    prop_oneof![8 => tree, 1 => deep]
}

fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "node-a", "labels": { "topology.kubernetes.io/zone": "east" } },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.1" },
            { "type": "ExternalIP", "address": "fd00:1::1" },
            { "type": "Hostname", "address": "node-a" },
        ] },
    })
}

/// A valid Service, EndpointSlice or Node.
pub(crate) fn any_valid() -> impl Strategy<Value = Value> {
    let spelling = || vec(any::<u8>(), 1..16);
    prop_oneof![
        3 => (any_service(), spelling()).prop_map(|(s, choices)| service(&s, &mut Spelling::new(&choices))),
        3 => (any_slice(), spelling()).prop_map(|(s, choices)| endpoint_slice(&s, &mut Spelling::new(&choices))),
        1 => Just(node()),
    ]
}

/// The pointers to all values inside a value, itself not among them.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut inside = |key: &str, inner: &Value| {
        let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        found.push(at.clone());
        pointers(inner, &at, found);
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| inside(&i.to_string(), item)),
        Value::Object(entries) => entries.iter().for_each(|(key, entry)| inside(key, entry)),
        _ => {}
    }
}

/// What is done to a place in an object.
#[derive(Clone, Debug)]
enum Damage {
    /// Something else stands there.
    Replace(Value),
    /// Something else of the same type stands there.
    Alike(&'static str, i64),
    /// It is missing.
    Remove,
    /// An item stands there many times.
    Repeat(usize),
    /// It stands where another is.
    Move(Index),
}

fn damage(object: &mut Value, place: Index, damage: Damage) {
    let mut found = Vec::new();
    pointers(object, "", &mut found);
    let Some(at) = found.get(place.index(found.len().max(1))).cloned() else { return };
    match damage {
        Damage::Replace(value) => *object.pointer_mut(&at).unwrap() = value,
        Damage::Alike(text, number) => match object.pointer_mut(&at).unwrap() {
            Value::String(place) => *place = text.into(),
            Value::Bool(place) => *place = !*place,
            place @ Value::Number(_) => *place = number.into(),
            _ => {}
        },
        Damage::Move(other) => {
            let moved = object.pointer(&found[other.index(found.len())]).unwrap().clone();
            *object.pointer_mut(&at).unwrap() = moved;
        }
        Damage::Remove => {
            let (parent, key) = at.rsplit_once('/').unwrap();
            match object.pointer_mut(parent).unwrap() {
                Value::Object(entries) => drop(entries.remove(&key.replace("~1", "/").replace("~0", "~"))),
                Value::Array(items) => drop(items.remove(key.parse().unwrap())),
                _ => {}
            }
        }
        Damage::Repeat(times) => {
            let place = object.pointer_mut(&at).unwrap();
            *place = vec![place.clone(); times].into();
        }
    }
}

/// A valid object, damaged in some places.
pub(crate) fn any_damaged() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![
        3 => any_value().prop_map(Damage::Replace),
        6 => (select(TEXTS), any_number()).prop_map(|(text, number)| Damage::Alike(text, number)),
        2 => Just(Damage::Remove),
        1 => (0..100usize).prop_map(Damage::Repeat),
        2 => any::<Index>().prop_map(Damage::Move),
    ];
    (any_valid(), vec((any::<Index>(), kind), 1..4)).prop_map(|(mut object, damages)| {
        damages.into_iter().for_each(|(place, kind)| damage(&mut object, place, kind));
        object
    })
}
