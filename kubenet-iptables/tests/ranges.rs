//! Source ranges with real packets, where the conformance suite does not look. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{net::SocketAddr, sync::Arc};

use common::*;
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::{IpFamily, Protocol},
    route::{Frontend, FrontendKind, Masquerade, Route, SourceRanges, Target, WhenEmpty},
};
use kubenet_testkit::lab::{Node, Place};

/// A load balancer on this address for those at these places, in both protocols.
fn guarded(world: &World, address: SocketAddr, pods: &[&str], admitted: &[Place]) -> Vec<Route> {
    let family = IpFamily::of(address.ip());
    let backends = pods.iter().map(|pod| world.backend(pod, family)).collect();
    let target = Target { backends, when_empty: WhenEmpty::Reject };
    let cidrs = admitted.iter().map(|place| world.address(place.clone(), family).into()).collect();
    let ranges = Arc::new(SourceRanges { cidrs, node: false });
    let route = |protocol| {
        let frontend = Frontend::ip(address.ip(), port(address.port()), protocol);
        let kind = FrontendKind::LoadBalancer;
        let mut route = Route::new(frontend, kind, name(), target.clone(), Masquerade::ALWAYS);
        route.source_ranges = Some(Arc::clone(&ranges));
        route
    };
    [Protocol::Tcp, Protocol::Udp].map(route).into()
}

#[test]
fn r1_whoever_is_shut_out_reaches_no_socket_of_the_node() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let _server = world.lab.serve(Node::A, NODE_PORT).unwrap();
        let datapath = world.start();
        for &family in world.lab.families() {
            // The address is the node's own, and the port both its own server's and a node port.
            let at = SocketAddr::new(world.address(Node::A, family), NODE_PORT);
            for (n, pods) in [(1, ["a1"].as_slice()), (2, &[])] {
                let mut routes = guarded(&world, at, pods, &["a2".into()]);
                routes.extend(world.service(&["b1"]));
                let table = world.table(n, routes);
                block_on(datapath.replace(Arc::clone(&table))).unwrap();
                assert_eq!(block_on(datapath.read()).unwrap(), *table);
                for from in [Place::Outside, "a1".into(), Node::A.into()] {
                    let tcp = world.lab.http_get(from.clone(), at, SHORT);
                    assert!(tcp.is_err_and(|e| !e.is_refused()), "{from} {at}");
                    let udp = world.lab.udp_ask(from.clone(), at, SHORT);
                    assert!(udp.is_err_and(|e| !e.is_refused()), "{from} {at}");
                }
                match pods {
                    [] => assert!(world.lab.http_get("a2", at, SECOND).unwrap_err().is_refused()),
                    _ => assert_eq!(world.ask("a2", at).0, "a1"),
                }
            }
        }
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn r1_a_range_that_is_taken_away_ends_udp_flows_and_no_connection_and_admits_nobody() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        for &family in world.lab.families() {
            let at = cluster_ip(family);
            let for_outside = guarded(&world, at, &["a1", "b1"], &[Place::Outside, "a2".into()]);
            let for_pod = guarded(&world, at, &["a1", "b1"], &["a2".into()]);
            let first = world.table(1, for_outside);
            block_on(datapath.replace(Arc::clone(&first))).unwrap();
            let mut tcp = world.lab.connect(Place::Outside, at, SECOND).unwrap();
            let udp = world.lab.udp_flow(Place::Outside, at).unwrap();
            tcp.ask(SECOND).unwrap();
            udp.ask(SECOND).unwrap();
            let kept = world.lab.udp_flow("a2", at).unwrap();
            let backend = kept.ask(SECOND).unwrap().backend;
            let second = world.table(2, for_pod);
            block_on(datapath.apply(Arc::new(first.diff(&second)))).unwrap();
            tcp.ask(SECOND).unwrap();
            assert!(udp.ask(SHORT).unwrap_err().is_timed_out());
            assert_eq!(kept.ask(SECOND).unwrap().backend, backend, "who is admitted still stays");
            let shut_out = world.lab.udp_flow(Place::Outside, at).unwrap();
            assert!(world.lab.http_get(Place::Outside, at, SHORT).unwrap_err().is_timed_out());
            assert!(shut_out.ask(SHORT).unwrap_err().is_timed_out());
            world.ask("a2", at);
            // What was dropped left no trace: once admitted, the same flow is served.
            let third = world.table(3, first.routes().map(|route| (**route).clone()).collect());
            block_on(datapath.apply(Arc::new(second.diff(&third)))).unwrap();
            shut_out.ask(SECOND).unwrap();
            udp.ask(SECOND).unwrap();
        }
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}
