//! The rules once more, told naively from the declared objects: no table, no delta, nothing of the library's
//! resolution. What [`MemoryDatapath`](kubenet_testkit::memory::MemoryDatapath) does with a flow must be what
//! this says.

mod endpoints;
mod frontends;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use kubenet_core::model::{ServiceType, TrafficPolicy};
use kubenet_testkit::memory::{Flow, Verdict};

pub(crate) use self::frontends::dialled;
use self::{
    endpoints::{Pod, alternatives},
    frontends::{Claim, Kind},
    sources::Sender,
};
use crate::world::{Node, World, address, is_of};

/// Names of the rules and branches that decided.
pub(crate) type Why = BTreeSet<&'static str>;

/// What is to happen to a flow.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) answer: Answer,
    pub(crate) why: Why,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// One of these is picked.
    Forward {
        to: BTreeMap<SocketAddr, Seen>,
        /// Whether consistent hashing may leave some of them out for this client.
        maglev: bool,
    },
    Reject,
    Drop,
    Pass,
}

/// A backend, and whom it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) local: bool,
    pub(crate) terminating: bool,
    pub(crate) masquerade: bool,
    pub(crate) sees: IpAddr,
    pub(crate) weight: u16,
}

/// All that may happen to a new flow: more than one answer where the rules do not say which of two endpoints
/// with one address and port counts. `spared`: backends here see the client.
pub(crate) fn expect(world: &World, flow: &Flow, spared: bool) -> Vec<Expected> {
    let mut why = Why::new();
    let Some(claim) = frontends::winner(world, flow, &mut why) else {
        // [N4]
        let mut cluster_ips = world.services.values().flat_map(|service| &service.cluster_ips);
        let known = cluster_ips.any(|text| address(text) == flow.destination.ip());
        why.insert(if known { "N4 unknown port of a cluster IP" } else { "not a Service" });
        let answer = if known { Answer::Reject } else { Answer::Pass };
        return vec![Expected { answer, why }];
    };
    let from = sources::from(&world.node, flow, &mut why);
    if flow.destination.ip().is_loopback() && from != Sender::Node {
        why.insert("N1 a loopback address from elsewhere");
        return vec![Expected { answer: Answer::Drop, why }];
    }
    // [R3]: before everything else.
    if !sources::admits(&claim, &world.node, from, flow.source.ip(), &mut why) {
        return vec![Expected { answer: Answer::Drop, why }];
    }
    let answers = alternatives(world, &claim, flow, &mut why).into_iter().map(|pods| {
        let mut why = why.clone();
        let answer = answer(world, &claim, from, flow, &pods, spared, &mut why);
        Expected { answer, why }
    });
    answers.collect()
}

/// [E5]: where the external policy counts. [O4]: external IPs of a family that the Service lacks are ignored.
fn external_policy(claim: &Claim<'_>) -> TrafficPolicy {
    let service = claim.service;
    let is_v4 = |text: &&str| address(text).is_ipv4();
    let known = |text: &&str| service.cluster_ips.iter().any(|own| is_v4(own) == is_v4(text));
    let reached = service.service_type != ServiceType::ClusterIp || service.external_ips.iter().any(known);
    if reached { service.external } else { TrafficPolicy::Cluster }
}

fn answer(
    world: &World,
    claim: &Claim<'_>,
    from: Sender,
    flow: &Flow,
    pods: &[Pod<'_>],
    spared: bool,
    why: &mut Why,
) -> Answer {
    // [E4], [E5]
    let local_only = match claim.kind {
        Kind::ClusterIp => claim.service.internal == TrafficPolicy::Local,
        _ if external_policy(claim) == TrafficPolicy::Cluster => false,
        _ if from == Sender::Outside => true,
        _ => {
            why.insert("E5 short circuit");
            false
        }
    };
    let set = if local_only {
        why.insert(if claim.kind == Kind::ClusterIp { "E4 local set" } else { "E5 local set" });
        endpoints::local_set(pods, why)
    } else {
        endpoints::cluster_set(&world.node, pods, why)
    };
    // [E6]
    if set.is_empty() {
        let anywhere = !endpoints::usable(pods).is_empty();
        why.insert(if anywhere { "E6 none here: drop" } else { "E6 none anywhere: reject" });
        return if anywhere { Answer::Drop } else { Answer::Reject };
    }
    let client = flow.source.ip();
    let seen = |pod: &Pod<'_>, why: &mut Why| {
        let masquerade = masquerade(&world.node, claim, from, client, pod, spared, why);
        let sees = if masquerade { primary(&world.node, client) } else { client };
        Seen { local: pod.local(), terminating: !pod.ready(), masquerade, sees, weight: pod.endpoint.weight }
    };
    let to = set.iter().map(|pod| (pod.at, seen(pod, why))).collect();
    for (holds, what) in [
        (claim.service.maglev, "maglev"),
        (set.iter().any(|pod| pod.ready() && pod.endpoint.terminating == Some(true)), "O3 ready wins"),
        (set.iter().any(|pod| pod.endpoint.weight != set[0].endpoint.weight), "weights"),
    ] {
        why.extend(holds.then_some(what));
    }
    Answer::Forward { to, maglev: claim.service.maglev }
}

