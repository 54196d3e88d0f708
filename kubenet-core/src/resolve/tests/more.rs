//! External frontends, topology, weights, source ranges, and the options of the node.

use ipnet::IpNet;

use super::*;
use crate::{
    model::{Affinity, Algorithm, LocalDetector, NodePortAddresses},
    resolve::{Topology, decide, resolve_health},
    route::{FrontendKind, Origin},
};

fn ip(address: &str) -> std::net::IpAddr {
    address.parse().unwrap()
}

fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn load_balancer() -> ServiceBuilder {
    service()
        .service_type(ServiceType::LoadBalancer)
        .external_ip(ip("192.0.2.1"))
        .load_balancer_ip(ip("192.0.2.2"))
}

fn on<'a>(table: &'a RouteTable, address: &str) -> &'a Route {
    table.get(&Frontend::ip(ip(address), port(80), Protocol::Tcp)).unwrap()
}

fn weights(target: &Target) -> Vec<u16> {
    target.backends.iter().map(|b| b.weight.get()).collect()
}

#[test]
fn f2_f3_external_ips_and_load_balancer_addresses_follow_the_external_policy() {
    let endpoints = [endpoint("10.244.1.2", HERE), endpoint("10.244.2.2", "node-b")];
    let table = web(load_balancer().external_traffic_policy(TrafficPolicy::Local), endpoints);
    for (address, kind) in
        [("192.0.2.1", FrontendKind::ExternalIp), ("192.0.2.2", FrontendKind::LoadBalancer)]
    {
        let route = on(&table, address);
        assert_eq!(route.kind, kind);
        assert_eq!(addresses(&route.external), ["10.244.1.2"]);
        assert_eq!(addresses(&route.internal), ["10.244.1.2", "10.244.2.2"]);
        assert_eq!(route.masquerade, Masquerade { pods: false, node: true, outside: false });
    }
    assert_eq!(table.len(), 4);
}

#[test]
fn o4_addresses_of_a_family_without_a_cluster_ip_have_no_frontend() {
    let table = web(load_balancer().external_ip(ip("fd00::9")).load_balancer_ip(ip("fd00::8")), []);
    assert_eq!(table.len(), 4);
    assert!(table.routes().all(|route| route.frontend.family() == IpFamily::V4));
}

#[test]
fn e5_the_external_policy_counts_for_cluster_ip_services_only_with_external_ips() {
    let service = || {
        Service::builder("demo", "web")
            .cluster_ip(ip(VIP))
            .port(ServicePort::new("http", Protocol::Tcp, port(80)))
            .load_balancer_ip(ip("192.0.2.2"))
            .external_traffic_policy(TrafficPolicy::Local)
    };
    let elsewhere = || [endpoint("10.244.2.2", "node-b")];
    let table = web(service(), elsewhere());
    assert_eq!(addresses(&on(&table, "192.0.2.2").external), ["10.244.2.2"], "ingress left over from before");
    let table = web(service().external_ip(ip("192.0.2.1")), elsewhere());
    assert_eq!(on(&table, "192.0.2.2").external.when_empty, WhenEmpty::Drop);
    assert_eq!(on(&table, "192.0.2.1").external.when_empty, WhenEmpty::Drop);
}

#[test]
fn f5_an_address_in_two_fields_of_one_service_is_filtered_and_contests_nothing() {
    let twice = load_balancer().external_ip(ip("192.0.2.2")).source_range(cidr("198.51.100.0/24"));
    let mut cluster = Cluster::new(node());
    cluster.change(Change::Service(twice.build().unwrap()));
    cluster.take_delta();
    assert_eq!(on(cluster.table(), "192.0.2.2").kind, FrontendKind::LoadBalancer);
    assert_eq!(cluster.conflicts(), []);
}

/// The topology that is chosen in zone `a`, and the addresses that are left.
fn chosen(endpoints: impl IntoIterator<Item = Endpoint>) -> (Topology, Vec<String>) {
    let node = node().into_builder().zone("a").build().unwrap();
    let service = service().build().unwrap();
    let slice = slice("web-1", endpoints);
    let decision = decide(&node, &service, &service.ports()[0], IpFamily::V4, [&slice]);
    (decision.internal.topology, addresses(&decision.internal.target))
}

#[test]
fn e3_zone_hints_count_when_every_ready_endpoint_has_one_and_one_is_for_us() {
    let (ours, both) = (endpoint("10.244.1.2", HERE), endpoint("10.244.2.2", "node-b"));
    let other = endpoint("10.244.2.3", "node-b").for_zone("b");
    let hinted = || [ours.clone().for_zone("a"), both.clone().for_zone("b").for_zone("a"), other.clone()];
    assert_eq!(chosen(hinted()), (Topology::SameZone, vec!["10.244.1.2".into(), "10.244.2.2".into()]));

    let unhinted = endpoint("10.244.2.4", "node-b");
    assert_eq!(chosen(hinted().into_iter().chain([unhinted.clone()])).0, Topology::Everywhere);
    let unready = unhinted.with_conditions(conditions(false, true, false));
    assert_eq!(chosen(hinted().into_iter().chain([unready])).0, Topology::SameZone, "not ready: not asked");
    assert_eq!(chosen([other.clone()]), (Topology::Everywhere, vec!["10.244.2.3".into()]), "none is for us");
}

