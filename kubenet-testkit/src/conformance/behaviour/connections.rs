//! Lifetime of connections: [L1], [L2], [L3], and the choice of backends.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use kubenet_core::{
    model::Protocol::{Tcp, Udp},
    route::FrontendKind::{self, ClusterIp, NodePort},
};

use super::{Case, TCP, UDP, node_udp_follows};
use crate::conformance::{
    bench::{ANSWER, Bench, Open, Step, answered, check, eventually, fail},
    fixture::{Svc, TERMINATING, UNREADY},
    world::Got,
};

pub(super) const CASES: &[Case] = &[
    Case::new("adding_a_backend_moves_no_established_connection", TCP, adding_a_backend),
    Case::new("changing_another_service_moves_no_established_connection", TCP, another_service),
    Case::new("replace_moves_no_established_connection", TCP, replace),
    Case::new("removed_backend_keeps_established_and_gets_no_new_connections", TCP, removed_backend),
    Case::new("terminating_backend_keeps_established_and_gets_no_new_connections", TCP, terminating),
    Case::new("removed_service_keeps_no_frontend", TCP, removed_service),
    Case::new("no_connection_fails_while_backends_change", TCP, under_load),
    Case::new("udp_flow_stays_on_its_backend", UDP, udp_stays),
    Case::new("udp_flow_to_a_removed_backend_chooses_again", UDP, udp_removed_backend),
    Case::new("udp_flow_from_the_node_to_a_removed_backend_chooses_again", UDP, udp_removed_backend_node),
    Case::new("udp_flow_from_outside_to_a_removed_backend_chooses_again", UDP, udp_removed_backend_outside),
    Case::new("udp_flow_is_served_when_endpoints_appear", UDP, udp_from_none),
    Case::new("udp_flow_from_the_node_is_served_when_endpoints_appear", UDP, udp_from_none_node),
    Case::new("udp_flow_is_refused_when_endpoints_are_gone", UDP, udp_to_none),
    Case::new("udp_flow_from_the_node_is_refused_when_endpoints_are_gone", UDP, udp_to_none_node),
    Case::new("every_backend_gets_some_tcp_connections", TCP, distribution_tcp),
    Case::new("every_backend_gets_some_udp_flows", UDP, distribution_udp),
];

const BOTH: &[&str] = &["a1", "b1"];

/// Connections of every kind of client.
fn open_from_everywhere(bench: &Bench<'_>, svc: &Svc, by: &[&str]) -> Step<Vec<Open>> {
    let mut open = Vec::new();
    for (from, kind) in [
        ("client-a", ClusterIp),
        ("node-a", ClusterIp),
        ("outside", ClusterIp),
        ("client-a", NodePort),
        ("client-b", NodePort),
        ("node-a", NodePort),
        ("outside", NodePort),
    ] {
        open.push(bench.open((from, svc, kind, Tcp), by)?);
    }
    Ok(open)
}

fn all_live(open: &mut [Open]) -> Step {
    open.iter_mut().try_for_each(Open::lives)
}

fn adding_a_backend(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    bench.program(&[svc.on(&["a1", "b1"])])?;
    let mut open = open_from_everywhere(bench, &svc, BOTH)?;
    bench.update(&[svc.on(&["a1", "a2", "b1", "b2"])])?;
    all_live(&mut open)
}

fn another_service(bench: &mut Bench<'_>) -> Step {
    let (svc, other) = (bench.service().on(BOTH), bench.service());
    bench.program(&[svc.clone(), other.on(&["a2"])])?;
    let mut open = open_from_everywhere(bench, &svc, BOTH)?;
    bench.update(&[svc.clone(), other.on(&["b2"])])?;
    all_live(&mut open)?;
    bench.update(std::slice::from_ref(&svc))?;
    all_live(&mut open)
}

fn replace(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    bench.program(&[svc.on(BOTH)])?;
    let mut open = open_from_everywhere(bench, &svc, BOTH)?;
    bench.replace()?;
    all_live(&mut open)?;
    bench.program(&[svc.on(&["a1", "a2", "b1"])])?;
    all_live(&mut open)
}

