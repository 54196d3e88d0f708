//! [F1] to [F5]: whom a destination belongs to.

use std::net::{IpAddr, SocketAddr};

use kubenet_core::model::{IpFamily, NodePortAddresses, Protocol};
use kubenet_testkit::memory::Flow;

use super::Why;
use crate::world::{Node, Port, Svc, World, address, is_of};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// First: what must be filtered is, whatever else the address is for its Service.
    LoadBalancer,
    ClusterIp,
    ExternalIp,
    NodePort,
}

/// A Service port that a destination may mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim<'a> {
    pub(super) service: &'a Svc,
    pub(super) port: &'a Port,
    pub(super) kind: Kind,
}

fn holds(texts: &[&str], wanted: IpAddr) -> bool {
    texts.iter().any(|text| address(text) == wanted)
}

/// [O4]: the families that a Service has.
fn has_family(service: &Svc, of: IpAddr) -> bool {
    service.cluster_ips.iter().any(|text| IpFamily::of(address(text)) == IpFamily::of(of))
}

/// [F4]: whether node ports answer on an address.
fn answers(node: &Node, destination: IpAddr) -> bool {
    let in_cidrs = |cidrs: &[ipnet::IpNet]| cidrs.iter().any(|cidr| cidr.contains(&destination));
    if destination.is_loopback() {
        let chosen = match &node.node_ports {
            NodePortAddresses::All => true,
            NodePortAddresses::Cidrs(cidrs) => in_cidrs(cidrs),
            _ => false,
        };
        return node.localhost_node_ports && destination.is_ipv4() && chosen;
    }
    let addresses: Vec<_> = node.addresses.iter().map(|text| address(text)).collect();
    addresses.contains(&destination)
        && match &node.node_ports {
            NodePortAddresses::All => true,
            NodePortAddresses::Cidrs(cidrs) => in_cidrs(cidrs),
            _ => addresses.iter().find(is_of(IpFamily::of(destination))) == Some(&destination),
        }
}

/// The Service port that a flow's destination belongs to.
pub(super) fn winner<'a>(world: &'a World, flow: &Flow, why: &mut Why) -> Option<Claim<'a>> {
    let (to, number) = (flow.destination.ip(), flow.destination.port());
    let mut claims = Vec::new();
    for service in world.services.values().filter(|service| has_family(service, to)) {
        for port in service.ports.iter().filter(|port| port.protocol == flow.protocol) {
            let on = [
                (Kind::ClusterIp, &service.cluster_ips),
                (Kind::ExternalIp, &service.external_ips),
                (Kind::LoadBalancer, &service.load_balancer_ips),
            ];
            for (kind, addresses) in on {
                if port.port == number && holds(addresses, to) {
                    claims.push(Claim { service, port, kind });
                }
            }
            if port.node_port == Some(number) && answers(&world.node, to) {
                claims.push(Claim { service, port, kind: Kind::NodePort });
            }
        }
    }
    // An address of its own wins over a node port.
    let of_its_own = claims.iter().filter(|claim| claim.kind != Kind::NodePort).count();
    if of_its_own > 0 {
        if of_its_own < claims.len() {
            why.insert("F4 an address of its own wins over a node port");
        }
        claims.retain(|claim| claim.kind != Kind::NodePort);
    }
    if claims.iter().any(|claim| claim.service.name != claims[0].service.name) {
        why.insert("F5 contested");
    }
    // [F5]; one whose age is unknown is the youngest.
    let age = |claim: &Claim<'_>| (claim.service.created.unwrap_or(i64::MAX), claim.service.name, claim.kind);
    let winner = claims.into_iter().min_by_key(age)?;
    why.insert(match winner.kind {
        Kind::ClusterIp => "F1 cluster IP",
        Kind::ExternalIp => "F2 external IP",
        Kind::LoadBalancer => "F3 load balancer",
        Kind::NodePort if to.is_loopback() => "F4 node port on a loopback address",
        Kind::NodePort => "F4 node port",
    });
    Some(winner)
}

type Destinations = Vec<(SocketAddr, Protocol)>;

/// What clients may dial: what Services claim, and what is near it and nobody's.
pub(crate) fn dialled(world: &World) -> (Destinations, Destinations) {
    let nobody = (SocketAddr::new(address("10.96.0.9"), 80), Protocol::Tcp);
    let (mut claimed, mut near) = (Vec::new(), vec![nobody]);
    let here: Vec<_> = world.node.addresses.iter().copied().chain(["127.0.0.1", "127.0.0.7"]).collect();
    for service in world.services.values() {
        let own = [&service.cluster_ips[..], &service.external_ips, &service.load_balancer_ips].concat();
        for port in &service.ports {
            let at = |text: &&str, number| (SocketAddr::new(address(text), number), port.protocol);
            let other = Protocol::ALL[(port.protocol as usize + 1) % 3];
            claimed.extend(own.iter().map(|text| at(text, port.port)));
            near.extend(own.iter().flat_map(|text| [(at(text, port.port).0, other), at(text, 9999)]));
            if let Some(node_port) = port.node_port {
                claimed.extend(here.iter().map(|text| at(text, node_port)));
                near.extend(["::1", "10.0.0.2", "203.0.113.99"].map(|text| at(&text, node_port)));
                near.extend(here.iter().map(|text| (at(text, node_port).0, other)));
            }
        }
    }
    (claimed, near)
}
