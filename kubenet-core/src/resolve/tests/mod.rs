mod more;

use std::num::NonZeroU16;

use super::resolve;
use crate::{
    cluster::{Change, Cluster},
    model::{
        Conditions, Endpoint, EndpointPort, EndpointSlice, IpFamily, NodeInfo, Protocol, Service,
        ServiceBuilder, ServicePort, ServiceType, TrafficPolicy,
    },
    route::{BackendState, Frontend, Masquerade, Route, RouteTable, Target, WhenEmpty},
};

const HERE: &str = "node-a";
const VIP: &str = "10.96.0.10";

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn node() -> NodeInfo {
    NodeInfo::builder(HERE)
        .address("10.0.0.1".parse().unwrap())
        .cluster_cidr("10.244.0.0/16".parse().unwrap())
        .build()
        .unwrap()
}

fn service() -> ServiceBuilder {
    Service::builder("demo", "web")
        .service_type(ServiceType::NodePort)
        .cluster_ip(VIP.parse().unwrap())
        .port(ServicePort::new("http", Protocol::Tcp, port(80)).with_node_port(port(30080)))
}

fn slice(name: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> EndpointSlice {
    EndpointSlice::builder("demo", name, "web", IpFamily::V4)
        .port(EndpointPort::new("http", Protocol::Tcp, port(8080)))
        .endpoints(endpoints)
        .build()
        .unwrap()
}

fn endpoint(address: &str, node: &str) -> Endpoint {
    Endpoint::new(address.parse().unwrap()).on_node(node)
}

fn conditions(ready: bool, serving: bool, terminating: bool) -> Conditions {
    Conditions { ready, serving, terminating }
}

fn cluster_ip(table: &RouteTable) -> &Route {
    table.get(&Frontend::ip(VIP.parse().unwrap(), port(80), Protocol::Tcp)).unwrap()
}

fn node_port(table: &RouteTable) -> &Route {
    table.get(&Frontend::node_port(IpFamily::V4, port(30080), Protocol::Tcp)).unwrap()
}

fn addresses(target: &Target) -> Vec<String> {
    target.backends.iter().map(|b| b.address.to_string()).collect()
}

fn web(service: ServiceBuilder, endpoints: impl IntoIterator<Item = Endpoint>) -> RouteTable {
    resolve(&node(), [&service.build().unwrap()], [&slice("web-1", endpoints)])
}

#[test]
fn o2_endpoints_come_from_all_slices_of_the_family_matched_by_port_name_and_protocol() {
    let other_name = EndpointSlice::builder("demo", "web-2", "web", IpFamily::V4)
        .port(EndpointPort::new("metrics", Protocol::Tcp, port(9090)))
        .port(EndpointPort { name: "http".into(), protocol: Protocol::Udp, port: Some(port(8080)) })
        .endpoint(endpoint("10.244.1.9", HERE))
        .build()
        .unwrap();
    let without_number = EndpointSlice::builder("demo", "web-3", "web", IpFamily::V4)
        .port(EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: None })
        .endpoint(endpoint("10.244.1.8", HERE))
        .build()
        .unwrap();
    let v6 = EndpointSlice::builder("demo", "web-4", "web", IpFamily::V6)
        .port(EndpointPort::new("http", Protocol::Tcp, port(8080)))
        .endpoint(endpoint("fd00::1", HERE))
        .build()
        .unwrap();
    let (a, b) = (slice("a", [endpoint("10.244.1.2", HERE)]), slice("b", [endpoint("10.244.2.2", "node-b")]));
    let table = resolve(&node(), [&service().build().unwrap()], [&b, &other_name, &without_number, &v6, &a]);
    assert_eq!(addresses(&cluster_ip(&table).internal), ["10.244.1.2", "10.244.2.2"]);
    assert_eq!(table.len(), 2, "no frontend of a family without a cluster IP");
}

#[test]
fn o2_the_same_address_in_two_slices_counts_once_and_the_one_not_terminating_wins() {
    let dying = endpoint("10.244.1.2", "node-b").with_conditions(conditions(false, true, true));
    let (a, b) = (slice("a", [dying]), slice("b", [endpoint("10.244.1.2", HERE)]));
    for order in [[&a, &b], [&b, &a]] {
        let table = resolve(&node(), [&service().build().unwrap()], order);
        let backends = &cluster_ip(&table).internal.backends;
        assert_eq!(backends.len(), 1);
        assert!(backends[0].local);
        assert_eq!(backends[0].state, BackendState::Ready);
    }
}

#[test]
fn o3_absent_conditions_mean_ready_serving_and_not_terminating() {
    assert_eq!(Conditions::from_api(None, None, None), conditions(true, true, false));
}

#[test]
fn o3_ready_wins_even_when_terminating() {
    let published = endpoint("10.244.1.2", HERE).with_conditions(conditions(true, true, true));
    let table = web(service(), [published]);
    assert_eq!(cluster_ip(&table).internal.backends[0].state, BackendState::Ready);
}

#[test]
fn o3_an_endpoint_is_local_only_when_its_whole_node_name_is_ours() {
    let unnamed = Endpoint::new("10.244.1.4".parse().unwrap());
    let table = web(
        service(),
        [
            endpoint("10.244.1.2", HERE),
            endpoint("10.244.1.3", "node-a2"),
            unnamed,
            endpoint("10.244.1.5", ""),
        ],
    );
    let local: Vec<_> = cluster_ip(&table).internal.backends.iter().map(|b| b.local).collect();
    assert_eq!(local, [true, false, false, false]);
}

