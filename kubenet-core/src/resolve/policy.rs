//! [E4], [E5], [E6]: which set serves which traffic, and what an empty one means.

use super::endpoints::Endpoints;
use crate::{
    model::{Service, TrafficPolicy},
    route::{Target, WhenEmpty},
};

/// The targets of one Service port, by policy.
pub(super) struct Targets {
    /// What `internalTrafficPolicy` chooses.
    internal: Target,
    /// What `externalTrafficPolicy` chooses.
    external: Target,
    /// The cluster set, for traffic that short-circuits a policy.
    cluster: Target,
}

impl Targets {
    pub(super) fn choose(service: &Service, endpoints: &Endpoints) -> Self {
        let cluster = Target { backends: endpoints.cluster_set(), when_empty: WhenEmpty::Reject };
        let by_policy = |policy| match policy {
            TrafficPolicy::Cluster => cluster.clone(),
            TrafficPolicy::Local => match endpoints.local_set() {
                // All are here, or there are none at all: the same answer, and the memory is shared.
                local if *local == *cluster.backends => cluster.clone(),
                local if local.is_empty() => Target { backends: local, when_empty: WhenEmpty::Drop },
                local => Target { backends: local, when_empty: WhenEmpty::Reject },
            },
        };
        Self {
            internal: by_policy(service.internal_traffic_policy()),
            external: by_policy(service.external_traffic_policy()),
            cluster,
        }
    }

    /// [E4]: the internal policy counts, for everybody.
    pub(super) fn for_cluster_ip(&self) -> (Target, Target) {
        (self.internal.clone(), self.internal.clone())
    }

    /// [E5]: the external policy counts for traffic from outside; pods and this node short-circuit.
    pub(super) fn for_external_frontend(&self) -> (Target, Target) {
        (self.cluster.clone(), self.external.clone())
    }
}
