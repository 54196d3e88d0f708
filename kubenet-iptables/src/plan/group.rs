//! The rules of one Service port.
//!
//! ```text
//! KUBE-SERVICES   cluster IP ──────────────────────────────► backend, or
//! KUBE-NODEPORTS  node port ──► KUBE-EXT-… ──► by origin ──► KUBE-SVC-… ──► one of several backends
//!                                                            KUBE-SVL-…
//! KUBE-SERVICES   load balancer ──► KUBE-FW-… ──► those that its source ranges admit: as above
//! ```
//!
//! **Few chains.** On the nf_tables variant chains are what costs when many Services are programmed. A Service
//! port has a chain only for what takes a decision of its own: a set of several backends (`SVC`, `SVL`), sides
//! that differ (`EXT`), source ranges (`FW`). How a set is served, by a rule in place or by a chain, is in
//! [`serve`](super::serve); who is masqueraded, in [`marks`](super::marks).
//!
//! **Source ranges** decide who is translated. What still has the frontend as its destination in `filter` was
//! not, and is dropped there, so connections that began before a range was taken away live on: their translation
//! is known to the kernel, and no rule sees their frontend again. UDP flows are [cut](crate::conntrack).

use std::{collections::BTreeSet, sync::Arc};

use kubenet_core::{
    model::{Affinity, IpFamily},
    route::{
        Backend, FrontendAddress, Masquerade, NodeRouting, Origin, Route, SourceRanges, Target as RouteTarget,
    },
};

use super::{
    Context, Dispatch, GroupPlan,
    serve::{Set, Way},
};
use crate::{
    names::NameHash,
    record::{self, RouteRecord},
    rule::{ChainName, Rule, Target, host},
};

/// The hash input of a route's chain names.
pub(crate) fn name_and_protocol(route: &Route) -> String {
    format!("{}{}", route.service_port, route.frontend.protocol.as_lower_str())
}

impl Context {
    /// Plans the routes of one group, all of one family.
    pub(crate) fn group(
        &self,
        hash: &NameHash,
        family: IpFamily,
        node: &NodeRouting,
        routes: &[Arc<Route>],
    ) -> GroupPlan {
        Group {
            context: self,
            hash,
            family,
            node,
            plan: GroupPlan::default(),
            sets: Vec::new(),
            sticky: routes.iter().any(|route| route.affinity.is_some()),
            entries: Vec::new(),
            firewalls: Vec::new(),
        }
        .plan(routes)
    }
}

pub(super) struct Group<'a> {
    pub(super) context: &'a Context,
    pub(super) hash: &'a NameHash,
    pub(super) family: IpFamily,
    pub(super) node: &'a NodeRouting,
    pub(super) plan: GroupPlan,
    pub(super) sets: Vec<Set>,
    /// Whether clients of some route stay with their backends.
    pub(super) sticky: bool,
    entries: Vec<(Entry, ChainName)>,
    firewalls: Vec<(Firewall, ChainName)>,
}

/// What a chain that decides by origin does: indices of the internal and the external set.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    internal: Option<usize>,
    external: Option<usize>,
    masquerade: Masquerade,
    /// Whose flows come with the mark already.
    marked: Masquerade,
}

/// What a chain of source ranges does.
#[derive(Clone, PartialEq, Eq)]
struct Firewall {
    ranges: Arc<SourceRanges>,
    to: To,
    /// Whether flows may come with the mark.
    marked: bool,
}

/// Where a flow is led.
#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    Set(usize),
    Chain(ChainName),
}

