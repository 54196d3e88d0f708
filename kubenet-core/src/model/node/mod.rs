mod detector;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

pub use self::detector::LocalDetector;
use super::{InvalidObject, IpFamily, unicast, validate_name};
use crate::route::NodeRouting;

/// The IPv4 addresses that stay on a host (RFC 1122).
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

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
    zone: Option<String>,
    addresses: Vec<IpAddr>,
    pod_cidrs: Vec<IpNet>,
    node_port_addresses: NodePortAddresses,
    local_detector: LocalDetector,
    masquerade_all: bool,
    localhost_node_ports: bool,
}

impl NodeInfo {
    /// Begins a node of this name.
    pub fn builder(name: impl Into<String>) -> NodeInfoBuilder {
        NodeInfoBuilder(Self {
            name: name.into(),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::All,
            local_detector: LocalDetector::None,
            masquerade_all: false,
            localhost_node_ports: false,
        })
    }

    /// A builder that begins with all that this one says.
    pub fn into_builder(self) -> NodeInfoBuilder {
        NodeInfoBuilder(self)
    }

    /// Its name, as endpoints call it in `nodeName`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The zone that it is in, which endpoints' hints refer to ([E3]).
    ///
    /// [E3]: crate::resolve
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Its addresses, in the order given: the first of each family is the primary one.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The ranges that the pods of this node live in, as far as they are known. They decide nothing unless
    /// they are made a [`LocalDetector`].
    pub fn pod_cidrs(&self) -> &[IpNet] {
        &self.pod_cidrs
    }

    /// How pods' flows are told from others.
    pub fn local_detector(&self) -> &LocalDetector {
        &self.local_detector
    }

    /// Whether all cluster-IP traffic is masqueraded ([S3]).
    ///
    /// [S3]: crate::resolve
    pub fn masquerade_all(&self) -> bool {
        self.masquerade_all
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
            loopback_node_ports: self.loopback_node_ports(),
            addresses: self.addresses.clone(),
            local_detector: self.local_detector.clone(),
        }
    }

    /// The part of 127.0.0.0/8 on which node ports answer ([F4]): none, unless it was asked for and
    /// `nodePortAddresses` does not leave it out.
    fn loopback_node_ports(&self) -> Vec<Ipv4Net> {
        let chosen = match &self.node_port_addresses {
            _ if !self.localhost_node_ports => Vec::new(),
            NodePortAddresses::All => vec![LOOPBACK],
            NodePortAddresses::Primary => Vec::new(),
            NodePortAddresses::Cidrs(cidrs) => {
                let part = |cidr: &IpNet| match cidr {
                    IpNet::V4(cidr) if LOOPBACK.contains(cidr) => Some(*cidr),
                    IpNet::V4(cidr) if cidr.contains(&LOOPBACK) => Some(LOOPBACK),
                    _ => None,
                };
                cidrs.iter().filter_map(part).collect()
            }
        };
        Ipv4Net::aggregate(&chosen)
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

    /// Sets the zone: label `topology.kubernetes.io/zone`.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.0.zone = Some(zone.into()).filter(|zone| !zone.is_empty());
        self
    }

    /// Adds a range that the pods of this node live in: `spec.podCIDRs`.
    #[must_use]
    pub fn pod_cidr(mut self, cidr: IpNet) -> Self {
        self.0.pod_cidrs.push(cidr.trunc());
        self
    }

    /// Adds a range that pods of the cluster live in, on any node: flows from there are pods'
    /// ([`LocalDetector::Cidrs`]). Another detector is replaced.
    #[must_use]
    pub fn cluster_cidr(mut self, cidr: IpNet) -> Self {
        if let LocalDetector::Cidrs(cidrs) = &mut self.0.local_detector {
            cidrs.push(cidr.trunc());
        } else {
            self.0.local_detector = LocalDetector::Cidrs(vec![cidr.trunc()]);
        }
        self
    }

    /// Chooses how pods' flows are told from others.
    #[must_use]
    pub fn local_detector(mut self, detector: LocalDetector) -> Self {
        self.0.local_detector = match detector {
            LocalDetector::Cidrs(cidrs) => LocalDetector::Cidrs(cidrs.iter().map(IpNet::trunc).collect()),
            other => other,
        };
        self
    }

    /// Masquerades all cluster-IP traffic, that of pods, too ([S3]).
    ///
    /// [S3]: crate::resolve
    #[must_use]
    pub fn masquerade_all(mut self, all: bool) -> Self {
        self.0.masquerade_all = all;
        self
    }

    /// Lets node ports answer on the IPv4 loopback addresses, too, unless the
    /// [node-port addresses](Self::node_port_addresses) leave them out ([F4]).
    ///
    /// [F4]: crate::resolve
    #[must_use]
    pub fn localhost_node_ports(mut self, answer: bool) -> Self {
        self.0.localhost_node_ports = answer;
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
    /// A name that Kubernetes would not allow; an unspecified, multicast or doubled address; an interface's name
    /// that the kernel would not allow.
    pub fn build(self) -> Result<NodeInfo, InvalidObject> {
        let node = self.0;
        let bad = |field: String, value: String, rule: &str| {
            InvalidObject::new(format!("Node {}", node.name), field, value, rule)
        };
        validate_name(&node.name).map_err(|rule| bad("metadata.name".into(), node.name.clone(), &rule))?;
        for (i, address) in node.addresses.iter().enumerate() {
            let bad = |rule| bad(format!("status.addresses[{i}]"), address.to_string(), rule);
            if unicast(*address).is_err() {
                return Err(bad("must be a unicast address of the node"));
            }
            if node.addresses[..i].contains(address) {
                return Err(bad("is listed twice"));
            }
        }
        node.local_detector
            .check()
            .map_err(|(name, rule)| bad("local detector: interface".into(), name.into(), rule))?;
        Ok(node)
    }
}

#[cfg(test)]
mod tests;