/// Connections to a1 live, and new ones go to b1 alone.
fn only_established_stay(bench: &mut Bench<'_>, svc: &Svc, without: Svc) -> Step {
    bench.program(&[svc.on(&["a1"])])?;
    let mut open = open_from_everywhere(bench, svc, &["a1"])?;
    bench.update(&[svc.on(&["a1", "b1"])])?;
    bench.update(&[without])?;
    for _ in 0..6 {
        for (from, kind) in [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)] {
            bench.served((from, svc, kind, Tcp), &["b1"])?;
        }
    }
    all_live(&mut open)
}

fn removed_backend(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    only_established_stay(bench, &svc, svc.on(&["b1"]))
}

fn terminating(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    only_established_stay(bench, &svc, svc.on(&["b1"]).and("a1", TERMINATING))
}

fn removed_service(bench: &mut Bench<'_>) -> Step {
    let (svc, other) = (bench.service().on(BOTH), bench.service().on(BOTH));
    bench.program(&[svc.clone(), other.clone()])?;
    for (from, kind) in [("client-a", ClusterIp), ("outside", NodePort)] {
        bench.served((from, &svc, kind, Tcp), BOTH)?;
    }
    bench.update(std::slice::from_ref(&other))?;
    for (from, kind) in [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)] {
        bench.served((from, &other, kind, Tcp), BOTH)?;
    }
    bench.none_served(&[
        ("client-a", &svc, ClusterIp, Tcp),
        ("node-a", &svc, ClusterIp, Tcp),
        ("client-a", &svc, ClusterIp, Udp),
        ("outside", &svc, NodePort, Tcp),
        ("outside", &svc, NodePort, Udp),
    ])
}

fn under_load(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    let (before, after) = (["a1", "b1"], ["a2", "b2"]);
    let all = ["a1", "b1", "a2", "b2"];
    bench.program(&[svc.on(&before)])?;
    let stop = AtomicBool::new(false);
    let (world, family) = (bench.world, bench.family);
    let ways = [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)];
    let targets = ways.map(|(from, kind)| (crate::conformance::fixture::place(from), svc.dial(kind, family)));
    thread::scope(|scope| {
        let clients = targets.each_ref().map(|(from, to)| {
            let stop = &stop;
            scope.spawn(move || -> Step<usize> {
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) {
                    answered(world.ask(from, *to, Tcp, ANSWER), &all).map_err(|stop| stop.at(from))?;
                    answers += 1;
                    // Some hundred connections a second are plenty, and leave the machine to the updates.
                    thread::sleep(Duration::from_millis(3));
                }
                Ok(answers)
            })
        });
        let churned = (0..20).try_for_each(|round| {
            thread::sleep(Duration::from_millis(5));
            bench.update(&[svc.on(if round % 2 == 0 { &after } else { &before })]).map(drop)
        });
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            match client.join() {
                Ok(answers) => check(answers? > 0, || "a client got no turn".into())?,
                Err(_) => return fail("a client panicked"),
            }
        }
        churned
    })
}

fn udp_stays(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    bench.program(&[svc.on(BOTH)])?;
    let mut flows = Vec::new();
    for (from, kind) in [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)] {
        flows.push(bench.open((from, &svc, kind, Udp), BOTH)?);
    }
    for _ in 0..5 {
        all_live(&mut flows)?;
    }
    bench.update(&[svc.on(&["a1", "a2", "b1", "b2"])])?;
    all_live(&mut flows)
}

fn udp_removed_backend(bench: &mut Bench<'_>) -> Step {
    udp_chooses_again(bench, "client-a", ClusterIp)
}

fn udp_removed_backend_node(bench: &mut Bench<'_>) -> Step {
    node_udp_follows(bench)?;
    udp_chooses_again(bench, "node-a", ClusterIp)
}

