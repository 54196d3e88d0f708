//! Node ports on loopback addresses, and what is kept from them: [F4], [N1]. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{net::SocketAddr, process::Command, sync::Arc};

use common::*;
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, Feature},
    model::IpFamily::V4,
    route::{RouteTable, WhenEmpty},
};
use kubenet_iptables::Variant;
use kubenet_testkit::lab::{Node, Place};

const SYSCTL: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The table of a node that answers on loopback addresses.
fn table(world: &World, revision: u64, pods: &[&str], loopback: bool) -> Arc<RouteTable> {
    let plain = world.table(revision, world.service(pods));
    let mut node = (**plain.node()).clone();
    if loopback {
        node.loopback_node_ports = vec!["127.0.0.0/8".parse().unwrap()];
    }
    Arc::new(RouteTable::new(plain.revision(), Arc::new(node), plain.routes().cloned()))
}

fn route_localnet(world: &World) -> String {
    world.run("cat", &[SYSCTL]).trim().to_owned()
}

/// Lets the client outside send what is for 127.0.0.0/8 to node-a, and take the answers.
fn aim_at_loopback(world: &World) {
    let node = world.address(Node::A, V4);
    let script =
        format!("echo 1 >{SYSCTL}; ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via {node}");
    let outside = world.lab.netns(&Place::Outside).unwrap();
    let output = outside.run(|| Command::new("sh").args(["-ec", &script]).output()).unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn f4_local_clients_reach_node_ports_on_loopback_and_the_node_is_seen() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        assert!(datapath.capabilities().has(Feature::LoopbackNodePorts));
        let off = table(&world, 1, &["b1"], false);
        block_on(datapath.replace(off.clone())).unwrap();
        assert_eq!(route_localnet(&world), "0");
        assert!(world.lab.http_get(Node::A, local(NODE_PORT), SHORT).is_err());
        // By a delta: the rules and what the kernel must be told beside them.
        let on = table(&world, 2, &["b1"], true);
        block_on(datapath.apply(Arc::new(off.diff(&on)))).unwrap();
        assert_eq!(route_localnet(&world), "1");
        assert_eq!(block_on(datapath.read()).unwrap(), *on);
        let node = world.address(Node::A, V4);
        for (revision, pod) in [(3, "a1"), (4, "b1")] {
            block_on(datapath.replace(table(&world, revision, &[pod], true))).unwrap();
            let to = local(NODE_PORT);
            assert_eq!(world.ask(Node::A, to), (pod.into(), node), "{variant:?}");
            assert_eq!(world.lab.udp_ask(Node::A, to, SECOND).unwrap().backend, pod);
            let beside = SocketAddr::from(([127, 9, 9, 9], NODE_PORT));
            assert_eq!(world.ask(Node::A, beside), (pod.into(), node));
        }
        // A flow to a loopback address follows the backends, too.
        let flow = world.lab.udp_flow(Node::A, local(NODE_PORT)).unwrap();
        assert_eq!(flow.ask(SECOND).unwrap().backend, "b1");
        block_on(datapath.replace(table(&world, 5, &["a2"], true))).unwrap();
        assert_eq!(flow.ask(SECOND).unwrap().backend, "a2");
        // Without endpoints they are refused, as on other addresses.
        let mut routes = world.service(&["a1"]);
        for route in &mut routes {
            route.internal.backends = Arc::from([]);
            route.external = route.internal.clone();
            assert_eq!(route.internal.when_empty, WhenEmpty::Reject);
        }
        let node = Arc::clone(table(&world, 6, &[], true).node());
        let none = RouteTable::new(kubenet_core::route::Revision(6), node, routes.into_iter().map(Arc::new));
        block_on(datapath.replace(Arc::new(none.clone()))).unwrap();
        assert!(world.lab.http_get(Node::A, local(NODE_PORT), SECOND).unwrap_err().is_refused());
        assert_eq!(block_on(datapath.read()).unwrap(), none);
        // Somebody took it away: seen, and set right.
        world.run("sh", &["-c", &format!("echo 0 >{SYSCTL}")]);
        assert!(block_on(datapath.read()).unwrap().node().loopback_node_ports.is_empty());
        let again = table(&world, 7, &["b1"], true);
        block_on(datapath.replace(again.clone())).unwrap();
        assert_eq!(world.ask(Node::A, local(NODE_PORT)).0, "b1");
        let off = table(&world, 8, &["b1"], false);
        block_on(datapath.apply(Arc::new(again.diff(&off)))).unwrap();
        assert_eq!(route_localnet(&world), "0");
        assert!(!world.rules().contains("KUBE-LOCALNET"));
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn n1_what_is_for_loopback_and_comes_from_outside_is_dropped() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        aim_at_loopback(&world);
        let server = world.lab.serve(Node::A, PORT).unwrap();
        let asks = |port| world.lab.http_get(Place::Outside, local(port), SHORT);
        assert!(asks(PORT).is_err(), "the kernel takes no such packets of itself");
        world.run("sh", &["-c", &format!("echo 1 >{SYSCTL}")]);
        assert!(asks(PORT).is_ok(), "with route_localnet alone the node is open");
        world.run("sh", &["-c", &format!("echo 0 >{SYSCTL}")]);

        let datapath = world.start();
        block_on(datapath.replace(table(&world, 1, &["b1"], true))).unwrap();
        assert_eq!(route_localnet(&world), "1");
        for port in [PORT, NODE_PORT] {
            let error = asks(port).unwrap_err();
            assert!(error.is_timed_out(), "{variant:?}, {port}: {error}");
            let error = world.lab.udp_ask(Place::Outside, local(port), SHORT).unwrap_err();
            assert!(error.is_timed_out(), "{variant:?}, {port}: {error}");
        }
        // The node itself is not shut out, and what is for another address is let in.
        assert!(world.lab.http_get(Node::A, local(PORT), SECOND).is_ok());
        let node = world.address(Node::A, V4);
        assert!(world.lab.http_get(Place::Outside, (node, PORT).into(), SECOND).is_ok());
        // While it drains, answers to known flows still come in, and nothing else.
        block_on(datapath.drain()).unwrap();
        assert_eq!(route_localnet(&world), "1");
        assert!(asks(PORT).unwrap_err().is_timed_out());
        block_on(datapath.close(Close::Remove)).unwrap();
        assert_eq!(route_localnet(&world), "0");
        assert!(asks(PORT).is_err(), "closed as before");
        assert!(!world.rules().contains("KUBE-"));
        drop(server);
    }
}

