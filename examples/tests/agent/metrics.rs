//! `/metrics`.

use serde_json::json;

use crate::support::{
    api::Kind,
    objects::{service, slice, with},
    rig::{Rig, api, eventually, http_get},
};

const A: &str = "10.96.0.1";

async fn scrape(rig: &Rig) -> String {
    let (status, text) = http_get(rig.agent.metrics_address().unwrap(), "/metrics").await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{text}");
    text
}

/// The value of a sample.
async fn sample(rig: &Rig, name: &str) -> f64 {
    let text = scrape(rig).await;
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[tokio::test]
async fn what_kube_proxy_measures_has_its_names_units_and_buckets() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.routes(A, "reject").await;
    let trigger = k8s_openapi::jiff::Timestamp::now().to_string();
    let annotations = json!({ "endpoints.kubernetes.io/last-change-trigger-time": trigger });
    rig.api.put(Kind::Slice, with(slice("a", &["10.244.1.2"]), "/metadata/annotations", annotations));
    rig.routes(A, "10.244.1.2:8080").await;
    let text = scrape(&rig).await;
    for (name, kind) in [
        ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_network_programming_duration_seconds", "histogram"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge"),
        ("kubeproxy_sync_proxy_rules_service_changes_total", "counter"),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge"),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge"),
        ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge"),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge"),
    ] {
        assert!(text.contains(&format!("\n# TYPE {name} {kind}\n")), "{name} in {text}");
    }
    let buckets = |name: &str| -> Vec<String> {
        let prefix = format!("{name}_bucket{{ip_family=\"IPv4\",le=\"");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines.map(|line| line.split('"').next().unwrap().to_owned()).collect()
    };
    let sync = buckets("kubeproxy_sync_proxy_rules_duration_seconds");
    assert_eq!((sync.len(), &*sync[0], &*sync[14], &*sync[15]), (16, "0.001", "16.384", "+Inf"));
    let programming = buckets("kubeproxy_network_programming_duration_seconds");
    assert_eq!(programming.len(), 2 + 59 + 12 + 7 + 1);
    assert_eq!((&*programming[0], &*programming[2], &*programming[79]), ("0.25", "1", "300"));
    let times = sample(&rig, "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}").await;
    let now = k8s_openapi::jiff::Timestamp::now().as_second() as f64;
    assert!((now - times).abs() < 60.0, "{times}");
}

#[tokio::test]
async fn changes_and_updates_are_counted() {
    const SERVICES: &str = "kubeproxy_sync_proxy_rules_service_changes_total";
    const SLICES: &str = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    let rig = Rig::start(api).await;
    rig.routes(A, "reject").await;
    let counts = async || {
        (
            sample(&rig, SERVICES).await,
            sample(&rig, SLICES).await,
            sample(&rig, "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}").await,
        )
    };
    assert_eq!(counts().await, (1.0, 0.0, 1.0));
    rig.api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    rig.routes(A, "10.244.1.2:8080").await;
    rig.api.delete(Kind::Service, "demo", "a");
    rig.routes(A, "pass").await;
    assert_eq!(counts().await, (2.0, 1.0, 1.0));
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    assert_eq!(sample(&rig, partial).await, 2.0);
    assert_eq!(sample(&rig, "kubeproxy_sync_proxy_rules_service_changes_pending").await, 0.0);
}

