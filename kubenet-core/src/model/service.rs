use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    sync::Arc,
};

use super::{InvalidObject, ObjectName, Protocol, name::validate_port_name, validate_label};
use crate::route::ServicePortName;

/// `spec.type` of a Service with a virtual address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceType {
    /// Reached inside the cluster.
    #[default]
    ClusterIp,
    /// Reached on a port of every node, too.
    NodePort,
    /// Reached through a load balancer, too.
    LoadBalancer,
}

/// `spec.internalTrafficPolicy` and `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Endpoints on any node.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// A port of a [`Service`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    name: Arc<str>,
    protocol: Protocol,
    port: NonZeroU16,
    node_port: Option<NonZeroU16>,
}

impl ServicePort {
    /// A port. An empty name is allowed where it is the only one.
    pub fn new(name: &str, protocol: Protocol, port: NonZeroU16) -> Self {
        Self { name: name.into(), protocol, port, node_port: None }
    }

    /// The same on a port of every node.
    #[must_use]
    pub fn with_node_port(mut self, node_port: NonZeroU16) -> Self {
        self.node_port = Some(node_port);
        self
    }

    /// Its name; slices refer to it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The port that clients dial on the cluster IP.
    pub fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// The port that clients dial on the nodes.
    pub fn node_port(&self) -> Option<NonZeroU16> {
        self.node_port
    }
}

/// A Kubernetes Service that has at least one virtual address.
///
/// Headless and `ExternalName` Services have no place here: nothing is routed for them.
///
/// ```
/// use kubenet_core::model::{Protocol, Service, ServicePort, ServiceType};
/// let web = Service::builder("demo", "web")
///     .service_type(ServiceType::NodePort)
///     .cluster_ip("10.96.0.10".parse()?)
///     .port(ServicePort::new("http", Protocol::Tcp, 80.try_into()?).with_node_port(30080.try_into()?))
///     .build()?;
/// assert_eq!(web.name().to_string(), "demo/web");
/// let error = Service::builder("demo", "web").build().unwrap_err();
/// assert_eq!(error.to_string(), "Service demo/web: spec.clusterIPs: must hold at least one address");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    name: ObjectName,
    service_type: ServiceType,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<ServicePort>,
    internal_traffic_policy: TrafficPolicy,
    external_traffic_policy: TrafficPolicy,
    /// Seconds since the Unix epoch; older Services win a contested frontend.
    created: Option<i64>,
}

impl Service {
    /// Begins a Service.
    pub fn builder(namespace: impl Into<String>, name: impl Into<String>) -> ServiceBuilder {
        ServiceBuilder {
            namespace: namespace.into(),
            name: name.into(),
            service_type: ServiceType::ClusterIp,
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            created: None,
        }
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Its type.
    pub fn service_type(&self) -> ServiceType {
        self.service_type
    }

    /// Its virtual addresses: one, or one of each family.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        &self.cluster_ips
    }

    /// Its ports.
    pub fn ports(&self) -> &[ServicePort] {
        &self.ports
    }

    /// Which endpoints serve traffic to the cluster IPs.
    pub fn internal_traffic_policy(&self) -> TrafficPolicy {
        self.internal_traffic_policy
    }

    /// Which endpoints serve traffic from outside.
    pub fn external_traffic_policy(&self) -> TrafficPolicy {
        self.external_traffic_policy
    }

    /// When it was created, in seconds since the Unix epoch.
    pub fn created(&self) -> Option<i64> {
        self.created
    }

    /// The identity of one of its ports.
    pub fn port_name(&self, port: &ServicePort) -> ServicePortName {
        ServicePortName {
            namespace: Arc::clone(self.name.namespace()),
            service: Arc::clone(self.name.name()),
            port: Arc::clone(&port.name),
        }
    }
}

/// Builds a [`Service`].
#[derive(Clone, Debug)]
pub struct ServiceBuilder {
    namespace: String,
    name: String,
    service_type: ServiceType,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<ServicePort>,
    internal_traffic_policy: TrafficPolicy,
    external_traffic_policy: TrafficPolicy,
    created: Option<i64>,
}

