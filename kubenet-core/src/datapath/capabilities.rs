use std::collections::BTreeSet;

use crate::{
    model::{IpFamily, Protocol},
    route::{FrontendKind, Route},
};

/// What a datapath can serve, and where it differs from others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Transport protocols.
    pub protocols: BTreeSet<Protocol>,
    /// Address families.
    pub families: BTreeSet<IpFamily>,
    /// Kinds of frontend.
    pub frontends: BTreeSet<FrontendKind>,
    /// A flow that is to be masqueraded keeps its source address all the same when the backend is on this
    /// node (unless client and backend are one). kube-proxy masquerades it.
    pub local_backends_see_client: bool,
    /// A connected UDP socket of this node itself follows the backends: it moves when its backend goes, and is
    /// served when one appears ([L2]). Pods and clients outside always do.
    ///
    /// [L2]: crate::resolve
    pub node_udp_follows: bool,
    /// Whether [`Datapath::counters`](super::Datapath::counters) answers.
    pub counters: bool,
    /// Whether [`Close::Keep`](super::Close::Keep) leaves the kernel forwarding.
    pub keep_on_close: bool,
    /// What users should know: classes of traffic or of connections that are treated in another way.
    pub limitations: Vec<Limitation>,
}

/// Something that a datapath does not do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limitation {
    /// What it concerns: `UDP flows at a swap`.
    pub what: &'static str,
    /// What happens, and why.
    pub why: &'static str,
}

impl Capabilities {
    /// TCP and UDP, both families, cluster IPs and node ports; nothing beyond.
    pub fn basic() -> Self {
        Self {
            protocols: [Protocol::Tcp, Protocol::Udp].into(),
            families: IpFamily::ALL.into(),
            frontends: [FrontendKind::ClusterIp, FrontendKind::NodePort].into(),
            local_backends_see_client: false,
            node_udp_follows: true,
            counters: false,
            keep_on_close: false,
            limitations: Vec::new(),
        }
    }

    /// Whether the route can be served.
    ///
    /// # Errors
    /// What is missing, in words: the message for an [`ErrorKind::Unsupported`](super::ErrorKind) error.
    pub fn check(&self, route: &Route) -> Result<(), String> {
        let Route { frontend, kind, .. } = route;
        if !self.protocols.contains(&frontend.protocol) {
            return Err(format!("protocol {} is not supported by this datapath", frontend.protocol));
        }
        if !self.families.contains(&frontend.family()) {
            return Err(format!("{} is not available on this node", frontend.family()));
        }
        if !self.frontends.contains(kind) {
            return Err(format!("frontends of kind {kind:?} are not supported by this datapath"));
        }
        Ok(())
    }
}
