//! [N4]: ports of a cluster IP that are no Service ports.

use kubenet_core::model::Protocol::{self, Sctp, Tcp, Udp};
use serde_json::json;

use crate::{
    manifest::{pod, service, slice_of, web, with},
    world::{Passed, Rejected, Setup, World, to},
};

#[test]
fn n4_a_cluster_ip_rejects_ports_that_are_no_service_ports() {
    let world = World::web(json!({}), [pod("a1")]);
    for client in ["a9", "b9", "node-a", "outside"] {
        for at in ["10.96.0.10:79", "10.96.0.10:81", "10.96.0.10:65535", "[fd00:96::10]:8080"] {
            let answers = Protocol::ALL.map(|protocol| world.packet(client, at, protocol));
            assert_eq!(answers, [Rejected, Rejected, Rejected], "{client} to {at}");
        }
    }
}

#[test]
fn n4_a_cluster_ip_rejects_protocols_that_it_does_not_serve() {
    let world =
        World::new(Setup::default(), [service("one", "10.96.0.1", json!({})), slice_of("one", &[pod("a1")])]);
    let answers = [Tcp, Udp, Sctp].map(|protocol| world.packet("a9", "10.96.0.1:80", protocol));
    assert_eq!(answers, [to(["a1"]), Rejected, Rejected]);
}

#[test]
fn n4_other_addresses_are_left_alone_on_ports_that_are_no_service_ports() {
    let world = World::web(json!({}), [pod("a1")]);
    for at in ["10.0.0.1:80", "10.0.0.1:30081", "198.51.100.1:81", "192.0.2.1:81", "10.96.0.11:80"] {
        assert_eq!(world.packet("outside", at, Tcp), Passed, "{at}");
    }
}

#[test]
fn n4_a_frontend_without_backends_answers_as_e6() {
    let world = World::web(json!({}), []);
    for at in ["10.96.0.10:80", "10.0.0.1:30080", "198.51.100.1:80", "192.0.2.1:80"] {
        assert_eq!(world.packet("outside", at, Tcp), Rejected, "{at}");
    }
}

#[test]
fn n4_the_address_of_a_deleted_service_is_left_alone() {
    let mut world = World::web(json!({}), [pod("a1")]);
    world.delete(&web(json!({})));
    for at in ["10.96.0.10:80", "10.96.0.10:81"] {
        assert_eq!(world.packet("a9", at, Tcp), Passed, "{at}");
    }
}

#[test]
fn n4_a_cluster_ip_rejects_unknown_ports_though_an_older_external_ip_took_its_port() {
    let created = |at: &str| json!({ "metadata": { "creationTimestamp": at } });
    let old = service("old", "10.96.0.1", json!({ "externalIPs": ["10.96.0.2"] }));
    let old = with(old, created("2026-01-01T00:00:00Z"));
    let young = with(service("young", "10.96.0.2", json!({})), created("2026-01-02T00:00:00Z"));
    let slices = [slice_of("old", &[pod("a1")]), slice_of("young", &[pod("b1")])];
    let mut world = World::new(Setup::default(), [young.clone(), old.clone()].into_iter().chain(slices));
    assert_eq!(world.packet("a9", "10.96.0.2:80", Tcp), to(["a1"]));
    assert_eq!(world.packet("a9", "10.96.0.2:81", Tcp), Rejected);
    world.delete(&young);
    assert_eq!(world.packet("a9", "10.96.0.2:81", Tcp), Passed, "only an external IP now");
    world.apply([young]);
    assert_eq!(world.packet("a9", "10.96.0.2:81", Tcp), Rejected);
    world.delete(&old);
    assert_eq!(world.packet("a9", "10.96.0.2:80", Tcp), to(["b1"]));
    assert_eq!(world.packet("a9", "10.96.0.2:81", Tcp), Rejected);
}