fn udp_removed_backend_outside(bench: &mut Bench<'_>) -> Step {
    udp_chooses_again(bench, "outside", NodePort)
}

fn udp_chooses_again(bench: &mut Bench<'_>, from: &str, kind: FrontendKind) -> Step {
    let svc = bench.service();
    for (gone, left) in [("a1", "b1"), ("b1", "a2")] {
        bench.program(&[svc.on(&[gone])])?;
        let mut flow = bench.open((from, &svc, kind, Udp), &[gone])?;
        bench.update(&[svc.on(&[left])])?;
        let moved =
            eventually(|| flow.ask(), |got| matches!(got, Got::Answer { backend, .. } if backend == left));
        moved.or_else(|got| {
            fail(format!("the flow from {from} should move from {gone} to {left}, got {got}"))
        })?;
    }
    Ok(())
}

/// Clients that are not the node itself.
const OTHERS: &[Client] = &[("client-a", ClusterIp), ("outside", NodePort)];
const NODE: &[Client] = &[("node-a", ClusterIp)];

/// Who asks, and what it dials.
type Client = (&'static str, FrontendKind);

fn udp_from_none(bench: &mut Bench<'_>) -> Step {
    served_when_endpoints_appear(bench, OTHERS)
}

fn udp_from_none_node(bench: &mut Bench<'_>) -> Step {
    node_udp_follows(bench)?;
    served_when_endpoints_appear(bench, NODE)
}

fn served_when_endpoints_appear(bench: &mut Bench<'_>, clients: &[Client]) -> Step {
    let svc = bench.service();
    for &(from, kind) in clients {
        bench.program(std::slice::from_ref(&svc))?;
        let mut socket = bench.udp_socket((from, &svc, kind, Udp))?;
        let first = socket.ask(ANSWER);
        check(first == Got::Refused, || format!("{from} without endpoints: expected refused, got {first}"))?;
        bench.update(&[svc.on(BOTH)])?;
        let served = eventually(|| socket.ask(ANSWER), |got| matches!(got, Got::Answer { .. }));
        served.or_else(|got| fail(format!("{from} with endpoints: expected an answer, got {got}")))?;
    }
    Ok(())
}

fn udp_to_none(bench: &mut Bench<'_>) -> Step {
    refused_when_endpoints_are_gone(bench, OTHERS)
}

fn udp_to_none_node(bench: &mut Bench<'_>) -> Step {
    node_udp_follows(bench)?;
    refused_when_endpoints_are_gone(bench, NODE)
}

fn refused_when_endpoints_are_gone(bench: &mut Bench<'_>, clients: &[Client]) -> Step {
    let svc = bench.service();
    for &(from, kind) in clients {
        bench.program(&[svc.on(&["b1"])])?;
        let mut flow = bench.open((from, &svc, kind, Udp), &["b1"])?;
        bench.update(&[svc.clone().and("b1", UNREADY)])?;
        let refused = eventually(|| flow.ask(), |got| *got == Got::Refused);
        refused.or_else(|got| fail(format!("{from} without endpoints: expected refused, got {got}")))?;
    }
    Ok(())
}

fn distribution_tcp(bench: &mut Bench<'_>) -> Step {
    distribution(bench, Tcp)
}

fn distribution_udp(bench: &mut Bench<'_>) -> Step {
    distribution(bench, Udp)
}

/// Each of four gets some of 64: a fair choice misses one about once in 25 million runs.
fn distribution(bench: &mut Bench<'_>, protocol: kubenet_core::model::Protocol) -> Step {
    let svc = bench.service();
    let all = ["a1", "a2", "b1", "b2"];
    bench.program(&[svc.on(&all)])?;
    for (from, kind) in [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)] {
        let mut share = BTreeMap::from(all.map(|name| (name.to_owned(), 0)));
        for _ in 0..64 {
            *share.entry(bench.served((from, &svc, kind, protocol), &all)?).or_default() += 1;
        }
        check(share.values().all(|&n| n > 0), || format!("from {from}: {share:?}"))?;
    }
    Ok(())
}
