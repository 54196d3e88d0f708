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
        let own = self.is_own(dialled);
        // From elsewhere the kernel takes nothing to loopback, whatever is served there ([N1]).
        if own.is_none() && dialled.to.is_loopback() {
            return Verdict::Drop;
        }
        // A datapath does not even look at other packets, not at those to unknown ports, either.
        if !self.reference.capabilities().protocols.contains(&dialled.protocol) {
            return Verdict::Pass;
        }
        let unbound = own.filter(|_| dialled.is_unbound());
        let mut flow = dialled.flow();
        match (self.kind, own) {
            (Kind::Ebpf, Some(first)) => flow.source.set_ip(first),
            (Kind::Iptables(_), Some(_)) => flow.source.set_ip(self.source(unbound, dialled, dialled.to)),
            (_, None) => {}
        }
        let mut verdict = self.reference.route(&flow);
        if let Verdict::Forward(choices) = &mut verdict {
            match self.kind {
                Kind::Ebpf if own.is_some() => {
                    for choice in choices {
                        let source = self.source(unbound, dialled, choice.backend.address);
                        choice.masquerade &= choice.sees == source;
                        choice.sees = source;
                    }
                }
                Kind::Ebpf => {}
                Kind::Iptables(_) => self.by_rules(flow.source.ip(), own.is_some(), choices),
            }
        }
        verdict
    }

    /// The address with which a flow of the node leaves: the socket's, or for one that is bound to none the node's
    /// first, unless it goes to another of the node's, or to loopback.
    fn source(&self, unbound: Option<IpAddr>, dialled: &Dialled, to: IpAddr) -> IpAddr {
        match unbound {
            None => dialled.from,
            Some(_) if to.is_loopback() => dialled.from,
            Some(_) if self.node.addresses.contains(&to) => to,
            Some(first) => first,
        }
    }

    /// The first address of the node, if the flow is the node's own: of a socket that is bound to none, too.
    fn is_own(&self, dialled: &Dialled) -> Option<IpAddr> {
        let own = self.node.origin(dialled.from, None) == Origin::Node;
        own.then(|| self.node.primary_address(IpFamily::of(dialled.from))).flatten()
    }

    /// Netfilter masquerades what leaves the node, and where the kernel cannot compare addresses, a rule keeps a
    /// backend that is elsewhere from itself (see the limitations of that datapath).
    fn by_rules(&self, from: IpAddr, own: bool, choices: &mut Vec<Choice>) {
        let limitations = &self.reference.capabilities().limitations;
        let kept_from_itself = limitations.iter().any(|l| l.what == "backends that dial their own Service");
        let last = choices.last().map(|choice| choice.backend);
        choices.retain(|Choice { backend, .. }| {
            !kept_from_itself || backend.address != from || backend.local || Some(*backend) == last
        });
        for choice in choices {
            if !own && self.node.addresses.contains(&choice.backend.address) {
                choice.masquerade = false;
                choice.sees = from;
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
