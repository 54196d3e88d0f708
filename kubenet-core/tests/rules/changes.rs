//! [O5]: a changed frontend is a removal and an addition, which leaves nothing of the old one.

use kubenet_core::{
    model::{
        IpFamily,
        Protocol::{self, Sctp, Tcp, Udp},
    },
    route::FrontendKind::{self, ClusterIp, ExternalIp, LoadBalancer, NodePort},
};
use serde_json::{Value, json};

use crate::{
    manifest::{at, pod, service, slice_of, slices, web, with},
    world::{Answer, Passed, Rejected, Setup, World, flow, to},
};

const RENAMED: [&str; 3] = ["web", "dns", "sigtran"];

/// The ports of `web`, each with another field.
fn ports(fields: [Value; 3]) -> Value {
    let port = |(protocol, field): (Protocol, Value)| {
        let (name, protocol) = (protocol.as_lower_str(), protocol.as_str());
        with(json!({ "name": name, "protocol": protocol, "port": 80, "nodePort": 30080 }), field)
    };
    json!({ "ports": Protocol::ALL.into_iter().zip(fields).map(port).collect::<Vec<_>>() })
}

/// Asserts that a frontend answers nobody any more: not even a UDP flow that it served.
fn changed(object: Value, kind: FrontendKind) -> World {
    let mut world = World::web(json!({}), [pod("a1")]);
    let flows = IpFamily::ALL.map(|family| flow("outside", at(family, kind), Udp));
    for flow in &flows {
        assert_eq!(world.connect(flow), to(["a1"]));
    }
    let (before, count) = (world.frontends(), world.table().len());
    world.apply([object]);
    assert_eq!(world.dial("outside", kind), Passed);
    for flow in &flows {
        assert_eq!(world.send(flow), Passed);
    }
    assert_eq!(world.table().len(), count, "as many as before: {before:?}");
    world
}

#[test]
fn o5_a_port_with_another_name_has_the_endpoints_of_that_name() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let names = || RENAMED.map(|name| json!({ "name": name }));
    world.apply([web(ports(names()))]);
    assert_eq!(world.dial("outside", NodePort), Rejected, "the slices have the old name");
    assert!(world.frontends().iter().all(|line| RENAMED.iter().any(|name| line.ends_with(name))));
    let ports = Protocol::ALL.into_iter().zip(names());
    let ports: Vec<_> = ports
        .map(|(protocol, name)| with(json!({ "protocol": protocol.as_str(), "port": 8080 }), name))
        .collect();
    world.apply(slices([pod("a1")]).into_iter().map(|slice| with(slice, json!({ "ports": ports }))));
    assert_eq!(world.dial("outside", NodePort), to(["a1"]));
}

#[test]
fn o5_another_port_number_leaves_nothing_of_the_old_one() {
    let world = changed(web(ports([81; 3].map(|port| json!({ "port": port })))), ExternalIp);
    assert_eq!(world.packet("outside", "198.51.100.1:81", Sctp), to(["a1"]));
    assert_eq!(world.packet("outside", "[fd00:96::10]:81", Tcp), to(["a1"]));
    assert_eq!(world.dial("outside", ClusterIp), Rejected, "a port that is no Service port any more");
}

#[test]
fn o5_another_node_port_leaves_nothing_of_the_old_one() {
    let world = changed(web(ports([30081; 3].map(|port| json!({ "nodePort": port })))), NodePort);
    assert_eq!(world.packet("outside", "10.0.0.1:30081", Udp), to(["a1"]));
}

#[test]
fn o5_another_protocol_leaves_nothing_of_the_old_one() {
    let of = |protocol: &str| {
        let service = service("one", "10.96.0.1", json!({ "ports": [{ "port": 80, "protocol": protocol }] }));
        let ports = json!({ "ports": [{ "port": 8080, "protocol": protocol }] });
        [service, with(slice_of("one", &[pod("a1")]), ports)]
    };
    let answers = |world: &World| Protocol::ALL.map(|p| world.packet("a9", "10.96.0.1:80", p));
    let mut world = World::new(Setup::default(), of("TCP"));
    assert_eq!(answers(&world), [to(["a1"]), Rejected, Rejected]);
    world.apply(of("UDP"));
    assert_eq!(answers(&world), [Rejected, to(["a1"]), Rejected]);
    assert_eq!(world.frontends(), ["10.96.0.1:80/UDP demo/one"]);
}

#[test]
fn o5_another_cluster_ip_leaves_nothing_of_the_old_one() {
    let addresses = ["10.96.0.77", "fd00:96::77"];
    let world = changed(web(json!({ "clusterIP": addresses[0], "clusterIPs": addresses })), ClusterIp);
    assert_eq!(world.packet("a9", "10.96.0.77:80", Tcp), to(["a1"]));
    assert_eq!(world.packet("a9", "[fd00:96::77]:80", Tcp), to(["a1"]));
}

#[test]
fn o5_another_external_ip_leaves_nothing_of_the_old_one() {
    let world = changed(web(json!({ "externalIPs": ["198.51.100.7", "2001:db8:1::7"] })), ExternalIp);
    assert_eq!(world.packet("outside", "198.51.100.7:80", Tcp), to(["a1"]));
}

#[test]
fn o5_another_load_balancer_address_leaves_nothing_of_the_old_one() {
    let ingress = json!([{ "ip": "192.0.2.7" }, { "ip": "2001:db8:2::7" }]);
    let object = with(web(json!({})), json!({ "status": { "loadBalancer": { "ingress": ingress } } }));
    let world = changed(object, LoadBalancer);
    assert_eq!(world.packet("outside", "192.0.2.7:80", Tcp), to(["a1"]));
    assert_eq!(world.packet("outside", "[2001:db8:2::7]:80", Tcp), to(["a1"]));
}

/// What becomes of Service `one` when a sync brings it another cluster IP: the answers of the old and of the
/// new one, and what a UDP flow to the old one meets. The sync gets the old Service, the new one, and their
/// slice.
fn readded(sync: impl FnOnce(&mut World, [Value; 3])) -> [Answer; 3] {
    let udp = |port: u16| json!({ "ports": [{ "port": port, "protocol": "UDP" }] });
    let one = |address: &str, uid: &str| {
        with(service("one", address, udp(80)), json!({ "metadata": { "uid": uid } }))
    };
    let objects =
        [one("10.96.0.1", "1"), one("10.96.0.2", "2"), with(slice_of("one", &[pod("a1")]), udp(8080))];
    let [old, _, slice] = objects.clone();
    let mut world = World::new(Setup::default(), [old, slice]);
    let flow = flow("a9", "10.96.0.1:80", Udp);
    assert_eq!(world.connect(&flow), to(["a1"]));
    let updates = world.router.status().updates;
    sync(&mut world, objects);
    assert_eq!(world.router.status().updates, updates + 1, "one sync");
    assert_eq!(world.frontends(), ["10.96.0.2:80/UDP demo/one"]);
    let [before, after] = ["10.96.0.1:80", "10.96.0.2:80"].map(|at| world.packet("a9", at, Udp));
    [before, after, world.send(&flow)]
}

#[test]
fn o5_deleted_and_added_again_with_another_cluster_ip_between_two_syncs() {
    let answers = readded(|world, [old, new, _]| world.burst([old], [new]));
    assert_eq!(answers, [Passed, to(["a1"]), Passed]);
}

#[test]
fn o5_listed_anew_with_another_cluster_ip() {
    let answers = readded(|world, [_, new, slice]| world.list([new, slice]));
    assert_eq!(answers, [Passed, to(["a1"]), Passed]);
}
