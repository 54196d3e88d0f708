//! Errors about translated flows and what else hides in their headers: [L4], [S6].

use std::time::Duration;

use kubenet_core::{
    model::Protocol::{Tcp, Udp},
    route::FrontendKind::{self, ClusterIp, NodePort},
};

use super::{Case, TCP, UDP};
use crate::{
    conformance::{
        bench::{Bench, Step, Stop, answered, check, eventually},
        fixture::{HERE, place},
        world::Got,
    },
    place::Node,
};

pub(super) const CASES: &[Case] = &[
    Case::new("port_unreachable_of_a_backend_reaches_the_client", UDP, port_unreachable),
    Case::new("path_mtu_towards_a_backend_here_reaches_the_client", TCP, mtu_to_backend_here),
    Case::new("path_mtu_towards_a_backend_elsewhere_reaches_the_client", TCP, mtu_to_backend_elsewhere),
    Case::new("path_mtu_towards_the_client_reaches_the_backend", TCP, mtu_to_client),
    Case::new("udp_datagrams_in_fragments_are_served", UDP, fragments),
    Case::new("masquerading_keeps_clients_of_one_port_apart", TCP, one_port),
];

/// Time for errors to come back and for TCP to send again.
const LONG: Duration = Duration::from_secs(3);
/// Least for IPv6, RFC 8200, and less than the interfaces have.
const NARROW: u32 = 1280;
/// Some packets of any size in question.
const MANY: usize = 12_000;

type Client = (&'static str, FrontendKind);
const CLIENTS: [Client; 5] = [
    ("client-a", ClusterIp),
    ("client-a", NodePort),
    ("node-a", ClusterIp),
    ("outside", NodePort),
    ("outside", ClusterIp),
];

fn port_unreachable(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().deaf();
    for backend in ["a1", "b1"] {
        bench.program(&[svc.on(&[backend])])?;
        for (from, kind) in CLIENTS {
            bench.refused((from, &svc, kind, Udp)).map_err(|stop| stop.at(backend))?;
        }
    }
    Ok(())
}

/// A socket of the node itself knows what its node knows.
fn beyond_the_node() -> impl Iterator<Item = Client> {
    CLIENTS.into_iter().filter(|(from, _)| *from != "node-a")
}

fn mtu_to_backend_here(bench: &mut Bench<'_>) -> Step {
    beyond_the_node().try_for_each(|client| narrow(bench, client, ("a1", Node::A), "a1"))
}

fn mtu_to_backend_elsewhere(bench: &mut Bench<'_>) -> Step {
    CLIENTS.into_iter().try_for_each(|client| narrow(bench, client, ("b1", Node::B), "b1"))
}

fn mtu_to_client(bench: &mut Bench<'_>) -> Step {
    for backend in ["a1", "b1"] {
        beyond_the_node().try_for_each(|client| narrow(bench, client, (client.0, HERE), backend))?;
    }
    Ok(())
}

/// Much goes to and fro between a client and a backend though a node takes less towards a place than both ends
/// believe.
fn narrow(bench: &mut Bench<'_>, client: Client, to: (&str, Node), backend: &str) -> Step {
    let (from, kind) = client;
    let svc = bench.service();
    bench.program(&[svc.on(&[backend])])?;
    let mut open = bench.open((from, &svc, kind, Tcp), &[backend])?;
    let Some(narrow) = bench.world.narrow(to.1, &place(to.0), NARROW)? else {
        return Err(Stop::NotSupported("described packets have no size".into()));
    };
    let got = open.ask_at_length(MANY, LONG);
    drop(narrow);
    answered(got, &[backend]).map(drop).map_err(|stop| {
        stop.at(format!("{from} to {kind:?} on {backend}, {NARROW} bytes from {} to {}", to.1, to.0))
    })
}

fn fragments(bench: &mut Bench<'_>) -> Step {
    for backend in ["a1", "b1"] {
        let svc = bench.service();
        bench.program(&[svc.on(&[backend])])?;
        for (from, kind) in CLIENTS {
            let mut flow = bench.open((from, &svc, kind, Udp), &[backend])?;
            for length in [1473, 4000, 8900] {
                // A socket learns the size of its path from the first datagram that did not fit.
                let served = |got: &Got| matches!(got, Got::Answer { .. });
                eventually(|| flow.ask_at_length(length, Duration::from_millis(500)), served).map_err(
                    |got| Stop::Failed(format!("{from} to {kind:?} on {backend}, {length} bytes: {got}")),
                )?;
            }
        }
    }
    Ok(())
}

fn one_port(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    bench.program(&[svc.on(&["b1"])])?;
    let clients = ["client-a", "client-b", "a1", "a2", "outside", "node-a"];
    let mut open = Vec::new();
    for from in clients {
        open.push(bench.open_from_port(40_001, (from, &svc, NodePort, Tcp), &["b1"])?);
    }
    for _ in 0..3 {
        open.iter_mut().try_for_each(|open| open.lives())?;
    }
    check(open.len() == clients.len(), || "a client got no connection".into())
}
