//! How a packet finds the rules of its destination: a tree of chains, each of which matches a part of the
//! address.
//!
//! kube-proxy has one rule per frontend in `KUBE-SERVICES`, and the first packet of each connection walks half
//! of them. Here a chain holds the rules of at most [`LEAF`] addresses; where there are more, it holds a jump for
//! each of four parts of what the addresses have in common. A packet meets O(log n) rules, and a change of one
//! address changes one leaf. As long as there are few addresses, all is in `KUBE-SERVICES`, as in kube-proxy.
//!
//! Node ports are looked up the same way ([`Space::Ports`]): a port and its protocol are written as an address, and a
//! part is a range of ports.
//!
//! The tree is a function of the addresses and of nothing else, so that the rules of an earlier run can be
//! compared with those that are wanted.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kubenet_core::model::Protocol;

use super::shared_port;
use crate::{
    names::Names,
    rule::{ChainName, Rule, Target},
};

/// So many addresses share a chain.
const LEAF: usize = 32;
/// So many node ports do, most of which have a rule that marks, too.
const LEAF_OF_PORTS: usize = 16;
/// A chain divides by so many bits of the address.
const BITS: u8 = 2;
/// The kernel follows 16 jumps (`NFT_JUMP_STACK_SIZE`), and others are needed before the tree and up to 6 behind
/// it. More than half a million addresses, or some that somebody chose to be awkward, get there; the last chain
/// then holds more than [`LEAF`].
const DEPTH: u8 = 7;

/// The rules of each address, all of one family.
pub(crate) type Leaves = BTreeMap<IpAddr, Arc<[Rule]>>;
/// New rules of addresses, or `None` for those that are to have none.
pub(crate) type LeafEdits = BTreeMap<IpAddr, Option<Arc<[Rule]>>>;
/// Chains of a tree, with their rules, or `None` for those that are to go.
pub(crate) type TreeChanges = BTreeMap<ChainName, Option<Vec<Rule>>>;

/// What a tree looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Addresses,
    /// Protocols and ports, as [`of_port`] writes them.
    Ports,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The place of a port and its protocol in [`Space::Ports`]: the protocol stands in two bits before the port's, so
/// that every part of a chain, which divides by two bits, is of one protocol.
pub(crate) fn of_port(protocol: Protocol, port: NonZeroU16) -> IpAddr {
    let protocol = PROTOCOLS.iter().zip(0u32..).find(|(p, _)| **p == protocol).map_or(0, |(_, n)| n);
    Ipv4Addr::from(protocol << 16 | u32::from(port.get())).into()
}

/// The protocol and the ports of a part in [`Space::Ports`].
fn ports_of(part: IpNet) -> (Option<Protocol>, (u16, u16)) {
    let [first, last] = [part.network(), part.broadcast()].map(|address| match address {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(_) => 0,
    });
    let protocol = PROTOCOLS.get((first >> 16) as usize).copied();
    let port = |place: u32| u16::try_from(place & 0xffff).unwrap_or(u16::MAX);
    (protocol, (port(first), port(last)))
}

/// A tree of one table, below one chain.
pub(crate) struct Tree<'a> {
    pub(crate) names: &'a Names,
    pub(crate) space: Space,
    pub(crate) root: &'a ChainName,
    pub(crate) leaves: &'a Leaves,
    /// What counts in the place of `leaves`, where it says something.
    pub(crate) edits: &'a LeafEdits,
}

/// A place where a node may be: the addresses that it may hold, and how many chains are above it.
#[derive(Clone, Copy)]
struct Region {
    net: IpNet,
    depth: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Node {
    /// The longest prefix that all its addresses have.
    prefix: IpNet,
    depth: u8,
    /// Whether it divides.
    inner: bool,
}

impl Node {
    fn children(self) -> impl Iterator<Item = Region> {
        let parts = if self.inner { divide(self.prefix) } else { Vec::new() };
        parts.into_iter().map(move |net| Region { net, depth: self.depth + 1 })
    }
}

impl Tree<'_> {
    /// All chains of the tree.
    pub(crate) fn chains(&self) -> TreeChanges {
        let mut chains = TreeChanges::from([(self.root.clone(), Some(Vec::new()))]);
        if let Some(top) = self.top() {
            self.add(top, &mut chains);
        }
        chains
    }

