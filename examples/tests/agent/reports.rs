//! Objects that are refused, and what people are told.

use std::sync::Arc;

use kubenet_core::{datapath::Capabilities, model::Protocol};
use kubenet_examples::agent::Agent;
use kubenet_testkit::memory::MemoryDatapath;
use serde_json::json;

use crate::support::{
    api::Kind,
    objects::{service, slice, with},
    rig::{Rig, api, config, eventually},
};

const A: &str = "10.96.0.1";
const B: &str = "10.96.0.2";
const C: &str = "10.96.0.3";

#[tokio::test]
async fn a_bad_object_is_told_and_keeps_its_last_good_state() {
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    let rig = Rig::start(api).await;
    rig.routes(A, "10.244.1.2:8080").await;

    let bad = with(service("a", C), "/spec/ports", json!([{ "port": 70000 }]));
    rig.api.put(Kind::Service, bad);
    rig.api.put(Kind::Service, service("b", B));
    rig.routes(B, "reject").await;
    let event = rig.posted("70000").await;
    assert_eq!(
        event["note"], "Service demo/a: spec.ports[0].port: \"70000\": must be 1 to 65535",
        "object, field, value and rule"
    );
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("Refused")));
    let regarding = &event["regarding"];
    assert_eq!(
        (&regarding["kind"], &regarding["namespace"], &regarding["name"]),
        (&json!("Service"), &json!("demo"), &json!("a"))
    );
    assert_eq!(regarding["fieldPath"], "spec.ports[0].port");
    assert!(regarding["uid"].as_str().unwrap().starts_with("uid-"), "kubectl describe looks for it: {event}");
    assert_eq!(rig.route(A), "10.244.1.2:8080", "the last good state");
    assert_eq!(rig.route(C), "pass", "nothing of the bad one");

    rig.api.put(Kind::Service, service("a", C));
    rig.routes(C, "10.244.1.2:8080").await;
    rig.routes(A, "pass").await;
}

#[tokio::test]
async fn a_bad_object_that_is_deleted_is_gone() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    rig.routes(A, "10.244.1.2:8080").await;
    rig.api.put(Kind::Slice, slice("a", &["nowhere"]));
    rig.posted("endpoints[0].addresses[0]").await;
    assert_eq!(rig.route(A), "10.244.1.2:8080");
    rig.api.delete(Kind::Slice, "demo", "a-1");
    rig.routes(A, "reject").await;
}

#[tokio::test]
async fn an_object_of_another_form_hides_no_other_of_its_list() {
    for pages in [false, true] {
        let api = api().await;
        if pages {
            api.list_by_pages();
        }
        api.put(Kind::Service, with(service("a", A), "/spec/ports", json!([{ "port": "http" }])));
        api.put(Kind::Service, with(service("aa", A), "/spec", json!("nothing")));
        api.put(Kind::Service, service("b", B));
        let rig = Rig::start(api).await;
        rig.routes(B, "reject").await;
        let event = rig.posted("demo/a: spec.ports[0].port").await;
        assert!(event["note"].as_str().unwrap().contains("must be a whole number"), "{event}");
        rig.posted("demo/aa: spec").await;
    }
}

#[tokio::test]
async fn a_refused_object_is_told_once_however_often_it_is_listed() {
    let api = api().await;
    api.put(Kind::Service, with(service("a", A), "/spec/ports", json!([{ "port": 0 }])));
    let rig = Rig::start(api).await;
    rig.posted("demo/a").await;
    for round in 1..=3 {
        rig.api.cut(Kind::Service);
        rig.api.compact(Kind::Service);
        let address = format!("10.96.2.{round}");
        rig.api.put(Kind::Service, service(&format!("s{round}"), &address));
        rig.routes(&address, "reject").await;
    }
    // Reports are posted in order: after this one all others are there.
    rig.api.put(Kind::Service, with(service("z", A), "/spec/ports", json!([{ "port": 0 }])));
    rig.posted("demo/z").await;
    assert_eq!(rig.api.events().len(), 2, "{:?}", rig.api.events());
}

