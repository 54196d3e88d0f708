use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{InvalidObject, IpFamily, validate_name};
use crate::route::NodeRouting;

/// How this node tells a pod's flow from one from outside ([S3]).
///
/// [S3]: crate::resolve
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LocalDetector {
    /// It cannot: no flow counts as a pod's, and cluster-IP traffic is never masqueraded.
    #[default]
    None,
    /// By source address: the pods of the whole cluster live in these ranges.
    ClusterCidrs(Vec<IpNet>),
}

impl LocalDetector {
    /// Whether a source address is a pod's.
    pub fn is_pod(&self, source: IpAddr) -> bool {
        self.cidrs().iter().any(|cidr| cidr.contains(&source))
    }

    /// The ranges that pods live in; empty when there is no detector.
    pub fn cidrs(&self) -> &[IpNet] {
        match self {
            LocalDetector::None => &[],
            LocalDetector::ClusterCidrs(cidrs) => cidrs,
        }
    }
}

/// On which of the node's addresses node ports answer ([F4]).
///
/// [F4]: crate::resolve
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodePortAddresses {
    /// On all of them.
    #[default]
    All,
    /// On the first of each family.
    Primary,
    /// On those inside these ranges.
    Cidrs(Vec<IpNet>),
}

/// The node that this library runs on.
///
/// ```
/// use kubenet_core::model::NodeInfo;
/// let node = NodeInfo::builder("node-a")
///     .address("10.0.0.1".parse()?)
///     .cluster_cidr("10.244.0.0/16".parse()?)
///     .build()?;
/// assert_eq!(node.name(), "node-a");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    name: String,
    addresses: Vec<IpAddr>,
    node_port_addresses: NodePortAddresses,
    cluster_cidrs: Vec<IpNet>,
}

impl NodeInfo {
    /// Begins a node of this name.
    pub fn builder(name: impl Into<String>) -> NodeInfoBuilder {
        NodeInfoBuilder(Self {
            name: name.into(),
            addresses: Vec::new(),
            node_port_addresses: NodePortAddresses::All,
            cluster_cidrs: Vec::new(),
        })
    }

    /// Its name, as endpoints call it in `nodeName`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses, in the order given: the first of each family is the primary one.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether pods' flows of this family can be told from others by their source address.
    pub fn detects_pods(&self, family: IpFamily) -> bool {
        self.cluster_cidrs.iter().any(|cidr| IpFamily::of(cidr.addr()) == family)
    }

    /// What routes need to know of it.
    pub fn routing(&self) -> NodeRouting {
        let mut node_port_addresses: Vec<IpAddr> = match &self.node_port_addresses {
            NodePortAddresses::All => self.addresses.clone(),
            NodePortAddresses::Primary => IpFamily::ALL
                .into_iter()
                .filter_map(|family| self.addresses.iter().copied().find(|a| IpFamily::of(*a) == family))
                .collect(),
            NodePortAddresses::Cidrs(cidrs) => {
                self.addresses.iter().copied().filter(|a| cidrs.iter().any(|c| c.contains(a))).collect()
            }
        };
        node_port_addresses.sort_unstable();
        NodeRouting {
            node_port_addresses,
            addresses: self.addresses.clone(),
            local_detector: if self.cluster_cidrs.is_empty() {
                LocalDetector::None
            } else {
                LocalDetector::ClusterCidrs(self.cluster_cidrs.clone())
            },
        }
    }
}

/// Builds a [`NodeInfo`].
#[derive(Clone, Debug)]
pub struct NodeInfoBuilder(NodeInfo);

impl NodeInfoBuilder {
    /// Adds an address. The first of each family is the primary one.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.0.addresses.push(address.to_canonical());
        self
    }

    /// Adds a range that pods of the cluster live in, on any node.
    #[must_use]
    pub fn cluster_cidr(mut self, cidr: IpNet) -> Self {
        self.0.cluster_cidrs.push(cidr.trunc());
        self
    }

    /// Chooses the addresses on which node ports answer.
    #[must_use]
    pub fn node_port_addresses(mut self, addresses: NodePortAddresses) -> Self {
        self.0.node_port_addresses = addresses;
        self
    }

    /// Checks and ends.
    ///
    /// # Errors
    /// A name that Kubernetes would not allow; an unspecified, multicast or doubled address.
    pub fn build(self) -> Result<NodeInfo, InvalidObject> {
        let node = self.0;
        let bad = |field: String, value: String, rule: &str| {
            InvalidObject::new(format!("Node {}", node.name), field, value, rule)
        };
        validate_name(&node.name).map_err(|rule| bad("metadata.name".into(), node.name.clone(), &rule))?;
        for (i, address) in node.addresses.iter().enumerate() {
            let field = || format!("status.addresses[{i}]");
            if address.is_unspecified()
                || address.is_multicast()
                || address.is_loopback()
                || *address == IpAddr::V4(Ipv4Addr::BROADCAST)
            {
                return Err(bad(field(), address.to_string(), "must be a unicast address of the node"));
            }
            if node.addresses[..i].contains(address) {
                return Err(bad(field(), address.to_string(), "is listed twice"));
            }
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests;
