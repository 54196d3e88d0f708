use std::num::NonZeroU16;

use super::*;
use crate::model::{Endpoint, EndpointPort, IpFamily, Protocol, ServicePort, ServiceType};

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn node() -> NodeInfo {
    NodeInfo::builder("node-a").address("10.0.0.1".parse().unwrap()).build().unwrap()
}

fn service(name: &str, ip: &str, number: u16, created: i64) -> Service {
    Service::builder("demo", name)
        .service_type(ServiceType::NodePort)
        .cluster_ip(ip.parse().unwrap())
        .port(ServicePort::new("", Protocol::Tcp, port(number)).with_node_port(port(30000 + number)))
        .created(created)
        .build()
        .unwrap()
}

fn slice(name: &str, service: &str, address: &str) -> EndpointSlice {
    EndpointSlice::builder("demo", name, service, IpFamily::V4)
        .port(EndpointPort::new("", Protocol::Tcp, port(8080)))
        .endpoint(Endpoint::new(address.parse().unwrap()))
        .build()
        .unwrap()
}

fn cluster(changes: impl IntoIterator<Item = Change>) -> Cluster {
    let mut cluster = Cluster::new(node());
    for change in changes {
        cluster.change(change);
    }
    cluster
}

#[test]
fn k2_the_order_of_changes_never_matters() {
    let changes = [
        Change::Service(service("a", "10.96.0.1", 80, 1)),
        Change::EndpointSlice(slice("a-1", "a", "10.244.1.2")),
        Change::Service(service("b", "10.96.0.1", 80, 2)),
    ];
    let mut forwards = cluster(changes.clone());
    let mut backwards = cluster(changes.into_iter().rev());
    forwards.take_delta();
    backwards.take_delta();
    assert!(forwards.table().same_routes(backwards.table()));
    assert!(forwards.table().routes().all(|route| &*route.service_port.service == "a"));
}

#[test]
fn f5_the_older_claim_keeps_a_frontend_and_the_other_takes_over_when_it_goes() {
    let mut cluster = cluster([
        Change::Service(service("young", "10.96.0.1", 80, 2)),
        Change::Service(service("old", "10.96.0.1", 80, 1)),
    ]);
    cluster.take_delta();
    let owner = |cluster: &Cluster| {
        let frontend = Frontend::ip("10.96.0.1".parse().unwrap(), port(80), Protocol::Tcp);
        cluster.table().get(&frontend).unwrap().service_port.service.to_string()
    };
    assert_eq!(owner(&cluster), "old");
    let conflicts = cluster.conflicts();
    assert_eq!(conflicts.len(), 2, "the cluster IP and the node port");
    assert_eq!(&*conflicts[0].loser.service, "young");
    let old = service("old", "10.96.0.1", 80, 1);
    cluster.change(Change::RemoveService(old.name().clone()));
    cluster.take_delta();
    assert_eq!(owner(&cluster), "young");
    assert!(cluster.conflicts().is_empty());
}

#[test]
fn f5_conflicts_are_told_in_order_and_once() {
    let twice = Service::builder("demo", "c")
        .cluster_ip("10.96.0.9".parse().unwrap())
        .external_ip("10.96.0.1".parse().unwrap())
        .load_balancer_ip("10.96.0.1".parse().unwrap())
        .port(ServicePort::new("", Protocol::Tcp, port(80)))
        .build()
        .unwrap();
    let mut cluster = cluster([
        Change::Service(twice),
        Change::Service(service("b", "10.96.0.1", 80, 2)),
        Change::Service(service("a", "10.96.0.1", 80, 1)),
    ]);
    cluster.take_delta();
    let losers: Vec<_> = cluster
        .conflicts()
        .iter()
        .filter(|c| c.frontend.address != crate::route::FrontendAddress::NodePort(IpFamily::V4))
        .map(|c| c.loser.service.to_string())
        .collect();
    assert_eq!(losers, ["b", "c"]);
}

#[test]
fn o5_a_changed_port_or_address_leaves_nothing_of_the_old_frontend() {
    let mut cluster = cluster([Change::Service(service("a", "10.96.0.1", 80, 1))]);
    cluster.take_delta();
    cluster.change(Change::Service(service("a", "10.96.0.2", 81, 1)));
    let delta = cluster.take_delta().unwrap();
    assert_eq!(delta.removals.len(), 2);
    assert_eq!(delta.upserts.len(), 2);
    assert_eq!(cluster.table().len(), 2);
}

#[test]
fn a_change_that_means_nothing_makes_no_delta() {
    let mut cluster = cluster([Change::Service(service("a", "10.96.0.1", 80, 1))]);
    assert!(cluster.take_delta().is_some());
    cluster.change(Change::Service(service("a", "10.96.0.1", 80, 1)));
    cluster.change(Change::EndpointSlice(slice("x", "unknown", "10.244.1.2")));
    assert_eq!(cluster.take_delta(), None);
}

#[test]
fn a_removed_endpoint_is_named_in_the_delta() {
    let mut cluster = cluster([
        Change::Service(service("a", "10.96.0.1", 80, 1)),
        Change::EndpointSlice(slice("a-1", "a", "10.244.1.2")),
    ]);
    cluster.take_delta();
    cluster.change(Change::EndpointSlice(slice("a-1", "a", "10.244.1.3")));
    let delta = cluster.take_delta().unwrap();
    let removed: Vec<_> = delta.removed_backends.iter().map(|r| r.backend.to_string()).collect();
    assert_eq!(removed, ["10.244.1.2:8080", "10.244.1.2:8080"], "once for each frontend");
}

#[test]
fn a_slice_that_changes_hands_leaves_its_old_service() {
    let mut cluster = cluster([
        Change::Service(service("a", "10.96.0.1", 80, 1)),
        Change::Service(service("b", "10.96.0.2", 81, 1)),
        Change::EndpointSlice(slice("s", "a", "10.244.1.2")),
    ]);
    cluster.take_delta();
    cluster.change(Change::EndpointSlice(slice("s", "b", "10.244.1.2")));
    cluster.take_delta();
    let mut counts: Vec<_> = cluster
        .table()
        .routes()
        .map(|route| (route.service_port.service.to_string(), route.internal.backends.len()))
        .collect();
    counts.sort();
    counts.dedup();
    assert_eq!(counts, [("a".to_owned(), 0), ("b".to_owned(), 1)]);
}

#[test]
fn a_snapshot_removes_what_it_does_not_name() {
    let mut cluster = cluster([
        Change::Service(service("a", "10.96.0.1", 80, 1)),
        Change::EndpointSlice(slice("a-1", "a", "10.244.1.2")),
    ]);
    cluster.take_delta();
    cluster.change(Change::Snapshot {
        services: vec![service("b", "10.96.0.2", 81, 1)],
        slices: vec![slice("b-1", "b", "10.244.1.3")],
    });
    cluster.take_delta();
    assert_eq!(cluster.table().len(), 2);
    assert_eq!(cluster.service_count(), 1);
    assert_eq!(cluster.slice_owner.len(), 1);
}
