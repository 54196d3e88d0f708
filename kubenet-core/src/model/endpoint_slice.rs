use std::{collections::HashSet, net::IpAddr, num::NonZeroU16, sync::Arc};

use super::{InvalidObject, IpFamily, ObjectName, Protocol, name::validate_port_name, validate_label};

/// `conditions` of an endpoint, with the API's defaults for absent ones ([O3]).
///
/// [O3]: crate::resolve
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// Takes traffic. Absent means true.
    pub ready: bool,
    /// Could serve, ready or not. Absent means true.
    pub serving: bool,
    /// Is going away. Absent means false.
    pub terminating: bool,
}

impl Conditions {
    /// Fills in the defaults.
    pub fn from_api(ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        Self {
            ready: ready.unwrap_or(true),
            serving: serving.unwrap_or(true),
            terminating: terminating.unwrap_or(false),
        }
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self::from_api(None, None, None)
    }
}

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointPort {
    /// Name of the Service port that it serves; empty for an unnamed one.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number. A port without one serves nothing.
    pub port: Option<NonZeroU16>,
}

impl EndpointPort {
    /// A port.
    pub fn new(name: &str, protocol: Protocol, port: NonZeroU16) -> Self {
        Self { name: name.into(), protocol, port: Some(port) }
    }
}

/// For whom an endpoint is meant: `hints` of the API, made by the control plane from
/// `spec.trafficDistribution` ([E3]).
///
/// [E3]: crate::resolve
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `forNodes`: names of nodes.
    pub nodes: Vec<Arc<str>>,
    /// `forZones`: names of zones.
    pub zones: Vec<Arc<str>>,
}

/// An endpoint: usually a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Endpoint {
    /// Its first address. The others have no meaning.
    pub address: IpAddr,
    /// Whether it takes traffic.
    pub conditions: Conditions,
    /// The node that it runs on, when known.
    pub node_name: Option<Arc<str>>,
    /// Name of the object behind it (`targetRef.name`), usually a pod: for people. Nothing depends on it.
    pub target: Option<Arc<str>>,
    /// For whom it is meant; `None` when for everybody. Most endpoints of a slice share their hints.
    pub hints: Option<Arc<Hints>>,
    /// Its share of new flows in relation to the other endpoints, 0 to [`Endpoint::MAX_WEIGHT`]. Default 1;
    /// with 0 it is not used at all. Not a field of the Kubernetes API: annotation
    /// [`Endpoint::WEIGHTS_ANNOTATION`] of a slice.
    pub weight: u16,
}

impl Endpoint {
    /// The greatest weight.
    pub const MAX_WEIGHT: u16 = 1000;
    /// The annotation of a slice that gives weights, `kubenet.dev/weights`: `10.244.1.2=3, 10.244.2.2=1`.
    /// Endpoints that it does not name have weight 1.
    pub const WEIGHTS_ANNOTATION: &'static str = "kubenet.dev/weights";

    /// A ready endpoint.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address: address.to_canonical(),
            conditions: Conditions::default(),
            node_name: None,
            target: None,
            hints: None,
            weight: 1,
        }
    }

    /// The same on a node.
    #[must_use]
    pub fn on_node(mut self, node_name: &str) -> Self {
        self.node_name = Some(node_name.into());
        self
    }

    /// The same with the name of the pod behind it.
    #[must_use]
    pub fn named(mut self, target: &str) -> Self {
        self.target = Some(target.into());
        self
    }

    /// The same with these conditions.
    #[must_use]
    pub fn with_conditions(mut self, conditions: Conditions) -> Self {
        self.conditions = conditions;
        self
    }

    /// The same meant for a zone, beside those that it is meant for already.
    #[must_use]
    pub fn for_zone(mut self, zone: &str) -> Self {
        Arc::make_mut(self.hints.get_or_insert_default()).zones.push(zone.into());
        self
    }

    /// The same meant for a node, beside those that it is meant for already.
    #[must_use]
    pub fn for_node(mut self, node: &str) -> Self {
        Arc::make_mut(self.hints.get_or_insert_default()).nodes.push(node.into());
        self
    }

    /// The same with this weight.
    #[must_use]
    pub fn with_weight(mut self, weight: u16) -> Self {
        self.weight = weight;
        self
    }

    /// Whether it runs on the node of this name ([O3]: whole names, an empty one is nobody's).
    ///
    /// [O3]: crate::resolve
    pub fn is_on(&self, node_name: &str) -> bool {
        !node_name.is_empty() && self.node_name.as_deref() == Some(node_name)
    }
}

