//! How a set of backends is served: by rules in place, or by a chain that picks one ([`odds`](super::odds)).
//!
//! **A backend that reaches itself** must be masqueraded, and whether it does is known only once the backend
//! is picked. Where the kernel can compare the two addresses of a packet (`xt_bpf`), one rule in
//! `KUBE-POSTROUTING` sees it ([`Context::constant_chains`]), and a backend is one rule. Elsewhere rules have
//! to know before: they pick and translate in one step, so that takes a chain per backend, `KUBE-SEP-…`, which
//! is what makes large updates on the nf_tables variant slow. Only backends on this node get one: a flow of a
//! backend to itself passes the node that it is on. One that is not known to be here (no node name, or a pod of
//! another node that dials our node port) is left out for its own flows, which needs one match and no chain,
//! unless it is the last of the list: that one is picked without a choice, so a plain rule can mark its own
//! flows before. With [affinity](super::affinity), all of them get a chain.

use std::sync::Arc;

use kubenet_core::{
    model::{Affinity, Protocol},
    route::{Backend, Route},
};

use super::group::{Group, name_and_protocol};
use crate::{
    record,
    rule::{ChainName, Chance, Rule, Target, host},
};

/// A list of backends and how it is served.
pub(super) struct Set {
    pub(super) backends: Arc<[Backend]>,
    pub(super) way: Way,
    pub(super) label: String,
    pub(super) protocol: Protocol,
    pub(super) affinity: Option<Affinity>,
    /// What the names of its endpoints' chains are made of.
    pub(super) identity: String,
}

pub(super) enum Way {
    /// By rules wherever a flow is led to it.
    InPlace,
    /// By a chain.
    Chain(ChainName),
}

impl Group<'_> {
    /// Decides how the `n`th set, of which this route is a user, is served; makes the chains that it takes.
    pub(super) fn set(&mut self, route: &Route, backends: &Arc<[Backend]>, n: usize) -> Set {
        let mut set = Set {
            backends: Arc::clone(backends),
            way: Way::InPlace,
            label: record::label(&route.service_port),
            protocol: route.frontend.protocol,
            affinity: route.affinity,
            identity: name_and_protocol(route),
        };
        if backends.len() > 1 {
            let chain = self.context.names.set(self.hash, n);
            self.divide(&set, &chain);
            set.way = Way::Chain(chain);
        }
        set
    }

    /// The only backend of a set that is served in place, where its rule does not say all about it.
    pub(super) fn remarkable(&self, set: &Set) -> Option<Backend> {
        let backend = set.backends.first().filter(|backend| !record::is_plain(backend))?;
        matches!(set.way, Way::InPlace).then_some(*backend)
    }

    /// The rules that send what matches to the only backend of a set. The last one has the matches as they
    /// are.
    pub(super) fn in_place(&self, set: &Set, matches: Rule) -> Vec<Rule> {
        let Some(backend) = set.backends.first() else { return Vec::new() };
        let mut rules = Vec::with_capacity(2);
        if !self.context.hairpin {
            let mark = Rule { comment: String::new(), ..matches.clone() };
            let mark = mark.and_from(&Rule::default().from(host(backend.address)));
            rules.extend(mark.map(|rule| rule.target(Target::Jump(self.context.names.mark_masq.clone()))));
        }
        let rule = matches.protocol(set.protocol).recent(self.noted(set, backend));
        rules.push(rule.target(Target::Dnat(backend.socket_addr())));
        rules
    }

    /// The rules that pick one backend. The first of a chain says whose it is.
    pub(super) fn pick(
        &mut self,
        set: &Set,
        backend: &Backend,
        chance: Option<Chance>,
        first: bool,
    ) -> Vec<Rule> {
        let named = record::backend_comment(&set.label, backend);
        let has_chain = !self.context.hairpin && (backend.local || set.affinity.is_some());
        // Without a comment, the rule must show the backend.
        let says = first || has_chain || !record::is_plain(backend);
        let comment = if says { named } else { String::new() };
        let itself = host(backend.address);
        let translate = Rule::to(Target::Dnat(backend.socket_addr())).protocol(set.protocol);
        let translate = translate.recent(self.noted(set, backend));
        let mark = Rule::jump(&self.context.names.mark_masq).from(itself);
        if self.context.hairpin {
            vec![Rule { chance, ..translate }.comment(comment)]
        } else if has_chain {
            let chain = self.context.names.endpoint(&set.identity, backend.socket_addr());
            let rule = Rule { chance, ..Rule::jump(&chain) }.comment(comment);
            let label = set.label.as_str();
            let rules = [mark.comment(label), translate.comment(label)];
            self.plan.chains.push((chain, Arc::from(rules)));
            vec![rule]
        } else if chance.is_some() {
            vec![Rule { chance, ..translate }.not_from(itself).comment(comment)]
        } else {
            vec![mark, translate.comment(comment)]
        }
    }
}
