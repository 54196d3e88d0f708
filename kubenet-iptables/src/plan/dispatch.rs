//! From a destination to the rules of its frontends: a [`Tree`] for addresses, and one for node ports.

use std::{
    collections::{BTreeMap, HashMap},
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
    tree::{self, LeafEdits, Leaves, Space, Tree, TreeChanges},
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
    leaves: [Leaves; TREES.len()],
}

/// A change of some frontends.
#[derive(Clone, Debug, Default)]
pub(super) struct Edit {
    rules: BTreeMap<Frontend, Option<Dispatch>>,
    leaves: [LeafEdits; TREES.len()],
}

const TREES: [(Table, Space); 4] = [
    (Table::Nat, Space::Addresses),
    (Table::Filter, Space::Addresses),
    (Table::Nat, Space::Ports),
    (Table::Filter, Space::Ports),
];

static NO_EDITS: [LeafEdits; TREES.len()] = [const { LeafEdits::new() }; TREES.len()];

/// Where a frontend is looked up.
fn place(frontend: &Frontend) -> (Space, IpAddr) {
    match frontend.address {
        FrontendAddress::Ip(address) => (Space::Addresses, address),
        FrontendAddress::NodePort(_) => (Space::Ports, tree::of_port(frontend.protocol, frontend.port)),
    }
}

impl Frontends {
    pub(super) fn get(&self, frontend: &Frontend) -> Option<&Dispatch> {
        self.rules.get(frontend)
    }

    /// Prepares new rules for frontends, or their removal.
    pub(super) fn edit(&self, rules: BTreeMap<Frontend, Option<Dispatch>>) -> Edit {
        let mut edit = Edit { rules, ..Edit::default() };
        // All frontends of an address share a place.
        let touched: HashMap<_, _> = edit.rules.keys().map(|frontend| (place(frontend), *frontend)).collect();
        for ((space, key), frontend) in touched {
            let (first, last) = match frontend.address {
                FrontendAddress::Ip(address) => (
                    Frontend::ip(address, NonZeroU16::MIN, Protocol::Tcp),
                    Frontend::ip(address, NonZeroU16::MAX, Protocol::Sctp),
                ),
                FrontendAddress::NodePort(_) => (frontend, frontend),
            };
            let (mut nat, mut filter, mut end) = (Vec::new(), Vec::new(), Vec::new());
            for dispatch in self.after(&edit.rules, first, last).into_values() {
                nat.extend(dispatch.nat.iter().cloned());
                filter.extend(dispatch.filter.iter().cloned());
                end.extend(dispatch.last.iter().cloned());
            }
            filter.append(&mut end);
            for ((table, of), leaves) in TREES.into_iter().zip(&mut edit.leaves) {
                let rules = if table == Table::Nat { &nat } else { &filter };
                if of == space {
                    leaves.insert(key, (!rules.is_empty()).then(|| rules.as_slice().into()));
                }
            }
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
        for (leaves, edits) in self.leaves.iter_mut().zip(edit.leaves) {
            apply(leaves, edits);
        }
    }

    fn trees<'a>(
        &'a self,
        context: &'a Context,
        edits: &'a [LeafEdits; TREES.len()],
    ) -> impl Iterator<Item = (Table, Tree<'a>)> {
        let names = &context.names;
        TREES.into_iter().zip(self.leaves.iter().zip(edits)).map(move |((table, space), (leaves, edits))| {
            let root = match space {
                Space::Addresses => &names.services,
                Space::Ports => &names.node_ports,
            };
            (table, Tree { names, space, root, leaves, edits })
        })
    }

    /// All dispatch chains.
    pub(super) fn chains(&self, context: &Context, node: &NodeRouting, family: IpFamily) -> ChainChanges {
        let trees = self.trees(context, &NO_EDITS).map(|(table, tree)| (table, tree.chains()));
        let mut chains = with_node_ports(context, node, family, trees);
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
        let trees = self.trees(context, &edit.leaves).map(|(table, tree)| (table, tree.changes()));
        with_node_ports(context, node, family, trees)
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
        let (space, key) = place(frontend);
        let mut ways = Vec::new();
        if space == Space::Ports {
            let (names, to) = (&context.names, context.ways_to_node_ports(node, frontend.family()));
            ways.push(((Table::Nat, names.services.clone()), to.clone()));
            ways.push(((Table::Filter, names.external_services.clone()), to));
        }
        for (table, tree) in self.trees(context, &NO_EDITS).filter(|(_, tree)| tree.space == space) {
            let own: Vec<Rule> = match table {
                Table::Nat => dispatch.nat.clone(),
                Table::Filter => dispatch.filter.iter().chain(&dispatch.last).cloned().collect(),
            };
            let path = tree.path(key, &own).unwrap_or_default();
            ways.extend(path.into_iter().map(|(chain, rules)| ((table, chain), rules)));
        }
        ways
    }
}

/// The chains of all trees, with the way to the node ports at the end of the root of nat.
fn with_node_ports(
    context: &Context,
    node: &NodeRouting,
    family: IpFamily,
    trees: impl Iterator<Item = (Table, TreeChanges)>,
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
