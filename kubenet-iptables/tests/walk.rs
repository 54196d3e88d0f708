//! How many rules a first packet meets, as planned. Needs no root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{net::Ipv4Addr, num::NonZeroU16, sync::Arc};

use kubenet_core::{
    model::{IpFamily, LocalDetector, Protocol},
    route::{
        Backend, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteTable,
        ServicePortName, Target, WhenEmpty,
    },
};
use kubenet_iptables::IptablesDatapath;

/// This many Services with cluster IPs as an API server hands them out, 2,000 of them with node ports at most, and
/// one of them with many endpoints.
fn table(services: u32, endpoints: u32) -> RouteTable {
    let port = |n: u32| NonZeroU16::new(n.try_into().unwrap()).unwrap();
    let mut node = NodeRouting::default();
    node.addresses = vec![[192, 0, 2, 1].into()];
    node.node_port_addresses = node.addresses.clone();
    node.local_detector = LocalDetector::Cidrs(vec!["10.244.0.0/14".parse().unwrap()]);
    let routes = (0..services).flat_map(|n| {
        let backends = 0..if n == 0 { endpoints } else { 1 };
        let backends =
            backends.map(|i| Backend::new(Ipv4Addr::from(0x0af4_0000 + n + i).into(), port(8080), false));
        let target = Target { backends: backends.collect(), when_empty: WhenEmpty::Reject };
        let name = ServicePortName { namespace: "n".into(), service: n.to_string().into(), port: "".into() };
        let address = Ipv4Addr::from(0x0a60_0000 | (n.wrapping_mul(2_654_435_761) >> 12));
        let cluster_ip = Frontend::ip(address.into(), port(80), Protocol::Tcp);
        let node_port = Frontend::node_port(IpFamily::V4, port(30_000 + n % 2_000), Protocol::Udp);
        let route = |frontend, kind, masquerade| {
            Arc::new(Route::new(frontend, kind, name.clone(), target.clone(), masquerade))
        };
        let not_pods = Masquerade { pods: false, node: true, outside: true };
        let mut routes = vec![route(cluster_ip, FrontendKind::ClusterIp, not_pods)];
        if n < 2_000 {
            routes.push(route(node_port, FrontendKind::NodePort, Masquerade::ALWAYS));
        }
        routes
    });
    RouteTable::new(Revision(1), Arc::new(node), routes)
}

#[test]
fn a_first_packet_meets_about_as_many_rules_among_100_000_services_as_among_100() {
    let builder = IptablesDatapath::builder().families([IpFamily::V4]);
    let walk =
        |services, endpoints| builder.preview(&table(services, endpoints), None).unwrap().longest_walk();
    let walks = [1, 100, 1_000, 20_000, 100_000].map(|services| walk(services, 10));
    assert!(walks[0] >= 10 && walks.iter().all(|walk| *walk <= 80), "{walks:?}");
    println!("{walks:?}");
    let many = walk(1_000, 5_000);
    assert!(many <= walks[2] + 3 * 8 + 32, "{many} after {walks:?}");
}

#[test]
fn a_change_is_told_with_the_walk_that_it_ends_in() {
    let builder = IptablesDatapath::builder().families([IpFamily::V4]);
    let whole = builder.preview(&table(50, 10), None).unwrap().longest_walk();
    let (small, large) = (table(1, 1), table(50, 10));
    let grown = builder.preview(&large, Some(&small)).unwrap();
    assert_eq!(grown.longest_walk(), whole);
    assert!(builder.preview(&small, Some(&large)).unwrap().longest_walk() < whole);
    assert_eq!(builder.preview(&large, Some(&large)).unwrap().longest_walk(), whole);
}
