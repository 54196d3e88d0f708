//! Packets through the rules, also while those change. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use common::*;
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, ErrorKind},
    model::IpFamily,
    route::Backend,
};
use kubenet_iptables::Variant;
use kubenet_testkit::lab::{Node, Place};

const V4: IpFamily = IpFamily::V4;

#[test]
fn a_backend_that_is_not_known_to_be_here_reaches_its_service() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        // As endpoints without a node name are.
        let service = |pods: &[&str]| {
            let mut routes = world.service(pods);
            for route in &mut routes {
                let backends = route.internal.backends.iter().map(|b| Backend { local: false, ..*b });
                route.internal.backends = backends.collect();
                route.external = route.internal.clone();
            }
            routes
        };
        block_on(datapath.replace(world.table(1, service(&["a1"])))).unwrap();
        assert_eq!(world.ask("a1", cluster_ip(V4)), ("a1".into(), world.address(Node::A, V4)));
        block_on(datapath.replace(world.table(2, service(&["a1", "a2", "b1"])))).unwrap();
        for pod in ["a1", "a2"] {
            let mut reached_itself = false;
            for _ in 0..30 {
                let (backend, peer) = world.ask(pod, cluster_ip(V4));
                // As with one that is known to be here: masqueraded where it reaches itself.
                let itself = backend == pod;
                let seen = if itself { world.address(Node::A, V4) } else { world.address(pod, V4) };
                assert_eq!(peer, seen);
                reached_itself |= itself;
            }
            // Three backends, thirty times.
            assert!(reached_itself, "{pod} was left out");
        }
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn draining_takes_no_new_flows_and_keeps_those_it_has() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let table = world.table(1, world.service(&["b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let node = world.address(Node::A, V4);
        let mut plain = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
        let mut masqueraded = world.lab.connect(Place::Outside, (node, NODE_PORT).into(), SECOND).unwrap();
        let mut from_node = world.lab.connect(Node::A, cluster_ip(V4), SECOND).unwrap();
        let mut all = |when: &str| {
            assert_eq!(plain.ask(SECOND).expect(when).peer.ip(), world.address("a1", V4), "{when}");
            assert_eq!(masqueraded.ask(SECOND).expect(when).peer.ip(), node, "{when}");
            assert_eq!(from_node.ask(SECOND).expect(when).peer.ip(), node, "{when}");
        };
        all("before");
        let status = block_on(datapath.drain()).unwrap();
        assert_eq!(status.flows, 3, "these end with the last rule that uses connection tracking");
        all("while draining");
        assert!(world.lab.http_get("a2", cluster_ip(V4), SHORT).unwrap_err().is_timed_out());

        // Somebody else's rule keeps connection tracking at work: nothing ends with us.
        world.iptables(&[
            "-t",
            "filter",
            "-A",
            "FORWARD",
            "-m",
            "conntrack",
            "--ctstate",
            "ESTABLISHED",
            "-j",
            "ACCEPT",
        ]);
        assert_eq!(block_on(datapath.drain()).unwrap().flows, 0);
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
        all("after close");
    }
}

#[test]
fn a_drained_datapath_leaves_its_successor_alone() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let table = world.table(1, world.service(&["b1"]));
        let first = world.start();
        block_on(first.replace(Arc::clone(&table))).unwrap();
        let mut connection = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
        connection.ask(SECOND).unwrap();
        let second = world.start();
        let conflict = block_on(second.replace(Arc::clone(&table))).unwrap_err();
        assert_eq!(conflict.kind(), ErrorKind::Conflict);
        assert!(conflict.message().contains("chain_prefix"), "{conflict}");
        // Another prefix is another place.
        let beside = world.builder().chain_prefix("OTHER").build().unwrap();
        block_on(beside.replace(Arc::clone(&table))).unwrap();
        block_on(beside.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("OTHER"));

        block_on(first.drain()).unwrap();
        block_on(second.replace(Arc::clone(&table))).unwrap();
        assert_eq!(block_on(first.drain()).unwrap().flows, 0);
        assert_eq!(block_on(first.replace(Arc::clone(&table))).unwrap_err().kind(), ErrorKind::Conflict);
        block_on(first.close(Close::Remove)).unwrap();
        assert_eq!(block_on(second.read()).unwrap(), *table);
        assert_eq!(world.ask("a2", cluster_ip(V4)).0, "b1");
        connection.ask(SECOND).unwrap();
        // A third, after the second went without saying goodbye.
        drop(second);
        let third = world.start();
        block_on(third.replace(Arc::clone(&table))).unwrap();
        connection.ask(SECOND).unwrap();
        block_on(third.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn the_last_of_several_drained_datapaths_removes_the_rules_that_flows_need() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let table = world.table(1, world.service(&["b1"]));
        for older_first in [true, false] {
            let serve_and_drain = || {
                let datapath = world.start();
                block_on(datapath.replace(Arc::clone(&table))).unwrap();
                let mut connection = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
                connection.ask(SECOND).unwrap();
                assert!(block_on(datapath.drain()).unwrap().flows > 0);
                (datapath, connection)
            };
            let (older, mut first) = serve_and_drain();
            let (younger, mut second) = serve_and_drain();
            let (closed, last) = if older_first { (older, younger) } else { (younger, older) };
            // One that never served has no say.
            block_on(world.start().close(Close::Remove)).unwrap();
            block_on(closed.close(Close::Remove)).unwrap();
            assert!(world.rules().contains("KUBE-FORWARD"));
            for connection in [&mut first, &mut second] {
                assert_eq!(connection.ask(SECOND).unwrap().peer.ip(), world.address("a1", V4));
            }
            assert!(block_on(last.drain()).unwrap().flows > 0);
            block_on(last.close(Close::Remove)).unwrap();
            assert!(!world.rules().contains("KUBE"));
        }
    }
}

