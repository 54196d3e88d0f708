//! What answers, and what does not: [F4], [N4], [S3], and more than one Service on one address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kubenet_core::{
    datapath::Feature,
    model::{
        IpFamily, LocalDetector,
        Protocol::{Tcp, Udp},
    },
    route::FrontendKind::{ClusterIp, NodePort},
};

use super::{Case, TCP};
use crate::{
    conformance::{
        bench::{Bench, Step, Stop, answered, check, fail},
        fixture::{HERE, Svc, place},
        world::Got,
    },
    place::POD_INTERFACES,
};

pub(super) const CASES: &[Case] = &[
    Case::new("unknown_port_of_a_cluster_ip_is_rejected", TCP, unknown_port)
        .with(&[Feature::RejectUnknownPorts]),
    Case::new(
        "unknown_port_is_rejected_though_an_external_ip_took_the_known_one",
        TCP,
        unknown_port_beside_rival,
    )
    .with(&[Feature::RejectUnknownPorts]),
    Case::new("loopback_node_port_answers_when_asked_for", TCP, loopback).with(&[Feature::LoopbackNodePorts]),
    Case::new("loopback_node_port_is_silent_unless_asked_for", TCP, no_loopback),
    Case::new("pods_told_by_their_interface_keep_their_address", TCP, pods_by_interface)
        .with(&[Feature::InterfaceDetectors]),
    Case::new("masquerade_all_hides_pods_from_the_backend", TCP, masquerade_all),
    Case::new("node_ports_follow_the_chosen_addresses", TCP, chosen_addresses),
];

fn unknown_port(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["a1"]);
    bench.program(std::slice::from_ref(&svc))?;
    unknown_port_is_refused(bench, &svc)
}

/// [F5]: the older Service has the port, and the address is a cluster IP all the same.
fn unknown_port_beside_rival(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["a1"]);
    let rival = bench.service().on(&["a2"]).rival_of(&svc);
    bench.program(std::slice::from_ref(&svc))?;
    bench.update(&[svc.clone(), rival.clone()])?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a2"])?;
    unknown_port_is_refused(bench, &svc)?;
    bench.update(std::slice::from_ref(&rival))?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a2"])?;
    let mut to = svc.dial(ClusterIp, bench.family);
    to.set_port(81);
    let got = bench.ask_at("client-a", to, Tcp);
    check(got != Got::Refused, || format!("{to} is an external IP only now, got {got}"))
}

fn unknown_port_is_refused(bench: &mut Bench<'_>, svc: &Svc) -> Step {
    for from in ["client-a", "node-a", "outside"] {
        for protocol in [Tcp, Udp] {
            let mut to = svc.dial(ClusterIp, bench.family);
            to.set_port(81);
            let got = bench.ask_at(from, to, protocol);
            check(got == Got::Refused, || {
                format!("{protocol} from {from} to {to}: expected refused, got {got}")
            })?;
        }
    }
    Ok(())
}

fn loopback_address(bench: &Bench<'_>, port: u16) -> Step<SocketAddr> {
    match bench.family {
        IpFamily::V4 => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
        IpFamily::V6 => Err(Stop::NotSupported("loopback node ports are for IPv4 only".into())),
    }
}

fn loopback(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    let to = loopback_address(bench, svc.dial(NodePort, bench.family).port())?;
    bench.set_node(|node| node.localhost_node_ports(true));
    for backend in ["a1", "b1"] {
        bench.program(&[svc.on(&[backend])])?;
        answered(bench.ask_at("node-a", to, Tcp), &[backend])?;
    }
    Ok(())
}

fn no_loopback(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["a1"]);
    let to = loopback_address(bench, svc.dial(NodePort, bench.family).port())?;
    bench.program(std::slice::from_ref(&svc))?;
    let got = bench.ask_at("node-a", to, Tcp);
    check(!matches!(got, Got::Answer { .. }), || format!("{to}: expected no answer, got {got}"))
}

fn masquerade_all(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["b1"]);
    bench.set_node(|node| node.masquerade_all(true));
    bench.program(std::slice::from_ref(&svc))?;
    let node = bench.world.address(&HERE.into(), bench.family)?;
    let client = bench.world.address(&place("client-a"), bench.family)?;
    for (kind, sees) in [(ClusterIp, node), (NodePort, node)] {
        match bench.ask(("client-a", &svc, kind, Tcp)) {
            Got::Answer { peer, .. } if peer == sees => {}
            got => {
                return check(false, || format!("expected that b1 sees {sees} and not {client}, got {got}"));
            }
        }
    }
    Ok(())
}

/// [S3] and [S5]: the source address of a pod does not count, and the node's own packets came in nowhere.
fn pods_by_interface(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["b1"]);
    let node = bench.world.address(&HERE.into(), bench.family)?;
    let client = bench.world.address(&place("client-a"), bench.family)?;
    let sees = |bench: &Bench<'_>, from: &str, sees: IpAddr| match bench.ask((from, &svc, ClusterIp, Tcp)) {
        Got::Answer { peer, .. } if peer == sees => Ok(()),
        got => fail(format!("from {from}: expected that b1 sees {sees}, got {got}")),
    };
    bench.set_node(|node| node.local_detector(LocalDetector::InterfacePrefix(POD_INTERFACES.into())));
    bench.program(std::slice::from_ref(&svc))?;
    for (from, address) in [("client-a", client), ("node-a", node), ("outside", node)] {
        sees(bench, from, address)?;
    }
    bench.set_node(|node| node.local_detector(LocalDetector::Bridge("nobody".into())));
    bench.update(std::slice::from_ref(&svc))?;
    for from in ["client-a", "node-a", "outside"] {
        sees(bench, from, node)?;
    }
    Ok(())
}

fn chosen_addresses(bench: &mut Bench<'_>) -> Step {
    use kubenet_core::model::NodePortAddresses;
    let svc = bench.service().on(&["a1"]);
    bench.program(std::slice::from_ref(&svc))?;
    bench.served(("outside", &svc, NodePort, Tcp), &["a1"])?;
    // Ranges that hold no address of the node.
    bench.set_node(|node| node.node_port_addresses(NodePortAddresses::Cidrs(Vec::new())));
    bench.update(std::slice::from_ref(&svc))?;
    bench.not_served(("outside", &svc, NodePort, Tcp))?;
    bench.not_served(("node-a", &svc, NodePort, Tcp))?;
    bench.served(("outside", &svc, ClusterIp, Tcp), &["a1"])?;
    bench.set_node(|node| node.node_port_addresses(NodePortAddresses::Primary));
    bench.update(std::slice::from_ref(&svc))?;
    bench.served(("outside", &svc, NodePort, Tcp), &["a1"]).map(drop)
}
