use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

/// An endpoint that may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address of the endpoint, of the same family as the frontend.
    pub address: IpAddr,
    /// Port of the endpoint, host byte order.
    pub port: NonZeroU16,
    /// Whether the endpoint is on this node.
    pub local: bool,
    /// Whether the endpoint is ready or only a stop-gap.
    pub state: BackendState,
    /// Its share of new flows in relation to the other backends of its target: reduced, so that it is 1
    /// where all weigh the same.
    pub weight: NonZeroU16,
}

impl Backend {
    /// A ready backend of weight 1.
    pub const fn new(address: IpAddr, port: NonZeroU16, local: bool) -> Self {
        Self { address, port, local, state: BackendState::Ready, weight: NonZeroU16::MIN }
    }

    /// Address and port together.
    pub const fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port.get())
    }
}

/// State of a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// Ready for traffic.
    Ready,
    /// Serving while it terminates: picked only because no ready endpoint is left.
    Terminating,
}

/// Where traffic of one side (internal or external) goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The backends to pick from, sorted, without duplicates of address and port.
    pub backends: Arc<[Backend]>,
    /// What happens to a new flow when `backends` is empty. By convention `Reject` where it is not, so that
    /// equal targets compare equal.
    pub when_empty: WhenEmpty,
}

impl Target {
    /// Whether some backend gets more flows than another.
    pub fn is_weighted(&self) -> bool {
        self.backends.iter().any(|backend| backend.weight != NonZeroU16::MIN)
    }
}

/// Answer to a new flow for which there is no backend ([E6]).
///
/// [E6]: crate::resolve
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhenEmpty {
    /// The client fails at once with `ECONNREFUSED`: TCP reset or ICMP port unreachable.
    Reject,
    /// Silence: another node has endpoints, and a load balancer will go there.
    Drop,
}

/// Where a flow comes from, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A pod of this cluster, as the [`LocalDetector`](crate::model::LocalDetector) says.
    Pod,
    /// This node's own network namespace.
    Node,
    /// Anywhere else.
    Outside,
}

impl Origin {
    /// Every origin.
    pub const ALL: [Origin; 3] = [Origin::Pod, Origin::Node, Origin::Outside];

    /// In words: `pods`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Origin::Pod => "pods",
            Origin::Node => "this node's own processes",
            Origin::Outside => "clients outside",
        }
    }

    /// Whether the flow uses [`Route::internal`](super::Route::internal).
    pub const fn is_internal(self) -> bool {
        !matches!(self, Origin::Outside)
    }
}

/// Whose source address is replaced by the node's, by origin of the flow.
///
/// A backend that reaches itself through its own Service is always masqueraded, whatever this says: the
/// reply would otherwise never leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Masquerade {
    /// Flows from pods.
    pub pods: bool,
    /// Flows from this node.
    pub node: bool,
    /// Flows from outside.
    pub outside: bool,
}

impl Masquerade {
    /// Nobody, except a backend that reaches itself.
    pub const NEVER: Masquerade = Masquerade { pods: false, node: false, outside: false };
    /// Everybody.
    pub const ALWAYS: Masquerade = Masquerade { pods: true, node: true, outside: true };

    /// Whether flows of this origin are masqueraded.
    pub const fn applies_to(self, origin: Origin) -> bool {
        match origin {
            Origin::Pod => self.pods,
            Origin::Node => self.node,
            Origin::Outside => self.outside,
        }
    }
}