/// What masqueraded flows of this client's family come from.
fn primary(node: &Node, client: IpAddr) -> IpAddr {
    let addresses: Vec<_> = node.addresses.iter().map(|text| address(text)).collect();
    let family = kubenet_core::model::IpFamily::of(client);
    addresses.iter().find(is_of(family)).copied().unwrap_or(client)
}

/// [S1] to [S5]. [S1] speaks of clients outside; pods and the node that dial an external frontend of policy
/// Cluster are masqueraded, too, as kube-proxy does.
fn masquerade(
    node: &Node,
    claim: &Claim<'_>,
    from: Sender,
    client: IpAddr,
    pod: &Pod<'_>,
    spared: bool,
    why: &mut Why,
) -> bool {
    if pod.at.ip() == client {
        why.insert("S4 hairpin");
        return true;
    }
    let (rule, masquerade) = match claim.kind {
        Kind::ClusterIp if node.masquerade_all => ("S3 masqueradeAll", true),
        Kind::ClusterIp if !sources::detects(node, client) => ("S5 no detector", false),
        Kind::ClusterIp if from == Sender::Pod => ("S3 pod", false),
        Kind::ClusterIp if from == Sender::Node => ("S5 node", true),
        Kind::ClusterIp => ("S3 not a pod", true),
        _ if external_policy(claim) == TrafficPolicy::Cluster => ("S1 external", true),
        _ if from == Sender::Node => ("S5 node, policy Local", true),
        _ => ("S2 client is seen", false),
    };
    why.insert(rule);
    let here = pod.local() || node.addresses.iter().any(|text| address(text) == pod.at.ip());
    if masquerade && spared && here {
        why.insert("S1 spared here");
        return false;
    }
    masquerade
}

impl Expected {
    /// Whether a datapath's verdict is this answer.
    pub(crate) fn allows(&self, verdict: &Verdict) -> bool {
        match (&self.answer, verdict) {
            (Answer::Reject, Verdict::Reject)
            | (Answer::Drop, Verdict::Drop)
            | (Answer::Pass, Verdict::Pass) => true,
            (Answer::Forward { to, maglev }, Verdict::Forward(choices)) => {
                let all = if *maglev { !choices.is_empty() } else { choices.len() == to.len() };
                let is_expected = |choice: &kubenet_testkit::memory::Choice| {
                    let backend = &choice.backend;
                    to.get(&backend.socket_addr()).is_some_and(|seen| {
                        seen.local == backend.local
                            && seen.terminating
                                == (backend.state == kubenet_core::route::BackendState::Terminating)
                            && seen.masquerade == choice.masquerade
                            && seen.sees == choice.sees
                    })
                };
                // Weights are shares: only their ratio counts.
                let share = |choice: &kubenet_testkit::memory::Choice| {
                    let declared = to.get(&choice.backend.socket_addr()).map_or(0, |seen| seen.weight);
                    (u32::from(choice.backend.weight.get()), u32::from(declared))
                };
                let in_proportion = choices.windows(2).all(|pair| {
                    let ((a, declared_a), (b, declared_b)) = (share(&pair[0]), share(&pair[1]));
                    a * declared_b == b * declared_a
                });
                all && choices.iter().all(is_expected) && in_proportion
            }
            _ => false,
        }
    }
}
