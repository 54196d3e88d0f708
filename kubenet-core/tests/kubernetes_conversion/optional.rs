//! Fields beyond the cluster IP and the node port, and what becomes of those that cannot be used.

use super::*;

fn texts(notices: &[Notice]) -> Vec<String> {
    notices.iter().map(ToString::to_string).collect()
}

#[test]
fn f2_external_ips_are_taken_and_one_that_is_no_address_is_an_error() {
    let (web, notices) = service(&[("/spec/externalIPs", json!(["192.0.2.001", "::ffff:192.0.2.2"]))]);
    assert_eq!(web.external_ips(), ["192.0.2.1".parse::<IpAddr>().unwrap(), [192, 0, 2, 2].into()]);
    assert_eq!(notices, []);
    assert_eq!(
        service_is_wrong(&[("/spec/externalIPs", json!(["192.0.2.1", "x"]))]),
        "Service demo/web: spec.externalIPs[1]: \"x\": must be an IPv4 or IPv6 address"
    );
}

#[test]
fn f3_ingress_addresses_count_whatever_the_type_except_those_of_mode_proxy_and_load_balancer_ip_never() {
    let (web, notices) = service(&[
        (
            "/status/loadBalancer/ingress",
            json!([
                { "ip": "192.0.2.1" },
                { "ip": "192.0.2.2", "ipMode": "VIP" },
                { "ip": "192.0.2.3", "ipMode": "Proxy" },
                { "hostname": "lb.example.org" },
            ]),
        ),
        ("/spec/loadBalancerIP", json!("192.0.2.4")),
    ]);
    assert_eq!(web.load_balancer_ips(), [IpAddr::from([192, 0, 2, 1]), [192, 0, 2, 2].into()]);
    assert_eq!(notices, []);
}

#[test]
fn f3_a_bad_ingress_address_is_noted_and_takes_nothing_away() {
    let ingress = json!([
        { "ip": "lb" }, { "ip": "0.0.0.0" }, { "ip": "192.0.2.1", "ipMode": "Other" }, { "ip": "192.0.2.2" },
    ]);
    let (web, notices) = service(&[("/status/loadBalancer/ingress", ingress)]);
    assert_eq!(web.load_balancer_ips(), [IpAddr::from([192, 0, 2, 2])]);
    assert_eq!(
        texts(&notices),
        [
            "Service demo/web: status.loadBalancer.ingress[0].ip: \"lb\" is ignored: must be an IPv4 or IPv6 address",
            "Service demo/web: status.loadBalancer.ingress[1].ip: \"0.0.0.0\" is ignored: must be a unicast address",
            "Service demo/web: status.loadBalancer.ingress[2]: is ignored: ipMode \"Other\" must be VIP or Proxy",
        ]
    );
}

#[test]
fn o4_addresses_of_the_wrong_family_are_ignored_with_a_notice() {
    let (web, notices) = service(&[
        ("/spec/externalIPs", json!(["fd00::9", "192.0.2.1"])),
        ("/status/loadBalancer/ingress", json!([{ "ip": "fd00::8" }])),
        ("/spec/loadBalancerSourceRanges", json!(["fd00::/8"])),
    ]);
    assert_eq!(web.external_ips(), [IpAddr::from([192, 0, 2, 1])]);
    assert!(web.load_balancer_ips().is_empty());
    let ignored = "is ignored: the Service has no IPv6 cluster IP";
    assert_eq!(
        texts(&notices),
        [
            format!("Service demo/web: spec.externalIPs[0]: fd00::9 {ignored}"),
            format!("Service demo/web: status.loadBalancer.ingress[0]: fd00::8 {ignored}"),
            format!("Service demo/web: spec.loadBalancerSourceRanges[0]: fd00::/8 {ignored}"),
        ]
    );
}

#[test]
fn a_name_that_cannot_be_neither_breaks_a_line_nor_fills_a_screen() {
    let name = format!("web\r\n{}", "x".repeat(100_000));
    let wrong = service_is_wrong(&[("/metadata/name", json!(name))]);
    assert!(wrong.len() < 1000 && !wrong.contains(char::is_control), "{wrong:?}");
}

#[test]
fn r1_a_source_range_that_cannot_be_read_is_noted_and_remembered() {
    let (web, notices) =
        service(&[("/spec/loadBalancerSourceRanges", json!([" 10.0.0.1/8 ", "10.0.0.0/33"]))]);
    assert_eq!(web.source_ranges(), ["10.0.0.0/8".parse().unwrap()]);
    assert!(web.has_unreadable_source_ranges());
    assert_eq!(
        texts(&notices),
        [
            "Service demo/web: spec.loadBalancerSourceRanges[1]: \"10.0.0.0/33\" admits nobody: must be an IPv4 or \
          IPv6 CIDR"
        ]
    );
    assert!(!service(&[]).0.has_unreadable_source_ranges());
}

