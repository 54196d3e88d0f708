//! [A1] to [A3]: a client stays with a backend.

use std::{net::Ipv4Addr, time::Duration};

use kubenet_core::{
    model::{
        IpFamily,
        Protocol::{self, Sctp, Tcp, Udp},
    },
    route::FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort},
};
use kubenet_testkit::memory::Flow;
use serde_json::{Value, json};

use crate::{
    manifest::{at, pod, terminating, web},
    world::{Answer, World, flow, to},
};

fn client_ip(timeout: impl Into<Value>) -> Value {
    let config = json!({ "clientIP": { "timeoutSeconds": timeout.into() } });
    json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config })
}

/// The backends a1, a2 and b1.
fn three(spec: Value) -> World {
    World::web(spec, [pod("a1"), pod("a2"), pod("b1")])
}

/// Whom each of many clients outside gets. That all get by chance whom they had before does not happen.
fn picks_at(world: &World, destination: &str, protocol: Protocol) -> Vec<Answer> {
    let prefix = if destination.starts_with('[') { "2001:db8::" } else { "203.0.113." };
    (1..=40).map(|i| world.connect(&flow(&format!("{prefix}{i}"), destination, protocol))).collect()
}

fn picks(world: &World) -> Vec<Answer> {
    picks_at(world, at(IpFamily::V4, ClusterIp), Tcp)
}

fn after(world: &World, seconds: u64) -> Vec<Answer> {
    world.memory.advance(Duration::from_secs(seconds));
    picks(world)
}

#[test]
fn a1_without_affinity_each_connection_chooses_anew() {
    for spec in [json!({}), json!({ "sessionAffinity": "None" })] {
        let world = three(spec);
        assert_ne!(picks(&world), picks(&world));
    }
}

#[test]
fn a1_a_client_stays_with_one_backend() {
    let world = three(client_ip(60));
    let first = picks(&world);
    assert_eq!([picks(&world), picks(&world)], [first.clone(), first.clone()]);
    for backend in ["a1", "a2", "b1"] {
        assert!(first.contains(&to([backend])), "clients are spread over all");
    }
}

#[test]
fn a1_for_the_timeout_after_its_last_new_connection() {
    let world = three(client_ip(60));
    let first = picks(&world);
    for _ in 0..3 {
        assert_eq!(after(&world, 59), first, "each connection begins the time again");
    }
    assert_ne!(after(&world, 61), first);
}

#[test]
fn a1_the_default_is_three_hours() {
    let world = three(json!({ "sessionAffinity": "ClientIP" }));
    let first = picks(&world);
    assert_eq!(after(&world, 10_799), first);
    assert_ne!(after(&world, 10_801), first);
}

#[test]
fn a1_the_timeout_is_1_to_86400() {
    let world = three(client_ip(1));
    let first = picks(&world);
    assert_ne!(after(&world, 2), first);
    let mut world = three(client_ip(86_400));
    let first = picks(&world);
    assert_eq!(after(&world, 86_399), first);
    for bad in [0, 86_401, -1] {
        world.apply([web(client_ip(bad))]);
        assert!(world.told[0].ends_with("must be 1 to 86400"), "{:?}", world.told);
        assert_eq!(after(&world, 86_399), first, "the last good state stays");
    }
}

#[test]
fn a1_the_ports_of_a_service_are_independent() {
    let world = three(client_ip(60));
    let at = at(IpFamily::V4, ClusterIp);
    let by_protocol = || [Tcp, Udp, Sctp].map(|protocol| picks_at(&world, at, protocol));
    let first = by_protocol();
    assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2]);
    assert_eq!(by_protocol(), first);
}

#[test]
fn a1_all_frontends_of_a_port_share_the_clients_choice() {
    let world = three(client_ip(60));
    for family in IpFamily::ALL {
        let [first, others @ ..] = [ClusterIp, NodePort, ExternalIp, LoadBalancer]
            .map(|kind| picks_at(&world, at(family, kind), Tcp));
        for other in others {
            assert_eq!(other, first, "{family}");
        }
    }
    let world = three(json!({}));
    let [cluster_ip, node_port] =
        [ClusterIp, NodePort].map(|kind| picks_at(&world, at(IpFamily::V4, kind), Tcp));
    assert_ne!(cluster_ip, node_port, "there is something to share");
}

