//! What goes wrong between the agent and the API server.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    api::{Gone, Kind},
    objects::{service, slice},
    rig::{Rig, api, eventually},
};

const A: &str = "10.96.0.1";
const B: &str = "10.96.0.2";
const C: &str = "10.96.0.3";

/// One that serves A, with B beside it.
async fn serving() -> Rig {
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    api.put(Kind::Service, service("b", B));
    api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    let rig = Rig::start(api).await;
    rig.routes(A, "10.244.1.2:8080").await;
    rig.routes(B, "reject").await;
    rig
}

#[tokio::test]
async fn a_broken_connection_is_resumed_without_loss() {
    let rig = serving().await;
    rig.api.hold(Kind::Service);
    rig.api.cut(Kind::Service);
    rig.api.delete(Kind::Service, "demo", "b");
    rig.api.put(Kind::Service, service("c", C));
    rig.api.release(Kind::Service);
    rig.routes(C, "reject").await;
    rig.routes(B, "pass").await;
    let requests = rig.api.requests(Kind::Service);
    let lists = requests.iter().filter(|request| request.contains("sendInitialEvents")).count();
    assert_eq!(lists, 1, "not listed again: {requests:?}");
}

#[tokio::test]
async fn a_watch_that_the_server_ends_is_resumed_from_the_last_bookmark() {
    let rig = serving().await;
    // The node's version moves the server's, and the bookmark says so to those who watch Services.
    rig.api.put(Kind::Slice, slice("b", &["10.244.1.3"]));
    rig.api.bookmark(Kind::Service);
    rig.api.put(Kind::Service, service("c", C));
    rig.routes(C, "reject").await;
    rig.api.end_watches(Kind::Service);
    eventually(|| "watched again".into(), || rig.api.requests(Kind::Service).len() == 2).await;
    rig.api.put(Kind::Service, service("a", "10.96.0.9"));
    rig.routes("10.96.0.9", "10.244.1.2:8080").await;
}

/// The connection breaks, and what the agent knows is too old when it comes back.
async fn loses_track(rig: &Rig, gone: Gone) {
    rig.api.gone(gone);
    for kind in [Kind::Service, Kind::Slice] {
        rig.api.hold(kind);
        rig.api.cut(kind);
    }
    rig.api.delete(Kind::Service, "demo", "b");
    rig.api.delete(Kind::Slice, "demo", "a-1");
    rig.api.put(Kind::Service, service("c", C));
    for kind in [Kind::Service, Kind::Slice] {
        rig.api.compact(kind);
        rig.api.release(kind);
    }
    rig.routes(C, "reject").await;
    rig.routes(B, "pass").await;
    rig.routes(A, "reject").await;
    rig.api.put(Kind::Slice, slice("a", &["10.244.1.4"]));
    rig.routes(A, "10.244.1.4:8080").await;
}

#[tokio::test]
async fn after_410_as_an_event_deletions_are_found_by_a_new_list() {
    loses_track(&serving().await, Gone::Event).await;
}

#[tokio::test]
async fn after_410_as_a_status_deletions_are_found_by_a_new_list() {
    loses_track(&serving().await, Gone::Status).await;
}

#[tokio::test]
async fn after_410_deletions_are_found_by_a_list_of_pages() {
    for gone in [Gone::Event, Gone::Status] {
        let rig = serving().await;
        rig.api.list_by_pages();
        loses_track(&rig, gone).await;
    }
}

#[tokio::test]
async fn a_list_whose_next_page_is_gone_begins_anew() {
    let api = api().await;
    api.list_by_pages();
    for i in 1..=7 {
        api.put(Kind::Service, service(&format!("s{i}"), &format!("10.96.1.{i}")));
    }
    api.fail_next("continue=", 1, 410);
    let rig = Rig::start(api).await;
    for i in 1..=7 {
        rig.routes(&format!("10.96.1.{i}"), "reject").await;
    }
}

#[tokio::test]
async fn a_new_list_changes_nothing_that_did_not_change() {
    let rig = serving().await;
    let before = rig.agent.router().status();
    rig.api.hold(Kind::Service);
    rig.api.cut(Kind::Service);
    rig.api.compact(Kind::Service);
    rig.api.release(Kind::Service);
    let listed =
        || rig.api.requests(Kind::Service).iter().filter(|r| r.contains("sendInitialEvents")).count();
    eventually(|| "listed again".into(), || listed() == 2 && rig.api.watchers(Kind::Service) == 1).await;
    rig.api.put(Kind::Service, service("c", C));
    rig.routes(C, "reject").await;
    let after = rig.agent.router().status();
    assert_eq!(after.updates, before.updates + 1, "the new Service's alone");
}

#[tokio::test]
async fn failures_of_the_server_are_outlived() {
    let api = api().await;
    api.fail_next("/services", 2, 500);
    api.fail_next("/endpointslices", 1, 403);
    api.put(Kind::Service, service("a", A));
    let rig = Rig::start(api).await;
    rig.routes(A, "reject").await;
    rig.api.fail_next("/services", 1, 429);
    rig.api.cut(Kind::Service);
    rig.api.put(Kind::Service, service("b", B));
    rig.routes(B, "reject").await;
}

#[tokio::test]
async fn a_server_that_ends_every_watch_at_once_is_not_flooded() {
    let rig = serving().await;
    rig.api.end_watches_at_once(true);
    rig.api.cut(Kind::Service);
    let began = Instant::now();
    eventually(|| "it is asked again and again".into(), || rig.api.requests(Kind::Service).len() > 100).await;
    assert!(began.elapsed() > Duration::from_secs(1), "at a rate");
    rig.api.end_watches_at_once(false);
    rig.api.put(Kind::Service, service("c", C));
    rig.routes(C, "reject").await;
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_watch_is_outlived() {
    let rig = serving().await;
    let status = json!({ "kind": "Status", "status": "Failure", "message": "etcd", "reason": "InternalError", "code": 500 });
    rig.api.send(Kind::Service, &json!({ "type": "ERROR", "object": status }));
    rig.api.put(Kind::Service, service("c", C));
    rig.routes(C, "reject").await;
    assert_eq!(rig.route(A), "10.244.1.2:8080");
}

#[tokio::test]
async fn after_an_event_that_cannot_be_read_everything_is_listed_again() {
    let rig = serving().await;
    // The server says that B is deleted, in a way that nobody understands.
    rig.api.delete_unheard(Kind::Service, "demo", "b");
    rig.api.send(Kind::Service, &json!({ "type": "DELETED" }));
    rig.routes(B, "pass").await;
    assert_eq!(rig.route(A), "10.244.1.2:8080");
}

#[tokio::test]
async fn what_is_no_event_at_all_is_outlived() {
    let rig = serving().await;
    for nonsense in [json!(null), json!({ "type": "PARTY", "object": {} })] {
        rig.api.send(Kind::Service, &nonsense);
    }
    rig.api.put(Kind::Service, service("c", C));
    rig.routes(C, "reject").await;
    assert_eq!(rig.route(A), "10.244.1.2:8080");
}
