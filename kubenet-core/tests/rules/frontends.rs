//! [F1] to [F4]: what clients dial.

use kubenet_core::{
    model::{NodePortAddresses, Protocol::Tcp},
    route::FrontendKind::{self, ClusterIp, ExternalIp, LoadBalancer, NodePort},
};
use serde_json::{Value, json};

use crate::{
    manifest::{node, pod, service, slice_of, slices, web, with},
    world::{Dropped, Passed, Setup, World, node_a, node_info, to},
};

/// The ports of `web` without node ports.
fn no_node_ports() -> Value {
    let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 80 });
    json!(["TCP", "UDP", "SCTP"].map(port))
}

/// `web` with these ingress addresses of its load balancer.
fn web_behind(ingress: Value) -> World {
    let object = with(web(json!({})), json!({ "status": { "loadBalancer": { "ingress": ingress } } }));
    World::new(Setup::default(), [object].into_iter().chain(slices([pod("a1")])))
}

fn answers(world: &World) -> Vec<FrontendKind> {
    FrontendKind::ALL.into_iter().filter(|kind| world.dial("outside", *kind) == to(["a1"])).collect()
}

#[test]
fn f1_a_service_answers_on_its_cluster_ips() {
    let spec = json!({ "type": "ClusterIP", "externalIPs": null, "ports": no_node_ports() });
    let object = with(web(spec), json!({ "status": null }));
    let world = World::new(Setup::default(), [object].into_iter().chain(slices([pod("a1")])));
    assert_eq!(answers(&world), [ClusterIp]);
    assert_eq!(world.table().len(), 6, "each address and protocol, and nothing else");
}

#[test]
fn f2_a_service_answers_on_its_external_ips() {
    let spec = json!({ "externalIPs": ["198.51.100.1", "198.51.100.2", "2001:db8:1::1"] });
    let world = World::web(spec, [pod("a1")]);
    assert_eq!(world.dial("outside", ExternalIp), to(["a1"]));
    assert_eq!(world.packet("outside", "198.51.100.2:80", Tcp), to(["a1"]));
    assert_eq!(world.packet("outside", "198.51.100.3:80", Tcp), Passed);
    assert_eq!(World::web(json!({ "externalIPs": null }), [pod("a1")]).dial("outside", ExternalIp), Passed);
}

#[test]
fn f3_a_service_answers_on_its_load_balancers_addresses() {
    let world = web_behind(json!([
        { "ip": "192.0.2.1" },
        { "ip": "192.0.2.2", "ipMode": "VIP" },
        { "ip": "2001:db8:2::1", "ipMode": "VIP" },
        { "hostname": "lb.example.org" },
    ]));
    assert_eq!(world.dial("outside", LoadBalancer), to(["a1"]));
    assert_eq!(world.packet("outside", "192.0.2.2:80", Tcp), to(["a1"]));
}

#[test]
fn f3_addresses_of_mode_proxy_are_the_load_balancers_own() {
    let world = web_behind(json!([
        { "ip": "192.0.2.1", "ipMode": "Proxy" },
        { "ip": "2001:db8:2::1", "ipMode": "Proxy" },
    ]));
    for client in ["outside", "a9", "node-a"] {
        assert_eq!(world.dial(client, LoadBalancer), Passed, "{client} goes through the load balancer");
    }
    assert_eq!(answers(&world), [ClusterIp, NodePort, ExternalIp]);
}

#[test]
fn f3_ingress_addresses_count_whatever_the_type_says() {
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        let world = World::web(json!({ "type": kind, "ports": no_node_ports() }), [pod("a1")]);
        assert_eq!(world.dial("outside", LoadBalancer), to(["a1"]), "{kind}");
    }
}

#[test]
fn f3_load_balancer_ip_of_the_spec_never_counts() {
    let world = World::web(json!({ "loadBalancerIP": "192.0.2.99" }), [pod("a1")]);
    assert_eq!(world.packet("outside", "192.0.2.99:80", Tcp), Passed);
    assert_eq!(world.dial("outside", LoadBalancer), to(["a1"]));
}

#[test]
fn f4_a_service_answers_on_its_node_port_when_it_has_one() {
    for kind in ["NodePort", "LoadBalancer"] {
        let with_node_ports = World::web(json!({ "type": kind }), [pod("a1")]);
        assert_eq!(with_node_ports.dial("outside", NodePort), to(["a1"]), "{kind}");
        assert_eq!(with_node_ports.packet("outside", "10.0.0.2:30080", Tcp), Passed, "another node's");
        let without = World::web(json!({ "type": kind, "ports": no_node_ports() }), [pod("a1")]);
        assert_eq!(without.dial("outside", NodePort), Passed, "{kind}");
    }
}

#[test]
fn f4_without_allocated_node_ports_the_load_balancers_addresses_answer_alone() {
    let spec = json!({ "allocateLoadBalancerNodePorts": false, "ports": no_node_ports() });
    let world = World::web(spec, [pod("a1")]);
    assert_eq!(answers(&world), [ClusterIp, ExternalIp, LoadBalancer]);
}

