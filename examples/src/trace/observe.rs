//! Asks a datapath of the kernel, and puts together what was seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use futures::executor::block_on;
use ipnet::IpNet;
use kubenet_core::{
    datapath::{Capabilities, Close, Datapath},
    route::{Frontend, FrontendAddress, NodeRouting, Origin, Route, RouteDelta, RouteTable},
};
use kubenet_testkit::memory::Verdict;

use super::{
    Dialled, TraceError,
    expect::Expectation,
    pace::Pace,
    sampler::{Asked, Sampler},
    seen::Seen,
    stage::{Kind, Stage},
};

/// What is used of a client's ports on one stage, so that no port is used twice.
const PORTS: u64 = 60_000;

/// What a datapath of the kernel did with flows.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Its name.
    pub datapath: &'static str,
    /// What it can serve, and how.
    pub capabilities: Capabilities,
    /// The routes that it does not serve, and why.
    pub refused: BTreeMap<Frontend, String>,
    /// What the datapath should do with each flow, by the table and by what is known of its ways.
    pub expected: Vec<Verdict>,
    /// What was seen of each flow.
    pub seen: Vec<Seen>,
}

/// Sends each flow through a datapath of the kernel, with so many fresh connections, or with more as long as a
/// backend that the table allows has not been seen. `pod_cidrs` are the node's own, where they are known.
///
/// What is seen is what the kernel did. The table decides how often a flow is tried, and one thing more: the
/// eBPF datapath translates the node's own flows at the socket, where there is no source address yet that
/// could be replaced. Those that leave with the node's first address, as masquerading would have it, count as
/// masqueraded where the table says so.
///
/// # Errors
/// What this machine lacks: root, a feature of the kernel, a program. A table that the datapath cannot serve
/// at all.
pub fn observe(
    kind: Kind,
    table: &Arc<RouteTable>,
    pod_cidrs: &[IpNet],
    flows: &[Dialled],
    samples: u32,
) -> Result<Observed, TraceError> {
    let ask = |flows: &[Dialled]| {
        let stage = Stage::new(table, pod_cidrs, flows)?;
        let datapath = stage.start(kind, table)?;
        let observed = observe_on(&stage, kind, &datapath, table, flows, samples)?;
        block_on(datapath.close(Close::Remove))?;
        Ok::<_, TraceError>(observed)
    };
    let mut chunks = chunks(table.node(), flows, samples).into_iter();
    // Without flows it is still seen which routes are refused.
    let mut all = ask(chunks.next().unwrap_or_default())?;
    for chunk in chunks {
        let more = ask(chunk)?;
        all.expected.extend(more.expected);
        all.seen.extend(more.seen);
    }
    Ok(all)
}

/// Parts of the flows for which each client's ports suffice. The node is one client.
fn chunks<'a>(node: &NodeRouting, flows: &'a [Dialled], samples: u32) -> Vec<&'a [Dialled]> {
    let most = (PORTS / u64::from(samples.max(1))).max(1);
    let mut chunks = Vec::new();
    let (mut begin, mut used) = (0, HashMap::new());
    for (i, flow) in flows.iter().enumerate() {
        let client = Some(flow.from).filter(|from| node.origin(*from, None) != Origin::Node);
        let client = (client, flow.protocol);
        let count: &mut u64 = used.entry(client).or_default();
        *count += 1;
        if *count > most {
            chunks.push(&flows[begin..i]);
            begin = i;
            used = HashMap::from([(client, 1)]);
        }
    }
    chunks.push(&flows[begin..]);
    chunks
}

/// The same on a stage that was made for these flows, through a datapath that was started on it. That one is
/// left with the table, without its session affinities.
///
/// # Errors
/// Those of [`observe`].
pub fn observe_on(
    stage: &Stage,
    kind: Kind,
    datapath: &Arc<dyn Datapath>,
    table: &Arc<RouteTable>,
    flows: &[Dialled],
    samples: u32,
) -> Result<Observed, TraceError> {
    let report = stage.program(datapath, table)?;
    let refused = report.failed.iter().map(|failed| (failed.frontend, failed.error.to_string()));
    let refused: BTreeMap<Frontend, String> = refused.collect();
    let served = |route: &&Arc<Route>| !refused.contains_key(&route.frontend);
    let expectation = Expectation::new(kind, &**datapath, table, &refused)?;
    let expected: Vec<Verdict> = flows.iter().map(|flow| expectation.of(flow)).collect();
    let asked: Vec<Asked> = flows.iter().zip(&expected).map(|(f, e)| ask(*f, e, samples)).collect();
    let is_sticky = |i: &usize| {
        let Dialled { to, port, protocol, .. } = flows[*i];
        table.lookup(to, port, protocol).filter(served).is_some_and(|route| route.affinity.is_some())
    };
    let sticky: Vec<usize> = (0..flows.len()).filter(is_sticky).collect();
    let marker = nobody(table, flows);
    let mut seen = stage.node().run(|| {
        let mut sampler = Sampler::new(stage, marker)?;
        let mut stays = Vec::new();
        if !sticky.is_empty() {
            // In one go: the client's flows to other frontends of the Service port share its choice, and may have
            // to choose again where their backends are others.
            let once = |i: &usize| Asked { pace: Pace::one_round(), ..asked[*i].clone() };
            stays = sampler.run(&sticky.iter().map(once).collect::<Vec<_>>())?;
            forget_affinity(datapath, table, &refused)?;
        }
        let mut seen = sampler.run(&asked)?;
        for (i, stays) in sticky.iter().zip(stays) {
            seen[*i].stays = Some(stays.reached.len() < 2);
        }
        Ok::<_, TraceError>(seen)
    })??;
    for ((flow, expected), seen) in flows.iter().zip(&expected).zip(&mut seen) {
        expectation.complete(flow, expected, seen);
    }
    let (datapath, capabilities) = (datapath.name(), datapath.capabilities().clone());
    Ok(Observed { datapath, capabilities, refused, expected, seen })
}