#[tokio::test]
async fn a_refused_object_of_a_new_list_keeps_its_last_good_state() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.routes(A, "reject").await;
    rig.api.hold(Kind::Service);
    rig.api.cut(Kind::Service);
    rig.api.put(Kind::Service, with(service("a", A), "/spec/ports", json!([{ "port": 0 }])));
    rig.api.compact(Kind::Service);
    rig.api.release(Kind::Service);
    rig.posted("demo/a").await;
    rig.api.put(Kind::Service, service("b", B));
    rig.routes(B, "reject").await;
    assert_eq!(rig.route(A), "reject");
}

#[tokio::test]
async fn o4_an_address_of_the_wrong_family_is_told() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, with(service("a", A), "/spec/externalIPs", json!(["fd00::9"])));
    rig.routes(A, "reject").await;
    let event = rig.posted("fd00::9 is ignored").await;
    assert_eq!(
        (&event["reason"], &event["regarding"]["fieldPath"]),
        (&json!("Ignored"), &json!("spec.externalIPs[0]"))
    );
}

#[tokio::test]
async fn f5_a_conflict_is_told_at_the_service_that_lost() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("old", A));
    rig.routes(A, "reject").await;
    let young = with(service("young", A), "/metadata/creationTimestamp", json!("2026-06-01T00:00:00Z"));
    rig.api.put(Kind::Service, young);
    let event = rig.posted("demo/old claimed it before").await;
    assert_eq!(
        (&event["reason"], &event["regarding"]["name"]),
        (&json!("FrontendConflict"), &json!("young"))
    );
    assert_eq!(event["related"]["name"], "old");
    assert!(event["regarding"]["uid"].as_str().unwrap().starts_with("uid-"), "{event}");
}

#[tokio::test]
async fn a_route_that_cannot_be_served_is_told() {
    let api = api().await;
    let mut capabilities = Capabilities::basic();
    capabilities.protocols = [Protocol::Tcp].into();
    let datapath = Arc::new(MemoryDatapath::with_capabilities(capabilities));
    let agent = Agent::start(config(), api.client(), Arc::clone(&datapath) as _).await.unwrap();
    let rig = Rig { api, datapath, agent };
    let ports = json!([{ "name": "web", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    rig.api.put(Kind::Service, with(service("a", A), "/spec/ports", ports));
    let event = rig.posted("UDP").await;
    assert_eq!((&event["reason"], &event["regarding"]["name"]), (&json!("RouteFailed"), &json!("a")));
    rig.routes(A, "reject").await;
}

#[tokio::test]
async fn a_name_that_no_event_can_be_about_stops_nothing() {
    let api = api().await;
    for name in ["Bad_Name", "../../secrets", "", &"n".repeat(300), "\u{0}\u{1f4a5}"] {
        api.put(Kind::Service, service(name, A));
    }
    let rig = Rig::start(api).await;
    rig.api.put(Kind::Service, with(service("z", A), "/spec/ports", json!([{ "port": 0 }])));
    rig.posted("demo/z").await;
    assert_eq!(rig.api.events().len(), 1, "{:?}", rig.api.events());
    rig.api.put(Kind::Service, service("b", B));
    rig.routes(B, "reject").await;
}

#[tokio::test]
async fn an_event_that_is_not_taken_at_first_is_posted_again() {
    let api = api().await;
    api.fail_next("/events", 2, 500);
    let rig = Rig::start(api).await;
    rig.api.put(Kind::Service, with(service("a", A), "/spec/ports", json!([{ "port": 0 }])));
    rig.posted("demo/a").await;
}

#[tokio::test]
async fn very_many_bad_objects_hide_no_good_one() {
    let api = api().await;
    for i in 0..300 {
        api.put(Kind::Service, with(service(&format!("bad{i}"), A), "/spec/ports", json!([{ "port": 0 }])));
    }
    api.put(Kind::Service, service("good", B));
    let rig = Rig::start(api).await;
    rig.routes(B, "reject").await;
    eventually(|| "a burst is posted".into(), || rig.api.events().len() >= 50).await;
    assert!(rig.api.events().len() < 100, "not all at once");
}
