//! Chains and rules as values: what [`crate::plan`] makes, [`crate::restore`] writes and [`crate::save`] reads.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use ipnet::IpNet;
use kubenet_core::model::Protocol;

/// The bit of the packet mark that asks for masquerading, kube-proxy's.
pub(crate) const MASQUERADE_MARK: &str = "0x4000/0x4000";

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    Filter,
    Nat,
}

impl Table {
    pub(crate) const ALL: [Table; 2] = [Table::Filter, Table::Nat];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
        }
    }
}

/// Name of a chain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChainName(Arc<str>);

impl ChainName {
    pub(crate) fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    #[cfg(test)]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ChainName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) type ChainKey = (Table, ChainName);

/// The chains of one address family and their rules.
pub(crate) type Chains = BTreeMap<ChainKey, Arc<[Rule]>>;

/// What to do with chains: set them to these rules, or delete them.
pub(crate) type ChainChanges = BTreeMap<ChainKey, Option<Arc<[Rule]>>>;

/// One rule. The fields are matches, all of which must hold; their order in text has no meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
    pub(crate) source: Option<Source>,
    pub(crate) destination: Option<IpNet>,
    pub(crate) protocol: Option<Protocol>,
    /// Destination port.
    pub(crate) port: Option<NonZeroU16>,
    /// The source is an address of this node.
    pub(crate) source_is_local: bool,
    /// Whether the mark [`MASQUERADE_MARK`] is set.
    pub(crate) marked: Option<bool>,
    pub(crate) state: Option<State>,
    /// Taken once in so many times, at random.
    pub(crate) one_of: Option<NonZeroU32>,
    pub(crate) comment: String,
    pub(crate) target: Option<Target>,
}

/// A match on the source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) net: IpNet,
    pub(crate) inverted: bool,
}

/// A match on the state in connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    New,
    RelatedOrEstablished,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Jump(ChainName),
    Goto(ChainName),
    Dnat(SocketAddr),
    Accept,
    Drop,
    Return,
    RejectWithReset,
    RejectUnreachable,
    SetMark,
    ClearMark,
    /// From these source ports; a rule with ports names its protocol.
    Masquerade {
        ports: Option<(u16, u16)>,
        random_fully: bool,
    },
}

impl Rule {
    pub(crate) fn jump(chain: &ChainName) -> Self {
        Self::to(Target::Jump(chain.clone()))
    }

    pub(crate) fn to(target: Target) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    pub(crate) fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = comment.into();
        self
    }

    /// From a network. One that holds every address is no match: the kernel would not list it.
    pub(crate) fn from(mut self, net: IpNet) -> Self {
        self.source = (net.prefix_len() > 0).then_some(Source { net: net.trunc(), inverted: false });
        self
    }

    pub(crate) fn not_from(mut self, net: IpNet) -> Self {
        self.source = Some(Source { net, inverted: true });
        self
    }

    pub(crate) fn state(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }

    pub(crate) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Adds another rule's matches on where a packet comes from. `None` when no source matches both.
    pub(crate) fn and_from(mut self, other: &Rule) -> Option<Self> {
        self.source = match (self.source, other.source) {
            (Some(ours), Some(theirs)) if ours.net.contains(&theirs.net) => Some(theirs),
            (Some(ours), Some(theirs)) if theirs.net.contains(&ours.net) => Some(ours),
            (Some(_), Some(_)) => return None,
            (ours, theirs) => ours.or(theirs),
        };
        self.source_is_local |= other.source_is_local;
        Some(self)
    }
}

/// The network that holds only this address.
pub(crate) fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
