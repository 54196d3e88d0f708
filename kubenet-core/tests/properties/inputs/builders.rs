//! Objects made by hand, of any values.

use std::{net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;
use kubenet_core::{
    model::{
        Affinity, Algorithm, Conditions, Endpoint, EndpointPort, EndpointSlice, Hints, IpFamily,
        LocalDetector, NodeInfo, NodePortAddresses, ObjectName, Protocol, Service, ServicePort, ServiceType,
        TrafficPolicy, validate_label, validate_name,
    },
    resolve::{decide, resolve, resolve_health},
};
use kubenet_testkit::memory::{Flow, Verdict, route};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::values::TEXTS;
use crate::{cases, fixed, sample};

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => select(&["x", "y", "a", "node-a", "east"][..]).prop_map(str::to_owned),
        1 => select(TEXTS).prop_map(str::to_owned),
        1 => "[a-z.-]{0,70}",
    ]
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let some = |texts: &[&str]| select(texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>());
    prop_oneof![
        12 => some(&["10.96.0.1", "fd00:96::1", "10.0.0.1", "::ffff:10.0.0.2"]),
        1 => some(&["127.0.0.1", "::", "224.0.0.1", "fe80::1", "255.255.255.255", "::ffff:0.0.0.0"]),
        1 => any::<IpAddr>(),
    ]
}

fn any_range() -> impl Strategy<Value = IpNet> {
    (any_address(), any::<u8>()).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 33 } else { 129 };
        IpNet::new(address, length % most).unwrap()
    })
}

fn any_number() -> impl Strategy<Value = NonZeroU16> {
    let usual = [1, 80, 30_080, u16::MAX].map(|number| NonZeroU16::new(number).unwrap());
    prop_oneof![3 => select(usual.to_vec()), 1 => any::<NonZeroU16>()]
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    select(&Protocol::ALL[..])
}

fn any_service() -> impl Strategy<Value = Result<Service, kubenet_core::model::InvalidObject>> {
    let addresses = |count| vec(any_address(), count);
    let port = || (any_text(), any_protocol(), any_number(), option::weighted(0.2, any_number()));
    let ports = prop_oneof![4 => vec(port(), 1), 1 => vec(port(), 0..4)];
    let cluster_ips = prop_oneof![4 => addresses(1..2), 1 => addresses(0..4)];
    let kind = select(&[ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer][..]);
    let policy = || select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..]);
    let rest = (any::<u32>(), select(&Algorithm::ALL[..]), any::<bool>(), any::<i64>(), any_number());
    let names = (any_text(), any_text());
    (
        names,
        kind,
        (cluster_ips, addresses(0..3), addresses(0..3)),
        vec(any_range(), 0..3),
        ports,
        [policy(), policy()],
        rest,
    )
        .prop_map(|((namespace, name), kind, addresses, ranges, ports, [internal, external], rest)| {
            let (timeout, algorithm, unreadable, created, health) = rest;
            let (cluster_ips, external_ips, load_balancer_ips) = addresses;
            let mut builder = Service::builder(namespace, name)
                .service_type(kind)
                .internal_traffic_policy(internal)
                .external_traffic_policy(external)
                .algorithm(algorithm)
                .created(created)
                .health_check_node_port(health);
            builder = cluster_ips.into_iter().fold(builder, |builder, address| builder.cluster_ip(address));
            builder = external_ips.into_iter().fold(builder, |builder, address| builder.external_ip(address));
            builder = load_balancer_ips.into_iter().fold(builder, |builder, a| builder.load_balancer_ip(a));
            builder = ranges.into_iter().fold(builder, |builder, range| builder.source_range(range));
            if unreadable {
                builder = builder.unreadable_source_range();
            }
            if let Some(affinity) = Affinity::new(timeout) {
                builder = builder.affinity(affinity);
            }
            for (name, protocol, number, node_port) in ports {
                let port = ServicePort::new(&name, protocol, number);
                builder = builder.port(match node_port {
                    Some(node_port) => port.with_node_port(node_port),
                    None => port,
                });
            }
            builder.build()
        })
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let conditions = any::<[Option<bool>; 3]>();
    let hints = option::of((vec(any_text(), 0..2), vec(any_text(), 0..2)));
    (any_address(), conditions, option::of(any_text()), hints, any::<u16>()).prop_map(
        |(address, [ready, serving, terminating], node, hints, weight)| {
            let mut endpoint = Endpoint::new(address)
                .with_conditions(Conditions::from_api(ready, serving, terminating))
                .with_weight(if weight > 3_000 { 1 } else { weight });
            endpoint.node_name = node.map(Into::into);
            endpoint.hints = hints.map(|(nodes, zones)| {
                let texts = |texts: Vec<String>| texts.into_iter().map(Into::into).collect();
                Hints { nodes: texts(nodes), zones: texts(zones) }.into()
            });
            endpoint
        },
    )
}

