use std::net::IpAddr;

use ipnet::IpNet;

use super::Origin;

/// Who may reach a load balancer's address ([R1], [R2]).
///
/// [R1]: crate::resolve
/// [R2]: crate::resolve
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceRanges {
    /// The ranges, of the frontend's family: sorted, none inside another. None at all admits nobody.
    pub cidrs: Vec<IpNet>,
    /// Whether this node itself may: one of the ranges holds an address of the node.
    pub node: bool,
}

impl SourceRanges {
    /// Whether a flow of this origin from this source may pass.
    pub fn admits(&self, origin: Origin, source: IpAddr) -> bool {
        if origin == Origin::Node && self.node {
            return true;
        }
        self.cidrs.iter().any(|cidr| cidr.contains(&source))
    }
}
