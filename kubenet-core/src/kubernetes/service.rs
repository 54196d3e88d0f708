use k8s_openapi::api::core::v1;

use super::{
    Conversion, Converter, NotOurs,
    conversion::{Checks, Problems},
    meta,
    optional::Optional,
    parse_address,
};
use crate::model::{Affinity, IpFamily, Service, ServicePort, ServiceType, TrafficPolicy, validate_label};

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
    if let Some(affinity) = affinity(spec, &mut checks) {
        builder = builder.affinity(affinity);
    }
    if let Some(port) = spec.health_check_node_port.filter(|port| *port != 0)
        && let Some(port) = meta::port(port, "spec.healthCheckNodePort".into(), &mut checks)
    {
        builder = builder.health_check_node_port(port);
    }
    let mut reader = Optional::new(&title, object, spec);
    builder = reader.external_ips(builder, &mut checks);
    builder = reader.load_balancer_ips(builder);
    builder = reader.source_ranges(builder);
    builder = reader.algorithm(builder);
    let notices = reader.notices;
    checks.end()?;
    Ok(Conversion::Ours(builder.build()?, notices))
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
pub(super) fn written_cluster_ips(spec: &v1::ServiceSpec) -> impl Iterator<Item = (String, &str)> {
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

/// [A1]: `ClientIP`, for three hours unless the Service says otherwise.
fn affinity(spec: &v1::ServiceSpec, checks: &mut Checks<'_>) -> Option<Affinity> {
    match meta::text(spec.session_affinity.as_ref()) {
        None | Some("None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            checks.add("spec.sessionAffinity", other, "must be None or ClientIP");
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
        return Some(Affinity::default());
    };
    let affinity = u32::try_from(seconds).ok().and_then(Affinity::new);
    if affinity.is_none() {
        let rule = format!("must be 1 to {}", Affinity::MAX_TIMEOUT_SECONDS);
        checks.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, rule);
    }
    affinity
}
