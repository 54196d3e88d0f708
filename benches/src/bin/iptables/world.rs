//! Two nodes alike: kubenet on node-a, the classic layout on node-b, each with a client and a server pod.

use std::{collections::HashSet, num::NonZeroU16, sync::Arc, time::Duration};

use kubenet_benches::{
    Failure, connects::Dialer, drive::Driver, machine, report::Measure, service, slice, slice_at,
};
use kubenet_core::{
    cluster::{Change, Cluster},
    model::{IpFamily, NodeInfo},
    route::{Route, RouteTable},
};
use kubenet_iptables::IptablesDatapath;
use kubenet_testkit::lab::{CLUSTER_CIDR_V4, Lab, LabConfig, Netns, Node};

use crate::{
    args::Name,
    classic::Classic,
    restore::{Locks, Restore},
};

/// What a program may take, the baseline's too, before it is given up.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
const PORT: NonZeroU16 = NonZeroU16::new(8080).expect("not zero");
/// Service ports in a transaction of the baseline where it does not take all at once.
const CHUNK: usize = 1_000;

/// The two nodes.
pub(crate) struct World {
    pub(crate) kubenet: Driver,
    pub(crate) baseline: Baseline,
    /// What is declared on node-b where that differs.
    pub(crate) declared: Cluster,
    pub(crate) lab: Lab,
    locks: Locks,
    /// Services that have their other endpoint now.
    other: HashSet<u32>,
}

/// The classic layout on its node.
pub(crate) struct Baseline {
    classic: Classic,
    restore: Restore,
    netns: Netns,
}

impl World {
    pub(crate) fn new(variant: Name) -> Result<Self, Failure> {
        let pods = [("a1", Node::A), ("a2", Node::A), ("b1", Node::B), ("b2", Node::B)];
        let config = pods.iter().fold(LabConfig::new().ipv6(false), |c, (name, node)| c.pod(*name, *node));
        let lab = Lab::new(config)?;
        let locks = Locks::new()?;
        for node in Node::ALL {
            let forget = || std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", "1");
            lab.node(node).netns().run(forget)??;
        }
        let datapath = IptablesDatapath::builder()
            .variant(variant.variant())
            .families([IpFamily::V4])
            .network_namespace(lab.node(Node::A).netns().path())
            .lock_file(locks.file("kubenet"))
            .time_limit(LIMIT)
            .build()?;
        Ok(Self {
            kubenet: Driver::new(node(Node::A)?, Arc::new(datapath)),
            baseline: Baseline {
                classic: Classic::new(CLUSTER_CIDR_V4),
                restore: Restore::new(variant.variant(), locks.file("classic")),
                netns: lab.node(Node::B).netns().clone(),
            },
            declared: Cluster::new(node(Node::B)?),
            lab,
            locks,
            other: HashSet::new(),
        })
    }

    /// A client and its server on the node of kubenet.
    pub(crate) fn kubenet_dialer(&self) -> Result<Dialer, Failure> {
        Dialer::new(&self.lab, "a1", "a2", PORT.get())
    }

    /// The same on the node of the baseline.
    pub(crate) fn baseline_dialer(&self) -> Result<Dialer, Failure> {
        Dialer::new(&self.lab, "b1", "b2", PORT.get())
    }

    /// Services of one endpoint each; some have that of the node's server pod.
    pub(crate) fn objects(
        &self,
        of: Node,
        numbers: impl IntoIterator<Item = u32>,
        real: &[u32],
    ) -> Result<Vec<Change>, Failure> {
        let server = self.lab.pod(if of == Node::A { "a2" } else { "b2" })?;
        let mut changes = Vec::new();
        for number in numbers {
            changes.push(Change::Service(service(number)?));
            let slice = if real.contains(&number) {
                slice_at(number, server.v4(), PORT, NODE)?
            } else {
                slice(number, 1, 0)?
            };
            changes.push(Change::EndpointSlice(slice));
        }
        Ok(changes)
    }

    /// Another last endpoint for each of these Services.
    pub(crate) fn changes(&mut self, numbers: &[u32], endpoints: u32) -> Result<Vec<Change>, Failure> {
        let mut changes = Vec::new();
        for &number in numbers {
            let other = !self.other.remove(&number) && self.other.insert(number);
            changes.push(Change::EndpointSlice(slice(number, endpoints, other.into())?));
        }
        Ok(changes)
    }

    /// Removes everything and waits until the kernel is done with it, but not for long.
    pub(crate) fn end(self, quick: bool) {
        let Self { kubenet, baseline, declared, lab, locks, .. } = self;
        drop((kubenet, baseline, declared, lab, locks));
        machine::settle(Duration::from_secs(if quick { 2 } else { 10 }));
    }
}

impl Baseline {
    /// Programs all routes in one transaction.
    pub(crate) fn program(&mut self, table: &RouteTable) -> Result<Measure, Failure> {
        let text = self.classic.first(table);
        let took = self.restore.apply(&self.netns, &text, LIMIT)?;
        if matches!(took, Measure::AtLeast(_)) {
            // Nothing was applied.
            self.classic = Classic::new(CLUSTER_CIDR_V4);
        }
        Ok(took)
    }

    /// Programs routes that are not there yet, in several transactions: what they take is of no interest.
    pub(crate) fn program_in_chunks(&mut self, table: &RouteTable) -> Result<(), Failure> {
        for text in self.classic.in_chunks(table, CHUNK) {
            if let Measure::AtLeast(_) = self.restore.apply(&self.netns, &text, LIMIT)? {
                return Err("a part of the classic layout takes too long".into());
            }
        }
        Ok(())
    }

    /// Applies a change of routes.
    pub(crate) fn change(&mut self, routes: &[Arc<Route>]) -> Result<Measure, Failure> {
        let text = self.classic.change(routes.iter().map(AsRef::as_ref));
        self.restore.apply(&self.netns, &text, LIMIT)
    }
}

/// The name under which endpoints are on this node.
const NODE: &str = "node-0";

/// A node of the lab, as one of the ten that endpoints are on.
fn node(of: Node) -> Result<NodeInfo, Failure> {
    Ok(NodeInfo::builder(NODE).address(of.v4().into()).cluster_cidr(CLUSTER_CIDR_V4.into()).build()?)
}
