//! VLANs that come to a device with the XDP program.

use std::process::Command;

use kubenet_testkit::lab::{Lab, LabConfig, Node};

use super::*;
use crate::{XdpMode, kernel::device::VLAN};

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// In the node's network namespace, on a thread of its own.
fn vlans_come(lab: &Lab) {
    let node = lab.node(Node::A);
    let interface = node.external_interface();
    let events = EventHub::default();
    let mut seen = events.subscribe();
    let builder = EbpfBuilder::default()
        .network_namespace(node.netns().path())
        .external_interface(interface)
        .xdp(XdpMode::Native);
    let mut engine = Engine::start(builder, None, Capabilities::basic(), events).unwrap();
    let table = table(1, routes(2, 1));
    engine.replace(&table).unwrap();
    let has_xdp = || ip(&format!("link show {interface}")).contains("xdp");
    assert!(has_xdp() && engine.is_intact());

    // Of another kind, on another device, and in another namespace: none is a VLAN on this one.
    ip("link add pair0 type veth peer name pair1");
    ip(&format!("link add link pair0 name other.7 type {VLAN}"));
    assert!(engine.is_intact());

    ip(&format!("link add link {interface} name here.7 type {VLAN}"));
    assert!(!engine.is_intact());
    assert!(engine.read().unwrap().is_empty(), "an audit sees it, too");
    engine.replace(&table).unwrap();
    let drift = next_drift(&mut seen).unwrap();
    assert!(drift.contains(interface) && drift.contains("VLAN"), "{drift}");
    assert!(!has_xdp());
    assert!(engine.is_intact(), "TC serves it");
    assert_eq!(engine.read().unwrap().len(), 2);

    ip("link del here.7");
    engine.replace(&table).unwrap();
    assert!(has_xdp() && engine.is_intact());
}

#[test]
fn a_device_that_gets_vlans_is_found_and_goes_on_without_xdp() {
    let Some(lab) = lab(LabConfig::new()) else { return };
    std::thread::scope(|scope| scope.spawn(|| vlans_come(&lab)).join().unwrap());
}
