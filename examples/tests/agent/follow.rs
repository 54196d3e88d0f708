//! Lists and watches, as long as all goes well.

use std::sync::Arc;

use kubenet_core::datapath::Datapath;
use kubenet_examples::agent::Agent;
use kubenet_testkit::{
    faults::{Call, FaultyDatapath},
    memory::MemoryDatapath,
};
use serde_json::json;

use crate::support::{
    api::Kind,
    objects::{node, service, slice, with},
    rig::{Rig, api, config, eventually, route},
};

const A: &str = "10.96.0.1";
const B: &str = "10.96.0.2";

#[tokio::test]
async fn k0_nothing_is_written_before_services_slices_and_the_node_were_listed() {
    for late in Kind::ALL {
        let api = api().await;
        api.put(Kind::Service, service("a", A));
        api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
        api.hold(late);
        let memory = Arc::new(MemoryDatapath::new());
        let faulty = Arc::new(FaultyDatapath::new(Arc::clone(&memory) as _));
        let agent = Agent::start(config(), api.client(), Arc::clone(&faulty) as _).await.unwrap();
        for other in Kind::ALL.into_iter().filter(|kind| *kind != late) {
            eventually(|| format!("{other:?} are watched"), || api.watchers(other) == 1).await;
        }
        // What comes meanwhile is taken, and not written either.
        if late != Kind::Service {
            api.put(Kind::Service, service("b", B));
            eventually(|| "it is taken".into(), || agent.router().status().services == 2).await;
        }
        assert!(!agent.router().status().synced, "{late:?}");
        assert_eq!(Call::ALL.map(|call| faulty.calls(call)), [0; 7], "{late:?}");
        api.release(late);
        let routed = || route(&memory, "10.244.1.9:4000", "10.96.0.1:80") == "10.244.1.2:8080";
        eventually(|| format!("routed after {late:?}"), routed).await;
        assert_eq!(faulty.calls(Call::Replace), 1, "all at once");
    }
}

#[tokio::test]
async fn what_is_created_changed_and_deleted_is_followed() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.routes(A, "reject").await;
    rig.api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    rig.routes(A, "10.244.1.2:8080").await;
    rig.api.put(Kind::Slice, slice("a", &["10.244.1.2", "10.244.1.3"]));
    rig.routes(A, "10.244.1.2:8080 10.244.1.3:8080").await;
    rig.api.put(Kind::Service, service("a", B));
    rig.routes(B, "10.244.1.2:8080 10.244.1.3:8080").await;
    rig.routes(A, "pass").await;
    rig.api.delete(Kind::Slice, "demo", "a-1");
    rig.routes(B, "reject").await;
    rig.api.delete(Kind::Service, "demo", "a");
    rig.routes(B, "pass").await;
}

#[tokio::test]
async fn lists_are_streamed_where_the_server_streams_them() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.routes(A, "reject").await;
    for kind in Kind::ALL {
        let requests = rig.api.requests(kind);
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert!(requests[0].contains("sendInitialEvents=true"), "{requests:?}");
        assert!(requests[0].contains("allowWatchBookmarks=true"), "{requests:?}");
    }
}

#[tokio::test]
async fn lists_are_read_by_pages_where_the_server_does_not_stream_them() {
    let api = api().await;
    api.list_by_pages();
    for i in 1..=10 {
        api.put(Kind::Service, service(&format!("s{i}"), &format!("10.96.1.{i}")));
    }
    let rig = Rig::start(api).await;
    for i in 1..=10 {
        rig.routes(&format!("10.96.1.{i}"), "reject").await;
    }
    let requests = rig.api.requests(Kind::Service);
    assert_eq!(requests.iter().filter(|request| request.contains("limit=3")).count(), 4, "{requests:?}");
    rig.api.put(Kind::Service, service("later", A));
    rig.routes(A, "reject").await;
}

#[tokio::test]
async fn a_server_whose_streamed_lists_break_off_is_listed_by_pages() {
    let api = api().await;
    api.break_streamed_lists();
    api.put(Kind::Service, service("a", A));
    let rig = Rig::start(api).await;
    rig.routes(A, "reject").await;
    let requests = rig.api.requests(Kind::Service);
    assert!(requests.iter().any(|request| request.contains("limit=")), "{requests:?}");
}

