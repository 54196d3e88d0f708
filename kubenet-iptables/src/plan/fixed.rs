//! The chains that exist whatever the routes are, and the jumps to them from the built-in chains.

use std::{net::Ipv4Addr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use kubenet_core::{
    model::{IpFamily, LocalDetector, Protocol},
    route::{Masquerade, NodeRouting, Origin, Revision, SourceRanges},
};

use super::Context;
use crate::{
    record,
    rule::{ChainKey, Interface, Rule, State, Table, Target, host},
};

/// A rule in a built-in chain that leads to one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) table: Table,
    pub(crate) chain: &'static str,
    pub(crate) rule: Rule,
}

impl Jump {
    /// Whether it is for this family: what is about an address is for its family alone.
    pub(crate) fn is_for(&self, family: IpFamily) -> bool {
        self.rule.destination.is_none_or(|net| IpFamily::of(net.addr()) == family)
    }
}

/// The kernel's connection tracking does not know the flows that another datapath masquerades by itself, as
/// the eBPF one does with ports up to 29999: during a swap both are at work, and must not choose the same port.
const MASQUERADE_PORTS: (u16, u16) = (32768, 65535);

/// The addresses that are every node's own.
const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

/// Whether node ports answer on loopback addresses.
fn has_localnet(node: &NodeRouting, family: IpFamily) -> bool {
    family == IpFamily::V4 && !node.loopback_node_ports.is_empty()
}

const LOCALNET: &str = "block incoming localnet connections";
const PORTALS: &str = "kubernetes service portals";
const EXTERNAL: &str = "kubernetes externally-visible service portals";

impl Context {
    /// All jumps while Services are routed. Within a chain the order counts.
    pub(crate) fn jumps(&self, node: &NodeRouting) -> Vec<Jump> {
        let names = &self.names;
        let nat =
            |chain, to, comment| Jump { table: Table::Nat, chain, rule: Rule::jump(to).comment(comment) };
        let new = |chain, to, comment| Jump {
            table: Table::Filter,
            chain,
            rule: Rule::jump(to).state(State::New).comment(comment),
        };
        let mut jumps = vec![
            nat("PREROUTING", &names.services, PORTALS),
            nat("OUTPUT", &names.services, PORTALS),
            nat("POSTROUTING", &names.postrouting, "kubernetes postrouting rules"),
        ];
        jumps.extend(self.draining_jumps(node));
        jumps.extend([
            // For addresses of Services that the node itself has: no packet that was not translated may reach
            // a socket there.
            new("INPUT", &names.services, PORTALS),
            new("INPUT", &names.external_services, EXTERNAL),
            new("FORWARD", &names.services, PORTALS),
            new("FORWARD", &names.external_services, EXTERNAL),
            new("OUTPUT", &names.services, PORTALS),
        ]);
        jumps
    }

    /// The jumps that stay while known flows drain.
    pub(crate) fn draining_jumps(&self, node: &NodeRouting) -> Vec<Jump> {
        let rule = Rule::jump(&self.names.forward).comment("kubernetes forwarding rules");
        let forward = Jump { table: Table::Filter, chain: "FORWARD", rule };
        let guard = has_localnet(node, IpFamily::V4).then(|| {
            let rule = Rule { destination: Some(LOOPBACK), ..Rule::jump(&self.names.localnet) };
            Jump { table: Table::Filter, chain: "INPUT", rule: rule.comment(LOCALNET) }
        });
        guard.into_iter().chain([forward]).collect()
    }

    /// The chains that stay while known flows drain.
    ///
    /// Translated flows live in the kernel's connection tracking, whose hooks exist in a network namespace
    /// only as long as some rule there uses them: this chain does.
    pub(crate) fn draining_chains(
        &self,
        node: &NodeRouting,
        family: IpFamily,
    ) -> Vec<(ChainKey, Arc<[Rule]>)> {
        // No packet in conntrack state INVALID is dropped: during a live swap the flows of another datapath may
        // look so to this kernel.
        let guard = has_localnet(node, family).then(|| self.localnet_chain());
        guard.into_iter().chain([self.forward_chain(true)]).collect()
    }

