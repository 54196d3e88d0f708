//! [L1] to [L3]: what becomes of flows. ICMP errors and fragments ([L4]) are not to be seen here.

use kubenet_core::{
    datapath::ErrorKind,
    model::{
        IpFamily,
        Protocol::{self, Sctp, Tcp, Udp},
    },
    route::FrontendKind::{self, ClusterIp, ExternalIp, LoadBalancer, NodePort},
};
use kubenet_testkit::{faults::Call, memory::Flow};
use serde_json::{Value, json};

use crate::{
    manifest::{at, node, pod, service, slice_of, slices, terminating, web, with},
    world::{Answer, Dropped, Passed, Rejected, Setup, World, flow, node_info, to},
};

/// Flows of a pod, of this node and of a client outside, to every frontend in both families.
fn flows(protocol: Protocol) -> Vec<Flow> {
    let places = ["a9", "node-a", "outside"];
    let to_all = |client: &'static str| {
        let kinds = FrontendKind::ALL.into_iter();
        kinds.flat_map(move |kind| IpFamily::ALL.map(|family| flow(client, at(family, kind), protocol)))
    };
    places.into_iter().flat_map(to_all).collect()
}

/// Begins all flows, each of which has this answer.
fn begin(world: &World, protocol: Protocol, answer: Answer) -> Vec<Flow> {
    let flows = flows(protocol);
    for flow in &flows {
        assert_eq!(world.connect(flow), answer, "{flow:?}");
    }
    flows
}

/// Asserts what the next packet of each flow meets.
fn next(world: &World, flows: &[Flow], answer: Answer) {
    for flow in flows {
        assert_eq!(world.send(flow), answer, "{flow:?}");
    }
}

#[test]
fn l1_a_removed_backend_gets_no_new_connections() {
    let mut world = World::web(json!({}), [pod("a1"), pod("b1")]);
    world.endpoints([pod("b1")]);
    for kind in FrontendKind::ALL {
        assert_eq!(world.dial("outside", kind), to(["b1"]));
    }
}

#[test]
fn l1_a_terminating_backend_gets_no_new_connections() {
    let mut world = World::web(json!({}), [pod("a1"), pod("b1")]);
    world.endpoints([terminating("a1"), pod("b1")]);
    for kind in FrontendKind::ALL {
        assert_eq!(world.dial("outside", kind), to(["b1"]));
    }
}

#[test]
fn l1_established_connections_to_a_backend_that_goes_live_until_they_end() {
    for protocol in [Tcp, Sctp] {
        let mut world = World::web(json!({}), [pod("a1")]);
        let flows = begin(&world, protocol, to(["a1"]));
        for step in [vec![terminating("a1"), pod("b1")], vec![pod("b1")], vec![]] {
            world.endpoints(step);
            next(&world, &flows, to(["a1"]));
        }
        for flow in &flows {
            world.memory.disconnect(flow);
        }
        next(&world, &flows, Passed);
    }
}

#[test]
fn l1_udp_leaves_a_backend_that_terminates_when_there_is_another() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let flows = begin(&world, Udp, to(["a1"]));
    world.endpoints([terminating("a1")]);
    next(&world, &flows, to(["a1"]));
    world.endpoints([terminating("a1"), pod("b1")]);
    next(&world, &flows, to(["b1"]));
}

#[test]
fn l2_udp_flows_choose_again_when_their_backend_is_removed() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let flows = begin(&world, Udp, to(["a1"]));
    world.endpoints([pod("b1")]);
    next(&world, &flows, to(["b1"]));
}

#[test]
fn l2_udp_flows_are_served_when_a_service_goes_from_none_to_some() {
    let mut world = World::web(json!({}), []);
    let flows = begin(&world, Udp, Rejected);
    world.endpoints([pod("a1")]);
    next(&world, &flows, to(["a1"]));
}

#[test]
fn l2_udp_flows_that_were_dropped_are_served_when_a_backend_appears_here() {
    let mut world = World::web(json!({ "externalTrafficPolicy": "Local" }), [pod("b1")]);
    let flow = flow("outside", at(IpFamily::V4, NodePort), Udp);
    assert_eq!(world.connect(&flow), Dropped);
    world.endpoints([pod("a1"), pod("b1")]);
    assert_eq!(world.send(&flow), to(["a1"]));
}

#[test]
fn l2_udp_flows_are_cut_when_a_service_goes_from_some_to_none() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let flows = begin(&world, Udp, to(["a1"]));
    world.endpoints([]);
    next(&world, &flows, Rejected);
    world.endpoints([pod("a1")]);
    next(&world, &flows, to(["a1"]));
}

/// Of the flows, those to frontends of this kind.
fn to_kind(flows: &[Flow], kind: FrontendKind) -> Vec<Flow> {
    let addresses = IpFamily::ALL.map(|family| at(family, kind).parse().unwrap());
    flows.iter().filter(|flow| addresses.contains(&flow.destination)).cloned().collect()
}

