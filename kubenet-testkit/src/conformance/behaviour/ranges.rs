//! Source ranges that change under flows: [R1] and [L2].

use kubenet_core::{
    datapath::Feature,
    model::{
        Protocol,
        Protocol::{Tcp, Udp},
    },
    route::FrontendKind::LoadBalancer,
};

use super::{Case, TCP, UDP, node_udp_follows};
use crate::conformance::{
    bench::{Bench, DROPPED, Open, Step, Stop, check, eventually, fail},
    fixture::Svc,
    matrix::{Asked, unsupported},
    world::Got,
};

const RANGES: &[Feature] = &[Feature::SourceRanges];

pub(super) const CASES: &[Case] = &[
    Case::new("udp_flow_of_a_client_that_source_ranges_shut_out_is_cut", UDP, udp).with(RANGES),
    Case::new("udp_flow_of_the_node_that_source_ranges_shut_out_is_cut", UDP, udp_of_the_node).with(RANGES),
    Case::new("source_ranges_that_shut_a_client_out_let_its_connections_live", TCP, tcp).with(RANGES),
];

const BOTH: &[&str] = &["a1", "b1"];

/// A Service with a load balancer's address.
fn service(bench: &mut Bench<'_>, protocol: Protocol) -> Step<Svc> {
    let svc = bench.service().on(BOTH).exposed();
    let asked = Asked { kind: LoadBalancer, protocol, family: bench.family };
    let datapath = bench.datapath()?;
    match unsupported(bench.world, datapath.capabilities(), asked, std::iter::empty()) {
        Some(why) => Err(Stop::NotSupported(why)),
        None => Ok(svc),
    }
}

/// Two clients that are admitted, each with a flow; then only the second is.
fn narrow(
    bench: &mut Bench<'_>,
    svc: &Svc,
    (gone, stays): (&str, &str),
    protocol: Protocol,
) -> Step<[Open; 2]> {
    bench.program(&[svc.clone().only_from(&[gone, stays])])?;
    let flows = [
        bench.open((gone, svc, LoadBalancer, protocol), BOTH)?,
        bench.open((stays, svc, LoadBalancer, protocol), BOTH)?,
    ];
    bench.update(&[svc.clone().only_from(&[stays])])?;
    Ok(flows)
}

fn udp(bench: &mut Bench<'_>) -> Step {
    udp_is_cut(bench, ("outside", "client-a"))?;
    udp_is_cut(bench, ("client-a", "outside"))
}

fn udp_of_the_node(bench: &mut Bench<'_>) -> Step {
    node_udp_follows(bench)?;
    udp_is_cut(bench, ("node-a", "client-a"))
}

fn udp_is_cut(bench: &mut Bench<'_>, (gone, stays): (&str, &str)) -> Step {
    let svc = service(bench, Udp)?;
    let [mut cut, mut kept] = narrow(bench, &svc, (gone, stays), Udp)?;
    // A process of the node is told when it dials again; others wait in vain.
    let is_out = |got: &Got| match gone {
        "node-a" => !matches!(got, Got::Answer { .. }),
        _ => *got == Got::Silence,
    };
    let ended = eventually(|| cut.ask_within(DROPPED), is_out);
    ended.or_else(|got| fail(format!("the flow of {gone}, which is shut out, is not cut: {got}")))?;
    let again = cut.ask_within(DROPPED);
    check(is_out(&again), || format!("the flow of {gone} came back: {again}"))?;
    kept.lives()?;
    bench.update(&[svc.clone().only_from(&[gone, stays])])?;
    let served = eventually(|| cut.ask(), |got| matches!(got, Got::Answer { .. }));
    served
        .or_else(|got| fail(format!("the flow of {gone}, which may again: expected an answer, got {got}")))?;
    kept.lives()
}

/// Who is admitted is decided when a connection begins.
fn tcp(bench: &mut Bench<'_>) -> Step {
    for clients in [("outside", "client-a"), ("client-a", "outside")] {
        let svc = service(bench, Tcp)?;
        let mut flows = narrow(bench, &svc, clients, Tcp)?;
        flows.iter_mut().try_for_each(Open::lives)?;
        bench.not_served((clients.0, &svc, LoadBalancer, Tcp))?;
        bench.served((clients.1, &svc, LoadBalancer, Tcp), BOTH)?;
        flows.iter_mut().try_for_each(Open::lives)?;
    }
    Ok(())
}