#[test]
fn e1_serving_and_terminating_endpoints_are_used_only_when_none_is_ready() {
    let stopgap = endpoint("10.244.1.3", HERE).with_conditions(conditions(false, true, true));
    let unready = endpoint("10.244.1.4", HERE).with_conditions(conditions(false, true, false));
    let dead = endpoint("10.244.1.5", HERE).with_conditions(conditions(false, false, true));
    let all = [endpoint("10.244.1.2", HERE), stopgap.clone(), unready.clone(), dead.clone()];
    assert_eq!(addresses(&cluster_ip(&web(service(), all)).internal), ["10.244.1.2"]);
    let table = web(service(), [stopgap, unready, dead]);
    assert_eq!(addresses(&cluster_ip(&table).internal), ["10.244.1.3"]);
    assert_eq!(cluster_ip(&table).internal.backends[0].state, BackendState::Terminating);
}

#[test]
fn e2_the_local_set_falls_back_on_its_own_terminating_endpoints() {
    let stopgap = endpoint("10.244.1.3", HERE).with_conditions(conditions(false, true, true));
    let table = web(
        service().external_traffic_policy(TrafficPolicy::Local),
        [stopgap, endpoint("10.244.2.2", "node-b")],
    );
    assert_eq!(addresses(&node_port(&table).external), ["10.244.1.3"]);
    assert_eq!(addresses(&node_port(&table).internal), ["10.244.2.2"]);
}

#[test]
fn e4_internal_policy_local_uses_the_local_set_for_the_cluster_ip_alone() {
    let endpoints = [endpoint("10.244.1.2", HERE), endpoint("10.244.2.2", "node-b")];
    let table = web(service().internal_traffic_policy(TrafficPolicy::Local), endpoints);
    assert_eq!(addresses(&cluster_ip(&table).internal), ["10.244.1.2"]);
    assert_eq!(addresses(&cluster_ip(&table).external), ["10.244.1.2"]);
    assert_eq!(addresses(&node_port(&table).external), ["10.244.1.2", "10.244.2.2"]);
}

#[test]
fn e5_external_policy_local_short_circuits_for_pods_and_the_node() {
    let endpoints = [endpoint("10.244.1.2", HERE), endpoint("10.244.2.2", "node-b")];
    let table = web(service().external_traffic_policy(TrafficPolicy::Local), endpoints);
    assert_eq!(addresses(&node_port(&table).external), ["10.244.1.2"]);
    assert_eq!(addresses(&node_port(&table).internal), ["10.244.1.2", "10.244.2.2"]);
    assert_eq!(addresses(&cluster_ip(&table).external), ["10.244.1.2", "10.244.2.2"]);
}

#[test]
fn e6_no_usable_endpoint_anywhere_rejects_whatever_the_policy() {
    for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        let table = web(service().internal_traffic_policy(policy).external_traffic_policy(policy), []);
        for target in [&cluster_ip(&table).internal, &node_port(&table).internal, &node_port(&table).external]
        {
            assert_eq!(target.when_empty, WhenEmpty::Reject);
            assert!(target.backends.is_empty());
        }
    }
}

#[test]
fn e6_policy_local_without_local_endpoints_drops_but_rejects_nobody() {
    let elsewhere = [endpoint("10.244.2.2", "node-b")];
    let table = web(
        service().internal_traffic_policy(TrafficPolicy::Local).external_traffic_policy(TrafficPolicy::Local),
        elsewhere,
    );
    assert_eq!(cluster_ip(&table).internal.when_empty, WhenEmpty::Drop);
    assert_eq!(node_port(&table).external.when_empty, WhenEmpty::Drop);
    assert_eq!(addresses(&node_port(&table).internal), ["10.244.2.2"]);
}

#[test]
fn s1_s2_s5_external_frontends_masquerade_by_policy() {
    let masquerade = |policy| node_port(&web(service().external_traffic_policy(policy), [])).masquerade;
    assert_eq!(masquerade(TrafficPolicy::Cluster), Masquerade::ALWAYS);
    assert_eq!(masquerade(TrafficPolicy::Local), Masquerade { pods: false, node: true, outside: false });
}

#[test]
fn s3_cluster_ip_traffic_is_masqueraded_unless_it_comes_from_a_pod() {
    let table = web(service(), []);
    assert_eq!(cluster_ip(&table).masquerade, Masquerade { pods: false, node: true, outside: true });
    let blind = NodeInfo::builder(HERE).build().unwrap();
    let table = resolve(&blind, [&service().build().unwrap()], []);
    assert_eq!(cluster_ip(&table).masquerade, Masquerade::NEVER, "no detector, nobody is masqueraded");
}

#[test]
fn f1_f4_both_families_have_their_frontends() {
    let table = resolve(&node(), [&service().cluster_ip("fd00::10".parse().unwrap()).build().unwrap()], []);
    let names: Vec<_> = table.routes().map(|route| route.frontend.to_string()).collect();
    assert_eq!(
        names,
        [
            "10.96.0.10:80/TCP",
            "[fd00::10]:80/TCP",
            "node port 30080/TCP (IPv4)",
            "node port 30080/TCP (IPv6)"
        ]
    );
}
