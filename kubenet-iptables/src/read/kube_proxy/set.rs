//! The endpoints that a kube-proxy's chains pick from.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use kubenet_core::{
    model::{Affinity, IpFamily},
    route::Backend,
};

use crate::{
    names::Names,
    rule::{ChainName, Chains, Does, Rule, Table, Target},
    save::{self, Loose},
};

/// What a chain `KUBE-SVC-…` or `KUBE-SVL-…` picks from.
#[derive(Debug)]
pub(in crate::read) struct Set {
    pub(in crate::read) backends: Arc<[Backend]>,
    pub(in crate::read) affinity: Option<Affinity>,
    /// The rules that mark flows for masquerading.
    pub(super) marks: Vec<Loose>,
    /// Whether all its rules are as a kube-proxy writes them.
    pub(in crate::read) is_whole: bool,
}

/// All chains, and the sets that were asked for.
#[derive(Debug)]
pub(in crate::read) struct Sets<'a> {
    names: &'a Names,
    family: IpFamily,
    chains: &'a Chains,
    /// Addresses of endpoints on this node.
    local: HashSet<IpAddr>,
    known: HashMap<ChainName, Option<Arc<Set>>>,
}

impl<'a> Sets<'a> {
    pub(in crate::read) fn new(names: &'a Names, family: IpFamily, chains: &'a Chains) -> Self {
        let mut sets = Self { names, family, chains, local: HashSet::new(), known: HashMap::new() };
        let local =
            chains.iter().filter(|((table, name), _)| *table == Table::Nat && names.is_local_set(name));
        let picked = local.flat_map(|(_, rules)| rules.iter()).filter_map(|rule| sets.picked(rule));
        sets.local = picked.map(|backend| backend.address).collect();
        sets
    }

    /// The rules of a chain; none where there is no such chain.
    pub(super) fn rules(&self, table: Table, chain: &ChainName) -> &'a [Rule] {
        self.chains.get(&(table, chain.clone())).map(|rules| &rules[..]).unwrap_or_default()
    }

    pub(super) fn has(&self, chain: &ChainName) -> bool {
        self.chains.contains_key(&(Table::Nat, chain.clone()))
    }

    /// The set that a chain picks from. `None` where there is no such chain.
    pub(in crate::read) fn get(&mut self, chain: &ChainName) -> Option<Arc<Set>> {
        if let Some(known) = self.known.get(chain) {
            return known.clone();
        }
        let set = (self.names.is_set(chain) && self.has(chain)).then(|| Arc::new(self.set(chain)));
        self.known.insert(chain.clone(), set.clone());
        set
    }

    fn set(&self, chain: &ChainName) -> Set {
        let mut set = Set { backends: Arc::default(), affinity: None, marks: Vec::new(), is_whole: true };
        let mut backends = Vec::new();
        for rule in self.rules(Table::Nat, chain) {
            if let Some(loose) = save::loose(rule)
                && loose.rule.target == Some(Target::Jump(self.names.mark_masq.clone()))
            {
                set.marks.push(loose);
                continue;
            }
            let backend = self.picked(rule);
            set.is_whole &= backend.is_some();
            let Some(backend) = backend else { continue };
            match rule.recent.as_ref().map(|recent| recent.does) {
                Some(Does::Check(seconds)) => {
                    set.affinity = set.affinity.or_else(|| Affinity::new(seconds.get()));
                    continue;
                }
                _ => backends.push(backend),
            }
            if rule.chance.is_none() {
                // No packet gets past it.
                break;
            }
        }
        backends.sort_unstable();
        backends.dedup_by_key(|backend| backend.socket_addr());
        set.backends = backends.into();
        set
    }

    /// The endpoint that a rule of a set leads to.
    fn picked(&self, rule: &Rule) -> Option<Backend> {
        let Some(Target::Jump(to)) = &rule.target else { return None };
        let only = Rule {
            chance: rule.chance,
            recent: rule.recent.clone(),
            comment: rule.comment.clone(),
            ..Rule::jump(to)
        };
        let never = rule.chance.is_some_and(|chance| chance.is_never());
        if *rule != only || never || !self.names.is_endpoint(to) {
            return None;
        }
        self.rules(Table::Nat, to).iter().find_map(|rule| {
            let Some(Target::Dnat(address)) = rule.target else { return None };
            let only = Rule {
                protocol: rule.protocol,
                recent: rule.recent.clone(),
                comment: rule.comment.clone(),
                ..Rule::to(Target::Dnat(address))
            };
            let fits = *rule == only && IpFamily::of(address.ip()) == self.family;
            let port = address.port().try_into().ok().filter(|_| fits)?;
            Some(Backend::new(address.ip(), port, self.local.contains(&address.ip())))
        })
    }
}
