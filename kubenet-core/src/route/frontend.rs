use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use crate::model::{IpFamily, Protocol};

/// What a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Where it is dialled.
    pub address: FrontendAddress,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port, host byte order.
    pub port: NonZeroU16,
}

/// The address of a [`Frontend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    /// One address: a cluster IP, an external IP or a load balancer's.
    Ip(IpAddr),
    /// Any of the node's chosen addresses of a family: [`NodeRouting::node_port_addresses`](super::NodeRouting::node_port_addresses).
    NodePort(IpFamily),
}

impl Frontend {
    /// A frontend on one address.
    pub const fn ip(address: IpAddr, port: NonZeroU16, protocol: Protocol) -> Self {
        Self { address: FrontendAddress::Ip(address), protocol, port }
    }

    /// A frontend on the node's chosen addresses of one family.
    pub const fn node_port(family: IpFamily, port: NonZeroU16, protocol: Protocol) -> Self {
        Self { address: FrontendAddress::NodePort(family), protocol, port }
    }

    /// The family of its address.
    pub const fn family(&self) -> IpFamily {
        match self.address {
            FrontendAddress::Ip(address) => IpFamily::of(address),
            FrontendAddress::NodePort(family) => family,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            FrontendAddress::Ip(address) => {
                write!(f, "{}/{}", SocketAddr::new(address, self.port.get()), self.protocol)
            }
            FrontendAddress::NodePort(family) => {
                write!(f, "node port {}/{} ({family})", self.port, self.protocol)
            }
        }
    }
}

/// Which field of the Service a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.ports[].nodePort`.
    NodePort,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
}

impl FrontendKind {
    /// Every kind.
    pub const ALL: [FrontendKind; 4] = [
        FrontendKind::ClusterIp,
        FrontendKind::NodePort,
        FrontendKind::ExternalIp,
        FrontendKind::LoadBalancer,
    ];

    /// In words: `cluster IP`.
    pub const fn as_str(self) -> &'static str {
        match self {
            FrontendKind::ClusterIp => "cluster IP",
            FrontendKind::NodePort => "node port",
            FrontendKind::ExternalIp => "external IP",
            FrontendKind::LoadBalancer => "load-balancer address",
        }
    }

    /// Whether traffic to it is meant for clients outside the cluster, so that the external policy counts.
    pub const fn is_external(self) -> bool {
        !matches!(self, FrontendKind::ClusterIp)
    }
}

/// Identity of a Service port, for names, comments, metrics and error messages.
///
/// Displays as kube-proxy's `ServicePortName`: `namespace/name:port`, without the colon for an unnamed port.
/// The parts passed the checks of the model, but a datapath must still treat them as data: a table may come
/// from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Name of the port; empty for the only, unnamed one.
    pub port: Arc<str>,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}