    /// [N1]: with `route_localnet`, a packet for 127.0.0.0/8 from outside would reach the node's own sockets. All
    /// that may come is what comes from the node itself, answers, and what others' rules translated.
    fn localnet_chain(&self) -> (ChainKey, Arc<[Rule]>) {
        let pass = Rule::to(Target::Return);
        let rules = [
            Rule { interface: Some(Interface::Named("lo".into())), ..pass.clone() },
            pass.clone().state(State::RelatedOrEstablished),
            pass.state(State::Translated),
            Rule::to(Target::Drop).comment(LOCALNET),
        ];
        ((Table::Filter, self.names.localnet.clone()), rules.into())
    }

    fn forward_chain(&self, accept_invalid: bool) -> (ChainKey, Arc<[Rule]>) {
        // A backend that reaches itself gets the mark only behind this chain, in POSTROUTING.
        let hairpin = Rule { state: Some(State::Translated), to_itself: true, ..Rule::to(Target::Accept) };
        let hairpin = self.hairpin.then(|| hairpin.comment("kubernetes backend that reaches itself"));
        // [N2]: nobody translates it back, and whoever gets it so would reset the connection.
        let invalid = Rule::to(Target::Drop).state(State::Invalid).comment("kubernetes invalid packets");
        // Established flows first: they are nearly all packets.
        let established = Rule::to(Target::Accept)
            .state(State::RelatedOrEstablished)
            .comment("kubernetes forwarding conntrack rule");
        let marked =
            Rule { marked: Some(true), ..Rule::to(Target::Accept) }.comment("kubernetes forwarding rules");
        let rules = [Some(established), (!accept_invalid).then_some(invalid), Some(marked), hairpin];
        ((Table::Filter, self.names.forward.clone()), rules.into_iter().flatten().collect())
    }

    /// The chains that do not depend on the routes.
    pub(crate) fn constant_chains(
        &self,
        node: &NodeRouting,
        family: IpFamily,
    ) -> Vec<(ChainKey, Arc<[Rule]>)> {
        let names = &self.names;
        let masquerade = |protocol: Option<Protocol>| {
            let ports = protocol.map(|_| MASQUERADE_PORTS);
            let target = Target::Masquerade { ports, random_fully: self.random_fully };
            Rule { protocol, ..Rule::to(target) }.comment("kubernetes service traffic requiring SNAT")
        };
        // S4: whatever the Service, a flow that came back to its source is one.
        let hairpin =
            Rule { state: Some(State::Translated), to_itself: true, ..Rule::jump(&names.mark_masq) };
        let hairpin = self.hairpin.then(|| hairpin.comment("kubernetes backend that reaches itself"));
        let postrouting = [
            Rule { marked: Some(false), ..Rule::to(Target::Return) },
            // Cleared, so that a packet that passes here again, encapsulated, is not masqueraded twice.
            Rule::to(Target::ClearMark),
            masquerade(Some(Protocol::Tcp)),
            masquerade(Some(Protocol::Udp)),
        ];
        let postrouting = postrouting
            .into_iter()
            .chain(self.sctp.then(|| masquerade(Some(Protocol::Sctp))))
            .chain([masquerade(None)]);
        let mut chains = vec![self.forward_chain(self.accept_invalid)];
        chains.extend(has_localnet(node, family).then(|| self.localnet_chain()));
        chains.push(((Table::Nat, names.mark_masq.clone()), Arc::from([Rule::to(Target::SetMark)])));
        chains.push((
            (Table::Nat, names.postrouting.clone()),
            hairpin.into_iter().chain(postrouting).collect(),
        ));
        chains.push(((Table::Filter, names.no_port.clone()), self.unknown_port()));
        chains
    }

    pub(crate) fn state_chain(&self, revision: Revision, node: &NodeRouting) -> (ChainKey, Arc<[Rule]>) {
        let rules = record::state_comments(revision, node).into_iter();
        let rules = rules.map(|comment| Rule::default().comment(comment)).collect();
        ((Table::Nat, self.names.state.clone()), rules)
    }

