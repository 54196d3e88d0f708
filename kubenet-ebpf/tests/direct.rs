//! Direct server return between two nodes: the backend's node answers the client by itself.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, net::IpAddr, time::Duration};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::IpFamily,
};
use kubenet_ebpf::EbpfDatapath;
use kubenet_testkit::lab::{Lab, LabConfig, Node, Place};
use support::*;

/// A datapath with direct server return on a node, with its pods.
fn direct(lab: &Lab, node: Node) -> EbpfDatapath {
    let node = lab.node(node);
    let builder = EbpfDatapath::builder()
        .network_namespace(node.netns().path())
        .external_interface(node.external_interface())
        .direct_server_return(true);
    node.pod_interfaces().into_iter().fold(builder, |b, pod| b.pod_interface(pod)).build().unwrap()
}

/// Packets that a node has received from outside.
fn received(lab: &Lab, node: Node) -> u64 {
    let node = lab.node(node);
    let name = node.external_interface().to_owned();
    let text = node.netns().run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn address(lab: &Lab, place: &Place, family: IpFamily) -> IpAddr {
    lab.address(place, family).unwrap()
}

#[test]
fn answers_of_another_node_do_not_come_back_through_this_one() {
    const ROUNDS: u64 = 200;
    let config = LabConfig::new().pod("client", Node::A).pod("there", Node::B);
    let Some(lab) = lab(config) else { return };
    let _servers = ["client", "there"].map(|pod| lab.serve(pod, PORT).unwrap());
    let (first, second) = (direct(&lab, Node::A), direct(&lab, Node::B));
    // The backend's node knows nothing of the first one's node ports.
    replace(&second, &table(&lab, 1, []));
    for &family in lab.families() {
        let mut routes = on_node_port(&lab, family, NODE_PORT, &["there"]);
        routes.extend(on_cluster_ip(&lab, family, 1, &["there"]));
        replace(&first, &table(&lab, 1, routes));
        let outside = address(&lab, &Place::Outside, family);
        for to in [node(&lab, family, NODE_PORT), service(family, 1)] {
            let tcp = lab.http_get(Place::Outside, to, SOON).unwrap_or_else(|e| panic!("{to}, TCP: {e}"));
            let udp = lab.udp_ask(Place::Outside, to, SOON).unwrap_or_else(|e| panic!("{to}, UDP: {e}"));
            for answer in [tcp, udp] {
                assert_eq!((answer.backend.as_str(), answer.peer.ip()), ("there", outside), "{to}");
            }

            // One packet there for each question, and none back.
            let flow = lab.udp_flow(Place::Outside, to).unwrap();
            let before = received(&lab, Node::A);
            for _ in 0..ROUNDS {
                flow.ask(SOON).unwrap();
            }
            let packets = received(&lab, Node::A) - before;
            assert!((ROUNDS..ROUNDS * 3 / 2).contains(&packets), "{to}: {packets} packets");

            // A long connection, with segments of full size both ways.
            let mut connection = lab.connect(Place::Outside, to, SOON).unwrap();
            for _ in 0..20 {
                connection.ask_at_length(15_000, 5 * SOON).unwrap_or_else(|e| panic!("{to}: {e}"));
            }
        }
        // Pods are served as ever.
        let pod = lab.http_get("client", service(family, 1), SOON).unwrap();
        assert_eq!(pod.peer.ip(), address(&lab, &"client".into(), family));
    }
    for datapath in [first, second] {
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn connections_live_on_through_changes_of_the_table() {
    let config = LabConfig::new().pod("one", Node::B).pod("two", Node::B);
    let Some(lab) = lab(config) else { return };
    let _servers = ["one", "two"].map(|pod| lab.serve(pod, PORT).unwrap());
    let (first, second) = (direct(&lab, Node::A), direct(&lab, Node::B));
    replace(&second, &table(&lab, 1, []));
    for &family in lab.families() {
        let to = node(&lab, family, NODE_PORT);
        replace(&first, &table(&lab, 1, on_node_port(&lab, family, NODE_PORT, &["one"])));
        let mut connection = lab.connect(Place::Outside, to, SOON).unwrap();
        assert_eq!(connection.ask(SOON).unwrap().backend, "one");
        replace(&first, &table(&lab, 2, on_node_port(&lab, family, NODE_PORT, &["two"])));
        // Into another tick, so that both nodes see that it lasts.
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            assert_eq!(connection.ask(SOON).unwrap().backend, "one");
            assert_eq!(lab.http_get(Place::Outside, to, SOON).unwrap().backend, "two");
        }
    }
}
