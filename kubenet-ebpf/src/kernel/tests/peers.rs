//! Which devices packets may be put through into pods.

use std::{collections::HashSet, os::fd::AsFd, process::Command};

use aya::maps::IterableMap;
use kubenet_testkit::lab::{Lab, LabConfig, Node};
use nix::net::if_::if_nametoindex;

use super::*;

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn found(engine: &Engine) -> HashSet<u32> {
    let mut found = HashSet::new();
    let map = engine.maps.pod_peers.map().fd();
    sys::for_each(map.as_fd(), |index: u32, _: u32| {
        found.insert(index);
    })
    .unwrap();
    found
}

/// In the node's network namespace.
fn devices_come_and_go(lab: &Lab) {
    let node = lab.node(Node::A);
    let pods: Vec<String> = node.pod_interfaces();
    ip("link add here0 type veth peer name here1");
    ip("link add above0 link here0 type macvlan");
    ip("link add bridge0 type bridge");
    let of = |names: &[&str]| -> HashSet<u32> { names.iter().map(|n| if_nametoindex(*n).unwrap()).collect() };
    let start = |on: bool| {
        // The external one is of the same kind.
        let builder = EbpfBuilder::default()
            .network_namespace(node.netns().path())
            .external_interface(node.external_interface())
            .pod_interface(pods[0].as_str())
            .redirect_peer(on);
        let engine = Engine::start(builder, None, Capabilities::basic(), EventHub::default());
        engine.unwrap()
    };
    let table = table(1, routes(2, 1));
    let mut engine = start(true);
    assert!(found(&engine).is_empty(), "not before the first table");
    engine.replace(&table).unwrap();
    assert_eq!(found(&engine), of(&[&pods[0]]));
    for name in ["here0", "here1", "above0", "bridge0"] {
        engine.attach_pod(name).unwrap();
    }
    assert!(engine.attach_pod(node.external_interface()).is_err());
    assert_eq!(found(&engine), of(&[&pods[0]]), "their other ends are here, or they have none");
    engine.attach_pod(&pods[1]).unwrap();
    assert_eq!(found(&engine), of(&[&pods[0], &pods[1]]));
    engine.detach_pod(&pods[0]).unwrap();
    assert_eq!(found(&engine), of(&[&pods[1]]));

    // One that is made anew has another index; the next table forgets the old one.
    ip(&format!("link set {} name old0", pods[1]));
    ip(&format!("link add {} type veth peer name eth1 netns {}", pods[1], lab.pods()[0].netns().name()));
    engine.attach_pod(&pods[1]).unwrap();
    assert_eq!(found(&engine), of(&["old0", &pods[1]]));
    engine.replace(&table).unwrap();
    assert_eq!(found(&engine), of(&[&pods[1]]));

    // And not at all where it is off.
    let mut engine = start(false);
    engine.replace(&table).unwrap();
    engine.attach_pod(&pods[1]).unwrap();
    assert!(found(&engine).is_empty());
}

#[test]
fn only_pods_interfaces_that_lead_into_another_namespace_are_known_as_such() {
    let config = LabConfig::new().pod("one", Node::A).pod("two", Node::A);
    let Some(lab) = lab(config) else { return };
    lab.node(Node::A).netns().run(|| devices_come_and_go(&lab)).unwrap();
}
