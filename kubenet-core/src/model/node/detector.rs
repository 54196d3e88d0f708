use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::IpFamily;

/// How this node tells a pod's flow from others ([S3]); kube-proxy's `--detect-local-mode`.
///
/// [S3]: crate::resolve
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LocalDetector {
    /// It cannot: no flow counts as a pod's, and cluster-IP traffic is never masqueraded.
    #[default]
    None,
    /// By source address: pods live in these ranges. With those of the whole cluster (kube-proxy's
    /// `ClusterCIDR`) all pods are known; with those of this node (`NodeCIDR`) pods of other nodes count as
    /// outside.
    Cidrs(Vec<IpNet>),
    /// By the interface that the packet came in through: the bridge of this name, which this node's pods are
    /// ports of.
    Bridge(String),
    /// By the interface that the packet came in through: its name begins so, and each of this node's pods has
    /// one.
    InterfacePrefix(String),
}

impl LocalDetector {
    /// Whether a packet with this source address that came in through this interface is a pod's.
    pub fn is_pod(&self, source: IpAddr, interface: Option<&str>) -> bool {
        match self {
            LocalDetector::None => false,
            LocalDetector::Cidrs(cidrs) => cidrs.iter().any(|cidr| cidr.contains(&source)),
            LocalDetector::Bridge(bridge) => interface == Some(bridge),
            LocalDetector::InterfacePrefix(prefix) => {
                interface.is_some_and(|interface| interface.starts_with(prefix.as_str()))
            }
        }
    }

    /// The ranges that pods live in; empty where they are not what decides.
    pub fn cidrs(&self) -> &[IpNet] {
        match self {
            LocalDetector::Cidrs(cidrs) => cidrs,
            LocalDetector::None | LocalDetector::Bridge(_) | LocalDetector::InterfacePrefix(_) => &[],
        }
    }

    /// Whether the interface decides.
    pub const fn is_by_interface(&self) -> bool {
        matches!(self, LocalDetector::Bridge(_) | LocalDetector::InterfacePrefix(_))
    }

    /// Whether pods' flows of this family can be told from others at all.
    pub fn detects(&self, family: IpFamily) -> bool {
        self.is_by_interface() || self.cidrs().iter().any(|cidr| IpFamily::of(cidr.addr()) == family)
    }

    /// What is wrong with an interface's name or the beginning of one, in words.
    pub(super) fn check(&self) -> Result<(), (&str, &'static str)> {
        /// `IFNAMSIZ` of the kernel, without the closing zero.
        const MAX: usize = 15;
        let (LocalDetector::Bridge(name) | LocalDetector::InterfacePrefix(name)) = self else {
            return Ok(());
        };
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':' || c == '+';
        if name.is_empty() || name.len() > MAX || name.contains(odd) {
            return Err((name, "must have 1 to 15 bytes, without white space, '/', ':' and '+'"));
        }
        Ok(())
    }
}
