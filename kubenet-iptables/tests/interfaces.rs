//! Pods told by the interface, with real packets. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{net::SocketAddr, sync::Arc};

use common::*;
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::LocalDetector,
    route::{Route, RouteTable, WhenEmpty},
};
use kubenet_testkit::lab::{Node, Place};

/// The Service's table, on a node that tells pods so.
fn table(world: &World, detector: LocalDetector, routes: Vec<Route>) -> Arc<RouteTable> {
    let table = world.table(1, routes);
    let mut node = (**table.node()).clone();
    node.local_detector = detector;
    Arc::new(RouteTable::new(table.revision(), Arc::new(node), table.routes().cloned()))
}

#[test]
fn s3_a_pods_flow_is_told_by_its_interface() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let interface = world.lab.pod("a1").unwrap().host_interface().to_owned();
        // The lab has no bridge: a pod's own interface is as good a name.
        let by_prefix = LocalDetector::InterfacePrefix(interface[..2].to_owned());
        let of_one_pod = LocalDetector::Bridge(interface);
        for (detector, both_are_pods) in [(by_prefix, true), (of_one_pod, false)] {
            let table = table(&world, detector, world.service(&["b1"]));
            block_on(datapath.replace(Arc::clone(&table))).unwrap();
            assert_eq!(block_on(datapath.read()).unwrap(), *table);
            for &family in world.lab.families() {
                let node = world.address(Node::A, family);
                let sees = |from: Place| world.ask(from, cluster_ip(family)).1;
                assert_eq!(sees("a1".into()), world.address("a1", family));
                let of_a2 = if both_are_pods { world.address("a2", family) } else { node };
                assert_eq!(sees("a2".into()), of_a2);
                assert_eq!(sees(Place::Outside), node);
                assert_eq!(sees(Node::A.into()), node, "S5: its own packets came in through no interface");
            }
        }
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn e5_a_pod_told_by_its_interface_gets_the_internal_backends() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let detector = LocalDetector::InterfacePrefix("kna".into());
        for (n, outside) in [(1, vec!["a2"]), (2, vec![])] {
            let mut routes = world.service(&["b1"]);
            for route in &mut routes {
                let family = route.frontend.family();
                route.external.backends = outside.iter().map(|pod| world.backend(pod, family)).collect();
                route.external.when_empty = WhenEmpty::Reject;
            }
            block_on(datapath.replace(table(&world, detector.clone(), routes))).unwrap();
            for &family in world.lab.families() {
                let at = SocketAddr::new(world.address(Node::A, family), NODE_PORT);
                for from in [Place::from("a1"), Node::A.into()] {
                    assert_eq!(world.ask(from, at).0, "b1", "pass {n}");
                }
                match outside[..] {
                    [pod] => assert_eq!(world.ask(Place::Outside, at).0, pod),
                    _ => assert!(world.lab.http_get(Place::Outside, at, SECOND).unwrap_err().is_refused()),
                }
            }
        }
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}