#[test]
fn route_localnet_stays_where_others_need_it() {
    let Some(world) = world(Variant::Nft) else { return };
    // Somebody else's.
    world.run("sh", &["-c", &format!("echo 1 >{SYSCTL}")]);
    let datapath = world.start();
    block_on(datapath.replace(table(&world, 1, &["b1"], true))).unwrap();
    block_on(datapath.close(Close::Remove)).unwrap();
    assert_eq!(route_localnet(&world), "1");
    // A later run knows it, too, by either way to the end.
    let marked = || world.run("iptables-nft-save", &["-t", "mangle"]).contains(":KUBE-LOCALNET-STAYS ");
    for loopback in [true, false] {
        let first = world.start();
        block_on(first.replace(table(&world, 1, &["b1"], true))).unwrap();
        assert!(marked());
        block_on(first.close(Close::Keep)).unwrap();
        let second = world.start();
        block_on(second.replace(table(&world, 1, &["b1"], true))).unwrap();
        block_on(second.replace(table(&world, 2, &["b1"], loopback))).unwrap();
        assert_eq!((route_localnet(&world).as_str(), marked()), ("1", loopback));
        block_on(second.close(Close::Remove)).unwrap();
        assert_eq!((route_localnet(&world).as_str(), marked()), ("1", false));
    }
    // One that was killed left its mark, and whoever had set it took it back meanwhile.
    let killed = world.start();
    block_on(killed.replace(table(&world, 1, &["b1"], true))).unwrap();
    block_on(killed.close(Close::Keep)).unwrap();
    world.run("sh", &["-c", &format!("echo 0 >{SYSCTL}")]);
    let datapath = world.start();
    block_on(datapath.replace(table(&world, 1, &["b1"], true))).unwrap();
    assert!(!marked());
    block_on(datapath.close(Close::Remove)).unwrap();
    assert_eq!(route_localnet(&world), "0");
    world.run("sh", &["-c", &format!("echo 0 >{SYSCTL}")]);
    // The successor's: of the other variant, and of a restart.
    let first = world.start();
    block_on(first.replace(table(&world, 2, &["b1"], true))).unwrap();
    block_on(first.close(Close::Keep)).unwrap();
    let second = world.start();
    block_on(second.replace(table(&world, 2, &["b1"], true))).unwrap();
    let third = world.builder().variant(Variant::Legacy).build().unwrap();
    block_on(third.replace(table(&world, 2, &["b1"], true))).unwrap();
    block_on(second.close(Close::Remove)).unwrap();
    assert_eq!(route_localnet(&world), "1");
    assert_eq!(world.ask(Node::A, local(NODE_PORT)).0, "b1");
    block_on(third.close(Close::Remove)).unwrap();
    assert_eq!(route_localnet(&world), "0");
}