    /// What the edits change.
    pub(crate) fn changes(&self) -> TreeChanges {
        static NO_EDITS: LeafEdits = LeafEdits::new();
        let old = &Tree { edits: &NO_EDITS, ..*self };
        let mut changes = TreeChanges::new();
        match (old.top(), self.top()) {
            (None, None) => {}
            (Some(was), None) => {
                old.remove(was, &mut changes);
                changes.insert(self.root.clone(), Some(Vec::new()));
            }
            (None, Some(is)) => self.add(is, &mut changes),
            (Some(was), Some(is)) => self.change(old, was, is, &mut changes),
        }
        changes
    }

    fn change(&self, old: &Tree<'_>, was: Node, is: Node, changes: &mut TreeChanges) {
        let same_place = was.prefix == is.prefix && was.depth == is.depth;
        if same_place && range(self.edits, is.prefix).next().is_none() {
            return;
        }
        if !(same_place && was.inner && is.inner) {
            // One that divides no more, or only now, has few addresses. One that has moved has more only where
            // the addresses around it come or go; then most of its chains turn out to be as they were.
            old.remove(was, changes);
            self.add(is, changes);
            return;
        }
        self.set(is, changes);
        for region in is.children() {
            match (old.node(region), self.node(region)) {
                (None, None) => {}
                (Some(was), None) => old.remove(was, changes),
                (None, Some(is)) => self.add(is, changes),
                (Some(was), Some(is)) => self.change(old, was, is, changes),
            }
        }
    }

