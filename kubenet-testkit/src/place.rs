//! The address plan that the lab and the simulation share.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use kubenet_core::model::{InvalidObject, IpFamily, NodeInfo};

/// How the names of pods' interfaces begin, at their node.
pub(crate) const POD_INTERFACES: &str = "kn";

/// The pods of both nodes.
pub const CLUSTER_CIDR_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);
/// The pods of both nodes.
pub const CLUSTER_CIDR_V6: Ipv6Net = Ipv6Net::new_assert(v6([0xfd00, 0x244, 0, 0, 0, 0, 0, 0]), 32);
/// Where Services have their addresses, by convention. The outside host reaches them through node-a.
pub const SERVICE_CIDR_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);
/// Where Services have their addresses, by convention. The outside host reaches them through node-a.
pub const SERVICE_CIDR_V6: Ipv6Net = Ipv6Net::new_assert(v6([0xfd00, 0x96, 0, 0, 0, 0, 0, 0]), 112);

pub(crate) const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 100);
pub(crate) const OUTSIDE_V6: Ipv6Addr = v6([0xfd00, 0x89, 0, 0, 0, 0, 0, 0x100]);

const fn v6(segments: [u16; 8]) -> Ipv6Addr {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// `node-a`.
    A,
    /// `node-b`.
    B,
}

impl Node {
    /// Both.
    pub const ALL: [Node; 2] = [Node::A, Node::B];

    /// Its name, as endpoints write it in `nodeName`.
    pub const fn name(self) -> &'static str {
        match self {
            Node::A => "node-a",
            Node::B => "node-b",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Node {
        match self {
            Node::A => Node::B,
            Node::B => Node::A,
        }
    }

    const fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Its address.
    pub const fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, 0, self.number())
    }

    /// Its address.
    pub const fn v6(self) -> Ipv6Addr {
        v6([0xfd00, 0x89, 0, 0, 0, 0, 0, self.number() as u16])
    }

    /// Where its pods live.
    pub fn pod_range_v4(self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 244, self.number(), 0), 24)
    }

    /// Where its pods live.
    pub fn pod_range_v6(self) -> Ipv6Net {
        Ipv6Net::new_assert(v6([0xfd00, 0x244, self.number().into(), 0, 0, 0, 0, 0]), 64)
    }

    /// Address of the pod of this number; 0 and 1 are nobody's.
    pub(crate) fn pod_v4(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number(), number)
    }

    /// Address of the pod of this number.
    pub(crate) fn pod_v6(self, number: u8) -> Ipv6Addr {
        v6([0xfd00, 0x244, self.number().into(), 0, 0, 0, 0, number.into()])
    }

    /// As the model describes it, with the cluster's pod ranges.
    ///
    /// # Errors
    /// None that this plan can cause.
    pub fn info(self, families: &[IpFamily]) -> Result<NodeInfo, InvalidObject> {
        let mut info = NodeInfo::builder(self.name());
        for family in families {
            info = match family {
                IpFamily::V4 => info.address(self.v4().into()).cluster_cidr(CLUSTER_CIDR_V4.into()),
                IpFamily::V6 => info.address(self.v6().into()).cluster_cidr(CLUSTER_CIDR_V6.into()),
            };
        }
        info.build()
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a client or a server runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// In the pod of this name.
    Pod(String),
    /// In a node's own network.
    Node(Node),
    /// On the host outside the cluster.
    Outside,
}

impl Place {
    /// What a server there calls itself: the name of its pod or node.
    pub fn name(&self) -> &str {
        match self {
            Place::Pod(name) => name,
            Place::Node(node) => node.name(),
            Place::Outside => "outside",
        }
    }
}

impl From<&str> for Place {
    fn from(pod: &str) -> Self {
        Place::Pod(pod.to_owned())
    }
}

impl From<Node> for Place {
    fn from(node: Node) -> Self {
        Place::Node(node)
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pod(name) => write!(f, "pod {name}"),
            Place::Node(node) => write!(f, "{node}"),
            Place::Outside => f.write_str("outside"),
        }
    }
}

/// The address of the outside host.
pub(crate) fn outside(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => OUTSIDE_V4.into(),
        IpFamily::V6 => OUTSIDE_V6.into(),
    }
}

/// The address of a Service by its number, by convention.
pub(crate) fn service_address(family: IpFamily, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 96, high, low).into(),
        IpFamily::V6 => v6([0xfd00, 0x96, 0, 0, 0, 0, 0, number]).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_their_ranges() {
        for node in Node::ALL {
            assert!(node.pod_range_v4().contains(&node.pod_v4(7)));
            assert!(node.pod_range_v6().contains(&node.pod_v6(7)));
            assert!(CLUSTER_CIDR_V4.contains(&node.pod_range_v4()));
            assert!(CLUSTER_CIDR_V6.contains(&node.pod_range_v6()));
        }
        assert_eq!(outside(IpFamily::V6).to_string(), "fd00:89::100");
        assert_eq!(service_address(IpFamily::V4, 258).to_string(), "10.96.1.2");
    }
}
