//! From a destination to the rules of its frontends: a [`Tree`] for addresses, a list for node ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use kubenet_core::{
    model::{IpFamily, Protocol},
    route::{Frontend, FrontendAddress, NodeRouting},
};

use super::{
    Context,
    tree::{LeafEdits, Leaves, Tree, TreeChanges},
};
use crate::rule::{ChainChanges, ChainKey, Rule, Table};

/// The rules of one frontend in the dispatch chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dispatch {
    pub(crate) nat: Vec<Rule>,
    pub(crate) filter: Vec<Rule>,
    /// What follows in filter when the rules of all frontends of the address are passed.
    pub(crate) last: Vec<Rule>,
}

/// All frontends of one family.
#[derive(Clone, Debug, Default)]
pub(super) struct Frontends {
    rules: BTreeMap<Frontend, Dispatch>,
    nat: Leaves,
    filter: Leaves,
}

/// A change of some frontends.
#[derive(Clone, Debug, Default)]
pub(super) struct Edit {
    rules: BTreeMap<Frontend, Option<Dispatch>>,
    nat: LeafEdits,
    filter: LeafEdits,
}

static NO_EDITS: LeafEdits = LeafEdits::new();

impl Frontends {
    pub(super) fn get(&self, frontend: &Frontend) -> Option<&Dispatch> {
        self.rules.get(frontend)
    }

    /// Prepares new rules for frontends, or their removal.
    pub(super) fn edit(&self, rules: BTreeMap<Frontend, Option<Dispatch>>) -> Edit {
        let mut edit = Edit { rules, ..Edit::default() };
        let address = |frontend: &Frontend| match frontend.address {
            FrontendAddress::Ip(address) => Some(address),
            FrontendAddress::NodePort(_) => None,
        };
        let touched: BTreeSet<IpAddr> = edit.rules.keys().filter_map(address).collect();
        for address in touched {
            let (mut nat, mut filter, mut last_rules) = (Vec::new(), Vec::new(), Vec::new());
            let first = Frontend::ip(address, NonZeroU16::MIN, Protocol::Tcp);
            let last = Frontend::ip(address, NonZeroU16::MAX, Protocol::Sctp);
            for dispatch in self.after(&edit.rules, first, last).into_values() {
                nat.extend(dispatch.nat.iter().cloned());
                filter.extend(dispatch.filter.iter().cloned());
                last_rules.extend(dispatch.last.iter().cloned());
            }
            filter.append(&mut last_rules);
            edit.nat.insert(address, (!nat.is_empty()).then(|| nat.into()));
            edit.filter.insert(address, (!filter.is_empty()).then(|| filter.into()));
        }
        edit
    }

