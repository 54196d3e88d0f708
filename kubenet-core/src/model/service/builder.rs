use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
};

use ipnet::IpNet;

use super::{Affinity, Algorithm, Service, ServicePort, ServiceType, Spec, TrafficPolicy};
use crate::model::{InvalidObject, IpFamily, ObjectName, name::validate_port_name, validate_label};

/// Builds a [`Service`].
#[derive(Clone, Debug)]
pub struct ServiceBuilder {
    namespace: String,
    name: String,
    spec: Spec,
}

impl ServiceBuilder {
    pub(super) fn new(namespace: String, name: String) -> Self {
        Self { namespace, name, spec: Spec::default() }
    }

    /// Sets the type; `ClusterIP` when not set.
    #[must_use]
    pub fn service_type(mut self, service_type: ServiceType) -> Self {
        self.spec.service_type = service_type;
        self
    }

    /// Adds a virtual address.
    #[must_use]
    pub fn cluster_ip(mut self, address: IpAddr) -> Self {
        self.spec.cluster_ips.push(address.to_canonical());
        self
    }

    /// Adds an external IP. One of a family in which the Service has no cluster IP is ignored ([O4]).
    ///
    /// [O4]: crate::resolve
    #[must_use]
    pub fn external_ip(mut self, address: IpAddr) -> Self {
        self.spec.external_ips.push(address.to_canonical());
        self
    }

    /// Adds an ingress address of the load balancer, unless its `ipMode` is `Proxy`. One of a family in which
    /// the Service has no cluster IP is ignored ([O4]).
    ///
    /// [O4]: crate::resolve
    #[must_use]
    pub fn load_balancer_ip(mut self, address: IpAddr) -> Self {
        self.spec.load_balancer_ips.push(address.to_canonical());
        self
    }

    /// Adds a range of sources that may reach the load balancer's addresses. Without any, all may.
    #[must_use]
    pub fn source_range(mut self, range: IpNet) -> Self {
        self.spec.source_ranges.push(range.trunc());
        self
    }

    /// Notes that a source range could not be read: it admits nobody, and does not leave the list empty
    /// ([R1]).
    ///
    /// [R1]: crate::resolve
    #[must_use]
    pub fn unreadable_source_range(mut self) -> Self {
        self.spec.unreadable_source_ranges = true;
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, port: ServicePort) -> Self {
        self.spec.ports.push(port);
        self
    }

    /// Sets the policy of traffic to the cluster IPs.
    #[must_use]
    pub fn internal_traffic_policy(mut self, policy: TrafficPolicy) -> Self {
        self.spec.internal_traffic_policy = policy;
        self
    }

    /// Sets the policy of traffic to the node ports, external IPs and load balancer's addresses.
    #[must_use]
    pub fn external_traffic_policy(mut self, policy: TrafficPolicy) -> Self {
        self.spec.external_traffic_policy = policy;
        self
    }

