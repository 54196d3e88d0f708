//! The rules that decided, in words.

use kubenet_core::{
    model::{Affinity, Algorithm, IpFamily, TrafficPolicy},
    resolve::{Selection, Topology, decide},
    route::{BackendState, FrontendAddress, FrontendKind, Origin, Route, WhenEmpty},
};
use kubenet_testkit::memory::{Choice, Verdict};

use kubenet_examples::trace::Dialled;

use crate::model::Model;

pub(crate) fn explain(
    model: &Model,
    dialled: &Dialled,
    route: Option<&Route>,
    verdict: &Verdict,
) -> Vec<String> {
    let Dialled { from, to, port, protocol } = dialled;
    let Some(route) = route else {
        return vec![match verdict {
            Verdict::Reject => {
                format!(
                    "{to} is a cluster IP, and {port}/{protocol} is no port of its Service: rejected [N4]"
                )
            }
            _ => format!("{to} with {port}/{protocol} is no Service's frontend on this node"),
        }];
    };
    let mut why = vec![frontend(model, dialled, route)];
    why.extend(conflicts(model, route));
    let routing = model.cluster.table().node();
    let origin = routing.origin(*from, None);
    why.push(match origin {
        Origin::Pod => format!("{from} is inside the cluster CIDRs: a pod [S3]"),
        Origin::Node => format!("{from} is this node's own address"),
        Origin::Outside if routing.local_detector.detects(IpFamily::of(*from)) => {
            format!("{from} is neither this node's nor a pod's: from outside [S3]")
        }
        Origin::Outside => {
            format!("{from} is not this node's, and no cluster CIDR tells pods: from outside [S3]")
        }
    });
    if let Some(ranges) = &route.source_ranges {
        let admitted = route.admits(origin, *from);
        let by_node = admitted && origin == Origin::Node && !ranges.cidrs.iter().any(|c| c.contains(from));
        why.push(match (admitted, by_node) {
            (true, true) => "a source range holds an address of this node: admitted [R2]".into(),
            (true, false) => "inside the source ranges: admitted [R1]".into(),
            (false, _) => "outside the source ranges: dropped before anything else [R1] [R3]".into(),
        });
        if !admitted {
            return why;
        }
    }
    why.extend(selection(model, route, origin));
    match verdict {
        Verdict::Forward(choices) => {
            why.extend(balancing(route, choices));
            why.push(masquerade(model, route, origin, choices));
        }
        Verdict::Reject => why.push("no usable endpoint anywhere: rejected [E6]".into()),
        Verdict::Drop => {
            why.push(
                "usable endpoints exist, but none on this node, and the policy is Local: dropped [E6]".into(),
            );
        }
        Verdict::Pass => {}
    }
    why
}

fn frontend(model: &Model, Dialled { to, port, protocol, .. }: &Dialled, route: &Route) -> String {
    let rule = match route.kind {
        FrontendKind::ClusterIp => "F1",
        FrontendKind::ExternalIp => "F2",
        FrontendKind::LoadBalancer => "F3",
        _ => "F4",
    };
    let name = &route.service_port;
    match route.frontend.address {
        FrontendAddress::Ip(_) => {
            format!("{to} is the {} of {name}, with port {port}/{protocol} [{rule}]", route.kind.as_str())
        }
        FrontendAddress::NodePort(_) => format!(
            "{to} is an address of {} on which node ports answer, and {port}/{protocol} is that of {name} [{rule}]",
            model.node.name()
        ),
    }
}

fn conflicts(model: &Model, route: &Route) -> impl Iterator<Item = String> {
    let of_route = |c: &&kubenet_core::cluster::FrontendConflict| c.frontend == route.frontend;
    let losers: Vec<_> = model.conflicts.iter().filter(of_route).map(|c| c.loser.clone()).collect();
    losers
        .into_iter()
        .map(|loser| format!("{loser} claims this frontend, too; the older claim keeps it [F5]"))
}

