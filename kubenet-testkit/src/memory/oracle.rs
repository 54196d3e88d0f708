use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use kubenet_core::{
    maglev,
    model::{Algorithm, IpFamily, Protocol},
    route::{Backend, Origin, Route, RouteTable, WhenEmpty},
};

/// Who sends to whom, before any translation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The client.
    pub source: SocketAddr,
    /// What it dials.
    pub destination: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The interface that its packets come in through, for detectors that tell pods by it.
    pub interface: Option<Arc<str>>,
}

impl Flow {
    /// A flow.
    pub const fn new(source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Self {
        Self { source, destination, protocol, interface: None }
    }

    /// The same coming in through an interface.
    #[must_use]
    pub fn through(mut self, interface: &str) -> Self {
        self.interface = Some(interface.into());
        self
    }
}

/// A backend that may be picked for a flow, and whom it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The backend.
    pub backend: Backend,
    /// Whether the client's address is replaced by the node's.
    pub masquerade: bool,
    /// The address that the backend sees.
    pub sees: IpAddr,
}

/// What happens to a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of these is picked. Never empty.
    Forward(Vec<Choice>),
    /// The client is told at once.
    Reject,
    /// Silence.
    Drop,
    /// Not a Service: left to the stack.
    Pass,
}

/// The oracle: what a table says about a new flow of a client that has no affinity yet.
///
/// `local_backends_see_client` is the capability of that name, which changes who is masqueraded.
pub fn route(table: &RouteTable, flow: &Flow, local_backends_see_client: bool) -> Verdict {
    let Some(route) = lookup(table, flow) else {
        let known = table.has_cluster_ip(flow.destination.ip());
        return if known { Verdict::Reject } else { Verdict::Pass };
    };
    let client = flow.source.ip();
    let origin = table.node().origin(client, flow.interface.as_deref());
    // [N1]: a loopback address is for the node itself, whoever gets a packet to it.
    let closed = flow.destination.ip().is_loopback() && origin != Origin::Node;
    if closed || !route.admits(origin, client) {
        return Verdict::Drop;
    }
    let target = route.target(origin);
    if target.backends.is_empty() {
        return match target.when_empty {
            WhenEmpty::Reject => Verdict::Reject,
            WhenEmpty::Drop => Verdict::Drop,
        };
    }
    let node = table.node().primary_address(IpFamily::of(client));
    let choice = |backend: &Backend| {
        let hairpin = backend.address == client;
        // An endpoint at an address of the node is here, though it may name no node, as the API server's does.
        let here = backend.local || table.node().addresses.contains(&backend.address);
        let spared = here && local_backends_see_client;
        let masquerade = hairpin || (route.masquerade.applies_to(origin) && !spared);
        let sees = node.filter(|_| masquerade).unwrap_or(client);
        Choice { backend: *backend, masquerade, sees }
    };
    match only_choice(route.algorithm, &target.backends, client) {
        Some(backend) => Verdict::Forward(vec![choice(backend)]),
        None => Verdict::Forward(target.backends.iter().map(choice).collect()),
    }
}

/// The backend that the algorithm leaves no choice about.
fn only_choice(algorithm: Algorithm, backends: &[Backend], client: IpAddr) -> Option<&Backend> {
    if algorithm != Algorithm::Maglev {
        return None;
    }
    let table = maglev::Table::new(backends.iter().map(|b| (b.socket_addr(), b.weight)));
    let picked = table.get(client)?;
    backends.iter().find(|backend| backend.socket_addr() == picked)
}

pub(super) fn lookup<'a>(table: &'a RouteTable, flow: &Flow) -> Option<&'a Arc<Route>> {
    let port = NonZeroU16::new(flow.destination.port())?;
    table.lookup(flow.destination.ip(), port, flow.protocol)
}

/// Whether a flow that was translated to this backend may go on there.
pub(super) fn may_stay(table: &RouteTable, flow: &Flow, backend: SocketAddr) -> bool {
    let Some(route) = lookup(table, flow) else { return false };
    let origin = table.node().origin(flow.source.ip(), flow.interface.as_deref());
    route.admits(origin, flow.source.ip())
        && route.target(origin).backends.iter().any(|b| b.socket_addr() == backend)
}