/// `web` without frontends of this kind.
fn without(kind: FrontendKind) -> Value {
    let port = |p: Protocol| json!({ "name": p.as_lower_str(), "protocol": p.as_str(), "port": 80 });
    match kind {
        NodePort => web(json!({ "ports": Protocol::ALL.map(port) })),
        ExternalIp => web(json!({ "externalIPs": null })),
        LoadBalancer => with(web(json!({})), json!({ "status": null })),
        other => panic!("{other:?}"),
    }
}

#[test]
fn l2_udp_flows_are_cut_when_their_frontend_is_removed() {
    for kind in [NodePort, ExternalIp, LoadBalancer] {
        let mut world = World::web(json!({}), [pod("a1")]);
        let flows = begin(&world, Udp, to(["a1"]));
        world.apply([without(kind)]);
        next(&world, &to_kind(&flows, kind), Passed);
        next(&world, &to_kind(&flows, ClusterIp), to(["a1"]));
    }
    let mut world = World::web(json!({}), [pod("a1")]);
    let flows = begin(&world, Udp, to(["a1"]));
    world.delete(&web(json!({})));
    next(&world, &flows, Passed);
}

#[test]
fn l2_udp_flows_to_a_node_port_are_cut_when_the_node_loses_the_address() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let flows = to_kind(&begin(&world, Udp, to(["a1"])), NodePort);
    let addresses = json!([{ "type": "InternalIP", "address": "10.0.0.8" }]);
    world.node(node_info(node(json!({ "status": { "addresses": addresses } })), |builder| builder));
    next(&world, &flows, Passed);
}

#[test]
fn l2_udp_flows_are_served_when_their_frontend_is_added() {
    for kind in [NodePort, ExternalIp, LoadBalancer] {
        let mut world = World::new(Setup::default(), [without(kind)].into_iter().chain(slices([pod("a1")])));
        let flows = to_kind(&flows(Udp), kind);
        for flow in &flows {
            assert_eq!(world.connect(flow), Passed);
        }
        world.apply([web(json!({}))]);
        next(&world, &flows, to(["a1"]));
    }
}

#[test]
fn l2_udp_flows_are_cut_when_their_client_may_not_any_more() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let flow = flow("outside", at(IpFamily::V4, LoadBalancer), Udp);
    assert_eq!(world.connect(&flow), to(["a1"]));
    world.apply([web(json!({ "loadBalancerSourceRanges": ["198.18.0.0/15"] }))]);
    assert_eq!(world.send(&flow), Dropped);
}

#[test]
fn l2_other_udp_flows_are_not_cut() {
    let mut world = World::web(json!({}), [pod("a1"), pod("b1"), pod("b2")]);
    let flows = flows(Udp);
    let before: Vec<_> = flows.iter().map(|flow| world.connect(flow)).collect();
    world.endpoints([pod("b1"), pod("b2")]);
    for (flow, before) in flows.iter().zip(before) {
        let now = world.send(flow);
        assert!(if before == to(["a1"]) { now != before } else { now == before }, "{before:?}, {now:?}");
    }
}

#[test]
fn l3_adding_a_backend_moves_no_established_connection() {
    for protocol in Protocol::ALL {
        let mut world = World::web(json!({}), [pod("a1")]);
        let flows = begin(&world, protocol, to(["a1"]));
        world.endpoints((1..=9).map(|i| pod(&format!("b{i}"))).chain([pod("a1")]));
        next(&world, &flows, to(["a1"]));
    }
}

#[test]
fn l3_a_change_of_another_service_moves_no_established_connection() {
    for protocol in Protocol::ALL {
        let mut world = World::web(json!({}), [pod("a1"), pod("b1")]);
        let flows = flows(protocol);
        let before: Vec<_> = flows.iter().map(|flow| world.connect(flow)).collect();
        let other = service("other", "10.96.0.20", json!({}));
        world.apply([other.clone(), slice_of("other", &[pod("a1")])]);
        world.apply([slice_of("other", &[pod("b1")])]);
        world.delete(&other);
        assert_eq!(flows.iter().map(|flow| world.send(flow)).collect::<Vec<_>>(), before);
    }
}

#[test]
fn l3_a_change_of_the_service_that_leaves_the_backend_moves_no_established_connection() {
    let more = ["198.51.100.1", "198.51.100.2", "2001:db8:1::1"];
    for protocol in Protocol::ALL {
        let mut world = World::web(json!({}), [pod("a1"), pod("b1")]);
        let flows = flows(protocol);
        let before: Vec<_> = flows.iter().map(|flow| world.connect(flow)).collect();
        world.apply([web(json!({ "sessionAffinity": "ClientIP", "externalIPs": more }))]);
        assert_eq!(flows.iter().map(|flow| world.send(flow)).collect::<Vec<_>>(), before);
    }
}

#[test]
fn l3_writing_everything_anew_moves_no_established_connection() {
    for protocol in Protocol::ALL {
        let mut world = World::web(json!({}), [pod("a1")]);
        let flows = begin(&world, protocol, to(["a1"]));
        world.faulty.fail_next(Call::Apply, 1, ErrorKind::Conflict);
        world.endpoints([pod("a1"), pod("b1"), pod("b2"), pod("b3")]);
        assert_eq!(world.faulty.calls(Call::Replace), 2, "at the start, and after the conflict");
        next(&world, &flows, to(["a1"]));
    }
}