/// Which set of endpoints counts, and what is left of it.
fn selection(model: &Model, route: &Route, origin: Origin) -> Vec<String> {
    let Some((service, slices)) = model.origin_of(route) else { return Vec::new() };
    let Some(port) = service.ports().iter().find(|port| *port.name() == route.service_port.port) else {
        return Vec::new();
    };
    let decision = decide(&model.node, service, port, route.frontend.family(), slices);
    let external = route.kind.is_external();
    let (field, rule, selection) = match (external, origin.is_internal()) {
        (false, _) => ("internalTrafficPolicy", "E4", &decision.internal),
        (true, false) => ("externalTrafficPolicy", "E5", &decision.external),
        (true, true) => ("externalTrafficPolicy", "E5", &decision.short_circuit),
    };
    let mut why = Vec::new();
    let short_circuits =
        external && origin.is_internal() && service.external_traffic_policy() == TrafficPolicy::Local;
    why.push(if short_circuits {
        "externalTrafficPolicy is Local, which pods and this node short-circuit: endpoints of all nodes [E5]"
            .into()
    } else {
        match selection.policy {
            TrafficPolicy::Cluster => format!("{field} is Cluster: endpoints of all nodes [{rule}]"),
            TrafficPolicy::Local => {
                format!("{field} is Local: endpoints on {} only [{rule}]", model.node.name())
            }
        }
    });
    why.extend(topology(model, selection));
    let backends = &selection.target.backends;
    if backends.iter().any(|backend| backend.state == BackendState::Terminating) {
        why.push("none of them is ready: those that serve while they terminate are used [E1]".into());
    }
    if backends.is_empty() && selection.target.when_empty == WhenEmpty::Reject {
        why.push(format!(
            "{} has no endpoint that is ready, or serves while it terminates [E1]",
            route.service_port
        ));
    }
    why
}

fn topology(model: &Model, selection: &Selection) -> Option<String> {
    match selection.topology {
        Topology::SameZone => {
            let zone = model.node.zone().unwrap_or_default();
            Some(format!("every ready endpoint has a hint: those for zone {zone} are used [E3]"))
        }
        Topology::SameNode => {
            let node = model.node.name();
            Some(format!("every ready endpoint has a hint: those for node {node} are used [E3]"))
        }
        _ => None,
    }
}

fn balancing(route: &Route, choices: &[Choice]) -> Vec<String> {
    let mut why = Vec::new();
    match route.algorithm {
        Algorithm::Maglev => {
            why.push(format!("annotation {} is maglev: the client's address decides", Algorithm::ANNOTATION));
        }
        _ if choices.iter().any(|choice| choice.backend.weight.get() > 1) => {
            why.push("picked at random, in proportion to the endpoints' weights".into());
        }
        _ => {}
    }
    if let Some(affinity) = route.affinity {
        why.push(affinity_in_words(affinity));
    }
    why
}

fn affinity_in_words(affinity: Affinity) -> String {
    let seconds = affinity.timeout_seconds();
    format!("sessionAffinity is ClientIP: the client stays with its first choice for {seconds} s [A1]")
}

fn masquerade(model: &Model, route: &Route, origin: Origin, choices: &[Choice]) -> String {
    let by_rule = route.masquerade.applies_to(origin);
    let hairpin = choices.iter().any(|choice| choice.masquerade) && !by_rule;
    if hairpin {
        return if choices.len() == 1 {
            "client and endpoint are one: the source address becomes the node's [S4]".into()
        } else {
            "one of the endpoints is the client itself: only then the source address becomes the node's [S4]"
                .into()
        };
    }
    match (route.kind.is_external(), by_rule) {
        (true, true) if origin == Origin::Node && route.masquerade.outside => {
            "an external frontend with policy Cluster: the source address becomes the node's [S1]".into()
        }
        (true, true) if origin == Origin::Node => {
            "from this node to an external frontend with policy Local: the source address becomes the node's [S5]".into()
        }
        (true, true) => "an external frontend with policy Cluster: the source address becomes the node's [S1]".into(),
        (true, false) if origin == Origin::Pod => {
            "from a pod to an external frontend with policy Local: the source address is kept [S5]".into()
        }
        (true, false) => "policy Local: the source address is kept [S2]".into(),
        (false, true) if model.node.masquerade_all() => {
            "all cluster-IP traffic is masqueraded: the source address becomes the node's [S3]".into()
        }
        (false, true) => "not from a pod to a cluster IP: the source address becomes the node's [S3]".into(),
        (false, false) if origin == Origin::Pod => {
            "from a pod to a cluster IP: the source address is kept [S3]".into()
        }
        (false, false) => "to a cluster IP, and no cluster CIDR tells pods: the source address is kept [S3]".into(),
    }
}
