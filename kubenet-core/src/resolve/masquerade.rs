//! [S1], [S2], [S3], [S5]: whose source address is replaced by the node's.

use crate::{
    model::{IpFamily, NodeInfo, Service, TrafficPolicy},
    route::{FrontendKind, Masquerade},
};

pub(super) fn rule(node: &NodeInfo, service: &Service, kind: FrontendKind, family: IpFamily) -> Masquerade {
    if !kind.is_external() {
        if node.masquerade_all() {
            return Masquerade::ALWAYS;
        }
        // [S3]: without a detector nobody can be told apart, and nobody is masqueraded.
        let detected = node.local_detector().detects(family);
        return Masquerade { pods: false, node: detected, outside: detected };
    }
    match service.external_traffic_policy() {
        TrafficPolicy::Cluster => Masquerade::ALWAYS,
        // [S2], [S5]: the backend sees the client; only this node's own flows need their reply to come here.
        TrafficPolicy::Local => Masquerade { pods: false, node: true, outside: false },
    }
}