    /// The frontends from `first` to `last` after an edit.
    fn after<'a>(
        &'a self,
        edits: &'a BTreeMap<Frontend, Option<Dispatch>>,
        first: Frontend,
        last: Frontend,
    ) -> BTreeMap<Frontend, &'a Dispatch> {
        let mut all: BTreeMap<_, _> = self.rules.range(first..=last).map(|(f, d)| (*f, d)).collect();
        for (frontend, dispatch) in edits.range(first..=last) {
            match dispatch {
                Some(dispatch) => drop(all.insert(*frontend, dispatch)),
                None => drop(all.remove(frontend)),
            }
        }
        all
    }

    pub(super) fn commit(&mut self, edit: Edit) {
        fn apply<K: Ord, V>(map: &mut BTreeMap<K, V>, edits: BTreeMap<K, Option<V>>) {
            for (key, value) in edits {
                match value {
                    Some(value) => drop(map.insert(key, value)),
                    None => drop(map.remove(&key)),
                }
            }
        }
        apply(&mut self.rules, edit.rules);
        apply(&mut self.nat, edit.nat);
        apply(&mut self.filter, edit.filter);
    }

    fn trees<'a>(
        &'a self,
        context: &'a Context,
        nat: &'a LeafEdits,
        filter: &'a LeafEdits,
    ) -> [(Table, Tree<'a>); 2] {
        let names = &context.names;
        let tree = |leaves, edits| Tree { names, root: &names.services, leaves, edits };
        [(Table::Nat, tree(&self.nat, nat)), (Table::Filter, tree(&self.filter, filter))]
    }

    /// All dispatch chains.
    pub(super) fn chains(&self, context: &Context, node: &NodeRouting, family: IpFamily) -> ChainChanges {
        let trees = self.trees(context, &NO_EDITS, &NO_EDITS).map(|(table, tree)| (table, tree.chains()));
        let mut chains = with_node_ports(context, node, family, trees);
        chains.extend(self.node_ports(context, family, &BTreeMap::new()));
        let ways = context.ways_to_node_ports(node, family);
        chains.insert((Table::Filter, context.names.external_services.clone()), Some(ways.into()));
        chains
    }

    /// The dispatch chains that an edit changes, and perhaps some that it does not.
    pub(super) fn changes(
        &self,
        edit: &Edit,
        context: &Context,
        node: &NodeRouting,
        family: IpFamily,
    ) -> ChainChanges {
        let trees = self.trees(context, &edit.nat, &edit.filter).map(|(table, tree)| (table, tree.changes()));
        let mut changes = with_node_ports(context, node, family, trees);
        if edit.rules.keys().any(super::is_node_port) {
            changes.extend(self.node_ports(context, family, &edit.rules));
        }
        changes
    }

    /// The chains of the node ports. Flat: one rule per frontend.
    fn node_ports(
        &self,
        context: &Context,
        family: IpFamily,
        edits: &BTreeMap<Frontend, Option<Dispatch>>,
    ) -> ChainChanges {
        let first = Frontend::node_port(family, NonZeroU16::MIN, Protocol::Tcp);
        let last = Frontend::node_port(family, NonZeroU16::MAX, Protocol::Sctp);
        let (mut nat, mut filter) = (Vec::new(), Vec::new());
        for dispatch in self.after(edits, first, last).into_values() {
            nat.extend(dispatch.nat.iter().cloned());
            filter.extend(dispatch.filter.iter().cloned());
        }
        let name = &context.names.node_ports;
        [(Table::Nat, nat), (Table::Filter, filter)]
            .map(|(table, rules)| ((table, name.clone()), Some(rules.into())))
            .into()
    }

    /// The rules that lead to a frontend's backends or answers, by chain.
    pub(super) fn ways(
        &self,
        context: &Context,
        node: &NodeRouting,
        frontend: &Frontend,
    ) -> Vec<(ChainKey, Vec<Rule>)> {
        let none = Dispatch::default();
        let dispatch = self.rules.get(frontend).unwrap_or(&none);
        let address = match frontend.address {
            FrontendAddress::Ip(address) => address,
            FrontendAddress::NodePort(family) => {
                let (names, ways) = (&context.names, context.ways_to_node_ports(node, family));
                return vec![
                    ((Table::Nat, names.node_ports.clone()), dispatch.nat.clone()),
                    ((Table::Filter, names.node_ports.clone()), dispatch.filter.clone()),
                    ((Table::Nat, names.services.clone()), ways.clone()),
                    ((Table::Filter, names.external_services.clone()), ways),
                ];
            }
        };
        let mut ways = Vec::new();
        for (table, tree) in self.trees(context, &NO_EDITS, &NO_EDITS) {
            let own: Vec<Rule> = match table {
                Table::Nat => dispatch.nat.clone(),
                Table::Filter => dispatch.filter.iter().chain(&dispatch.last).cloned().collect(),
            };
            ways.extend(tree.path(address).unwrap_or_default().into_iter().map(|(chain, way)| {
                let rules = way.map_or_else(|| own.clone(), |way| iter::once(way).collect());
                ((table, chain), rules)
            }));
        }
        ways
    }

    /// The most rules of one table that the first packet of a connection to an address meets here.
    pub(super) fn longest_walk(&self, context: &Context) -> usize {
        let trees = self.trees(context, &NO_EDITS, &NO_EDITS);
        trees.iter().map(|(_, tree)| tree.longest_walk()).max().unwrap_or(0)
    }
}

/// The chains of both trees, with the way to the node ports at the end of the root of nat.
fn with_node_ports(
    context: &Context,
    node: &NodeRouting,
    family: IpFamily,
    trees: [(Table, TreeChanges); 2],
) -> ChainChanges {
    let mut chains = ChainChanges::new();
    for (table, changes) in trees {
        for (name, rules) in changes {
            let is_root = table == Table::Nat && name == context.names.services;
            let rules = rules.map(|mut rules| {
                if is_root {
                    rules = context.between_marks(node, rules);
                    rules.extend(context.ways_to_node_ports(node, family));
                }
                Arc::from(rules)
            });
            chains.insert((table, name), rules);
        }
    }
    chains
}