#[test]
fn a1_a_hundred_thousand_clients_are_remembered() {
    let world = three(client_ip(60));
    let destination = at(IpFamily::V4, ClusterIp).parse().unwrap();
    let picks = || -> Vec<_> {
        let client = |i: u32| (Ipv4Addr::from(0xc612_0000 + i), 40000).into();
        (0..100_000).map(|i| world.memory.connect(&Flow::new(client(i), destination, Tcp))).collect()
    };
    let first = picks();
    world.memory.advance(Duration::from_secs(59));
    assert!(picks() == first);
}

#[test]
fn a2_a_client_chooses_again_at_once_when_its_backend_is_gone() {
    let mut world = three(client_ip(60));
    let before = picks(&world);
    world.endpoints([pod("a1"), pod("a2")]);
    let after = picks(&world);
    for (before, after) in before.iter().zip(&after) {
        if *before == to(["b1"]) {
            assert!([to(["a1"]), to(["a2"])].contains(after));
        } else {
            assert_eq!(before, after, "the others stay");
        }
    }
    world.endpoints([pod("a1"), pod("a2"), pod("b1")]);
    assert_eq!(picks(&world), after, "the new choice counts when the backend comes back");
}

#[test]
fn a2_a_client_chooses_again_at_once_when_its_backend_terminates() {
    let mut world = three(client_ip(60));
    assert!(picks(&world).contains(&to(["b1"])));
    world.endpoints([pod("a1"), pod("a2"), terminating("b1")]);
    assert!(!picks(&world).contains(&to(["b1"])));
}

#[test]
fn a2_a_client_chooses_again_at_once_when_its_backend_leaves_the_applicable_set() {
    let mut world = three(client_ip(60));
    let before = picks(&world);
    assert!(before.contains(&to(["b1"])));
    let mut spec = client_ip(60);
    spec["internalTrafficPolicy"] = "Local".into();
    world.apply([web(spec)]);
    let after = picks(&world);
    assert!(!after.contains(&to(["b1"])));
    assert!(before.iter().zip(&after).all(|(before, after)| *before == to(["b1"]) || before == after));
}

#[test]
fn a2_each_frontend_has_an_applicable_set_of_its_own() {
    let mut spec = client_ip(60);
    spec["externalTrafficPolicy"] = "Local".into();
    let world = three(spec);
    assert!(picks(&world).contains(&to(["b1"])), "by the cluster IP");
    let node_port = picks_at(&world, at(IpFamily::V4, NodePort), Tcp);
    assert!(!node_port.contains(&to(["b1"])), "which the node port may not pick");
}

/// Clients choose, time passes, the timeout is changed, time passes: whether all clients are where they were.
fn all_stay(timeout: u64, wait: u64, new_timeout: u64, then_wait: u64) -> bool {
    let mut world = three(client_ip(timeout));
    let before = picks(&world);
    world.memory.advance(Duration::from_secs(wait));
    world.apply([web(client_ip(new_timeout))]);
    after(&world, then_wait) == before
}

#[test]
fn a3_a_shorter_timeout_takes_effect_on_existing_choices() {
    assert!(all_stay(1000, 100, 1000, 0), "the longer one would let them stay");
    assert!(!all_stay(1000, 100, 60, 0));
    assert!(all_stay(1000, 40, 60, 19));
    assert!(!all_stay(1000, 40, 60, 21));
}

#[test]
fn a3_a_longer_timeout_takes_effect_on_existing_choices() {
    assert!(!all_stay(60, 50, 60, 900), "the shorter one would let them go");
    assert!(all_stay(60, 50, 1000, 900));
}

#[test]
fn a3_affinity_that_is_switched_off_binds_nobody() {
    let mut world = three(client_ip(60));
    let before = picks(&world);
    world.apply([web(json!({}))]);
    assert_ne!(picks(&world), before);
}
