//! The chains of one Service port.
//!
//! ```text
//! KUBE-SERVICES   cluster IP ──────────────────────────────► KUBE-SVC-… ──► backend, or
//! KUBE-NODEPORTS  node port ──► KUBE-EXT-… ──► by origin ──► KUBE-SVC-…     KUBE-SEP-… ──► local backend
//!                                                            KUBE-SVL-…
//! KUBE-SERVICES   load balancer ──► KUBE-FW-… ──► those that its source ranges admit: as above
//! ```
//!
//! **A backend that reaches itself** must be masqueraded, and whether it does is known only once the backend
//! is picked. Rules pick and translate in one step, so that takes a chain per backend, which is what makes
//! large updates on the nf_tables variant slow. Only backends on this node get one: a flow of a backend to
//! itself passes the node that it is on. One that is not known to be here (no node name, or a pod of another
//! node that dials our node port) is left out for its own flows, which needs one match and no chain, unless it
//! is the last of the list: that one is picked without a choice, so a plain rule can mark its own flows before.
//! Both variants do the same.
//! (Comparing source with destination after translation needs `xt_bpf`, which not every kernel has, or a rule
//! per backend that every new flow of any kind would walk.)
//!
//! **Source ranges** decide who is translated. What still has the frontend as its destination in `filter` was
//! not, and is dropped there, so flows that began before a range was taken away live on: their translation is
//! known to the kernel, and no rule sees their frontend again.

use std::{collections::BTreeSet, sync::Arc};

use kubenet_core::{
    model::IpFamily,
    route::{
        Backend, FrontendAddress, Masquerade, NodeRouting, Origin, Route, SourceRanges,
        Target as RouteTarget, WhenEmpty,
    },
};

use super::{Context, Dispatch, GroupPlan};
use crate::{
    names::NameHash,
    record::{self, RouteRecord},
    rule::{ChainName, Chance, Rule, Target, host},
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
            entries: Vec::new(),
            firewalls: Vec::new(),
        }
        .plan(routes)
    }
}

struct Group<'a> {
    context: &'a Context,
    hash: &'a NameHash,
    family: IpFamily,
    node: &'a NodeRouting,
    plan: GroupPlan,
    sets: Vec<Set>,
    entries: Vec<(Entry, ChainName)>,
    /// Whom it admits to which chain, and the chain that does so.
    firewalls: Vec<(Arc<SourceRanges>, ChainName, ChainName)>,
}

/// A list of backends and the chain that picks from it.
struct Set {
    backends: Arc<[Backend]>,
    chain: ChainName,
    rules: Vec<Rule>,
}

/// What a chain that decides by origin does: indices of the internal and the external set.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    internal: Option<usize>,
    external: Option<usize>,
    masquerade: Masquerade,
}