impl Group<'_> {
    fn plan(mut self, routes: &[Arc<Route>]) -> GroupPlan {
        let mut lists: BTreeSet<_> = BTreeSet::new();
        for route in routes {
            for backends in [&route.internal.backends, &route.external.backends] {
                if !backends.is_empty() {
                    let seconds = route.affinity.map(Affinity::timeout_seconds);
                    lists.insert((usize::MAX - backends.len(), Arc::clone(backends), seconds));
                }
            }
        }
        for (n, (_, backends, seconds)) in lists.into_iter().enumerate() {
            let user = |r: &&Arc<Route>| {
                r.affinity.map(Affinity::timeout_seconds) == seconds
                    && [&r.internal, &r.external].iter().any(|t| t.backends == backends)
            };
            let Some(user) = routes.iter().find(user) else { continue };
            let set = self.set(user, &backends, n);
            self.sets.push(set);
        }
        for route in routes {
            let dispatch = self.route(route);
            self.plan.dispatch.push((route.frontend, dispatch));
        }
        self.plan
    }

    fn set_of(&self, route: &Route, target: &RouteTarget) -> Option<usize> {
        self.sets.iter().position(|set| set.affinity == route.affinity && set.backends == target.backends)
    }

    /// The rules of a route in the dispatch chains; makes the chains behind them.
    fn route(&mut self, route: &Route) -> Dispatch {
        let (internal, external) = (self.set_of(route, &route.internal), self.set_of(route, &route.external));
        let mut dispatch = Dispatch { filter: self.answers(route), ..Dispatch::default() };
        let marked = self.context.marked_before(self.node, &route.frontend);
        let to = match (internal, external) {
            (None, None) => None,
            (Some(set), Some(same)) if set == same => {
                let marks = self.remark(marked, route.masquerade).into_iter();
                dispatch.nat.extend(marks.map(|mark| self.at_frontend(route, Rule::to(mark))));
                Some(To::Set(set))
            }
            _ => {
                let entry = Entry { internal, external, masquerade: route.masquerade, marked };
                Some(To::Chain(self.entry(route, entry)))
            }
        };
        let to = match (to, &route.source_ranges) {
            (Some(to), Some(ranges)) => Some(To::Chain(self.firewall(route, ranges, to, marked))),
            (to, _) => to,
        };
        self.explain(route, &mut dispatch.filter, to.is_some());
        let backend = to.as_ref().and_then(|to| self.remarkable_at(to));
        let record = RouteRecord::of(route);
        let record = match route.frontend.address {
            FrontendAddress::Ip(address) if route.on_cluster_ip => {
                dispatch.last = self.other_ports(address, record.comments(None));
                backend.map(|backend| record::backend_comment("", &backend)).into_iter().collect()
            }
            _ => record.comments(backend.as_ref()),
        };
        let (comment, begun) = match record.split_last() {
            Some((last, begun)) => (last.clone(), begun),
            None => (String::new(), &[][..]),
        };
        let begun = begun.iter().map(|comment| self.at_frontend(route, Rule::default().comment(comment)));
        match to {
            Some(to) => {
                let at = self.at_frontend(route, Rule::default().comment(comment));
                let mut rules = self.lead(&to, at, Target::Jump);
                let last = rules.pop();
                dispatch.nat.extend(rules.into_iter().chain(begun).chain(last));
            }
            None => {
                // Nothing in nat: the record goes with the first answer.
                if let Some(first) = dispatch.filter.first_mut().filter(|_| !comment.is_empty()) {
                    first.comment = comment;
                }
                dispatch.filter = begun.chain(std::mem::take(&mut dispatch.filter)).collect();
            }
        }
        if let FrontendAddress::Ip(address) = route.frontend.address
            && (internal.is_none() || external.is_none())
            && self.node.node_port_addresses.contains(&address)
        {
            // What gets an answer must not get a node port on the same address and port instead.
            let label = record::label(&route.service_port);
            let end = self.remark(marked, Masquerade::NEVER).into_iter().map(Rule::to);
            let end = end.chain([Rule::to(Target::Accept).comment(label)]);
            let end: Vec<_> = end.map(|rule| self.at_frontend(route, rule)).collect();
            dispatch.nat.extend(end);
        }
        dispatch
    }

    /// Adds the match on a route's frontend. The dispatch chains have matched the address of a node port.
    pub(super) fn at_frontend(&self, route: &Route, mut rule: Rule) -> Rule {
        rule.destination = match route.frontend.address {
            FrontendAddress::Ip(address) => Some(host(address)),
            FrontendAddress::NodePort(_) => None,
        };
        rule.protocol = Some(route.frontend.protocol);
        rule.port = Some(route.frontend.port);
        rule
    }

    fn remarkable_at(&self, to: &To) -> Option<Backend> {
        match to {
            To::Set(set) => self.remarkable(&self.sets[*set]),
            To::Chain(_) => None,
        }
    }

    /// The comment of a rule in a chain behind the dispatch.
    fn comment(&self, to: &To, label: &str) -> String {
        match self.remarkable_at(to) {
            Some(backend) => record::backend_comment(label, &backend),
            None => label.to_owned(),
        }
    }

    /// Rules that lead what matches. The last one has the matches and the comment as they are.
    fn lead(&self, to: &To, matches: Rule, by: fn(ChainName) -> Target) -> Vec<Rule> {
        let chain = match to {
            To::Chain(chain) => chain,
            To::Set(set) => match &self.sets[*set].way {
                Way::InPlace => return self.in_place(&self.sets[*set], matches),
                Way::Chain(chain) => chain,
            },
        };
        vec![Rule { target: Some(by(chain.clone())), ..matches }]
    }

    /// The chain that decides by origin; shared by routes that decide alike.
    fn entry(&mut self, route: &Route, entry: Entry) -> ChainName {
        if let Some((_, chain)) = self.entries.iter().find(|(e, _)| *e == entry) {
            return chain.clone();
        }
        let chain = self.context.names.entry(self.hash, self.entries.len());
        let label = record::label(&route.service_port);
        let mut rules = Vec::new();
        // Marked only where a backend is picked: a marked packet that stays untranslated would pass the
        // FORWARD chain unrejected.
        let mut side = |matches: Rule, origin: Origin, set: Option<usize>| {
            let matches = matches.comment(label.as_str());
            let Some(set) = set else {
                if origin != Origin::Outside {
                    rules.push(Rule { target: Some(Target::Return), ..matches });
                }
                return;
            };
            let mark = match (entry.marked.applies_to(origin), entry.masquerade.applies_to(origin)) {
                (false, true) => Some(Target::Jump(self.context.names.mark_masq.clone())),
                (true, false) => Some(Target::Unmark),
                _ => None,
            };
            rules.extend(mark.map(|mark| Rule { target: Some(mark), ..matches.clone() }));
            let to = To::Set(set);
            let matches = matches.comment(self.comment(&to, &label));
            rules.extend(self.lead(&to, matches, Target::Jump));
        };
        for (matches, origin) in self.context.sources(self.node, self.family) {
            side(matches, origin, entry.internal);
        }
        side(Rule::default(), Origin::Outside, entry.external);
        self.plan.chains.push((chain.clone(), rules.into()));
        self.entries.push((entry, chain.clone()));
        chain
    }

    /// The chain that lets those that the source ranges admit go on; shared like an entry.
    fn firewall(
        &mut self,
        route: &Route,
        ranges: &Arc<SourceRanges>,
        to: To,
        marked: Masquerade,
    ) -> ChainName {
        let marked = [marked, route.masquerade].iter().any(|m| *m != Masquerade::NEVER);
        let firewall = Firewall { ranges: Arc::clone(ranges), to, marked };
        if let Some((_, chain)) = self.firewalls.iter().find(|(f, _)| *f == firewall) {
            return chain.clone();
        }
        let chain = self.context.names.firewall(self.hash, self.firewalls.len());
        let label = record::label(&route.service_port);
        let admitted = self.context.admitted(ranges, self.family);
        let nobody = admitted.is_empty();
        let comment = self.comment(&firewall.to, &label);
        let lead = |matches: Rule| self.lead(&firewall.to, matches.comment(comment.as_str()), Target::Goto);
        let mut rules: Vec<_> = admitted.into_iter().flat_map(lead).collect();
        // Ends the way through nat, so that no node port on the same address and port takes the packet.
        if marked {
            rules.push(Rule::to(Target::Unmark).comment(label.as_str()));
        }
        rules.push(Rule::to(Target::Accept).comment(label.as_str()));
        if nobody {
            // Never reached. Says what is behind.
            rules.extend(lead(Rule::default()));
        }
        self.plan.chains.push((chain.clone(), rules.into()));
        self.firewalls.push((firewall, chain.clone()));
        chain
    }
}
