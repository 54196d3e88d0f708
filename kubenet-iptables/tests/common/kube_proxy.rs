//! What `iptables-save` prints where a kube-proxy is at work, and the routes that it serves. The crate's own
//! tests have it, too.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each user uses a part; a failed step fails the test"
)]

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use kubenet_core::{
    model::{Affinity, IpFamily, Protocol},
    route::{
        Backend, Frontend, FrontendKind, Masquerade, Route, ServicePortName, SourceRanges, Target, WhenEmpty,
    },
};

/// All rules of a family.
pub fn saved(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => include_str!("../fixtures/kube-proxy-v4.save"),
        IpFamily::V6 => include_str!("../fixtures/kube-proxy-v6.save"),
    }
}

/// Where pods live.
pub fn pods(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "10.244.0.0/16",
        IpFamily::V6 => "fd00:244::/32",
    }
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

/// An endpoint: the node that it is on, its number there, and its port. Those on node 1 are on this node.
type Endpoint = (u8, u8, u16);

/// The routes of a family, with these endpoints known to be local.
pub fn routes(family: IpFamily, local: impl Fn(Endpoint) -> bool) -> Vec<Arc<Route>> {
    let ip = |v4: &str, v6: &str, last: u8| -> IpAddr {
        match family {
            IpFamily::V4 => format!("{v4}{last}").parse().unwrap(),
            IpFamily::V6 => format!("{v6}{last}").parse().unwrap(),
        }
    };
    let backends = |endpoints: &[Endpoint]| -> Arc<[Backend]> {
        let backend = |&(node, n, to): &Endpoint| {
            let address = ip(&format!("10.244.{node}."), &format!("fd00:244:{node}::"), n);
            Backend::new(address, port(to), local((node, n, to)))
        };
        endpoints.iter().map(backend).collect()
    };
    let reject =
        |endpoints: &[Endpoint]| Target { backends: backends(endpoints), when_empty: WhenEmpty::Reject };
    let drops = Target { backends: Arc::default(), when_empty: WhenEmpty::Drop };
    let named = |service: &str, port: &str| ServicePortName {
        namespace: "demo".into(),
        service: service.into(),
        port: port.into(),
    };
    let mut routes: Vec<Route> = Vec::new();
    let cluster_ip = |last, to| {
        (Frontend::ip(ip("10.96.0.", "fd00:96::", last), port(to), Protocol::Tcp), FrontendKind::ClusterIp)
    };
    let public =
        |last, to, kind| (Frontend::ip(ip("203.0.113.", "2001:db8::", last), port(to), Protocol::Tcp), kind);
    let node_port = |to| (Frontend::node_port(family, port(to), Protocol::Tcp), FrontendKind::NodePort);
    let mut push = |(frontend, kind): (Frontend, FrontendKind),
                    name,
                    internal: &Target,
                    external: &Target,
                    masquerade| {
        let mut route = Route::new(frontend, kind, name, internal.clone(), masquerade);
        route.external = external.clone();
        routes.push(route);
        routes.len() - 1
    };
    let not_pods = Masquerade { pods: false, node: true, outside: true };
    let of_node = Masquerade { pods: false, node: true, outside: false };
    let (external, balanced) = (FrontendKind::ExternalIp, FrontendKind::LoadBalancer);

    let web = reject(&[(1, 2, 8080), (1, 3, 8080), (1, 4, 8080), (1, 5, 8080), (1, 6, 8080)]);
    push(cluster_ip(10, 80), named("web", "http"), &web, &web, not_pods);
    push(node_port(30080), named("web", "http"), &web, &web, Masquerade::ALWAYS);

    let dns = reject(&[(1, 20, 5353), (2, 20, 5353)]);
    let sticky = push(cluster_ip(53, 53), named("dns", "dns"), &dns, &dns, not_pods);

    let (all, here) = (reject(&[(1, 30, 8443), (2, 30, 8443)]), reject(&[(1, 30, 8443)]));
    push(cluster_ip(11, 443), named("gate", ""), &all, &all, not_pods);
    push(node_port(30081), named("gate", ""), &all, &here, of_node);
    let guarded = push(public(5, 443, balanced), named("gate", ""), &all, &here, of_node);

    let open = reject(&[(2, 40, 8080)]);
    push(cluster_ip(14, 80), named("open", "http"), &open, &open, not_pods);
    push(public(80, 80, external), named("open", "http"), &open, &open, Masquerade::ALWAYS);
    push(public(81, 80, balanced), named("open", "http"), &open, &open, Masquerade::ALWAYS);

    let none = reject(&[]);
    for frontend in [cluster_ip(99, 80), node_port(30099), public(99, 80, external)] {
        push(frontend, named("empty", "http"), &none, &none, Masquerade::NEVER);
    }

    let away = reject(&[(2, 50, 8080)]);
    push(cluster_ip(12, 80), named("away", "http"), &away, &away, not_pods);
    push(node_port(30082), named("away", "http"), &away, &drops, of_node);
    push(public(12, 80, balanced), named("away", "http"), &away, &drops, of_node);

    let near = reject(&[(1, 60, 8080)]);
    push(cluster_ip(13, 80), named("near", "http"), &near, &near, not_pods);
    push(cluster_ip(15, 80), named("far", "http"), &drops, &drops, Masquerade::NEVER);

    routes[sticky].frontend.protocol = Protocol::Udp;
    routes[sticky].affinity = Affinity::new(3600);
    let cidrs = match family {
        IpFamily::V4 => ["192.0.2.0/25", "198.51.100.0/24"],
        IpFamily::V6 => ["2001:db8:1::/48", "2001:db8:2::/64"],
    };
    let cidrs = cidrs.map(|cidr| cidr.parse().unwrap()).into();
    routes[guarded].source_ranges = Some(Arc::new(SourceRanges { cidrs, node: true }));
    routes.into_iter().map(Arc::new).collect()
}

/// Those that a set of local endpoints names.
pub fn told_by_rules((node, n, _): Endpoint) -> bool {
    node == 1 && [30, 60].contains(&n)
}