#[test]
fn udp_flows_to_what_is_gone_are_cut_and_others_are_not() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        for &family in world.lab.families() {
            let datapath = world.start();
            let tables: Vec<_> = [["b1"].as_slice(), &["a2"], &[], &["b1"]]
                .into_iter()
                .zip(1..)
                .map(|(pods, revision)| world.table(revision, world.service(pods)))
                .collect();
            let flow = world.lab.udp_flow("a1", cluster_ip(family)).unwrap();
            // Before there is a Service: the flow is recorded as it is.
            assert!(flow.ask(SHORT).is_err());
            block_on(datapath.replace(Arc::clone(&tables[0]))).unwrap();
            assert_eq!(flow.ask(SECOND).unwrap().backend, "b1", "a frontend is added");
            let step = |from: usize, to: usize| {
                block_on(datapath.apply(Arc::new(tables[from].diff(&tables[to])))).unwrap();
            };
            step(0, 1);
            assert_eq!(flow.ask(SECOND).unwrap().backend, "a2", "a backend is replaced");
            step(1, 2);
            assert!(flow.ask(SECOND).unwrap_err().is_refused(), "no backend is left");
            step(2, 3);
            assert_eq!(flow.ask(SECOND).unwrap().backend, "b1", "a backend is back");
            let direct = world.lab.udp_flow("a1", (world.address("b1", family), PORT).into()).unwrap();
            assert_eq!(direct.ask(SECOND).unwrap().backend, "b1");
            let listed =
                |what: &str| world.run("conntrack", &["-L", "-f", what, "-p", "udp"]).lines().count();
            let words = match family {
                IpFamily::V4 => "ipv4",
                IpFamily::V6 => "ipv6",
            };
            assert_eq!(listed(words), 2);
            block_on(datapath.apply(Arc::new(tables[3].diff(&world.table(5, Vec::new()))))).unwrap();
            assert_eq!(listed(words), 1, "the flow that is not to a frontend stays");
            block_on(datapath.close(Close::Remove)).unwrap();
        }
    }
}

#[test]
fn new_flows_never_fail_while_endpoints_change() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let mut table = world.table(1, world.service(&["a2", "b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    world.ask("a1", cluster_ip(V4));
                    asked += 1;
                }
                asked
            });
            let sets = [["a2"].as_slice(), &["b1"], &["a2", "b1"]];
            for (n, pods) in (2..).zip(sets.into_iter().cycle().take(24)) {
                let next = world.table(n, world.service(pods));
                block_on(datapath.apply(Arc::new(table.diff(&next)))).unwrap();
                table = next;
            }
            done.store(true, Ordering::Relaxed);
            assert!(client.join().unwrap() > 20);
        });
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn a_swap_between_the_variants_cuts_nothing() {
    let Some(world) = world(Variant::Auto) else { return };
    let table = world.table(1, world.service(&["a2", "b1"]));
    let start = |variant| world.builder().variant(variant).build().unwrap();
    let mut current = start(Variant::Legacy);
    block_on(current.replace(Arc::clone(&table))).unwrap();
    let node = world.address(Node::A, V4);
    let outside = || (node, NODE_PORT).into();
    let mut old = vec![
        world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap(),
        world.lab.connect(Place::Outside, outside(), SECOND).unwrap(),
    ];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                world.ask("a1", cluster_ip(V4));
                world.ask(Place::Outside, outside());
            }
        });
        for variant in [Variant::Nft, Variant::Legacy].into_iter().cycle().take(6) {
            let next = start(variant);
            block_on(next.replace(Arc::clone(&table))).unwrap();
            assert_eq!(block_on(current.drain()).unwrap().flows, 0, "the other variant tracks");
            block_on(current.close(Close::Remove)).unwrap();
            current = next;
            for connection in &mut old {
                connection.ask(SECOND).unwrap();
            }
            old.push(world.lab.connect(Place::Outside, outside(), SECOND).unwrap());
        }
        done.store(true, Ordering::Relaxed);
        client.join().unwrap();
    });
    block_on(current.close(Close::Remove)).unwrap();
    assert!(!world.rules().contains("KUBE"));
}
