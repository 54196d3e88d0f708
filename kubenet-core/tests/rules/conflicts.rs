//! [F5]: two Services claim one frontend.

use kubenet_core::{model::Protocol::Tcp, router::RouterEvent};
use kubenet_testkit::faults::Call;
use serde_json::{Value, json};

use crate::{
    manifest::{pod, service, slice_of, with},
    world::{Dropped, Setup, World, flow, to},
};

const CONTESTED: &str = "198.51.100.9:80";

/// A Service that claims the contested external IP.
fn claim(name: &str, cluster_ip: &str, created: Value) -> Value {
    let object = service(name, cluster_ip, json!({ "externalIPs": ["198.51.100.9"] }));
    with(object, json!({ "metadata": { "creationTimestamp": created } }))
}

fn old() -> Value {
    claim("old", "10.96.0.1", json!("2026-01-01T00:00:00Z"))
}

fn young() -> Value {
    claim("a-young", "10.96.0.2", json!("2026-01-01T00:00:01Z"))
}

/// Both, in this order, with the endpoints a1 and b1.
fn contested(services: [Value; 2]) -> World {
    let slices = [slice_of("old", &[pod("a1")]), slice_of("a-young", &[pod("b1")])];
    World::new(Setup::default(), services.into_iter().chain(slices))
}

fn conflicts(world: &World) -> Vec<String> {
    let conflicts = world.router.status().conflicts;
    conflicts.iter().map(|c| format!("{}: {} and not {}", c.frontend, c.winner, c.loser)).collect()
}

#[test]
fn f5_the_older_claim_keeps_the_frontend_whatever_the_order() {
    for services in [[old(), young()], [young(), old()]] {
        let world = contested(services);
        assert_eq!(world.packet("outside", CONTESTED, Tcp), to(["a1"]));
        assert_eq!(world.packet("outside", "10.96.0.2:80", Tcp), to(["b1"]), "its own is its own");
    }
    let mut world = World::new(Setup::default(), [young(), slice_of("a-young", &[pod("b1")])]);
    world.apply([old(), slice_of("old", &[pod("a1")])]);
    assert_eq!(world.packet("outside", CONTESTED, Tcp), to(["a1"]), "though the other had it first");
}

#[test]
fn f5_a_claim_of_unknown_age_is_the_youngest() {
    let world = contested([claim("a-young", "10.96.0.2", json!(null)), old()]);
    assert_eq!(world.packet("outside", CONTESTED, Tcp), to(["a1"]));
}

#[test]
fn f5_of_claims_of_one_age_the_first_namespace_and_name_wins() {
    let at = |namespace: &str, name: &str, cluster_ip: &str| {
        let object = claim(name, cluster_ip, json!("2026-01-01T00:00:00Z"));
        with(object, json!({ "metadata": { "namespace": namespace } }))
    };
    let winner = |services: [Value; 2]| conflicts(&World::new(Setup::default(), services));
    let by_name = winner([at("demo", "b", "10.96.0.1"), at("demo", "a", "10.96.0.2")]);
    assert_eq!(by_name, ["198.51.100.9:80/TCP: demo/a and not demo/b"]);
    let by_namespace = winner([at("demo", "a", "10.96.0.1"), at("alpha", "z", "10.96.0.2")]);
    assert_eq!(by_namespace, ["198.51.100.9:80/TCP: alpha/z and not demo/a"]);
}

#[test]
fn f5_the_other_claim_is_reported_once_and_until_it_ends() {
    let mut world = contested([old(), young()]);
    assert_eq!(conflicts(&world), ["198.51.100.9:80/TCP: demo/old and not demo/a-young"]);
    let told = |events: Vec<RouterEvent>| -> Vec<&str> {
        let text = |event: &RouterEvent| match event {
            RouterEvent::Conflict(_) => Some("begins"),
            RouterEvent::ConflictEnded(_) => Some("ends"),
            _ => None,
        };
        events.iter().filter_map(text).collect()
    };
    world.apply([slice_of("a-young", &[pod("b2")])]);
    world.apply([slice_of("old", &[pod("a2")])]);
    assert_eq!(told(world.events()), ["begins"]);
    world.delete(&young());
    assert_eq!((told(world.events()), conflicts(&world)), (vec!["ends"], vec![]));
}

#[test]
fn f5_nothing_flaps_when_the_loser_is_updated() {
    // The loser claims nothing else, so nothing at all may be written.
    let old = with(old(), json!({ "spec": { "clusterIP": "10.96.0.7", "externalIPs": null } }));
    let young = |spec: Value| {
        let object = with(young(), json!({ "spec": { "clusterIP": "10.96.0.7", "externalIPs": null } }));
        with(object, json!({ "spec": spec }))
    };
    let mut world = contested([young(json!({})), old]);
    let connection = flow("a9", "10.96.0.7:80", Tcp);
    assert_eq!(world.connect(&connection), to(["a1"]));
    let written = [Call::Apply, Call::Replace].map(|call| world.faulty.calls(call));
    world.apply([slice_of("a-young", &[pod("b1"), pod("b2")])]);
    world.apply([young(json!({ "sessionAffinity": "ClientIP" }))]);
    world.apply([slice_of("a-young", &[])]);
    assert_eq!([Call::Apply, Call::Replace].map(|call| world.faulty.calls(call)), written);
    assert_eq!(world.send(&connection), to(["a1"]));
    assert_eq!(world.packet("a9", "10.96.0.7:80", Tcp), to(["a1"]));
}

#[test]
fn f5_the_loser_takes_over_when_the_winner_gives_the_frontend_up() {
    let gives_up =
        [(vec![old()], vec![]), (vec![], vec![with(old(), json!({ "spec": { "externalIPs": [] } }))])];
    for (deleted, changed) in gives_up {
        let mut world = contested([old(), young()]);
        world.burst(deleted, changed);
        assert_eq!(world.packet("outside", CONTESTED, Tcp), to(["b1"]));
        assert_eq!(conflicts(&world), [""; 0]);
    }
}

#[test]
fn f5_two_services_that_claim_one_node_port() {
    let on = |object: Value| {
        let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30000 }] });
        with(object, json!({ "spec": spec }))
    };
    let world = contested([on(young()), on(old())]);
    assert_eq!(world.packet("outside", "10.0.0.1:30000", Tcp), to(["a1"]));
    assert!(conflicts(&world).contains(&"node port 30000/TCP (IPv4): demo/old and not demo/a-young".into()));
}

#[test]
fn f5_a_service_that_lists_one_address_in_two_fields_contests_nothing_and_is_filtered() {
    let both = with(old(), json!({ "spec": { "loadBalancerSourceRanges": ["203.0.113.0/24"] } }));
    let ingress = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "198.51.100.9" }] } } });
    let world = World::new(Setup::default(), [with(both, ingress), slice_of("old", &[pod("a1")])]);
    assert_eq!(conflicts(&world), [""; 0]);
    assert_eq!(world.packet("outside", CONTESTED, Tcp), to(["a1"]));
    assert_eq!(world.packet("198.18.0.1", CONTESTED, Tcp), Dropped, "as the load balancer's address");
}
