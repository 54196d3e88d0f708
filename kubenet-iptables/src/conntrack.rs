//! The kernel's connection tracking: what rules cannot do about flows that began before them.

mod netlink;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ipnet::Ipv4Net;
use kubenet_core::{
    model::{IpFamily, Protocol},
    route::{Frontend, FrontendAddress, NodeRouting, RouteTable, SourceRanges},
};

use self::netlink::{Conntrack, Flow, Selected};

/// For more frontends than this, the kernel is asked for all flows of UDP at once.
const QUESTIONS: usize = 16;

/// UDP frontends whose flows are to be looked at after an update ([L2]), with the backends that they may
/// keep, and the clients that may keep them ([R1]). Other flows are cut, so that the client's next datagram is
/// routed anew.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    frontends: HashMap<SocketAddr, Verdict>,
    /// The loopback addresses that had node ports, or have them. In the frontends they are 127.0.0.1.
    loopback: Vec<Ipv4Net>,
    families: BTreeSet<IpFamily>,
}

#[derive(Debug)]
enum Verdict {
    /// Served: flows must lead to one of these, and come from a client that is admitted.
    Only(Vec<SocketAddr>, Option<Guard>),
    /// No longer served: flows that led to one of these end.
    Not(Vec<SocketAddr>),
}

/// Source ranges, and whom they are about.
#[derive(Debug)]
struct Guard {
    ranges: Arc<SourceRanges>,
    node: Arc<NodeRouting>,
}

impl Guard {
    fn admits(&self, client: IpAddr) -> bool {
        self.ranges.admits(self.node.origin(client, None), client)
    }
}

impl Cut {
    pub(crate) fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// Looks at the flows of a UDP frontend that `old` or `new` serves.
    pub(crate) fn add(&mut self, frontend: &Frontend, old: Option<&RouteTable>, new: &RouteTable) {
        if frontend.protocol != Protocol::Udp {
            return;
        }
        let backends = |table: &RouteTable| -> Option<Vec<SocketAddr>> {
            Some(table.get(frontend)?.backends().map(|b| b.socket_addr()).collect())
        };
        let node_addresses = new.node().node_port_addresses.iter();
        let node_addresses = node_addresses.chain(old.iter().flat_map(|t| &t.node().node_port_addresses));
        let addresses: BTreeSet<IpAddr> = match frontend.address {
            FrontendAddress::Ip(address) => [address].into(),
            FrontendAddress::NodePort(family) => {
                let loopback = (family == IpFamily::V4).then(|| self.loopback(old, new)).flatten();
                node_addresses.copied().filter(|a| IpFamily::of(*a) == family).chain(loopback).collect()
            }
        };
        for address in addresses {
            // Another route may have taken the address over, or the address may be the node's no more.
            let served = match address.is_loopback() {
                true => new.get(frontend).filter(|_| !new.node().loopback_node_ports.is_empty()),
                false => new.lookup(address, frontend.port, frontend.protocol),
            };
            let verdict = match served {
                Some(route) => {
                    let guard = |ranges| Guard { ranges: Arc::clone(ranges), node: Arc::clone(new.node()) };
                    let backends = route.backends().map(|b| b.socket_addr()).collect();
                    Verdict::Only(backends, route.source_ranges.as_ref().map(guard))
                }
                None => Verdict::Not(old.and_then(backends).unwrap_or_default()),
            };
            self.frontends.insert(SocketAddr::new(address, frontend.port.get()), verdict);
            self.families.insert(frontend.family());
        }
    }

    /// Looks at loopback addresses, too, where either table has node ports on them.
    fn loopback(&mut self, old: Option<&RouteTable>, new: &RouteTable) -> Option<IpAddr> {
        if self.loopback.is_empty() {
            let tables = old.into_iter().chain([new]);
            self.loopback =
                tables.flat_map(|table| table.node().loopback_node_ports.iter().copied()).collect();
        }
        (!self.loopback.is_empty()).then_some(Ipv4Addr::LOCALHOST.into())
    }

    fn concerns(&self, flow: &Flow) -> bool {
        if flow.protocol != Protocol::Udp {
            return false;
        }
        let mut destination = flow.destination;
        if let IpAddr::V4(address) = destination.ip()
            && self.loopback.iter().any(|net| net.contains(&address))
        {
            destination.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        match self.frontends.get(&destination) {
            Some(Verdict::Only(backends, guard)) => {
                !backends.contains(&flow.answers)
                    || guard.as_ref().is_some_and(|guard| !guard.admits(flow.client))
            }
            Some(Verdict::Not(backends)) => flow.translated && backends.contains(&flow.answers),
            None => false,
        }
    }

    /// The flows to ask the kernel for: it walks its whole table for each question, but listing a flow that is
    /// not wanted costs more than a hundred steps of that walk.
    fn selections(&self, family: IpFamily) -> Vec<Selected> {
        let frontends = self.frontends.keys().filter(|frontend| IpFamily::of(frontend.ip()) == family);
        let each: BTreeSet<(Option<IpAddr>, u16)> = frontends
            // One stands for all loopback addresses.
            .map(|frontend| (Some(frontend.ip()).filter(|ip| !ip.is_loopback()), frontend.port()))
            // Where it shall be the same IPv6 address, ctnetlink_filter_match_tuple() lists all others.
            .map(|(address, port)| (address.filter(IpAddr::is_ipv4), port))
            .collect();
        if each.len() > QUESTIONS {
            return vec![Selected::Udp];
        }
        each.into_iter().map(|(address, port)| Selected::UdpTo(address, port)).collect()
    }

    /// Cuts, and says how many flows.
    pub(crate) fn run(&self) -> io::Result<usize> {
        let mut conntrack = Conntrack::open()?;
        let mut cut = 0;
        for family in &self.families {
            for selected in self.selections(*family) {
                for flow in conntrack.flows(*family, selected, |flow| self.concerns(flow))? {
                    conntrack.delete(*family, flow)?;
                    cut += 1;
                }
            }
        }
        Ok(cut)
    }
}

/// How many flows of a family the kernel translates.
pub(crate) fn translated_flows(family: IpFamily) -> io::Result<u64> {
    let flows = Conntrack::open()?.flows(family, Selected::All, |flow| flow.translated && !flow.ended)?;
    Ok(flows.len() as u64)
}