#[test]
fn a1_client_ip_affinity_has_a_timeout_of_1_to_86400_seconds_and_three_hours_by_default() {
    let affinity = |config: Value| {
        let changes = [("/spec/sessionAffinity", json!("ClientIP")), ("/spec/sessionAffinityConfig", config)];
        service(&changes).0.affinity().map(|a| a.timeout_seconds())
    };
    assert_eq!(service(&[]).0.affinity(), None);
    assert_eq!(affinity(json!(null)), Some(10_800));
    assert_eq!(affinity(json!({ "clientIP": {} })), Some(10_800));
    assert_eq!(affinity(json!({ "clientIP": { "timeoutSeconds": 86_400 } })), Some(86_400));
    for seconds in [0, -1, 86_401] {
        let config = json!({ "clientIP": { "timeoutSeconds": seconds } });
        assert_eq!(
            service_is_wrong(&[
                ("/spec/sessionAffinity", json!("ClientIP")),
                ("/spec/sessionAffinityConfig", config),
            ]),
            format!(
                "Service demo/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: \"{seconds}\": must be 1 to 86400"
            )
        );
    }
}

#[test]
fn the_algorithm_is_an_annotation_and_an_unknown_one_is_noted() {
    let chosen = |name: &str| service(&[("/metadata/annotations", json!({ "kubenet.dev/algorithm": name }))]);
    assert_eq!(service(&[]).0.algorithm(), Algorithm::Random);
    assert_eq!(chosen("maglev").0.algorithm(), Algorithm::Maglev);
    let (web, notices) = chosen("magleff");
    assert_eq!(web.algorithm(), Algorithm::Random);
    assert_eq!(
        texts(&notices),
        [
            "Service demo/web: metadata.annotations[kubenet.dev/algorithm]: \"magleff\" is ignored: must be random or \
          maglev; backends are picked at random"
        ]
    );
}

#[test]
fn h1_the_health_check_port_counts_for_load_balancers_of_policy_local() {
    let port = |kind: &str, policy: &str| {
        let (web, notices) = service(&[
            ("/spec/type", json!(kind)),
            ("/spec/externalTrafficPolicy", json!(policy)),
            ("/spec/healthCheckNodePort", json!(32000)),
        ]);
        assert_eq!(notices, []);
        web.health_check_node_port().map(|port| port.get())
    };
    assert_eq!(port("LoadBalancer", "Local"), Some(32000));
    assert_eq!(port("LoadBalancer", "Cluster"), None);
    assert_eq!(port("NodePort", "Local"), None);
    assert!(service_is_wrong(&[("/spec/healthCheckNodePort", json!(65536))]).contains("must be 1 to 65535"));
}

#[test]
fn e3_hints_are_sets_of_zones_and_nodes_and_those_that_lead_nowhere_are_none() {
    let hints = |hints: Value| {
        let endpoints = json!([{ "addresses": ["10.0.0.1"], "hints": hints }]);
        slice(&[("/endpoints", endpoints)]).endpoints()[0].hints.clone()
    };
    let both = json!({ "forZones": [{ "name": "a" }, { "name": "b" }], "forNodes": [{ "name": "n" }] });
    let both = hints(both).unwrap();
    assert_eq!((both.zones.len(), both.nodes.len()), (2, 1));
    for nowhere in
        [json!(null), json!({}), json!({ "forZones": [] }), json!({ "forZones": [{ "name": "" }] })]
    {
        assert_eq!(hints(nowhere), None);
    }
}

#[test]
fn weights_are_an_annotation_of_the_slice() {
    let object = slice_with(&[
        (
            "/metadata/annotations",
            json!({ "kubenet.dev/weights": "10.244.1.10 = 3, x=1, 10.244.1.11=1001, fd00::1" }),
        ),
        ("/endpoints", json!([{ "addresses": ["10.244.1.10"] }, { "addresses": ["10.244.1.11"] }])),
    ]);
    let Ok(Conversion::Ours(slice, notices)) = Conversion::<EndpointSlice>::try_from(&object) else {
        panic!()
    };
    let weights: Vec<_> = slice.endpoints().iter().map(|endpoint| endpoint.weight).collect();
    assert_eq!(weights, [3, 1]);
    let ignored: Vec<_> = notices.iter().map(|n| n.note.split(' ').next().unwrap()).collect();
    assert_eq!(ignored, ["\"x=1\"", "\"10.244.1.11=1001\"", "\"fd00::1\""]);
}

#[test]
fn a_node_says_its_zone_its_pods_and_its_addresses_the_internal_ones_first() {
    let node = |object: Value| NodeInfo::try_from(&serde_json::from_value::<v1::Node>(object).unwrap());
    let info = node(json!({
        "metadata": { "name": "node-a", "labels": { "topology.kubernetes.io/zone": "a" } },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"] },
        "status": { "addresses": [
            { "type": "ExternalIP", "address": "192.0.2.1" },
            { "type": "Hostname", "address": "node-a" },
            { "type": "InternalIP", "address": "10.0.0.1" },
            { "type": "InternalIP", "address": "::ffff:10.0.0.1" },
        ] },
    }))
    .unwrap();
    assert_eq!((info.name(), info.zone()), ("node-a", Some("a")));
    assert_eq!(info.addresses(), [IpAddr::from([10, 0, 0, 1]), [192, 0, 2, 1].into()]);
    assert_eq!(info.pod_cidrs().len(), 2);
    let bare = node(json!({ "metadata": { "name": "node-b" } })).unwrap();
    assert_eq!((bare.zone(), bare.addresses().len()), (None, 0));
    let wrong = node(json!({
        "metadata": { "name": "node-a" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0" }] },
    }));
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "Node node-a: status.addresses[0].address: \"10.0.0\": must be an IPv4 or IPv6 address"
    );
    assert!(node(json!({ "metadata": {} })).unwrap_err().to_string().contains("metadata.name: must be set"));
}
