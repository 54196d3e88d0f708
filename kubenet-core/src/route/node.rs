use std::net::IpAddr;

use super::Origin;
use crate::model::{IpFamily, LocalDetector};

/// Facts about the node that all its routes share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct NodeRouting {
    /// The node's addresses on which node ports answer; sorted, both families.
    pub node_port_addresses: Vec<IpAddr>,
    /// All of the node's addresses, the primary one of each family first: what masqueraded flows come from.
    pub addresses: Vec<IpAddr>,
    /// How a pod's flow is told from one from outside.
    pub local_detector: LocalDetector,
}

impl NodeRouting {
    /// The first address of a family: the source of masqueraded flows.
    pub fn primary_address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| IpFamily::of(*a) == family)
    }

    /// Where a flow with this source address comes from.
    pub fn origin(&self, source: IpAddr) -> Origin {
        if self.addresses.contains(&source) || source.is_loopback() {
            Origin::Node
        } else if self.local_detector.is_pod(source) {
            Origin::Pod
        } else {
            Origin::Outside
        }
    }
}