#[test]
fn e3_node_hints_are_tried_before_zone_hints() {
    let here = endpoint("10.244.1.2", HERE).for_zone("a").for_node(HERE);
    let near = endpoint("10.244.2.2", "node-b").for_zone("a").for_node("node-b");
    assert_eq!(chosen([here.clone(), near.clone()]), (Topology::SameNode, vec!["10.244.1.2".into()]));
    let far = endpoint("10.244.3.2", "node-c").for_zone("b").for_node("node-c");
    assert_eq!(
        chosen([near, far]),
        (Topology::SameZone, vec!["10.244.2.2".into()]),
        "no node hint is for us"
    );
    let without_node = endpoint("10.244.2.3", "node-b").for_zone("a");
    assert_eq!(chosen([here, without_node]).0, Topology::SameZone, "not every one has a node hint");
}

#[test]
fn e3_without_a_zone_of_ours_zone_hints_are_ignored() {
    let table = web(service(), [endpoint("10.244.1.2", HERE).for_zone("a"), endpoint("10.244.2.2", "b")]);
    assert_eq!(addresses(&cluster_ip(&table).internal), ["10.244.1.2", "10.244.2.2"]);
}

#[test]
fn e3_topology_is_not_for_terminating_endpoints_nor_for_local_sets() {
    let dying = |address, node, zone| {
        endpoint(address, node).for_zone(zone).with_conditions(conditions(false, true, true))
    };
    let (topology, left) = chosen([dying("10.244.1.2", HERE, "a"), dying("10.244.2.2", "node-b", "b")]);
    assert_eq!((topology, left.len()), (Topology::Everywhere, 2));

    let node = node().into_builder().zone("a").build().unwrap();
    let local = service().internal_traffic_policy(TrafficPolicy::Local).build().unwrap();
    let slice = slice(
        "web-1",
        [endpoint("10.244.1.2", HERE).for_zone("b"), endpoint("10.244.2.2", "b").for_zone("a")],
    );
    let table = resolve(&node, [&local], [&slice]);
    assert_eq!(addresses(&cluster_ip(&table).internal), ["10.244.1.2"]);
    assert_eq!(addresses(&node_port(&table).internal), ["10.244.2.2"]);
}

#[test]
fn weights_are_reduced_and_weight_0_counts_as_not_ready() {
    let weighted = |values: &[u16]| {
        let endpoints = (2..).zip(values).map(|(n, w)| {
            Endpoint::new([10, 244, 1, n].into()).on_node(HERE).with_weight(*w).for_zone("nowhere")
        });
        weights(&cluster_ip(&web(service(), endpoints)).internal)
    };
    assert_eq!(weighted(&[6, 4, 2]), [3, 2, 1]);
    assert_eq!(weighted(&[7, 7]), [1, 1]);
    assert_eq!(weighted(&[1000, 0, 500]), [2, 1]);
    assert_eq!(weighted(&[0, 0]), [0u16; 0]);
}

#[test]
fn every_route_of_a_service_says_its_algorithm_and_affinity() {
    let affinity = Affinity::new(30).unwrap();
    let table = web(load_balancer().algorithm(Algorithm::Maglev).affinity(affinity), []);
    assert!(table.routes().all(|r| r.algorithm == Algorithm::Maglev && r.affinity == Some(affinity)));
    let plain = web(load_balancer(), []);
    assert!(plain.routes().all(|r| r.algorithm == Algorithm::Random && r.affinity.is_none()));
}

/// Whether outside clients, this node, and a pod may reach the load balancer's address.
fn admitted(service: ServiceBuilder) -> [bool; 3] {
    let table = web(service, []);
    let route = on(&table, "192.0.2.2");
    assert!(on(&table, "192.0.2.1").source_ranges.is_none(), "external IPs are not filtered");
    assert!(node_port(&table).source_ranges.is_none() && cluster_ip(&table).source_ranges.is_none());
    [(Origin::Outside, "198.51.100.7"), (Origin::Node, "10.0.0.1"), (Origin::Pod, "10.244.1.9")]
        .map(|(origin, source)| route.admits(origin, ip(source)))
}

#[test]
fn r1_source_ranges_filter_load_balancer_addresses_alone() {
    let ranges = |ranges: &[&str]| {
        let service = ranges.iter().fold(load_balancer(), |service, range| service.source_range(cidr(range)));
        admitted(service)
    };
    assert_eq!(ranges(&[]), [true; 3]);
    assert_eq!(ranges(&["198.51.100.0/24"]), [true, false, false]);
    assert_eq!(ranges(&["203.0.113.0/24"]), [false; 3]);
    assert_eq!(ranges(&["203.0.113.0/24", "0.0.0.0/0"]), [true; 3]);
    assert_eq!(ranges(&["fd00::/8"]), [true; 3], "ranges of the other family only");
    assert_eq!(ranges(&["::/0", "203.0.113.0/24"]), [false; 3]);
}