    /// Where flows come from, first match wins; what matches nothing comes from outside.
    ///
    /// As [`NodeRouting::origin`] has it: the node's addresses, then the pods'. A pod's interface needs no such
    /// care: what this node sends comes in through none. The kernel is asked which
    /// addresses are the node's, after the pods' ranges so that only addresses inside those need rules of
    /// their own. An address of this node that `NodeRouting` does not list counts as the node's, too.
    pub(crate) fn sources(&self, node: &NodeRouting, family: IpFamily) -> Vec<(Rule, Origin)> {
        let pods = node.local_detector.cidrs().iter().filter(|c| IpFamily::of(c.addr()) == family);
        let mut sources: Vec<_> = node
            .addresses
            .iter()
            .filter(|a| IpFamily::of(**a) == family && node.local_detector.is_pod(**a, None))
            .map(|a| (Rule::default().from(host(*a)), Origin::Node))
            .collect();
        sources.extend(pods.map(|cidr| (Rule::default().from(*cidr), Origin::Pod)));
        let interface = match &node.local_detector {
            LocalDetector::Bridge(bridge) => Some(Interface::Named(bridge.as_str().into())),
            LocalDetector::InterfacePrefix(prefix) => Some(Interface::prefix(prefix)),
            _ => None,
        };
        sources.extend(
            interface.map(|interface| (Rule { interface: Some(interface), ..Rule::default() }, Origin::Pod)),
        );
        sources.push((Rule { source_is_local: true, ..Rule::default() }, Origin::Node));
        sources
    }

    /// Who is admitted by source ranges: what matches none of these is not.
    pub(crate) fn admitted(&self, ranges: &SourceRanges, family: IpFamily) -> Vec<Rule> {
        let cidrs = ranges.cidrs.iter().filter(|cidr| IpFamily::of(cidr.addr()) == family);
        let mut admitted: Vec<_> = cidrs.map(|cidr| Rule::default().from(*cidr)).collect();
        if ranges.node {
            admitted.push(Rule { source_is_local: true, ..Rule::default() });
        }
        admitted
    }

    /// The chain that marks flows by origin. Shared by all routes that masquerade the same origins.
    pub(crate) fn masquerade_chain(
        &self,
        masquerade: Masquerade,
        node: &NodeRouting,
        family: IpFamily,
    ) -> (ChainKey, Arc<[Rule]>) {
        let mut sources = self.sources(node, family);
        // What gets the answer of the rest anyway needs no rule.
        while let Some((_, origin)) = sources.last()
            && masquerade.applies_to(*origin) == masquerade.outside
        {
            sources.pop();
        }
        let answer = |origin| match masquerade.applies_to(origin) {
            true => Target::Goto(self.names.mark_masq.clone()),
            false => Target::Return,
        };
        let mut rules: Vec<Rule> =
            sources.into_iter().map(|(rule, origin)| Rule { target: Some(answer(origin)), ..rule }).collect();
        if masquerade.outside {
            rules.push(Rule::to(answer(Origin::Outside)));
        }
        ((Table::Nat, self.names.masquerade(masquerade)), rules.into())
    }

    /// The rules that lead to the node ports. They come last: an address of its own wins, as in
    /// [`RouteTable::lookup`](kubenet_core::route::RouteTable::lookup).
    pub(crate) fn ways_to_node_ports(&self, node: &NodeRouting, family: IpFamily) -> Vec<Rule> {
        let ours = node.node_port_addresses.iter().filter(|a| IpFamily::of(**a) == family);
        let way = |address: &std::net::IpAddr| Rule {
            destination: Some(host(*address)),
            ..Rule::jump(&self.names.node_ports).comment("kubernetes service nodeports")
        };
        // Whoever is not of this node has no business with them, though routing looks at the address later ([N1]).
        let loopback = node.loopback_node_ports.iter().filter(|_| family == IpFamily::V4);
        let loopback = loopback.map(|net| Rule {
            destination: Some((*net).into()),
            source_is_local: true,
            ..Rule::jump(&self.names.node_ports).comment("kubernetes service nodeports")
        });
        ours.map(way).chain(loopback).collect()
    }

    /// [N4]: what is not for a port of the Service that has this cluster IP.
    fn unknown_port(&self) -> Arc<[Rule]> {
        let protocols = Protocol::ALL.into_iter().filter(|protocol| self.sctp || *protocol != Protocol::Sctp);
        let refusal = |protocol| {
            let target = match protocol {
                Protocol::Tcp => Target::RejectWithReset,
                _ => Target::RejectUnreachable,
            };
            Rule { protocol: Some(protocol), ..Rule::to(target) }.comment("no such port of the cluster IP")
        };
        protocols.map(refusal).collect()
    }
}