#[tokio::test]
async fn o1_services_of_other_proxies_are_not_even_asked_for() {
    const LABEL: &str = "/metadata/labels";
    let mesh = || json!({ "service.kubernetes.io/service-proxy-name": "mesh" });
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.api.put(Kind::Service, with(service("b", B), LABEL, mesh()));
    rig.routes(A, "reject").await;
    rig.api.put(Kind::Service, with(service("a", A), LABEL, mesh()));
    rig.routes(A, "pass").await;
    rig.api.put(Kind::Service, service("b", B));
    rig.routes(B, "reject").await;
    let requests = rig.api.requests(Kind::Slice);
    assert!(requests[0].contains("labelSelector=%21service.kubernetes.io%2Fheadless"), "{requests:?}");
}

#[tokio::test]
async fn o1_an_agent_with_a_proxy_name_takes_the_services_of_that_name() {
    let mut config = config();
    config.service_proxy_name = Some("mesh".into());
    let rig = Rig::start_with(api().await, config).await;
    rig.api.put(Kind::Service, service("a", A));
    let labels = json!({ "service.kubernetes.io/service-proxy-name": "mesh" });
    rig.api.put(Kind::Service, with(service("b", B), "/metadata/labels", labels));
    rig.routes(B, "reject").await;
    assert_eq!(rig.route(A), "pass");
}

#[tokio::test]
async fn f4_node_ports_follow_the_addresses_of_the_node() {
    let api = api().await;
    let mut web = with(service("a", A), "/spec/type", json!("NodePort"));
    web["spec"]["ports"][0]["nodePort"] = 30080.into();
    api.put(Kind::Service, web);
    api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    let rig = Rig::start(api).await;
    let outside = |to: &str| rig.route_from("192.0.2.9:4000", to);
    eventually(|| "on the address".into(), || outside("10.0.0.1:30080") == "10.244.1.2:8080").await;
    let address = json!([{ "type": "InternalIP", "address": "10.0.0.7" }]);
    rig.api.put(Kind::Node, with(node(), "/status/addresses", address));
    eventually(|| "on the other".into(), || outside("10.0.0.7:30080") == "10.244.1.2:8080").await;
    assert_eq!(outside("10.0.0.1:30080"), "pass");
}

#[tokio::test]
async fn e3_the_label_of_the_nodes_zone_is_followed() {
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    let mut endpoints = slice("a", &["10.244.1.2", "10.244.2.2"]);
    endpoints["endpoints"][0]["hints"] = json!({ "forZones": [{ "name": "zone-a" }] });
    endpoints["endpoints"][1]["hints"] = json!({ "forZones": [{ "name": "zone-b" }] });
    api.put(Kind::Slice, endpoints);
    let rig = Rig::start(api).await;
    rig.routes(A, "10.244.1.2:8080").await;
    let labels = json!({ "topology.kubernetes.io/zone": "zone-b" });
    rig.api.put(Kind::Node, with(node(), "/metadata/labels", labels));
    rig.routes(A, "10.244.2.2:8080").await;
}

#[tokio::test]
async fn a_node_that_is_bad_or_gone_keeps_its_last_good_state() {
    let api = api().await;
    let mut web = with(service("a", A), "/spec/type", json!("NodePort"));
    web["spec"]["ports"][0]["nodePort"] = 30080.into();
    api.put(Kind::Service, web);
    api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    let rig = Rig::start(api).await;
    let served = || rig.route_from("192.0.2.9:4000", "10.0.0.1:30080") == "10.244.1.2:8080";
    eventually(|| "served".into(), served).await;
    let address = json!([{ "type": "InternalIP", "address": "ten" }]);
    rig.api.put(Kind::Node, with(node(), "/status/addresses", address));
    let event = rig.posted("status.addresses[0].address").await;
    assert_eq!(event["regarding"]["kind"], "Node");
    rig.api.delete(Kind::Node, "", "node-a");
    rig.api.put(Kind::Service, service("b", B));
    rig.routes(B, "reject").await;
    assert!(served());
}

#[tokio::test]
async fn a_cluster_without_this_node_is_served_all_the_same() {
    let api = crate::support::api::ApiServer::start().await;
    api.put(Kind::Service, service("a", A));
    let rig = Rig::start(api).await;
    rig.routes(A, "reject").await;
    rig.api.put(Kind::Node, node());
    let has_address = || {
        let table = futures::executor::block_on(rig.datapath.read()).unwrap();
        table.node().addresses.len() == 1
    };
    eventually(|| "the node's address arrives".into(), has_address).await;
}