#[test]
fn r1_ranges_that_cannot_be_read_admit_nobody() {
    assert_eq!(admitted(load_balancer().unreadable_source_range()), [false; 3]);
    let and = |range| load_balancer().unreadable_source_range().source_range(cidr(range));
    assert_eq!(admitted(and("fd00::/8")), [false; 3], "only bad ones remain in this family");
    assert_eq!(admitted(and("198.51.100.0/24")), [true, false, false]);
}

#[test]
fn r2_the_node_may_when_a_range_holds_one_of_its_addresses_and_pods_go_by_their_own() {
    assert_eq!(admitted(load_balancer().source_range(cidr("10.0.0.0/24"))), [false, true, false]);
    assert_eq!(admitted(load_balancer().source_range(cidr("10.244.0.0/16"))), [false, false, true]);
}

#[test]
fn s3_masquerade_all_replaces_the_source_of_all_cluster_ip_traffic_and_of_nothing_else() {
    let node = node().into_builder().masquerade_all(true).build().unwrap();
    let local = service().external_traffic_policy(TrafficPolicy::Local).build().unwrap();
    let table = resolve(&node, [&local], []);
    assert_eq!(cluster_ip(&table).masquerade, Masquerade::ALWAYS);
    assert_eq!(node_port(&table).masquerade, Masquerade { pods: false, node: true, outside: false });
}

#[test]
fn s5_with_interface_detectors_the_node_is_masqueraded_in_both_families() {
    for detector in [LocalDetector::Bridge("cni0".into()), LocalDetector::InterfacePrefix("cali".into())] {
        let node = NodeInfo::builder(HERE).local_detector(detector).build().unwrap();
        let dual = service().cluster_ip(ip("fd00::10")).build().unwrap();
        let table = resolve(&node, [&dual], []);
        for route in table.routes().filter(|route| route.kind == FrontendKind::ClusterIp) {
            assert_eq!(route.masquerade, Masquerade { pods: false, node: true, outside: true });
        }
    }
}

#[test]
fn f4_loopback_node_ports_answer_only_when_asked_for_and_chosen() {
    let answers = |chosen: NodePortAddresses, asked: bool| {
        let node = node().into_builder().node_port_addresses(chosen).localhost_node_ports(asked);
        let table = resolve(&node.build().unwrap(), [&service().build().unwrap()], []);
        ["127.0.0.1", "127.9.9.9", "::1"]
            .map(|address| table.lookup(ip(address), port(30080), Protocol::Tcp).is_some())
    };
    let cidrs = |texts: &[&str]| NodePortAddresses::Cidrs(texts.iter().map(|text| cidr(text)).collect());
    assert_eq!(answers(NodePortAddresses::All, false), [false; 3]);
    assert_eq!(answers(NodePortAddresses::All, true), [true, true, false], "IPv4 only");
    assert_eq!(answers(NodePortAddresses::Primary, true), [false; 3]);
    assert_eq!(answers(cidrs(&["10.0.0.0/8"]), true), [false; 3]);
    assert_eq!(answers(cidrs(&["127.0.0.1/32"]), true), [true, false, false]);
    assert_eq!(answers(cidrs(&["0.0.0.0/0"]), true), [true, true, false]);
}

#[test]
fn n4_a_cluster_ip_is_known_whatever_the_port() {
    let table = web(load_balancer(), []);
    assert!(table.has_cluster_ip(ip(VIP)));
    assert!(!table.has_cluster_ip(ip("192.0.2.1")), "external IPs have ports of others, too");
    assert!(!table.has_cluster_ip(ip("10.96.0.11")));
}

#[test]
fn h3_only_ready_endpoints_here_count_by_address_over_all_ports() {
    let service = load_balancer()
        .external_traffic_policy(TrafficPolicy::Local)
        .health_check_node_port(port(32000))
        .cluster_ip(ip("fd00::10"));
    let dying = endpoint("10.244.1.4", HERE).with_conditions(conditions(false, true, true));
    let first = slice(
        "a",
        [endpoint("10.244.1.2", HERE), endpoint("10.244.1.3", HERE), endpoint("10.244.2.2", "b"), dying],
    );
    let again = EndpointSlice::builder("demo", "b", "web", IpFamily::V4)
        .port(EndpointPort::new("metrics", Protocol::Tcp, port(9090)))
        .endpoint(endpoint("10.244.1.9", HERE))
        .build()
        .unwrap();
    let v6 = EndpointSlice::builder("demo", "c", "web", IpFamily::V6)
        .port(EndpointPort::new("http", Protocol::Tcp, port(8080)))
        .endpoint(endpoint("fd00::1:2", HERE))
        .build()
        .unwrap();
    let health = resolve_health(&node(), &service.build().unwrap(), [&first, &again, &v6]).unwrap();
    assert_eq!((health.port, health.local_endpoints), (port(32000), 2));
    assert_eq!(health.service.to_string(), "demo/web");
    assert!(resolve_health(&node(), &load_balancer().build().unwrap(), [&first]).is_none());
}