    /// Lets a client stay with one backend.
    #[must_use]
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        self.spec.affinity = Some(affinity);
        self
    }

    /// Sets how backends are picked; at random when not set.
    #[must_use]
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.spec.algorithm = algorithm;
        self
    }

    /// Sets the port on which the node answers health checks.
    #[must_use]
    pub fn health_check_node_port(mut self, port: NonZeroU16) -> Self {
        self.spec.health_check_node_port = Some(port);
        self
    }

    /// Sets when it was created, in seconds since the Unix epoch.
    #[must_use]
    pub fn created(mut self, seconds: i64) -> Self {
        self.spec.created = Some(seconds);
        self
    }

    /// Checks and ends.
    ///
    /// # Errors
    /// The first rule of the Kubernetes API that is broken.
    pub fn build(self) -> Result<Service, InvalidObject> {
        let name = ObjectName::new("Service", &self.namespace, &self.name)?;
        let check = Check(&name);
        if let Err(rule) = validate_label(&self.name) {
            return Err(check.bad("metadata.name", &self.name, rule));
        }
        let mut spec = self.spec;
        check.cluster_ips(&spec.cluster_ips)?;
        check.addresses("spec.externalIPs", &spec.external_ips)?;
        check.addresses("status.loadBalancer.ingress", &spec.load_balancer_ips)?;
        check.ports(&spec)?;
        // The memory of 20,000 Services counts: what is said twice is kept once.
        let families: Vec<_> = spec.cluster_ips.iter().copied().map(IpFamily::of).collect();
        for addresses in [&mut spec.external_ips, &mut spec.load_balancer_ips] {
            let mut seen = HashSet::new();
            // [O4]: those of a family that the Service does not have mean nothing, for its policy neither.
            addresses.retain(|address| families.contains(&IpFamily::of(*address)) && seen.insert(*address));
            addresses.shrink_to_fit();
        }
        spec.ports.shrink_to_fit();
        spec.cluster_ips.shrink_to_fit();
        Ok(Service { name, spec })
    }
}

/// Why an address cannot be anybody's.
pub(crate) fn unicast(address: IpAddr) -> Result<(), &'static str> {
    let special = address.is_unspecified()
        || address.is_multicast()
        || address.is_loopback()
        || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if special { Err("must be a unicast address") } else { Ok(()) }
}

/// Checks fields of the Service of this name.
struct Check<'a>(&'a ObjectName);

impl Check<'_> {
    fn bad(&self, field: impl Into<String>, value: impl ToString, rule: impl Into<String>) -> InvalidObject {
        InvalidObject::new(format!("Service {}", self.0), field, value.to_string(), rule)
    }

    fn cluster_ips(&self, addresses: &[IpAddr]) -> Result<(), InvalidObject> {
        if addresses.is_empty() {
            return Err(self.bad("spec.clusterIPs", "", "must hold at least one address"));
        }
        self.addresses("spec.clusterIPs", addresses)?;
        for (i, address) in addresses.iter().enumerate() {
            if i == 2 || (i == 1 && address.is_ipv4() == addresses[0].is_ipv4()) {
                let field = format!("spec.clusterIPs[{i}]");
                return Err(self.bad(field, address, "must be the only address of its family"));
            }
        }
        Ok(())
    }

    fn addresses(&self, field: &str, addresses: &[IpAddr]) -> Result<(), InvalidObject> {
        for (i, address) in addresses.iter().enumerate() {
            unicast(*address).map_err(|rule| self.bad(format!("{field}[{i}]"), address, rule))?;
        }
        Ok(())
    }

    fn ports(&self, Spec { ports, service_type, .. }: &Spec) -> Result<(), InvalidObject> {
        if ports.is_empty() {
            return Err(self.bad("spec.ports", "", "must hold at least one port"));
        }
        let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (i, port) in ports.iter().enumerate() {
            let field = |name| format!("spec.ports[{i}].{name}");
            validate_port_name(&port.name).map_err(|rule| self.bad(field("name"), &port.name, rule))?;
            if port.name.is_empty() && ports.len() > 1 {
                let rule = "must be set where there is more than one port";
                return Err(self.bad(field("name"), "", rule));
            }
            if !names.insert(&port.name) {
                return Err(self.bad(field("name"), &port.name, "is used twice"));
            }
            if !numbers.insert((port.port, port.protocol)) {
                let value = format!("{}/{}", port.port, port.protocol);
                return Err(self.bad(field("port"), value, "is used twice"));
            }
            let Some(node_port) = port.node_port else { continue };
            if *service_type == ServiceType::ClusterIp {
                let rule = "must not be set where the type is ClusterIP";
                return Err(self.bad(field("nodePort"), node_port, rule));
            }
            if !node_ports.insert((node_port, port.protocol)) {
                return Err(self.bad(field("nodePort"), node_port, "is used twice"));
            }
        }
        Ok(())
    }
}