impl ServiceBuilder {
    /// Sets the type; `ClusterIP` when not set.
    #[must_use]
    pub fn service_type(mut self, service_type: ServiceType) -> Self {
        self.service_type = service_type;
        self
    }

    /// Adds a virtual address.
    #[must_use]
    pub fn cluster_ip(mut self, address: IpAddr) -> Self {
        self.cluster_ips.push(address.to_canonical());
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, port: ServicePort) -> Self {
        self.ports.push(port);
        self
    }

    /// Sets the policy of traffic to the cluster IPs.
    #[must_use]
    pub fn internal_traffic_policy(mut self, policy: TrafficPolicy) -> Self {
        self.internal_traffic_policy = policy;
        self
    }

    /// Sets the policy of traffic to the node ports.
    #[must_use]
    pub fn external_traffic_policy(mut self, policy: TrafficPolicy) -> Self {
        self.external_traffic_policy = policy;
        self
    }

    /// Sets when it was created, in seconds since the Unix epoch.
    #[must_use]
    pub fn created(mut self, seconds: i64) -> Self {
        self.created = Some(seconds);
        self
    }

    /// Checks and ends.
    ///
    /// # Errors
    /// The first rule of the Kubernetes API that is broken.
    pub fn build(self) -> Result<Service, InvalidObject> {
        let name = ObjectName::new("Service", &self.namespace, &self.name)?;
        let bad = |field: String, value: String, rule: &str| {
            Err(InvalidObject::new(format!("Service {name}"), field, value, rule))
        };
        if let Err(rule) = validate_label(&self.name) {
            return bad("metadata.name".into(), self.name.clone(), &rule);
        }
        if self.cluster_ips.is_empty() {
            return bad("spec.clusterIPs".into(), String::new(), "must hold at least one address");
        }
        for (i, address) in self.cluster_ips.iter().enumerate() {
            let field = format!("spec.clusterIPs[{i}]");
            if address.is_unspecified()
                || address.is_multicast()
                || address.is_loopback()
                || *address == IpAddr::V4(Ipv4Addr::BROADCAST)
            {
                return bad(field, address.to_string(), "must be a unicast address");
            }
            if i == 2 || (i == 1 && address.is_ipv4() == self.cluster_ips[0].is_ipv4()) {
                return bad(field, address.to_string(), "must be the only address of its family");
            }
        }
        if self.ports.is_empty() {
            return bad("spec.ports".into(), String::new(), "must hold at least one port");
        }
        for (i, port) in self.ports.iter().enumerate() {
            let earlier = &self.ports[..i];
            if let Err(rule) = validate_port_name(&port.name) {
                return bad(format!("spec.ports[{i}].name"), port.name.to_string(), &rule);
            }
            if port.name.is_empty() && self.ports.len() > 1 {
                return bad(
                    format!("spec.ports[{i}].name"),
                    String::new(),
                    "must be set where there is more than one port",
                );
            }
            if earlier.iter().any(|p| p.name == port.name) {
                return bad(format!("spec.ports[{i}].name"), port.name.to_string(), "is used twice");
            }
            if earlier.iter().any(|p| p.port == port.port && p.protocol == port.protocol) {
                return bad(
                    format!("spec.ports[{i}].port"),
                    format!("{}/{}", port.port, port.protocol),
                    "is used twice",
                );
            }
            let Some(node_port) = port.node_port else { continue };
            if self.service_type == ServiceType::ClusterIp {
                return bad(
                    format!("spec.ports[{i}].nodePort"),
                    node_port.to_string(),
                    "must not be set where the type is ClusterIP",
                );
            }
            if earlier.iter().any(|p| p.node_port == port.node_port && p.protocol == port.protocol) {
                return bad(format!("spec.ports[{i}].nodePort"), node_port.to_string(), "is used twice");
            }
        }
        Ok(Service {
            name,
            service_type: self.service_type,
            cluster_ips: self.cluster_ips,
            ports: self.ports,
            internal_traffic_policy: self.internal_traffic_policy,
            external_traffic_policy: self.external_traffic_policy,
            created: self.created,
        })
    }
}

#[cfg(test)]
mod tests;
