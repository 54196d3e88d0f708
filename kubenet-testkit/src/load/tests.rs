use std::collections::BTreeSet;

use kubenet_core::{
    cluster::Cluster,
    model::{EndpointSlice, Protocol, Service, ServiceType, TrafficPolicy},
    route::FrontendKind,
};

use super::*;

fn load(seed: u64) -> Load {
    Load::new(LoadOptions { services: 200, endpoints: 6, seed, ..LoadOptions::default() }).unwrap()
}

fn cluster(load: &Load) -> Cluster {
    let mut cluster = Cluster::new(load.node().clone());
    load.objects().for_each(|change| cluster.change(change));
    cluster.take_delta();
    cluster
}

fn split(changes: impl Iterator<Item = Change>) -> (Vec<Service>, Vec<EndpointSlice>) {
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Service(service) => services.push(service),
            Change::EndpointSlice(slice) => slices.push(slice),
            _ => {}
        }
    }
    (services, slices)
}

#[test]
fn the_same_seed_gives_the_same_objects_and_the_same_churn() {
    let all = |seed| {
        let mut load = load(seed);
        let before: Vec<_> = load.objects().collect();
        let churn: Vec<_> = load.churn().take(500).collect();
        (before, churn)
    };
    assert_eq!(all(7), all(7));
    assert_ne!(all(7).0, all(8).0);
    assert_ne!(all(7).1, all(8).1);
}

#[test]
fn there_are_as_many_services_and_endpoints_as_asked_for() {
    let (services, slices) = split(load(1).objects());
    assert_eq!(services.len(), 200);
    for service in &services {
        for address in service.cluster_ips() {
            let family = IpFamily::of(*address);
            let ours = slices.iter().filter(|s| s.service() == service.name() && s.family() == family);
            assert_eq!(ours.map(|slice| slice.endpoints().len()).sum::<usize>(), 6, "{}", service.name());
        }
    }
}

#[test]
fn every_step_leads_to_the_objects_that_there_are_then() {
    let mut load = load(2);
    let mut stepped = cluster(&load);
    for _ in 0..20 {
        for _ in 0..100 {
            let step = load.step();
            assert!(!step.is_empty());
            for change in step {
                assert!(!matches!(change, Change::Node(_) | Change::Snapshot { .. }));
                stepped.change(change);
            }
            assert!(stepped.is_dirty(), "each step changes something");
            stepped.take_delta();
        }
        let fresh = cluster(&load);
        assert!(stepped.table().same_routes(fresh.table()));
        assert_eq!(stepped.service_count(), fresh.service_count());
        assert!((150..=200).contains(&fresh.service_count()), "{}", fresh.service_count());
        assert!(stepped.conflicts().is_empty(), "frontends are unique");
    }
}

/// What the mixture is to hold, as words.
fn seen(services: &[Service], slices: &[EndpointSlice], seen: &mut BTreeSet<String>) {
    for service in services {
        seen.insert(format!("type {:?}", service.service_type()));
        seen.insert(format!("{} cluster IPs", service.cluster_ips().len()));
        for port in service.ports() {
            seen.insert(port.protocol().to_string());
            seen.extend(port.node_port().map(|_| "node port".into()));
        }
        let local = TrafficPolicy::Local;
        for (holds, what) in [
            (service.internal_traffic_policy() == local, "internal policy"),
            (service.external_traffic_policy() == local, "external policy"),
            (service.affinity().is_some(), "affinity"),
            (!service.external_ips().is_empty(), "external IP"),
            (!service.load_balancer_ips().is_empty(), "load balancer"),
            (!service.source_ranges().is_empty(), "source ranges"),
            (service.health_check_node_port().is_some(), "health check"),
        ] {
            seen.extend(holds.then(|| what.into()));
        }
    }
    for slice in slices {
        let names = slices.iter().filter(|s| s.service() == slice.service() && s.family() == slice.family());
        seen.extend((names.count() > 1).then(|| "several slices".into()));
        for endpoint in slice.endpoints() {
            let conditions = endpoint.conditions;
            seen.insert(format!("ready {} terminating {}", conditions.ready, conditions.terminating));
            if let Some(hints) = &endpoint.hints {
                seen.insert(format!("hints for {} nodes, {} zones", hints.nodes.len(), hints.zones.len()));
            }
        }
    }
}