impl Group<'_> {
    fn plan(mut self, routes: &[Arc<Route>]) -> GroupPlan {
        let mut lists: BTreeSet<_> = BTreeSet::new();
        for route in routes {
            for backends in [&route.internal.backends, &route.external.backends] {
                if !backends.is_empty() {
                    lists.insert((usize::MAX - backends.len(), Arc::clone(backends)));
                }
            }
        }
        for (n, (_, backends)) in lists.into_iter().enumerate() {
            let chain = self.context.names.set(self.hash, n);
            self.sets.push(Set { backends, chain, rules: Vec::new() });
        }
        let mut used = BTreeSet::new();
        for route in routes {
            let dispatch = self.route(route, &mut used);
            self.plan.dispatch.push((route.frontend, dispatch));
        }
        self.plan.masquerades = used;
        for n in 0..self.sets.len() {
            let user = routes.iter().find(|r| self.uses(r, n));
            let Some(user) = user else { continue };
            let picks = self.picks(user, n);
            let set = &mut self.sets[n];
            set.rules.extend(picks);
            self.plan.chains.push((set.chain.clone(), std::mem::take(&mut set.rules).into()));
        }
        self.plan
    }

    fn uses(&self, route: &Route, set: usize) -> bool {
        let set = &self.sets[set].backends;
        route.internal.backends == *set || route.external.backends == *set
    }

    fn set_of(&self, target: &RouteTarget) -> Option<usize> {
        self.sets.iter().position(|set| set.backends == target.backends)
    }

    /// The rules of a route in the dispatch chains; makes the chains behind them.
    fn route(&mut self, route: &Route, used: &mut BTreeSet<Masquerade>) -> Dispatch {
        let (internal, external) = (self.set_of(&route.internal), self.set_of(&route.external));
        let cluster_ip = route.on_cluster_ip;
        let mut dispatch = Dispatch { nat: Vec::new(), filter: self.answers(route), cluster_ip };
        let record = RouteRecord::of(route).comments();
        let guarded = route.source_ranges.as_ref();
        let to = match (internal, external) {
            (None, None) => None,
            (Some(set), Some(same))
                if set == same && matches!(route.frontend.address, FrontendAddress::Ip(_)) =>
            {
                // No chain of its own: the set's chain marks what is dialled at this frontend.
                if let Some(mark) = self.mark(route.masquerade, used) {
                    let rule = Rule::to(mark).comment(record::label(&route.service_port));
                    let rule = self.at_frontend(route, rule);
                    self.sets[set].rules.push(rule);
                }
                Some(self.sets[set].chain.clone())
            }
            _ => Some(self.entry(route, Entry { internal, external, masquerade: route.masquerade }, used)),
        };
        let to = match (to, guarded) {
            (Some(chain), Some(ranges)) => Some(self.firewall(route, ranges, chain)),
            (to, _) => to,
        };
        let last = record.len() - 1;
        match to {
            Some(chain) => {
                dispatch.nat.extend(record.into_iter().enumerate().map(|(i, comment)| {
                    let target = (i == last).then(|| Target::Jump(chain.clone()));
                    self.at_frontend(route, Rule { target, comment, ..Rule::default() })
                }));
                let label = record::label(&route.service_port);
                let why = if guarded.is_some() { "is not for this source" } else { "has no endpoints" };
                dispatch.filter.iter_mut().for_each(|rule| rule.comment = format!("{label} {why}"));
            }
            None => {
                // Nothing in nat: the record goes with the first answer.
                if let Some(first) = dispatch.filter.first_mut() {
                    first.comment = record[last].clone();
                }
                let more = record[..last].iter().map(|comment| {
                    self.at_frontend(route, Rule { comment: comment.clone(), ..Rule::default() })
                });
                dispatch.filter = more.chain(dispatch.filter.iter().cloned()).collect();
            }
        }
        if let FrontendAddress::Ip(address) = route.frontend.address
            && (internal.is_none() || external.is_none())
            && self.node.node_port_addresses.contains(&address)
        {
            // What gets an answer must not get a node port on the same address and port instead.
            let label = record::label(&route.service_port);
            dispatch.nat.push(self.at_frontend(route, Rule::to(Target::Accept).comment(label)));
        }
        dispatch
    }

    /// Adds the match on a route's frontend. The dispatch chains have matched the address of a node port.
    fn at_frontend(&self, route: &Route, mut rule: Rule) -> Rule {
        rule.destination = match route.frontend.address {
            FrontendAddress::Ip(address) => Some(host(address)),
            FrontendAddress::NodePort(_) => None,
        };
        rule.protocol = Some(route.frontend.protocol);
        rule.port = Some(route.frontend.port);
        rule
    }

    /// The target that marks all flows of these origins.
    fn mark(&self, masquerade: Masquerade, used: &mut BTreeSet<Masquerade>) -> Option<Target> {
        let names = &self.context.names;
        match masquerade {
            Masquerade::NEVER => None,
            Masquerade::ALWAYS => Some(Target::Jump(names.mark_masq.clone())),
            some => {
                used.insert(some);
                Some(Target::Jump(names.masquerade(some)))
            }
        }
    }

    /// The chain that decides by origin; shared by routes that decide alike.
    fn entry(&mut self, route: &Route, entry: Entry, used: &mut BTreeSet<Masquerade>) -> ChainName {
        if let Some((_, chain)) = self.entries.iter().find(|(e, _)| *e == entry) {
            return chain.clone();
        }
        let names = &self.context.names;
        let chain = names.entry(self.hash, self.entries.len());
        let label = record::label(&route.service_port);
        let mut rules = Vec::new();
        if entry.internal == entry.external {
            if let Some(mark) = self.mark(entry.masquerade, used) {
                rules.push(Rule::to(mark).comment(format!("masquerade traffic for {label}")));
            }
            rules.extend(entry.external.map(|set| Rule::jump(&self.sets[set].chain)));
        } else {
            // Marked only where a backend is picked: a marked packet that stays untranslated would pass the
            // FORWARD chain unrejected.
            let mut side = |matches: Rule, origin: Origin, set: Option<usize>| {
                let Some(set) = set else {
                    if origin != Origin::Outside {
                        rules.push(Rule { target: Some(Target::Return), ..matches });
                    }
                    return;
                };
                if entry.masquerade.applies_to(origin) {
                    let target = Some(Target::Jump(names.mark_masq.clone()));
                    rules.push(Rule { target, ..matches.clone() });
                }
                let target = Some(Target::Jump(self.sets[set].chain.clone()));
                rules.push(Rule { target, ..matches });
            };
            for (matches, origin) in self.context.sources(self.node, self.family) {
                side(matches, origin, entry.internal);
            }
            side(Rule::default(), Origin::Outside, entry.external);
            for rule in &mut rules {
                rule.comment.clone_from(&label);
            }
        }
        self.plan.chains.push((chain.clone(), rules.into()));
        self.entries.push((entry, chain.clone()));
        chain
    }

    /// The chain that lets those that the source ranges admit into another; shared like an entry.
    fn firewall(&mut self, route: &Route, ranges: &Arc<SourceRanges>, to: ChainName) -> ChainName {
        let known = self.firewalls.iter().find(|(r, t, _)| r == ranges && *t == to);
        if let Some((.., chain)) = known {
            return chain.clone();
        }
        // kube-proxy's name. A prefix holds no `-`.
        let like = self.context.names.entry(self.hash, self.firewalls.len()).to_string();
        let chain = ChainName::new(like.replacen("-EXT-", "-FW-", 1));
        let label = record::label(&route.service_port);
        let mut rules = self.context.admitted(ranges, self.family);
        let nobody = rules.is_empty();
        for rule in &mut rules {
            rule.target = Some(Target::Goto(to.clone()));
        }
        // Ends the way through nat, so that no node port on the same address and port takes the packet.
        rules.push(Rule::to(Target::Accept));
        if nobody {
            // Never reached. Says what is behind.
            rules.push(Rule::to(Target::Goto(to.clone())));
        }
        for rule in &mut rules {
            rule.comment.clone_from(&label);
        }
        self.plan.chains.push((chain.clone(), rules.into()));
        self.firewalls.push((Arc::clone(ranges), to, chain.clone()));
        chain
    }

    /// The rules that pick a backend, each as likely as it weighs.
    fn picks(&mut self, route: &Route, set: usize) -> Vec<Rule> {
        let names = &self.context.names;
        let backends = Arc::clone(&self.sets[set].backends);
        let protocol = route.frontend.protocol;
        let identity = name_and_protocol(route);
        let label = record::label(&route.service_port);
        let mut rules = Vec::with_capacity(backends.len() + 1);
        let weight = |backend: &Backend| u64::from(backend.weight.get());
        let mut left: u64 = backends.iter().map(weight).sum();
        for backend in backends.iter() {
            // Of those that the rules before leave. The last takes the rest.
            let chance = Chance::of(weight(backend), left);
            left -= weight(backend);
            let comment = record::backend_comment(&label, backend);
            let itself = host(backend.address);
            let translate = Rule::to(Target::Dnat(backend.socket_addr())).protocol(protocol);
            let mark = Rule::jump(&names.mark_masq).from(itself).comment(label.clone());
            if backend.local {
                let chain = names.endpoint(&identity, backend.socket_addr());
                rules.push(Rule { chance, ..Rule::jump(&chain) }.comment(comment));
                self.plan.chains.push((chain, Arc::from([mark, translate.comment(label.clone())])));
            } else if chance.is_some() {
                rules.push(Rule { chance, ..translate }.not_from(itself).comment(comment));
            } else {
                rules.push(mark);
                rules.push(translate.comment(comment));
            }
        }
        rules
    }

    /// What is answered to flows that no backend takes. Only packets that were not translated still have a
    /// frontend as their destination, so no match on the origin is needed where one side has backends.
    fn answers(&self, route: &Route) -> Vec<Rule> {
        let answer = |target: &RouteTarget| target.backends.is_empty().then_some(target.when_empty);
        let rule = |matches: Rule, when: WhenEmpty| {
            self.at_frontend(route, Rule { target: Some(refusal(route, when)), ..matches })
        };
        if let Some(ranges) = &route.source_ranges {
            return self.guarded_answers(route, ranges);
        }
        match (answer(&route.internal), answer(&route.external)) {
            (None, None) => Vec::new(),
            (Some(internal), Some(external)) if internal != external => {
                let sources = self.context.sources(self.node, self.family).into_iter();
                let mut rules: Vec<_> = sources.map(|(matches, _)| rule(matches, internal)).collect();
                rules.push(rule(Rule::default(), external));
                let label = record::label(&route.service_port);
                rules.iter_mut().for_each(|rule| rule.comment.clone_from(&label));
                rules
            }
            (Some(when), _) | (None, Some(when)) => vec![rule(Rule::default(), when)],
        }
    }

    /// The same where not everybody is admitted: whoever is not is dropped, before any other answer ([R3]).
    fn guarded_answers(&self, route: &Route, ranges: &SourceRanges) -> Vec<Rule> {
        let admitted = self.context.admitted(ranges, self.family);
        let sources = || self.context.sources(self.node, self.family).into_iter().map(|(matches, _)| matches);
        let answer = |target: &RouteTarget| target.backends.is_empty().then_some(target.when_empty);
        let rule = |when: WhenEmpty| {
            move |matches: Rule| {
                self.at_frontend(route, Rule { target: Some(refusal(route, when)), ..matches })
            }
        };
        let mut rules: Vec<Rule> = Vec::new();
        match (answer(&route.internal), answer(&route.external)) {
            (Some(WhenEmpty::Reject), Some(WhenEmpty::Drop)) => {
                let both = sources().flat_map(|source| {
                    admitted.iter().filter_map(move |admitted| source.clone().and_from(admitted))
                });
                rules.extend(both.map(rule(WhenEmpty::Reject)));
            }
            (Some(WhenEmpty::Drop), Some(WhenEmpty::Reject)) => {
                rules.extend(sources().map(rule(WhenEmpty::Drop)));
                rules.extend(admitted.into_iter().map(rule(WhenEmpty::Reject)));
            }
            (Some(WhenEmpty::Reject), _) | (None, Some(WhenEmpty::Reject)) => {
                rules.extend(admitted.into_iter().map(rule(WhenEmpty::Reject)));
            }
            _ => {}
        }
        rules.push(rule(WhenEmpty::Drop)(Rule::default()));
        let label = record::label(&route.service_port);
        rules.iter_mut().for_each(|rule| rule.comment.clone_from(&label));
        rules
    }
}

/// A TCP reset rather than ICMP: the kernel ignores an ICMP error for a socket whose owner is in a system
/// call at that moment, which is the case for a connect() from this node.
fn refusal(route: &Route, when: WhenEmpty) -> Target {
    match when {
        WhenEmpty::Drop => Target::Drop,
        WhenEmpty::Reject if route.frontend.protocol == kubenet_core::model::Protocol::Tcp => {
            Target::RejectWithReset
        }
        WhenEmpty::Reject => Target::RejectUnreachable,
    }
}
