use k8s_openapi::api::core::v1;

use super::{
    Conversion, Converter, NotOurs, Notice,
    conversion::{Checks, Problems},
    meta, parse_address,
};
use crate::model::{IpFamily, Service, ServicePort, ServiceType, TrafficPolicy, validate_label};

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

pub(super) fn convert(converter: &Converter, object: &v1::Service) -> Result<Conversion<Service>, Problems> {
    let (namespace, name) = meta::names(&object.metadata);
    let title = meta::title("Service", namespace, name);
    // A name that cannot be is wrong whoever the object is for.
    meta::check_names(&title, namespace, name, validate_label)?;
    let default_spec = v1::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default_spec);
    if let Some(reason) = not_ours(converter, object, spec) {
        return Ok(Conversion::NotOurs(reason));
    }

    let mut checks = Checks::new(&title);
    let mut builder = Service::builder(namespace, name)
        .service_type(service_type(spec, &mut checks))
        .internal_traffic_policy(policy(
            spec.internal_traffic_policy.as_ref(),
            "spec.internalTrafficPolicy",
            &mut checks,
        ))
        .external_traffic_policy(policy(
            spec.external_traffic_policy.as_ref(),
            "spec.externalTrafficPolicy",
            &mut checks,
        ));
    if let Some(created) = &object.metadata.creation_timestamp {
        builder = builder.created(created.0.as_second());
    }
    for address in cluster_ips(spec, &mut checks) {
        builder = builder.cluster_ip(address);
    }
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(port) = service_port(i, port, &mut checks) {
            builder = builder.port(port);
        }
    }
    match meta::text(spec.session_affinity.as_ref()) {
        None | Some("None" | "ClientIP") => {}
        Some(other) => checks.add("spec.sessionAffinity", other, "must be None or ClientIP"),
    }
    checks.end()?;
    let service = builder.build()?;
    Ok(Conversion::Ours(service, notices(&title, spec, object)))
}

fn not_ours(converter: &Converter, object: &v1::Service, spec: &v1::ServiceSpec) -> Option<NotOurs> {
    if meta::label(&object.metadata, PROXY_NAME) != converter.service_proxy_name.as_deref() {
        return Some(NotOurs::OtherProxy);
    }
    if spec.type_.as_deref() == Some("ExternalName") {
        return Some(NotOurs::ExternalName);
    }
    let mut addresses = written_cluster_ips(spec).peekable();
    if addresses.peek().is_none() {
        return Some(NotOurs::NoClusterIp);
    }
    addresses.all(|(_, address)| address == "None").then_some(NotOurs::Headless)
}

/// The cluster IPs that are written, with their fields: `clusterIPs`, else `clusterIP`. Empty ones count as
/// absent.
fn written_cluster_ips(spec: &v1::ServiceSpec) -> impl Iterator<Item = (String, &str)> {
    let many = spec.cluster_ips.iter().flatten().enumerate();
    let many =
        many.filter(|(_, a)| !a.is_empty()).map(|(i, a)| (format!("spec.clusterIPs[{i}]"), a.as_str()));
    let only = if spec.cluster_ips.iter().flatten().all(String::is_empty) {
        meta::text(spec.cluster_ip.as_ref())
    } else {
        None
    };
    many.chain(only.map(|a| ("spec.clusterIP".to_owned(), a)))
}

