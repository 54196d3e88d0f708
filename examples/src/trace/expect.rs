//! What a datapath should do with a flow: as the reference, as far as it is not known to go another way.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use futures::executor::block_on;
use kubenet_core::{
    datapath::Datapath,
    model::IpFamily,
    route::{Frontend, NodeRouting, Origin, RouteTable},
};
use kubenet_testkit::memory::{Choice, MemoryDatapath, Verdict};

use super::{Dialled, TraceError, seen::Seen, stage::Kind};

pub(super) struct Expectation {
    kind: Kind,
    node: Arc<NodeRouting>,
    /// With the routes that the datapath serves, and as capable.
    reference: MemoryDatapath,
}

impl Expectation {
    pub(super) fn new(
        kind: Kind,
        datapath: &dyn Datapath,
        table: &RouteTable,
        refused: &BTreeMap<Frontend, String>,
    ) -> Result<Self, TraceError> {
        let node = Arc::clone(table.node());
        let routes = table.routes().filter(|route| !refused.contains_key(&route.frontend)).cloned();
        let served = Arc::new(RouteTable::new(table.revision(), Arc::clone(&node), routes));
        let reference = MemoryDatapath::with_capabilities(datapath.capabilities().clone());
        block_on(reference.replace(served))?;
        Ok(Self { kind, node, reference })
    }

    pub(super) fn of(&self, dialled: &Dialled) -> Verdict {
        // A datapath does not even look at other packets, not at those to unknown ports, either.
        if !self.reference.capabilities().protocols.contains(&dialled.protocol) {
            return Verdict::Pass;
        }
        let own = self.is_own(dialled);
        let mut flow = dialled.flow();
        if let (Kind::Ebpf, Some(first)) = (self.kind, own) {
            flow.source.set_ip(first);
        }
        let mut verdict = self.reference.route(&flow);
        if let Verdict::Forward(choices) = &mut verdict {
            match self.kind {
                Kind::Ebpf if own.is_some() => at_socket(dialled, choices),
                Kind::Ebpf => {}
                Kind::Iptables(_) => self.by_rules(dialled, own.is_some(), choices),
            }
        }
        verdict
    }

    /// The first address of the node, if the flow is the node's own.
    fn is_own(&self, dialled: &Dialled) -> Option<IpAddr> {
        let own = self.node.origin(dialled.from, None) == Origin::Node;
        own.then(|| self.node.primary_address(IpFamily::of(dialled.from))).flatten()
    }

    /// Netfilter masquerades what leaves the node, and a rule keeps a backend that is elsewhere from itself (see
    /// the limitations of that datapath).
    fn by_rules(&self, dialled: &Dialled, own: bool, choices: &mut Vec<Choice>) {
        let last = choices.last().map(|choice| choice.backend);
        choices.retain(|Choice { backend, .. }| {
            backend.address != dialled.from || backend.local || Some(*backend) == last
        });
        for choice in choices {
            if !own && self.node.addresses.contains(&choice.backend.address) {
                choice.masquerade = false;
                choice.sees = dialled.from;
            }
        }
    }

    /// Adds to what was seen what cannot be seen: nothing is replaced in a connection that was translated at the
    /// socket.
    pub(super) fn complete(&self, dialled: &Dialled, expected: &Verdict, seen: &mut Seen) {
        let (Kind::Ebpf, Verdict::Forward(choices)) = (self.kind, expected) else { return };
        let Some(first) = self.is_own(dialled) else { return };
        for choice in choices.iter().filter(|choice| choice.masquerade) {
            if let Some(reached) = seen.reached.get_mut(&choice.backend.socket_addr()) {
                reached.masquerade |= reached.sees.iter().all(|address| *address == first);
            }
        }
    }
}

/// The flow leaves with the address that its socket has.
fn at_socket(dialled: &Dialled, choices: &mut [Choice]) {
    for choice in choices {
        choice.masquerade &= choice.sees == dialled.from;
        choice.sees = dialled.from;
    }
}
