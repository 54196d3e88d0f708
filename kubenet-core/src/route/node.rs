use std::net::IpAddr;

use ipnet::Ipv4Net;

use super::Origin;
use crate::model::{IpFamily, LocalDetector};

/// Facts about the node that all its routes share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct NodeRouting {
    /// The node's addresses on which node ports answer; sorted, both families.
    pub node_port_addresses: Vec<IpAddr>,
    /// The parts of 127.0.0.0/8 on which node ports answer, too; sorted. Usually none.
    pub loopback_node_ports: Vec<Ipv4Net>,
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

    /// Whether node ports answer on this address.
    pub fn has_node_ports_on(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) if v4.is_loopback() => {
                self.loopback_node_ports.iter().any(|net| net.contains(&v4))
            }
            _ => self.node_port_addresses.contains(&address),
        }
    }

    /// Where a flow with this source address comes from. `interface` is the one that it came in through, for
    /// detectors that decide by it; `None` when it is not known.
    pub fn origin(&self, source: IpAddr, interface: Option<&str>) -> Origin {
        if self.addresses.contains(&source) || source.is_loopback() {
            Origin::Node
        } else if self.local_detector.is_pod(source, interface) {
            Origin::Pod
        } else {
            Origin::Outside
        }
    }
}
