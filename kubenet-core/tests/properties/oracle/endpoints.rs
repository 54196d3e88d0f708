//! [O2], [O3], [E1] to [E3]: the endpoints of a Service port, and sets of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use kubenet_core::model::IpFamily;
use kubenet_testkit::memory::Flow;

use super::{Why, frontends::Claim};
use crate::world::{Ep, Node, OUR_NODE, World, address};

/// An endpoint with one of its ports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pod<'a> {
    pub(super) at: SocketAddr,
    pub(super) endpoint: &'a Ep,
}

impl Pod<'_> {
    fn terminating(&self) -> bool {
        self.endpoint.terminating == Some(true)
    }

    /// [O3]: absent means true, and it wins over terminating. One of weight 0 counts as not ready.
    pub(super) fn ready(&self) -> bool {
        self.endpoint.ready != Some(false) && self.endpoint.weight > 0
    }

    /// [E1]: to be used where nobody is ready.
    fn straggler(&self) -> bool {
        let serving = self.endpoint.serving != Some(false);
        !self.ready() && serving && self.terminating() && self.endpoint.weight > 0
    }

    pub(super) fn local(&self) -> bool {
        self.endpoint.node == Some(OUR_NODE)
    }
}

/// [O2]: the endpoints of a Service port, each address and port once. All possibilities where two of one
/// address and port differ and are alike in what decides, which is whether they terminate.
pub(super) fn alternatives<'a>(
    world: &'a World,
    claim: &Claim<'_>,
    flow: &Flow,
    why: &mut Why,
) -> Vec<Vec<Pod<'a>>> {
    let family = IpFamily::of(flow.destination.ip());
    let mut found: BTreeMap<(IpAddr, u16), Vec<Pod<'a>>> = BTreeMap::new();
    for slice in world.slices.values() {
        let is_its = (slice.name.0, slice.service) == claim.service.name && slice.family == family;
        for (name, protocol, number) in slice.ports.iter().filter(|_| is_its) {
            let Some(number) =
                number.filter(|_| *name == claim.port.name && *protocol == claim.port.protocol)
            else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let pod = Pod { at: SocketAddr::new(address(endpoint.address), number), endpoint };
                found.entry((pod.at.ip(), number)).or_default().push(pod);
            }
        }
    }
    let mut all = vec![Vec::new()];
    for (_, mut pods) in found {
        let count = pods.len();
        if pods.iter().any(|pod| !pod.terminating()) {
            pods.retain(|pod| !pod.terminating());
        }
        if pods.len() < count {
            why.insert("O2 one that is not terminating wins");
        }
        pods.dedup_by(|a, b| a.endpoint == b.endpoint);
        if pods.len() > 1 {
            why.insert("O2 either may count");
        }
        all = all
            .iter()
            .flat_map(|chosen| pods.iter().map(|pod| chosen.iter().copied().chain([*pod]).collect()))
            .collect();
    }
    all
}

/// [E1].
pub(super) fn usable<'a>(pods: &[Pod<'a>]) -> Vec<Pod<'a>> {
    let ready: Vec<_> = pods.iter().copied().filter(Pod::ready).collect();
    if ready.is_empty() { pods.iter().copied().filter(Pod::straggler).collect() } else { ready }
}

/// [E2], the local set.
pub(super) fn local_set<'a>(pods: &[Pod<'a>], why: &mut Why) -> Vec<Pod<'a>> {
    let here: Vec<_> = pods.iter().copied().filter(Pod::local).collect();
    let set = usable(&here);
    if set.iter().any(|pod| !pod.ready()) {
        let elsewhere = pods.iter().any(Pod::ready);
        why.insert(if elsewhere { "E1 stragglers here, ready ones elsewhere" } else { "E1 stragglers here" });
    }
    set
}

/// [E2], the cluster set, after [E3].
pub(super) fn cluster_set<'a>(node: &Node, pods: &[Pod<'a>], why: &mut Why) -> Vec<Pod<'a>> {
    let usable = usable(pods);
    if usable.iter().any(|pod| !pod.ready()) {
        why.insert("E1 stragglers anywhere");
        return usable;
    }
    let follow = |is_hinted: &dyn Fn(&Pod<'_>) -> bool, is_for_us: &dyn Fn(&Pod<'_>) -> bool| {
        let counts = usable.iter().all(is_hinted) && usable.iter().any(is_for_us);
        counts.then(|| usable.iter().copied().filter(|pod| is_for_us(pod)).collect::<Vec<_>>())
    };
    let nodes =
        follow(&|pod| !pod.endpoint.for_nodes.is_empty(), &|pod| pod.endpoint.for_nodes.contains(&OUR_NODE));
    let zones = follow(&|pod| !pod.endpoint.for_zones.is_empty(), &|pod| {
        node.zone.is_some_and(|zone| pod.endpoint.for_zones.contains(&zone))
    });
    let hinted = |pod: &Pod<'_>| !pod.endpoint.for_zones.is_empty() || !pod.endpoint.for_nodes.is_empty();
    let (rule, set) = match (nodes, zones) {
        (Some(ours), _) => ("E3 for our node", ours),
        (None, Some(ours)) => ("E3 for our zone", ours),
        (None, None) if usable.is_empty() => return usable,
        (None, None) if usable.iter().all(hinted) => ("E3 hints for others", usable.clone()),
        (None, None) if usable.iter().any(hinted) => ("E3 not all have hints", usable.clone()),
        (None, None) => ("E3 no hints", usable.clone()),
    };
    why.insert(if set.len() < usable.len() { "E3 narrows the set" } else { "E2 the whole set" });
    why.insert(rule);
    set
}
