//! Where flows come from, and [R1] to [R3]: who is let in.

use std::net::IpAddr;

use ipnet::IpNet;
use kubenet_core::model::{IpFamily, LocalDetector};
use kubenet_testkit::memory::Flow;

use super::{
    Why,
    frontends::{Claim, Kind},
};
use crate::world::{Node, address};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Pod,
    Node,
    Outside,
}

pub(super) fn from(node: &Node, flow: &Flow, why: &mut Why) -> Sender {
    let client = flow.source.ip();
    let interface = flow.interface.as_deref();
    let is_pod = match &node.detector {
        LocalDetector::Cidrs(cidrs) => cidrs.iter().any(|cidr| cidr.contains(&client)),
        LocalDetector::Bridge(bridge) => interface == Some(bridge.as_str()),
        LocalDetector::InterfacePrefix(prefix) => interface.is_some_and(|i| i.starts_with(prefix.as_str())),
        _ => false,
    };
    let (from, tag) = if client.is_loopback() || node.addresses.iter().any(|text| address(text) == client) {
        (Sender::Node, "from the node")
    } else if is_pod {
        (Sender::Pod, "from a pod")
    } else {
        (Sender::Outside, "from outside")
    };
    why.insert(tag);
    from
}

/// Whether the detector can tell pods of this client's family from others.
pub(super) fn detects(node: &Node, client: IpAddr) -> bool {
    match &node.detector {
        LocalDetector::None => false,
        LocalDetector::Cidrs(cidrs) => cidrs.iter().any(is_range_of(client)),
        _ => true,
    }
}

fn is_range_of(client: IpAddr) -> impl Fn(&IpNet) -> bool {
    move |range| IpFamily::of(range.addr()) == IpFamily::of(client)
}

pub(super) fn admits(claim: &Claim<'_>, node: &Node, from: Sender, client: IpAddr, why: &mut Why) -> bool {
    let service = claim.service;
    if claim.kind != Kind::LoadBalancer || (service.source_ranges.is_empty() && !service.bad_source_range) {
        return true;
    }
    let ranges: Vec<IpNet> = service.source_ranges.iter().map(|text| text.parse().unwrap()).collect();
    let ours: Vec<_> = ranges.iter().copied().filter(is_range_of(client)).collect();
    let holds = |client: IpAddr| ours.iter().any(|range| range.contains(&client));
    let (rule, admits) = if ours.is_empty() && service.bad_source_range {
        ("R1 only bad ranges remain", false)
    } else if ours.is_empty() {
        ("R1 ranges of the other family only", true)
    } else if ours.iter().any(|range| range.prefix_len() == 0) {
        ("R1 a range of all", true)
    } else if holds(client) {
        ("R1 inside the ranges", true)
    } else if from == Sender::Node && node.addresses.iter().any(|text| holds(address(text))) {
        ("R2 the node", true)
    } else {
        ("R1 outside the ranges", false)
    };
    why.insert(rule);
    admits
}