/// Which of the addresses of a node with several have node ports.
fn node_port_addresses(choice: NodePortAddresses) -> Vec<&'static str> {
    let node = node_a(|builder| {
        let more = ["192.168.7.1", "fd00:77::1"].map(|address| address.parse().unwrap());
        more.into_iter().fold(builder, |b, address| b.address(address)).node_port_addresses(choice)
    });
    let world = World::web_on(Setup { node, ..Setup::default() }, json!({}), [pod("a1")]);
    let mut all = vec!["10.0.0.1:30080", "192.168.7.1:30080", "[fd00:10::1]:30080", "[fd00:77::1]:30080"];
    all.retain(|address| world.packet("outside", address, Tcp) == to(["a1"]));
    all
}

#[test]
fn f4_node_ports_answer_on_all_addresses_of_the_node_by_default() {
    assert_eq!(node_port_addresses(NodePortAddresses::default()).len(), 4);
}

#[test]
fn f4_node_ports_answer_on_the_primary_address_of_each_family() {
    let answering = node_port_addresses(NodePortAddresses::Primary);
    assert_eq!(answering, ["10.0.0.1:30080", "[fd00:10::1]:30080"]);
}

#[test]
fn f4_node_ports_answer_on_addresses_in_the_chosen_ranges() {
    let chosen = |cidrs: &[&str]| {
        node_port_addresses(NodePortAddresses::Cidrs(cidrs.iter().map(|c| c.parse().unwrap()).collect()))
    };
    assert_eq!(chosen(&["192.168.0.0/16"]), ["192.168.7.1:30080"]);
    assert_eq!(chosen(&["10.0.0.0/8", "fd00:77::/32"]), ["10.0.0.1:30080", "[fd00:77::1]:30080"]);
    assert_eq!(chosen(&["172.16.0.0/12"]), [""; 0]);
}

#[test]
fn f4_node_ports_follow_the_addresses_of_the_node() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let addresses = json!([
        { "type": "ExternalIP", "address": "203.0.113.77" },
        { "type": "InternalIP", "address": "10.0.0.8" },
    ]);
    world.node(node_info(node(json!({ "status": { "addresses": addresses } })), |builder| builder));
    for answering in ["10.0.0.8:30080", "203.0.113.77:30080"] {
        assert_eq!(world.packet("outside", answering, Tcp), to(["a1"]));
    }
    assert_eq!(world.dial("outside", NodePort), Passed, "the addresses that it had");
}

#[test]
fn f4_loopback_node_ports_answer_when_asked_for_and_on_ipv4_only() {
    let loopback = |asked: bool, choice: NodePortAddresses| {
        let node = node_a(|builder| builder.localhost_node_ports(asked).node_port_addresses(choice));
        let world = World::web_on(Setup { node, ..Setup::default() }, json!({}), [pod("a1")]);
        assert_eq!(world.packet("::1", "[::1]:30080", Tcp), Passed);
        ["127.0.0.1", "127.7.7.7"].map(|ip| world.packet("127.0.0.1", &format!("{ip}:30080"), Tcp))
    };
    let default = World::web(json!({}), [pod("a1")]);
    assert_eq!(default.packet("127.0.0.1", "127.0.0.1:30080", Tcp), Passed, "off unless asked for");
    assert_eq!(loopback(false, NodePortAddresses::All), [Passed, Passed]);
    assert_eq!(loopback(true, NodePortAddresses::All), [to(["a1"]), to(["a1"])]);
    assert_eq!(loopback(true, NodePortAddresses::Primary), [Passed, Passed], "left out by the choice");
    let one = NodePortAddresses::Cidrs(vec!["127.0.0.1/32".parse().unwrap()]);
    assert_eq!(loopback(true, one), [to(["a1"]), Passed]);
}

#[test]
fn n1_node_ports_on_loopback_addresses_are_for_the_node_alone() {
    let node = node_a(|builder| builder.localhost_node_ports(true));
    let world = World::web_on(Setup { node, ..Setup::default() }, json!({}), [pod("a1")]);
    for client in ["a9", "b9", "outside"] {
        assert_eq!(world.packet(client, "127.0.0.1:30080", Tcp), Dropped, "{client}");
    }
    for client in ["127.0.0.1", "node-a"] {
        assert_eq!(world.packet(client, "127.0.0.1:30080", Tcp), to(["a1"]), "{client}");
    }
}

#[test]
fn f4_external_ips_and_load_balancer_addresses_win_over_a_node_port() {
    let node_port = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30000 }] });
    let node_port = service("by-node-port", "10.96.0.1", node_port);
    let on_the_address = json!({ "externalIPs": ["10.0.0.1"], "ports": [{ "port": 30000 }] });
    let by_external_ip = service("by-address", "10.96.0.2", on_the_address);
    let ingress = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "10.0.0.1" }] } } });
    let by_balancer =
        with(service("by-address", "10.96.0.2", json!({ "ports": [{ "port": 30000 }] })), ingress);
    for object in [by_external_ip, by_balancer] {
        let slices = [slice_of("by-node-port", &[pod("b1")]), slice_of("by-address", &[pod("c1")])];
        let objects = [node_port.clone(), object.clone()].into_iter().chain(slices);
        let mut world = World::new(Setup::default(), objects);
        assert_eq!(world.packet("outside", "10.0.0.1:30000", Tcp), to(["c1"]));
        assert_eq!(world.router.status().conflicts, [], "two frontends, not one");
        world.delete(&object);
        assert_eq!(world.packet("outside", "10.0.0.1:30000", Tcp), to(["b1"]));
    }
}
