use std::{collections::BTreeSet, fmt};

use crate::{
    model::{Algorithm, IpFamily, Protocol},
    route::{FrontendKind, NodeRouting, Origin, Route},
};

/// Something that a route or the node may ask for and that not every datapath has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// [`Route::source_ranges`].
    SourceRanges,
    /// [`Route::affinity`].
    Affinity,
    /// [`Algorithm::Maglev`].
    Maglev,
    /// Backends of different [`weight`](crate::route::Backend::weight).
    Weights,
    /// [`NodeRouting::loopback_node_ports`].
    LoopbackNodePorts,
    /// Detectors that tell pods by the interface: [`LocalDetector::is_by_interface`].
    ///
    /// [`LocalDetector::is_by_interface`]: crate::model::LocalDetector::is_by_interface
    InterfaceDetectors,
    /// A packet to a cluster IP on a port that is no Service port is rejected ([N4]), if it is of one of the
    /// [`protocols`](Capabilities::protocols). Without it, it is left to the stack.
    ///
    /// [N4]: crate::resolve
    RejectUnknownPorts,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Feature; 7] = [
        Feature::SourceRanges,
        Feature::Affinity,
        Feature::Maglev,
        Feature::Weights,
        Feature::LoopbackNodePorts,
        Feature::InterfaceDetectors,
        Feature::RejectUnknownPorts,
    ];

    /// In words: `session affinity`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Feature::SourceRanges => "source ranges of load balancers",
            Feature::Affinity => "session affinity",
            Feature::Maglev => "the algorithm maglev",
            Feature::Weights => "endpoints of different weight",
            Feature::LoopbackNodePorts => "node ports on loopback addresses",
            Feature::InterfaceDetectors => "telling pods by the interface",
            Feature::RejectUnknownPorts => "rejection of unknown ports of a cluster IP",
        }
    }

    fn of_route(route: &Route) -> impl Iterator<Item = Feature> {
        let asked = [
            (Feature::SourceRanges, route.source_ranges.is_some()),
            (Feature::Affinity, route.affinity.is_some()),
            (Feature::Maglev, route.algorithm == Algorithm::Maglev),
            (Feature::Weights, route.internal.is_weighted() || route.external.is_weighted()),
        ];
        asked.into_iter().filter_map(|(feature, asked)| asked.then_some(feature))
    }

    fn of_node(node: &NodeRouting) -> impl Iterator<Item = Feature> {
        let asked = [
            (Feature::LoopbackNodePorts, !node.loopback_node_ports.is_empty()),
            (Feature::InterfaceDetectors, node.local_detector.is_by_interface()),
        ];
        asked.into_iter().filter_map(|(feature, asked)| asked.then_some(feature))
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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
    /// Whose flows it serves. Those of others pass as if there were no Service.
    pub clients: BTreeSet<Origin>,
    /// What else it has. A route that asks for another feature is not served, and reported by name: it is
    /// never served in part.
    pub features: BTreeSet<Feature>,
    /// A flow that is to be masqueraded keeps its source address all the same when the backend is on this
    /// node (unless client and backend are one): by its node's name, or by an address of this node. kube-proxy
    /// masquerades it.
    pub local_backends_see_client: bool,
    /// A connected UDP socket of this node itself follows the backends: it moves when its backend goes, and is
    /// served when one appears ([L2]). It may get `ECONNABORTED` then, and must connect again. Pods and clients
    /// outside always follow.
    ///
    /// [L2]: crate::resolve
    pub node_udp_follows: bool,
    /// So many clients with session affinity are remembered at least; beyond, those not seen for longest are
    /// forgotten ([A1]). `None`: no limit, or not known.
    ///
    /// [A1]: crate::resolve
    pub affinity_clients: Option<u32>,
    /// Whether [`Datapath::counters`](super::Datapath::counters) answers.
    pub counters: bool,
    /// Whether those count packets and bytes, too.
    pub packet_counters: bool,
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
            clients: Origin::ALL.into(),
            features: BTreeSet::new(),
            local_backends_see_client: false,
            node_udp_follows: true,
            affinity_clients: None,
            counters: false,
            packet_counters: false,
            keep_on_close: false,
            limitations: Vec::new(),
        }
    }

    /// Everything that a route can say.
    pub fn full() -> Self {
        Self {
            protocols: Protocol::ALL.into(),
            frontends: FrontendKind::ALL.into(),
            features: Feature::ALL.into(),
            counters: true,
            keep_on_close: true,
            ..Self::basic()
        }
    }

    /// Whether it has a feature.
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
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
            return Err(format!("frontends of kind {} are not supported by this datapath", kind.as_str()));
        }
        self.check_features(Feature::of_route(route))
    }

    /// Whether what the node asks for can be served. It concerns all routes at once: a datapath that cannot
    /// refuses the whole update.
    ///
    /// # Errors
    /// What is missing, in words: the message for an [`ErrorKind::Unsupported`](super::ErrorKind) error.
    pub fn check_node(&self, node: &NodeRouting) -> Result<(), String> {
        self.check_features(Feature::of_node(node))
    }

    fn check_features(&self, mut asked: impl Iterator<Item = Feature>) -> Result<(), String> {
        match asked.find(|feature| !self.has(*feature)) {
            Some(missing) => Err(format!("not supported by this datapath: {missing}")),
            None => Ok(()),
        }
    }
}
