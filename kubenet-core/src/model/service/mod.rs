mod balancing;
mod builder;
mod port;

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use ipnet::IpNet;

pub(crate) use self::builder::unicast;
pub use self::{
    balancing::{Affinity, Algorithm, UnknownAlgorithm},
    builder::ServiceBuilder,
    port::ServicePort,
};
use super::ObjectName;
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    name: ObjectName,
    spec: Spec,
}

/// What the builder gathers and a Service keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Spec {
    service_type: ServiceType,
    cluster_ips: Vec<IpAddr>,
    external_ips: Vec<IpAddr>,
    load_balancer_ips: Vec<IpAddr>,
    source_ranges: Vec<IpNet>,
    unreadable_source_ranges: bool,
    ports: Vec<ServicePort>,
    internal_traffic_policy: TrafficPolicy,
    external_traffic_policy: TrafficPolicy,
    affinity: Option<Affinity>,
    algorithm: Algorithm,
    health_check_node_port: Option<NonZeroU16>,
    created: Option<i64>,
}

impl Service {
    /// Begins a Service.
    pub fn builder(namespace: impl Into<String>, name: impl Into<String>) -> ServiceBuilder {
        ServiceBuilder::new(namespace.into(), name.into())
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Its type.
    pub fn service_type(&self) -> ServiceType {
        self.spec.service_type
    }

    /// Its virtual addresses: one, or one of each family.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        &self.spec.cluster_ips
    }

    /// `spec.externalIPs`: addresses that somebody else routes to the nodes.
    pub fn external_ips(&self) -> &[IpAddr] {
        &self.spec.external_ips
    }

    /// The ingress addresses of its load balancer that arrive at the nodes as they are: `ipMode` is not
    /// `Proxy`.
    pub fn load_balancer_ips(&self) -> &[IpAddr] {
        &self.spec.load_balancer_ips
    }

    /// `spec.loadBalancerSourceRanges`, as far as they could be read.
    pub fn source_ranges(&self) -> &[IpNet] {
        &self.spec.source_ranges
    }

    /// Whether some of `spec.loadBalancerSourceRanges` could not be read. They admit nobody, and a list of
    /// nothing else admits nobody ([R1]).
    ///
    /// [R1]: crate::resolve
    pub fn has_unreadable_source_ranges(&self) -> bool {
        self.spec.unreadable_source_ranges
    }

    /// Its ports.
    pub fn ports(&self) -> &[ServicePort] {
        &self.spec.ports
    }

    /// Which endpoints serve traffic to the cluster IPs.
    pub fn internal_traffic_policy(&self) -> TrafficPolicy {
        self.spec.internal_traffic_policy
    }

    /// Which endpoints serve traffic from outside. It counts where the Service can be reached from outside:
    /// for the types `NodePort` and `LoadBalancer`, and for `ClusterIP` with external IPs; else it is
    /// `Cluster` whatever was declared ([E5]).
    ///
    /// [E5]: crate::resolve
    pub fn external_traffic_policy(&self) -> TrafficPolicy {
        if self.spec.service_type == ServiceType::ClusterIp && self.spec.external_ips.is_empty() {
            return TrafficPolicy::Cluster;
        }
        self.spec.external_traffic_policy
    }

    /// `sessionAffinity: ClientIP`, if it has that.
    pub fn affinity(&self) -> Option<Affinity> {
        self.spec.affinity
    }

    /// How backends are picked.
    pub fn algorithm(&self) -> Algorithm {
        self.spec.algorithm
    }

    /// The port on which the node says whether it has endpoints here. It counts for type `LoadBalancer` with
    /// external policy `Local`; else there is none, whatever was declared ([H1]).
    ///
    /// [H1]: crate::health
    pub fn health_check_node_port(&self) -> Option<NonZeroU16> {
        let asks = self.spec.service_type == ServiceType::LoadBalancer
            && self.spec.external_traffic_policy == TrafficPolicy::Local;
        self.spec.health_check_node_port.filter(|_| asks)
    }

    /// When it was created, in seconds since the Unix epoch; older Services win a contested frontend.
    pub fn created(&self) -> Option<i64> {
        self.spec.created
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

#[cfg(test)]
mod tests;
