use super::*;
use crate::model::Protocol;

fn tcp(name: &str, port: u16) -> ServicePort {
    ServicePort::new(name, Protocol::Tcp, port.try_into().unwrap())
}

fn udp(name: &str, port: u16) -> ServicePort {
    ServicePort::new(name, Protocol::Udp, port.try_into().unwrap())
}

fn on_nodes(port: ServicePort, number: u16) -> ServicePort {
    port.with_node_port(number.try_into().unwrap())
}

fn service(addresses: &[&str], ports: impl IntoIterator<Item = ServicePort>) -> ServiceBuilder {
    let builder = Service::builder("demo", "web");
    let builder = addresses.iter().fold(builder, |b, a| b.cluster_ip(a.parse().unwrap()));
    ports.into_iter().fold(builder, ServiceBuilder::port)
}

fn wrong(builder: ServiceBuilder) -> String {
    builder.build().unwrap_err().to_string()
}

#[test]
fn a_service_has_one_address_or_one_of_each_family() {
    for addresses in [&["10.96.0.1"][..], &["fd00::1"], &["10.96.0.1", "fd00::1"], &["fd00::1", "10.96.0.1"]]
    {
        assert_eq!(service(addresses, [tcp("", 80)]).build().unwrap().cluster_ips().len(), addresses.len());
    }
    assert_eq!(
        wrong(service(&[], [tcp("", 80)])),
        "Service demo/web: spec.clusterIPs: must hold at least one address"
    );
    for (addresses, i) in [
        (&["10.96.0.1", "10.96.0.2"][..], 1),
        (&["fd00::1", "fd00::1"], 1),
        (&["10.96.0.1", "fd00::1", "10.96.0.2"], 2),
    ] {
        assert_eq!(
            wrong(service(addresses, [tcp("", 80)])),
            format!(
                "Service demo/web: spec.clusterIPs[{i}]: {:?}: must be the only address of its family",
                addresses[i]
            )
        );
    }
}

#[test]
fn an_ipv4_mapped_address_counts_as_ipv4() {
    let web = service(&["::ffff:10.96.0.1", "fd00::1"], [tcp("", 80)]).build().unwrap();
    assert_eq!(web.cluster_ips()[0].to_string(), "10.96.0.1");
    assert!(service(&["::ffff:10.96.0.1", "10.96.0.2"], [tcp("", 80)]).build().is_err());
}

#[test]
fn cluster_ips_are_unicast() {
    for address in
        ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "127.0.0.1", "::1", "255.255.255.255", "::ffff:127.0.0.1"]
    {
        let error = wrong(service(&[address], [tcp("", 80)]));
        assert!(error.starts_with("Service demo/web: spec.clusterIPs[0]: "), "{error}");
        assert!(error.ends_with(": must be a unicast address"), "{error}");
    }
}

#[test]
fn a_service_has_a_port() {
    assert_eq!(
        wrong(service(&["10.96.0.1"], [])),
        "Service demo/web: spec.ports: must hold at least one port"
    );
}

#[test]
fn only_a_single_port_may_be_unnamed() {
    assert!(service(&["10.96.0.1"], [tcp("", 80)]).build().is_ok());
    assert_eq!(
        wrong(service(&["10.96.0.1"], [tcp("a", 80), tcp("", 81)])),
        "Service demo/web: spec.ports[1].name: must be set where there is more than one port"
    );
}

#[test]
fn port_names_are_labels_and_unique() {
    assert_eq!(
        wrong(service(&["10.96.0.1"], [tcp("a", 80), udp("a", 81)])),
        "Service demo/web: spec.ports[1].name: \"a\": is used twice"
    );
    for name in ["Http", "a.b", "-a", "a-", "a_b", &"a".repeat(64)] {
        let error = wrong(service(&["10.96.0.1"], [tcp(name, 80)]));
        assert!(
            error.starts_with(&format!("Service demo/web: spec.ports[0].name: {name:?}: must ")),
            "{error}"
        );
    }
    assert!(service(&["10.96.0.1"], [tcp(&"a".repeat(63), 80)]).build().is_ok());
}

#[test]
fn a_number_is_used_once_per_protocol() {
    assert!(service(&["10.96.0.1"], [tcp("dns", 53), udp("dns-udp", 53)]).build().is_ok());
    assert_eq!(
        wrong(service(&["10.96.0.1"], [tcp("a", 53), tcp("b", 53)])),
        "Service demo/web: spec.ports[1].port: \"53/TCP\": is used twice"
    );
}

#[test]
fn node_ports_need_a_type_that_has_them() {
    let port = on_nodes(tcp("", 80), 30080);
    for service_type in [ServiceType::NodePort, ServiceType::LoadBalancer] {
        assert!(service(&["10.96.0.1"], [port.clone()]).service_type(service_type).build().is_ok());
    }
    assert_eq!(
        wrong(service(&["10.96.0.1"], [port])),
        "Service demo/web: spec.ports[0].nodePort: \"30080\": must not be set where the type is ClusterIP"
    );
}

#[test]
fn a_node_port_is_used_once_per_protocol() {
    let ports = |a, b| service(&["10.96.0.1"], [a, b]).service_type(ServiceType::NodePort);
    assert!(ports(on_nodes(tcp("a", 53), 30053), on_nodes(udp("b", 53), 30053)).build().is_ok());
    assert!(ports(tcp("a", 53), tcp("b", 54)).build().is_ok());
    assert_eq!(
        wrong(ports(on_nodes(tcp("a", 53), 30053), on_nodes(tcp("b", 54), 30053))),
        "Service demo/web: spec.ports[1].nodePort: \"30053\": is used twice"
    );
}

#[test]
fn service_names_and_namespaces_are_labels() {
    let named = |namespace: &str, name: &str| {
        Service::builder(namespace, name).cluster_ip([10, 96, 0, 1].into()).port(tcp("", 80)).build()
    };
    assert!(named(&"n".repeat(63), &"s".repeat(63)).is_ok());
    assert!(named("default", "0web").is_ok());
    for (namespace, name, field) in [
        ("", "web", "metadata.namespace"),
        ("a.b", "web", "metadata.namespace"),
        (&"n".repeat(64), "web", "metadata.namespace"),
        ("demo", "", "metadata.name"),
        ("demo", "web.1", "metadata.name"),
        ("demo", &"s".repeat(64), "metadata.name"),
        ("demo", "web/../x", "metadata.name"),
    ] {
        assert_eq!(named(namespace, name).unwrap_err().field, field, "{namespace}/{name}");
    }
}

#[test]
fn the_defaults_are_those_of_the_api() {
    let web = service(&["10.96.0.1"], [tcp("", 80)]).build().unwrap();
    assert_eq!(web.service_type(), ServiceType::ClusterIp);
    assert_eq!(web.internal_traffic_policy(), TrafficPolicy::Cluster);
    assert_eq!(web.external_traffic_policy(), TrafficPolicy::Cluster);
    assert_eq!(web.created(), None);
}

#[test]
fn a_port_is_identified_by_namespace_service_and_name() {
    let web = service(&["10.96.0.1"], [tcp("http", 80)]).build().unwrap();
    assert_eq!(web.port_name(&web.ports()[0]).to_string(), "demo/web:http");
}
