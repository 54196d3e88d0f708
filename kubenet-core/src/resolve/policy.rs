//! [E4], [E5], [E6]: which set serves which traffic, and what an empty one means.

use super::{endpoints::Endpoints, topology::Topology};
use crate::{
    model::{Service, TrafficPolicy},
    route::{Target, WhenEmpty},
};

/// The endpoints of one Service port in one family, chosen for each kind of traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// What `internalTrafficPolicy` chooses: for the cluster IP, whoever dials it.
    pub internal: Selection,
    /// What `externalTrafficPolicy` chooses: for external frontends dialled from outside.
    pub external: Selection,
    /// What pods and this node get when they dial an external frontend: they short-circuit the policy.
    pub short_circuit: Selection,
}

/// A set of endpoints, and how it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selection {
    /// The policy: [`TrafficPolicy::Local`] for the local set.
    pub policy: TrafficPolicy,
    /// Whether hints were followed.
    pub topology: Topology,
    /// The set.
    pub target: Target,
}

impl Decision {
    pub(super) fn make(service: &Service, endpoints: &Endpoints<'_>) -> Self {
        let (backends, topology) = endpoints.cluster_set();
        let cluster = Selection {
            policy: TrafficPolicy::Cluster,
            topology,
            target: Target { backends, when_empty: WhenEmpty::Reject },
        };
        let local = || {
            let target = match endpoints.local_set() {
                // All are here, or there are none at all: the same answer, and the memory is shared.
                local if *local == *cluster.target.backends => cluster.target.clone(),
                local if local.is_empty() => Target { backends: local, when_empty: WhenEmpty::Drop },
                local => Target { backends: local, when_empty: WhenEmpty::Reject },
            };
            Selection { policy: TrafficPolicy::Local, topology: Topology::Everywhere, target }
        };
        let (internal, external) =
            match (service.internal_traffic_policy(), service.external_traffic_policy()) {
                (TrafficPolicy::Cluster, TrafficPolicy::Cluster) => (cluster.clone(), cluster.clone()),
                (TrafficPolicy::Cluster, TrafficPolicy::Local) => (cluster.clone(), local()),
                (TrafficPolicy::Local, TrafficPolicy::Cluster) => (local(), cluster.clone()),
                (TrafficPolicy::Local, TrafficPolicy::Local) => {
                    let local = local();
                    (local.clone(), local)
                }
            };
        Self { internal, external, short_circuit: cluster }
    }

    /// [E4]: the internal policy counts, for everybody.
    pub(super) fn for_cluster_ip(&self) -> (Target, Target) {
        (self.internal.target.clone(), self.internal.target.clone())
    }

    /// [E5]: the external policy counts for traffic from outside; pods and this node short-circuit.
    pub(super) fn for_external_frontend(&self) -> (Target, Target) {
        (self.short_circuit.target.clone(), self.external.target.clone())
    }
}