/// Some of the endpoints of a Service, all of one address family.
///
/// ```
/// use kubenet_core::model::{Endpoint, EndpointPort, EndpointSlice, IpFamily, Protocol};
/// let slice = EndpointSlice::builder("demo", "web-1", "web", IpFamily::V4)
///     .port(EndpointPort::new("http", Protocol::Tcp, 8080.try_into()?))
///     .endpoint(Endpoint::new("10.244.1.2".parse()?).on_node("node-a"))
///     .build()?;
/// assert_eq!(slice.service().to_string(), "demo/web");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    name: ObjectName,
    service: ObjectName,
    family: IpFamily,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// Begins a slice of a Service of the same namespace.
    pub fn builder(
        namespace: impl Into<String>,
        name: impl Into<String>,
        service: impl Into<String>,
        family: IpFamily,
    ) -> EndpointSliceBuilder {
        EndpointSliceBuilder {
            namespace: namespace.into(),
            name: name.into(),
            service: service.into(),
            family,
            ports: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// The Service whose endpoints these are: label `kubernetes.io/service-name`.
    pub fn service(&self) -> &ObjectName {
        &self.service
    }

    /// The family of all its addresses.
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// The ports of every endpoint.
    pub fn ports(&self) -> &[EndpointPort] {
        &self.ports
    }

    /// The endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

/// Builds an [`EndpointSlice`].
#[derive(Clone, Debug)]
pub struct EndpointSliceBuilder {
    namespace: String,
    name: String,
    service: String,
    family: IpFamily,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

impl EndpointSliceBuilder {
    /// Adds a port.
    #[must_use]
    pub fn port(mut self, port: EndpointPort) -> Self {
        self.ports.push(port);
        self
    }

    /// Adds an endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// Adds endpoints.
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        self.endpoints.extend(endpoints);
        self
    }

    /// Checks and ends.
    ///
    /// # Errors
    /// The first rule of the Kubernetes API that is broken.
    pub fn build(self) -> Result<EndpointSlice, InvalidObject> {
        let name = ObjectName::new("EndpointSlice", &self.namespace, &self.name)?;
        let bad = |field: String, value: String, rule: &str| {
            Err(InvalidObject::new(format!("EndpointSlice {name}"), field, value, rule))
        };
        if let Err(rule) = validate_label(&self.service) {
            return bad("metadata.labels[kubernetes.io/service-name]".into(), self.service.clone(), &rule);
        }
        let service = ObjectName::new("Service", &self.namespace, &self.service)?;
        let mut names = HashSet::new();
        for (i, port) in self.ports.iter().enumerate() {
            let field = format!("ports[{i}].name");
            if let Err(rule) = validate_port_name(&port.name) {
                return bad(field, port.name.to_string(), &rule);
            }
            if !names.insert(&port.name) {
                return bad(field, port.name.to_string(), "is used twice");
            }
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let field = || format!("endpoints[{i}].addresses[0]");
            let address = endpoint.address;
            if IpFamily::of(address) != self.family {
                return bad(field(), address.to_string(), &format!("must be an {} address", self.family));
            }
            let special = match address {
                IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            if address.is_unspecified() || address.is_multicast() || address.is_loopback() || special {
                return bad(
                    field(),
                    address.to_string(),
                    "must be a unicast address, not loopback or link-local",
                );
            }
            if endpoint.weight > Endpoint::MAX_WEIGHT {
                let rule = format!("must be 0 to {}", Endpoint::MAX_WEIGHT);
                return bad(format!("endpoints[{i}].weight"), endpoint.weight.to_string(), &rule);
            }
        }
        Ok(EndpointSlice { name, service, family: self.family, ports: self.ports, endpoints: self.endpoints })
    }
}

#[cfg(test)]
mod tests;