fn any_slice() -> impl Strategy<Value = Result<EndpointSlice, kubenet_core::model::InvalidObject>> {
    let ports = vec((any_text(), any_protocol(), option::of(any_number())), 0..3);
    let names = (any_text(), any_text(), any_text());
    (names, select(&IpFamily::ALL[..]), ports, vec(any_endpoint(), 0..4)).prop_map(
        |((namespace, name, service), family, ports, endpoints)| {
            let mut builder = EndpointSlice::builder(namespace, name, service, family).endpoints(endpoints);
            for (name, protocol, port) in ports {
                builder = builder.port(EndpointPort { name: name.as_str().into(), protocol, port });
            }
            builder.build()
        },
    )
}

fn any_node() -> impl Strategy<Value = Result<NodeInfo, kubenet_core::model::InvalidObject>> {
    let ranges = || vec(any_range(), 0..3);
    let detector = prop_oneof![
        Just(LocalDetector::None),
        ranges().prop_map(LocalDetector::Cidrs),
        any_text().prop_map(LocalDetector::Bridge),
        any_text().prop_map(LocalDetector::InterfacePrefix),
    ];
    let node_ports = prop_oneof![
        Just(NodePortAddresses::All),
        Just(NodePortAddresses::Primary),
        ranges().prop_map(NodePortAddresses::Cidrs),
    ];
    (any_text(), any_text(), vec(any_address(), 0..3), detector, node_ports, ranges(), any::<bool>())
        .prop_map(|(name, zone, addresses, detector, node_ports, pods, yes)| {
            let builder = NodeInfo::builder(name)
                .zone(zone)
                .local_detector(detector)
                .node_port_addresses(node_ports)
                .masquerade_all(yes)
                .localhost_node_ports(yes);
            let builder = addresses.into_iter().fold(builder, |builder, address| builder.address(address));
            pods.into_iter()
                .fold(builder, |builder, range| builder.pod_cidr(range).cluster_cidr(range))
                .build()
        })
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_values_make_objects_or_say_why_not(
        node in any_node(),
        services in vec(any_service(), 0..6),
        slices in vec(any_slice(), 0..6),
        source in any_address(),
    ) {
        for error in services.iter().filter_map(|s| s.as_ref().err()).chain(slices.iter().filter_map(|s| s.as_ref().err())) {
            prop_assert!(!error.field.is_empty() && !error.rule.is_empty(), "{:?}", error);
        }
        let services: Vec<_> = services.into_iter().flatten().collect();
        let slices: Vec<_> = slices.into_iter().flatten().collect();
        let fallback = || NodeInfo::builder("node-a").build().unwrap();
        let node = node.unwrap_or_else(|_| fallback());
        for service in &services {
            for port in service.ports() {
                for family in IpFamily::ALL {
                    decide(&node, service, port, family, &slices);
                }
            }
            resolve_health(&node, service, &slices);
        }
        let table = resolve(&node, &services, &slices);
        for known in table.routes() {
            prop_assert!(known.backends().all(|b| IpFamily::of(b.address) == known.frontend.family()));
            for target in [&known.internal, &known.external] {
                let at = |i: usize| (target.backends[i].address, target.backends[i].port);
                prop_assert!((1..target.backends.len()).all(|i| at(i - 1) < at(i)), "sorted, each once");
            }
            if let kubenet_core::route::FrontendAddress::Ip(address) = known.frontend.address {
                let to = std::net::SocketAddr::new(address, known.frontend.port.get());
                let flow = Flow::new(std::net::SocketAddr::new(source, 1), to, known.frontend.protocol);
                prop_assert_ne!(route(&table, &flow, false), Verdict::Pass);
            }
        }
    }

    #[test]
    fn any_text_is_a_name_or_not(namespace in any_text(), name in any_text()) {
        let valid = validate_label(&namespace).and_then(|()| validate_name(&name));
        prop_assert_eq!(ObjectName::new("Service", &namespace, &name).is_ok(), valid.is_ok());
    }
}

#[test]
fn any_values_are_neither_always_valid_nor_never() {
    let (mut runner, strategy) = (fixed(), (any_service(), any_slice(), any_node()));
    let mut valid = [0; 3];
    for _ in 0..500 {
        let (service, slice, node) = sample(&strategy, &mut runner);
        for (count, is_valid) in valid.iter_mut().zip([service.is_ok(), slice.is_ok(), node.is_ok()]) {
            *count += usize::from(is_valid);
        }
    }
    assert!(valid.iter().all(|count| (100..450).contains(count)), "{valid:?} of 500");
}