    fn top(&self) -> Option<Node> {
        let net = match self.leaves.keys().chain(self.edits.keys()).next()? {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        self.node(Region { net, depth: 0 })
    }

    fn node(&self, region: Region) -> Option<Node> {
        let (low, high) = (self.kept(region.net).next(), self.kept(region.net).next_back());
        let (first, last) = (self.edited(region.net).next(), self.edited(region.net).next_back());
        let low = low.into_iter().chain(first).map(|(address, _)| address).min()?;
        let high = high.into_iter().chain(last).map(|(address, _)| address).max()?;
        let prefix = common_prefix(*low, *high)?;
        let most = if self.space == Space::Addresses { LEAF } else { LEAF_OF_PORTS };
        let several = || self.kept(prefix).chain(self.edited(prefix)).nth(most).is_some();
        Some(Node { prefix, depth: region.depth, inner: region.depth < DEPTH && several() })
    }

    /// The leaves that no edit is about.
    fn kept(&self, net: IpNet) -> impl DoubleEndedIterator<Item = (&IpAddr, &Arc<[Rule]>)> {
        range(self.leaves, net).filter(|(address, _)| !self.edits.contains_key(*address))
    }

    fn edited(&self, net: IpNet) -> impl DoubleEndedIterator<Item = (&IpAddr, &Arc<[Rule]>)> {
        range(self.edits, net).filter_map(|(address, rules)| Some((address, rules.as_ref()?)))
    }

    fn chain(&self, node: Node) -> ChainName {
        match self.space {
            _ if node.depth == 0 => self.root.clone(),
            Space::Addresses => self.names.part(node.prefix),
            Space::Ports => {
                let (protocol, ports) = ports_of(node.prefix);
                self.names.port_part(protocol.map_or("", Protocol::as_lower_str), ports)
            }
        }
    }

    fn rules(&self, node: Node) -> Vec<Rule> {
        if !node.inner {
            let rules = self.held(node);
            return match self.shared_port(node, &rules) {
                Some(port) => shared_port::fold(port, rules),
                None => rules,
            };
        }
        let parts = node.children().filter_map(|region| self.node(region));
        parts.map(|part| self.way(node, part)).collect()
    }

    /// The rules of a node's addresses.
    fn held(&self, node: Node) -> Vec<Rule> {
        let held: BTreeMap<_, _> = self.kept(node.prefix).chain(self.edited(node.prefix)).collect();
        held.into_values().flat_map(|rules| rules.iter().cloned()).collect()
    }

    /// The port that a node's chain looks at once. Others have rules in the root, too.
    fn shared_port(&self, node: Node, rules: &[Rule]) -> Option<(Protocol, NonZeroU16)> {
        (node.depth > 0 && self.space == Space::Addresses).then(|| shared_port::of(rules))?
    }

    /// The rule that leads from a chain to one of its parts. Below the root packets need not come back.
    fn way(&self, node: Node, part: Node) -> Rule {
        let chain = self.chain(part);
        let target = if node.depth == 0 { Target::Jump(chain) } else { Target::Goto(chain) };
        if self.space == Space::Addresses {
            return Rule { destination: Some(part.prefix), ..Rule::to(target) };
        }
        let (protocol, (first, last)) = ports_of(part.prefix);
        let rule = Rule { protocol, ..Rule::to(target) };
        match (first, last) {
            (0, u16::MAX) => rule,
            _ if first == last => Rule { port: NonZeroU16::new(first), ..rule },
            ports => Rule { ports: Some(ports), ..rule },
        }
    }

    fn set(&self, node: Node, changes: &mut TreeChanges) {
        changes.insert(self.chain(node), Some(self.rules(node)));
    }

    fn add(&self, node: Node, changes: &mut TreeChanges) {
        self.set(node, changes);
        for part in node.children().filter_map(|region| self.node(region)) {
            self.add(part, changes);
        }
    }

    /// Chains that are set in the same change stay.
    fn remove(&self, node: Node, changes: &mut TreeChanges) {
        changes.entry(self.chain(node)).or_insert(None);
        for part in node.children().filter_map(|region| self.node(region)) {
            self.remove(part, changes);
        }
    }

    /// The chains that a packet to this address passes, each with the rule that leads on, and the last with the
    /// address's own rules, of which `own` says what they are. `None` where the address has no rules.
    pub(crate) fn path(&self, address: IpAddr, own: &[Rule]) -> Option<Vec<(ChainName, Vec<Rule>)>> {
        match self.edits.get(&address) {
            Some(edited) => drop(edited.as_ref()?),
            None => drop(self.leaves.get(&address)?),
        }
        let mut path = Vec::new();
        let mut node = self.top()?;
        loop {
            let next = node
                .children()
                .find(|region| region.net.contains(&address))
                .and_then(|region| self.node(region));
            let Some(next) = next else {
                let rules = match self.shared_port(node, &self.held(node)) {
                    Some(port) => shared_port::fold(port, own.to_vec()),
                    None => own.to_vec(),
                };
                path.push((self.chain(node), rules));
                return Some(path);
            };
            path.push((self.chain(node), vec![self.way(node, next)]));
            node = next;
        }
    }
}

fn range<T>(map: &BTreeMap<IpAddr, T>, net: IpNet) -> std::collections::btree_map::Range<'_, IpAddr, T> {
    map.range(net.network()..=net.broadcast())
}

/// The longest prefix that two addresses of one family share.
fn common_prefix(low: IpAddr, high: IpAddr) -> Option<IpNet> {
    let net = match (low, high) {
        (IpAddr::V4(low), IpAddr::V4(high)) => {
            let length = (u32::from(low) ^ u32::from(high)).leading_zeros();
            IpNet::V4(Ipv4Net::new(low, u8::try_from(length).ok()?).ok()?)
        }
        (IpAddr::V6(low), IpAddr::V6(high)) => {
            let length = (u128::from(low) ^ u128::from(high)).leading_zeros();
            IpNet::V6(Ipv6Net::new(low, u8::try_from(length).ok()?).ok()?)
        }
        _ => return None,
    };
    Some(net.trunc())
}

fn divide(net: IpNet) -> Vec<IpNet> {
    let length = (net.prefix_len() + BITS).min(net.max_prefix_len());
    net.subnets(length).map(Iterator::collect).unwrap_or_default()
}

#[cfg(test)]
mod tests;
