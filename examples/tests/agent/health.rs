//! Health-check node ports, `/healthz` and `/livez`.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use kubenet_core::model::NodePortAddresses;
use kubenet_examples::agent::Agent;
use kubenet_testkit::{
    faults::{Call, FaultyDatapath},
    memory::MemoryDatapath,
};
use serde_json::{Value, json};

use crate::support::{
    api::Kind,
    objects::{node, service, slice, with},
    rig::{Rig, api, config, eventually, http_get},
};

const A: &str = "10.96.0.1";

/// A port that nobody listens on, outside the range from which systems choose ports.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 10_500 + (u16::try_from(process::id() % 9_000).unwrap() + offset) % 9_000;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

fn load_balancer(port: u16) -> Value {
    let mut service = with(service("a", A), "/spec/type", json!("LoadBalancer"));
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    service["spec"]["healthCheckNodePort"] = port.into();
    service
}

/// Asks until the status is this, and returns the answer.
async fn answers(address: SocketAddr, path: &str, wanted: u16) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            let (status, answer) = http_get(address, path).await;
            if status == wanted {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path}: {wanted} in {answer}");
        }
        assert!(Instant::now() < deadline, "nobody listens at {address}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn h2_healthz_says_whether_the_node_may_take_traffic_and_livez_does_not() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.routes(A, "reject").await;
    let address = rig.agent.healthz_address().unwrap();
    let healthy = body(&answers(address, "/healthz", 200).await);
    assert_eq!((&healthy["nodeEligible"], &healthy["healthy"]), (&json!(true), &json!(true)));
    assert!(healthy["status"]["IPv4"]["healthy"].as_bool().unwrap(), "{healthy}");

    let taint = json!({ "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] });
    rig.api.put(Kind::Node, with(node(), "/spec", taint));
    answers(address, "/healthz", 503).await;
    answers(address, "/livez", 200).await;
    rig.api.put(Kind::Node, node());
    answers(address, "/healthz", 200).await;

    let deleted = with(node(), "/metadata/deletionTimestamp", json!("2026-06-01T00:00:00Z"));
    rig.api.put(Kind::Node, deleted);
    answers(address, "/healthz", 503).await;
    rig.api.put(Kind::Node, node());
    answers(address, "/healthz", 200).await;

    rig.api.delete(Kind::Node, "", "node-a");
    let missing = body(&answers(address, "/healthz", 503).await);
    assert_eq!((&missing["nodeEligible"], &missing["healthy"]), (&json!(false), &json!(true)));
    answers(address, "/livez", 200).await;

    let (_, text) = http_get(rig.agent.metrics_address().unwrap(), "/metrics").await;
    for sample in
        ["kubeproxy_proxy_healthz_total{code=\"503\"} ", "kubeproxy_proxy_livez_total{code=\"200\"} 2"]
    {
        assert!(text.contains(sample), "{sample} in {text}");
    }
}

#[tokio::test]
async fn h2_an_update_that_waits_too_long_is_unhealthy() {
    let api = api().await;
    let faulty = Arc::new(FaultyDatapath::new(Arc::new(MemoryDatapath::new())));
    let mut config = config();
    config.sync_period = Duration::from_millis(50);
    let agent = Agent::start(config, api.client(), Arc::clone(&faulty) as _).await.unwrap();
    eventually(|| "the first update".into(), || agent.router().status().updates == 1).await;
    let address = agent.healthz_address().unwrap();
    let stall = faulty.stall(Call::Apply);
    api.put(Kind::Service, service("a", A));
    for path in ["/healthz", "/livez"] {
        answers(address, path, 503).await;
    }
    stall.release();
    for path in ["/healthz", "/livez"] {
        answers(address, path, 200).await;
    }
}

#[tokio::test]
async fn h1_a_health_check_node_port_says_whether_there_are_local_endpoints() {
    let port = free_port();
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, load_balancer(port));
    let address = (Ipv4Addr::LOCALHOST, port).into();
    answers(address, "/", 503).await;
    rig.api.put(Kind::Slice, slice("a", &["10.244.1.2", "10.244.1.3"]));
    let answer = answers(address, "/any/path", 200).await;
    assert_eq!(
        body(&answer),
        json!({
            "service": { "namespace": "demo", "name": "a" },
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        })
    );
    let mut elsewhere = slice("a", &["10.244.2.2"]);
    elsewhere["endpoints"][0]["nodeName"] = "node-b".into();
    rig.api.put(Kind::Slice, elsewhere);
    answers(address, "/", 503).await;
    rig.api.delete(Kind::Service, "demo", "a");
    let closed = || std::net::TcpStream::connect(address).is_err();
    eventually(|| "the port is closed".into(), closed).await;
}

#[tokio::test]
async fn h1_a_health_check_node_port_is_on_the_addresses_of_node_ports() {
    let port = free_port();
    let mut config = config();
    config.node_port_addresses = NodePortAddresses::Primary;
    let rig = Rig::start_with(api().await, config).await;
    rig.api.put(Kind::Service, load_balancer(port));
    // This machine does not have the node's address, so the agent says that it cannot listen there.
    rig.posted(&format!("10.0.0.1:{port}")).await;
    assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "nowhere else");
}

#[tokio::test]
async fn h1_a_health_check_node_port_that_is_taken_is_told() {
    let port = free_port();
    let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, load_balancer(port));
    let event = rig.posted(&port.to_string()).await;
    assert_eq!((&event["reason"], &event["regarding"]["name"]), (&json!("HealthCheckFailed"), &json!("a")));
    drop(taken);
}