#[test]
fn the_mixture_holds_what_clusters_hold() {
    let mut load = load(3);
    let mut all = BTreeSet::new();
    for _ in 0..5 {
        let (services, slices) = split(load.objects());
        seen(&services, &slices, &mut all);
        for _ in 0..200 {
            load.step();
        }
    }
    let expected = [
        "type ClusterIp",
        "type NodePort",
        "type LoadBalancer",
        "1 cluster IPs",
        "2 cluster IPs",
        "TCP",
        "UDP",
        "SCTP",
        "node port",
        "internal policy",
        "external policy",
        "affinity",
        "external IP",
        "load balancer",
        "source ranges",
        "health check",
        "several slices",
        "ready true terminating false",
        "ready false terminating false",
        "ready false terminating true",
        "hints for 0 nodes, 1 zones",
        "hints for 1 nodes, 1 zones",
    ];
    assert_eq!(all, expected.map(str::to_owned).into());
    let table = cluster(&load).table().clone();
    for kind in FrontendKind::ALL {
        assert!(table.routes().any(|route| route.kind == kind), "{}", kind.as_str());
    }
    assert!(Protocol::ALL.iter().all(|p| table.routes().any(|r| r.frontend.protocol == *p)));
    let types = split(load.objects()).0.into_iter().filter(|s| s.service_type() == ServiceType::ClusterIp);
    assert!(types.count() > 100, "most are of type ClusterIP");
}

#[test]
fn churn_creates_deletes_and_changes() {
    let mut load = load(4);
    let mut counts = [0; 4];
    for change in load.churn().take(5000) {
        counts[match change {
            Change::Service(_) => 0,
            Change::RemoveService(_) => 1,
            Change::EndpointSlice(_) => 2,
            _ => 3,
        }] += 1;
    }
    assert!(counts.iter().all(|count| *count > 40), "{counts:?}");
}

#[test]
fn a_re_created_service_has_another_address() {
    let mut load = load(5);
    let (before, _) = split(load.objects());
    let mut gone = BTreeSet::new();
    let mut again = 0;
    for change in load.churn().take(5000) {
        match change {
            Change::RemoveService(name) => drop(gone.insert(name)),
            Change::Service(service) if gone.remove(service.name()) => {
                let old = before.iter().find(|old| old.name() == service.name()).unwrap();
                assert_ne!(old.cluster_ips(), service.cluster_ips());
                assert!(old.created() < service.created());
                again += 1;
            }
            _ => {}
        }
    }
    assert!(again > 10, "{again}");
}

#[test]
fn numbers_rest_before_they_are_given_again_and_run_out() {
    let mut numbers = Numbers::new(0..300);
    for n in 0..257 {
        assert_eq!(numbers.take(), Some(n));
        numbers.give_back(n);
    }
    assert_eq!(numbers.take(), Some(0));
    assert_eq!(numbers.take(), Some(257));
    let rest: Vec<_> = std::iter::from_fn(|| numbers.take()).collect();
    assert_eq!(rest.len(), 298);
}

#[test]
fn options_that_no_cluster_can_have_are_refused() {
    let wrong = |options| Load::new(options).unwrap_err().to_string();
    assert_eq!(wrong(LoadOptions { nodes: 0, ..LoadOptions::default() }), "nodes must be 1 to 5000");
    let services = LoadOptions { services: 1 << 20, endpoints: 0, ..LoadOptions::default() };
    assert_eq!(wrong(services), "services must be at most 524288");
    let endpoints = LoadOptions { services: 100_000, endpoints: 100, ..LoadOptions::default() };
    let message = wrong(endpoints);
    assert!(message.starts_with("services and endpoints must be fewer: "), "{message}");
    let mut nothing = Load::new(LoadOptions { services: 0, ..LoadOptions::default() }).unwrap();
    assert_eq!(nothing.churn().next(), None);
}

#[test]
fn a_large_cluster_without_endpoints_or_with_one_node_churns() {
    for (endpoints, nodes) in [(0, 3), (1, 1)] {
        let options = LoadOptions { services: 3, endpoints, nodes, seed: 1 };
        let mut load = Load::new(options).unwrap();
        assert_eq!(load.churn().take(3000).count(), 3000);
    }
}