fn ask(dialled: Dialled, expected: &Verdict, samples: u32) -> Asked {
    let choices = match expected {
        Verdict::Forward(choices) => &choices[..],
        _ => &[],
    };
    let pace = Pace::new(samples, choices.iter().map(|choice| choice.backend.weight.get()));
    let allowed = choices.iter().map(|choice| choice.backend.socket_addr()).collect();
    Asked { dialled, pace, allowed }
}

/// From now on each connection picks anew: else a client would show one of its backends only.
fn forget_affinity(
    datapath: &Arc<dyn Datapath>,
    table: &RouteTable,
    refused: &BTreeMap<Frontend, String>,
) -> Result<(), TraceError> {
    let mut delta = RouteDelta::empty(table.revision(), table.revision().next());
    for route in table.routes() {
        if route.affinity.is_some() && !refused.contains_key(&route.frontend) {
            let mut free = Route::clone(route);
            free.affinity = None;
            delta.upserts.push(Arc::new(free));
        }
    }
    let report = block_on(datapath.apply(Arc::new(delta)))?;
    match report.failed.into_iter().next() {
        None => Ok(()),
        Some(failed) => Err(failed.error.into()),
    }
}

/// An address that a packet goes to the world for, from the range for tests of networks (RFC 2544). The one
/// beside it is nobody's, either.
fn nobody(table: &RouteTable, flows: &[Dialled]) -> Ipv4Addr {
    let known: BTreeSet<IpAddr> = table
        .routes()
        .flat_map(|route| {
            let frontend = match route.frontend.address {
                FrontendAddress::Ip(address) => Some(address),
                FrontendAddress::NodePort(_) => None,
            };
            frontend.into_iter().chain(route.backends().map(|backend| backend.address))
        })
        .chain(table.node().addresses.iter().copied())
        .chain(flows.iter().flat_map(|flow| [flow.from, flow.to]))
        .collect();
    let mut candidates = (0..=u16::MAX).map(u16::to_be_bytes).map(|[c, d]| Ipv4Addr::new(198, 18, c, d));
    let is_free = |address: Ipv4Addr| !known.contains(&address.into());
    let beside = |address: Ipv4Addr| Ipv4Addr::from_bits(address.to_bits() ^ 1);
    candidates.find(|a| is_free(*a) && is_free(beside(*a))).unwrap_or(Ipv4Addr::new(198, 19, 255, 254))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(from: &str) -> Dialled {
        Dialled::new(from, "10.96.0.1", 80, "TCP").unwrap()
    }

    #[test]
    fn a_stage_has_ports_for_all_of_its_flows() {
        let flows: Vec<_> = (0..10).map(|n| flow(if n < 7 { "10.0.0.1" } else { "10.0.0.2" })).collect();
        let mut node = NodeRouting::default();
        let lengths = |node: &NodeRouting, samples| {
            chunks(node, &flows, samples).iter().map(|c| c.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&node, 64), [10]);
        assert_eq!(lengths(&node, 20_000), [3, 3, 4]);
        assert_eq!(lengths(&node, 1_000_000), [1, 1, 1, 1, 1, 1, 2, 1, 1]);
        assert_eq!(chunks(&node, &[], 64), [&[][..]]);
        node.addresses = vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        assert_eq!(lengths(&node, 1_000_000), [1; 10]);
    }

    #[test]
    fn the_marker_goes_to_nobody() {
        let table = RouteTable::default();
        assert_eq!(nobody(&table, &[]), Ipv4Addr::new(198, 18, 0, 0));
        assert_eq!(nobody(&table, &[flow("198.18.0.1")]), Ipv4Addr::new(198, 18, 0, 2));
    }
}