#[tokio::test]
async fn network_programming_counts_only_what_changed_since_the_start() {
    const COUNT: &str = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    const SUM: &str = "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"}";
    const ANNOTATIONS: &str = "/metadata/annotations";
    let triggered = |time: k8s_openapi::jiff::Timestamp| json!({ "endpoints.kubernetes.io/last-change-trigger-time": time.to_string() });
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    let old = triggered("2026-01-01T00:00:00Z".parse().unwrap());
    api.put(Kind::Slice, with(slice("a", &["10.244.1.2"]), ANNOTATIONS, old));
    let rig = Rig::start(api).await;
    rig.routes(A, "10.244.1.2:8080").await;
    let now = triggered(k8s_openapi::jiff::Timestamp::now());
    rig.api.put(Kind::Slice, with(slice("a", &["10.244.1.3"]), ANNOTATIONS, now));
    rig.routes(A, "10.244.1.3:8080").await;
    assert_eq!(sample(&rig, COUNT).await, 1.0);
    assert!(sample(&rig, SUM).await < 20.0);
    rig.api.delete(Kind::Slice, "demo", "a-1");
    rig.routes(A, "reject").await;
    assert_eq!(sample(&rig, COUNT).await, 1.0, "a deletion has no time of its own");
}

#[tokio::test]
async fn e6_service_ports_without_local_endpoints_are_counted_by_policy() {
    let no_local = |policy: &str| {
        format!(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family=\"IPv4\",traffic_policy=\"{policy}\"}}"
        )
    };
    let api = api().await;
    let mut web = with(service("a", A), "/spec/type", json!("NodePort"));
    web["spec"]["ports"][0]["nodePort"] = 30080.into();
    web["spec"]["externalTrafficPolicy"] = "Local".into();
    api.put(Kind::Service, web);
    let inner = with(service("b", "10.96.0.2"), "/spec/internalTrafficPolicy", json!("Local"));
    api.put(Kind::Service, inner);
    let mut elsewhere = slice("a", &["10.244.2.2"]);
    elsewhere["endpoints"][0]["nodeName"] = "node-b".into();
    api.put(Kind::Slice, elsewhere);
    let rig = Rig::start(api).await;
    rig.routes(A, "10.244.2.2:8080").await;
    assert_eq!(sample(&rig, &no_local("external")).await, 1.0);
    assert_eq!(sample(&rig, &no_local("internal")).await, 0.0, "no endpoints at all is another matter");
    let mut elsewhere = slice("b", &["10.244.2.2"]);
    elsewhere["endpoints"][0]["nodeName"] = "node-b".into();
    rig.api.put(Kind::Slice, elsewhere);
    rig.routes("10.96.0.2", "drop").await;
    assert_eq!(sample(&rig, &no_local("internal")).await, 1.0);
}

#[tokio::test]
async fn what_is_ours_alone_is_measured_too() {
    let rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.api.put(Kind::Service, service("b", A));
    rig.api.put(Kind::Service, with(service("c", A), "/spec/ports", json!([{ "port": 0 }])));
    rig.api.put(Kind::Service, service("d", "10.96.0.4"));
    rig.routes("10.96.0.4", "reject").await;
    for (name, value) in [
        ("kubenet_services", 3.0),
        ("kubenet_routes", 2.0),
        ("kubenet_frontend_conflicts", 1.0),
        ("kubenet_refused_objects", 1.0),
        ("kubenet_failed_routes", 0.0),
        ("kubenet_datapath{datapath=\"memory\"}", 1.0),
        ("kubenet_lists_total{kind=\"Service\"}", 1.0),
    ] {
        assert_eq!(sample(&rig, name).await, value, "{name}");
    }
    rig.api.fail_next("/services", 1, 500);
    rig.api.cut(Kind::Service);
    eventually(|| "asked again".into(), || rig.api.requests(Kind::Service).len() >= 2).await;
    rig.api.put(Kind::Service, service("e", "10.96.0.5"));
    rig.routes("10.96.0.5", "reject").await;
    assert_eq!(sample(&rig, "kubenet_watch_failures_total{kind=\"Service\"}").await, 1.0);
}

#[tokio::test]
async fn only_metrics_are_there() {
    let rig = Rig::start(api().await).await;
    let address = rig.agent.metrics_address().unwrap();
    assert_eq!(http_get(address, "/").await.0, 404);
    assert_eq!(http_get(address, "/metrics/../secret").await.0, 404);
}