fn cluster_ips(spec: &v1::ServiceSpec, checks: &mut Checks<'_>) -> Vec<std::net::IpAddr> {
    let mut addresses = Vec::new();
    for (i, (field, text)) in written_cluster_ips(spec).enumerate() {
        let address = match parse_address(text) {
            Ok(address) => address,
            Err(_) if text == "None" => {
                checks.add(field, text, "must stand alone: a Service is headless or has addresses");
                continue;
            }
            Err(error) => {
                checks.add(field, text, error.to_string());
                continue;
            }
        };
        match spec.ip_families.as_ref().and_then(|families| families.get(i)) {
            Some(family) if family != IpFamily::of(address).as_str() => {
                checks.add(field, text, format!("must be of family {family}, as spec.ipFamilies[{i}] says"));
            }
            _ => addresses.push(address),
        }
    }
    // The API keeps the two fields equal; a file may not.
    if let (Some(only), Some(first)) = (meta::text(spec.cluster_ip.as_ref()), addresses.first())
        && parse_address(only).ok() != Some(*first)
    {
        checks.add("spec.clusterIP", only, format!("must equal spec.clusterIPs[0], which is {first}"));
    }
    for (i, family) in spec.ip_families.iter().flatten().enumerate() {
        if !IpFamily::ALL.iter().any(|known| known.as_str() == family) {
            checks.add(format!("spec.ipFamilies[{i}]"), family, "must be IPv4 or IPv6");
        }
    }
    addresses
}

fn service_type(spec: &v1::ServiceSpec, checks: &mut Checks<'_>) -> ServiceType {
    match meta::text(spec.type_.as_ref()) {
        None | Some("ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some(other) => {
            checks.add("spec.type", other, "must be ClusterIP, NodePort, LoadBalancer or ExternalName");
            ServiceType::ClusterIp
        }
    }
}

fn policy(value: Option<&String>, field: &str, checks: &mut Checks<'_>) -> TrafficPolicy {
    match meta::text(value) {
        None | Some("Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            checks.add(field, other, "must be Cluster or Local");
            TrafficPolicy::Cluster
        }
    }
}

fn service_port(i: usize, port: &v1::ServicePort, checks: &mut Checks<'_>) -> Option<ServicePort> {
    let field = format!("spec.ports[{i}]");
    let protocol = meta::protocol(port.protocol.as_ref(), &field, checks);
    // An absent number reads as 0, which the API does not allow either; an absent node port, too.
    let number = meta::port(port.port, format!("{field}.port"), checks);
    let node_port = match port.node_port {
        None | Some(0) => None,
        Some(node_port) => Some(meta::port(node_port, format!("{field}.nodePort"), checks)?),
    };
    let port = ServicePort::new(port.name.as_deref().unwrap_or_default(), protocol, number?);
    Some(match node_port {
        Some(node_port) => port.with_node_port(node_port),
        None => port,
    })
}

/// What the object asks for and does not get.
fn notices(title: &str, spec: &v1::ServiceSpec, object: &v1::Service) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut add = |field: &str, note: &str| notices.push(Notice::new(title, field, note));
    if spec.external_ips.iter().flatten().next().is_some() {
        add("spec.externalIPs", "not served: traffic to these addresses is not routed to the Service");
    }
    let ingress = object.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|lb| &lb.ingress);
    // A load balancer of mode Proxy sends to the node ports by itself.
    if ingress.flatten().any(|i| i.ip.is_some() && i.ip_mode.as_deref() != Some("Proxy")) {
        add(
            "status.loadBalancer.ingress",
            "not served: traffic that arrives with these addresses is not routed to the Service; its node \
             ports are",
        );
    }
    if spec.load_balancer_source_ranges.iter().flatten().next().is_some() {
        add(
            "spec.loadBalancerSourceRanges",
            "not applied: no source is filtered; the load balancer's addresses are not served either",
        );
    }
    if meta::text(spec.session_affinity.as_ref()) == Some("ClientIP") {
        add(
            "spec.sessionAffinity",
            "ClientIP is not served: every new connection chooses among all endpoints",
        );
    }
    if spec.health_check_node_port.is_some_and(|port| port != 0) {
        add("spec.healthCheckNodePort", "not served: nothing answers health checks on this port");
    }
    if meta::text(spec.traffic_distribution.as_ref()).is_some() {
        add("spec.trafficDistribution", "not served: endpoints of all zones and nodes are used alike");
    }
    notices
}
